"""KEDA's own code beside real servers and real workers. `make test-keda` builds what this needs."""
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
for folder in ("tests/run", "tests/faults", "tests/k8s"):
    sys.path.insert(0, str(ROOT / folder))
