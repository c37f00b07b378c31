"""What KEDA would read of a topic while workers run, are killed, drain and restart: never less than
what is left, true again within a poll, from a missing group to zero, past markers and retention."""
import json
import os
import random
import re
import signal
import sqlite3
import sys
import time

import pytest
from confluent_kafka import KafkaException, Producer

from conftest import ROOT
from kafka_broker import Broker
from keda_reference import POLLING_S, Gauge, KafkaLag, KafkaTrigger, Watch
from redis_server import wait_until
from test_kafka import Queue, jobs

sys.path.insert(0, str(ROOT / "tests/faults"))
from queues import KafkaQueue  # noqa: E402  (what the installed client cannot ask)

SEED = int(os.environ.get("TRANCHE_SEED", "1"))
SLOW = ["--sim-step", "20ms", "--slots", "8", "--claim-rows", "200", "--flush-interval", "100ms"]


@pytest.fixture(scope="module")
def broker(tmp_path_factory):
    broker = Broker(tmp_path_factory.mktemp("kafka")).start()
    yield broker
    broker.kill()


class Topic(Queue):
    """Three partitions that no `tranche init` has seen, a group of its own, and KEDA's view."""

    def __init__(self, binary, broker, folder, name):
        super().__init__(binary, broker, folder, name, init=False)
        self.group = f"g-{name}"
        self.admin = KafkaQueue(broker.address, name, self.group)
        self.admin.make()
        self.keda = KafkaLag(broker.address, name, self.group)
        wait_until(self.known, 60, 0.1)

    def known(self):
        try:
            return len(self.keda.partitions()) == 3
        except KafkaException:
            return False

    def init(self):
        self.call("init", "--source", self.url, "--group", self.group)

    def work(self, *options):
        return super().work("--group", self.group, *options)

    def send(self, n, first=0, partition=None):
        where = [] if partition is None else ["-p", str(partition)]
        self.broker.produce(self.topic, jobs(n, first), *where)

    def left(self, promised):
        return max(promised - self.count(), 0)

    def watch(self):
        def read():
            reading = KafkaTrigger(earliest=True, allow_idle=True).read(self.keda.partitions())
            return reading.metric, reading.active
        watch = Watch(read, self.left)
        watch.start()
        return watch

    def wait_lag(self, want, timeout=POLLING_S):
        wait_until(lambda: self.keda.read().metric == want, timeout, 0.2)

    def committed(self):
        return [p.committed for p in self.keda.partitions()]

    def close(self):
        super().close()
        self.keda.close()


@pytest.fixture
def topic(binary, broker, tmp_path, request):
    topic = Topic(binary, broker, tmp_path, re.sub(r"[^a-z0-9]+", "-", request.node.name)[:80])
    yield topic
    topic.close()


def test_no_topic(broker):
    """An error, not an empty queue: KEDA makes no Jobs then, and stops nothing."""
    keda = KafkaLag(broker.address, "nobody-made-it", "g")
    with pytest.raises(KafkaException):
        keda.read()
    keda.close()


def test_from_a_missing_group_to_zero(topic):
    """Nobody has run `tranche init`: everything counts, and the first worker leaves positions on
    every partition, the one without messages too."""
    assert topic.committed() == [None] * 3 and topic.keda.read() == (0, False)
    topic.send(40, partition=0)
    topic.send(20, 40, partition=1)
    topic.wait_lag(20)  # threshold 10, two partitions with something in them
    latest = KafkaTrigger(threshold=10)
    assert latest.read(topic.keda.partitions()) == (3, True), "why our triggers say earliest"
    topic.finish()
    topic.wait_lag(0)
    assert topic.committed() == [40, 20, 0] and topic.count() == 60
    assert latest.read(topic.keda.partitions()) == (0, False)


def test_init_then_submit_then_zero(topic):
    topic.init()
    assert topic.committed() == [0] * 3
    topic.submit(jobs(25), "few")
    wide = KafkaTrigger(threshold=1000, earliest=True, with_lag_only=True)
    assert wide.read(topic.keda.partitions()) == (25, True)
    topic.finish()
    topic.wait_lag(0)


def test_true_while_workers_are_killed_drain_and_restart(topic):
    """Two workers; four deaths by SIGKILL, one moment with nobody, one drain; messages keep coming."""
    chance, sent = random.Random(SEED), 0
    topic.init()
    watch = topic.watch()

    def send(n):
        nonlocal sent
        topic.send(n, sent)
        sent += n
        watch.promised = sent
    try:
        send(2000)
        workers = [topic.work(*SLOW) for _ in range(2)]
        topic.wait_rows(100)
        for _ in range(4):
            time.sleep(chance.uniform(0.5, 3))
            victim = chance.randrange(2)
            workers[victim].kill()
            workers[victim].wait()
            workers[victim] = topic.work(*SLOW)
            watch.disturbed()
        send(500)
        for worker in workers:
            worker.kill()
            worker.wait()
        alone = len(watch.samples)
        wait_until(lambda: len(watch.samples) > alone + 10, 60)
        assert 0 < topic.count() < sent, "the kills fell while work was being done"
        assert watch.samples[-1].active and watch.samples[-1].lag >= sent - topic.count()
        workers = [topic.work(*SLOW, "--grace", "2s") for _ in range(2)]
        watch.disturbed()
        topic.wait_rows(topic.count() + 100)
        workers[0].send_signal(signal.SIGTERM)
        assert workers[0].wait(60) == 143, topic.logs()[-3000:]
        workers[0] = topic.work(*SLOW)
        watch.wait_zero(240)
    finally:
        watch.end()
    watch.never_less_than_what_is_left()
    late = watch.late_s()
    print(f"{len(watch.samples)} polls, at most {late:.1f} s late")
    assert late < POLLING_S and len(watch.samples) > 50
    assert topic.count() == sent


def transaction(producer, topic, first, n, how):
    producer.begin_transaction()
    for job in jobs(n, first):
        producer.produce(topic.topic, job.encode(), partition=0)
    producer.flush(30)
    if how:
        how(30)


def test_transactions(topic):
    """Markers and aborted messages are no work, and no worker leaves them behind as lag. An open
    transaction is: KEDA counts what no consumer may read yet."""
    topic.init()
    producer = Producer({"bootstrap.servers": topic.broker.address,
                         "transactional.id": topic.topic})
    producer.init_transactions(30)
    transaction(producer, topic, 0, 20, producer.commit_transaction)
    transaction(producer, topic, 20, 20, producer.abort_transaction)
    # 40 messages and two markers; the coordinator answers before its last marker is in the log
    wait_until(lambda: topic.keda.partitions()[0].end == 42, 30, 0.1)
    topic.work("--http", "127.0.0.1:0")
    topic.wait_lag(0)
    assert topic.count() == 20 and topic.committed()[0] == 42
    transaction(producer, topic, 40, 5, None)
    topic.wait_lag(5)
    producer.abort_transaction(30)
    topic.wait_lag(0)
    transaction(producer, topic, 45, 5, producer.commit_transaction)
    topic.wait_lag(0)
    assert topic.count() == 25


def test_retention(topic):
    """What retention took counts for KEDA until a worker has come; the worker says what is lost."""
    wide = lambda: KafkaTrigger(threshold=1000, earliest=True).read(topic.keda.partitions()).metric
    topic.send(30, partition=0)
    topic.admin.delete_records({0: 10})
    assert wide() == 30, "no position: the whole end, though ten are gone"
    topic.init()
    assert topic.committed()[0] == 10 and wide() == 20
    topic.admin.delete_records({0: 25})
    assert wide() == 20, "behind the log's start: still the position"
    topic.finish()
    topic.wait_lag(0)
    assert topic.count() == 5
    # Everything went, unread: a pod starts for nothing once, and not again.
    topic.send(40, 30, partition=1)
    topic.admin.delete_records({1: 40})
    assert wide() == 40
    topic.finish()
    topic.wait_lag(0)
    assert topic.committed() == [30, 40, 0] and topic.count() == 5


def test_expired_positions(topic):
    """A topic that was idle for longer than the broker keeps positions: counted whole, once more."""
    topic.init()
    topic.send(30)
    topic.finish()
    topic.wait_lag(0)
    wait_until(lambda: topic.admin.delete_group() == 0, 30, 0.3)
    wide = KafkaTrigger(threshold=1000, earliest=True)
    assert wide.read(topic.keda.partitions()) == (30, True)
    topic.finish()
    topic.wait_lag(0)
    assert topic.count() == 30 and None not in topic.committed()


def test_our_gauge_says_the_same(topic):
    """tranche_source_lag_messages of a worker that has every partition, beside KEDA's value: what
    the alert on a disagreement compares."""
    topic.init()
    topic.send(600)
    worker = topic.work(*SLOW, "--http", "127.0.0.1:0")
    watch = topic.watch()
    try:
        seen = Gauge(topic.logs).follow(lambda: topic.count() == 600)
        watch.wait_zero(60)
    finally:
        watch.end()
    assert worker.poll() is None, topic.logs()[-3000:]
    watch.agrees_with(seen)
