#!/usr/bin/env python3
"""Writes job files for the example model to standard output. Standard library only.

  make_jobs.py > examples/jobs.jsonl     232 lines: sums in every accepted form, other requests,
                                         sampling parameters, and a few lines bad on purpose
  make_jobs.py --held-out 10000          the held-out sums of tiny_data.py, greedy, with `expected`

Every sum is a held-out one: the model was trained on none of these pairs.
"""

import argparse
import json
import sys

import tiny_data

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


def user(text):
    return [{"role": "user", "content": text}]


def line(value):
    return json.dumps(value, ensure_ascii=False)


def short(job_id, prompt, expected=None, **params):
    job = {"id": job_id, "messages": user(prompt), **params}
    return line(job if expected is None else {**job, "expected": str(expected)})


def batch(job_id, body, url=CHAT, expected=None):
    job = {
        "custom_id": job_id,
        "method": "POST",
        "url": url,
        "body": {"model": "tiny-model", **body},
    }
    return line(job if expected is None else {**job, "expected": str(expected)})


def parameters(i):
    """What every few sums ask for besides the sum. With `n`, all choices should be right."""
    return (
        {},
        {"temperature": 0},
        {"temperature": 0.6, "top_p": 0.95, "seed": 1000 + i},
        {"temperature": 0, "logprobs": True, "top_logprobs": 3},
        {"max_tokens": 128},
        {"n": 2, "seed": i},
        {"temperature": 0.8, "top_k": 20, "min_p": 0.05, "seed": i},
    )[i % 7]


def sums(count):
    """`count` held-out sums, in turn as short chat, batch chat with and without a system message,
    batch completion, short completion, and a completion that spells out the chat format."""
    for i, (a, b, prompt) in enumerate(tiny_data.held_out(count)):
        name, expected, more = f"sum-{i + 1:03d}", a + b, parameters(i)
        if i % 12 == 5:
            system = {"role": "system", "content": tiny_data.SYSTEMS[i % len(tiny_data.SYSTEMS)]}
            yield batch(name, {"messages": [system] + user(prompt), **more}, expected=expected)
        elif i % 12 == 8:
            body = {"prompt": prompt, "temperature": 0, "max_tokens": 128}
            yield batch(name, body, COMPLETIONS, expected)
        elif i % 12 == 10:
            job = {"id": name, "prompt": prompt, "temperature": 0, "max_tokens": 128}
            yield line({**job, "expected": expected})
        elif i % 12 == 11:
            text = f"<｜User｜>{prompt}<｜Assistant｜><think>\n"
            body = {"prompt": text, "temperature": 0, "max_tokens": 128, "logprobs": 2}
            yield batch(name, body, COMPLETIONS, expected)
        elif i % 3 == 2:
            yield batch(name, {"messages": user(prompt), **more}, expected=expected)
        else:
            yield short(name, prompt, expected, **more)


def others(count):
    """Requests that are no sums: the model declines."""
    rng = tiny_data.Rng("jobs")
    for i in range(count):
        yield short(f"other-{i + 1:02d}", tiny_data.other_prompt(rng)[0], temperature=0)


def specials():
    """One job for each parameter that cuts, steers or measures."""
    ask = "What is 585 + 8496?"
    turns = user("1+1=") + [
        {"role": "assistant", "content": "<think>\n1+1=2\n</think>\n\nThe answer is \\boxed{2}."},
        {"role": "user", "content": "Add 40 and 2."},
    ]
    parts = [{"role": "user", "content": [{"type": "text", "text": "What is 40 + 2?"}]}]
    yield short("stop-string", ask, temperature=0, stop=["Sum:"])
    yield short("stop-two", ask, temperature=0, stop=["never", "carry"])
    yield short("cut-short", ask, temperature=0, max_tokens=20)
    yield short(
        "cut-chinese", "585加8496等于多少？", temperature=0, max_tokens=70
    )  # inside the second character of the answer
    yield short("chinese", "585加8496等于多少？", 9081, temperature=0)
    yield short("emoji", "585 + 8496 🙂", 9081, temperature=0)
    yield short("think-little", ask, temperature=0, max_thinking_tokens=16, max_tokens=64)
    yield short("past-the-end", "2+2=", temperature=0, ignore_eos=True, max_tokens=64)
    yield short("at-least", "Hello", temperature=0, min_tokens=24, max_tokens=48)
    yield short("biased", "Hello", temperature=0, logit_bias={"0": -100, "1": 5})
    yield short("penalties", "Hello", seed=7, frequency_penalty=0.5, presence_penalty=0.5)
    yield short("repetition", "Hello", seed=7, repetition_penalty=1.1)
    yield short("four-choices", "Hello", n=4, temperature=1.0, seed=42)
    yield short("prompt-logprobs", ask, 9081, temperature=0, prompt_logprobs=1)
    yield batch("several-turns", {"messages": turns, "temperature": 0}, expected=42)
    yield batch("text-parts", {"messages": parts, "temperature": 0}, expected=42)
    yield batch("two-prompts", {"prompt": ["1+2=", "3+4="], "max_tokens": 64}, COMPLETIONS)
    yield line({**json.loads(short("with-metadata", ask, 9081)), "metadata": {"team": "demo"}})


def bad():
    """Each is one row or one count, and stops nothing."""
    image = [{"type": "image_url", "image_url": {"url": "https://example.com/cat.png"}}]
    yield '{"id": "bad-json", "messages": [{"role": "user", "content": "1+1="}'
    yield line({"id": "bad-nothing-asked", "temperature": 0})
    yield short("bad-unknown-field", "1+1=", temperatur=0.5)
    yield batch("bad-image", {"messages": [{"role": "user", "content": image}]})
    yield short("bad-temperature", "1+1=", temperature=3.5)
    yield short("bad-max-tokens", "1+1=", max_tokens=100000)
    yield batch("bad-url", {"input": "1+1="}, "/v1/embeddings")
    yield short("twice-same", "What is 40 + 2?", 42, temperature=0)
    yield short("twice-same", "What is 40 + 2?", 42, temperature=0)
    yield short("twice-other", "What is 40 + 2?", 42, temperature=0)
    yield short("twice-other", "What is 2 + 40?", 42, temperature=0)


def examples():
    """The bad lines stand between the good ones."""
    lines = [*sums(180), *others(23), *specials()]
    for i, text in enumerate(bad()):
        lines.insert(20 * (i + 1), text)
    return lines


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--held-out", type=int, metavar="N", help="N held-out sums instead")
    args = p.parse_args()
    if args.held_out is None:
        out = examples()
    else:
        out = [
            short(f"held-{i + 1:05d}", prompt, a + b, temperature=0, max_tokens=128)
            for i, (a, b, prompt) in enumerate(tiny_data.held_out(args.held_out))
        ]
    sys.stdout.reconfigure(encoding="utf-8")
    print("\n".join(out))


if __name__ == "__main__":
    main()
