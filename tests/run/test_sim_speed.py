"""The job path with the simulated engine, file to SQLite: rows per second and memory. The target is
20,000 rows/s on two cores. Other work on the machine stretches the clock but not the CPU time, so
the CPU time of two cores is what is held; the clock is held where the run had the machine.
TRANCHE_SPEED_ROWS sets the size (200,000); 1,000,000 is the bench."""
import json
import os
import subprocess
import time

ROWS = int(os.environ.get("TRANCHE_SPEED_ROWS", "200000"))
TARGET, CORES, RSS_KIB = 20000, 2, 300 << 10


def measure(binary, folder):
    db = folder / "o.db"
    for suffix in ("", "-wal", "-shm"):
        (folder / f"o.db{suffix}").unlink(missing_ok=True)
    start = time.monotonic()
    process = subprocess.Popen([binary, "run", "--engine", "sim", "--sim-tokens", "16", "--slots",
                                "256", "--db", str(db), "--progress", "off", "--log-level", "off",
                                "jobs.jsonl"], cwd=folder, stdout=subprocess.PIPE)
    out = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = status
    wall = time.monotonic() - start
    assert status == 0 and f"rows={ROWS} ok={ROWS}".encode() in out, out
    return wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss


def test_rows_per_second_and_memory(binary, tmp_path):
    with open(tmp_path / "jobs.jsonl", "w") as f:
        for i in range(ROWS):
            f.write(json.dumps({"custom_id": f"job-{i:08d}", "method": "POST",
                                "url": "/v1/chat/completions", "body": {
                                    "model": "m", "max_tokens": 32, "temperature": 0.6,
                                    "messages": [
                                        {"role": "system", "content": "You are a helpful one."},
                                        {"role": "user", "content": f"What is {i} plus 7?"}]}})
                    + "\n")
    for _ in range(3):
        wall, cpu, rss = measure(binary, tmp_path)
        print(f"{ROWS} rows: {ROWS / wall:.0f} rows/s by the clock, {ROWS * CORES / cpu:.0f} by "
              f"the CPU time of {CORES} cores, {rss / 1024:.0f} MiB")
        if ROWS / wall >= TARGET:
            break
    assert rss < RSS_KIB
    assert ROWS * CORES / cpu >= TARGET
    had_the_machine = cpu / wall > 0.9 * min(CORES, os.cpu_count()) or os.getloadavg()[0] < 1.5
    assert ROWS / wall >= TARGET or not had_the_machine
