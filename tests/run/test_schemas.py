"""The JSON Schemas say what the binary does: fields, limits, columns."""
import json
import re
import sqlite3

import pytest


def load(root, name):
    return json.loads((root / "schemas" / name).read_text())


def test_result_schema_names_the_columns(root, tranche, tmp_path):
    (tmp_path / "j.jsonl").write_text('{"id":"a","prompt":"x"}\njunk\n')
    assert tranche("run", "--engine", "sim", "--db", "o.db", "j.jsonl").returncode == 0
    db = sqlite3.connect(tmp_path / "o.db")
    db.row_factory = sqlite3.Row
    schema = load(root, "result.schema.json")["properties"]
    kinds = {"string": (str, bytes), "integer": int, "number": (int, float), "null": type(None)}
    for row in db.execute("SELECT * FROM results"):
        assert row.keys() == list(schema)
        for name in row.keys():
            rule, value = schema[name], row[name]
            if "enum" in rule:
                assert value in rule["enum"], name
            else:
                allowed = rule["type"] if isinstance(rule["type"], list) else [rule["type"]]
                assert any(isinstance(value, kinds[k]) for k in allowed), name
            if "pattern" in rule and value is not None:
                assert re.match(rule["pattern"], value), name


def test_what_is_said_of_a_column_names_each_of_its_values(root):
    """The schemas' comments are what a person reads in the database; all three say the same."""
    sqlite = (root / "schemas/sqlite/001_init.sql").read_text()
    postgres = (root / "schemas/postgres/001_init.sql").read_text()
    for name, rule in load(root, "result.schema.json")["properties"].items():
        said = rule["description"]
        missing = [v for v in rule.get("enum", []) if v and not re.search(rf"\b{v}\b", said)]
        assert not missing, name
        assert re.search(rf"^    {name} .*-- (.*)$", sqlite, re.M)[1] == said
        quoted = said.replace("'", "''")
        assert f"COMMENT ON COLUMN results.{name} IS '{quoted}';" in postgres


@pytest.mark.parametrize("kind", ["chat", "completion"])
def test_job_schema_and_binary_agree_on_fields_and_limits(root, tranche, tmp_path, kind):
    """Each field of the schema is accepted at its limits and refused beyond them."""
    defs = load(root, "job.schema.json")["$defs"]
    fields = {**defs["sampling"]["properties"], **defs[kind]["properties"]}
    base = ({"messages": [{"role": "user", "content": "x"}]} if kind == "chat"
            else {"prompt": "x"})
    jobs, want = [], {}

    def add(body, status):
        name = f"{len(jobs)}"
        jobs.append({"id": name, **base, **body})
        want[name] = (status, body)

    for name, rule in fields.items():
        if name in base:
            continue
        add({name: None}, "ok")
        types = rule.get("type", [])
        extra = {"logprobs": True} if name == "top_logprobs" else {}
        if name == "max_thinking_tokens":
            continue  # needs a model that thinks
        for limit, beyond in (("minimum", -1), ("maximum", 1)):
            if limit in rule:
                add({name: rule[limit], **extra}, "ok")
                add({name: rule[limit] + beyond, **extra}, "invalid")
        if "integer" in types or "number" in types or "boolean" in types:
            add({name: "text", **extra}, "invalid")
        for value in rule.get("enum", []):
            add({name: value}, "ok")
    add({"no_such_field": 1}, "invalid")
    (tmp_path / "j.jsonl").write_text("".join(json.dumps(j) + "\n" for j in jobs))
    process = tranche("run", "--engine", "sim", "--db", "o.db", "--progress", "off", "j.jsonl")
    assert process.returncode == 0, process.stderr.decode()
    db = sqlite3.connect(tmp_path / "o.db")
    for custom_id, status, detail in db.execute("SELECT custom_id, status, error_detail FROM "
                                                "results"):
        assert (status, want[custom_id][1]) == want[custom_id], detail
    assert len(want) > 60
