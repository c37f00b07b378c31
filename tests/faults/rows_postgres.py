"""Rows 5, 6 and 14: a database that goes, hangs, forgets, refuses, and a link that is cut at any byte."""
import contextlib
import os
import shutil
import signal
import subprocess
import time

from registry import row
from rows_kill import keep_busy
from servers import ROLE, Proxy

# ---- row 5 ----


def immediate(case, seconds):
    server = case.servers.postgres
    server.stop("immediate")
    time.sleep(seconds)
    server.start()


def backends(case):
    return [p for (p,) in case.servers.postgres.ask(
        "postgres", "SELECT pid FROM pg_stat_activity WHERE datname = %s AND usename = %s",
        case.name, ROLE)]


def kill_backend(case, seconds):
    """The server answers a backend's SIGKILL with a restart of all."""
    for pid in backends(case)[:1]:
        os.kill(pid, signal.SIGKILL)
    time.sleep(seconds)
    for _ in range(100):
        with contextlib.suppress(Exception):
            case.servers.postgres.ask("postgres", "SELECT 1")
            return
        time.sleep(0.2)


def terminate(case, seconds):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        case.servers.postgres.ask("postgres", "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                                  "WHERE datname = %s AND usename = %s", case.name, ROLE)
        time.sleep(case.dice.uniform(0.02, 0.3))


def set_and_reset(case, seconds, on, off):
    case.servers.postgres.ask("postgres", on)
    case.servers.postgres.ask("postgres", "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                              "WHERE datname = %s AND usename = %s", case.name, ROLE)
    time.sleep(seconds)
    case.servers.postgres.ask("postgres", off)


def read_only(case, seconds):
    name = f"ALTER DATABASE {case.name} "
    set_and_reset(case, seconds, name + "SET default_transaction_read_only = on",
                  name + "RESET default_transaction_read_only")


def no_connections(case, seconds):
    name = f"ALTER DATABASE {case.name} CONNECTION LIMIT "
    set_and_reset(case, seconds, name + "0", name + "-1")


def locked(case, seconds):
    with contextlib.closing(case.servers.postgres.connect(case.name)) as link:
        link.autocommit = False
        with link.cursor() as cursor:
            cursor.execute("LOCK TABLE tranche.results IN ACCESS EXCLUSIVE MODE")
            time.sleep(seconds + 10)  # beyond lock_timeout
        link.rollback()


FAULTS = {"immediate": immediate, "backend": kill_backend, "terminate": terminate,
          "read_only": read_only, "connections": no_connections, "locked": locked}
WHOLE_SERVER = ("immediate", "backend", "restore")


def plan_database(full):
    alone = [f for f in FAULTS if f in WHOLE_SERVER] + ["restore"]
    mild = [f for f in FAULTS if f not in WHOLE_SERVER]
    return [({"broker": b, "fault": f}, s) for b in ("redis", "kafka")
            for f in mild + alone for s in range(1, 8 if full else 2)
            if full or (f, b) in (("terminate", "redis"), ("read_only", "kafka"),
                                  ("immediate", "kafka"), ("restore", "kafka"))]


@row(5, "PostgreSQL: stop, kill -9, read-only, full, locked, restored from an older copy",
     plan_database, exclusive=lambda params: params["fault"] in WHOLE_SERVER)
def database(case):
    if case.params["fault"] == "restore":
        return restored(case)
    fault = FAULTS[case.params["fault"]]
    case.submit(1500)
    case.watch()
    for i in range(2):
        spool = ("--spool-dir", case.folder / f"spool-{i}") if case.dice.random() < 0.5 else ()
        case.worker(*spool, step="10ms")
    for _ in range(1 if case.params["fault"] == "locked" else 3):
        time.sleep(case.dice.uniform(0.3, 1.5))
        case.note_kill(case.params["fault"])
        fault(case, case.dice.uniform(0.2, 2.5))
        keep_busy(case, 500)
    case.drain()
    return case.verdict(ratio_max=1.5)


def restored(case):
    """The database goes back in time behind the back of everybody. What its tail held comes again:
    from Kafka by the watermark that went back with it, from a stream by `audit`."""
    server = case.servers.postgres
    case.queue.trim_keep = "1h"
    case.submit(1200)
    case.watch()
    pods = [case.worker(step="10ms") for _ in range(2)]
    time.sleep(case.dice.uniform(1, 2))
    server.stop("fast")
    copy = server.folder / "copy"
    shutil.copytree(server.data, copy, symlinks=True)
    server.start()
    time.sleep(case.dice.uniform(2, 3))
    seen = case.seen()  # from here on acknowledged rows are gone, and that is the fault
    case.violations += seen.get("violations", [])
    for pod in pods:
        case.kill(pod, "restore")
    before = case.rows()
    server.stop("immediate")
    shutil.rmtree(server.data)
    os.rename(copy, server.data)
    if os.getuid() == 0:
        subprocess.run(["chown", "-R", "postgres", server.data], check=True)
    server.start()
    case.forget_link()
    case.notes["rolled_back"] = before - case.rows()
    if case.queue.kind == "redis":
        case.command("audit", "--source", case.queue.url(), "--group", case.queue.group,
                     "--requeue")
    case.drain()
    return case.verdict(ratio_max=2.0)


# ---- row 6 ----

def wait_busy(case, condition, timeout=40):
    """True once it holds; jobs are added so that the worker never rests."""
    until = time.monotonic() + timeout
    for n in range(1 << 30):
        if condition():
            return True
        if time.monotonic() > until:
            return False
        if n % 20 == 0:
            keep_busy(case, 100)
        time.sleep(0.01)
    return False


MARK = "INSERT INTO tranche.results"
UP_BYTES, DOWN_BYTES, START_BYTES = 3600, 700, 900


def plan_sweep(full):
    if not full:
        return [({"way": "up", "first": 1, "count": 25, "every": 139}, 1),
                ({"way": "down", "first": 1, "count": 15, "every": 41}, 1),
                ({"way": "start", "first": 1, "count": 8, "every": 97}, 1)]
    reach = {"up": UP_BYTES, "down": DOWN_BYTES, "start": START_BYTES}
    return [({"way": way, "first": first, "count": 100, "every": 1}, 1) for way in reach
            for first in range(1, reach[way], 100)]


@row(6, "byte sweep: the link to PostgreSQL is cut behind each byte of a flush", plan_sweep)
def sweep(case):
    postgres = case.servers.postgres
    proxy = Proxy("127.0.0.1", postgres.port, case.seed)
    case.cleanups.append(proxy.close)
    case.ports["postgres"] = proxy.port
    case.submit(300)
    case.watch()
    case.worker("--flush-interval", "20ms", step="1ms", slots=2, claim=64, flush_rows=2)
    way = case.params["way"]
    for n in range(case.params["count"]):
        behind = case.params["first"] + n * case.params["every"]
        fired = proxy.stats()["fired"]
        if way == "start":  # of a connection: greeting, password, first statements
            proxy.tell("next", "up", "reset", behind)
            proxy.tell("drop")
        else:
            proxy.tell("mark", way, "reset", behind, "0", MARK)
        if not wait_busy(case, lambda: proxy.stats()["fired"] > fired):
            case.violate(f"byte {behind} {way} was not reached within 40 s")
            return case.verdict()
        case.note_kill(f"cut {way}")
        before = case.rows()  # one good flush between two cuts, or the worker waits ever longer
        if not wait_busy(case, lambda: case.rows() > before):
            case.violate(f"no row within 40 s of the cut behind byte {behind} {way}")
            return case.verdict()
    proxy.tell("clear")
    case.drain()
    return case.verdict()


# ---- row 14 ----

ERRORS = {
    "constraint": ("ALTER TABLE tranche.results ADD CONSTRAINT few CHECK (custom_id NOT LIKE '%7') "
                   "NOT VALID", "ALTER TABLE tranche.results DROP CONSTRAINT few"),
    "privilege": ("REVOKE INSERT ON tranche.results FROM tranche_worker", f"GRANT INSERT ON "
                  "tranche.results TO tranche_worker"),
    "column": ("ALTER TABLE tranche.job_attempts RENAME COLUMN n TO m",
               "ALTER TABLE tranche.job_attempts RENAME COLUMN m TO n"),
}


@row(14, "database errors: constraint, privilege, column",
     lambda full: [({"broker": "redis", "fault": f}, s) for f in ERRORS
                   for s in range(1, 6 if full else 2) if full or f == "constraint"])
def errors(case):
    """A constraint makes failed rows of those it refuses; the rest waits until it is mended."""
    fault = case.params["fault"]
    on, off = ERRORS[fault]
    case.submit(400)
    case.watch()
    case.worker(step="10ms")
    time.sleep(case.dice.uniform(0.3, 1))
    case.note_kill(fault)
    case.ask(on)
    time.sleep(case.dice.uniform(2, 4))
    case.ask(off)
    case.drain()
    if fault == "constraint":  # a refused row is written when its bisection has come to it
        failed = {i for (i,) in case.ask("SELECT custom_id FROM tranche.results WHERE status='failed' "
                                         "AND error_code='unstorable'")}
        # One whose row was refused, and the bare row taken as the constraint went, is no letter.
        dead = {i for (i,) in case.ask("SELECT custom_id FROM tranche.dead_letters")}
        failed |= dead
        wrong = [i for i in failed if not i.endswith("7")]
        if wrong or not failed:
            case.violate(f"I6: unstorable {sorted(failed)[:5]}, of these not refused {wrong[:5]}")
        case.any_content |= failed
        case.expected_dead |= dead
        for i in failed:
            case.jobs.pop(i)
    return case.verdict(ratio_max=1.5)
