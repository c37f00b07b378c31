#!/usr/bin/env python3
"""Makes a folder with the full shape of DeepSeek-R1-Distill-Qwen-1.5B: the published config values,
the rebuilt tokenizer, and random bf16 weights of the right names, shapes and layout. It says
nothing sensible; it proves that the real folder opens, and it is what speed is measured on.

  full_shape.py OUTDIR [--shards N] [--layers N] [--tokenizer DIR | --no-tokenizer] [--seed N]

Standard library only. At full depth and as a single file, model.safetensors has the published
file's size to the byte. The tokenizer comes from tools/fixtures.sh r1-qwen (made on first use)."""

import argparse
import os
import shutil
import subprocess
import sys
import time

import model_writer as mw
import random_model

PUBLISHED_BYTES = 3_554_214_752

CONFIG = {
    "architectures": ["Qwen2ForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151643,
    "hidden_act": "silu",
    "hidden_size": 1536,
    "initializer_range": 0.02,
    "intermediate_size": 8960,
    "max_position_embeddings": 131072,
    "max_window_layers": 21,
    "model_type": "qwen2",
    "num_attention_heads": 12,
    "num_hidden_layers": 28,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_theta": 10000,
    "sliding_window": 4096,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.44.0",
    "use_cache": True,
    "use_mrope": False,
    "use_sliding_window": False,
    "vocab_size": 151936,
}

GENERATION_CONFIG = {
    "_from_model_config": True,
    "bos_token_id": 151646,
    "eos_token_id": 151643,
    "do_sample": True,
    "temperature": 0.6,
    "top_p": 0.95,
    "transformers_version": "4.39.3",
}

SHAPE = {
    "hidden": 1536,
    "heads": 12,
    "kv_heads": 2,
    "head_dim": 128,
    "intermediate": 8960,
    "vocab": 151936,
    "tied": False,
    "qkv_bias": True,
    "o_bias": False,
    "mlp_bias": False,
    "qk_norm": False,
}


def add_tokenizer(outdir, source):
    """tokenizer.json and tokenizer_config.json (with the chat template) out of `source`, or out of
    the fixtures, which are made when they are missing."""
    if source is None:
        tools = os.path.dirname(os.path.abspath(__file__))
        root = os.environ.get("FIXTURES_DIR", os.path.join(tools, "..", ".cache", "fixtures"))
        source = os.path.join(root, "r1-qwen")
        if not os.path.exists(os.path.join(source, "tokenizer.json")):
            subprocess.run([os.path.join(tools, "fixtures.sh"), "r1-qwen"], check=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(os.path.join(source, name), os.path.join(outdir, name))


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("outdir")
    p.add_argument("--shards", type=int, default=1, help="weight files (default 1)")
    p.add_argument("--layers", type=int, default=28, help="fewer for a quick variant (default 28)")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--tokenizer", metavar="DIR", help="takes the tokenizer files from DIR")
    p.add_argument("--no-tokenizer", action="store_true", help="weights and config only")
    args = p.parse_args()
    if not 1 <= args.layers <= 28:
        p.error(f"--layers {args.layers}: must be 1..28")
    began = time.monotonic()
    os.makedirs(args.outdir, exist_ok=True)
    if not args.no_tokenizer:
        add_tokenizer(args.outdir, args.tokenizer)
    config = {**CONFIG, "num_hidden_layers": args.layers}
    mw.write_json(args.outdir, "config.json", config)
    mw.write_json(args.outdir, "generation_config.json", GENERATION_CONFIG)
    tensors = mw.decoder_tensors({**SHAPE, "layers": args.layers}, random_model.real_std)
    mw.write_weights(args.outdir, tensors, "bf16", mw.BlockSource(args.seed, "bf16"), args.shards)
    size = sum(e.stat().st_size for e in os.scandir(args.outdir) if e.name.endswith(".safetensors"))
    if args.layers == 28 and args.shards == 1 and size != PUBLISHED_BYTES:
        sys.exit(f"model.safetensors has {size} bytes, the published file {PUBLISHED_BYTES}")
    print(f"{args.outdir}: {len(tensors)} tensors, {size} bytes, {time.monotonic() - began:.1f} s")


if __name__ == "__main__":
    main()
