"""The Go program (main.go): asks it, and keeps its records."""
import itertools
import json
import os
import pathlib
import subprocess
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROGRAM = ROOT / "build/keda/keda"
BINARY = pathlib.Path(os.environ.get("TRANCHE_BIN") or ROOT / "build/release/tranche").resolve()


class Keda:
    def __init__(self, folder, hpa_sync="3s"):
        assert PROGRAM.is_file(), f"{PROGRAM} is missing: tools/keda.sh builds it"
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.records, self.answers = folder, [], {}
        self.ids, self.news = itertools.count(1), threading.Condition()
        self.errors = open(folder / "stderr", "wb")
        self.process = subprocess.Popen(
            [str(PROGRAM), "-binary", str(BINARY), "-folder", str(folder), "-hpa-sync", hpa_sync],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True)
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self):
        for line in self.process.stdout:
            record = json.loads(line)
            with self.news:
                if record["event"] == "answer":
                    self.answers[record["id"]] = record
                else:
                    self.records.append(record)
                self.news.notify_all()

    def ask(self, do, **more):
        number = next(self.ids)
        self.process.stdin.write(json.dumps({"id": number, "do": do, **more}) + "\n")
        self.process.stdin.flush()
        with self.news:
            if not self.news.wait_for(lambda: number in self.answers, 120):
                raise AssertionError(f"{do}: no answer; {(self.folder / 'stderr').read_text()[-3000:]}")
        answer = self.answers[number]
        self.clock = answer["t"]
        if answer.get("error"):
            raise AssertionError(f"{do}: {answer['error']}")
        return answer["value"]

    def read(self, kind, metadata, auth=None):
        return self.ask("read", type=kind, metadata=metadata, auth=auth or {})

    def apply(self, documents, name="objects"):
        path = self.folder / f"{name}.json"
        path.write_text(json.dumps(documents))
        self.ask("apply", path=str(path))

    def seen(self, event, **like):
        with self.news:
            return [r for r in self.records if r["event"] == event
                    and all(r.get(k) == v for k, v in like.items())]

    def wait(self, condition, timeout_s, what):
        until = time.monotonic() + timeout_s
        while not condition():
            assert self.process.poll() is None, (self.folder / "stderr").read_text()[-3000:]
            assert time.monotonic() < until, f"not in {timeout_s} s: {what}; {self.records[-20:]}"
            time.sleep(0.1)

    def close(self):
        if self.process.poll() is None:
            self.process.stdin.close()
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.errors.close()
