"""What KEDA would read of a stream while workers run, are killed, drain, restart and trim: never
NULL, never less than what is left, true again within a poll, from a missing group to zero."""
import os
import random
import signal
import subprocess
import time

import pytest

from keda_reference import POLLING_S, Gauge, RedisLag, Watch
from redis_server import Server, wait_until
from test_redis import fill, rows, worker  # noqa: F401  (the fixture)

SEED = int(os.environ.get("TRANCHE_SEED", "1"))
SLOW = ["--sim-step", "20ms", "--slots", "8", "--claim-rows", "200", "--flush-interval", "100ms"]
TRIM = "trim.keep = 1s\n"


@pytest.fixture
def server(tmp_path):
    server = Server(tmp_path / "redis")
    yield server
    server.stop()


class Stream:
    def __init__(self, server, folder, binary):
        self.server, self.folder, self.binary = server, folder, binary
        self.client, self.sent = server.client(), 0
        # In the order of our manifests' triggers: an entry that is handed out between the two is
        # counted twice; the other way round it would be missed.
        self.triggers = [RedisLag(self.client, "jobs", "g", mode) for mode in ("lag", "pending")]

    def operate(self, command, *options):
        return subprocess.run([self.binary, command, "--source", self.server.url(), "--group", "g",
                               *options], cwd=self.folder, check=True, capture_output=True,
                              timeout=120)

    def send(self, n, watch=None):
        fill(self.client, n, first=self.sent)
        self.sent += n
        if watch:
            watch.promised = self.sent

    def count(self):
        return rows(self.folder, "SELECT count(*) FROM results")[0][0] if \
            (self.folder / "rows.db").exists() and rows(
                self.folder, "SELECT 1 FROM sqlite_schema WHERE name = 'results'") else 0

    def read(self):
        queued, inflight = (t.read() for t in self.triggers)
        return queued.metric + inflight.metric, queued.active or inflight.active

    def watch(self):
        watch = Watch(self.read, lambda promised: max(promised - self.count(), 0), 0.02)
        watch.start()
        return watch

    def never_null(self):
        assert self.triggers[0].nulls == 0


@pytest.fixture
def stream(server, tmp_path, binary):
    return Stream(server, tmp_path, binary)


def test_from_a_missing_group_to_zero(stream, worker):  # noqa: F811
    queued, inflight = stream.triggers
    assert queued.read() == (0, False), "no stream"
    stream.send(40)
    assert queued.read() == (40, True), "no group: what it will read"
    with pytest.raises(Exception, match="NOGROUP"):
        inflight.read()
    stream.operate("init")
    assert queued.read() == (40, True) and inflight.read() == (0, False)
    assert worker(stream.server).wait(60) == 0
    assert stream.read() == (0, False) and stream.count() == 40


def test_init_on_an_empty_stream(stream, worker):  # noqa: F811
    stream.operate("init")
    assert stream.read() == (0, False)
    stream.send(25)
    assert stream.read() == (25, True)
    assert worker(stream.server).wait(60) == 0
    assert stream.read() == (0, False)


def test_true_while_workers_are_killed_drain_and_restart(stream, worker):  # noqa: F811
    """Two workers that trim; four deaths by SIGKILL, one moment with nobody, one drain; messages
    keep coming. Entries end out of order all the time, which is what a lag does not survive where
    they are deleted."""
    chance = random.Random(SEED)
    stream.operate("init")
    watch = stream.watch()
    start = lambda *more: worker(stream.server, *SLOW, *more, extra=TRIM, idle=None)
    try:
        stream.send(2000, watch)
        workers = [start() for _ in range(2)]
        wait_until(lambda: stream.count() >= 100, 60)
        for _ in range(4):
            time.sleep(chance.uniform(0.5, 3))
            victim = chance.randrange(2)
            workers[victim].kill()
            workers[victim].wait()
            workers[victim] = start()
            watch.disturbed()
        stream.send(500, watch)
        for process in workers:
            process.kill()
            process.wait()
        alone = len(watch.samples)
        wait_until(lambda: len(watch.samples) > alone + 10, 60)
        assert 0 < stream.count() < stream.sent, "the kills fell while work was being done"
        assert watch.samples[-1].active
        workers = [start("--grace", "2s") for _ in range(2)]
        watch.disturbed()
        so_far = stream.count()
        wait_until(lambda: stream.count() >= so_far + 100, 60)
        workers[0].send_signal(signal.SIGTERM)
        assert workers[0].wait(60) == 143, workers[0].log.read_text()[-3000:]
        workers[0] = start()
        watch.wait_zero(240)
    finally:
        watch.end()
    watch.never_less_than_what_is_left()
    stream.never_null()
    late = watch.late_s()
    print(f"{len(watch.samples)} polls, at most {late:.1f} s late")
    assert late < POLLING_S and len(watch.samples) > 100
    assert stream.count() == stream.sent
    assert stream.client.xlen("jobs") < stream.sent, "trimmed, and never in front of anyone"


def test_our_gauge_says_the_same(stream, worker):  # noqa: F811
    """tranche_source_lag_messages beside KEDA's value: what the alert on a disagreement compares."""
    stream.operate("init")
    stream.send(600)
    process = worker(stream.server, *SLOW, "--http", "127.0.0.1:0", "--log-format", "logfmt",
                     idle=None)
    watch = stream.watch()
    watch.promised = stream.sent
    try:
        seen = Gauge(process.log.read_text).follow(lambda: stream.count() == 600)
        watch.wait_zero(60)
    finally:
        watch.end()
    assert process.poll() is None
    watch.agrees_with(seen)
