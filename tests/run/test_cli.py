"""The command line: help, version, refusals, precedence, tokenize, doctor, bench."""
import json
import os
import re
import sqlite3
import subprocess
import time

import pytest

COMMANDS = ["run", "worker", "init", "submit", "smoke", "status", "cancel", "dlq", "seek", "audit", "prune", "export", "diff",
            "cache", "tokenize", "doctor", "bench", "migrate", "version", "help"]


def text(process):
    return process.stdout.decode(), process.stderr.decode()


def test_no_command_shows_the_commands(tranche):
    process = tranche()
    out, err = text(process)
    assert process.returncode == 64 and out == ""
    assert all(re.search(rf"^  {name} ", err, re.M) for name in COMMANDS)


@pytest.mark.parametrize("args", [["help"], ["--help"], ["-h"]])
def test_overview(tranche, args):
    process = tranche(*args)
    out, err = text(process)
    assert process.returncode == 0 and err == ""
    assert all(re.search(rf"^  {name} ", out, re.M) for name in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_explains_itself(tranche, command):
    by_flag, by_help = tranche(command, "--help"), tranche("help", command)
    assert by_flag.returncode == by_help.returncode == 0
    lines = by_flag.stdout.decode().split("\n")
    groups = [line for above, line, below in zip(lines, lines[1:], lines[2:])
              if not above and line and below.startswith("  --")]
    assert len(groups) == len(set(groups)) and (groups or command in ("help", "version")), groups
    assert by_flag.stdout and max(map(len, by_flag.stdout.decode().split("\n"))) <= 100
    if command != "help":
        assert by_flag.stdout == by_help.stdout
        assert by_flag.stdout.decode().startswith(f"tranche {command}")


def test_help_tells_the_exits(tranche):
    """What docs/operations.md says of all: a command that prints can leave with 74, one that has a queue with 65."""
    for command in COMMANDS:
        told = text(tranche("help", command))[0]
        exits = re.search(r"^Exit: (?:.+\n)+", told, re.M)
        if command in ("doctor", "bench", "version", "help"):
            continue
        assert exits, command
        assert ("74" in exits[0]) == (command not in ("run", "worker")), exits[0]
        [mistake] = re.findall(r"65 ([^;]*?)(?:, \d\d |\.\n|;)", exits[0])
        queue = command in ("worker", "submit", "smoke", "status", "dlq", "seek", "audit")
        assert ("queue" in mistake) == queue, exits[0]


def test_help_names_every_kind_of_queue(tranche):
    refusal = text(tranche("worker", "--engine=sim", "--source", "nosuch://x/y"))[1]
    schemes = refusal.split("want one of ")[1].split()
    assert len(schemes) >= 6
    told = text(tranche("help", "worker"))[0]
    assert [s for s in schemes if not re.search(rf"\b{s.strip(',')}://", told)] == []


def test_help_of_an_unknown_command(tranche):
    process = tranche("help", "docter")
    assert process.returncode == 64
    assert '"docter" is no command; the nearest is "doctor"' in process.stderr.decode()


def test_a_long_output_that_cannot_be_written(tranche, tiny_model):
    """It fails before its end, inside the command."""
    with open("/dev/full", "wb") as full:
        process = tranche("tokenize", "--model", tiny_model, stdout=full, stdin='"a b"\n' * 20000)
    assert process.returncode == 74
    assert process.stderr.decode() == "tranche tokenize: standard output: cannot write: No space left on device\n"


@pytest.mark.parametrize("args", [
    ["version"], ["help"], ["status", "--help"], ["doctor"], ["tokenize"], ["export"], ["status"],
    ["dlq", "list"], ["run", "--show", "1"]], ids=" ".join)
def test_an_output_that_cannot_be_written(tranche, tiny_model, tmp_path, args):
    db, jobs = tmp_path / "rows.db", tmp_path / "jobs.jsonl"
    jobs.write_text('{"custom_id":"a","prompt":"1+1="}\n')
    run = ["run", jobs, "--model", tiny_model, "--engine", "sim", "--db", db, "--progress", "off"]
    assert tranche(*run).returncode == 0
    command = args[0]
    if command in ("doctor", "tokenize"):
        args = [command, "--model", tiny_model]
    elif command == "run":
        args = run + args[1:]
    elif command in ("export", "dlq") or args == ["status"]:
        args = args + ["--db", db]
    with open("/dev/full", "wb") as full:
        process = tranche(*args, stdout=full, stdin='"a b"\n')
    told = process.stderr.decode().strip().split("\n")[-1]
    assert process.returncode == (0 if command == "run" else 74), told
    assert "cannot write: No space left on device" in told


def test_version(tranche):
    out, _ = text(tranche("version"))
    assert re.match(r"tranche \d+\.\d+\.\d+ \(", out)
    found = json.loads(tranche("version", "--json").stdout)
    assert found["isa"] in ("scalar", "avx2", "avx512")
    assert set(found["libraries"]) == {"jansson", "sqlite", "libpq", "utf8proc", "openssl"}
    assert tranche("--version").stdout.decode() == out


@pytest.mark.parametrize("args, words", [
    (["rum"], ['"rum" is no command', '"run"']),
    (["run", "--slotz", "3", "x"], ["--slotz", "--slots"]),
    (["frobnicate"], ['"frobnicate" is no command', "`tranche help`"]),
    (["run", "--slots=0x10", "x"], ["slots", "whole number", '"0x10"']),
    (["run", "--slots", "5000", "x"], ["0 to 4096", '"5000"']),
    (["run", "--kv-bytes", "8Gigs", "x"], ["kv-bytes", "8GiB", '"8Gigs"']),
    (["run", "--flush-interval", "5", "x"], ["5s", '"5"']),
    (["run", "--engine", "gpu", "x"], ["model|sim", '"gpu"']),
    (["run", "--model", "m", "--device", "gpu0", "x"], ["--device", "cuda:N", '"gpu0"']),
    (["run", "--db"], ["--db", "FILE"]),
    (["run", "-n", "x"], ["-n", "--name"]),
    (["run", "x", "y"], ["1 operand", '"y"']),
    (["run"], ["job file"]),
    (["run", "x.jsonl"], ["--model"]),
    (["tokenize", "--slots", "1"], ["--slots", "`tranche tokenize`"]),
    (["tokenize"], ["--model"]),
    (["bench"], ["--model"]),
])
def test_usage_errors_name_both_values(tranche, args, words):
    process = tranche(*args)
    out, err = text(process)
    assert process.returncode == 64, err
    assert out == "" and err.count("\n") == 1
    for word in words:
        assert word in err


def test_flag_beats_environment_beats_file(tranche, tmp_path):
    """Seen from outside through what is refused: the level that wins names itself."""
    (tmp_path / "c").write_text("slots = 9999\n")
    refused = tranche("run", "--config", "c", "x")
    assert refused.returncode == 64 and "c:1: slots: want 0 to 4096" in refused.stderr.decode()
    refused = tranche("run", "x", env={"TRANCHE_SLOTS": "9998"})
    assert refused.returncode == 64 and 'TRANCHE_SLOTS: slots: want 0 to 4096, found "9998"' in \
        refused.stderr.decode()
    (tmp_path / "c").write_text("log-format = json\ndb = from-file.db\n")
    env = {"TRANCHE_CONFIG": "c", "TRANCHE_DB": "from-env.db"}
    for args, name in (([], "from-env.db"), (["--db", "from-flag.db"], "from-flag.db")):
        checks = json.loads(tranche("doctor", "--json", *args, env=env).stdout)["checks"]
        assert [c for c in checks if c["check"] == "database"][0]["text"].startswith(name)
    del env["TRANCHE_DB"]
    checks = json.loads(tranche("doctor", "--json", env=env).stdout)["checks"]
    assert [c for c in checks if c["check"] == "database"][0]["text"].startswith("from-file.db")


def test_slip_in_the_environment_is_told(tranche, tiny_model):
    process = tranche("tokenize", "--model", tiny_model, env={"TRANCHE_LOG_LEVLE": "debug"})
    assert process.returncode == 0
    assert "environment_unknown" in process.stderr.decode()
    process = tranche("tokenize", "--model", tiny_model, env={"TRANCHE_PORT_80_TCP": "tcp://x"})
    assert process.stderr == b""


# ---- tokenize ----

TEXTS = ["", "12 + 34 = ", "a\nb\t\"c\" \\ /", "你好，世界 🙂", "e\u0301 \u00e9", "\u0001\u0000x",
         "  leading and trailing  ", "<think>\n</think>\n\n"]


def test_tokenize_there_and_back(tranche, tiny_model):
    lines = "".join(json.dumps(t, ensure_ascii=i % 2 == 0) + "\n" for i, t in enumerate(TEXTS))
    there = tranche("tokenize", "--model", tiny_model, stdin=lines)
    assert there.returncode == 0, there.stderr
    ids = [json.loads(line) for line in there.stdout.decode().splitlines()]
    assert len(ids) == len(TEXTS) and ids[0] == []
    assert all(isinstance(i, int) and i >= 0 for row in ids for i in row)
    back = tranche("tokenize", "--decode", "--model", tiny_model, stdin=there.stdout.decode())
    assert back.returncode == 0, back.stderr
    import unicodedata
    for original, line in zip(TEXTS, back.stdout.decode().split("\n")):
        assert unicodedata.normalize("NFC", json.loads(line)) == unicodedata.normalize("NFC", original)


def test_tokenize_needs_only_the_tokenizers_files(tranche, model_copy):
    for path in model_copy.iterdir():
        if path.name not in ("tokenizer.json", "tokenizer_config.json"):
            path.unlink()
    process = tranche("tokenize", "--model", model_copy, stdin='"1 + 1"')
    assert process.returncode == 0 and json.loads(process.stdout)


def test_plain_text_disarms_special_tokens(tranche, tiny_model):
    line = json.dumps("<think>")
    special = json.loads(tranche("tokenize", "--model", tiny_model, stdin=line).stdout)
    plain = json.loads(tranche("tokenize", "--model", tiny_model, "--plain-text", stdin=line).stdout)
    assert len(special) == 1 and len(plain) > 1


@pytest.mark.parametrize("args, line, words", [
    ([], "7", ["line 2", "JSON string", "integer"]),
    ([], '"a" "b"', ["line 2"]),
    ([], '"\\ud800"', ["line 2"]),
    ([], "", ["line 2"]),
    (["--decode"], '"a"', ["line 2", "array"]),
    (["--decode"], "[1,-1]", ["line 2", "item 1", "-1"]),
    (["--decode"], "[1,2.5]", ["line 2", "item 1", "real"]),
    (["--decode"], "[99999999]", ["line 2", "item 0", "99999999"]),
])
def test_a_bad_line_is_named(tranche, tiny_model, args, line, words):
    good = "[1]" if args else '"x"'
    process = tranche("tokenize", "--model", tiny_model, *args, stdin=f"{good}\n{line}\n{good}\n")
    out, err = text(process)
    assert process.returncode == 65
    assert out.count("\n") == 1
    for word in words:
        assert word in err


def test_bad_utf8_is_named(binary, tiny_model):
    process = subprocess.run([binary, "tokenize", "--model", str(tiny_model)], input=b'"\xff"\n',
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.returncode == 65 and b"line 1" in process.stderr


def test_tokenize_streams(binary, tiny_model):
    """An answer comes before the next line is asked for."""
    process = subprocess.Popen([binary, "tokenize", "--model", str(tiny_model)],
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    for _ in range(3):
        process.stdin.write(b'"1 + 2"\n')
        process.stdin.flush()
        assert process.stdout.readline().startswith(b"[")
    process.stdin.close()
    process.stdout.close()
    assert process.wait(timeout=20) == 0


def test_tokenize_long_line(tranche, tiny_model):
    line = json.dumps("12 + 7 = 19. " * 100_000)
    process = tranche("tokenize", "--model", tiny_model, stdin=line)
    assert process.returncode == 0
    back = tranche("tokenize", "--model", tiny_model, "--decode", stdin=process.stdout.decode())
    assert json.loads(back.stdout) == json.loads(line)


@pytest.mark.parametrize("flag, field", [
    ("--temperature", True), ("--top-p", True), ("--max_tokens", True), ("--frobnicate", False)])
def test_a_guess_is_near_or_none(tranche, tmp_path, flag, field):
    for args in (["run", flag, "1", "x"], ["run", f"{flag}=1", "x"]):
        process = tranche(*args)
        err = process.stderr.decode()
        assert process.returncode == 64 and f"{flag} is no option of `tranche run`" in err
        assert ("it is a field of each job" in err) == field and "nearest" not in err
    (tmp_path / "f").write_text(flag[2:] + " = 1\n")
    err = tranche("run", "--config", "f", "x").stderr.decode()
    assert ("it is a field of each job" in err) == field and "nearest" not in err


# ---- doctor ----

def doctor(tranche, model, *args):
    process = tranche("doctor", "--json", "--model", model, *args)
    found = json.loads(process.stdout)
    assert found["ok"] + found["warnings"] + found["faults"] == len(found["checks"])
    assert process.returncode == (2 if found["faults"] else 1 if found["warnings"] else 0)
    for check in found["checks"]:
        assert check["verdict"] == "ok" or check["mend"], check
    return {c["check"]: c for c in found["checks"] if c["verdict"] == "fault"}, found


def test_doctor_finds_a_good_folder_good(tranche, tiny_model):
    faults, found = doctor(tranche, tiny_model)
    assert faults == {}
    assert {"cpu", "threads", "config", "weights", "tokenizer", "template", "memory", "database",
            "disk"} <= {c["check"] for c in found["checks"]}
    assert [m for m in found["memory"] if m["what"] == "weights"][0]["bytes"] > 1_000_000
    out = tranche("doctor", "--model", tiny_model).stdout.decode()
    assert re.search(r"^ok     tokenizer ", out, re.M)
    assert re.search(r"^\d+ ok, \d+ warnings?, 0 faults$", out, re.M)


def break_weights(folder):
    path = next(folder.glob("*.safetensors"))
    os.truncate(path, path.stat().st_size - 1000)


def drop_weights(folder):
    for path in folder.glob("*.safetensors*"):
        path.unlink()


def edit_config(**changes):
    def edit(folder):
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return edit


def break_template(folder):
    path = folder / "chat_template.jinja"
    path.write_text("{% for m in messages %}\n{{ m.content }}")
    config = folder / "tokenizer_config.json"
    settings = json.loads(config.read_text())
    settings.pop("chat_template", None)
    config.write_text(json.dumps(settings))


@pytest.mark.parametrize("harm, check, words", [
    (break_weights, "weights", ["safetensors"]),
    (drop_weights, "weights", ["safetensors"]),
    (edit_config(model_type="gpt9"), "config", ["model_type", "gpt9"]),
    (edit_config(num_key_value_heads=4), "config", ["num_key_value_heads", "4"]),
    (lambda folder: (folder / "config.json").unlink(), "config", ["config.json"]),
    (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer", ["tokenizer.json"]),
    (lambda folder: (folder / "tokenizer.json").write_text("{"), "tokenizer", ["tokenizer.json"]),
    (break_template, "template", ["line"]),
])
def test_doctor_names_what_is_broken(tranche, model_copy, harm, check, words):
    harm(model_copy)
    faults, _ = doctor(tranche, model_copy)
    assert check in faults, faults
    for word in words:
        assert word in faults[check]["text"]


def test_what_was_chosen_is_logged(tranche, tiny_model, tmp_path):
    (tmp_path / "jobs.jsonl").write_text('{"id": "a", "prompt": "x", "max_tokens": 1}\n')
    process = tranche("run", "--model", tiny_model, "--log-format", "json", "--progress", "off",
                      "--threads", "1", "--isa", "scalar", "--slots", "3", "jobs.jsonl")
    assert process.returncode == 0, process.stderr.decode()
    lines = [json.loads(l) for l in process.stderr.splitlines()]
    by_event = {l["event"]: l for l in lines}
    opened = by_event["engine_opened"]
    assert (opened["device"], opened["isa"], opened["threads"], opened["slots"]) == (
        "cpu", "scalar", 1, 3)
    config = json.loads((tiny_model / "config.json").read_text())
    assert opened["max_model_len"] == config["max_position_embeddings"]
    assert opened["step_tokens"] >= 3 and opened["kv_bytes"] > 0
    assert opened["kv_bytes"] == [l["bytes"] for l in lines if l.get("what") == "kv pages"][0]
    for event, name in (("tokenizer_loaded", "tokenizer.json"),
                        ("chat_template_loaded", "chat_template.jinja")):
        assert by_event[event]["path"] == str(tiny_model / name)
        assert by_event[event]["bytes"] == (tiny_model / name).stat().st_size


def test_a_template_s_token_that_the_tokenizer_lacks(tranche, model_copy, tmp_path):
    template = model_copy / "chat_template.jinja"
    template.write_text("{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}")
    (tmp_path / "jobs.jsonl").write_text('{"id": "a", "prompt": "x", "max_tokens": 1}\n')
    run = ("run", "--model", model_copy, "--progress", "off", "--db")
    _, found = doctor(tranche, model_copy)
    assert [c["verdict"] for c in found["checks"] if c["check"] == "template"] == ["ok"]
    assert b"chat_template_token_absent" not in tranche(*run, "a.db", "jobs.jsonl").stderr

    (model_copy / "tokenizer_config.json").unlink()
    _, found = doctor(tranche, model_copy)
    check, = [c for c in found["checks"] if c["check"] == "template"]
    assert check["verdict"] == "warn" and "bos_token" in check["text"]
    assert "tokenizer_config.json" in check["mend"]
    process = tranche(*run, "b.db", "jobs.jsonl")
    assert process.returncode == 0, process.stderr.decode()
    line, = [l for l in process.stderr.decode().splitlines() if "chat_template_token_absent" in l]
    assert "level=warn" in line and "token=bos_token" in line and str(template) in line


@pytest.mark.parametrize("slots", [None, 3])
def test_doctor_s_memory_is_what_a_run_takes(tranche, tiny_model, tmp_path, slots):
    options = ["--device", "cpu"] + (["--slots", slots] if slots else [])
    _, found = doctor(tranche, tiny_model, *options)
    (tmp_path / "jobs.jsonl").write_text('{"id": "a", "prompt": "x", "max_tokens": 1}\n')
    process = tranche("run", "--model", tiny_model, "--log-format", "json", *options, "jobs.jsonl")
    assert process.returncode == 0, process.stderr.decode()
    lines = [json.loads(l) for l in process.stderr.splitlines() if l.startswith(b"{")]
    taken = {l["what"]: l["bytes"] for l in lines if l["event"] == "memory_taken"}
    told = {m["what"]: m["bytes"] for m in found["memory"]}
    for what in ("kv pages", "activations", "kv page table", "sequences and step"):
        assert told[what] == taken[what] > 0, what
    assert f"keys and values, {slots or 64} slots full" in told


def test_doctor_refuses_what_a_run_would(tranche, tiny_model):
    faults, _ = doctor(tranche, tiny_model, "--device", "cpu", "--kv-bytes", "1KiB")
    assert "kv_bytes" in faults["memory"]["text"]


def test_doctor_looks_at_weights_beside_a_bad_config(tranche, model_copy):
    edit_config(model_type="gpt9")(model_copy)
    _, found = doctor(tranche, model_copy)
    weights, = [c for c in found["checks"] if c["check"] == "weights"]
    assert weights["verdict"] == "ok"
    break_weights(model_copy)
    faults, _ = doctor(tranche, model_copy)
    assert {"config", "weights"} <= set(faults) and "safetensors" in faults["weights"]["text"]


def test_doctor_s_mend_names_the_file_that_is_broken(tranche, model_copy):
    (model_copy / "generation_config.json").write_text('{"temperature": "hot"}')
    faults, _ = doctor(tranche, model_copy)
    assert "generation_config.json" in faults["config"]["text"]
    assert "generation_config.json" in faults["config"]["mend"]


@pytest.mark.parametrize("model", ["nodir", "empty"])
def test_no_model_folder_leaves_no_database(tranche, tmp_path, model):
    (tmp_path / "empty").mkdir()
    (tmp_path / "jobs.jsonl").write_text('{"id": "a", "prompt": "x"}\n')
    process = tranche("run", "--model", model, "--db", "new.db", "jobs.jsonl")
    assert process.returncode == 65 and model in process.stderr.decode()
    assert not list(tmp_path.glob("new.db*"))


def test_doctor_without_a_folder(tranche, tmp_path):
    faults, _ = doctor(tranche, "nowhere")
    assert "nowhere" in faults["folder"]["text"]


def test_doctor_and_databases(tranche, tiny_model, tmp_path):
    (tmp_path / "text.db").write_text("this is no database, but it is long enough to look at" * 20)
    faults, _ = doctor(tranche, tiny_model, "--db", "text.db")
    assert "database" in faults
    faults, _ = doctor(tranche, tiny_model, "--db", "no/such/folder/x.db")
    assert "database" in faults and "disk" in faults
    with sqlite3.connect(tmp_path / "other.db") as other:
        other.execute("CREATE TABLE t (x)")
    faults, _ = doctor(tranche, tiny_model, "--db", "other.db")
    assert "not one of tranche's" in faults["database"]["text"]
    (tmp_path / "folder.db").mkdir()
    faults, _ = doctor(tranche, tiny_model, "--db", "folder.db")
    assert "database" in faults
    assert not (tmp_path / "tranche.db").exists()


def test_doctor_reads_the_rows_of_a_run(tranche, tiny_model, tmp_path):
    jobs = "".join(json.dumps({"id": f"j{i}", "prompt": "1 + 1 = "}) + "\n" for i in range(3))
    (tmp_path / "jobs.jsonl").write_text(jobs)
    process = tranche("run", "--model", tiny_model, "--engine", "sim", "--db", "rows.db", "jobs.jsonl")
    assert process.returncode == 0, process.stderr
    faults, found = doctor(tranche, tiny_model, "--db", "rows.db")
    assert faults == {}
    assert "schema 2, 3 rows" in [c for c in found["checks"] if c["check"] == "database"][0]["text"]


def test_doctor_sees_a_busy_database(tranche, tiny_model, tmp_path):
    writer = sqlite3.connect(tmp_path / "busy.db", isolation_level=None)
    writer.execute("CREATE TABLE t (x)")
    writer.execute("BEGIN IMMEDIATE")
    _, found = doctor(tranche, tiny_model, "--db", "busy.db")
    assert [c["verdict"] for c in found["checks"] if c["check"] == "database"] == ["warn"]
    writer.close()


def test_doctor_sees_too_little_memory(tranche, tiny_model):
    faults, _ = doctor(tranche, tiny_model, "--kv-bytes", "60TiB")
    assert "memory" in faults


# ---- bench ----

def test_bench_measures_and_compares(tranche, tiny_model, tmp_path):
    args = ["bench", "--model", tiny_model, "--measure", "50ms"]
    first = tranche(*args, "--json", timeout=300)
    assert first.returncode == 0, first.stderr
    found = json.loads(first.stdout)
    assert set(found["ceilings"]) == {"read_GBps", "copy_GBps", "fp32_GFLOPs"}
    runs = {r["workload"]: r for r in found["runs"]}
    assert {"decode-1", "decode-4", "decode-16", "tokenizer"} <= set(runs)
    assert all(runs[f"decode-{n}"]["out_tok_s"] > 0 for n in (1, 4, 16))
    (tmp_path / "old.json").write_bytes(first.stdout)
    second = tranche(*args, "--compare", "old.json", timeout=300)
    assert second.returncode == 0 and " was " in second.stdout.decode()
    again = json.loads(tranche(*args, "--json", timeout=300).stdout)
    hashes = {r["workload"]: r.get("outputs_sha256") for r in again["runs"]}
    assert hashes == {name: r.get("outputs_sha256") for name, r in runs.items()}


# ---- the machinery around ----

def test_make_alone_lists_the_targets(root):
    process = subprocess.run(["make"], cwd=root, stdout=subprocess.PIPE, check=True)
    for target in ("run", "test", "check", "bench", "golden", "format", "lint", "fuzz", "clean"):
        assert re.search(rf"^  make {target} ", process.stdout.decode(), re.M)


def test_install_is_cheap_when_nothing_is_missing(root):
    start = time.monotonic()
    process = subprocess.run(["tools/install.sh", "test"], cwd=root, stdout=subprocess.PIPE)
    assert process.returncode == 0 and process.stdout == b""
    assert time.monotonic() - start < 1
    assert subprocess.run(["tools/install.sh"], cwd=root, stderr=subprocess.DEVNULL).returncode == 64


def test_cuda_build_says_what_is_missing(root, tmp_path):
    process = subprocess.run(["cmake", "-S", str(root), "-B", str(tmp_path / "b"), "-G", "Ninja",
                              f"-DTRANCHE_CUDA={tmp_path}"], stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE)
    assert process.returncode != 0 and b"found no bin/nvcc" in process.stderr
