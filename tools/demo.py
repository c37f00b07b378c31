#!/usr/bin/python3
"""demo: the whole road on servers of its own. Starts a private PostgreSQL, Redis and Kafka in a
temporary folder, sends 2,000 prompts to each broker, runs one worker a broker on the example model,
shows rows and backlog until nothing is left, checks that every prompt has exactly one row, and
removes everything. docs/operations.md walks the same road on your servers.

  tools/demo.py [--keep] [--prompts N]    --keep leaves servers and folder until Enter is pressed
"""
import argparse
import contextlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.dont_write_bytecode = True
sys.path.insert(0, str(ROOT / "tests/run"))
from kafka_broker import Broker, free_ports  # noqa: E402
from postgres_server import Server  # noqa: E402

BINARY = os.environ.get("TRANCHE_BIN") or str(ROOT / "build/release/tranche")
START = time.monotonic()
DRAIN_S = 600


def say(text):
    print(f"{time.monotonic() - START:5.0f} s  {text}", flush=True)


class Redis:
    def __init__(self, folder):
        folder.mkdir()
        self.port = free_ports(1)[0]
        self.process = subprocess.Popen(
            ["redis-server", "--bind", "127.0.0.1", "--port", str(self.port), "--dir", str(folder),
             "--save", "", "--appendonly", "yes", "--logfile", str(folder / "log")],
            stdout=subprocess.DEVNULL, start_new_session=True)

    def stop(self):
        self.process.kill()
        self.process.wait()


class Demo:
    def __init__(self, folder, prompts):
        self.folder, self.prompts, self.workers, self.batches = folder, prompts, {}, {}
        self.names = {str(ROOT) + "/": "", str(folder) + "/": ""}
        self.env = {k: v for k, v in os.environ.items() if not k.startswith("TRANCHE_")}

    def shown(self, command):
        """The command as a person would type it, with names for the places."""
        text = " ".join(["tranche", *map(str, command)])
        for place, name in self.names.items():
            text = text.replace(place, name)
        return text

    def name(self, name, place):
        self.names[place] = f"${name}"
        say(f"{name}={place}")

    def call(self, *command, tell=True):
        if tell:
            say(self.shown(command))
        done = subprocess.run([BINARY, *map(str, command)], env=self.env, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, timeout=180)
        if done.returncode:
            raise SystemExit(f"demo: {self.shown(command)}: exit {done.returncode}\n"
                             + done.stderr.decode(errors="replace")[-2000:])
        return done.stdout.decode()

    def prepare(self, postgres, broker, redis):
        self.db = postgres.url("postgres", port=postgres.port)
        self.queues = {"kafka": f"kafka://{broker.address}/prompts",
                       "redis": f"redis://127.0.0.1:{redis.port}/prompts"}
        self.name("DB", self.db)
        for name, url in self.queues.items():
            self.name(name.upper(), url)
        self.call("migrate", "--db", self.db)
        lines = subprocess.run([sys.executable, str(ROOT / "tools/make_jobs.py"), "--held-out",
                                str(2 * self.prompts)], stdout=subprocess.PIPE, check=True,
                               env=self.env).stdout.decode().splitlines(True)
        for i, (name, url) in enumerate(self.queues.items()):
            path = self.folder / f"demo-{name}.jsonl"
            path.write_text("".join(lines[i * self.prompts:(i + 1) * self.prompts]))
            self.batches[name] = path.stem
            self.call("init", "--source", url, "--log-level", "off", "--connect-timeout", "90s")
            self.call("submit", "--source", url, "--db", self.db, "--log-level", "warn", path)

    def start_workers(self):
        threads = max((os.cpu_count() or 1) // len(self.queues), 1)
        for name, url in self.queues.items():
            command = ["worker", "--source", url, "--db", self.db, "--model",
                       ROOT / "examples/tiny-model", "--threads", threads, "--idle-exit", "1s",
                       "--flush-interval", "1s", "--progress", "off"]
            say(self.shown(command))
            log = open(self.folder / f"worker-{name}.log", "wb")
            self.workers[name] = subprocess.Popen(
                [BINARY, *map(str, command)], env=self.env, stdout=log, stderr=log,
                stdin=subprocess.DEVNULL, start_new_session=True)

    def status(self, name):
        return json.loads(self.call("status", "--json", "--db", self.db, "--source",
                                    self.queues[name], "--log-level", "off", self.batches[name],
                                    tell=False))

    def watch(self):
        """A line every two seconds until both workers have left by themselves."""
        until = time.monotonic() + DRAIN_S
        while True:
            running = [w for w in self.workers.values() if w.poll() is None]
            words = []
            for name in self.queues:
                found = self.status(name)
                rows, queue = found["batches"][0]["rows"], found["source"]
                words.append(f"{name}: rows {rows:5} of {self.prompts}, backlog "
                             f"{(queue['lag'] or 0) + (queue['pending'] or 0):5}")
            say("   ".join(words))
            if not running:
                return
            if time.monotonic() > until:
                raise SystemExit(f"demo: workers still at it after {DRAIN_S} s")
            time.sleep(2)

    def ask(self, query):
        out = subprocess.run(["psql", "-X", "-A", "-t", "-F", "\t", "-c", query, self.db],
                             stdout=subprocess.PIPE, check=True, timeout=60).stdout.decode()
        return [line.split("\t") for line in out.splitlines()]

    def verdict(self):
        """The table and the counts; True when nothing is lost or doubled."""
        rows = {b: r for b, *r in self.ask(
            "SELECT batch_id, count(*), count(*) FILTER (WHERE status = 'ok'), sum(correct), "
            "sum(completion_tokens), round(avg(device_seconds)::numeric * 1000, 1) "
            "FROM tranche.results GROUP BY 1")}
        print(f"\n{'batch':14}{'sent':>7}{'rows':>7}{'ok':>7}{'right':>7}{'tokens':>9}"
              f"{'ms/job':>8}{'backlog':>9}{'exit':>6}")
        backlogs = {}
        for name, batch in self.batches.items():
            queue = self.status(name)["source"]
            backlogs[name] = queue["lag"] + queue["pending"]
            print(f"{batch:14}{self.prompts:7}" + "".join(
                f"{v:>{w}}" for v, w in zip(rows.get(batch, ["0"] * 5), (7, 7, 7, 9, 8)))
                + f"{backlogs[name]:9}{self.workers[name].returncode:6}")
        sent = {(b, json.loads(line)["id"]) for b in self.batches.values()
                for line in open(self.folder / f"{b}.jsonl")}
        have = [tuple(r) for r in self.ask("SELECT batch_id, custom_id FROM tranche.results")]
        dead = int(self.ask("SELECT count(*) FROM tranche.dead_letters")[0][0])
        lost, strange = len(sent - set(have)), len(set(have) - sent)
        doubled = len(have) - len(set(have))
        print(f"\n{len(have)} rows, {len(set(have))} distinct of {len(sent)} sent: {lost} lost, "
              f"{doubled} doubled, {strange} unknown, {dead} dead letters; "
              f"{time.monotonic() - START:.0f} s")
        return not (lost or doubled or strange or dead or any(backlogs.values())
                    or any(w.returncode for w in self.workers.values()))

    def stop(self):
        for worker in self.workers.values():
            if worker.poll() is None:
                worker.kill()
            worker.wait()


def run(options, folder):
    say(f"starting PostgreSQL, Redis and Kafka in {folder}")
    with contextlib.ExitStack() as ends:  # each end is known before its beginning: Ctrl-C at any time
        broker = Broker(folder / "kafka")  # the first time, Maven fetches it
        ends.callback(broker.kill)
        broker.launch()
        redis = Redis(folder / "redis")
        ends.callback(redis.stop)
        postgres = Server()
        ends.push(postgres)
        postgres.__enter__()
        demo = Demo(folder, options.prompts)
        ends.callback(demo.stop)
        # A second Ctrl-C must not cut the ends short.
        ends.callback(signal.signal, signal.SIGINT, signal.SIG_IGN)
        demo.prepare(postgres, broker, redis)
        demo.start_workers()
        demo.watch()
        good = demo.verdict()
        if options.keep:
            print(f"\nLook around: psql '{demo.db}'\nEnter ends it.", flush=True)
            sys.stdin.readline()
        return 0 if good else 1


def main():
    parser = argparse.ArgumentParser(description="the whole road on private servers")
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--prompts", type=int, default=2000)
    options = parser.parse_args()
    # A shell without job control starts what runs in the background with SIGINT ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    folder = pathlib.Path(tempfile.mkdtemp(prefix="tranche-demo-"))
    try:
        return run(options, folder)
    except (subprocess.CalledProcessError, RuntimeError, OSError) as error:
        output = getattr(error, "output", None) or b""
        print(f"demo: {error}\n{output.decode(errors='replace')[-2000:]}", file=sys.stderr)
        return 69
    except KeyboardInterrupt:
        print("\ndemo: stopped; everything is removed", flush=True)
        return 130
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
