"""A case of the fault campaign that fails on Kafka leaves enough behind to say why."""
import os
import pathlib
import re
import sys
import types

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from kafka_broker import Broker

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "faults"))
import evidence  # noqa: E402


@pytest.fixture(scope="module")
def broker(tmp_path_factory):
    broker = Broker(tmp_path_factory.mktemp("kafka")).start()
    yield broker
    broker.kill()


def test_the_groups_partition_is_the_brokers():
    assert evidence.group_partition("", 4) == 0
    assert evidence.group_partition("a", 50) == 97 % 50
    assert evidence.group_partition("evidence0", 4) == 3           # its hash is below zero
    assert evidence.group_partition("polygenelubricants", 50) == 0  # 0x80000000: no positive twin


def test_a_broker_that_was_killed_leaves_its_word(broker, tmp_path):
    admin = AdminClient({"bootstrap.servers": broker.address})  # its answers end with it
    admin.create_topics([NewTopic("t", 2, 1)])["t"].result(30)
    producer = Producer({"bootstrap.servers": broker.address})
    producer.produce("t", b"x", partition=1)
    producer.flush(30)
    member = Consumer({"bootstrap.servers": broker.address, "group.id": "evidence0",
                       "enable.auto.commit": False})
    member.commit(offsets=[TopicPartition("t", 1, 1)], asynchronous=False)
    member.close()
    queue = types.SimpleNamespace(name="t", group="evidence0", partitions=2)
    since = os.path.getsize(broker.log)
    evidence.keep(broker, queue, tmp_path / "up", since)
    state = (tmp_path / "up/state.txt").read_text()
    ours = int(re.search(r"__consumer_offsets-(\d)", state)[1])
    assert f"partition {ours} leader 1 isr [1] error None" in state
    assert re.search(r"evidence0 state \w+", state)
    assert "partition 1 offset 1 error None" in state
    assert re.search(rf"partition {ours} from 0 high watermark [1-9]", state)
    log = (tmp_path / "up/server.log").read_text()
    assert "Full thread dump" in log and "Kafka Server started" not in log
    segment = tmp_path / f"up/data/__consumer_offsets-{ours}/00000000000000000000.log"
    assert b"evidence0" in segment.read_bytes()

    broker.kill()
    evidence.keep(broker, queue, tmp_path / "down", 0)
    assert "does not run" in (tmp_path / "down/state.txt").read_text()
    assert re.search(r"\d{4}-\d\d-\d\dT[\d:.]+ \[main\] INFO .*started",
                     (tmp_path / "down/server.log").read_text())
    broker.start()
