"""GPUs as their driver tells of them, in /metrics and in the doctor, by a libnvidia-ml.so.1 that the
test builds: the binary looks for one when it runs and links none."""
import json
import os
import pathlib
import subprocess

import pytest

from redis_server import wait_until
from test_http import Worker

HERE = pathlib.Path(__file__).resolve().parent


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    folder = tmp_path_factory.mktemp("driver")
    subprocess.run(["cc", "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o",
                    folder / "libnvidia-ml.so.1", HERE / "fake_nvml.c"], check=True, timeout=120)
    return folder


def samples(metrics, name):
    return {labels: v for (family, labels), v in metrics.items() if family == f"tranche_gpu_{name}"}


@pytest.fixture
def gpus(binary, driver, tmp_path, monkeypatch):
    """The metrics of a worker that waits for jobs, once its driver was asked."""
    started = []

    def start(**fake):
        monkeypatch.setenv("LD_LIBRARY_PATH", str(driver))
        for name, v in fake.items():
            monkeypatch.setenv(f"FAKE_{name}", str(v))
        w = Worker(binary, tmp_path, "--db", "rows.db", "--batch", "b", "-", stdin=subprocess.PIPE)
        started.append(w)
        return w
    yield start
    for w in started:
        w.end()


def test_no_driver_no_samples(binary, tmp_path):
    assert b"nvidia" not in subprocess.run(["ldd", binary], stdout=subprocess.PIPE,
                                           check=True).stdout
    w = Worker(binary, tmp_path, "--db", "rows.db", "--batch", "b", "-", stdin=subprocess.PIPE)
    try:
        wait_until(w.ready, 60)
        metrics = w.metrics()
        assert not [key for key in metrics if key[0].startswith("tranche_gpu_")]
        assert "# TYPE tranche_gpu_memory_bytes gauge" in w.ask("/metrics")[1]
    finally:
        w.end()


def test_two_cards(gpus):
    w = gpus(GPUS=2, USED_MIB=1024, OURS=1, FOREIGN=2)
    wait_until(lambda: samples(w.metrics(), "memory_bytes"), 60)
    m = w.metrics()
    assert samples(m, "memory_bytes") == {'device="0"': 80 << 30, 'device="1"': 80 << 30}
    assert samples(m, "memory_used_bytes") == {'device="0"': 1 << 30, 'device="1"': (1 << 30) + 1}
    assert samples(m, "utilization_ratio")['device="0"'] == 0.93
    assert samples(m, "memory_controller_ratio")['device="1"'] == 0.71
    assert samples(m, "temperature_celsius")['device="0"'] == 61
    assert samples(m, "foreign_processes") == {'device="0"': 2, 'device="1"': 2}
    w.process.stdin.close()
    assert w.process.wait(60) == 0


def test_what_the_driver_does_not_say_has_no_sample(gpus):
    """Ids of another namespace make nobody foreign; a card without rates has none."""
    w = gpus(NO_RATES=1, FOREIGN=1)
    wait_until(lambda: samples(w.metrics(), "memory_bytes"), 60)
    m = w.metrics()
    assert samples(m, "temperature_celsius") == {'device="0"': 61}
    assert not samples(m, "utilization_ratio") and not samples(m, "memory_controller_ratio")
    assert not samples(m, "foreign_processes")


def test_a_card_that_does_not_answer_keeps_nobody(gpus):
    w = gpus(SLOW_S=600)
    wait_until(w.ready, 60)
    assert w.ask("/healthz")[0] == 200 and not samples(w.metrics(), "memory_bytes")
    w.process.stdin.close()
    assert w.process.wait(60) == 0, "it leaves all the same"
    assert "event=gpu_driver_silent" in w.log()


# ---- the doctor ----

@pytest.fixture
def doctor(binary, driver, tmp_path):
    def call(*options, library=driver, **fake):
        clean = {k: v for k, v in os.environ.items() if not k.startswith("TRANCHE_")}
        done = subprocess.run([binary, "doctor", "--json", "--engine", "sim", *options],
                              cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                              timeout=60, check=False,
                              env={**clean, "LD_LIBRARY_PATH": str(library),
                                   **{f"FAKE_{k}": str(v) for k, v in fake.items()}})
        checks = json.loads(done.stdout)["checks"]
        assert all(c["verdict"] == "ok" or c["mend"] for c in checks)
        return [(c["check"], c["verdict"], c["text"]) for c in checks]
    return call


def has(checks, check, verdict, *words):
    assert any(c == check and v == verdict and all(w in t for w in words) for c, v, t in checks), \
        checks


def test_doctor_on_good_cards(doctor):
    checks = doctor(GPUS=2)
    has(checks, "driver", "ok", "560.35.03", "CUDA 12.6")
    has(checks, "device", "ok", "GPU 1, Fake H100 1: 80.0 GiB, free")
    has(checks, "topology", "ok", "GPU 0: 18 NVLinks up, 16 PCIe lanes; meets GPU 1 by two CPU sockets")
    has(doctor(GPUS=2, LEVEL=10), "topology", "ok", "by one PCIe switch")
    has(doctor(MAJOR=8), "device", "ok", "portable kernels")
    assert not [c for c in checks if c[0] in ("driver", "device", "topology") and c[1] != "ok"]


@pytest.mark.parametrize("fake,check,verdict,words", [
    ({"CUDA": 11080}, "driver", "fault", "found 11.8"),
    ({"GPUS": 0}, "device", "warn", "shows this process no GPU"),
    ({"MAJOR": 7}, "device", "warn", "found 7.0"),
    ({"USED_MIB": 20480}, "device", "warn", "20.0 of 80.0 GiB are in use"),
    ({"FOREIGN": 3}, "device", "warn", "by 3 processes"),
    ({"CELSIUS": 91}, "device", "warn", "91 degrees"),
    ({"LANES": 8}, "topology", "warn", "8 PCIe lanes of 16")])
def test_doctor_on_bad_cards(doctor, fake, check, verdict, words):
    has(doctor(**fake), check, verdict, words)


def test_doctor_without_a_driver(doctor, tmp_path):
    assert not [c for c in doctor(library=tmp_path) if c[0] == "driver"], "a CPU needs none"
    has(doctor("--device", "cuda:0", library=tmp_path), "driver", "fault", "libnvidia-ml.so.1")
    has(doctor("--device", "cuda:0", NO_DRIVER=1), "driver", "fault", "Driver Not Loaded")
    has(doctor("--device", "cuda:0", GPUS=0), "device", "fault", "no GPU")
