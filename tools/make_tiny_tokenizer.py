#!/usr/bin/env python3
"""Makes the example model's tokenizer: byte-level BPE of the same structure as DeepSeek-R1-Distill-
Qwen's (NFC, Qwen2 split, ByteLevel, BOS by post-processor, the same 22 added tokens with the same
flags), with a vocabulary of 256 bytes and 230 merges learnt from the sentences of tiny_data.py.

  make_tiny_tokenizer.py OUTDIR        writes tokenizer.json, tokenizer_config.json,
  chat_template.jinja

Standard library only. `Tokenizer` encodes in Python, for the training script.
"""

import collections
import json
import os
import re
import sys

import model_writer as mw
import tiny_data
from random_model import byte_alphabet

MERGES = 230
BOS, EOS = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
USER, ASSISTANT, THINK, END_THINK = "<｜User｜>", "<｜Assistant｜>", "<think>", "</think>"
ADDED = (  # (text, special) in R1-Distill-Qwen's order
    (EOS, True),
    (USER, False),
    (ASSISTANT, False),
    (BOS, True),
    ("<|EOT|>", False),
    (THINK, False),
    (END_THINK, False),
    ("<|quad_start|>", True),
    ("<|quad_end|>", True),
    ("<|vision_start|>", True),
    ("<|vision_end|>", True),
    ("<|vision_pad|>", True),
    ("<|image_pad|>", True),
    ("<|video_pad|>", True),
    ("<tool_call>", False),
    ("</tool_call>", False),
    ("<|fim_prefix|>", False),
    ("<|fim_middle|>", False),
    ("<|fim_suffix|>", False),
    ("<|fim_pad|>", False),
    ("<|repo_name|>", False),
    ("<|file_sep|>", False),
)
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Python's re has no \p{L}: \w without digits and underscore. It is exact on tiny_data's texts.
_L, _NOT_LN = r"[^\W\d_]", r"(?:[^\s\w]|_)"
PYTHON_SPLIT = re.compile(
    rf"(?i:'s|'t|'re|'ve|'m|'ll|'d)|(?:[^\S\r\n]|{_NOT_LN})?{_L}+|\d| ?{_NOT_LN}+[\r\n]*"
    rf"|\s*[\r\n]+|\s+(?!\S)|\s+"
)

CHAT_TEMPLATE = """\
{#- The prompt format of DeepSeek-R1-Distill-Qwen: the last system message stands first, unmarked;
an
    assistant turn of the history loses its reasoning; the new turn begins inside <think>. -#}
{%- if add_generation_prompt is not defined %}{% set add_generation_prompt = false %}{% endif %}
{%- set ns = namespace(system='') %}
{%- for message in messages %}
    {%- if message['role'] == 'system' %}
        {%- set ns.system = message['content'] %}
    {%- endif %}
{%- endfor %}
{{- bos_token }}{{ ns.system }}
{%- for message in messages %}
    {%- if message['role'] == 'user' %}
        {{- '<｜User｜>' + message['content'] }}
    {%- elif message['role'] == 'assistant' and message['content'] is not none %}
        {%- set content = message['content'] %}
        {%- if '</think>' in content %}
            {%- set content = content.split('</think>')[-1] %}
        {%- endif %}
        {{- '<｜Assistant｜>' + content + '<｜end▁of▁sentence｜>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<｜Assistant｜><think>\\n' }}
{%- endif %}
"""


def learn_merges(texts, count):
    """Plain BPE training: the most frequent adjacent pair first, the smaller pair at equal
    counts."""
    words = collections.Counter(w for t in texts for w in PYTHON_SPLIT.findall(t) if w.isascii())
    parts = {w: tuple(bytes([b]) for b in w.encode()) for w in words}
    merges = []
    while len(merges) < count:
        pairs = collections.Counter()
        for word, symbols in parts.items():
            for two in zip(symbols, symbols[1:]):
                pairs[two] += words[word]
        if not pairs:
            sys.exit(f"only {len(merges)} merges can be learnt, {count} wanted")
        best = min(pairs, key=lambda two: (-pairs[two], two))
        merges.append(best)
        parts = {w: merge(s, best) for w, s in parts.items()}
    return merges


def merge(symbols, two):
    out, i = [], 0
    while i < len(symbols):
        if symbols[i : i + 2] == two:
            out.append(two[0] + two[1])
            i += 2
        else:
            out.append(symbols[i])
            i += 1
    return tuple(out)


class Tokenizer:
    """Encodes as the finished tokenizer.json does (on text in NFC); decodes."""

    def __init__(self, merges):
        self.merges = {two: rank for rank, two in enumerate(merges)}
        self.vocab = {bytes([b]): b for b in range(256)}
        self.vocab.update((a + b, 256 + rank) for (a, b), rank in self.merges.items())
        self.added = {text: len(self.vocab) + i for i, (text, _) in enumerate(ADDED)}
        self.texts = {i: t for t, i in self.vocab.items()}
        self.texts.update((i, t.encode()) for t, i in self.added.items())
        self.splitter = re.compile("(" + "|".join(map(re.escape, self.added)) + ")")
        self.size = len(self.vocab) + len(ADDED)
        self.cache = {}

    @classmethod
    def load(cls, folder):
        with open(os.path.join(folder, "tokenizer.json"), encoding="utf-8") as f:
            merges = json.load(f)["model"]["merges"]
        back = {c: b for b, c in enumerate(byte_alphabet())}
        return cls([tuple(bytes(back[c] for c in part) for part in two) for two in merges])

    def _word(self, word):
        if word not in self.cache:
            symbols = tuple(bytes([b]) for b in word.encode())
            while True:
                ranks = [self.merges.get(two, 1 << 30) for two in zip(symbols, symbols[1:])]
                if not ranks or min(ranks) == 1 << 30:
                    break
                i = ranks.index(min(ranks))
                symbols = (*symbols[:i], symbols[i] + symbols[i + 1], *symbols[i + 2 :])
            self.cache[word] = [self.vocab[s] for s in symbols]
        return self.cache[word]

    def encode(self, text):
        ids = []
        for piece in self.splitter.split(text):
            if piece in self.added:
                ids.append(self.added[piece])
            else:
                for word in PYTHON_SPLIT.findall(piece):
                    ids += self._word(word)
        return ids

    def decode(self, ids):
        return b"".join(self.texts.get(i, b"") for i in ids).decode(errors="replace")


def added_token(text, special, **more):
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {**more, "content": text, **flags, "special": special}


def tokenizer_json(merges):
    letters = byte_alphabet()

    def letter(part):
        return "".join(letters[b] for b in part)

    vocab = {letters[b]: b for b in range(256)}
    vocab.update((letter(a + b), 256 + i) for i, (a, b) in enumerate(merges))
    bos = {"SpecialToken": {"id": BOS, "type_id": 0}}
    pair_bos = {"SpecialToken": {"id": BOS, "type_id": 1}}
    first = {"Sequence": {"id": "A", "type_id": 0}}
    second = {"Sequence": {"id": "B", "type_id": 1}}
    bos_id = len(vocab) + [t for t, _ in ADDED].index(BOS)
    level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": False,
        "use_regex": False,
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [added_token(t, s, id=len(vocab) + i) for i, (t, s) in enumerate(ADDED)],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {
                    "type": "Split",
                    "pattern": {"Regex": SPLIT},
                    "behavior": "Isolated",
                    "invert": False,
                },
                level,
            ],
        },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [bos, first],
            "pair": [bos, first, pair_bos, second],
            "special_tokens": {BOS: {"id": BOS, "ids": [bos_id], "tokens": [BOS]}},
        },
        "decoder": level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": [[letter(a), letter(b)] for a, b in merges],
        },
    }


def tokenizer_config():
    eos = {"__type": "AddedToken", **added_token(EOS, True)}
    return {
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": {"__type": "AddedToken", **added_token(BOS, True)},
        "clean_up_tokenization_spaces": False,
        "eos_token": eos,
        "legacy": True,
        "model_max_length": 2048,
        "pad_token": eos,
        "sp_model_kwargs": {},
        "unk_token": None,
        "tokenizer_class": "LlamaTokenizerFast",
    }


def corpus(count=20000):
    rng = tiny_data.Rng("tokenizer")
    for _ in range(count):
        system, prompt, _, thought, reply, _ = tiny_data.training_example(rng)
        yield from (system, prompt, thought, "\n\n" + reply)


def write_folder(outdir):
    os.makedirs(outdir, exist_ok=True)
    mw.write_json(outdir, "tokenizer.json", tokenizer_json(learn_merges(corpus(), MERGES)))
    mw.write_json(outdir, "tokenizer_config.json", tokenizer_config())
    with open(os.path.join(outdir, "chat_template.jinja"), "w", encoding="utf-8") as out:
        out.write(CHAT_TEMPLATE)


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    write_folder(sys.argv[1])


if __name__ == "__main__":
    main()
