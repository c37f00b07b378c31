"""The canary's pods on real brokers, container after container as the kubelet runs them, with the Job
that begins their group too late: what was in the queue before is not theirs, what comes then is."""
import contextlib
import hashlib
import json
import os
import re
import sqlite3
import subprocess
import sys

import pytest

import manifests
from test_binary import BINARY, run

sys.path.insert(0, f"{manifests.ROOT}/tests/run")
from kafka_broker import Broker  # noqa: E402
from redis_server import Server  # noqa: E402

JOBS, SHARE = 200, 0.05
OVERLAYS = {"kafka": ["common/kafka", "keda/overlays/canary"], "redis": ["common/redis", "keda/overlays/canary-redis"]}


@pytest.fixture(params=OVERLAYS)
def queue(request, tmp_path):
    """(name of the queue, URL of a stream or topic on a server of its own)."""
    if request.param == "redis":
        server = Server(tmp_path / "server")
        yield request.param, server.url("prompts")
        server.stop()
    else:
        broker = Broker(tmp_path / "server")
        try:
            broker.start()
            yield request.param, f"kafka://{broker.address}/prompts"
        finally:
            broker.kill()


class Site:
    """Manifests over a queue of this machine: `url`, as the pods reach it."""

    def __init__(self, folder, parts, url, plain=True, **environment):
        self.folder, self.url, self.plain = folder, url, plain
        self.environment = {"TRANCHE_CONNECT_TIMEOUT": "60s", **environment}
        self.objects = [o for part in parts for o in manifests.render(part)]
        self.templates = dict(manifests.templates(self.objects))

    def edit(self, text):
        """The settings as mounted, but for where the servers are, and without a card."""
        for key, value in (("source", self.url), ("db", f"{self.folder}/rows.db"), ("idle-exit", "2s"),
                           ("device", None), ("db-password-file", None), ("partitions", "3")):
            text = re.sub(rf"^{key} = .*$", f"{key} = {value}" if value else "engine = sim" * (key == "device"),
                          text, flags=re.M)
        return text if not self.plain else re.sub(r"^(security\.protocol|ssl\.\S+|username|password\.file|tls\.\S+) = .*$", "",
                                                  text, flags=re.M)

    def pod(self, name):
        spec = self.templates[name]["spec"]
        for c in [*spec.get("initContainers", []), *spec["containers"]]:
            code, text = run(c, self.objects, self.folder, self.folder, self.edit, **self.environment)
            assert code == 0, text

    def submit(self, first):
        path = self.folder / f"jobs-{first}.jsonl"
        path.write_text("".join(json.dumps({"id": f"job-{i}", "prompt": "x", "max_tokens": 3}) + "\n"
                                for i in range(first, first + JOBS)))
        self.call("submit", "--batch", "b", path)

    def call(self, command, *args):
        done = subprocess.run([BINARY, command, "--source", self.url, *map(str, args)], cwd=self.folder,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=180,
                              env={"PATH": os.environ["PATH"]})
        assert done.returncode == 0, done.stdout.decode()

    def rows(self, run="canary"):
        with contextlib.closing(sqlite3.connect(self.folder / "rows.db")) as db:
            return {i for i, in db.execute("SELECT custom_id FROM results WHERE run = ?", (run,))}


def chosen(first):
    """docs/operations.md: the head of the id's SHA-256 as a number of [0, 1)."""
    heads = {f"job-{i}": hashlib.sha256(f"job-{i}".encode()).digest()[:8] for i in range(first, first + JOBS)}
    return {i for i, h in heads.items() if (int.from_bytes(h, "big") >> 11) / 2**53 < SHARE}


def test_a_canary_whose_job_is_late(queue, tmp_path):
    site = Site(tmp_path, OVERLAYS[queue[0]], queue[1])
    assert chosen(0) and chosen(JOBS)
    site.call("init", "--group", "tranche", *(["--partitions", "3"] if queue[0] == "kafka" else []))
    site.submit(0)
    site.pod("ScaledJob/tranche-canary")
    assert site.rows() == set()
    site.submit(JOBS)
    # Neither the Job nor the next pod moves a group that has begun.
    site.pod("Job/tranche-init-canary")
    site.pod("ScaledJob/tranche-canary")
    assert site.rows() == chosen(JOBS)
