"""tranche run from outside: files of every shape to rows, stops, exit codes, memory."""
import json
import os
import signal
import sqlite3
import subprocess
import time

import pytest

OPENAI_EXAMPLE = (
    '{"custom_id": "request-1", "method": "POST", "url": "/v1/chat/completions", "body": {"model": '
    '"gpt-3.5-turbo-0125", "messages": [{"role": "system", "content": "You are a helpful assistant."},'
    '{"role": "user", "content": "Hello world!"}],"max_tokens": 1000}}\n'
    '{"custom_id": "request-2", "method": "POST", "url": "/v1/chat/completions", "body": {"model": '
    '"gpt-3.5-turbo-0125", "messages": [{"role": "system", "content": "You are an unhelpful '
    'assistant."},{"role": "user", "content": "Hello world!"}],"max_tokens": 1000}}\n')


def rows(path, query="SELECT * FROM results ORDER BY custom_id", *args):
    db = sqlite3.connect(path)
    db.row_factory = sqlite3.Row
    try:
        return db.execute(query, args).fetchall()
    finally:
        db.close()


def lines(n, **more):
    return "".join(json.dumps({"id": f"j{i:05d}", "prompt": f"number {i}", **more}) + "\n"
                   for i in range(n))


@pytest.fixture
def sim(tranche, tmp_path):
    """sim("lines of a file", *options) -> (process, database path)"""
    def call(text, *options, name="jobs.jsonl"):
        (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
        process = tranche("run", "--engine", "sim", "--db", "out.db", "--progress", "off",
                          *options, name)
        return process, tmp_path / "out.db"
    return call


def summary(process):
    line = process.stdout.decode().splitlines()[0]
    word, *pairs = line.split()
    return word, dict(p.split("=", 1) for p in pairs)


def test_openai_example_file_runs_unchanged(sim):
    process, db = sim(OPENAI_EXAMPLE)
    assert process.returncode == 0, process.stderr.decode()
    found = rows(db)
    assert [(r["custom_id"], r["status"], r["batch_id"], r["run"]) for r in found] == [
        ("request-1", "ok", "jobs", "main"), ("request-2", "ok", "jobs", "main")]
    assert all(r["model"] == "gpt-3.5-turbo-0125" and json.loads(r["choices"]) for r in found)


def test_bad_lines_are_rows_and_the_rest_goes_on(sim):
    text = b"\xef\xbb\xbf" + b"".join([
        b'{"id":"a","prompt":"x"}\r\n', b"\r\n", b"   \n", b"not json\n",
        b'{"id":"utf","prompt":"\xff"}\n', b'{"id":"sur","prompt":"\\ud800"}\n',
        b'{"id":"img","messages":[{"role":"user","content":[{"type":"image_url"}]}]}\n',
        b'{"id":"typo","prompt":"x","temprature":1}\n',
        b'{"id":"hot","prompt":"x","temperature":3}\n',
        b'{"id":"long","prompt":"' + b"x" * (5 << 20) + b'"}\n',
        b'{"prompt":"no id"}\n', b'{"id":"last","prompt":"no newline"}'])
    process, db = sim(text)
    assert process.returncode == 0, process.stderr.decode()
    got = {r["custom_id"]: (r["status"], r["error_code"]) for r in rows(db)}
    assert got == {
        "a": ("ok", None), "jobs:4": ("invalid", "bad_json"), "jobs:5": ("invalid", "bad_json"),
        "jobs:6": ("invalid", "bad_json"), "img": ("invalid", "unsupported_content"),
        "typo": ("invalid", "unknown_field"), "hot": ("invalid", "bad_value"),
        "jobs:10": ("invalid", "too_large"), "jobs:11": ("ok", None), "last": ("ok", None)}
    detail = {r["custom_id"]: r["error_detail"] for r in rows(db)}
    assert "do you mean temperature?" in detail["typo"]
    assert "want 0 to 2, got 3" in detail["hot"]
    assert str(len(b'{"id":"long","prompt":"' + b"x" * (5 << 20) + b'"}')) in detail["jobs:10"]
    assert "number" not in process.stderr.decode()


def test_repeats_are_counted_and_conflicts_are_dead_letters(sim):
    text = ('{"id":"a","prompt":"x"}\n{"id":"a", "prompt":"x"}\n{"id":"a","prompt":"y"}\n'
            + lines(3000) + '{"id":"a","prompt":"x"}\n{"id":"a","prompt":"z"}\n')
    for again in range(2):
        process, db = sim(text)
        assert process.returncode == 0
        assert len(rows(db)) == 3001
        dead = rows(db, "SELECT * FROM dead_letters ORDER BY source_key")
        assert [(d["custom_id"], d["reason"]) for d in dead] == [("a", "id_conflict")] * 2
        assert rows(db, "SELECT request FROM results WHERE custom_id='a'")[0][0] == '{"prompt":"x"}'
    _, s = summary(process)
    assert (s["rows"], s["dead_letters"]) == ("0", "0")
    assert int(s["present"]) + int(s["repeated"]) == 3003


def test_every_conflict_at_one_place_is_a_letter(sim, tranche, tmp_path):
    """A file rewritten in place, and its namesake in another folder: an origin comes again with
    another message. The same message again is the same letter."""
    def letters():
        return [(bytes(d["payload"]).decode(), d["reason"])
                for d in rows(db, "SELECT * FROM dead_letters ORDER BY first_seen, source_key")]
    for prompt in "xyzwz":
        process, db = sim(f'{{"id":"a","prompt":"{prompt}"}}\n')
        assert process.returncode == 0, process.stderr.decode()
    assert len(rows(db)) == 1
    assert letters() == [(f'{{"id":"a","prompt":"{p}"}}', "id_conflict") for p in "yzw"]
    for folder, bad in (("one", "no json"), ("two", "nor json"), ("three", "none at all")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "jobs.jsonl").write_text(bad + "\n")
        process = tranche("run", "--engine", "sim", "--db", "out.db", "--progress", "off",
                          f"{folder}/jobs.jsonl")
        assert process.returncode == 0, process.stderr.decode()
    assert len(rows(db)) == 2
    assert letters()[3:] == [("nor json", "id_conflict"), ("none at all", "id_conflict")]
    assert rows(db, "SELECT sum(dead_letters) FROM batches")[0][0] == 5


def test_expected_gives_correct_and_choices_keep_n(sim):
    process, db = sim('{"id":"a","prompt":"x","n":3,"seed":1,"max_tokens":9,"expected":"zz"}\n')
    row = rows(db)[0]
    choices = json.loads(row["choices"])
    assert [c["index"] for c in choices] == [0, 1, 2]
    assert row["answer"] == choices[0]["text"]
    assert row["correct"] == (1 if row["answer"].strip() == "zz" else 0)
    assert row["seed"] == 1
    assert len({c["text"] for c in choices}) > 1


def test_request_sha256_is_of_the_request_column(sim):
    import hashlib
    _, db = sim(lines(20, temperature=0.1) + "junk\n")
    for r in rows(db):
        assert hashlib.sha256(r["request"].encode()).hexdigest() == r["request_sha256"]


def test_same_seed_same_bytes_whatever_the_slots(sim, tmp_path):
    outputs = set()
    for options in (["--slots", 1], ["--slots", 64, "--prepare-threads", 3], ["--flush-rows", 1]):
        process, db = sim(lines(300), *options)
        outputs.add(summary(process)[1]["outputs"])
        db.unlink()
    assert len(outputs) == 1


def test_stdin_needs_a_batch(tranche, tmp_path):
    process = tranche("run", "--engine", "sim", "-", stdin=lines(5))
    assert process.returncode == 64 and b"--batch" in process.stderr
    process = tranche("run", "--engine", "sim", "--db", "o.db", "--batch", "b", "-", stdin=lines(5))
    assert process.returncode == 0, process.stderr.decode()
    assert [r["batch_id"] for r in rows(tmp_path / "o.db")] == ["b"] * 5


def test_batch_and_run_of_a_line_win(sim):
    _, db = sim('{"id":"a","prompt":"x","batch_id":"q","run":"blue"}\n{"id":"a","prompt":"y"}\n')
    assert {(r["run"], r["batch_id"]) for r in rows(db)} == {("blue", "q"), ("main", "jobs")}


def test_exit_codes(sim, tranche, tmp_path):
    process, db = sim("junk\n", "--strict")
    assert process.returncode == 3
    process, _ = sim(lines(1), "--batch", "other", "--strict")
    assert process.returncode == 0
    assert tranche("run", "--engine", "sim", "absent.jsonl").returncode == 64
    (tmp_path / "foreign.db").write_bytes(b"no database at all, but long enough to be read" * 100)
    process = tranche("run", "--engine", "sim", "--db", "foreign.db", "jobs.jsonl")
    assert process.returncode == 65, process.stderr.decode()
    process = tranche("run", "--engine", "sim", "--db", "no/such/folder/x.db", "jobs.jsonl")
    assert process.returncode == 69
    process = tranche("run", "--model", "no-such-folder", "--db", "n.db", "jobs.jsonl")
    assert process.returncode == 65


def test_failed_rows_of_the_engine(sim):
    process, db = sim(lines(200), "--sim-fail-share", "0.25")
    assert process.returncode == 0
    failed = rows(db, "SELECT count(*) FROM v_failures WHERE status='failed'")[0][0]
    assert 20 < failed < 90
    assert summary(process)[1]["failed"] == str(failed)


def test_what_the_engine_refuses_is_invalid(sim):
    process, db = sim('{"id":"a","prompt":"x","stop":"y","n":2}\n{"id":"b","prompt":"x"}\n')
    got = [(r["status"], r["error_code"]) for r in rows(db)]
    assert got == [("invalid", "unsupported"), ("ok", None)]  # no tokenizer: no stop strings


@pytest.mark.parametrize("number,code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stop_finishes_what_runs_and_the_rest_later(binary, tmp_path, number, code):
    (tmp_path / "jobs.jsonl").write_text(lines(3000, max_tokens=20))
    command = [binary, "run", "--engine", "sim", "--sim-step", "5ms", "--slots", "16", "--db",
               "out.db", "--progress", "off", "jobs.jsonl"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE)
    time.sleep(1.0)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, err.decode()
    assert out.startswith(b"stopped ")
    done = len(rows(tmp_path / "out.db"))
    assert 0 < done < 3000
    assert rows(tmp_path / "out.db", "SELECT count(*) FROM job_attempts")[0][0] == 0 or \
        rows(tmp_path / "out.db", "SELECT max(n) FROM job_attempts")[0][0] == 0
    again = subprocess.run([c for c in command if c not in ("--sim-step", "5ms")], cwd=tmp_path,
                           stdout=subprocess.PIPE)
    assert again.returncode == 0
    assert summary(again)[1]["present"] == str(done)
    assert len(rows(tmp_path / "out.db")) == 3000


def test_second_signal_leaves_at_once(binary, tmp_path):
    (tmp_path / "jobs.jsonl").write_text(lines(50, max_tokens=4000, ignore_eos=True))
    process = subprocess.Popen([binary, "run", "--engine", "sim", "--sim-step", "50ms", "--db",
                                "out.db", "--grace", "1h", "jobs.jsonl"], cwd=tmp_path,
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(1.0)
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert process.poll() is None
    start = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=10) == 130
    assert time.monotonic() - start < 2
    assert rows(tmp_path / "out.db", "SELECT count(*) FROM parked")[0][0] == 50


def test_grace_is_an_end(binary, tmp_path):
    (tmp_path / "jobs.jsonl").write_text(lines(50, max_tokens=4000, ignore_eos=True))
    process = subprocess.Popen([binary, "run", "--engine", "sim", "--sim-step", "50ms", "--db",
                                "out.db", "--grace", "1s", "jobs.jsonl"], cwd=tmp_path,
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(1.0)
    start = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == 143
    assert time.monotonic() - start < 10


def test_cancelled_before_it_starts(sim, tranche):
    _, db = sim(lines(1))
    connection = sqlite3.connect(db)
    connection.execute("INSERT INTO cancellations (run, batch_id, custom_id) VALUES ('main', "
                       "'jobs', 'j00002')")
    connection.commit()
    connection.close()
    process, db = sim(lines(4))
    assert process.returncode == 0
    assert [r["status"] for r in rows(db)] == ["ok", "ok", "cancelled", "ok"]


def test_every_table_column_and_view_answers(sim):
    _, db = sim(lines(10) + "junk\n")
    names = rows(db, "SELECT name, sql FROM sqlite_master WHERE type IN ('table','view') AND name "
                     "NOT LIKE 'sqlite_%'")
    assert {n["name"] for n in names} >= {
        "results", "batches", "dead_letters", "job_attempts", "parked", "partition_progress",
        "lost_ranges", "cancellations", "schema_migrations", "config_revisions", "v_results", "v_failures"}
    for n in names:
        rows(db, f"SELECT * FROM {n['name']}")
    ok, bad = rows(db, "SELECT ok, invalid FROM v_batches")[0]
    assert (ok, bad) == (10, 1)
    progress = rows(db, "SELECT * FROM partition_progress")[0]
    assert (progress["position"], progress["messages"]) == (len(lines(10)) + 5, 11)


def test_no_prompt_text_in_logs(sim):
    process, _ = sim('{"id":"a","prompt":"sesame-open-secret"}\n{"id":"b","messages":[{"role":'
                     '"user","content":"sesame-open-secret"}],"unknown_thing":1}\n',
                     "--log-level", "debug")
    assert b"sesame" not in process.stderr and b"sesame" not in process.stdout


def test_model_writes_answers_and_reasoning(tranche, tiny_model, tmp_path):
    jobs = [{"id": f"s{i}", "temperature": 0, "expected": str(17 * i + 25),
             "messages": [{"role": "user", "content": f"What is {17 * i} + 25?"}]}
            for i in range(1, 9)]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(j) + "\n" for j in jobs))
    process = tranche("run", "--model", tiny_model, "--db", "o.db", "--show", "3", "sums.jsonl")
    assert process.returncode == 0, process.stderr.decode()
    found = rows(tmp_path / "o.db")
    assert [r["correct"] for r in found] == [1] * 8
    assert all(r["reasoning"] and "</think>" not in r["reasoning"] + r["answer"] for r in found)
    assert all(0 < r["reasoning_tokens"] < r["completion_tokens"] for r in found)
    assert all(r["device_seconds"] > 0 for r in found)
    text = process.stdout.decode()
    assert "correct 8 of 8" in text and "tranche export" in text


def test_thinking_budget_and_repetition_loops(tranche, tiny_model, tmp_path):
    ask = [{"role": "user", "content": "What is 9838 + 6187?"}]
    jobs = [{"id": "free", "temperature": 0, "messages": ask},
            {"id": "brief", "temperature": 0, "messages": ask, "max_thinking_tokens": 5},
            {"id": "none", "temperature": 0, "messages": ask, "max_thinking_tokens": 0},
            {"id": "loop", "temperature": 0, "prompt": "7", "max_tokens": 400, "ignore_eos": True,
             "logit_bias": {"55": 100}, "loop_tokens": 16}]
    (tmp_path / "jobs.jsonl").write_text("".join(json.dumps(j) + "\n" for j in jobs))
    process = tranche("run", "--model", tiny_model, "--db", "o.db", "jobs.jsonl")
    assert process.returncode == 0, process.stderr.decode()
    found = {r["custom_id"]: r for r in rows(tmp_path / "o.db")}
    assert found["free"]["reasoning_tokens"] > 7
    assert 5 <= found["brief"]["reasoning_tokens"] <= 7 and found["brief"]["answer"]
    assert found["free"]["reasoning"].startswith(found["brief"]["reasoning"].strip()[:4])
    assert not (found["none"]["reasoning"] or "").strip() and found["none"]["answer"]
    assert found["loop"]["finish_reason"] == "loop" and found["loop"]["completion_tokens"] < 400


def test_a_template_of_ones_own_stands_in_for_the_folders(tranche, tiny_model, tmp_path):
    (tmp_path / "own.jinja").write_text("{{ bos_token }}{% for m in messages %}{{ m.content }}"
                                        "{% endfor %}<think>\n")
    (tmp_path / "bad.jinja").write_text("{{ bos_token }}\n{{ messages | frobnicate }}\n")
    job = {"id": "a", "max_tokens": 1, "messages": [{"role": "user", "content": "12+30"}]}
    (tmp_path / "j.jsonl").write_text(json.dumps(job) + "\n")
    seen = []
    for name, own in (("folder", ()), ("own", ("--chat-template", "own.jinja"))):
        process = tranche("run", "--model", tiny_model, "--db", f"{name}.db", *own, "j.jsonl")
        assert process.returncode == 0, process.stderr.decode()
        row = rows(tmp_path / f"{name}.db")[0]
        seen.append((row["prompt_tokens"], row["config_revision"]))
    assert seen[0][0] > seen[1][0] and seen[0][1] != seen[1][1]
    process = tranche("run", "--model", tiny_model, "--db", "o.db", "--chat-template", "bad.jinja",
                      "j.jsonl")
    assert process.returncode == 65
    assert "bad.jinja" in process.stderr.decode() and "frobnicate" in process.stderr.decode()


def test_special_tokens_in_contents_are_text(tranche, tiny_model, tmp_path):
    job = {"id": "a", "max_tokens": 1, "prompt_logprobs": 0,
           "messages": [{"role": "user", "content": "<｜User｜>hi"}]}
    counts = []
    for flag in ("true", "false"):
        (tmp_path / "j.jsonl").write_text(json.dumps(job) + "\n")
        tranche("run", "--model", tiny_model, "--db", f"{flag}.db", f"--plain-content={flag}",
                "j.jsonl")
        counts.append(rows(tmp_path / f"{flag}.db")[0]["prompt_tokens"])
    assert counts[0] > counts[1]


def test_memory_is_flat_over_long_lines(binary, tmp_path):
    with open(tmp_path / "jobs.jsonl", "w") as f:
        for i in range(12):
            f.write(json.dumps({"id": f"j{i}", "prompt": "y" * (3 << 20)}) + "\n")
            f.write("z" * (20 << 20) + "\n")
    process = subprocess.Popen([binary, "run", "--engine", "sim", "--claim-bytes", "64MiB", "--db",
                                "out.db", "--progress", "off", "--log-level", "off", "jobs.jsonl"],
                               cwd=tmp_path, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = status
    assert status == 0
    assert usage.ru_maxrss < 400 << 10, f"{usage.ru_maxrss} KiB"
    found = rows(tmp_path / "out.db", "SELECT error_code, count(*) FROM results GROUP BY 1")
    assert [tuple(r) for r in found] == [("prompt_too_long", 12), ("too_large", 12)]
