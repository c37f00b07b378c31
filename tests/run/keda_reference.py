"""What KEDA 2.20.2 would read and decide, written again from its rules and small enough to check.

Kafka: its `kafka` scaler; Redis: `redis-streams` with a group (lag, or pending entries). Then what
it makes of a value: Jobs for a ScaledJob, and the HPA's replicas behind a ScaledObject.
tests/keda runs KEDA's own code on the same states and compares.
"""
import collections
import dataclasses
import math
import re
import threading
import time
import urllib.request

import confluent_kafka

# metric: what goes to the HPA or into the number of Jobs; active: whether anything is wanted at all.
Reading = collections.namedtuple("Reading", "metric active")
# committed: None where the group has no position; end: behind the last message or marker.
Partition = collections.namedtuple("Partition", "committed end")
# As in the manifests of k8s/keda: a value that is true one poll later is true when KEDA looks.
POLLING_S = 30


@dataclasses.dataclass(frozen=True)
class KafkaTrigger:
    threshold: int = 10
    activation: int = 0
    earliest: bool = False           # offsetResetPolicy; KEDA's default is latest
    allow_idle: bool = False         # allowIdleConsumers
    with_lag_only: bool = False      # limitToPartitionsWithLag
    even: bool = False               # ensureEvenDistributionOfPartitions
    zero_on_invalid: bool = False    # scaleToZeroOnInvalidOffset

    def __post_init__(self):
        if self.threshold <= 0 or self.activation < 0:
            raise ValueError("lagThreshold > 0, activationLagThreshold >= 0")
        if self.with_lag_only and (self.allow_idle or self.even):
            raise ValueError("limitToPartitionsWithLag excludes the other two")

    def lag(self, partition):
        if partition.committed is None:
            if self.zero_on_invalid:
                return 0
            # What retention has deleted counts too: no start of the log is asked for.
            return partition.end if self.earliest else 1
        return partition.end - partition.committed

    def read(self, partitions):
        lags = [self.lag(p) for p in partitions]
        total = metric = sum(lags)
        if not self.allow_idle or self.even:
            bound = len(lags)
            if self.even:
                fit = [f for f in range(1, bound + 1) if bound % f == 0 and f * self.threshold >= total]
                metric = (fit[0] if fit else bound) * self.threshold
            if self.with_lag_only:
                bound = sum(lag > 0 for lag in lags)
            if metric // self.threshold > bound:
                metric = bound * self.threshold
        return Reading(max(metric, 0), total > self.activation)


class KafkaLag:
    """Asks as the scaler does: the group's offsets, and the ends with open transactions in them."""

    def __init__(self, address, topic, group, trigger=KafkaTrigger(earliest=True, with_lag_only=True)):
        self.topic, self.trigger = topic, trigger
        self.client = confluent_kafka.Consumer({
            "bootstrap.servers": address, "group.id": group, "isolation.level": "read_uncommitted",
            "enable.auto.commit": False, "allow.auto.create.topics": False, "log_level": 0})

    def partitions(self):
        found = self.client.list_topics(self.topic, timeout=20).topics[self.topic]
        if found.error:
            raise confluent_kafka.KafkaException(found.error)
        places = [confluent_kafka.TopicPartition(self.topic, p) for p in sorted(found.partitions)]
        out = []
        for place in self.client.committed(places, timeout=20):
            if place.error:
                raise confluent_kafka.KafkaException(place.error)
            end = self.client.get_watermark_offsets(place, timeout=20)[1]
            out.append(Partition(place.offset if place.offset >= 0 else None, end))
        return out

    def read(self):
        return self.trigger.read(self.partitions())

    def close(self):
        self.client.close()


class RedisLag:
    """mode "lag" (lagCount is set) or "pending" (it is not); one reading is one trigger's."""

    def __init__(self, client, stream, group, mode, activation=0):
        self.client, self.stream, self.group = client, stream, group
        self.mode, self.activation = mode, activation
        self.nulls = 0               # lags that Redis did not know

    def count(self):
        if self.mode == "pending":   # raises where there is no group, as KEDA's poll fails
            return self.client.xpending(self.stream, self.group)["pending"]
        if int(self.client.info()["redis_version"].split(".")[0]) < 7:
            raise ValueError("want Redis 7 for a group's lag")
        if not self.client.exists(self.stream):
            return 0
        for group in self.client.xinfo_groups(self.stream):
            if group["name"] == self.group:
                self.nulls += group["lag"] is None
                return -1 if group["lag"] is None else group["lag"]
        return self.client.xlen(self.stream)

    def read(self):
        n = self.count()
        return Reading(max(n, 0), n > self.activation)


def scaled_job(queue, running, pending, target, most, strategy="default"):
    """Jobs that one poll creates. queue: the metric, or the active triggers' sum; minReplicaCount 0."""
    wanted = math.ceil(min(queue / target, most))
    if strategy == "default":
        made = wanted - running
    elif strategy == "accurate":
        made = most - running if wanted + running - pending > most else wanted - pending
    else:
        made = min(most - running - pending, wanted)
    return max(min(made, most if strategy == "eager" else math.ceil(queue)), 0)


def hpa(metric, replicas, target, most, down=False):
    """Replicas that the HPA wants of an AverageValue target; from zero and to zero is KEDA's own.
    down: whether its behavior lets it scale down (ours does not)."""
    if replicas == 0:
        return 0
    share = metric / (target * replicas)
    wanted = replicas if abs(share - 1) <= 0.1 else max(math.ceil(metric / target), 1)
    wanted = min(wanted, max(2 * replicas, replicas + 4), most)  # default policies of a behavior
    return wanted if down else max(wanted, replicas)


# moment: between the asking and the answer; lag: as KEDA has it; left: messages whose row is not
# there, asked behind the lag, so that a lag of zero with left > 0 is one that KEDA could act upon.
Sample = collections.namedtuple("Sample", "moment lag active left")


class Watch(threading.Thread):
    """Polls without a pause to speak of; read() -> (lag, active), left(promised) -> messages."""

    def __init__(self, read, left, pause_s=0.05):
        super().__init__(daemon=True)
        self.read, self.left, self.pause_s = read, left, pause_s
        self.promised = 0            # messages that the broker has; raised only behind the sending
        self.samples, self.error = [], None
        self.deaths = []             # when the test killed or started somebody
        self.over = threading.Event()

    def run(self):
        try:
            while not self.over.wait(self.pause_s):
                promised = self.promised
                lag, active = self.read()
                moment = time.monotonic()
                self.samples.append(Sample(moment, lag, active, self.left(promised)))
        except Exception as e:  # what KEDA would call a failed poll; the test's thread tells it
            self.error = e

    def wait_zero(self, timeout_s):
        until = time.monotonic() + timeout_s
        while not (self.samples and self.samples[-1].lag == 0 == self.samples[-1].left):
            assert self.error is None, repr(self.error)
            assert time.monotonic() < until, f"not zero in {timeout_s} s: {self.samples[-3:]}"
            time.sleep(0.05)

    def end(self):
        self.over.set()
        self.join(60)
        assert not self.is_alive() and self.error is None, repr(self.error)

    def never_less_than_what_is_left(self):
        for s in self.samples:
            assert s.lag >= s.left and s.active == (s.lag > 0), s

    def disturbed(self):
        self.deaths.append(time.monotonic())

    def late_s(self):
        """The longest that a value was more than what was left at any moment of the time before,
        not counting how long workers were being killed."""
        worst, after = 0.0, 0
        for i, s in enumerate(self.samples):
            # From the newest back to the first that explains it.
            back = next((j for j in range(i, -1, -1) if self.samples[j].left >= s.lag), None)
            if back is None:         # sent and not yet counted as promised
                after += 1
                continue
            calm = max((d for d in self.deaths if d <= s.moment), default=0)
            worst = max(worst, s.moment - max(self.samples[back].moment, calm))
        assert after < len(self.samples) / 4, f"{after} of {len(self.samples)} were never true"
        return worst

    def agrees_with(self, seen, within_s=POLLING_S / 3):
        """seen: (moment, a gauge's value); each lies among our values of about the same time."""
        between = 0
        for moment, value in seen:
            near = [s.lag for s in self.samples if abs(s.moment - moment) < within_s]
            assert near and min(near) <= value <= max(near), (value, near)
            between += 0 < value < max(s.lag for s in self.samples)
        assert between > 5, "read while work was being done"


class Gauge:
    """tranche_source_lag_messages of a worker, found by its log; None while it does not know."""

    def __init__(self, log):
        until = time.monotonic() + 60
        while "event=http_listening" not in log():
            assert time.monotonic() < until, log()[-3000:]
            time.sleep(0.05)
        self.port = int(re.search(r"http_listening host=\S+ port=(\d+)", log())[1])

    def read(self, name="source_lag_messages"):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=60) as answer:
            found = re.search(rf"^tranche_{name} (\d+)$", answer.read().decode(), re.M)
        return int(found[1]) if found else None

    def follow(self, over, timeout_s=240):
        """[(moment, value)] until over() and the gauge says zero."""
        seen, until = [], time.monotonic() + timeout_s
        while not (seen and seen[-1][1] == 0 and over()):
            assert time.monotonic() < until, seen[-5:]
            value = self.read()
            if value is not None:
                seen.append((time.monotonic(), value))
            time.sleep(0.1)
        return seen
