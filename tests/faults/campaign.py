#!/usr/bin/python3
"""The fault campaign (RELIABILITY 5.4) against real servers, with the simulated engine.

  campaign.py run [--short] [--rows 1,2,8] [--broker B] [--lanes N] [--minutes M] [--again]
      cases that have no good record for this source yet; parts go to tests/faults/results/HASH.jsonl,
      so that it can be stopped and started; --short: the subset inside `make test`, without records
  campaign.py case --row R --seed S [--param NAME=VALUE ...] [--keep]
      one case again, as its record names it
  campaign.py report
      merges the records of this source into docs/campaign.md

Wants the preset `faults` built (release with failpoints)."""
import argparse
import concurrent.futures
import fcntl
import hashlib
import json
import re
import subprocess
import sys
import threading
import time
import traceback

import cases
import registry
import report
import rows_brokers  # noqa: F401
import rows_jobs  # noqa: F401
import rows_kill  # noqa: F401
import rows_postgres  # noqa: F401
from servers import BINARY, ROOT, Servers

RESULTS = ROOT / "tests/faults/results"
HASHED = ("worker", "engine", "kernels", "schemas", "tests/faults")
# Only a build with CUDA has these, and the campaign's has none.
CUDA_ONLY = re.compile(r"kernels/(cuda/|kernels_cuda\.h)|engine/(cuda_\w+\.[ch]|backend_cuda\.c"
                       r"|backend_cuda_impl\.h)$")


def source_hash():
    """Of everything that a record speaks of; a part counts only beside parts of the same."""
    names = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", *HASHED], cwd=ROOT,
                           stdout=subprocess.PIPE, check=True).stdout.decode().split("\n")
    total = hashlib.sha256()
    names = (n for n in names if n and not n.startswith("tests/faults/results/"))
    for name in sorted(n for n in names if not CUDA_ONLY.match(n)):
        if (ROOT / name).is_file():
            total.update(name.encode() + b"\0" + (ROOT / name).read_bytes() + b"\0")
    return total.hexdigest()[:16]


def key_of(row, params, seed):
    return json.dumps([row, sorted(params.items()), seed])


def run_case(servers, number, params, seed, keep=False):
    """One record. A case that breaks off is a failed case."""
    start = time.time()
    case = None
    try:
        case = cases.Case(servers, number, params, seed, registry.ROWS[number].private)
        record = registry.ROWS[number].run(case)
    except Exception:  # whatever it was, it belongs into the record
        broke = traceback.format_exc()[-1500:]
        record = {"ok": False, "violations": (case.violations if case else []) + [broke],
                  "seconds": round(time.time() - start, 1)}
    finally:
        if case:
            case.close(keep or not record["ok"])
    if not record["ok"]:
        record["folder"] = str(case.folder) if case else ""
    return {"row": number, "params": params, "seed": seed, **record}


class Campaign:
    def __init__(self, arguments):
        self.arguments = arguments
        self.full = not arguments.short
        self.path = RESULTS / f"{source_hash()}.jsonl"
        self.lock = threading.Lock()
        self.passed = self.failed = 0
        self.until = time.monotonic() + arguments.minutes * 60 if arguments.minutes else None

    def todo(self):
        done = set()
        if self.full and not self.arguments.again and self.path.exists():
            for line in self.path.read_text().splitlines():
                r = json.loads(line)
                if r["ok"]:
                    done.add(key_of(r["row"], r["params"], r["seed"]))
        wanted = {int(r) for r in self.arguments.rows.split(",")} if self.arguments.rows else None
        for number, row in sorted(registry.ROWS.items()):
            if wanted and number not in wanted:
                continue
            for params, seed in row.cases(self.full):
                if self.arguments.broker in (None, params.get("broker")) and \
                        key_of(number, params, seed) not in done:
                    yield number, params, seed

    def one(self, servers, number, params, seed):
        if self.until and time.monotonic() > self.until:
            return
        record = run_case(servers, number, params, seed)
        with self.lock:
            self.passed += record["ok"]
            self.failed += not record["ok"]
            if self.full:
                RESULTS.mkdir(exist_ok=True)
                with open(self.path, "a") as f:
                    fcntl.flock(f, fcntl.LOCK_EX)  # other rows may run beside it, in their own process
                    f.write(json.dumps(record) + "\n")
            words = " ".join(f"{k}={v}" for k, v in params.items())
            print(f"{'ok  ' if record['ok'] else 'FAIL'} row {number:2} {words} seed={seed} "
                  f"{record['seconds']} s kills={sum(record.get('kills', {}).values())} "
                  f"starts={record.get('starts_a_job')}", flush=True)
            for v in record["violations"]:
                print(f"     {v}", flush=True)

    def run(self):
        start = time.monotonic()
        todo = list(self.todo())
        servers = Servers()
        try:
            for alone in (False, True):
                part = [t for t in todo if bool(registry.ROWS[t[0]].alone(t[1])) == alone]
                lanes = 1 if alone else self.arguments.lanes
                with concurrent.futures.ThreadPoolExecutor(lanes) as pool:
                    for f in [pool.submit(self.one, servers, *t) for t in part]:
                        f.result()
        finally:
            if self.failed:
                keep = ROOT / "build/faults-failed"
                keep.mkdir(parents=True, exist_ok=True)
                subprocess.run(["cp", "-r", servers.folder, keep], check=False)
                print(f"logs: {keep}/{servers.folder.name}")
            servers.close()
        print(f"{time.monotonic() - start:.0f} s\n{self.passed} passed, {self.failed} failed")
        return 1 if self.failed or not self.passed else 0


def again(arguments):
    params = {}
    for p in arguments.param:
        name, value = p.split("=", 1)
        params[name] = int(value) if value.lstrip("-").isdigit() else value
    servers = Servers()
    try:
        record = run_case(servers, arguments.row, params, arguments.seed, arguments.keep)
        print(json.dumps(record, indent=1))
        if arguments.keep:
            input(f"kept: {servers.folder}; enter ends it")
    finally:
        servers.close()
    return 0 if record["ok"] else 1


def main():
    parser = argparse.ArgumentParser()
    sub = parser.add_subparsers(dest="command", required=True)
    run = sub.add_parser("run")
    run.add_argument("--short", action="store_true")
    run.add_argument("--rows")
    run.add_argument("--broker")
    run.add_argument("--lanes", type=int, default=3)
    run.add_argument("--minutes", type=float)
    run.add_argument("--again", action="store_true")
    one = sub.add_parser("case")
    one.add_argument("--row", type=int, required=True)
    one.add_argument("--seed", type=int, required=True)
    one.add_argument("--param", action="append", default=[])
    one.add_argument("--keep", action="store_true")
    sub.add_parser("report")
    arguments = parser.parse_args()
    if arguments.command == "report":
        return report.write(RESULTS / f"{source_hash()}.jsonl", ROOT / "docs/campaign.md",
                            {n: r.title for n, r in registry.ROWS.items()})
    if not BINARY.is_file():
        print(f"{BINARY} is missing: tools/build.sh faults tranche faultproxy", file=sys.stderr)
        return 64
    return again(arguments) if arguments.command == "case" else Campaign(arguments).run()


if __name__ == "__main__":
    sys.exit(main())
