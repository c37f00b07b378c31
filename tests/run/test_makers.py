"""The scripts that make models and jobs: same bytes everywhere, and the committed files are theirs."""

import array
import hashlib
import json
import pathlib
import struct
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
TOOLS = ROOT / "tools"
TINY = ROOT / "examples" / "tiny-model"
GOLDEN = ROOT / "tests" / "golden" / "logits"

sys.path.insert(0, str(TOOLS))
import make_tiny_tokenizer  # noqa: E402
import model_writer  # noqa: E402
import random_model  # noqa: E402
import tiny_data  # noqa: E402


def run(script, *args):
    done = subprocess.run(
        [sys.executable, str(TOOLS / script), *map(str, args)], capture_output=True, check=True
    )
    return done.stdout.decode()


def read_header(path):
    with open(path, "rb") as f:
        size = struct.unpack("<Q", f.read(8))[0]
        header = json.loads(f.read(size))
    assert header.pop("__metadata__") == {"format": "pt"}
    end = 0
    for entry in header.values():
        begin, end_here = entry["data_offsets"]
        assert begin == end
        end = end_here
    assert path.stat().st_size == 8 + size + end
    assert size % 8 == 0
    return header


@pytest.mark.parametrize("name", random_model.PRESETS)
def test_random_models_are_the_ones_the_golden_logits_were_made_of(name, tmp_path):
    golden = json.loads((GOLDEN / f"{name}.json").read_text())
    random_model.make(tmp_path, random_model.PRESETS[name], golden["seed"])
    made = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in tmp_path.glob("*.safe*rs")}
    assert made == golden["weights_sha256"]
    logits = (GOLDEN / golden["logits"]).stat().st_size
    assert logits == 4 * golden["vocab"] * len(golden["logit_positions"])


def test_shards_hold_every_tensor_once(tmp_path):
    spec = {**random_model.PRESETS["qwen2-untied-fp32"], "shards": 4}
    random_model.make(tmp_path, spec)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    found = {}
    for path in tmp_path.glob("*.safetensors"):
        found.update((name, path.name) for name in read_header(path))
    assert len(set(found.values())) == 4
    assert found == index["weight_map"]


def test_bf16_rounds_to_nearest_even():
    ties = array.array("f", [1.0, 1.00390625, 1.01171875, -1.00390625, 1.004])
    encoded = struct.unpack("<5H", model_writer.encode(ties, "bf16"))
    assert encoded == (0x3F80, 0x3F80, 0x3F82, 0xBF80, 0x3F81)


def test_full_shape_variant_has_the_published_shapes(tmp_path):
    run("full_shape.py", tmp_path, "--layers", 1, "--no-tokenizer")
    header = read_header(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()  # 1 GB, and pytest keeps its folders
    assert len(header) == 12 + 3
    assert header["lm_head.weight"]["shape"] == [151936, 1536]
    assert header["model.layers.0.self_attn.k_proj.weight"]["shape"] == [256, 1536]
    assert {e["dtype"] for e in header.values()} == {"BF16"}


def test_tokenizer_of_the_example_model_is_the_scripts(tmp_path):
    make_tiny_tokenizer.write_folder(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (tmp_path / name).read_bytes() == (TINY / name).read_bytes(), name


def test_example_model_is_of_the_promised_size():
    header = read_header(TINY / "model.safetensors")
    parameters = sum((e["data_offsets"][1] - e["data_offsets"][0]) // 2 for e in header.values())
    assert 1_000_000 <= parameters <= 4_000_000
    assert json.loads((TINY / "report.json").read_text())["parameters"] == parameters


def test_jobs_file_is_the_scripts():
    text = run("make_jobs.py")
    assert text == (ROOT / "examples" / "jobs.jsonl").read_text(encoding="utf-8")
    lines = text.splitlines()
    ids = set()
    for line in lines:
        try:
            job = json.loads(line)
        except ValueError:
            continue
        ids.add(job.get("id") or job.get("custom_id"))
    assert len(lines) >= 200
    assert len(ids) == len(lines) - 3  # one broken line, two repeated ids


def test_held_out_sums_are_held_out_and_distinct():
    jobs = [json.loads(x) for x in run("make_jobs.py", "--held-out", 10000).splitlines()]
    sums = tiny_data.held_out(10000)
    assert [j["expected"] for j in jobs] == [str(a + b) for a, b, _ in sums]
    assert all(tiny_data.is_held_out(a, b) and max(a, b) < 10000 for a, b, _ in sums)
    assert len({(min(a, b), max(a, b)) for a, b, _ in sums}) == 10000


def test_training_never_draws_a_held_out_pair():
    rng = tiny_data.Rng("test")
    for _ in range(5000):
        thought = tiny_data.training_example(rng)[3]
        first, plus, second = thought.split("\n")[0].partition("+")
        if plus and first.isdigit() and second.isdigit() and "\n" in thought:
            assert not tiny_data.is_held_out(int(first), int(second))
