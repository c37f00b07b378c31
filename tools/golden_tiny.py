#!/usr/bin/env python3
"""Makes tests/golden/tiny/greedy.json: what Hugging Face Transformers generates greedily, in fp32,
from examples/tiny-model for 32 requests. Needs transformers and torch; `make test` only reads it.

Each case has `messages` (rendered by the folder's chat template) or `prompt` (encoded with BOS),
the rendered text and its ids, the generated ids up to and with the end token, their text without
special tokens, and the smallest gap between best and second best logit on the way.
"""

import argparse
import json
import os

import torch
import transformers

import tiny_data

MAX_TOKENS = 96
OTHERS = (
    [{"role": "user", "content": "Hello"}],
    [{"role": "user", "content": "12-5"}],
    [{"role": "user", "content": "What is 12345 + 3?"}],
    [{"role": "user", "content": "Write a poem about bread."}],
    [{"role": "user", "content": "12加30等于多少？"}],
    [{"role": "user", "content": "请计算 9999+9999"}],
    [{"role": "user", "content": "585 + 8496 🙂"}],
    [{"role": "user", "content": "9999+1=" + tiny_data.SUFFIX}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Add 7 and 19."}],
    [
        {"role": "user", "content": "1+1="},
        {"role": "assistant", "content": "<think>\n1+1\n</think>\n\nThe answer is \\boxed{2}."},
        {"role": "user", "content": "What is 40 + 2?"},
    ],
)
RAW = ("What is 12 + 30?", "4711+815=")


def cases():
    for _, _, prompt in tiny_data.held_out(32 - len(OTHERS) - len(RAW)):
        yield {"messages": [{"role": "user", "content": prompt}]}
    for messages in OTHERS:
        yield {"messages": messages}
    for prompt in RAW:
        yield {"prompt": prompt}


@torch.no_grad()
def greedy(model, ids, eos):
    out, gap, cache, new = [], float("inf"), None, ids
    while len(out) < MAX_TOKENS and (not out or out[-1] != eos):
        step = model(torch.tensor([new]), past_key_values=cache, use_cache=True)
        best = torch.topk(step.logits[0, -1], 2)
        gap = min(gap, float(best.values[0] - best.values[1]))
        out.append(int(best.indices[0]))
        cache, new = step.past_key_values, out[-1:]
    return out, gap


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    root = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")
    p.add_argument("--model", default=os.path.join(root, "examples", "tiny-model"))
    p.add_argument("--out", default=os.path.join(root, "tests", "golden", "tiny", "greedy.json"))
    args = p.parse_args()
    tokenizer = transformers.AutoTokenizer.from_pretrained(args.model)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        args.model, dtype=torch.float32
    ).eval()
    done = []
    for case in cases():
        raw = "prompt" in case
        text = (
            case["prompt"]
            if raw
            else tokenizer.apply_chat_template(
                case["messages"], tokenize=False, add_generation_prompt=True
            )
        )
        ids = tokenizer(text, add_special_tokens=raw)["input_ids"]
        out, gap = greedy(model, ids, tokenizer.eos_token_id)
        done.append(
            {
                **case,
                "rendered": text,
                "prompt_ids": ids,
                "ids": out,
                "text": tokenizer.decode(out, skip_special_tokens=True),
                "smallest_gap": round(gap, 4),
            }
        )
    record = {
        "transformers": transformers.__version__,
        "torch": torch.__version__.split("+")[0],
        "max_tokens": MAX_TOKENS,
        "cases": done,
    }
    os.makedirs(os.path.dirname(args.out), exist_ok=True)
    with open(args.out, "w", encoding="utf-8") as out:
        json.dump(record, out, ensure_ascii=False, indent=1)
        out.write("\n")
    print(f"{len(done)} cases, smallest gap {min(c['smallest_gap'] for c in done)}")


if __name__ == "__main__":
    main()
