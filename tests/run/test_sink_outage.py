"""While PostgreSQL is away: admission closes, finished rows go to the spool, nothing is acknowledged;
whatever dies meanwhile, each id gets one row. And what each SQLSTATE class asks for that no other
file injects."""
import contextlib
import json
import pathlib
import re
import signal
import subprocess
import threading
import time

import pytest
from confluent_kafka import Consumer, TopicPartition

import redis_server
from queue_site import QueueSite
from redis_server import acknowledged, group, wait_until
from tcp_proxy import Proxy

SIM = ["--engine", "sim", "--sim-step", "8ms", "--sim-tokens", "8", "--slots", "8"]
FAST_KAFKA = "session.timeout.ms = 2000\nheartbeat.interval.ms = 300\n"


class Site(QueueSite):
    def submit(self, n, words=1, first=0, **more):
        """job-FIRST to job-(n - 1)."""
        path = self.folder / "jobs.jsonl"
        path.write_text("".join(json.dumps(
            {"id": f"job-{i}", "prompt": f"hello {i} " * words, **more}) + "\n"
            for i in range(first, n)))
        self.call("init", "--source", self.url, *self.options)
        self.call("submit", "--source", self.url, *self.options, path)

    def work(self, *options):
        return self.start(*SIM, "--source", self.url, *self.options, "--claim-rows", "400",
                          *options)

    def wait_log(self, worker, text, timeout=60):
        wait_until(lambda: text in self.log(worker), timeout)

    def rows(self):
        return [r[0] for r in self.postgres.ask(self.name, "SELECT custom_id FROM tranche.results")]

    def spool(self, name="spool"):
        return sorted(p.name for p in (self.folder / name).glob("*.seg"))

    def spool_rows(self, worker):
        return sum(map(int, re.findall(r"event=spooled rows=(\d+)", self.log(worker))))

    def check(self, n):
        """One row an id, counters agree, nothing is owed."""
        assert sorted(self.rows()) == sorted(f"job-{i}" for i in range(n))
        assert self.postgres.ask(self.name, "SELECT sum(rows_ok) FROM tranche.batches") == [(n,)]
        assert self.postgres.ask(self.name, "SELECT count(*) FROM tranche.job_attempts") == [(0,)]
        assert self.acked() == n and self.acked_without_row() == []


class RedisSite(Site):
    def __init__(self, binary, postgres, folder):
        super().__init__(binary, postgres, folder)
        self.server = redis_server.Server(folder / "redis")
        self.url, self.options = self.server.url(), ["--broker-config", folder / "conf"]
        (folder / "conf").write_text("lease = 3s\n")

    def acked_ids(self):
        client = self.server.client()
        done = acknowledged(client, "jobs", "tranche")
        return [json.loads(f["job"])["id"] for i, f in client.xrange("jobs") if i in done]

    def acked(self):
        return len(self.acked_ids())

    def acked_without_row(self):
        return sorted(set(self.acked_ids()) - set(self.rows()))

    def claimed(self):
        return group(self.server.client(), name="tranche")["entries-read"]

    def close(self):
        super().close()
        self.server.stop()


class KafkaSite(Site):
    def __init__(self, binary, postgres, folder, broker):
        super().__init__(binary, postgres, folder)
        self.broker = broker
        self.url = f"kafka://{broker.address}/{self.name}"
        self.options = ["--broker-config", folder / "conf"]
        (folder / "conf").write_text(FAST_KAFKA)

    def acked_places(self):
        """What lies below the group's committed offsets; asked without joining the group."""
        link = Consumer({"bootstrap.servers": self.broker.address, "group.id": "tranche"})
        try:
            parts = [TopicPartition(self.name, p)
                     for p in link.list_topics(self.name, 30).topics[self.name].partitions]
            low = {p.partition: link.get_watermark_offsets(p, 30)[0] for p in parts}
            return {f"{c.partition}:{o}" for c in link.committed(parts, 30)
                    for o in range(low[c.partition], max(c.offset, 0))}
        finally:
            link.close()

    def acked(self):
        return len(self.acked_places())

    def acked_without_row(self):
        have = {f"{p}:{o}" for p, o in self.postgres.ask(
            self.name, "SELECT source::jsonb->>'partition', source::jsonb->>'offset' FROM "
            "tranche.results")}
        return sorted(self.acked_places() - have)

    def claimed(self):
        return None


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


@contextlib.contextmanager
def away(postgres):
    postgres.stop("immediate")
    try:
        yield
    finally:
        postgres.start()


def run_into_outage(site, worker, least=40):
    """The engine has finished what it was given, and all of it stands in the spool."""
    site.wait_log(worker, "event=sink_state state=away")
    wait_until(lambda: site.spool_rows(worker) >= least, 60)
    before = -1
    while before != site.spool_rows(worker):
        before = site.spool_rows(worker)
        time.sleep(1)
    assert site.spool() and worker.poll() is None
    return before


def test_killed_in_an_outage_and_started_again(site, postgres):
    n = 1500
    site.submit(n)
    spool = ["--spool-dir", site.folder / "spool"]
    worker = site.work(*spool)
    wait_until(lambda: len(site.rows()) > 50, 60)
    with away(postgres):
        spooled = run_into_outage(site, worker)
        claimed = site.claimed()
        time.sleep(1.5)
        assert site.claimed() == claimed  # nothing new is claimed
        worker.send_signal(signal.SIGKILL)
        worker.wait()
        again = site.work(*spool, "--idle-exit", "1s")  # waits for the database at its start
        site.wait_log(again, "database_connecting")
    assert again.wait(90) == 0, site.log(again)[-3000:]
    replayed = re.search(r"event=spool_replayed rows=(\d+) inserted=(\d+) already=(\d+) damaged=0",
                         site.log(again))
    # What was killed between COMMIT and its end stands in both.
    assert int(replayed[1]) == spooled >= int(replayed[2]) > 0
    assert site.spool() == []
    site.check(n)
    assert postgres.ask(site.name, "SELECT count(*) FROM tranche.results WHERE attempts > 1")[0][0] \
        < n / 2


def test_the_database_comes_back_to_the_same_worker(site, postgres):
    n = 1200
    site.submit(n)
    worker = site.work("--spool-dir", site.folder / "spool", "--idle-exit", "1s")
    wait_until(lambda: len(site.rows()) > 50, 60)
    for _ in range(2):  # twice: the spool is used anew
        with away(postgres):
            site.wait_log(worker, "event=sink_state state=away")
            time.sleep(2)
        wait_until(lambda: re.findall(r"sink_state state=(\w+)", site.log(worker))[-1] == "well", 60)
    assert worker.wait(90) == 0, site.log(worker)[-3000:]
    assert site.spool_rows(worker) > 0 and site.spool() == []
    site.check(n)


def test_a_spool_whose_jobs_another_worker_has_done(site, postgres):
    n = 800
    site.submit(n)
    worker = site.work("--spool-dir", site.folder / "spool")
    wait_until(lambda: len(site.rows()) > 50, 60)
    with away(postgres):
        run_into_outage(site, worker)
        worker.send_signal(signal.SIGKILL)
        worker.wait()
    assert site.acked_without_row() == []
    other = site.work("--idle-exit", "4s")  # no spool: computes all of it again
    assert other.wait(90) == 0, site.log(other)[-3000:]
    site.check(n)
    rows = postgres.ask(site.name, "SELECT * FROM tranche.results ORDER BY custom_id")
    places = postgres.ask(site.name, "SELECT * FROM tranche.partition_progress ORDER BY partition")
    late = site.work("--spool-dir", site.folder / "spool", "--idle-exit", "1s")
    assert late.wait(60) == 0, site.log(late)[-3000:]
    replayed = re.search(r"event=spool_replayed rows=(\d+) inserted=(\d+) already=(\d+)",
                         site.log(late))
    assert int(replayed[2]) == 0 and int(replayed[1]) == int(replayed[3]) > 0
    assert postgres.ask(site.name, "SELECT * FROM tranche.results ORDER BY custom_id") == rows
    after = postgres.ask(site.name, "SELECT * FROM tranche.partition_progress ORDER BY partition")
    assert [r[:-1] for r in after] == [r[:-1] for r in places]
    assert site.spool() == []
    site.check(n)


def rss(pid):
    return int(re.search(r"VmRSS:\s+(\d+)", pathlib.Path(f"/proc/{pid}/status").read_text())[1]) << 10


def test_a_full_spool_stops_the_refill_and_loses_nothing(redis_site, postgres):
    site = redis_site
    n = 1000
    site.submit(n, words=300)  # a row holds its request: 3 kB
    worker = site.work("--spool-dir", site.folder / "spool", "--spool-bytes", "1MiB",
                       "--idle-exit", "1s", "--supervise=off")
    wait_until(lambda: len(site.rows()) > 50, 60)
    with away(postgres):
        site.wait_log(worker, "event=sink_state state=away_full")
        time.sleep(1)
        held, size = rss(worker.pid), sum(p.stat().st_size for p in
                                          (site.folder / "spool").glob("*.seg"))
        time.sleep(3)
        assert size <= 1 << 20 and rss(worker.pid) - held < 4 << 20
        assert site.spool_rows(worker) < 400
    assert worker.wait(90) == 0, site.log(worker)[-3000:]
    assert site.spool() == []
    site.check(n)


def test_stopped_in_an_outage(redis_site, postgres):
    """SIGTERM while the database is away: what is finished is in the spool, the rest released."""
    site = redis_site
    n = 900
    site.submit(n)
    spool = ["--spool-dir", site.folder / "spool"]
    worker = site.work(*spool, "--grace", "3s")
    wait_until(lambda: len(site.rows()) > 50, 60)
    with away(postgres):
        spooled = run_into_outage(site, worker)
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(60) == 143, site.log(worker)[-3000:]
        assert f"event=rows_left_in_spool rows={spooled}" in site.log(worker)
    again = site.work(*spool, "--idle-exit", "1s")
    assert again.wait(90) == 0, site.log(again)[-3000:]
    assert site.spool() == []
    site.check(n)


@pytest.mark.parametrize("others_answer", [True, False])
def test_stopped_while_the_database_stands_still(redis_site, postgres, others_answer):
    """A link that stays open and says nothing more: the flush that waits there is cut in time, rows
    go to the spool, nothing is acknowledged, and where another link is answered the starts of what
    had not ended are given back."""
    site = redis_site
    n = 300
    site.submit(4, min_tokens=1000, max_tokens=1100)  # still on the engine when it stops
    site.submit(n, first=4)
    still = threading.Event()

    def rule(direction, data, _):
        if still.is_set():
            return len(data) if others_answer else None
        flush = direction == "up" and b"INSERT INTO tranche.results" in data
        if not flush or len(site.rows()) < 30:
            return len(data)
        still.set()
        return None

    postgres.ask(site.name, f"ALTER ROLE w{site.name} PASSWORD 'known'")
    (site.folder / "pw").write_text("known")
    spool = ["--spool-dir", site.folder / "spool"]
    direct = site.db
    with Proxy("127.0.0.1", postgres.port, rule) as proxy:
        site.db = postgres.url(site.name, "w" + site.name, "127.0.0.1", proxy.port,
                               sslmode="disable")
        worker = site.work(*spool, "--grace", "60s", "--db-password-file", site.folder / "pw")
        assert still.wait(60)
        time.sleep(2)
        began = time.monotonic()
        worker.send_signal(signal.SIGTERM)
        site.wait_log(worker, "event=drain ")
        time.sleep(0.5)  # a second signal within 0.1 s is the first one's echo
        worker.send_signal(signal.SIGTERM)  # hurried: the same ends, sooner
        assert worker.wait(60) == 143, site.log(worker)[-3000:]
        assert time.monotonic() - began < 40  # by itself, not by the alarm
        assert "grace period is over" not in site.log(worker)
    left = int(re.search(r"event=rows_left_in_spool rows=(\d+)", site.log(worker))[1])
    there = len(site.rows())
    assert left > 0 and site.spool()
    assert site.acked_without_row() == []
    starts = postgres.ask(site.name, "SELECT coalesce(sum(n), 0) FROM tranche.job_attempts")[0][0]
    if others_answer:  # those of the rows: they go with these
        assert starts == left and "attempts_not_returned" not in site.log(worker)
    site.db = direct
    again = site.work(*spool, "--idle-exit", "1s")
    assert again.wait(90) == 0, site.log(again)[-3000:]
    replayed = re.search(r"event=spool_replayed rows=(\d+) inserted=(\d+) already=0 damaged=0",
                         site.log(again))
    assert int(replayed[1]) == int(replayed[2]) == left and there + left <= n
    assert site.spool() == []
    site.check(n)


def test_refusals(redis_site, postgres):
    site = redis_site
    site.call("init", "--source", site.url, *site.options)
    spool = ["--spool-dir", site.folder / "spool"]
    worker = site.work(*spool)
    site.wait_log(worker, "event=run_started")
    second = site.work(*spool)
    assert second.wait(30) == 64
    children = pathlib.Path(f"/proc/{worker.pid}/task/{worker.pid}/children").read_text()
    holder = re.search(r"in use by process (\d+)", site.log(second))[1]
    assert holder in (str(worker.pid), *children.split())
    site.submit(900)
    wait_until(lambda: len(site.rows()) > 20, 60)
    with away(postgres):
        run_into_outage(site, worker)
        worker.kill()
        worker.wait()
    blue = site.work(*spool, "--run", "blue")
    assert blue.wait(30) == 64
    assert 'want rows of run "blue", found "main"' in site.log(blue)
    assert site.spool()
    # A torn tail and a damaged record cost these jobs a second run, nothing else.
    segment = site.folder / "spool" / site.spool()[0]
    data = bytearray(segment.read_bytes())
    data[len(data) // 2] ^= 1
    segment.write_bytes(data[:-7])
    again = site.work(*spool, "--idle-exit", "1s")
    assert again.wait(60) == 0, site.log(again)[-3000:]
    assert "event=spool_record_damaged" in site.log(again)
    assert "event=spool_tail_dropped" in site.log(again)
    assert site.spool() == []
    site.check(900)


# ---- SQLSTATE classes ----

FAULT = """
CREATE SEQUENCE public.fault;
GRANT USAGE ON SEQUENCE public.fault TO PUBLIC;
CREATE FUNCTION public.fault() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF nextval('public.fault') <= 1 THEN
        RAISE EXCEPTION 'injected' USING ERRCODE = '{code}';
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER fault BEFORE INSERT ON tranche.{table} FOR EACH STATEMENT
    EXECUTE FUNCTION public.fault();
"""


def test_configuration_waits_half_a_minute_and_never_blames_a_row(postgres, binary, tranche, tmp_path):
    """Every code of the class, at the commit and at the count of attempts, side by side."""
    jobs = tmp_path / "jobs.jsonl"
    jobs.write_text("".join(f'{{"id":"job-{i}","prompt":"x"}}\n' for i in range(60)))
    running = []
    for i, (code, table) in enumerate([("28000", "results"), ("3D000", "results"),
                                       ("3F000", "job_attempts"), ("42P01", "results"),
                                       ("42703", "job_attempts"), ("0A000", "results")]):
        name = f"c{i}x{time.monotonic_ns()}"
        postgres.ask("postgres", f"CREATE DATABASE {name}")
        assert tranche("migrate", "--db", postgres.url(name)).returncode == 0
        postgres.ask(name, FAULT.format(code=code, table=table))
        command = [binary, "run", "--engine", "sim", "--db", postgres.url(name), "--spool-dir",
                   str(tmp_path / name), str(jobs)]
        running.append((name, code, subprocess.Popen(command, stdout=subprocess.PIPE,
                                                     stderr=subprocess.PIPE)))
    for name, code, process in running:
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err.decode()
        told = [line for line in err.decode().split("\n") if "event=database_failed" in line]
        assert len(told) == 1 and f"sqlstate={code} class=config step=later seconds=30" in told[0]
        assert "level=error" in told[0]
        assert postgres.ask(name, "SELECT count(*), count(*) FILTER (WHERE status = 'ok') FROM "
                            "tranche.results") == [(60, 60)]
        assert postgres.ask(name, "SELECT count(*) FROM tranche.dead_letters") == [(0,)]
        postgres.ask("postgres", f"DROP DATABASE {name} WITH (FORCE)")
