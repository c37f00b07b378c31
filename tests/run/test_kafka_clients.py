"""Kafka as operators run it: TLS with client certificates, SCRAM over TLS, a client that may do no
more than a worker must; and a producer that nobody here wrote, with transactions."""
import json
import os
import pathlib
import re
import sqlite3
import subprocess

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition

from authority import certificates
from kafka_broker import Broker
from rows_db import set_position
from secure_broker import SecureBroker

ROOT = pathlib.Path(__file__).resolve().parents[2]
FAST = "session.timeout.ms = 1500\nheartbeat.interval.ms = 300\n"


@pytest.fixture(scope="module")
def broker(tmp_path_factory):
    broker = SecureBroker(tmp_path_factory.mktemp("kafka")).start()
    yield broker
    broker.kill()


@pytest.fixture(scope="session")
def newest():
    """Environment in which the binary finds a newer client library than the distribution's."""
    folder = subprocess.run([f"{ROOT}/tools/librdkafka.sh"], check=True, stdout=subprocess.PIPE,
                            timeout=300).stdout.decode().strip()
    return {"LD_LIBRARY_PATH": folder}


@pytest.fixture
def call(binary, tmp_path):
    def run(*args, env=None, timeout=120):
        clean = {k: v for k, v in os.environ.items() if not k.startswith("TRANCHE_")}
        return subprocess.run([binary, *map(str, args)], cwd=tmp_path, timeout=timeout,
                              env={**clean, **(env or {})}, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE)
    return run


def work(call, url, config, tmp_path, *options, env=None):
    (tmp_path / "client.conf").write_text(FAST + config)
    return call("worker", "--engine=sim", "--source", url, "--db", "rows.db", "--broker-config",
                "client.conf", "--idle-exit", "500ms", "--flush-interval", "100ms",
                "--connect-timeout", "5s", "--progress", "off", *options, env=env)


def jobs(n, first=0):
    return [json.dumps({"id": f"job-{i}", "prompt": f"hello {i}", "max_tokens": 8})
            for i in range(first, first + n)]


def statuses(folder):
    db = sqlite3.connect(folder / "rows.db")
    found = db.execute("SELECT status, count(*), count(DISTINCT custom_id) FROM results GROUP BY 1")
    rows = found.fetchall()
    db.close()
    return rows


def test_client_certificates(call, broker, tmp_path):
    tls = broker.tls
    assert call("init", "--source", f"kafka://{broker.address}/mtls", "--partitions", 2
                ).returncode == 0
    broker.produce("mtls", jobs(300))
    url = f"kafka://localhost:{broker.ssl}/mtls"
    full = (f"security.protocol = ssl\nssl.ca.location = {tls}/ca.crt\n"
            f"ssl.certificate.location = {tls}/client.crt\nssl.key.location = {tls}/client.key\n")
    done = work(call, url, full, tmp_path)
    assert done.returncode == 0, done.stderr.decode()[-3000:]
    assert statuses(tmp_path) == [("ok", 300, 300)]
    # A broker that some other authority vouches for; a name that the certificate does not carry;
    # no certificate of our own.
    stranger = certificates(tmp_path / "stranger")
    broker.produce("mtls", jobs(1, 300))
    for wrong, at in ((full.replace(f"{tls}/ca.crt", f"{stranger}/ca.crt"), url),
                      (full, url.replace("localhost", "127.0.0.1")),
                      (f"security.protocol = ssl\nssl.ca.location = {tls}/ca.crt\n", url)):
        done = work(call, at, wrong, tmp_path)
        assert done.returncode == 69, (wrong, at, done.stderr.decode()[-2000:])
    assert statuses(tmp_path) == [("ok", 300, 300)]


def test_a_certificate_that_has_expired_is_named(call, broker, tmp_path):
    assert call("init", "--source", f"kafka://{broker.address}/old").returncode == 0
    done = work(call, f"kafka://localhost:{broker.old}/old",
                f"security.protocol = ssl\nssl.ca.location = {broker.tls}/old-ca.crt\n", tmp_path)
    said = done.stderr.decode()
    assert done.returncode == 69 and "certificate has expired" in said, said[-3000:]
    assert f"localhost:{broker.old}" in said.splitlines()[-1] and "expired" in said.splitlines()[-1]



def test_scram_with_no_more_rights_than_needed(call, broker, newest, tmp_path):
    plain = f"kafka://{broker.address}/scram"
    assert call("init", "--source", plain, "--group", "g", "--partitions", 2).returncode == 0
    broker.produce("scram", jobs(200))
    (tmp_path / "password").write_text("geheim\n")
    config = (f"security.protocol = sasl_ssl\nssl.ca.location = {broker.tls}/ca.crt\n"
              f"sasl.mechanism = SCRAM-SHA-512\nsasl.username = scram\n"
              f"sasl.password.file = {tmp_path}/password\n")

    def attempt(env):
        return work(call, f"kafka://localhost:{broker.sasl}/scram", config, tmp_path, "--group",
                    "g", env=env)
    done = attempt(newest)
    assert done.returncode == 65 and b"uthoriz" in done.stderr, "nothing was granted yet"
    broker.grant(["--operation", "Read", "--operation", "Describe", "--topic", "scram", "--topic", "absent"],
                 ["--operation", "Read", "--operation", "Describe", "--group", "g"])
    done = attempt(newest)
    assert done.returncode == 0, done.stderr.decode()[-3000:]
    assert statuses(tmp_path) == [("ok", 200, 200)]
    assert b"geheim" not in done.stderr
    # `init` wants Create where the topic is missing, and there alone.
    for topic, code, words in (("scram", 0, []), ("absent", 65, ["opic authorization failed", 'no topic "absent"'])):
        done = call("init", "--source", f"kafka://localhost:{broker.sasl}/{topic}", "--group", "g",
                    "--broker-config", "client.conf", env=newest)
        said = done.stderr.decode()
        assert done.returncode == code and all(w in said for w in words), said[-3000:]
    # The distribution's library cannot: whoever reads "invalid credentials" would look for a slip
    # in the password.
    done = attempt({})
    assert done.returncode in (0, 65)
    if done.returncode == 65:
        assert b"want librdkafka 2.6.1, found " in done.stderr
    (tmp_path / "password").write_text("wrong\n")
    done = attempt(newest)
    assert done.returncode == 65 and b"invalid credentials" in done.stderr
    assert b"want librdkafka" not in done.stderr


def test_each_command_with_no_more_rights_than_needed(call, broker, newest, tmp_path):
    """The table of users in docs/kafka.md, one right after the other."""
    plain = f"kafka://{broker.address}/desk"
    assert call("init", "--source", plain, "--group", "desk").returncode == 0
    broker.produce("desk", jobs(4))
    assert work(call, plain, "", tmp_path, "--group", "desk").returncode == 0
    broker.produce("desk", jobs(2, 4))
    (tmp_path / "password").write_text("geheim\n")
    (tmp_path / "client.conf").write_text(
        f"security.protocol = sasl_ssl\nssl.ca.location = {broker.tls}/ca.crt\n"
        f"sasl.mechanism = SCRAM-SHA-512\nsasl.username = scram\n"
        f"sasl.password.file = {tmp_path}/password\n")
    (tmp_path / "more.jsonl").write_text(jobs(1, 6)[0] + "\n")
    commands = {"status": ["--group", "desk", "--json"],
                "seek": ["--group", "desk", "--to", "earliest"],
                "look": ["--group", "desk", "--to", "earliest", "--dry-run"],
                "audit": ["--group", "desk", "--range", "0..6"],
                "requeue": ["--group", "desk", "--range", "0..6", "--requeue"],
                "smoke": ["--group", "desk", "--timeout", "1s"],
                "doctor": ["--group", "desk", "--json"],
                "submit": ["more.jsonl"]}

    def attempt(name):
        words = {"look": "seek", "requeue": "audit"}
        db = [] if name == "submit" else ["--db", "rows.db"]
        engine = ["--engine", "sim"] if name == "doctor" else []
        done = call(words.get(name, name), *commands[name], "--source",
                    f"kafka://localhost:{broker.sasl}/desk", *db, *engine, "--broker-config",
                    "client.conf", "--connect-timeout", "10s", env=newest)
        said = (done.stdout + done.stderr).decode()
        if name == "doctor":
            found = json.loads(done.stdout)["checks"]
            return [c for c in found if c["verdict"] == "fault"]
        return done.returncode, said

    for name in ("status", "submit"):
        assert attempt(name)[0] == 65, name
    broker.grant(["--operation", "Describe", "--topic", "desk"],
                 ["--operation", "Describe", "--group", "desk"])
    assert attempt("status")[0] == 0 and attempt("look")[0] == 0
    for name in ("seek", "audit", "submit"):
        code, said = attempt(name)
        assert code == 65 and "uthoriz" in said, (name, code, said)
    assert [c["check"] for c in attempt("doctor")] == ["rights"]
    broker.grant(["--operation", "Read", "--topic", "desk"])
    code, said = attempt("audit")
    assert code == 3 and "messages=6 present=4" in said, said
    assert attempt("doctor") == []
    for name in ("seek", "requeue", "submit"):
        code, said = attempt(name)
        assert code == 65 and "uthoriz" in said, (name, code, said)
    broker.grant(["--operation", "Write", "--topic", "desk"])
    code, said = attempt("requeue")
    assert code == 0 and "requeued=2" in said, said
    code, said = attempt("smoke")
    assert code == 3 and "messages of" in said, said
    assert attempt("submit")[0] == 0
    broker.grant(["--operation", "Read", "--group", "desk"])
    code, said = attempt("seek")
    assert code == 0 and "moved" in said, said


def test_init_again(call, broker):
    """A topic that is there is no error, and an offset that is there stays."""
    url = f"kafka://{broker.address}/again"
    assert call("init", "--source", url, "--partitions", 2).returncode == 0
    broker.produce("again", jobs(5))
    again = call("init", "--source", url, "--partitions", 4)
    assert again.returncode == 0, again.stderr.decode()[-3000:]
    group = Consumer({"bootstrap.servers": broker.address, "group.id": "tranche"})
    known = group.list_topics("again", timeout=30).topics["again"].partitions
    places = group.committed([TopicPartition("again", p) for p in known], timeout=30)
    group.close()
    assert [p.offset for p in places] == [0, 0]


def test_odd_messages(call, broker, tmp_path):
    """Headers that say what the message does not, too many of them, no value, no text: a row each."""
    url = f"kafka://{broker.address}/odd"
    assert call("init", "--source", url, "--partitions", 1).returncode == 0
    plain = json.dumps({"prompt": "hello", "max_tokens": 4})
    many = [("n", b"v")] * 100
    messages = [(plain, [("tranche-job-id", b"by-header"), ("traceparent", b"00-ab-cd-01")]),
                (jobs(1)[0], [("tranche-job-id", b"other")]),
                (plain, [("tranche-job-id", b"late"), ("tranche-deadline", b"2020-01-01T00:00:00Z")]),
                (plain, [("tranche-job-id", b"late-s"), ("tranche-deadline", b"1600000000")]),
                (plain, [("tranche-job-id", b"when"), ("tranche-deadline", b"soon")]),
                (plain, [("tranche-job-id", b"\xff\xfe")]),
                (plain, [("tranche-job-id", b"many")] + many),
                (plain, [("tranche-job-id", b"long"), ("x", b"y" * 9000), ("z", b"")]),
                ("\xff", [("tranche-job-id", b"no-json")]), (None, None), ("", None)]
    producer = Producer({"bootstrap.servers": broker.address})
    for value, headers in messages:
        producer.produce("odd", value if value is None else value.encode("latin-1"), headers=headers)
    assert producer.flush(30) == 0
    done = work(call, url, "", tmp_path)
    assert done.returncode == 0, done.stderr.decode()[-3000:]
    db = sqlite3.connect(tmp_path / "rows.db")
    rows = db.execute("SELECT custom_id, status, source FROM results ORDER BY "
                      "json_extract(source, '$.offset')").fetchall()
    db.close()
    assert [(i, s) for i, s, _ in rows] == [
        ("by-header", "ok"), ("job-0", "ok"), ("late", "expired"), ("late-s", "expired"),
        ("when", "invalid"), ("odd/0/5", "invalid"), ("many", "ok"), ("long", "ok"),
        ("no-json", "invalid"), ("odd/0/9", "invalid"), ("odd/0/10", "invalid")]
    sources = [json.loads(source) for _, _, source in rows]
    assert sources[0]["headers"][1] == ["traceparent", "00-ab-cd-01"]
    assert len(sources[6]["headers"]) == 64 and sources[6]["headers_left_out"] == 37
    assert len(sources[7]["headers"]) == 1 and sources[7]["headers_left_out"] == 2


def test_transactions_of_another_producer(call, broker, tmp_path):
    """Committed messages have rows, aborted ones none, and the group's position ends behind the
    markers: a lag that stays at 1 would keep a pod alive for ever."""
    url = f"kafka://{broker.address}/tx"
    assert call("init", "--source", url, "--partitions", 1).returncode == 0
    producer = Producer({"bootstrap.servers": broker.address, "transactional.id": "tx-1"})
    producer.init_transactions(30)
    for first, keep in ((0, True), (50, False), (100, True)):
        producer.begin_transaction()
        for job in jobs(50, first):
            producer.produce("tx", job.encode())
        producer.flush(30)
        producer.commit_transaction(30) if keep else producer.abort_transaction(30)
    done = work(call, url, "", tmp_path)
    assert done.returncode == 0, done.stderr.decode()[-3000:]
    assert statuses(tmp_path) == [("ok", 100, 100)]
    group = Consumer({"bootstrap.servers": broker.address, "group.id": "tranche"})
    place = TopicPartition("tx", 0)
    end = group.get_watermark_offsets(place, timeout=30)[1]
    committed = group.committed([place], timeout=30)[0].offset
    group.close()
    assert committed == end == 153, "three markers stand between and behind 150 messages"

    # The stored position is behind the last message, before its marker: nothing is to be done again.
    again = work(call, url, "", tmp_path)
    assert again.returncode == 0, again.stderr.decode()[-3000:]
    assert b"event=partition_start partition=0 position=152" in again.stderr
    assert b"progress_behind_group" not in again.stderr
    set_position(tmp_path / "rows.db", 151)
    back = work(call, url, "", tmp_path, "--idle-exit", "3s")
    assert back.returncode == 0, back.stderr.decode()[-3000:]
    assert b"event=progress_behind_group partition=0 progress=151 committed=153" in back.stderr
    assert statuses(tmp_path) == [("ok", 100, 100)]


def assignors(process):
    found = re.findall(r"event=(?:kafka_open|kafka_classic_group).*", process.stderr.decode())
    return [re.sub(r".*?(assignor|code)=(\S+).*", r"\2", line) for line in found]


def test_group_protocol_is_the_best_that_both_sides_have(call, broker, newest, tmp_path):
    url = f"kafka://{broker.address}/protocols"
    assert call("init", "--source", url, "--partitions", 3).returncode == 0

    def batch(first, config, env, group):
        broker.produce("protocols", jobs(60, first))
        (tmp_path / "client.conf").write_text(config)
        done = call("worker", "--engine=sim", "--source", url, "--db", "rows.db", "--idle-exit",
                    "500ms", "--flush-interval", "100ms", "--progress", "off", "--group", group,
                    "--broker-config", "client.conf", env=env)
        assert done.returncode == 0, done.stderr.decode()[-3000:]
        assert statuses(tmp_path) == [("ok", first + 60, first + 60)]
        return assignors(done)
    assert batch(0, "", newest, "new") == ["consumer"]
    assert batch(60, FAST, newest, "named") == ["cooperative-sticky"]  # asks for the classic one
    assert batch(120, "", {}, "new") in (["roundrobin"], ["cooperative-sticky"], ["consumer"])


def test_a_broker_without_the_new_protocol(call, newest, tmp_path):
    broker = Broker(tmp_path / "kafka")
    with open(broker.properties, "a") as f:
        f.write("group.coordinator.rebalance.protocols=classic\n")
    broker.start()
    try:
        url = f"kafka://{broker.address}/old"
        assert call("init", "--source", url, "--partitions", 2).returncode == 0
        broker.produce("old", jobs(60))
        done = call("worker", "--engine=sim", "--source", url, "--db", "rows.db", "--idle-exit",
                    "500ms", "--flush-interval", "100ms", "--progress", "off", env=newest)
        assert done.returncode == 0, done.stderr.decode()[-3000:]
        assert assignors(done)[0] == "consumer" and len(assignors(done)) == 2
        assert statuses(tmp_path) == [("ok", 60, 60)]
    finally:
        broker.kill()
