"""Each query of docs/analysts.md on both databases, over the same two runs: the same answer."""
import contextlib
import datetime
import decimal
import pathlib
import re
import sqlite3

import pytest

from postgres_server import Server

ROOT = pathlib.Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs/analysts.md").read_text()
# Wall-clock columns differ between the two; what they measure does not agree byte for byte.
MEASURED = {"hour", "device_seconds", "seconds_a_row", "tokens_a_second", "mean_wait", "longest_wait",
            "mean_run", "longest_run", "first_seen", "last_seen", "updated_at"}


def queries():
    """[(number, title, {"postgres": sql, "sqlite": sql})]"""
    found = []
    for number, title, body in re.findall(r"^## (\d+)\. (.*?)\n(.*?)(?=^## |\Z)", TEXT, re.M | re.S):
        by = {}
        for database, sql in re.findall(r"^```sql ?(\w*)\n(.*?)^```$", body, re.M | re.S):
            for name in [database] if database else ["postgres", "sqlite"]:
                by[name] = sql
        found.append((int(number), title, by))
    return found


@pytest.fixture(scope="module")
def both(tmp_path_factory, binary):
    import subprocess
    folder = tmp_path_factory.mktemp("analysts")
    with Server() as server:
        subprocess.run([binary, "migrate", "--db", server.url("postgres")], check=True, timeout=60)
        server.ask("postgres", "CREATE ROLE ann LOGIN IN ROLE tranche_analyst")
        for database in (server.url("postgres"), folder / "a.db"):
            for more in ([], ["--run", "blue", "--default-max-tokens", "24"]):
                subprocess.run([binary, "run", "--model", ROOT / "examples/tiny-model", *more,
                                "--db", str(database), ROOT / "examples/jobs.jsonl"],
                               check=True, timeout=120, stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL)
        with contextlib.closing(server.connect(user="ann")) as link, \
                contextlib.closing(sqlite3.connect(folder / "a.db")) as lite:
            link.cursor().execute("SET search_path = tranche")
            yield {"postgres": link.cursor(), "sqlite": lite.cursor()}


def plain(value):
    if isinstance(value, decimal.Decimal):
        value = int(value) if value.as_tuple().exponent >= 0 else float(value)
    if isinstance(value, datetime.datetime):
        value = value.isoformat()
    return round(value, 9) if isinstance(value, float) else value


def answer(cursor, sql):
    cursor.execute(sql)
    names = [c[0] for c in cursor.description]
    return names, [dict(zip(names, map(plain, row))) for row in cursor.fetchall()]


def test_there_are_ten():
    assert [number for number, _, _ in queries()] == list(range(1, 11))
    assert all(set(by) == {"postgres", "sqlite"} for _, _, by in queries())


@pytest.mark.parametrize("number, title, by", queries())
def test_same_answer_on_both(both, number, title, by):
    names, post = answer(both["postgres"], by["postgres"])
    lite_names, lite = answer(both["sqlite"], by["sqlite"])
    assert names == lite_names and post, title
    kept = set(names) - MEASURED

    def rows(found):
        return sorted((tuple(str(r[n]) for n in names if n in kept) for r in found))
    if number != 1:  # two hours, if the runs went over the full one
        assert rows(post) == rows(lite)
    for row in post + lite:
        for name in MEASURED & set(names):
            assert row[name] is not None and (not isinstance(row[name], float) or row[name] >= 0)


def test_the_answers_say_something(both):
    by = {number: answer(both["postgres"], q["postgres"])[1] for number, _, q in queries()}
    assert sum(r["rows"] for r in by[1]) == sum(r["rows"] for r in by[10]) >= 400
    assert sum(r["jobs"] for r in by[2] if r["run"] == "main") >= 5
    main, blue = (next(r for r in by[3] if r["run"] == run) for run in ("main", "blue"))
    assert main["accuracy"] > 0.9 and main["config_revision"] != blue["config_revision"]
    assert sum(r["jobs"] for r in by[4]) == sum(r["rows_ok"] for r in by[10])
    assert len(by[5]) == 10 and by[5][0]["reasoning_tokens"] >= by[5][9]["reasoning_tokens"] > 0
    assert 0 < by[8][0]["same_answer"] <= by[8][0]["both_answered"]
    assert {r["reason"] for r in by[9]} == {"id_conflict"}
