"""The figures that the model of a pod rests on: read from the raw output of a run on a GPU that is
committed, or quoted from SPEED.md (a test looks for the quote there). Nothing here is a guess; what
has to be assumed stands in model.py as an option with its default."""

import bisect
import json
import pathlib

ROOT = pathlib.Path(__file__).resolve().parents[2]
RAW = "tests/bench/results/2026-11-26-h100-w1-steps.json"
WORKLOAD = "W2"
# Where the page says that a figure comes from: this row of SPEED.md, word for word.
SPEED_OPEN = ("engine open in all, first start / plans cached", "H100 1.3-1.7 / 0.76-0.82")
OPEN_SECONDS = 1.7
PROMPT_TOKENS = 512


class Card:
    """One GPU's speed with n sequences at once."""

    def __init__(self, path=ROOT / RAW):
        with open(path, encoding="utf-8") as f:
            bench = json.load(f)
        points = {p["point"]: p for p in bench["slots"]}
        sweep = sorted((p["slots"], p["ms"]) for p in bench["slots"] if p["workload"] == WORKLOAD)
        self.name, self.date = bench["device"], bench["date"][:10]
        self.counts = [slots for slots, _ in sweep]
        self.step_ms = [ms for _, ms in sweep]
        self.slots = self.counts[-1]
        # A whole run in its steady state is slower than its steps one after another.
        run = next(r for r in bench["runs"] if r["workload"] == "W1")
        self.run_share = run["out_tok_s_steady"] / points["W1-1408"]["out_tok_s"]
        # Rows of prompt and of answers pass a step at one price: what a prefill of rows costs.
        full = next(s for s in bench["steps"] if s["step"] == "W1-1408")
        self.prefill_rows_s = 1000 * (full["decodes"] + full["prompt_rows"]) / full["ms"] * self.run_share

    def sequence_rate(self, n):
        """Tokens a second of each of n sequences: step time between measured counts is a line."""
        if n <= 0:
            return 0.0
        i = min(max(bisect.bisect_left(self.counts, n), 1), len(self.counts) - 1)
        (a, b), (x, y) = self.counts[i - 1:i + 1], self.step_ms[i - 1:i + 1]
        ms = x + (y - x) * (n - a) / (b - a)
        return 1000 / ms * self.run_share

    @property
    def full_rate(self):
        """Tokens a second of a pod whose slots are all taken."""
        return self.slots * self.sequence_rate(self.slots)
