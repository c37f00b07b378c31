"""Writes Hugging Face model folders with the standard library alone: the tensors' numbers, the
safetensors container (single file or shards with an index), and the small JSON files beside them.

Numbers come from a counter-based source, SHAKE-128 keyed by (seed, tensor name), and take only IEEE
additions, multiplications and roundings, so that a folder made from a seed has the same bytes on
every machine.
"""

import array
import hashlib
import json
import math
import os
import struct
import sys

DTYPES = {
    "bf16": ("BF16", 2, "bfloat16"),
    "fp16": ("F16", 2, "float16"),
    "fp32": ("F32", 4, "float32"),
}

# Odd and no multiple of 3, 7 or 19: coprime to every real row length (1536, 896, 8960, 4864), so no
# two rows of one tensor repeat while it has fewer rows than this.
BLOCK_ELEMENTS = (1 << 20) + 7


def random_floats(seed, name, count, mean, spread):
    """`count` float32 values, uniform in mean ± spread."""
    raw = array.array("I")
    raw.frombytes(hashlib.shake_128(f"{seed}/{name}".encode()).digest(4 * count))
    if sys.byteorder != "little":
        raw.byteswap()
    return array.array("f", [mean + spread * ((x - 2147483647.5) / 2147483648.0) for x in raw])


def encode(floats, dtype):
    """Little-endian bytes of float32 values in `dtype`, rounded to nearest even."""
    if dtype == "fp32":
        return struct.pack(f"<{len(floats)}f", *floats)
    if dtype == "fp16":
        return struct.pack(f"<{len(floats)}e", *floats)
    bits = array.array("I")
    bits.frombytes(floats.tobytes())
    rounded = [(b + 0x7FFF + ((b >> 16) & 1)) >> 16 for b in bits]
    return struct.pack(f"<{len(rounded)}H", *rounded)


class Tensor:
    """Name, shape, and what its values are: uniform in mean ± spread."""

    def __init__(self, name, shape, spread, mean=0.0):
        self.name, self.shape, self.spread, self.mean = name, shape, spread, mean
        self.count = math.prod(shape)

    def exact(self, seed, dtype):
        """Yields the tensor's bytes, every value its own draw."""
        yield encode(random_floats(seed, self.name, self.count, self.mean, self.spread), dtype)


class BlockSource:
    """Fast bytes for big tensors: one random block per (mean, spread), entered at an offset that
    depends on the tensor's name and repeated. Small tensors (norms, biases) are drawn exactly."""

    def __init__(self, seed, dtype):
        self.seed, self.dtype, self.size = seed, dtype, DTYPES[dtype][1]
        self.blocks = {}

    def _block(self, tensor):
        key = (tensor.mean, tensor.spread)
        if key not in self.blocks:
            floats = random_floats(self.seed, f"block/{key}", BLOCK_ELEMENTS, *key)
            self.blocks[key] = memoryview(encode(floats, self.dtype) * 32)
        return self.blocks[key]

    def __call__(self, tensor):
        if tensor.count < BLOCK_ELEMENTS // 16:
            yield from tensor.exact(self.seed, self.dtype)
            return
        block, left = self._block(tensor), tensor.count * self.size
        digest = hashlib.sha256(f"{self.seed}/{tensor.name}".encode()).digest()
        start = int.from_bytes(digest[:8], "little") % BLOCK_ELEMENTS * self.size
        while left:
            part = block[start : start + left]
            yield part
            left -= len(part)
            start = 0


def header_bytes(tensors, dtype):
    """The header as the reference writer lays it out: __metadata__ first, then the tensors in file
    order, compact JSON, padded with spaces to 8 bytes."""
    code, size, _ = DTYPES[dtype]
    entries, end = {"__metadata__": {"format": "pt"}}, 0
    for t in tensors:
        begin, end = end, end + t.count * size
        entries[t.name] = {"dtype": code, "shape": list(t.shape), "data_offsets": [begin, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def write_safetensors(path, tensors, dtype, source):
    """One file; `source(tensor)` yields its bytes. The reference writer sorts by name within a
    dtype."""
    tensors = sorted(tensors, key=lambda t: t.name)
    with open(path, "wb", buffering=0) as out:
        out.write(header_bytes(tensors, dtype))
        for tensor in tensors:
            for part in source(tensor):
                view = memoryview(part)
                while view:
                    view = view[out.write(view) :]


def split_shards(tensors, count):
    """Cuts the tensors, in model order, into `count` non-empty runs of near equal bytes."""
    if not 1 <= count <= len(tensors):
        sys.exit(f"--shards {count}: must be 1..{len(tensors)}, the number of tensors")
    total, done, shards = sum(t.count for t in tensors), 0, [[]]
    for i, tensor in enumerate(tensors):
        left, missing = len(tensors) - i, count - len(shards)
        full = done * count >= total * len(shards)
        if shards[-1] and missing and (full or left == missing):
            shards.append([])
        shards[-1].append(tensor)
        done += tensor.count
    return shards


def write_weights(outdir, tensors, dtype, source, shards=1):
    """model.safetensors, or model-0000i-of-0000n.safetensors with model.safetensors.index.json.
    Weight files of an earlier run in the same folder go away first."""
    for entry in list(os.scandir(outdir)):
        if entry.name.endswith((".safetensors", ".safetensors.index.json")):
            os.unlink(entry.path)
    if shards == 1:
        write_safetensors(os.path.join(outdir, "model.safetensors"), tensors, dtype, source)
        return
    weight_map = {}
    for i, part in enumerate(split_shards(tensors, shards), 1):
        name = f"model-{i:05d}-of-{shards:05d}.safetensors"
        write_safetensors(os.path.join(outdir, name), part, dtype, source)
        weight_map.update((t.name, name) for t in part)
    total = sum(t.count for t in tensors) * DTYPES[dtype][1]
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    write_json(outdir, "model.safetensors.index.json", index)


def write_json(outdir, name, value):
    with open(os.path.join(outdir, name), "w", encoding="utf-8") as out:
        json.dump(value, out, indent=2, ensure_ascii=False)
        out.write("\n")


def decoder_tensors(shape, std):
    """The tensors of a Qwen2/Qwen3/Llama/Mistral decoder in model order. `shape` has hidden,
    layers, heads, kv_heads, head_dim, intermediate, vocab, tied, and the flags qkv_bias, o_bias,
    mlp_bias, qk_norm. `std(kind, fan_in)` gives a matrix' standard deviation; kind is embed,
    embed_tied, qk, head, linear, bias, norm or qk_norm."""
    h, hd, inter = shape["hidden"], shape["head_dim"], shape["intermediate"]
    q_rows, kv_rows = shape["heads"] * hd, shape["kv_heads"] * hd
    root3 = math.sqrt(3.0)  # a uniform value in ±s has standard deviation s / sqrt(3)

    def norm(name, size, kind="norm"):
        return Tensor(name, [size], root3 * std(kind, size), mean=shape.get(kind + "_mean", 1.0))

    def linear(name, rows, cols, bias, kind="linear"):
        weight = Tensor(name + ".weight", [rows, cols], root3 * std(kind, cols))
        return (
            [weight, Tensor(name + ".bias", [rows], root3 * std("bias", cols))]
            if bias
            else [weight]
        )

    embed = root3 * std("embed_tied" if shape["tied"] else "embed", h)
    out = [Tensor("model.embed_tokens.weight", [shape["vocab"], h], embed)]
    for i in range(shape["layers"]):
        p = f"model.layers.{i}."
        out += linear(p + "self_attn.q_proj", q_rows, h, shape["qkv_bias"], "qk")
        out += linear(p + "self_attn.k_proj", kv_rows, h, shape["qkv_bias"], "qk")
        out += linear(p + "self_attn.v_proj", kv_rows, h, shape["qkv_bias"])
        out += linear(p + "self_attn.o_proj", h, q_rows, shape["o_bias"])
        if shape["qk_norm"]:
            out += [norm(p + f"self_attn.{x}_norm.weight", hd, "qk_norm") for x in "qk"]
        out += linear(p + "mlp.gate_proj", inter, h, shape["mlp_bias"])
        out += linear(p + "mlp.up_proj", inter, h, shape["mlp_bias"])
        out += linear(p + "mlp.down_proj", h, inter, shape["mlp_bias"])
        out += [
            norm(p + "input_layernorm.weight", h),
            norm(p + "post_attention_layernorm.weight", h),
        ]
    out.append(norm("model.norm.weight", h))
    if not shape["tied"]:
        out.append(Tensor("lm_head.weight", [shape["vocab"], h], root3 * std("head", h)))
    return out
