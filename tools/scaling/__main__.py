"""Scaling of GPU workers, simulated.

  python3 tools/scaling page [FOLDER]        write scaling.md and scaling.svg (FOLDER: docs)
  python3 tools/scaling replay FILE.csv ...  the table for arrivals of your own

Standard library only; the same input gives the same bytes."""

import argparse
import pathlib
import sys

import compare
import measured
import page
import traces


def write_page(options):
    text, svg = page.write()
    folder = pathlib.Path(options.folder)
    (folder / "scaling.md").write_text(text, encoding="utf-8")
    (folder / "scaling.svg").write_text(svg, encoding="utf-8")


def replay(options):
    card = measured.Card()
    trace = traces.read(options.file)
    rows = []
    for name, maker, settings in compare.contenders(options.lag_threshold, options.most):
        settings = dict(settings, pod_start=options.pod_start, node_start=options.node_start)
        rows.append((name, compare.play(trace, card, maker, settings, options.seconds)))
    print(compare.table(rows))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("page", help="write scaling.md and scaling.svg")
    command.add_argument("folder", nargs="?", default=measured.ROOT / "docs")
    command.set_defaults(run=write_page)
    command = commands.add_parser("replay", help="the table for arrivals in a file")
    command.add_argument("file", help="lines second,jobs,tokens")
    command.add_argument("--lag-threshold", type=int, default=20000)
    command.add_argument("--most", type=int, default=10, help="pods at most (10)")
    command.add_argument("--pod-start", type=float, default=10.0, help="seconds from bound to exec (10)")
    command.add_argument("--node-start", type=float, default=0.0,
                         help="seconds until a GPU's node is there; 0: it is (0)")
    command.add_argument("--seconds", type=float, default=0.0,
                         help="count at least so long, though the last row was earlier (0)")
    command.set_defaults(run=replay)
    options = parser.parse_args()
    try:
        options.run(options)
    except (traces.TraceError, OSError) as error:
        sys.exit(f"scaling: {error}")


if __name__ == "__main__":
    main()
