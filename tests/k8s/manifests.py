"""manifests: renders k8s/ with kubectl's own kustomize and walks what comes out."""
import os
import subprocess

import yaml

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
# Kept by tools/k8s_schemas.sh, which prints the folder.
CACHE = subprocess.run([f"{ROOT}/tools/k8s_schemas.sh"], stdout=subprocess.PIPE,
                       check=True).stdout.decode().strip()
# What an operator has on one cluster at a time, and what the rules hold against each other.
WORLDS = {
    "keda kafka": ["jobs/init", "jobs/cache", "jobs/smoke", "keda/overlays/kafka", "monitoring/keda"],
    "keda kafka sasl": ["jobs/init", "jobs/smoke", "keda/overlays/kafka-sasl", "keda/overlays/canary"],
    "keda redis": ["jobs/init", "jobs/smoke", "keda/overlays/redis", "monitoring/keda"],
    "keda redis sentinel": ["jobs/init", "jobs/smoke", "keda/overlays/redis-sentinel"],
    "keda warm pool": ["jobs/init", "jobs/drain", "keda/overlays/warm-pool", "monitoring/keda"],
    "keda shrinking pool": ["jobs/init", "keda/overlays/shrinking-pool"],
    "keda canary": ["jobs/init", "keda/overlays/kafka", "keda/overlays/canary", "monitoring/keda"],
    "keda canary redis": ["jobs/init", "keda/overlays/redis", "keda/overlays/canary-redis",
                          "monitoring/keda"],
    "keda canary redis back": ["jobs/init", "keda/overlays/redis", "jobs/drop-canary"],
    "keda blue-green": ["jobs/init", "keda/overlays/blue-green", "monitoring/keda"],
    "keda live-blue": ["jobs/init", "keda/overlays/live-blue", "monitoring/keda"],
    "keda live-green": ["jobs/init", "keda/overlays/live-green", "monitoring/keda"],
    "keda kueue": ["jobs/init", "keda/overlays/kueue"],
    "keda runtime class": ["jobs/init", "keda/overlays/nvidia-runtimeclass"],
    "keda predicted": ["jobs/init", "keda/overlays/predicted-work"],
    "keda two gpus": ["jobs/init", "keda/overlays/two-gpus"],
    "keda node models": ["jobs/init", "keda/overlays/node-models"],
    "keda nfs": ["jobs/init", "jobs/cache-nfs", "keda/overlays/nfs-model-cache"],
    "jobs kafka": ["common/kafka", "jobs/init", "jobs/drain", "jobs/backfill", "jobs/cron", "monitoring/base"],
    "jobs kafka sasl": ["common/kafka-sasl", "jobs/init", "jobs/drain"],
    "jobs redis sentinel": ["common/redis-sentinel", "jobs/init", "jobs/drain"],
    "jobs redis": ["common/redis", "jobs/init", "jobs/drain", "jobs/cron"],
}


class Strict(yaml.SafeLoader):
    """A key that stands twice is an error, as it is to the API server's strict decoding."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = [k for k in keys if keys.count(k) > 1]
        if twice:
            raise yaml.constructor.ConstructorError(None, None, f"key {twice[0]!r} stands twice",
                                                    node.start_mark)
        return super().construct_mapping(node, deep)


def load_all(text):
    return [o for o in yaml.load_all(text, Strict) if o is not None]


def folders():
    """Every kustomization, below k8s/."""
    top = f"{ROOT}/k8s"
    return sorted(os.path.relpath(d, top) for d, _, files in os.walk(top) if "kustomization.yaml" in files)


def render(folder):
    return render_folder(f"{ROOT}/k8s/{folder}")


def render_folder(folder):
    done = subprocess.run([f"{CACHE}/kubectl", "kustomize", str(folder)],
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert done.returncode == 0, f"{folder}: {done.stderr.decode()}"
    return load_all(done.stdout.decode())


def world(name):
    return [o for folder in WORLDS[name] for o in render(folder)]


def label(o):
    return f"{o['kind']}/{o['metadata']['name']}"


def job_specs(objects):
    """(label, the Job's specification) of whatever makes Jobs."""
    for o in objects:
        spec = {"Job": lambda: o["spec"],
                "CronJob": lambda: o["spec"]["jobTemplate"]["spec"],
                "ScaledJob": lambda: o["spec"]["jobTargetRef"]}.get(o["kind"])
        if spec:
            yield label(o), spec()


def templates(objects):
    """(label, pod template) of whatever makes pods."""
    for name, spec in job_specs(objects):
        yield name, spec["template"]
    for o in objects:
        if o["kind"] == "Deployment":
            yield label(o), o["spec"]["template"]


def settings(objects):
    """tranche.conf of the ConfigMap, as names and values."""
    for o in objects:
        if o["kind"] == "ConfigMap" and o["metadata"]["name"] == "tranche":
            lines = [line.split("#")[0] if line.startswith("#") else line
                     for line in o["data"]["tranche.conf"].split("\n")]
            return dict((part.strip() for part in line.split("=", 1)) for line in lines if "=" in line)
    return {}
