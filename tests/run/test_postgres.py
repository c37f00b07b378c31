"""The PostgreSQL sink through the whole binary, on a private server: same rows as SQLite, exactly one
row whatever dies, what each SQLSTATE asks for, least privilege, a pooler, TLS."""
import contextlib
import json
import os
import pathlib
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import tempfile
import time

import psycopg2
import psycopg2.errors
import pytest

from postgres_server import Server, free_port
from redis_server import certificates, expire
from tcp_proxy import Proxy

ROOT = pathlib.Path(__file__).resolve().parents[2]
SIM = ["--engine", "sim", "--sim-tokens", "8"]
NOT_COMPARED = {"worker", "device_seconds", "queued_at", "started_at", "finished_at"}


@pytest.fixture(scope="module")
def server():
    with Server() as made:
        yield made


@pytest.fixture
def database(server, tranche):
    """A migrated database of its own; {"name", "url", "worker"}: the owner's and a worker's URL."""
    name = f"d{time.monotonic_ns()}"
    server.ask("postgres", f"CREATE DATABASE {name}")
    done = tranche("migrate", "--db", server.url(name))
    assert done.returncode == 0, done.stderr.decode()
    server.ask("postgres", f"CREATE ROLE w{name} LOGIN PASSWORD 'first' IN ROLE tranche_worker")
    yield {"name": name, "url": server.url(name), "role": "w" + name,
           "worker": server.url(name, "w" + name)}
    server.ask("postgres", f"DROP DATABASE {name} WITH (FORCE)")


def write_jobs(path, n, words=4):
    with open(path, "w") as f:
        for i in range(n):
            f.write(json.dumps({"id": f"job-{i}", "prompt": f"prompt {i} " * words}) + "\n")
    return path


def rows(server, name):
    with contextlib.closing(server.connect(name)) as link, link.cursor() as cursor:
        cursor.execute("SELECT * FROM tranche.results ORDER BY custom_id")
        columns = [c.name for c in cursor.description]
        return {r[columns.index("custom_id")]: {c: bytes(v) if isinstance(v, memoryview) else v
                                                for c, v in zip(columns, r) if c not in NOT_COMPARED}
                for r in cursor.fetchall()}


def sqlite_rows(path):
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.row_factory = sqlite3.Row
        return {r["custom_id"]: {c: r[c] for c in r.keys() if c not in NOT_COMPARED}
                for r in db.execute("SELECT * FROM results")}


def events(process_or_bytes, name):
    data = getattr(process_or_bytes, "stderr", process_or_bytes).decode()
    return [line for line in data.split("\n") if f"event={name} " in line]


def check_batch(server, name, n, **counts):
    """The counters of `batches` agree with the rows, and no row is there twice."""
    [(rows_ok, failed, sums)] = server.ask(
        name, "SELECT rows_ok, rows_failed, outputs_sha256 FROM tranche.batches")
    [(ok, bad, ids)] = server.ask(
        name, "SELECT count(*) FILTER (WHERE status='ok'), count(*) FILTER (WHERE "
        "status='failed'), count(DISTINCT custom_id) FROM tranche.results")
    assert (rows_ok, failed) == (ok, bad) and ids == n == ok + bad
    assert server.ask(name, "SELECT count(*) FROM tranche.job_attempts WHERE n > 0") == [(0,)]
    for key, value in counts.items():
        assert {"ok": ok, "failed": bad}[key] == value
    return sums


# ---- schema ----

def test_migrate_is_idempotent_and_runs_side_by_side(server, binary, tranche):
    server.ask("postgres", "CREATE DATABASE side")
    command = [binary, "migrate", "--db", server.url("side")]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
               for _ in range(4)]
    out = sorted(p.communicate(timeout=60)[0].decode() for p in started)
    assert [p.returncode for p in started] == [0] * 4
    # Each step is one process's; which does which is chance.
    steps = [re.match(r"schema (\d) -> 2\n|schema 2: nothing to do\n", line) for line in out]
    assert all(steps) and "0" in [s[1] for s in steps]
    assert server.ask("side", "SELECT version, name FROM tranche.schema_migrations") == [
        (1, "001_init"), (2, "002_config")]


def test_migrate_waits_for_a_lock_and_gives_up_in_time(server, tranche):
    server.ask("postgres", "CREATE DATABASE locked")
    with contextlib.closing(server.connect("locked")) as link, link.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_lock(8390043731436168293)")
        done = tranche("migrate", "--db", server.url("locked"), "--connect-timeout", "1s")
        assert done.returncode == 69 and "55P03" in done.stderr.decode()
    assert tranche("migrate", "--db", server.url("locked")).returncode == 0


def sqlite_comments():
    """{(table,): text, (table, column): text} out of the SQLite schema's comments."""
    found, above, table = {}, [], None
    files = sorted((ROOT / "schemas/sqlite").glob("*.sql"))
    for line in "".join(f.read_text() for f in files).split("\n"):
        head = re.match(r"(?:CREATE (?:TABLE|VIEW)|ALTER TABLE) (\w+)", line)
        column = re.match(r"    (\w+) .*-- (.*)$", line)
        if head:
            table = head[1]
            found.setdefault((table,), " ".join(above))
        elif table and column:
            found[(table, column[1])] = column[2]
        above = above + [line[3:]] if line.startswith("-- ") else []
        if line.startswith(")"):
            table = None
    return found


def test_every_table_and_column_has_sqlites_comment(server, database):
    have = dict(((t, c) if c else (t,), text) for t, c, text in server.ask(
        database["name"], "SELECT c.relname, a.attname, CASE WHEN a.attnum IS NULL THEN "
        "obj_description(c.oid) ELSE col_description(c.oid, a.attnum) END FROM pg_class c LEFT JOIN "
        "LATERAL (SELECT NULL::name AS attname, NULL::int AS attnum UNION ALL SELECT attname, "
        "attnum FROM pg_attribute WHERE attrelid = c.oid AND attnum > 0) a ON true "
        "WHERE c.relnamespace = 'tranche'::regnamespace AND c.relkind IN ('r', 'v')"))
    assert [key for key, text in have.items() if not text] == []
    want = sqlite_comments()
    assert len(want) > 100
    assert {key: have.get(key) for key in want} == want
    base = {key for key in have if len(key) == 1 or not key[0].startswith("v_")}
    assert base == set(want)


def test_tables_and_views_have_sqlites_columns(server, database, tranche, tmp_path):
    jobs = write_jobs(tmp_path / "j.jsonl", 1)
    assert tranche("run", *SIM, "--db", tmp_path / "a.db", jobs).returncode == 0
    with contextlib.closing(sqlite3.connect(tmp_path / "a.db")) as db:
        names = [r[0] for r in db.execute("SELECT name FROM sqlite_schema WHERE type IN "
                                          "('table', 'view') AND name NOT LIKE 'sqlite_%'")]
        want = {n: [r[1] for r in db.execute(f"PRAGMA table_info({n})")] for n in names}
    have = {}
    for table, column in server.ask(
            database["name"], "SELECT table_name, column_name FROM information_schema.columns "
            "WHERE table_schema = 'tranche' ORDER BY table_name, ordinal_position"):
        have.setdefault(table, []).append(column)
    assert have == want


def test_big_columns_are_packed_with_lz4(server, database):
    packed = {r[0] for r in server.ask(
        database["name"], "SELECT attname FROM pg_attribute WHERE attrelid = "
        "'tranche.results'::regclass AND attcompression = 'l'")}
    assert packed == {"answer", "reasoning", "logprobs", "prompt_logprobs", "choices", "raw", "request"}


# ---- rows ----

def test_same_rows_as_sqlite(server, database, tranche, tmp_path):
    run = ["run", "--model", ROOT / "examples/tiny-model", ROOT / "examples/jobs.jsonl"]
    lite = tranche(*run, "--db", tmp_path / "a.db")
    post = tranche(*run, "--db", database["worker"])
    assert lite.returncode == post.returncode == 0, post.stderr.decode()
    want, have = sqlite_rows(tmp_path / "a.db"), rows(server, database["name"])
    assert len(want) >= 200 and have == want
    summary = re.compile(rb"(rows=.* dead_letters=\d+) .*(outputs=\w+)")
    assert summary.search(post.stdout).groups() == summary.search(lite.stdout).groups()
    columns = ("source_key, run, batch_id, custom_id, reason, detail, payload, sha256, source, "
               "attempts")
    with contextlib.closing(sqlite3.connect(tmp_path / "a.db")) as db:
        want = db.execute(f"SELECT {columns} FROM dead_letters ORDER BY 1").fetchall()
        batch = db.execute("SELECT * FROM batches").fetchone()
        place = db.execute("SELECT * FROM partition_progress").fetchone()
    have = server.ask(database["name"], f"SELECT {columns} FROM tranche.dead_letters ORDER BY 1")
    assert want and [tuple(bytes(v) if isinstance(v, memoryview) else v for v in r)
                     for r in have] == want
    assert server.ask(database["name"], "SELECT * FROM tranche.batches")[0][:-2] == batch[:-2]
    assert server.ask(database["name"],
                      "SELECT * FROM tranche.partition_progress")[0][:-1] == place[:-1]
    again = tranche(*run, "--db", database["worker"])
    assert again.returncode == 0 and b"rows=0 " in again.stdout


def test_killed_at_random_moments(server, database, binary, tranche, tmp_path):
    n, seed = 3000, random.randrange(1 << 30)
    print("seed", seed)
    dice = random.Random(seed)
    jobs = write_jobs(tmp_path / "jobs.jsonl", n)
    assert tranche("run", *SIM, "--db", tmp_path / "a.db", jobs).returncode == 0
    command = [binary, "run", *SIM, "--sim-step", "10ms", "--flush-rows", "64", "--flush-interval",
               "50ms", "--log-level", "warn", "--db", database["worker"], str(jobs)]
    kills = 0
    while kills < 30:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        try:
            process.wait(dice.uniform(0.02, 0.6))
            if process.returncode == 0:
                break
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.communicate()
    assert kills >= 5
    done = tranche("run", *SIM, "--db", database["worker"], jobs)
    assert done.returncode == 0, done.stderr.decode()
    have, want = rows(server, database["name"]), sqlite_rows(tmp_path / "a.db")
    for row in [*have.values(), *want.values()]:
        del row["attempts"]  # killed ones started more than once
    assert have == want
    sums = check_batch(server, database["name"], n, ok=n)
    assert f"outputs={sums}".encode() in done.stdout


def test_two_workers_on_the_same_jobs(server, database, binary, tmp_path):
    """In opposite order: rows are written in one order, so none waits for the other in a circle."""
    n = 4000
    jobs = write_jobs(tmp_path / "jobs.jsonl", n)
    back = tmp_path / "back.jsonl"
    back.write_text("".join(reversed(jobs.read_text().splitlines(True))))
    started = [subprocess.Popen([binary, "run", *SIM, "--batch", "b", "--flush-rows", "1000",
                                 "--db", database["worker"], str(path)],
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE)
               for path in (jobs, back)]
    for process in started:
        _, err = process.communicate(timeout=60)
        assert process.returncode == 0 and b"40P01" not in err, err.decode()
    check_batch(server, database["name"], n, ok=n)


# ---- what each SQLSTATE asks for ----

FAULT = """
CREATE SEQUENCE public.fault;
GRANT USAGE ON SEQUENCE public.fault TO PUBLIC;
CREATE FUNCTION public.fault() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF nextval('public.fault') <= {times} THEN
        RAISE EXCEPTION 'injected' USING ERRCODE = '{code}';
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER fault BEFORE INSERT ON tranche.results FOR EACH STATEMENT
    EXECUTE FUNCTION public.fault();
"""
STEPS = [("08006", 2, "wait", "later"), ("57P01", 1, "wait", "later"), ("57P02", 1, "wait", "later"),
         ("57P03", 2, "wait", "later"), ("53000", 1, "wait", "later"), ("53100", 3, "wait", "later"),
         ("53200", 1, "wait", "later"), ("53300", 1, "wait", "later"), ("53400", 1, "wait", "later"),
         ("58030", 2, "wait", "later"), ("55P03", 2, "wait", "later"), ("55006", 1, "wait", "later"),
         ("40001", 3, "conflict", "again"), ("40P01", 7, "conflict", "again"),
         ("25006", 2, "wrong_node", "later"), ("57014", 3, "timeout", "smaller"),
         ("XX000", 2, "unknown", "again"), ("P0001", 4, "unknown", "again")]


@pytest.mark.parametrize("code, times, kind, step", STEPS)
def test_passing_faults(server, database, tranche, tmp_path, code, times, kind, step):
    server.ask(database["name"], FAULT.format(code=code, times=times))
    jobs = write_jobs(tmp_path / "jobs.jsonl", 60)
    done = tranche("run", *SIM, "--db", database["worker"], jobs)
    assert done.returncode == 0, done.stderr.decode()
    told = events(done, "database_failed")
    assert len(told) == times and all(f"sqlstate={code} class={kind}" in line for line in told)
    assert f"step={step}" in told[0]
    if code == "40P01":  # five at once, then with pauses
        assert ["step=again" in line for line in told] == [True] * 5 + [False] * 2
    if code == "P0001":  # three tries, then as a server that is down, with an alert
        assert ["step=again" in line for line in told] == [True] * 2 + [False] * 2
        assert all("level=error" in line for line in told[2:])
    check_batch(server, database["name"], 60, ok=60)


BAD_ROW = """
CREATE FUNCTION public.bad() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.custom_id = ANY ('{{{ids}}}') AND ({only}) THEN
        RAISE EXCEPTION 'injected' USING ERRCODE = '{code}';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER bad BEFORE INSERT ON tranche.results FOR EACH ROW EXECUTE FUNCTION public.bad();
"""


@pytest.mark.parametrize("code", ["22021", "22P05", "23502", "23514", "54000", "21000"])
def test_bad_rows_are_found_by_bisection(server, database, tranche, tmp_path, code):
    n, bad = 200, ["job-0", "job-77", "job-78", "job-199"]
    jobs = write_jobs(tmp_path / "jobs.jsonl", n)
    assert tranche("run", *SIM, "--db", tmp_path / "a.db", jobs).returncode == 0
    server.ask(database["name"], BAD_ROW.format(code=code, ids=",".join(bad),
                                                only="NEW.answer IS NOT NULL"))
    done = tranche("run", *SIM, "--db", database["worker"], jobs)
    assert done.returncode == 0, done.stderr.decode()
    check_batch(server, database["name"], n, ok=n - len(bad), failed=len(bad))
    have, want = rows(server, database["name"]), sqlite_rows(tmp_path / "a.db")
    for custom_id in bad:
        row, meant = have.pop(custom_id), want.pop(custom_id)
        assert (row["status"], row["error_code"], row["answer"]) == ("failed", "unstorable", None)
        assert meant["answer"].encode().hex()[:20] in row["error_detail"] and code in row["error_detail"]
        assert row["request_sha256"] == meant["request_sha256"]
        assert row["completion_tokens"] == meant["completion_tokens"]
    assert have == want
    # 4 bad ones among 200: halving, not one by one.
    assert len(events(done, "database_failed")) < 60
    again = tranche("run", *SIM, "--db", database["worker"], jobs)
    assert b"rows=0 " in again.stdout and f"present={n}".encode() in again.stdout


def test_a_row_that_cannot_be_stored_at_all_becomes_a_dead_letter(server, database, tranche, tmp_path):
    jobs = write_jobs(tmp_path / "jobs.jsonl", 50)
    server.ask(database["name"], BAD_ROW.format(code="22000", ids="job-7", only="true"))
    done = tranche("run", *SIM, "--db", database["worker"], jobs)
    assert done.returncode == 0, done.stderr.decode()
    check_batch(server, database["name"], 49, ok=49)
    assert server.ask(database["name"], "SELECT custom_id, reason, position('prompt 7' IN "
                      "convert_from(payload, 'UTF8')) > 0 FROM tranche.dead_letters") == [
                          ("job-7", "unstorable", True)]
    assert server.ask(database["name"], "SELECT dead_letters FROM tranche.batches") == [(1,)]


def test_the_server_leaves_and_comes_back(tranche, binary, tmp_path):
    """Stopped as by a crash, read-only for a while, our connections ended: nothing is lost."""
    n = 4000
    jobs = write_jobs(tmp_path / "jobs.jsonl", n)
    with Server() as own:
        url = own.url("postgres")
        assert tranche("migrate", "--db", url).returncode == 0
        process = subprocess.Popen([binary, "run", *SIM, "--sim-step", "15ms", "--flush-rows", "50",
                                    "--claim-rows", "500", "--db", url, str(jobs)],
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        time.sleep(0.5)
        own.stop("immediate")
        time.sleep(1)
        own.start()
        time.sleep(0.5)
        own.ask("postgres", "ALTER DATABASE postgres SET default_transaction_read_only = on")
        ended = ("SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE "
                 "application_name = 'tranche'")
        own.ask("postgres", ended)
        time.sleep(1)
        own.ask("postgres", "BEGIN READ WRITE; ALTER DATABASE postgres RESET "
                "default_transaction_read_only; COMMIT")
        for _ in range(5):
            time.sleep(0.2)
            own.ask("postgres", ended)
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err.decode()
        assert len(events(err, "database_failed")) >= 2
        check_batch(own, "postgres", n, ok=n)


def test_configuration_faults_wait_for_the_operator(server, database, tranche, binary, tmp_path):
    """Two runs at once: a password that changes, a right that goes. Both heal by the second try."""
    n = 1500
    jobs, secret = write_jobs(tmp_path / "jobs.jsonl", n), tmp_path / "secret"
    secret.write_text("first\n")
    name, role = database["name"], database["role"]
    other = "o" + name
    server.ask("postgres", f"CREATE DATABASE {other}")
    assert tranche("migrate", "--db", server.url(other)).returncode == 0
    server.ask("postgres", f"CREATE ROLE w{other} LOGIN IN ROLE tranche_worker")
    common = [binary, "run", *SIM, "--sim-step", "20ms", "--flush-rows", "50", str(jobs)]
    a, b = (subprocess.Popen([*common, *more], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            for more in (["--db", server.url(name, role, "127.0.0.1"), "--db-password-file", secret],
                         ["--db", server.url(other, "w" + other)]))
    time.sleep(0.7)
    server.ask(name, f"ALTER ROLE {role} PASSWORD 'second'")
    server.ask(name, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %s", role)
    server.ask(other, "REVOKE INSERT ON tranche.results FROM tranche_worker")
    time.sleep(3)
    secret.write_text("second\n")
    server.ask(other, "GRANT INSERT ON tranche.results TO tranche_worker")
    for process, code, where in ((a, "28P01", name), (b, "42501", other)):
        _, err = process.communicate(timeout=150)
        assert process.returncode == 0, err.decode()
        told = [line for line in events(err, "database_failed") if code in line]
        assert told and "class=config step=later seconds=30" in told[0] and "level=error" in told[0]
        check_batch(server, where, n, ok=n)
        assert b"first" not in err and b"second\n" not in err
    server.ask("postgres", f"DROP DATABASE {other} WITH (FORCE)")


@pytest.mark.parametrize("unit, cases", [("sink_postgres_test", 11), ("postgres_attempts_test", 7),
                                         ("postgres_hosts_test", 5)])
def test_the_contract_on_a_real_server(binary, unit, cases):
    """Units whose cases need a server: bytes that are no text, parking, attempts, .."""
    program = pathlib.Path(binary).parent / unit
    assert program.is_file(), "build the unit tests too"
    with Server() as own:
        done = subprocess.run([program], cwd=ROOT, timeout=120, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, check=False,
                              env={**os.environ, "TRANCHE_TEST_POSTGRES": own.url("postgres")})
    text = done.stdout.decode()
    assert done.returncode == 0 and "[  SKIPPED ]" not in text, text
    assert int(re.search(r"\[  PASSED  \] (\d+) test", text)[1]) == cases, text


def test_doctor_looks_at_the_server(server, database, tranche):
    def verdicts(url):
        found = json.loads(tranche("doctor", "--json", "--model", ROOT / "examples/tiny-model",
                                   "--db", url).stdout)
        return [c for c in found["checks"] if c["check"] == "database"]
    [good] = verdicts(database["worker"])
    assert good["verdict"] == "ok"
    [bad] = verdicts(server.url("nowhere"))
    assert bad["verdict"] == "fault" and "nowhere" in bad["text"]


def test_export_says_that_it_reads_files_only(server, database, tranche):
    done = tranche("export", "--db", database["url"])
    assert done.returncode == 64 and "postgres://" in done.stderr.decode()


# ---- the link ----

def proxied(database, server, port):
    return server.url(database["name"], "postgres", "127.0.0.1", port, sslmode="disable")


@pytest.fixture
def password(server, tmp_path):
    server.ask("postgres", "ALTER ROLE postgres PASSWORD 'known'")
    (tmp_path / "pw").write_text("known")
    return ["--db-password-file", tmp_path / "pw"]


@pytest.mark.parametrize("answer_arrives", [False, True])
def test_cut_in_the_middle_of_commit(server, database, password, tranche, tmp_path, answer_arrives):
    """The COMMIT reaches the server, its answer does not reach us; or it does not reach the server."""
    n, left = 400, [3]
    jobs = write_jobs(tmp_path / "jobs.jsonl", n)
    armed = []

    def rule(direction, data, _):
        if direction == "up" and b"COMMIT\0" in data and left[0] and server.ask(
                database["name"], "SELECT 1 FROM pg_locks WHERE relation = "
                "'tranche.results'::regclass AND mode = 'RowExclusiveLock'"):
            left[0] -= 1
            if not answer_arrives:
                return data.index(b"COMMIT\0") + 3
            armed.append(True)
        if direction == "down" and armed:
            armed.clear()
            return 0
        return len(data)

    with Proxy("127.0.0.1", server.port, rule) as proxy:
        done = tranche("run", *SIM, "--flush-rows", "100", *password, "--db",
                       proxied(database, server, proxy.port), jobs)
        assert done.returncode == 0, done.stderr.decode()
        assert proxy.cuts == 3
    check_batch(server, database["name"], n, ok=n)


def cut_behind(direction, limit, links=1 << 30):
    """The first links are cut behind that byte of their stream."""
    proxies = []

    def rule(way, data, passed):
        if way != direction or proxies[0].links > links:
            return len(data)
        return min(len(data), max(limit - passed, 0))
    return rule, proxies


@pytest.mark.parametrize("direction", ["up", "down"])
def test_cut_behind_any_byte(server, database, password, tranche, tmp_path, direction):
    """Two links in a row are cut behind some byte of a stream, the third lives."""
    n, dice, cuts = 300, random.Random(7), 0
    jobs = write_jobs(tmp_path / "jobs.jsonl", n)
    for limit in (dice.randrange(700, 9000 if direction == "down" else 60000) for _ in range(12)):
        rule, proxies = cut_behind(direction, limit, 2)
        with Proxy("127.0.0.1", server.port, rule) as proxy:
            proxies.append(proxy)
            done = tranche("run", *SIM, "--run", limit, "--flush-rows", "40", *password, "--db",
                           proxied(database, server, proxy.port), jobs)
            assert done.returncode == 0, done.stderr.decode()
            cuts += proxy.cuts
    assert cuts >= 8
    assert server.ask(database["name"], "SELECT run FROM tranche.results GROUP BY run HAVING "
                      "count(*) <> %s UNION SELECT run FROM tranche.batches WHERE rows_ok <> %s",
                      n, n) == []


@pytest.mark.parametrize("direction, limit", [("up", 1), ("up", 9), ("up", 200), ("down", 1),
                                              ("down", 30), ("down", 300)])
def test_cut_at_the_start(server, database, password, tranche, tmp_path, direction, limit):
    jobs = write_jobs(tmp_path / "jobs.jsonl", 1)
    rule, proxies = cut_behind(direction, limit)
    with Proxy("127.0.0.1", server.port, rule) as proxy:
        proxies.append(proxy)
        done = tranche("run", *SIM, "--connect-timeout", "0s", *password, "--db",
                       proxied(database, server, proxy.port), jobs)
        assert done.returncode == 69 and proxy.cuts >= 1, done.stderr.decode()


def test_cut_while_the_schema_is_asked_for(server, database, password, tranche, tmp_path):
    """Connected, and cut before the version came: the start has its --connect-timeout for that too."""
    jobs = write_jobs(tmp_path / "jobs.jsonl", 3)
    proxies = []

    def rule(way, data, passed):
        first = proxies[0].cuts == 0 and way == "up" and b"schema_migrations" in data
        return 0 if first else len(data)
    with Proxy("127.0.0.1", server.port, rule) as proxy:
        proxies.append(proxy)
        done = tranche("run", *SIM, "--connect-timeout", "20s", *password, "--db",
                       proxied(database, server, proxy.port), jobs)
        assert done.returncode == 0 and proxy.cuts == 1, done.stderr.decode()
    check_batch(server, database["name"], 3, ok=3)


def test_a_server_that_never_answers(server, database, tranche, tmp_path):
    jobs = write_jobs(tmp_path / "jobs.jsonl", 1)
    with Proxy("127.0.0.1", server.port, lambda *_: None) as proxy:
        start = time.monotonic()
        done = tranche("run", *SIM, "--connect-timeout", "1s", "--db",
                       proxied(database, server, proxy.port), jobs)
        assert done.returncode == 69 and 4 < time.monotonic() - start < 12
        assert "no answer to a connect in time" in done.stderr.decode()
    done = tranche("run", *SIM, "--connect-timeout", "1s", "--db",
                   server.url("postgres", host="127.0.0.1", port=free_port()), jobs)
    assert done.returncode == 69 and "refused" in done.stderr.decode()


def test_behind_pgbouncer_in_transaction_mode(server, database, tranche, binary, tmp_path):
    folder = pathlib.Path(tempfile.mkdtemp(prefix="tranche-bouncer-"))
    os.chmod(folder, 0o755)
    port, n = free_port(), 3000
    (folder / "users").write_text(f'"{database["role"]}" ""\n')
    server.ask(database["name"], "CREATE ROLE bounced_desk LOGIN IN ROLE tranche_redrive")
    # auth_type any logs in as the user of the database line.
    (folder / "ini").write_text(
        f"[databases]\n{database['name']} = user={database['role']} host={server.folder} "
        f"port={server.port}\ndesk = dbname={database['name']} user=bounced_desk "
        f"host={server.folder} port={server.port}\n[pgbouncer]\n"
        f"listen_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir = \n"
        f"auth_type = any\nauth_file = {folder}/users\npool_mode = transaction\n"
        f"default_pool_size = 2\nlogfile = {folder}/log\npidfile = {folder}/pid\n")
    if os.getuid() == 0:
        shutil.chown(folder, "postgres")
    prefix = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []
    bouncer = subprocess.Popen([*prefix, shutil.which("pgbouncer") or "/usr/sbin/pgbouncer",
                                str(folder / "ini")], stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL, cwd="/")
    try:
        jobs = write_jobs(tmp_path / "jobs.jsonl", n)
        url = server.url(database["name"], database["role"], "127.0.0.1", port, sslmode="disable")
        # Four workers share two server connections.
        started = [subprocess.Popen([binary, "run", *SIM, "--run", f"r{i}", "--flush-rows", "100",
                                     "--db", url, str(jobs)], stdout=subprocess.PIPE,
                                    stderr=subprocess.PIPE) for i in range(4)]
        for process in started:
            _, err = process.communicate(timeout=90)
            assert process.returncode == 0, err.decode()
            assert events(err, "database_failed") == []
        assert server.ask(database["name"], "SELECT run, count(*) FROM tranche.results GROUP BY 1 "
                          "ORDER BY 1") == [(f"r{i}", n) for i in range(4)]
        desk = ("--db", server.url("desk", "bounced_desk", "127.0.0.1", port, sslmode="disable"))
        assert tranche("cancel", *desk, "--run", "r1", "jobs", "x").returncode == 0
        found = json.loads(tranche("status", "--json", *desk, "--run", "r1").stdout)
        assert [b["rows"] for b in found["batches"]] == [n] and found["cancellations"] == 1
        done = tranche("export", *desk, "--run", "r1")  # a cursor over many round trips
        assert done.returncode == 0 and done.stdout.count(b"\n") == n, done.stderr.decode()
        assert "prepared statement" not in server.log()
    finally:
        bouncer.terminate()
        bouncer.wait(20)
        shutil.rmtree(folder, ignore_errors=True)


# ---- who may do what ----

def refused(server, name, role, statement):
    with pytest.raises(psycopg2.errors.InsufficientPrivilege):
        server.ask(name, statement, user=role)


def test_least_privilege(server, database, tranche, tmp_path):
    name, worker = database["name"], database["role"]
    jobs = write_jobs(tmp_path / "jobs.jsonl", 20)
    assert tranche("run", *SIM, "--db", database["worker"], jobs).returncode == 0
    for statement in ("UPDATE tranche.results SET status='ok'", "DELETE FROM tranche.results",
                      "TRUNCATE tranche.results", "SELECT answer FROM tranche.results",
                      "DELETE FROM tranche.dead_letters", "SELECT payload FROM tranche.dead_letters",
                      "UPDATE tranche.dead_letters SET payload=''", "DELETE FROM tranche.batches",
                      "CREATE TABLE tranche.x (a int)", "CREATE TABLE public.x (a int)",
                      "CREATE TEMP TABLE x (a int)", "INSERT INTO tranche.cancellations VALUES "
                      "('main','b','c')", "INSERT INTO tranche.schema_migrations VALUES (9, 'x')",
                      "DELETE FROM tranche.partition_progress", "SELECT * FROM tranche.v_results"):
        refused(server, name, worker, statement)
    for role in ("analyst", "redrive"):
        server.ask(name, f"CREATE ROLE {role}_{name} LOGIN IN ROLE tranche_{role}")
    analyst, redrive = f"analyst_{name}", f"redrive_{name}"
    views = [r[0] for r in server.ask(name, "SELECT viewname FROM pg_views WHERE "
                                      "schemaname='tranche'")]
    assert len(views) == 9 and "v_outbox" in views
    for view in set(views) - {"v_outbox"}:
        server.ask(name, f"SELECT * FROM tranche.{view}", user=analyst)
    refused(server, name, analyst, "SELECT * FROM tranche.v_outbox")
    for table in ("results", "dead_letters", "batches", "parked", "job_attempts"):
        refused(server, name, analyst, f"SELECT * FROM tranche.{table}")
    refused(server, name, analyst, "CREATE TEMP TABLE x (a int)")
    server.ask(name, "SELECT payload FROM tranche.dead_letters", user=redrive)
    server.ask(name, "UPDATE tranche.dead_letters SET redriven_at=now()", user=redrive)
    server.ask(name, "UPDATE tranche.partition_progress SET position=0", user=redrive)
    for statement in ("UPDATE tranche.dead_letters SET payload=''", "DELETE FROM tranche.results",
                      "UPDATE tranche.results SET status='ok'", "DELETE FROM tranche.dead_letters",
                      "INSERT INTO tranche.dead_letters DEFAULT VALUES",
                      "DELETE FROM tranche.job_attempts", "DELETE FROM tranche.partition_progress",
                      "CREATE TABLE tranche.x (a int)", "CREATE TEMP TABLE x (a int)"):
        refused(server, name, redrive, statement)
    server.ask("postgres", f"CREATE ROLE nobody_{name} LOGIN")
    refused(server, name, f"nobody_{name}", "SELECT * FROM tranche.v_results")


def test_refusals_at_the_start(server, database, tranche, tmp_path):
    jobs = write_jobs(tmp_path / "jobs.jsonl", 1)

    def refusal(*args):
        done = tranche("run", *SIM, "--connect-timeout", "0s", *args, jobs)
        return done.returncode, done.stderr.decode()

    name, role = database["name"], database["role"]
    code, text = refusal("--db", f"postgres://{role}:hunter2@127.0.0.1/{name}")
    assert code == 64 and "--db-password-file" in text and "hunter2" not in text
    code, text = refusal("--db", f"postgres://{role}:hunter2@127.0.0.1/{name}?nonsense=1")
    assert code == 64 and "hunter2" not in text
    code, text = refusal("--db", f"postgres://{role}@db.example.org/{name}?sslmode=require")
    assert code == 64 and "verify-full" in text and "require" in text
    (tmp_path / "wrong").write_text("wrong")
    code, text = refusal("--db", server.url(name, role, "127.0.0.1"), "--db-password-file",
                         tmp_path / "wrong")
    assert code == 65 and "password authentication failed" in text
    code, text = refusal("--db", server.url("nowhere"))
    assert code == 65 and "nowhere" in text
    server.ask("postgres", f"CREATE DATABASE bare_{name}")
    code, text = refusal("--db", server.url(f"bare_{name}"))
    assert code == 65 and "tranche migrate" in text
    assert refusal("--db", server.url(name), "--show", "3")[0] == 0
    server.ask(name, "INSERT INTO tranche.schema_migrations VALUES (3, 'next')")
    assert refusal("--db", database["worker"])[0] == 0  # migrations only add: the next one is fine
    server.ask(name, "INSERT INTO tranche.schema_migrations VALUES (4, 'beyond')")
    code, text = refusal("--db", database["worker"])
    assert code == 65 and "schema 2 to 3, found 4" in text
    server.ask("postgres", f"CREATE DATABASE latin_{name} ENCODING LATIN1 LOCALE 'C' "
               "TEMPLATE template0")
    code, text = refusal("--db", server.url(f"latin_{name}"))
    assert code == 65 and "LATIN1" in text


def test_too_many_connections_at_the_start(server, database, binary, tmp_path):
    jobs = write_jobs(tmp_path / "jobs.jsonl", 5)
    server.ask("postgres", f"ALTER ROLE {database['role']} CONNECTION LIMIT 0")
    process = subprocess.Popen([binary, "run", *SIM, "--db", database["worker"], str(jobs)],
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    time.sleep(1)
    server.ask("postgres", f"ALTER ROLE {database['role']} CONNECTION LIMIT -1")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0 and events(err, "database_connecting"), err.decode()
    check_batch(server, database["name"], 5, ok=5)


def certificate(folder, name, signer=None):
    run = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
           "-nodes", "-days", "2", "-subj", f"/CN={name}", "-addext",
           f"subjectAltName=DNS:{name}", "-keyout", folder / f"{name}.key", "-out",
           folder / f"{name}.crt"]
    if signer:
        run += ["-CA", folder / f"{signer}.crt", "-CAkey", folder / f"{signer}.key", "-addext",
                "basicConstraints=critical,CA:FALSE"]
    subprocess.run(run, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def test_tls_is_verified(server, database, password, tranche, tmp_path):
    for name in ("authority", "stranger", "localhost"):
        certificate(tmp_path, name)
    for end in ("crt", "key"):
        to = server.data / f"server.{end}"
        shutil.copy(tmp_path / f"localhost.{end}", to)
        os.chmod(to, 0o600)
        if os.getuid() == 0:
            shutil.chown(to, "postgres", "postgres")
    server.ask("postgres", "ALTER SYSTEM SET ssl = on")
    server.reload()
    time.sleep(0.5)
    jobs = write_jobs(tmp_path / "jobs.jsonl", 5)

    def run(host, root):
        return tranche("run", *SIM, "--connect-timeout", "0s", *password, "--db", server.url(
            database["name"], "postgres", host, sslmode="verify-full",
            sslrootcert=tmp_path / f"{root}.crt"), jobs)

    wrong = run("localhost", "stranger")
    assert wrong.returncode == 69 and "certificate verify failed" in wrong.stderr.decode()
    other = run("127.0.0.1", "localhost")  # the certificate speaks of localhost
    assert other.returncode == 69 and "does not match" in other.stderr.decode()
    good = run("localhost", "localhost")
    assert good.returncode == 0, good.stderr.decode()
    check_batch(server, database["name"], 5, ok=5)
    old = expire(certificates(tmp_path / "old"))
    for end in ("crt", "key"):
        shutil.copyfile(old / f"server.{end}", server.data / f"server.{end}")
    server.reload()
    time.sleep(0.5)
    late = run("localhost", "old/ca")
    assert late.returncode == 69 and "certificate has expired" in late.stderr.decode()
    assert "localhost" in late.stderr.decode()
