"""The worker's own HTTP: probes that tell loading, running, a database that is away and a new child
apart; metrics that add up to the rows; and what it refuses."""
import collections
import contextlib
import html.parser
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import time

import pytest

import redis_server
from postgres_server import Server
from redis_server import wait_until

SIM = ["--engine", "sim", "--sim-step", "1ms", "--sim-tokens", "8", "--slots", "8"]
STATUSES = ["ok", "failed", "invalid", "expired", "cancelled", "dead"]


def parse(text):
    """{(name, labels): value}, and {family: (type, help)}; strict enough to refuse a slip of ours."""
    samples, families, family = {}, {}, ""
    for line in text.splitlines():
        if line.startswith("#"):
            _, what, family, rest = line.split(" ", 3)
            kind, words = families.get(family, ("", ""))
            families[family] = (rest, words) if what == "TYPE" else (kind, rest)
            continue
        name, labels, value = re.fullmatch(r'([a-z_]+)(?:\{((?:[a-z_]+="[^"]*",?)+)\})? (\S+)', line).groups()
        assert name.startswith(family) and (name, labels) not in samples
        samples[name, labels or ""] = float(value)
    return samples, families


class Worker:
    def __init__(self, binary, folder, *options, stdin=None, name="worker", command="run", env=()):
        self.log_path = folder / f"{name}.log"
        with open(self.log_path, "wb") as log:
            self.process = subprocess.Popen(
                [binary, command, *SIM, "--http", "127.0.0.1:0", "--flush-interval", "100ms",
                 "--progress", "off", *map(str, options)], stdin=stdin, stdout=log, stderr=log,
                cwd=folder, env={k: v for k, v in os.environ.items() if not k.startswith("TRANCHE_")} | dict(env))
        wait_until(lambda: "event=http_listening" in self.log(), 60)
        self.port = int(re.search(r"http_listening host=\S+ port=(\d+)", self.log())[1])

    def log(self):
        return self.log_path.read_text()

    def ask(self, path, method="GET", headers=(), body=None, timeout=60):
        """(status, text, headers)"""
        link = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        with contextlib.closing(link):
            link.request(method, path, body=body, headers=dict(headers))
            answer = link.getresponse()
            return answer.status, answer.read().decode(), answer.headers

    def metrics(self):
        status, text, headers = self.ask("/metrics")
        assert status == 200 and headers["Content-Type"].startswith("text/plain; version=0.0.4")
        return parse(text)[0]

    def ready(self):
        return self.ask("/readyz")[0] == 200

    def send(self, *jobs):
        for job in jobs:
            line = job if isinstance(job, str) else json.dumps(job)
            self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()

    def end(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


@pytest.fixture
def start(binary, tmp_path):
    made = []

    def call(*options, **more):
        made.append(Worker(binary, tmp_path, *options, **more))
        return made[-1]
    yield call
    for worker in made:
        worker.end()


@pytest.fixture(scope="module")
def postgres():
    with Server() as made:
        yield made


def family(samples, name, label):
    return {re.search(f'{label}="([^"]*)"', labels)[1]: int(value)
            for (n, labels), value in samples.items() if n == name and value}


def check_sums(samples, postgres, database, again):
    """What was counted is what the database holds."""
    rows = collections.Counter(dict(postgres.ask(
        database, "SELECT status::text, count(*) FROM tranche.results GROUP BY 1")))
    assert family(samples, "tranche_rows_total", "status") == dict(rows)
    assert samples["tranche_rows_inserted_total", ""] == sum(rows.values())
    [(prompt, completion)] = postgres.ask(
        database, "SELECT sum(prompt_tokens), sum(completion_tokens) FROM tranche.results")
    assert samples["tranche_prompt_tokens_total", ""] == prompt
    assert samples["tranche_completion_tokens_total", ""] == completion
    # The simulated engine pads its steps to buckets of 16 rows, as a card does.
    rows_of, tokens = (family(samples, f"tranche_engine_{n}_total", "kind") for n in ("step_rows", "tokens"))
    assert rows_of["used"] == tokens["prefill"] + tokens["decode"]
    assert rows_of["padding"] > 0 and (rows_of["used"] + rows_of["padding"]) % 16 == 0
    assert samples["tranche_dead_letters_total", ""] == \
        postgres.ask(database, "SELECT count(*) FROM tranche.dead_letters")[0][0]
    assert sum(family(samples, "tranche_duplicates_total", "kind").values()) == again
    assert family(samples, "tranche_attempts_total", "kind")["started"] == rows["ok"]
    for stage in "queue", "run", "prefill", "decode":
        assert samples["tranche_stage_seconds_count", f'stage="{stage}"'] == rows["ok"]
    assert samples["tranche_stage_seconds_count", 'stage="sink"'] == sum(rows.values())
    assert samples["tranche_outstanding_messages", ""] == 0


def test_a_life_with_a_database_that_comes_and_goes(start, tranche, postgres):
    postgres.ask("postgres", "CREATE DATABASE life")
    assert tranche("migrate", "--db", postgres.url("life")).returncode == 0
    postgres.stop()
    worker = start("--db", postgres.url("life"), "--batch", "b", "-", stdin=subprocess.PIPE)
    status, text, _ = worker.ask("/readyz")
    assert (status, text) == (503, "start: the model and both ends are not open yet\n")
    assert worker.ask("/healthz")[:2] == (200, "ok\n")
    assert worker.metrics()["tranche_ready", ""] == 0
    postgres.start()
    wait_until(worker.ready, 60)
    assert worker.metrics()["tranche_ready", ""] == 1

    jobs = [{"id": f"j{i}", "prompt": f"hello {i}"} for i in range(60)]
    worker.send(*jobs, jobs[3], {"id": "j4", "prompt": "another"}, "no json", {"id": "bad"})
    wait_until(lambda: worker.metrics()["tranche_rows_inserted_total", ""] >= 62, 60)
    wait_until(lambda: worker.metrics()["tranche_outstanding_messages", ""] == 0, 60)
    samples = worker.metrics()
    assert samples["tranche_messages_claimed_total", ""] == 64
    assert family(samples, "tranche_rows_total", "status") == {"ok": 60, "invalid": 2}
    check_sums(samples, postgres, "life", again=1)

    postgres.stop("immediate")
    worker.send({"id": "late", "prompt": "hello"})
    wait_until(lambda: not worker.ready(), 60)
    assert worker.ask("/readyz")[1] == "database: did not answer the last call\n"
    assert worker.ask("/healthz")[0] == 200  # a restart would not mend it
    samples = worker.metrics()
    assert family(samples, "tranche_sink_state", "state") == {"away": 1}
    assert samples["tranche_sink_retries_total", ""] >= 1
    postgres.start()
    wait_until(worker.ready, 90)
    wait_until(lambda: worker.metrics()["tranche_rows_inserted_total", ""] == 63, 60)
    wait_until(lambda: worker.metrics()["tranche_outstanding_messages", ""] == 0, 60)
    check_sums(worker.metrics(), postgres, "life", again=1)
    worker.process.stdin.close()
    assert worker.process.wait(60) == 0, worker.log()


def test_ready_with_a_broker_that_comes_and_goes(start, tranche, tmp_path):
    """And what the group has not acknowledged is on the page of each worker, up to date."""
    with contextlib.ExitStack() as stack:
        server = redis_server.Server(tmp_path / "redis")
        stack.callback(server.stop)
        assert tranche("init", "--source", server.url()).returncode == 0
        worker = start("--source", server.url(), command="worker")
        wait_until(worker.ready, 60)
        for i in range(3):
            server.client().xadd("jobs", {"job": json.dumps({"id": f"j{i}", "prompt": "hello"})})
        wait_until(lambda: worker.metrics()["tranche_rows_inserted_total", ""] == 3, 60)
        wait_until(lambda: worker.metrics()["tranche_source_lag_messages", ""] == 0, 60)
        assert worker.metrics()["tranche_source_pending_messages", ""] == 0
        server.kill()
        wait_until(lambda: not worker.ready(), 60)
        assert worker.ask("/readyz")[1] == "source: not joined, or lost\n"
        assert worker.ask("/healthz")[0] == 200
        server.start()
        wait_until(worker.ready, 60)


def test_a_queue_that_has_not_answered_is_no_empty_one(start):
    """Nor one whose oldest message is the next to be deleted: no sample before its first word."""
    worker = start("--source", "redis://127.0.0.1:1/jobs", "--connect-timeout", "120s", command="worker")
    for _ in range(3):
        assert not {name for name, _ in worker.metrics() if name in (
            "tranche_source_lag_messages", "tranche_source_lag_bytes", "tranche_source_pending_messages",
            "tranche_source_retained_messages")}
        time.sleep(0.2)
    assert worker.ask("/readyz")[0] == 503


class Page(html.parser.HTMLParser):
    """Refuses tags that do not close in order; keeps what a browser would fetch, and the text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.fetched, self.tags, self.text = [], [], set(), ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.fetched += [v for k, v in attrs if k in ("src", "action", "data", "srcset") or
                         (k == "href" and tag != "a")]
        assert not any(k.startswith("on") for k, _ in attrs)
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += f" {data}"


def test_the_page(start, tmp_path):
    worker = start("--spool-dir", tmp_path / "spool", "--batch", "b", "-", stdin=subprocess.PIPE)
    wait_until(worker.ready, 60)
    worker.send(*({"id": f"secret-id-{i}", "prompt": "secret words", "expected": "7"} for i in range(5)), "{")
    wait_until(lambda: worker.metrics()["tranche_rows_inserted_total", ""] == 6, 60)
    wait_until(lambda: worker.metrics()["tranche_outstanding_messages", ""] == 0, 60)
    status, text, headers = worker.ask("/")
    assert status == 200 and headers["Content-Type"] == "text/html; charset=utf-8"
    assert headers["Content-Security-Policy"].startswith("default-src 'none'")
    page = Page(text)
    assert page.fetched == [] and not page.tags & {"script", "iframe", "link", "img", "form"}
    words = " ".join(page.text.split())
    for want in "ready", "ok 5 rows", "invalid 1 rows", "correct answers 0 of 5", "of 8 slots", "in hand 0":
        assert want in words, (want, words)
    assert "secret" not in text
    worker.process.stdin.close()
    assert worker.process.wait(60) == 0


def raw(port, data, timeout=30):
    """What comes back until the server closes."""
    with socket.create_connection(("127.0.0.1", port), timeout=timeout) as link:
        link.sendall(data)
        answer = b""
        with contextlib.suppress(ConnectionError):
            while piece := link.recv(65536):
                answer += piece
        return answer.decode()


def test_what_is_refused(start):
    worker = start("--batch", "b", "-", stdin=subprocess.PIPE)
    wait_until(worker.ready, 60)
    for method in "POST", "PUT", "DELETE", "HEAD", "OPTIONS":
        status, _, headers = worker.ask("/healthz", method, body="x" if method == "POST" else None)
        assert (status, headers["Allow"]) == (405, "GET"), method
    for path in "/x", "/metrics/", "/../etc/passwd", "/%2e%2e/", "//metrics":
        assert worker.ask(path)[0] == 404, path
    assert worker.ask("/healthz?a=b")[0] == 200
    assert worker.ask("/healthz", headers={"X": "y" * 800}.items())[0] == 200
    assert worker.ask("/healthz", headers={"X": "y" * 1100}.items())[0] == 431
    for size in 6000, 1 << 20:  # beyond what is read at all: an answer or a closed connection
        assert not re.match(r"HTTP/1.1 2", raw(worker.port, b"GET /healthz HTTP/1.1\r\nX: " + b"y" * size))
    for junk in b"\r\n\r\n\r\n", b"\0" * 64 + b"\r\n\r\n", b"GET\r\n\r\n":
        assert not re.match(r"HTTP/1.1 2", raw(worker.port, junk)), junk
    answer = raw(worker.port, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n" * 3)
    assert answer.count("HTTP/1.1 200") == 1 and "Connection: close" in answer
    assert worker.ask("/healthz")[0] == 200
    worker.process.stdin.close()
    assert worker.process.wait(60) == 0


def test_slow_clients_block_nobody(start):
    worker = start("--batch", "b", "-", stdin=subprocess.PIPE)
    wait_until(worker.ready, 60)
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(socket.create_connection(("127.0.0.1", worker.port)))
                for _ in range(24)]
        for link in slow:
            link.sendall(b"GET /heal")
        began = time.monotonic()
        assert worker.ask("/healthz")[0] == 200
        # Three rounds of eight, each of a second; without their eviction three of five at least.
        assert time.monotonic() - began < 12
        worker.send({"id": "a", "prompt": "hello"})  # and the work goes on
        wait_until(lambda: worker.metrics()["tranche_rows_total", 'status="ok"'] == 1, 60)
    # One byte a second is never silent for long; its life is bounded all the same.
    with socket.create_connection(("127.0.0.1", worker.port), timeout=1) as link:
        began = time.monotonic()
        with pytest.raises(ConnectionError):
            while time.monotonic() - began < 60:
                link.sendall(b"G")
                with contextlib.suppress(TimeoutError):
                    if not link.recv(1):
                        raise ConnectionResetError
        assert time.monotonic() - began > 5


def children(pid):
    with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as f:
        return list(map(int, f.read().split()))


def test_a_new_child_serves_the_same_address(start, binary, tmp_path):
    (tmp_path / "jobs.jsonl").write_text("".join(
        json.dumps({"id": f"j{i}", "prompt": "hello"}) + "\n" for i in range(400)))
    worker = start("--sim-step", "30ms", "jobs.jsonl")
    wait_until(worker.ready, 60)
    wait_until(lambda: worker.metrics()["tranche_rows_total", 'status="ok"'] > 0, 60)
    before = worker.metrics()["tranche_start_time_seconds", ""]
    [child] = children(worker.process.pid)
    os.kill(child, signal.SIGKILL)
    assert worker.ask("/healthz")[0] == 200  # nobody listens now but the parent's socket: it waits
    assert worker.metrics()["tranche_start_time_seconds", ""] > before
    wait_until(worker.ready, 60)
    other = subprocess.run([binary, "run", *SIM, "--http", f"127.0.0.1:{worker.port}", "jobs.jsonl"],
                           cwd=tmp_path, stderr=subprocess.PIPE, timeout=60, check=False)
    assert other.returncode == 64
    assert f"--http 127.0.0.1:{worker.port}: cannot listen there" in other.stderr.decode()
    assert worker.process.wait(120) == 0, worker.log()


def test_ready_no_more_once_it_drains(start):
    worker = start("--sim-step", "300ms", "--sim-tokens", "2000", "--grace", "30s", "--batch", "b", "-",
                   stdin=subprocess.PIPE)
    wait_until(worker.ready, 60)
    worker.send({"id": "long", "prompt": "hello"})
    wait_until(lambda: worker.metrics()["tranche_engine_running_sequences", ""] == 1, 60)
    worker.process.send_signal(signal.SIGTERM)
    with contextlib.suppress(ConnectionError):  # it may have left by then
        wait_until(lambda: worker.ask("/readyz")[:2] == (503, "worker: stopping\n"), 20, 0.01)
    worker.end()


def test_ready_behind_the_first_tokens(start):
    worker = start("--sim-step", "1s", "--batch", "b", "-", stdin=subprocess.PIPE)
    wait_until(lambda: worker.ask("/readyz")[:2] ==
               (503, "engine: its first tokens are not there yet\n"), 60)
    assert worker.ask("/healthz")[0] == 200
    wait_until(worker.ready, 60)
    samples = worker.metrics()  # nobody's job: four tokens at most, and no row
    assert 1 <= samples["tranche_engine_sampled_tokens_total", ""] <= 4
    assert not family(samples, "tranche_rows_total", "status")
    worker.process.stdin.close()
    assert worker.process.wait(60) == 0


def test_alive_no_more_where_an_engine_hangs(start):
    """Without the parent, which would kill it for the same reason."""
    worker = start("--sim-step", "1s", "--supervise=false", "--watchdog", "400ms", "--batch", "b", "-",
                   stdin=subprocess.PIPE)
    wait_until(lambda: worker.ask("/healthz")[0] == 503, 60, 0.05)
    seen = set()
    wait_until(lambda: seen.add(worker.ask("/healthz")[1]) or
               any(re.match(r"engine loop: stood still for \d+\.\d s, want at most 0\.4 s", s) for s in seen),
               60, 0.05)


@pytest.mark.parametrize("address", ["9464", "localhost", ":9464", "127.0.0.1:", "127.0.0.1:http",
                                     "127.0.0.1:99999", "::1:9464", "256.0.0.1:9464", "[::1:9464"])
def test_addresses_that_are_none(tranche, address):
    done = tranche("run", "--engine", "sim", "--http", address, "--batch", "b", "-")
    assert done.returncode == 64 and "--http" in done.stderr.decode(), done.stderr


def bottlenecks(samples):
    return {re.search('what="([^"]*)"', labels)[1]: value for (n, labels), value in samples.items()
            if n == "tranche_bottleneck_seconds_total" and value}


def test_what_is_in_the_way(start):
    """Full slots are the engine's time, an empty input nobody's; together they are all of it."""
    worker = start("--sim-step", "20ms", "--batch", "b", "-", stdin=subprocess.PIPE)
    wait_until(worker.ready, 60)
    wait_until(lambda: bottlenecks(worker.metrics()).get("idle", 0) > 0.3, 60)
    worker.send(*[{"id": f"j{i}", "prompt": f"hello {i}", "max_tokens": 64} for i in range(64)])
    wait_until(lambda: worker.metrics()["tranche_rows_inserted_total", ""] == 64, 120)
    samples = worker.metrics()
    found, run = bottlenecks(samples), samples["tranche_stage_seconds_sum", 'stage="run"']
    assert found["engine"] > 0.3 and found.keys() <= {"idle", "source", "prepare", "engine"}, found
    parts = sum(samples["tranche_stage_seconds_sum", f'stage="{s}"'] for s in ("prefill", "decode"))
    assert abs(parts - run) < 1e-3 * run and parts > 0
    assert 0 < sum(found.values()) < time.time() - samples["tranche_start_time_seconds", ""]


def test_the_table_of_metrics(start, root):
    """docs/operations.md names every family as the program does."""
    worker = start("--batch", "b", "-", stdin=subprocess.PIPE)
    families = parse(worker.ask("/metrics")[1])[1]
    labels = collections.defaultdict(set)
    for (name, text) in parse(worker.ask("/metrics")[1])[0]:
        labels[re.sub("_(bucket|sum|count)$", "", name)] |= set(re.findall(r'([a-z_]+)="', text)) - {"le"}
    wait_until(worker.ready, 60)
    for (name, text) in parse(worker.ask("/metrics")[1])[0]:
        labels[re.sub("_(bucket|sum|count)$", "", name)] |= set(re.findall(r'([a-z_]+)="', text)) - {"le"}
    labels |= {name: {"device"} for name in families if name.startswith("tranche_gpu_")}
    wanted = [f"| `{name}` | {kind} | {', '.join(sorted(labels[name]))} | {words} |"
              for name, (kind, words) in families.items()]
    wanted = [line.replace("|  |", "| |") for line in wanted]
    have = [line for line in (root / "docs/operations.md").read_text().splitlines()
            if line.startswith("| `tranche_")]
    assert have == wanted, "\n".join(["docs/operations.md wants:", *wanted])


# A node whose kernel has no IPv6 (ipv6.disable=1), or gives IPv6 sockets IPv6 alone (bindv6only=1).
NODE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <sys/socket.h>
int socket(int family, int type, int protocol)
{
    int on = 1, (*next)(int, int, int) = (int (*)(int, int, int))dlsym(RTLD_NEXT, "socket");
    if (family == AF_INET6 && !getenv("NODE_V6ONLY")) {
        errno = EAFNOSUPPORT;
        return -1;
    }
    int fd = next(family, type, protocol);
    if (family == AF_INET6)
        setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof on);
    return fd;
}
"""


@pytest.fixture(scope="module")
def node(tmp_path_factory):
    shim = tmp_path_factory.mktemp("node") / "node.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-x", "c", "-o", shim, "-", "-ldl"], input=NODE.encode(), check=True)
    return {"LD_PRELOAD": str(shim)}


def has_ipv6():
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6):
        return True
    return False


@pytest.mark.parametrize("more", [{}, pytest.param(
    {"NODE_V6ONLY": "1"}, marks=pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6"))],
    ids=["no-ipv6", "v6only"])
def test_a_probe_over_ipv4_on_any_node(start, node, more):
    """`http = [::]:9464`, as k8s/ has it, and the kubelet asks a pod's IPv4 address."""
    worker = start("--db", "rows.db", "--http", "[::]:0", "--batch", "b", "-", stdin=subprocess.PIPE,
                   env=node | more)
    wait_until(worker.ready, 60)  # asks 127.0.0.1
    assert worker.ask("/healthz")[:2] == (200, "ok\n")
    assert ("event=http_without_ipv6" in worker.log()) == (not more)
    assert f"http_listening host={'::' if more else '0.0.0.0'} " in worker.log()
    worker.process.stdin.close()
    assert worker.process.wait(60) == 0, worker.log()


def test_an_address_of_ipv6_needs_it(tranche, node):
    """In place of one address another would be open to others than was meant."""
    done = tranche("run", *SIM, "--http", "[::1]:0", "--batch", "b", "-", env=node)
    assert done.returncode == 64 and "--http [::1]:0: no socket" in done.stderr.decode(), done.stderr
