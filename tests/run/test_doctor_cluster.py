"""`tranche doctor --cluster`: what kubectl shows of pods that never started or ended, each kind made
here as a document of the shape that Kubernetes writes, and told with cause and mend."""
import json
import pathlib
import re
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]


def pod(name="tranche-worker-abc-x7k2p", phase="Pending", **status):
    return {"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": "tranche"},
            "spec": {"terminationGracePeriodSeconds": 300,
                     "securityContext": {"runAsNonRoot": True, "runAsUser": 65532,
                                         "runAsGroup": 65532},
                     "containers": [{"name": "worker", "image": "tranche:0.1.0", "resources": {
                         "limits": {"memory": "16Gi", "nvidia.com/gpu": "1"}}}]},
            "status": {"phase": phase, **status}}


def unscheduled(message, reason="Unschedulable"):
    return pod(conditions=[{"type": "PodScheduled", "status": "False", "reason": reason,
                            "message": message}])


def container(state, last=None):
    return {"name": "worker", "ready": False, "restartCount": 0, "image": "tranche:0.1.0",
            "state": state, **({"lastState": last} if last else {})}


def waiting(reason, message=""):
    return pod(containerStatuses=[container({"waiting": {"reason": reason, "message": message}})])


def ended(code, reason="Error", message=None, last=False):
    state = {"terminated": {"exitCode": code, "reason": reason,
                            **({"message": message} if message else {})}}
    if last:
        return pod(phase="Running", containerStatuses=[container(
            {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 5m0s restarting"}},
            state)])
    return pod(phase="Failed", containerStatuses=[container(state)])


def event(reason, message, kind="Pod", name="tranche-worker-abc-x7k2p", of_type="Warning",
          last="2026-01-31T12:00:00Z"):
    return {"apiVersion": "v1", "kind": "Event", "metadata": {"name": f"{name}.17c0"},
            "involvedObject": {"kind": kind, "name": name, "namespace": "tranche"},
            "reason": reason, "message": message, "type": of_type, "lastTimestamp": last, "count": 3}


def of_pod(reason, message):
    return [pod(), event(reason, message)]


def of_job(reason, message):
    return [event(reason, message, "Job", "tranche-worker-abc")]


def claim(phase, name="tranche-models"):
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name},
            "status": {"phase": phase}}


def quota(*names, hard="0", used="0", **spec):
    return [{"kind": "ResourceQuota", "metadata": {"name": "none"}, "spec": spec, "status": {
        "hard": dict.fromkeys(names, hard), "used": dict.fromkeys(names, used)}}]


def mount(volume, rest):
    return f'MountVolume.SetUp failed for volume "{volume}" : {rest}'


NODES = "0/5 nodes are available: "
TAIL = ". preemption: 0/5 nodes are available: 5 Preemption is not helpful for scheduling."
PULL = 'Failed to pull image "tranche:0.1.0": rpc error: code = '
# objects, check, verdict, words of the finding
CASES = [
    (unscheduled(NODES + "1 node(s) had untolerated taint {node-role.kubernetes.io/control-plane: }, "
                 "4 Insufficient nvidia.com/gpu" + TAIL), "gpu", "fault", "no node has a GPU"),
    (unscheduled(NODES + "1 node(s) had untolerated taint {node-role.kubernetes.io/control-plane: }, "
                 "4 Insufficient cpu" + TAIL), "taint", "ok", "control-plane"),
    (unscheduled(NODES + "5 node(s) had untolerated taint {nvidia.com/gpu: present}" + TAIL),
     "taint", "fault", "GPU nodes are tainted"),
    (unscheduled(NODES + "5 node(s) had untolerated taint {node.kubernetes.io/disk-pressure: }" +
                 TAIL), "taint", "fault", "a node is ill"),
    (unscheduled(NODES + "1 node(s) had untolerated taint {node-role.kubernetes.io/control-plane: }, "
                 "4 node(s) had untolerated taint {team: search}" + TAIL),
     "taint", "fault", "nodes have a taint"),
    (unscheduled(NODES + "5 node(s) had untolerated taint(s)" + TAIL), "taint", "fault",
     "nodes have a taint"),
    (unscheduled(NODES + "5 Insufficient memory" + TAIL), "resources", "fault", "memory left"),
    (unscheduled(NODES + "5 Insufficient cpu" + TAIL), "resources", "fault", "CPUs left"),
    (unscheduled(NODES + "5 Insufficient ephemeral-storage" + TAIL), "resources", "fault",
     "local disk left"),
    (unscheduled(NODES + "5 node(s) didn't match Pod's node affinity/selector" + TAIL), "affinity",
     "fault", "no node carries the labels"),
    (unscheduled(NODES + "5 node(s) had volume node affinity conflict" + TAIL), "volume", "fault",
     "another zone"),
    (unscheduled(NODES + "pod has unbound immediate PersistentVolumeClaims" + TAIL), "volume",
     "fault", "no volume yet"),
    (unscheduled(NODES + 'persistentvolumeclaim "tranche-models" not found' + TAIL), "volume",
     "fault", "claim that the pod names does not exist"),
    (unscheduled("Scheduling is blocked due to non-empty scheduling gates", "SchedulingGated"),
     "quota", "warn", "Kueue"),
    (unscheduled(NODES + "5 node(s) were of a kind that no rule knows" + TAIL), "scheduling", "fault",
     "no node takes it"),

    (waiting("InvalidImageName", 'Failed to apply default image tag "Tranche:x": invalid reference '
             "format: repository name must be lowercase"), "image", "fault", "cannot be one"),
    (waiting("ErrImageNeverPull", 'Container image "tranche:0.1.0" is not present with pull policy '
             "of Never"), "image", "fault", "may not fetch it"),
    (waiting("ErrImagePull", PULL + "Unknown desc = failed to authorize: failed to fetch oauth token: "
             "unexpected status: 401 Unauthorized"), "image", "fault", "let this account in"),
    (waiting("ErrImagePull", PULL + "Unknown desc = pull access denied, repository does not exist or "
             "may require authorization"), "image", "fault", "does not know the name"),
    (waiting("ErrImagePull", PULL + "Unknown desc = dial tcp: lookup images.example.org: no such "
             "host"), "image", "fault", "cannot resolve"),
    (waiting("ErrImagePull", PULL + "NotFound desc = no matching manifest for linux/arm64"), "image",
     "fault", "this node's CPU"),
    (waiting("ErrImagePull", PULL + "NotFound desc = tranche:0.1.0: not found"), "image", "fault",
     "cannot be fetched"),
    ([waiting("ImagePullBackOff", 'Back-off pulling image "tranche:0.1.0"'),
      event("Failed", PULL + "NotFound desc = tranche:0.1.0: not found")], "image", "fault",
     "desc = tranche:0.1.0: not found"),
    (waiting("CreateContainerConfigError", 'secret "tranche-db" not found'), "config", "fault",
     "Secret of the pod does not exist"),
    (waiting("CreateContainerConfigError", 'configmap "tranche" not found'), "config", "fault",
     "ConfigMap of the pod does not exist"),
    (waiting("CreateContainerConfigError", "couldn't find key password in Secret tranche/tranche-db"),
     "config", "fault", "lacks a key"),
    (waiting("CreateContainerConfigError", "container has runAsNonRoot and image will run as root "
             "(non-root is wanted)"), "owner", "fault", "runs as root"),
    (waiting("CreateContainerConfigError", "host IP unknown; known addresses: []"), "config", "fault",
     "cannot be put together"),
    (waiting("RunContainerError", 'failed to create containerd task: exec: "tranche": executable file '
             "not found in $PATH"), "image", "fault", "no program of that name"),
    (waiting("RunContainerError", "failed to create shim task: error running hook: nvidia-container-cli:"
             " initialization error: driver error: failed to process request"), "gpu", "fault",
     "hand its GPU over"),
    (waiting("RunContainerError", "failed to start container: cgroup: no space left on device"),
     "runtime", "fault", "cannot start"),
    (waiting("CreateContainerError", "context deadline exceeded"), "runtime", "fault", "cannot make"),

    (pod(phase="Failed", reason="Evicted", message="The node was low on resource: ephemeral-storage."),
     "evicted", "warn", "short of something"),
    (pod(phase="Failed", reason="OutOfnvidia.com/gpu", message="Pod was rejected: Node didn't have "
         "enough resource: nvidia.com/gpu, requested: 1, used: 1, capacity: 1"), "gpu", "warn",
     "given its GPU away"),
    (pod(phase="Failed", reason="UnexpectedAdmissionError", message="Allocate failed due to no healthy "
         "devices present; cannot allocate unhealthy devices nvidia.com/gpu"), "gpu", "fault",
     "no healthy device"),
    (pod(phase="Failed", reason="DeadlineExceeded", message="Pod was active on the node longer than the "
         "specified deadline"), "deadline", "fault", "activeDeadlineSeconds"),

    (ended(65, message="tranche worker: /models/model: cannot open: Permission denied\n"), "owner",
     "fault", "user 65532, group 65532, fsGroup none"),
    (ended(65, message="tranche worker: /data: cannot make: Read-only file system"), "owner", "fault",
     "container is read-only"),
    (ended(65, message="tranche smoke: database, nothing was sent: postgres db.example.org/llm: read: "
           "permission denied for table results"), "roles", "fault", "lacks a right: tranche smoke"),
    (ended(65, message="tranche migrate: postgres db.example.org/llm: permission denied to create role"),
     "roles", "fault", "lacks a right of its own: tranche migrate"),
    (ended(137, "OOMKilled"), "memory", "fault", "the limit is 16Gi"),
    (ended(137, "OOMKilled", last=True), "memory", "fault", "the limit is 16Gi"),
    (ended(3), "exit", "warn", "rows failed"),
    (ended(64, message="tranche worker: --slots: want 0 to 4096, found 9999"), "exit", "fault",
     "found 9999"),
    (ended(65), "exit", "fault", "model folder, rights, schema or queue"),
    (ended(69, last=True), "exit", "fault", "not reached"),
    (ended(70), "exit", "warn", "GPU was lost"),
    (ended(74), "exit", "fault", "output cannot be written"),
    (ended(126), "exit", "fault", "cannot be run"),
    (ended(127), "exit", "fault", "no such program"),
    (ended(128, "StartError", "failed to create task"), "exit", "fault", "did not start"),
    (ended(130), "exit", "ok", "work left"),
    (ended(134), "exit", "warn", "aborted"),
    (ended(137), "exit", "warn", "grace ran out"),
    (ended(139), "exit", "warn", "crashed"),
    (ended(143), "exit", "ok", "work left"),
    (ended(42), "exit", "fault", "exit 42"),

    (of_pod("FailedMount", mount("db", 'object "tranche"/"tranche-db" not registered')), "config",
     "warn", "was gone"),
    (of_pod("FailedMount", mount("db", 'secret "tranche-db" not found')), "config", "fault",
     "Secret, or a key"),
    (of_pod("FailedMount", mount("db", "references non-existent secret key: password")), "config",
     "fault", "Secret, or a key"),
    (of_pod("FailedMount", mount("settings", 'configmap "tranche" not found')), "config", "fault",
     "ConfigMap that the pod mounts"),
    (of_pod("FailedMount", mount("models", "mount failed: exit status 32 Output: mount.nfs: access "
            "denied by server while mounting nfs.example.org:/models")), "volume", "fault",
     "does not export"),
    (of_pod("FailedMount", mount("models", "mount failed: exit status 32 Output: mount.nfs: Connection "
            "timed out")), "volume", "fault", "cannot mount the NFS volume"),
    (of_pod("FailedMount", "Unable to attach or mount volumes: unmounted volumes=[models]: timed out "
            "waiting for the condition"), "volume", "fault", "cannot be mounted"),
    (of_pod("FailedAttachVolume", 'Multi-Attach error for volume "pvc-1" Volume is already exclusively '
            "attached to one node and can't be attached to another"), "volume", "fault", "one alone"),
    (of_pod("FailedAttachVolume", 'AttachVolume.Attach failed for volume "pvc-1"'), "volume", "fault",
     "cannot be attached"),
    (of_pod("FailedCreatePodSandBox", 'Failed to create pod sandbox: RuntimeHandler "nvidia" not '
            "supported"), "runtime", "fault", "RuntimeClass"),
    (of_pod("FailedCreatePodSandBox", "Failed to create pod sandbox: rpc error: code = Unknown desc = "
            'failed to get sandbox runtime: no runtime for "nvidia" is configured'), "runtime", "fault",
     "RuntimeClass"),
    (of_pod("FailedCreatePodSandBox", "Failed to create pod sandbox: plugin type=\"calico\" failed "
            "(add): error getting ClusterInformation"), "network", "fault", "pod's network"),
    (of_pod("Unhealthy", 'Startup probe failed: Get "http://10.0.0.7:9464/healthz": connection refused'),
     "probe", "warn", "while it started"),
    (of_pod("Unhealthy", "Liveness probe failed: HTTP probe failed with statuscode: 503"), "probe",
     "fault", "stood still"),
    (of_job("FailedCreate", 'Error creating: pods "tranche-worker-abc-" is forbidden: exceeded quota: '
            "gpus, requested: requests.nvidia.com/gpu=1, used: requests.nvidia.com/gpu=8, limited: "
            "requests.nvidia.com/gpu=8"), "quota", "fault", "requests.nvidia.com/gpu=8"),
    (of_job("FailedCreate", 'Error creating: pods "x" is forbidden: failed quota: q: must specify '
            "limits.cpu for: worker"), "quota", "fault", "wants requests or limits"),
    (of_job("FailedCreate", 'Error creating: pods "x" is forbidden: violates PodSecurity '
            '"restricted:latest": runAsNonRoot != true'), "policy", "fault", "Pod Security level"),
    (of_job("FailedCreate", 'Error creating: pods "x" is forbidden: no PriorityClass with name '
            "tranche-batch was found"), "config", "fault", "PriorityClass does not exist"),
    (of_job("FailedCreate", 'Error creating: pods "x" is forbidden: error looking up service account '
            'tranche/tranche: serviceaccount "tranche" not found'), "config", "fault",
     "ServiceAccount does not exist"),
    (of_job("FailedCreate", 'Error creating: pods "x" is forbidden: maximum memory usage per Container '
            "is 8Gi, but limit is 16Gi"), "quota", "fault", "LimitRange refuses"),
    (of_job("FailedCreate", "Error creating: admission webhook \"x.example.org\" denied the request"),
     "policy", "fault", "pod was refused"),
    (of_job("PodFailurePolicy", "Container worker for pod tranche/x failed with exit code 64 matching "
            "FailJob rule at index 2"), "exit", "fault", "ended at once"),
    (of_job("BackoffLimitExceeded", "Job has reached the specified backoff limit"), "exit", "fault",
     "given up"),
    ([event("KEDAScalerFailed", "error getting metadata: kafka: client has run out of available "
            "brokers", "ScaledJob", "tranche-worker")], "keda", "fault", "cannot read the queue"),
    ([event("ScaledJobCheckFailed", "unknown field", "ScaledJob", "tranche-worker")], "keda", "fault",
     "does not accept the ScaledJob"),
    ([event("ScaledObjectCheckFailed", "unknown field", "ScaledObject", "tranche-worker")], "keda",
     "fault", "does not accept the ScaledObject"),
    ([claim("Pending"), event("FailedBinding", "no persistent volumes available for this claim and no "
                              "storage class is set", "PersistentVolumeClaim", "tranche-models")],
     "volume", "fault", "no storage class makes one"),
    ([claim("Pending"), event("ProvisioningFailed", "failed to provision volume: unsupported access "
                              "mode ReadOnlyMany", "PersistentVolumeClaim", "tranche-models")],
     "volume", "fault", "storage class cannot make"),
    ([claim("Pending")], "volume", "fault", "no volume yet"),
    ([claim("Lost")], "volume", "fault", "its volume is gone"),
    ([{"kind": "ResourceQuota", "metadata": {"name": "gpus"}, "status": {
        "hard": {"requests.nvidia.com/gpu": "8", "requests.memory": "128Gi", "pods": "50"},
        "used": {"requests.nvidia.com/gpu": "8", "requests.memory": "64Gi", "pods": "9"}}}], "quota",
     "warn", "requests.nvidia.com/gpu is used up: 8 of 8"),
    (quota("requests.nvidia.com/gpu"), "quota", "warn", "requests.nvidia.com/gpu is used up: 0 of 0"),
    (quota("count/jobs.batch"), "quota", "warn", "count/jobs.batch is used up: 0 of 0"),
    (pod(phase="Running", conditions=[{"type": "Ready", "status": "False"}]), "probe", "warn",
     "is not ready"),
    ([], "pod", "warn", "no pods"),
]


@pytest.fixture(scope="module")
def look(binary):
    def call(items, document=None, args=("--json",)):
        document = document if document is not None else json.dumps(
            {"apiVersion": "v1", "kind": "List", "items": items})
        done = subprocess.run([binary, "doctor", "--cluster", "-", *args], input=document.encode(),
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=60, check=False)
        assert not done.stderr, done.stderr
        if "--json" not in args:
            return done
        checks = json.loads(done.stdout)["checks"]
        order = ["ok", "warn", "fault"]
        assert done.returncode == max(order.index(c["verdict"]) for c in checks)
        for c in checks:
            assert c["verdict"] == "ok" or c["mend"], c
        return checks
    return call


@pytest.fixture(scope="module")
def all_said(look):
    return [look(items if isinstance(items, list) else [items]) for items, *_ in CASES]


@pytest.mark.parametrize("index", range(len(CASES)),
                         ids=[f"{check}-{words[:24]}" for _, check, _, words in CASES])
def test_each_fault_is_told(all_said, index):
    _, check, verdict, words = CASES[index]
    assert any(c["check"] == check and c["verdict"] == verdict and words in c["text"]
               for c in all_said[index]), all_said[index]


def test_every_rule_has_spoken(all_said):
    """Each cause of the table stands in some finding above: a rule that nothing reaches is none."""
    source = (ROOT / "worker/commands/doctor_rules.c").read_text()
    entries = re.findall(r"\{(?:SCHEDULING|PLACE_\w+|EXIT_\w+|\d+)\b(.*?)\},\n", source, re.S)
    texts = "\n".join(c["text"] for checks in all_said for c in checks)
    causes = []
    for entry in entries:
        strings = [re.sub(r'"\s*"', "", s) for s in re.findall(r'"(?:[^"\\]|\\.)*"(?:\s*"(?:[^"\\]|\\.)*")*', entry)]
        causes.append(strings[-1 if entry.rstrip().endswith("NULL") else -2].strip('"'))
    assert len(causes) > 60
    assert not [c for c in causes if c not in texts]


def test_well_and_stale(look):
    ready = pod(phase="Running", conditions=[{"type": "Ready", "status": "True"}])
    checks = look([ready, event("FailedScheduling", NODES + "5 Insufficient nvidia.com/gpu"),
                   event("FailedMount", mount("db", 'secret "tranche-db" not found')), claim("Bound"),
                   event("Unhealthy", "Startup probe failed: refused", name="gone"),
                   event("Scheduled", "ok", of_type="Normal")])
    assert {c["verdict"] for c in checks} == {"ok"}, checks
    done = pod(phase="Succeeded", containerStatuses=[container(
        {"terminated": {"exitCode": 0, "reason": "Completed"}})])
    assert [c["text"] for c in look([done])] == ["Pod/tranche-worker-abc-x7k2p: has done its work"]
    crashed = ended(69, last=True)
    checks = look([crashed, event("FailedMount", mount("db", 'secret "tranche-db" not found'))])
    assert [c["check"] for c in checks] == ["exit"], "its volumes are there: it has run"


# Of a worker as k8s/ runs it: what it logs before it opens database and model, and after its error.
LOGGED = "".join(
    json.dumps({"ts": "2026-01-31T12:00:00.000Z", "level": "info", "event": event, **more}) + "\n"
    for event, more in (
        ("http_listening", {"host": "::", "port": "9464"}),
        ("kafka_open", {"source": "kafka:prompts", "group": "tranche", "member": "tranche-worker-x7k2p",
                        "brokers": "kafka-0.kafka.svc:9093,kafka-1.kafka.svc:9093,kafka-2.kafka.svc:9093",
                        "detail": "permission denied for table, of an earlier try"})))
BEHIND = json.dumps({"ts": "2026-01-31T12:00:01.000Z", "level": "error", "event": "worker_given_up",
                     "deaths_without_a_row": 1}) + "\n"
NO_ENTRY = "/models/model: cannot open: Permission denied"


@pytest.mark.parametrize("message,check,words", [
    (LOGGED + f"tranche worker: {NO_ENTRY}\n", "owner", f": tranche worker: {NO_ENTRY}; it is user 65532"),
    (LOGGED + f"tranche worker: {NO_ENTRY}\n \n" + BEHIND, "owner", f": tranche worker: {NO_ENTRY}; "),
    (LOGGED + "tranche worker: /m: want config.json in it, there is none\n", "exit",
     "queue: tranche worker: /m: want config.json"),
    (LOGGED + "tranche smoke: read: permission denied for table results\n", "roles",
     ": tranche smoke: read: permission denied for table results"),
    (LOGGED * 3 + "terminate called\n\n", "exit", "queue: terminate called"),
    ("\n \n", "exit", "schema or queue"),
    ("k" * 9000 + "tranche worker: the end of a very long line: Permission denied", "owner",
     "a very long line: Permission denied; it is user 65532, group 65532, fsGroup none"),
], ids=["log-before", "log-behind", "no-rule", "right", "no-error", "blank", "long"])
def test_last_words_are_the_last_ones(look, message, check, words):
    """With FallbackToLogsOnError the message is the log's last 2,048 bytes, the error in its last lines."""
    [found] = look([ended(65, message=message[-2048:])])
    assert found["check"] == check and words in found["text"], found
    assert "http_listening" not in found["text"] and len(found["text"]) < 512
    assert check == "owner" or "65532" not in found["text"], "a database's rights know no user id"


def test_what_a_quota_forbids(look):
    """A limit of 0 is meant so, unless workers want that: and then of what speaks of their pods."""
    gone = {c["text"].split(": ")[1].split(" is ")[0]: c["verdict"] for c in look(
        [pod(), *quota("services.loadbalancers", "services.nodeports", "requests.nvidia.com/mig-1g.5gb",
                       "pods", "limits.memory", "requests.ephemeral-storage"),
         *quota("services.loadbalancers", hard="2", used="2"),
         *quota("services.nodeports", hard="0", used="1"), *quota("count/pods", scopes=["BestEffort"]),
         *quota("cpu", scopeSelector={"matchExpressions": [{"scopeName": "PriorityClass"}]})])
        if c["check"] == "quota"}
    assert sorted(gone) == ["limits.memory", "pods", "requests.ephemeral-storage",
                            "services.loadbalancers", "services.nodeports"]


def test_how_to_ask_a_pod(look):
    """What the mends name is in the image, which has tranche and no shell's tools."""
    [found] = look([pod(phase="Running", conditions=[{"type": "Ready", "status": "False"}])])
    assert "wget" not in found["mend"] and "kubectl port-forward POD 9464" in found["mend"]


def graced(seconds, *args, env=(), command=("tranche",), **more):
    made = pod(phase="Running", conditions=[{"type": "Ready", "status": "True"}])
    made["spec"]["terminationGracePeriodSeconds"] = seconds
    if seconds is None:
        del made["spec"]["terminationGracePeriodSeconds"]
    made["spec"]["containers"][0] |= {
        "command": list(command), "args": list(args), "env": list(env),
        "volumeMounts": [{"name": "db", "mountPath": "/var/run/db"},
                         {"name": "settings", "mountPath": "/etc/tranche"}], **more}
    made["spec"]["volumes"] = [{"name": "settings", "configMap": {"name": "tranche"}}]
    return made


def settings(text, name="tranche", namespace="tranche"):
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": namespace},
            "data": {"tranche.conf": text}}


CONF = "--config=/etc/tranche/tranche.conf"
FILE = settings("# a comment\nmodel = /models/model\ngrace = 280s\n")
FROM = [{"secretRef": {"name": "tranche"}}]
FLAG = {"name": "TRANCHE_GRACE", "value": "280s"}
# objects, verdict; None: nothing is said
GRACES = [
    ([graced(300, "worker", "--grace=280s")], None),
    ([graced(299, "worker", "--grace=280s")], "warn"),
    ([graced(281, "worker", "--grace", "280s")], "warn"),
    ([graced(280, "worker", "--grace=280s")], "fault"),
    ([graced(30, "worker", "--grace=1h")], "fault"),
    ([graced(30, "worker")], "fault"),
    ([graced(None, "worker")], "fault"),
    ([graced(50, "worker")], None),
    ([graced(60, "worker", env=[FLAG])], "fault"),
    ([graced(60, "worker", "--grace=10s", env=[FLAG])], None),
    ([graced(60, "worker", env=[{"name": "TRANCHE_GRACE", "valueFrom": {}}])], None),
    ([graced(60, "worker", CONF), FILE], "fault"),
    ([graced(60, "worker", env=[{"name": "TRANCHE_CONFIG", "value": CONF[9:]}]), FILE], "fault"),
    ([graced(60, "worker", CONF, "--grace=30s"), FILE], None),
    ([graced(300, "worker", CONF), FILE], None),
    ([graced(60, "worker", CONF)], None),
    ([graced(60, "worker", CONF), settings("grace = 280s", "other")], None),
    ([graced(60, "worker", CONF), settings("grace = long")], None),
    ([graced(30, "worker", CONF), settings("model = /models/model")], "fault"),
    ([graced(60, "init", "--grace=1h")], None),
    ([graced(60, "--grace=1h", command=("tranche", "worker"))], "fault"),
    ([graced(60, "worker", "--grace=1h", command=("/sbin/tini", "--", "/usr/bin/tranche"))], "fault"),
    ([graced(30, "worker", command=("celery",))], None),
    ([graced(30, command=("celery", "worker"))], None),
    ([graced(30, "tranche", "worker", command=("celery",))], None),
    ([graced(30, "worker", command=())], "fault"),
    ([graced(30, "worker", command=(), image="r.example.org:5000/llm/tranche-cuda@sha256:0")], "fault"),
    ([graced(30, "worker", command=(), image="r.example.org/tranche/celery:tranche")], None),
    ([graced(30, "worker", envFrom=FROM)], None),
    ([graced(60, "worker", CONF, envFrom=FROM), FILE], None),
    ([graced(60, "worker", "--grace=280s", envFrom=FROM)], "fault"),
    ([graced(60, "worker", env=[FLAG], envFrom=FROM)], "fault"),
    ([graced(-10 ** 10, "worker")], "fault"),
    ([graced(2 ** 63 - 1, "worker")], None),
    ([graced(60, "worker", CONF), settings("grace = 280s", namespace="other")], None),
    ([graced(60, "worker", CONF), settings("grace = 1s", namespace="other"), FILE], "fault"),
]


@pytest.mark.parametrize("index", range(len(GRACES)))
def test_grace_of_the_pod(look, index):
    items, verdict = GRACES[index]
    found = [c for c in look(items) if c["check"] == "grace"]
    assert [c["verdict"] for c in found] == ([verdict] if verdict else []), found
    for c in found:
        assert c["text"].startswith("Pod/tranche-worker-abc-x7k2p: terminationGracePeriodSeconds is ")
        assert "terminationGracePeriodSeconds 20 s above" in c["mend"]


def test_grace_names_both_values_and_only_who_may_still_stop(look):
    [_, found] = look([graced(60, "worker", CONF), FILE])
    assert "is 60, the worker takes 280 s to stop: it is killed before" in found["text"]
    done = graced(60, "worker", "--grace=280s")
    done["status"] = {"phase": "Succeeded"}
    assert {c["verdict"] for c in look([done])} == {"ok"}


def test_repeated_events_are_told_once(look):
    again = [event("FailedMount", mount("db", 'secret "tranche-db" not found'), last=f"2026-01-0{i}")
             for i in range(1, 6)]
    assert len(look([pod(), *again])) == 1


@pytest.mark.parametrize("document,words", [
    ("", "want a list"), ("{", "want a list"), ("[]", "another document"), ('{"items": 3}', "another"),
    ('{"kind": "Pod"}', "another document")])
def test_another_document(look, document, words):
    [found] = look(None, document)
    assert found["verdict"] == "fault" and words in found["text"] and "kubectl get" in found["mend"]


def test_any_shape_is_survived(look):
    """Members of other types than Kubernetes gives them, and text that a terminal would obey."""
    odd = [None, 3, "x", [], {}, {"kind": "Pod"}, {"kind": 7}, {"kind": "Pod", "status": []},
           {"kind": "Pod", "metadata": {"name": 5}, "status": {"conditions": {}, "phase": 9,
            "containerStatuses": [None, 1, {"state": 3}, {"state": {"terminated": {"exitCode": "x"}}}]}},
           {"kind": "Event", "involvedObject": 2, "reason": [], "message": {}},
           {"kind": "ResourceQuota", "status": {"hard": {"a": 1, "b": "x"}, "used": {"b": 2}}},
           {"kind": "PersistentVolumeClaim"}, {"kind": "ConfigMap", "metadata": 3, "data": []},
           {"kind": "Pod", "metadata": {"name": "odd"}, "status": {"phase": "Running"},
            "spec": {"terminationGracePeriodSeconds": "x", "volumes": [3, {"name": "s", "configMap": 4}],
                     "containers": [None, {"args": 3}, {"args": ["worker", 5, "--grace"], "env": {}},
                                    {"args": ["worker", "--config=/c/x"], "volumeMounts": [
                                        1, {"name": "s", "mountPath": "/c"}, {"mountPath": ""}]}]}},
           unscheduled(NODES + "\x1b[31m Insufficient nvidia.com/gpu é\n" + "x" * 5000)]
    checks = look(odd)
    for c in checks:
        assert "\x1b" not in c["text"] and "\n" not in c["text"] and len(c["text"]) < 512
    assert any(c["check"] == "gpu" for c in checks)


def test_for_people(look):
    done = look([unscheduled(NODES + "5 Insufficient nvidia.com/gpu" + TAIL)], args=())
    out = done.stdout.decode()
    assert done.returncode == 2 and re.search(r"^fault  gpu +Pod/\S+: no node has a GPU", out, re.M)
    assert "mend: look at `kubectl get nodes" in out and out.endswith("1 fault\n")
    done = subprocess.run([*done.args[:3], "missing.json"], stdout=subprocess.PIPE, check=False)
    assert done.returncode == 2 and b"missing.json" in done.stdout
