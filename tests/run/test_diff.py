"""`tranche diff` on both databases: every way in which two runs of the same jobs can differ."""
import contextlib
import json
import os
import sqlite3
import subprocess

import pytest

from postgres_server import Server

SAME = 5  # jobs that nothing is done to
JOBS = ["missing", "extra", "request", "failed", "mended", "changed", "longer", "wrong", "right",
        "both"] + [f"same{i}" for i in range(SAME)]


@pytest.fixture(scope="module")
def server():
    with Server() as made:
        yield made


@pytest.fixture(params=["sqlite", "postgres"])
def database(request, tranche, tmp_path):
    """{url, ask}: of a member of tranche_redrive; asks as the owner."""
    if request.param == "sqlite":
        def ask(sql):
            with contextlib.closing(sqlite3.connect(tmp_path / "rows.db")) as db:
                found = db.execute(sql).fetchall()
                db.commit()
                return found
        return {"url": "rows.db", "owner": "rows.db", "ask": ask}
    server = request.getfixturevalue("server")
    name = f"d{abs(hash(request.node.name)) % 10**9}"
    server.ask("postgres", f"CREATE DATABASE {name}")
    assert tranche("migrate", "--db", server.url(name)).returncode == 0
    server.ask(name, f"CREATE ROLE r{name} LOGIN IN ROLE tranche_redrive")

    def ask(sql):
        return server.ask(name, "SET search_path = tranche; " + sql)
    return {"url": server.url(name, "r" + name), "owner": server.url(name), "ask": ask}


def two_runs(tranche, tmp_path, database):
    """`main` and `blue`, alike; then one row for each difference is made another."""
    (tmp_path / "b.jsonl").write_text("".join(json.dumps({"id": i, "prompt": i}) + "\n" for i in JOBS))
    for run in ("main", "blue"):
        done = tranche("run", "--engine", "sim", "--db", database["owner"], "--run", run,
                       "--progress", "off", "b.jsonl")
        assert done.returncode == 0, done.stderr.decode()
    assert diff(tranche, database)["same"] == len(JOBS)
    change = lambda i, what, run="blue": database["ask"](
        f"UPDATE results SET {what} WHERE run = '{run}' AND custom_id = '{i}'")
    for run, i in (("blue", "missing"), ("main", "extra")):
        database["ask"](f"DELETE FROM results WHERE run = '{run}' AND custom_id = '{i}'")
    change("request", "request_sha256 = 'other', status = 'failed'")
    change("failed", "status = 'failed'")
    change("mended", "status = 'failed'", "main")
    change("changed", "choices = 'another', answer = 'another'")
    change("longer", "completion_tokens = completion_tokens * 2 + 1")
    for run, i, correct in (("main", "wrong", 1), ("blue", "wrong", 0), ("main", "right", 0),
                            ("blue", "right", 1), ("main", "both", 1), ("blue", "both", 0)):
        change(i, f"correct = {correct}", run)
    change("both", "choices = 'another'")


def diff(tranche, database, *options, code=0, runs=("main", "blue")):
    done = tranche("diff", *runs, "--db", database["url"], "--json", *options)
    assert done.returncode == code, (done.returncode, done.stderr.decode())
    return json.loads(done.stdout)


def test_each_difference_is_found(tranche, tmp_path, database):
    two_runs(tranche, tmp_path, database)
    found = diff(tranche, database, "--list", code=3)
    want = {i: {i} for i in JOBS if not i.startswith("same")} | {"both": {"changed", "wrong"}}
    assert {r["custom_id"]: set(r["kinds"]) for r in found["rows"]} == want
    assert [r["custom_id"] for r in found["rows"]] == sorted(want)
    by = {r["custom_id"]: r for r in found["rows"]}
    assert by["failed"]["status"] == ["ok", "failed"] and by["missing"]["status"] == ["ok", None]
    assert by["wrong"]["correct"] == [1, 0] and by["changed"]["answer"][1] == "another"
    first, second = by["longer"]["completion_tokens"]
    assert second == first * 2 + 1
    n = len(JOBS)
    assert {k: found[k] for k in found if k not in ("rows", "completion_tokens")} == {
        "before": "main", "after": "blue", "batch": None, "rows_before": n - 1, "rows_after": n - 1,
        "both": n - 2, "same": SAME, "missing": 1, "extra": 1, "request": 1, "failed": 1,
        "mended": 1, "changed": 2, "longer": 1, "wrong": 2, "right": 1, "fails": True}
    # The other way round.
    back = diff(tranche, database, code=3, runs=("blue", "main"))
    assert (back["missing"], back["extra"], back["failed"], back["mended"], back["wrong"],
            back["right"], back["changed"], back["longer"]) == (1, 1, 1, 1, 1, 2, 2, 0)


def test_what_fails_and_how_much_is_said(tranche, tmp_path, database):
    two_runs(tranche, tmp_path, database)
    diff(tranche, database, "--fail-on", "none")
    diff(tranche, database, "--fail-on", "extra,longer", code=3)
    assert diff(tranche, database, "--longer-than", "3", "--fail-on", "longer")["longer"] == 0
    assert len(diff(tranche, database, "--list", "--limit", "2", code=3)["rows"]) == 2
    assert diff(tranche, database, "--batch", "b", code=3)["both"] == len(JOBS) - 2
    refused = tranche("diff", "main", "blue", "--db", database["url"], "--batch", "none")
    assert refused.returncode == 64 and "run main has no rows in batch none" in refused.stderr.decode()
    assert tranche("diff", "main", "--db", database["url"]).returncode == 64
    assert tranche("diff", "main", "blue", "--fail-on", "wrongs", "--db",
                   database["url"]).returncode == 64
    # A run against itself, and for people.
    assert diff(tranche, database, runs=("blue", "blue"))["same"] == len(JOBS) - 1
    done = tranche("diff", "main", "blue", "--db", database["url"], "--list")
    text = done.stdout.decode()
    assert done.returncode == 3 and "changed,wrong" in text and "<- fails" in text
    assert f"in both {len(JOBS) - 2}, of these alike {SAME}" in text


def test_memory_is_flat(binary, tranche, tmp_path, database):
    """20,000 pairs, all different, all listed, by a process that may not hold half of their bytes."""
    two_runs(tranche, tmp_path, database)
    rest = ", ".join(c for c in COLUMNS if c not in ("run", "custom_id", "answer", "choices"))
    lite = database["url"] == "rows.db"
    kib = "replace(hex(zeroblob(512)), '0', 'a')" if lite else "repeat('a', 1024)"
    for run in ("main", "blue"):
        database["ask"](
            f"INSERT INTO results (run, custom_id, answer, choices, {rest}) WITH RECURSIVE n(i) AS "
            "(SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000) "
            f"SELECT run, 'many' || i, {kib}, '{run}', {rest} FROM results, n "
            f"WHERE run = '{run}' AND custom_id = 'same0'")
    with open(tmp_path / "out", "wb") as out:
        done = subprocess.run(["sh", "-c", 'ulimit -d 32768; exec "$@"', "sh", binary, "diff", "main",
                               "blue", "--db", database["url"], "--json", "--list", "--limit", "0",
                               "--fail-on", "none"], stdout=out, stderr=subprocess.PIPE, cwd=tmp_path)
    assert done.returncode == 0, done.stderr.decode()
    with open(tmp_path / "out") as lines:
        listed = sum('"custom_id":"many' in line for line in lines)
    assert listed == 20000 and os.path.getsize(tmp_path / "out") > 40 << 20


COLUMNS = ("run batch_id custom_id status answer reasoning correct finish_reason prompt_tokens "
           "completion_tokens reasoning_tokens cached_tokens logprobs prompt_logprobs choices "
           "error_code error_detail sanitized raw model model_sha256 fingerprint config_revision "
           "params seed request request_sha256 source attempts worker device_seconds queued_at "
           "started_at finished_at").split()
