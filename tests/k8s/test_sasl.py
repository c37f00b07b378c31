"""overlays/kafka-sasl on a real broker that takes passwords over TLS: `init` and a worker sign in with
the settings as mounted, as a user that may do no more than docs/kafka.md lists."""
import json
import subprocess
import sys

import pytest

import manifests
from test_canary import Site

sys.path.insert(0, f"{manifests.ROOT}/tests/run")
from secure_broker import SecureBroker  # noqa: E402


@pytest.fixture
def broker(tmp_path):
    broker = SecureBroker(tmp_path / "server")
    try:
        yield broker.start()
    finally:
        broker.kill()


def test_init_and_worker_sign_in(broker, tmp_path):
    newer = subprocess.run([f"{manifests.ROOT}/tools/librdkafka.sh"], check=True, stdout=subprocess.PIPE, timeout=600)
    site = Site(tmp_path, ["jobs/init", "keda/overlays/kafka-sasl"], f"kafka://localhost:{broker.sasl}/prompts", False,
                LD_LIBRARY_PATH=newer.stdout.decode().strip())
    (tmp_path / "ca.crt").write_text((broker.tls / "ca.crt").read_text())
    (tmp_path / "username").write_text("scram")
    (tmp_path / "password").write_text("geheim")
    broker.grant(["--operation", "Read", "--operation", "Create", "--topic", "prompts"],
                 ["--operation", "Read", "--group", "tranche"])
    site.pod("Job/tranche-init")
    broker.take(["--operation", "Create", "--topic", "prompts"])
    site.pod("Job/tranche-init")  # of a topic that is there: as with each new image
    jobs = [json.dumps({"id": f"job-{i}", "prompt": "x", "max_tokens": 3}) for i in range(50)]
    broker.produce("prompts", jobs)
    site.pod("ScaledJob/tranche-worker")
    assert site.rows("main") == {f"job-{i}" for i in range(50)}
    (tmp_path / "password").write_text("wrong")
    with pytest.raises(AssertionError, match="invalid credentials"):
        site.pod("ScaledJob/tranche-worker")
