"""What was promised: a job is in the ledger once its broker has acknowledged it, and not before.

Each line is [id, place]: place is "ms-seq" of a Redis stream or [partition, offset] of a topic. Lines
are fsynced, so that a ledger outlives its producer as a broker's promise does. What was sent without
an answer stands in a second file: such a job may have a row and need not."""
import json
import os


class Ledger:
    def __init__(self, path):
        self.path = str(path)
        self.promised = {}     # id -> list of places
        self.sent = set()
        self.promises = open(self.path, "ab")
        self.attempts = open(self.path + ".sent", "ab")

    def intend(self, ids):
        self.sent.update(ids)
        self.attempts.write(("\n".join(ids) + "\n").encode())
        self.attempts.flush()
        os.fsync(self.attempts.fileno())

    def promise(self, pairs):
        """pairs: (id, place), acknowledged."""
        for job_id, place in pairs:
            self.promised.setdefault(job_id, []).append(place)
        self.promises.write("".join(json.dumps(list(p)) + "\n" for p in pairs).encode())
        self.promises.flush()
        os.fsync(self.promises.fileno())

    def close(self):
        self.promises.close()
        self.attempts.close()


class Tail:
    """Reads what was added to a ledger since the last look."""

    def __init__(self, path):
        self.file = open(path, "rb")
        self.rest = b""

    def news(self):
        *lines, self.rest = (self.rest + self.file.read()).split(b"\n")
        return [json.loads(line) for line in lines]
