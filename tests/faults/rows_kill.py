"""Rows 1 to 4: workers that die, stop and leave."""
import signal
import time

from cases import job_text
from registry import BROKERS, failpoints, row, seeds

# How often a point is passed in the time of a case, roughly: where to draw N of @N from.
OFTEN = {"s3.": 100, "s6.": 60, "s2.before_claim": 6, "sink.": 6, "s4.": 3, "s5.": 4, "s7.": 5,
         "s8.": 4}


def hit_of(case, point):
    if "dead_letters" in point:
        return 1
    most = next((n for prefix, n in OFTEN.items() if point.startswith(prefix)), 1)
    return case.dice.randint(1, most)


def conflict(case, n):
    """The same id with two payloads: one becomes the row, the other a dead letter."""
    job = f"c{n}"
    case.any_content.add(job)
    case.expected_dead.add(job)
    texts = [job_text(n).replace(f'"j{n}"', f'"{job}"'),
             job_text(n, temperature=0.5).replace(f'"j{n}"', f'"{job}"')]
    where = {"partition": 0} if case.queue.kind == "kafka" else {}
    case.queue.send([(job, t) for t in texts], case.ledger, **where)


def change_settings(case, text):
    """A new revision of --job-config that changes nothing for our batch; answers the option."""
    folder = case.folder / "job-config"
    folder.mkdir(exist_ok=True)
    (folder / "system.nobody.txt").write_text(text)
    return "--job-config", folder


def keep_busy(case, n=100):
    if case.queue.left() < n:
        case.submit(n + 50)


def plan_failpoints(full):
    points = [(b, p) for b in BROKERS for p in failpoints(b)
              if not p.startswith("drain.") and "unpark" not in p]
    if not full:  # every other one, so that each is met on one of the brokers
        points = [at for n, at in enumerate(points) if n % 2 == (at[0] == "kafka")]
    return [({"broker": b, "point": p, "kills": 10 if full else 1}, 1) for b, p in points]


@row(1, "kill -9 at each failpoint", plan_failpoints)
def at_failpoint(case):
    point = case.params["point"]
    case.watch()
    for n in range(case.params["kills"]):
        keep_busy(case)
        if "dead_letter" in point or n % 3 == 0:
            conflict(case, n)
        # The whole pod dies, or the process alone, which its parent starts again.
        how = case.dice.choice(["pod", "kill"])
        options = change_settings(case, f"start {n}") if point.startswith("config.") else ()
        worker = case.worker(*options, name="w", fail=f"{point}:{how}@{hit_of(case, point)}")
        if point == "kafka.flushed":  # a second member makes the first give back what it has
            until = time.monotonic() + 30
            while "partition_start" not in worker.text() and time.monotonic() < until:
                time.sleep(0.1)
            case.worker(name="other", idle="5s")
        until = time.monotonic() + 30
        for tick in range(1 << 30):
            if worker.fired() or not worker.alive() or time.monotonic() > until:
                break
            time.sleep(0.03)
            if tick % 20 == 19:
                keep_busy(case)
            if options and tick % 120 == 1:  # what two looks, a second apart, find the same is read
                change_settings(case, f"kill {n}, look {tick}")
        if not worker.fired():
            case.violate(f"{point} was not reached within 30 s: {worker.text()[-300:]}")
            worker.kill()
            break
        if how == "kill":
            time.sleep(case.dice.uniform(0, 0.6))
        worker.kill()
        case.note_kill(point)
    case.drain()
    return case.verdict()


@row(2, "kill -9 at random moments", lambda full: [
    ({"broker": b, "kills": 25 if full else 8, "workers": 2 + s % 3}, s)
    for b in BROKERS for s in range(1, 21 if full else 3)])
def at_random(case):
    case.submit(2000)
    case.watch()
    names = iter(range(1 << 30))

    def start(old=None):
        # Two in three come back under their own name, as a container in its pod does.
        name = old if old and case.dice.random() < 0.67 else f"p{next(names)}"
        return name, case.worker(name=name)
    pods = [start() for _ in range(case.params["workers"])]
    done = 0
    while done < case.params["kills"]:
        time.sleep(case.dice.uniform(0.2, 1.2 if case.queue.kind == "redis" else 3))
        at = case.dice.randrange(len(pods))
        name, worker = pods[at]
        if case.dice.random() < 0.3 and worker.kill_child():
            case.note_kill("random, the process alone")
            done += 1
        else:
            done += case.kill(worker)
            pods[at] = start(name)
        keep_busy(case, 800)
    case.drain()
    return case.verdict()


@row(3, "SIGSTOP, then SIGCONT: zombies", lambda full: seeds(full, 10, 1, stops=10 if full else 3))
def zombies(case):
    case.submit(1500)
    case.watch()
    pods = [case.worker(name=f"z{i}", step="10ms") for i in range(2)]
    for _ in range(case.params["stops"]):
        time.sleep(case.dice.uniform(0.3, 1))
        pod = case.dice.choice(pods)
        pod.signal(signal.SIGSTOP)
        time.sleep(case.dice.uniform(0.5, 3 * 1.5))  # up to three sessions or leases
        pod.signal(signal.SIGCONT)
        case.note_kill("stopped")
        keep_busy(case, 500)
    case.drain()
    return case.verdict(ratio_max=1.5)


DRAIN = ("drain.started", "drain.before_release", "drain.before_park", "drain.after_park",
         "drain.before_back", "drain.before_uncount", "drain.after_uncount")


def plan_terms(full):
    deadly = [({"broker": b, "terms": 5, "point": p}, 1) for b in BROKERS for p in DRAIN]
    return seeds(full, 20, 2, terms=5) + (deadly if full else [])


@row(4, "SIGTERM at random moments; kill -9 while leaving", plan_terms)
def terms(case):
    """With `point`: the pod dies at it, where the drain comes by."""
    point = case.params.get("point")
    case.submit(1000)
    case.watch()
    for n in range(case.params["terms"]):
        grace = case.dice.uniform(0.2, 3)
        worker = case.worker("--grace", f"{grace:.1f}s", name=f"t{n % 2}",
                             fail=point and f"{point}:pod",
                             step=case.dice.choice(["5ms", "50ms"]))
        time.sleep(case.dice.uniform(0.1, 2.5))
        begin = time.monotonic()
        worker.signal(signal.SIGTERM)
        status = worker.wait(60)
        took = time.monotonic() - begin
        if status not in (0, 143, -15) and not worker.fired():
            case.violate(f"SIGTERM: left with {status}: {worker.text()[-300:]}")
        if took > grace + 8:
            case.violate(f"SIGTERM: grace {grace:.1f} s, left after {took:.1f} s")
        case.note_kill(point if worker.fired() else "SIGTERM")
        keep_busy(case, 300)
    case.drain()
    return case.verdict(ratio_max=2.0 if point else 1.0)


@row(10, "rebalance storm", lambda full: [
    ({"broker": "kafka", "partitions": 12, "seconds": 60 if full else 8, "slow_ms": slow}, s)
    for s in range(1, 6 if full else 2) for slow in (0, 150)])
def storm(case):
    """Workers join and leave all the time, one in three without a word. `slow_ms`: what the source's
    thread sleeps before each claim, so that the worker's answers to it pile up."""
    slow = case.params["slow_ms"]
    fail = f"s2.before_claim:sleep={slow}@1+" if slow else None
    case.submit(2000)
    case.watch()
    pods = [case.worker(step="10ms", fail=fail)]
    until = time.monotonic() + case.params["seconds"]
    while time.monotonic() < until:
        time.sleep(case.dice.uniform(0.3, 2.5))
        if len(pods) < 2 or (len(pods) < 4 and case.dice.random() < 0.5):
            pods.append(case.worker(step="10ms", fail=fail))
            continue
        pod = pods.pop(case.dice.randrange(len(pods)))
        if case.dice.random() < 0.33:
            case.kill(pod, "left without a word")
        else:
            pod.signal(signal.SIGTERM)
            case.note_kill("SIGTERM")
        keep_busy(case, 1000)
    case.drain()
    return case.verdict(ratio_max=2.0)
