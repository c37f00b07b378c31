"""Two runs of one queue side by side on real brokers: a canary that takes a share of the jobs, blue
and green that take all, and the way back."""
import hashlib
import json
import re
import sqlite3
import subprocess
import contextlib

import pytest

import redis_server
from kafka_broker import Broker

JOBS = 300


@pytest.fixture(scope="module", params=["redis", "kafka"])
def broker(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "redis":
        server = redis_server.Server(folder)
        yield server.url
        server.stop()
    else:
        broker = Broker(folder).start()
        yield lambda name: f"kafka://{broker.address}/{name}"
        broker.kill()


class Desk:
    def __init__(self, binary, folder, queue):
        self.binary, self.folder, self.queue = binary, folder, queue

    def call(self, command, *options, code=0):
        done = subprocess.run([self.binary, command, "--source", self.queue, *map(str, options)],
                              cwd=self.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                              timeout=180)
        assert done.returncode == code, (command, options, done.returncode,
                                         done.stderr.decode()[-2000:])
        return done.stdout.decode()

    def init(self, group, *options):
        self.call("init", "--group", group, *options)

    def submit(self, first, n):
        (self.folder / "jobs.jsonl").write_text("".join(
            json.dumps({"id": f"job-{i}", "prompt": f"number {i}", "max_tokens": 9}) + "\n"
            for i in range(first, first + n)))
        (self.folder / "jobs.jsonl.submit").unlink(missing_ok=True)
        self.call("submit", "--batch", "b", "jobs.jsonl")

    def work(self, run, *options):
        """One worker of the run's group until nothing is left; its summary's counts."""
        out = self.call("worker", "--engine", "sim", "--db", "rows.db", "--run", run, "--group", run,
                        "--flush-interval", "100ms", "--progress", "off", "--idle-exit", "500ms",
                        *options)
        return {k: int(v) for k, v in re.findall(r"(\w+)=(\d+) ", out)}

    def rows(self, run):
        with contextlib.closing(sqlite3.connect(self.folder / "rows.db")) as db:
            return dict(db.execute("SELECT custom_id, config_revision FROM results WHERE run = ? AND "
                                   "status = 'ok'", (run,)))

    def audit(self, run, *options, code=0):
        return self.call("audit", "--db", "rows.db", "--run", run, "--group", run, "--batch", "b",
                         *options, code=code)

    def left(self, group):
        status = json.loads(self.call("status", "--db", "rows.db", "--group", group, "--json"))
        return status["source"]["lag"], status["source"]["pending"] or 0


@pytest.fixture
def desk(binary, tmp_path, broker, request):
    return Desk(binary, tmp_path, broker(request.node.originalname.replace("test_", "")))


def taken(share, n=JOBS):
    """The choice, from its description: the head of SHA-256 as a number of [0, 1)."""
    heads = {f"job-{i}": hashlib.sha256(f"job-{i}".encode()).digest()[:8] for i in range(n)}
    return {i for i, h in heads.items() if (int.from_bytes(h, "big") >> 11) / 2**53 < share}


def test_a_canary_beside_the_run(desk, tranche):
    desk.init("main")
    desk.init("canary")
    desk.submit(0, JOBS)
    assert desk.work("main")["rows"] == JOBS
    some, more = taken(0.2), taken(0.5)
    assert 30 < len(some) < 90 and some < more
    done = desk.work("canary", "--canary", "20", "--default-max-tokens", "7")
    assert (done["rows"], done["passed_over"]) == (len(some), JOBS - len(some))
    # Its group is through with all of the queue, and what it took is what its hash says.
    assert desk.left("canary") == desk.left("main") == (0, 0)
    assert set(desk.rows("canary")) == some and set(desk.rows("main")) == {f"job-{i}" for i in range(JOBS)}
    assert set(desk.rows("canary").values()).isdisjoint(desk.rows("main").values())
    # An audit has to know the share.
    assert f"present={len(some)} passed_over={JOBS - len(some)} " in desk.audit("canary", "--canary", "20")
    assert f"missing={JOBS - len(some)} " in desk.audit("canary", code=3)
    done = tranche("diff", "main", "canary", "--db", "rows.db", "--json", "--fail-on", "failed,wrong")
    assert done.returncode == 0, done.stderr.decode()
    assert json.loads(done.stdout)["both"] == len(some)
    # Grown: what it had is had, what comes is taken at the new share.
    desk.submit(JOBS, 100)
    done = desk.work("canary", "--canary", "50")
    later = taken(0.5, JOBS + 100) - taken(0.5)
    assert (done["rows"], done["passed_over"]) == (len(later), 100 - len(later))
    assert set(desk.rows("canary")) == some | later
    # The way back is to leave it: the other run has every job.
    assert desk.work("main")["rows"] == 100
    assert "missing=0 " in desk.audit("main")


def test_blue_green_and_back(desk):
    """Green takes over, is found wanting, and blue goes on where its group stands."""
    desk.init("blue")
    desk.submit(0, 40)
    assert desk.work("blue")["rows"] == 40
    desk.init("green", "--from-end")
    desk.submit(40, 40)
    assert desk.work("green", "--default-max-tokens", "3")["rows"] == 40
    desk.submit(80, 40)
    before = desk.rows("blue")
    assert desk.work("blue")["rows"] == 80
    after = desk.rows("blue")
    assert set(after) == {f"job-{i}" for i in range(120)}
    assert {i: after[i] for i in before} == before and len(set(after.values())) == 1
    assert "missing=0 " in desk.audit("blue") and desk.left("blue") == (0, 0)
    assert desk.left("green")[0] == 40
