#!/usr/bin/env python3
"""Draws docs/performance.svg from a JSON document of `tranche bench` on a GPU: tokens a second over
slots, one panel a workload: measured steps of the steady state, beside the roofline for that many
slots and the one at 2,048 rows.

  performance_plot.py BENCH.json OUT.svg

Standard library only."""

import json
import math
import sys

WIDTH, HEIGHT, GAP, LEFT, TOP, BOTTOM = 300, 260, 56, 64, 56, 58
INK, GREY, MEASURED, ROOF = "#1b1f24", "#8c959f", "#0969da", "#bc4c00"
TITLES = {
    "W1": "W1: 128 in, 128 out",
    "W2": "W2: 512 in, lognormal out, mean 1024",
    "W3": "W3: 1000 shared + 100 in, 64 out",
}


def text(x, y, content, size=11, anchor="middle", colour=INK, extra=""):
    return (f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" '
            f'fill="{colour}"{extra}>{content}</text>')


def line(points, colour, dash=""):
    at = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    return f'<polyline points="{at}" fill="none" stroke="{colour}" stroke-width="2"{dashes}/>'


def panel(x0, name, points, most):
    """One workload: log of slots across, thousands of tokens a second up."""
    out = []

    def x(slots):
        return x0 + WIDTH * math.log2(slots) / math.log2(2048)

    def y(rate):
        return TOP + HEIGHT * (1 - rate / most)

    for slots in (1, 4, 16, 64, 256, 1024):
        out.append(f'<line x1="{x(slots):.1f}" x2="{x(slots):.1f}" y1="{TOP}" y2="{TOP + HEIGHT}" '
                   f'stroke="{GREY}" stroke-opacity="0.25"/>')
        out.append(text(x(slots), TOP + HEIGHT + 16, str(slots)))
    for rate in range(0, int(most) + 1, 20000):
        out.append(f'<line x1="{x0}" x2="{x0 + WIDTH}" y1="{y(rate):.1f}" y2="{y(rate):.1f}" '
                   f'stroke="{GREY}" stroke-opacity="0.25"/>')
        out.append(text(x0 - 6, y(rate) + 4, f"{rate // 1000}k", anchor="end"))
    out.append(text(x0 + WIDTH / 2, TOP - 12, TITLES.get(name, name), size=13))
    out.append(text(x0 + WIDTH / 2, TOP + HEIGHT + 34, "slots", colour=GREY))
    flat = points[0]["r_seq_tok_s"]
    out.append(line([(x0, y(flat)), (x0 + WIDTH, y(flat))], ROOF, "2 4"))
    out.append(line([(x(p["slots"]), y(p["r_seq_tok_s_at_slots"])) for p in points], ROOF, "6 3"))
    out.append(line([(x(p["slots"]), y(p["out_tok_s"])) for p in points], MEASURED))
    for p in points:
        share = 100 * p["out_tok_s"] / p["r_seq_tok_s_at_slots"]
        out.append(f'<circle cx="{x(p["slots"]):.1f}" cy="{y(p["out_tok_s"]):.1f}" r="3.5" '
                   f'fill="{MEASURED}"><title>{p["slots"]} slots: {p["out_tok_s"]:.0f} tok/s, '
                   f'{share:.0f} % of the roofline</title></circle>')
    last = points[-1]
    out.append(text(x(last["slots"]) - 4, y(last["out_tok_s"]) + 18,
                    f'{last["out_tok_s"] / 1000:.0f}k', anchor="end", colour=MEASURED))
    return out


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    with open(sys.argv[1]) as f:
        bench = json.load(f)
    panels = {}
    for point in bench.get("slots", []):
        panels.setdefault(point["workload"], []).append(point)
    if not panels:
        sys.exit(f"{sys.argv[1]}: no sweep of slots in it (bench --workloads steps)")
    most = 1.08 * max(p["r_seq_tok_s"] for points in panels.values() for p in points)
    total = LEFT + len(panels) * WIDTH + (len(panels) - 1) * GAP + 16
    height = TOP + HEIGHT + BOTTOM + 22
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{total}" height="{height}" '
           f'viewBox="0 0 {total} {height}" font-family="sans-serif">',
           f'<rect width="{total}" height="{height}" fill="#ffffff"/>']
    for i, (name, points) in enumerate(panels.items()):
        out += panel(LEFT + i * (WIDTH + GAP), name, sorted(points, key=lambda p: p["slots"]), most)
    ceilings = bench["ceilings"]
    out.append(text(LEFT, 20, f'{bench["device"]}, {bench["date"][:10]}: tokens out a second '
                    f'(copy {ceilings["copy_TBps"]:.2f} TB/s, bf16 8192^3 '
                    f'{ceilings["bf16_TFLOPs"]:.0f} TFLOP/s)', size=13, anchor="start"))
    y = height - 14
    for x, colour, dash, what in ((LEFT, MEASURED, "", "steps of the steady state, measured"),
                                  (LEFT + 280, ROOF, "6 3", "roofline with that many rows a step"),
                                  (LEFT + 560, ROOF, "2 4", "roofline at 2,048 rows (R_seq)")):
        out.append(line([(x, y - 4), (x + 28, y - 4)], colour, dash))
        out.append(text(x + 34, y, what, anchor="start"))
    out.append("</svg>")
    with open(sys.argv[2], "w") as f:
        f.write("\n".join(out) + "\n")


if __name__ == "__main__":
    main()
