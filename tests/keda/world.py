"""Our rendered manifests made to fit one small machine, and what is measured while KEDA scales them."""
import json
import pathlib
import subprocess
import time

import manifests
from keda import BINARY, ROOT, Keda

RECORDS = ROOT / "build/keda/records"
# What a pod's settings need here; everything else of tranche.conf stays as the manifest has it.
CONF = {"engine": "sim", "sim-step": "100ms", "sim-tokens": "8", "slots": "8", "claim-rows": "100",
        "flush-interval": "200ms", "idle-exit": "4s", "grace": "20s"}
DROPPED = ("model", "device", "db-password-file")


def settings(text, **values):
    """tranche.conf with these values; dashes for underscores."""
    values = {**CONF, **{k.replace("_", "-"): v for k, v in values.items()}}
    lines, changes = [], []
    for line in text.splitlines():
        name = line.split("=")[0].strip()
        if name in DROPPED:
            changes.append((name, line.split("=", 1)[1].strip(), "left out"))
        elif name in values:
            changes.append((name, line.split("=", 1)[1].strip(), values[name]))
            lines.append(f"{name} = {values.pop(name)}")
        else:
            lines.append(line)
    changes += [(name, "not set", value) for name, value in values.items()]
    return "\n".join(lines + [f"{k} = {v}" for k, v in values.items()]) + "\n", changes


class World:
    """One overlay over one queue and one database; its records become a part of docs/keda-proof.md."""

    def __init__(self, name, overlay, folder, kind):
        self.name, self.overlay, self.folder = name, overlay, folder
        self.documents = manifests.render(f"keda/overlays/{overlay}")
        self.kind, self.changes, self.notes = kind, [], []
        self.scaled = self.one(kind)
        self.keda = Keda(folder / "keda")
        self.keda.ask("state")
        self.timeline, self.begun = [], time.monotonic() - self.keda.clock  # one clock for both

    def one(self, kind, name=None):
        found = [d for d in self.documents if d["kind"] == kind
                 and name in (None, d["metadata"]["name"])]
        assert len(found) == 1, (kind, name, len(found))
        return found[0]

    def change(self, where, values, what=""):
        """Sets values[name] in a mapping of a manifest, on record."""
        for key, value in values.items():
            self.changes.append((f"{what}{key}", where.get(key, "not set"), value))
            where[key] = value

    def configure(self, broker_conf, changed, **values):
        """changed: (there, here) of broker.conf."""
        data = self.one("ConfigMap", "tranche")["data"]
        data["tranche.conf"], changes = settings(data["tranche.conf"], **values)
        self.changes += [(f"tranche.conf: {n}", a, b) for n, a, b in changes]
        self.changes.append(("broker.conf", *changed))
        data["broker.conf"] = broker_conf

    def secret(self, name, **data):
        self.documents.append({"apiVersion": "v1", "kind": "Secret", "stringData": data, "metadata": {
            "name": name, "namespace": "tranche"}})

    def apply(self, name="objects"):
        self.keda.apply(self.documents, name)

    def note(self, text):
        self.notes.append((time.monotonic() - self.begun, text))

    def state(self):
        return self.keda.ask("state")

    def stops(self):
        return self.keda.seen("pod_stopped")

    def unfinished_deleted(self):
        return self.keda.seen("deleted", kind="*v1.Job", finished=False)

    def save(self, title, text, facts):
        RECORDS.mkdir(parents=True, exist_ok=True)
        (RECORDS / f"{self.name}.json").write_text(json.dumps({
            "title": title, "text": text, "overlay": self.overlay, "facts": facts,
            "changes": self.changes, "notes": self.notes, "timeline": self.timeline,
            "records": self.keda.records}, indent=1))

    def watch(self, measure, until, timeout_s, what):
        """Fills the timeline with measure() until until() holds."""
        end = time.monotonic() + timeout_s
        while not until():
            assert time.monotonic() < end, f"not in {timeout_s} s: {what}; {self.timeline[-3:]}; " \
                f"{[r for r in self.keda.records if 'error' in r['event']][-5:]}"
            point = measure()
            if not self.timeline or self.timeline[-1][1:] != point:
                self.timeline.append([time.monotonic() - self.begun, *point])
            time.sleep(0.3)


def tranche(folder, *words):
    done = subprocess.run([str(BINARY), *map(str, words)], cwd=folder, capture_output=True, timeout=180)
    assert done.returncode == 0, done.stderr.decode()[-3000:]
    return done


def jobs_file(folder, n, first):
    path = pathlib.Path(folder) / f"jobs-{first}.jsonl"
    path.write_text("".join(json.dumps({"id": f"j{i}", "prompt": f"number {i}"}) + "\n"
                            for i in range(first, first + n)))
    return path
