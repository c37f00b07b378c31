"""A model of workers on GPUs and of the queue that they share, driven by events.

A job waits in the queue, is claimed by a pod that has room, waits there for a slot, and runs at the
speed that the measured card has with so many sequences at once. A pod holds its GPU from the moment
it exists until it is gone. Scalers (scalers.py) look at the model and start or stop pods."""

import collections
import heapq
import math

import measured

WORK, READY, GONE, IDLE, TICK, SAMPLE = range(6)
SAMPLE_S, USE_SAMPLES = 15.0, 4   # how often a GPU's use is told, and over how many of these
STUCK_S = 7200.0                  # work and no row for so long: the scaler is broken


class Settings:
    """What is assumed about the cluster and set in the manifests."""

    def __init__(self, **other):
        self.claim_rows = 16384         # --claim-rows: what a worker holds, waiting ones included
        self.pod_start = 10.0           # assumed: bound to a node until exec, its image there
        self.node_start = 0.0           # assumed: until a GPU's node is there; 0: it is
        self.node_keep = 600.0          # cluster-autoscaler keeps an empty node so long
        self.open_seconds = measured.OPEN_SECONDS
        self.prompt_tokens = measured.PROMPT_TOKENS
        self.grace = 280.0              # --grace of k8s/common
        self.parks = True               # a stopped pod parks what does not fit the grace
        self.idle_exit = 120.0          # --idle-exit of k8s/common
        for name, value in other.items():
            if not hasattr(self, name):
                raise TypeError(f"no setting {name}")
            setattr(self, name, value)


class Job:
    """`jobs` jobs of one length that came together."""

    __slots__ = ("arrived", "jobs", "tokens", "left", "began")

    def __init__(self, arrived, jobs, tokens):
        self.arrived, self.jobs, self.tokens = arrived, jobs, tokens
        self.left, self.began = tokens, None


class Pod:
    """One worker with one GPU."""

    __slots__ = ("number", "created", "at_node", "exec", "ready", "stopping", "gone", "n", "running",
                 "waiting", "held", "clock", "seen", "rate", "busy", "version", "deadline", "job",
                 "area", "areas", "use", "idle_since")

    def __init__(self, number, created, at_node, starts, job):
        self.number, self.created, self.at_node, self.job = number, created, at_node, job
        self.exec, self.ready = starts, False
        self.stopping = self.gone = self.deadline = self.idle_since = self.use = None
        self.n = self.held = self.version = 0
        self.running, self.waiting, self.areas = [], collections.deque(), [(starts, 0.0)]
        self.clock = self.rate = self.busy = self.area = 0.0
        self.seen = created

    def advance(self, now):
        """Every sequence that runs has gone on by the same tokens."""
        if self.n:
            self.clock += (now - self.seen) * self.rate
            self.area += (now - self.seen) * self.n
        self.seen = now

    def sample(self, now):
        """Says the share of the last minute in which a kernel ran. The jobs of one entry begin
        together here, in truth one after another: so it is the chance that of the mean number at
        once (Poisson) at least one runs."""
        self.advance(now)
        if now <= self.exec:
            return
        at, area = self.areas[0]
        use = 1 - math.exp((area - self.area) / (now - at))
        self.busy += use * (now - self.areas[-1][0])
        self.areas = self.areas[1 - USE_SAMPLES:] + [(now, self.area)]
        self.use = use


class Sim:
    """One trace through one scaler. `run` returns a Result."""

    def __init__(self, trace, scaler, card, settings=None):
        self.trace, self.scaler, self.card = trace, scaler, card
        self.set = settings or Settings()
        self.rates = {}
        self.events, self.order, self.now = [], 0, 0.0
        self.queue, self.pods, self.takers, self.turn = collections.deque(), [], [], 0
        self.unfinished = 0
        self.last_row = 0.0
        self.idle_nodes, self.nodes_s, self.ended = [], 0.0, []
        self.begin_delays, self.row_delays = [], []
        self.tokens = self.lost_tokens = self.parked_tokens = 0
        self.stops = self.busy_stops = self.made = self.most = 0
        self.curve = []

    # What scalers see.
    def live(self):
        """Pods that nobody has asked to leave."""
        return [p for p in self.pods if p.stopping is None]

    # What scalers do.
    def start(self, count, job=False):
        """Starts pods; `job`: it leaves by itself once the queue was empty for idle_exit."""
        for _ in range(count):
            while self.idle_nodes and self.idle_nodes[0] + self.set.node_keep < self.now:
                self.idle_nodes.pop(0)
                self.nodes_s += self.set.node_keep
            wait = 0.0
            if self.set.node_start:
                if self.idle_nodes:
                    self.nodes_s += self.now - self.idle_nodes.pop()
                else:
                    wait = self.set.node_start
            pod = Pod(self.made, self.now, self.now + wait, self.now + wait + self.set.pod_start, job)
            self.made += 1
            self.pods.append(pod)
            self.push(pod.exec + self.set.open_seconds, READY, pod)
        self.most = max(self.most, len(self.pods))
        self.mark()

    def stop(self, pod):
        """SIGTERM. What has not begun goes back; what will be done in time is finished; the rest is
        parked now, or, without parking, worked on until the grace ends and lost."""
        self.stops += 1
        self.ask_to_leave(pod)
        pod.advance(self.now)
        self.busy_stops += pod.n > 0
        unbegun = list(pod.waiting)
        pod.waiting.clear()
        pod.held -= sum(job.jobs for job in unbegun)
        self.give_back(unbegun)
        if self.set.parks:
            until = self.set.grace - min(self.set.grace / 4, 30)
            late = [e for e in pod.running if (e[0] - pod.clock) > until * pod.rate]
            if late:
                self.take_off(pod, late, parked=True)
        pod.deadline = self.now + self.set.grace
        self.push(pod.deadline, GONE, pod)
        self.plan(pod)

    def ask_to_leave(self, pod):
        pod.stopping = self.now
        if pod.ready:
            self.takers.remove(pod)

    def take_off(self, pod, entries, parked):
        """Sequences leave the engine before their end."""
        chosen = set(id(e) for e in entries)
        pod.running = [e for e in pod.running if id(e) not in chosen]
        heapq.heapify(pod.running)
        for end, _, job in entries:
            left = end - pod.clock
            done = max(0.0, job.tokens - left)
            pod.n -= job.jobs
            pod.held -= job.jobs
            if parked:
                # Prompt and ids pass once more as rows of a prefill, at the price of so many tokens.
                again = (done + self.set.prompt_tokens) * self.card.full_rate / self.card.prefill_rows_s
                self.parked_tokens += done * job.jobs
                job.left = left + again
            else:
                self.lost_tokens += done * job.jobs
                job.left = job.tokens
        self.give_back([job for _, _, job in sorted(entries, key=lambda e: e[2].arrived)])

    def give_back(self, jobs):
        self.queue.extendleft(reversed(jobs))
        self.deal()

    # The queue and the pods.
    def push(self, when, kind, what=None, version=0):
        self.order += 1
        heapq.heappush(self.events, (when, self.order, kind, what, version))

    def deal(self):
        """Each pod with room takes the next job in turn, as readers of one stream do."""
        queue, takers, most, touched = self.queue, self.takers, self.set.claim_rows, {}
        while queue and takers:
            jobs = queue[0].jobs
            for _ in takers:
                self.turn = (self.turn + 1) % len(takers)
                pod = takers[self.turn]
                if pod.held + jobs <= most or pod.held == 0:
                    break
            else:
                break
            pod.held += jobs
            pod.waiting.append(queue.popleft())
            touched[pod] = True
        for pod in touched:
            self.fill(pod)

    def fill(self, pod):
        """Waiting jobs into free slots (to the nearest entry), then the next end of one is foreseen."""
        pod.advance(self.now)
        while pod.waiting and pod.n + pod.waiting[0].jobs / 2 <= self.card.slots:
            job = pod.waiting.popleft()
            if job.began is None:
                job.began = self.now
                self.begin_delays.append((self.now - job.arrived, job.jobs))
            pod.n += job.jobs
            self.order += 1
            heapq.heappush(pod.running, (pod.clock + job.left, self.order, job))
        self.plan(pod)

    def plan(self, pod):
        pod.version += 1
        if pod.n not in self.rates:
            self.rates[pod.n] = self.card.sequence_rate(pod.n)
        pod.rate = self.rates[pod.n]
        if pod.running:
            wait = max(0.0, pod.running[0][0] - pod.clock) / pod.rate
            self.push(pod.seen + wait, WORK, pod, pod.version)
        elif pod.stopping is not None:
            self.leave(pod)

    def work(self, pod):
        """The sequence that was foreseen has ended."""
        pod.advance(self.now)
        while pod.running and pod.running[0][0] <= pod.clock + 1e-6:
            _, _, job = heapq.heappop(pod.running)
            pod.n -= job.jobs
            pod.held -= job.jobs
            self.unfinished -= job.jobs
            self.tokens += job.jobs * job.tokens
            self.row_delays.append((self.now - job.arrived, job.jobs))
            self.last_row = self.now
        if self.queue and pod.stopping is None:
            self.take(pod)
        self.fill(pod)
        if self.unfinished == 0:
            for other in self.pods:
                self.idle(other)

    def take(self, pod):
        """Room came free: the pod claims as much."""
        while self.queue and pod.held + self.queue[0].jobs <= self.set.claim_rows:
            job = self.queue.popleft()
            pod.held += job.jobs
            pod.waiting.append(job)

    def idle(self, pod):
        """Nothing is left with anybody: a Job's pod begins to count."""
        if pod.job and pod.ready and pod.stopping is None:
            pod.idle_since = self.now
            self.push(self.now + self.set.idle_exit, IDLE, pod, self.now)

    def leave(self, pod):
        if pod.gone is not None:
            return
        pod.sample(self.now)
        pod.gone = self.now
        pod.version += 1
        self.pods.remove(pod)
        self.ended.append(pod)
        if self.set.node_start:
            self.nodes_s += self.now - pod.created
            self.idle_nodes.append(self.now)
        self.mark()

    def mark(self):
        """A point of the plot: pods that hold a GPU."""
        self.curve.append((self.now, len(self.pods)))

    def handle(self, kind, what, version):
        if kind == WORK:
            if what.version == version:
                self.work(what)
        elif kind == READY:
            if what.stopping is None:
                what.ready = True
                self.takers.append(what)
                self.deal()
                if self.unfinished == 0:
                    self.idle(what)
        elif kind == GONE:
            if what.gone is None:
                what.advance(self.now)
                if what.running:
                    self.take_off(what, list(what.running), parked=self.set.parks)
                self.leave(what)
        elif kind == IDLE:
            if what.idle_since == version and self.unfinished == 0 and what.stopping is None:
                self.ask_to_leave(what)
                self.leave(what)
        elif kind == TICK:
            self.scaler.tick(self)
        elif kind == SAMPLE:
            self.push(self.now + SAMPLE_S, SAMPLE)
            for pod in self.pods:
                pod.sample(self.now)

    def run(self, least_seconds=0.0):
        """Plays the trace until its last row is written, for `least_seconds` at least."""
        self.push(SAMPLE_S, SAMPLE)
        self.scaler.begin(self)
        arrivals, i = self.trace, 0
        while True:
            at = self.events[0][0] if self.events else None
            if i < len(arrivals) and (at is None or arrivals[i][0] <= at):
                self.now = arrivals[i][0]
                if self.unfinished == 0:
                    self.last_row = self.now
                self.queue.append(Job(*arrivals[i]))
                self.unfinished += arrivals[i][1]
                i += 1
                self.deal()
                continue
            if i == len(arrivals) and self.unfinished == 0 and (at is None or at > least_seconds):
                break
            if self.now > self.last_row + STUCK_S and self.unfinished:
                raise RuntimeError(f"{self.unfinished} jobs and no row for {STUCK_S:.0f} s")
            self.now, _, kind, what, version = heapq.heappop(self.events)
            self.handle(kind, what, version)
        self.now = max(self.now, least_seconds)
        for pod in list(self.pods):
            self.leave(pod)
        return Result(self)


def percentiles(pairs, shares):
    """The values that so much of the weight stays at or below; `shares` rise."""
    total, seen, out = sum(w for _, w in pairs), 0, []
    for value, weight in sorted(pairs):
        seen += weight
        while len(out) < len(shares) and seen >= shares[len(out)] * total:
            out.append(value)
    return out or [0.0] * len(shares)


class Result:
    """What one run came to. Times are seconds, hours are GPU-hours."""

    def __init__(self, sim):
        held = sum(p.gone - p.created for p in sim.ended)
        if sim.set.node_start:
            left = sum(min(sim.set.node_keep, sim.now - t) for t in sim.idle_nodes)
            self.hours = (sim.nodes_s + left) / 3600
        else:
            self.hours = held / 3600
        self.used = sum(p.busy for p in sim.ended) / held
        self.full = sim.tokens / (sim.card.full_rate * 3600 * self.hours)
        self.begin = percentiles(sim.begin_delays, (0.5, 0.95, 1))
        self.row = percentiles(sim.row_delays, (0.5, 0.95, 1))
        self.jobs, self.tokens = sum(w for _, w in sim.row_delays), sim.tokens
        self.lost, self.parked = sim.lost_tokens, sim.parked_tokens
        self.stops, self.busy_stops, self.most = sim.stops, sim.busy_stops, sim.most
        self.started, self.seconds, self.curve = sim.made, sim.now, sim.curve
