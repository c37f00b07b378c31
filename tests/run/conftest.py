"""What the whole-binary tests share: the binary, a clean environment, folders of their own."""
import os
import pathlib
import shutil
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
BINARY = pathlib.Path(os.environ.get("TRANCHE_BIN") or ROOT / "build/release/tranche").resolve()


@pytest.fixture(scope="session")
def binary():
    assert BINARY.is_file(), f"{BINARY} is missing: build it, or name one in TRANCHE_BIN"
    return str(BINARY)


@pytest.fixture(scope="session")
def root():
    return ROOT


@pytest.fixture(scope="session")
def tiny_model():
    return ROOT / "examples/tiny-model"


@pytest.fixture(scope="module")
def postgres():
    from postgres_server import Server  # here: not every test's machine has its client
    with Server() as made:
        yield made


@pytest.fixture(scope="module")
def redis(tmp_path_factory):
    import redis_server
    server = redis_server.Server(tmp_path_factory.mktemp("redis"))
    yield server
    server.stop()


@pytest.fixture(scope="module")
def broker(tmp_path_factory):
    from kafka_broker import Broker
    broker = Broker(tmp_path_factory.mktemp("kafka")).start()
    yield broker
    broker.kill()


@pytest.fixture
def tranche(binary, tmp_path):
    """tranche("run", ..., stdin="...", env={...}) -> CompletedProcess, run in tmp_path."""
    def call(*args, stdin="", env=None, timeout=120, stdout=subprocess.PIPE):
        clean = {k: v for k, v in os.environ.items() if not k.startswith("TRANCHE_")}
        return subprocess.run([binary, *map(str, args)], input=stdin.encode(), cwd=tmp_path,
                              stdout=stdout, stderr=subprocess.PIPE,
                              env={**clean, **(env or {})}, timeout=timeout)
    return call


@pytest.fixture
def model_copy(tiny_model, tmp_path):
    """A folder that a test may break."""
    copy = tmp_path / "model"
    shutil.copytree(tiny_model, copy)
    return copy
