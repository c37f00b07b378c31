#!/usr/bin/env python3
"""Writes tests/golden/tokenizer/NAME.txt: what Hugging Face's tokenizers gives, as hashes.

    golden_tokenizer.py [NAME ...]      (needs tokenizers==0.23.3 and tools/fixtures.sh)

Each hash is the first 8 bytes of a SHA-256; the three sections are
  points   every code point c as the texts c, cc and acb; a hash covers 2,048 code points: of every
           text the count of ids and the ids, as 32-bit little-endian numbers
  mixed    the ids of each chunk of the corpus
  decode   64 random id lists a hash: length and bytes of each decoded text, without and with
           skip_special_tokens
tests/unit/tokenizer_golden_test.c makes the same from our ids.
"""
import hashlib
import pathlib
import struct
import sys

import tokenizers
from tokenizers import Tokenizer

VERSION = "0.23.3"
NAMES = ["r1-qwen", "qwen3", "deepseek-v3", "llama3.1", "llama2"]
ROOT = pathlib.Path(__file__).resolve().parent.parent
FIXTURES = ROOT / ".cache" / "fixtures"
POINTS = 2048
DECODES, LISTS = 200, 64


def digest(h):
    return h.hexdigest()[:16]


def numbers(ids):
    return struct.pack(f"<{len(ids)}i", *ids)


def points(tok):
    for first in range(0, 0x110000, POINTS):
        texts = []
        for c in range(first, first + POINTS):
            if not 0xD800 <= c <= 0xDFFF:
                texts += [chr(c), chr(c) * 2, f"a{chr(c)}b"]
        h = hashlib.sha256()
        for enc in tok.encode_batch(texts, add_special_tokens=False):
            ids = enc.ids
            h.update(numbers([len(ids)] + ids))
        yield digest(h)


def mixed(tok):
    data = (FIXTURES / "corpus" / "corpus.bin").read_bytes()
    at, texts = 0, []
    while at < len(data):
        size, = struct.unpack_from("<I", data, at)
        texts.append(data[at + 4:at + 4 + size].decode())
        at += 4 + size
    for enc in tok.encode_batch(texts, add_special_tokens=False):
        yield digest(hashlib.sha256(numbers(enc.ids)))


def id_lists(n_ids):
    """xorshift64*, as in tools/corpus.py."""
    state = 0x1234_5678_9ABC

    def below(n):
        nonlocal state
        state ^= state >> 12
        state = (state ^ state << 25) & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 27
        return (state * 0x2545F4914F6CDD1D & 0xFFFFFFFFFFFFFFFF) * n >> 64

    while True:
        # Low ids hold the byte symbols (ids 3-258 in SentencePiece style): broken characters.
        top = 300 if below(2) else n_ids + 64
        yield [below(top) for _ in range(below(24))]


def decode(tok):
    lists = id_lists(tok.get_vocab_size())
    for _ in range(DECODES):
        h = hashlib.sha256()
        for _ in range(LISTS):
            ids = next(lists)
            for skip in (False, True):
                text = tok.decode(ids, skip_special_tokens=skip).encode()
                h.update(numbers([len(text)]) + text)
        yield digest(h)


def main():
    if tokenizers.__version__ != VERSION:
        sys.exit(f"tokenizers: want {VERSION}, have {tokenizers.__version__}")
    for name in sys.argv[1:] or NAMES:
        path = FIXTURES / name / "tokenizer.json"
        tok = Tokenizer.from_file(str(path))
        lines = [f"tokenizers {VERSION} {name}"]
        for section, make in (("points", points), ("mixed", mixed), ("decode", decode)):
            hashes = list(make(tok))
            lines += [f"{section} {len(hashes)}"] + hashes
        out = ROOT / "tests" / "golden" / "tokenizer" / f"{name}.txt"
        out.write_text("\n".join(lines) + "\n")
        print(out)


if __name__ == "__main__":
    main()
