"""Redis streams against a real server: the life of a job, leases, trimming, faults, TLS."""
import json
import os
import random
import signal
import sqlite3
import subprocess
import time

import pytest

import redis
from redis_server import (Server, acknowledged, at_rest, certificates, expire, free_port, group,
                          wait_until)
from tcp_proxy import Proxy

SEED = int(os.environ.get("TRANCHE_SEED", "1"))
KILLS = int(os.environ.get("TRANCHE_REDIS_KILLS", "24"))
QUIET = {"redis_not_durable"}


@pytest.fixture
def server(tmp_path):
    s = Server(tmp_path / "redis")
    s.client().xgroup_create("jobs", "g", "0", mkstream=True)
    yield s
    s.stop()


@pytest.fixture
def worker(binary, tmp_path):
    """worker(server, *options, lease=...) -> Popen; whoever is left at the end is killed."""
    started = []

    def start(server, *options, lease="2s", extra="", name=None, db="rows.db", url=None,
              config=None, idle="1s"):
        if config is None:
            config = tmp_path / f"broker-{len(started)}.conf"
            config.write_text(f"lease = {lease}\n{extra}")
        log = open(tmp_path / f"worker-{len(started)}.log", "wb")
        command = [binary, "worker", "--engine", "sim", "--sim-tokens", "8", "--source",
                   url or server.url(), "--group", "g", "--db", str(tmp_path / db),
                   "--broker-config", str(config), "--flush-interval", "200ms", "--progress",
                   "off", "--log-format", "json", *(["--idle-exit", idle] if idle else []),
                   *(["--worker-name", name] if name else []), *map(str, options)]
        clean = {k: v for k, v in os.environ.items() if not k.startswith("TRANCHE_")}
        process = subprocess.Popen(command, cwd=tmp_path, stdout=log, stderr=log, env=clean)
        process.log = tmp_path / f"worker-{len(started)}.log"
        started.append(process)
        return process
    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.wait()


def rows(tmp_path, sql, db="rows.db"):
    if not (tmp_path / db).exists():
        return []
    connection = sqlite3.connect(tmp_path / db, timeout=30)
    try:
        return connection.execute(sql).fetchall()
    except sqlite3.OperationalError as e:
        if "no such table" in str(e):
            return []
        raise
    finally:
        connection.close()


def events(process, level=None):
    found = []
    for line in process.log.read_text(errors="replace").splitlines():
        if line.startswith("{"):
            event = json.loads(line)
            if level is None or event["level"] in level:
                found.append(event["event"])
    return found


def clean_log(process):
    assert [e for e in events(process, ("warn", "error")) if e not in QUIET] == []


def job(i, **more):
    return json.dumps({"id": f"j{i}", "prompt": f"number {i}", **more})


def fill(client, n, stream="jobs", first=0):
    pipe = client.pipeline(transaction=False)
    for i in range(first, first + n):
        pipe.xadd(stream, {"job": job(i)})
    return pipe.execute()


def test_whole_life(server, worker, tmp_path):
    client = server.client()
    cli = lambda *a: subprocess.run(["redis-cli", "-p", str(server.port), *a], check=True,
                                    capture_output=True, text=True).stdout.strip()
    cli("XADD", "jobs", "*", "job", job(1))
    cli("XADD", "jobs", "*", "trace", "abc", "job", job(2), "other", "x")
    client.xadd("jobs", {"job": job(3, batch_id="mine")})
    client.xadd("jobs", {"job": job(1)})                        # repeated
    client.xadd("jobs", {"job": job(1, temperature=0.5)})       # same id, other payload
    broken = client.xadd("jobs", {"job": "{broken"})
    no_field = client.xadd("jobs", {"jobs": job(4)})
    empty = client.xadd("jobs", {"job": ""})
    binary = client.xadd("jobs", {"job": b'{"id":"b","prompt":"\xff\x00"}'})
    big = client.xadd("jobs", {"job": json.dumps({"id": "big", "prompt": "x" * (5 << 20)})})
    w = worker(server)
    assert w.wait(60) == 0
    clean_log(w)
    assert rows(tmp_path, "SELECT batch_id, custom_id, status FROM results WHERE status = 'ok' "
                "ORDER BY custom_id") == [("jobs", "j1", "ok"), ("jobs", "j2", "ok"),
                                          ("mine", "j3", "ok")]
    bad = dict(rows(tmp_path, "SELECT json_extract(source, '$.id'), error_code FROM results "
                    "WHERE status = 'invalid'"))
    assert bad == {broken: "bad_json", no_field: "missing_field", empty: "bad_json",
                   binary: "bad_json", big: "too_large"}
    assert rows(tmp_path, "SELECT custom_id, reason FROM dead_letters") == [("j1", "id_conflict")]
    assert rows(tmp_path, "SELECT count(*) FROM job_attempts") == [(0,)]
    assert at_rest(client)
    assert client.xlen("jobs") == 10, "younger than trim.keep: nothing is trimmed"
    # The consumer has left: nothing was pending for it.
    assert client.xinfo_consumers("jobs", "g") == []
    again = worker(server)
    assert again.wait(60) == 0
    assert rows(tmp_path, "SELECT count(*) FROM results") == [(8,)]


def test_no_stream_or_group_is_told(server, worker):
    w = worker(server, url=server.url("jobz"))
    assert w.wait(30) == 65  # as for a Kafka topic that is not there
    assert "jobz" in w.log.read_text() and "init" in w.log.read_text()
    assert server.client().exists("jobz") == 0


def test_a_key_that_is_no_stream(server, worker):
    server.client().set("text", "x")
    w = worker(server, url=server.url("text"))
    assert w.wait(30) not in (0, 139)
    assert "WRONGTYPE" in w.log.read_text()


def test_unreachable_server(server, worker):
    url = server.url()
    server.stop()
    w = worker(server, "--connect-timeout", "1s", url=url)
    assert w.wait(30) == 69
    assert "cannot connect" in w.log.read_text()


def check_acks(client, tmp_path, ids):
    """Every acknowledged entry has its row now."""
    acked = acknowledged(client)
    have = {c for (c,) in rows(tmp_path, "SELECT custom_id FROM results")}
    missing = {ids[i] for i in acked if i in ids} - have
    assert not missing, f"acknowledged without a row: {sorted(missing)[:5]}"
    return len(acked)


def test_kill_9_at_random_moments(server, worker, tmp_path):
    rng = random.Random(SEED)
    client = server.client()
    n = 2000
    ids = {e: f"j{i}" for i, e in enumerate(fill(client, n))}
    options = ("--sim-step", "5ms", "--slots", "16", "--flush-rows", "40", "--claim-rows", "200")
    start = lambda k: worker(server, *options, lease="1s", name=f"w{k}", idle="2s")
    pair = [start(0), start(1)]
    kills = observations = 0
    while kills < KILLS:
        deadline = time.monotonic() + rng.uniform(0.05, 0.6)
        while time.monotonic() < deadline:
            check_acks(client, tmp_path, ids)
            observations += 1
        k = rng.randrange(2)
        assert pair[k].poll() is None, pair[k].log.read_text()[-2000:]
        pair[k].kill()
        pair[k].wait()
        kills += 1
        # Every third time under another name, so that the entries wait for their lease to end.
        pair[k] = start(f"{k}-{kills}" if kills % 3 == 0 else k)
        if at_rest(client):  # too fast: more work for the remaining kills
            ids.update({e: f"j{i + n}" for i, e in enumerate(fill(client, 500, first=n))})
            n += 500
    for process in pair:
        assert process.wait(120) == 0
    check_acks(client, tmp_path, ids)
    assert at_rest(client)
    assert rows(tmp_path, "SELECT count(*), count(DISTINCT custom_id) FROM results "
                "WHERE status = 'ok'") == [(n, n)]
    assert rows(tmp_path, "SELECT count(*) FROM results WHERE status <> 'ok'") == [(0,)]
    assert rows(tmp_path, "SELECT count(*) FROM dead_letters") == [(0,)]
    assert rows(tmp_path, "SELECT count(*) FROM results WHERE attempts > 1")[0][0] > 0, \
        "no kill hit a running job"
    print(f"{kills} kills, {n} jobs, {observations} observations")


def test_a_dead_consumer_loses_its_entries(server, worker, tmp_path):
    client = server.client()
    fill(client, 20)
    client.xreadgroup("g", "dead", {"jobs": ">"}, count=20)
    w = worker(server, lease="1s")
    started = time.monotonic()
    assert w.wait(60) == 0
    assert time.monotonic() - started > 0.9, "taken before the lease was over"
    assert rows(tmp_path, "SELECT count(*) FROM results WHERE status = 'ok'") == [(20,)]
    assert at_rest(client)
    # Without pending entries and silent for ten leases it is removed, later, by anyone.
    time.sleep(max(0, 11 - (time.monotonic() - started)))
    assert worker(server, lease="1s").wait(60) == 0
    assert client.xinfo_consumers("jobs", "g") == []


def test_a_restart_under_its_name_goes_on_at_once(server, worker, tmp_path):
    client = server.client()
    fill(client, 30)
    client.xreadgroup("g", "pod-1", {"jobs": ">"}, count=30)
    w = worker(server, lease="1h", name="pod-1")
    assert w.wait(30) == 0
    assert rows(tmp_path, "SELECT count(*) FROM results WHERE status = 'ok'") == [(30,)]
    assert at_rest(client)


def test_a_slow_job_is_not_stolen(server, worker, tmp_path):
    client = server.client()
    fill(client, 4)
    slow = worker(server, "--sim-step", "500ms", "--slots", "4", lease="1s", name="slow")
    wait_until(lambda: group(client)["pending"] == 4, 10)
    thief = worker(server, lease="1s", name="thief", idle=None)
    assert slow.wait(60) == 0
    thief.send_signal(signal.SIGTERM)
    assert thief.wait(30) in (0, 143)
    assert rows(tmp_path, "SELECT worker, attempts, count(*) FROM results GROUP BY 1, 2") == \
        [("slow", 1, 4)]
    assert rows(tmp_path, "SELECT min(julianday(finished_at) - julianday(started_at)) * 86400 > 2 "
                "FROM results") == [(1,)], "the jobs were not slower than their lease"
    clean_log(slow)


def test_a_zombie_does_not_take_back(server, worker, tmp_path):
    client = server.client()
    fill(client, 50)
    zombie = worker(server, "--sim-step", "200ms", "--slots", "50", "--supervise=off", lease="1s",
                    name="zombie")
    # Between two transactions: stopped inside one it would hold SQLite's only write lock.
    wait_until(lambda: rows(tmp_path, "SELECT count(*) FROM job_attempts") == [(50,)], 10)
    time.sleep(0.2)
    zombie.send_signal(signal.SIGSTOP)
    time.sleep(1.5)
    other = worker(server, lease="1s", name="other", idle=None)
    wait_until(lambda: rows(tmp_path, "SELECT count(*) FROM results") == [(50,)], 30)
    zombie.send_signal(signal.SIGCONT)
    assert zombie.wait(60) == 0
    other.send_signal(signal.SIGTERM)
    other.wait(30)
    assert rows(tmp_path, "SELECT worker, count(*) FROM results GROUP BY 1") == [("other", 50)]
    assert at_rest(client)


def test_sigterm_hands_over_at_once(server, worker, tmp_path):
    client = server.client()
    fill(client, 100)
    first = worker(server, "--sim-step", "1s", "--slots", "4", "--grace", "0s", lease="1h",
                   name="first")
    wait_until(lambda: group(client)["pending"] == 100, 10)
    first.send_signal(signal.SIGTERM)
    assert first.wait(30) == 143
    second = worker(server, lease="1h", name="second")
    assert second.wait(30) == 0
    assert rows(tmp_path, "SELECT count(*) FROM results WHERE status = 'ok'") == [(100,)]
    assert at_rest(client)


def test_trim_leaves_what_another_group_needs(server, worker):
    client = server.client()
    client.xgroup_create("jobs", "h", "0")
    fill(client, 300)
    keep_nothing = "trim.keep = 0s\n"
    assert worker(server, extra=keep_nothing, idle="2500ms").wait(60) == 0
    assert client.xlen("jobs") == 300
    got = client.xreadgroup("h", "c", {"jobs": ">"}, count=300)[0][1]
    client.xack("jobs", "h", *[e[0] for e in got[:100]], *[e[0] for e in got[200:]])
    assert worker(server, extra=keep_nothing, idle="2500ms").wait(60) == 0
    left = [e[0] for e in client.xrange("jobs")]
    assert left[0] == got[100][0] and len(left) == 200, "trimmed to the oldest pending of h"
    client.xack("jobs", "h", *[e[0] for e in got[100:200]])
    assert worker(server, extra="trim.keep = 1h\n", idle="2500ms").wait(60) == 0
    assert client.xlen("jobs") == 200, "younger than trim.keep"
    assert worker(server, extra=keep_nothing, idle="2500ms").wait(60) == 0
    assert client.xlen("jobs") <= 1, "nobody needs them; the last one keeps the lag known"
    assert at_rest(client) and at_rest(client, name="h")


def test_trimmed_while_pending_is_told(server, worker, tmp_path):
    client = server.client()
    ids = fill(client, 10)
    client.xreadgroup("g", "dead", {"jobs": ">"}, count=10)
    client.xtrim("jobs", minid=ids[4], approximate=False)
    w = worker(server, lease="1s")
    assert w.wait(60) == 0
    assert "entries_lost" in events(w, ("error",))
    assert rows(tmp_path, "SELECT count(*) FROM results") == [(6,)]
    ms = [int(i.split("-")[0]) for i in ids[:4]]
    assert rows(tmp_path, "SELECT from_position, to_position, reason FROM lost_ranges") == \
        [(ms[0], ms[3] + 1, "trimmed")]
    assert at_rest(client)


def test_redis_killed_and_started_mid_run(server, worker, tmp_path):
    client = server.client()
    ids = {e: f"j{i}" for i, e in enumerate(fill(client, 600))}
    w = worker(server, "--sim-step", "10ms", "--slots", "8", "--claim-rows", "100", "--flush-rows",
               "20", lease="5s")
    for _ in range(3):
        seen = len(rows(tmp_path, "SELECT 1 FROM results"))
        wait_until(lambda: len(rows(tmp_path, "SELECT 1 FROM results")) > seen + 30, 30)
        server.kill()
        time.sleep(0.3)
        server.start()
        check_acks(server.client(), tmp_path, ids)
    assert w.wait(120) == 0
    assert "redis_away" in events(w)
    assert rows(tmp_path, "SELECT count(*) FROM results WHERE status = 'ok'") == [(600,)]
    assert at_rest(server.client())


def test_flushall_is_told_and_survived(server, worker, tmp_path):
    client = server.client()
    fill(client, 50)
    w = worker(server, idle=None)
    wait_until(lambda: rows(tmp_path, "SELECT count(*) FROM results") == [(50,)], 30)
    client.flushall()
    wait_until(lambda: "redis_group_missing" in events(w, ("error",)), 10)
    fill(client, 50, first=50)
    wait_until(lambda: rows(tmp_path, "SELECT count(*) FROM results") == [(100,)], 30)
    w.send_signal(signal.SIGTERM)
    w.wait(30)
    assert at_rest(client)


def test_out_of_memory_does_not_stop_the_work(server, worker, tmp_path):
    client = server.client()
    fill(client, 200)
    client.config_set("maxmemory", "1")
    with pytest.raises(redis.exceptions.ResponseError, match="OOM"):
        client.xadd("jobs", {"job": job(1)})
    assert worker(server).wait(60) == 0
    assert rows(tmp_path, "SELECT count(*) FROM results WHERE status = 'ok'") == [(200,)]
    assert at_rest(client)


def test_readonly_replica_is_left_until_it_is_a_master(server, worker, tmp_path):
    client = server.client()
    w = worker(server, idle=None)
    wait_until(lambda: "redis_connected" in events(w), 10)
    client.replicaof("127.0.0.1", str(free_port()))
    wait_until(lambda: "redis_away" in events(w), 10)
    client.replicaof("no", "one")
    fill(client, 20)
    wait_until(lambda: rows(tmp_path, "SELECT count(*) FROM results") == [(20,)], 40)
    wait_until(lambda: at_rest(client), 10)
    assert w.poll() is None


def test_a_new_password_is_read_again(server, worker, tmp_path):
    client = server.client()
    secret = tmp_path / "secret"
    secret.write_text("first\n")
    client.config_set("requirepass", "first")
    server.password = "first"
    w = worker(server, extra=f"password.file = {secret}\n", idle=None)
    fill(server.client(), 10)
    wait_until(lambda: rows(tmp_path, "SELECT count(*) FROM results") == [(10,)], 30)
    server.client().config_set("requirepass", "second")
    server.password = "second"
    fill(server.client(), 10, first=10)
    server.client().execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    wait_until(lambda: "WRONGPASS" in w.log.read_text(), 20)
    assert w.poll() is None
    secret.write_text("second\n")
    wait_until(lambda: rows(tmp_path, "SELECT count(*) FROM results") == [(20,)], 40)
    text = w.log.read_text()
    assert "first" not in text and "second\"" not in text, "a secret stands in the log"


def test_no_password_at_all(server, worker):
    server.client().config_set("requirepass", "x")
    server.password = "x"
    w = worker(server, "--connect-timeout", "500ms")
    assert w.wait(30) == 69
    assert "NOAUTH" in w.log.read_text()


def test_bytes_budget(server, worker, tmp_path):
    client = server.client()
    for i in range(24):
        client.xadd("jobs", {"job": json.dumps({"id": f"big{i}", "prompt": "x" * (1 << 20)})})
    w = worker(server, "--claim-bytes", "8MiB", "--supervise=off")
    peak = 0
    while w.poll() is None:
        try:
            status = open(f"/proc/{w.pid}/status").read()
            peak = max(peak, int(status.split("VmRSS:")[1].split()[0]))
        except (OSError, IndexError):
            pass
        peak_pending = group(client)["pending"]
        assert peak_pending <= 24
        time.sleep(0.005)
    assert w.returncode == 0
    assert rows(tmp_path, "SELECT count(*) FROM results") == [(24,)]
    assert at_rest(client)
    assert 0 < peak < 400 << 10, f"{peak} KiB"


ACL = "user worker on >secret resetchannels ~jobs +xreadgroup +xautoclaim +xack +xclaim " \
      "+xpending +xinfo +xtrim +xgroup +eval +time +auth"


def test_tls_with_certificates_and_an_acl_user(worker, tmp_path):
    tls = certificates(tmp_path / "tls")
    s = Server(tmp_path / "redis-tls", tls=tls)
    try:
        client = s.client()
        client.execute_command("ACL", "SETUSER", *ACL.split()[1:])
        client.xgroup_create("jobs", "g", "0", mkstream=True)
        fill(client, 300)
        (tmp_path / "secret").write_text("secret\n")
        full = (f"username = worker\npassword.file = {tmp_path}/secret\ntls.ca.file = {tls}/ca.crt\n"
                f"tls.cert.file = {tls}/client.crt\ntls.key.file = {tls}/client.key\n")
        w = worker(s, extra=full)
        assert w.wait(60) == 0
        clean_log(w)
        assert rows(tmp_path, "SELECT count(*) FROM results WHERE status = 'ok'") == [(300,)]
        assert at_rest(client)
        # Not our CA; a name that the certificate does not carry; no certificate of our own.
        short = ("--connect-timeout", "300ms")
        stranger = certificates(tmp_path / "stranger")
        w = worker(s, *short, extra=full.replace(f"{tls}/ca.crt", f"{stranger}/ca.crt"))
        assert w.wait(30) == 69 and "certificate" in w.log.read_text()
        w = worker(s, *short, extra=full, url=f"rediss://127.0.0.1:{s.port}/jobs")
        assert w.wait(30) == 69 and "mismatch" in w.log.read_text()
        w = worker(s, *short, extra=f"tls.ca.file = {tls}/ca.crt\n")
        assert w.wait(30) == 69
        w = worker(s, *short, extra="tls.ca.file = missing.crt\n")
        assert w.wait(30) == 64
    finally:
        s.stop()


def test_a_certificate_that_has_expired_is_named(worker, tmp_path):
    tls = certificates(tmp_path / "tls")
    s = Server(tmp_path / "redis-tls", tls=tls)
    try:
        client = s.client()
        client.ping()
        expire(tls)
        client.config_set("tls-cert-file", str(tls / "server.crt"))  # read anew
        w = worker(s, "--connect-timeout", "300ms", extra=f"tls.ca.file = {tls}/ca.crt\n")
        assert w.wait(30) == 69 and "certificate has expired" in w.log.read_text()
        assert f"localhost:{s.port}" in w.log.read_text()
    finally:
        s.stop()


def test_plain_text_stays_on_this_machine(server, worker):
    w = worker(server, "--connect-timeout", "300ms", url="redis://192.0.2.1/jobs")
    assert w.wait(30) == 64
    assert "allow-insecure" in w.log.read_text()
    w = worker(server, "--connect-timeout", "300ms", "--allow-insecure",
               url="redis://192.0.2.1/jobs")
    assert w.wait(30) == 69


def test_init_and_submit(server, worker, tranche, tmp_path):
    url, client = server.url("fresh"), server.client()
    made = tranche("init", "--source", url, "--group", "g")
    assert (made.returncode, made.stdout) == (0, f"made {url} group=g\n".encode()), made.stderr
    again = tranche("init", "--source", url, "--group", "g")
    assert (again.returncode, again.stdout) == (0, f"found {url} group=g\n".encode())
    with open(tmp_path / "first.jsonl", "w") as f:
        f.writelines(job(i) + "\n" for i in range(1000))
    sent = tranche("submit", "--source", url, "first.jsonl")
    assert sent.returncode == 0, sent.stderr
    assert b"jobs=1000 sent=1000" in sent.stdout
    assert client.xlen("fresh") == 1000
    assert tranche("submit", "--source", server.url("nowhere"), "first.jsonl").returncode == 65
    assert client.exists("nowhere") == 0
    with open(tmp_path / "twice.jsonl", "w") as f:
        f.writelines([job(1) + "\n", job(1) + "\n"])
    assert tranche("submit", "--source", url, "twice.jsonl").returncode == 64
    assert client.xlen("fresh") == 1000, "nothing of a file with a bad id was sent"
    assert worker(server, url=url).wait(60) == 0
    assert rows(tmp_path, "SELECT batch_id, count(*) FROM results WHERE status = 'ok' "
                "GROUP BY 1") == [("first", 1000)]


def test_a_group_from_the_end_has_a_lag(server, worker, tranche, tmp_path):
    """Known before its first read, as a scaler wants it: NULL would start nobody."""
    url, client = server.url(), server.client()
    fill(client, 5)
    assert tranche("init", "--source", url, "--group", "late", "--from-end").returncode == 0
    assert group(client, name="late")["lag"] == 0
    fill(client, 3, first=5)
    assert group(client, name="late")["lag"] == 3
    found = tranche("init", "--source", url, "--group", "late", "--from-end")
    assert (found.returncode, found.stdout) == (0, f"found {url} group=late\n".encode())
    assert worker(server, "--group", "late").wait(60) == 0
    assert rows(tmp_path, "SELECT count(*) FROM results") == [(3,)]
    assert at_rest(client, name="late") and group(client)["lag"] == 8
    fresh = server.url("fresh")
    assert tranche("init", "--source", fresh, "--group", "late", "--from-end").returncode == 0
    assert group(client, "fresh", "late")["lag"] == 0


def test_a_group_left_behind_is_dropped(server, worker, tranche, tmp_path):
    """It holds the stream, whatever the others have done; not while somebody reads in it."""
    url, client = server.url(), server.client()
    config = tmp_path / "drop.conf"

    def drop(lease="2s", source=url, name="canary"):
        config.write_text(f"lease = {lease}\n")
        return tranche("init", "--source", source, "--group", name, "--drop-group",
                       "--broker-config", str(config))
    client.xgroup_create("jobs", "canary", "0")
    # The desk knows neither lease: a long job's renewals are far apart, a quiet stream gives nothing.
    other = server.url("other")
    fill(client, 1, stream="other")
    for name, first in (("busy", "0"), ("waiting", "$")):
        client.xgroup_create("other", name, first)
        worker(server, "--group", name, "--run", name, "--sim-step", "60s", lease="1h", name=name,
               url=other, idle=None)
    wait_until(lambda: group(client, "other", "busy")["pending"] == 1 and
               group(client, "other", "waiting")["consumers"] == 1, 30)
    fill(client, 50)
    assert worker(server, extra="trim.keep = 0s\n", idle="2500ms").wait(60) == 0
    assert client.xlen("jobs") == 50
    reader = worker(server, "--group", "canary", "--run", "canary", "--sim-step", "1s", "--slots", "1",
                    "--grace", "0s", name="reader", idle=None)
    wait_until(lambda: [c for c in client.xinfo_consumers("jobs", "canary")
                        if c["name"] == "reader" and c["pending"]], 30)
    refused = drop(lease="10m")
    assert refused.returncode == 69 and b'found the consumer "reader"' in refused.stderr, refused.stderr
    assert [g["name"] for g in client.xinfo_groups("jobs")] == ["canary", "g"]
    reader.send_signal(signal.SIGTERM)
    assert reader.wait(60) == 143
    assert group(client, name="canary")["pending"] > 0, "what it has not done goes along"
    wait_until(lambda: drop().returncode == 0, 120, 1)
    assert [g["name"] for g in client.xinfo_groups("jobs")] == ["g"]
    for name in ("busy", "waiting"):
        refused = drop(source=other, name=name)
        assert refused.returncode == 69 and b"in the last 30 s" in refused.stderr, (name, refused)
    again = drop()
    assert (again.returncode, again.stdout) == (0, f"none {url} group=canary\n".encode())
    assert worker(server, extra="trim.keep = 0s\n", idle="2500ms").wait(60) == 0
    assert client.xlen("jobs") <= 1 and at_rest(client)
    nowhere = tranche("init", "--source", server.url("nowhere"), "--group", "g", "--drop-group")
    assert nowhere.returncode == 0 and client.exists("nowhere") == 0
    topic = tranche("init", "--source", "kafka://127.0.0.1:1/jobs", "--group", "g", "--drop-group")
    assert topic.returncode == 64 and b"want a Redis stream" in topic.stderr


def test_submit_while_redis_is_killed_and_full(server, worker, binary, tmp_path):
    client = server.client()
    with open(tmp_path / "many.jsonl", "w") as f:
        f.writelines(job(i, metadata={"pad": "x" * 500}) + "\n" for i in range(60000))
    submit = subprocess.Popen([binary, "submit", "--source", server.url(), "many.jsonl"],
                              cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    wait_until(lambda: client.xlen("jobs") > 5000, 30, 0.001)
    server.kill()
    server.start()
    client = server.client()
    client.config_set("maxmemory", "1")
    time.sleep(0.3)
    client.config_set("maxmemory", "0")
    assert submit.wait(60) == 0 and b"jobs=60000" in submit.stdout.read()
    have = {json.loads(e[1]["job"])["id"] for e in client.xrange("jobs")}
    assert have == {f"j{i}" for i in range(60000)}


def test_sentinel_follows_the_master(server, worker, tmp_path):
    client = server.client()
    replica = Server(tmp_path / "replica", "--replicaof", "127.0.0.1", str(server.port))
    port = free_port()
    conf = tmp_path / "sentinel.conf"
    conf.write_text(f"port {port}\nbind 127.0.0.1\ndir {tmp_path}\n"
                    f"sentinel monitor m 127.0.0.1 {server.port} 1\n"
                    "sentinel down-after-milliseconds m 500\nsentinel failover-timeout m 2000\n")
    sentinel = subprocess.Popen(["redis-server", str(conf), "--sentinel"],
                                stdout=subprocess.DEVNULL)
    asked = redis.Redis(port=port, decode_responses=True)
    try:
        def sees_replica():
            try:
                return asked.sentinel_slaves("m") and client.wait(1, 100) == 1
            except redis.exceptions.ConnectionError:
                return False
        wait_until(sees_replica, 40)
        ids = {e: f"j{i}" for i, e in enumerate(fill(client, 300))}
        wait_until(lambda: client.wait(1, 1000) == 1, 10)
        w = worker(server, "--sim-step", "10ms", "--slots", "8", "--claim-rows", "40", lease="3s",
                   url=f"redis-sentinel://127.0.0.1:{port}/jobs", extra="sentinel.master = m\n",
                   idle="2s")
        wait_until(lambda: len(rows(tmp_path, "SELECT 1 FROM results")) > 40, 30)
        server.kill()
        assert w.wait(90) == 0
        assert rows(tmp_path, "SELECT count(*) FROM results WHERE status = 'ok'") == [(300,)]
        after = replica.client()
        assert after.info("replication")["role"] == "master"
        check_acks(after, tmp_path, ids)
        assert at_rest(after)
    finally:
        sentinel.kill()
        sentinel.wait()
        replica.stop()


def test_a_silent_server_is_left_at_the_deadline(server, worker, tmp_path):
    client = server.client()
    fill(client, 400)
    w = worker(server, "--sim-step", "20ms", "--slots", "8", "--claim-rows", "50", "--flush-rows",
               "20", lease="30s")
    wait_until(lambda: len(rows(tmp_path, "SELECT 1 FROM results")) > 40, 30)
    server.process.send_signal(signal.SIGSTOP)
    wait_until(lambda: "no answer in time" in w.log.read_text(), 15)
    server.process.send_signal(signal.SIGCONT)
    assert w.wait(60) == 0
    assert rows(tmp_path, "SELECT count(*) FROM results WHERE status = 'ok'") == [(400,)]
    assert at_rest(client)


def test_a_link_too_slow_for_a_whole_reply(server, worker, tmp_path):
    """6 MB at 600 kB/s: more than a reply has time for, so less is asked for at once."""
    client = server.client()
    for i in range(96):
        client.xadd("jobs", {"job": json.dumps({"id": f"big{i}", "prompt": "x" * (64 << 10)})})

    def slow(direction, data, _):
        if direction == "down":
            time.sleep(len(data) / 600_000)
        return len(data)

    with Proxy("127.0.0.1", server.port, slow) as proxy:
        w = worker(server, url=f"redis://127.0.0.1:{proxy.port}/jobs", lease="30s", idle="3s")
        assert w.wait(90) == 0, w.log.read_text()[-2000:]
    assert rows(tmp_path, "SELECT count(*) FROM results") == [(96,)]
    assert at_rest(client)
