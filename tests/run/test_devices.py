"""Several engines behind one intake (--device a,b): the same rows as one engine, work on every
engine, and what holds when one of them is lost: exit 70, finished rows written, nothing lost."""
import json
import re
import signal
import sqlite3
import subprocess
import time

import pytest


def write_jobs(path, n, **body):
    with open(path, "w") as f:
        for i in range(n):
            f.write(json.dumps({"id": f"job-{i:05d}", "prompt": f"{i}+{i * 7 % 90}=",
                                "max_tokens": 24, **body}) + "\n")


def outputs(process):
    assert process.returncode == 0, process.stderr.decode()
    return re.search(rb"outputs=([0-9a-f]{64})", process.stdout).group(1)


def count(db, sql):
    connection = sqlite3.connect(db, timeout=30)
    try:
        return connection.execute(sql).fetchone()[0]
    finally:
        connection.close()


@pytest.fixture
def sim(tranche, tmp_path):
    def call(devices, db, *more, timeout=120):
        return tranche("run", "--engine", "sim", "--device", devices, "--slots", 8, "--db", db,
                       "--progress", "off", "--log-level", "info", *more, "jobs.jsonl",
                       timeout=timeout)
    return call


def test_simulated_engines_share_the_work(sim, tmp_path):
    write_jobs(tmp_path / "jobs.jsonl", 400)
    one = sim("cpu", "one.db")
    for n in (2, 5):
        many = sim(",".join(["cpu"] * n), f"many{n}.db", "--sim-step", "2ms")
        assert outputs(many) == outputs(one)
        # Each engine printed its memory; each must have had work: n engines keep n times the slots.
        assert many.stderr.count(b'what="kv page table"') == n
        occupancy = float(re.search(rb"occupancy=([0-9.]+)", many.stdout).group(1))
        assert occupancy > 0.5, many.stdout
    assert count(tmp_path / "many5.db", "SELECT count(*) FROM results") == 400


def test_few_jobs_are_shared_out_evenly(sim, tmp_path):
    write_jobs(tmp_path / "jobs.jsonl", 60)
    process = sim("cpu,cpu,cpu", "few.db", "--slots", 64, "--sim-step", "10ms")
    outputs(process)
    jobs = [int(n) for n in re.findall(rb"event=engine_left engine=\d+ jobs=(\d+)", process.stderr)]
    assert sum(jobs) == 60 and len(jobs) == 3
    assert min(jobs) >= 10, jobs


def test_two_cpu_engines_give_one_engines_bytes(tranche, tiny_model, tmp_path):
    write_jobs(tmp_path / "jobs.jsonl", 40)
    seen = set()
    for devices in ("cpu", "cpu,cpu"):
        seen.add(outputs(tranche("run", "--model", tiny_model, "--device", devices, "--db",
                                 f"{len(devices)}.db", "--max-model-len", 256, "--progress", "off",
                                 "--log-level", "warn", "jobs.jsonl", timeout=300)))
    assert len(seen) == 1


@pytest.mark.parametrize("devices", ["cpu", "cpu,cpu"])
def test_a_lost_device_loses_nothing(sim, tmp_path, devices):
    write_jobs(tmp_path / "jobs.jsonl", 600)
    whole = outputs(sim("cpu", "whole.db"))
    lost = sim(devices, "lost.db", "--sim-fault-after", 200, "--sim-step", "1ms", "--grace", "20s",
               "--supervise=off")
    assert lost.returncode == 70, lost.stdout + lost.stderr
    assert b"the device was lost at step 200" in lost.stderr
    done = count(tmp_path / "lost.db", "SELECT count(*) FROM results")
    assert 0 < done < 600
    again = sim(devices, "lost.db")
    assert outputs(again) == whole
    assert count(tmp_path / "lost.db", "SELECT count(*) FROM results") == 600
    assert int(re.search(rb" rows=(\d+)", again.stdout).group(1)) == 600 - done


def test_several_engines_are_parked_and_go_on(binary, tmp_path, sim):
    write_jobs(tmp_path / "jobs.jsonl", 120, min_tokens=300, max_tokens=400)
    whole = outputs(sim("cpu", "whole.db", "--sim-tokens", 400))
    with subprocess.Popen([binary, "run", "--engine", "sim", "--device", "cpu,cpu,cpu", "--slots",
                           "8", "--sim-tokens", "400", "--sim-step", "5ms", "--db", "parked.db",
                           "--progress", "off", "--grace", "1s", "jobs.jsonl"], cwd=tmp_path,
                          stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        for line in process.stderr:
            if b"event=run_started" in line:
                break
        time.sleep(1)
        process.send_signal(signal.SIGTERM)
        rest = process.stderr.read()
        assert process.wait(60) == 143, rest
    assert count(tmp_path / "parked.db", "SELECT count(*) FROM parked") > 8, rest
    again = sim("cpu,cpu", "parked.db", "--sim-tokens", 400)
    assert outputs(again) == whole
    assert int(re.search(rb" resumed=(\d+)", again.stdout).group(1)) > 8
    assert count(tmp_path / "parked.db", "SELECT count(*) FROM parked") == 0


def test_the_parent_starts_again_after_a_lost_device(sim, tmp_path):
    write_jobs(tmp_path / "jobs.jsonl", 600)
    whole = outputs(sim("cpu", "whole.db"))
    again = sim("cpu,cpu", "lost.db", "--sim-fault-after", 150, "--sim-step", "1ms", timeout=300)
    assert again.returncode == 0, again.stderr
    assert again.stderr.count(b"the device was lost at step 150") >= 1
    assert again.stderr.count(b"exit=70") >= 1
    assert count(tmp_path / "lost.db", "SELECT count(*) FROM results") == 600
    last = sim("cpu", "lost.db")
    assert outputs(last) == whole and b" rows=0 " in last.stdout


@pytest.mark.parametrize("devices", ["cuda:0,cuda:0", "cpu,cuda:1", "cuda:1,auto", "cuda:0,", ",",
                                     ",".join(["cpu"] * 17), "cuda:-1"])
def test_lists_that_make_no_sense(tranche, tmp_path, devices):
    write_jobs(tmp_path / "jobs.jsonl", 1)
    process = tranche("run", "--model", "m", "--device", devices, "jobs.jsonl")
    assert process.returncode == 64
    assert b"--device" in process.stderr and devices.encode() in process.stderr
