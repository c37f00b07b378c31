"""The rules under promtool: recorded series and each alert, firing and silent, minute by minute."""
import json
import re
import subprocess

import pytest

import manifests
import monitoring

PROMETHEUS = subprocess.run([f"{manifests.ROOT}/tools/prometheus.sh"], stdout=subprocess.PIPE,
                            check=True).stdout.decode().strip()
OBJECTS = manifests.render("monitoring/keda")
RULES = monitoring.rules_of(OBJECTS)
POD = 'namespace="t",pod="a"'
KEDA = 'namespace="keda",exported_namespace="t",scaledObject="tranche-worker",type="scaledjob"'
READ = f'keda_scaler_metrics_value{{{KEDA},scaler="kafka"}}'
SOURCE = f'tranche_source_info{{{POD},kind="kafka",queue="prompts",group="tranche"}}'


def own(name, labels=""):
    return f"tranche_{name}{{{POD}{labels and ','}{labels}}}"


# An hour of a pod whose GPU works 57 s of each minute.
WELL = {
    own("rows_total", 'status="ok"'): "0+60x60",
    own("engine_device_seconds_total"): "0+57x60",
    own("engines"): "1x60",
    own("bottleneck_seconds_total", 'what="engine"'): "0+57x60",
    own("bottleneck_seconds_total", 'what="source"'): "0+3x60",
    own("outstanding_messages"): "100x60",
    own("waiting_jobs"): "36x60",
    own("source_lag_messages"): "90000-60x60",
    own("passed_over_total"): "0x60",
    own("model_info", 'fingerprint="f",config_revision="c",run="main"'): "1x60",
    own("source_retained_messages"): "5000+60x60",
    SOURCE: "1x60",
    own("sink_state", 'state="well"'): "1x60",
    own("sink_state", 'state="away"'): "0x60",
    own("sink_state", 'state="away_full"'): "0x60",
    own("spool_bytes"): "0x60",
    own("spool_limit_bytes"): "1000x60",
    own("dead_letters_total"): "0x60",
    READ: "90000-60x60",
    f'keda_scaler_detail_errors_total{{{KEDA}}}': "0x60",
}
IDLE = {own("engine_device_seconds_total"): "0+6x60", own("bottleneck_seconds_total", 'what="engine"'): "0+6x60",
        own("bottleneck_seconds_total", 'what="pages"'): "0+51x60"}
REDIS = {SOURCE: None, SOURCE.replace("kafka", "redis"): "1x60",
         SOURCE.replace("kafka", "redis").replace('pod="a"', 'pod="b"'): "1x60",
         own("source_pending_messages"): "200x60", own("source_pending_messages").replace('"a"', '"b"'): "200x60",
         own("source_lag_messages").replace('"a"', '"b"'): "90000-60x60"}


def promtool(folder, tests):
    """{name: what it says}: "SUCCESS" or what differs. A file each, one start for all."""
    (folder / "rules.json").write_text(json.dumps(monitoring.groups_of(OBJECTS)))
    for i, (_, test) in enumerate(tests):
        (folder / f"{i}.json").write_text(json.dumps(
            {"rule_files": [f"{folder}/rules.json"], "evaluation_interval": "1m", "tests": [test]}))
    done = subprocess.run([f"{PROMETHEUS}/promtool", "test", "rules",
                           *(f"{folder}/{i}.json" for i in range(len(tests)))],
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    said = re.split(r"^Unit Testing: .*\n", done.stdout.decode(), flags=re.M)[1:]
    assert len(said) == len(tests)
    return {name: text.strip() for (name, _), text in zip(tests, said)}


def case(name, series, **wanted):
    return name, {"interval": "1m", **wanted, "input_series": [
        {"series": s, "values": v} for s, v in {**WELL, **series}.items() if v is not None]}


def holds(name, series, expression, samples, minute=30):
    return case(name, series, promql_expr_test=[{
        "expr": expression, "eval_time": f"{minute}m",
        "exp_samples": [{"labels": s, "value": v} for s, v in samples.items()]}])


CASES = [
    # name, what differs from WELL, minute, alerts that fire then
    ("well", {}, 50, set()),
    ("no row, with work", {own("rows_total", 'status="ok"'): "0+60x10 600x50"}, 45, {"TrancheRowsStop"}),
    ("no row, with messages left", {own("rows_total", 'status="ok"'): "0+60x10 600x50", own("outstanding_messages"): "0x60",
                                    own("waiting_jobs"): "0x60"}, 45, {"TrancheRowsStop"}),
    ("no row for a quarter", {own("rows_total", 'status="ok"'): "0+60x10 600x50"}, 30, set()),
    ("no row, no work", {own("rows_total", 'status="ok"'): "0+60x10 600x50", own("outstanding_messages"): "0x60",
                         own("source_lag_messages"): "0x60", READ: "0x60"}, 45, set()),
    ("one pod of two has rows", {own("rows_total", 'status="ok"'): "0x60",
                                 'tranche_rows_total{namespace="t",pod="b",status="failed"}': "0+1x60",
                                 'tranche_model_info{namespace="t",pod="b",run="main"}': "1x60"}, 45, set()),
    ("a dead letter of a pod that left", {
        **{own("dead_letters_total"): "0x18 1 1 stale", own("rows_total", 'status="ok"'): "0+60x20 stale"},
        own("model_info", 'fingerprint="f",config_revision="c",run="main"'): "1x20 stale"}, 25, {"TrancheDeadLetters"}),
    ("a dead letter", {own("dead_letters_total"): "0x20 1x40"}, 30, {"TrancheDeadLetters"}),
    ("one long ago", {own("dead_letters_total"): "0x20 1x40"}, 50, set()),
    ("away", {own("sink_state", 'state="well"'): "1x20 0x40", own("sink_state", 'state="away"'): "0x20 1x40"}, 30,
     {"TrancheSinkDown"}),
    ("away for moments", {own("sink_state", 'state="away"'): "0x20 1x3 0x37"}, 24, set()),
    ("away and full", {own("sink_state", 'state="away_full"'): "0x20 1x40"}, 30, {"TrancheSinkDown"}),
    ("spool fills", {own("spool_bytes"): "0+20x60"}, 40, {"TrancheSpoolFilling"}),
    ("spool half full", {own("spool_bytes"): "0+20x60"}, 30, set()),
    ("no spool", {own("spool_limit_bytes"): "0x60"}, 30, set()),
    ("idle with a backlog", IDLE, 35, {"TrancheGpuIdle"}),
    ("idle, jobs wait", {**IDLE, own("source_lag_messages"): "100x60", READ: "100x60"}, 35, {"TrancheGpuIdle"}),
    ("idle with nothing left", {**IDLE, own("source_lag_messages"): "100x60", READ: "100x60",
                                own("waiting_jobs"): "0x60"}, 35, set()),
    ("idle, the rest is another's", {**IDLE, **REDIS, own("source_lag_messages"): "200x60", READ: "200x60",
                                     own("waiting_jobs"): "0x60",
                                     own("source_lag_messages").replace('"a"', '"b"'): "200x60"}, 35, set()),
    ("retention comes near", {own("source_retained_messages"): "5000-20x60"}, 50, {"TrancheRetentionNears"}),
    ("retention is slow", {own("source_retained_messages"): "50000-20x60"}, 50, set()),
    ("a segment goes, half of what was kept", {own("source_lag_messages"): "100x60", READ: "100x60",
                                               own("source_retained_messages"): "500000x30 250000x30"}, 50, set()),
    ("a segment goes, a fifth, read as it comes", {
        own("source_lag_messages"): "100x60", READ: "100x60",
        own("source_retained_messages"): "500000+100x30 402400+100x30"}, 50, set()),
    ("a backlog larger than what is left", {own("source_lag_messages"): "3500x60", READ: "3500x60",
                                            own("source_retained_messages"): "5000-40x60"}, 50, {"TrancheRetentionNears"}),
    ("a backlog larger than that, another pod's", {
        own("source_lag_messages"): "2000x60", READ: "4000x60", own("source_retained_messages"): "5000-40x60",
        own("source_lag_messages").replace('"a"', '"b"'): "2000x60",
        SOURCE.replace('pod="a"', 'pod="b"'): "1x60"}, 50, set()),
    ("a log that lost nothing", {own("source_retained_messages"): "0x60"}, 50, set()),
    ("KEDA sees nothing", {READ: "0x60"}, 35, {"TrancheKedaDisagrees"}),
    ("KEDA sees what is done", {READ: "24x60", own("source_lag_messages"): "0x60", own("waiting_jobs"): "0x60"}, 35,
     {"TrancheKedaDisagrees"}),
    ("both see nothing", {READ: "0x60", own("source_lag_messages"): "0x60", own("waiting_jobs"): "0x60"}, 35, set()),
    ("KEDA sees half", {READ: "45000-30x60"}, 35, {"TrancheKedaDisagrees"}),
    ("KEDA is a poll behind", {READ: "95000-60x60"}, 35, set()),
    ("KEDA cuts off", {READ: "480000x60", own("source_lag_messages"): "900000-60x60"}, 35, set()),
    ("KEDA sees twice", {READ: "480000x60", own("source_lag_messages"): "240000-60x60"}, 35, {"TrancheKedaDisagrees"}),
    ("honorLabels", {READ: None, READ.replace('namespace="keda",exported_', ""): "0x60"}, 35, {"TrancheKedaDisagrees"}),
    ("queued and in flight", {**REDIS, READ: "89800-60x60", READ.replace('"kafka"', '"inflight"'): "200x60",
                              READ.replace('"kafka"', '"composite-metric"'): "90000-60x60"}, 35, set()),
    ("in flight alone", {**REDIS, READ: "200x60"}, 35, {"TrancheKedaDisagrees"}),
    ("another object", {READ.replace("-worker", "-other"): "0x60"}, 35, set()),
    ("KEDA fails", {f'keda_scaler_detail_errors_total{{{KEDA}}}': "0+2x60"}, 35, {"TrancheKedaErrors"}),
    ("KEDA failed once", {f'keda_scaler_detail_errors_total{{{KEDA}}}': "0x10 1x50"}, 35, set()),
    ("KEDA is not scraped", {READ: None}, 35, {"TrancheKedaUnseen"}),
]


# A second run beside it, in its own group, with its own pod and object.
def of_canary(series):
    for old, new in (('pod="a"', 'pod="c"'), ('pod="b"', 'pod="d"'), ('run="main"', 'run="canary"'),
                     ('group="tranche"', 'group="tranche-canary"'), ('"tranche-worker"', '"tranche-canary"')):
        series = series.replace(old, new)
    return series


STUCK = {own("rows_total", 'status="ok"'): "0+60x10 600x50"}
KEDA_ERRORS = f'keda_scaler_detail_errors_total{{{KEDA}}}'
# What differs from WELL in the run and in the canary, and what fires: the one of the two that is ill.
MAIN, CANARY = {"run": "main"}, {"run": "canary"}
TWO = [
    ("both well", {}, {}, 50, []),
    ("the canary stands still", {}, STUCK, 45, [("TrancheRowsStop", CANARY)]),
    ("the run stands still", STUCK, {}, 45, [("TrancheRowsStop", MAIN)]),
    ("both stand still", STUCK, STUCK, 45, [("TrancheRowsStop", MAIN), ("TrancheRowsStop", CANARY)]),
    ("the canary passes all over", {}, {**STUCK, own("passed_over_total"): "0+60x60"}, 45, []),
    ("the canary has nothing left", {}, {**STUCK, own("outstanding_messages"): "0x60", own("waiting_jobs"): "0x60",
                                         own("source_lag_messages"): "0x60", READ: "0x60"}, 45, []),
    ("a dead letter of the canary", {}, {own("dead_letters_total"): "0x20 1x40"}, 30, [("TrancheDeadLetters", CANARY)]),
    ("KEDA sees nothing of the canary", {}, {READ: "0x60"}, 35,
     [("TrancheKedaDisagrees", {"group": "tranche-canary"})]),
    ("KEDA sees nothing of the run", {READ: "0x60"}, {}, 35, [("TrancheKedaDisagrees", {"group": "tranche"})]),
    ("KEDA's sum is right and its parts are not", {READ: "20000-60x60"}, {READ: "160000-60x60"}, 35,
     [("TrancheKedaDisagrees", {"group": "tranche"}), ("TrancheKedaDisagrees", {"group": "tranche-canary"})]),
    ("a canary begins at the end", {}, {own("source_lag_messages"): "50x60", READ: "40x60"}, 35, []),
    ("KEDA fails at the canary", {}, {KEDA_ERRORS: "0+2x60"}, 35,
     [("TrancheKedaErrors", {"scaledObject": "tranche-canary"})]),
    ("KEDA does not know the canary", {}, {READ: None}, 35, [("TrancheKedaUnseen", {"group": "tranche-canary"})]),
    ("the canary's pods are gone", {}, {s: None for s in WELL}, 50, []),
    ("the canary's GPU idles", {}, IDLE, 35, [("TrancheGpuIdle", {"pod": "c"})]),
    ("on streams", REDIS, REDIS, 50, []),
]
NAMES = "alertname", "run", "group", "scaledObject", "pod"


def side_by_side(name, run, canary, minute, fire):
    return holds(name, {**run, **{of_canary(s): v for s, v in {**WELL, **canary}.items()}},
                 f'count by ({", ".join(NAMES)}) (ALERTS{{alertstate="firing"}})',
                 {"{" + ",".join(f'{k}="{v}"' for k, v in {"alertname": alert, **of}.items()) + "}": 1
                  for alert, of in fire}, minute)


def test_every_alert_fires_somewhere():
    assert set.union(*(c[3] for c in CASES)) == {r["alert"] for r in RULES if "alert" in r}


SECOND = {s.replace('pod="a"', 'pod="b"'): "1000x60" if "lag" in s else v for s, v in WELL.items()
          if "lag_messages" in s or "source_info" in s}


def lag(kind):
    return f'tranche:group_lag_messages{{namespace="t",kind="{kind}",queue="prompts",group="tranche"}}'


# These alerts fire and no other; without its difference each case is WELL, where none does. Redis
# tells each pod the whole group's lag, Kafka its own partitions'.
HOLD = [holds(name, series, 'count by (alertname) (ALERTS{alertstate="firing"})',
              {f'{{alertname="{a}"}}': 1 for a in fire}, minute) for name, series, minute, fire in CASES] + \
       [holds("redis counts a group once", REDIS, "tranche:group_lag_messages", {lag("redis"): 90000 - 30 * 60}),
        holds("the bottleneck's share", IDLE, "round(topk(1, tranche:bottleneck:ratio_rate5m), 0.25)",
              {f'{{{POD},what="pages"}}': 0.75}),
        *(side_by_side(*t) for t in TWO),
        holds("rows by run", {of_canary(s): v for s, v in WELL.items()}, "tranche:rows:rate5m",
              {f'tranche:rows:rate5m{{namespace="t",run="{run}",status="ok"}}': 1 for run in ("main", "canary")}),
        holds("kafka adds up pods", SECOND, "tranche:group_lag_messages", {lag("kafka"): 90000 - 30 * 60 + 1000})]


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """promtool starts once for all of them."""
    return promtool(tmp_path_factory.mktemp("promtool"), HOLD)


@pytest.mark.parametrize("name", [name for name, _ in HOLD], ids=lambda n: n.replace(" ", "-"))
def test_rules(name, said):
    assert said[name] == "SUCCESS"


def test_a_case_can_fail(tmp_path):
    said = promtool(tmp_path, [holds("x", {}, "vector(1)", {"{}": 2}, 1), holds("y", {}, "vector(1)", {"{}": 1}, 1)])
    assert said["x"].startswith("FAILED") and said["y"] == "SUCCESS"


@pytest.mark.parametrize("series, alert, words", [
    (IDLE, "TrancheGpuIdle", ["t/a: the GPU computes 10% of the time", "Held up by: pages (docs"]),
    ({READ: "24x60"}, "TrancheKedaDisagrees", ["t, group tranche: KEDA reads a lag of 24,", "The workers: 882"]),
    ({of_canary(s): v for s, v in {**WELL, own("rows_total", 'status="ok"'): "0x60"}.items()},
     "TrancheRowsStop", ["t, run canary: no row"]),
])
def test_what_an_alert_says(series, alert, words, tmp_path):
    """promtool shows what it got where it wanted something else."""
    said = promtool(tmp_path, [case("", series, alert_rule_test=[{
        "alertname": alert, "eval_time": "30m", "exp_alerts": [{"exp_labels": {"no": "such"}}]}])])[""]
    said = re.sub(r"\s+", " ", said)
    for w in words:
        assert w in said, said


def test_promtool_takes_the_rules(tmp_path):
    rules = tmp_path / "rules.json"
    rules.write_text(json.dumps(monitoring.groups_of(OBJECTS)))
    subprocess.run([f"{PROMETHEUS}/promtool", "check", "rules", "--lint-fatal", str(rules)], check=True,
                   stdout=subprocess.DEVNULL)
