"""The doctor as runbook: every fault of a server or a container that it knows is made here, on real
servers, and every answer names check, severity and mend."""
import json
import os
import pathlib
import shutil
import subprocess
import tempfile
import time

import pytest

from kafka_broker import free_ports
from postgres_server import Server as Postgres
from redis_server import Server as Redis, certificates
from secure_broker import SecureBroker

LEVELS = {"ok": 0, "warn": 1, "fault": 2}


@pytest.fixture
def ask(binary, tmp_path):
    """ask(options..., before=[...]) -> {check: [(verdict, text), ...]}; the exit code is checked."""
    def call(*options, before=(), wait="30s"):
        clean = {k: v for k, v in os.environ.items() if not k.startswith("TRANCHE_")}
        done = subprocess.run([*map(str, before), binary, "doctor", "--json", "--engine",
                               "sim", "--connect-timeout", wait, *map(str, options)],
                              cwd=tmp_path, env=clean,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=120,
                              stdin=subprocess.DEVNULL, check=False)
        assert done.stdout, done.stderr.decode()
        found = json.loads(done.stdout)
        worst = max(LEVELS[c["verdict"]] for c in found["checks"])
        assert done.returncode == worst, done.stderr.decode()
        checks = {}
        for c in found["checks"]:
            assert c["verdict"] == "ok" or c["mend"], c
            checks.setdefault(c["check"], []).append((c["verdict"], c["text"]))
        return checks
    return call


def said(checks, check, verdict, *words):
    """The check has such a verdict whose text holds the words."""
    assert any(v == verdict and all(w in text for w in words) for v, text in checks.get(check, [])), \
        checks.get(check, checks)


def skewed(seconds):
    return ["faketime", "--exclude-monotonic", "-f", f"{seconds:+d}s"]


# ---- Redis ----

@pytest.fixture(scope="module")
def redis_server(tmp_path_factory):
    s = Redis(tmp_path_factory.mktemp("redis"))
    yield s
    s.stop()


def stream(client, name, n=10):
    client.delete(name)
    client.xgroup_create(name, "tranche", "0", mkstream=True)
    return [client.xadd(name, {"job": "{}"}) for _ in range(n)]


def test_redis_is_well(ask, redis_server):
    client = redis_server.client()
    stream(client, "well")
    client.xreadgroup("tranche", "somebody", {"well": ">"}, count=4)
    checks = ask("--source", redis_server.url("well"))
    for check in ("broker", "clock", "group", "lag", "rights"):
        assert [v for v, _ in checks[check]] == ["ok"], checks[check]
    said(checks, "lag", "ok", "6 unread and 4 pending")
    assert [c["name"] for c in client.xinfo_consumers("well", "tranche")] == ["somebody"], \
        "a question leaves nothing behind"


def test_redis_away_and_misnamed(ask, redis_server):
    [port] = free_ports(1)
    said(ask("--source", f"redis://127.0.0.1:{port}/jobs", wait="1s"), "broker", "fault", str(port))
    said(ask("--source", redis_server.url("nobody")), "group", "fault", "no such stream")
    redis_server.client().set("text", "x")
    said(ask("--source", redis_server.url("text")), "group", "fault")
    said(ask("--source", "redis://192.0.2.1/jobs"), "broker", "fault", "allow-insecure")
    for scheme in ("redis-sentinel", "rediss-sentinel"):  # that of a worker's URL
        said(ask("--source", f"{scheme}://127.0.0.1:{port}/jobs"), "broker", "fault", "sentinel.master")
    said(ask("--source", "http://127.0.0.1/jobs"), "broker", "fault", "http")
    said(ask("--source", "file://missing.jsonl"), "broker", "fault", "missing.jsonl")


def test_redis_lag_that_a_scaler_misreads(ask, redis_server):
    client = redis_server.client()
    ids = stream(client, "unknown")
    client.xdel("unknown", ids[6])
    said(ask("--source", redis_server.url("unknown")), "lag", "fault", "empty queue")
    stream(client, "cut")
    client.xreadgroup("tranche", "somebody", {"cut": ">"}, count=2)
    client.xtrim("cut", maxlen=3, approximate=False)
    said(ask("--source", redis_server.url("cut")), "lag", "fault", "8 unread", "holds 3")


def test_redis_entries_of_the_dead(ask, redis_server):
    client = redis_server.client()
    ids = stream(client, "orphans")
    client.xreadgroup("tranche", "dead", {"orphans": ">"}, count=4)
    client.xclaim("orphans", "tranche", "dead", 0, ids[:3], idle=3600_000)
    said(ask("--source", redis_server.url("orphans")), "pending", "warn", "3 entries")


def test_redis_that_forgets(ask, tmp_path):
    s = Redis(tmp_path / "redis")
    try:
        client = s.client()
        stream(client, "jobs")
        client.config_set("appendonly", "no")
        client.config_set("maxmemory", "64mb")
        client.config_set("maxmemory-policy", "allkeys-lru")
        checks = ask("--source", s.url())
        said(checks, "broker", "warn", "appendonly")
        said(checks, "broker", "fault", "allkeys-lru")
    finally:
        s.stop()


@pytest.mark.parametrize("seconds,verdict", [(-300, "fault"), (20, "warn")])
def test_redis_clock(ask, redis_server, seconds, verdict):
    stream(redis_server.client(), "clock", 1)
    said(ask("--source", redis_server.url("clock"), before=skewed(seconds)), "clock", verdict,
         "Redis", "ahead of" if seconds < 0 else "behind")


def test_redis_users_and_certificates(ask, tmp_path):
    tls = certificates(tmp_path / "tls")
    s = Redis(tmp_path / "redis-tls", tls=tls)
    least = "+xreadgroup +xautoclaim +xack +xclaim +xpending +xinfo +xtrim +xgroup +eval +time"
    try:
        client = s.client()
        stream(client, "jobs")
        client.execute_command("ACL", "SETUSER", "worker", "on", ">secret", "resetchannels", "~jobs",
                               *least.split())
        (tmp_path / "secret").write_text("secret\n")
        config = tmp_path / "broker.conf"
        text = (f"username = worker\npassword.file = {tmp_path}/secret\ntls.ca.file = {tls}/ca.crt\n"
                f"tls.cert.file = {tls}/client.crt\ntls.key.file = {tls}/client.key\n")
        config.write_text(text)
        options = ["--source", s.url(), "--broker-config", config]
        checks = ask(*options)
        assert [v for v, _ in checks["rights"]] == ["ok"]
        said(checks, "tls", "warn", "the server's certificate", "days left")
        said(checks, "tls", "warn", "client.crt")
        said(ask(*options, before=skewed(3 * 86400), wait="1s"), "tls", "fault", "client.crt", "expired")
        client.execute_command("ACL", "SETUSER", "worker", "-xack", "-eval")
        said(ask(*options), "rights", "fault", "XACK EVAL")
        client.execute_command("ACL", "SETUSER", "worker", "~*", "+@all")
        said(ask(*options), "rights", "warn", "more than a worker needs")
        (tmp_path / "secret").write_text("wrong\n")
        said(ask(*options, wait="3s"), "broker", "fault", "WRONGPASS")
        (tmp_path / "secret").write_text("secret\n")
        stranger = certificates(tmp_path / "stranger")
        config.write_text(text.replace(f"{tls}/ca.crt", f"{stranger}/ca.crt"))
        said(ask(*options, wait="8s"), "broker", "fault", "certificate")
    finally:
        s.stop()


# ---- Kafka ----

@pytest.fixture(scope="module")
def broker(tmp_path_factory):
    broker = SecureBroker(tmp_path_factory.mktemp("kafka"))
    run = lambda *a: subprocess.run(["openssl", *a], cwd=broker.tls, check=True, capture_output=True)
    run("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj",
        "/CN=plain", "-keyout", "plain.key", "-out", "plain.csr")
    run("x509", "-req", "-in", "plain.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial",
        "-days", "2", "-out", "plain.crt")
    broker.start()
    yield broker
    broker.kill()


def commit(broker, topic, offsets, group="tranche"):
    from confluent_kafka import Consumer, TopicPartition
    consumer = Consumer({"bootstrap.servers": broker.address, "group.id": group})
    consumer.commit(offsets=[TopicPartition(topic, p, o) for p, o in offsets.items()],
                    asynchronous=False)
    consumer.close()


def topic(binary, broker, name, n=0):
    subprocess.run([binary, "init", "--source", f"kafka://{broker.address}/{name}", "--partitions",
                    "2"], check=True, capture_output=True, timeout=120)
    if n:
        broker.produce(name, ["{}"] * n, "-p", "0")
    return f"kafka://{broker.address}/{name}"


def test_kafka_is_well(ask, binary, broker):
    url = topic(binary, broker, "well", 7)
    checks = ask("--source", url)
    for check in ("broker", "topic", "group", "lag"):
        assert [v for v, _ in checks[check]] == ["ok"], checks[check]
    said(checks, "lag", "ok", "7 messages, and KEDA reads as many")
    said(checks, "rights", "ok", "may be read")


def test_kafka_away_and_misnamed(ask, broker):
    [port] = free_ports(1)
    said(ask("--source", f"kafka://127.0.0.1:{port}/jobs", wait="2s"), "broker", "fault", str(port))
    said(ask("--source", f"kafka://{broker.address}/nobody"), "topic", "fault", "nobody",
         "tranche init")


def test_kafka_offsets(ask, binary, broker, tmp_path):
    url = topic(binary, broker, "offsets", 9)
    checks = ask("--source", url, "--group", "newcomer")
    said(checks, "group", "warn", "no offset on 2 of 2")
    commit(broker, "offsets", {0: 3, 1: 0})
    said(ask("--source", url), "lag", "ok", "6 messages")
    commit(broker, "offsets", {0: 40})
    said(ask("--source", url), "offsets", "fault", "1 partitions", "refused")
    commit(broker, "offsets", {0: 2})
    (tmp_path / "cut.json").write_text(json.dumps(
        {"partitions": [{"topic": "offsets", "partition": 0, "offset": 5}], "version": 1}))
    broker.java("org.apache.kafka.tools.DeleteRecordsCommand", "--bootstrap-server", broker.address,
                "--offset-json-file", str(tmp_path / "cut.json"))
    checks = ask("--source", url)
    said(checks, "offsets", "fault", "removed 3 messages")
    said(checks, "lag", "warn", "KEDA reads 7", "4 are there")


def test_kafka_users_and_certificates(ask, binary, broker, tmp_path):
    topic(binary, broker, "rights", 3)
    tls, config = broker.tls, tmp_path / "client.conf"
    options = ["--source", f"kafka://localhost:{broker.ssl}/rights", "--broker-config", config]

    def client(name, ca=tls):
        config.write_text(f"security.protocol = ssl\nssl.ca.location = {ca}/ca.crt\n"
                          f"ssl.certificate.location = {tls}/{name}.crt\n"
                          f"ssl.key.location = {tls}/{name}.key\n")

    def grant(*rule):
        broker.java("org.apache.kafka.tools.AclCommand", "--bootstrap-server", broker.address,
                    "--add", "--allow-principal", "User:CN=plain", *rule)
    client("client")
    checks = ask(*options)
    said(checks, "rights", "warn", "settings")
    said(checks, "tls", "warn", "the broker's certificate")
    said(checks, "tls", "warn", "client.crt")
    client("plain")
    said(ask(*options), "topic", "fault", "uthoriz")
    grant("--operation", "Describe", "--topic", "rights")
    said(ask(*options), "group", "fault", "uthoriz")
    grant("--operation", "Read", "--group", "tranche")
    said(ask(*options), "rights", "fault", "uthoriz")
    grant("--operation", "Read", "--topic", "rights")
    checks = ask(*options)
    assert {v for v, _ in checks["rights"]} == {"ok"}, checks["rights"]
    client("client", certificates(tmp_path / "stranger"))
    said(ask(*options, wait="8s"), "broker", "fault", "certificate")
    config.write_text("sasl.pasword = x\n")
    said(ask(*options), "broker", "fault", "sasl.pasword")


# ---- PostgreSQL ----

@pytest.fixture(scope="module")
def postgres():
    with Postgres() as server:
        yield server


@pytest.fixture
def database(postgres, tranche):
    name = f"d{time.monotonic_ns()}"
    postgres.ask("postgres", f"CREATE DATABASE {name}")
    done = tranche("migrate", "--db", postgres.url(name))
    assert done.returncode == 0, done.stderr.decode()
    postgres.ask("postgres", f"CREATE ROLE w{name} LOGIN IN ROLE tranche_worker")
    yield name
    postgres.ask("postgres", f"DROP DATABASE {name} WITH (FORCE)")


def test_postgres_is_well(ask, postgres, database):
    checks = ask("--db", postgres.url(database, "w" + database))
    for check in ("database", "roles", "clock"):
        assert [v for v, _ in checks[check]] == ["ok"], checks[check]
    said(checks, "database", "ok", f"user w{database}")


def test_postgres_roles(ask, postgres, database):
    worker = postgres.url(database, "w" + database)
    said(ask("--db", postgres.url(database)), "roles", "warn", "superuser")
    postgres.ask(database, "REVOKE DELETE ON tranche.parked FROM tranche_worker")
    said(ask("--db", worker), "roles", "fault", "parked DELETE")
    postgres.ask(database, "GRANT DELETE ON tranche.parked, tranche.results TO tranche_worker")
    said(ask("--db", worker), "roles", "warn", "may change rows")
    postgres.ask(database, f"REVOKE tranche_worker FROM w{database}")
    said(ask("--db", worker), "database", "fault", "permission denied")


def test_postgres_schema_and_server(ask, postgres, database):
    worker = postgres.url(database, "w" + database)
    postgres.ask(database, "INSERT INTO tranche.schema_migrations (version, name) VALUES (99, 'x')")
    said(ask("--db", worker), "database", "fault", "99")
    said(ask("--db", postgres.url("postgres")), "database", "fault", "migrate")
    said(ask("--db", postgres.url("nowhere")), "database", "fault", "nowhere")
    [port] = free_ports(1)
    said(ask("--db", postgres.url(database, host="127.0.0.1", port=port)), "database", "fault",
         "refused")


@pytest.mark.parametrize("seconds,verdict", [(300, "fault"), (-20, "warn")])
def test_postgres_clock(ask, postgres, database, seconds, verdict):
    said(ask("--db", postgres.url(database, "w" + database), before=skewed(seconds)), "clock",
         verdict, "database server")


def test_postgres_certificate(ask, postgres, database, tmp_path):
    tls = certificates(tmp_path / "tls")
    for end in ("crt", "key"):
        to = postgres.data / f"server.{end}"
        shutil.copy(tls / f"server.{end}", to)
        os.chmod(to, 0o600)
        if os.getuid() == 0:
            shutil.chown(to, "postgres", "postgres")
    postgres.ask("postgres", "ALTER SYSTEM SET ssl = on")
    postgres.reload()
    postgres.ask("postgres", f"ALTER ROLE w{database} PASSWORD 'known'")
    (tmp_path / "password").write_text("known")

    def look(ca):
        return ask("--db-password-file", tmp_path / "password", "--db", postgres.url(
            database, "w" + database, "localhost", sslmode="verify-full", sslrootcert=ca / "ca.crt"))
    until = time.monotonic() + 30
    checks = look(tls)
    while "tls" not in checks and time.monotonic() < until:  # a reload takes a moment
        checks = look(tls)
    said(checks, "tls", "warn", "the database server's certificate")
    said(checks, "tls", "warn", "ca.crt")
    said(look(certificates(tmp_path / "stranger")), "database", "fault", "certificate")
    (tmp_path / "password").write_text("wrong")
    said(look(tls), "database", "fault", "password")


# ---- the machine ----

def test_grace(ask, postgres, database, tiny_model):
    checks = ask("--grace", "1ms", "--engine", "model", "--device", "cpu", "--model", tiny_model,
                 "--db", postgres.url(database, "w" + database))
    said(checks, "grace", "warn", "0.0 s at SIGTERM")
    said(checks, "grace", "warn", "to park every slot's longest row")
    checks = ask("--grace", "10m", "--engine", "model", "--device", "cpu", "--model", tiny_model,
                 "--db", postgres.url(database, "w" + database))
    assert [v for v, _ in checks["grace"]] == ["ok"]


def test_spool(ask, tmp_path):
    said(ask("--spool-dir", "missing"), "spool", "fault", "missing")
    (tmp_path / "file").write_text("")
    said(ask("--spool-dir", "file"), "spool", "fault", "no folder")
    (tmp_path / "spool").mkdir()
    said(ask("--spool-dir", "spool"), "spool", "ok", "free")
    said(ask("--spool-dir", "spool", "--spool-bytes", "1TiB"), "spool", "warn", "1048576 MiB")


needs_root = pytest.mark.skipif(os.getuid() != 0, reason="want root, for another user's folder and "
                                "a mount namespace")


@needs_root
def test_folders_of_another_user(binary, tiny_model):
    with tempfile.TemporaryDirectory() as made:
        folder = pathlib.Path(made)
        os.chmod(folder, 0o755)
        shutil.copy(binary, folder / "tranche")
        shutil.copytree(tiny_model, folder / "model")
        os.chmod(folder / "model", 0o750)
        (folder / "spool").mkdir(mode=0o700)
        done = subprocess.run(["setpriv", "--reuid=65534", "--regid=65533", "--clear-groups",
                               folder / "tranche", "doctor", "--json", "--spool-dir",
                               folder / "spool", "--model", folder / "model", "--db", "/tmp/x.db"],
                              stdout=subprocess.PIPE, cwd=folder, timeout=60, check=False)
    checks = {c["check"]: c for c in json.loads(done.stdout)["checks"] if c["verdict"] == "fault"}
    assert "user 65534 cannot write: owner 0, mode 700" in checks["spool"]["text"]
    assert "user 65534 of group 65533 may not read it: owner 0, group 0, mode 750" in \
        checks["folder"]["text"]


GROUP_FILES = {
    "v1": "mkdir memory cpu && echo 268435456 >memory/memory.limit_in_bytes"
          " && echo 1000000 >memory/memory.usage_in_bytes && echo 50000 >cpu/cpu.cfs_quota_us"
          " && echo 100000 >cpu/cpu.cfs_period_us",
    "v2": "echo 268435456 >memory.max && echo 1000000 >memory.current && echo '50000 100000' >cpu.max",
}


@needs_root
@pytest.mark.parametrize("version", GROUP_FILES)
def test_control_group(ask, version):
    """A control group's files as a container sees them; the doctor reads no others."""
    if version == "v1" and ":memory:" not in pathlib.Path("/proc/self/cgroup").read_text():
        pytest.skip("this kernel has no control groups of version 1")
    script = (f"mount -t tmpfs none /sys/fs/cgroup && cd /sys/fs/cgroup && {GROUP_FILES[version]}"
              " && cd - >/dev/null && exec \"$@\"")
    before = ["unshare", "-m", "sh", "-c", script, "sh"]
    checks = ask("--memory-limit", "256MiB", "--threads", "2", before=before)
    said(checks, "limits", "warn", "--memory-limit is 256 MiB")
    said(checks, "threads", "warn", "0.5 CPUs")
    said(ask("--memory-limit", "200MiB", before=before), "limits", "ok", "256 MiB")
