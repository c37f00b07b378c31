"""The rows of the campaign (RELIABILITY 5.4): each names its cases and runs one of them."""
import re

from servers import ROOT

ROWS = {}


class Row:
    def __init__(self, number, title, plan, run, exclusive, private):
        self.number, self.title, self.exclusive = number, title, exclusive
        self.plan, self.run, self.private = plan, run, private

    def alone(self, params):
        return self.exclusive(params) if callable(self.exclusive) else self.exclusive

    def cases(self, full):
        """[(params, seed)], the same ones each time."""
        return self.plan(full)


def row(number, title, plan, exclusive=False, private=False):
    """exclusive (or a function of the parameters): the case breaks a server that others share.
    private: the case gets a Redis of its own to break."""
    def register(run):
        ROWS[number] = Row(number, title, plan, run, exclusive, private)
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
    for path in sorted((ROOT / "worker").rglob("*.c")):
        for inside in re.findall(r"\bFAILPOINT\(([^;]*)\);", path.read_text()):
            found.update(re.findall(r'"([a-z0-9_]+\.[a-z0-9_]+)"', inside))
    other = {"redis": "kafka.", "kafka": "redis."}[broker]
    return sorted(n for n in found if not n.startswith(other))
