"""Pods over the day as an SVG: one panel a trace, the work that came in behind the lines."""

WIDTH, HEIGHT, GAP, LEFT, TOP = 420, 180, 56, 44, 70
INK, GREY, WORK = "#1b1f24", "#8c959f", "#d0d7de"
LINES = [("HPA on GPU use, 2 to 10 at 70 %", "#bc4c00", "HPA on GPU use"),
         ("pool on lag that shrinks", "#1a7f37", "pool on lag that shrinks"),
         ("ScaledJob on lag", "#0969da", "ScaledJob on lag")]
BIN = 1800


def text(x, y, content, size=11, anchor="middle", colour=INK):
    return (f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" '
            f'fill="{colour}">{content}</text>')


def work(trace, full_rate, end):
    """GPUs that would do, half hour by half hour, what came in then."""
    bins = [0.0] * (int(end) // BIN + 1)
    for second, jobs, tokens in trace:
        bins[int(second) // BIN] += jobs * tokens / full_rate / BIN
    return bins


def panel(x0, y0, title, trace, results, full_rate, day):
    most = 10.5

    def x(t):
        return x0 + WIDTH * min(t, day) / day

    def y(pods):
        return y0 + HEIGHT * (1 - pods / most)

    out = [text(x0, y0 - 8, title, 13, "start")]
    for pods in (0, 2, 4, 6, 8, 10):
        out.append(f'<line x1="{x0}" x2="{x0 + WIDTH}" y1="{y(pods):.1f}" y2="{y(pods):.1f}" '
                   f'stroke="{GREY}" stroke-opacity="0.25"/>')
        out.append(text(x0 - 6, y(pods) + 4, str(pods), anchor="end"))
    for hour in range(0, 25, 4):
        out.append(text(x(hour * 3600), y0 + HEIGHT + 16, f"{hour:02d}:00"))
    for i, gpus in enumerate(work(trace, full_rate, day)):
        if gpus > 0 and i * BIN < day:
            out.append(f'<rect x="{x(i * BIN):.1f}" width="{WIDTH * BIN / day:.1f}" y="{y(gpus):.1f}" '
                       f'height="{y(0) - y(gpus):.1f}" fill="{WORK}"/>')
    by_name = dict(results)
    for name, colour, _ in LINES:
        points, pods = [f"{x0:.1f},{y(0):.1f}"], 0
        for t, now in by_name[name].curve:
            if now != pods and t < day:
                points += [f"{x(t):.1f},{y(pods):.1f}", f"{x(t):.1f},{y(now):.1f}"]
                pods = now
        points.append(f"{x(day):.1f},{y(pods):.1f}")
        out.append(f'<polyline points="{" ".join(points)}" fill="none" stroke="{colour}" '
                   'stroke-width="1.6" stroke-linejoin="round"/>')
    return out


def draw(panels, full_rate, day):
    """`panels`: (title, trace, results) each."""
    rows = (len(panels) + 1) // 2
    total, height = LEFT + 2 * WIDTH + GAP + 24, TOP + rows * (HEIGHT + GAP) + 4
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{total}" height="{height}" '
           f'viewBox="0 0 {total} {height}" font-family="sans-serif">',
           f'<rect width="{total}" height="{height}" fill="#ffffff"/>',
           text(LEFT, 20, "Pods that hold a GPU, over a day", 14, "start")]
    at = LEFT
    for _, colour, label in LINES:
        out.append(f'<line x1="{at}" x2="{at + 24}" y1="38" y2="38" stroke="{colour}" stroke-width="2"/>')
        out.append(text(at + 30, 42, label, anchor="start"))
        at += 190
    out.append(f'<rect x="{at}" y="32" width="24" height="12" fill="{WORK}"/>')
    out.append(text(at + 30, 42, "work that came, in full GPUs", anchor="start"))
    for i, (title, trace, results) in enumerate(panels):
        out += panel(LEFT + i % 2 * (WIDTH + GAP), TOP + i // 2 * (HEIGHT + GAP), title, trace, results,
                     full_rate, day)
    return "\n".join(out + ["</svg>"]) + "\n"
