"""Jobs that kill their process, and processes that are killed: the first get a `dead` row within
their bound of deaths, the second cost nobody anything."""
import contextlib
import ctypes
import json
import math
import os
import random
import re
import signal
import sqlite3
import subprocess
import time

import pytest

from postgres_server import Server as Postgres
from redis_server import Server as Redis

SEED = int(os.environ.get("TRANCHE_SEED", "1"))
STORM = int(os.environ.get("TRANCHE_STORM", "30"))
SLOTS, READY = 16, 1024
BOUND = 5 + math.log2(SLOTS + READY)
SIM = ["--engine", "sim", "--sim-poison-id", "1", "--slots", str(SLOTS), "--sim-tokens", "8",
       "--progress", "off"]


def query(db, sql):
    connection = sqlite3.connect(db, timeout=30)
    try:
        return connection.execute(sql).fetchall()
    finally:
        connection.close()


def lines(n, poisons=()):
    """n innocents; the poisons stand among them. In the simulated engine a byte is a token."""
    rng = random.Random(SEED)
    jobs = [json.dumps({"id": f"j{i}", "prompt": f"number {i}"}) for i in range(n)]
    for name, byte in poisons:
        jobs.insert(rng.randrange(n), json.dumps({"id": name, "prompt": "bad " + chr(byte)}))
    return jobs


def write(folder, jobs):
    (folder / "jobs.jsonl").write_text("".join(line + "\n" for line in jobs))


def deaths(log):
    return [re.search(r"cause=(\S+)", line).group(1) for line in log.splitlines()
            if "event=worker_died" in line]


def check_file(db, innocents, dead):
    """dead: {id: cause}"""
    assert query(db, "SELECT count(*) FROM results WHERE status = 'ok'") == [(innocents,)]
    found = query(db, "SELECT custom_id, status, error_code, error_detail FROM results "
                  "WHERE status <> 'ok' ORDER BY 1")
    assert [(i, s, c) for i, s, c, _ in found] == [(i, "dead", "crashed") for i in sorted(dead)]
    for custom_id, _, _, detail in found:
        assert dead[custom_id] in detail
    assert query(db, "SELECT custom_id, reason, payload IS NOT NULL FROM dead_letters ORDER BY 1") \
        == [(i, "crashed", 1) for i in sorted(dead)]
    assert query(db, "SELECT count(*) FROM job_attempts") == [(0,)]


def child_of(pid):
    try:
        found = open(f"/proc/{pid}/task/{pid}/children").read().split()
    except OSError:
        return None
    return int(found[0]) if found else None


def gone(pid, within=10):
    until = time.monotonic() + within
    while time.monotonic() < until:
        try:
            if open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.01)
    return False


def wait_until(true, seconds=60):
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until, "it did not come"
        time.sleep(0.01)


# ---- poison ----

def test_each_cause_convicts_its_job_and_no_other(tranche, tmp_path):
    dead = {"aborts": "SIGABRT", "faults": "SIGSEGV", "hangs": "hang", "swells": "memory"}
    write(tmp_path, lines(200, zip(dead, (1, 2, 3, 4))))
    done = tranche("run", *SIM, "--sim-poison", "each", "--watchdog", "2s", "--memory-limit",
                   "200MiB", "--db", "o.db", "jobs.jsonl", timeout=400)
    log = done.stderr.decode()
    assert done.returncode == 0, log[-2000:]
    check_file(tmp_path / "o.db", 200, dead)
    found = deaths(log)
    print({cause: found.count(cause) for cause in dead.values()})
    for cause in dead.values():
        assert 2 <= found.count(cause) <= BOUND, found
    assert set(found) == set(dead.values())
    again = tranche("run", *SIM, "--sim-poison", "each", "--db", "o.db", "jobs.jsonl")
    assert again.returncode == 0 and deaths(again.stderr.decode()) == []
    assert tranche("run", "--strict", *SIM, "--db", "o.db", "jobs.jsonl").returncode == 3


def test_a_poison_alone_in_its_file(tranche, tmp_path):
    write(tmp_path, [json.dumps({"id": "p", "prompt": "\x01"})])
    done = tranche("run", *SIM, "--db", "o.db", "jobs.jsonl", timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    check_file(tmp_path / "o.db", 0, {"p": "SIGABRT"})
    assert len(deaths(done.stderr.decode())) <= BOUND


def test_without_restarts_the_cause_is_kept(tranche, tmp_path):
    write(tmp_path, lines(20, [("p", 1)]))
    args = ("run", *SIM, "--restarts", "0", "--db", "o.db", "jobs.jsonl")
    ends = []
    while not ends or ends[-1] == 70:
        ends.append(tranche(*args).returncode)
        assert len(ends) < 20
    assert ends[-1] == 0
    check_file(tmp_path / "o.db", 20, {"p": "SIGABRT"})
    assert len(ends) - 1 <= BOUND


def test_standard_input_is_not_read_twice(tranche, tmp_path):
    done = tranche("run", *SIM, "--batch", "b", "--db", "o.db", "-",
                   stdin="\n".join(lines(20, [("p", 1)])))
    assert done.returncode == 70
    assert deaths(done.stderr.decode()) == ["SIGABRT"]
    assert query(tmp_path / "o.db", "SELECT DISTINCT cause, process FROM job_attempts") == \
        [("SIGABRT", None)]


def test_it_gives_up_when_nothing_comes_of_it(tranche, tmp_path):
    write(tmp_path, [json.dumps({"id": "p", "prompt": "\x01"})])
    done = tranche("run", *SIM, "--restarts", "1", "--db", "o.db", "jobs.jsonl")
    assert done.returncode == 70
    assert "worker_given_up" in done.stderr.decode()
    assert query(tmp_path / "o.db", "SELECT n FROM job_attempts") == [(2,)]


def test_an_engine_that_always_dies_convicts_nobody(tranche, tmp_path):
    """Every prompt kills it, the canary's too: that is a driver or a card, not a job."""
    canary = 256 // 3
    write(tmp_path, [json.dumps({"id": f"j{i}", "prompt": f"{i} {chr(canary)}"}) for i in range(9)])
    options = [o if o != "1" else str(canary) for o in SIM]
    done = tranche("run", *options, "--restarts", "8", "--db", "o.db", "jobs.jsonl", timeout=240)
    log = done.stderr.decode()
    assert done.returncode == 70 and "worker_given_up" in log, log[-2000:]
    assert len(deaths(log)) == 9
    assert query(tmp_path / "o.db", "SELECT count(*) FROM results") == [(0,)]
    assert query(tmp_path / "o.db", "SELECT max(n), sum(deaths) FROM job_attempts") == [(3, 0)]
    assert tranche("run", *SIM, "--db", "o.db", "jobs.jsonl").returncode == 0
    check_file(tmp_path / "o.db", 9, {})


def test_two_workers_on_a_stream_into_postgres(binary, tmp_path):
    """Both share the suspects; whoever dies, the innocents are done and one row is dead."""
    with Postgres() as postgres:
        postgres.ask("postgres", "CREATE DATABASE app")
        subprocess.run([binary, "migrate", "--db", postgres.url("app")], check=True,
                       capture_output=True)
        postgres.ask("postgres", "CREATE ROLE w LOGIN IN ROLE tranche_worker")
        redis = Redis(tmp_path / "redis")
        try:
            client = redis.client()
            client.xgroup_create("jobs", "g", "0", mkstream=True)
            for line in lines(200, [("p", 2)]):
                client.xadd("jobs", {"job": line})
            config = tmp_path / "broker.conf"
            config.write_text("lease = 2s\n")
            command = [binary, "worker", *SIM, "--sim-poison", "segfault", "--sim-step", "5ms",
                       "--sim-poison-id", "2", "--source", redis.url(), "--group", "g", "--db",
                       postgres.url("app", user="w"), "--broker-config", str(config), "--flush-interval",
                       "200ms", "--idle-exit", "4s"]
            logs = [open(tmp_path / f"w{i}.log", "wb") for i in range(2)]
            pair = [subprocess.Popen(command, stdout=log, stderr=log) for log in logs]
            try:
                assert [w.wait(240) for w in pair] == [0, 0]
            finally:
                for w in pair:
                    w.kill()
                    w.wait()
            found = sum((deaths((tmp_path / f"w{i}.log").read_text()) for i in range(2)), [])
            assert set(found) == {"SIGSEGV"}
            assert len(found) <= BOUND, found
            assert postgres.ask("app", "SELECT status, count(*) FROM tranche.results GROUP BY 1 "
                                "ORDER BY 1") == [("dead", 1), ("ok", 200)]
            assert postgres.ask("app", "SELECT custom_id, reason FROM tranche.dead_letters") == \
                [("p", "crashed")]
            assert postgres.ask("app", "SELECT count(*) FROM tranche.job_attempts") == [(0,)]
            assert client.xpending("jobs", "g")["pending"] == 0
        finally:
            redis.stop()


# ---- kills from outside ----

def start(binary, folder, *options):
    return subprocess.Popen([binary, "run", *SIM, "--db", "o.db", "--flush-rows", "8",
                             "--sim-step", "5ms", *options, "jobs.jsonl"], cwd=folder,
                            stdout=subprocess.DEVNULL,
                            stderr=open(folder / "run.log", "ab"))


@pytest.mark.parametrize("victim", ["child", "parent"])
def test_a_storm_of_kills_convicts_nobody(binary, tmp_path, victim):
    rng = random.Random(SEED)
    write(tmp_path, lines(1500))
    kills = 0
    process = start(binary, tmp_path, "--restarts", "1000")
    while kills < STORM:
        time.sleep(rng.uniform(0.05, 0.25))
        assert process.poll() in (None, 143), (tmp_path / "run.log").read_text()[-2000:]
        pid = process.pid if victim == "parent" else child_of(process.pid)
        # Signals of a fault too: who sends them is what counts. SIGTERM to the child is a drain.
        how = rng.choice([signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT, signal.SIGTERM])
        if pid and process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL if victim == "parent" else how)
                kills += 1
        if process.poll() is not None or victim == "parent":
            process.wait()
            process = start(binary, tmp_path, "--restarts", "1000")
    code = process.wait(120)
    while code == 143:
        process = start(binary, tmp_path)
        code = process.wait(120)
    assert code == 0, (tmp_path / "run.log").read_text()[-2000:]
    check_file(tmp_path / "o.db", 1500, {})
    assert set(deaths((tmp_path / "run.log").read_text())) <= {"outside"}
    print(f"{kills} kills of the {victim}")


def test_sigterm_to_the_parent_drains_the_child(binary, tmp_path):
    write(tmp_path, lines(2000))
    process = start(binary, tmp_path, "--grace", "5s")
    wait_until(lambda: b"run_started" in (tmp_path / "run.log").read_bytes())
    wait_until(lambda: query(tmp_path / "o.db", "SELECT count(*) FROM results")[0][0] > 0)
    child = child_of(process.pid)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 143
    assert gone(child)
    assert b"event=drain" in (tmp_path / "run.log").read_bytes()
    assert query(tmp_path / "o.db", "SELECT coalesce(sum(n), 0) FROM job_attempts") == [(0,)]


def test_a_parent_that_is_killed_takes_the_child_along(binary, tmp_path):
    write(tmp_path, lines(2000))
    process = start(binary, tmp_path)
    wait_until(lambda: b"run_started" in (tmp_path / "run.log").read_bytes())
    child = child_of(process.pid)
    assert child
    process.kill()
    process.wait()
    assert gone(child)


def test_a_child_that_is_stopped_does_not_hang(binary, tmp_path):
    write(tmp_path, lines(400))
    process = start(binary, tmp_path, "--watchdog", "1s")
    wait_until(lambda: b"run_started" in (tmp_path / "run.log").read_bytes())
    child = child_of(process.pid)
    os.kill(child, signal.SIGSTOP)
    time.sleep(2.5)
    assert child_of(process.pid) == child
    os.kill(child, signal.SIGCONT)
    assert process.wait(60) == 0
    assert deaths((tmp_path / "run.log").read_text()) == []


def test_as_the_first_process_it_reaps_what_is_left_to_it(binary, tmp_path):
    """In a container it is PID 1: orphans become its children, and nobody else waits for them."""
    write(tmp_path, lines(600))
    orphan = tmp_path / "orphan"

    def leave_an_orphan():
        pid = os.fork()
        if pid == 0:
            time.sleep(0.3)
            os._exit(0)
        orphan.write_text(str(pid))

    process = subprocess.Popen([binary, "run", *SIM, "--sim-step", "50ms", "--db", "o.db",
                                "jobs.jsonl"], cwd=tmp_path, preexec_fn=leave_an_orphan,
                               stdout=subprocess.DEVNULL, stderr=open(tmp_path / "run.log", "wb"))
    pid = int(orphan.read_text())
    wait_until(lambda: not os.path.exists(f"/proc/{pid}"), 20)
    assert process.poll() is None, "it was over too early to tell"
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 143


def test_as_pid_1(binary, tmp_path):
    """The same in a PID namespace of its own, where unhandled signals do nothing by default."""
    if ctypes.CDLL(None, use_errno=True).unshare(0) or os.geteuid() != 0:
        pytest.skip("needs root for a PID namespace")
    write(tmp_path, lines(3000))
    inner = subprocess.Popen(["unshare", "--pid", "--fork", "--kill-child", binary, "run", *SIM,
                              "--sim-step", "20ms", "--db", "o.db", "--grace", "5s", "jobs.jsonl"],
                             cwd=tmp_path, stdout=subprocess.DEVNULL,
                             stderr=open(tmp_path / "run.log", "wb"))
    wait_until(lambda: b"run_started" in (tmp_path / "run.log").read_bytes())
    first = child_of(inner.pid)
    assert open(f"/proc/{first}/status").read().split("NSpid:")[1].split()[1] == "1"
    os.kill(first, signal.SIGTERM)
    assert inner.wait(60) == 143
    assert b"event=drain" in (tmp_path / "run.log").read_bytes()


