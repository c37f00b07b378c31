#!/usr/bin/python3
"""options: docs/config.md is what `tranche help --markdown` prints, and every flag or variable that
README, docs, Makefile, examples and k8s use exists in the option table."""
import os
import re
import subprocess
import sys

SOURCES = re.compile(r"^(README\.md|ARCHITECTURE\.md|SPEED\.md|CHANGELOG\.md|Makefile|docs/.*\.md|"
                     r"examples/.*\.md|k8s/.*)$")
# Flags of other programs stand in lines that do not name ours.
COMMAND = r"(?:\btranche|\$\(BIN\)|TRANCHE_BIN\}?\"?)\s+(%s)\b([^|;`]*)"
VARIABLE = re.compile(r"\bTRANCHE_[A-Z0-9_]+\b")
NOT_OPTIONS = {"TRANCHE_BIN", "TRANCHE_CUDA", "TRANCHE_SOME_NAME"}


def main():
    root = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
    os.chdir(root)
    binary = os.environ.get("TRANCHE_BIN", "build/release/tranche")
    wanted = subprocess.run([binary, "help", "--markdown"], stdout=subprocess.PIPE, check=True).stdout.decode()
    bad = []
    have = open("docs/config.md").read() if os.path.exists("docs/config.md") else ""
    if have != wanted:
        bad.append("docs/config.md: differs from the program; run: "
                   f"{binary} help --markdown >docs/config.md")
    named = re.findall(r"^\| `tranche (\w+)` \|", wanted, re.M)
    command_line = re.compile(COMMAND % "|".join(named))
    commands = {}
    for name, variable, who in re.findall(r"^\| `--([a-z-]+)` \| `(\w+)` \|.*\| ([a-z, ]+) \| [^|]*(?:\\\|[^|]*)* \|$",
                                          wanted, re.M):
        commands[name] = set(who.split(", "))
    if len(commands) < 20:
        bad.append(f"want at least 20 options in the Markdown, read {len(commands)}")
    variables = {"TRANCHE_" + n.upper().replace("-", "_") for n in commands}
    names = subprocess.run(["git", "ls-files", "-z"], stdout=subprocess.PIPE, check=True).stdout
    for path in names.decode().split("\0"):
        if not SOURCES.match(path) or not os.path.isfile(path):
            continue
        text = open(path, errors="replace").read().replace("\\\n", " ")
        for number, line in enumerate(text.split("\n"), 1):
            for command, rest in command_line.findall(line):
                for flag in re.findall(r"(?:^|\s)--([a-z][a-z-]*)", rest):
                    if flag != "help" and command not in commands.get(flag, ()):
                        bad.append(f"{path}:{number}: `tranche {command}` has no --{flag}")
            for variable in VARIABLE.findall(line):
                if variable not in variables | NOT_OPTIONS:
                    bad.append(f"{path}:{number}: no option has the variable {variable}")
    if bad:
        print("\n".join(bad))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
