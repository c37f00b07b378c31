#!/usr/bin/env python3
"""Measures a start from nothing: from exec to the first row in the database, in the steps that the log
tells, and the peak of resident memory.

  cold_start.py MODEL_DIR [--runs N] [--cold] [--rate GB/s] [--limit BYTES] [--json] [-- OPTION...]

One job of one token, SQLite, a fresh process each time; the table is of the fastest run. --cold drops the
folder from the page cache first. --rate copies it onto a loop device whose reads the kernel holds to
that rate (root; control groups v2 `io` or v1 `blkio`); a run that got more is left out. --limit runs it in
a control group of that much memory (v2 or v1). Options behind -- go to `tranche run`. Standard library
only."""
import argparse
import contextlib
import datetime
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
GROUPS = pathlib.Path("/sys/fs/cgroup")


class Group:
    """A control group of our own for one controller: v2's names, or v1's."""

    def __init__(self, v2, v1):
        unified = (GROUPS / "cgroup.controllers").exists()
        if unified and v2 not in (GROUPS / "cgroup.controllers").read_text().split():
            raise OSError(f"control groups v2 here have no {v2}")
        self.unified, self.path = unified, GROUPS / ("" if unified else v1) / f"tranche-{os.getpid()}-{v2}"
        if unified:
            (GROUPS / "cgroup.subtree_control").write_text(f"+{v2}")
        self.path.mkdir()

    def set(self, v2, v1, value):
        (self.path / (v2 if self.unified else v1)).write_text(value)

    def read(self, v2, v1):
        return (self.path / (v2 if self.unified else v1)).read_text()

    def close(self):
        with contextlib.suppress(OSError):
            self.path.rmdir()


@contextlib.contextmanager
def throttled(model, rate, folder):
    """The folder's copy on a loop device; yields (copy, group, what forgets it)."""
    size = sum(f.stat().st_size for f in model.iterdir()) * 21 // 20 + (64 << 20)
    image, at = folder / "image", folder / "disk"
    at.mkdir()
    with open(image, "wb") as f:
        f.truncate(size)
    run = lambda *a: subprocess.run(list(map(str, a)), check=True, stdout=subprocess.PIPE)
    run("mkfs.ext4", "-q", "-F", "-m", "0", image)
    device = run("losetup", "-f", "--show", image).stdout.decode().strip()
    group = None
    try:
        run("mount", device, at)
        shutil.copytree(model, at / "model")
        group = Group("io", "blkio")
        numbers = os.stat(device).st_rdev
        where = f"{os.major(numbers)}:{os.minor(numbers)}"
        bytes_s = int(rate * 1e9)
        group.set("io.max", "blkio.throttle.read_bps_device",
                  f"{where} rbps={bytes_s}" if group.unified else f"{where} {bytes_s}")

        def forget():
            run("umount", at)
            run("mount", device, at)
        yield at / "model", group, forget
    finally:
        if group:
            group.close()
        subprocess.run(["umount", at], check=False)
        subprocess.run(["losetup", "-d", device], check=False)


def drop(model):
    for path in model.rglob("*"):
        if path.is_file():
            fd = os.open(path, os.O_RDONLY)
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)


def events(log):
    """{event: (Unix seconds, {field: text})} of the first of each."""
    found = {}
    for line in log.splitlines():
        match = re.match(r"ts=(\S+) level=\w+ event=(\w+)(.*)", line)
        if match and match[2] not in found:
            at = datetime.datetime.fromisoformat(match[1].replace("Z", "+00:00")).timestamp()
            found[match[2]] = at, dict(re.findall(r"(\w+)=(\S+)", match[3]))
    return found


def steps_of(begun, found):
    at = lambda name: found[name][0]
    span = lambda name: float(found[name][1]["seconds"])
    weights = span("model_weights_loaded")
    first = at("model_config_read") - span("model_config_read")
    prepared = max(at(n) for n in ("tokenizer_loaded", "chat_template_loaded") if n in found)
    return {"process and options": first - begun,
            "config and the weights' headers": at("model_headers_read") - first,
            "tokenizer and template": prepared - at("model_headers_read"),
            "weights": weights,
            "memory of keys, values and steps": at("engine_opened") - prepared - weights,
            "database and source": at("run_started") - at("engine_opened"),
            "first row, committed": at("run_ended") - at("run_started")}


def once(binary, model, options, groups, folder):
    (folder / "one.jsonl").write_text('{"id": "one", "prompt": "2 + 2 =", "max_tokens": 1}\n')
    for name in ("rows.db", "rows.db-wal", "rows.db-shm"):
        (folder / name).unlink(missing_ok=True)

    def enter():
        for group in groups:
            (group.path / "cgroup.procs").write_text(str(os.getpid()))
    env = {k: v for k, v in os.environ.items() if not k.startswith("TRANCHE_")}
    with open(folder / "log", "wb") as log:
        begun = time.time()
        process = subprocess.Popen([binary, "run", "--model", model, "--device", "cpu", "--db",
                                    folder / "rows.db", "--progress", "off", *options,
                                    folder / "one.jsonl"], stdout=log, stderr=log, preexec_fn=enter,
                                   env=env)
        _, status, usage = os.wait4(process.pid, 0)
        ended = time.time()
    text = (folder / "log").read_text()
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise SystemExit(f"tranche run left with {process.returncode}:\n{text[-2000:]}")
    found = events(text)
    return {"steps": steps_of(begun, found), "to_first_row": found["run_ended"][0] - begun,
            "to_exit": ended - begun, "cpu": usage.ru_utime + usage.ru_stime, "peak_rss": usage.ru_maxrss * 1024,
            "weights_bytes": int(found["model_weights_loaded"][1]["bytes"]),
            "taken": {k: int(v) for k, v in re.findall(r'event=memory_taken what="?([a-z ]+)"? bytes=(\d+)', text)}}


def slow_enough(run, rate):
    """The kernel lets a device catch up that was idle or was read too slowly: reads came at twice the rate behind a
    run of 28 s. Such a start says nothing of a slow disk."""
    return not rate or run["weights_bytes"] <= 1.25e9 * rate * run["to_first_row"]


def table(best, all_runs):
    total = best["to_first_row"]
    print("| step | seconds |\n|---|---|")
    for name, seconds in best["steps"].items():
        rate = f" ({best['weights_bytes'] / seconds / 1e9:.2f} GB/s)" if name == "weights" else ""
        print(f"| {name}{rate} | {seconds:.3f} |")
    print(f"| from exec to the first row | {total:.3f} |")
    print(f"\n{len(all_runs)} runs, {min(r['to_first_row'] for r in all_runs):.2f} to "
          f"{max(r['to_first_row'] for r in all_runs):.2f} s; {best['cpu']:.2f} s of CPU in all; "
          f"peak resident memory {best['peak_rss'] / 2**20:.0f} MiB of which " +
          ", ".join(f"{name} {size / 2**20:.0f}" for name, size in best["taken"].items()))


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("model", type=pathlib.Path)
    p.add_argument("--runs", type=int, default=5)
    p.add_argument("--cold", action="store_true")
    p.add_argument("--rate", type=float, help="GB/s that the disk gives")
    p.add_argument("--limit", type=int, help="bytes of memory")
    p.add_argument("--json", action="store_true")
    cut = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    args, options = p.parse_args(sys.argv[1:cut]), sys.argv[cut + 1:]
    binary = os.environ.get("TRANCHE_BIN", ROOT / "build/release/tranche")
    with contextlib.ExitStack() as stack:
        folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tranche-cold-")))
        model, groups, forget = args.model.resolve(), [], None
        if args.rate:
            model, group, forget = stack.enter_context(throttled(model, args.rate, folder))
            groups.append(group)
        elif args.cold:
            forget = lambda: drop(model)
        if args.limit:
            memory = Group("memory", "memory")
            stack.callback(memory.close)
            memory.set("memory.max", "memory.limit_in_bytes", str(args.limit))
            groups.append(memory)
        runs = []
        for _ in range(args.runs):
            if forget:
                forget()
            run = once(binary, model, options, groups, folder)
            if slow_enough(run, args.rate):
                runs.append(run)
            else:
                print(f"left out: {run['to_first_row']:.2f} s, read faster than {args.rate} GB/s", file=sys.stderr)
        if not runs:
            raise SystemExit(f"no run was held to {args.rate} GB/s")
        best = min(runs, key=lambda r: r["to_first_row"])
        if args.json:
            json.dump({"best": best, "runs": [r["to_first_row"] for r in runs]}, sys.stdout, indent=1)
        else:
            table(best, runs)


if __name__ == "__main__":
    main()
