"""docs/performance.svg is what tools/performance_plot.py draws from the raw output that it names."""
import json
import subprocess
import sys
import xml.etree.ElementTree as xml

RAW = "tests/bench/results/2026-11-27-h200-whole.json"


def draw(root, source, out):
    return subprocess.run([sys.executable, root / "tools/performance_plot.py", source, out],
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=60)


def test_the_plot_follows_from_the_figures(root, tmp_path):
    out = tmp_path / "p.svg"
    assert draw(root, root / RAW, out).returncode == 0
    assert out.read_text() == (root / "docs/performance.svg").read_text()
    points = json.loads((root / RAW).read_text())["slots"]
    circles = xml.parse(out).getroot().findall("{http://www.w3.org/2000/svg}circle")
    assert len(circles) == len(points) == 21


def test_a_document_without_a_sweep_is_told(root, tmp_path):
    (tmp_path / "b.json").write_text('{"runs": []}')
    process = draw(root, tmp_path / "b.json", tmp_path / "p.svg")
    assert process.returncode != 0 and b"no sweep of slots" in process.stderr
