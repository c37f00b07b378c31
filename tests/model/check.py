#!/usr/bin/python3
"""Checks the protocol's Spin model, and that each of its mutants fails: a model that nothing can
break proves nothing. The last line holds the totals, as the tests' others do."""
import os
import re
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
MODEL = os.path.join(HERE, "protocol.pml")
# (claim, flags of the verifier, faults): safety over all states; liveness with weak
# fairness, which multiplies them.
CLAIMS = {"safe": (["-m200000"], 3), "whole": (["-m200000", "-a", "-f"], 2)}
MUTANTS = {"ACK_FIRST": "safe", "NO_CONFLICT": "safe", "TWO_STEPS": "safe", "PRESENT_AT_ONCE": "safe",
           "LOOKUP_BLIND": "safe", "NO_REDELIVERY": "whole"}


def verify(claim, flags, defines, faults):
    """(errors, states): of one claim, over everything that can happen."""
    with tempfile.TemporaryDirectory() as folder:
        names = [f"-D{d}" for d in defines] + [f"-DFAULTS={faults}"]
        subprocess.run(["spin", "-a", *names, MODEL], cwd=folder, check=True,
                       stdout=subprocess.DEVNULL)
        fair = ["-DNFAIR=3"] if "-f" in flags else []
        subprocess.run(["gcc", "-O2", "-w", "-DCOLLAPSE", "-DMEMLIM=3000", *fair, "-o",
                        "pan", "pan.c"], cwd=folder, check=True)
        done = subprocess.run(["./pan", "-N", claim, *flags], cwd=folder, check=False, timeout=300,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT).stdout.decode()
    errors = re.search(r"errors: (\d+)", done)
    states = re.search(r"([0-9.e+]+) states, stored", done)
    if not errors or ("depth too small" in done and not int(errors[1])):
        print(done)
        return -1, 0
    return int(errors[1]), int(float(states[1])) if states else 0


def main():
    passed = failed = 0
    runs = [(claim, (), False) for claim in CLAIMS]
    runs += [(claim, (mutant,), True) for mutant, claim in MUTANTS.items()]
    for claim, defines, wanted in runs:
        flags, faults = CLAIMS[claim]
        errors, states = verify(claim, flags, defines, faults)
        good = errors >= 0 and bool(errors) == wanted
        passed += good
        failed += not good
        what = f"mutant {defines[0]} breaks {claim}" if defines else f"{claim} holds"
        print(f"{'ok  ' if good else 'FAIL'} {what}: {states} states", flush=True)
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
