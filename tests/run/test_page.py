"""The status page in a browser: it renders at a desk's and a phone's width, in light and dark, holds
what a person looks for, and asks nobody else for anything. Wants a Chromium (Debian's chromium or
chromium-headless-shell); without one it is skipped."""
import http.server
import os
import re
import shutil
import struct
import subprocess
import threading
import zlib

import pytest

from redis_server import wait_until
from test_http import Worker

CHROMIUM = shutil.which("chromium-headless-shell") or shutil.which("chromium")
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="want chromium or chromium-headless-shell")


def browse(folder, *options, timeout=180):
    return subprocess.run([CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu",
                           "--disable-dev-shm-usage", "--no-first-run", f"--user-data-dir={folder}/profile",
                           "--hide-scrollbars", *options], cwd=folder, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, timeout=timeout, check=True,
                          env={**os.environ, "HOME": str(folder)})


def pixels(path):
    """(width, height, bytes a pixel, rows) of an 8-bit PNG without interlacing."""
    data, at, body = path.read_bytes(), 8, b""
    while at < len(data):
        n, kind = struct.unpack(">I4s", data[at:at + 8])
        if kind == b"IHDR":
            width, height, depth, colour = struct.unpack(">IIBB", data[at + 8:at + 18])
        elif kind == b"IDAT":
            body += data[at + 8:at + 8 + n]
        at += 12 + n
    assert depth == 8
    bpp = {2: 3, 6: 4}[colour]
    raw, rows, before = zlib.decompress(body), [], bytearray(width * bpp)
    for y in range(height):
        line = bytearray(raw[y * (width * bpp + 1) + 1:(y + 1) * (width * bpp + 1)])
        how = raw[y * (width * bpp + 1)]
        for x in range(len(line)):
            left = line[x - bpp] if x >= bpp else 0
            up, corner = before[x], before[x - bpp] if x >= bpp else 0
            guess = [0, left, up, (left + up) // 2, min((left, up, corner), key=lambda v: abs(left + up - corner - v))][how]
            line[x] = (line[x] + guess) & 255
        rows.append(line)
        before = line
    return width, height, bpp, rows


@pytest.fixture
def worker(binary, tmp_path):
    w = Worker(binary, tmp_path, "--batch", "b", "-", stdin=subprocess.PIPE)
    wait_until(w.ready, 60)
    w.send(*[{"id": f"j{i}", "prompt": f"hello {i}"} for i in range(40)], "no json <b>")
    wait_until(lambda: w.metrics()["tranche_rows_inserted_total", ""] == 41, 60)
    yield w
    w.end()


@pytest.mark.parametrize("width,height,dark", [(700, 960, False), (380, 1100, True)])
def test_a_picture(worker, tmp_path, width, height, dark):
    options = ["--force-dark-mode", "--blink-settings=preferredColorScheme=0"] if dark else []
    browse(tmp_path, f"--screenshot={tmp_path}/page.png", f"--window-size={width},{height}", *options,
           f"http://127.0.0.1:{worker.port}/")
    if os.environ.get("TRANCHE_KEEP_PICTURES"):
        shutil.copy(tmp_path / "page.png", f"{os.environ['TRANCHE_KEEP_PICTURES']}/page-{width}.png")
    w, h, bpp, rows = pixels(tmp_path / "page.png")
    assert (w, h) == (width, height)
    ground = bytes(rows[2][:3])
    assert (sum(ground) < 150) == dark, ground
    inked = [y for y in range(h) if any(bytes(rows[y][x:x + 3]) != ground for x in range(0, w * bpp, bpp))]
    assert len(inked) > 200 and inked[-1] < h - 40, "text, and all of it within the picture"
    right = max(x for y in inked for x in range(w) if bytes(rows[y][x * bpp:x * bpp + 3]) != ground)
    assert right < w - 4, "nothing is cut at the side"
    deep_blue = sum(row[x + 2] > 180 and row[x] + row[x + 1] < 60 for row in rows
                    for x in range(0, w * bpp, bpp))
    assert not (dark and deep_blue), "links that nobody can read on a dark ground"


def test_what_a_person_reads_and_whom_it_asks(worker, tmp_path):
    """The browser's proxy sees each request that the page would make."""
    asked = []

    class Proxy(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            status, text, headers = worker.ask("/" + self.path.split("/", 3)[3])
            self.send_response(status)
            self.send_header("Content-Type", headers["Content-Type"])
            self.end_headers()
            self.wfile.write(text.encode())

        def do_CONNECT(self):
            self.send_error(403)

        def log_message(self, *_):
            pass
    proxy = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    seen = browse(tmp_path, "--dump-dom", f"--proxy-server=http://127.0.0.1:{proxy.server_port}",
                  "http://worker.test/").stdout.decode()
    proxy.shutdown()
    assert [p for p in asked if "worker.test" in p] and \
        {p for p in asked if "worker.test" in p} <= {"http://worker.test/", "http://worker.test/favicon.ico"}
    styles = re.sub(r"<style>.*?</style>", "", seen, flags=re.S)
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", styles))
    for words in ("ready", "40 rows", "tokens/s", "of 8 slots", "What was in the way",
                  "Last warnings and errors"):
        assert words in text, text
    assert "<script" not in seen
