#!/usr/bin/env python3
"""Writes the text corpus of the tokenizer's golden test: the same bytes on every machine.

    corpus.py TEXT_FIXTURES OUT_FILE

Half of it is real text out of pinned packages (tools/fixtures.sh text): English prose, program
code, messages in 13 languages. The rest is made here to hurt: every kind of character next to the
parts of the split rules, combining marks, emoji sequences, storms of white space, long runs, added
tokens of all five vocabularies side by side and cut short, and random bytes decoded. Only integer arithmetic
of our own decides, so Python's version does not matter.

OUT_FILE: chunks of at most 16 KiB, each as its length (32 bits, little-endian) and its UTF-8 bytes.
"""
import json
import pathlib
import struct
import sys

CHUNK = 16384
CODE_BYTES = 3_000_000
MADE_CHARS = 1_300_000
LANGS = "cs de es fr it ja ko pl pt-br ru tr zh-cn zh-tw".split()

ADDED = """<|endoftext|> <|im_start|> <|im_end|> <think> </think> <tool_call> </tool_call> <｜User｜>
<｜Assistant｜> <｜begin▁of▁sentence｜> <｜end▁of▁sentence｜> <｜fim▁hole｜> <｜place▁holder▁no▁12｜>
<｜tool▁calls▁begin｜> <|EOT|> <|begin_of_text|> <|eot_id|> <|start_header_id|>
<|reserved_special_token_7|> <|reserved_special_token_77|> <|fim_prefix|> <|vision_pad|>
<s> </s> <unk> <0x0A>""".split()
WORDS = """the and of house it's we'll THEY'RE I'M don't foo_bar camelCase x+=1; return(0); #include
//!? http://example.org/a?b=c&d=%20 3.14159 1,000,000 2026-01-31 0xDEADBEEF \\n\\t {{}} [[]] ---- ====
straße naïve Ελλάδα Привет мир Україна שלום العربية हिन्दी தமிழ் ไทยแลนด์ ខ្មែរ
မြန်မာ ქართული አማርኛ 中文 漢字 仮名交じり文
カタカナ・ひらがな 한국어 조선말 ᄒ ᅡ ᆫ Việt Nam İstanbul ſs 'ſabc ﬁn ½ ² ١٢٣ Ⅷ 一二三 〇 ％ ￥ € ₿ → ∑ ♥ ☃""".split()
EMOJI = ["👍", "👍🏽", "👨‍👩‍👧‍👦", "🏳️‍🌈", "🇩🇪", "🇯🇵🇫🇷", "🫨", "1️⃣", "❤️", "☠", "🧑🏿‍🚀", "😀😃😄"]
SPACES = [" ", "  ", "\n", "\r\n", "\t", "\n\n", " \n", "\n ", "\u00a0", "\u3000", "\u2028",
          "\u0085", "\u1680", "\u2003", "\u202f", "\v", "\f", "\u200b", "\ufeff", "\u180e",
          "       ", "\t\t\t", "\r"]
MARKS = ["\u0301", "\u0327", "\u0345", "\u0334", "\u0323", "\u3099", "\u093c",
         "\u0f71\u0f72", "\u05bc", "\u06e1", "\U0001133b", "\U00011930", "\u0898",
         "\u1ac1", "\u302a", "\u20dd", "\u200d", "\ufe0f"]
BASES = ["a", "e", "A", "o", "ω", "я", "か", "क", "ᄀ", "가", "각", "ᅡ", "\u0958",
         "\u0344", "\u212b", "\ufb2c", "\U0001d15e", "\u2126", "\u1e9b", "\U00011935", "<", "1",
         "'", " "]


class Random:
    """xorshift64* (Vigna 2016)."""

    def __init__(self, seed):
        self.state = seed

    def below(self, n):
        x = self.state
        x ^= x >> 12
        x = (x ^ x << 25) & 0xFFFFFFFFFFFFFFFF
        x ^= x >> 27
        self.state = x
        return (x * 0x2545F4914F6CDD1D & 0xFFFFFFFFFFFFFFFF) * n >> 64

    def one(self, items):
        return items[self.below(len(items))]

    def code_point(self):
        c = self.below(self.one([0x80, 0x250, 0x3000, 0x10000, 0x20000, 0x110000]))
        return chr(c if not 0xD800 <= c < 0xE000 else 0x4E00 + c % 512)


def real(folder):
    yield (folder / "moby-dick.txt").read_text(encoding="utf-8")
    code = (folder / "typescript.js").read_text(encoding="utf-8")
    third = CODE_BYTES // 3
    for i in range(3):
        begin = i * (len(code) - third) // 2
        yield code[begin:begin + third]
    for lang in LANGS:
        messages = json.loads((folder / f"messages-{lang}.json").read_text(encoding="utf-8"))
        yield "\n".join(messages.values())


def contexts():
    """Every assigned kind of character beside the letters that the rules look at."""
    ranges = [(0, 0x3400), (0x3400, 0xA000, 37), (0xA000, 0xAC00), (0xAC00, 0xD7A4, 37),
              (0xD7A4, 0xD800), (0xE000, 0xF900, 37), (0xF900, 0x20000), (0x20000, 0x110000, 997)]
    for r in ranges:
        for c in map(chr, range(*r)):
            yield f"'{c} {c}1{c}a{c}\u0323e{c}\n{c}\n {c}'s\u0345{c}"


def storm(rnd):
    kind = rnd.below(12)
    n = 1 + rnd.below(1 + rnd.below(24))
    if kind == 0:
        return "".join(rnd.one(SPACES) for _ in range(n))
    if kind == 1:
        return "".join(rnd.one(ADDED) for _ in range(n % 5))
    if kind == 2:
        token = rnd.one(ADDED)
        return token[:rnd.below(len(token) + 1)] + rnd.one(ADDED) + token[rnd.below(len(token)):]
    if kind == 3:
        return rnd.one(BASES) + "".join(rnd.one(MARKS) for _ in range(n))
    if kind == 4:
        return "".join(rnd.one(EMOJI) for _ in range(n % 4 + 1))
    if kind == 5:
        return rnd.one(WORDS + BASES + SPACES + EMOJI + MARKS) * rnd.one([2, 3, 16, 17, 64, 65, 200])
    if kind == 6:
        return bytes(rnd.below(256) for _ in range(n)).decode("utf-8", "replace")
    if kind == 7:
        return "".join(rnd.code_point() for _ in range(n))
    if kind == 8:
        return "".join(str(rnd.below(10)) for _ in range(n))
    if kind == 9:
        marks = "'\"!?.,;:-_()[]{}<>|/\\@#$%^&*+=~`"
        return "".join(rnd.one(marks) for _ in range(n))
    return " ".join(rnd.one(WORDS) for _ in range(n))


def made():
    rnd, total = Random(0x7261_6E63_6865), 0
    while total < MADE_CHARS:
        text = storm(rnd) + rnd.one(["", "", " ", "\n"])
        total += len(text)
        yield text


def runs():
    for c in ["a", "A", " ", "\n", "\t", "1", "中", "あ", "é", "e\u0301", "👍", "'", "!", "\x00",
              "\u0301", "▁", "ab", " a", "a ", "\r\n", "=", "-", "가", "\u1112\u1161\u11ab", "<", "<|"]:
        yield c * (12000 // len(c.encode()))


def chunks(text):
    """At most CHUNK bytes each, cut between characters."""
    data, at = text.encode(), 0
    while at < len(data):
        end = min(at + CHUNK, len(data))
        while end < len(data) and data[end] & 0xC0 == 0x80:
            end -= 1
        yield data[at:end]
        at = end


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    folder, out = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
    sections = ["".join(real(folder)), "".join(contexts()), "".join(made())]
    with out.open("wb") as f:
        for text in sections + list(runs()):
            for chunk in chunks(text):
                f.write(struct.pack("<I", len(chunk)) + chunk)


if __name__ == "__main__":
    main()
