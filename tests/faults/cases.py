"""One case of the campaign: a queue and a database of its own, jobs in a ledger, workers that are
hurt, an observer that looks on, and the invariants at the end (RELIABILITY 5.3).

A case is (row, parameters, seed). Everything random comes from `self.dice`, so it can be replayed."""
import contextlib
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time

import psycopg2

import evidence
from ledger import Ledger
from queues import KafkaQueue, RedisQueue
from servers import (BINARY, PASSWORD, ROLE, ROOT, Worker, clean_environment, redis_server)

SIM_TOKENS = 8
COMPARED = ("custom_id, status, answer, finish_reason, prompt_tokens, completion_tokens, choices, "
            "error_code, params, seed, request_sha256")
CALM = {}
CALM_LOCK = threading.Lock()


def job_text(i, **more):
    return json.dumps({"id": f"j{i}", "prompt": f"number {i} " + "x" * (i % 50), **more})


def calm(servers, jobs, batch):
    """What an undisturbed run makes of these jobs: {id: columns}. (id, text) may not repeat here."""
    key = hash(tuple(jobs))
    with CALM_LOCK:
        if key not in CALM:
            folder = servers.folder / f"calm-{next(servers.numbers)}"
            folder.mkdir()
            (folder / "jobs.jsonl").write_text("".join(text + "\n" for _, text in jobs))
            done = subprocess.run(
                [BINARY, "run", "--engine", "sim", "--sim-tokens", str(SIM_TOKENS), "--slots", "64",
                 "--batch", batch, "--db", "calm.db", "--progress", "off", "--log-level", "error",
                 "jobs.jsonl"], cwd=folder, env=clean_environment(), capture_output=True, check=False)
            assert done.returncode == 0, done.stderr.decode()
            with contextlib.closing(sqlite3.connect(folder / "calm.db")) as db:
                CALM[key] = {r[0]: r for r in db.execute(f"SELECT {COMPARED} FROM results")}
        return CALM[key]


class Case:
    def __init__(self, servers, row, params, seed, private=False):
        self.servers, self.params, self.seed = servers, params, seed
        self.dice = random.Random(f"{row}/{sorted(params.items())}/{seed}")
        self.number = next(servers.numbers)
        self.name = f"r{row}n{self.number}"
        self.folder = servers.folder / self.name
        self.folder.mkdir()
        servers.database(self.name)
        self.ports = {}                   # "postgres", "redis": of a proxy before it
        self.private = None               # a Redis of its own, where the case breaks it
        self.workers, self.cleanups = [], []
        if private:
            self.private = redis_server.Server(self.folder / "redis")
            self.cleanups.append(self.private.stop)
        self.queue = self.make_queue()
        self.broker_log = self.broker_said()
        self.ledger = Ledger(self.folder / "ledger")
        self.jobs = {}                    # id -> text of what is to become its row
        self.expected_dead = set()        # ids that are to become dead letters
        self.deaths_wanted = {9, -1, 0}   # signals that a worker may die of
        self.gone = set()                 # ids that their broker lost, as it was told to
        self.any_content = set()          # ids whose row may be of one of several payloads
        self.violations, self.kills, self.notes = [], [], {}
        self.observer = self.link = None
        self.started = time.time()

    # ---- ends ----

    def broker_said(self):
        """The size of the Kafka broker's log."""
        return os.path.getsize(self.servers.kafka.log) if self.queue.kind == "kafka" else 0

    def keep_broker(self):
        """For a case that fails: once, as early as that is known. What the broker is in passes."""
        kept = self.folder / "broker"
        if self.queue.kind == "kafka" and not kept.exists():
            with contextlib.suppress(OSError):  # a full disk fails no case that had not failed yet
                evidence.keep(self.servers.kafka, self.queue, kept, self.broker_log)

    def make_queue(self):
        kind = self.params.get("broker", "redis")
        name = f"{self.name}q"
        if kind == "redis":
            queue = RedisQueue((self.private or self.servers.redis).port, name)
        else:
            queue = KafkaQueue(self.servers.kafka.address, name,
                               partitions=self.params.get("partitions", 3))
        queue.make()
        return queue

    def db_url(self):
        postgres = self.servers.postgres
        if "postgres" in self.ports:
            return postgres.url(self.name, ROLE, "127.0.0.1", self.ports["postgres"])
        return postgres.url(self.name, ROLE)

    def ask(self, query, *values):
        for again in (True, False):
            try:
                if self.link is None:
                    self.link = self.servers.postgres.connect(self.name)
                with self.link.cursor() as cursor:
                    cursor.execute(query, values or None)
                    return cursor.fetchall() if cursor.description else None
            except (psycopg2.InterfaceError, psycopg2.DatabaseError):
                if not again or (self.link and not self.link.closed):
                    raise
                self.link = None  # the server was stopped meanwhile
        return None

    def watch(self):
        """Starts the observer, which goes by no proxy."""
        q = self.queue
        config = {"kind": q.kind, "queue": [q.port, q.name] if q.kind == "redis" else
                  [q.address, q.name, q.group, q.partitions], "ledger": self.ledger.path,
                  "batch": q.name, "out": str(self.folder / "observed.json"),
                  "dsn": f"host={self.servers.postgres.folder} port={self.servers.postgres.port} "
                         f"dbname={self.name} user=postgres"}
        path = self.folder / "observer.json"
        path.write_text(json.dumps(config))
        self.observer = subprocess.Popen([sys.executable, ROOT / "tests/faults/observer.py", path],
                                         stdin=subprocess.PIPE)

    def submit(self, n, **more):
        first = len(self.jobs)
        jobs = [(f"j{i}", job_text(i, **more)) for i in range(first, first + n)]
        self.jobs.update(jobs)
        self.queue.send(jobs, self.ledger)

    # ---- workers ----

    def worker(self, *options, name=None, fail=None, idle=None, step="5ms", slots=16, claim=200,
               flush_rows=40, limits=(), prefix=(), env=None):
        path = self.folder / "broker.conf"
        path.write_text(self.queue.config())
        n = len(self.workers)
        command = [BINARY, "worker", "--engine", "sim", "--sim-tokens", SIM_TOKENS, "--sim-step", step,
                   "--slots", slots, "--source", self.queue.url(self.ports.get(self.queue.kind)),
                   "--group", self.queue.group, "--db", self.db_url(), "--broker-config", path,
                   "--flush-interval", "200ms", "--flush-rows", flush_rows, "--claim-rows", claim,
                   "--worker-name", name or f"w{n}", "--progress", "off", "--log-format", "json"]
        if "postgres" in self.ports:
            command += ["--db-password-file", self.servers.folder / "password"]
        if idle:
            command += ["--idle-exit", idle]
        environment = {**clean_environment(), **(env or {})}
        if fail:
            environment["TRANCHE_FAIL"] = fail
        w = Worker([*command, *options], self.folder / f"worker-{n}.log", environment, limits, prefix)
        self.workers.append(w)
        return w

    def command(self, *words, status=(0,)):
        """A command of the operator's, as root of the database; its standard output."""
        done = subprocess.run([BINARY, *map(str, words), "--db",
                               self.servers.postgres.url(self.name)], cwd=self.folder, check=False,
                              env=clean_environment(), capture_output=True, timeout=120)
        if done.returncode not in status:
            self.violate(f"tranche {words[0]} left with {done.returncode}: "
                         f"{done.stderr.decode()[-400:]}")
        return done.stdout.decode()

    def kill(self, worker, why="random"):
        """Answers whether there was something to kill; counted by why."""
        lived = worker.kill()
        if lived:
            self.note_kill(why)
        return lived

    def note_kill(self, why):
        self.kills.append((time.time(), why))

    def rows(self):
        return self.ask("SELECT count(*) FROM tranche.results")[0][0]

    def forget_link(self):
        if self.link:
            self.link.close()
        self.link = None

    def drain(self, timeout=90, **how):
        """Workers that are left end by themselves, then one more until nothing is left."""
        for w in self.workers:
            if w.alive():
                w.signal(signal.SIGTERM)
        for w in self.workers:
            if w.alive() and w.wait(60) is None:
                self.violate(f"I9: worker {w.log.name} did not leave within 60 s of SIGTERM")
                w.kill()
        last = self.worker(name="last", idle="700ms", step=how.pop("step", "1ms"), **how)
        status = last.wait(timeout)
        if status is None:
            self.keep_broker()
            self.violate(f"I9: not done within {timeout} s: {self.queue.left()} left")
            last.kill()
        elif status != 0:
            self.violate(f"I9: the last worker left with {status}: {last.text()[-500:]}")

    # ---- the verdict ----

    def violate(self, text):
        self.violations.append(text)

    def seen_before_reset(self):
        """Keeps what the observer saw, and starts another: the fault takes the broker back."""
        self.earlier = self.seen()
        self.violations += self.earlier.get("violations", [])

    def seen(self):
        """The observer's summary; it takes its last look now."""
        if not self.observer:
            return {}
        self.observer.stdin.close()
        if self.observer.wait(60) != 0:
            self.violate("the observer died")
            return {}
        self.observer = None
        return json.loads((self.folder / "observed.json").read_text())

    def check_rows(self):
        have = {r[0]: r for r in self.ask(f"SELECT {COMPARED} FROM tranche.results WHERE run='main' "
                                          "AND batch_id=%s", self.queue.name)}
        promised = set(self.ledger.promised)
        lost = promised - set(have) - self.expected_dead
        unknown = set(have) - set(self.jobs) - self.any_content
        [(n, counted)] = self.ask("SELECT (SELECT count(*) FROM tranche.results), (SELECT coalesce(sum("
                                  "rows_ok+rows_failed+rows_invalid+rows_expired+rows_cancelled+"
                                  "rows_dead), 0)::bigint FROM tranche.batches)")
        for what, ids in (("I1: promised and without a row", lost), ("I2: nobody sent", unknown)):
            if ids:
                self.violate(f"{what}: {len(ids)}: {sorted(ids)[:5]}")
        if n != counted:
            self.violate(f"I1: {n} rows, but the batches count {counted}")
        want = calm(self.servers, sorted(self.jobs.items()), self.queue.name)
        other = [i for i, r in have.items() if i in want and tuple(map(str, r)) !=
                 tuple(map(str, want[i]))]
        if other:
            self.violate(f"I3: {len(other)} rows differ from a calm run's: {other[:3]}: "
                         f"{have[other[0]]} for {want[other[0]]}"[:600])
        return len(lost), n - len(have)

    def check_rest(self, ratio_max):
        dead = {r[0] for r in self.ask("SELECT custom_id FROM tranche.dead_letters")}
        if dead != self.expected_dead:
            self.violate(f"I6: dead letters {sorted(dead)[:5]} for {sorted(self.expected_dead)[:5]}")
        left = [a for a in self.ask("SELECT custom_id, n FROM tranche.job_attempts") if a[0] not in
                self.gone][:5]
        if left:
            self.violate(f"I7: attempts at rest: {left}")
        [(starts, n)] = self.ask("SELECT coalesce(sum(attempts), 0)::bigint, count(*) FROM "
                                 "tranche.results WHERE attempts > 0")
        ratio = starts / n if n else 1.0
        if ratio > ratio_max:
            self.violate(f"I8: {ratio:.2f} starts a job, at most {ratio_max}")
        left = self.queue.left()
        if left:
            self.violate(f"I9: {left} messages are left")
        links = self.servers.postgres.ask("postgres", "SELECT count(*) FROM pg_stat_activity WHERE "
                                          "datname = %s AND usename = %s", self.name, ROLE)[0][0]
        alive = [w for w in self.workers if w.alive()]
        if links and not alive:
            time.sleep(1)
            links = self.servers.postgres.ask("postgres", "SELECT count(*) FROM pg_stat_activity "
                                              "WHERE datname = %s AND usename = %s", self.name, ROLE)
            if links[0][0]:
                self.violate(f"I10: {links[0][0]} connections are left behind")
        return round(ratio, 3)

    def crashes(self):
        """Deaths that nobody ordered: an abort, a segmentation fault, a sanitizer's word."""
        for w in self.workers:
            text = w.text()
            for line in text.splitlines():
                died = json.loads(line) if '"event":"worker_died"' in line else {}
                if died.get("signal") == signal.SIGTERM and died["process"] == "":
                    continue  # told to leave before it had begun: no handler yet, and no job
                if died.get("signal", 9) not in self.deaths_wanted or "CHECK" in line:
                    self.violate(f"crash: {w.log.name}: {line[:400]}")

    def verdict(self, ratio_max=10.0):
        """Behind drain: the invariants, and what this case has to tell."""
        seen = self.seen()
        self.violations += seen.get("violations", [])
        lost, doubled = self.check_rows()
        ratio = self.check_rest(ratio_max)
        self.crashes()
        by_state = {}
        for _, why in self.kills:
            by_state[why] = by_state.get(why, 0) + 1
        return {"ok": not self.violations, "violations": self.violations, "kills": by_state,
                "jobs": len(self.jobs), "lost": lost, "doubled": doubled,
                "acks_without_row": sum(v.startswith("I4") for v in self.violations),
                "starts_a_job": ratio, "observations": seen.get("observations", 0),
                "acks_checked": seen.get("acked", 0), "recovery_s": self.recoveries(seen),
                "stalled_share": self.stalled(seen), "seconds": round(time.time() - self.started, 1),
                **self.notes}

    def recoveries(self, seen):
        """From each kill to the next new row, where there was one."""
        grew = [t for t, _ in seen.get("rows", [])][1:]
        return [round(next(t for t in grew if t > k) - k, 2) for k, _ in self.kills
                if any(t > k for t in grew)]

    def stalled(self, seen):
        """The share of the time between first and last row in which none came for over a second."""
        times = [t for t, _ in seen.get("rows", [])]
        if len(times) < 3:
            return 0.0
        gaps = sum(max(0.0, b - a - 1) for a, b in zip(times[1:], times[2:]))
        return round(gaps / max(times[-1] - times[1], 1e-9), 3)

    def close(self, keep=False):
        if keep:
            self.keep_broker()
        for w in self.workers:
            w.kill()
        if self.observer:
            self.observer.kill()
            self.observer.wait()
        for cleanup in reversed(self.cleanups):
            with contextlib.suppress(Exception):
                cleanup()
        self.ledger.close()
        with contextlib.suppress(Exception):
            self.queue.drop()
        if self.link:
            self.link.close()
        if not keep:
            with contextlib.suppress(psycopg2.Error):
                self.servers.postgres.ask("postgres", f"DROP DATABASE {self.name} WITH (FORCE)")


__all__ = ["Case", "PASSWORD", "calm", "job_text"]
