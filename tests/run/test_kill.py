"""kill -9 at random moments, then count: every id exactly one row, the same bytes as a run that
nobody disturbed. TRANCHE_KILLS sets the number of kills (100)."""
import json
import os
import random
import sqlite3
import subprocess
import time

import pytest

KILLS = int(os.environ.get("TRANCHE_KILLS", "100"))
SEED = int(os.environ.get("TRANCHE_SEED", "1"))

# What must not depend on when or how often a process died.
BYTES = ("run, batch_id, custom_id, status, answer, reasoning, correct, finish_reason, "
         "prompt_tokens, completion_tokens, reasoning_tokens, logprobs, choices, error_code, "
         "error_detail, sanitized, raw, model, fingerprint, config_revision, params, seed, request, "
         "request_sha256, source")


def query(db, sql):
    connection = sqlite3.connect(db, timeout=30)
    try:
        return connection.execute(sql).fetchall()
    finally:
        connection.close()


def remove(db):
    for suffix in ("", "-wal", "-shm"):
        path = db.with_name(db.name + suffix)
        if path.exists():
            path.unlink()


def same_everything(db, calm):
    assert query(db, f"SELECT {BYTES} FROM results ORDER BY 1,2,3") == \
        query(calm, f"SELECT {BYTES} FROM results ORDER BY 1,2,3")
    dead = "SELECT source_key, custom_id, reason, sha256 FROM dead_letters ORDER BY 1"
    assert query(db, dead) == query(calm, dead)
    assert query(db, "SELECT count(*) FROM job_attempts") == [(0,)]
    assert query(db, "PRAGMA integrity_check") == [("ok",)]
    sums = ("SELECT rows_ok, rows_failed, rows_invalid, dead_letters, outputs_sha256 FROM batches")
    assert query(db, sums) == query(calm, sums)
    position = "SELECT position, messages FROM partition_progress"
    assert query(db, position) == query(calm, position)


def campaign(command, folder, kills, longest_s, rng):
    """Runs over and over, killing; returns the number of finished databases that were compared."""
    calm, db = folder / "calm.db", folder / "killed.db"
    quiet = {"cwd": folder, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    assert subprocess.run(command(calm), **quiet).returncode == 0
    done = compared = recomputed = 0
    while done < kills or compared == 0:
        process = subprocess.Popen(command(db), **quiet)
        deadline = time.monotonic() + (rng.uniform(0, longest_s) if done < kills else 600)
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        if process.poll() is None:
            process.kill()
            process.wait()
            done += 1
            continue
        assert process.returncode == 0
        same_everything(db, calm)
        recomputed += query(db, "SELECT count(*) FROM results WHERE attempts > 1")[0][0]
        compared += 1
        remove(db)
    if db.exists():  # the last round was cut: finish it
        assert subprocess.run(command(db), **quiet).returncode == 0
        same_everything(db, calm)
        recomputed += query(db, "SELECT count(*) FROM results WHERE attempts > 1")[0][0]
        compared += 1
    assert recomputed > 0, "no kill hit a running job: the test tests nothing"
    return compared


def test_simulated_engine(binary, tmp_path):
    rng = random.Random(SEED)
    with open(tmp_path / "jobs.jsonl", "w") as f:
        for i in range(3000):
            f.write(json.dumps({"id": f"j{i}", "prompt": f"number {i}", "logprobs": i % 3,
                                "n": 1 + i % 2}) + "\n")
            if i % 100 == 7:
                f.write("broken line\n" + json.dumps({"id": f"j{i}", "prompt": "else"}) + "\n")
    command = lambda db: [binary, "run", "--engine", "sim", "--sim-step", "2ms", "--sim-tokens",
                          "8", "--slots", "32", "--flush-rows", "40", "--db", str(db),
                          "--progress", "off", "--log-level", "off", "jobs.jsonl"]
    compared = campaign(command, tmp_path, max(KILLS - 10, 1), 0.5, rng)
    print(f"{KILLS - 10} kills, {compared} databases compared")


def test_tiny_model(binary, tiny_model, tmp_path):
    if not tiny_model.is_dir():
        pytest.fail(f"{tiny_model} is missing")
    rng = random.Random(SEED + 1)
    with open(tmp_path / "sums.jsonl", "w") as f:
        for i in range(150):
            f.write(json.dumps({"id": f"s{i}", "messages": [
                {"role": "user", "content": f"What is {i * 37} + {i * 91 % 1000}?"}],
                "max_tokens": 120, "temperature": 0.6, "expected": i * 37 + i * 91 % 1000}) + "\n")
    command = lambda db: [binary, "run", "--model", str(tiny_model), "--threads", "1", "--slots",
                          "16", "--flush-rows", "8", "--db", str(db), "--progress", "off",
                          "--log-level", "off", "sums.jsonl"]
    campaign(command, tmp_path, 10, 1.2, rng)
