"""Arrivals of jobs over a day: made by a seed, or read from a file.

A trace is a list of (second, jobs, tokens of each answer), in order of time. Jobs that come together
and are as long as each other stand as one entry, at most 256 of them (a stream) or 32 (a batch), to keep a
day in reach of Python.

  steady   as many a second all day, enough for 1.4 GPUs
  diurnal  a sine over the day: 2.9 GPUs of work at 14:00, 0.1 at 02:00; never quite empty
  nightly  400,000 jobs at 01:00 in half an hour, a handful of 2,000 by day
  tail     a batch of 6,000 to 60,000 every two hours; half of the answers are below 455 tokens,
           one in 50 is above 10,000, the longest are 32,768

A file of your own: lines `second,jobs,tokens`, no head, `#` begins a comment."""

import math
import random

DAY = 86400
BIN = 4
GRAINS = {"steady": 256, "diurnal": 256, "nightly": 32, "tail": 32}
GRAIN = 32                        # of a file
W2 = (1024, 0.8, 8192)            # answers' mean, sigma, most, as docs/performance.md has W2
TAIL = (1400, 1.5, 32768)


class TraceError(ValueError):
    pass


def lengths(rng, mean, sigma, most):
    """Answers' lengths: lognormal, clipped."""
    middle = math.log(mean) - sigma * sigma / 2
    while True:
        yield max(1, min(most, round(rng.lognormvariate(middle, sigma))))


def count(rng, mean):
    """A Poisson number; above 30 the normal curve stands in."""
    if mean > 30:
        return max(0, round(rng.gauss(mean, math.sqrt(mean))))
    n, product, least = -1, 1.0, math.exp(-mean)
    while product > least:
        n, product = n + 1, product * rng.random()
    return n


def stream(rng, rate_at, grain):
    """Arrivals all day at a rate that changes: what comes in BIN seconds, cut to `grain`."""
    sizes, out = lengths(rng, *W2), []
    for t in range(0, DAY, BIN):
        jobs = count(rng, BIN * rate_at(t))
        parts = -(-jobs // grain)
        out += [(float(t), jobs * (i + 1) // parts - jobs * i // parts, next(sizes))
                for i in range(parts)]
    return out


def batch(rng, sizes, start, jobs, seconds, grain):
    """`jobs` jobs spread evenly over `seconds` from `start`."""
    n = max(1, jobs // grain)
    return [(start + seconds * i / n, grain, next(sizes)) for i in range(n)]


def steady(rng, jobs_s, grain):
    return stream(rng, lambda _: 1.4 * jobs_s, grain)


def diurnal(rng, jobs_s, grain):
    def rate(t):
        return (1.5 + 1.4 * math.cos(2 * math.pi * (t - 14 * 3600) / DAY)) * jobs_s

    return stream(rng, rate, grain)


def nightly(rng, jobs_s, grain):
    sizes = lengths(rng, *W2)
    out = batch(rng, sizes, 3600, 400_000, 1800, grain)
    for hour in (9, 10.5, 11, 14, 15.25, 16):
        out += batch(rng, sizes, hour * 3600 + rng.uniform(0, 600), 2000, 10, grain)
    return sorted(out)


def tail(rng, jobs_s, grain):
    sizes = lengths(rng, *TAIL)
    out = []
    for hour in range(0, 24, 2):
        jobs = int(math.exp(rng.uniform(math.log(6000), math.log(60000))))
        out += batch(rng, sizes, hour * 3600 + rng.uniform(0, 1800), jobs, 20, grain)
    return sorted(out)


MAKERS = {"steady": steady, "diurnal": diurnal, "nightly": nightly, "tail": tail}


def make(name, jobs_s, seed=1, grain=None):
    """A trace by name; `jobs_s`: jobs a second that one full pod finishes."""
    return MAKERS[name](random.Random(f"{name} {seed}"), jobs_s, grain or GRAINS[name])


def read(path, grain=GRAIN):
    """A trace from a file; large entries are cut to `grain` jobs."""
    out = []
    with open(path, encoding="utf-8") as f:
        for number, line in enumerate(f, 1):
            line = line.split("#")[0].strip()
            if not line:
                continue
            try:
                second, jobs, tokens = line.split(",")
                second, jobs, tokens = float(second), int(jobs), int(tokens)
            except ValueError:
                raise TraceError(f"{path}:{number}: want second,jobs,tokens, found {line!r}") from None
            if not math.isfinite(second) or second < 0 or jobs < 1 or tokens < 1:
                raise TraceError(f"{path}:{number}: want a second from 0, 1 job and 1 token or more, "
                                 f"found {line!r}")
            for done in range(0, jobs, grain):
                out.append((second, min(grain, jobs - done), tokens))
    if not out:
        raise TraceError(f"{path}: no line in it")
    return sorted(out)
