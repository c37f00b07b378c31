"""SIGTERM at random moments with a short grace, again and again: every id one row with the bytes of
an undisturbed run, nothing sampled twice, the exit code right and in time. Then cancellations and
deadlines of jobs that run. TRANCHE_STOPS sets the number of stops a test makes (6)."""
import json
import os
import random
import signal
import sqlite3
import subprocess
import time

import pytest

import redis_server
from test_kill import query, remove, same_everything

STOPS = int(os.environ.get("TRANCHE_STOPS", "6"))
SEED = int(os.environ.get("TRANCHE_SEED", "1"))
LATE = 20  # seconds behind the grace that a busy machine may take to see a process gone
CONTENT = ("custom_id, status, answer, reasoning, finish_reason, prompt_tokens, completion_tokens, "
           "reasoning_tokens, logprobs, choices, sanitized, params, seed, request")


@pytest.fixture
def database(postgres, tranche):
    name = f"d{time.monotonic_ns()}"
    postgres.ask("postgres", f"CREATE DATABASE {name}")
    done = tranche("migrate", "--db", postgres.url(name))
    assert done.returncode == 0, done.stderr.decode()
    postgres.ask("postgres", f"CREATE ROLE w{name} LOGIN IN ROLE tranche_worker")
    yield {"name": name, "owner": postgres.url(name), "worker": postgres.url(name, "w" + name),
           "ask": lambda sql: postgres.ask(name, sql)}
    postgres.ask("postgres", f"DROP DATABASE {name} WITH (FORCE)")


def jobs(n, **more):
    """Short ones and long ones, several choices, logprobs of all kinds, some of the prompt."""
    for i in range(n):
        body = {"model": "m", "prompt": f"number {i}", "max_tokens": 60 + i * 37 % 240, "n": 1 + i % 3,
                **more}
        if i % 3 == 0:
            body |= {"logprobs": 2, "temperature": 1.0}
        if i % 8 == 0:
            body |= {"prompt_logprobs": 1, "n": 1}
        yield json.dumps({"custom_id": f"j{i}", "method": "POST", "url": "/v1/completions",
                          "body": body})


def start(command, folder):
    with open(folder / "log", "ab") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=log)
    return process


def events(folder, name):
    log = folder / "log"
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    found = [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]
    return [e for e in found if e["event"] == name]


def start_working(command, folder):
    """Back when it has opened everything: before that a stop is not a drain."""
    before = len(events(folder, "run_started"))
    process = start(command, folder)
    redis_server.wait_until(
        lambda: process.poll() is not None or len(events(folder, "run_started")) > before, 60)
    return process


def begun(folder):
    """The newest process has been given its partitions."""
    lines = (folder / "log").read_text(errors="replace")
    return '"partition_start"' in lines[lines.rfind('"run_started"'):]


def stop(process, number, grace_s):
    """Sends the signal; the exit code, which came in time."""
    sent = time.monotonic()
    process.send_signal(number)
    code = process.wait(grace_s + LATE)
    assert time.monotonic() - sent < grace_s + LATE
    return code


def total(folder, field):
    return sum(e[field] for e in events(folder, "run_ended"))


def expect_nothing_done_twice(folder, calm_sampled):
    """No stop was cut short by its clock, and each token was sampled once in all lives together."""
    assert not events(folder, "park_failed") and not events(folder, "parked_refused")
    # Resumed twice is what was stopped again before it had got on.
    assert total(folder, "resumed") >= total(folder, "parked") > 0
    assert total(folder, "sampled") == calm_sampled


def stops_of_a_run(command, folder, rng, longest_s, grace_s):
    """Stops `tranche run` STOPS times at random moments, then lets it end. The calm run's sampled."""
    calm, db = folder / "calm.db", folder / "stopped.db"
    assert start(command(calm, 30), folder).wait(300) == 0
    calm_sampled = total(folder, "sampled")
    (folder / "log").unlink()
    stopped = 0
    for _ in range(STOPS * 4):
        process = start_working(command(db, grace_s), folder)
        time.sleep(rng.uniform(0, longest_s))
        number = rng.choice([signal.SIGTERM, signal.SIGINT])
        code = process.poll()
        if code is None:
            code = stop(process, number, grace_s)
        assert code in (0, 143 if number == signal.SIGTERM else 130)
        if code == 0:
            break
        stopped += 1
        assert query(db, "SELECT count(*) FROM job_attempts WHERE n > 0") == [(0,)]
        if stopped == STOPS:
            break
    assert start(command(db, 30), folder).wait(300) == 0
    assert query(db, "SELECT max(attempts) FROM results") == [(1,)]
    assert query(db, "SELECT count(*) FROM parked") == [(0,)]
    same_everything(db, calm)
    assert stopped > 0
    return calm_sampled


def test_run_on_two_simulated_engines(binary, tmp_path):
    (tmp_path / "jobs.jsonl").write_text("\n".join(jobs(150)) + "\n")
    command = lambda db, grace: [
        binary, "run", "--engine", "sim", "--sim-step", "4ms", "--sim-tokens", "120", "--slots",
        "8", "--device", "cpu,cpu", "--flush-rows", "40", "--db", str(db), "--grace",
        f"{int(grace * 1000)}ms", "--progress", "off", "--log-format", "json", "jobs.jsonl"]
    calm = stops_of_a_run(command, tmp_path, random.Random(SEED), 1.0, 0.5)
    expect_nothing_done_twice(tmp_path, calm)


def test_run_on_the_example_model(binary, tiny_model, tmp_path):
    with open(tmp_path / "sums.jsonl", "w") as f:
        for i in range(80):
            f.write(json.dumps({"id": f"s{i}", "messages": [
                {"role": "user", "content": f"What is {i * 37} + {i * 91 % 1000}?"}],
                "max_tokens": 250, "min_tokens": 100 + i, "temperature": 0.8, "n": 1 + i % 2,
                "logprobs": i % 2 == 0, "top_logprobs": 3 if i % 2 == 0 else None,
                "repetition_penalty": 1.1, "expected": i * 37 + i * 91 % 1000}) + "\n")
    command = lambda db, grace: [
        binary, "run", "--model", str(tiny_model), "--threads", "1", "--slots", "8",
        "--flush-rows", "8", "--db", str(db), "--grace",
        f"{int(grace * 1000)}ms", "--progress", "off", "--log-format", "json", "sums.jsonl"]
    calm = stops_of_a_run(command, tmp_path, random.Random(SEED + 1), 1.0, 0.2)
    expect_nothing_done_twice(tmp_path, calm)


# ---- queues ----

def calm_rows(binary, folder, lines):
    """What `run` makes of the same jobs, and how many tokens it samples."""
    (folder / "jobs.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "calm").mkdir()
    command = [binary, "run", "--engine", "sim", "--sim-tokens", "120", "--db",
               str(folder / "calm.db"), "--progress", "off", "--log-format", "json",
               str(folder / "jobs.jsonl")]
    assert start(command, folder / "calm").wait(300) == 0
    db = sqlite3.connect(folder / "calm.db")
    try:
        found = db.execute(f"SELECT {CONTENT} FROM results ORDER BY 1").fetchall()
    finally:
        db.close()
    return found, total(folder / "calm", "sampled")


def plain(rows):
    """Rows of PostgreSQL as SQLite writes them: booleans are numbers there."""
    return [tuple(int(v) if isinstance(v, bool) else v for v in r) for r in rows]


def expect_calm_rows(database, calm):
    rows = plain(database["ask"](f"SELECT {CONTENT} FROM tranche.results ORDER BY 1"))
    assert rows == calm
    assert database["ask"]("SELECT (SELECT count(*) FROM tranche.parked), (SELECT count(*) FROM "
                           "tranche.job_attempts)") == [(0, 0)]


def worker_command(binary, url, database, *options):
    return [binary, "worker", "--engine", "sim", "--sim-tokens", "120", "--source", url, "--db",
            database["worker"], "--flush-interval", "200ms", "--progress", "off", "--log-format",
            "json", *options]


def test_two_workers_on_a_stream(binary, database, tmp_path):
    """The lease is an hour: what a stopped worker does not release itself, nobody gets."""
    rng = random.Random(SEED + 2)
    lines = list(jobs(150))
    calm, calm_sampled = calm_rows(binary, tmp_path, lines)
    server = redis_server.Server(tmp_path / "redis")
    processes = []
    try:
        client = server.client()
        client.xgroup_create("jobs", "g", "0", mkstream=True)
        for line in lines:
            client.xadd("jobs", {"job": line})
        (tmp_path / "broker.conf").write_text("lease = 1h\n")
        command = lambda: worker_command(
            binary, server.url(), database, "--group", "g", "--broker-config",
            str(tmp_path / "broker.conf"), "--sim-step", "4ms", "--slots", "8", "--grace", "1s",
            "--claim-rows", "48")
        processes = [start_working(command(), tmp_path), start_working(command(), tmp_path)]
        for i in range(STOPS):
            time.sleep(rng.uniform(0, 1.0))
            code = stop(processes[i % 2], signal.SIGTERM, 1)
            assert code in (0, 143)
            processes[i % 2] = start_working(command(), tmp_path)
        done = "SELECT count(*) FROM tranche.results"
        redis_server.wait_until(lambda: database["ask"](done) == [(len(lines),)], 120, 0.1)
        redis_server.wait_until(lambda: redis_server.at_rest(client), 30)
        # Nothing is left for the group: both leave well.
        assert [stop(p, signal.SIGTERM, 1) for p in processes] == [0, 0]
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
            process.wait()
        server.stop()
    expect_calm_rows(database, calm)
    expect_nothing_done_twice(tmp_path, calm_sampled)


def test_a_worker_on_a_topic(binary, broker, database, tmp_path, tranche):
    rng = random.Random(SEED + 3)
    lines = list(jobs(120))
    calm, calm_sampled = calm_rows(binary, tmp_path, lines)
    process = None
    try:
        url = f"kafka://{broker.address}/jobs"
        assert tranche("init", "--source", url, "--partitions", 2).returncode == 0
        broker.produce("jobs", lines)
        command = lambda *more: worker_command(binary, url, database, "--sim-step", "4ms", "--slots",
                                               "8", "--grace", "1s", *more)
        for _ in range(STOPS):
            process = start_working(command(), tmp_path)
            redis_server.wait_until(lambda: process.poll() is not None or begun(tmp_path), 30, 0.05)
            time.sleep(rng.uniform(0.2, 0.8))
            assert stop(process, signal.SIGTERM, 1) in (0, 143)
        process = start(command("--idle-exit", "500ms"), tmp_path)
        assert process.wait(120) == 0
        process = start_working(command(), tmp_path)
        time.sleep(3)  # assigned, and idle
        assert stop(process, signal.SIGTERM, 5) == 0
    finally:
        if process and process.poll() is None:
            process.kill()
            process.wait()
    expect_calm_rows(database, calm)
    expect_nothing_done_twice(tmp_path, calm_sampled)


def test_a_database_that_is_away_does_not_hold_a_stop(binary, database, postgres, tmp_path):
    (tmp_path / "jobs.jsonl").write_text("\n".join(jobs(40)) + "\n")
    command = [binary, "run", "--engine", "sim", "--sim-tokens", "120", "--db", database["worker"],
               "--flush-interval", "200ms", "--progress", "off", "--log-format", "json",
               "--sim-step", "20ms", "--grace", "3s", str(tmp_path / "jobs.jsonl")]
    process = start(command, tmp_path)
    try:
        redis_server.wait_until(
            lambda: database["ask"]("SELECT count(*) FROM tranche.job_attempts") == [(40,)], 30)
        postgres.stop("immediate")
        assert stop(process, signal.SIGTERM, 3) == 143
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        postgres.start()
    again = [v for v in command if v not in ("--sim-step", "20ms")]
    assert start(again, tmp_path).wait(60) == 0
    assert database["ask"]("SELECT count(*) FROM tranche.results WHERE status = 'ok'") == [(40,)]


def test_a_step_without_end_does_not_hold_a_stop(binary, tmp_path):
    """The clock of the first signal ends the process, whatever blocks."""
    (tmp_path / "jobs.jsonl").write_text("\n".join(jobs(5)) + "\n")
    process = start([binary, "run", "--engine", "sim", "--sim-step", "60s", "--grace", "2s", "--db",
                     "out.db", "--progress", "off", "jobs.jsonl"], tmp_path)
    redis_server.wait_until(lambda: "event=run_started" in (tmp_path / "log").read_text(), 30)
    time.sleep(0.5)
    sent = time.monotonic()
    assert stop(process, signal.SIGTERM, 5) == 143
    assert time.monotonic() - sent > 4
    assert "the grace period is over" in (tmp_path / "log").read_text()


# ---- cancellations and deadlines ----

def test_cancelling_what_runs(binary, tmp_path):
    (tmp_path / "jobs.jsonl").write_text("".join(
        json.dumps({"id": f"c{i}", "prompt": "x", "max_tokens": 4000, "min_tokens": 4000}) + "\n"
        for i in range(6)))
    db = tmp_path / "out.db"
    process = start([binary, "run", "--engine", "sim", "--sim-step", "20ms", "--slots", "4", "--db",
                     str(db), "--progress", "off", "--log-format", "json", "jobs.jsonl"], tmp_path)
    try:
        redis_server.wait_until(
            lambda: db.exists() and events(tmp_path, "run_started") and
            query(db, "SELECT count(*) FROM job_attempts") == [(6,)], 30)
        link = sqlite3.connect(db, timeout=30)
        link.execute("INSERT INTO cancellations (run, batch_id, custom_id) VALUES "
                     "('main', 'jobs', 'c1')")
        link.commit()
        redis_server.wait_until(
            lambda: query(db, "SELECT custom_id, status FROM results") == [("c1", "cancelled")], 60)
        link.execute("INSERT INTO cancellations (run, batch_id) VALUES ('main', 'jobs')")
        link.commit()
        link.close()
        assert process.wait(60) == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    assert query(db, "SELECT status, count(*) FROM results GROUP BY 1") == [("cancelled", 6)]
    assert query(db, "SELECT count(*) FROM results WHERE completion_tokens > 0")[0][0] >= 4
    assert query(db, "SELECT count(*) FROM job_attempts") == [(0,)]


def test_tombstones_cancel_what_has_their_key(binary, broker, database, tmp_path, tranche):
    """A message without a value: of its partition's jobs those with its key; with the option only."""
    url = f"kafka://{broker.address}/stones"
    assert tranche("init", "--source", url, "--partitions", 1).returncode == 0
    long = lambda i: json.dumps({"id": f"t{i}", "prompt": "x", "max_tokens": 3000,
                                 "min_tokens": 3000, "batch_id": "b"})
    broker.produce("stones", [f"t{i}\t{long(i)}" for i in range(6)], "-K", "\t")
    options = ("--sim-step", "10ms", "--slots", "4", "--tombstone-cancels", "--idle-exit", "500ms")
    process = start(worker_command(binary, url, database, *options), tmp_path)
    try:
        redis_server.wait_until(
            lambda: database["ask"]("SELECT count(*) FROM tranche.job_attempts") == [(6,)], 60)
        # One that runs, one that waits, one that nobody knows, and all that is left.
        broker.produce("stones", ["t1\t", "t5\t", "nobody\t"], "-K", "\t", "-Z")
        redis_server.wait_until(
            lambda: database["ask"]("SELECT custom_id, status FROM tranche.results ORDER BY 1") ==
            [("t1", "cancelled"), ("t5", "cancelled")], 60)
        broker.produce("stones", [f"t{i}\t" for i in (0, 2, 3, 4)], "-K", "\t", "-Z")
        assert process.wait(60) == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    assert database["ask"]("SELECT status, count(*) FROM tranche.results GROUP BY 1") == [
        ("cancelled", 6)]
    assert database["ask"]("SELECT position FROM tranche.partition_progress") == [(13,)]
    audit = ("audit", "--source", url, "--db", database["owner"], "--batch", "b")
    assert "missing=0" in tranche(*audit, "--tombstone-cancels").stdout.decode()
    assert "missing=7" in tranche(*audit).stdout.decode()
