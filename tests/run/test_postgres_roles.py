"""The first migration by a user who is no superuser, as docs/kubernetes.md makes it. Under Debian's
server and, by TRANCHE_TEST_POSTGRES_BIN, under the newest: from 16 on who made a role may not act
as it without one more grant."""
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]


def block(page, after, language):
    text = (ROOT / "docs" / page).read_text().split(after)[1]
    return text.split(f"```{language}\n")[1].split("```")[0]


@pytest.fixture(scope="module")
def llm(postgres):
    """The database of the page, after its step 2."""
    postgres.ask("postgres", "CREATE DATABASE llm")
    sql = block("kubernetes.md", "**2. Users.**", "sql")
    assert "tranche_admin LOGIN CREATEROLE" in sql and "SUPERUSER" not in sql
    postgres.ask("llm", sql)
    return postgres


def test_a_plain_administrator_migrates(llm, tranche, tmp_path):
    url = llm.url("llm", "tranche_admin")
    first, second = (tranche("migrate", "--db", url) for _ in range(2))
    assert first.returncode == 0 and first.stdout == b"schema 0 -> 2\n", first.stderr.decode()
    assert second.returncode == 0 and second.stdout == b"schema 2: nothing to do\n"
    assert llm.ask("llm", "SELECT DISTINCT tableowner::text FROM pg_tables WHERE schemaname = "
                   "'tranche'") == [("tranche_owner",)]

    # The roles of step 5, a run by the one, and what an owner does behind it.
    for name, group in (("pod", "worker"), ("desk", "redrive")):
        llm.ask("llm", f"CREATE ROLE tranche_{name} LOGIN PASSWORD 'x' IN ROLE tranche_{group}",
                user="tranche_admin")
    llm.ask("llm", (ROOT / "schemas/keda/role.sql").read_text(), user="tranche_admin")
    (tmp_path / "jobs.jsonl").write_text('{"id":"a","prompt":"x"}\n')
    done = tranche("run", "--engine", "sim", "--db", llm.url("llm", "tranche_pod"), "jobs.jsonl")
    assert done.returncode == 0, done.stderr.decode()
    assert llm.ask("llm", "SELECT status, count(*) FROM tranche.results GROUP BY 1",
                   user="tranche_admin") == [("ok", 1)]
    done = tranche("prune", "--db", url, "--older-than", "1d")
    assert done.returncode == 0, done.stderr.decode()


def test_another_database_of_the_same_server(llm, tranche):
    """Its roles are there already; one who did not make them has to be given the owner's."""
    for name, user in (("mine", "tranche_admin"), ("theirs", "stranger")):
        if user == "stranger":
            llm.ask("postgres", "CREATE ROLE stranger LOGIN")
        llm.ask("postgres", f"CREATE DATABASE {name} OWNER {user}")
    assert tranche("migrate", "--db", llm.url("mine", "tranche_admin")).returncode == 0
    refused = tranche("migrate", "--db", llm.url("theirs", "stranger"))
    assert refused.returncode == 65 and b"42501" in refused.stderr, refused.stderr.decode()
    llm.ask("postgres", "GRANT tranche_owner TO stranger")
    assert tranche("migrate", "--db", llm.url("theirs", "stranger")).returncode == 0
