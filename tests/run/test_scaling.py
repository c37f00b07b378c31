"""tools/scaling: the scalers' rules against vectors worked out from KEDA's and the HPA's own rules, the
model of a pod against what can be said by hand, and docs/scaling.md against the script."""
import json
import subprocess
import sys

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools/scaling"))
import measured  # noqa: E402
import model  # noqa: E402
import rules  # noqa: E402
import scalers  # noqa: E402
import traces  # noqa: E402


@pytest.fixture(scope="module")
def card():
    return measured.Card()


@pytest.mark.parametrize("lags, options, metric", [
    ([1250] * 8, {}, 4000),                               # more than 8 partitions can feed
    ([10000] + [0] * 7, {}, 4000),                        # one hot partition asks for 8 pods
    ([10000] + [0] * 7, {"limit_to_lagging": True}, 500),
    ([100] * 7, {"ensure_even": True}, 3500),             # 2 pods do not divide 7 partitions
    ([0] * 7, {"ensure_even": True}, 500),
    ([100] * 8, {}, 800),
    ([0] * 8, {}, 0),
])
def test_kafka_metric(lags, options, metric):
    assert rules.kafka_metric(lags, 500, **options) == metric


@pytest.mark.parametrize("queue, running, pending, made", [
    (4000, 0, 0, (8, 8, 8)), (4000, 4, 0, (4, 4, 4)), (4000, 4, 4, (4, 4, 0)),
    (600, 2, 0, (0, 2, 2)), (600, 2, 2, (0, 0, 2)), (0, 0, 0, (0, 0, 0)), (1, 0, 0, (1, 1, 1)),
    (1e6, 8, 0, (0, 0, 0)),
])
def test_jobs_to_start(queue, running, pending, made):
    got = tuple(rules.jobs_to_start(queue, 500, 8, running, pending, strategy)
                for strategy in ("default", "accurate", "eager"))
    assert got == made


@pytest.mark.parametrize("value, replicas, wanted", [
    (20000, 1, 1), (21999, 1, 1), (22001, 1, 2), (60000, 2, 3), (38000, 2, 2), (35000, 2, 2),
    (19000, 2, 1), (0, 3, 0),
])
def test_hpa_of_a_total(value, replicas, wanted):
    assert rules.hpa_total(value, 20000, replicas) == wanted


@pytest.mark.parametrize("values, starting, missing, wanted", [
    ([1.0, 1.0], 0, 0, 3),              # ceil(2 * 100/70)
    ([0.7, 0.7], 0, 0, 2), ([0.77, 0.76], 0, 0, 2), ([0.3, 0.3, 0.3], 0, 0, 2),
    ([1.0] * 3, 1, 0, 4),               # the one that starts counts as idle: 75/70, within 0.1
    ([1.0] * 7, 3, 0, 10),              # exactly on target
    ([0.3, 0.3], 0, 2, 3),              # the silent ones are taken to be on target: ceil(4 * 50/70)
    ([1.0], 0, 1, 2),                   # on scale-up they are idle: 50/70 would turn the direction
    ([], 2, 0, 2),
])
def test_hpa_of_each_pod(values, starting, missing, wanted):
    replicas = len(values) + starting + missing
    assert rules.hpa_each(values, 0.7, replicas, starting, missing) == wanted


def test_behaviour_of_the_hpa():
    up = rules.Behaviour(1, 20)
    assert [up.decide(0, 1, 20), up.decide(15, 5, 20), up.decide(30, 10, 20)] == [5, 10, 20]
    assert rules.Behaviour(2, 10).decide(0, 2, 0) == 2
    down = rules.Behaviour(1, 10)
    assert down.decide(0, 6, 6) == 6
    assert down.decide(15, 6, 2) == 6                     # six were wanted within 300 s
    assert down.decide(299, 6, 3) == 6
    assert down.decide(301, 6, 2) == 3                    # the highest wish that is left
    never = rules.Behaviour(1, 10, down=False)
    assert [never.decide(t, 6, 1) for t in (0, 400, 800)] == [6, 6, 6]


def test_the_card_is_the_measured_one(card):
    bench = json.loads((ROOT / measured.RAW).read_text())
    for point in bench["slots"]:
        if point["workload"] == measured.WORKLOAD:
            rate = point["slots"] * card.sequence_rate(point["slots"]) / card.run_share
            assert rate == pytest.approx(point["out_tok_s"], rel=1e-6)
    assert card.sequence_rate(0) == 0
    row = next(line for line in (ROOT / "SPEED.md").read_text().splitlines()
               if measured.SPEED_OPEN[0] in line)
    assert measured.SPEED_OPEN[1] in row
    assert measured.OPEN_SECONDS == float(measured.SPEED_OPEN[1].split("-")[1].split()[0])


def test_one_job_alone(card):
    sim = model.Sim([(100.0, 1, 4096)], scalers.KedaJobs(), card)
    result = sim.run()
    # Seen at the poll at 120 s, 10 s to exec, the model open: the first token.
    assert result.begin == pytest.approx([31.7] * 3)
    assert result.row[0] == pytest.approx(31.7 + 4096 / card.sequence_rate(1))
    # And idle-exit: the GPU is held until then, and no longer.
    sim = model.Sim([(100.0, 1, 4096)], scalers.KedaJobs(), card)
    result = sim.run(3600)
    assert result.hours * 3600 == pytest.approx(11.7 + 4096 / card.sequence_rate(1) + 120)
    assert (result.started, result.stops) == (1, 0)


def test_a_full_pod_makes_the_measured_rate(card):
    trace = [(0.0, 32, 1024)] * 2000
    result = model.Sim(trace, scalers.Fixed(1), card).run()
    seconds = result.row[2] - 11.7
    assert 64000 * 1024 / seconds == pytest.approx(card.full_rate, rel=0.02)
    assert result.used * result.hours * 3600 == pytest.approx(seconds, abs=15)


MAKERS = {"fixed": lambda: scalers.Fixed(3), "use": scalers.UseHpa, "jobs": scalers.KedaJobs,
          "pool": scalers.KedaPool, "shrinks": lambda: scalers.KedaPool(5000, down=True)}


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("parks", [True, False])
def test_every_job_gets_its_row_once(card, name, parks):
    # A backlog, and a trickle that keeps every pod busy while it falls.
    trace = [(0.0, 32, 1024)] * 1250 + [(4.0 * i, 32, 20000) for i in range(900)]
    trace.sort(key=lambda entry: entry[0])
    settings = model.Settings(parks=parks, grace=280.0 if parks else 30.0)
    result = model.Sim(trace, MAKERS[name](), card, settings).run(traces.DAY / 4)
    assert result.jobs == sum(jobs for _, jobs, _ in trace)
    assert result.tokens == sum(jobs * tokens for _, jobs, tokens in trace)
    assert result.lost == 0 or not parks
    if name in ("fixed", "jobs", "pool"):
        assert result.busy_stops == 0
    if name == "shrinks":
        assert result.busy_stops > 0 and (parks or result.lost > 0)


class StopsAt:
    """Two pods; one is stopped at a second."""

    def __init__(self, second):
        self.second = second

    def begin(self, sim):
        sim.start(2)
        sim.push(self.second, model.TICK)

    def tick(self, sim):
        sim.stop(sim.live()[0])


def test_what_a_stop_costs(card):
    """32 sequences a pod since 20 s; 20,000 tokens last longer than any grace."""
    trace = [(20.0, 32, 20000)] * 2
    rate = card.sequence_rate(32)
    plain = model.Sim(trace, StopsAt(40.0), card, model.Settings(parks=False, grace=30.0)).run()
    assert plain.lost == pytest.approx(32 * (70 - 20) * rate)
    parked = model.Sim(trace, StopsAt(40.0), card, model.Settings(grace=30.0)).run()
    assert parked.lost == 0
    assert parked.parked == pytest.approx(32 * (40 - 20) * rate)
    # Those that end within three quarters of the grace are waited for, on their pod.
    short = [(20.0, 32, int(40 * rate))] * 2
    kept = model.Sim(short, StopsAt(40.0), card, model.Settings(grace=30.0)).run()
    assert (kept.parked, kept.busy_stops) == (0, 1)
    assert kept.row[2] == pytest.approx(40, abs=0.1)


def test_nodes_that_have_to_come(card):
    settings = {"node_start": 120.0}
    trace = [(100.0, 32, 1024), (800.0, 32, 1024)]
    result = model.Sim(trace, scalers.KedaJobs(), card, model.Settings(**settings)).run(3600)
    # The second batch finds the node that was kept.
    assert result.begin[2] == pytest.approx(20 + 120 + 11.7)
    assert result.begin[0] == pytest.approx(10 + 11.7)
    run = 1024 / card.sequence_rate(32)
    assert result.hours * 3600 == pytest.approx(810 - 120 + 11.7 + run + 120 + 600)


def test_the_grain_does_not_carry_the_result(card):
    hours = []
    for grain in (32, 8):
        trace = traces.make("nightly", card.full_rate / 1024, grain=grain)
        hours.append(model.Sim(trace, scalers.KedaJobs(), card).run(traces.DAY).hours)
    assert hours[0] == pytest.approx(hours[1], rel=0.03)


def test_traces_repeat_and_differ_by_seed():
    assert traces.make("tail", 39.0) == traces.make("tail", 39.0)
    assert traces.make("tail", 39.0) != traces.make("tail", 39.0, seed=2)
    for name in traces.MAKERS:
        trace = traces.make(name, 4.0)
        assert trace == sorted(trace, key=lambda entry: entry[0]) and all(j > 0 for _, j, _ in trace)


def run(*args):
    return subprocess.run([sys.executable, ROOT / "tools/scaling", *args], stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, timeout=1200, text=True)


@pytest.mark.parametrize("line, told", [
    ("1,2", "want second,jobs,tokens, found '1,2'"), ("1,2,x", "found '1,2,x'"),
    ("1,0,5", "1 job"), ("-1,1,5", "a second from 0"), ("nan,1,5", "a second from 0"),
])
def test_a_bad_line_is_named(tmp_path, line, told):
    (tmp_path / "t.csv").write_text("# mine\n0,1,10\n" + line + "\n")
    process = run("replay", str(tmp_path / "t.csv"))
    assert process.returncode == 1 and "t.csv:3" in process.stderr and told in process.stderr


def test_replay_of_a_file(tmp_path):
    (tmp_path / "t.csv").write_text("0,5000,300 # the batch\n600.5,40,2000\n")
    process = run("replay", str(tmp_path / "t.csv"), "--lag-threshold", "2000", "--most", "4")
    assert process.returncode == 0, process.stderr
    lines = process.stdout.splitlines()
    assert len(lines) == 9 and lines[0].startswith("| | GPU-hours")


def test_the_page_is_what_the_script_writes(tmp_path):
    process = run("page", str(tmp_path))
    assert process.returncode == 0, process.stderr
    for name in ("scaling.md", "scaling.svg"):
        assert (tmp_path / name).read_text() == (ROOT / "docs" / name).read_text(), \
            f"docs/{name} is not what `make scaling` writes"
