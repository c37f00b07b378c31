"""The example model says through our engine what it says in Hugging Face Transformers, id for id:
tests/golden/tiny/greedy.json, made by tools/golden_tiny.py."""
import json
import pathlib
import sqlite3

ROOT = pathlib.Path(__file__).resolve().parents[2]
GOLDEN = json.loads((ROOT / "tests/golden/tiny/greedy.json").read_text(encoding="utf-8"))


def test_greedy_text_is_that_of_transformers(tranche, tiny_model, tmp_path):
    cases = {f"c{i:02d}": case for i, case in enumerate(GOLDEN["cases"])}
    with open(tmp_path / "jobs.jsonl", "w") as f:
        for name, case in cases.items():
            told = {k: case[k] for k in ("messages", "prompt") if k in case}
            job = {"id": name, "temperature": 0, "max_tokens": GOLDEN["max_tokens"], **told}
            f.write(json.dumps(job) + "\n")
    done = tranche("run", "--model", tiny_model, "--db", "o.db", "jobs.jsonl")
    assert done.returncode == 0, done.stderr.decode()
    db = sqlite3.connect(tmp_path / "o.db")
    found = db.execute("SELECT custom_id, status, prompt_tokens, completion_tokens, reasoning, "
                       "answer FROM results ORDER BY custom_id").fetchall()
    db.close()
    assert len(found) == len(cases) == 32
    for name, status, prompt_tokens, completion_tokens, reasoning, answer in found:
        case = cases[name]
        assert case["smallest_gap"] > 0.25, name  # else the two may differ by rounding alone
        assert (status, prompt_tokens) == ("ok", len(case["prompt_ids"])), name
        assert completion_tokens == len(case["ids"]), name
        # A chat's template opens <think>; after a bare prompt the model does.
        thought, _, said = case["text"].removeprefix("<think>").partition("</think>")
        assert ((reasoning or "").strip(), (answer or "").strip()) == (thought.strip(), said.strip())
