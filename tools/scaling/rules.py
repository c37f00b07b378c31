"""What KEDA and the HorizontalPodAutoscaler compute, as pure functions of what they read.

KEDA 2.20: the Kafka scaler's lag and cap, ScaledJob's strategies. HPA: autoscaling/v2 as Kubernetes
1.31+ documents it. tests/run/test_scaling.py holds these against vectors worked out by hand from
KEDA's source."""

import math


def kafka_metric(lags, threshold, limit_to_lagging=False, ensure_even=False):
    """The value that KEDA's Kafka trigger reports for one lag a partition: the sum, cut so that
    value / threshold is no more than the partitions (that lag) can feed."""
    total = sum(lags)
    if ensure_even:
        pods = max(1, -(-total // threshold))
        divisors = [d for d in range(1, len(lags) + 1) if len(lags) % d == 0 and d >= pods]
        return (divisors[0] if divisors else len(lags)) * threshold
    bound = sum(1 for lag in lags if lag > 0) if limit_to_lagging else len(lags)
    return bound * threshold if total // threshold > bound else total


def jobs_wanted(queue, target, most, least=0):
    """ScaledJob: how many Jobs this much work asks for."""
    return math.ceil(min(queue / target, most - least))


def jobs_to_start(queue, target, most, running, pending=0, strategy="default"):
    """ScaledJob: Jobs made at this poll. `running` are those without an end, `pending` those of them
    without a pod that runs."""
    wanted = jobs_wanted(queue, target, most)
    if strategy == "accurate":
        made = min(wanted - pending, most - running)
    elif strategy == "eager":
        made = min(most - running - pending, wanted)
    else:
        made = wanted - running
    return max(0, made)


def hpa_total(value, target, replicas, tolerance=0.1):
    """HPA, type External with AverageValue (what KEDA makes): replicas wanted."""
    if replicas and abs(1 - value / (target * replicas)) <= tolerance:
        return replicas
    return math.ceil(value / target)


def hpa_each(values, target, replicas, starting=0, missing=0, tolerance=0.1):
    """HPA, type Pods with AverageValue: replicas wanted. `values` are of pods that report, `starting`
    pods are pending, `missing` ones run and report nothing yet: both count as idle where the rest
    asks for more, and the missing ones as on target where it asks for less."""
    if not values:
        return replicas
    ratio = sum(values) / len(values) / target
    known = list(values)
    if starting and ratio > 1:
        known += [0.0] * starting
    if missing:
        known += [target if ratio < 1 else 0.0] * missing
    again = sum(known) / len(known) / target
    if abs(1 - again) <= tolerance or (again - 1) * (ratio - 1) < 0:
        return replicas
    wanted = math.ceil(round(again * len(known), 9))
    return replicas if (wanted - replicas) * (again - 1) < 0 else wanted


class Behaviour:
    """HPA's behaviour: up at once, by at most 4 pods or as many again in 15 s; down to the highest
    wish of the last `window` seconds, or never (selectPolicy Disabled)."""

    def __init__(self, least, most, window=300.0, down=True):
        self.least, self.most, self.window, self.down = least, most, window, down
        self.wishes, self.rises = [], []

    def decide(self, now, replicas, wanted):
        """Replicas after this sync."""
        self.wishes = [(t, w) for t, w in self.wishes if t > now - self.window]
        self.wishes.append((now, wanted))
        if wanted < replicas:
            wanted = min(replicas, max(w for _, w in self.wishes))
        if wanted > replicas:
            self.rises = [(t, n) for t, n in self.rises if t > now - 15]
            before = replicas - sum(n for _, n in self.rises)
            limit = max(before + 4, 2 * before, replicas)
            wanted = min(wanted, limit)
        elif not self.down:
            wanted = replicas
        wanted = min(max(wanted, self.least), self.most)
        if wanted > replicas:
            self.rises.append((now, wanted - replicas))
        return wanted
