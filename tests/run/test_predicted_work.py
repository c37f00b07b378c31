"""schemas/keda/predicted_work.sql, as KEDA's user asks it, on a real server: the GPU-seconds that
registered batches still cost; and how little it reads."""
import json
import pathlib
import subprocess

import psycopg2.errors
import pytest

import redis_server
from postgres_server import Server

SCHEMAS = pathlib.Path(__file__).resolve().parents[2] / "schemas/keda"
QUERY = (SCHEMAS / "predicted_work.sql").read_text()
DEFAULT, LEAST = 0.03, 0.001
ZEROS = "0" * 64


@pytest.fixture(scope="module")
def server(binary):
    with Server() as made:
        made.ask("postgres", "CREATE DATABASE app")
        subprocess.run([binary, "migrate", "--db", made.url("app")], check=True, timeout=120,
                       stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(2):                                # it may run again
            made.ask("app", (SCHEMAS / "role.sql").read_text())
        made.ask("app", "CREATE ROLE keda LOGIN CONNECTION LIMIT 4 IN ROLE tranche_keda")
        yield made


@pytest.fixture
def database(server):
    server.ask("app", "TRUNCATE tranche.batches, tranche.results")
    return server


def batch(server, name, total, run="main", dead_letters=0, age="0 days", **rows):
    """A registered batch, and what has come of it: rows by status, `ok=(count, seconds)`."""
    done = {"ok": (0, 0.0), "failed": (0, 0.0), "cancelled": (0, 0.0)} | rows
    server.ask("app", "INSERT INTO tranche.batches (run, batch_id, total, rows_ok, rows_failed, "
               "rows_cancelled, dead_letters, outputs_sha256, created_at, updated_at) VALUES "
               "(%s,%s,%s,%s,%s,%s,%s,%s, now(), now() - %s::interval)", run, name, total, done["ok"][0],
               done["failed"][0], done["cancelled"][0], dead_letters, ZEROS, age)
    for status, (count, seconds) in done.items():
        server.ask("app", "INSERT INTO tranche.results (run, batch_id, custom_id, status, prompt_tokens, "
                   "completion_tokens, reasoning_tokens, cached_tokens, sanitized, request_sha256, "
                   "attempts, device_seconds, finished_at) SELECT %s, %s, %s || lpad(i::text, 7, '0'), %s, "
                   "8, 8, 0, 0, 0, '', 1, %s, now() FROM generate_series(1, %s) i",
                   run, name, status, status, seconds, count)


def predicted(server):
    return server.ask("app", QUERY, user="keda")[0][0]


def test_no_batch_is_no_work(database):
    assert predicted(database) == 0.0


def test_a_batch_without_a_row_costs_the_default(database):
    batch(database, "new", 10000)
    assert predicted(database) == pytest.approx(10000 * DEFAULT)


def test_half_done_costs_what_its_own_rows_cost(database):
    batch(database, "long", 1000, ok=(500, 2.5))
    assert predicted(database) == pytest.approx(500 * 2.5)
    batch(database, "short", 1000, ok=(400, 0.01), failed=(100, 9.0))
    assert predicted(database) == pytest.approx(500 * 2.5 + 500 * 0.01)


def test_all_done_is_no_work(database):
    batch(database, "b", 300, ok=(280, 1.0), failed=(10, 0.0), cancelled=(5, 0.0), dead_letters=5)
    assert predicted(database) == 0.0
    batch(database, "more-rows-than-said", 10, ok=(20, 1.0))
    assert predicted(database) == 0.0


def test_what_is_left_never_reads_as_nothing(database):
    """An engine that costs nothing, or first rows that were all cancelled: still work."""
    batch(database, "free", 11, ok=(10, 0.0))
    assert predicted(database) == pytest.approx(LEAST)
    batch(database, "cancelled", 30, cancelled=(20, 0.0))
    assert predicted(database) == pytest.approx(LEAST + 10 * DEFAULT)


def test_what_it_does_not_count(database):
    batch(database, "other-run", 1000, run="blue")
    batch(database, "unregistered", None, ok=(10, 1.0))
    batch(database, "stuck", 1000, age="25 hours")
    assert predicted(database) == 0.0
    batch(database, "alive", 1000, age="23 hours")
    assert predicted(database) == pytest.approx(1000 * DEFAULT)


def test_the_first_thousand_rows_are_read_by_the_key(database):
    """However many rows there are: no sequential scan of results, 1,000 rows a batch that is open."""
    batch(database, "big", 400_000, ok=(30_000, 0.5))
    batch(database, "done", 20_000, ok=(20_000, 0.5))
    database.ask("app", "ANALYZE tranche.results")
    plan = database.ask("app", "EXPLAIN (ANALYZE, FORMAT JSON) " + QUERY)[0][0]
    scans = []

    def walk(node):
        if node.get("Relation Name") == "results":
            scans.append((node["Node Type"], node.get("Index Name"),
                          node["Actual Rows"] * node["Actual Loops"]))
        for child in node.get("Plans", []):
            walk(child)

    walk((json.loads(plan) if isinstance(plan, str) else plan)[0]["Plan"])
    assert scans == [("Index Scan", "results_pkey", 1000)]
    assert predicted(database) == pytest.approx(370_000 * 0.5)


@pytest.mark.parametrize("statement", [
    "SELECT request FROM tranche.results", "SELECT answer FROM tranche.results",
    "SELECT * FROM tranche.batches", "SELECT metadata FROM tranche.batches",
    "SELECT payload FROM tranche.dead_letters", "SELECT * FROM tranche.v_results",
    "UPDATE tranche.batches SET total=0", "DELETE FROM tranche.results",
    "CREATE TABLE tranche.x (a int)", "CREATE TABLE public.x (a int)", "CREATE TEMP TABLE x (a int)",
])
def test_kedas_user_reads_nothing_else(database, statement):
    with pytest.raises(psycopg2.errors.InsufficientPrivilege):
        database.ask("app", statement, user="keda")


def test_from_submit_to_the_last_row(database, tranche, tmp_path):
    """The counters that the query reads are those that the programs write."""
    queue = redis_server.Server(tmp_path / "redis")
    try:
        source = ["--source", queue.url("prompts"), "--db", database.url("app")]
        jobs = tmp_path / "march.jsonl"
        jobs.write_text("".join(json.dumps({"id": f"j{i}", "prompt": "x"}) + "\n" for i in range(60)))
        assert tranche("init", *source[:2]).returncode == 0
        done = tranche("submit", *source, jobs)
        assert done.returncode == 0, done.stderr.decode()
        assert predicted(database) == pytest.approx(60 * DEFAULT)
        done = tranche("worker", *source, "--engine", "sim", "--sim-tokens", "8", "--sim-step", "1ms",
                       "--idle-exit", "1s")
        assert done.returncode == 0, done.stderr.decode()
        assert predicted(database) == 0.0
    finally:
        queue.stop()
    # And what a worker says that a job has cost is what the next ones are taken to cost.
    database.ask("app", "UPDATE tranche.batches SET total=100")
    mean = database.ask("app", "SELECT avg(device_seconds) FROM tranche.results")[0][0]
    assert mean > 0 and predicted(database) == pytest.approx(40 * max(mean, LEAST))
