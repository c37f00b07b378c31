"""The named model's shape, end to end: all 28 layers, the published config values and file size,
the rebuilt tokenizer and template, random weights. It says nothing sensible; it must open and run."""
import json
import pathlib
import shutil
import sqlite3
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
LIMIT_S = 400  # 15 s alone on the machine; memory that was never touched can be slow to come
SMALL = ["--max-model-len", "512", "--kv-bytes", "64MiB", "--slots", "4", "--log-level", "warn"]
JOBS = [
    {"id": "sky", "prompt": "Why is the sky blue?", "max_tokens": 3, "temperature": 0, "logprobs": 1},
    {"id": "sum", "messages": [{"role": "user", "content": "12+30?"}], "max_tokens": 3},
    {"id": "text", "messages": [{"role": "user", "content": "中文？"}], "max_tokens": 3,
     "temperature": 0},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("full-shape")
    # full_shape.py itself holds the file to the published size, to the byte.
    subprocess.run([sys.executable, str(ROOT / "tools/full_shape.py"), str(made)], check=True)
    yield made
    shutil.rmtree(made)  # 3.6 GB, and pytest keeps its folders


def run(tranche, folder, tmp_path, name, jobs):
    (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(j) + "\n" for j in jobs))
    done = tranche("run", "--model", folder, "--db", f"{name}.db", *SMALL, f"{name}.jsonl",
                   timeout=LIMIT_S)
    assert done.returncode == 0, done.stderr.decode()
    db = sqlite3.connect(tmp_path / f"{name}.db")
    rows = db.execute("SELECT custom_id, status, prompt_tokens, completion_tokens, finish_reason, "
                      "choices, logprobs FROM results ORDER BY custom_id").fetchall()
    db.close()
    return {row[0]: row[1:] for row in rows}


def test_full_shape_folder_runs_and_says_the_same_alone(tranche, folder, tmp_path):
    together = run(tranche, folder, tmp_path, "together", JOBS)
    # BOS, User, the text's ids, Assistant, <think>, newline, as the published template has it.
    assert {k: v[:4] for k, v in together.items()} == {
        "sky": ("ok", 7, 3, "length"),
        "sum": ("ok", 1 + 1 + 6 + 1 + 2, 3, "length"),
        "text": ("ok", 1 + 1 + 2 + 1 + 2, 3, "length"),
    }
    alone = run(tranche, folder, tmp_path, "alone", JOBS[2:])
    assert alone["text"] == together["text"]
