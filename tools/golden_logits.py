#!/usr/bin/env python3
"""Makes tests/golden/logits/: what Hugging Face Transformers computes, in fp32 and with eager
attention, for every small random model of random_model.py. Needs transformers and torch; `make
test` does not run it, it reads the files.

NAME.json says which preset and seed, the sha256 of each weight file (so that a test knows that it
has remade the same model), the token ids, at which positions the logits are kept, and the greedy
continuation of the first `greedy_prompt` ids with the gap between best and second best logit at
each step. NAME.f32 holds the logits, little-endian float32, [positions][vocab]."""

import argparse
import glob
import hashlib
import json
import os
import tempfile

import torch
import transformers

import random_model

SEED = 1
GREEDY_PROMPT, GREEDY_STEPS = 24, 24
LENGTHS = {  # ids to run: past a sliding window, past yarn's original length, past 1,024 keys
    "qwen2-window-fp32": 230,
    "qwen3-yarn-fp32": 330,
    "llama3-rope-fp32": 230,
    "mistral-window-fp32": 230,
    "qwen2-long-fp32": 1100,
    "qwen2-heads-of-128-bf16": 1100,
    "mistral-window-heads-of-64-bf16": 600,
}
EDGES = (48, 64, 128, 256, 512, 1024)


def token_ids(name, count, vocab):
    raw = hashlib.shake_128(f"ids/{name}".encode()).digest(4 * count)
    return [int.from_bytes(raw[i : i + 4], "little") % vocab for i in range(0, len(raw), 4)]


def kept_positions(count):
    """All of a short run; of a long one the start, the end, both sides of every edge and
    samples."""
    if count <= 64:
        return list(range(count))
    near = {e + d for e in EDGES for d in (-2, -1, 0, 1)}
    return [i for i in range(count) if i < 8 or i >= count - 4 or i in near or i % 29 == 0]


def greedy(model, ids):
    """The whole prefix is run again at every step: no KV cache of the library is trusted."""
    out, gaps = [], []
    for _ in range(GREEDY_STEPS):
        logits = model(torch.tensor([ids + out]), use_cache=False).logits[0, -1]
        best = torch.topk(logits, 2)
        out.append(int(best.indices[0]))
        gaps.append(round(float(best.values[0] - best.values[1]), 6))
    return out, gaps


def golden(name, spec, outdir, folder):
    random_model.make(folder, spec, SEED)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    vocab = model.config.vocab_size
    ids = token_ids(name, LENGTHS.get(name, 48), vocab)
    positions = kept_positions(len(ids))
    with torch.no_grad():
        logits = model(torch.tensor([ids]), use_cache=False).logits[0, positions]
        steps, gaps = greedy(model, ids[:GREEDY_PROMPT])
    assert logits.dtype == torch.float32 and bool(torch.isfinite(logits).all())
    weights = {}
    for path in sorted(glob.glob(os.path.join(folder, "*.safetensors"))):
        with open(path, "rb") as f:
            weights[os.path.basename(path)] = hashlib.sha256(f.read()).hexdigest()
    with open(os.path.join(outdir, name + ".f32"), "wb") as f:
        f.write(logits.numpy().astype("<f4").tobytes())
    record = {
        "preset": name,
        "seed": SEED,
        "dtype": spec.get("dtype", "fp32"),
        "vocab": vocab,
        "transformers": transformers.__version__,
        "torch": torch.__version__.split("+")[0],
        "weights_sha256": weights,
        "ids": ids,
        "logit_positions": positions,
        "logits": name + ".f32",
        "greedy_prompt": GREEDY_PROMPT,
        "greedy": steps,
        "greedy_gap": gaps,
    }
    with open(os.path.join(outdir, name + ".json"), "w", encoding="utf-8") as f:
        json.dump(record, f)
        f.write("\n")
    print(
        f"{name}: {len(ids)} ids, {len(positions)} positions, rms {float(logits.std()):.3f}, "
        f"smallest greedy gap {min(gaps):.4f}"
    )


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    here = os.path.dirname(os.path.abspath(__file__))
    p.add_argument("--out", default=os.path.join(here, "..", "tests", "golden", "logits"))
    p.add_argument("--only", choices=sorted(random_model.PRESETS))
    args = p.parse_args()
    os.makedirs(args.out, exist_ok=True)
    torch.set_num_threads(2)
    for name, spec in random_model.PRESETS.items():
        if args.only in (None, name):
            with tempfile.TemporaryDirectory() as folder:
                golden(name, spec, args.out, folder)


if __name__ == "__main__":
    main()
