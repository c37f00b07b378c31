"""Copies of dead letters: each letter of the table reaches the dead-letter queue with its key, bytes
and headers, whatever dies between the row and the copy; and no ack waits for that."""
import json
import random
import re
import signal
import time

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, ConfigResource

import redis_server
from queue_site import QueueSite
from redis_server import at_rest, wait_until

SIM = ["--engine", "sim", "--sim-tokens", "4", "--slots", "8"]


class Site(QueueSite):
    def work(self, *options):
        return self.start(*SIM, "--source", self.source, "--broker-config", self.folder / "conf",
                          "--dead-letters-to", self.to, *options)

    def finish(self, *options):
        worker = self.work("--idle-exit", "1s", *options)
        assert worker.wait(90) == 0, worker.log.read_text()[-3000:]
        return worker

    def letters(self):
        return {r[0]: r[1:] for r in self.postgres.ask(
            self.name, "SELECT source_key, custom_id, payload, message_key, copied_at, reason, "
            "sha256, queue FROM tranche.dead_letters")}


class KafkaSite(Site):
    def __init__(self, binary, postgres, folder, broker):
        super().__init__(binary, postgres, folder)
        self.broker = broker
        self.source, self.to = (f"kafka://{broker.address}/{self.name}{end}" for end in ("", ".dlq"))
        (folder / "conf").write_text("session.timeout.ms = 2000\nheartbeat.interval.ms = 300\n")
        for url in (self.source, self.to):
            self.call("init", "--source", url, "--partitions", 3)

    def send(self, jobs, **headers):
        producer = Producer({"bootstrap.servers": self.broker.address})
        for key, job in jobs:
            producer.produce(self.name, json.dumps(job), key, headers=headers)
        producer.flush(30)

    def copies(self):
        """[(key, value, {header: value})] of the dead-letter topic."""
        link, found = Consumer({"bootstrap.servers": self.broker.address, "group.id": "look",
                                "enable.auto.commit": False}), []
        topic = self.name + ".dlq"
        ends = {p: link.get_watermark_offsets(TopicPartition(topic, p), 30) for p in range(3)}
        link.assign([TopicPartition(topic, p, low) for p, (low, _) in ends.items()])
        while len(found) < sum(high - low for low, high in ends.values()):
            m = link.poll(30)
            assert m is not None and not m.error()
            found.append((m.key(), m.value(), {k: v.decode() for k, v in m.headers()}))
        link.close()
        return found

    def limit(self, n):
        """Bytes of a message that the dead-letter topic takes."""
        topic = ConfigResource(ConfigResource.Type.TOPIC, self.name + ".dlq",
                               set_config={"max.message.bytes": str(n)})
        link = AdminClient({"bootstrap.servers": self.broker.address})
        link.alter_configs([topic])[topic].result(30)

    def quiet(self):
        return True


class RedisSite(Site):
    def __init__(self, binary, postgres, folder):
        super().__init__(binary, postgres, folder)
        self.server = redis_server.Server(folder / "redis")
        self.dlq = redis_server.Server(folder / "dlq")
        self.source, self.to = self.server.url(), self.dlq.url("jobs.dlq")
        (folder / "conf").write_text("lease = 3s\n")
        for url in (self.source, self.to):
            self.call("init", "--source", url)

    def send(self, jobs, **headers):
        for _, job in jobs:
            self.server.client().xadd("jobs", {"job": json.dumps(job), **headers})

    def copies(self):
        return [(None, f["job"].encode(), {k: v for k, v in f.items() if k != "job"})
                for _, f in self.dlq.client().xrange("jobs.dlq")]

    def quiet(self):
        return at_rest(self.server.client(), "jobs", "tranche")

    def close(self):
        super().close()
        self.server.stop()
        self.dlq.stop()


@pytest.fixture(params=["redis", "kafka"])
def site(request, binary, postgres, tmp_path):
    made = RedisSite(binary, postgres, tmp_path) if request.param == "redis" else \
        KafkaSite(binary, postgres, tmp_path, request.getfixturevalue("broker"))
    yield made
    made.close()


@pytest.fixture
def redis_site(binary, postgres, tmp_path):
    made = RedisSite(binary, postgres, tmp_path)
    yield made
    made.close()


@pytest.fixture
def kafka_site(binary, postgres, tmp_path, broker):
    made = KafkaSite(binary, postgres, tmp_path, broker)
    yield made
    made.close()


def jobs(n, word, key=True):
    return [(f"k{i}".encode() if key else None, {"id": f"job-{i}", "prompt": f"{word} {i}"})
            for i in range(n)]


def by_key(copies):
    return {h["tranche.source_key"]: (key, value, h) for key, value, h in copies}


def check(site, n):
    """The queue holds exactly the table's letters, whole; more than one copy of one is legal."""
    letters, copies = site.letters(), by_key(site.copies())
    assert len(letters) == n and set(copies) == set(letters)
    for key, (custom_id, payload, message_key, copied_at, reason, sha256, queue) in letters.items():
        copy_key, value, headers = copies[key]
        assert copied_at and bytes(payload) == value
        assert (bytes(message_key) if message_key is not None else None) == copy_key
        assert headers["tranche.reason"] == reason and headers["tranche.sha256"] == sha256
        assert headers["tranche.job_id"] == custom_id and headers["tranche.queue"] == queue
        assert headers["tranche.copies"] == "1" and headers["tranche.version"]
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", headers["tranche.first_seen"])
    return copies


def test_each_letter_is_copied_once(site):
    site.send(jobs(40, "first"))
    site.send([(b"\x00\xff", {"id": "job-3", "prompt": "no text as its key"}),
               (None, {"id": "job-4", "prompt": "no key, \u00e9"})])
    site.send(jobs(25, "second"))
    worker = site.finish()
    assert len(site.copies()) == 27
    check(site, 27)
    assert "outbox_waits" not in worker.log.read_text()
    assert site.quiet()


def test_acks_do_not_wait_and_a_peer_copies_what_the_dead_left(redis_site):
    site = redis_site
    site.send(jobs(30, "first"))
    site.finish()
    site.dlq.kill()
    site.send(jobs(20, "second"))
    worker = site.work()  # starts without its dead-letter queue
    wait_until(lambda: len(site.letters()) == 20 and site.quiet(), 60)
    wait_until(lambda: "event=outbox_waits" in worker.log.read_text(), 30)
    worker.send_signal(signal.SIGKILL)
    worker.wait()
    site.dlq.start()
    site.finish("--worker-name", "other")
    assert site.copies() == []  # younger than a minute: its writer may still do it
    site.postgres.ask(site.name, "UPDATE tranche.dead_letters SET first_seen = first_seen - "
                      "interval '2 minutes'")
    site.finish("--worker-name", "other")
    assert len(site.copies()) == 20
    check(site, 20)


def test_killed_at_random_moments(site):
    seed = random.randrange(1 << 30)
    print("seed", seed)
    dice, n = random.Random(seed), 150
    site.send(jobs(n, "first"))
    site.finish()
    site.send(jobs(n, "second"))
    for _ in range(6):
        worker = site.work("--worker-name", "same", "--flush-rows", "8")
        time.sleep(dice.uniform(0.1, 1.0))
        worker.send_signal(signal.SIGKILL)
        worker.wait()
    site.finish("--worker-name", "same", *(["--idle-exit", "5s"] if site.to[0] == "k" else []))
    check(site, n)


def test_two_workers_share_the_outbox(kafka_site):
    """Rows in the hands of one are skipped by the other."""
    site, n = kafka_site, 120
    site.send(jobs(n, "first"))
    site.finish()
    site.send(jobs(n, "second"))
    pair = [site.work("--worker-name", "same", "--idle-exit", "2s") for _ in range(2)]
    assert [w.wait(90) for w in pair] == [0, 0]
    assert len(site.copies()) == n
    check(site, n)


def test_a_letter_that_the_broker_finds_too_large(kafka_site):
    """Its copy goes without its bytes, then without its key; where even that is too much it is waited
    for, without holding up a stop."""
    site = kafka_site
    site.limit(6000)
    site.send(jobs(12, "first"))
    site.finish()
    site.send(jobs(12, "second"))
    text = str(random.Random(1).randbytes(9000).hex())
    site.send([(b"big", {"id": "job-5", "prompt": "x" + text}),
               (b"k" + text.encode(), {"id": "job-6", "prompt": "long key"})])
    site.finish()
    copies, letters = by_key(site.copies()), site.letters()
    assert len(letters) == 14 and set(copies) == set(letters)
    bare = [c for c in copies.values() if "tranche.payload" in c[2]]
    assert sorted((key, value, headers.get("tranche.message_key")) for key, value, headers in bare if key) \
        == [(b"big", b"", None)]
    assert sorted((value, headers["tranche.message_key"], headers["tranche.job_id"])
                  for key, value, headers in bare if not key) == [(b"", "left out: 18001 bytes", "job-6")]
    assert all(re.fullmatch(r"left out: \d+ bytes", h["tranche.payload"]) for _, _, h in bare)
    site.limit(100)
    site.send([(b"k", {"id": "job-7", "prompt": "no copy fits"})])
    worker = site.work()
    wait_until(lambda: "event=outbox_waits" in site.log(worker), 60)
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(60) == 0
    assert site.log(worker).count("event=outbox_waits") < 30
    site.limit(6000)
    assert sum(copied_at is None for _, _, _, copied_at, *_ in site.letters().values()) == 1
    site.postgres.ask(site.name, "UPDATE tranche.dead_letters SET first_seen = first_seen - interval '2 min'")
    site.finish()
    assert all(copied_at for _, _, _, copied_at, *_ in site.letters().values())


def test_circles_are_cut(site):
    site.send(jobs(3, "first"))
    site.finish()
    site.send(jobs(1, "second"), **{"tranche.copies": "2"})
    site.send(jobs(2, "third")[1:], **{"tranche.copies": "3"})
    worker = site.finish()
    [(_, value, headers)] = site.copies()
    assert json.loads(value)["prompt"] == "second 0" and headers["tranche.copies"] == "3"
    assert worker.log.read_text().count("event=dead_letter_goes_in_circles") == 1
    assert all(copied_at for _, _, _, copied_at, *_ in site.letters().values())


def test_a_source_of_any_length_stays_whole(kafka_site):
    """Long headers ahead of the count of copies: the letter names its message whole, under its reason,
    and the count ends the circle; also where a copy's own `source` is beyond what a header list keeps."""
    site, note = kafka_site, "x" + "é" * 2000
    site.send(jobs(2, "first"))
    site.finish()
    site.send(jobs(1, "second"), note=note, **{"tranche.copies": "3"})
    site.send(jobs(2, "second")[1:], note='"' * 6000)
    worker = site.finish()
    letters = site.postgres.ask(site.name, "SELECT custom_id, reason, source FROM "
                                "tranche.dead_letters ORDER BY 1")
    assert [(i, reason) for i, reason, _ in letters] == [("job-0", "id_conflict"), ("job-1", "id_conflict")]
    assert json.loads(letters[0][2])["headers"] == [["note", note], ["tranche.copies", "3"]]
    assert worker.log.read_text().count("event=dead_letter_goes_in_circles") == 1
    [(_, value, headers)] = site.copies()
    assert json.loads(value)["prompt"] == "second 1" and len(headers["tranche.source"]) > 12000
    assert next(iter(headers)) == "tranche.copies" and headers["tranche.copies"] == "1"


def test_refusals(redis_site):
    site = redis_site

    def refusal(*options, db=site.db, want=64):
        return site.call("worker", *SIM, "--source", site.source, "--db", db, "--connect-timeout",
                         "1s", *options, want=want).stderr.decode()

    assert "another queue" in refusal("--dead-letters-to", site.source)
    assert "no such stream" in refusal("--dead-letters-to", site.server.url("nowhere"),
                                       want=65)
    assert "postgres://" in refusal("--dead-letters-to", site.to, db="rows.db")


def test_a_worker_reads_only_what_is_to_be_copied(redis_site):
    site = redis_site
    site.send(jobs(2, "first"))
    site.send(jobs(2, "second"))
    site.finish()
    role = "w" + site.name
    assert site.postgres.ask(site.name, "SELECT count(*) FROM tranche.v_outbox", user=role) == [(0,)]
    site.postgres.ask(site.name, "UPDATE tranche.dead_letters SET copied_at = NULL")
    [(payload,)] = site.postgres.ask(
        site.name, "SELECT payload FROM tranche.v_outbox WHERE custom_id = 'job-0'", user=role)
    assert json.loads(bytes(payload))["prompt"] == "second 0"
    for statement in ("SELECT payload FROM tranche.dead_letters",
                      "UPDATE tranche.v_outbox SET payload = ''", "DELETE FROM tranche.v_outbox",
                      "INSERT INTO tranche.v_outbox (source_key) VALUES ('x')"):
        with pytest.raises(Exception, match="permission denied"):
            site.postgres.ask(site.name, statement, user=role)
