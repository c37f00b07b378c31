#!/usr/bin/env python3
"""Rebuilds the tokenizer of DeepSeek-R1-Distill-Qwen from the Qwen3 one.

    make_r1_tokenizer.py QWEN3_TOKENIZER_JSON OUT_DIR

Both models share Qwen's vocabulary, merges, normalizer and split; R1-Distill-Qwen swaps the 26
added tokens for 22 of its own and puts the beginning-of-sentence token in front. Writes
tokenizer.json, whose size equals that of the published file to the byte, and tokenizer_config.json with the
published field values; the chat template in it is written here after the published one's behaviour.
"""
import json
import pathlib
import sys

SIZE = 11_422_778
FIRST_ID = 151643
BOS = "<｜begin▁of▁sentence｜>"
EOS = "<｜end▁of▁sentence｜>"
ADDED = [  # (text, special), ids ascending from FIRST_ID
    (EOS, True), ("<｜User｜>", False), ("<｜Assistant｜>", False), (BOS, True),
    ("<|EOT|>", False), ("<think>", False), ("</think>", False),
    ("<|quad_start|>", True), ("<|quad_end|>", True),
    ("<|vision_start|>", True), ("<|vision_end|>", True), ("<|vision_pad|>", True),
    ("<|image_pad|>", True), ("<|video_pad|>", True),
    ("<tool_call>", False), ("</tool_call>", False),
    ("<|fim_prefix|>", False), ("<|fim_middle|>", False), ("<|fim_suffix|>", False),
    ("<|fim_pad|>", False), ("<|repo_name|>", False), ("<|file_sep|>", False),
]

# The last system message stands first, without a marker; a kept assistant turn loses its reasoning;
# the generation prompt opens the reasoning itself.
CHAT_TEMPLATE = (
    "{%- if add_generation_prompt is not defined -%}{%- set add_generation_prompt = false -%}"
    "{%- endif -%}"
    "{%- set ns = namespace(system='', tool_results=false) -%}"
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'system' -%}{%- set ns.system = message['content'] -%}{%- endif -%}"
    "{%- endfor -%}"
    "{{- bos_token + ns.system -}}"
    "{%- for message in messages -%}"
    "{%- if ns.tool_results and message['role'] != 'tool' -%}"
    "{{- '<｜tool▁outputs▁end｜>' -}}{%- set ns.tool_results = false -%}{%- endif -%}"
    "{%- if message['role'] == 'user' -%}{{- '<｜User｜>' + message['content'] -}}"
    "{%- elif message['role'] == 'assistant' and message['content'] is none -%}"
    "{{- '<｜Assistant｜><｜tool▁calls▁begin｜>' -}}"
    "{%- for tool in message['tool_calls'] -%}"
    "{%- if not loop.first -%}{{- '\\n' -}}{%- endif -%}"
    "{{- '<｜tool▁call▁begin｜>' + tool['type'] + '<｜tool▁sep｜>' + tool['function']['name']"
    " + '\\n```json\\n' + tool['function']['arguments'] + '\\n```<｜tool▁call▁end｜>' -}}"
    "{%- endfor -%}"
    "{{- '<｜tool▁calls▁end｜><｜end▁of▁sentence｜>' -}}"
    "{%- elif message['role'] == 'assistant' -%}"
    "{%- set content = message['content'] -%}"
    "{%- if '</think>' in content -%}{%- set content = content.split('</think>')[-1] -%}{%- endif -%}"
    "{{- '<｜Assistant｜>' + content + '<｜end▁of▁sentence｜>' -}}"
    "{%- elif message['role'] == 'tool' -%}"
    "{%- if ns.tool_results -%}{{- '\\n' -}}"
    "{%- else -%}{{- '<｜tool▁outputs▁begin｜>' -}}{%- set ns.tool_results = true -%}{%- endif -%}"
    "{{- '<｜tool▁output▁begin｜>' + message['content'] + '<｜tool▁output▁end｜>' -}}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if ns.tool_results -%}{{- '<｜tool▁outputs▁end｜>' -}}{%- endif -%}"
    "{%- if add_generation_prompt and not ns.tool_results -%}"
    "{{- '<｜Assistant｜><think>\\n' -}}{%- endif -%}"
)


def added_token(content):
    return {"__type": "AddedToken", "content": content, "lstrip": False, "normalized": True,
            "rstrip": False, "single_word": False}


def config():
    return {
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": added_token(BOS),
        "clean_up_tokenization_spaces": False,
        "eos_token": added_token(EOS),
        "legacy": True,
        "model_max_length": 16384,
        "pad_token": added_token(EOS),
        "sp_model_kwargs": {},
        "unk_token": None,
        "tokenizer_class": "LlamaTokenizerFast",
        "chat_template": CHAT_TEMPLATE,
    }


def rebuild(doc):
    """Swaps added tokens and post-processor; every other section stays as it is, in its order."""
    doc["added_tokens"] = [
        {"id": FIRST_ID + i, "content": text, "single_word": False, "lstrip": False,
         "rstrip": False, "normalized": False, "special": special}
        for i, (text, special) in enumerate(ADDED)]
    bos_id = FIRST_ID + [text for text, _ in ADDED].index(BOS)

    def bos(type_id):
        return {"SpecialToken": {"id": BOS, "type_id": type_id}}

    def seq(name, type_id):
        return {"Sequence": {"id": name, "type_id": type_id}}

    doc["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [bos(0), seq("A", 0)],
        "pair": [bos(0), seq("A", 0), bos(1), seq("B", 1)],
        "special_tokens": {BOS: {"id": BOS, "ids": [bos_id], "tokens": [BOS]}},
    }
    return doc


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    source, out = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
    out.mkdir(parents=True, exist_ok=True)
    doc = rebuild(json.loads(source.read_text(encoding="utf-8")))
    data = json.dumps(doc, ensure_ascii=False, indent=2).encode()
    if len(data) != SIZE:
        sys.exit(f"{out}/tokenizer.json: want {SIZE} bytes, got {len(data)}")
    (out / "tokenizer.json").write_bytes(data)
    text = json.dumps(config(), ensure_ascii=False, indent=2) + "\n"
    (out / "tokenizer_config.json").write_text(text, encoding="utf-8")
    print(f"{out}/tokenizer.json: {len(data)} bytes")


if __name__ == "__main__":
    main()
