"""KEDA's own scalers beside the reference of tests/run/keda_reference.py, on the same live states."""
import sqlite3
import subprocess
import time

import pytest
from confluent_kafka import Producer

import manifests
import test_keda_reference as states
import test_predicted_work as predicted_work
from keda import BINARY, Keda
from kafka_broker import Broker
from keda_reference import KafkaLag, KafkaTrigger, RedisLag
from postgres_server import Server as Postgres
from queues import KafkaQueue
from redis_server import Server, certificates, wait_until
from test_kafka import jobs
from test_redis import fill


@pytest.fixture(scope="module")
def keda(tmp_path_factory):
    keda = Keda(tmp_path_factory.mktemp("keda"))
    yield keda
    keda.close()


@pytest.fixture(scope="module")
def broker(tmp_path_factory):
    broker = Broker(tmp_path_factory.mktemp("kafka")).start()
    yield broker
    broker.kill()


def flag(on):
    return "true" if on else "false"


# Each trigger of a manifest that reads lag, and ones that ours do not use.
TRIGGERS = [KafkaTrigger(), KafkaTrigger(earliest=True),
            KafkaTrigger(earliest=True, with_lag_only=True), KafkaTrigger(earliest=True, threshold=7),
            KafkaTrigger(earliest=True, allow_idle=True), KafkaTrigger(earliest=True, even=True),
            KafkaTrigger(zero_on_invalid=True), KafkaTrigger(earliest=True, zero_on_invalid=True),
            KafkaTrigger(earliest=True, activation=25), KafkaTrigger(threshold=20000, earliest=True)]


def metadata(trigger, address, topic, group):
    return {"bootstrapServers": address, "topic": topic, "consumerGroup": group, "version": "2.8.0",
            "lagThreshold": str(trigger.threshold), "activationLagThreshold": str(trigger.activation),
            "offsetResetPolicy": "earliest" if trigger.earliest else "latest",
            "allowIdleConsumers": flag(trigger.allow_idle),
            "limitToPartitionsWithLag": flag(trigger.with_lag_only),
            "ensureEvenDistributionOfPartitions": flag(trigger.even),
            "scaleToZeroOnInvalidOffset": flag(trigger.zero_on_invalid)}


class Topic:
    def __init__(self, keda, broker, name, folder):
        self.keda, self.broker, self.name, self.folder = keda, broker, name, folder
        self.group, self.url = f"g-{name}", f"kafka://{broker.address}/{name}"
        self.admin = KafkaQueue(broker.address, name, self.group)
        self.admin.make()
        self.reference = KafkaLag(broker.address, name, self.group)
        self.sent, self.compared = 0, 0
        wait_until(self.there, 60, 0.2)

    def there(self):
        try:
            return len(self.reference.partitions()) == 3
        except Exception:
            return False

    def send(self, n, partition):
        self.broker.produce(self.name, jobs(n, self.sent), "-p", str(partition))
        self.sent += n

    def tranche(self, command, *options, timeout=120):
        done = subprocess.run([str(BINARY), command, "--source", self.url, "--group", self.group,
                               *options], cwd=self.folder, capture_output=True, timeout=timeout)
        assert done.returncode == 0, done.stderr.decode()[-2000:]

    def work(self):
        self.tranche("worker", "--engine=sim", "--idle-exit", "500ms", "--flush-interval", "100ms",
                     "--progress", "off")

    def same(self, what, kind="kafka", triggers=TRIGGERS):
        for trigger in triggers:
            want = trigger.read(self.reference.partitions())
            got = self.keda.read(kind, metadata(trigger, self.broker.address, self.name, self.group))
            assert not got["error"], (what, trigger, got)
            assert (got["metric"], got["active"]) == want, (what, trigger, got, want)
            assert got["target"] == trigger.threshold
            self.compared += 1


def test_kafka_states(keda, broker, tmp_path):
    topic = Topic(keda, broker, "states", tmp_path)
    topic.same("no messages, no group")
    topic.send(40, 0)
    topic.send(9, 1)
    topic.same("no group")
    topic.tranche("init")
    topic.same("positions at the start")
    topic.send(300, 1)
    topic.same("a hot partition")
    topic.work()
    topic.same("all done")
    producer = Producer({"bootstrap.servers": broker.address, "transactional.id": "states"})
    producer.init_transactions(30)
    for how in (producer.commit_transaction, producer.abort_transaction, None):
        producer.begin_transaction()
        for line in jobs(20, topic.sent):
            producer.produce(topic.name, line.encode(), partition=2)
        topic.sent += 20
        producer.flush(30)
        how and how(30)
        topic.same(f"a transaction: {how.__name__ if how else 'open'}")
    producer.abort_transaction(30)
    topic.work()
    topic.same("markers behind the last message")
    topic.send(30, 0)
    topic.admin.delete_records({0: topic.reference.partitions()[0].end - 5})
    topic.same("retention took unread ones")
    topic.work()
    topic.same("past retention")
    wait_until(lambda: topic.admin.delete_group() == 0, 30, 0.3)
    topic.same("positions have expired")
    print(f"{topic.compared} readings of kafka equal")
    topic.reference.close()


def test_kafka_errors(keda, broker):
    """Where KEDA has no value it says so; a ScaledJob makes no Jobs then."""
    unknown = keda.read("kafka", metadata(KafkaTrigger(), broker.address, "nobody-made-it", "g"))
    away = keda.read("kafka", metadata(KafkaTrigger(), "127.0.0.1:1", "states", "g"))
    for got in (unknown, away):
        assert got["error"] and got["metric"] is None and not got["active"]
    both = metadata(KafkaTrigger(allow_idle=True), broker.address, "states", "g")
    both["limitToPartitionsWithLag"] = "true"
    assert "simultaneously" in keda.read("kafka", both)["error"]


def test_kafka_while_a_worker_runs(keda, broker, tmp_path):
    """Nothing is sent: each of KEDA's values lies between the reference's before and behind it."""
    topic = Topic(keda, broker, "running", tmp_path)
    topic.tranche("init")
    for partition in range(3):
        topic.send(200, partition)
    trigger = KafkaTrigger(earliest=True, threshold=20000)
    read = lambda: trigger.read(topic.reference.partitions()).metric
    command = [str(BINARY), "worker", "--engine=sim", "--sim-step", "20ms", "--slots", "8",
               "--claim-rows", "100", "--flush-interval", "100ms", "--source", topic.url, "--group",
               topic.group, "--progress", "off", "--idle-exit", "1s"]
    with open(tmp_path / "log", "wb") as log:
        worker = subprocess.Popen(command, cwd=tmp_path, stdout=log, stderr=log)
    values = []
    try:
        killed = False
        until = time.monotonic() + 180
        while worker.poll() is None or not killed:
            assert time.monotonic() < until, values[-5:]
            before = read()
            got = keda.read("kafka", metadata(trigger, broker.address, topic.name, topic.group))
            behind = read()
            assert not got["error"] and behind <= got["metric"] <= before, (before, got, behind)
            values.append(got["metric"])
            if not killed and got["metric"] < 400:
                worker.kill()
                worker.wait()
                killed = True
                with open(tmp_path / "log", "ab") as log:
                    worker = subprocess.Popen(command, cwd=tmp_path, stdout=log, stderr=log)
    finally:
        worker.kill()
        worker.wait()
    assert values[0] == 600 and read() == 0 and len(set(values)) > 5, values
    db = sqlite3.connect(tmp_path / "tranche.db")
    assert db.execute("SELECT count(*) FROM results").fetchone() == (600,)
    db.close()
    topic.reference.close()


def stream(address, pending=False, **more):
    target = {"pendingEntriesCount": "5"} if pending else {"lagCount": "5"}
    return {"address": address, "stream": "s", "consumerGroup": "g", "activationLagCount": "0",
            **target, **more}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("redis"))
    yield server
    server.stop()


@pytest.mark.parametrize("do", [s[0] for s in states.STATES], ids=[s[0].__name__ for s in states.STATES])
def test_redis_states(keda, server, do):
    client, address = server.client(), f"127.0.0.1:{server.port}"
    client.delete("s")
    for i in range(1, 11):
        client.xadd("s", {"job": "x"}, id=f"{i}-0")
    client.xgroup_create("s", "g", "0")
    do(client)
    for pending in (False, True):
        got = keda.read("redis-streams", stream(address, pending))
        want = RedisLag(client, "s", "g", "pending" if pending else "lag").read()
        assert (got["metric"], got["active"], got["error"]) == (*want, ""), do.__name__


def test_redis_without_a_group(keda, server):
    client, address = server.client(), f"127.0.0.1:{server.port}"
    client.delete("s")
    read = lambda **more: keda.read("redis-streams", stream(address, **more))
    assert read()["metric"] == 0 and not read()["active"]
    assert "NOGROUP" in read(pending=True)["error"]
    fill(client, 10, stream="s")
    assert read()["metric"] == 10 and read()["active"]
    assert "NOGROUP" in read(pending=True)["error"]
    client.xgroup_create("s", "g", "0")
    assert read()["metric"] == 10 and read(pending=True)["metric"] == 0
    blind = stream(address)
    del blind["lagCount"]
    assert keda.read("redis-streams", blind)["metric"] == 0, "no lagCount: pending, silently"


# docs of k8s/keda/overlays/redis/auth.yaml, to the letter.
RIGHTS = "+ping +info +xinfo +xpending +xlen"


def test_redis_with_the_rights_that_the_manifest_names(keda, tmp_path):
    """TLS, and a user that may do what the comment in auth.yaml lists and nothing else."""
    tls = certificates(tmp_path / "tls")
    server = Server(tmp_path / "redis", "--tls-auth-clients", "no", tls=tls)
    try:
        client = server.client()
        rights = RIGHTS.split()
        client.execute_command("ACL", "SETUSER", "keda", "on", ">secret", "resetchannels", "~s", *rights)
        fill(client, 10, stream="s")
        client.xgroup_create("s", "g", "0")
        client.xreadgroup("g", "c", {"s": ">"}, count=4)
        auth = {"username": "keda", "password": "secret", "ca": (tls / "ca.crt").read_text()}
        address = f"localhost:{server.port}"
        for pending, want in ((False, 6), (True, 4)):
            got = keda.read("redis-streams", stream(address, pending, enableTLS="true"), auth)
            assert got["metric"] == want, got
        for right, pending in (("xinfo", False), ("info", False), ("xpending", True)):
            client.execute_command("ACL", "SETUSER", "keda", f"-{right}")
            got = keda.read("redis-streams", stream(address, pending, enableTLS="true"), auth)
            # The trap: without XINFO it takes the stream's length for the lag, and says nothing.
            assert got["metric"] == 10 if right == "xinfo" else got["error"], (right, got)
            client.execute_command("ACL", "SETUSER", "keda", f"+{right}")
        got = keda.read("redis-streams", stream(address, enableTLS="true"), {**auth, "password": "x"})
        assert got["error"]
    finally:
        server.stop()


def test_postgresql(keda, tmp_path):
    """The third choice of trigger: its manifest's query as the user that schemas/keda/role.sql makes."""
    [trigger] = [d for d in manifests.render("keda/overlays/predicted-work")
                 if d["kind"] == "ScaledJob"][0]["spec"]["triggers"]
    with Postgres() as server:
        server.ask("postgres", "CREATE DATABASE app")
        subprocess.run([str(BINARY), "migrate", "--db", server.url("app")], check=True, timeout=120,
                       cwd=tmp_path, capture_output=True)
        server.ask("app", (predicted_work.SCHEMAS / "role.sql").read_text())
        server.ask("app", "CREATE ROLE keda LOGIN PASSWORD 'secret' IN ROLE tranche_keda")
        read = lambda password="secret", **more: keda.read(trigger["type"], {
            **trigger["metadata"], "host": "127.0.0.1", "port": str(server.port), "dbName": "app",
            "sslmode": "disable", **more}, {"password": password})
        got = read()
        assert not got["error"] and got["metric"] == 0 and not got["active"] and got["target"] == 600
        predicted_work.batch(server, "new", 10000)
        predicted_work.batch(server, "long", 1000, ok=(500, 2.5))
        got = read()
        assert got["metric"] == pytest.approx(predicted_work.predicted(server), abs=0.001) and \
            got["metric"] == pytest.approx(10000 * predicted_work.DEFAULT + 500 * 2.5) and got["active"]
        assert read(query="SELECT sum(total) FROM tranche.batches WHERE false")["error"], "no NULL"
        assert read(query="SELECT 1 FROM tranche.results WHERE answer IS NOT NULL")["error"], "a right"
        assert read(password="x")["error"]
