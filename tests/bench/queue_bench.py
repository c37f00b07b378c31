#!/usr/bin/python3
"""queue_bench: queue to row on servers of this machine, with the simulated engine: how many jobs a
second go from a broker into PostgreSQL, how long a single job waits for its row, whether the engine
ever waits for jobs that the broker has, and what memory a million jobs take: with --million the
script fails where the worker's memory grows by more than a tenth over the second half.

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
FLUSH_ROWS = 512  # the worker's default
MARKS = (50000, 100000, 250000, 500000, 750000)  # rows at which memory is looked at
GROWTH_MAX = 1.1  # of the memory at the end over that at half the jobs


def call(*args):
    done = subprocess.run([BINARY, *map(str, args)], env=ENV, stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    if done.returncode:
        raise SystemExit(f"{args[0]}: exit {done.returncode}\n{done.stderr.decode()[-2000:]}")


def resident_mib(pid):
    """Of a worker: its parent, which supervises, and the child that works."""
    children = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return sum(int(re.search(r"VmRSS:\s+(\d+)", pathlib.Path(f"/proc/{p}/status").read_text())[1])
               for p in [pid, *children]) / 1024


def write_ms(folder, n=100):
    """What a transaction's worth of log costs on this disk at this moment, median."""
    times = []
    with open(folder / "write-probe", "wb", buffering=0) as f:
        for _ in range(n):
            start = time.monotonic()
            os.pwrite(f.fileno(), bytes(FLUSH_ROWS * 1024), 0)
            os.fdatasync(f.fileno())
            times.append(time.monotonic() - start)
    return sorted(times)[n // 2] * 1e3


class Watch:
    """Rows of a batch as they come, and the worker's memory at MARKS and at the last."""

    def __init__(self, bench, name, worker):
        self.at, self.memory, self.full_at, self.full = time.monotonic(), {}, 0, 0
        self.bench, self.name, self.worker = bench, name, worker

    def until(self, n):
        rows, marks = 0, [*(m for m in MARKS if m < n), n]
        while rows < n:
            if self.worker.poll() is not None:
                raise SystemExit(self.worker.stdout.read().decode()[-2000:])
            new = self.bench.rows(self.name)
            if new - rows >= FLUSH_ROWS:
                self.full_at, self.full = time.monotonic() - self.at, new
            rows = new
            if rows >= marks[0]:
                self.memory[marks.pop(0)] = resident_mib(self.worker.pid)
            time.sleep(0.02)
        return time.monotonic() - self.at


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
        before = write_ms(self.folder)
        worker = self.worker(url, "--sim-tokens", TOKENS, "--slots", 256, *options)
        watch = Watch(self, name, worker)
        seconds = watch.until(n)
        peak = os.wait4(worker.pid, 0)[2].ru_maxrss / 1024
        size = self.ask("SELECT avg(pg_column_size(r.*)) FROM tranche.results r "
                        "WHERE batch_id = %s", name)[0][0]
        print(f"{broker} to PostgreSQL: {n} jobs, rows of {float(size):.0f} bytes: "
              f"{n / seconds:.0f} jobs/s from the start of the process to the last row, "
              f"{watch.full / (watch.full_at or 1):.0f} to the last full flush; the {n - watch.full} "
              f"behind it came {seconds - watch.full_at:.1f} s later; 512 kB to disk "
              f"{before:.2f} ms before, {write_ms(self.folder):.2f} behind", flush=True)
        print(f"{broker}: resident MiB at rows " + ", ".join(
            f"{rows}: {mib:.0f}" for rows, mib in watch.memory.items()) + f"; peak {peak:.0f}",
            flush=True)
        if watch.memory[n] > GROWTH_MAX * watch.memory.get(n // 2, watch.memory[n]):
            raise SystemExit(f"{broker}: memory grows: want at most {GROWTH_MAX} x "
                             f"{watch.memory[n // 2]:.0f} MiB, got {watch.memory[n]:.0f}")
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
