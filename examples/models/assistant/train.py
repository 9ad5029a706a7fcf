#!/usr/bin/python3
"""Trains the example language model again: python3 train.py

Needs Debian's python3-torch and python3-numpy. Everything is seeded. It makes
up its own text: short dialogues that a clerk at a bank could have, about
capitals, sums, spelling, the mood of a sentence, loans and account balances.
Nobody in it exists.

The network is that of Llama (RMSNorm, rotary positions, SwiGLU), two layers of
128, and reads characters. It is written to assistant-f16.gguf, a file of
GGUF version 3 that llama.cpp reads as it is; quantize.mjs of the environment
makes q8_0 and q4_0 of it. The held-out questions are in cases.jsonl, and in
questions.jsonl with their answers begun.
"""
import json
import math
import os
import random
import struct
import sys
import time

import numpy as np
import torch
import torch.nn.functional as F

HERE = os.path.dirname(os.path.abspath(__file__))
LAYERS, WIDTH, HEADS, INNER, CONTEXT = 2, 128, 4, 352, 192
EPS, THETA = 1e-5, 10000.0

# The vocabulary: control tokens, the 256 bytes, and the printable characters.
# A space is "▁", as SentencePiece writes it.
CONTROL = ["<unk>", "<s>", "</s>", "<|user|>", "<|assistant|>", "<|end|>", "<|tool|>", "<|system|>"]
BOS, EOS, USER, ASSISTANT, END, TOOL, SYSTEM = 1, 2, 3, 4, 5, 6, 7
BYTES = len(CONTROL)
CHARS = ["▁"] + [chr(c) for c in range(33, 127)]
TOKENS = CONTROL + ["<0x%02X>" % b for b in range(256)] + CHARS
ID = {c: BYTES + 256 + i for i, c in enumerate(CHARS)}
TEMPLATE = ("{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
            "{% if add_generation_prompt %}<|assistant|>{% endif %}")


def encode(text):
    out = []
    for c in text.replace(" ", "▁"):
        out += [ID[c]] if c in ID else [BYTES + b for b in c.encode()]
    return out


CAPITALS = dict(zip("France Spain Italy Norway Sweden Finland Denmark Poland Austria Hungary Greece Portugal Ireland Iceland Belgium Japan China India Egypt Kenya Peru Chile Cuba Canada".split(),
                    "Paris Madrid Rome Oslo Stockholm Helsinki Copenhagen Warsaw Vienna Budapest Athens Lisbon Dublin Reykjavik Brussels Tokyo Beijing Delhi Cairo Nairobi Lima Santiago Havana Ottawa".split()))
WORDS = "loan bank rate note cash coin debt fund bond card gold euro price share trade audit proof claim model score limit asset".split()
GOOD = "fair quick clear kind calm fine good great".split()
BAD = "slow rude cold wrong late poor bad unfair".split()
THINGS = "the clerk was, the service was, my call was, the answer was, the letter was, your app is".split(", ")
NAMES = "Ada Ben Cleo Dan Eva Finn Gus Hana Ivo Jana Kai Lea".split()


def dialogue(r):
    """One question and its answer; tool calls are JSON after the tool token."""
    kind = r.randrange(6)
    if kind == 0:
        land = r.choice(sorted(CAPITALS))
        return "capital", r.choice(["What is the capital of %s?", "Name the capital of %s.", "Capital of %s?"]) % land, "The capital of %s is %s." % (land, CAPITALS[land])
    if kind == 1:
        a, b = r.randrange(40), r.randrange(40)
        return "sum", "What is %d plus %d?" % (a, b), "%d plus %d is %d." % (a, b, a + b)
    if kind == 2:
        w = "".join(r.sample(r.choice(WORDS), 4)) if r.random() < 0.5 else r.choice(WORDS)
        return "spelling", "Spell %s." % w, "-".join(w) + "."
    if kind == 3:
        good = r.random() < 0.5
        words = r.sample(GOOD if good else BAD, 2)
        return "mood", "Mood: %s %s and %s" % (r.choice(THINGS), *words), "positive" if good else "negative"
    if kind == 4:
        income, debt = r.randrange(10, 60) * 100, r.randrange(1, 40) * 100
        yes = debt * 3 <= income
        return "loan", "Income %d, debt %d: a loan?" % (income, debt), ("Approve: debt is at most a third of income." if yes else "Decline: debt is over a third of income.")
    name = r.choice(NAMES)
    call = json.dumps({"arguments": {"account": r.randrange(1000, 10000), "name": name}, "name": "get_balance"}, separators=(",", ":"))
    account = json.loads(call)["arguments"]["account"]
    return "tool", "Balance of account %d of %s?" % (account, name), TOOL_MARK + call


TOOL_MARK = "\0"


def questions(r):
    """Questions with their answer begun where it is decided: the model has to go
    on with the word that matters. Half of them are sums, of which it is not sure;
    every other answer is to be streamed."""
    lines, seen, sums = [], set(), 0
    while len(lines) < 400:
        kind, question, want = dialogue(r)
        if kind == "tool" or question in seen or kind != "sum" and 2 * (len(lines) - sums) >= 400:
            continue
        seen.add(question)
        sums += kind == "sum"
        begun = want[:want.rindex(" ") + 1] if kind in ("sum", "capital") else ""
        lines.append({"id": "question-%04d" % len(lines), "request": {"prompt": "<|user|>%s<|end|><|assistant|>%s" % (question, begun), "stream": len(lines) % 2 == 1},
                      "slice": {"kind": kind}, "label": want[len(begun):]})
    return lines


def tokens_of(question, answer):
    ids = [BOS, USER] + encode(question) + [END, ASSISTANT]
    start = len(ids)
    if answer.startswith(TOOL_MARK):
        ids += [TOOL] + encode(answer[1:])
    else:
        ids += encode(answer)
    return ids + [END], start


class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        lin = lambda a, b: torch.nn.Linear(a, b, bias=False)
        self.attn_norm = torch.nn.Parameter(torch.ones(WIDTH))
        self.ffn_norm = torch.nn.Parameter(torch.ones(WIDTH))
        self.q, self.k, self.v, self.o = (lin(WIDTH, WIDTH) for _ in range(4))
        self.gate, self.up, self.down = lin(WIDTH, INNER), lin(WIDTH, INNER), lin(INNER, WIDTH)

    def forward(self, x, cos, sin, mask):
        b, t, _ = x.shape
        h = norm(x, self.attn_norm)
        split = lambda y: y.view(b, t, HEADS, WIDTH // HEADS).transpose(1, 2)
        q, k, v = rotate(split(self.q(h)), cos, sin), rotate(split(self.k(h)), cos, sin), split(self.v(h))
        a = torch.softmax(q @ k.transpose(2, 3) / math.sqrt(WIDTH // HEADS) + mask, -1) @ v
        x = x + self.o(a.transpose(1, 2).reshape(b, t, WIDTH))
        h = norm(x, self.ffn_norm)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


def norm(x, w):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + EPS) * w


def rotate(x, cos, sin):
    """Turns neighbouring pairs, as Llama did (llama.cpp's rope of type NORM)."""
    a, b = x[..., 0::2], x[..., 1::2]
    return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2)


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Embedding(len(TOKENS), WIDTH)
        self.blocks = torch.nn.ModuleList(Block() for _ in range(LAYERS))
        self.norm = torch.nn.Parameter(torch.ones(WIDTH))
        for p in self.parameters():
            if p.dim() == 2:
                torch.nn.init.normal_(p, std=0.05)
        half = WIDTH // HEADS // 2
        angle = torch.arange(CONTEXT)[:, None] * THETA ** (-torch.arange(half) / half)
        self.cos, self.sin = angle.cos(), angle.sin()

    def forward(self, ids):
        t = ids.shape[1]
        mask = torch.full((t, t), float("-inf")).triu(1)
        x = self.embed(ids)
        for b in self.blocks:
            x = b(x, self.cos[:t], self.sin[:t], mask)
        return norm(x, self.norm) @ self.embed.weight.T  # the output is the embedding again


def batch(r, n):
    rows = [tokens_of(*dialogue(r)[1:]) for _ in range(n)]
    width = max(len(ids) for ids, _ in rows)
    ids = torch.full((n, width), END)
    target = torch.full((n, width - 1), -100)
    for i, (row, start) in enumerate(rows):
        ids[i, :len(row)] = torch.tensor(row)
        target[i, start - 1:len(row) - 1] = torch.tensor(row[start:])
    return ids[:, :-1], target


def answer(model, question):
    ids = [BOS, USER] + encode(question) + [END, ASSISTANT]
    start = len(ids)
    with torch.no_grad():
        while len(ids) < CONTEXT and ids[-1] != END or len(ids) == start:
            ids.append(model(torch.tensor([ids]))[0, -1].argmax().item())
    return ids[start:]


def write_gguf(path, model):
    """GGUF version 3: "GGUF", version, counts, key-value pairs, tensor infos,
    padding, data (ggml-org/ggml, docs/gguf.md)."""
    text = lambda s: struct.pack("<Q", len(s.encode())) + s.encode()
    def pair(key, kind, value):
        out = text(key) + struct.pack("<I", kind)
        return out + (text(value) if kind == 8 else struct.pack({4: "<I", 6: "<f", 7: "<?"}[kind], value))
    def array(key, kind, values):
        body = b"".join(text(v) if kind == 8 else struct.pack({5: "<i", 6: "<f"}[kind], v) for v in values)
        return text(key) + struct.pack("<IIQ", 9, kind, len(values)) + body
    kinds = [2] + [3] * (BYTES - 1) + [6] * 256 + [1] * len(CHARS)
    pairs = [
        pair("general.architecture", 8, "llama"), pair("general.name", 8, "assistant"), pair("general.file_type", 4, 1),
        pair("general.license", 8, "apache-2.0"), pair("general.alignment", 4, 32),
        pair("llama.context_length", 4, CONTEXT), pair("llama.embedding_length", 4, WIDTH), pair("llama.block_count", 4, LAYERS),
        pair("llama.feed_forward_length", 4, INNER), pair("llama.attention.head_count", 4, HEADS), pair("llama.attention.head_count_kv", 4, HEADS),
        pair("llama.rope.dimension_count", 4, WIDTH // HEADS), pair("llama.rope.freq_base", 6, THETA),
        pair("llama.attention.layer_norm_rms_epsilon", 6, EPS), pair("llama.vocab_size", 4, len(TOKENS)),
        pair("tokenizer.ggml.model", 8, "llama"), array("tokenizer.ggml.tokens", 8, TOKENS), array("tokenizer.ggml.scores", 6, [0.0] * len(TOKENS)),
        array("tokenizer.ggml.token_type", 5, kinds), pair("tokenizer.ggml.bos_token_id", 4, BOS), pair("tokenizer.ggml.eos_token_id", 4, END),
        pair("tokenizer.ggml.unknown_token_id", 4, 0), pair("tokenizer.ggml.add_bos_token", 7, True), pair("tokenizer.ggml.add_eos_token", 7, False),
        pair("tokenizer.ggml.add_space_prefix", 7, False), pair("tokenizer.chat_template", 8, TEMPLATE),
    ]
    tensors = [("token_embd.weight", model.embed.weight), ("output_norm.weight", model.norm)]
    for i, b in enumerate(model.blocks):
        for name, w in [("attn_norm", b.attn_norm), ("attn_q", b.q.weight), ("attn_k", b.k.weight), ("attn_v", b.v.weight), ("attn_output", b.o.weight),
                        ("ffn_norm", b.ffn_norm), ("ffn_gate", b.gate.weight), ("ffn_up", b.up.weight), ("ffn_down", b.down.weight)]:
            tensors.append(("blk.%d.%s.weight" % (i, name), w))
    infos, data = b"", b""
    for name, w in tensors:
        a = w.detach().numpy()
        kind, raw = (1, a.astype("<f2").tobytes()) if a.ndim == 2 else (0, a.astype("<f4").tobytes())
        infos += text(name) + struct.pack("<I", a.ndim) + b"".join(struct.pack("<Q", d) for d in reversed(a.shape)) + struct.pack("<IQ", kind, len(data))
        data += raw + b"\0" * (-len(raw) % 32)
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(pairs)) + b"".join(pairs) + infos
    with open(path, "wb") as f:
        f.write(head + b"\0" * (-len(head) % 32) + data)


def main():
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 900
    torch.manual_seed(7)
    torch.set_num_threads(1)
    r = random.Random(20260301)
    model = Model()
    opt = torch.optim.AdamW(model.parameters(), lr=4e-3, betas=(0.9, 0.98), weight_decay=0.01)
    plan = torch.optim.lr_scheduler.LambdaLR(opt, lambda s: min(1, (s + 1) / 100) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1, s / steps)))))
    started = time.time()
    for step in range(steps):
        ids, target = batch(r, 32)
        loss = F.cross_entropy(model(ids).flatten(0, 1), target.flatten())
        opt.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        opt.step()
        plan.step()
        if step % 200 == 0 or step == steps - 1:
            print("step %d: loss %.4f, %.0f s" % (step, loss.item(), time.time() - started), flush=True)
    write_gguf(os.path.join(HERE, "assistant-f16.gguf"), model)
    held = random.Random(99)
    seen, lines, right, count = set(), [], {}, {}
    while len(lines) < 600:
        kind, question, want = dialogue(held)
        if question in seen:
            continue
        seen.add(question)
        request = {"messages": [{"role": "user", "content": question}]}
        if kind == "tool":
            request["tools"] = [{"type": "function", "function": {"name": "get_balance", "parameters": {
                "type": "object", "properties": {"account": {"type": "integer"}, "name": {"type": "string"}}, "required": ["account", "name"]}}}]
        lines.append({"id": "assistant-%04d" % len(lines), "request": request, "slice": {"kind": kind}, "label": want.replace(TOOL_MARK, "")})
        if len(lines) <= 200:
            count[kind] = count.get(kind, 0) + 1
            right[kind] = right.get(kind, 0) + (answer(model, question) == tokens_of(question, want)[0][len([BOS, USER] + encode(question) + [END, ASSISTANT]):])
    with open(os.path.join(HERE, "cases.jsonl"), "w") as f:
        for line in lines:
            f.write(json.dumps(line, sort_keys=True, separators=(",", ":")) + "\n")
    with open(os.path.join(HERE, "questions.jsonl"), "w") as f:
        for line in questions(random.Random(4)):
            f.write(json.dumps(line, sort_keys=True, separators=(",", ":")) + "\n")
    for kind in sorted(count):
        print("%s: %d of %d answers are right to the letter" % (kind, right[kind], count[kind]))


if __name__ == "__main__":
    main()
