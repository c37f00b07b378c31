"""Kafka to SQLite on a real broker: each id one row, no ack without a row, whatever dies."""
import json
import os
import random
import re
import signal
import sqlite3
import subprocess
import time

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewPartitions

from kafka_broker import Broker
from keda_reference import Gauge
from rows_db import change, set_position

# With a newer client library (drive.py's second round) the broker assigns, and it is the broker that
# says how long a silent member stays: kafka_broker.py tells it the same times.
CLASSIC = "session.timeout.ms = 1500\nheartbeat.interval.ms = 300\n"
NEWEST = os.environ.get("TRANCHE_TEST_KAFKA_CLIENT") == "newest"
FAST = "reconnect.backoff.max.ms = 500\n" + ("" if NEWEST else CLASSIC)


@pytest.fixture(scope="module")
def broker(tmp_path_factory):
    broker = Broker(tmp_path_factory.mktemp("kafka")).start()
    yield broker
    broker.kill()


class Queue:
    """One topic, one group, one database, and the workers of one test."""

    def __init__(self, binary, broker, folder, topic, init=True):
        self.binary, self.broker, self.folder, self.topic = binary, broker, folder, topic
        self.url = f"kafka://{broker.address}/{topic}"
        self.db = f"{folder}/rows.db"
        self.workers = []
        self.started = 0
        (folder / "client.conf").write_text(FAST)
        if init:
            self.call("init", "--source", self.url, "--partitions", 3)

    def call(self, *args, check=True, timeout=120):
        env = {k: v for k, v in os.environ.items() if not k.startswith("TRANCHE_")}
        done = subprocess.run([self.binary, *map(str, args)], stdout=subprocess.PIPE, env=env,
                              stderr=subprocess.PIPE, timeout=timeout, cwd=self.folder)
        assert not check or done.returncode == 0, done.stderr.decode()[-3000:]
        return done

    def submit(self, lines, name="jobs", *options):
        path = self.folder / f"{name}.jsonl"
        path.write_text("".join(line + "\n" for line in lines))
        return self.call("submit", "--source", self.url, *options, path)

    def work(self, *options):
        """Starts a worker; its log stands in worker-N.log."""
        self.started += 1
        with open(f"{self.folder}/worker-{self.started}.log", "wb") as log:
            args = [self.binary, "worker", "--engine=sim", "--source", self.url, "--db", self.db,
                    "--broker-config", f"{self.folder}/client.conf", "--flush-interval", "200ms",
                    "--progress", "off", *map(str, options)]
            worker = subprocess.Popen(args, stdout=log, stderr=log, cwd=self.folder)
        self.workers.append(worker)
        return worker

    def logs(self):
        return "".join(p.read_text() for p in sorted(self.folder.glob("worker-*.log")))

    def finish(self, *options, timeout=60):
        """A worker that ends when nothing is left."""
        worker = self.work("--idle-exit", "500ms", *options)
        assert worker.wait(timeout) == 0, self.logs()[-3000:]

    def rows(self, query, *values):
        db = sqlite3.connect(f"file:{self.db}?mode=ro", uri=True, timeout=10)
        try:
            return db.execute(query, values).fetchall()
        finally:
            db.close()

    def count(self):
        try:
            return self.rows("SELECT count(*) FROM results")[0][0]
        except sqlite3.OperationalError:
            return 0

    def wait_rows(self, n, timeout=60):
        until = time.monotonic() + timeout
        while self.count() < n:
            assert time.monotonic() < until, f"{self.count()} of {n} rows\n{self.logs()[-3000:]}"
            time.sleep(0.1)

    def lag(self, group="tranche"):
        """Messages that the group has not acknowledged; asks without becoming a member: one that
        leaves may commit."""
        client = Consumer({"bootstrap.servers": self.broker.address, "group.id": group})
        try:
            places = [TopicPartition(self.topic, p) for p in range(3)]
            lag = 0
            for place in client.committed(places, timeout=60):
                low, high = client.get_watermark_offsets(place, timeout=60)
                lag += high - max(place.offset, low)  # nothing committed: a negative offset
            return lag
        finally:
            client.close()

    def ends(self):
        out = subprocess.run(["kcat", "-b", self.broker.address, "-Q"] + sum(
            (["-t", f"{self.topic}:{p}:-1"] for p in range(3)), []), stdout=subprocess.PIPE,
            check=True, timeout=60).stdout.decode()
        ends = {int(p): int(o) for p, o in re.findall(r"\[(\d+)\] offset (\d+)", out)}
        return ends

    def close(self):
        for worker in self.workers:
            if worker.poll() is None:
                worker.kill()
            worker.wait()


@pytest.fixture
def queue(binary, broker, tmp_path, request):
    queue = Queue(binary, broker, tmp_path, re.sub(r"[^a-z0-9]+", "-", request.node.name)[:80])
    yield queue
    queue.close()


def jobs(n, first=0, tokens=8, **more):
    return [json.dumps({"id": f"job-{i}", "prompt": f"hello {i}", "max_tokens": tokens, **more})
            for i in range(first, first + n)]


def progress(queue):
    """Partitions of which nothing was read have no row."""
    return dict(queue.rows("SELECT partition, position FROM partition_progress WHERE position > 0"))


def assert_all(queue, n):
    """Each id exactly one row, and nothing left: progress stands at every partition's end."""
    ids = queue.rows("SELECT custom_id, status FROM results")
    assert sorted(i for i, _ in ids) == sorted(f"job-{i}" for i in range(n))
    assert {status for _, status in ids} == {"ok"}
    assert progress(queue) == {p: end for p, end in queue.ends().items() if end}
    assert queue.lag() == 0


def test_submit_work_and_nothing_left(queue):
    out = queue.submit(jobs(2000), "nightly").stdout.decode()
    assert out == "submitted batch=nightly jobs=2000 sent=2000\n"
    workers = [queue.work("--idle-exit", "500ms") for _ in range(2)]
    assert [w.wait(60) for w in workers] == [0, 0], queue.logs()
    assert_all(queue, 2000)
    assert queue.rows("SELECT DISTINCT batch_id FROM results") == [("nightly",)]
    queue.submit(jobs(2000), "nightly")
    queue.finish()
    assert queue.count() == 2000, "a second submission of the same jobs adds nothing"


def test_producer_of_somebody_else(queue):
    """kcat: no batch in the message, so the topic's own; key, header and coordinates in `source`."""
    queue.broker.produce(queue.topic, jobs(30), "-H", "traceparent=00-ab", "-k", "k\u00e9y")
    queue.finish()
    assert_all(queue, 30)
    rows = queue.rows("SELECT batch_id, source FROM results")
    assert {batch for batch, _ in rows} == {queue.topic}
    for _, source in rows:
        source = json.loads(source)
        assert source["key"] == "k\u00e9y" and source["headers"] == [["traceparent", "00-ab"]]
        assert source["position"] == source["offset"] + 1 and source["partition"] in (0, 1, 2)


def test_broken_messages_become_rows(queue):
    queue.broker.produce(queue.topic, ["{", "[1]", '{"id":"job-1"}', '{"id":"job-2","prompt":"x"}',
                                       '{"id":"job-2","prompt":"another"}', "\udcff".encode(
                                           "utf8", "surrogateescape").decode("latin1")], "-p", "0")
    queue.finish()
    statuses = queue.rows("SELECT status, count(*) FROM results GROUP BY 1 ORDER BY 1")
    assert statuses == [("invalid", 4), ("ok", 1)]
    assert queue.rows("SELECT custom_id, reason FROM dead_letters") == [("job-2", "id_conflict")]
    assert progress(queue)[0] == 6


def test_null_and_empty_messages_become_rows(queue):
    queue.broker.produce(queue.topic, ["key:"], "-K", ":", "-Z", "-p", "1")
    queue.finish()
    assert queue.rows("SELECT status FROM results") == [("invalid",)]


@pytest.mark.parametrize("seed", [1])
def test_kill_at_random_moments(queue, seed):
    """Two workers; twenty times one of them dies by SIGKILL; then the count."""
    chance = random.Random(seed)
    n = 4000
    queue.submit(jobs(n))
    slow = ["--sim-step", "20ms", "--slots", "8", "--claim-rows", "400"]
    workers = [queue.work(*slow) for _ in range(2)]
    kills = 0
    for _ in range(20):
        time.sleep(chance.uniform(0.1, 4))
        victim = chance.randrange(2)
        kills += workers[victim].poll() is None
        workers[victim].kill()
        workers[victim].wait()
        workers[victim] = queue.work(*slow)
    assert kills == 20, queue.logs()[-3000:]
    for worker in workers:
        worker.kill()
        worker.wait()
    # Whatever the group has acknowledged by now has its row: progress is written with the rows.
    before = queue.count()
    queue.finish(timeout=180)
    assert_all(queue, n)
    assert 0 < before < n, "the kills fell while work was being done"
    assert queue.rows("SELECT count(*) FROM job_attempts")[0][0] == 0


def test_rebalance_mid_run(queue):
    """A second worker joins and leaves in good order: no row is missing, none is doubled."""
    n = 3000
    queue.submit(jobs(n))
    slow = ["--sim-step", "5ms", "--slots", "8", "--claim-rows", "500"]
    first = queue.work(*slow)
    queue.wait_rows(200)
    second = queue.work(*slow)
    time.sleep(4)
    second.send_signal(signal.SIGTERM)
    assert second.wait(60) in (0, 143), queue.logs()
    first.send_signal(signal.SIGTERM)
    assert first.wait(60) in (0, 143), queue.logs()
    queue.finish()
    assert_all(queue, n)
    assert "flush_late" not in queue.logs()


def test_a_partition_that_came_back_is_read(queue):
    """Given back while it was paused for that, and taken again: the pause must not come with it."""
    queue.submit(jobs(10))
    first = queue.work()
    queue.wait_rows(10)
    second = queue.work()
    until = time.monotonic() + 60
    while "partitions_revoked" not in queue.logs():
        assert time.monotonic() < until, queue.logs()
        time.sleep(0.1)
    second.send_signal(signal.SIGTERM)
    assert second.wait(60) in (0, 143), queue.logs()
    queue.submit(jobs(50, first=10), "more")
    queue.wait_rows(60)
    assert first.poll() is None


def test_sigterm_commits_and_leaves_the_rest(queue):
    queue.submit(jobs(3000))
    worker = queue.work("--sim-step", "10ms", "--slots", "8", "--grace", "1s")
    queue.wait_rows(50)
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(30) == 143, queue.logs()
    rows = queue.count()
    assert 50 <= rows < 3000
    assert queue.rows("SELECT coalesce(sum(n), 0) FROM job_attempts") == [(0,)]
    queue.finish()
    assert_all(queue, 3000)


def test_one_partition_to_its_end(queue):
    queue.submit(jobs(600))
    ends = queue.ends()
    worker = queue.work("--partition", 1)
    assert worker.wait(60) == 0, queue.logs()
    assert queue.count() == ends[1]
    assert progress(queue) == {1: ends[1]}


def test_start_is_the_databases_not_the_groups(queue):
    """The database is set back: what its tail lacks is done again, though the group acknowledged it."""
    queue.submit(jobs(300))
    queue.finish()
    change(queue.db, "DELETE FROM results WHERE custom_id IN (SELECT custom_id FROM results "
                     "WHERE json_extract(source, '$.offset') >= 50)")
    set_position(queue.db, 50)
    queue.finish("--idle-exit", "3s")
    assert "progress_behind_group" in queue.logs()
    assert_all(queue, 300)


def test_a_partition_that_cannot_be_read_does_not_keep_an_idle_worker(queue):
    """The others are read to their ends first. Nothing of the refused one is read or acknowledged, and
    a seek to where it can be read mends it."""
    queue.submit(jobs(60))
    queue.finish()
    set_position(queue.db, "position + 1000", "partition = 0")
    for partition in range(3):
        queue.broker.produce(queue.topic, jobs(5, 60 + partition * 5), "-p", str(partition))
    worker = queue.work("--idle-exit", "500ms")
    assert worker.wait(60) == 65, queue.logs()[-3000:]
    assert "partition 0" in queue.logs() and "tranche seek" in queue.logs()
    assert queue.count() == 70 and queue.lag() == 5
    queue.call("seek", "--source", queue.url, "--db", queue.db, "--to", "earliest")
    queue.finish()
    assert_all(queue, 75)


def test_a_partition_that_cannot_be_read_does_not_hide_the_others(queue):
    """A topic made anew has one partition that is shorter than what was read of it: what is left of the
    others, and how near it is to its log's start, stays on the page."""
    for partition in range(3):
        queue.broker.produce(queue.topic, jobs(4 + partition, partition * 10), "-p", str(partition))
    queue.finish()
    set_position(queue.db, "position + 1000", "partition = 0")
    for partition in range(3):
        queue.broker.produce(queue.topic, jobs(5, 100 + partition * 10), "-p", str(partition))
    worker = queue.work("--http", "127.0.0.1:0", "--sim-step", "60s")
    gauge = Gauge(queue.logs)
    until = time.monotonic() + 60
    while (seen := (gauge.read(), gauge.read("source_retained_messages"))) != (10, 5):
        assert time.monotonic() < until and worker.poll() is None, (seen, queue.logs()[-3000:])
        time.sleep(0.2)
    assert "partition_refused" in queue.logs()


def grow(queue, partitions):
    admin = AdminClient({"bootstrap.servers": queue.broker.address})
    admin.create_partitions([NewPartitions(queue.topic, partitions)])[queue.topic].result(60)
    until = time.monotonic() + 60
    while len(admin.list_topics(queue.topic, timeout=60).topics[queue.topic].partitions) < partitions:
        assert time.monotonic() < until
        time.sleep(0.1)


def test_a_group_from_the_end_has_all_of_a_partition_that_came_later(queue):
    """A canary's pods run init, and a partition may be added while none is up."""
    begin = ("init", "--source", queue.url, "--group", "late", "--from-end")
    for partition in range(3):
        queue.broker.produce(queue.topic, jobs(2, partition * 2), "-p", str(partition))
    queue.call(*begin)
    grow(queue, 4)
    queue.broker.produce(queue.topic, jobs(3, 10), "-p", "3")
    queue.broker.produce(queue.topic, jobs(1, 20), "-p", "0")
    queue.call(*begin)
    queue.finish("--group", "late")
    ids = {"job-10", "job-11", "job-12", "job-20"}
    assert {i for i, in queue.rows("SELECT custom_id FROM results")} == ids
    # One that is new takes the end of every partition.
    queue.call("init", "--source", queue.url, "--group", "later", "--from-end")
    queue.finish("--group", "later", "--run", "later")
    assert queue.rows("SELECT count(*) FROM results WHERE run = 'later'") == [(0,)]


def test_a_restored_database_that_knew_only_the_start(queue):
    """Copied when the worker had its partitions and not one row, restored when all was acknowledged."""
    worker = queue.work()
    until = time.monotonic() + 60
    while not os.path.exists(queue.db) or len(queue.rows(
            "SELECT 1 FROM sqlite_schema WHERE name = 'partition_progress'")) == 0 or len(
            queue.rows("SELECT 1 FROM partition_progress")) < 3:
        assert time.monotonic() < until and worker.poll() is None, queue.logs()
        time.sleep(0.1)
    source, copy = sqlite3.connect(queue.db), sqlite3.connect(f"{queue.folder}/copy.db")
    source.backup(copy)
    source.close()
    copy.close()
    queue.submit(jobs(100))
    queue.wait_rows(100)
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(60) in (0, 143) and queue.lag() == 0
    for name in os.listdir(queue.folder):
        if name.startswith("rows.db"):
            os.remove(f"{queue.folder}/{name}")
    os.rename(f"{queue.folder}/copy.db", queue.db)
    queue.finish("--idle-exit", "3s")
    assert "progress_behind_group" in queue.logs()
    assert_all(queue, 100)


def test_what_expires_between_two_runs_is_on_record_whole(queue):
    """Of more partitions than were ever told at once, and again before any of them had a job."""
    n = 20
    grow(queue, n)
    queue.finish()
    assert queue.rows("SELECT count(*) FROM partition_progress WHERE position = 0") == [(n,)]
    everything = queue.folder / "everything.json"
    everything.write_text(json.dumps({"version": 1, "partitions": [
        {"topic": queue.topic, "partition": p, "offset": -1} for p in range(n)]}))
    for lot in (3, 2):
        for p in range(n):
            queue.broker.produce(queue.topic, jobs(lot), "-p", str(p))
        queue.broker.java("org.apache.kafka.tools.DeleteRecordsCommand", "--bootstrap-server",
                          queue.broker.address, "--offset-json-file", str(everything))
        queue.finish()
    told = queue.rows("SELECT partition, from_position, to_position FROM lost_ranges")
    assert sorted(told) == sorted((p, *r) for p in range(n) for r in ((0, 3), (3, 5)))
    assert queue.rows("SELECT count(*) FROM partition_progress WHERE position = 5") == [(n,)]
    assert queue.count() == 0


def test_broker_restart_mid_run(queue):
    n = 2000
    queue.submit(jobs(n))
    worker = queue.work("--sim-step", "5ms", "--slots", "8", "--claim-rows", "300",
                        "--idle-exit", "1s")
    queue.wait_rows(100)
    queue.broker.kill()
    time.sleep(2)
    assert worker.poll() is None, queue.logs()[-3000:]
    queue.broker.start()
    assert worker.wait(180) == 0, queue.logs()[-3000:]
    assert_all(queue, n)
    assert "level=error" not in queue.logs()


def test_no_broker_and_no_topic(queue):
    process = queue.call("worker", "--engine=sim", "--source", "kafka://127.0.0.1:1/x",
                         "--connect-timeout", "1s", check=False)
    assert process.returncode == 69 and b"\"x\"" in process.stderr
    process = queue.call("worker", "--engine=sim", "--source",
                         f"kafka://{queue.broker.address}/nobody-made-it", check=False)
    assert process.returncode == 65 and b"tranche init" in process.stderr


def test_submit_refuses_before_the_first_message(queue):
    for lines, words in [(jobs(3) + ['{"prompt":"x"}'], "job 4"),
                         (jobs(3) + jobs(1), "\"job-0\""), (jobs(2) + ["{"], "job 3")]:
        path = queue.folder / "bad.jsonl"
        path.write_text("\n".join(lines) + "\n")
        process = queue.call("submit", "--source", queue.url, path, check=False)
        assert process.returncode == 64 and words in process.stderr.decode()
    assert sum(queue.ends().values()) == 0


def test_submit_goes_on_where_it_was_stopped(queue):
    path = queue.folder / "big.jsonl"
    path.write_text("".join(line + "\n" for line in jobs(200)))
    (queue.folder / "big.jsonl.submit").write_text(f"150 big {queue.url}\n")
    out = queue.call("submit", "--source", queue.url, path).stdout.decode()
    assert out == "submitted batch=big jobs=200 sent=50\n"
    assert sum(queue.ends().values()) == 50
    assert not (queue.folder / "big.jsonl.submit").exists()


def test_plain_text_stays_on_this_machine(queue):
    process = queue.call("worker", "--engine=sim", "--source", "kafka://example.invalid/x",
                         "--connect-timeout", "1s", check=False)
    assert process.returncode == 64 and b"plain text" in process.stderr
    process = queue.call("worker", "--engine=sim", "--source", "kafka://example.invalid/x",
                         "--connect-timeout", "1s", "--allow-insecure", check=False)
    assert process.returncode == 69


@pytest.mark.parametrize("text, words", [
    ("enable.auto.commit = true", "client.conf:1: enable.auto.commit is set by tranche itself"),
    ("\n# fine\nnonsense", "client.conf:3: want `name = value`"),
    ("sasl.pasword = geheim", "sasl.pasword: the Kafka client knows no such property"),
    ("sasl.password.file = missing", "missing: cannot open"),
])
def test_broker_config_refusals(queue, text, words):
    (queue.folder / "client.conf").write_text(text)
    process = queue.call("worker", "--engine=sim", "--source", queue.url, "--broker-config",
                         "client.conf", check=False)
    assert process.returncode == 64 and words in process.stderr.decode()
    assert "geheim" not in process.stderr.decode()


def test_a_message_that_inflates_a_thousandfold_is_one_row(queue):
    """48 MiB in 48 KiB of gzip, in one partition with others: too large, said so, and gone."""
    bomb = b'{"id":"bomb","prompt":"' + b"a" * (48 << 20) + b'"}'
    producer = Producer({"bootstrap.servers": queue.broker.address, "compression.type": "gzip",
                         "message.max.bytes": 100 << 20, "linger.ms": 0})
    failed = []
    for value in (jobs(1)[0], bomb, jobs(1, 1)[0]):
        producer.produce(queue.topic, value, partition=0,
                         on_delivery=lambda error, _: failed.append(error) if error else None)
        producer.flush(60)
    assert not failed
    worker = queue.work()
    queue.wait_rows(3)
    [child] = open(f"/proc/{worker.pid}/task/{worker.pid}/children").read().split()
    peak = next(int(x.split()[1]) for x in open(f"/proc/{child}/status") if x.startswith("VmHWM"))
    assert peak < 400 << 10, f"{peak} KiB"
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(30) in (0, 143)
    assert queue.rows("SELECT custom_id, status, error_code FROM results WHERE status <> 'ok'") == \
        [(f"{queue.topic}/0/1", "invalid", "too_large")]
    assert queue.rows("SELECT count(*) FROM results WHERE status = 'ok'") == [(2,)]
