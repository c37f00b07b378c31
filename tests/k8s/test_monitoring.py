"""A real Prometheus with our rules scrapes live workers, one on Kafka and one on Redis: every series
that a rule or a panel selects is there, every expression can be evaluated, and the worker's gauges
say what the broker says."""
import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request

import pytest

import manifests
import monitoring

sys.path.insert(0, f"{manifests.ROOT}/tests/run")
from kafka_broker import Broker  # noqa: E402
from redis_server import Server  # noqa: E402

BINARY = os.environ.get("TRANCHE_BIN", f"{manifests.ROOT}/build/release/tranche")
OBJECTS = manifests.render("monitoring/keda")
BOARD = monitoring.dashboard(OBJECTS)
RULES = monitoring.rules_of(OBJECTS)
RECORDED = {r["record"] for r in RULES if "record" in r}
EXPRESSIONS = [r["expr"] for r in RULES] + [e for _, e in monitoring.panel_expressions(BOARD)]
SELECTED = sorted({s for e in EXPRESSIONS for s in monitoring.selectors(e)})
MESSAGES, DELETED = 3000, 5


def fetch(port, path, **query):
    url = f"http://127.0.0.1:{port}{path}?{urllib.parse.urlencode(query)}"
    with urllib.request.urlopen(url, timeout=60) as answer:
        return answer.read().decode()


class Live:
    """The servers, the workers and the Prometheus of this file."""

    def __init__(self, folder, stack):
        self.folder, self.stack, self.ports = folder, stack, {}
        # A card, for the panels of the hardware.
        subprocess.run(["cc", "-std=gnu11", "-shared", "-fPIC", "-o", folder / "libnvidia-ml.so.1",
                        f"{manifests.ROOT}/tests/run/fake_nvml.c"], check=True, timeout=120)
        self.kafka = Broker(folder / "kafka")
        stack.callback(self.kafka.kill)
        self.kafka.start()
        self.redis = Server(folder / "redis")
        stack.callback(self.redis.stop)
        # Asked for more often than in production, so that the log's start is known soon.
        (folder / "kafka.conf").write_text("statistics.interval.ms = 10000\n")
        (folder / "none.conf").write_text("")
        jobs = [json.dumps({"id": f"j{i}", "prompt": "hello", "expected": "7"}) for i in range(MESSAGES)]
        (folder / "jobs.jsonl").write_text("".join(j + "\n" for j in jobs))
        for name, url in (("kafka", f"kafka://{self.kafka.address}/prompts"), ("redis", self.redis.url("prompts"))):
            self.call("init", "--source", url, *(["--partitions", "1"] if name == "kafka" else []))
            self.call("submit", "--source", url, folder / "jobs.jsonl")
            self.work(name, url)
        self.prometheus()

    def call(self, *args):
        done = subprocess.run([BINARY, *map(str, args)], cwd=self.folder, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, timeout=120)
        assert done.returncode == 0, done.stdout.decode()

    def launch(self, name, *command):
        with open(self.folder / f"{name}.log", "wb") as log:
            process = subprocess.Popen([str(c) for c in command], cwd=self.folder, stdout=log, stderr=log,
                                       env={**os.environ, "LD_LIBRARY_PATH": str(self.folder), "FAKE_GPUS": "1"})
        self.stack.callback(process.wait)
        self.stack.callback(process.kill)

    def port(self, name):
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.ports[name] = free.getsockname()[1]
        return self.ports[name]

    def work(self, name, url):
        """Slow enough that a backlog stays for the length of this file."""
        config = self.folder / ("kafka.conf" if name == "kafka" else "none.conf")
        self.launch(name, BINARY, "worker", "--engine=sim", "--sim-step=50ms", "--sim-tokens=20", "--slots=4",
                    "--source", url, "--db", f"{name}.db", "--spool-dir", f"spool-{name}", "--broker-config", config,
                    "--http", f"127.0.0.1:{self.port(name)}", "--supervise=false", "--progress=off")

    def prometheus(self):
        (self.folder / "rules.json").write_text(json.dumps(monitoring.groups_of(OBJECTS)))
        targets = [{"targets": [f"127.0.0.1:{self.ports[n]}"], "labels": {"namespace": "tranche", "pod": n}}
                   for n in ("kafka", "redis")]
        (self.folder / "prometheus.json").write_text(json.dumps({
            "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
            "rule_files": ["rules.json"], "scrape_configs": [{"job_name": "tranche", "static_configs": targets}]}))
        folder = subprocess.run([f"{manifests.ROOT}/tools/prometheus.sh"], stdout=subprocess.PIPE, check=True)
        self.launch("prometheus", f"{folder.stdout.decode().strip()}/prometheus", "--config.file=prometheus.json",
                    "--storage.tsdb.path=tsdb", f"--web.listen-address=127.0.0.1:{self.port('prometheus')}",
                    f"--web.console.templates={self.folder}", f"--web.console.libraries={self.folder}")
        self.wait(self.answers, "Prometheus")

    def answers(self):
        try:
            return bool(fetch(self.ports["prometheus"], "/-/ready"))
        except urllib.error.URLError:  # nobody listens, or 503
            return False

    def ask(self, expression):
        """The result of an instant query: [(labels, value)]."""
        try:
            answer = json.loads(fetch(self.ports["prometheus"], "/api/v1/query", query=expression))
        except urllib.error.HTTPError as e:
            raise AssertionError(f"{expression}: {e.read().decode()}")
        return [(r["metric"], float(r["value"][1])) for r in answer["data"]["result"]]

    def is_there(self, selector):
        return bool(self.ask(f"count({selector})"))

    def gauge(self, worker, name):
        found = re.search(rf"^{name} (\S+)$", fetch(self.ports[worker], "/metrics"), re.M)
        return int(found[1]) if found else None

    def wait(self, condition, what):
        until = time.monotonic() + 180
        while not condition():
            assert time.monotonic() < until, (what, [p.read_text()[-1000:] for p in self.folder.glob("*.log")])
            time.sleep(0.5)


@pytest.fixture(scope="module")
def live(tmp_path_factory):
    with contextlib.ExitStack() as stack:
        made = Live(tmp_path_factory.mktemp("live"), stack)
        # A rate wants two scrapes, a rule another evaluation, the log's start ten seconds.
        for selector in 'tranche:bottleneck:ratio_rate5m{pod="kafka"}', 'tranche:bottleneck:ratio_rate5m{pod="redis"}', \
                "tranche_source_retained_messages", "tranche_gpu_memory_bytes":
            made.wait(lambda: made.is_there(selector), selector)
        yield made


def ours(selector):
    return selector.startswith("tranche_")


def test_the_workers_have_what_is_selected(live):
    """Label values too: a state or a stage that does not exist selects nothing."""
    assert len([s for s in SELECTED if ours(s)]) > 30
    assert [s for s in SELECTED if ours(s) and not live.is_there(s)] == []


@pytest.mark.parametrize("selector", ["tranche_row_total", 'tranche_sink_state{state="gone"}',
                                      'tranche_stage_seconds_sum{stage="tokenize"}', "tranche:bottleneck"])
def test_what_is_not_there_is_missed(selector, live):
    assert not live.is_there(selector)


def test_selectors_are_found():
    found = monitoring.selectors('sum by (a) (rate(x_total{b="or {c}",d!="1"}[5m])) / on (ns, pod) group_left (e) '
                                 '(y:z > bool 0.5) or histogram_quantile(0.9, w_bucket) unless clamp_max(v, 1e3)')
    assert found == ['x_total{b="or {c}",d!="1"}', "y:z", "w_bucket", "v"]


def test_nothing_else_is_selected():
    """Ours, what is recorded, and KEDA's, of whose names its own source knows each."""
    source = open(f"{manifests.CACHE}/prommetrics.go").read()
    names = re.findall(r'Subsystem:\s*(\S+),\s*Name:\s*"(\w+)"', source)
    subsystems = dict(re.findall(r'^\s*(\w+)\s*=\s*"(\w+)"', source, re.M))
    known = {f"keda_{subsystems.get(s, s).strip(chr(34))}_{n}" for s, n in names}
    for selector in SELECTED:
        name, matchers = re.fullmatch(r"([\w:]+)(?:\{(.*)\})?", selector).groups()
        assert ours(name) or name in RECORDED or name in known, (name, known)
        for found in re.findall(r"(\w+)(?:=~|!~|!=|=)", matchers or "") if name.startswith("keda_") else []:
            assert found in re.search(r"metricLabels = \[\]string\{(.*)\}", source)[1], selector


def test_every_rule_is_evaluated(live):
    groups = json.loads(fetch(live.ports["prometheus"], "/api/v1/rules"))["data"]["groups"]
    have = [r for g in groups for r in g["rules"]]
    assert len(have) == len(RULES)
    assert [(r["name"], r.get("lastError")) for r in have if r["health"] != "ok"] == []
    for name in sorted(RECORDED - {"tranche:keda_lag_messages"}):  # there is no KEDA here
        live.wait(lambda: live.is_there(name), name)
    shares = {m["pod"]: v for m, v in live.ask("sum by (pod) (tranche:bottleneck:ratio_rate5m)")}
    assert shares.keys() == {"kafka", "redis"} and all(v > 0 for v in shares.values()), shares


def test_every_panel_shows_something(live):
    for title, expression in monitoring.panel_expressions(BOARD):
        live.ask(expression)  # an error of the expression is one here
        if "tranche:keda_lag_messages" not in expression:
            live.wait(lambda: live.ask(expression), f"{title}: {expression}")


def test_a_bad_expression_is_an_error(live):
    with pytest.raises(AssertionError, match="parse error"):
        live.ask("sum by pod (tranche_ready")


def test_the_board_is_whole():
    names = {v["name"] for v in BOARD["templating"]["list"]}
    text = json.dumps(BOARD)
    assert set(re.findall(r"\$\{?(?!__)(\w+)", text)) == names
    ids = [p["id"] for p in BOARD["panels"]]
    assert len(set(ids)) == len(ids)
    taken = set()
    for p in BOARD["panels"]:
        g = p["gridPos"]
        cells = {(x, y) for x in range(g["x"], g["x"] + g["w"]) for y in range(g["y"], g["y"] + g["h"])}
        assert not cells & taken and max(x for x, _ in cells) < 24, p["title"]
        taken |= cells
        refs = [t["refId"] for t in p["targets"]]
        assert refs and len(set(refs)) == len(refs) and p["datasource"]["uid"] == "${datasource}"
    assert all(p["title"] for p in BOARD["panels"])


def test_retention_takes_what_is_not_done(live):
    """The distance from the log's start, before and after the broker deletes some of it."""
    def start():
        lag, kept = live.gauge("kafka", "tranche_source_lag_messages"), live.gauge("kafka", "tranche_source_retained_messages")
        return MESSAGES - lag - kept
    live.wait(lambda: live.gauge("kafka", "tranche_source_retained_messages") > DELETED, "progress")
    assert start() == 0
    (live.folder / "delete.json").write_text(json.dumps({"version": 1, "partitions": [
        {"topic": "prompts", "partition": 0, "offset": DELETED}]}))
    live.kafka.java("org.apache.kafka.tools.DeleteRecordsCommand", "--bootstrap-server", live.kafka.address,
                    "--offset-json-file", str(live.folder / "delete.json"))
    live.wait(lambda: start() == DELETED, "the new start")


def test_lag_is_joined_to_its_queue(live):
    got = {m["kind"]: (m["queue"], m["group"]) for m, _ in live.ask("tranche:group_lag_messages")}
    assert got == {"kafka": ("prompts", "tranche"), "redis": ("prompts", "tranche")}
