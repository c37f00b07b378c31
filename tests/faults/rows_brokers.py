"""Rows 7, 8 and 9: brokers that die, forget and lose; links that are black holes, slow or reset."""
import os
import shutil
import signal
import time

import redis

from registry import row
from rows_kill import keep_busy
from servers import Proxy, redis_server

# ---- row 7: Kafka ----


def broker_restart(case, how):
    broker = case.servers.kafka
    for _ in range(2):
        time.sleep(case.dice.uniform(0.5, 1.5))
        case.note_kill(f"broker {how.name}")
        broker.kill(how)
        time.sleep(case.dice.uniform(0.1, 3))
        broker.start()
    case.drain(timeout=150)


def stop_all(case):
    for w in case.workers:
        case.kill(w, "before the fault")


def offsets_deleted(case):
    """The group's offsets expired: the second copy in the database says where to go on."""
    time.sleep(1.5)
    stop_all(case)
    case.seen_before_reset()
    until = time.monotonic() + 30
    while (code := case.queue.delete_group()) != 0 and time.monotonic() < until:
        time.sleep(0.5)  # 68: its dead members are still waited for
    if code:
        case.violate(f"the broker would not delete the group: {code}")
    before = case.rows()
    case.note_kill("offsets deleted")
    case.drain()
    [(again,)] = case.ask("SELECT count(*) FROM tranche.results WHERE attempts > 2")
    case.notes.update(rows_before=before, started_more_than_twice=again)


def recreated(case):
    """Another topic of that name: what lies at the old offsets are other messages. The worker stops
    reading that partition and says so; the operator's seek mends it."""
    case.drain()
    case.seen_before_reset()
    case.queue.drop()
    case.queue.make()
    case.note_kill("topic re-created")
    first = len(case.jobs)
    case.submit(20)
    w = case.worker(name="blind")
    until = time.monotonic() + 30
    while "partition_refused" not in w.text() and time.monotonic() < until:
        time.sleep(0.2)
    if "partition_refused" not in w.text() or not w.alive():
        case.violate(f"a re-created topic is not told: {w.text()[-300:]}")
    if case.rows() != first:
        case.violate(f"{case.rows() - first} messages were read at offsets of another topic")
    w.signal(signal.SIGTERM)
    w.wait(30)
    case.command("seek", "--source", case.queue.url(), "--group", case.queue.group, "--to",
                 "earliest")
    case.drain()


def retention(case):
    """Retention passes the watermark: lost_ranges say exactly which offsets, and no more."""
    until = time.monotonic() + 30
    while time.monotonic() < until:
        marks = dict(case.ask("SELECT partition, position FROM tranche.partition_progress"))
        if len(marks) == 3 and min(marks.values()) > 0:
            break
        time.sleep(0.05)
    stop_all(case)
    time.sleep(2)
    case.seen_before_reset()
    marks = dict(case.ask("SELECT partition, position FROM tranche.partition_progress"))
    cuts, expected = {}, set()
    for partition, (_, high) in case.queue.ends().items():
        at = marks.get(partition, 0)
        if high - at > 20:
            cuts[partition] = at + case.dice.randrange(5, high - at - 5)
            expected.add((partition, at, cuts[partition]))
    case.queue.delete_records(cuts)
    case.note_kill("retention")
    case.drain()
    told = set(case.ask("SELECT partition, from_position, to_position FROM tranche.lost_ranges"))
    if told != expected or not expected:
        case.violate(f"lost_ranges {sorted(told)} for {sorted(expected)}")
    for job, places in list(case.ledger.promised.items()):
        if all(p in cuts and o < cuts[p] for p, o in places):
            del case.ledger.promised[job]
            case.gone.add(job)


KAFKA = {"kill": lambda c: broker_restart(c, signal.SIGKILL),
         "term": lambda c: broker_restart(c, signal.SIGTERM), "offsets": offsets_deleted,
         "recreated": recreated, "retention": retention}


@row(7, "Kafka: broker killed, offsets deleted, topic re-created, retention past the watermark",
     lambda full: [({"broker": "kafka", "fault": f}, s) for f in KAFKA
                   for s in range(1, (6 if f in ("kill", "term") else 11) if full else 2)
                   if full or f != "term"],
     exclusive=lambda params: params["fault"] in ("kill", "term"))
def kafka(case):
    case.submit(900)
    case.watch()
    for _ in range(2):
        case.worker(step="20ms", slots=8)
    KAFKA[case.params["fault"]](case)
    return case.verdict(ratio_max=2.5)


# ---- row 8: Redis ----


def redis_killed(case):
    time.sleep(case.dice.uniform(0.2, 1))
    case.private.kill()
    time.sleep(case.dice.uniform(0.05, 2.5))
    case.private.start()


def aof_cut(case):
    """The last commands are lost with the file's tail. Nobody produces meanwhile, so these are
    claims and acknowledgements: they are made again."""
    before = case.rows()
    while case.rows() < before + 100 and case.queue.left() > 100:  # enough of these at the end
        time.sleep(0.05)
    case.private.kill()
    files = sorted(case.private.folder.glob("appendonlydir/*.incr.aof"))
    with open(files[-1], "ab") as f:
        f.truncate(max(0, os.path.getsize(files[-1]) - case.dice.randrange(1, 900)))
    case.private.start()


def memory_full(case):
    client = case.queue.client
    client.config_set("maxmemory", 1)
    time.sleep(case.dice.uniform(0.5, 3))
    client.config_set("maxmemory", 0)


def scripts_flushed(case):
    until = time.monotonic() + case.dice.uniform(0.5, 2)
    while time.monotonic() < until:
        case.queue.client.script_flush()
        time.sleep(0.05)


def failover(case):
    """The master dies; what takes its place has not heard of its last second."""
    master = case.private
    copy = redis_server.Server(case.folder / f"replica-{time.monotonic_ns()}", "--replicaof",
                               "127.0.0.1", str(master.port))
    case.cleanups.append(copy.stop)
    redis_server.wait_until(lambda: copy.client().info("replication")["master_link_status"] == "up",
                            30)
    copy.client().execute_command("REPLICAOF", "NO", "ONE")
    time.sleep(case.dice.uniform(0.2, 1.5))
    master.kill()
    copy.stop()
    shutil.rmtree(master.folder)
    shutil.copytree(copy.folder, master.folder)
    master.start()


def flushed(case):
    """Everything is gone. It must be told, nobody may die of it, and what comes next is worked on."""
    time.sleep(case.dice.uniform(0.3, 1))
    case.seen_before_reset()
    case.queue.client.flushall()
    until = time.monotonic() + 20
    while not any("redis_group_missing" in w.text() for w in case.workers):
        if time.monotonic() > until:
            case.violate("FLUSHALL was not told within 20 s")
            break
        time.sleep(0.1)
    time.sleep(2)  # what is in hand is written
    have = {i for (i,) in case.ask("SELECT custom_id FROM tranche.results")}
    for job in list(case.ledger.promised):
        if job not in have:
            del case.ledger.promised[job]
            case.gone.add(job)
    case.submit(300)


REDIS = {"kill": redis_killed, "aof": aof_cut, "memory": memory_full, "scripts": scripts_flushed,
         "failover": failover, "flushall": flushed}


@row(8, "Redis: killed, AOF cut, out of memory, scripts and all flushed, failover with lag",
     lambda full: [({"broker": "redis", "fault": f}, s) for f in REDIS
                   for s in range(1, 18 if full else 2)], private=True)
def redis_faults(case):
    case.submit(1500)
    case.watch()
    for _ in range(2):
        case.worker(step="10ms")
    for _ in range(1 if case.params["fault"] in ("flushall", "failover") else 3):
        REDIS[case.params["fault"]](case)
        case.note_kill(case.params["fault"])
        for again in range(50):
            try:
                if case.params["fault"] in ("scripts", "memory"):
                    keep_busy(case, 400)
                break
            except redis.RedisError:
                time.sleep(0.2)
    dead = [w.log.name for w in case.workers if not w.alive()]
    if dead:
        case.violate(f"workers died of it: {dead}")
    case.drain()
    return case.verdict(ratio_max=2.0)


# ---- row 9: links ----


def black_hole(case, proxy):
    """Nothing passes and nobody says so; then, as a router that has forgotten the link, resets."""
    proxy.tell("all", "up", "swallow", 0).tell("all", "down", "swallow", 0)
    time.sleep(case.dice.uniform(1, 12))
    proxy.tell("clear").tell("drop")


def stall(case, proxy):
    way = case.dice.choice(["up", "down"])
    proxy.tell("all", way, "stall", 0, case.dice.randrange(1000, 8000))
    time.sleep(8)
    proxy.tell("clear")


def reset_storm(case, proxy):
    until = time.monotonic() + case.dice.uniform(2, 5)
    while time.monotonic() < until:
        proxy.tell("drop")
        time.sleep(case.dice.uniform(0.02, 0.4))


def refused(case, proxy):
    proxy.tell("refuse", 1).tell("drop")
    time.sleep(case.dice.uniform(1, 6))
    proxy.tell("refuse", 0)


def slow(case, proxy):
    proxy.tell("all", "up", "rate", 0, 10000)
    time.sleep(6)
    proxy.tell("clear").tell("drop")


def far(case, proxy):
    proxy.tell("all", "down", "latency", 0, 500)
    time.sleep(6)
    proxy.tell("clear")


LINKS = {"black_hole": black_hole, "stall": stall, "resets": reset_storm, "refused": refused,
         "slow": slow, "far": far}


@row(9, "network: black hole, stall, resets, refusals, 10 kB/s, half a second of latency",
     lambda full: [({"broker": "redis", "link": link, "fault": f}, s)
                   for link in ("postgres", "redis") for f in LINKS
                   for s in range(1, 7 if full else 2)
                   if full or (link, f) in (("postgres", "resets"), ("redis", "black_hole"))])
def network(case):
    link = case.params["link"]
    port = case.servers.postgres.port if link == "postgres" else case.queue.port
    proxy = Proxy("127.0.0.1", port, case.seed)
    case.cleanups.append(proxy.close)
    case.ports[link] = proxy.port
    case.submit(1200)
    case.watch()
    for _ in range(2):
        case.worker(step="10ms")
    for _ in range(2):
        time.sleep(case.dice.uniform(0.3, 1))
        LINKS[case.params["fault"]](case, proxy)
        case.note_kill(f"{link} {case.params['fault']}")
        keep_busy(case, 600)
    before, healed = case.rows(), time.monotonic()
    while case.rows() == before and case.queue.left() and time.monotonic() - healed < 90:
        time.sleep(0.2)
    took = time.monotonic() - healed
    case.notes["healed_s"] = round(took, 1)
    if took > 30:
        case.violate(f"no row within 30 s of the link's return: {took:.0f} s")
    case.drain()
    return case.verdict(ratio_max=2.0)
