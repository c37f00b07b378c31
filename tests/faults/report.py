"""docs/campaign.md out of the records of one source: counts, kills by state, recovery times, what was
run again, stalls, and the three figures that have to be zero."""
import json
import pathlib

HEAD = """# The fault campaign

Written by `tests/faults/campaign.py report` out of the records in `tests/faults/results/{source}.jsonl`;
every case in them ran against the sources with the hash `{source}` (worker/, engine/, kernels/, schemas/,
tests/faults/) on real servers with the simulated engine. A case is replayed with
`tests/faults/campaign.py case --row R --seed S --param NAME=VALUE ...`.

**{lost} lost, {doubled} doubled, {early} acknowledged without a row**: {cases} cases, {jobs} jobs, {kills} kills and
other faults, {acks} acknowledgements looked at in {looks} looks of the observer.

| row | fault | cases | failed | faults | jobs | starts a job, median (most) | recovery s, p50 / p95 / most | stalled share | hours |
|---|---|---|---|---|---|---|---|---|---|
"""


def quantile(values, share):
    values = sorted(values)
    return values[min(int(len(values) * share), len(values) - 1)] if values else 0.0


def line(number, title, records):
    ratios = [r["starts_a_job"] for r in records if r.get("starts_a_job")]
    recovery = [s for r in records for s in r.get("recovery_s", [])]
    stalls = [r["stalled_share"] for r in records if "stalled_share" in r]
    times = " / ".join(f"{quantile(recovery, q):.1f}" for q in (0.5, 0.95, 1)) if recovery else ""
    return (f"| {number} | {title} | {len(records)} | {sum(not r['ok'] for r in records)} | "
            f"{sum(sum(r.get('kills', {}).values()) for r in records)} | "
            f"{sum(r.get('jobs', 0) for r in records)} | "
            f"{quantile(ratios, 0.5):.2f} ({max(ratios, default=0):.2f}) | {times} | "
            f"{sum(stalls) / max(len(stalls), 1):.3f} | "
            f"{sum(r['seconds'] for r in records) / 3600:.2f} |\n")


def histogram(records):
    """Recovery times over all rows: from a fault to the next new row."""
    values = [s for r in records for s in r.get("recovery_s", [])]
    edges = (0.25, 0.5, 1, 2, 4, 8, 16, 32, 1e9)
    text, low = "| recovery | faults |\n|---|---|\n", 0
    for high in edges:
        n = sum(low <= v < high for v in values)
        if n:
            text += f"| {low} to {high} s | {n} |\n" if high < 1e9 else f"| over {low} s | {n} |\n"
        low = high
    return text


def states(records):
    """Kills by where in the protocol they struck."""
    found = {}
    for r in records:
        for state, n in r.get("kills", {}).items():
            found.setdefault(state, {}).setdefault(r["params"].get("broker", "redis"), 0)
            found[state][r["params"].get("broker", "redis")] += n
    text = "| fault | redis | kafka |\n|---|---|---|\n"
    for state in sorted(found):
        text += f"| {state} | {found[state].get('redis', 0)} | {found[state].get('kafka', 0)} |\n"
    return text


def page_of(records, titles, source):
    newest = {}
    for r in records:
        newest[json.dumps([r["row"], sorted(r["params"].items()), r["seed"]])] = r
    records = list(newest.values())
    total = lambda name: sum(r.get(name, 0) for r in records)
    text = HEAD.format(source=source, cases=len(records), jobs=total("jobs"), lost=total("lost"),
                       doubled=total("doubled"), early=total("acks_without_row"),
                       kills=sum(sum(r.get("kills", {}).values()) for r in records),
                       acks=total("acks_checked"), looks=total("observations"))
    for number in sorted({r["row"] for r in records}):
        text += line(number, titles[number], [r for r in records if r["row"] == number])
    text += "\n## Faults by state\n\n" + states(records)
    text += "\n## Recovery: from a fault to the next new row\n\n" + histogram(records)
    failed = [r for r in records if not r["ok"]]
    if failed:
        text += "\n## Cases that failed\n\n"
    for r in failed:
        words = " ".join(f"{k}={v}" for k, v in r["params"].items())
        text += f"- row {r['row']}, {words}, seed {r['seed']}: {r['violations'][:1]}\n"
    return text


def write(records, page, titles):
    if not pathlib.Path(records).exists():
        print(f"{records}: no records of this source; campaign.py run makes them")
        return 1
    lines = [json.loads(at) for at in pathlib.Path(records).read_text().splitlines()]
    pathlib.Path(page).write_text(page_of(lines, titles, pathlib.Path(records).stem))
    return 0
