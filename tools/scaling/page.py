"""docs/scaling.md and docs/scaling.svg, from the traces and the measured card."""

import textwrap

import compare
import measured
import plot
import scalers
import traces

TITLES = {
    "steady": "steady: 1.4 GPUs of work, all day",
    "diurnal": "diurnal: 0.1 GPUs by night, 2.9 at 14:00",
    "nightly": "nightly: 400,000 jobs at 01:00, handfuls by day",
    "tail": "batches with long tails, every two hours",
}
SWEEP = (2500, 5000, 20000, 80000)
NODES = (0.0, 120.0, 300.0)


def wrapped(text):
    return textwrap.fill(text, 118, break_long_words=False, break_on_hyphens=False)


def of(results, name):
    return dict(results)[name]


HPA, JOBS, POOL = "HPA on GPU use, 2 to 10 at 70 %", "ScaledJob on lag", "warm pool on lag"
SHRINKS, NO_PARKING = "pool on lag that shrinks", "the same, no parking"


def steady_text(r):
    return (f"Nothing to scale: two GPUs, always, win. They cost {of(r, 'fixed: 2').hours:.0f} GPU-hours, "
            f"as the ScaledJob does ({of(r, JOBS).hours:.1f}), and nobody waits. The HPA sees two pods at "
            f"100 %, starts more, and these are at 100 % too, each with fewer sequences: it ends at ten "
            f"pods that work at {compare.percent(of(r, HPA).full)} of what they could. The pool that "
            f"shrinks packs the same work into {of(r, SHRINKS).hours:.1f} GPU-hours by letting it wait, and "
            f"stops a busy pod {of(r, SHRINKS).busy_stops} times a day to do so: without parking that "
            f"throws {compare.tokens(of(r, NO_PARKING).lost)} tokens away.")


def diurnal_text(r):
    return (f"The queue is never empty, so a Job's pod, once there, does not leave before the night is over: "
            f"the ScaledJob and the warm pool cost what their peak costs ({of(r, JOBS).hours:.0f} GPU-hours). "
            f"This is what they are bad at. A pool that shrinks needs {of(r, SHRINKS).hours:.0f}. Two fixed "
            f"GPUs cost less than the ScaledJob and let half of the jobs wait for "
            f"{compare.seconds(of(r, 'fixed: 2').begin[0])}; four let nobody wait for "
            f"{of(r, 'fixed: 4').hours:.0f} GPU-hours. The HPA holds ten pods by night as well, since one "
            f"sequence is enough for a GPU to be in use.")


def nightly_text(r):
    return (f"What offline inference mostly looks like. Lag starts pods where there is work, and none stay: "
            f"{of(r, JOBS).hours:.1f} GPU-hours instead of {of(r, HPA).hours:.0f}, for which 95 of 100 jobs "
            f"of the HPA have begun after {compare.seconds(of(r, HPA).begin[1])} and those of the ScaledJob "
            f"after {compare.seconds(of(r, JOBS).begin[1])}. The HPA's floor of two pods is most of its bill.")


def tail_text(r):
    return (f"Half of the answers are below 455 tokens, one in 50 is above 10,000, so each batch ends with a few "
            f"sequences alone, on a GPU that is in use. ScaledJob {of(r, JOBS).hours:.1f} GPU-hours, HPA "
            f"{of(r, HPA).hours:.0f}. The pool that shrinks stops pods as the backlog falls: busy ones "
            f"{of(r, SHRINKS).busy_stops} times. With parking that cost "
            f"{compare.tokens(of(r, SHRINKS).parked)} tokens kept and none drawn twice; without, "
            f"{compare.tokens(of(r, NO_PARKING).lost)} tokens began anew and the last row came "
            f"{compare.seconds(of(r, NO_PARKING).row[2] - of(r, SHRINKS).row[2])} later.")


TEXTS = {"steady": steady_text, "diurnal": diurnal_text, "nightly": nightly_text, "tail": tail_text}


def sweep_table(trace, card):
    lines = ["| lagThreshold | one pod is busy for | ScaledJob: GPU-hours | pods at most | queued: p95 | "
             "row after: most |", "|---|---|---|---|---|---|"]
    for threshold in SWEEP:
        r = compare.play(trace, card, lambda: scalers.KedaJobs(threshold), {}, traces.DAY)
        busy = threshold * 1024 / card.full_rate
        lines.append(f"| {threshold} | {compare.seconds(busy)} | {r.hours:.1f} | {r.most} | "
                     f"{compare.seconds(r.begin[1])} | {compare.seconds(r.row[2])} |")
    return "\n".join(lines)


def node_table(trace, card):
    lines = ["| a node takes | ScaledJob: node-hours | queued: p50, p95 | warm pool: node-hours | queued: p50, "
             "p95 | HPA on GPU use: node-hours | queued: p50, p95 |", "|---|---|---|---|---|---|---|"]
    for start in NODES:
        cells = [compare.seconds(start) if start else "0 s (it is there)"]
        for maker, extra in ((lambda: scalers.KedaJobs(), {}), (lambda: scalers.KedaPool(), {}),
                             (lambda: scalers.UseHpa(), compare.PLAIN)):
            r = compare.play(trace, card, maker, dict(extra, node_start=start), traces.DAY)
            cells += [f"{r.hours:.1f}", f"{compare.seconds(r.begin[0])}, {compare.seconds(r.begin[1])}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


TOP = """\
# What scaling on the queue is worth

Written by `make scaling` (`tools/scaling`); a test holds this page to what the script writes. It is a
simulation: the scalers' rules are KEDA's and the HPA's, the pods' speed was measured on a GPU, the arrivals
are made up, and nothing of it ran on a cluster.

![pods over a day](scaling.svg)

{short}

| work | best of these | why |
|---|---|---|
| batches with nothing between | ScaledJob on lag (`k8s/keda/overlays/kafka`, `redis`) | from zero, no busy pod is stopped, all leave |
| batches close together, or a slow start | warm pool on lag (`warm-pool`) | the model stays loaded for `cooldownPeriod` |
| a stream that swells and ebbs, never empty | a pool that shrinks (`shrinking-pool`), workers that park; or a fixed number if nobody may wait | Jobs and the warm pool hold the peak until the queue is empty |
| a steady stream | a fixed number | nothing to scale |
| any of them | not GPU use | it is 100 % for one sequence as for {slots} |

## How to read the tables
- **GPU-hours**: from the moment a pod exists until it is gone, loading and idling included, over 24 hours or until
  the last row.
- **a kernel ran**: the share of that time in which `nvidia-smi` would have shown use.
- **of full speed**: tokens made, by what the same GPU-hours give with all slots taken. The two differ: that is the
  whole trouble with GPU use.
- **queued**: from a job's arrival to its first step. **row after**: from its arrival to its last token.
- **busy pods stopped**, **tokens lost**: what a scaler's scale-down hit. A worker that parks loses none; it computes
  prompt and ids once more in one prefill, which the model charges.

At most ten pods everywhere; `lagThreshold` {threshold}, `pollingInterval` 30 s, `idle-exit` 2 min, `cooldownPeriod` 10 min
as in `k8s/`. The HPA on GPU use is a usual server's: 30 s of grace, no parking. The pool that shrinks is the warm
pool with the HPA's usual scale-down (300 s of stabilisation) in place of `selectPolicy: Disabled`: `shrinking-pool`.
"""

MEASURED = """\
## Measured, and assumed
| what | value | where it is from |
|---|---|---|
| tokens a second of a pod by sequences at once | {curve} | sweep of slots, {workload} (512 in, mean 1024 out), {card}, {date}: `{raw}` |
| times what a run makes of its steps | {share} | W1's steady state by its steps, same file |
| so: a pod with all slots taken | {full:,.0f} tok/s, {jobs_s:.1f} jobs of 1,024 tokens | product of both |
| model open, first start of a card | {open} s | `SPEED.md`, "start, weights in the page cache" |
| rows a second of a prefill (parked work begun again) | {prefill:,.0f} | W1's step of 2,816 rows, same file |
| from a bound pod to exec, image on the node | 10 s | **assumed** |
| a GPU's node | is there; below also 2 and 5 min | **assumed**; an empty one stays 10 min, as the cluster autoscaler has it |
| arrivals and their lengths | `tools/scaling/traces.py`, seed 1 | **made up**; lengths as W2's (lognormal, mean 1,024, sigma 0.8, at most 8,192); of the long tails sigma 1.5, at most 32,768 |
"""

LEFT_OUT = """\
## What the model leaves out
- **Kafka's partitions.** Jobs are shared as Redis shares them: whoever has room takes the next one. On Kafka a hot
  partition feeds one pod, and the lag counts what is finished behind an unfinished job.
- **Nodes that die, spot, image pulls, quota, rebalances.** Every start succeeds, every GPU is there or comes in time.
- **The database and the broker**: always there, never the bottleneck.
- **Prompts.** All have 512 tokens, as in the measured sweep; longer ones are slower. One model of one size.
- **A GPU's speed with long answers**: the sweep's context is W2's. The end of a long tail is slower in truth.
- **GPU use and uneven work.** Here every pod has work as long as any has. Where some idle and others do not (hot
  partitions) use falls below 70 % and the HPA stops busy pods too; here it stopped {hpa_busy}.
- **Money.** Hours are hours: no price of a reserved GPU against one by the hour.
- **Single jobs.** Those that come together run as one entry of up to 256 equal ones (a stream) or 32 (a batch). {grain}

Your own arrivals: `python3 tools/scaling replay FILE.csv` (lines `second,jobs,tokens`) prints such a table for them; its
`--help` has lag threshold, most pods, starts of pod and node.
"""

GRAIN_NOTE = ("A quarter\n  of that moves GPU-hours by less than 3 % (tested on `nightly`); half of it\n  moved the tokens lost of `steady` by a fifth.")


def curve_text(card):
    return "; ".join(f"{n:,}: {n * card.sequence_rate(n) / card.run_share:,.0f}" for n in card.counts)


def short_text(results):
    night, day, flat = results["nightly"], results["diurnal"], results["steady"]
    return (f"For a nightly batch of 2.9 GPU-hours of work, KEDA on lag pays {of(night, JOBS).hours:.1f} GPU-hours, "
            f"the usual HPA on GPU use {of(night, HPA).hours:.0f}, four fixed GPUs "
            f"{of(night, 'fixed: 4').hours:.0f}; the price is a wait of {compare.seconds(of(night, JOBS).begin[0])} "
            f"(median), which `lagThreshold` sets. For a steady stream a fixed number of GPUs is as cheap and "
            f"nobody waits. For a stream that is never empty a ScaledJob holds its peak "
            f"({of(day, JOBS).hours:.0f} GPU-hours where {of(day, SHRINKS).hours:.0f} would do). GPU use as a "
            f"signal is wrong in all of them: it reads 100 % with ten pods at "
            f"{compare.percent(of(flat, HPA).full)} of their speed.")


def write(card=None):
    """(page, plot) as text."""
    card = card or measured.Card()
    jobs_s = card.full_rate / 1024
    all_traces = {name: traces.make(name, jobs_s) for name in traces.MAKERS}
    results = {name: [(label, compare.play(trace, card, maker, settings, traces.DAY))
                      for label, maker, settings in compare.contenders()]
               for name, trace in all_traces.items()}
    parts = [TOP.format(short=wrapped("**In short.** " + short_text(results)), slots=f"{card.slots:,}", threshold="20000")]
    for name, trace in all_traces.items():
        hours = sum(jobs * tokens for _, jobs, tokens in trace) / card.full_rate / 3600
        jobs = sum(jobs for _, jobs, _ in trace)
        parts.append(f"## {TITLES[name][0].upper() + TITLES[name][1:]}\n{jobs:,} jobs, {hours:.1f} GPU-hours of work at full "
                     f"speed.\n\n{compare.table(results[name])}\n\n{wrapped(TEXTS[name](results[name]))}\n")
    night = all_traces["nightly"]
    parts.append("## What lagThreshold costs\nThe nightly trace, ScaledJob. Fewer messages a pod: more pods, sooner "
                 "done, more starts.\n\n" + sweep_table(night, card) + "\n")
    parts.append("## What a start costs\nThe same trace where a GPU's node has to come first, and is paid until it "
                 "goes.\n\n" + node_table(night, card) + "\n")
    parts.append(MEASURED.format(
        curve=curve_text(card), workload=measured.WORKLOAD, card=card.name, date=card.date,
        raw=measured.RAW, share=f"{card.run_share:.3f}", full=card.full_rate, jobs_s=jobs_s,
        open=measured.OPEN_SECONDS, prefill=card.prefill_rows_s))
    busy = sum(of(r, HPA).busy_stops for r in results.values())
    parts.append(LEFT_OUT.format(hpa_busy=busy or "none", grain=GRAIN_NOTE))
    panels = [(TITLES[name], all_traces[name], results[name]) for name in all_traces]
    return "\n".join(parts), plot.draw(panels, card.full_rate, traces.DAY)
