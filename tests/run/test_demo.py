"""make demo, without the installing: private servers, every prompt one row, nothing left behind."""
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest


@pytest.fixture
def demo(binary, root, tmp_path):
    """Starts tools/demo.py with all its temporary folders below tmp_path."""
    started = []

    def start(*options):
        process = subprocess.Popen(
            [sys.executable, str(root / "tools/demo.py"), *map(str, options)],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
            env={**os.environ, "TRANCHE_BIN": binary, "TMPDIR": str(tmp_path)})
        started.append(process)
        return process
    os.chmod(tmp_path, 0o755)
    for folder in tmp_path.parents:
        if str(folder).startswith("/tmp/"):
            os.chmod(folder, 0o755)  # the PostgreSQL server runs as a user of its own
    yield start
    for process in started:
        if process.poll() is None:
            process.terminate()
            process.wait(60)


def processes_of(folder):
    found = []
    for entry in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = entry.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(folder) in command and "demo.py" not in command:
            found.append(command)
    return found


def left_in(folder):
    """What is there for longer than a moment: a server's last child may outlive it by one."""
    end = time.monotonic() + 10
    while processes_of(folder) and time.monotonic() < end:
        time.sleep(0.05)
    return [*folder.iterdir(), *processes_of(folder)]


def test_every_prompt_has_one_row_and_nothing_is_left(demo, tmp_path):
    process = demo("--prompts", 40)
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, out[-3000:]
    assert re.search(r"^80 rows, 80 distinct of 80 sent: 0 lost, 0 doubled, 0 unknown, "
                     r"0 dead letters; \d+ s$", out, re.M), out
    lines = re.findall(r"kafka: rows +(\d+) of 40, backlog +(\d+) +redis: rows +(\d+) of 40, "
                       r"backlog +(\d+)", out)
    assert lines[-1] == ("40", "0", "40", "0"), "the broker and the database agree on the end"
    assert re.search(r"demo-redis +40 +40 +40 ", out)
    assert left_in(tmp_path) == []


def test_ctrl_c_removes_everything(demo, tmp_path):
    process = demo()
    seen = ""
    for line in process.stdout:
        seen += line
        if "backlog" in line:
            break
    assert processes_of(tmp_path), "servers and workers are running now"
    os.killpg(process.pid, signal.SIGINT)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 130, seen + out
    assert "stopped; everything is removed" in out
    assert left_in(tmp_path) == []
