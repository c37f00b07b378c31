#!/usr/bin/python3
"""proof: writes docs/keda-proof.md from the records of `make test-keda`'s last run."""
import json
import pathlib

ROOT = pathlib.Path(__file__).resolve().parents[2]
RECORDS = ROOT / "build/keda/records"
ORDER = ["scaledjob-kafka", "scaledjob-redis", "scaledobject-redis", "control-rollout",
         "control-lag-alone"]
MOST_LINES = 24
HEAD = """# KEDA's own loop over our manifests
Written by `make test-keda` (tests/keda/proof.py) from the records of its run; nothing here is typed.

What runs: the reconcilers, the scale handler, the executor and the scalers of KEDA 2.20.2 out of its Go module,
over controller-runtime's fake API client; the manifests of `k8s/keda` as `kubectl kustomize` renders them, decoded
strictly; real Kafka, Redis and PostgreSQL servers; each pod a real `tranche worker` process (simulated engine) that
is started from its pod template: command, arguments, environment, ConfigMap, Secrets. What is ours: the kubelet with
the Job controller's part (`kubelet.go`, `pod.go`) and a model of the HPA (`hpa.go`), which asks KEDA for the metric.
What is not here: a real API server, scheduler, nodes, image pulls.

*lag*: as KEDA reads it, queued and in flight. *Jobs*: not finished. Times in seconds from the start of each part.
"""


def table(head, rows):
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return lines + ["| " + " | ".join(str(c).replace("|", "\\|") for c in row) + " |" for row in rows]


def thinned(points):
    """What changed in Jobs and pods, all of it; lag and rows in between as far as there is room."""
    kept, room = [], max(len(points) // MOST_LINES, 1)
    for i, point in enumerate(points):
        moved = not kept or point[2:4] != kept[-1][2:4]
        if moved or i % room == 0 or i == len(points) - 1:
            kept.append(point)
    return kept


def decisions(records):
    """KEDA's and the HPA's acts, in their order."""
    lines = []
    for r in records:
        if r["event"] == "created" and r["kind"] == "*v1.Job":
            text = f"Job made (generation {r['generation']})"
        elif r["event"] == "deleted" and r["kind"] == "*v1.Job":
            text = f"{'finished' if r['finished'] else 'RUNNING'} Job deleted"
        elif r["event"] == "replicas":
            text = f"{r['who']}: replicas {r['from']} → {r['to']}"
        elif r["event"] == "pod_stopped":
            text = f"a pod gets SIGTERM ({r['why']}), {r['held']} messages in hand"
        elif r["event"] in ("operator_started", "operator_stopped"):
            text = "KEDA " + r["event"].split("_")[1]
        elif r["event"] == "pod_exited" and r["code"]:
            text = f"a pod ends with {r['code']}"
        elif r["event"] == "job_finished":
            text = f"Job finished: {r['how']}"
        else:
            continue
        if lines and lines[-1][1] == text and r["t"] - lines[-1][0] < 5:
            lines[-1][2] += 1
        else:
            lines.append([r["t"], text, 1])
    return [(f"{t:.1f}", text + (f" × {n}" if n > 1 else "")) for t, text, n in lines]


def part(name):
    w = json.loads((RECORDS / f"{name}.json").read_text())
    out = [f"\n## {w['title']}", w["text"], ""]
    out += table(("figure", "value"), w["facts"].items())
    out += ["", "What happened:", ""]
    out += table(("s", "act"), sorted(
        [(f"{t:.1f}", f"*{text}*") for t, text in w["notes"]] + decisions(w["records"]),
        key=lambda row: float(row[0])))
    out += ["", "What was measured:", ""]
    out += table(("s", "lag", "Jobs", "pods", "rows"),
                 [(f"{p[0]:.1f}", *map(int, p[1:])) for p in thinned(w["timeline"])])
    out += ["", "What the test changed in the manifests:", ""]
    out += table(("what", "there", "here"), [(w, shown(a), shown(b)) for w, a, b in w["changes"]])
    return out


def shown(value):
    """Addresses and folders of the machine that ran it say nothing."""
    text = str(value)
    for mark in ("127.0.0.1:", "localhost:"):
        if mark in text:
            return "a private server"
    return "a private server" if "postgres://" in text and "host=" in text else text


def main():
    missing = [n for n in ORDER if not (RECORDS / f"{n}.json").exists()]
    if missing:
        raise SystemExit(f"proof: no record of {', '.join(missing)}: did every test of test_loop.py pass?")
    lines = [HEAD.rstrip()]
    for name in ORDER:
        lines += part(name)
    (ROOT / "docs/keda-proof.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
