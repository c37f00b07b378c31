#!/usr/bin/python3
"""queue_bench: queue to row on servers of this machine, with the simulated engine: how many jobs a
second go from a broker into PostgreSQL, how long a single job waits for its row, whether the engine
ever waits for jobs that the broker has, and what memory a million jobs take.

  tests/bench/queue_bench.py [--jobs N] [--trickle SECONDS] [--million] [--brokers kafka,redis]

One line a figure. Servers, workers and this script share the processors."""
import argparse
import contextlib
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.dont_write_bytecode = True
sys.path.insert(0, str(ROOT / "tests/run"))
from kafka_broker import Broker  # noqa: E402
from postgres_server import Server as Postgres  # noqa: E402
from redis_server import Server as Redis  # noqa: E402

BINARY = os.environ.get("TRANCHE_BIN") or str(ROOT / "build/release/tranche")
ENV = {k: v for k, v in os.environ.items() if not k.startswith("TRANCHE_")}
TOKENS, PROMPT_BYTES = 64, 600  # rows of about 1 kB: the request is a column too


def call(*args):
    done = subprocess.run([BINARY, *map(str, args)], env=ENV, stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    if done.returncode:
        raise SystemExit(f"{args[0]}: exit {done.returncode}\n{done.stderr.decode()[-2000:]}")


class Bench:
    def __init__(self, folder, postgres, kafka, redis):
        self.folder, self.db, self.kafka, self.redis = folder, None, kafka, redis
        self.db = postgres.url("postgres", port=postgres.port)
        self.sql = postgres.connect("postgres")
        self.sql.autocommit = True
        call("migrate", "--db", self.db, "--log-level", "warn")

    def queue(self, broker, name):
        url = f"kafka://{self.kafka.address}/{name}" if broker == "kafka" else self.redis.url(name)
        call("init", "--source", url, "--log-level", "warn",
             *(["--partitions", 6] if broker == "kafka" else []))
        return url

    def submit(self, url, name, n, tokens, prompt_bytes=8):
        path = self.folder / f"{name}.jsonl"
        filler = ("lorem ipsum " * 100)[:prompt_bytes]
        with open(path, "w") as f:
            for i in range(n):
                f.write(f'{{"id":"j{i}","prompt":"{i} {filler}","max_tokens":{tokens}}}\n')
        call("submit", "--source", url, "--log-level", "warn", path)
        path.unlink()

    def worker(self, url, *options):
        return subprocess.Popen(
            [BINARY, "worker", "--engine=sim", "--source", url, "--db", self.db, "--idle-exit",
             "1s", "--progress", "off", "--log-level", "warn", *map(str, options)],
            env=ENV, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    def ask(self, query, *values):
        with self.sql.cursor() as c:
            c.execute(query, values)
            return c.fetchall()

    def rows(self, batch):
        """Kept up with each transaction, so that asking costs nothing."""
        return (self.ask("SELECT rows_ok FROM tranche.batches WHERE batch_id = %s", batch)
                or [(0,)])[0][0]

    def throughput(self, broker, n, *options):
        name = f"{broker}-{n}"
        url = self.queue(broker, name)
        self.submit(url, name, n, 2 * TOKENS, PROMPT_BYTES)
        start = time.monotonic()
        worker = self.worker(url, "--sim-tokens", TOKENS, "--slots", 256, *options)
        peak = []
        watch = threading.Thread(target=lambda: peak.append(os.wait4(worker.pid, 0)[2].ru_maxrss))
        watch.start()
        while self.rows(name) < n:
            if not watch.is_alive():
                raise SystemExit(worker.stdout.read().decode()[-2000:])
            time.sleep(0.05)
        seconds = time.monotonic() - start
        watch.join()
        size = self.ask("SELECT avg(pg_column_size(r.*)) FROM tranche.results r "
                        "WHERE batch_id = %s", name)[0][0]
        print(f"{broker} to PostgreSQL: {n} jobs, rows of {float(size):.0f} bytes: "
              f"{n / seconds:.0f} jobs/s from the start of the process, {peak[0] / 1024:.0f} MiB",
              flush=True)
        # Neither the dead rows nor the pages to write are the next figure's business.
        self.ask("DELETE FROM tranche.results WHERE batch_id = %s RETURNING 1", name)
        with self.sql.cursor() as c:
            c.execute("VACUUM tranche.results")
            c.execute("CHECKPOINT")

    def trickle(self, broker, seconds):
        name = f"{broker}-trickle"
        url = self.queue(broker, name)
        worker = self.worker(url, "--sim-tokens", TOKENS)
        sent, seen = {}, {}
        until = time.monotonic() + seconds
        next_at = time.monotonic() + 1
        while time.monotonic() < until or len(seen) < len(sent):
            now = time.monotonic()
            if now >= next_at and now < until:
                job = json.dumps({"id": f"t{len(sent)}", "prompt": "hi", "max_tokens": 300})
                sent[f"t{len(sent)}"] = now
                if broker == "kafka":
                    self.kafka.produce(name, [job])
                else:
                    self.redis.client().xadd(name, {"job": job})
                next_at += 1
            for (found,) in self.ask("SELECT custom_id FROM tranche.results WHERE batch_id = %s",
                                     name):
                seen.setdefault(found, time.monotonic())
            if worker.poll() is not None:  # an idle moment at the start
                worker = self.worker(url, "--sim-tokens", TOKENS)
            time.sleep(0.02)
        worker.terminate()
        worker.wait()
        waits = sorted(seen[k] - sent[k] for k in sent)
        print(f"{broker}, one job a second: queue to row P50 {waits[len(waits) // 2]:.2f} s, "
              f"P95 {waits[int(len(waits) * 0.95)]:.2f} s, flush interval 5 s, {len(waits)} jobs",
              flush=True)

    def paced(self, broker, n):
        """64 slots, 64 ms a job: 1,000 jobs/s. A slot that is free while the broker has jobs is
        what `occupancy` lacks to 1; the first fill and the last drain are in it too."""
        name = f"{broker}-paced"
        url = self.queue(broker, name)
        self.submit(url, name, n, 16)
        worker = self.worker(url, "--sim-tokens", 32768, "--sim-step", "4ms", "--slots", 64)
        out = worker.communicate()[0].decode()
        found = re.search(r"occupancy=([\d.]+)", out)
        print(f"{broker}, engine paced to 1,000 jobs/s: {n} jobs, occupancy "
              f"{found.group(1) if found else out[-2000:]}", flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--jobs", type=int, default=50000)
    parser.add_argument("--paced", type=int, default=20000)
    parser.add_argument("--trickle", type=int, default=40)
    parser.add_argument("--million", action="store_true")
    parser.add_argument("--brokers", default="kafka,redis")
    options = parser.parse_args()
    print(f"load average {os.getloadavg()[0]:.1f}", flush=True)
    with contextlib.ExitStack() as ends:
        folder = pathlib.Path(ends.enter_context(tempfile.TemporaryDirectory()))
        postgres = ends.enter_context(Postgres())
        kafka, redis = Broker(folder / "kafka"), Redis(folder / "redis")
        ends.callback(redis.stop)
        kafka.start()
        ends.callback(kafka.kill)
        bench = Bench(folder, postgres, kafka, redis)
        for broker in options.brokers.split(","):
            if options.jobs:
                bench.throughput(broker, options.jobs)
            if options.million:
                bench.throughput(broker, 1000000)
            if options.paced:
                bench.paced(broker, options.paced)
            if options.trickle:
                bench.trickle(broker, options.trickle)


if __name__ == "__main__":
    main()
