"""Rows 12, 13, 15, 16 and 18: what messages can bring, and how many of them."""
import json
import math
import os
import resource
import signal
import time

from cases import job_text
from ledger import Ledger
from registry import row
from rows_kill import keep_busy

# ---- row 12 ----


@row(12, "duplicates: the same id up to 100 times, other payloads, across partitions",
     lambda full: [({"broker": b, "ids": 250 if full else 60}, s) for b in ("redis", "kafka")
                   for s in range(1, 6 if full else 2)])
def duplicates(case):
    """Every id one row; every other payload of an id a dead letter; no message left."""
    jobs, conflicts = [], set()
    for i in range(case.params["ids"]):
        copies = case.dice.choice([1, 2, 3, 10, 100])
        jobs += [(f"j{i}", job_text(i))] * copies
        if i % 10 == 3:
            jobs += [(f"j{i}", job_text(i, temperature=0.5))] * case.dice.randint(1, 3)
            conflicts.add(f"j{i}")
        elif copies:
            case.jobs[f"j{i}"] = job_text(i)
    case.dice.shuffle(jobs)
    case.any_content |= conflicts
    case.expected_dead |= conflicts
    case.notes["messages"] = len(jobs)
    case.watch()
    for _ in range(2):
        case.worker(step="2ms")
    case.queue.send(jobs, case.ledger)
    time.sleep(1)
    case.kill(case.workers[0])
    case.drain()
    return case.verdict(ratio_max=2.0)


# ---- row 13 ----


def bad_messages():
    """(name, bytes or None): each is to leave exactly one row, and nothing else."""
    deep = b'{"id":"deep","prompt":' + b"[" * 200000 + b"]" * 200000 + b"}"
    big = json.dumps({"id": "big", "prompt": "x" * (5 << 20)}).encode()
    keys = json.dumps({"id": "keys", "prompt": "x", **{f"k{i}": i for i in range(100000)}}).encode()
    made = {"empty": b"", "space": b" ", "not json": b"hello", "half": b'{"id":"h","prompt":"x',
            "array": b"[1,2]", "number": b"17", "null": b"null", "string": b'"x"', "deep": deep,
            "big": big, "keys": keys, "nul": b'{"id":"n\x00","prompt":"x"}', "bare nul": b"\x00" * 100,
            "escaped nul": b'{"id":"e\\u0000","prompt":"x"}',
            "lone surrogate": b'{"id":"ls","prompt":"\\ud800"}',
            "bad utf-8": b'{"id":"u","prompt":"\xff\xfe"}',
            "overlong": b'{"id":"o","prompt":"\xc0\xaf"}',
            "surrogate bytes": b'{"id":"s","prompt":"\xed\xa0\x80"}',
            "bom": b'\xef\xbb\xbf{"id":"bom","prompt":"x"}', "two": b'{"id":"t1"}{"id":"t2"}',
            "trailing": b'{"id":"tr","prompt":"x"} x', "twice a key": b'{"id":"a","id":"b","prompt":"x"}',
            "no id": b'{"prompt":"x"}', "id is null": b'{"id":null,"prompt":"x"}',
            "id is a list": b'{"id":[1],"prompt":"x"}', "id is empty": b'{"id":"","prompt":"x"}',
            "id too long": b'{"id":"' + b"i" * 300 + b'","prompt":"x"}',
            "no prompt": b'{"id":"np"}', "prompt is a number": b'{"id":"pn","prompt":1}',
            "nan": b'{"id":"nan","prompt":"x","temperature":NaN}',
            "infinity": b'{"id":"inf","prompt":"x","temperature":1e999}',
            "negative": b'{"id":"neg","prompt":"x","max_tokens":-1}',
            "huge": b'{"id":"huge","prompt":"x","max_tokens":99999999999999999999}',
            "float tokens": b'{"id":"ft","prompt":"x","max_tokens":1.5}',
            "top_p 2": b'{"id":"tp","prompt":"x","top_p":2}', "n 0": b'{"id":"n0","prompt":"x","n":0}',
            "n huge": b'{"id":"nh","prompt":"x","n":1000000}',
            "unknown": b'{"id":"un","prompt":"x","nonsense":1}',
            "stop list": b'{"id":"sl","prompt":"x","stop":' + json.dumps(["x"] * 500).encode() + b"}",
            "image": b'{"id":"im","messages":[{"role":"user","content":[{"type":"image_url",'
                     b'"image_url":{"url":"x"}}]}]}',
            "role": b'{"id":"ro","messages":[{"role":"king","content":"x"}]}',
            "messages empty": b'{"id":"me","messages":[]}',
            "newlines": b"\n\n\n", "crlf": b'{"id":"cr",\r\n"prompt":"x"}\r\n'}
    return sorted(made.items())


@row(13, "bad inputs: broken JSON, bytes, sizes, numbers",
     lambda full: [({"broker": b}, s) for b in ("redis", "kafka") for s in range(1, 5 if full else 2)])
def bad_inputs(case):
    """Each message, whatever it holds, leaves one row, under an id that can be read or its place."""
    # (A broker takes one mebibyte unless it is told otherwise.)
    bad = [m for m in bad_messages() if case.queue.kind == "redis" or len(m[1]) < 900000]
    case.dice.shuffle(bad)
    good = [(f"j{i}", job_text(i)) for i in range(len(bad))]
    case.jobs.update(good)
    mixed = [m for pair in zip(good, bad) for m in pair]
    worker = case.worker(step="2ms")
    case.watch()
    aside = Ledger(case.folder / "bad")  # their rows have other names, so nobody can follow them
    for pair in mixed:
        case.queue.send([pair], aside if pair[0] in dict(bad) else case.ledger)
    aside.close()
    until = time.monotonic() + 60
    while case.queue.left() and time.monotonic() < until:
        time.sleep(0.2)
    if not worker.alive():
        case.violate(f"the worker died of it: {worker.text()[-300:]}")
    [(rows, good_rows, other)] = case.ask(
        "SELECT count(*), count(*) FILTER (WHERE custom_id ~ '^j[0-9]+$' AND status='ok'), "
        "count(*) FILTER (WHERE status NOT IN ('ok', 'invalid')) FROM tranche.results")
    if rows != 2 * len(good) or good_rows != len(good) or other:
        case.violate(f"{rows} rows for {2 * len(good)} messages, {good_rows} good ones, {other} that "
                     "are neither ok nor invalid")
    case.any_content |= {i for (i,) in case.ask("SELECT custom_id FROM tranche.results")}
    peak = max_rss(worker)
    case.notes["rss_mib"] = peak
    if peak > 400:
        case.violate(f"I10: {peak} MiB")
    case.drain()
    return case.verdict()


def max_rss(worker):
    with open(f"/proc/{worker.child() or worker.pid}/status") as f:
        return int(next(line for line in f if line.startswith("VmHWM")).split()[1]) >> 10


# ---- row 15 ----


@row(15, "poison: prompts that abort, segfault, hang or eat the memory",
     lambda full: [({"broker": b, "kind": k}, s) for k in ("abort", "segfault", "hang", "memory")
                   for b in ("redis", "kafka") for s in range(1, 4 if full else 2)
                   if full or (b, k) in (("redis", "segfault"), ("kafka", "hang"))])
def poison(case):
    """Innocents are all ok, the poison is dead and nobody else, within the promised deaths."""
    n, slots = 600, 8
    bad = {f"j{i}" for i in case.dice.sample(range(n), 2)}
    jobs = [(f"j{i}", job_text(i) if f"j{i}" not in bad else
             json.dumps({"id": f"j{i}", "prompt": f"number {i} ~"})) for i in range(n)]
    case.jobs.update(j for j in jobs if j[0] not in bad)
    case.any_content |= bad
    case.expected_dead |= bad
    case.deaths_wanted |= {6, 11}
    case.queue.send(jobs, case.ledger)
    case.watch()
    options = ["--sim-poison-id", ord("~"), "--sim-poison", case.params["kind"], "--watchdog", "1s",
               "--memory-limit", "600MiB"]
    worker = case.worker(*options, name="w", slots=slots, claim=100, idle="1s")
    if worker.wait(170) != 0:
        case.violate(f"left with {worker.process.poll()}: {case.queue.left()} left, "
                     f"{worker.text()[-400:]}")
        worker.kill()
    deaths = worker.text().count('"event":"worker_died"')
    for _ in range(deaths):
        case.note_kill(f"poison: {case.params['kind']}")
    bound = len(bad) * (5 + math.ceil(math.log2(slots + 100)))
    if deaths > bound:
        case.violate(f"{deaths} deaths, at most {bound} were promised")
    dead = {i for (i,) in case.ask("SELECT custom_id FROM tranche.results WHERE status='dead'")}
    if dead != bad:
        case.violate(f"I6: dead {sorted(dead)} for {sorted(bad)}")
    case.drain()
    return case.verdict(ratio_max=3.0)


# ---- row 16 ----


@row(16, "the wall clock steps by an hour and by a day, forth and back",
     lambda full: [({"broker": "redis", "offset": o}, s) for o in ("+1h", "-1h", "+1d", "-1d")
                   for s in range(1, 4 if full else 2) if full or o == "-1d"])
def clock(case):
    """Leases and timeouts stand on the monotonic clock: nobody loses what is held."""
    stamp = case.folder / "clock"
    stamp.write_text("+0")
    env = {"LD_PRELOAD": "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1",
           "FAKETIME_TIMESTAMP_FILE": str(stamp), "FAKETIME_NO_CACHE": "1",
           "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    case.submit(1200)
    case.watch()
    pods = [case.worker(step="20ms", env=env, slots=8) for _ in range(2)]
    for at in (case.params["offset"], "+0", case.params["offset"]):
        time.sleep(case.dice.uniform(0.5, 1.5))
        stamp.write_text(at)
        case.note_kill("clock")
    time.sleep(1)
    if any("leases_lost" in w.text() for w in pods):
        case.violate("leases were lost by the wall clock's step")
    case.drain()
    return case.verdict(ratio_max=1.05)


# ---- row 18 ----


@row(18, "load: many jobs, 64 partitions",
     lambda full: [({"broker": b, "jobs": 200000, "partitions": 64}, 1) for b in ("kafka", "redis")]
     if full else [], exclusive=True)
def load(case):
    case.watch()
    case.submit(case.params["jobs"])
    begin = time.monotonic()
    w = case.worker("--log-level", "warn", step="0s", slots=256, claim=16384, flush_rows=512,
                    idle="2s", name="last")
    if w.wait(600) != 0:
        case.violate(f"not done within 600 s: {case.queue.left()} left")
    seconds = time.monotonic() - begin - 2
    case.notes["jobs_per_s"] = round(case.params["jobs"] / seconds)
    return case.verdict(ratio_max=1.01)


# ---- row 11 ----


@row(11, "limits: 64 file descriptors, a full disk under log and spool",
     lambda full: [({"broker": "redis", "fault": f}, s) for f in ("descriptors", "spool")
                   for s in range(1, 6 if full else 2)], exclusive=lambda p: p["fault"] == "spool")
def limits(case):
    """A worker that cannot have what it wants says so and loses nothing."""
    case.submit(800)
    case.watch()
    if case.params["fault"] == "descriptors":
        case.worker(step="10ms", limits=[(resource.RLIMIT_NOFILE, 64)])
        time.sleep(2)
    else:  # files stop growing at 64 KiB: the spool's, and the log's too
        case.worker("--spool-dir", case.folder / "spool", step="10ms",
                    limits=[(resource.RLIMIT_FSIZE, 65536)])
        time.sleep(1)
        case.servers.postgres.stop("immediate")
        time.sleep(case.dice.uniform(1, 3))
        case.servers.postgres.start()
        case.deaths_wanted.add(25)
    case.note_kill(case.params["fault"])
    case.drain()
    return case.verdict(ratio_max=2.0)


# ---- row 17 ----


@row(17, "soak: two workers, faults at a low rate",
     lambda full: [({"broker": b, "seconds": 4500}, 1) for b in ("redis", "kafka")] if full else [])
def soak(case):
    """Memory, descriptors, threads and connections of a worker that nobody hurts stay where they
    were; the other one is killed and stopped now and then."""
    case.submit(1000)
    case.watch()
    calm = case.worker(name="calm", step="100ms")
    hurt = case.worker(name="hurt", step="100ms")
    time.sleep(20)
    before, until = footprint(calm), time.monotonic() + case.params["seconds"]
    while time.monotonic() < until:
        time.sleep(case.dice.uniform(2, 6))
        if case.dice.random() < 0.5:
            case.kill(hurt, "soak")
            hurt = case.worker(name="hurt", step="100ms")
        else:
            hurt.signal(signal.SIGSTOP)
            time.sleep(case.dice.uniform(0.5, 4))
            hurt.signal(signal.SIGCONT)
            case.note_kill("soak: stopped")
        keep_busy(case, 1500)
    after = footprint(calm)
    case.notes.update(before=before, after=after)
    if after[0] > before[0] + 10 * 1024 or after[1] > before[1] + 4 or after[2] > before[2]:
        case.violate(f"I10: KiB, descriptors, threads {before} grew to {after}")
    case.drain(timeout=180)
    return case.verdict(ratio_max=1.5)


def footprint(worker):
    pid = worker.child() or worker.pid
    with open(f"/proc/{pid}/status") as f:
        status = dict(line.split(":", 1) for line in f)
    return (int(status["VmRSS"].split()[0]), len(os.listdir(f"/proc/{pid}/fd")),
            int(status["Threads"]))
