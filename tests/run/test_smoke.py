"""`tranche smoke` on real servers, as the roles of docs/postgres.md: a prompt in, its row out; and what
it says of each step that does not answer."""
import contextlib
import json
import os
import re
import signal
import subprocess
import time

import pytest

import redis_server
from postgres_server import Server


@pytest.fixture(scope="module")
def postgres(binary):
    with Server() as server:
        server.ask("postgres", "CREATE DATABASE llm")
        subprocess.run([binary, "migrate", "--db", server.url("llm")], check=True, capture_output=True, timeout=120)
        server.ask("llm", "CREATE ROLE pod LOGIN IN ROLE tranche_worker; CREATE ROLE desk LOGIN IN ROLE tranche_redrive")
        yield server


class Road:
    def __init__(self, tranche, binary, folder, postgres, queue):
        self.tranche, self.binary, self.folder, self.postgres, self.queue = tranche, binary, folder, postgres, queue
        done = tranche("init", "--source", queue)
        assert done.returncode == 0, done.stderr.decode()

    def smoke(self, *options, user="desk"):
        done = self.tranche("smoke", "--source", self.queue, "--db", self.postgres.url("llm", user), *options)
        return done.returncode, done.stdout.decode(), done.stderr.decode()

    @contextlib.contextmanager
    def worker(self, *options):
        env = {k: v for k, v in os.environ.items() if not k.startswith("TRANCHE_")}
        with open(self.folder / "worker.log", "wb") as log:
            process = subprocess.Popen(
                [self.binary, "worker", "--engine", "sim", "--source", self.queue, "--db",
                 self.postgres.url("llm", "pod"), "--flush-interval", "100ms", "--progress", "off", *options],
                env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        try:
            if self.queue.startswith("redis"):
                redis_server.wait_until(lambda: b"redis_connected" in (self.folder / "worker.log").read_bytes(), 90)
            yield process
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def rows(self, custom_id):
        return self.postgres.ask("llm", "SELECT run, batch_id, status FROM tranche.results WHERE custom_id = %s",
                                 custom_id)


@pytest.fixture
def road(request, tranche, binary, tmp_path, postgres, redis):
    name = re.sub(r"\W+", "_", request.node.name)
    return Road(tranche, binary, tmp_path, postgres, redis.url(name))


def passes(road):
    with road.worker():
        code, out, err = road.smoke("--json", "--timeout", "90s")
        assert code == 0, err
        row = json.loads(out)
        assert (row["run"], row["batch_id"], row["status"], row["attempts"]) == ("main", "smoke", "ok", 1)
        assert row["prompt_tokens"] > 0 and 0 < row["completion_tokens"] <= 8 and row["worker"]
        assert road.rows(row["custom_id"]) == [("main", "smoke", "ok")]
        seconds = row["seconds"]
        assert set(seconds) == {"queue_write", "to_a_slot", "engine", "row"}
        assert 0 < seconds["queue_write"] <= seconds["row"] and seconds["engine"] >= 0
        code, out, err = road.smoke("--timeout", "90s")      # another id each time
        assert code == 0 and out.startswith("ok: run main, batch smoke, id smoke-2"), err
        assert row["custom_id"] not in out
        for stage in ("queue write", "to a slot", "engine", "row"):
            assert re.search(rf"^  {stage} +\d+\.\d{{3}} s  ", out, re.M), out


def test_a_road_through_redis(road):
    passes(road)


def test_a_road_through_kafka(tranche, binary, tmp_path, postgres, broker):
    passes(Road(tranche, binary, tmp_path, postgres, f"kafka://{broker.address}/road"))


def unanswered(road):
    code, out, err = road.smoke("--timeout", "2s")
    assert code == 3 and out == ""
    assert f"no worker took it: group tranche has 1 messages of {road.queue} left" in err
    return re.search(r"no row of (smoke-\S+) in run main within 2s: ", err)[1]


def test_no_worker_on_kafka(tranche, binary, tmp_path, postgres, broker):
    unanswered(Road(tranche, binary, tmp_path, postgres, f"kafka://{broker.address}/idle"))


def test_no_worker_on_redis(road, redis):
    """Nobody waits for its answer any more: it says so itself."""
    begun = time.time()
    custom_id = unanswered(road)
    (_, entry), = redis.client().xrange(road.queue.rsplit("/", 1)[1])
    job = json.loads(entry["job"])
    assert job["id"] == custom_id and begun + 2 <= job["deadline"] <= time.time() + 3


def test_a_row_that_failed(road):
    with road.worker("--sim-fail-share", "1", "--sim-tokens", "2"):
        code, out, err = road.smoke("--timeout", "90s")
    assert code == 3 and out.startswith("failed: run main"), (out, err)
    assert re.search(r"the row came, and it is failed: \w+: .", err), err


def test_a_worker_that_does_not_come_back(road):
    with road.worker("--sim-step", "60s", "--watchdog", "0s"):
        code, out, err = road.smoke("--timeout", "10s")
    assert code == 3 and out == ""
    assert "a worker started it (start 1, at 20" in err and "its row was not seen" in err, err


def test_workers_of_another_run(road):
    with road.worker("--run", "blue"):
        assert road.smoke("--run", "blue", "--timeout", "90s")[0] == 0
        code, _, err = road.smoke("--timeout", "10s")
    assert code == 3 and "has acknowledged every message" in err and "another database or run" in err, err


def test_a_database_that_comes_back(road, postgres):
    env = {k: v for k, v in os.environ.items() if not k.startswith("TRANCHE_")}
    process = subprocess.Popen([road.binary, "smoke", "--source", road.queue, "--db", postgres.url("llm", "desk"),
                                "--timeout", "90s"], env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE)
    assert any(b"smoke_sent" in line for line in iter(process.stderr.readline, b""))
    postgres.stop()
    time.sleep(0.6)
    postgres.start()
    with road.worker():
        out, err = process.communicate(timeout=120)
    assert process.returncode == 0 and out.startswith(b"ok: run main"), err


@contextlib.contextmanager
def locked(postgres):
    with contextlib.closing(postgres.connect("llm")) as link, link.cursor() as cursor:
        link.autocommit = False
        cursor.execute("LOCK TABLE tranche.results")
        yield "timeout (5"


@contextlib.contextmanager
def frozen(postgres):
    (process,), = postgres.ask("llm", "SELECT pid FROM pg_stat_activity WHERE usename = 'desk'")
    os.kill(process, signal.SIGSTOP)
    yield "no answer to a statement in time"
    os.kill(process, signal.SIGCONT)


@pytest.mark.parametrize("held", [locked, frozen])
def test_a_database_that_does_not_answer(road, postgres, held):
    """It does not wait the ten minutes of who counts a table."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("TRANCHE_")}
    process = subprocess.Popen([road.binary, "smoke", "--source", road.queue, "--db", postgres.url("llm", "desk"),
                                "--timeout", "5s"], env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE)
    try:
        assert any(b"smoke_sent" in line for line in iter(process.stderr.readline, b""))
        with held(postgres) as words:
            _, err = process.communicate(timeout=50)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 3 and b"the database does not answer: " in err, err
    assert words.encode() in err, err


def test_what_a_terminal_would_obey(road, postgres):
    postgres.ask("llm", "CREATE FUNCTION red() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
                        "NEW.error_detail := E'\\x1b[31mred\\nline'; RETURN NEW; END $$; CREATE TRIGGER red BEFORE "
                        "INSERT ON tranche.results FOR EACH ROW EXECUTE FUNCTION red()")
    try:
        with road.worker("--sim-fail-share", "1", "--sim-tokens", "2"):
            code, _, err = road.smoke("--timeout", "90s")
    finally:
        postgres.ask("llm", "DROP TRIGGER red ON tranche.results; DROP FUNCTION red()")
    assert code == 3 and ":  [31mred line" in err and "\x1b" not in err, err


def test_what_is_wrong_before_anything_is_sent(road, redis):
    stream = road.queue.rsplit("/", 1)[1]
    code, _, err = road.smoke(user="pod")        # a worker's user may not read rows
    assert code == 65 and "database, nothing was sent: " in err and "permission denied" in err, err
    done = road.tranche("smoke", "--source", road.queue, "--db", "postgres://desk@127.0.0.1:1/llm",
                        "--connect-timeout", "0s")
    assert done.returncode == 69 and "database, nothing was sent: " in done.stderr.decode()
    for tables in ("results", "results, tranche.dead_letters"):   # it asks these and job_attempts
        road.postgres.ask("llm", "DROP ROLE IF EXISTS half; CREATE ROLE half LOGIN")
        road.postgres.ask("llm", f"GRANT USAGE ON SCHEMA tranche TO half; GRANT SELECT ON tranche.{tables}, "
                                 "tranche.schema_migrations TO half")
        code, _, err = road.smoke("--timeout", "2s", user="half")
        road.postgres.ask("llm", "DROP OWNED BY half; DROP ROLE half")
        assert code == 65 and "database, nothing was sent: " in err and "permission denied" in err, err
    assert redis.client().xlen(stream) == 0
    done = road.tranche("smoke", "--db", road.postgres.url("llm", "desk"))
    assert done.returncode == 64 and "want --source URL" in done.stderr.decode()


def test_a_queue_that_takes_nothing(road):
    road.queue += "_misspelt"
    code, _, err = road.smoke("--connect-timeout", "2s")
    assert code == 65 and "queue write: " in err and "no such stream" in err, err
    road.queue = "redis://127.0.0.1:1/jobs"
    code, _, err = road.smoke("--connect-timeout", "0s")
    assert code == 69 and "queue write: " in err, err
