"""A model that fails at everything must not turn a queue into failed rows."""
import json
import signal
import sqlite3
import subprocess

from redis_server import Server, at_rest, wait_until

JOBS = 400


def query(folder, sql):
    connection = sqlite3.connect(folder / "rows.db", timeout=30)
    try:
        return connection.execute(sql).fetchall()
    finally:
        connection.close()


def test_a_broken_model_leaves_the_queue_as_it_is(binary, tmp_path):
    server = Server(tmp_path / "redis")
    log = tmp_path / "worker.log"

    def start(*options):
        return subprocess.Popen(
            [binary, "worker", "--engine", "sim", "--sim-tokens", "8", "--sim-step", "2ms",
             "--slots", "16", "--source", server.url(), "--group", "g", "--db", "rows.db",
             "--flush-interval", "200ms", "--worker-name", "w", *options],
            cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=open(log, "ab"))

    try:
        client = server.client()
        client.xgroup_create("jobs", "g", "0", mkstream=True)
        for i in range(JOBS):
            client.xadd("jobs", {"job": json.dumps({"id": f"j{i}", "prompt": f"number {i}"})})
        broken = start("--sim-fail-share", "1")
        wait_until(lambda: b"breaker_open" in log.read_bytes(), 30)
        wait_until(lambda: b"breaker_probe_failed" in log.read_bytes(), 60)
        broken.send_signal(signal.SIGTERM)
        assert broken.wait(60) == 143
        failed = query(tmp_path, "SELECT count(*) FROM results")[0][0]
        assert 0 < failed < 50
        assert query(tmp_path, "SELECT count(*) FROM dead_letters") == [(0,)]
        assert query(tmp_path, "SELECT coalesce(sum(n), 0) FROM job_attempts") == [(0,)]
        assert start("--idle-exit", "1s").wait(120) == 0
        assert query(tmp_path, "SELECT status, count(*) FROM results GROUP BY 1 ORDER BY 1") == \
            [("failed", failed), ("ok", JOBS - failed)]
        assert query(tmp_path, "SELECT count(*) FROM job_attempts") == [(0,)]
        assert at_rest(client)
    finally:
        server.stop()


def test_a_file_is_run_to_its_end(tranche, tmp_path):
    with open(tmp_path / "jobs.jsonl", "w") as f:
        for i in range(JOBS):
            f.write(json.dumps({"id": f"j{i}", "prompt": f"number {i}"}) + "\n")
    done = tranche("run", "--engine", "sim", "--sim-fail-share", "1", "--sim-tokens", "8", "--db", "rows.db",
                   "jobs.jsonl")
    assert done.returncode == 0
    assert query(tmp_path, "SELECT status, count(*) FROM results GROUP BY 1") == [("failed", JOBS)]
