"""`make test-image`: the Dockerfile's steps carried out (dockerfile.py), and the image held to what
docs/image.md says of it. As root, with debootstrap. IMAGES names the images (cpu)."""
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

import test_dockerfile
from dockerfile import ROOT, Builder, base, parse, size, stages

sys.path.insert(0, f"{ROOT}/tests/run")
from secure_broker import SecureBroker  # noqa: E402

CACHE = f"{ROOT}/.cache/image"
IMAGES = (os.environ.get("IMAGES") or "cpu").split()
COMMIT = "image-test"  # one for all runs, so that layers are found again
JOBS = [{"id": f"j{i}", "prompt": "1 + 2 =", "max_tokens": 4} for i in range(3)]
TOOLS = re.compile(r"/(gcc|cc|g\+\+|c\+\+|cpp|clang|ld|as|make|cmake|ninja|git|python[\d.]*|pip[\d.]*|nvcc|ptxas|patchelf)"
                   r"(-[\d.]+)?$|/include/.*\.h$|\.a$|\.cuh?$|/libcudart|/libnvvm|/site-packages/")


@pytest.fixture(scope="module", params=IMAGES)
def image(request):
    assert os.geteuid() == 0, "the steps are carried out as root"
    external = next(s.base for s in stages(parse()).values())
    builder = Builder(base(CACHE, external), CACHE, {"COMMIT": COMMIT})
    made = builder.build(request.param)
    made.name, made.builder = request.param, builder
    return made


@pytest.fixture
def models(tmp_path):
    """What a pod would mount below /models."""
    shutil.copytree(f"{ROOT}/examples/tiny-model", tmp_path / "models/model")
    (tmp_path / "models/jobs.jsonl").write_text("".join(json.dumps(j) + "\n" for j in JOBS))
    tmp_path.chmod(0o755)
    return str(tmp_path)


def start(image, *args, **more):
    done = image.builder.start(image, args, timeout=300, **more)
    return done.returncode, done.stdout.decode(), done.stderr.decode()


RUN = ["run", "--model", "/models/model", "--device", "cpu", "--db", "/tmp/jobs.db", "--show", "9", "/models/jobs.jsonl"]


def test_it_runs_as_nobody_on_a_read_only_root(image, models):
    code, out, err = start(image, *RUN, tmpfs=["/tmp"], extra=models)
    assert code == 0, err[-3000:]
    assert all(j["id"] in out + err for j in JOBS), out + err
    code, out, err = start(image, *RUN, extra=models)  # without a place to write, it says so
    assert code == 69 and "/tmp/jobs.db" in err, (code, err[-2000:])
    code, out, _ = start(image, "--version")
    assert code == 0 and COMMIT in out


def test_a_missing_library_shows(image, tmp_path):
    """As a package that was forgotten would."""
    lib = tmp_path / "usr/lib/x86_64-linux-gnu"
    lib.mkdir(parents=True)
    for folder in (tmp_path, *reversed(lib.parents[:3]), lib):
        folder.chmod(0o755)
    os.mknod(lib / "libmicrohttpd.so.12", 0o020600, 0)  # takes the file of a lower layer away
    code, _, err = start(image, "--version", extra=str(tmp_path))
    assert code == 127 and "libmicrohttpd.so.12" in err


def test_each_library_has_its_package(image):
    """What the binary is linked with is installed by name, and by the names that `make test` takes it to have."""
    files = image.files()
    owner = {}
    for path, at in files.items():
        if found := re.fullmatch(r"/var/lib/dpkg/info/([\w.+-]+)(:\w+)?\.list", path):
            owner.update((line, found[1]) for line in open(at).read().split())
    libraries = test_dockerfile.needed(image.find("/usr/local/bin/tranche")) - {"libcublasLt.so.13"}
    found = {x: {owner[p] for p in owner if p.endswith(f"/{x}")} for x in libraries}
    assert len(libraries) > 8 and found == {x: {test_dockerfile.PACKAGES[x.split(".so")[0]]} for x in libraries}
    assert test_dockerfile.missing(libraries, image.name) == set()


QUEUE = ["--source", "kafka://localhost:{port}/prompts", "--broker-config", "/models/broker.conf", "--connect-timeout", "60s"]
WORKER = ["--model", "/models/model", "--device", "cpu", "--db", "/tmp/rows.db", "--idle-exit", "2s", "--progress", "off"]


def test_a_job_through_kafka_sasl(image, models, tmp_path_factory):
    """SCRAM over TLS by the image's own client library, with the settings of k8s/components/kafka-sasl as
    they are but for the Secret's folder: a job in, its row out."""
    broker = SecureBroker(tmp_path_factory.mktemp("kafka"))
    settings = open(f"{ROOT}/k8s/components/kafka-sasl/broker.conf").read()
    assert "sasl.mechanism = SCRAM-SHA-512\n" in settings
    mounted = {"etc/hosts": "127.0.0.1 localhost\n",  # a cluster gives each pod one
               "models/ca.crt": (broker.tls / "ca.crt").read_text(),
               "models/username": "scram", "models/password": "geheim",
               "models/broker.conf": settings.replace("/var/run/secrets/tranche/broker", "/models")}
    os.mkdir(f"{models}/etc")
    for name, text in mounted.items():
        pathlib.Path(f"{models}/{name}").write_text(text)
    queue = " ".join(QUEUE).format(port=broker.sasl)

    def shell(text):
        done = image.builder.start(image, ["-c", text], tmpfs=["/tmp"], extra=models, entrypoint=["/bin/sh"], timeout=300)
        return done.returncode, done.stdout.decode(), done.stderr.decode()
    try:
        broker.start()
        broker.grant(["--operation", "Read", "--operation", "Create", "--topic", "prompts"],
                     ["--operation", "Read", "--group", "tranche"])
        code, _, err = shell(f"tranche init {queue} --partitions 1")
        assert code == 0, err[-3000:]
        broker.produce("prompts", [json.dumps(JOBS[0])])
        code, out, err = shell(f"tranche worker {queue} {' '.join(WORKER)} >&2 && "
                               "tranche export --db /tmp/rows.db --batch prompts")
        assert code == 0, err[-3000:]
        [row] = map(json.loads, out.splitlines())
        assert row["custom_id"] == "j0" and row["response"]["status_code"] == 200, row
        pathlib.Path(f"{models}/models/password").write_text("wrong")
        code, _, err = shell(f"tranche worker {queue} {' '.join(WORKER)}")
        assert code == 65 and "invalid credentials" in err and "want librdkafka" not in err, err[-3000:]
    finally:
        broker.kill()


def test_nobody_is_who_the_manifests_say(image):
    done = image.builder.enter(f"lowerdir={image.builder.lower(image)}", "run", [],
                               [f"--userspec={image.user}", "--groups=", "ROOT", "/usr/bin/id"], {}, stdout=subprocess.PIPE)
    assert done.stdout.decode().strip() == "uid=65532(tranche) gid=65532(tranche) groups=65532(tranche)"


def test_nothing_for_building_is_in_it(image):
    files = image.files()
    assert len(files) > 2000 and "/usr/local/bin/tranche" in files
    assert [f for f in files if TOOLS.search(f)] == []
    # This machine's folders and settings stay out.
    assert [f for f in files if f.startswith(("/run/", "/tmp/", "/var/lib/apt/lists/", "/src"))] == []


def test_the_build_stage_would_be_seen(image):
    """The rule above finds a compiler where there is one."""
    files = image.builder.build("build").files()
    assert {"/usr/bin/gcc", "/usr/bin/cmake"} <= {f for f in files if TOOLS.search(f)}


def test_the_bill_of_materials_is_the_images(image):
    """What dpkg's own record in the image says."""
    status = open(image.find("/var/lib/dpkg/status")).read().split("\n\n")
    fields = [dict(re.findall(r"^(Package|Version|Status): (.*)$", s, re.M)) for s in status if s.strip()]
    installed = {(f["Package"], f["Version"]) for f in fields if f["Status"] == "install ok installed"}
    extra = ["nvidia-cublas"] if image.name == "cuda" else []
    bill = json.load(open(image.find("/usr/share/doc/tranche/sbom.spdx.json")))
    test_dockerfile.check_bill(bill, extra, installed)


def table(image):
    """[(layer, bytes)], those without a file left out."""
    return [(what, size(folder)) for _, what, folder in image.layers if size(folder)]


def test_sizes_are_those_of_the_page(image):
    """Under 1 GB, and each layer within a twentieth (and a megabyte) of what docs/image.md says."""
    layers = table(image)
    total = sum(n for _, n in layers)
    print("\n".join(f"| {image.name} | {n / 1e6:.1f} | {what[:90]} |" for what, n in [*layers, ("total", total)]))
    assert total < 1e9
    page = open(f"{ROOT}/docs/image.md").read()
    told = [float(n) for n in re.findall(rf"^\| {image.name} \| ([\d.]+) \|", page, re.M)]
    assert len(told) == len(layers) + 1, (told, layers)
    for (what, n), mb in zip([*layers, ("total", total)], told):
        assert abs(n / 1e6 - mb) <= 1 + mb / 20, (what, n, mb)


def test_labels(image):
    assert image.labels["org.opencontainers.image.revision"] == COMMIT
    assert image.user == "65532:65532" and image.entrypoint == ["tranche"]
