"""The documents' command lines and config files are ones that the program takes."""
import os
import re
import shlex
import subprocess

import pytest

FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.M | re.S)


def documents(root):
    return [root / "README.md", *sorted((root / "docs").glob("*.md")),
            *sorted((root / "examples").glob("*/README.md"))]


def shell_lines(text):
    """Lines of sh blocks and of indented ones; what follows a pipe or redirection is another's."""
    text = re.sub(r"\\\n\s*", " ", text)
    blocks = [body for language, body in FENCE.findall(text) if language == "sh"]
    indented = re.findall(r"^ {4}(tranche .*)$", FENCE.sub("", text), re.M)
    for line in "\n".join(blocks + indented).split("\n"):
        words = shlex.split(line, comments=True)
        if words[:1] == ["tranche"]:
            end = next((i for i, w in enumerate(words) if w in ("|", ">", "<", "&&", ";", "&")),
                       len(words))
            yield line, words[1:end]


def test_every_command_line_parses(tranche, root):
    """--help stops a command before it does anything, and behind its options were checked."""
    seen = set()
    for path in documents(root):
        for line, words in shell_lines(path.read_text()):
            words = ["4" if w.startswith("$") else w for w in words]
            process = tranche(*words, "--help")
            assert process.returncode == 0, f"{path.name}: {line}\n{process.stderr.decode()}"
            seen.add(words[0])
    assert seen >= {"run", "worker", "init", "submit", "status", "cancel", "dlq", "seek", "audit",
                    "prune", "export", "migrate", "doctor"}
    assert tranche("prune", "--older-than", "soon", "--help").returncode == 64, "and it does check"
    assert tranche("prune", "--older", "1d", "--help").returncode == 64


def test_every_config_file_parses(tranche, root, tmp_path):
    files = [body for path in documents(root) for language, body in FENCE.findall(path.read_text())
             if language == "conf"]
    assert files
    for body in files:
        (tmp_path / "tranche.conf").write_text(body)
        text = tranche("dlq", "--config", "tranche.conf", "nosuch").stderr.decode()
        assert "want one of list, show, redrive" in text, text
    (tmp_path / "tranche.conf").write_text("sauce = x\n")
    assert "tranche.conf:1" in tranche("dlq", "--config", "tranche.conf", "x").stderr.decode()


@pytest.mark.parametrize("url", ["kafka://127.0.0.1:1/x", "rediss://127.0.0.1:1/x"])
def test_every_broker_config_parses(tranche, root, tmp_path, url):
    """Up to the broker, which does not answer: exit 69; a wrong name would be 64."""
    wanted = "security.protocol" if url.startswith("kafka") else "tls.ca.file"
    files = {body for path in documents(root) for language, body in FENCE.findall(path.read_text())
             if language == "ini" and wanted in body}
    assert files
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt",
                    "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2", "-subj", "/CN=x",
                    "-keyout", "pod.key", "-out", "pod.crt"], cwd=tmp_path, check=True,
                   capture_output=True)
    os.link(tmp_path / "pod.crt", tmp_path / "ca.crt")
    for secret in ("kafka.secret", "redis.secret"):
        (tmp_path / secret).write_text("geheim\n")
    for body in files:
        (tmp_path / "client.conf").write_text(body.replace("/etc/tranche", str(tmp_path)))
        process = tranche("init", "--source", url, "--broker-config", "client.conf",
                          "--connect-timeout", "0s")
        assert process.returncode == 69, process.stderr.decode()
        (tmp_path / "client.conf").write_text("sauce = x\n")
        assert tranche("init", "--source", url, "--broker-config", "client.conf",
                       "--connect-timeout", "0s").returncode == 64
