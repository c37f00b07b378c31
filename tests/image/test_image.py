"""`make test-image`: the Dockerfile's steps carried out (dockerfile.py), and the image held to what
docs/image.md says of it. As root, with debootstrap. IMAGES names the images (cpu)."""
import json
import os
import re
import shutil
import subprocess

import pytest

import test_dockerfile
from dockerfile import ROOT, Builder, base, parse, size, stages

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
