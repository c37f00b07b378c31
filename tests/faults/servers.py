"""The real servers that cases share, started when first asked for, and the proxy between."""
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/run"))
import kafka_broker  # noqa: E402
import postgres_server  # noqa: E402
import redis_server  # noqa: E402

BUILD = pathlib.Path(os.environ.get("TRANCHE_FAULTS_BUILD") or ROOT / "build/faults")
BINARY = BUILD / "tranche"
ROLE = "faultworker"
PASSWORD = "only-in-tests"


def clean_environment():
    return {k: v for k, v in os.environ.items() if not k.startswith("TRANCHE_")}


class Servers:
    """One PostgreSQL, one Redis, one Kafka."""

    def __init__(self):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="tranche-faults-"))
        os.chmod(self.folder, 0o755)
        self.lock = threading.RLock()
        self.made = {}
        self.numbers = iter(range(1, 1 << 30))

    def get(self, name, make):
        with self.lock:
            if name not in self.made:
                self.made[name] = make()
            return self.made[name]

    @property
    def postgres(self):
        return self.get("postgres", self.make_postgres)

    def make_postgres(self):
        server = postgres_server.Server()
        server.__enter__()
        with open(server.data / "postgresql.conf", "a") as f:
            f.write("max_connections = 60\n")
        server.stop()
        server.start()
        server.ask("postgres", "CREATE DATABASE template_rows")
        done = subprocess.run([BINARY, "migrate", "--db", server.url("template_rows")],
                              capture_output=True, env=clean_environment(), check=False)
        assert done.returncode == 0, done.stderr.decode()
        server.ask("postgres", f"CREATE ROLE {ROLE} LOGIN PASSWORD '{PASSWORD}' "
                   "IN ROLE tranche_worker")
        (self.folder / "password").write_text(PASSWORD)
        return server

    @property
    def redis(self):
        return self.get("redis", lambda: redis_server.Server(self.folder / "redis"))

    @property
    def kafka(self):
        return self.get("kafka", lambda: kafka_broker.Broker(self.folder / "kafka").start())

    def database(self, name):
        with self.lock:
            self.postgres.ask("postgres", f"CREATE DATABASE {name} TEMPLATE template_rows")

    def close(self):
        if "kafka" in self.made:
            self.made["kafka"].kill()
        if "redis" in self.made:
            self.made["redis"].stop()
        if "postgres" in self.made:
            self.made["postgres"].__exit__(None, None, None)
        shutil.rmtree(self.folder, ignore_errors=True)


class Proxy:
    """tests/faults/faultproxy.c; its commands are told there."""

    def __init__(self, host, port, seed=1):
        self.process = subprocess.Popen([BUILD / "faultproxy", host, str(port), str(seed)],
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.port = int(self.process.stdout.readline().split()[1])

    def tell(self, *words):
        self.process.stdin.write(" ".join(map(str, words)) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        assert answer == "ok\n", answer
        return self

    def stats(self):
        self.process.stdin.write("stats\n")
        self.process.stdin.flush()
        return {k: int(v) for k, v in
                (w.split("=") for w in self.process.stdout.readline().split()[1:])}

    def close(self):
        self.process.stdin.close()
        self.process.wait(10)
        self.process.stdout.close()


class Worker:
    """A pod: a process group of its own, the supervising parent first. Its log stands in a file."""

    def __init__(self, command, log, env, limits=(), prefix=()):
        def prepare():
            for what, value in limits:
                resource.setrlimit(what, (value, value))
        self.log = log
        with open(log, "wb") as out:
            self.process = subprocess.Popen([*prefix, *map(str, command)], stdout=out, stderr=out,
                                            stdin=subprocess.DEVNULL, cwd=log.parent,
                                            start_new_session=True,
                                            env=env,
                                            preexec_fn=prepare if limits else None)
        self.started = time.time()

    @property
    def pid(self):
        return self.process.pid

    def signal(self, number):
        """To all of the pod; SIGTERM to its first process alone, as a kubelet does."""
        try:
            (os.kill if number == signal.SIGTERM else os.killpg)(self.pid, number)
        except ProcessLookupError:
            pass

    def child(self):
        """The process that works, below its supervising parent; None while there is none."""
        try:
            found = pathlib.Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        except OSError:
            return None
        return int(found[0]) if found else None

    def kill_child(self):
        """The parent starts another. Answers whether there was one."""
        child = self.child()
        if not child:
            return False
        os.kill(child, signal.SIGKILL)
        return True

    def alive(self):
        return self.process.poll() is None

    def kill(self):
        """The whole pod, as a node that dies. Answers whether it lived."""
        lived = self.alive()
        self.signal(signal.SIGKILL)
        self.process.wait()
        return lived

    def wait(self, timeout):
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            return None

    def text(self):
        return self.log.read_text(errors="replace")

    def fired(self):
        """Whether its failpoint was reached."""
        return "failpoint " in self.text()
