"""The rules of policy.py hold for every world; each rule is broken once and says so."""
import copy
import os
import re

import pytest
import yaml

import manifests
import monitoring
import policy

WORLDS = {name: manifests.world(name) for name in manifests.WORLDS}
GONE = object()


@pytest.mark.parametrize("name", WORLDS)
def test_manifests_keep_every_rule(name):
    assert policy.broken(WORLDS[name]) == {}


def test_components_do_what_they_say():
    scaled = find(WORLDS["keda kueue"], "ScaledJob/tranche-worker")
    assert scaled["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "tranche"
    pods = dict(manifests.templates(WORLDS["keda runtime class"]))
    assert pods["ScaledJob/tranche-worker"]["spec"]["runtimeClassName"] == "nvidia"
    assert "runtimeClassName" not in pods["Job/tranche-init"]["spec"]
    assert not any(o["kind"] == "ScaledJob" for o in WORLDS["keda warm pool"])
    pod = dict(manifests.templates(WORLDS[K2]))["ScaledJob/tranche-worker"]["spec"]
    assert pod["nodeSelector"] == {"nvidia.com/gpu.compute.major": "9"} and pod["affinity"]["nodeAffinity"]
    assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "2"
    pod = dict(manifests.templates(WORLDS[KN]))["ScaledJob/tranche-worker"]["spec"]
    assert pod["nodeSelector"] == {"tranche-models": "ready"}


@pytest.mark.parametrize("component", ["hopper-nodes", "node-models", "two-gpus"])
def test_components_reach_every_worker(component, tmp_path):
    """ScaledJob, Jobs, CronJob and Deployment; never what is no worker."""
    k8s = os.path.relpath(f"{manifests.ROOT}/k8s", tmp_path)
    folders = ["jobs/drain", "jobs/backfill", "jobs/cron", "jobs/init", "keda/base"]
    seen = {}
    for i, names in enumerate((folders, ["keda/overlays/warm-pool"])):
        folder = tmp_path / str(i)
        folder.mkdir()
        (folder / "kustomization.yaml").write_text(
            "namespace: tranche\nresources:\n" + "".join(f"- ../{k8s}/{name}\n" for name in names) +
            f"components:\n- ../{k8s}/components/{component}\n")
        seen |= dict(manifests.templates(manifests.render_folder(folder)))
    changed = {name for name, t in seen.items() if t["spec"].keys() & {"nodeSelector", "affinity"}}
    assert changed == {name for name, t in seen.items() if t["spec"]["containers"][0]["name"] == "worker"}
    assert len(changed) == 5 and len(seen) == 7


def test_docs_and_manifests_say_one_thing():
    """Probes of docs/operations.md, the grace of docs/stopping.md: as the pods have them."""
    def page(name):
        with open(f"{manifests.ROOT}/docs/{name}", encoding="utf-8") as f:
            return f.read()

    text = next(t for t in page("operations.md").split("```yaml\n") if t.startswith("startupProbe")).split("```")[0]
    told = yaml.safe_load(text.replace("9464", "http"))
    for name in (JK, KK, WARM):
        for who, template in manifests.templates(WORLDS[name]):
            for c in template["spec"]["containers"]:
                if c["name"] == "worker":
                    assert {k: v for k, v in c.items() if k.endswith("Probe")} == told, who
    below = int(re.search(r"(\d+) s below `?terminationGracePeriodSeconds", page("stopping.md"))[1])
    grace = policy.amount(manifests.settings(WORLDS[KK])["grace"])
    for who, template in manifests.templates(WORLDS[KK]):
        if "worker" in who:
            assert template["spec"]["terminationGracePeriodSeconds"] - grace == below


def test_the_way_back_is_one_annotation():
    """live-blue and live-green hold the same objects; only which of the two rests differs."""
    both, blue, green = (manifests.render(f"keda/overlays/{n}") for n in ("blue-green", "live-blue",
                                                                          "live-green"))
    rests = {"autoscaling.keda.sh/paused": "true"}
    for objects, which in ((blue, "green"), (green, "blue")):
        job = find(objects, f"ScaledJob/tranche-{which}")
        assert job["metadata"].pop("annotations") == rests
        assert objects == both
    # Off is `delete -k`, which takes nothing along that the run beside it stands on.
    for canary in "canary", "canary-redis":
        assert {manifests.label(o) for o in manifests.render(f"keda/overlays/{canary}")} == {
            "ScaledJob/tranche-canary", "Job/tranche-init-canary"}
    assert {manifests.label(o) for o in manifests.render("jobs/drop-canary")} == {"Job/tranche-drop-canary"}


def test_two_canaries_differ_in_the_queue_alone():
    kafka, redis = (find(manifests.render(f"keda/overlays/{n}"), CANARY_JOB) for n in ("canary", "canary-redis"))
    for job in kafka, redis:
        assert {t["metadata"]["consumerGroup"] for t in job["spec"].pop("triggers")} == {"tranche-canary"}
    assert redis["spec"].pop("scalingStrategy") == {"multipleScalersCalculation": "sum"}
    assert kafka == redis
    begin = [find(manifests.render(f"keda/overlays/{n}"), "Job/tranche-init-canary") for n in ("canary", "canary-redis")]
    assert begin[0] == begin[1]


def test_components_fit_jobs(tmp_path):
    """The overlay of docs/kubernetes.md, with the cron Job beside the drain."""
    page = open(f"{manifests.ROOT}/docs/kubernetes.md").read()
    text = page.split("```yaml\n")[1].split("```")[0]
    below = os.path.relpath(f"{manifests.ROOT}/k8s", tmp_path)
    text = text.replace("../k8s", below).replace("[" + below + "/jobs/drain",
                                                 f"[{below}/jobs/cron, {below}/jobs/drain")
    (tmp_path / "kustomization.yaml").write_text(text)
    objects = manifests.render_folder(tmp_path)
    for who, template in manifests.templates(objects):
        assert template["spec"]["runtimeClassName"] == "nvidia", who
    assert len(objects) == 2 and not policy.broken(manifests.render("common/kafka") + objects)
    job = find(objects, "Job/tranche-drain")
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "tranche"


def find(objects, which):
    kind, name = which.split("/")
    return next(o for o in objects if o["kind"] == kind and o["metadata"]["name"] == name)


def put(objects, which, path, value):
    """Sets one field of one object, deep in a copy; steps are keys or indexes, joined by dots."""
    objects = copy.deepcopy(objects)
    *way, last = [int(s) if s.isdigit() else s.replace("~", ".") for s in path.split(".")]
    node = find(objects, which)
    for step in way:
        node = node.setdefault(step, {}) if isinstance(node, dict) else node[step]
    if value is GONE:
        del node[last]
    elif callable(value):
        node[last] = value(node[last])
    else:
        node[last] = value
    return objects


def conf(old, new):
    def edit(text):
        assert old in text
        return text.replace(old, new)
    return ("ConfigMap/tranche", "data.tranche~conf", edit)


DRAIN, INIT, CRON, SCALED = "Job/tranche-drain", "Job/tranche-init", "CronJob/tranche-nightly", "ScaledJob/tranche-worker"
POD = "spec.template.spec."
BOX = POD + "containers.0."
KEDA_POD = "spec.jobTargetRef.template.spec."
KEDA_BOX = KEDA_POD + "containers.0."
AHEAD = KEDA_POD + "initContainers.0."
CACHE = "Job/tranche-cache"
CANARY, CANARY_JOB = "keda canary", "ScaledJob/tranche-canary"
CR, BACK, DROP = "keda canary redis", "keda canary redis back", "Job/tranche-drop-canary"
SENTINEL, SASL, AUTH = "keda redis sentinel", "keda kafka sasl", "TriggerAuthentication/tranche-queue"
JK, JR, KK, KR = "jobs kafka", "jobs redis", "keda kafka", "keda redis"
KP, K2, KN = "keda predicted", "keda two gpus", "keda node models"
WARM, OBJECT, DEPLOYMENT = "keda warm pool", "ScaledObject/tranche-worker", "Deployment/tranche-worker"
MONITOR = "PodMonitor/tranche-worker"
TRIGGER = "spec.triggers.0.metadata."

# (rule, world, object, field, value): the rule must have something to say of each.
FIXTURES = [
    ("pod_is_locked", JK, INIT, POD + "enableServiceLinks", True),
    ("pod_is_locked", JK, INIT, POD + "automountServiceAccountToken", GONE),
    ("pod_is_locked", JK, INIT, POD + "serviceAccountName", "default"),
    ("pod_is_locked", KK, SCALED, KEDA_POD + "securityContext.runAsNonRoot", GONE),
    ("pod_is_locked", JK, CRON, "spec.jobTemplate." + POD + "securityContext.runAsUser", 0),
    ("pod_is_locked", JK, DRAIN, POD + "securityContext.seccompProfile", {"type": "Unconfined"}),
    ("pod_is_locked", JK, DRAIN, POD + "hostNetwork", True),
    ("container_is_locked", JK, INIT, BOX + "securityContext.allowPrivilegeEscalation", True),
    ("container_is_locked", JK, INIT, BOX + "securityContext.readOnlyRootFilesystem", GONE),
    ("container_is_locked", JK, INIT, BOX + "securityContext.capabilities", {"drop": ["ALL"], "add": ["SYS_ADMIN"]}),
    ("container_is_locked", JK, DRAIN, BOX + "securityContext.privileged", True),
    ("image_is_fixed", JK, INIT, BOX + "image", "tranche:latest"),
    ("image_is_fixed", JK, INIT, BOX + "image", "tranche"),
    ("resources_are_set", JK, INIT, BOX + "resources.limits.memory", GONE),
    ("resources_are_set", JK, INIT, BOX + "resources.requests.cpu", GONE),
    ("worker_has_a_gpu", JK, DRAIN, BOX + "resources.limits.nvidia~com/gpu", GONE),
    ("worker_has_a_gpu", JK, DRAIN, BOX + "resources.requests.nvidia~com/gpu", "2"),
    ("worker_has_a_gpu", JK, DRAIN, BOX + "resources.requests.memory", "8Gi"),
    ("worker_has_a_gpu", JK, DRAIN, POD + "tolerations", []),
    ("worker_has_a_gpu", JK, DRAIN, BOX + "env.1.name", "NVIDIA_VISIBLE_DEVICES"),
    ("volumes_are_bounded", JK, INIT, POD + "volumes.2.emptyDir", {}),
    ("volumes_are_bounded", JK, DRAIN, POD + "volumes.4.emptyDir.sizeLimit", "9Gi"),
    ("volumes_are_bounded", JK, INIT, POD + "volumes.2", {"name": "tmp", "hostPath": {"path": "/tmp"}}),
    ("models_are_read_only", JK, DRAIN, POD + "volumes.3.persistentVolumeClaim.readOnly", GONE),
    ("models_are_read_only", JK, DRAIN, BOX + "volumeMounts.3.readOnly", False),
    ("models_are_written_by_the_cache", KK, CACHE, BOX + "volumeMounts.0.readOnly", GONE),
    ("models_are_written_by_the_cache", KK, CACHE, POD + "volumes.0.persistentVolumeClaim.readOnly", False),
    ("models_are_written_by_the_cache", KK, CACHE, BOX + "volumeMounts.1.mountPath", "/model"),
    ("models_are_written_by_the_cache", KK, CACHE, BOX + "args.2", "/models/other"),
    ("models_are_written_by_the_cache", KK, SCALED, KEDA_BOX + "volumeMounts.3.readOnly", GONE),
    ("runs_read_by_themselves", CANARY, CANARY_JOB, KEDA_BOX + "args.2", "--group=tranche"),
    ("runs_read_by_themselves", CANARY, CANARY_JOB, KEDA_BOX + "args.3", "--run=main"),
    ("runs_read_by_themselves", CANARY, CANARY_JOB, KEDA_BOX + "args.4", "--canary=100"),
    ("runs_read_by_themselves", CANARY, "Job/tranche-init-canary", BOX + "args.2", "--group=other"),
    ("runs_read_by_themselves", CANARY, *conf("group = tranche", "group = tranche\ncanary = 5")),
    ("runs_read_by_themselves", "keda blue-green", "ScaledJob/tranche-green", KEDA_BOX + "args.2",
     "--group=tranche-blue"),
    ("kafka_trigger_sees_our_lag", CANARY, CANARY_JOB, TRIGGER + "consumerGroup", "tranche"),
    ("runs_read_by_themselves", CR, CANARY_JOB, KEDA_BOX + "args.2", "--group=tranche"),
    ("runs_read_by_themselves", CR, "Job/tranche-init-canary", BOX + "args.3", "--drop-group"),
    ("redis_trigger_sees_our_lag", CR, CANARY_JOB, TRIGGER + "consumerGroup", "tranche"),
    ("redis_trigger_sees_our_lag", CR, CANARY_JOB, "spec.scalingStrategy", GONE),
    ("redis_trigger_sees_our_lag", CR, CANARY_JOB, "spec.triggers.1.metadata.pendingEntriesCount", "5"),
    ("dropped_groups_are_nobodys", BACK, DROP, BOX + "args.2", "--group=tranche"),
    ("dropped_groups_are_nobodys", BACK, SCALED, KEDA_BOX + "args", lambda a: [*a, "--group=tranche-canary"]),
    ("dropped_groups_are_nobodys", BACK, DROP, "spec.ttlSecondsAfterFinished", 3600),
    ("dropped_groups_are_nobodys", BACK, *conf("rediss://redis.redis.svc:6379", "kafka://kafka.kafka.svc:9093")),
    ("groups_begin_once", CANARY, CANARY_JOB, KEDA_POD + "initContainers", GONE),
    ("groups_begin_once", CR, CANARY_JOB, KEDA_POD + "initContainers", GONE),
    ("groups_begin_once", CANARY, CANARY_JOB, AHEAD + "args.3", "--connect-timeout=5s"),
    ("groups_begin_once", CANARY, CANARY_JOB, AHEAD + "args.2", "--group=tranche"),
    ("groups_begin_once", CANARY, CANARY_JOB, AHEAD + "image", "tranche:0.0.9"),
    ("groups_begin_once", CANARY, CANARY_JOB, AHEAD + "volumeMounts.1.name", "broker"),
    ("groups_begin_once", CANARY, CANARY_JOB, KEDA_BOX + "volumeMounts.2.name", "broker-admin"),
    ("groups_begin_once", CANARY, CANARY_JOB, KEDA_BOX + "volumeMounts",
     lambda m: [*m, {"name": "broker-admin", "mountPath": "/var/run/secrets/tranche/admin", "readOnly": True}]),
    ("groups_begin_once", CANARY, "Job/tranche-init-canary", BOX + "args.3", GONE),
    ("groups_begin_once", "keda blue-green", "Job/tranche-init-green", BOX + "args", lambda a: [*a, "--from-end"]),
    ("groups_begin_once", KK, SCALED, KEDA_POD + "initContainers",
     [{"name": "init", "image": "tranche:0.1.0", "args": ["init"]}]),
    ("exit_codes_are_ours", CANARY, CANARY_JOB,
     "spec.jobTargetRef.podFailurePolicy.rules.2.onExitCodes.containerName", "worker"),
    ("keda_is_its_own_user", KK, AUTH, "spec.secretTargetRef.1.name", "tranche-broker"),
    ("keda_is_its_own_user", KK, AUTH, "spec.secretTargetRef.2", GONE),
    ("keda_is_its_own_user", SASL, AUTH, "spec.secretTargetRef.1", GONE),
    ("keda_is_its_own_user", SASL, AUTH, "spec.secretTargetRef.2.parameter", "cert"),
    ("keda_is_its_own_user", KR, AUTH, "spec.secretTargetRef.1", GONE),
    ("keda_is_its_own_user", SENTINEL, AUTH, "spec.secretTargetRef.3", GONE),
    ("redis_trigger_sees_our_lag", SENTINEL, SCALED, TRIGGER + "sentinelMaster", "other"),
    ("redis_trigger_sees_our_lag", SENTINEL, SCALED, TRIGGER + "addresses", "sentinel-0.queue.svc:26379"),
    ("redis_trigger_sees_our_lag", SENTINEL, SCALED, "spec.triggers.1.type", "redis-streams"),
    ("references_exist", SASL, AUTH, "spec.secretTargetRef.1.key", "mechanism"),
    ("settings_reach_running_pods", JK, *conf("job-config = /etc/tranche-jobs", "")),
    ("settings_reach_running_pods", JK, DRAIN, BOX + "volumeMounts.7.subPath", "defaults.json"),
    ("settings_reach_running_pods", JK, DRAIN, POD + "volumes.7", {"name": "jobs", "emptyDir": {"sizeLimit": "1Mi"}}),
    ("settings_name_what_is_mounted", JK, *conf("/models/model", "/models2/model")),
    ("settings_name_what_is_mounted", JK, DRAIN, BOX + "volumeMounts.1.mountPath", "/var/run/secrets/tranche/pg"),
    ("grace_covers_a_park", JK, *conf("grace = 280s", "grace = 30m")),
    ("grace_covers_a_park", KK, SCALED, KEDA_POD + "terminationGracePeriodSeconds", GONE),
    ("memory_limit_is_below_the_container", JK, *conf("memory-limit = 14GiB", "memory-limit = 16GiB")),
    ("memory_limit_is_below_the_container", JK, *conf("memory-limit = 14GiB", "")),
    ("spool_fits_its_folder", JK, *conf("spool-bytes = 1GiB", "spool-bytes = 2GiB")),
    ("spool_fits_its_folder", JK, *conf("spool-dir = /var/spool/tranche", "spool-dir = /tmp/spool")),
    ("workers_leave", KK, *conf("idle-exit = 2m", "")),
    ("workers_are_alike", JK, CRON, "spec.jobTemplate." + BOX + "resources.requests.cpu", "2"),
    ("exit_codes_are_ours", JK, INIT, "spec.podFailurePolicy.rules.2.onExitCodes.values", [64, 65, 69]),
    ("exit_codes_are_ours", JK, INIT, "spec.podFailurePolicy.rules.0", GONE),
    ("exit_codes_are_ours", JK, INIT, "spec.podFailurePolicy.rules.1.onExitCodes.containerName", "worker"),
    ("exit_codes_are_ours", JK, INIT, "spec.podFailurePolicy.rules.3.onExitCodes.operator", "NotIn"),
    ("exit_codes_are_ours", KK, "Job/tranche-smoke", "spec.podFailurePolicy.rules.1.onExitCodes.containerName", "init"),
    ("exit_codes_are_documented", JK, INIT, "spec.podFailurePolicy.rules.3.onExitCodes.values", [69, 71]),
    ("jobs_end_well", JK, INIT, POD + "restartPolicy", "OnFailure"),
    ("jobs_end_well", KK, SCALED, "spec.jobTargetRef.podReplacementPolicy", GONE),
    ("jobs_end_well", JK, INIT, "spec.ttlSecondsAfterFinished", GONE),
    ("jobs_end_well", JK, INIT, "spec.backoffLimit", GONE),
    ("jobs_end_well", JK, DRAIN, "spec.activeDeadlineSeconds", 3600),
    ("cron_does_not_pile_up", JK, CRON, "spec.concurrencyPolicy", "Replace"),
    ("cron_does_not_pile_up", JK, CRON, "spec.timeZone", GONE),
    ("cron_does_not_pile_up", JK, CRON, "spec.startingDeadlineSeconds", 5),
    ("backfill_covers_the_topic", JK, "Job/tranche-backfill", "spec.completions", 12),
    ("backfill_covers_the_topic", JK, *conf("partitions = 24", "partitions = 48")),
    ("backfill_covers_the_topic", JK, "Job/tranche-backfill", BOX + "args.2", "--partition=0"),
    ("scaled_job_kills_nothing", KK, SCALED, "spec.rollout", GONE),
    ("scaled_job_kills_nothing", KK, SCALED, "spec.scalingStrategy.strategy", "eager"),
    ("scaled_job_kills_nothing", KK, SCALED, "spec.maxReplicaCount", GONE),
    ("scaled_job_kills_nothing", KK, SCALED, "spec.failedJobsHistoryLimit", GONE),
    ("scaled_job_kills_nothing", KK, SCALED, "spec.pollingInterval", 5),
    ("warm_pool_kills_nothing", "keda shrinking pool", "ScaledObject/tranche-worker",
     "spec.advanced.horizontalPodAutoscalerConfig.behavior.scaleDown.stabilizationWindowSeconds", 60),
    ("warm_pool_kills_nothing", WARM, OBJECT, "spec.advanced.horizontalPodAutoscalerConfig", GONE),
    ("warm_pool_kills_nothing", WARM, OBJECT, "spec.initialCooldownPeriod", GONE),
    ("warm_pool_kills_nothing", WARM, OBJECT, "spec.cooldownPeriod", 30),
    ("warm_pool_kills_nothing", WARM, OBJECT, "spec.maxReplicaCount", GONE),
    ("warm_pool_kills_nothing", WARM, OBJECT, "spec.advanced.scalingModifiers.formula", "queued"),
    ("warm_pool_kills_nothing", WARM, OBJECT, "spec.advanced.scalingModifiers.target", "32.5"),
    ("warm_pool_kills_nothing", WARM, OBJECT, "spec.triggers.0.name", GONE),
    ("warm_pool_kills_nothing", WARM, DEPLOYMENT, "spec.replicas", 1),
    ("warm_pool_kills_nothing", WARM, OBJECT, "spec.scaleTargetRef.name", "other"),
    ("trigger_is_safe", WARM, OBJECT, "spec.fallback", {"failureThreshold": 3, "replicas": 1}),
    ("redis_trigger_sees_our_lag", WARM, OBJECT, "spec.triggers.1.metadata.pendingEntriesCount", "5"),
    ("deployment_stays", WARM, DEPLOYMENT, BOX + "args.2", "--idle-exit=2m"),
    ("deployment_stays", WARM, DEPLOYMENT, "spec.strategy", GONE),
    ("deployment_stays", WARM, "PodDisruptionBudget/tranche-worker", "spec.maxUnavailable", 2),
    ("workers_are_alike", WARM, DEPLOYMENT, BOX + "env.0.name", "TRANCHE_RUN"),
    ("grace_covers_a_park", WARM, DEPLOYMENT, POD + "terminationGracePeriodSeconds", 30),
    ("jobs_have_no_disruption_budget", WARM, "PodDisruptionBudget/tranche-worker", "spec.selector.matchLabels",
     {"app.kubernetes.io/name": "tranche"}),
    ("claims_fit_their_volumes", "keda nfs", "PersistentVolume/tranche-models", "spec.nfs.readOnly", GONE),
    ("claims_fit_their_volumes", "keda nfs", "PersistentVolume/tranche-models", "spec.claimRef.namespace", "default"),
    ("claims_fit_their_volumes", "keda nfs", "PersistentVolume/tranche-models-writer", "spec.nfs.path", "/other"),
    ("claims_fit_their_volumes", "keda nfs", "PersistentVolume/tranche-models-writer", "spec.accessModes", ["ReadOnlyMany"]),
    ("claims_fit_their_volumes", KN, "PersistentVolume/tranche-models", "spec.hostPath.type", "DirectoryOrCreate"),
    ("claims_fit_their_volumes", "keda nfs", "PersistentVolumeClaim/tranche-models", "spec.storageClassName", GONE),
    ("worker_has_a_gpu", K2, SCALED, KEDA_POD + "containers.0.args.2", "--device=cuda:0"),
    ("worker_has_a_gpu", JK, *conf("device = cuda:0", "device = cuda:0,cuda:1")),
    ("worker_has_a_gpu", JK, *conf("device = cuda:0", "device = auto")),
    ("grace_covers_a_park", JK, *conf("grace = 280s", "grace = 285s")),
    ("kueue_sees_every_job", JK, DRAIN, "metadata.labels.kueue~x-k8s~io/queue-name", "tranche"),
    ("kueue_sees_every_job", JK, CRON, "metadata.labels.kueue~x-k8s~io/queue-name", "tranche"),
    ("trigger_fields_exist", KK, SCALED, "spec.triggers.0.type", "kafkas"),
    ("trigger_fields_exist", KK, SCALED, TRIGGER + "lagTreshold", "5"),
    ("trigger_fields_exist", KK, SCALED, TRIGGER + "tls", "yes"),
    ("trigger_fields_exist", KK, SCALED, "spec.triggers.0.authenticationRef", GONE),
    ("trigger_fields_exist", KK, "TriggerAuthentication/tranche-queue", "spec.secretTargetRef.0.parameter", "caFile"),
    ("trigger_fields_exist", KK, "TriggerAuthentication/tranche-queue", "spec.secretTargetRef.0.parameter", "tls"),
    ("trigger_is_safe", KR, SCALED, TRIGGER + "password", "hunter2"),
    ("trigger_is_safe", KK, SCALED, TRIGGER + "unsafeSsl", "true"),
    ("trigger_is_safe", KK, SCALED, "spec.triggers.0.metricType", "Value"),
    ("trigger_is_safe", KK, SCALED, "spec.fallback", {"failureThreshold": 3, "replicas": 1}),
    ("kafka_trigger_sees_our_lag", KK, SCALED, "spec.triggers.0.type", "apache-kafka"),
    ("kafka_trigger_sees_our_lag", KK, SCALED, TRIGGER + "topic", GONE),
    ("kafka_trigger_sees_our_lag", KK, SCALED, TRIGGER + "bootstrapServers", "kafka:9092"),
    ("kafka_trigger_sees_our_lag", KK, SCALED, TRIGGER + "offsetResetPolicy", "latest"),
    ("kafka_trigger_sees_our_lag", KK, SCALED, TRIGGER + "excludePersistentLag", "true"),
    ("kafka_trigger_sees_our_lag", KK, SCALED, TRIGGER + "allowIdleConsumers", "true"),
    ("kafka_trigger_sees_our_lag", KK, SCALED, TRIGGER + "version", GONE),
    ("kafka_trigger_sees_our_lag", KK, SCALED, "spec.maxReplicaCount", 25),
    ("kafka_trigger_sees_our_lag", KK, SCALED, TRIGGER + "tls", GONE),
    ("kafka_trigger_sees_our_lag", SASL, SCALED, TRIGGER + "tls", GONE),
    ("kafka_trigger_sees_our_lag", SASL, CANARY_JOB, TRIGGER + "tls", "disable"),
    ("kafka_trigger_sees_our_lag", KK, *conf("group = tranche", "group = other")),
    ("redis_trigger_sees_our_lag", KR, SCALED, TRIGGER + "lagCount", GONE),
    ("redis_trigger_sees_our_lag", KR, SCALED, TRIGGER + "lagCount", "5"),
    ("redis_trigger_sees_our_lag", KR, SCALED, TRIGGER + "stream", "jobs"),
    ("redis_trigger_sees_our_lag", KR, SCALED, TRIGGER + "enableTLS", GONE),
    ("redis_trigger_sees_our_lag", KR, SCALED, "spec.triggers.1", GONE),
    ("redis_trigger_sees_our_lag", KR, SCALED, "spec.scalingStrategy.multipleScalersCalculation", "max"),
    ("trigger_is_safe", KP, SCALED, TRIGGER + "password", "hunter2"),
    ("trigger_fields_exist", KP, SCALED, TRIGGER + "targetValue", "600"),
    ("database_trigger_counts_our_work", KP, SCALED, TRIGGER + "host", "localhost"),
    ("database_trigger_counts_our_work", KP, SCALED, TRIGGER + "dbName", "postgres"),
    ("database_trigger_counts_our_work", KP, SCALED, TRIGGER + "sslmode", "require"),
    ("database_trigger_counts_our_work", KP, SCALED, TRIGGER + "userName", "tranche_pod"),
    ("database_trigger_counts_our_work", KP, SCALED, TRIGGER + "query", "SELECT 1"),
    ("database_trigger_counts_our_work", KP, SCALED, "spec.maxReplicaCount", 25),
    ("database_trigger_counts_our_work", KP, *conf("group = tranche", "group = tranche\nrun = blue")),
    ("network_is_closed", JK, "NetworkPolicy/default-deny", "spec.policyTypes", ["Ingress"]),
    ("network_is_closed", JK, "NetworkPolicy/default-deny", "spec.egress", [{}]),
    ("network_is_closed", JK, "NetworkPolicy/tranche-queue", "spec.egress.0.ports.0.port", 9092),
    ("network_is_closed", SENTINEL, "NetworkPolicy/tranche-queue", "spec.egress.0.ports.0", GONE),
    ("network_is_closed", SENTINEL, "NetworkPolicy/tranche-queue", "spec.egress.0.ports.1", GONE),
    ("network_is_closed", JK, DRAIN, "spec.template.metadata.labels.app~kubernetes~io/name", "worker"),
    ("mesh_stays_out", JK, INIT, "spec.template.metadata.labels.sidecar~istio~io/inject", GONE),
    ("mesh_stays_out", JK, INIT, "spec.template.metadata.annotations", {}),
    ("worker_is_left_alone", JK, DRAIN, "spec.template.metadata.annotations.karpenter~sh/do-not-disrupt", GONE),
    ("worker_is_left_alone", JK, DRAIN, POD + "priorityClassName", "high"),
    ("probes_ask_the_worker", JK, *conf("http = [::]:9464", "http = [::]:9465")),
    ("probes_ask_the_worker", JK, DRAIN, BOX + "livenessProbe.httpGet.path", "/readyz"),
    ("probes_ask_the_worker", JK, DRAIN, BOX + "startupProbe", GONE),
    ("probes_ask_the_worker", JK, "NetworkPolicy/tranche-metrics", "spec.ingress.0.from", []),
    ("monitor_finds_the_workers", KK, MONITOR, "spec.podMetricsEndpoints.0.port", "metrics"),
    ("monitor_finds_the_workers", KK, MONITOR, "spec.podMetricsEndpoints.0.path", "/metric"),
    ("monitor_finds_the_workers", KK, MONITOR, "spec.selector.matchLabels.app~kubernetes~io/component", "pod"),
    ("monitor_finds_the_workers", KK, MONITOR, "spec.selector.matchLabels.app~kubernetes~io/component", GONE),
    ("keda_rules_name_our_trigger", KK, SCALED, TRIGGER + "lagThreshold", "5000"),
    ("keda_rules_name_our_trigger", CANARY, CANARY_JOB, "metadata.name", "tranche-new"),
    ("keda_rules_name_our_trigger", CANARY, CANARY_JOB, KEDA_BOX + "args.2", "--group=tranche-new"),
    ("keda_rules_name_our_trigger", CR, CANARY_JOB, "metadata.name", "canary"),
    ("keda_rules_name_our_trigger", "keda blue-green", "ScaledJob/tranche-blue", TRIGGER + "lagThreshold", "5000"),
    ("keda_rules_name_our_trigger", WARM, OBJECT, "metadata.name", "tranche-pool"),
    ("keda_rules_name_our_trigger", KR, *conf("group = tranche", "group = other")),
    ("monitoring_is_selected", KK, MONITOR, "metadata.labels.release", "prometheus"),
    ("monitoring_is_selected", KK, "PrometheusRule/tranche-keda", "metadata.labels.release", GONE),
    ("monitoring_is_selected", KK, "ConfigMap/tranche-dashboard", "metadata.labels", {}),
    ("alerts_can_be_read", KK, "PrometheusRule/tranche", "spec.groups.1.rules.0.labels.severity", "loud"),
    ("alerts_can_be_read", KK, "PrometheusRule/tranche", "spec.groups.1.rules.1.annotations.summary", GONE),
    ("alerts_can_be_read", KK, "PrometheusRule/tranche", "spec.groups.1.rules.1.alert", "TrancheRowsStop"),
    ("references_exist", JK, INIT, POD + "volumes.0.configMap.name", "settings"),
    ("references_exist", JK, INIT, POD + "volumes.1.secret.secretName", "elsewhere"),
    ("references_exist", JK, DRAIN, POD + "volumes.3.persistentVolumeClaim.claimName", "weights"),
    ("references_exist", KK, "TriggerAuthentication/tranche-queue", "spec.secretTargetRef.0.key", "ca.pem"),
    ("references_exist", JK, *conf("/tranche/db/password", "/tranche/db/secret")),
]


@pytest.mark.parametrize("rule, name, which, path, value", FIXTURES,
                         ids=[f"{f[0]}-{i}" for i, f in enumerate(FIXTURES)])
def test_rule_speaks(rule, name, which, path, value):
    assert rule in policy.broken(put(WORLDS[name], which, path, value))


def test_every_rule_has_a_fixture():
    assert {f[0] for f in FIXTURES} == set(policy.RULES)
