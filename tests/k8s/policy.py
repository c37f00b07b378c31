"""policy: what no schema can say: settings that are valid and would lose work, kill a busy pod, or
disagree with the worker. Each rule yields sentences; test_policy.py breaks each one once."""
import json
import re

from manifests import CACHE, ROOT, job_specs, label, settings, templates

RULES = {}
# A container's words and exit codes, from docs/operations.md.
PERMANENT, STOPPED, TRANSIENT = [64, 65], [130, 143], [69, 70]
UNITS = {"": 1, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30,
         "s": 1, "m": 60, "h": 3600}


def rule(check):
    RULES[check.__name__] = check
    return check


def amount(text):
    number, unit = re.fullmatch(r"(\d+)([A-Za-z]*)", str(text)).groups()
    return int(number) * UNITS[unit]


def containers(objects):
    for name, template in templates(objects):
        for c in template["spec"]["containers"] + template["spec"].get("initContainers", []):
            yield f"{name} {c['name']}", template, c


def workers(objects):
    return [(n, t, c) for n, t, c in containers(objects) if c.get("args", [""])[0] == "worker"]


def triggers(objects):
    for o in objects:
        if o["kind"] in ("ScaledJob", "ScaledObject"):
            for t in o["spec"]["triggers"]:
                yield o, t, t.get("metadata", {})


@rule
def pod_is_locked(objects):
    for name, template in templates(objects):
        spec = template["spec"]
        context = spec.get("securityContext", {})
        for wanted, have in (("enableServiceLinks", spec.get("enableServiceLinks") is False),
                             ("automountServiceAccountToken",
                              spec.get("automountServiceAccountToken") is False),
                             ("serviceAccountName", spec.get("serviceAccountName") == "tranche"),
                             ("runAsNonRoot", context.get("runAsNonRoot") is True),
                             ("runAsUser", context.get("runAsUser", 0) > 0),
                             ("seccompProfile", context.get("seccompProfile") == {"type": "RuntimeDefault"})):
            if not have:
                yield f"{name}: {wanted} is not as a pod of ours wants it"
        for host in ("hostNetwork", "hostPID", "hostIPC", "shareProcessNamespace"):
            if spec.get(host):
                yield f"{name}: {host}"


@rule
def container_is_locked(objects):
    for name, _, c in containers(objects):
        context = c.get("securityContext", {})
        if context.get("allowPrivilegeEscalation") is not False:
            yield f"{name}: allowPrivilegeEscalation is not false"
        if context.get("readOnlyRootFilesystem") is not True:
            yield f"{name}: the root filesystem can be written"
        if context.get("capabilities") != {"drop": ["ALL"]}:
            yield f"{name}: capabilities other than drop ALL"
        if context.get("privileged"):
            yield f"{name}: privileged"


@rule
def image_is_fixed(objects):
    for name, _, c in containers(objects):
        if not re.search(r"@sha256:[0-9a-f]{64}$|:(?!latest$)[\w.-]+$", c["image"]):
            yield f"{name}: image {c['image']} names no fixed version"


@rule
def resources_are_set(objects):
    for name, _, c in containers(objects):
        have = c.get("resources", {})
        requests, limits = have.get("requests", {}), have.get("limits", {})
        for what in ("cpu", "memory", "ephemeral-storage"):
            if what not in requests:
                yield f"{name}: requests no {what}"
        for what in ("memory", "ephemeral-storage"):
            if what not in limits:
                yield f"{name}: no limit of {what}"


@rule
def worker_has_a_gpu(objects):
    for name, template, c in workers(objects):
        have = c.get("resources", {})
        limit = have.get("limits", {}).get("nvidia.com/gpu")
        if not limit or have.get("requests", {}).get("nvidia.com/gpu") != limit:
            yield f"{name}: limit and request of nvidia.com/gpu are not one number"
        flags = [a.split("=", 1)[1] for a in c["args"] if a.startswith("--device=")]
        device = (flags or [settings(objects).get("device", "auto")])[-1]
        if sorted(device.split(",")) != [f"cuda:{i}" for i in range(int(limit or 0))]:
            yield f"{name}: {limit} GPUs, device {device}"
        if not any(t.get("key") == "nvidia.com/gpu" for t in template["spec"].get("tolerations", [])):
            yield f"{name}: no toleration of nvidia.com/gpu"
        if have.get("requests", {}).get("memory") != have.get("limits", {}).get("memory"):
            yield f"{name}: memory requested is not the limit"
    for name, _, c in containers(objects):
        if any(e["name"] == "NVIDIA_VISIBLE_DEVICES" for e in c.get("env", [])):
            yield f"{name}: devices come through the device plugin, not NVIDIA_VISIBLE_DEVICES"


@rule
def volumes_are_bounded(objects):
    for name, template in templates(objects):
        for v in template["spec"].get("volumes", []):
            if "emptyDir" in v and not v["emptyDir"].get("sizeLimit"):
                yield f"{name}: emptyDir {v['name']} without sizeLimit"
            if "hostPath" in v:
                yield f"{name}: hostPath {v['name']}"
    for name, template in templates(objects):
        spec = template["spec"]
        sizes = [amount(v["emptyDir"].get("sizeLimit", 0)) for v in spec.get("volumes", []) if "emptyDir" in v]
        limit = sum(amount(c.get("resources", {}).get("limits", {}).get("ephemeral-storage", "0"))
                    for c in spec["containers"])
        if sum(sizes) > limit:
            yield f"{name}: emptyDirs of {sum(sizes)} bytes, ephemeral-storage {limit}"


@rule
def models_are_read_only(objects):
    for name, template, c in workers(objects):
        mounts = [m for m in c.get("volumeMounts", []) if m["mountPath"] == "/models"]
        claims = [v["persistentVolumeClaim"] for v in template["spec"]["volumes"]
                  if "persistentVolumeClaim" in v]
        if not mounts or not all(m.get("readOnly") for m in mounts) or \
                not all(v.get("readOnly") for v in claims):
            yield f"{name}: the model folder is not mounted read-only"


@rule
def models_are_written_by_the_cache(objects):
    """`tranche cache` alone, from a volume that it cannot change, to where the workers look."""
    for name, template, c in containers(objects):
        claims = {v["name"]: v["persistentVolumeClaim"].get("readOnly", False)
                  for v in template["spec"].get("volumes", []) if "persistentVolumeClaim" in v}
        mounts = {m["mountPath"] + "/": bool(m.get("readOnly") and claims[m["name"]])
                  for m in c.get("volumeMounts", []) if m["name"] in claims}
        if c["args"][0] != "cache":
            yield from (f"{name}: can write {path}" for path, locked in mounts.items() if not locked)
            continue
        source, dest = c["args"][1:3]
        for what, path, locked in (("source", source, True), ("destination", dest, False)):
            if not any(path.startswith(m) and mounts[m] == locked for m in mounts):
                yield f"{name}: no mount{' that is read-only' if locked else ''} for its {what} {path}"
        if dest != settings(objects).get("model", dest):
            yield f"{name}: writes {dest}, the workers read {settings(objects)['model']}"


@rule
def settings_reach_running_pods(objects):
    """The kubelet renews whole mounts only, and what is watched must be one."""
    folder = settings(objects).get("job-config")
    for name, template, c in containers(objects):
        for m in c.get("volumeMounts", []):
            if m.get("subPath") or m.get("subPathExpr"):
                yield f"{name}: {m['mountPath']} is a subPath, which never changes in a running pod"
    for name, template, c in workers(objects):
        volume = [m["name"] for m in c["volumeMounts"] if m["mountPath"] == folder]
        if not any(v["name"] in volume and "configMap" in v for v in template["spec"]["volumes"]):
            yield f"{name}: job-config {folder} is no ConfigMap of the pod"


@rule
def settings_name_what_is_mounted(objects):
    """Every path of tranche.conf and broker.conf lies in a mount of every worker."""
    data = [o["data"] for o in objects if label(o) == "ConfigMap/tranche"]
    paths = {p for d in data for text in d.values() for line in text.split("\n") if not line.startswith("#")
             for p in re.findall(r"(?<![\w/:])/[a-z][\w./-]+", line)}
    for name, template, c in workers(objects):
        mounts = [m["mountPath"] + "/" for m in c.get("volumeMounts", [])]
        for path in sorted(paths):
            if not any((path + "/").startswith(m) for m in mounts):
                yield f"{name}: {path} of the settings is not mounted"


@rule
def grace_covers_a_park(objects):
    grace = amount(settings(objects).get("grace", "30s"))
    for name, template, _ in workers(objects):
        have = template["spec"].get("terminationGracePeriodSeconds", 30)
        if have < grace + 20:
            yield f"{name}: terminationGracePeriodSeconds {have}, grace {grace} s"


@rule
def memory_limit_is_below_the_container(objects):
    limit = amount(settings(objects).get("memory-limit", "0"))
    for name, _, c in workers(objects):
        have = amount(c["resources"]["limits"].get("memory", "0"))
        if not 0 < limit < have:
            yield f"{name}: memory-limit {limit}, the container's {have}"


@rule
def spool_fits_its_folder(objects):
    conf = settings(objects)
    for name, template, c in workers(objects):
        volume = [m["name"] for m in c["volumeMounts"] if m["mountPath"] == conf.get("spool-dir")]
        sizes = [amount(v["emptyDir"].get("sizeLimit", 0)) for v in template["spec"]["volumes"]
                 if v["name"] in volume and "emptyDir" in v]
        if not sizes or sizes[0] <= amount(conf.get("spool-bytes", "1GiB")):
            yield f"{name}: spool-bytes {conf.get('spool-bytes')} does not fit its emptyDir {sizes}"


@rule
def workers_leave(objects):
    if amount(settings(objects).get("idle-exit", "0s")) <= 0:
        yield "tranche.conf: idle-exit is not set: a Job's pod would never leave"


@rule
def workers_are_alike(objects):
    """One pod, written where kustomize cannot share it: all must be equal but args, what makes a
    Deployment's pod, and what runs ahead (groups_begin_once) with the volumes that it alone mounts."""
    seen = {}
    for name, template, c in workers(objects):
        labels = {k: v for k, v in template["metadata"]["labels"].items() if k != "tranche.pool"}
        spec = {k: v for k, v in template["spec"].items() if k != "initContainers"}
        mine = {m["name"] for m in c["volumeMounts"]}
        volumes = [v for v in spec["volumes"] if v["name"] in mine or "initContainers" not in template["spec"]]
        bare = json.dumps([spec | {"containers": [c | {"args": None}], "restartPolicy": None, "volumes": volumes},
                           template["metadata"] | {"labels": labels}], sort_keys=True)
        seen.setdefault(bare, name)
    if len(seen) > 1:
        yield f"worker pods differ: {', '.join(seen.values())}"


@rule
def exit_codes_are_ours(objects):
    for name, spec in job_specs(objects):
        rules = spec.get("podFailurePolicy", {}).get("rules", [])
        # Where something runs ahead, a rule that names no container is for either's code.
        ahead = "initContainers" in spec["template"]["spec"]
        names = [None] if ahead else [c["name"] for c in spec["template"]["spec"]["containers"]]
        want = [("Ignore", None), ("Ignore", STOPPED), ("FailJob", PERMANENT), ("Count", TRANSIENT)]
        have = [(r["action"], r.get("onExitCodes", {}).get("values")) for r in rules]
        if have != want or rules[0].get("onPodConditions") != [{"type": "DisruptionTarget", "status": "True"}]:
            yield f"{name}: podFailurePolicy is {have}, want {want}, DisruptionTarget first"
        for r in rules:
            if "onExitCodes" in r and (r["onExitCodes"].get("containerName") not in names
                                       or r["onExitCodes"]["operator"] != "In"):
                yield f"{name}: a rule of podFailurePolicy is not of the pod's containers"


@rule
def exit_codes_are_documented(objects):
    """docs/operations.md, which says what the binary leaves with, knows every code."""
    table = open(f"{ROOT}/docs/operations.md").read().split("## Exit codes")[1].split("##")[0]
    known = {int(n) for row in re.findall(r"^\| ([\d, ]+) \|", table, re.M) for n in row.split(",")}
    for name, spec in job_specs(objects):
        for r in spec.get("podFailurePolicy", {}).get("rules", []):
            for code in set(r.get("onExitCodes", {}).get("values", [])) - known:
                yield f"{name}: no exit code {code} in docs/operations.md"


@rule
def jobs_end_well(objects):
    for name, spec in job_specs(objects):
        if spec["template"]["spec"].get("restartPolicy") != "Never":
            yield f"{name}: restartPolicy is not Never, which podFailurePolicy needs"
        if spec.get("podReplacementPolicy") != "Failed":
            yield f"{name}: podReplacementPolicy is not Failed: two pods could hold GPUs for one slot"
        if "ttlSecondsAfterFinished" not in spec and not name.startswith("ScaledJob"):
            yield f"{name}: no ttlSecondsAfterFinished"
        if "backoffLimit" not in spec and "backoffLimitPerIndex" not in spec:
            yield f"{name}: no limit of retries"
        # A deadline ends what is only slow; a drain may take as long as it takes.
        if "activeDeadlineSeconds" in spec and spec["template"]["spec"]["containers"][0]["name"] == "worker":
            yield f"{name}: activeDeadlineSeconds would stop a busy worker"


@rule
def cron_does_not_pile_up(objects):
    for o in objects:
        if o["kind"] == "CronJob":
            for key, good in (("concurrencyPolicy", o["spec"].get("concurrencyPolicy") == "Forbid"),
                              ("timeZone", bool(o["spec"].get("timeZone"))),
                              ("startingDeadlineSeconds", o["spec"].get("startingDeadlineSeconds", 0) >= 60)):
                if not good:
                    yield f"{label(o)}: {key} is {o['spec'].get(key)}"


@rule
def backfill_covers_the_topic(objects):
    partitions = settings(objects).get("partitions")
    for name, spec in job_specs(objects):
        if spec.get("completionMode") == "Indexed":
            if str(spec.get("completions")) != partitions:
                yield f"{name}: completions {spec.get('completions')}, partitions {partitions}"
            if "--partition=$(JOB_COMPLETION_INDEX)" not in spec["template"]["spec"]["containers"][0]["args"]:
                yield f"{name}: no index in --partition"


@rule
def scaled_job_kills_nothing(objects):
    for o in objects:
        if o["kind"] == "ScaledJob":
            spec = o["spec"]
            if spec.get("rollout", {}).get("strategy") != "gradual":
                yield f"{label(o)}: rollout.strategy is not gradual: each change would delete running Jobs"
            if "strategy" in spec.get("scalingStrategy", {}):
                yield f"{label(o)}: scalingStrategy.strategy is set; the metric has what is in flight"
            for key in ("maxReplicaCount", "successfulJobsHistoryLimit", "failedJobsHistoryLimit"):
                if key not in spec:
                    yield f"{label(o)}: no {key}"
            if spec.get("pollingInterval", 30) < 15:
                yield f"{label(o)}: pollingInterval below 15 s can start too many Jobs"


@rule
def warm_pool_kills_nothing(objects):
    for o in objects:
        if o["kind"] != "ScaledObject":
            continue
        spec, advanced = o["spec"], o["spec"].get("advanced", {})
        behavior = advanced.get("horizontalPodAutoscalerConfig", {}).get("behavior", {})
        down = behavior.get("scaleDown", {})
        # Else it stops busy workers: seldom, and such as park (grace_covers_a_park).
        if down.get("selectPolicy") != "Disabled" and down.get("stabilizationWindowSeconds", 0) < 300:
            yield f"{label(o)}: scaleDown is neither Disabled nor slow: the HPA would stop busy workers"
        # Null lastActiveTime skips the cooldown, hence the initial one.
        for key in ("cooldownPeriod", "initialCooldownPeriod"):
            if spec.get(key, 0) < 300:
                yield f"{label(o)}: {key} {spec.get(key)} s, want at least 300"
        if "maxReplicaCount" not in spec or len(f"keda-hpa-{o['metadata']['name']}") > 63:
            yield f"{label(o)}: no maxReplicaCount, or a name too long for its HPA"
        names = {t.get("name") for t in spec["triggers"]}
        modifiers = advanced.get("scalingModifiers", {})
        words = set(re.findall(r"[a-z]\w*", modifiers.get("formula", "")))
        if len(spec["triggers"]) > 1 and (words != names or "/" in modifiers.get("formula", "")
                                          or not re.fullmatch(r"[1-9]\d*", modifiers.get("target", ""))):
            yield f"{label(o)}: scalingModifiers {modifiers} do not add the triggers {sorted(map(str, names))}"
        target = [d for d in objects if d["kind"] == "Deployment"
                  and d["metadata"]["name"] == spec["scaleTargetRef"]["name"]]
        if len(target) != 1 or "replicas" in target[0]["spec"]:
            yield f"{label(o)}: its Deployment is not there, or has replicas of its own"


@rule
def deployment_stays(objects):
    for o in objects:
        if o["kind"] == "Deployment":
            template = o["spec"]["template"]
            if "--idle-exit=0s" not in template["spec"]["containers"][0]["args"]:
                yield f"{label(o)}: with idle-exit its workers would leave and be started again for ever"
            if o["spec"].get("strategy", {}).get("rollingUpdate", {}).get("maxSurge") != 0:
                yield f"{label(o)}: a surge needs GPUs that nobody has"
            budgets = [b["spec"] for b in objects if b["kind"] == "PodDisruptionBudget"]
            if not any(b.get("maxUnavailable") == 1 and
                       b["selector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
                       for b in budgets):
                yield f"{label(o)}: no PodDisruptionBudget with maxUnavailable 1"


@rule
def jobs_have_no_disruption_budget(objects):
    for b in objects:
        if b["kind"] == "PodDisruptionBudget":
            for name, template in templates(o for o in objects if o["kind"] != "Deployment"):
                if b["spec"]["selector"]["matchLabels"].items() <= template["metadata"]["labels"].items():
                    yield f"{label(b)}: selects the pods of {name}; a budget keeps a drained node's Job from moving"


@rule
def claims_fit_their_volumes(objects):
    volumes = {o["metadata"]["name"]: o for o in objects if o["kind"] == "PersistentVolume"}
    for o in objects:
        if o["kind"] == "PersistentVolumeClaim":
            volume = volumes.get(o["spec"].get("volumeName"), {"spec": {}, "metadata": {}})["spec"]
            claim = {"namespace": o["metadata"].get("namespace"), "name": o["metadata"]["name"]}
            writer = claim["name"].endswith("-writer")      # the cache Job's (models_are_written_by_the_cache)
            modes = ["ReadWriteMany" if writer else "ReadOnlyMany"]
            if volume.get("claimRef") != claim or volume.get("accessModes") != modes or \
                    o["spec"]["accessModes"] != modes or o["spec"].get("storageClassName") != "" or \
                    not (volume.get("nfs", {}).get("readOnly") or writer and "nfs" in volume
                         or volume.get("hostPath", {}).get("type") == "Directory"):
                yield f"{label(o)}: claim and volume do not fit: {volume}"
    shares = {json.dumps([v["spec"]["nfs"].get(k) for k in ("server", "path")]) for v in volumes.values()
              if "nfs" in v["spec"]}
    if len(shares) > 1:
        yield f"what is written is not what is read: {sorted(shares)}"


@rule
def kueue_sees_every_job(objects):
    """One labelled, all labelled: a worker beside the quota would take what it counts on."""
    key, have = "kueue.x-k8s.io/queue-name", {}
    for o in objects:
        if o["kind"] in ("ScaledJob", "Job", "CronJob") and workers([o]):
            meta = o["spec"]["jobTemplate"]["metadata"] if o["kind"] == "CronJob" else o["metadata"]
            have[label(o)] = meta.get("labels", {}).get(key)
        if key in o["metadata"].get("labels", {}) and o["kind"] == "CronJob":
            yield f"{label(o)}: Kueue reads the label of the jobTemplate"
    if len(set(have.values())) > 1:
        yield f"some Jobs are in a queue, some are not: {have}"


@rule
def trigger_fields_exist(objects):
    """By KEDA's own list of what each scaler reads, and from where."""
    known = {s["type"]: {p["name"]: p for p in s["parameters"]}
             for s in json.load(open(f"{CACHE}/scalers-schema.json"))["scalers"]}
    auths = {o["metadata"]["name"]: o for o in objects if o["kind"] == "TriggerAuthentication"}
    for o, t, metadata in triggers(objects):
        fields = known.get(t["type"])
        if fields is None:
            yield f"{label(o)}: KEDA has no trigger {t['type']}"
            continue
        for key, value in metadata.items():
            field = fields.get(key, {})
            if not field.get("metadataVariableReadable"):
                yield f"{label(o)}: {t['type']} reads no {key} from its metadata"
            elif field.get("allowedValue") and value not in field["allowedValue"]:
                yield f"{label(o)}: {key} is {value}, {t['type']} knows {field['allowedValue']}"
        auth = auths.get(t.get("authenticationRef", {}).get("name"))
        if not auth:
            yield f"{label(o)}: trigger {t['type']} refers to no TriggerAuthentication of ours"
            continue
        for ref in auth["spec"].get("secretTargetRef", []):
            if not fields.get(ref["parameter"], {}).get("triggerAuthenticationVariableReadable"):
                yield f"{label(auth)}: {t['type']} reads no {ref['parameter']} from there"
            if ref["parameter"] in metadata:
                yield f"{label(auth)}: {ref['parameter']} stands in the trigger too"


@rule
def trigger_is_safe(objects):
    for o, t, metadata in triggers(objects):
        if {"password", "username", "key", "cert"} & set(metadata):
            yield f"{label(o)}: a secret in a trigger's metadata"
        if metadata.get("unsafeSsl", "false") != "false":
            yield f"{label(o)}: unsafeSsl"
        if o["kind"] == "ScaledJob" and ("metricType" in t or t.get("useCachedMetrics")):
            yield f"{label(o)}: metricType and useCachedMetrics are not for a ScaledJob"
        if "fallback" in o["spec"]:
            yield f"{label(o)}: with a fallback a broker that is away starts GPU pods"


@rule
def keda_is_its_own_user(objects):
    """Never ours, and it signs in as the workers do: a listener takes certificates or passwords."""
    broker = "\n".join(o["data"]["broker.conf"] for o in objects if label(o) == "ConfigMap/tranche")
    passwords = "sasl." in broker or "password.file" in broker
    for o in (o for o in objects if o["kind"] == "TriggerAuthentication"):
        refs = {r["parameter"]: r["name"] for r in o["spec"]["secretTargetRef"]}
        for parameter, name in refs.items():
            if not name.startswith("tranche-keda"):
                yield f"{label(o)}: {parameter} is from {name}, not from a user of KEDA's own"
        used = {t["type"] for _, t, _ in triggers(objects)
                if t.get("authenticationRef", {}).get("name") == o["metadata"]["name"]}
        if used & {"kafka", "redis-streams", "redis-sentinel-streams"}:
            want = {"ca", *(("username", "password") if passwords else ("cert", "key")),
                    *(["sasl"] if "sasl." in broker else []),
                    *(["sentinelPassword"] if "sentinel.password" in broker else [])}
            if refs.keys() != want:
                yield f"{label(o)}: has {sorted(refs)}, by the workers' broker.conf want {sorted(want)}"


def argument(o, name):
    """--NAME=... of the container of what a trigger starts, or None."""
    for _, template in templates([o]):
        for word in template["spec"]["containers"][0].get("args", []):
            if word.startswith(f"--{name}="):
                return word.split("=", 1)[1]
    return None


@rule
def runs_read_by_themselves(objects):
    """Two runs in one group would share the messages, and each would lack what the other took."""
    conf, groups = settings(objects), {}
    begun = {argument(o, "group") or conf.get("group", "tranche") for o in objects
             if o["kind"] == "Job" and o["spec"]["template"]["spec"]["containers"][0]["args"][0] == "init"
             and not drops(o)}
    for name, template, c in workers(objects):
        given = dict(a[2:].split("=", 1) for a in c["args"] if a.startswith("--") and "=" in a)
        run = given.get("run", conf.get("run", "main"))
        group = given.get("group", conf.get("group", "tranche"))
        if groups.setdefault(group, run) != run:
            yield f"{name}: run {run} and run {groups[group]} are both of group {group}"
        if "canary" in given and (run == conf.get("run", "main") or float(given["canary"]) >= 100):
            yield f"{name}: a canary of {given['canary']} % as run {run}: its rest would have no row"
        if begun and group not in begun:
            yield f"{name}: no Job makes the group {group}"
    if "canary" in conf:
        yield "tranche.conf: canary would be every worker's"


def command(template, kind="containers"):
    return template["spec"].get(kind, [{}])[0].get("args", [])


@rule
def groups_begin_once(objects):
    """A worker begins a group without a position at the first message. Where that is not meant, the
    Job that begins it may be late: each of its pods does the same first, as who may, and only there."""
    conf, begun = settings(objects), {}
    for o in (o for o in objects if o["kind"] == "Job" and not drops(o)):
        args = command(o["spec"]["template"])
        if args[:1] == ["init"]:
            begun[argument(o, "group") or conf.get("group", "tranche")] = args, o["spec"]["template"]["spec"]
    for name, template, c in workers(objects):
        group = dict(a[2:].split("=", 1) for a in c["args"] if "=" in a).get("group", conf.get("group", "tranche"))
        args, pod = begun.get(group, ([], {}))
        late = any(a.startswith("--canary=") for a in c["args"]) or "--from-end" in args
        ahead = template["spec"].get("initContainers", [])
        if not late:
            yield from (f"{name}: {group} begins at the first message anyway" for _ in ahead)
            continue
        if "--from-end" not in args or [a["args"] for a in ahead] != [args]:
            yield f"{name}: the Job of {group} runs {args}, its pods first {[a['args'] for a in ahead]}"
        if secrets(template["spec"], ahead) != secrets(pod, pod.get("containers", [])):
            yield f"{name}: what runs first is not who runs the Job of {group}"
        if secrets(template["spec"], ahead) & secrets(template["spec"], [c]):
            yield f"{name}: the worker has the Secret of who makes groups"
        if any((a["image"], a["command"]) != (c["image"], c["command"]) for a in ahead):
            yield f"{name}: what runs first is another program"


def secrets(pod, of):
    """The Secrets that containers of a pod mount, wherever."""
    names = {v["name"]: v["secret"]["secretName"] for v in pod.get("volumes", []) if "secret" in v}
    return {names[m["name"]] for c in of for m in c.get("volumeMounts", []) if m["name"] in names}


def drops(o):
    return any("--drop-group" in command(t) for _, t in templates([o]))


@rule
def dropped_groups_are_nobodys(objects):
    """A group that is dropped takes along what it has not done."""
    conf = settings(objects)
    for o in (o for o in objects if drops(o)):
        group = argument(o, "group")
        if group in (None, conf.get("group", "tranche")):
            yield f"{label(o)}: drops the group of the settings"
        if any(f"--group={group}" in c["args"] for _, _, c in workers(objects)):
            yield f"{label(o)}: drops {group}, which is read"
        if not conf.get("source", "").startswith("redis"):
            yield f"{label(o)}: groups of {conf.get('source')} hold nothing"
        if o["spec"].get("ttlSecondsAfterFinished", 3600) > 300:
            yield f"{label(o)}: while it is there, applying it again does nothing"


def broker_conf(objects):
    return "".join(o["data"]["broker.conf"] for o in objects if label(o) == "ConfigMap/tranche")


@rule
def kafka_trigger_sees_our_lag(objects):
    conf = settings(objects)
    host, topic = re.fullmatch(r"[\w-]+://([^/]+)/(.+)", conf.get("source", "none://none/none")).groups()
    protocol = (re.findall(r"^security\.protocol = (\S+)$", broker_conf(objects), re.M) or ["plaintext"])[0]
    for o, t, m in triggers(objects):
        if t["type"] == "apache-kafka":
            yield f"{label(o)}: apache-kafka is experimental; kafka is meant"
        if t["type"] != "kafka":
            continue
        for key, want in (("bootstrapServers", host), ("topic", topic),
                          ("consumerGroup", argument(o, "group") or conf.get("group", "tranche")),
                          ("offsetResetPolicy", "earliest"), ("tls", "enable" if "ssl" in protocol else None),
                          ("allowIdleConsumers", None), ("excludePersistentLag", None)):
            if m.get(key) != want:
                yield f"{label(o)}: {key} is {m.get(key)}, want {want}"
        if not m.get("version") or int(m.get("lagThreshold", "0")) < 1:
            yield f"{label(o)}: version and lagThreshold must be set"
        if o["spec"].get("maxReplicaCount", 100) > int(conf.get("partitions", "0")):
            yield (f"{label(o)}: maxReplicaCount {o['spec'].get('maxReplicaCount')} above the topic's "
                   f"{conf.get('partitions')} partitions")


@rule
def redis_trigger_sees_our_lag(objects):
    conf = settings(objects)
    scheme, host, stream = re.fullmatch(r"([\w-]+)://([^/]+)/(.+)",
                                        conf.get("source", "none://none/none")).groups()
    sentinel = scheme.endswith("-sentinel")
    master = (re.findall(r"^sentinel\.master = (\S+)$", broker_conf(objects), re.M) or [None])[0]
    for o in objects:
        mine = [(t, m) for x, t, m in triggers([o]) if t["type"].startswith("redis")]
        if not mine:
            continue
        for t, m in mine:
            if t["type"] != ("redis-sentinel-streams" if sentinel else "redis-streams"):
                yield f"{label(o)}: {t['type']} for {conf.get('source')}"
            for key, want in (("addresses" if sentinel else "address", host), ("stream", stream),
                              ("consumerGroup", argument(o, "group") or conf.get("group", "tranche")),
                              ("sentinelMaster", master), ("databaseIndex", None),
                              ("enableTLS", "true" if scheme.startswith("rediss") else None)):
                if m.get(key) != want:
                    yield f"{label(o)}: {key} is {m.get(key)}, want {want}"
        lag = [m["lagCount"] for _, m in mine if "lagCount" in m]
        pending = [m["pendingEntriesCount"] for _, m in mine if "pendingEntriesCount" in m]
        if len(mine) != 2 or len(lag) != 1 or lag != pending:
            yield f"{label(o)}: want one trigger by lag {lag} and one by pending {pending}, of one target"
        if o["kind"] == "ScaledJob" and \
                o["spec"].get("scalingStrategy", {}).get("multipleScalersCalculation") != "sum":
            yield f"{label(o)}: lag and pending are not summed"


@rule
def database_trigger_counts_our_work(objects):
    """The database of the settings, as a user of its own, by the query of schemas/."""
    conf = settings(objects)
    with open(f"{ROOT}/schemas/keda/predicted_work.sql", encoding="utf-8") as f:
        query = " ".join(" ".join(line for line in f if not line.startswith("--")).split())
    user, host, database = re.fullmatch(r"postgres://([^@]+)@([^/]+)/([^?]+).*", conf["db"]).groups()
    for o, t, m in triggers(objects):
        if t["type"] != "postgresql":
            continue
        for key, want in (("host", host), ("dbName", database), ("sslmode", "verify-full")):
            if m.get(key) != want:
                yield f"{label(o)}: {key} is {m.get(key)}, want {want}"
        if m.get("userName") == user:
            yield f"{label(o)}: KEDA asks as {user}, the workers' user"
        if " ".join(m.get("query", "").split()) != query:
            yield f"{label(o)}: the query is not that of schemas/keda/predicted_work.sql"
        if f"run = '{conf.get('run', 'main')}'" not in m.get("query", ""):
            yield f"{label(o)}: the query counts another run than the workers'"
        if conf.get("source", "").startswith("kafka") and \
                o["spec"].get("maxReplicaCount", 100) > int(conf.get("partitions", "0")):
            yield f"{label(o)}: maxReplicaCount above the topic's {conf.get('partitions')} partitions"


@rule
def network_is_closed(objects):
    """A default-deny of both directions, an egress for each pod, none that allows everything. Behind
    sentinels also the master's port."""
    policies = [o["spec"] for o in objects if o["kind"] == "NetworkPolicy"]
    if not any(p["podSelector"] == {} and sorted(p["policyTypes"]) == ["Egress", "Ingress"]
               and not p.get("egress") and not p.get("ingress") for p in policies):
        yield "no default-deny NetworkPolicy"
    conf = settings(objects)
    queue = re.search(r":(\d+)/", conf.get("source", ""))
    wanted = [(int(queue[1]) if queue else None, "the queue"), (5432, "PostgreSQL"), (53, "DNS")]
    if "-sentinel://" in conf.get("source", ""):
        wanted.append((6379, "the stream's master"))
    ports = {p.get("port") for policy in policies for e in policy.get("egress", []) for p in e.get("ports", [])}
    for want, what in wanted:
        if want not in ports:
            yield f"no egress to {what} (port {want})"
    for policy in policies:
        if any(not e.get("ports") for e in policy.get("egress", [])):
            yield "an egress rule without ports allows everything"
    for name, template in templates(objects):
        labels = template["metadata"]["labels"].items()
        if not any(p["podSelector"] and p["podSelector"].get("matchLabels", {}).items() <= labels
                   for p in policies):
            yield f"{name}: no NetworkPolicy lets the pod out"


@rule
def mesh_stays_out(objects):
    for name, template in templates(objects):
        if template["metadata"]["labels"].get("sidecar.istio.io/inject") != "false" or \
                template["metadata"].get("annotations", {}).get("linkerd.io/inject") != "disabled":
            yield f"{name}: a mesh's sidecar would keep the Job from ending"


@rule
def worker_is_left_alone(objects):
    for name, template, _ in workers(objects):
        notes = template["metadata"].get("annotations", {})
        if notes.get("cluster-autoscaler.kubernetes.io/safe-to-evict") != "false" or \
                notes.get("karpenter.sh/do-not-disrupt") != "true":
            yield f"{name}: a node autoscaler may move it"
        classes = {o["metadata"]["name"] for o in objects if o["kind"] == "PriorityClass"}
        if template["spec"].get("priorityClassName") not in classes:
            yield f"{name}: priorityClassName {template['spec'].get('priorityClassName')} is not ours"


@rule
def probes_ask_the_worker(objects):
    """Liveness never by /readyz: a broker or database that is away is mended by no restart."""
    http = settings(objects).get("http", ":0").rsplit(":", 1)[1]
    for name, _, c in workers(objects):
        ports = {p["name"]: str(p["containerPort"]) for p in c.get("ports", [])}
        for probe, path in (("startupProbe", "/healthz"), ("livenessProbe", "/healthz"),
                            ("readinessProbe", "/readyz")):
            get = c.get(probe, {}).get("httpGet", {})
            port = ports.get(get.get("port"), str(get.get("port")))
            if (get.get("path"), port) != (path, http):
                yield f"{name}: {probe} asks {get.get('path')} at {port}, want {path} at {http}"
    ingress = [(i, p.get("port")) for o in objects if o["kind"] == "NetworkPolicy"
               for i in o["spec"].get("ingress", []) for p in i.get("ports", [{}])]
    for i, port in ingress:
        if str(port) != http or not i.get("from"):
            yield f"ingress to port {port} from {i.get('from')}: only {http}, from named peers"


@rule
def references_exist(objects):
    """ConfigMaps, Secrets with their keys, claims: in the manifests or in docs/kubernetes.md's list."""
    page = open(f"{ROOT}/docs/kubernetes.md").read()
    given = dict(re.findall(r"^\| (?:Secret|PersistentVolumeClaim) `([\w-]+)` \| ([^|]*) \|", page, re.M))
    maps = {o["metadata"]["name"]: o["data"] for o in objects if o["kind"] == "ConfigMap"}
    texts = "\n".join(v for data in maps.values() for v in data.values())
    for name, template in templates(objects):
        for v in template["spec"].get("volumes", []):
            wanted = v.get("secret", {}).get("secretName") or v.get("persistentVolumeClaim", {}).get("claimName")
            if wanted and wanted not in given:
                yield f"{name}: docs/kubernetes.md does not list {wanted}"
            if "configMap" in v and v["configMap"]["name"] not in maps:
                yield f"{name}: no ConfigMap {v['configMap']['name']}"
    keys = {"db": "tranche-db", "broker": "tranche-broker"}
    for folder, key in re.findall(r"/var/run/secrets/tranche/(\w+)/([\w.-]+)", texts):
        if f"`{key}`" not in given.get(keys.get(folder), ""):
            yield f"docs/kubernetes.md: Secret {keys.get(folder)} has no key {key}"
    for o in objects:
        for ref in o["spec"].get("secretTargetRef", []) if o["kind"] == "TriggerAuthentication" else []:
            if f"`{ref['key']}`" not in given.get(ref["name"], ""):
                yield f"{label(o)}: docs/kubernetes.md lists no Secret {ref['name']} with {ref['key']}"


def broken(objects):
    """{rule: sentences}, of the rules that have something to say."""
    found = {name: list(check(objects)) for name, check in RULES.items()}
    return {name: said for name, said in found.items() if said}
