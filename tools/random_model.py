#!/usr/bin/env python3
"""Makes small random model folders, the same bytes on every machine for the same seed, for tests
and golden files; and random folders of a real model's shape for benchmarks. Standard library only.

  random_model.py --list
  random_model.py OUTDIR --preset qwen2-untied-fp32 [--seed 1] [--layers 2] [--tokenizer DIR] ...
  random_model.py OUTROOT --all                      every preset, each in OUTROOT/NAME
  random_model.py OUTDIR --shape qwen2.5-0.5b [--dtype fp32]

Without --tokenizer the folder gets a byte-level tokenizer of 256 bytes and two special tokens.
"""

import argparse
import json
import math
import os
import shutil
import sys

import model_writer as mw

ARCHITECTURES = {
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
}

BASE = {
    "hidden": 64,
    "layers": 3,
    "heads": 4,
    "kv_heads": 2,
    "intermediate": 160,
    "vocab": 320,
    "dtype": "fp32",
    "tied": False,
    "theta": 10000.0,
    "eps": 1e-6,
    "max_position": 4096,
    "shards": 1,
    "o_bias": False,
    "mlp_bias": False,
}

# What each small model is there for. "config" goes into config.json as it stands.
PRESETS = {
    "qwen2-untied-fp32": {"family": "qwen2", "theta": 10000},
    "qwen2-odd-bf16": {
        "family": "qwen2",
        "hidden": 84,
        "heads": 6,
        "kv_heads": 3,
        "intermediate": 117,
        "vocab": 283,
        "dtype": "bf16",
        "tied": True,
        "theta": 1000000.0,
    },
    "qwen2-window-fp32": {
        "family": "qwen2",
        "vocab": 277,
        "layers": 4,
        "config": {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 2},
    },
    "qwen2-window-off-bf16": {
        "family": "qwen2",
        "vocab": 272,
        "heads": 12,
        "kv_heads": 2,
        "hidden": 192,
        "dtype": "bf16",
        "theta": 10000,
        "config": {"use_sliding_window": False, "sliding_window": 32, "max_window_layers": 1},
    },
    "qwen3-head-dim-bf16": {
        "family": "qwen3",
        "hidden": 48,
        "heads": 4,
        "kv_heads": 2,
        "head_dim": 32,
        "intermediate": 144,
        "vocab": 301,
        "dtype": "bf16",
        "tied": True,
        "theta": 1000000.0,
        "qk_norm_mean": 1.0,
    },
    "qwen3-yarn-fp32": {
        "family": "qwen3",
        "head_dim": 64,
        "hidden": 96,
        "heads": 3,
        "kv_heads": 1,
        "vocab": 264,
        "theta": 1000000.0,
        "max_position": 1024,
        "config": {
            "rope_scaling": {
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 256,
            },
        },
    },
    "llama3-rope-fp32": {
        "family": "llama",
        "hidden": 128,
        "heads": 4,
        "kv_heads": 2,
        "head_dim": 64,
        "vocab": 288,
        "tied": True,
        "theta": 500000.0,
        "eps": 1e-5,
        "config": {
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 128,
            },
        },
    },
    "llama-biases-fp16": {
        "family": "llama",
        "heads": 5,
        "kv_heads": 5,
        "hidden": 90,
        "intermediate": 131,
        "vocab": 300,
        "dtype": "fp16",
        "eps": 1e-5,
        "o_bias": True,
        "mlp_bias": True,
    },
    "llama-mqa-rope-parameters-bf16": {
        "family": "llama",
        "heads": 8,
        "kv_heads": 1,
        "hidden": 128,
        "intermediate": 96,
        "vocab": 266,
        "dtype": "bf16",
        "eps": 1e-5,
        "theta": 500000.0,
        "new_style": True,
    },
    "mistral-window-fp32": {
        "family": "mistral",
        "heads": 4,
        "kv_heads": 2,
        "vocab": 290,
        "eps": 1e-5,
        "config": {"sliding_window": 48},
    },
    "mistral-sharded-bf16": {
        "family": "mistral",
        "hidden": 80,
        "heads": 4,
        "kv_heads": 4,
        "head_dim": 24,
        "vocab": 311,
        "intermediate": 200,
        "dtype": "bf16",
        "eps": 1e-5,
        "theta": 1000000.0,
        "shards": 3,
        "config": {"sliding_window": None},
    },
    "qwen2-long-fp32": {
        "family": "qwen2",
        "layers": 2,
        "hidden": 64,
        "heads": 2,
        "kv_heads": 1,
        "vocab": 259,
        "tied": True,
        "theta": 1000000.0,
    },
    # The two below: head sizes that the CUDA engine takes, with qwen3-head-dim-bf16's 32.
    "qwen2-heads-of-128-bf16": {
        "family": "qwen2",
        "layers": 2,
        "hidden": 192,
        "heads": 12,
        "kv_heads": 2,
        "head_dim": 128,
        "intermediate": 256,
        "vocab": 300,
        "dtype": "bf16",
    },
    "mistral-window-heads-of-64-bf16": {
        "family": "mistral",
        "layers": 2,
        "hidden": 128,
        "heads": 7,
        "kv_heads": 1,
        "head_dim": 64,
        "vocab": 270,
        "dtype": "bf16",
        "eps": 1e-5,
        "config": {"sliding_window": 200},
    },
}

# Real shapes for benchmarks, filled by repeated blocks.
SHAPES = {
    "qwen2.5-0.5b": {
        "family": "qwen2",
        "hidden": 896,
        "layers": 24,
        "heads": 14,
        "kv_heads": 2,
        "intermediate": 4864,
        "vocab": 151936,
        "tied": True,
        "theta": 1000000.0,
        "max_position": 32768,
        "dtype": "bf16",
        "config": {"use_sliding_window": False, "sliding_window": 32768, "max_window_layers": 21},
    },
}

BOS, EOS = 256, 257


def complete(spec):
    """BASE, then the preset, then the fields that follow from the family."""
    s = {**BASE, **spec}
    s["head_dim_explicit"] = "head_dim" in spec
    s.setdefault("head_dim", s["hidden"] // s["heads"])
    s["qkv_bias"] = s["family"] == "qwen2" or s["o_bias"]
    s["qk_norm"] = s["family"] == "qwen3"
    s.setdefault("qk_norm_mean", 1.5)
    s.setdefault("config", {})
    if s["head_dim"] % 2:
        sys.exit(f"head_dim {s['head_dim']}: must be even")
    if s["heads"] % s["kv_heads"]:
        sys.exit(f"heads {s['heads']}: must be a multiple of kv heads {s['kv_heads']}")
    if s["vocab"] < EOS + 1:
        sys.exit(f"vocab {s['vocab']}: must be at least {EOS + 1}")
    return s


def config_json(s):
    c = {
        "architectures": [ARCHITECTURES[s["family"]]],
        "model_type": s["family"],
        "hidden_size": s["hidden"],
        "num_hidden_layers": s["layers"],
        "num_attention_heads": s["heads"],
        "num_key_value_heads": s["kv_heads"],
        "intermediate_size": s["intermediate"],
        "vocab_size": s["vocab"],
        "hidden_act": "silu",
        "rms_norm_eps": s["eps"],
        "max_position_embeddings": s["max_position"],
        "tie_word_embeddings": s["tied"],
        "attention_dropout": 0.0,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "use_cache": True,
    }
    if s["head_dim_explicit"]:
        c["head_dim"] = s["head_dim"]
    if s["family"] in ("llama", "qwen3"):
        c["attention_bias"] = s["o_bias"]
    if s["family"] == "llama":
        c["mlp_bias"] = s["mlp_bias"]
    dtype = mw.DTYPES[s["dtype"]][2]
    if s.get("new_style"):  # Transformers 5 writes these two in place of the three below
        c["dtype"] = dtype
        c["rope_parameters"] = {"rope_type": "default", "rope_theta": s["theta"]}
    else:
        c["torch_dtype"] = dtype
        c["rope_theta"] = s["theta"]
        c["rope_scaling"] = None
    c.update(s["config"])
    return c


def small_std(kind, fan_in):
    """Gains that keep activations near 1, make attention sharp enough that a wrong rope or window
    shows, and every bias and norm weight matter. A tied embedding is smaller: else the input
    token's own logit wins at every position and greedy runs repeat one token."""
    return {
        "embed": 0.5,
        "embed_tied": 0.12,
        "qk": 1.5 / math.sqrt(fan_in),
        "head": 1.5 / math.sqrt(fan_in),
        "bias": 0.2,
        "norm": 0.15,
        "qk_norm": 0.2,
        "linear": 1.0 / math.sqrt(fan_in),
    }[kind]


def real_std(kind, _fan_in):
    """As a freshly initialised real model; norms stay 1."""
    return {"norm": 0.0, "qk_norm": 0.0, "bias": 0.002}.get(kind, 0.02)


def byte_alphabet():
    """The byte-level alphabet: printable bytes stand for themselves, the others for U+0100
    upwards."""
    keep = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = iter(range(0x100, 0x200))
    return [chr(b) if b in keep else chr(next(rest)) for b in range(256)]


def write_byte_tokenizer(outdir):
    added = [
        {
            "id": i,
            "content": text,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for i, text in ((BOS, "<|bos|>"), (EOS, "<|eos|>"))
    ]
    level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": False,
    }
    mw.write_json(
        outdir,
        "tokenizer.json",
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": added,
            "normalizer": None,
            "pre_tokenizer": level,
            "post_processor": level,
            "decoder": level,
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": None,
                "continuing_subword_prefix": None,
                "end_of_word_suffix": None,
                "fuse_unk": False,
                "byte_fallback": False,
                "ignore_merges": False,
                "vocab": {c: b for b, c in enumerate(byte_alphabet())},
                "merges": [],
            },
        },
    )
    mw.write_json(
        outdir,
        "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": "<|bos|>",
            "eos_token": "<|eos|>",
            "add_bos_token": False,
            "clean_up_tokenization_spaces": False,
            "model_max_length": 4096,
            "chat_template": "{% for m in messages %}"
            "{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
            "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}",
        },
    )


def copy_tokenizer(outdir, source):
    names = [
        n
        for n in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
        if os.path.exists(os.path.join(source, n))
    ]
    if "tokenizer.json" not in names:
        sys.exit(f"--tokenizer {source}: has no tokenizer.json")
    for name in names:
        shutil.copyfile(os.path.join(source, name), os.path.join(outdir, name))


def make(outdir, spec, seed=1, tokenizer=None, fast=False):
    """Writes one folder. `spec` is an entry of PRESETS or SHAPES, or one like them."""
    s = complete(spec)
    os.makedirs(outdir, exist_ok=True)
    mw.write_json(outdir, "config.json", config_json(s))
    mw.write_json(outdir, "generation_config.json", {"bos_token_id": BOS, "eos_token_id": EOS})
    tensors = mw.decoder_tensors(s, real_std if fast else small_std)
    source = mw.BlockSource(seed, s["dtype"]) if fast else lambda t: t.exact(seed, s["dtype"])
    mw.write_weights(outdir, tensors, s["dtype"], source, s["shards"])
    copy_tokenizer(outdir, tokenizer) if tokenizer else write_byte_tokenizer(outdir)


def overrides(args):
    names = (
        "family",
        "hidden",
        "layers",
        "heads",
        "kv_heads",
        "head_dim",
        "intermediate",
        "vocab",
        "dtype",
        "theta",
        "shards",
    )
    out = {n: getattr(args, n) for n in names if getattr(args, n) is not None}
    if args.tied is not None:
        out["tied"] = args.tied == "yes"
    return out


def main():
    p = argparse.ArgumentParser(description="Makes random model folders.")
    p.add_argument("outdir", nargs="?")
    p.add_argument("--list", action="store_true", help="prints the presets and shapes")
    p.add_argument("--all", action="store_true", help="makes every preset below OUTDIR")
    p.add_argument("--preset", choices=sorted(PRESETS))
    p.add_argument("--shape", choices=sorted(SHAPES))
    p.add_argument("--family", choices=sorted(ARCHITECTURES))
    p.add_argument("--dtype", choices=sorted(mw.DTYPES))
    p.add_argument("--tied", choices=("yes", "no"))
    for name in (
        "hidden",
        "layers",
        "heads",
        "kv-heads",
        "head-dim",
        "intermediate",
        "vocab",
        "shards",
    ):
        p.add_argument("--" + name, type=int)
    p.add_argument("--theta", type=float)
    p.add_argument("--config", metavar="JSON", help="fields to put into config.json as they stand")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument(
        "--tokenizer", metavar="DIR", help="copies the tokenizer files of another folder"
    )
    args = p.parse_args()
    if args.list:
        print("\n".join([*PRESETS, *SHAPES]))
        return
    if not args.outdir:
        p.error("OUTDIR is missing")
    if args.all:
        for name, spec in PRESETS.items():
            make(os.path.join(args.outdir, name), spec, args.seed, args.tokenizer)
        return
    spec = {"family": "qwen2", **PRESETS.get(args.preset, SHAPES.get(args.shape, {}))}
    config = {**spec.get("config", {}), **json.loads(args.config or "{}")}
    make(
        args.outdir,
        {**spec, **overrides(args), "config": config},
        args.seed,
        args.tokenizer,
        fast=args.shape is not None,
    )


if __name__ == "__main__":
    main()
