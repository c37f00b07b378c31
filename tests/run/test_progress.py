"""What an operator sees while `tranche run` goes on: a live line on a terminal, plain lines elsewhere,
what a stop will do. Terminals are pseudo-terminals."""
import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import termios
import time

import redis_server
from test_run import lines

SLOW = ["run", "--engine", "sim", "--sim-step", "10ms", "--slots", "8", "--db", "o.db"]


class Terminal:
    """A process whose stderr is a terminal of `columns` columns; everything that it wrote there."""
    def __init__(self, command, folder, columns=200):
        self.ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 25, columns, 0, 0))
        clean = {k: v for k, v in os.environ.items() if not k.startswith("TRANCHE_")}
        self.process = subprocess.Popen(list(map(str, command)), cwd=folder, env=clean,
                                        stderr=theirs, stdout=subprocess.PIPE)
        os.close(theirs)
        self.text = b""

    def read(self):
        try:
            piece = os.read(self.ours, 65536)
        except OSError:  # nobody has the other end any more
            piece = b""
        self.text += piece
        return piece

    def until(self, pattern):
        while not re.search(pattern, self.text):
            assert self.read(), self.text

    def end(self):
        while self.read():
            pass
        os.close(self.ours)
        self.stdout = self.process.communicate(timeout=60)[0]
        return self.process.returncode


def screen(text):
    """The lines that a terminal shows at the end; [-1] is the one under the cursor."""
    shown, at = [""], 0
    for piece in re.findall(r"\x1b\[K|\r|\n|[^\x1b\r\n]+", text.decode()):
        if piece == "\r":
            at = 0
        elif piece == "\n":
            shown.append("")
            at = 0
        elif piece == "\x1b[K":
            shown[-1] = shown[-1][:at]
        else:
            shown[-1] = shown[-1][:at] + piece + shown[-1][at + len(piece):]
            at += len(piece)
    return [s.rstrip() for s in shown]


def told(line):
    """(rows, per cent, waiting, ETA) of a progress line"""
    return re.match(r"rows (\d+)(?: \((\d+)%\))?  failed \d+  running \d+  waiting (\d+)  .*ETA "
                    r"(\S+)$", line).groups()


def check_moves(shown, total):
    views = [told(s) for s in shown]
    counts = [int(v[0]) for v in views]
    assert counts == sorted(counts)
    assert any(0 < int(v[0]) < total and v[3] != "?" for v in views), shown
    for rows, share, waiting, _ in views:  # they speak of the same rows
        assert abs(100 * int(rows) / total - int(share)) < 3, shown
        assert int(rows) + int(waiting) <= total


def test_progress_lines_where_there_is_no_terminal(tranche, tmp_path):
    (tmp_path / "jobs.jsonl").write_text(lines(250, max_tokens=30))
    process = tranche(*SLOW, "--log-level", "off", "jobs.jsonl")
    assert process.returncode == 0
    check_moves(process.stderr.decode().splitlines(), 250)


def test_live_line_is_rewritten_and_ends_clean(binary, tmp_path):
    (tmp_path / "jobs.jsonl").write_text(lines(100, max_tokens=30))
    terminal = Terminal([binary, *SLOW, "--log-level", "off", "jobs.jsonl"], tmp_path)
    assert terminal.end() == 0
    assert b"\n" not in terminal.text
    shown = [s.strip() for s in terminal.text.decode().replace("\x1b[K", "").split("\r")]
    check_moves([s for s in shown if s], 100)
    assert len(shown) > 4 and screen(terminal.text) == [""]


def test_live_line_fits_the_terminal(binary, tmp_path):
    (tmp_path / "jobs.jsonl").write_text(lines(60, max_tokens=30))
    terminal = Terminal([binary, *SLOW, "--log-level", "off", "jobs.jsonl"], tmp_path, columns=40)
    assert terminal.end() == 0
    shown = terminal.text.decode().replace("\x1b[K", "").split("\r")
    assert max(map(len, shown)) == 39


def test_log_lines_and_live_line_do_not_mix(binary, tmp_path):
    (tmp_path / "jobs.jsonl").write_text(lines(3000, max_tokens=30))
    terminal = Terminal([binary, *SLOW, "--grace", "1s", "jobs.jsonl"], tmp_path)
    terminal.until(rb"rows [1-9]")
    terminal.process.send_signal(signal.SIGINT)
    assert terminal.end() == 130
    *shown, last = screen(terminal.text)
    assert last == "" and any("event=drain" in s for s in shown)
    assert all(re.match(r"ts=|tranche run: ", s) and "ETA" not in s for s in shown), shown


def test_the_line_of_a_dead_child_makes_room_for_the_parents(binary, tmp_path):
    (tmp_path / "jobs.jsonl").write_text(lines(100, max_tokens=30))
    terminal = Terminal([binary, *SLOW, "--log-level", "error", "--restarts", "0", "--flush-rows",
                         "8", "jobs.jsonl"], tmp_path)
    terminal.until(rb"rows [1-9]")
    child = subprocess.check_output(["ps", "-o", "pid=", "--ppid", str(terminal.process.pid)])
    os.kill(int(child), signal.SIGKILL)
    assert terminal.end() != 0
    shown = [s for s in screen(terminal.text) if s]
    assert shown and all(s.startswith("ts=") for s in shown), shown


def stop(binary, folder, *options):
    terminal = Terminal([binary, *SLOW, "--log-level", "warn", *options, "jobs.jsonl"], folder)
    terminal.until(rb"rows [1-9]") if "off" not in options else time.sleep(1.5)
    terminal.process.send_signal(signal.SIGINT)
    assert terminal.end() == 130
    return [s for s in screen(terminal.text) if s], terminal.stdout.decode()


def test_a_stop_is_told(binary, tmp_path):
    (tmp_path / "jobs.jsonl").write_text(lines(600, max_tokens=30))
    (first, last), summary = stop(binary, tmp_path, "--grace", "20s")
    assert re.match(r"tranche run: stopping within 20s \(--grace\): \d+ sequences run; a second "
                    r"Ctrl-C parks them and leaves now$", first)
    done = int(re.search(r" rows=(\d+)", summary)[1])
    assert last == (f"tranche run: {600 - done} jobs are left; the same command goes on with them")


def test_a_stop_inside_a_long_file_says_at_least(binary, tmp_path):
    (tmp_path / "jobs.jsonl").write_text(lines(3000, max_tokens=30))
    (_, last), _ = stop(binary, tmp_path, "--grace", "1s", "--claim-rows", "100")
    left = re.match(r"tranche run: at least (\d+) jobs are left \(the input was not read to its "
                    r"end\); the same command goes on with them$", last)
    assert left and 50 < int(left[1]) <= 100, last


def test_a_stop_without_progress_is_silent(binary, tmp_path):
    (tmp_path / "jobs.jsonl").write_text(lines(600, max_tokens=30))
    assert stop(binary, tmp_path, "--grace", "1s", "--progress", "off")[0] == []


def test_a_workers_stop_is_told_by_its_log_alone(binary, tmp_path):
    server = redis_server.Server(tmp_path / "redis")
    try:
        client = server.client()
        client.xgroup_create("jobs", "g", "0", mkstream=True)
        for line in lines(600, max_tokens=30).splitlines():
            client.xadd("jobs", {"job": line})
        terminal = Terminal([binary, "worker", *SLOW[1:], "--source", server.url(), "--group", "g",
                             "--grace", "1s"], tmp_path)
        terminal.until(rb"rows [1-9]")
        terminal.process.send_signal(signal.SIGINT)
        assert terminal.end() == 130
        shown = [s for s in screen(terminal.text) if s]
        assert any("event=drain" in s for s in shown)
        assert all(s.startswith("ts=") for s in shown), shown
    finally:
        server.stop()
