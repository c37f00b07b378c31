"""tranche export: OpenAI batch output and error files, in input order."""
import json
import os
import sqlite3
import stat
import subprocess

import pytest


def write(path, text):
    path.write_text(text)


def load(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


JOBS = [
    {"custom_id": "z", "method": "POST", "url": "/v1/chat/completions", "body": {
        "model": "m", "messages": [{"role": "user", "content": "1"}], "logprobs": True,
        "top_logprobs": 2, "n": 2, "max_tokens": 5}},
    {"custom_id": "bad", "method": "POST", "url": "/v1/chat/completions", "body": {
        "model": "m", "messages": [{"role": "user", "content": "1"}], "temperature": 9}},
    {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {
        "model": "m", "prompt": ["x", "y"], "logprobs": 1, "max_tokens": 4}},
    {"custom_id": "plain", "method": "POST", "url": "/v1/completions", "body": {
        "prompt": "\"logprobs\":null,\"finish_reason\":", "max_tokens": 4}},
    {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"prompt": "other"}},
    {"custom_id": "late", "method": "POST", "url": "/v1/completions", "deadline": 1,
     "body": {"prompt": "x"}},
]


def run_jobs(tranche, tmp_path, *options):
    write(tmp_path / "jobs.jsonl", "".join(json.dumps(j) + "\n" for j in JOBS))
    process = tranche("run", "--engine", "sim", "--db", "o.db", "--progress", "off", *options,
                      "jobs.jsonl")
    assert process.returncode == 0, process.stderr.decode()


def test_files_have_openai_s_shape(tranche, tmp_path):
    run_jobs(tranche, tmp_path)
    process = tranche("export", "--db", "o.db", "--output", "out.jsonl")
    assert process.returncode == 0, process.stderr.decode()
    out, errors = load(tmp_path / "out.jsonl"), load(tmp_path / "out.jsonl.errors.jsonl")
    assert [o["custom_id"] for o in out] == ["z", "a", "plain"]
    assert [e["custom_id"] for e in errors] == ["bad", "a", "late"]

    chat = out[0]
    assert chat["error"] is None and chat["id"].startswith("batch_req_")
    assert chat["response"]["status_code"] == 200
    body = chat["response"]["body"]
    assert body["object"] == "chat.completion" and body["model"] == "m"
    assert isinstance(body["created"], int) and body["created"] > 1600000000
    assert [c["index"] for c in body["choices"]] == [0, 1]
    for choice in body["choices"]:
        assert choice["message"]["role"] == "assistant"
        assert choice["finish_reason"] in ("stop", "length")
        content = choice["logprobs"]["content"]
        assert all(len(t["top_logprobs"]) == 2 and t["bytes"] for t in content)
        assert bytes(b for t in content for b in t["bytes"]).decode().startswith(
            choice["message"]["content"])
    usage = body["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert {"cached_tokens"} == set(usage["prompt_tokens_details"])

    text = out[1]["response"]["body"]
    assert text["object"] == "text_completion"
    assert [c["index"] for c in text["choices"]] == [0, 1]
    assert all(len(c["logprobs"]["tokens"]) == len(c["logprobs"]["text_offset"])
               for c in text["choices"])
    assert out[2]["response"]["body"]["choices"][0]["logprobs"] is None

    bad = errors[0]["response"]
    assert bad["status_code"] == 400
    assert bad["body"]["error"]["code"] == "bad_value"
    assert bad["body"]["error"]["param"] == "temperature"
    assert errors[1]["response"]["body"]["error"]["code"] == "id_conflict"
    assert errors[2]["response"] is None and errors[2]["error"]["code"] == "batch_expired"


def test_prompt_logprobs_stand_where_vllm_has_them(tranche, tiny_model, tmp_path):
    jobs = [{"id": "chat", "messages": [{"role": "user", "content": "1 + 1"}], "prompt_logprobs": 1,
             "max_tokens": 2},
            {"id": "text", "prompt": ["one", "and two"], "n": 2, "prompt_logprobs": 0, "logprobs": 1,
             "max_tokens": 2},
            {"id": "none", "model": "m", "prompt": "x", "max_tokens": 2}]
    write(tmp_path / "j.jsonl", "".join(json.dumps(j) + "\n" for j in jobs))
    process = tranche("run", "--model", tiny_model, "--db", "o.db", "--progress", "off", "j.jsonl")
    assert process.returncode == 0, process.stderr.decode()
    assert tranche("export", "--db", "o.db", "--output", "o.jsonl").returncode == 0
    chat, text, none = [o["response"]["body"] for o in load(tmp_path / "o.jsonl")]
    db = sqlite3.connect(tmp_path / "o.db")
    stored = {i: json.loads(p) for i, p in db.execute(
        "SELECT custom_id, prompt_logprobs FROM results WHERE prompt_logprobs IS NOT NULL")}
    db.close()
    assert set(stored) == {"chat", "text"}
    # A chat has one prompt and says it once; choices of completions have each their own prompt's.
    assert chat["prompt_logprobs"] == stored["chat"][0] and len(chat["prompt_logprobs"]) > 2
    assert all("prompt_logprobs" not in c for c in chat["choices"])
    first, second = stored["text"]
    assert first != second
    assert [c["prompt_logprobs"] for c in text["choices"]] == [first, first, second, second]
    assert all(len(c["logprobs"]["tokens"]) == 2 for c in text["choices"])
    assert "prompt_logprobs" not in text
    assert "prompt_logprobs" not in json.dumps(none)
    assert none["model"] == "m"
    assert chat["model"] == text["model"] == tiny_model.name


def test_answers_that_look_like_the_splice_mark_survive(tranche, tmp_path):
    run_jobs(tranche, tmp_path)
    mark = 'say "logprobs":null,"finish_reason": \\ '
    choices = json.dumps([{"index": i, "message": {"role": "assistant", "content": mark,
                                                   "refusal": None},
                           "logprobs": None, "finish_reason": "stop", "stop_reason": None}
                          for i in range(2)], separators=(",", ":"))
    db = sqlite3.connect(tmp_path / "o.db")
    db.execute("UPDATE results SET choices=? WHERE custom_id='z'", (choices,))
    db.commit()
    db.close()
    assert tranche("export", "--db", "o.db", "--output", "o.jsonl").returncode == 0
    got = load(tmp_path / "o.jsonl")[0]["response"]["body"]["choices"]
    assert [c["message"]["content"] for c in got] == [mark] * 2
    assert all(c["logprobs"]["content"] for c in got)


def test_batches_and_runs_are_chosen(tranche, tmp_path):
    run_jobs(tranche, tmp_path)
    run_jobs(tranche, tmp_path, "--batch", "second")
    process = tranche("export", "--db", "o.db")
    assert process.returncode == 64 and b"jobs, second" in process.stderr
    process = tranche("export", "--db", "o.db", "--batch", "third")
    assert process.returncode == 64 and b"third" in process.stderr
    process = tranche("export", "--db", "o.db", "--run", "blue")
    assert process.returncode == 64 and b"blue" in process.stderr
    process = tranche("export", "--db", "o.db", "--batch", "second")
    assert process.returncode == 0
    assert len(process.stdout.splitlines()) == len(JOBS)
    assert tranche("export", "--db", "absent.db").returncode == 69
    write(tmp_path / "junk.db", "junk " * 1000)
    assert tranche("export", "--db", "junk.db").returncode == 65


def test_a_damaged_database_is_one_code_wherever_it_is_met(tranche, tmp_path):
    """65: it was 70, an engine that was lost, where the damage lay behind the first query."""
    for table in ("batches", "results"):
        run_jobs(tranche, tmp_path)
        db = sqlite3.connect(tmp_path / "o.db")
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        size = db.execute("PRAGMA page_size").fetchone()[0]
        roots = db.execute("SELECT rootpage FROM sqlite_schema WHERE tbl_name=? AND rootpage > 0",
                           (table,)).fetchall()
        db.close()
        with open(tmp_path / "o.db", "r+b") as f:
            for page, in roots:
                f.seek((page - 1) * size)
                f.write(bytes(size))
        process = tranche("export", "--db", "o.db", "--output", "o")
        assert process.returncode == 65, (table, process.stderr)
        assert b"malformed" in process.stderr and not (tmp_path / "o").exists()
        (tmp_path / "o.db").unlink()


def test_no_error_file_without_errors(tranche, tmp_path):
    write(tmp_path / "jobs.jsonl", '{"id":"a","prompt":"x"}\n')
    tranche("run", "--engine", "sim", "--db", "o.db", "jobs.jsonl")
    write(tmp_path / "o.jsonl.errors.jsonl", "of an earlier export\n")
    assert tranche("export", "--db", "o.db", "--output", "o.jsonl").returncode == 0
    assert not (tmp_path / "o.jsonl.errors.jsonl").exists()
    assert sorted(p.name for p in tmp_path.iterdir() if "tmp" in p.name) == []
    process = tranche("export", "--db", "o.db", "--output", "no/folder/o.jsonl")
    assert process.returncode == 64


def test_what_cannot_be_written_leaves_nothing_unfinished(tranche, tmp_path):
    """The answers get their name last: where they have it, the errors are whole too."""
    run_jobs(tranche, tmp_path)
    (tmp_path / "folder").mkdir()
    with open("/dev/full", "wb") as full:
        for args, there in (("--errors - --output o", []), ("--errors e --output -", ["e"])):
            process = tranche("export", "--db", "o.db", *args.split(), stdout=full)
            assert process.returncode == 74, args
            assert b"-: cannot write: No space left on device" in process.stderr
            assert [n for n in ("o", "e") if (tmp_path / n).exists()] == there
            assert list(tmp_path.glob("*.tmp")) == [], args
    process = tranche("export", "--db", "o.db", "--errors", "e", "--output", "folder")
    assert process.returncode == 74 and b"folder: cannot rename" in process.stderr
    assert list(tmp_path.glob("*.tmp")) == []


@pytest.mark.parametrize("room", [0, 1])
def test_a_disk_without_room_for_the_files(tranche, binary, tmp_path, room):
    """Full as they are made (here of inodes; the root is one) is as full as when they grow."""
    run_jobs(tranche, tmp_path)
    (tmp_path / "full").mkdir()
    mount = f"mount -t tmpfs -o nr_inodes={1 + room} none full"
    inside = ["unshare", "-rm", "sh", "-c"]
    if subprocess.run([*inside, mount], cwd=tmp_path, capture_output=True).returncode != 0:
        pytest.skip("no mount namespaces here")
    script = f"{mount} && '{binary}' export --db o.db --output full/o; code=$?; ls -A full; exit $code"
    process = subprocess.run([*inside, script], cwd=tmp_path, capture_output=True, timeout=120)
    assert process.returncode == 74, process.stderr
    name = ["full/o", "full/o.errors.jsonl"][room]
    assert f"tranche export: {name}: cannot write: No space left on device" in process.stderr.decode()
    assert process.stdout == b""


def test_what_is_no_file_is_written_as_it_is(tranche, tmp_path):
    """A pipe or a device has no name to take: it was replaced by a file, /dev/full too."""
    run_jobs(tranche, tmp_path)
    want = tranche("export", "--db", "o.db", "--errors", "e").stdout
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    assert tranche("export", "--db", "o.db", "--errors", "e", "--output", "pipe").returncode == 0
    assert os.read(reader, 1 << 20) == want and want
    os.close(reader)
    (tmp_path / "full").symlink_to("/dev/full")
    process = tranche("export", "--db", "o.db", "--errors", "e", "--output", "full")
    assert process.returncode == 74
    assert b"full: cannot write: No space left on device" in process.stderr
    assert stat.S_ISCHR((tmp_path / "full").stat().st_mode)


def test_reasoning_is_apart_from_content(tranche, tiny_model, tmp_path):
    write(tmp_path / "s.jsonl", json.dumps({"id": "a", "temperature": 0, "messages": [
        {"role": "user", "content": "What is 12 + 30?"}]}) + "\n" + json.dumps(
        {"id": "cut", "temperature": 0, "max_tokens": 3, "messages": [
            {"role": "user", "content": "What is 12 + 30?"}]}) + "\n")
    assert tranche("run", "--model", tiny_model, "--db", "o.db", "s.jsonl").returncode == 0
    whole, cut = [json.loads(x) for x in tranche("export", "--db", "o.db").stdout.splitlines()]
    message = whole["response"]["body"]["choices"][0]["message"]
    assert "42" in message["content"] and "<" not in message["content"]
    assert message["reasoning_content"]
    cut_choice = cut["response"]["body"]["choices"][0]
    assert cut_choice["message"]["content"] is None and cut_choice["finish_reason"] == "length"
