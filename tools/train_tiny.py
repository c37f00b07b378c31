#!/usr/bin/env python3
"""Trains the example model (examples/tiny-model) from nothing: a Qwen2ForCausalLM of 1.8 M
parameters.

  train_tiny.py OUTDIR [--steps 9000] [--batch 1024] [--minutes 6] [--examples 1500000] [--seed 1]

Needs torch and numpy alone. OUTDIR gets config.json, generation_config.json, model.safetensors
(bf16), the tokenizer files, and report.json: steps, seconds, and the accuracy on the 10,000 held-
out sums of tiny_data.py, greedy, measured with the bf16 weights that were written. Under autocast
the matrix products see bf16 weights during the whole training, so rounding them at the end costs
nothing."""

import argparse
import json
import math
import multiprocessing
import os
import time

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import make_tiny_tokenizer as tok
import model_writer as mw
import tiny_data

SHAPE = {
    "hidden": 192,
    "layers": 4,
    "heads": 6,
    "kv_heads": 2,
    "head_dim": 32,
    "intermediate": 512,
    "vocab": 512,
}
THETA, EPS, LENGTH = 10000.0, 1e-6, 160


class Norm(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x):
        x = x.float()
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + EPS) * self.weight


def rotate(x, cos, sin):
    low, high = x.chunk(2, -1)
    return x * cos + torch.cat((-high, low), -1) * sin


class Attention(nn.Module):
    def __init__(self, s):
        super().__init__()
        h, hd = s["hidden"], s["head_dim"]
        self.q_proj = nn.Linear(h, s["heads"] * hd)
        self.k_proj = nn.Linear(h, s["kv_heads"] * hd)
        self.v_proj = nn.Linear(h, s["kv_heads"] * hd)
        self.o_proj = nn.Linear(s["heads"] * hd, h, bias=False)
        self.hd, self.group = hd, s["heads"] // s["kv_heads"]

    def forward(self, x, cos, sin):
        b, t, _ = x.shape
        q, k, v = (
            p(x).view(b, t, -1, self.hd).transpose(1, 2)
            for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        k, v = (y.repeat_interleave(self.group, 1) for y in (k, v))
        y = F.scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v, is_causal=True)
        return self.o_proj(y.transpose(1, 2).reshape(b, t, -1))


class Mlp(nn.Module):
    def __init__(self, s):
        super().__init__()
        self.gate_proj = nn.Linear(s["hidden"], s["intermediate"], bias=False)
        self.up_proj = nn.Linear(s["hidden"], s["intermediate"], bias=False)
        self.down_proj = nn.Linear(s["intermediate"], s["hidden"], bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, s):
        super().__init__()
        self.input_layernorm, self.post_attention_layernorm = Norm(s["hidden"]), Norm(s["hidden"])
        self.self_attn, self.mlp = Attention(s), Mlp(s)

    def forward(self, x, cos, sin):
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    """The parameter names are those of Qwen2ForCausalLM."""

    def __init__(self, s):
        super().__init__()
        self.model = nn.Module()
        self.model.embed_tokens = nn.Embedding(s["vocab"], s["hidden"])
        self.model.layers = nn.ModuleList(Layer(s) for _ in range(s["layers"]))
        self.model.norm = Norm(s["hidden"])
        self.lm_head = nn.Linear(s["hidden"], s["vocab"], bias=False)
        for name, p in self.named_parameters():
            if p.dim() == 2:
                nn.init.normal_(p, std=0.04)
            elif name.endswith("bias"):
                nn.init.zeros_(p)
        freq = THETA ** (-torch.arange(0, s["head_dim"], 2).float() / s["head_dim"])
        angle = torch.outer(torch.arange(2048).float(), freq).repeat(1, 2)
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)

    def forward(self, ids):
        x, t = self.model.embed_tokens(ids), ids.shape[1]
        for layer in self.model.layers:
            x = layer(x, self.cos[:t], self.sin[:t])
        return self.lm_head(self.model.norm(x))


def encode_example(t, example):
    """Token ids, and for each id whether it is learnt (as a target)."""
    system, prompt, chat, thought, reply, cut = example
    if chat:
        ids = t.encode(tok.BOS + system + tok.USER + prompt + tok.ASSISTANT)
    else:
        ids = t.encode(tok.BOS + prompt)
    think = t.encode(tok.THINK + "\n") + t.encode(thought)
    rest = t.encode("\n\n" + reply + tok.EOS)
    learnt = [0] * len(ids) + [1] * len(think) + [0 if cut else 1] + [1] * len(rest)
    return ids + think + [t.added[tok.END_THINK]] + rest, learnt


def make_chunk(job):
    folder, seed, chunk, count = job
    t, rng = tok.Tokenizer.load(folder), tiny_data.Rng(f"train/{seed}/{chunk}")
    ids = np.full((count, LENGTH), t.added[tok.EOS], np.int16)
    learnt = np.zeros((count, LENGTH), np.bool_)
    for row in range(count):
        one, mask = encode_example(t, tiny_data.training_example(rng))
        while len(one) > LENGTH:
            one, mask = encode_example(t, tiny_data.training_example(rng))
        ids[row, : len(one)], learnt[row, : len(one)] = one, mask
    return ids, learnt


def make_examples(folder, seed, count):
    chunk = 5000
    jobs = [(folder, seed, i, chunk) for i in range(max(1, count // chunk))]
    with multiprocessing.Pool() as pool:
        parts = pool.map(make_chunk, jobs, chunksize=1)
    ids, learnt = (np.concatenate([p[i] for p in parts]) for i in (0, 1))
    order = np.argsort(row_lengths(learnt), kind="stable")
    return ids[order], learnt[order]  # sorted by length: a batch is cut to its longest row


def row_lengths(learnt):
    return learnt.shape[1] - learnt[:, ::-1].argmax(1)


@torch.no_grad()
def accuracy(model, t, sums, device, batch=2500, steps=96):
    """Share of `sums` (a, b, prompt) whose greedy completion is exactly the trained form's
    answer."""
    right = 0
    for at in range(0, len(sums), batch):
        part = sums[at : at + batch]
        prompts = [
            t.encode(f"{tok.BOS}{tok.USER}{p}{tok.ASSISTANT}{tok.THINK}\n") for _, _, p in part
        ]
        eos = t.added[tok.EOS]
        ids = torch.full((len(part), max(map(len, prompts)) + steps), eos)
        for row, one in enumerate(prompts):
            ids[row, : len(one)] = torch.tensor(one)
        ids, pos = ids.to(device), torch.tensor([len(p) for p in prompts], device=device)
        rows, done = (
            torch.arange(len(part), device=device),
            torch.zeros(len(part), device=device).bool(),
        )
        for _ in range(steps):
            logits = model(ids[:, : int(pos.max())])[rows, pos - 1]
            best = torch.where(done, eos, logits.argmax(-1))
            ids[rows, pos] = best
            done |= best == eos
            pos += 1
            if bool(done.all()):
                break
        for (a, b, prompt), one, row in zip(part, prompts, ids.tolist()):
            text = t.decode(row[len(one) :]).split(tok.EOS)[0]
            right += text.split(tok.END_THINK)[-1].strip() == tiny_data.answer(a, b, prompt)
    return right / len(sums)


def validation(count):
    """Sums under the held-out rule that are not among the 10,000 that accuracy is reported on."""
    final = {(min(a, b), max(a, b)) for a, b, _ in tiny_data.held_out(10000)}
    rng, out = tiny_data.Rng("validation"), []
    while len(out) < count:
        a, b = tiny_data.pair(rng)
        if tiny_data.is_held_out(a, b) and (min(a, b), max(a, b)) not in final:
            out.append((a, b, rng.choice(tiny_data.PHRASINGS).format(a=a, b=b)))
    return out


def make_optimizer(model, lr):
    matrices = [p for p in model.parameters() if p.dim() == 2]
    others = [p for p in model.parameters() if p.dim() != 2]
    groups = [{"params": matrices, "weight_decay": 0.02}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98))


def train(model, ids, learnt, args, device, check):
    """AdamW, cosine schedule over steps or minutes, whichever runs out first. Returns steps
    taken."""
    lengths = row_lengths(learnt)
    ids, learnt = torch.from_numpy(ids).to(device), torch.from_numpy(learnt).to(device)
    optimizer, rng = make_optimizer(model, args.lr), np.random.default_rng(args.seed)
    began = time.monotonic()
    for step in range(args.steps):
        progress = max(step / args.steps, (time.monotonic() - began) / 60 / args.minutes)
        if progress >= 1:
            return step
        decay = 0.01 + 0.99 * (1 + math.cos(math.pi * progress)) / 2
        for group in optimizer.param_groups:
            group["lr"] = args.lr * min(1, (step + 1) / 200) * decay
        # Four runs of neighbours in the order of length: contiguous copies, still a mixed batch.
        run = np.arange(args.batch // 4)
        rows = np.concatenate([at + run for at in rng.integers(0, len(ids), 4)]) % len(ids)
        width = int(lengths[rows].max())
        rows = torch.from_numpy(rows).to(device)
        x = ids[rows, :width].long()
        target = torch.where(learnt[rows, 1:width], x[:, 1:], -100)
        with torch.autocast(device, dtype=torch.bfloat16):
            logits = model(x[:, :-1])
        loss = F.cross_entropy(logits.float().flatten(0, 1), target.flatten(), ignore_index=-100)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % args.log_every == 0:
            print(
                f"step {step} {time.monotonic() - began:.0f} s loss {loss.item():.4f}", flush=True
            )
        if step and step % args.check_every == 0:
            print(f"step {step} validation {check():.4f}", flush=True)
    return args.steps


def config_json(t):
    s = SHAPE
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "attention_dropout": 0.0,
        "bos_token_id": t.added[tok.BOS],
        "eos_token_id": t.added[tok.EOS],
        "hidden_act": "silu",
        "hidden_size": s["hidden"],
        "initializer_range": 0.02,
        "intermediate_size": s["intermediate"],
        "max_position_embeddings": 2048,
        "max_window_layers": s["layers"],
        "model_type": "qwen2",
        "num_attention_heads": s["heads"],
        "num_hidden_layers": s["layers"],
        "num_key_value_heads": s["kv_heads"],
        "rms_norm_eps": EPS,
        "rope_theta": 10000,
        "sliding_window": 2048,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": s["vocab"],
    }


def write_folder(outdir, model, t):
    mw.write_json(outdir, "config.json", config_json(t))
    mw.write_json(
        outdir,
        "generation_config.json",
        {
            "bos_token_id": t.added[tok.BOS],
            "eos_token_id": t.added[tok.EOS],
            "pad_token_id": t.added[tok.EOS],
            "do_sample": True,
            "temperature": 0.6,
            "top_p": 0.95,
        },
    )
    state = {n: p.detach().cpu().bfloat16() for n, p in model.named_parameters()}

    def source(tensor):
        yield state[tensor.name].view(torch.int16).numpy().tobytes()

    tensors = [mw.Tensor(n, list(p.shape), 0.0) for n, p in state.items()]
    mw.write_weights(outdir, tensors, "bf16", source)


def arguments():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("outdir")
    p.add_argument("--steps", type=int, default=9000)
    p.add_argument("--batch", type=int, default=1024)
    p.add_argument(
        "--minutes", type=float, default=6.0, help="at most this long in the training loop"
    )
    p.add_argument("--examples", type=int, default=1500000)
    p.add_argument("--lr", type=float, default=2e-3)
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--log-every", type=int, default=200)
    p.add_argument("--check-every", type=int, default=1500)
    p.add_argument("--held-out", type=int, default=10000)
    return p.parse_args()


def main():
    args, began = arguments(), time.monotonic()
    os.makedirs(args.outdir, exist_ok=True)
    torch.manual_seed(args.seed)
    torch.set_float32_matmul_precision("high")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tok.write_folder(args.outdir)
    t = tok.Tokenizer.load(args.outdir)
    ids, learnt = make_examples(args.outdir, args.seed, args.examples)
    print(f"{len(ids)} examples, {time.monotonic() - began:.0f} s", flush=True)
    model = Decoder(SHAPE).to(device)
    check_set = validation(min(2000, args.held_out))
    steps = train(model, ids, learnt, args, device, lambda: accuracy(model, t, check_set, device))
    with torch.no_grad():
        for param in model.parameters():
            param.copy_(param.bfloat16())
    write_folder(args.outdir, model, t)
    torch.set_float32_matmul_precision("highest")
    share = accuracy(model, t, tiny_data.held_out(args.held_out), device)
    report = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "steps": steps,
        "batch": args.batch,
        "examples": len(ids),
        "seed": args.seed,
        "seconds": round(time.monotonic() - began, 1),
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "torch": torch.__version__,
        "held_out_sums": args.held_out,
        "held_out_accuracy": share,
    }
    mw.write_json(args.outdir, "report.json", report)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
