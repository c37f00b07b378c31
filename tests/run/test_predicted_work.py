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
    server.ask("app", "TRUNCATE tranche.batches, tranche.results, tranche.dead_letters")
    return server


def batch(server, name, total, run="main", letters=(), age="0 days", **rows):
    """A registered batch, and what has come of it: rows by status, `ok=(count, seconds)`, and its
    letters, `(reason, custom_id)`. A row's id is its status and seven digits, from 1 on."""
    done = {"ok": (0, 0.0), "failed": (0, 0.0), "cancelled": (0, 0.0), "dead": (0, 0.0)} | rows
    server.ask("app", "INSERT INTO tranche.batches (run, batch_id, total, rows_ok, rows_failed, "
               "rows_cancelled, rows_dead, dead_letters, outputs_sha256, created_at, updated_at) VALUES "
               "(%s,%s,%s,%s,%s,%s,%s,%s,%s, now(), now() - %s::interval)", run, name, total,
               done["ok"][0], done["failed"][0], done["cancelled"][0], done["dead"][0], len(letters),
               ZEROS, age)
    server.ask("app", "INSERT INTO tranche.dead_letters (source_key, run, batch_id, custom_id, reason, "
               "sha256, attempts, first_seen, last_seen) SELECT concat_ws('/', %s, %s, i), %s, %s, id, "
               "reason, '', 1, now(), now() FROM unnest(%s::text[], %s::text[]) "
               "WITH ORDINALITY AS l(reason, id, i)", run, name, run, name,
               [reason for reason, _ in letters], [custom_id for _, custom_id in letters])
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
    batch(database, "b", 300, ok=(280, 1.0), failed=(10, 0.0), cancelled=(5, 0.0), dead=(5, 0.0))
    assert predicted(database) == 0.0
    batch(database, "more-rows-than-said", 10, ok=(20, 1.0))
    assert predicted(database) == 0.0


def test_a_letter_beside_a_row_takes_no_other_job_away(database):
    """A job that was given up has a row and a letter; a letter of a conflict belongs to another one's row."""
    crashed = [("crashed", f"dead{i:07}") for i in range(1, 11)]
    batch(database, "poison", 100, ok=(80, 1.0), dead=(10, 0.0), letters=crashed)
    assert predicted(database) == pytest.approx(10 * 1.0)
    edited = [("id_conflict", f"ok{i:07}") for i in range(1, 501)]
    batch(database, "sent-again", 1000, ok=(500, 2.0), letters=edited)
    assert predicted(database) == pytest.approx(10 * 1.0 + 500 * 2.0)


def test_a_letter_in_the_place_of_a_row_is_no_work(database):
    """What the database could not hold at all will have no row; such a letter may stand beside one, too,
    or come twice."""
    batch(database, "b", 100, ok=(90, 1.0), dead=(5, 0.0), letters=[
        ("unstorable", "j1"), ("unstorable", "j2"), ("unstorable", "j2"), ("unstorable", "dead0000001"),
        ("id_conflict", "j3")])
    assert predicted(database) == pytest.approx(3 * 1.0)
    batch(database, "of-others", 3, run="blue", letters=[("unstorable", "j1")])
    batch(database, "c", 3)
    assert predicted(database) == pytest.approx(3 * 1.0 + 3 * DEFAULT)


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
    """However many rows there are: no sequential scan of results, 1,000 rows a batch that is open; and
    of its letters as many."""
    batch(database, "big", 400_000, ok=(30_000, 0.5), letters=[
        ("unstorable" if i < 3 else "id_conflict", f"ok{i:07}") for i in range(1, 20_001)])
    batch(database, "done", 20_000, ok=(20_000, 0.5), letters=[("unstorable", "ok0000001")])
    database.ask("app", "ANALYZE tranche.results, tranche.dead_letters")
    plan = database.ask("app", "EXPLAIN (ANALYZE, FORMAT JSON) " + QUERY)[0][0]
    scans = {"results": [], "dead_letters": []}

    def walk(node):
        if "Relation Name" in node and node["Relation Name"] in scans:
            scans[node["Relation Name"]].append((node["Node Type"], node.get("Index Name"),
                                                 node["Actual Rows"] * node["Actual Loops"]))
        for child in node.get("Plans", []):
            walk(child)

    walk((json.loads(plan) if isinstance(plan, str) else plan)[0]["Plan"])
    # And one by its key for each letter of an open batch that may stand for a row.
    assert sorted(scans["results"]) == [("Index Scan", "results_pkey", 2), ("Index Scan", "results_pkey", 1000)]
    assert scans["dead_letters"] == [("Index Scan", "dead_letters_job", 1000)]
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
