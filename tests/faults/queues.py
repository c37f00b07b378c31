"""The two brokers behind one face: make, send (into a ledger), what is acknowledged, what is left."""
import struct
import socket
import time

import confluent_kafka
import confluent_kafka.admin
import redis

LEASE_MS = 1500


class RedisQueue:
    kind = "redis"
    trim_keep = "2s"

    def __init__(self, port, name, group="g", host="127.0.0.1"):
        self.port, self.name, self.group, self.host = port, name, group, host
        self.client = redis.Redis(host=host, port=port, decode_responses=True, socket_timeout=20)

    def make(self):
        self.client.xgroup_create(self.name, self.group, "0", mkstream=True)

    def url(self, port=None):
        return f"redis://127.0.0.1:{port or self.port}/{self.name}"

    def config(self):
        return f"lease = {LEASE_MS}ms\ntrim.keep = {self.trim_keep}\n"

    def send(self, jobs, ledger):
        """jobs: (id, text)."""
        for at in range(0, len(jobs), 500):
            part = jobs[at:at + 500]
            ledger.intend([i for i, _ in part])
            pipe = self.client.pipeline(transaction=False)
            for _, text in part:
                pipe.xadd(self.name, {"job": text})
            answers = pipe.execute(raise_on_error=False)
            ledger.promise([(i, a) for (i, _), a in zip(part, answers) if isinstance(a, str)])
            failed = [a for a in answers if not isinstance(a, str)]
            if failed:
                raise failed[0]

    def acknowledged(self):
        """(id up to which was delivered, ids of these that are pending), in one instant."""
        pipe = self.client.pipeline(transaction=True)
        pipe.xinfo_groups(self.name)
        pipe.xpending_range(self.name, self.group, "-", "+", 10000000)
        groups, pending = pipe.execute()
        last = next(g["last-delivered-id"] for g in groups if g["name"] == self.group)
        return last, {p["message_id"] for p in pending}

    def left(self):
        """Messages without an acknowledgement."""
        group = next(g for g in self.client.xinfo_groups(self.name) if g["name"] == self.group)
        return (group["lag"] or 0) + group["pending"]

    def drop(self):
        self.client.delete(self.name)


def redis_key(stream_id):
    ms, seq = stream_id.split("-")
    return int(ms), int(seq)


class KafkaQueue:
    kind = "kafka"
    session_ms = 1500

    def __init__(self, address, name, group=None, partitions=3):
        self.address, self.name, self.partitions = address, name, partitions
        self.group = group or f"g-{name}"  # members of other topics would rebalance ours
        self.producer_ = self.observer_ = None

    def admin(self):
        return confluent_kafka.admin.AdminClient({"bootstrap.servers": self.address})

    def make(self):
        admin = self.admin()  # its answers end with it
        for _ in range(60):
            made = admin.create_topics([confluent_kafka.admin.NewTopic(
                self.name, self.partitions, 1)])
            try:
                made[self.name].result(20)
                return
            except confluent_kafka.KafkaException as e:
                if e.args[0].code() != confluent_kafka.KafkaError.TOPIC_ALREADY_EXISTS:
                    raise
                time.sleep(0.5)  # being deleted

    def url(self, port=None):
        return f"kafka://{'127.0.0.1:%d' % port if port else self.address}/{self.name}"

    def config(self):
        return (f"session.timeout.ms = {self.session_ms}\nheartbeat.interval.ms = 300\n"
                "reconnect.backoff.max.ms = 500\n")

    def send(self, jobs, ledger, partition=None):
        if not self.producer_:
            self.producer_ = confluent_kafka.Producer({
                "bootstrap.servers": self.address, "acks": "all", "linger.ms": 5, "log_level": 0,
                "sticky.partitioning.linger.ms": 0,
                "enable.idempotence": True, "message.timeout.ms": 60000})
        done, failed = [], []

        def delivered(job_id):
            def report(error, message):
                if error:
                    failed.append(error)
                else:
                    done.append((job_id, [message.partition(), message.offset()]))
            return report
        ledger.intend([i for i, _ in jobs])
        where = {} if partition is None else {"partition": partition}
        for job_id, text in jobs:
            data = text if isinstance(text, (bytes, type(None))) else text.encode()
            while True:
                try:
                    self.producer_.produce(self.name, data, on_delivery=delivered(job_id), **where)
                    break
                except BufferError:
                    self.producer_.poll(0.1)
        self.producer_.flush(90)
        ledger.promise(done)
        if failed or len(done) < len(jobs):
            raise RuntimeError(f"{len(done)} of {len(jobs)} acknowledged; {failed[:1]}")

    def reader(self):
        if not self.observer_:
            self.observer_ = confluent_kafka.Consumer({
                "bootstrap.servers": self.address, "group.id": self.group, "log_level": 0,
                "enable.auto.commit": False})
        return self.observer_

    def places(self):
        return [confluent_kafka.TopicPartition(self.name, p) for p in range(self.partitions)]

    def acknowledged(self):
        """The group's offset of each partition; None: none yet."""
        for again in range(40):  # a coordinator that has just moved or loads has no answer yet
            try:
                found = self.reader().committed(self.places(), timeout=5)
                for t in found:
                    if t.error:
                        raise confluent_kafka.KafkaException(t.error)
                break
            except confluent_kafka.KafkaException:
                if again == 39:
                    raise
                time.sleep(0.25)
        return {t.partition: t.offset if t.offset >= 0 else None for t in found}

    def ends(self):
        for again in range(40):
            try:
                return {t.partition: self.reader().get_watermark_offsets(t, timeout=10)
                        for t in self.places()}
            except confluent_kafka.KafkaException:  # not yet in this client's view of the cluster
                if again == 39:
                    raise
                self.reader().list_topics(self.name, timeout=10)
                time.sleep(0.25)

    def left(self):
        at = self.acknowledged()
        return sum(high - min(max(at[p] or 0, low), high) for p, (low, high) in self.ends().items())

    def drop(self):
        if self.observer_:
            self.observer_.close()
        self.observer_ = self.producer_ = None
        admin = self.admin()
        admin.delete_topics([self.name])[self.name].result(20)

    # What the installed client cannot ask: two requests of the protocol by hand.

    def request(self, key, body):
        def text(s):
            return struct.pack(">h", len(s)) + s.encode()
        host, port = self.address.split(":")
        with socket.create_connection((host, int(port)), 10) as link:
            head = struct.pack(">hhi", key, 0, 7) + text("campaign")
            link.sendall(struct.pack(">i", len(head + body)) + head + body)
            answer = b""
            while len(answer) < 4 or len(answer) < 4 + struct.unpack(">i", answer[:4])[0]:
                more = link.recv(65536)
                if not more:
                    raise ConnectionError("the broker hung up")
                answer += more
        return answer[8:]

    def delete_group(self):
        name = self.group.encode()
        answer = self.request(42, struct.pack(">ih", 1, len(name)) + name)
        [code] = struct.unpack(">h", answer[-2:])
        return code

    def delete_records(self, before):
        """before: {partition: offset}: messages below are gone, as by retention."""
        name = self.name.encode()
        body = struct.pack(">ih", 1, len(name)) + name + struct.pack(">i", len(before))
        for partition, offset in before.items():
            body += struct.pack(">iq", partition, offset)
        self.request(21, body + struct.pack(">i", 10000))
