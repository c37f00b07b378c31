"""The binary takes each container's command line with the settings as mounted: it gets as far as a
server that is not there (69). A misspelt option, a bad value or a missing file is 64 or 65."""
import os
import re
import socket
import subprocess

import pytest

import manifests

BINARY = os.environ.get("TRANCHE_BIN", f"{manifests.ROOT}/build/release/tranche")
WORLDS = {name: manifests.world(name) for name in manifests.WORLDS}
CASES = [(name, who, c) for name, objects in WORLDS.items()
         for who, t in manifests.templates(objects)
         for c in [*t["spec"].get("initContainers", []), *t["spec"]["containers"]]]
DONE, REFUSED, UNREACHABLE = 0, 64, 69


@pytest.fixture(scope="module")
def secrets(tmp_path_factory):
    """The keys of docs/kubernetes.md's Secrets, with a certificate that openssl makes here."""
    folder = tmp_path_factory.mktemp("secrets")
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj",
                    "/CN=test", "-keyout", f"{folder}/tls.key", "-out", f"{folder}/tls.crt"],
                   check=True, stderr=subprocess.DEVNULL)
    (folder / "ca.crt").write_text((folder / "tls.crt").read_text())
    (folder / "password").write_text("secret\n")
    (folder / "sentinel-password").write_text("secret\n")
    (folder / "username").write_text("pod\n")
    return folder


def copies(container):
    """Of all containers the one that asks no server."""
    return container["args"][0] == "cache"


def run(container, objects, folder, secrets, edit=lambda text: text, **more):
    """As the kubelet would, below `folder`: mounts are folders, $(VAR) is expanded."""
    def moved(text):
        text = re.sub(r"/var/run/secrets/tranche/\w+", str(secrets), text)
        return re.sub(r"(?<![\w/:])/(?=(etc|var|models|source)/)", f"{folder}/", text)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    maps = {o["metadata"]["name"]: o["data"] for o in objects if o["kind"] == "ConfigMap"}
    for name in ("etc/tranche", "etc/tranche-jobs", "var/spool/tranche", "var/cache/tranche", "models", "source"):
        os.makedirs(f"{folder}/{name}", exist_ok=True)
    named = [a.split("/models/")[1] for a in container["args"] if a.startswith("--model=/models/")]
    for model in ["source/model"] if copies(container) else ["models/model", *(f"models/{n}" for n in named)]:
        if not os.path.exists(f"{folder}/{model}"):  # looked for before any server is
            os.symlink(f"{manifests.ROOT}/examples/tiny-model", f"{folder}/{model}")
    for mount, data in (("tranche", maps["tranche"]), ("tranche-jobs", maps["tranche-jobs"])):
        for name, text in data.items():
            with open(f"{folder}/etc/{mount}/{name}", "w") as f:
                f.write(edit(moved(text)).replace("[::]:9464", f"127.0.0.1:{port}"))
    environment = {"PATH": os.environ["PATH"], "JOB_COMPLETION_INDEX": "3",
                   "TRANCHE_CONNECT_TIMEOUT": "1s", **more}
    for e in container.get("env", []):
        environment[e["name"]] = moved(e.get("value", "pod-1"))
    args = [re.sub(r"\$\((\w+)\)", lambda m: environment[m[1]], edit(moved(a))) for a in container["args"]]
    done = subprocess.run([BINARY, *args], env=environment, stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=120)
    return done.returncode, done.stdout.decode()


@pytest.mark.parametrize("world, who, container", CASES, ids=[f"{w}-{n}-{c['name']}".replace(" ", "-") for w, n, c in CASES])
def test_command_line_is_taken(world, who, container, tmp_path, secrets):
    assert container["command"] == ["tranche"]
    code, text = run(container, WORLDS[world], tmp_path, secrets)
    assert code == (DONE if copies(container) else UNREACHABLE), text
    assert not copies(container) or os.path.exists(f"{tmp_path}/models/model/config.json")
    assert "environment_unknown" not in text


@pytest.mark.parametrize("old, new, said", [
    ("idle-exit = 2m", "idle-exits = 2m", "idle-exits"),
    ("grace = 280s", "grace = long", "long"),
    ("ssl.key.location", "ssl.keys.location", "ssl.keys.location"),
])
def test_a_slip_is_refused(old, new, said, tmp_path, secrets):
    container = next(c for w, n, c in CASES if w == "keda kafka" and n == "ScaledJob/tranche-worker")
    code, text = run(container, WORLDS["keda kafka"], tmp_path, secrets, lambda t: t.replace(old, new))
    assert code == REFUSED and said in text, text


def test_commands_exist():
    """Every command that a container runs is one of the binary's."""
    listed = subprocess.run([BINARY, "help", "--markdown"], stdout=subprocess.PIPE, check=True).stdout.decode()
    assert {c["args"][0] for _, _, c in CASES} <= set(re.findall(r"^\| `tranche (\w+)` \|", listed, re.M))
