"""Who starts and stops pods: nobody (a fixed number), an HPA on GPU use, KEDA on the queue's lag."""

import math

import model
import rules

SYNC = 15.0                       # HPA's period
POLL = 30.0                       # pollingInterval of k8s/keda


class Fixed:
    """So many pods, always."""

    def __init__(self, pods):
        self.pods = pods

    def begin(self, sim):
        sim.start(self.pods)

    def tick(self, sim):
        pass


class Replicas:
    """A Deployment: the ReplicaSet starts what is missing; of too many, it stops pods that are not
    ready first, then the youngest. Nobody asks whether they work."""

    @staticmethod
    def scale(sim, wanted):
        live = sim.live()
        if wanted > len(live):
            sim.start(wanted - len(live))
        for pod in sorted(live, key=lambda p: (p.ready, -p.number))[:max(0, len(live) - wanted)]:
            sim.stop(pod)


class UseHpa(Replicas):
    """HPA on the GPU's use as nvidia-smi and DCGM tell it: the share of the time in which some kernel
    ran, over the last minute."""

    def __init__(self, least=2, most=10, target=0.7):
        self.target, self.least = target, least
        self.behaviour = rules.Behaviour(least, most)

    def begin(self, sim):
        sim.start(self.least)
        sim.push(SYNC, model.TICK)

    def tick(self, sim):
        sim.push(sim.now + SYNC, model.TICK)
        live = sim.live()
        starting = sum(1 for p in live if p.exec > sim.now)
        use = [p.use for p in live if p.use is not None]
        missing = len(live) - starting - len(use)
        wanted = rules.hpa_each(use, self.target, len(live), starting, missing)
        self.scale(sim, self.behaviour.decide(sim.now, len(live), wanted))


class KedaJobs:
    """ScaledJob: at each poll it starts the Jobs that the lag asks for and that are not there. It
    stops none; a Job's pod leaves when the queue was empty for idle_exit."""

    def __init__(self, threshold=20000, most=10):
        self.threshold, self.most = threshold, most

    def begin(self, sim):
        sim.push(POLL, model.TICK)

    def tick(self, sim):
        sim.push(sim.now + POLL, model.TICK)
        if sim.unfinished > 0:
            running = len(sim.pods)
            sim.start(rules.jobs_to_start(sim.unfinished, self.threshold, self.most, running), job=True)


class KedaPool(Replicas):
    """ScaledObject on a Deployment: KEDA takes it from zero to one and back to zero, the HPA that it
    makes from one to many; `down`: and back, stopping busy pods."""

    def __init__(self, threshold=20000, most=10, cooldown=600.0, down=False):
        self.threshold, self.cooldown = threshold, cooldown
        self.behaviour = rules.Behaviour(1, most, down=down)
        self.ticks, self.active_at = 0, -math.inf

    def begin(self, sim):
        sim.push(SYNC, model.TICK)

    def tick(self, sim):
        sim.push(sim.now + SYNC, model.TICK)
        self.ticks += 1
        live = len(sim.live())
        if self.ticks % 2 == 0:
            if sim.unfinished > 0:
                self.active_at = sim.now
                if live == 0:
                    self.scale(sim, 1)
            elif live and sim.now - self.active_at >= self.cooldown:
                self.scale(sim, 0)
                return
        if live:
            wanted = rules.hpa_total(sim.unfinished, self.threshold, live)
            self.scale(sim, self.behaviour.decide(sim.now, live, wanted))
