"""Every kustomization renders, and the API server would take each object of it: strictly."""
import copy

import pytest

import manifests
from schema import Schemas

SCHEMAS = Schemas()
# What overlays build on; it is not applied by itself.
PARTS = {"common/base", "jobs/base", "keda/base", "keda/overlays/kafka/auth", "keda/overlays/blue",
         "keda/overlays/green"} | {f for f in manifests.folders() if f.startswith("components/")}
APPLIED = [f for f in manifests.folders() if f not in PARTS]


def test_every_kustomization_stands_in_a_world():
    """A folder that no world has would escape the policy rules."""
    named = {f for world in manifests.WORLDS.values() for f in world}
    included = {"common/kafka", "common/redis"}
    assert set(APPLIED) - included <= named
    assert PARTS <= set(manifests.folders())


@pytest.mark.parametrize("folder", APPLIED)
def test_every_object_is_valid(folder):
    objects = manifests.render(folder)
    assert objects
    assert [e for o in objects for e in SCHEMAS.errors(o)] == []


def change(o, path, value):
    o = copy.deepcopy(o)
    *way, last = path
    node = o
    for step in way:
        node = node[step]
    node[last] = value
    return o


SCALED = ("keda/overlays/kafka", "ScaledJob")
JOB = ("jobs/drain", "Job")


@pytest.mark.parametrize("where, path, value, said", [
    (SCALED, ("spec", "maxReplicas"), 3, "'maxReplicas' was unexpected"),
    (SCALED, ("spec", "maxReplicaCount"), "3", "'3' is not of type 'integer'"),
    (SCALED, ("spec", "rollout", "strategi"), "gradual", "'strategi' was unexpected"),
    (SCALED, ("spec", "triggers", 0, "metadata", "lagThreshold"), 500, "500 is not of type 'string'"),
    (SCALED, ("spec", "jobTargetRef", "template", "spec", "enableServicelinks"), False,
     "'enableServicelinks' was unexpected"),
    (SCALED, ("metadata", "label"), {}, "'label' was unexpected"),
    (JOB, ("spec", "ttlSecondsAfterFinish"), 5, "'ttlSecondsAfterFinish' was unexpected"),
    (JOB, ("spec", "template", "spec", "containers", 0, "ressources"), {}, "'ressources' was unexpected"),
    (JOB, ("spec", "template", "spec", "containers", 0, "name"), 7, "7 is not of type 'string'"),
    (JOB, ("spec", "podFailurePolicy", "rules", 0, "onPodCondition"), [], "'onPodCondition' was unexpected"),
    (JOB, ("apiVersion",), "batch/v2", "no such kind"),
])
def test_what_is_wrong_is_refused(where, path, value, said):
    folder, kind = where
    whole = next(o for o in manifests.render(folder) if o["kind"] == kind)
    assert SCHEMAS.errors(whole) == []
    assert said in "\n".join(SCHEMAS.errors(change(whole, path, value)))


def test_a_key_that_stands_twice_is_refused():
    with pytest.raises(Exception, match="stands twice"):
        manifests.load_all("a: 1\nb: 2\na: 3\n")
