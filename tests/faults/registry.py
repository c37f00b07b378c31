"""The rows of the campaign (RELIABILITY 5.4): each names its cases and runs one of them."""
import re

from servers import ROOT

ROWS = {}


class Row:
    def __init__(self, number, title, plan, run, exclusive):
        self.number, self.title, self.exclusive = number, title, exclusive
        self.plan, self.run = plan, run

    def cases(self, full):
        """[(params, seed)], the same ones each time."""
        return self.plan(full)


def row(number, title, plan, exclusive=False):
    """exclusive: the case breaks a server that others share, so it runs alone."""
    def register(run):
        ROWS[number] = Row(number, title, plan, run, exclusive)
        return run
    return register


BROKERS = ("redis", "kafka")


def seeds(full, n_full, n_short, brokers=BROKERS, **params):
    """The same parameters with n seeds on each broker."""
    return [({"broker": b, **params}, s) for b in brokers
            for s in range(1, (n_full if full else n_short) + 1)]


def failpoints(broker):
    """Every named point of the sources that a worker on this broker can come by."""
    found = set()
    for path in sorted((ROOT / "worker").glob("*.c")):
        for inside in re.findall(r"\bFAILPOINT\(([^;]*)\);", path.read_text()):
            found.update(re.findall(r'"([a-z0-9_]+\.[a-z0-9_]+)"', inside))
    other = {"redis": "kafka.", "kafka": "redis."}[broker]
    return sorted(n for n in found if not n.startswith(other))
