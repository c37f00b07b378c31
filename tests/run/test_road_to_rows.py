"""The database's part of docs/kubernetes.md's road, as it stands there, on a private server: the
administrator's SQL, the migration as that user, the workers' user, rows as that one, their count."""
import os
import pathlib
import re
import subprocess

from postgres_server import Server

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/kubernetes.md").read_text()


def block(step, kind):
    return PAGE.split(f"**{step}. ")[1].split(f"```{kind}\n")[1].split("```")[0]


def test_from_an_empty_server_to_rows(tranche, tmp_path):
    secrets, desk = tmp_path / "secrets/tranche-db", tmp_path / "secrets/tranche-db-desk"
    for folder, word in ((secrets, "it's a \\ word"), (desk, "another")):
        folder.mkdir(parents=True)
        (folder / "password").write_text(word)   # without a newline, as the page wants it
    (tmp_path / "owner").write_text("boss")
    jobs = tmp_path / "jobs.jsonl"
    jobs.write_text("".join(f'{{"id": "j{i}", "prompt": "x"}}\n' for i in range(20)))
    with Server() as server:
        def shell(text):
            done = subprocess.run(["bash", "-euc", text], cwd=tmp_path, stdin=subprocess.DEVNULL,
                                  stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=120,
                                  env={"PATH": os.environ["PATH"], "PGPORT": str(server.port),
                                       "PGPASSWORD": "boss", "DB": "127.0.0.1", "DBNAME": "llm"})
            assert done.returncode == 0 and b"ERROR" not in done.stdout, done.stdout.decode()
            return done.stdout.decode()

        server.ask("postgres", "CREATE DATABASE llm")
        for statement in block(2, "sql").replace("'..'", "'boss'").split(";"):
            if statement.strip():
                server.ask("postgres", statement)
        done = tranche("migrate", "--db", server.url("llm", "tranche_admin", "127.0.0.1"),
                       "--db-password-file", tmp_path / "owner")
        assert done.returncode == 0, done.stderr.decode()
        shell(block(5, "sh")[block(5, "sh").index("psql "):])
        done = tranche("run", "--engine", "sim", "--db", server.url("llm", "tranche_pod", "127.0.0.1"),
                       "--db-password-file", secrets / "password", jobs)
        assert done.returncode == 0, done.stderr.decode()
        done = tranche("status", "--db", server.url("llm", "tranche_desk", "127.0.0.1"),
                       "--db-password-file", desk / "password")
        assert done.returncode == 0 and b" 20" in done.stdout, done.stderr.decode()
        count = next(line for line in block(6, "sh").split("\n") if line.startswith("psql "))
        assert re.search(r"ok\s*\|\s*20", shell(count))
