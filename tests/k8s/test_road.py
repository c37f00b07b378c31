"""Step 1 of docs/kubernetes.md's road, run as it stands there on a copy of k8s/; and every folder and
command that the page names is there."""
import os
import re
import shutil
import subprocess

import pytest

import manifests
import policy
from schema import Schemas

with open(f"{manifests.ROOT}/docs/kubernetes.md", encoding="utf-8") as f:
    PAGE = f.read()
STEP = PAGE.split("**1. Your addresses")[1].split("```sh\n")[1].split("```")[0]
SAID = re.search(r"for Redis the same with `(\S+)` for `(\S+)`, `(\S+)` for `(\S+)` and (\S+) for (\S+)\.", PAGE)


def renamed(text, queue):
    if queue == "redis":
        for new, old in zip(SAID.groups()[::2], SAID.groups()[1::2]):
            text = text.replace(old, new)
    return text


@pytest.mark.parametrize("queue", ["kafka", "redis"])
def test_step_one(queue, tmp_path):
    shutil.copytree(f"{manifests.ROOT}/k8s", tmp_path / "k8s")
    done = subprocess.run(["bash", "-euc", renamed(STEP, queue)], cwd=tmp_path, stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          env={"PATH": f"{manifests.CACHE}:{os.environ['PATH']}"}, check=True)
    shown = done.stdout.decode()
    assert "image: images.example.org/tranche:0.1.0" in shown and "db.example.org/llm" in shown
    objects = [o for folder in ("jobs/init", "jobs/cache", "jobs/smoke", f"keda/overlays/{queue}")
               for o in manifests.render_folder(tmp_path / "k8s" / folder)]
    assert policy.broken(objects) == {}
    schemas = Schemas()
    assert [e for o in objects for e in schemas.errors(o)] == []
    for file in (tmp_path / "k8s").rglob("*"):   # whatever is applied later: overlays, Jobs, the ways back
        words = file.read_text() if file.is_file() else ""
        assert set(re.findall(r"^\s+image: (.*)", words, re.M)) <= {"images.example.org/tranche:0.1.0"}, file
        assert not re.search(rf"postgres\.svc|{queue}\.svc", words), file
    text = str(objects)
    assert ".svc" not in text and f"{queue}.example.org:{'9093' if queue == 'kafka' else '6379'}" in text
    asked = {n: t["spec"]["containers"][0]["args"] for n, t in manifests.templates(objects)}
    for name in ("Job/tranche-migrate", "Job/tranche-smoke"):
        assert any("@db.example.org/llm?" in a for a in asked[name]), name


def test_overlays_of_the_page_stand(tmp_path):
    """Those that a reader writes beside k8s/, as they stand on the page."""
    os.symlink(f"{manifests.ROOT}/k8s", tmp_path / "k8s")
    schemas = Schemas()
    shown = [text.split("```")[0] for text in PAGE.split("```yaml\n")[1:]]
    assert len(shown) == 2
    over = re.search(r"that component goes over\s([^;.]*?), too", PAGE)[1]
    over = re.findall(r"`([\w-]+)`", over)
    assert sorted(over) == ["canary-redis", "shrinking-pool", "warm-pool"]
    sasl = shown[1]
    shown += [sasl.replace("/blue-green", f"/{name}").replace("/kafka-sasl", "/redis-sentinel") for name in over]
    shown += [sasl.replace("/blue-green", f"/live-{name}") for name in ("blue", "green")]
    for i, text in enumerate(shown):
        mine = tmp_path / f"mine-{i}"
        mine.mkdir()
        (mine / "kustomization.yaml").write_text(text)
        objects = manifests.render_folder(mine)
        assert [e for o in objects for e in schemas.errors(o)] == []
        if not any(o["kind"] == "ConfigMap" for o in objects):
            beside = ["jobs/init", "keda/overlays/redis-sentinel"] if "sentinel" in text else ["common/kafka"]
            objects += [o for folder in beside for o in manifests.render(folder)]
        assert policy.broken(objects) == {}


def test_folders_of_the_page_are_there():
    for folder in re.findall(r"(?<!tests/)\bk8s/[\w./-]+", PAGE):
        assert os.path.exists(f"{manifests.ROOT}/{folder.rstrip('.')}"), folder
    overlays = re.findall(r"^\| `([\w-]+)` \| ", PAGE.split("overlays/...`")[1].split("\n\n")[0], re.M)
    there = os.listdir(f"{manifests.ROOT}/k8s/keda/overlays")
    assert sorted(overlays + ["kafka"]) == sorted(there)


def test_commands_that_would_not_do():
    """What kubectl refuses, cuts off or ends with 1, and what `apply` cannot undo."""
    commands = re.findall(r"kubectl [^`\n#|&]+", PAGE)
    assert len(commands) > 20
    for c in commands:
        if "--watch" in c:
            assert not re.search(r" get \S+,", c), f"{c}: one resource type can be watched"
        if " logs " in c and " -l " in c:
            assert "--tail=-1" in c, f"{c}: by a label it shows ten lines"
        if " wait " in c:
            assert "--timeout=" in c, f"{c}: it waits 30 s"
        if " delete " in c and re.search(r" -k k8s", c):
            assert "--ignore-not-found" in c, f"{c}: a Job of it may be gone"
            objects = manifests.render(c.split(" -k k8s/")[1].strip())
            assert not [o for o in objects if o["kind"] == "Namespace"], c


def test_secrets_of_step_three_are_those_of_the_table():
    loop = re.search(r"^for name in (tranche-db .*); do", PAGE, re.M)[1].split()
    table = re.findall(r"^\| Secret `([\w-]+)` \| [^|]* \| (.*) \|", PAGE, re.M)
    assert loop == [name for name, why in table if not why.startswith("only for")]
