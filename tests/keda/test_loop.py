"""KEDA's own loop over our manifests, real queues and real workers: 0 -> N -> 0, nobody busy killed."""
import contextlib
import time

import pytest

from kafka_broker import Broker
from keda_reference import KafkaLag, KafkaTrigger, RedisLag, hpa
from postgres_server import Server as Postgres
from redis_server import Server, certificates
from world import World, jobs_file, tranche

TARGET, POLL_S = 150, 2


@pytest.fixture(scope="module")
def postgres():
    with Postgres() as server:
        yield server


@pytest.fixture(scope="module")
def broker(tmp_path_factory):
    broker = Broker(tmp_path_factory.mktemp("kafka")).start()
    yield broker
    broker.kill()


@pytest.fixture
def redis_server(tmp_path):
    tls = certificates(tmp_path / "tls")
    server = Server(tmp_path / "redis", "--tls-auth-clients", "no", tls=tls)
    client = server.client()
    client.execute_command("ACL", "SETUSER", "keda", "on", ">keda-secret", "resetchannels", "~prompts",
                           "+ping", "+info", "+xinfo", "+xpending", "+xlen")
    client.execute_command("ACL", "SETUSER", "tranche", "on", ">pod-secret", "~*", "&*", "+@all")
    server.ca = (tls / "ca.crt").read_text()
    yield server
    server.stop()


class Scene:
    """A world with its queue, its database and the counts that the assertions need."""

    def __init__(self, world, postgres, name):
        self.world, self.postgres, self.sent = world, postgres, 0
        self.database = name.replace("-", "_")
        postgres.ask("postgres", f"CREATE DATABASE {self.database}")
        self.db = postgres.url(self.database)
        tranche(world.folder, "migrate", "--db", self.db)

    def rows(self):
        return self.postgres.ask(self.database, "SELECT count(*), count(DISTINCT custom_id) "
                                 "FROM tranche.results WHERE status = 'ok'")[0]

    def send(self, n):
        path = jobs_file(self.world.folder, n, self.sent)
        self.world.note(f"{n} messages are sent")
        tranche(self.world.folder, "submit", "--source", self.url, *self.options, path)
        self.sent += n

    def measure(self):
        state = self.world.state()
        return [self.lag(), state["running"], len(state["pods"]), self.rows()[0]]

    def until(self, condition, what, timeout_s=240):
        self.world.watch(self.measure, condition, timeout_s, what)

    def drained(self):
        state = self.world.state()
        return self.lag() == 0 and not state["running"] and not state["pods"]

    def at_rest(self, seconds):
        """Polls go on, and nothing comes of them."""
        before = len(self.world.keda.seen("created", kind="*v1.Job"))
        end = time.monotonic() + seconds
        self.until(lambda: time.monotonic() > end, "rest")
        assert len(self.world.keda.seen("created", kind="*v1.Job")) == before

    def every_row_once(self):
        assert self.rows() == (self.sent, self.sent)


class KafkaScene(Scene):
    def __init__(self, world, postgres, broker, name):
        super().__init__(world, postgres, name)
        self.url, self.options = f"kafka://{broker.address}/{name}", ()
        tranche(world.folder, "init", "--source", self.url, "--partitions", 8)
        self.reference = KafkaLag(broker.address, name, "tranche")
        for trigger in world.scaled["spec"]["triggers"]:
            world.change(trigger["metadata"], {
                "bootstrapServers": broker.address, "topic": name, "lagThreshold": str(TARGET),
                "tls": "disable"}, "trigger: ")
            del trigger["authenticationRef"]
        world.changes.append(("trigger: authenticationRef", "tranche-queue", "left out: plain text"))
        world.configure("session.timeout.ms = 3000\nheartbeat.interval.ms = 500\n", (
            "TLS with a certificate", "plain text, session.timeout.ms = 3000"), source=self.url,
                        db=self.db)

    def lag(self):
        return KafkaTrigger(earliest=True, allow_idle=True).read(self.reference.partitions()).metric


class RedisScene(Scene):
    def __init__(self, world, postgres, server, name):
        super().__init__(world, postgres, name)
        (world.folder / "ca.crt").write_text(server.ca)
        (world.folder / "password").write_text("pod-secret")
        (world.folder / "client.conf").write_text(
            "username = tranche\npassword.file = password\ntls.ca.file = ca.crt\n")
        self.url = f"rediss://localhost:{server.port}/prompts"
        self.options = ("--broker-config", "client.conf")
        tranche(world.folder, "init", "--source", self.url, *self.options)
        self.reference = [RedisLag(server.client(), "prompts", "tranche", mode)
                          for mode in ("lag", "pending")]
        for trigger in world.scaled["spec"]["triggers"]:
            count = "lagCount" if "lagCount" in trigger["metadata"] else "pendingEntriesCount"
            world.change(trigger["metadata"], {"address": f"localhost:{server.port}",
                                               count: str(TARGET)}, f"trigger {trigger['name']}: ")
        conf = world.one("ConfigMap", "tranche")["data"]["broker.conf"]
        world.configure(conf + "lease = 10s\n", ("no lease", "lease = 10s"), source=self.url, db=self.db)
        world.secret("tranche-keda", username="keda", password="keda-secret", **{"ca.crt": server.ca})
        world.secret("tranche-broker", password="pod-secret", **{"ca.crt": server.ca})

    def lag(self):
        return sum(r.read().metric for r in self.reference)


@contextlib.contextmanager
def scene(kind, name, overlay, folder, postgres, broker, scaled="ScaledJob"):
    world = World(name, overlay, folder, scaled)
    try:
        for secret in ("tranche-db", "tranche-broker"):
            if kind is KafkaScene or secret == "tranche-db":
                world.secret(secret, password="none", **{"ca.crt": "none"})
        world.change(world.scaled["spec"], {"pollingInterval": POLL_S})
        yield kind(world, postgres, broker, name)
    finally:
        world.keda.close()


def started(scene):
    """The operator, and its first polls of an empty queue."""
    scene.world.apply()
    scene.world.keda.ask("start_operator")
    scene.world.note("KEDA starts; the queue is empty")
    scene.until(lambda: len(polls(scene)) >= 3, "three polls")
    assert scene.world.state() == {"jobs": 0, "running": 0, "pods": []}


def polls(scene):
    return scene.world.keda.seen("keda", keda="Scaling Jobs")


def waves_of_jobs(scene):
    """0 -> N, then in the middle of it a changed ScaledJob, a restart of KEDA and a dead pod; -> 0."""
    world, keda = scene.world, scene.world.keda
    started(scene)
    scene.send(600)
    scene.until(lambda: world.state()["running"] == 4, "ceil(600 / 150) Jobs", 60)
    scene.until(lambda: scene.rows()[0] >= 100, "rows")
    first = {r["name"] for r in keda.seen("created", kind="*v1.Job")}
    assert len(first) == 4

    template = world.scaled["spec"]["jobTargetRef"]["template"]
    template["spec"]["containers"][0]["env"].append({"name": "TRANCHE_RUN", "value": "main"})
    world.apply("changed")
    world.note("the ScaledJob's template is changed (generation 2)")
    scene.send(450)
    scene.until(lambda: keda.seen("created", kind="*v1.Job", generation="2"), "new Jobs of generation 2")
    assert keda.seen("pod_started", generation="2") or world.state()["running"] > 4
    assert not world.unfinished_deleted() and not world.stops()

    keda.ask("stop_operator")
    world.note("KEDA is stopped")
    running = world.state()["running"]
    end = time.monotonic() + 5
    scene.until(lambda: time.monotonic() > end, "a while without KEDA")
    keda.ask("start_operator")
    world.note("KEDA is started again")
    victim = next(r["pod"] for r in reversed(keda.seen("pod_ready")) if not [
        e for e in keda.seen("pod_exited") if e["pod"] == r["pod"]])
    keda.ask("kill", pod=victim)
    world.note(f"the process of {victim} is killed (SIGKILL)")
    scene.until(scene.drained, "drained")
    scene.at_rest(3 * POLL_S)

    world.note("a second, small batch")
    scene.send(20)
    scene.until(lambda: world.state()["running"] > 0, "from zero again", 60)
    scene.until(scene.drained, "drained again")
    scene.every_row_once()
    assert not world.unfinished_deleted() and not world.stops() and not keda.seen("kubelet_error")
    never_too_many(scene)
    return facts(scene, running)


def never_too_many(scene):
    """No poll made more Jobs than what was missing for the lag that it saw."""
    most = scene.world.scaled["spec"]["maxReplicaCount"]
    peak = max(point[2] for point in scene.world.timeline)
    assert peak <= most
    for p in polls(scene):
        if "Number of running Jobs" in p:
            assert p["Number of running Jobs"] <= most


def facts(scene, running):
    keda, timeline = scene.world.keda, scene.world.timeline
    made = keda.seen("created", kind="*v1.Job")
    return {"messages": scene.sent, "rows, each once": scene.rows()[0],
            "Jobs made by KEDA": len(made),
            "of them by the changed ScaledJob": len([m for m in made if m["generation"] == "2"]),
            "most at once": max(p[2] for p in timeline), "running when KEDA was stopped": running,
            "unfinished Jobs deleted by KEDA": len(scene.world.unfinished_deleted()),
            "pods stopped by anyone": len(scene.world.stops()),
            "pods that died (the test's own SIGKILL)": len(
                [e for e in keda.seen("pod_exited") if e["code"] not in (0, 143)]),
            "polls": len(polls(scene)) // 2}


def test_scaled_job_kafka(postgres, broker, tmp_path):
    with scene(KafkaScene, "scaledjob-kafka", "kafka", tmp_path, postgres, broker) as s:
        s.world.save("ScaledJob on a Kafka topic", "k8s/keda/overlays/kafka", waves_of_jobs(s))


def test_scaled_job_redis(postgres, redis_server, tmp_path):
    with scene(RedisScene, "scaledjob-redis", "redis", tmp_path, postgres, redis_server) as s:
        s.world.save("ScaledJob on a Redis stream", "k8s/keda/overlays/redis, over TLS, KEDA with "
                     "the rights that auth.yaml names", waves_of_jobs(s))


def test_without_gradual_the_same_change_kills(postgres, redis_server, tmp_path):
    """The control: what the manifests' `rollout` prevents is seen by the same means."""
    with scene(RedisScene, "control-rollout", "redis", tmp_path, postgres, redis_server) as s:
        s.world.change(s.world.scaled["spec"], {"rollout": {"strategy": "default"}})
        started(s)
        s.send(450)
        s.until(lambda: s.rows()[0] >= 60, "rows")
        template = s.world.scaled["spec"]["jobTargetRef"]["template"]
        template["spec"]["containers"][0]["env"].append({"name": "TRANCHE_RUN", "value": "main"})
        s.world.apply("changed")
        s.world.note("the ScaledJob's template is changed (generation 2)")
        s.until(s.world.stops, "pods stopped", 60)
        busy = [r for r in s.world.stops() if r["held"] > 0]
        assert len(s.world.unfinished_deleted()) == 3 and busy
        s.until(s.drained, "drained")
        s.every_row_once()
        s.world.save("Control: without `rollout: gradual`", "The same change stops busy workers; the "
                     "rows are still each there once.", {
                         "Jobs deleted by KEDA while they ran": len(s.world.unfinished_deleted()),
                         "workers stopped with messages in hand": len(busy),
                         "messages": s.sent, "rows, each once": s.rows()[0]})


def replicas(scene):
    changes = scene.world.keda.seen("replicas")
    return changes[-1]["to"] if changes else 1  # the API server's default


def pool(scene, cooldown_s):
    world = scene.world
    world.change(world.scaled["spec"], {"cooldownPeriod": cooldown_s, "initialCooldownPeriod": 4})
    modifiers = world.scaled["spec"]["advanced"].get("scalingModifiers")
    if modifiers:
        world.change(modifiers, {"target": str(TARGET)}, "scalingModifiers: ")
    world.apply()
    world.keda.ask("start_operator")
    world.note("KEDA starts; the Deployment has one replica, the API server's default")
    scene.until(lambda: replicas(scene) == 0 and not world.state()["pods"], "to zero", 90)


def test_scaled_object_redis(postgres, redis_server, tmp_path):
    with scene(RedisScene, "scaledobject-redis", "warm-pool", tmp_path, postgres, redis_server,
               "ScaledObject") as s:
        world, keda = s.world, s.world.keda
        pool(s, cooldown_s=8)
        s.send(600)
        s.until(lambda: replicas(s) == 4, "0 -> 1 -> 4", 90)
        s.until(lambda: s.rows()[0] >= 100, "rows")
        keda.ask("stop_operator")
        world.note("KEDA is stopped")
        end = time.monotonic() + 5
        s.until(lambda: time.monotonic() > end, "a while without KEDA")
        world.change(world.scaled["spec"], {"maxReplicaCount": 6}, "in the middle: ")
        world.apply("changed")
        keda.ask("start_operator")
        world.note("KEDA is started again, maxReplicaCount is 6 from now on")
        s.send(900)
        s.until(lambda: replicas(s) == 6, "to the new most", 90)
        s.until(lambda: s.lag() == 0, "drained")
        world.note("the queue is empty: the cooldown begins")
        assert not world.stops()[1:], "only the one that the Deployment began with was stopped"
        s.until(lambda: replicas(s) == 0 and not world.state()["pods"], "to zero", 120)
        s.every_row_once()
        stops = world.stops()
        assert len(stops) == 7 and all(r["held"] == 0 for r in stops), stops
        assert not keda.seen("kubelet_error") and not keda.seen("pod_killed")
        steps = [(r["who"], r["from"], r["to"]) for r in keda.seen("replicas")]
        assert steps[0] == ("KEDA", 1, 0) and steps[1] == ("KEDA", 0, 1) and steps[-1] == ("KEDA", 6, 0)
        for r in keda.seen("hpa"):
            assert r["want"] == hpa(r["value"], r["replicas"], TARGET, r["max"]), r
        world.save("ScaledObject on a Redis stream (the warm pool)", "k8s/keda/overlays/warm-pool. KEDA "
                   "takes it from zero and to zero; between them our model of the HPA reads the HPA "
                   "that KEDA wrote and the values that KEDA serves.", {
                       "messages": s.sent, "rows, each once": s.rows()[0],
                       "replicas": ", ".join(f"{w}: {a} → {b}" for w, a, b in steps),
                       "pods stopped": len(stops), "of them with messages in hand": 0,
                       "values the HPA asked for": len(keda.seen("hpa"))})


def test_with_lag_alone_a_busy_worker_is_stopped(postgres, redis_server, tmp_path):
    """The control: the same pool without the trigger that counts what is in flight."""
    with scene(RedisScene, "control-lag-alone", "warm-pool", tmp_path, postgres, redis_server,
               "ScaledObject") as s:
        spec = s.world.scaled["spec"]
        spec["triggers"] = [t for t in spec["triggers"] if t["name"] == "queued"]
        s.world.changes.append(("triggers", "queued, inflight", "queued"))
        s.world.change(spec["advanced"]["scalingModifiers"], {"formula": "queued"})
        conf = s.world.one("ConfigMap", "tranche")["data"]
        conf["tranche.conf"] = conf["tranche.conf"].replace("claim-rows = 100", "claim-rows = 400")
        s.world.changes.append(("tranche.conf: claim-rows", "100 here", "400"))
        pool(s, cooldown_s=4)
        s.send(300)
        s.until(lambda: len(s.world.stops()) > 1, "stopped", 120)
        busy = [r for r in s.world.stops() if r["held"] > 0]
        assert busy and s.lag() > 0, s.world.stops()
        s.world.save("Control: the pool with lag alone", "A worker that has claimed all there is leaves "
                     "a lag of zero: KEDA stops it at its work.", {
                         "workers stopped with messages in hand": len(busy),
                         "messages in hand": max(r["held"] for r in busy), "messages left": s.lag()})
