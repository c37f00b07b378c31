#!/usr/bin/env python3
"""The figures of a real card in /metrics while the worker answers a stream of jobs on it: memory,
utilization, temperature (held against nvidia-smi where there is one), tokens a second, the rows of
a step and their padding. Standard library only; needs a GPU. Exit code 1 when a figure is missing or
wrong.

  tests/cuda/metrics_cuda.py BINARY [MODEL_DIR]      MODEL_DIR: examples/tiny-model"""

import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

SECONDS_MAX, GAP_S = 90, 3
failed = []


def expect(ok, what, value):
    print("ok  " if ok else "FAIL", f"{what:<46}", value, flush=True)
    if not ok:
        failed.append(what)


def feed(pipe, stop):
    """Jobs for as long as they are wanted; the pipe holds the rest back."""
    try:
        for i in itertools.count():
            if stop.is_set():
                break
            job = {"id": f"j{i}", "prompt": f"What is {i} + {i * 7 % 1000}?" + " and" * (i % 50),
                   "max_tokens": 96, "ignore_eos": True, "temperature": 0.6 if i % 2 else 0}
            pipe.write(json.dumps(job) + "\n")
        pipe.close()
    except BrokenPipeError:
        pass


def scrape(port):
    text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20).read().decode()
    samples = {}
    for line in text.splitlines():
        if not line.startswith("#"):
            name, value = line.rsplit(" ", 1)
            samples[name] = float(value)
    return samples


def nvidia_smi():
    """(memory, memory used, temperature) of card 0, bytes and degrees; None without the tool."""
    try:
        out = subprocess.run(
            ["nvidia-smi", "-i", "0", "--query-gpu=memory.total,memory.used,temperature.gpu",
             "--format=csv,noheader,nounits"], stdout=subprocess.PIPE, check=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    total, used, celsius = (float(x) for x in out.decode().split(","))
    return total * (1 << 20), used * (1 << 20), celsius


def wait_for(what, until):
    while True:
        got = what()
        if got or time.monotonic() > until:
            return got
        time.sleep(0.2)


def check_card(m):
    gpu = {name: m.get(f'tranche_gpu_{name}{{device="0"}}') for name in
           ("memory_bytes", "memory_used_bytes", "utilization_ratio", "memory_controller_ratio",
            "temperature_celsius")}
    said = nvidia_smi()
    for name, value in gpu.items():
        expect(value is not None, f"tranche_gpu_{name} is there", value)
    if None in gpu.values():
        return
    total, used = gpu["memory_bytes"], gpu["memory_used_bytes"]
    expect(2 << 30 < used <= total, "memory in use: the engine's, within the card", f"{used:.0f}")
    expect(0.2 < gpu["utilization_ratio"] <= 1, "utilization under load", gpu["utilization_ratio"])
    expect(0 <= gpu["memory_controller_ratio"] <= 1, "memory controller",
           gpu["memory_controller_ratio"])
    expect(10 < gpu["temperature_celsius"] < 100, "temperature", gpu["temperature_celsius"])
    print("     foreign processes:", m.get('tranche_gpu_foreign_processes{device="0"}'))
    if said:
        expect(abs(said[0] - total) < 0.03 * said[0], "memory beside nvidia-smi's", said[0])
        expect(abs(said[1] - used) < 0.03 * said[0], "memory in use beside nvidia-smi's", said[1])
        expect(abs(said[2] - gpu["temperature_celsius"]) <= 8, "temperature beside nvidia-smi's",
               said[2])


def check_steps(before, after, seconds):
    def grown(name):
        return after[name] - before[name]

    tokens = grown("tranche_engine_sampled_tokens_total") / seconds
    used = grown('tranche_engine_step_rows_total{kind="used"}')
    padding = grown('tranche_engine_step_rows_total{kind="padding"}')
    steps = grown("tranche_engine_steps_total")
    computed = sum(grown(f'tranche_engine_tokens_total{{kind="{k}"}}') for k in ("prefill", "decode"))
    expect(tokens > 1000, "tokens sampled a second", f"{tokens:.0f}")
    expect(steps > 0 and used > 0, "steps and rows", f"{steps:.0f} steps, {used:.0f} rows")
    # Buckets are 16, 64 or 128 rows wide.
    expect(0 < padding <= 127 * steps, "padding: some, less than a bucket a step",
           f"{padding:.0f} rows, {100 * padding / (used + padding):.2f} % of those computed")
    expect(used == computed, "rows used are the tokens of prefill and decode",
           f"{used:.0f}, {computed:.0f}")
    busy = grown("tranche_engine_device_seconds_total") / seconds
    expect(0.1 < busy < 1.05, "time in steps a second", f"{busy:.3f}")


def watch(port, until):
    busy = wait_for(lambda: scrape(port).get('tranche_gpu_utilization_ratio{device="0"}', 0) > 0.2,
                    until)
    expect(busy, "the card is seen busy", busy)
    before, then = scrape(port), time.monotonic()
    time.sleep(GAP_S)
    after, now = scrape(port), time.monotonic()
    check_card(after)
    check_steps(before, after, now - then)
    return after


def main():
    binary = os.path.abspath(sys.argv[1])
    model = os.path.abspath(sys.argv[2] if len(sys.argv) > 2 else "examples/tiny-model")
    until = time.monotonic() + SECONDS_MAX
    with tempfile.TemporaryDirectory() as folder, open(f"{folder}/log", "w+b") as log:
        worker = subprocess.Popen(
            [binary, "run", "--model", model, "--device", "cuda:0", "--db", "rows.db", "--batch",
             "b", "--claim-rows", "8192", "--http", "127.0.0.1:0", "--progress", "off", "-"], cwd=folder,
            stdin=subprocess.PIPE, stdout=log, stderr=log, text=True,
            env={k: v for k, v in os.environ.items() if not k.startswith("TRANCHE_")})

        def said():
            with open(f"{folder}/log", encoding="utf-8") as f:
                return f.read()

        stop = threading.Event()
        feeder = threading.Thread(target=feed, args=(worker.stdin, stop), daemon=True)
        feeder.start()
        port = wait_for(lambda: re.search(r"http_listening host=\S+ port=(\d+)", said()), until)
        try:
            if port:
                last = watch(int(port[1]), until)
                stop.set()
                code = worker.wait(60)
                expect(code == 0, "the worker ends when its jobs do", code)
                print("     rows while it was watched:", last.get('tranche_rows_total{status="ok"}'))
            else:
                expect(False, "the worker listens", said()[-2000:])
        except OSError as e:
            expect(False, "the worker answers", e)
        finally:
            stop.set()
            worker.kill()
            worker.wait()
        if failed:
            print(said()[-3000:])
    print(f"{len(failed)} failed")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
