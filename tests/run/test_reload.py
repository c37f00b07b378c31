"""--job-config: a directory as the kubelet mounts a ConfigMap, swapped under a running worker; what
rows say of it; jobs that keep the revision of their first start; revisions that are broken."""
import contextlib
import json
import os
import pathlib
import signal
import sqlite3
import subprocess
import time
import urllib.request

import pytest

import redis_server
from postgres_server import Server
from redis_server import free_port, wait_until

LATE = 90  # seconds that a busy machine may take


class Mount:
    """The kubelet's way: files in a folder of their own, `..data` renamed over, names as links."""

    def __init__(self, folder, **files):
        self.folder, self.swaps = folder, 0
        folder.mkdir()
        self.swap(**files)

    def swap(self, **files):
        """swap(system_txt="..."): underscores before the last part stand for dots there."""
        files = {name.replace("_txt", ".txt").replace("_json", ".json").replace("_jinja", ".jinja"):
                 text for name, text in files.items()}
        self.swaps += 1
        data = f"..2026_{self.swaps}"
        (self.folder / data).mkdir()
        for name, text in files.items():
            (self.folder / data / name).write_text(text)
        old = os.readlink(self.folder / "..data") if self.swaps > 1 else None
        os.symlink(data, self.folder / "..data_tmp")
        os.rename(self.folder / "..data_tmp", self.folder / "..data")
        for name in files:
            with contextlib.suppress(FileExistsError):
                os.symlink(f"..data/{name}", self.folder / name)
        if old:
            subprocess.run(["rm", "-rf", self.folder / old], check=True)


def events(folder, name):
    lines = (folder / "log").read_text(errors="replace").splitlines()
    found = [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]
    return [e for e in found if e["event"] == name]


def start(binary, folder, *args):
    with open(folder / "log", "ab") as log:
        return subprocess.Popen([binary, *map(str, args), "--log-format", "json", "--progress",
                                 "off"], cwd=folder, stdout=subprocess.DEVNULL, stderr=log,
                                start_new_session=True)


def end(process):
    """Parent and child, without a word."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(LATE)


class Sqlite:
    def __init__(self, folder):
        self.url = self.owner = folder / "rows.db"

    def ask(self, sql):
        with contextlib.closing(sqlite3.connect(self.url)) as db:
            found = db.execute(sql).fetchall()
            db.commit()
            return found


class Postgres:
    def __init__(self, server, name, tranche):
        self.server, self.name, self.owner = server, name, server.url(name)
        server.ask("postgres", f"CREATE DATABASE {name}")
        assert tranche("migrate", "--db", self.owner).returncode == 0
        server.ask("postgres", f"CREATE ROLE w{name} LOGIN IN ROLE tranche_worker")
        self.url = server.url(name, "w" + name)

    def ask(self, sql):
        return self.server.ask(self.name, "SET search_path = tranche; " + sql)


@pytest.fixture(scope="module")
def server():
    with Server() as made:
        yield made


@pytest.fixture(params=["sqlite", "postgres"])
def database(request, tranche, tmp_path):
    if request.param == "sqlite":
        return Sqlite(tmp_path)
    name = "d" + str(abs(hash(request.node.name)) % 10**9)
    return Postgres(request.getfixturevalue("server"), name, tranche)


def rows(database):
    """{id: (revision, max_tokens, prompt_tokens)}"""
    return {i: (r, json.loads(p)["max_tokens"], n) for i, r, p, n in database.ask(
        "SELECT custom_id, config_revision, params, prompt_tokens FROM results")}


def chat(i, **more):
    return json.dumps({"id": i, "messages": [{"role": "user", "content": "x"}], **more})


BARE = len("user: x\n")  # without a model folder a byte is a token


def test_a_swap_under_a_running_worker(binary, tranche, tmp_path):
    mount = Mount(tmp_path / "conf", defaults_json='{"max_tokens": 11}')
    redis = redis_server.Server(tmp_path / "redis")
    port = free_port()
    database = Sqlite(tmp_path)
    tell = lambda line: redis.client().xadd("jobs", {"job": line})
    metrics = lambda: urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read().decode()
    has = lambda row: wait_until(lambda: row in rows(database), LATE)
    try:
        assert tranche("init", "--source", redis.url()).returncode == 0
        worker = start(binary, tmp_path, "worker", "--engine", "sim", "--source", redis.url(),
                       "--db", database.url, "--job-config", mount.folder, "--flush-interval",
                       "50ms", "--http", f"127.0.0.1:{port}")
        tell(chat("a"))
        wait_until(lambda: database.url.exists() and events(tmp_path, "run_started"), LATE)
        has("a")
        mount.swap(defaults_json='{"max_tokens": 12}', system_txt="Be brief.\n")
        wait_until(lambda: events(tmp_path, "config_adopted"), LATE)
        tell(chat("b"))
        has("b")
        # Refused: the rows go on under what was there, and it is said once, with the reason.
        for k, broken in enumerate(({"defaults_json": '{"max_tokens": "many"}'},
                                    {"defaults_json": "{}", "system_tx": "?"}), 1):
            mount.swap(**broken)
            wait_until(lambda: len(events(tmp_path, "config_refused")) == k, LATE)
            assert 'tranche_config_refused 1' in metrics()
            tell(chat(f"c{k}"))
            has(f"c{k}")
        reasons = [e["error"] for e in events(tmp_path, "config_refused")]
        assert "max_tokens: want an integer, got string" in reasons[0]
        assert "system_tx: want defaults.json" in reasons[1]
        # Back to the first: its old name.
        mount.swap(defaults_json='{"max_tokens": 11}')
        wait_until(lambda: len(events(tmp_path, "config_adopted")) == 2, LATE)
        assert 'tranche_config_refused 0' in metrics()
        assert 'tranche_config_reloads_total{result="adopted"} 2' in metrics()
        assert 'tranche_config_reloads_total{result="refused"} 2' in metrics()
        tell(chat("d"))
        has("d")
        found = rows(database)
        first, second = found["a"][0], found["b"][0]
        assert f'config_revision="{first}"' in metrics()
        assert found == {"a": (first, 11, BARE), "d": (first, 11, BARE),
                         **{i: (second, 12, BARE + len("system: Be brief.\n"))
                            for i in ("b", "c1", "c2")}}
        kept = dict(database.ask("SELECT revision, content FROM config_revisions"))
        assert set(kept) == {first, second}
        assert json.loads(kept[second])["system"] == {"": "Be brief."}
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(LATE) in (0, 143)
    finally:
        end(worker)
        redis.stop()


def begin_and_leave(binary, folder, database, mount, how, *options):
    """A run whose one long job has begun; it is left `how`, and the directory changes."""
    (folder / "jobs.jsonl").write_text(chat("long", min_tokens=300) + "\n")
    command = ["run", "--engine", "sim", "--sim-tokens", "400", "--db", database.url,
               "--job-config", mount.folder, "--grace", "400ms", "--flush-interval", "50ms",
               *options, "jobs.jsonl"]
    process = start(binary, folder, *command, "--sim-step", "100ms")
    counted = lambda: database.ask("SELECT config_revision FROM job_attempts WHERE n > 0")
    wait_until(lambda: events(folder, "run_started") and counted(), LATE)
    first = counted()[0][0]
    if how == "kill":
        end(process)
    else:
        time.sleep(1)  # some tokens: ten steps
        process.send_signal(how)
        assert process.wait(LATE) == 143
    mount.swap(defaults_json='{"max_tokens": 600}', system_txt="Another.")
    with open(folder / "jobs.jsonl", "a") as f:
        f.write(chat("new") + "\n")
    return first, command


@pytest.mark.parametrize("how", ["kill", signal.SIGTERM])
def test_a_job_keeps_its_first_revision(binary, database, tmp_path, how):
    mount = Mount(tmp_path / "conf", defaults_json='{"max_tokens": 500}')
    first, command = begin_and_leave(binary, tmp_path, database, mount, how)
    assert start(binary, tmp_path, *command).wait(LATE) == 0
    found = rows(database)
    second = found["new"][0]
    assert first != second
    assert found == {"long": (first, 500, BARE),
                     "new": (second, 600, BARE + len("system: Another.\n"))}
    assert [(e["revision"], e["jobs"]) for e in events(tmp_path, "config_kept")] == [(first, 1)]
    assert not events(tmp_path, "parked_refused")
    if how != "kill":
        assert sum(e["resumed"] for e in events(tmp_path, "run_ended")) == 1
    assert database.ask("SELECT count(*) FROM job_attempts") == [(0,)]


def test_a_revision_that_is_not_kept(binary, tmp_path):
    """Its content gone, or of other flags: the job runs under today's, and its row says so."""
    database = Sqlite(tmp_path)
    mount = Mount(tmp_path / "conf", defaults_json='{"max_tokens": 500}')
    first, command = begin_and_leave(binary, tmp_path, database, mount, "kill")
    database.ask(f"DELETE FROM config_revisions WHERE revision = '{first}'")
    assert start(binary, tmp_path, *command).wait(LATE) == 0
    found = rows(database)
    assert found["long"][:2] == (found["new"][0], 600)
    assert [e["reason"] for e in events(tmp_path, "config_not_kept")] == ["absent"]
    other = tmp_path / "other"
    other.mkdir()
    database = Sqlite(other)
    first, command = begin_and_leave(binary, other, database, mount, "kill")
    assert start(binary, other, *command, "--plain-content").wait(LATE) == 0
    assert rows(database)["long"][0] == rows(database)["new"][0] != first
    assert [e["reason"] for e in events(other, "config_not_kept")] == ["base"]


def test_templates_of_a_model_folder(tranche, tiny_model, tmp_path):
    """In place of the folder's; the option's stands where the directory has none."""
    conf = tmp_path / "conf"
    conf.mkdir()
    (tmp_path / "option.jinja").write_text("{% for m in messages %}[{{ m.content }}]{% endfor %}")
    (tmp_path / "jobs.jsonl").write_text(chat("a", max_tokens=2) + "\n")
    tokens = []
    for k in range(3):
        if k == 2:
            (conf / "chat_template.jinja").write_text(
                "{% for m in messages %}<<<{{ m.role }} {{ m.content }}>>>{% endfor %}")
        done = tranche("run", "--model", tiny_model, "--db", f"{k}.db", "--job-config", conf,
                       *(["--chat-template", "option.jinja"] if k else []), "jobs.jsonl")
        assert done.returncode == 0, done.stderr.decode()
        with contextlib.closing(sqlite3.connect(tmp_path / f"{k}.db")) as db:
            tokens.append(db.execute("SELECT prompt_tokens, config_revision FROM results")
                          .fetchone())
    assert len({t[0] for t in tokens}) == 3 and len({t[1] for t in tokens}) == 3


@pytest.mark.parametrize("files, part", [
    ({"chat_template.jinja": "{% if %}"}, "chat_template.jinja: line 1"),
    ({"chat_template.jinja": "{{ raise_exception('no system here') }}"}, "no system here"),
    ({"defaults.json": '{"max_token": 1}'}, "do you mean max_tokens?"),
    ({"system.txt": "a" * 30000}, "fails under it"),
    ({}, "cannot read"),
])
def test_a_worker_does_not_start_on_a_broken_directory(tranche, tiny_model, tmp_path, files, part):
    conf = pathlib.Path(tmp_path / "conf")
    for name, text in files.items():
        conf.mkdir(exist_ok=True)
        (conf / name).write_text(text)
    (tmp_path / "jobs.jsonl").write_text(chat("a") + "\n")
    done = tranche("run", "--model", tiny_model, "--db", "o.db", "--job-config", conf, "jobs.jsonl")
    assert done.returncode == 64 and part in done.stderr.decode(), done.stderr.decode()
