"""A queue with a database of its own and the workers of one test. A test's sites say which queue:
they set what `work` needs, and how to look into it."""
import contextlib
import os
import subprocess
import time


class QueueSite:
    def __init__(self, binary, postgres, folder):
        self.binary, self.postgres, self.folder = binary, postgres, folder
        self.name, self.workers = f"d{time.monotonic_ns()}", []
        postgres.ask("postgres", f"CREATE DATABASE {self.name}")
        self.call("migrate", "--db", postgres.url(self.name))
        postgres.ask("postgres", f"CREATE ROLE w{self.name} LOGIN IN ROLE tranche_worker")
        self.db = postgres.url(self.name, "w" + self.name)

    def call(self, *args, want=0, timeout=120):
        env = {k: v for k, v in os.environ.items() if not k.startswith("TRANCHE_")}
        done = subprocess.run([self.binary, *map(str, args)], stdout=subprocess.PIPE, env=env,
                              stderr=subprocess.PIPE, timeout=timeout, cwd=self.folder, check=False)
        assert done.returncode == want, done.stderr.decode()[-3000:]
        return done

    def start(self, *args):
        """A worker of the binary; its log stands in worker-N.log."""
        path = self.folder / f"worker-{len(self.workers) + 1}.log"
        with open(path, "wb") as log:
            worker = subprocess.Popen([self.binary, "worker", *map(str, args), "--db", self.db,
                                       "--flush-interval", "100ms", "--progress", "off"],
                                      stdout=log, stderr=log, cwd=self.folder)
        worker.log = path
        self.workers.append(worker)
        return worker

    def log(self, worker):
        return worker.log.read_text()

    def close(self):
        for worker in self.workers:
            if worker.poll() is None:
                worker.kill()
            worker.wait()
        with contextlib.suppress(Exception):
            self.postgres.ask("postgres", f"DROP DATABASE {self.name} WITH (FORCE)")
