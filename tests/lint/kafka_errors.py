#!/usr/bin/python3
"""kafka_errors: each error of the Kafka protocol that worker/ names has a test that injects it: it
is named in tests/unit/kafka_*errors_test.c, or by a line there that says which test causes it
elsewhere (`elsewhere: NAME: FILE FUNCTION`)."""
import glob
import os
import re
import sys

CODE = re.compile(r"\bRD_KAFKA_RESP_ERR_(\w+)")
ELSEWHERE = re.compile(r"elsewhere: (\w+): (\S+) (\w+)")


def names(paths):
    return {n for path in paths for n in CODE.findall(open(path).read())}


def main():
    os.chdir(os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", ".."))
    wanted = names(glob.glob("worker/**/*.[ch]", recursive=True)) - {"NO_ERROR"}
    tests = sorted(glob.glob("tests/unit/kafka_*errors_test.c"))
    bad = [] if len(wanted) >= 20 else [f"want at least 20 names in worker/, read {len(wanted)}"]
    have = names(tests)
    for path in tests:
        for name, where, function in ELSEWHERE.findall(open(path).read()):
            if not os.path.exists(where) or f"def {function}(" not in open(where).read():
                bad.append(f"{path}: {name}: {where} has no {function}")
            have.add(name)
    bad += [f"RD_KAFKA_RESP_ERR_{name}: worker/ names it, no test of {', '.join(tests)} does"
            for name in sorted(wanted - have)]
    print("\n".join(bad))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
