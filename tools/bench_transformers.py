#!/usr/bin/env python3
"""Decode rate of Hugging Face Transformers on this CPU, to set beside `tranche bench`'s decode-16.

  bench_transformers.py MODEL_DIR [--sequences 16] [--prompt 32] [--new 32] [--threads 2]

Needs torch and transformers (any virtual environment). Prints one line: tokens/s of the decode steps
alone (the prefill is timed apart and left out), bf16 weights as in the folder and again as fp32; the
better of the two is what to beat.
"""
import argparse
import time

import torch
from transformers import AutoModelForCausalLM


def decode_rate(model, ids, new):
    """Seconds of generate for `new` tokens less those for one token: the steps behind the prefill."""
    def seconds(n):
        start = time.perf_counter()
        model.generate(ids, max_new_tokens=n, min_new_tokens=n, do_sample=False, use_cache=True,
                       attention_mask=torch.ones_like(ids), pad_token_id=0)
        return time.perf_counter() - start
    seconds(2)
    return ids.shape[0] * (new - 1) / (seconds(new) - seconds(1))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--sequences", type=int, default=16)
    parser.add_argument("--prompt", type=int, default=32)
    parser.add_argument("--new", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(1)
    for dtype in (torch.bfloat16, torch.float32):
        model = AutoModelForCausalLM.from_pretrained(args.model, dtype=dtype).eval()
        ids = torch.randint(1000, 20000, (args.sequences, args.prompt))
        with torch.inference_mode():
            rate = decode_rate(model, ids, args.new)
        print(f"transformers {str(dtype).split('.')[1]} {args.sequences} sequences: {rate:.1f} tok/s")


if __name__ == "__main__":
    main()
