"""The operator's commands on real servers: status, and what they do to queues and databases."""
import json
import os
import re
import sqlite3
import subprocess
import time

import pytest
from confluent_kafka import Consumer, TopicPartition

import redis_server


class Desk:
    """One test's database, queues and calls."""

    def __init__(self, binary, folder, name):
        self.binary, self.folder, self.name = binary, folder, name
        self.queue = None

    def call(self, *args, code=0, stdin=""):
        env = {k: v for k, v in os.environ.items() if not k.startswith("TRANCHE_")}
        done = subprocess.run([self.binary, *map(str, args)], input=stdin.encode(), env=env,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=120,
                              cwd=self.folder)
        assert done.returncode == code, (args, done.returncode, done.stderr.decode()[-3000:])
        self.err = done.stderr.decode()
        return done.stdout.decode()

    def json(self, *args):
        return json.loads(self.call(*args, "--json"))

    def submit(self, lines, batch="b", *options):
        path = self.folder / f"{batch}.jsonl"
        path.write_text("".join(line + "\n" for line in lines))
        return self.call("submit", "--source", self.queue, *options, path)

    def work(self, *options, code=0):
        return self.call("worker", "--engine", "sim", "--source", self.queue, "--db", self.db,
                         "--flush-interval", "100ms", "--progress", "off", "--idle-exit", "300ms",
                         *options, code=code)


class SqliteDesk(Desk):
    def __init__(self, *args):
        super().__init__(*args)
        self.db = self.owner = f"{self.folder}/rows.db"
        self.call("run", "--engine", "sim", "--db", self.db, "--batch", "none", "-")

    def ask(self, query):
        with sqlite3.connect(self.db, timeout=10) as db:
            return db.execute(query).fetchall()


class PostgresDesk(Desk):
    """Works and asks as the roles that docs/postgres.md gives to whom."""

    def __init__(self, server, *args):
        super().__init__(*args)
        self.server, self.database = server, self.name
        server.ask("postgres", f'CREATE DATABASE "{self.database}"')
        self.call("migrate", "--db", server.url(self.database))
        for user, roles in (("pod", "tranche_worker"), ("desk", "tranche_redrive"),
                            ("keeper", "tranche_owner")):
            if not server.ask("postgres", "SELECT 1 FROM pg_roles WHERE rolname=%s", user):
                server.ask("postgres", f"CREATE ROLE {user} LOGIN IN ROLE {roles}")
        self.pod, self.db = server.url(self.database, "pod"), server.url(self.database, "desk")
        self.owner = server.url(self.database, "keeper")

    def work(self, *options, code=0):
        return super().work("--db", self.pod, *options, code=code)

    def ask(self, query):
        return self.server.ask(self.database, f"SET search_path=tranche; {query}")


@pytest.fixture(params=["sqlite", "postgres"])
def desk(request, binary, tmp_path):
    name = re.sub(r"\W+", "_", request.node.name)[-60:].strip("_")
    if request.param == "sqlite":
        return SqliteDesk(binary, tmp_path, name)
    return PostgresDesk(request.getfixturevalue("postgres"), binary, tmp_path, name)


def on_redis(desk, redis):
    desk.queue = redis.url(desk.name)
    desk.call("init", "--source", desk.queue)
    return desk


def on_kafka(desk, broker, partitions=3):
    desk.queue = f"kafka://{broker.address}/{desk.name}"
    desk.call("init", "--source", desk.queue, "--partitions", partitions)
    return desk


def jobs(n, first=0, **more):
    return [json.dumps({"id": f"job-{i}", "prompt": f"hello {i}", "max_tokens": 8, **more})
            for i in range(first, first + n)]


# ---- submit --db, status ----

def test_status_follows_a_batch(desk, redis):
    on_redis(desk, redis)
    assert desk.submit(jobs(30), "b", "--db", desk.db).startswith("submitted batch=b jobs=30")
    before = desk.json("status", "--db", desk.db, "--source", desk.queue, "b")
    assert [(b["batch_id"], b["total"], b["rows"], b["ok"]) for b in before["batches"]] == \
        [("b", 30, 0, 0)]
    assert before["source"]["lag"] == 30 and before["source"]["pending"] == 0
    desk.work()
    after = desk.json("status", "--db", desk.db, "--source", desk.queue, "b")
    batch = after["batches"][0]
    assert (batch["total"], batch["rows"], batch["ok"], batch["dead"]) == (30, 30, 30, 0)
    assert batch["rows_per_s"] > 0 and batch["seconds_left"] == 0
    assert batch["created_at"] <= batch["updated_at"]
    assert after["source"]["lag"] == 0 and after["in_flight"]["jobs"] == 0
    desk.submit(jobs(30), "b", "--db", desk.db)
    assert desk.json("status", "--db", desk.db, "b")["batches"][0]["total"] == 30, \
        "the same file again is the same batch"
    table = desk.call("status", "--db", desk.db, "--source", desk.queue)
    assert [w for w in table.split("\n") if w.startswith("main")][-1].split()[1:4] == \
        ["b", "30", "30"]
    assert "group tranche: lag 30 pending 0" in table


def test_status_counts_failures_dead_letters_and_attempts(desk, redis):
    on_redis(desk, redis)
    other = json.dumps({"id": "job-1", "prompt": "another"})
    redis.client().xadd(desk.queue.rsplit("/", 1)[1], {"job": other})
    desk.submit([*jobs(4), json.dumps({"id": "x", "prompt": "p", "nonsense": 1})],
                desk.queue.rsplit("/", 1)[1])
    desk.work()
    desk.ask("INSERT INTO job_attempts (run, batch_id, custom_id, n, last_at) VALUES ('main', 'b', 'one', 3, '2026-01-31T12:00:00.000Z')")
    found = desk.json("status", "--db", desk.db)
    batch = found["batches"][-1]
    assert (batch["rows"], batch["ok"], batch["invalid"], batch["dead_letters"]) == (5, 4, 1, 1)
    assert batch["total"] is None and batch["seconds_left"] is None
    assert found["in_flight"] == {"jobs": 1, "most_starts": 3, "suspects": 1,
                                  "oldest_at": "2026-01-31T12:00:00.000Z"}
    assert found["dead_letters"] == {"all": 1, "redriven": 0, "copied": 0}
    assert desk.json("status", "--db", desk.db, "--run", "blue")["batches"] == []


def test_status_of_a_kafka_group(desk, broker):
    on_kafka(desk, broker)
    desk.submit(jobs(20), "b")
    assert desk.json("status", "--db", desk.db, "--source", desk.queue)["source"]["lag"] == 20
    desk.work()
    source = desk.json("status", "--db", desk.db, "--source", desk.queue)["source"]
    assert source == {"url": desk.queue, "group": "tranche", "lag": 0, "pending": 0}


def test_status_refuses_by_name(desk, redis, tmp_path):
    on_redis(desk, redis)
    desk.call("status", "--db", desk.db, "nosuch", code=64)
    assert 'no batch "nosuch"' in desk.err
    desk.call("status", "--db", tmp_path / "absent.db", code=69)
    assert "absent.db: cannot read" in desk.err
    sqlite3.connect(tmp_path / "other.db").execute("CREATE TABLE t (x)").connection.close()
    desk.call("status", "--db", tmp_path / "other.db", code=65)
    assert "not one of tranche's" in desk.err
    desk.call("status", "--db", desk.db, "--source", desk.queue + "x", code=65)
    assert "no such stream, or no group" in desk.err
    desk.call("status", "--db", "postgres://nobody@127.0.0.1:1/x", "--connect-timeout", "0s",
              code=69)


# ---- worker as a Job: --partition, --idle-exit, --run ----

def start(desk, *options, log=subprocess.DEVNULL):
    return subprocess.Popen([desk.binary, "worker", "--engine", "sim", "--source", desk.queue,
                             "--db", getattr(desk, "pod", desk.db), "--flush-interval", "100ms",
                             "--progress", "off", *map(str, options)], cwd=desk.folder,
                            stdout=subprocess.DEVNULL, stderr=log)


def lag(desk, *options):
    source = desk.json("status", "--db", desk.db, "--source", desk.queue, *options)["source"]
    return source["lag"] + source["pending"]


def rows(desk, where="true"):
    return desk.ask(f"SELECT count(*) FROM results WHERE {where}")[0][0]


def wait(condition, timeout_s=60):
    redis_server.wait_until(condition, timeout_s, 0.1)


def test_a_partition_ends_where_it_ended_at_the_start(desk, broker):
    """An Indexed Job: a pod a partition, side by side in one group; what comes later is left."""
    on_kafka(desk, broker)
    desk.submit(jobs(300), "b")
    workers = [start(desk, "--partition", p, "--sim-step", "10ms", "--slots", "8")
               for p in range(3)]
    wait(lambda: rows(desk) > 3)
    assert [w.poll() for w in workers] == [None] * 3
    desk.submit(jobs(90, first=300), "b")
    assert [w.wait(60) for w in workers] == [0, 0, 0]
    assert rows(desk) == 300 and lag(desk) == 90
    assert [w.wait(60) for w in [start(desk, "--partition", p) for p in range(3)]] == [0, 0, 0]
    assert rows(desk) == 390 and lag(desk) == 0
    assert [w.wait(60) for w in [start(desk, "--partition", 2)]] == [0], "nothing to do is 0 too"


def test_a_partition_that_cannot_be_read_is_no_success(desk, broker):
    on_kafka(desk, broker)
    desk.submit(jobs(30), "b")
    desk.ask("INSERT INTO partition_progress VALUES ('main', 'tranche', "
             f"'kafka:{desk.name}', 1, 1000, 0, '2026-01-31T12:00:00.000Z')")
    begin = time.monotonic()
    desk.work("--partition", "1", code=65)
    assert time.monotonic() - begin < 60 and "worker_died" not in desk.err
    assert "before the stored position 1000; `tranche seek` moves that" in desk.err
    desk.work("--partition", "3", code=64)
    assert "want 0 to 2" in desk.err


def test_only_kafka_has_partitions(desk, redis):
    on_redis(desk, redis)
    desk.work("--partition", "0", code=64)
    assert "a Redis stream has no partitions" in desk.err
    desk.queue = "file:///dev/null"
    desk.work("--partition", "0", code=64)
    assert "a file has no partitions" in desk.err


def test_idle_waits_for_what_another_worker_has(desk, redis):
    on_redis(desk, redis)
    desk.submit(jobs(20), "b")
    client, stream = redis.client(), desk.queue.rsplit("/", 1)[1]
    [[_, [(entry, _)]]] = client.xreadgroup("tranche", "another", {stream: ">"}, count=1)
    worker = start(desk, "--idle-exit", "200ms")
    wait(lambda: rows(desk) == 19)
    with pytest.raises(subprocess.TimeoutExpired):
        worker.wait(3)
    client.xack(stream, "tranche", entry)
    assert worker.wait(60) == 0 and lag(desk) == 0


def test_the_first_to_leave_a_topic_leaves_nothing(desk, broker):
    on_kafka(desk, broker)
    desk.submit(jobs(60), "b")
    workers = [start(desk, "--idle-exit", "200ms", "--sim-step", s, "--slots", "4")
               for s in ("1ms", "30ms")]
    wait(lambda: any(w.poll() is not None for w in workers))
    assert lag(desk) == 0
    assert [w.wait(60) for w in workers] == [0, 0] and rows(desk) == 60


@pytest.mark.parametrize("on", ["redis", "kafka"])
def test_two_runs_side_by_side(desk, on, request):
    server = request.getfixturevalue("redis" if on == "redis" else "broker")
    (on_redis if on == "redis" else on_kafka)(desk, server)
    desk.call("init", "--source", desk.queue, "--group", "blue")
    desk.submit(jobs(50), "b")
    desk.work()
    desk.work("--run", "blue", "--group", "blue")
    assert rows(desk, "run='main'") == rows(desk, "run='blue'") == 50
    assert lag(desk, "--group", "blue") == lag(desk) == 0
    counts = {b["run"]: b["ok"] for b in desk.json("status", "--db", desk.db, "b")["batches"]}
    assert counts == {"main": 50, "blue": 50}


# ---- cancel ----

def test_cancelled_jobs_get_rows_that_say_so(desk, redis):
    on_redis(desk, redis)
    desk.submit(jobs(10), "b", "--db", desk.db)
    out = desk.call("cancel", "--db", desk.db, "--reason", "a slip", "b", "job-1", "job-2")
    assert out == "cancelled batch=b run=main asked=2 changed=2 rows_already=0\n"
    out = desk.call("cancel", "--db", desk.db, "b", "--ids", "-", stdin="job-2\njob-3\n")
    assert "asked=2 changed=1" in out
    out = desk.call("cancel", "--db", desk.db, "--undo", "b", "job-3")
    assert out == "taken_back batch=b run=main asked=1 changed=1 rows_already=0\n"
    assert desk.json("status", "--db", desk.db)["cancellations"] == 2
    desk.work()
    assert rows(desk, "status='ok'") == 8
    assert sorted(desk.ask("SELECT custom_id FROM results WHERE status='cancelled'")) == \
        [("job-1",), ("job-2",)]
    assert "rows_already=1" in desk.call("cancel", "--db", desk.db, "b", "job-5")
    assert rows(desk, "status='ok'") == 8, "a row never changes"


def test_a_whole_batch_is_cancelled_before_it_comes(desk, redis):
    on_redis(desk, redis)
    desk.call("cancel", "--db", desk.db, "b")
    assert 'knows no batch "b" of run "main" yet' in desk.err
    desk.submit(jobs(5), "b")
    desk.submit(jobs(5), "other")
    desk.work()
    assert rows(desk, "status='cancelled' AND batch_id='b'") == 5
    assert rows(desk, "status='ok' AND batch_id='other'") == 5
    desk.call("cancel", "--db", desk.db, code=64)
    assert "want a batch" in desk.err


# ---- dead letters ----

def conflict(desk, n=3):
    """n dead letters: messages whose ids belong to other payloads, sent without a batch."""
    lines = [json.dumps({"id": f"job-{i}", "prompt": f"another {i}", "top_p": 0.3,
                         "max_tokens": 4, "seed": 2 ** 60 + 1}) for i in range(n)]
    desk.submit(jobs(4), "b")
    desk.work()
    desk.submit(lines, "c", "--batch", "b")
    desk.work()
    assert rows(desk) == 4


def test_dead_letters_are_listed_and_shown(desk, redis):
    on_redis(desk, redis)
    conflict(desk)
    letters = desk.json("dlq", "list", "--db", desk.db)
    assert sorted(i["custom_id"] for i in letters) == ["job-0", "job-1", "job-2"]
    assert {(i["reason"], i["batch_id"], i["run"], i["redriven_at"]) for i in letters} == \
        {("id_conflict", "b", "main", None)}
    key = next(i["source_key"] for i in letters if i["custom_id"] == "job-1")
    one = desk.json("dlq", "list", "--db", desk.db, "--filter", "id=job-1,reason=id_conflict")
    assert [i["source_key"] for i in one] == [key]
    assert desk.json("dlq", "list", "--db", desk.db, "--filter", "reason=crashed") == []
    assert len(desk.json("dlq", "list", "--db", desk.db, "--limit", "2")) == 2
    table = desk.call("dlq", "list", "--db", desk.db)
    assert table.count("id_conflict") == 3 and table.startswith("key ")
    shown = desk.json("dlq", "show", key, "--db", desk.db)
    assert json.loads(shown["payload"])["prompt"] == "another 1"
    text = desk.call("dlq", "show", key, "--db", desk.db)
    assert f"source_key  {key}\n" in text and '"prompt": "another 1"' in text


def test_redrive_gives_each_letter_a_row_in_a_run_of_its_own(desk, redis):
    on_redis(desk, redis)
    conflict(desk)
    dry = desk.call("dlq", "redrive", "--db", desk.db, "--dry-run", "--filter", "id=job-1")
    assert dry.endswith("would_send=1 stay=0\n") and "as run=main~1 batch=b id=job-1" in dry
    assert lag(desk) == 0
    send = ("dlq", "redrive", "--db", desk.db, "--source", desk.queue)
    assert desk.call(*send) == "sent=3 stay=0\n"
    assert desk.call(*send) == "sent=0 stay=0\n", "a letter is sent again once"
    for state in ("redriven", "any"):
        desk.call(*send, "--filter", f"state={state}", code=64)
        assert f'want open, the letters that it sends, found "{state}"' in desk.err
    assert desk.call(*send, "--filter", "state=open") == "sent=0 stay=0\n"
    desk.work()
    assert rows(desk, "run='main'") == 4
    assert rows(desk, "run='main~1' AND batch_id='b' AND status='ok'") == 3
    request = desk.ask("SELECT request, seed FROM results WHERE run='main~1' AND "
                       "custom_id='job-1'")[0]
    assert json.loads(request[0]) == {"prompt": "another 1", "top_p": 0.3, "max_tokens": 4,
                                      "seed": 2 ** 60 + 1}
    state = desk.json("status", "--db", desk.db)["dead_letters"]
    assert (state["all"], state["redriven"]) == (3, 3)


def test_redrive_keeps_an_id_and_a_deadline_from_beside_the_message(desk, broker):
    """Each becomes a row in main~1 that joins to the input, however often it is sent."""
    on_kafka(desk, broker, partitions=1)
    poison = {"max_tokens": 4, "prompt": "bad \u0001"}
    produce(desk, [(json.dumps(poison), {}), (json.dumps(poison), {
        "tranche-job-id": "by-header", "tranche-deadline": "2100-01-01T00:00:00Z"})], broker)
    desk.work("--sim-poison-id", "1", "--partition", "0")  # the dead stay in no group
    names = [f"{desk.name}/0/0", "by-header"]
    assert [row[:2] for row in stored(desk)] == sorted((name, "dead") for name in names)
    past = desk.ask("SELECT source FROM dead_letters WHERE custom_id='by-header'")[0][0]
    assert "2100" in past
    desk.ask("UPDATE dead_letters SET source=replace(source, '2100', '2000')")
    send = ("dlq", "redrive", "--db", desk.db, "--source", desk.queue)
    assert desk.call(*send) == "sent=2 stay=0\n"
    desk.ask("UPDATE dead_letters SET redriven_at=NULL")  # as a crash before the mark leaves it
    assert desk.call(*send) == "sent=2 stay=0\n"
    desk.work()
    assert [row[:2] for row in stored(desk, "main~1")] == \
        sorted(zip(names, ("ok", "expired")))


def test_redrive_ends_after_three_times(desk, redis):
    on_redis(desk, redis)
    conflict(desk, 1)
    columns = "source_key, run, batch_id, custom_id, reason, payload, sha256, attempts, " \
              "first_seen, last_seen"
    for run, payload in (("main~2", "payload"), ("main~3", "payload"), ("torn", "NULL")):
        desk.ask(f"INSERT INTO dead_letters ({columns}) SELECT '{run}/x', '{run}', 'b', 'x', "
                 f"'crashed', {payload}, sha256, 5, first_seen, last_seen FROM dead_letters "
                 "WHERE run='main'")
    assert desk.call("dlq", "redrive", "--db", desk.db, "--source", desk.queue) == \
        "sent=2 stay=2\n"
    assert "main~3/x stays: it was sent again 3 times; want at most 3" in desk.err
    assert "torn/x stays: its payload was not kept" in desk.err
    desk.work()
    assert rows(desk, "run='main~3'") == 1


def test_redrive_takes_the_longest_key(desk, redis):
    """Run, batch and origin as long as they may be. It stayed from 1,200 bytes on."""
    run, batch, stream = "r" * 510, "b" * 512, desk.name.ljust(200, "s")  # "~1" comes behind the run
    desk.queue = redis.url(stream)
    desk.call("init", "--source", desk.queue)
    for prompt in ("one", "another"):
        desk.submit([json.dumps({"id": "job", "prompt": prompt})], prompt, "--batch", batch)
    desk.work("--run", run)
    letter, = desk.json("dlq", "list", "--db", desk.db)
    assert len(letter["source_key"]) > 510 + 512 + 200
    assert desk.call("dlq", "redrive", "--db", desk.db, "--source", desk.queue) == \
        "sent=1 stay=0\n", desk.err
    assert desk.ask("SELECT count(*) FROM dead_letters WHERE redriven_at IS NULL") == [(0,)]
    desk.work("--run", run)
    assert rows(desk, f"run='{run}~1' AND batch_id='{batch}' AND status='ok'") == 1


def test_dlq_refuses_by_name(desk, redis):
    on_redis(desk, redis)
    for args, words in [(["dlq"], "want one of list, show, redrive"),
                        (["dlq", "lst"], '"lst"'),
                        (["dlq", "show"], "want one key"),
                        (["dlq", "show", "nosuch"], 'no dead letter "nosuch"'),
                        (["dlq", "redrive"], "want --source"),
                        (["dlq", "list", "--filter", "colour=red"], '"colour=red"'),
                        (["dlq", "list", "--filter", "state=shut"], "any, open, redriven")]:
        desk.call(*args, "--db", desk.db, code=64)
        assert words in desk.err


# ---- prune ----

def test_prune_removes_by_age_in_pieces(desk, redis):
    on_redis(desk, redis)
    conflict(desk)
    desk.submit(jobs(20, first=100), "young")
    desk.work()
    old = "2020-01-31T12:00:00.000Z"
    desk.ask(f"UPDATE results SET finished_at='{old}' WHERE batch_id='b'")
    desk.ask(f"UPDATE dead_letters SET last_seen='{old}' WHERE custom_id<>'job-0'")
    desk.ask("INSERT INTO job_attempts (run, batch_id, custom_id, n, last_at) VALUES "
             f"('main', 'b', 'one', 1, '{old}'), ('main', 'b', 'two', 1, '2100-01-01T00:00:00Z')")
    command = ("prune", "--db", desk.owner, "--older-than", "30d", "--chunk-rows", "1")
    if isinstance(desk, PostgresDesk):  # only there can a copy to a queue be owed
        letters = ("prune", "--db", desk.owner, "--older-than", "30d", "--tables", "dead_letters")
        for dry in (["--dry-run"], []):
            assert desk.call(*letters, *dry).endswith(" dead_letters=0 uncopied_kept=2\n")
        desk.ask("UPDATE dead_letters SET copied_at=now() WHERE custom_id='job-1'")
        command += ("--uncopied",)
    counts = "results=4 dead_letters=2 parked=0 attempts=1\n"
    assert desk.call(*command, "--dry-run").endswith(counts)
    assert rows(desk) == 24
    assert desk.call(*command).endswith(counts)
    assert rows(desk) == rows(desk, "batch_id='young'") == 20
    assert desk.ask("SELECT custom_id FROM dead_letters") == [("job-0",)]
    assert desk.ask("SELECT custom_id FROM job_attempts") == [("two",)]
    assert desk.call(*command).endswith("results=0 dead_letters=0 parked=0 attempts=0\n")
    out = desk.call("prune", "--db", desk.owner, "--older-than", "0s", "--tables", "results",
                    "--batch", "nosuch")
    assert out.endswith("results=0\n") and rows(desk) == 20
    for args, words in [([], "want --older-than"),
                        (["--older-than", "1d", "--tables", "batches"], '"batches"')]:
        desk.call("prune", "--db", desk.owner, *args, code=64)
        assert words in desk.err
    if isinstance(desk, PostgresDesk):
        desk.call("prune", "--db", desk.pod, "--older-than", "1d", code=65)
        assert "permission denied" in desk.err


# ---- seek ----

def test_seek_moves_what_the_next_worker_reads(desk, broker):
    on_kafka(desk, broker, partitions=1)
    desk.submit(jobs(40), "b")
    desk.work()
    desk.submit(jobs(60, first=40), "b")
    seek = ("seek", "--db", desk.db, "--source", desk.queue, "--to")
    plan = desk.call(*seek, "end", "--dry-run").split("\n")
    assert plan[1].split() == ["0", "0", "100", "40", "40", "100"] and plan[2] == \
        "nothing was moved"
    assert lag(desk) == 60
    assert desk.call(*seek, "70").endswith("moved\n")
    assert lag(desk) == 30
    desk.work()
    assert rows(desk) == 70 and lag(desk) == 0
    desk.call(*seek, "earliest", "--partition", "0")
    assert lag(desk) == 100
    desk.work()
    assert rows(desk) == 100 and lag(desk) == 0
    desk.call(*seek, "2020-01-01T00:00:00Z")
    assert lag(desk) == 100
    desk.call(*seek, "2100-01-01T00:00:00Z")
    assert lag(desk) == 0


def test_seek_refuses_by_name(desk, broker, redis):
    on_kafka(desk, broker)
    desk.submit(jobs(30), "b")
    seek = ("seek", "--db", desk.db, "--source", desk.queue)
    for args, words in [([], "want --to"), (["--to", "noon"], '"noon"'),
                        (["--to", "1000"], "found 1000"),
                        (["--to", "end", "--partition", "3"], "want 0 to 2"),
                        (["--to", "2026-02-30"], '"2026-02-30"')]:
        desk.call(*seek, *args, code=64)
        assert words in desk.err
    worker = start(desk, "--sim-step", "100ms", "--slots", "1", "--grace", "0s")
    try:
        wait(lambda: rows(desk) > 0)
        desk.call(*seek, "--to", "end", code=65)
        assert "running workers: stop them first" in desk.err
        assert "moved" not in desk.call(*seek, "--to", "end", "--dry-run").split("\n")
    finally:
        worker.terminate()  # a killed one would stay in the group for its session
        worker.wait(60)
    on_redis(desk, redis)
    desk.call("seek", "--db", desk.db, "--source", desk.queue, "--to", "end", code=64)
    assert "XGROUP SETID" in desk.err


def test_seek_is_refused_while_one_partition_is_read(desk, broker):
    """The broker knows nothing of a worker with --partition, whose next commit would undo it."""
    on_kafka(desk, broker, partitions=2)
    desk.submit(jobs(60), "b")
    seek = ("seek", "--db", desk.db, "--source", desk.queue, "--to", "end")
    worker = start(desk, "--partition", "0", "--sim-step", "200ms", "--slots", "1", "--grace", "0s")
    try:
        wait(lambda: rows(desk) > 0)
        desk.call(*seek, code=65)
        assert "a worker with --partition 0 is at work: stop it first" in desk.err
        assert desk.call(*seek, "--dry-run").endswith("nothing was moved\n")
        desk.call(*seek, "--partition", "1")
    finally:
        worker.terminate()
        worker.wait(60)
    assert desk.call(*seek).endswith("moved\n"), "one that left is forgotten at once"
    assert lag(desk) == 0
    before = rows(desk)
    desk.work("--partition", "0")
    assert rows(desk) == before


def test_a_worker_with_a_long_job_is_not_forgotten(binary, tmp_path, broker):
    """It commits nothing for minutes, and still says that it lives."""
    desk = on_kafka(SqliteDesk(binary, tmp_path, "signs"), broker, partitions=1)
    desk.submit(jobs(1), "b")
    worker = start(desk, "--partition", "0", "--sim-step", "60s", "--grace", "0s")
    try:
        wait(lambda: desk.ask("SELECT count(*) FROM job_attempts") == [(1,)])
        time.sleep(3)  # what it commits when it starts
        desk.call("seek", "--db", desk.db, "--source", desk.queue, "--to", "end", code=65)
        assert "seek_waits" in desk.err and "--partition 0 is at work" in desk.err
        assert rows(desk) == 0
    finally:
        worker.kill()
        worker.wait(60)


def test_a_group_that_was_reset_is_left_there(binary, tmp_path, broker):
    """By another tool, beside a worker with --partition: its next commit undid that."""
    desk = on_kafka(SqliteDesk(binary, tmp_path, "reset"), broker, partitions=1)
    desk.submit(jobs(200), "b")
    with open(tmp_path / "log", "wb") as log:
        worker = start(desk, "--partition", "0", "--sim-step", "50ms", "--slots", "1", "--grace",
                       "0s", log=log)
    try:
        wait(lambda: lag(desk) < 200)
        group = Consumer({"bootstrap.servers": broker.address, "group.id": "tranche"})
        group.commit(offsets=[TopicPartition("reset", 0, 0)], asynchronous=False)
        group.close()
        wait(lambda: "event=offset_moved" in (tmp_path / "log").read_text())
        more = rows(desk) + 4
        wait(lambda: rows(desk) >= more)
        assert lag(desk) == 200
    finally:
        worker.terminate()
        worker.wait(60)
    assert lag(desk) == 200 and "commit_refused" not in (tmp_path / "log").read_text()
    desk.work("--partition", "0")
    assert rows(desk) == 200 and lag(desk) == 0, "the next one starts where the database says"


def test_one_partition_is_done_without_lag_beside_a_group_that_leaves(binary, tmp_path, broker,
                                                                      postgres):
    """Scaled to zero, it still commits what it had in hand behind the first look of --partition."""
    desk = on_kafka(PostgresDesk(postgres, binary, tmp_path, "leaves"), broker, partitions=1)
    desk.submit(jobs(100), "b")
    slowly = ("--sim-step", "20ms", "--slots", "1")
    member = start(desk, *slowly)
    wait(lambda: lag(desk) < 100)
    with open(tmp_path / "log", "wb") as log:
        one = start(desk, "--partition", "0", *slowly, log=log)
    try:
        wait(lambda: "event=partition_start" in (tmp_path / "log").read_text())
        more, before = rows(desk) + 8, lag(desk)
        wait(lambda: rows(desk) >= more)
        member.terminate()
        member.wait(60)
        assert 0 < lag(desk) < before
        assert one.wait(120) == 0 and rows(desk) == 100 and lag(desk) == 0
    finally:
        for worker in (member, one):
            worker.kill()
            worker.wait(60)


# ---- audit ----

@pytest.mark.parametrize("on", ["redis", "kafka"])
def test_audit_finds_and_requeues_what_a_restore_lost(desk, on, request):
    server = request.getfixturevalue("redis" if on == "redis" else "broker")
    (on_redis if on == "redis" else on_kafka)(desk, server)
    desk.submit([*jobs(300), "{}".replace("}", '"id": "bad", "nonsense": 1}')], "b")
    desk.work()
    audit = ("audit", "--db", desk.db, "--source", desk.queue)
    assert desk.call(*audit) == \
        "audited messages=301 present=301 passed_over=0 conflicts=0 missing=0 requeued=0\n"
    desk.ask("DELETE FROM results WHERE custom_id IN ('job-7', 'job-299', 'bad')")
    desk.submit(jobs(5, first=1000), "b")  # not acknowledged yet: nobody misses them
    out = desk.call(*audit, code=3)
    assert out.endswith("audited messages=301 present=298 passed_over=0 conflicts=0 missing=3 requeued=0\n")
    assert {line.split("id=")[1] for line in out.split("\n") if line.startswith("missing")} == \
        {"job-7", "job-299", "bad"}
    assert desk.call(*audit, "--limit", "1", code=3).count("batch=b") == 1
    assert "messages=0" in desk.call(*audit, "--range", "..2020-01-01")
    # A topic's offsets may be asked for beyond what is acknowledged.
    assert f"missing={8 if on == 'kafka' else 3}" in desk.call(
        *audit, "--range", "2020-01-01..2100-01-01T00:00:00Z", code=3)
    assert lag(desk) == 5
    assert desk.call(*audit, "--requeue").endswith("missing=3 requeued=3\n")
    desk.work()
    assert rows(desk) == 306 and lag(desk) == 0
    assert "missing=0" in desk.call(*audit)


def produce(desk, messages, server):
    """[(value, headers)], by another client than ours."""
    name = desk.queue.rsplit("/", 1)[1]
    if desk.queue.startswith("redis"):
        for value, _ in messages:
            server.client().xadd(name, {"job": value})
        return
    from confluent_kafka import Producer
    producer = Producer({"bootstrap.servers": server.address})
    for value, headers in messages:
        producer.produce(name, value, headers=[(k, v.encode()) for k, v in headers.items()])
    assert producer.flush(30) == 0


def stored(desk, run="main"):
    return sorted(tuple(row) for row in desk.ask(
        f"SELECT custom_id, status, request FROM results WHERE run='{run}'"))


NAMELESS = [
    (json.dumps({"prompt": "no name", "max_tokens": 4, "top_p": 0.1}), {}),
    (json.dumps({"method": "POST", "url": "/v1/completions",
                 "body": {"prompt": "a line", "max_tokens": 4}}), {"tranche-job-id": "by-header"}),
    (json.dumps({"prompt": "late", "max_tokens": 4}),
     {"tranche-job-id": "late", "tranche-deadline": "1600000000"}),
    ("no JSON", {"tranche-job-id": "no-json"}), ("no name, no JSON", {}),
    (json.dumps({"id": 5, "prompt": "a bad id"}), {}),
]


@pytest.mark.parametrize("on", ["redis", "kafka"])
def test_audit_sends_again_under_the_same_id(desk, on, request):
    """The id of such a message was its place, or a header's; it must not become another job."""
    server = request.getfixturevalue("redis" if on == "redis" else "broker")
    if on == "redis":  # a stream's entry has no headers: an id is in the message, or its place is it
        on_redis(desk, server)
        produce(desk, [m for m in NAMELESS if not m[1]], server)
    else:
        on_kafka(desk, server, partitions=1)
        produce(desk, NAMELESS, server)
    desk.work()
    before = stored(desk)
    assert len(before) == (3 if on == "redis" else 6)
    if on == "kafka":
        assert ("late", "expired") in [row[:2] for row in before]
    desk.ask("DELETE FROM results")
    audit = ("audit", "--db", desk.db, "--source", desk.queue)
    if on == "kafka":
        assert desk.call(*audit, "--requeue").endswith("missing=6 requeued=6\n")
        desk.work()
        assert stored(desk) == before
        assert "present=12" in desk.call(*audit)
        return
    assert desk.call(*audit, "--requeue", code=3).endswith("missing=3 requeued=1\n")
    assert desk.err.count("is not sent again: ") == 2
    assert "it names no id, and has no body" in desk.err and "found integer" in desk.err
    desk.work()
    assert stored(desk) == [row for row in before if row[1] == "ok"] != []
    assert "present=2 passed_over=0 conflicts=0 missing=2" in desk.call(*audit, code=3)


def test_audit_refuses_by_name(desk, redis):
    on_redis(desk, redis)
    for args, words in [(["--range", "5"], "FROM..TO"), (["--range", "a..b"], '"a"')]:
        desk.call("audit", "--db", desk.db, "--source", desk.queue, *args, code=64)
        assert words in desk.err
    desk.call("audit", "--db", desk.db, code=64)
    assert "want --source" in desk.err
    desk.call("audit", "--db", "absent.db", "--source", desk.queue, code=69)
    assert not os.path.exists(desk.folder / "absent.db")


# ---- export, run --show ----

def exported(desk, *options):
    """Lines of both files, all finished at the same second."""
    text = desk.call("export", "--db", desk.db, *options)
    return [re.sub(r'"created":\d+', '"created":0', line) for line in text.splitlines()]


def test_export_is_the_same_from_both_databases(binary, postgres, tmp_path):
    desks = []
    for kind, more in ((SqliteDesk, ()), (PostgresDesk, (postgres,))):
        folder = tmp_path / kind.__name__
        folder.mkdir()
        desk = kind(*more, binary, folder, "export_same")
        (folder / "jobs.jsonl").write_text("".join(json.dumps(j) + "\n" for j in EXPORT_JOBS))
        out = desk.call("run", "--engine", "sim", "--show", 3, "--progress", "off", "--db",
                        desk.owner, folder / "jobs.jsonl")
        table = out[out.index("custom_id"):out.index("Next:")]
        desks.append((exported(desk, "--batch", "jobs"), table))
        assert 'v_failures"' in out and f"export --db '{desk.owner}' --batch jobs" in out
    assert desks[0] == desks[1]
    assert sum('"prompt_logprobs":[' in line for line in desks[0][0]) == 1
    assert [json.loads(line)["custom_id"] for line in desks[0][0]] == \
        ["z", "bad", "a", "plain", "a", "late"]
    desk.call("export", "--db", desk.db, "--batch", "nosuch", code=64)
    assert "want one of this run (jobs), got nosuch" in desk.err
    desk.call("export", "--db", desk.db, "--run", "blue", code=64)
    assert "run blue has no rows" in desk.err
    desk.call("run", "--engine", "sim", "--show", 3, "--progress", "off", "--db", desk.pod,
              folder / "jobs.jsonl")
    assert "--show" in desk.err and "permission denied" in desk.err, "a worker reads no texts"


EXPORT_JOBS = [
    {"id": "z", "messages": [{"role": "user", "content": "1"}], "logprobs": True, "n": 2,
     "max_tokens": 5},
    {"id": "bad", "prompt": "1", "temperature": 9},
    {"id": "a", "prompt": ["x", "y\u0000"], "logprobs": 1, "prompt_logprobs": 1, "max_tokens": 4},
    {"id": "plain", "prompt": "\"logprobs\":null,\"finish_reason\":", "max_tokens": 4},
    {"id": "a", "prompt": "other"},
    {"id": "late", "prompt": "x", "deadline": 1},
]


def test_export_tells_a_crashed_job_once(desk, redis):
    """It has a `dead` row and a dead letter; another request under its id is told as well."""
    on_redis(desk, redis)
    desk.submit([*jobs(10), json.dumps({"id": "p", "prompt": "bad \u0001", "max_tokens": 8})], "b")
    desk.work("--sim-poison-id", "1")
    assert [tuple(r) for r in desk.ask("SELECT custom_id, reason FROM dead_letters")] == \
        [("p", "crashed")]
    errors = desk.folder / "errors.jsonl"
    export = ("export", "--db", desk.db, "--batch", "b", "--output", "ok.jsonl", "--errors", errors)

    def told():
        desk.call(*export)
        assert len((desk.folder / "ok.jsonl").read_text().splitlines()) == 10
        lines = [json.loads(line) for line in errors.read_text().splitlines()]
        assert {i["custom_id"] for i in lines} == {"p"}
        return [(i["response"]["status_code"], i["response"]["body"]["error"]["code"])
                for i in lines]
    assert told() == [(500, "crashed")]
    desk.submit([json.dumps({"id": "p", "prompt": "another"})], "c", "--batch", "b")
    desk.work()
    assert told() == [(500, "crashed"), (400, "id_conflict")]


@pytest.mark.parametrize("on", ["redis", "kafka"])
def test_export_has_the_queues_order(desk, on, request):
    server = request.getfixturevalue("redis" if on == "redis" else "broker")
    if on == "redis":
        on_redis(desk, server)
    else:
        on_kafka(desk, server, partitions=1)
    lines = [json.dumps({"id": f"{(i * 7) % 300}", "prompt": "x", "max_tokens": 1 + i % 9})
             for i in range(300)]
    desk.submit(lines, "b")
    desk.work()
    assert [json.loads(line)["custom_id"] for line in exported(desk, "--batch", "b")] == \
        [json.loads(line)["id"] for line in lines]


# ---- submit ----

def test_submit_killed_goes_on_where_the_broker_confirmed(binary, tmp_path, redis):
    desk = on_redis(SqliteDesk(binary, tmp_path, "killed"), redis)
    path, n = desk.folder / "big.jsonl", 60000
    path.write_text("".join(line + "\n" for line in jobs(n)))
    command = [desk.binary, "submit", "--source", desk.queue, path]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    client, stream = redis.client(), desk.queue.rsplit("/", 1)[1]
    wait(lambda: client.xlen(stream) > 2000 or process.poll() is not None)
    process.kill()
    process.wait()
    sent = client.xlen(stream)
    out = desk.call("submit", "--source", desk.queue, path)
    assert out.startswith(f"submitted batch=big jobs={n} sent=")
    ids = [json.loads(fields["job"])["id"] for _, fields in client.xrange(stream)]
    assert len(set(ids)) == n and 0 < sent < n
    assert ids[-1] == f"job-{n - 1}" and not os.path.exists(f"{path}.submit")
    client.delete(stream)


def test_submit_reads_standard_input(desk, redis):
    on_redis(desk, redis)
    lines = "".join(line + "\n" for line in jobs(7))
    desk.call("submit", "--source", desk.queue, "-", stdin=lines, code=64)
    assert "--batch: want a name" in desk.err
    out = desk.call("submit", "--source", desk.queue, "--batch", "b", "-", "--db", desk.db,
                    stdin=lines)
    assert out == "submitted batch=b jobs=7 sent=7\n"
    desk.call("submit", "--source", desk.queue, "--batch", "b", "-", stdin=lines + "{", code=64)
    assert "standard input: job 8" in desk.err
    assert desk.json("status", "--db", desk.db, "--source", desk.queue)["source"]["lag"] == 7
    assert desk.json("status", "--db", desk.db, "b")["batches"][0]["total"] == 7


# ---- init ----

def test_init_beside_a_group_at_work(binary, tmp_path, broker):
    """Members of the group, if only of another topic, keep others from setting its offsets."""
    desk = on_kafka(SqliteDesk(binary, tmp_path, "at_work"), broker)
    desk.submit(jobs(30), "b")
    worker = start(desk, "--sim-step", "100ms", "--slots", "1", "--grace", "0s")
    try:
        wait(lambda: rows(desk) > 0)
        other = desk.queue + "-2"
        assert desk.call("init", "--source", other) == f"made {other} group=tranche\n"
        assert "offsets_left" in desk.err
    finally:
        worker.terminate()
        worker.wait(60)
    assert desk.call("init", "--source", other) == f"found {other} group=tranche\n"
    assert "offsets_left" not in desk.err
