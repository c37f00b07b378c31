"""The continuous observer, a process of its own: every 100 ms it asks the broker what is
acknowledged and then the database whether each of it has its terminal row NOW. It finds an ack before
its commit without a lucky kill (I4), a group's offset beyond the stored watermark, and either going
back (I5). It also writes down how the number of rows grew, from which recovery times come.

  observer.py CONFIG.json      until its standard input ends; then one last look, and the summary"""
import json
import select
import sys
import time

import psycopg2

from ledger import Tail
from queues import KafkaQueue, RedisQueue, redis_key

EVERY_S = 0.1
ROW = ("SELECT i FROM unnest(%s) AS k(i) WHERE NOT EXISTS (SELECT 1 FROM tranche.results r WHERE "
       "r.run = 'main' AND r.batch_id = %s AND r.custom_id = k.i) AND NOT EXISTS (SELECT 1 FROM "
       "tranche.dead_letters d WHERE d.run = 'main' AND d.custom_id = k.i)")


class Observer:
    def __init__(self, config):
        self.config = config
        self.queue = (RedisQueue if config["kind"] == "redis" else KafkaQueue)(*config["queue"])
        self.tail = Tail(config["ledger"])
        self.open = {}        # place -> id: promised, not yet seen acknowledged
        self.unchecked = []   # ids seen acknowledged while the database was away
        self.link = None
        self.committed, self.position = {}, {}
        self.first = {}       # the group's offsets before anything was written
        self.out = {"observations": 0, "acked": 0, "violations": [], "rows": [], "away": 0}

    def violation(self, text):
        if len(self.out["violations"]) < 20:
            self.out["violations"].append(text)

    def ask(self, query, values=()):
        if self.link is None or self.link.closed:
            self.link = psycopg2.connect(self.config["dsn"])
            self.link.autocommit = True
        with self.link.cursor() as cursor:
            cursor.execute(query, values)
            return cursor.fetchall()

    def newly_acknowledged(self):
        for job_id, place in self.tail.news():
            self.open[place if isinstance(place, str) else tuple(place)] = job_id
        if self.queue.kind == "redis":
            last, held = self.queue.acknowledged()
            last = redis_key(last)
            gone = [p for p in self.open if p not in held and redis_key(p) <= last]
        else:
            self.at = self.queue.acknowledged()
            for p, offset in self.at.items():
                before = self.committed.get(p)
                if before is not None and (offset is None or offset < before):
                    self.violation(f"I5: partition {p}: the group's offset fell from {before} to "
                                   f"{offset}")
                self.committed[p] = offset
                self.first.setdefault(p, offset)
            gone = [(p, o) for p, o in self.open if o < (self.at.get(p) or 0)]
        return [self.open.pop(p) for p in gone]

    def watermarks(self):
        """Read behind the group's offsets: none of them may lie beyond."""
        if self.queue.kind != "kafka":
            return
        now = dict(self.ask("SELECT partition, position FROM tranche.partition_progress WHERE "
                            "source = %s", ("kafka:" + self.queue.name,)))
        for p, offset in self.at.items():
            if offset and offset > now.get(p, 0) and offset != self.first.get(p):
                self.violation(f"I5: partition {p}: offset {offset} is beyond watermark {now.get(p)}")
        for p, position in self.position.items():
            if now.get(p, -1) < position:
                self.violation(f"I5: partition {p}: the watermark fell from {position} to "
                               f"{now.get(p)}")
        self.position = now

    def look(self):
        try:
            self.unchecked += self.newly_acknowledged()
        except Exception:  # the broker is away: the point of many a row
            self.out["away"] += 1
            return
        try:
            if self.unchecked:
                missing = self.ask(ROW, (self.unchecked, self.config["batch"]))
                for (job_id,) in missing:
                    self.violation(f"I4: {job_id} is acknowledged and has no row")
                self.out["acked"] += len(self.unchecked)
                self.unchecked = []
            self.watermarks()
            [(rows,)] = self.ask("SELECT coalesce(sum(rows_ok+rows_failed+rows_invalid+rows_expired+"
                                 "rows_cancelled+rows_dead+dead_letters), 0)::bigint "
                                 "FROM tranche.batches")
        except psycopg2.Error:
            self.link = None
            self.out["away"] += 1
            return
        self.out["observations"] += 1
        if not self.out["rows"] or self.out["rows"][-1][1] != rows:
            self.out["rows"].append([round(time.time(), 3), rows])

    def run(self):
        while True:
            start = time.monotonic()
            self.look()
            wait = max(0.0, EVERY_S - (time.monotonic() - start))
            if select.select([sys.stdin], [], [], wait)[0] and not sys.stdin.read(1):
                break
        self.look()
        with open(self.config["out"], "w") as f:
            json.dump(self.out, f)


if __name__ == "__main__":
    with open(sys.argv[1]) as source:
        Observer(json.load(source)).run()
