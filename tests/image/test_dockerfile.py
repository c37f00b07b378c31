"""The Dockerfile as a text: pinned, complete, and with the packages that the binary is linked with.
tests/image/test_image.py carries its steps out; that takes minutes, and root."""
import json
import os
import re
import subprocess

import pytest

from dockerfile import ROOT, parse, stages

BINARY = os.environ.get("TRANCHE_BIN", f"{ROOT}/build/release/tranche")
STAGES = stages(parse())
IMAGES = ("cpu", "cuda")


def chain(name):
    """A stage and those that it stands on, from the lowest up."""
    stage = STAGES[name]
    return (chain(stage.base) if stage.base in STAGES else []) + [stage]


def steps(name, kind):
    return [rest for stage in chain(name) for what, rest in stage.steps if what == kind]


def packages(name):
    found = set()
    for run in steps(name, "RUN"):
        for part in re.findall(r"apt-get install -y --no-install-recommends ([^&]*)", run):
            found |= set(part.split())
    return found


def test_bases_are_pinned():
    """A dated tag or a digest, one for all of them; stages stand on stages before them."""
    seen = []
    for stage in STAGES.values():
        if stage.base not in seen:
            assert re.fullmatch(r"debian:trixie-\d{8}-slim|\S+@sha256:[0-9a-f]{64}", stage.base), stage.base
        seen.append(stage.name)
    assert len({s.base for s in STAGES.values()} - set(STAGES)) == 1


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_says_what_it_is(name):
    labels = " ".join(steps(name, "LABEL"))
    for label in "title", "description", "revision", "base.name":
        assert f"org.opencontainers.image.{label}=" in labels
    [external] = {s.base for s in chain(name)} - set(STAGES)
    assert f'base.name="{external}"' in labels
    assert steps(name, "USER")[-1] == "65532:65532" and steps(name, "ENTRYPOINT")[-1] == '["tranche"]'
    assert "NVIDIA_VISIBLE_DEVICES" not in open(f"{ROOT}/Dockerfile").read()  # the device plugin's to say
    assert "sbom.spdx.json" in " ".join(steps(name, "COPY"))


@pytest.mark.parametrize("name", IMAGES)
def test_the_manifests_start_it(name):
    """The pods' user and command are the image's."""
    job = open(f"{ROOT}/k8s/jobs/base/job.yaml").read()
    assert "runAsUser: 65532" in job and "command: [tranche]" in job
    assert "useradd --uid 65532 --gid 65532" in " ".join(steps(name, "RUN"))
    assert any(c.endswith(" /usr/local/bin/tranche") for c in steps(name, "COPY"))


@pytest.mark.parametrize("name", IMAGES)
def test_nothing_for_building_is_installed(name):
    assert not [p for p in packages(name) if re.search(r"-dev$|gcc|g\+\+|clang|cmake|python|cuda|^git$|^make$", p)]
    assert "install.sh" not in " ".join(steps(name, "RUN") + steps(name, "COPY"))


def test_sources_are_in_the_repository_and_in_the_context():
    ignored = open(f"{ROOT}/.dockerignore").read().split("\n")
    for stage in STAGES.values():
        for what, rest in stage.steps:
            *sources, _ = rest.split()
            if what != "COPY" or sources[0].startswith("--from="):
                continue
            for source in sources:
                tracked = subprocess.run(["git", "-C", ROOT, "ls-files", source], stdout=subprocess.PIPE).stdout
                assert tracked or not os.path.isdir(f"{ROOT}/.git"), source
                assert os.path.exists(f"{ROOT}/{source}") and f"!{source}" in ignored, source


def test_what_comes_from_a_stage_is_made_there():
    for stage in STAGES.values():
        for what, rest in stage.steps:
            if what == "COPY" and rest.startswith("--from="):
                origin, path, _ = re.fullmatch(r"--from=(\S+) (\S+) (\S+)", rest).groups()
                assert list(STAGES).index(origin) < list(STAGES).index(stage.name)
                assert path in " ".join(STAGES[origin].steps[-1][1].split()), (path, origin)


def needed(path):
    text = subprocess.run(["objdump", "-p", path], stdout=subprocess.PIPE, check=True).stdout.decode()
    return set(re.findall(r"NEEDED\s+(\S+)", text))


# The image's packages, which are Debian 13's; this machine's libraries may have other numbers and names.
PACKAGES = {
    "libjansson": "libjansson4", "libutf8proc": "libutf8proc3", "libcrypto": "libssl3t64", "libssl": "libssl3t64",
    "libsqlite3": "libsqlite3-0", "libpq": "libpq5", "librdkafka": "librdkafka1", "libhiredis": "libhiredis1.1.0",
    "libmicrohttpd": "libmicrohttpd12t64", "libstdc++": "libstdc++6", "libgcc_s": "libgcc-s1",
    "libc": "libc6", "libm": "libc6", "ld-linux-x86-64": "libc6",
}
ALWAYS = {"libc6", "libgcc-s1"}  # every base has them


def missing(libraries, name):
    """Those of `libraries` that the image does not install by name. test_image.py asks the image's dpkg."""
    return {x for x in libraries if PACKAGES.get(x.split(".so")[0]) not in packages(name) | ALWAYS}


def test_each_library_has_its_package():
    libraries = needed(BINARY)
    assert len(libraries) > 8
    for name in IMAGES:
        assert missing(libraries, name) == set()


def test_a_library_without_its_package_is_missed():
    assert missing({"libmicrohttpd.so.12", "libnew.so.1", "libc.so.6"}, "cpu") == {"libnew.so.1"}
    assert "libmicrohttpd12t64" in packages("cpu") and "liburing2" not in packages("cpu")


def test_the_bill_of_materials(tmp_path):
    """Of this machine: SPDX 2.3, each package once, all that the document must have."""
    text = subprocess.run([f"{ROOT}/tools/sbom.sh", f"{ROOT}/CMakeLists.txt", "nvidia-cublas 13.0.2 NVIDIA"],
                          stdout=subprocess.PIPE, check=True, env={**os.environ, "SOURCE_DATE_EPOCH": "86400"}).stdout
    check_bill(json.loads(text), extra=["nvidia-cublas"])
    assert json.loads(text)["creationInfo"]["created"] == "1970-01-02T00:00:00Z"
    (tmp_path / "none").write_text("project(x)\n")
    assert subprocess.run([f"{ROOT}/tools/sbom.sh", str(tmp_path / "none")], stderr=subprocess.PIPE).returncode == 65


def check_bill(bill, extra=(), installed=None):
    assert (bill["spdxVersion"], bill["dataLicense"], bill["SPDXID"]) == ("SPDX-2.3", "CC0-1.0", "SPDXRef-DOCUMENT")
    assert re.fullmatch(r"https://\S+", bill["documentNamespace"]) and bill["name"] and bill["creationInfo"]["creators"]
    ids = [p["SPDXID"] for p in bill["packages"]]
    assert len(set(ids)) == len(ids) and all(re.fullmatch(r"SPDXRef-[A-Za-z0-9.-]+", i) for i in ids)
    for p in bill["packages"]:
        assert p["name"] and p["versionInfo"] and p["downloadLocation"] and p["filesAnalyzed"] is False
    if installed is None:
        listed = subprocess.run(["dpkg-query", "-W", "-f", "${db:Status-Abbrev} ${Package} ${Version}\n"],
                                stdout=subprocess.PIPE, check=True).stdout.decode()
        installed = {tuple(line.split()[1:]) for line in listed.split("\n") if line.startswith("ii ")}
    have = {(p["name"], p["versionInfo"]) for p in bill["packages"]}
    assert {(n, v) for n, v in have if n not in ("tranche", *extra)} == installed
    assert {"tranche", *extra} <= {n for n, _ in have}
    related = {r["relatedSpdxElement"] for r in bill["relationships"]}
    assert related == set(ids)
