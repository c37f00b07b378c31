"""The scalers that are set beside each other, and the tables of what they came to."""

import model
import scalers

# Kubernetes' own default grace, and a server that knows no parking.
PLAIN = {"grace": 30.0, "parks": False}


def contenders(threshold=20000, most=10):
    """(name, maker, settings) in the order of the table."""
    return [
        ("fixed: 2", lambda: scalers.Fixed(2), {}),
        ("fixed: 4", lambda: scalers.Fixed(4), {}),
        ("HPA on GPU use, 2 to 10 at 70 %", lambda: scalers.UseHpa(2, most), PLAIN),
        ("ScaledJob on lag", lambda: scalers.KedaJobs(threshold, most), {}),
        ("warm pool on lag", lambda: scalers.KedaPool(threshold, most), {}),
        ("pool on lag that shrinks", lambda: scalers.KedaPool(threshold, most, down=True), {}),
        ("the same, no parking", lambda: scalers.KedaPool(threshold, most, down=True), PLAIN),
    ]


def play(trace, card, maker, settings, least_seconds):
    return model.Sim(trace, maker(), card, model.Settings(**settings)).run(least_seconds)


def seconds(value):
    """0 s, 47 s, 12 min, 2.6 h."""
    if value < 119.5:
        return f"{value:.0f} s"
    return f"{value / 60:.0f} min" if value < 5400 else f"{value / 3600:.1f} h"


def tokens(value):
    return "0" if value < 500 else f"{value / 1e6:.1f} M" if value >= 50_000 else f"{value / 1e3:.0f} k"


def percent(share):
    return f"{100 * share:.0f} %"


HEAD = """\
| | GPU-hours | a kernel ran | of full speed | queued: p50 | p95 | most | row after: p95 | busy pods stopped | tokens lost |
|---|---|---|---|---|---|---|---|---|---|"""


def row(name, result):
    begin = " | ".join(seconds(s) for s in result.begin)
    return (f"| {name} | {result.hours:.1f} | {percent(result.used)} | {percent(result.full)} | {begin} | "
            f"{seconds(result.row[1])} | {result.busy_stops} | {tokens(result.lost)} |")


def table(results):
    return "\n".join([HEAD, *(row(name, result) for name, result in results)])
