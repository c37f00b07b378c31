#!/usr/bin/python3
"""drive: builds and runs the tests, prints one line a step and the totals as the very last line.

  tests/drive.py all             what `make test` runs: every build, every test, short fuzzing
  tests/drive.py check           release build, lint and the unit tests that take seconds
  tests/drive.py lint
  tests/drive.py fuzz [SECONDS]  each target that long

A step's whole output stands in build/tests/STEP.log; the end of it is shown where it fails. The
totals are also written to build/tests/totals.
"""
import glob
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
LOGS = "build/tests"
FUZZ_SECONDS = 10
# Units with threads of their own run under ThreadSanitizer too.
THREADED = re.compile(r"(?:^|_)(worker|intake|queue|park|cancel|spool|outbox|upload|source|sink|engine|log|cpu|"
                      r"kernel|linear|sim)")
# The whole grid, ten megabytes of text, brokers that come and go, what waits for memory or a silent host: for
# `all`, not for `check`.
LONG = "unit/(sameness|tokenizer_golden|worker_memory|postgres_hosts|source_kafka|kafka_.*(alone|errors|losses))_test$"
SHOWN_LINES = 60
# Lines of a failed step that say nothing: what a build does well, cases that passed.
DULL = re.compile(r"^\[\d+/\d+\] (Building|Linking|cd )|\[ RUN      \]|\[       OK \]|^\tunit/|^\s*$")


class Totals:
    def __init__(self):
        self.passed = self.failed = 0
        self.lock = threading.Lock()

    def add(self, name, passed, failed, seconds, log):
        with self.lock:
            self.passed += passed
            self.failed += failed
            verdict = "FAIL" if failed else "ok"
            count = f"{passed} passed" + (f", {failed} failed" if failed else "")
            print(f"{verdict:5}{name:24}{count:28}{seconds:7.1f} s", flush=True)
            if failed:
                lines = open(log, errors="replace").read().rstrip("\n").split("\n")
                lines = [line for line in lines if not DULL.search(line)]
                print("\n".join("     | " + line for line in lines[-SHOWN_LINES:]), flush=True)


TOTALS = Totals()


def execute(name, command, limit_s, env=None, count=None):
    """Runs one step; `count` turns (exit status, output) into (passed, failed)."""
    log = f"{LOGS}/{name.replace(' ', '-')}.log"
    start = time.monotonic()
    with open(log, "wb") as out:
        try:
            status = subprocess.run(command, stdout=out, stderr=subprocess.STDOUT, timeout=limit_s,
                                    stdin=subprocess.DEVNULL,
                                    env={**os.environ, **(env or {})}).returncode
        except subprocess.TimeoutExpired:
            status = 124
            out.write(f"\nstopped: longer than {limit_s} s\n".encode())
    text = open(log, errors="replace").read()
    passed, failed = count(status, text) if count else (int(status == 0), int(status != 0))
    if status != 0 and failed == 0:
        failed = 1
    TOTALS.add(name, passed, failed, time.monotonic() - start, log)
    return failed == 0


def build(preset, targets=()):
    return execute(f"build {preset}", ["tools/build.sh", preset, *targets], 900)


def count_units(status, text):
    """Each cmocka case counts; a binary that died before its summary counts as one failure."""
    passed = sum(int(n) for n in re.findall(r"\[  PASSED  \] (\d+) test", text))
    failed = sum(int(n) for n in re.findall(r"\[  FAILED  \] (\d+) test", text))
    died = re.search(r"(\d+) tests failed out of", text)
    failed = max(failed, int(died.group(1)) if died else 0)
    return passed, failed if passed or failed else 1


def no_aslr_allowed():
    return subprocess.run(["setarch", "-R", "true"], stderr=subprocess.DEVNULL).returncode == 0


def units(preset, pattern="^unit/", without="^$"):
    # ThreadSanitizer maps fixed addresses; where the kernel scatters more than it expects, it dies.
    still = ["setarch", "-R"] if preset == "tsan" and no_aslr_allowed() else []
    ctest = [*still, "ctest", "--test-dir", f"build/{preset}", "-V", "-j", str(os.cpu_count() or 1),
             "-R", pattern, "-E", without, "--no-tests=error"]
    env = {"ASAN_OPTIONS": "detect_leaks=1:strict_string_checks=1",
           "UBSAN_OPTIONS": "print_stacktrace=1",
           "TSAN_OPTIONS": "halt_on_error=1:second_deadlock_stack=1",
           "TRANCHE_BIN": os.path.abspath(f"build/{preset}/tranche")}
    return execute(f"unit {preset}", ctest, 1500, env, count_units)


def count_pytest(status, text):
    def number(word):
        found = re.findall(rf"(\d+) {word}", text.rstrip().split("\n")[-1])
        return int(found[0]) if found else 0
    passed, failed = number("passed"), number("failed") + number("errors?")
    return passed, failed if passed or failed else 1


def whole():
    """The whole binary, driven from outside: a file of tests a core, since most of them wait."""
    command = ["/usr/bin/python3", "-m", "pytest", "-q", "-p", "no:cacheprovider", "--durations=20",
               "-n", str(os.cpu_count() or 1), "--dist", "loadfile", "tests/run"]
    execute("whole binary", command, 2400, {"PYTHONDONTWRITEBYTECODE": "1"}, count_pytest)


def kubernetes():
    """The manifests: rendered, validated strictly, held against the rules and the binary; alerts and
    dashboard under a real Prometheus."""
    fetched = [execute("fixtures k8s", ["tools/k8s_schemas.sh"], 600),
               execute("fixtures prometheus", ["tools/prometheus.sh"], 300),
               execute("fixtures kafka", ["tools/kafka.sh"], 600)]
    if all(fetched):
        command = ["/usr/bin/python3", "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/k8s"]
        execute("kubernetes", command, 900, {"PYTHONDONTWRITEBYTECODE": "1"}, count_pytest)


def image():
    """What can be said of the Dockerfile without building it; `make test-image` builds it."""
    command = ["/usr/bin/python3", "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/image/test_dockerfile.py"]
    execute("image", command, 300, {"PYTHONDONTWRITEBYTECODE": "1"}, count_pytest)


def count_campaign(status, text):
    """The last line of campaign.py: "N passed, M failed"."""
    last = re.search(r"(\d+) passed, (\d+) failed$", text.rstrip())
    return (int(last[1]), int(last[2])) if last else (0, 1)


def model():
    """The protocol's model over every interleaving, and its mutants."""
    execute("protocol model", ["tests/model/check.py"], 900, None, count_campaign)


def campaign():
    """The short fault campaign: real servers, workers that die at named points."""
    command = ["/usr/bin/python3", "tests/faults/campaign.py", "run", "--short"]
    execute("fault campaign", command, 1200, {"PYTHONDONTWRITEBYTECODE": "1"}, count_campaign)


def newest_kafka_client():
    """The Kafka tests again under the newest client library that a registry package carries."""
    if execute("fixtures librdkafka", ["tools/librdkafka.sh"], 300):
        library = open(f"{LOGS}/fixtures-librdkafka.log").read().strip()
        command = ["/usr/bin/python3", "-m", "pytest", "-q", "-p", "no:cacheprovider",
                   "tests/run/test_kafka.py"]
        execute("kafka newest client", command, 900,
                {"PYTHONDONTWRITEBYTECODE": "1", "LD_LIBRARY_PATH": library,
                 "TRANCHE_TEST_KAFKA_CLIENT": "newest"}, count_pytest)
        execute("unit newest client", ["ctest", "--test-dir", "build/release", "-V", "-j",
                                       str(os.cpu_count() or 1), "-R", "^unit/.*kafka.*_test$",
                                       "--no-tests=error"],
                600, {"LD_LIBRARY_PATH": library}, count_units)


def newest_postgres_server():
    """Schema, roles, sink and the analysts' queries under the newest server that a registry package
    carries. It has neither lz4 nor TLS; the tests of those stay with the distribution's."""
    if not execute("fixtures postgres", ["tools/postgres.sh"], 300):
        return
    programs = open(f"{LOGS}/fixtures-postgres.log").read().strip()
    package = os.path.dirname(os.path.dirname(programs))
    with tempfile.TemporaryDirectory(prefix="tranche-postgres-") as folder:
        # As root the server runs as another user, who may not see this folder.
        os.chmod(folder, 0o755)
        shutil.copytree(os.path.dirname(package), f"{folder}/all", symlinks=True)
        copy = f"{folder}/all/{os.path.relpath(programs, os.path.dirname(package))}"
        command = ["/usr/bin/python3", "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k",
                   "roles or analysts or migrate or sqlites or same_rows or contract "
                   "or privilege", "tests/run/test_postgres_roles.py", "tests/run/test_postgres.py",
                   "tests/run/test_analysts.py"]
        execute("postgres newest server", command, 600,
                {"PYTHONDONTWRITEBYTECODE": "1", "TRANCHE_TEST_POSTGRES_BIN": copy}, count_pytest)


def lint():
    for path in sorted(glob.glob("tests/lint/*.sh") + glob.glob("tests/lint/*.py")):
        execute("lint " + os.path.splitext(os.path.basename(path))[0], [path], 120)


def fuzz_targets():
    return sorted(os.path.basename(p)[:-2] for p in glob.glob("tests/fuzz/*_fuzz.c"))


def fuzz(seconds):
    for target in fuzz_targets():
        name = target[:-len("_fuzz")]
        found = f"build/fuzz-corpus/{name}"
        os.makedirs(found, exist_ok=True)
        command = [f"build/fuzz/{target}", f"-max_total_time={seconds}", "-timeout=10",
                   "-rss_limit_mb=2048", "-max_len=65536", "-verbosity=0",
                   f"-artifact_prefix=build/fuzz-corpus/{name}-", found,
                   f"tests/fuzz/corpus/{name}"]  # a missing corpus is a failure
        execute(f"fuzz {name}", command, seconds + 60)


def threaded_targets():
    names = [os.path.basename(p)[:-2] for p in glob.glob("tests/unit/*_test.c")]
    # librdkafka comes uninstrumented: ThreadSanitizer cannot see its locks and reports races in it.
    return sorted(n for n in names if THREADED.search(n) and "kafka" not in n)


def fixtures():
    """Public tokenizers and texts whose licences forbid shipping them; kept between runs."""
    execute("fixtures", ["tools/fixtures.sh"], 300)
    execute("fixtures templates", ["tools/fixtures_templates.sh"], 300)


def run_all():
    fixtures()
    # gcc builds release and tsan, clang builds asan and fuzz: both compilers see every source.
    release = build("release")
    if release:
        units("release")
    lint()
    execute("lint cuda", ["tests/cuda/lint.sh"], 900)
    fuzzers = build("fuzz", fuzz_targets())
    if release:
        whole()
    # Fuzzers take one core, what mostly waits for brokers the other.
    beside = threading.Thread(target=fuzz, args=(FUZZ_SECONDS,))
    if fuzzers:
        beside.start()
    if release:
        newest_kafka_client()
        newest_postgres_server()
        kubernetes()
        image()
    if fuzzers:
        beside.join()
    if build("faults", ["tranche", "faultproxy"]):
        campaign()
    model()
    if build("asan"):
        units("asan")
    threaded = threaded_targets()
    if build("tsan", threaded):
        units("tsan", "^unit/(" + "|".join(threaded) + ")$")


def main():
    os.chdir(ROOT)
    os.makedirs(LOGS, exist_ok=True)
    what = sys.argv[1] if len(sys.argv) > 1 else ""
    start = time.monotonic()
    if what == "all":
        run_all()
    elif what == "check":
        fixtures()
        if build("release"):
            units("release", without=LONG)
            lint()
    elif what == "lint":
        if build("release", ["tranche"]):
            lint()
    elif what == "fuzz":
        if build("fuzz", fuzz_targets()):
            fuzz(int(sys.argv[2]) if len(sys.argv) > 2 else 60)
    else:
        print(__doc__, file=sys.stderr)
        return 64
    totals = f"{TOTALS.passed} passed, {TOTALS.failed} failed"
    with open(f"{LOGS}/totals", "w") as f:
        f.write(totals + "\n")
    print(f"{time.monotonic() - start:.0f} s\n{totals}", flush=True)
    return 1 if TOTALS.failed else 0


if __name__ == "__main__":
    sys.exit(main())
