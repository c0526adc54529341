"""Trains ember from scratch: a small Mistral-architecture model on plain code and fill-in-the-middle samples.

    python train.py --run RUN --minutes 60             # goes on from RUN/latest.pt when it is there
    python train.py --run RUN --decay 60               # an hour with the rate falling to nothing, from RUN/latest.pt to RUN/final.pt
    python train.py --run RUN --device cuda --tokens 65536 --micro 65536 --workers 12   # the same on a GPU

Every step's data is a function of (seed, step), so that a run cut off anywhere continues as if it had not been.
"""

import argparse
import concurrent.futures
import json
import math
import multiprocessing
import os
import pathlib
import random
import signal
import time

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer

HERE = pathlib.Path(__file__).parent
EOT, PREFIX, SUFFIX, MIDDLE, PAD, FILE = range(6)
VOCAB, HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD_DIM, FFN = 4096, 256, 5, 4, 2, 64, 512
THETA, EPS = 10000.0, 1e-5
PYTHON_WEIGHT = 2.5  # the standard library is a small part of the corpus and half of what people will try


# ---- the model: HF's MistralForCausalLM, its names, tied embeddings -------------------------------------------------------

def shapes():
    yield "model.embed_tokens.weight", (VOCAB, HIDDEN)
    for i in range(LAYERS):
        at = f"model.layers.{i}."
        yield at + "input_layernorm.weight", (HIDDEN,)
        yield at + "self_attn.q_proj.weight", (HEADS * HEAD_DIM, HIDDEN)
        yield at + "self_attn.k_proj.weight", (KV_HEADS * HEAD_DIM, HIDDEN)
        yield at + "self_attn.v_proj.weight", (KV_HEADS * HEAD_DIM, HIDDEN)
        yield at + "self_attn.o_proj.weight", (HIDDEN, HEADS * HEAD_DIM)
        yield at + "post_attention_layernorm.weight", (HIDDEN,)
        yield at + "mlp.gate_proj.weight", (FFN, HIDDEN)
        yield at + "mlp.up_proj.weight", (FFN, HIDDEN)
        yield at + "mlp.down_proj.weight", (HIDDEN, FFN)
    yield "model.norm.weight", (HIDDEN,)


def initial(seed):
    g = torch.Generator().manual_seed(seed)
    out = {}
    for name, shape in shapes():
        if len(shape) == 1:
            out[name] = torch.ones(shape)
        else:
            std = 0.02 if "embed" in name else 0.6 / math.sqrt(shape[1])
            if "o_proj" in name or "down_proj" in name:
                std /= math.sqrt(2 * LAYERS)
            out[name] = torch.randn(shape, generator=g) * std
    return out


def rope(length, device):
    inv = 1.0 / THETA ** (torch.arange(0, HEAD_DIM, 2, device=device).float() / HEAD_DIM)
    angle = torch.outer(torch.arange(length, device=device).float(), inv)
    angle = torch.cat([angle, angle], -1)
    return angle.cos(), angle.sin()


def norm(x, w):
    f = x.float()
    return ((f * torch.rsqrt(f.square().mean(-1, keepdim=True) + EPS)) * w).to(x.dtype)


def rotate(x, cos, sin):
    half = HEAD_DIM // 2
    return x * cos + torch.cat([-x[..., half:], x[..., :half]], -1) * sin


def blocked_attention(q, k, v):
    """Causal attention, block by block of queries, each over the keys up to its end: on the CPU a third faster than torch's own."""
    block = max(128, q.shape[2] // 4)
    mask = torch.full((block, block), -1e30, dtype=q.dtype).triu(1)
    out = []
    for a in range(0, q.shape[2], block):
        rows = q[:, :, a : a + block]
        n = rows.shape[2]
        s = (rows * HEAD_DIM**-0.5) @ k[:, :, : a + n].transpose(-1, -2)
        s = torch.cat([s[..., :a], s[..., a:] + mask[:n, :n]], -1)
        out.append(torch.softmax(s, -1) @ v[:, :, : a + n])
    return torch.cat(out, 2)


def layer(x, cos, sin, n1, q, k, v, o, n2, gate, up, down):
    B, T, _ = x.shape
    h = norm(x, n1)
    q = rotate(F.linear(h, q).view(B, T, HEADS, HEAD_DIM), cos, sin).transpose(1, 2)
    k = rotate(F.linear(h, k).view(B, T, KV_HEADS, HEAD_DIM), cos, sin).transpose(1, 2)
    v = F.linear(h, v).view(B, T, KV_HEADS, HEAD_DIM).transpose(1, 2)
    k, v = (t.repeat_interleave(HEADS // KV_HEADS, 1) for t in (k, v))
    a = F.scaled_dot_product_attention(q, k, v, is_causal=True) if x.is_cuda else blocked_attention(q, k, v)
    x = x + F.linear(a.transpose(1, 2).reshape(B, T, HEADS * HEAD_DIM), o)
    h = norm(x, n2)
    return x + F.linear(F.silu(F.linear(h, gate)) * F.linear(h, up), down)


ORDER = ["input_layernorm", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
         "post_attention_layernorm", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]


def features(w, ids, layer=layer):
    cos, sin = rope(ids.shape[1], ids.device)
    x = F.embedding(ids, w["model.embed_tokens.weight"])
    cos, sin = cos[:, None, :].to(x.dtype), sin[:, None, :].to(x.dtype)
    for i in range(LAYERS):
        x = layer(x, cos, sin, *(w[f"model.layers.{i}.{n}.weight"] for n in ORDER))
    return norm(x, w["model.norm.weight"])


def logits(w, ids):
    return F.linear(features(w, ids), w["model.embed_tokens.weight"])


def losses(w, ids, targets):
    """Nats of every target; PAD targets count nothing."""
    return F.cross_entropy(logits(w, ids).float().flatten(0, 1), targets.flatten(), ignore_index=PAD, reduction="none").view(targets.shape)


class Head(torch.autograd.Function):
    """The output projection, the loss and their gradients in one pass over pieces that stay in the cache (logits are wide)."""

    @staticmethod
    def forward(ctx, x, table, targets):
        piece = 8192 if x.is_cuda else 128
        dx, dt, total = torch.empty_like(x), torch.zeros_like(table, dtype=torch.float32), 0.0
        for i in range(0, len(x), piece):
            rows, y = x[i : i + piece], targets[i : i + piece, None]
            z = (rows @ table.t()).float()
            z -= torch.logsumexp(z, 1, keepdim=True)
            total = total - z.gather(1, y).sum()
            z.exp_().scatter_add_(1, y, torch.full(y.shape, -1.0, device=x.device))
            z = z.to(x.dtype)
            dx[i : i + piece] = z @ table
            dt += z.t() @ rows
        ctx.save_for_backward(dx, dt)
        return total

    @staticmethod
    def backward(ctx, g):
        dx, dt = ctx.saved_tensors
        return dx * g.to(dx.dtype), (dt * g).to(dx.dtype), None


# ---- the data ---------------------------------------------------------------------------------------------------------------

class Data:
    def __init__(self, run, seed):
        self.seed = seed
        self.tokenizer = Tokenizer.from_file(str(HERE / "tokenizer.json"))
        docs = [json.loads(line) for line in open(run / "corpus.jsonl", encoding="utf-8")]
        self.held = [d for d in docs if d["held"]]
        docs = [d for d in docs if not d["held"]]
        self.docs = docs
        weight = np.array([len(d["text"]) * (PYTHON_WEIGHT if d["path"].startswith("python-stdlib/") else 1.0) for d in docs])
        self.pick = np.cumsum(weight) / weight.sum()
        self.ids = [None] * len(docs)

    def encode(self, text):
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def tokens(self, i):
        if self.ids[i] is None:
            d = self.docs[i]
            self.ids[i] = (np.array(self.encode(d["path"] + "\n"), np.uint16), np.array(self.encode(d["text"]) + [EOT], np.uint16))
        return self.ids[i]

    def doc(self, rng):
        return min(int(np.searchsorted(self.pick, rng.random())), len(self.docs) - 1)

    def plain(self, rng, room):
        """Whole tokens of one document from a random place; from the start, with or without its name, one time in six."""
        i = self.doc(rng)
        name, ids = self.tokens(i)
        if len(ids) <= room or rng.random() < 1 / 6:
            head = [FILE, *name] if rng.random() < 0.5 else []
            return [*head, *ids[:room]]
        start = rng.randrange(-room // 2, len(ids) - room // 2)
        return list(ids[max(start, 0) : max(start, 0) + room])

    def fim(self, rng, room):
        """A piece of a document as prefix, suffix and middle; cut as an editor's cursor does, or anywhere."""
        text = self.docs[self.doc(rng)]["text"]
        size = min(len(text), int(room * rng.uniform(0.4, 1.0) * 3.2))
        start = rng.randrange(0, len(text) - size + 1)
        if start and rng.random() < 0.9:
            start = text.find("\n", start) + 1 or start
        text = text[start : start + size]
        a, b = cut(rng, text)
        if rng.random() < 0.1:
            prefix, middle, suffix = text[:a], text[a:b], ""
        else:
            prefix, middle, suffix = text[:a], text[a:b], text[b:]
        p, m, s = self.encode(prefix), self.encode(middle), self.encode(suffix)
        over = len(p) + len(m) + len(s) + 4 - room
        if over > 0:
            drop = min(over, len(s) // 2)
            s, over = s[: len(s) - drop], over - drop
            p = p[min(over, len(p)) :]
        return [PREFIX, *p, SUFFIX, *s, MIDDLE, *m, EOT][:room]

    def row(self, rng, room):
        parts, used = [], 0
        while used < room:
            left = room - used
            part = self.fim(rng, min(left, 1024)) if left >= 96 and rng.random() < 0.5 else self.plain(rng, left)
            part = part[:left]
            parts.append(part)
            used += len(part)
        return np.concatenate([np.asarray(p, np.int64) for p in parts])

    def batch(self, step, rows, length):
        rng = random.Random(f"{self.seed}/{step}")
        return np.stack([self.row(rng, length + 1) for _ in range(rows)])


def worker_start(run, seed):
    worker_start.data = Data(run, seed)


def worker_batch(*args):
    return worker_start.data.batch(*args)


def cut(rng, text):
    """Where the middle begins and ends."""
    kind = rng.random()
    n = len(text)
    if kind < 0.3:  # any two places
        a, b = sorted((rng.randrange(n + 1), rng.randrange(n + 1)))
        return a, b
    begins = [0] + [i + 1 for i, c in enumerate(text) if c == "\n"]
    line = rng.randrange(len(begins))
    a = begins[line]
    end = begins[line + 1] - 1 if line + 1 < len(begins) else n
    if kind < 0.7:  # a cursor in a line: the rest of it, or a part
        indent = a + len(text[a:end]) - len(text[a:end].lstrip())
        a = indent if rng.random() < 0.4 else rng.randint(min(indent, end), end)
        return a, end if rng.random() < 0.85 else rng.randint(a, end)
    last = min(line + rng.choice((1, 1, 2, 3, 4, 6, 8)), len(begins)) if kind < 0.9 else rng.randint(line + 1, len(begins))
    b = begins[last] if last < len(begins) else n
    if rng.random() < 0.5:  # the cursor stands behind the indent, the block ends before its line break
        a += len(text[a:b]) - len(text[a:b].lstrip(" \t"))
        b = max(a, b - 1) if b < n else b
    return a, b


# ---- the optimiser: Muon for the matrices inside the layers, AdamW for the rest ---------------------------------------------

def orthogonal(g):
    """Newton-Schulz, five rounds: the nearest matrix with singular values about one."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = g.bfloat16() if g.is_cuda else g
    tall = x.size(-2) > x.size(-1)
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        s = x @ x.mT
        x = a * x + (b * s + c * s @ s) @ x
    return (x.mT if tall else x).float()


class Optimiser:
    def __init__(self, master):
        self.groups = {}  # matrices of one shape are stepped together
        for n, p in master.items():
            if p.ndim == 2 and "embed" not in n:
                self.groups.setdefault(tuple(p.shape), []).append(n)
        self.matrix = {n for g in self.groups.values() for n in g}
        self.state = {n: [torch.zeros_like(p)] if n in self.matrix else [torch.zeros_like(p), torch.zeros_like(p)] for n, p in master.items()}

    @torch.no_grad()
    def matrices(self, master, grads, scale, shape, names):
        g = torch.stack([grads[n] for n in names])
        m = torch.stack([self.state[n][0] for n in names]).lerp_(g, 0.05)
        update = orthogonal(g.lerp(m, 0.95))
        rate = 0.02 * scale * max(1.0, shape[0] / shape[1]) ** 0.5
        for n, mom, u in zip(names, m, update):
            self.state[n][0].copy_(mom)
            master[n].mul_(1 - 0.001 * scale).add_(u, alpha=-rate)

    def step(self, master, grads, t, scale, pool):
        waiting = [pool.submit(self.matrices, master, grads, scale, *group) for group in self.groups.items()]
        for n, p in master.items():
            if n in self.matrix:
                continue
            m, v = self.state[n]
            g = grads[n]
            m.lerp_(g, 0.1)
            v.lerp_(g.square(), 0.05)
            p.sub_(0.004 * scale * (m / (1 - 0.9**t)) / ((v / (1 - 0.95**t)).sqrt() + 1e-9))
        for w in waiting:
            w.result()


# ---- the run ------------------------------------------------------------------------------------------------------------------

def thread_start():
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)


def held_bits(w, data, device, length=512, files=40):
    """Bits per byte over the first windows of some held-out files: quick, for the log. eval.py measures whole files."""
    nats = size = 0
    with torch.no_grad():
        for d in data.held[:files]:
            ids = data.encode(d["text"])[:length]
            x = torch.tensor([[EOT, *ids[:-1]]], device=device)
            y = torch.tensor([ids], device=device)
            nats += losses(w, x, y).sum().item()
            size += len(data.tokenizer.decode(ids, skip_special_tokens=False).encode())
    return nats / math.log(2) / size


def main():
    args = argparse.ArgumentParser()
    args.add_argument("--run", type=pathlib.Path, required=True)
    args.add_argument("--device", default="cpu")
    args.add_argument("--threads", type=int, default=2)
    args.add_argument("--tokens", type=int, default=2048, help="tokens a step")
    args.add_argument("--lengths", type=lambda s: [int(n) for n in s.split(",")], default=[256], help="row lengths, taken in turn, a step each")
    args.add_argument("--micro", type=int, default=1024, help="tokens in one pass forward and back")
    args.add_argument("--workers", type=int, default=0, help="processes that make the data, where one thread cannot keep up")
    args.add_argument("--seed", type=int, default=20)
    args.add_argument("--rate", type=float, default=1.0, help="factor on the learning rates")
    args.add_argument("--steps", type=int, default=0)
    args.add_argument("--minutes", type=float, default=1e9)
    # By the clock, not by steps: on a shared machine the time is what is known beforehand.
    args.add_argument("--decay", type=float, default=0.0, help="finish: this many minutes with a falling rate, then stop")
    args.add_argument("--compile", type=int, default=0, help="compile the layer for rows up to this length: 15 % faster, a minute each")
    args = args.parse_args()
    device = torch.device(args.device)
    # Without AMX, bf16 products run at half the speed of f32 ones.
    fast16 = device.type == "cuda" or torch.cpu._is_amx_tile_supported()
    dtype = torch.bfloat16 if fast16 else torch.float32
    # Each thread takes whole passes by itself: on a shared machine two threads inside one product wait for each other.
    torch.set_num_threads(1)
    pool = concurrent.futures.ThreadPoolExecutor(args.threads if device.type == "cpu" else 1, initializer=thread_start)
    data = Data(args.run, args.seed)
    batch, ahead = (lambda *a: pool.submit(data.batch, *a)), 1
    if args.workers:
        spawn = multiprocessing.get_context("spawn")
        loader = concurrent.futures.ProcessPoolExecutor(args.workers, spawn, worker_start, (args.run, args.seed))
        batch, ahead = (lambda *a: loader.submit(worker_batch, *a)), 2 * args.workers

    latest, final = args.run / "latest.pt", args.run / "final.pt"
    resume = final if args.decay and final.exists() and torch.load(final, map_location="cpu")["decay_left"] else latest
    master = {n: p.to(device) for n, p in initial(args.seed).items()}
    optimiser = Optimiser(master)
    average = {n: p.clone() for n, p in master.items()}
    step, seconds, tokens, decay_left = 0, 0.0, 0, args.decay * 60
    if resume.exists():
        saved = torch.load(resume, map_location=device)
        master, average, optimiser.state = saved["master"], saved["average"], saved["state"]
        step, seconds, tokens = saved["step"], saved["seconds"], saved["tokens"]
        decay_left = saved["decay_left"] if resume == final else args.decay * 60
    weights = {n: p.to(dtype, copy=True).requires_grad_() for n, p in master.items()}
    compiled = torch.compile(layer, dynamic=False)
    ready = set()

    def one_pass(x, y):
        run_layer = compiled if x.shape[1] <= args.compile else layer
        h = features(weights, x.to(device), run_layer).flatten(0, 1)
        loss = Head.apply(h, weights["model.embed_tokens.weight"], y.to(device).flatten())
        return loss.item(), torch.autograd.grad(loss, list(weights.values()))

    coming = {}

    def fetch(step):
        length = args.lengths[step % len(args.lengths)]
        if step not in coming:
            coming[step] = batch(step, max(1, args.tokens // length), length)

    def save(path):
        torch.save({"master": master, "average": average, "state": optimiser.state, "step": step, "seconds": seconds, "tokens": tokens, "decay_left": decay_left}, f"{path}.part")
        os.replace(f"{path}.part", path)

    log = open(args.run / "log.tsv", "a", buffering=1)
    started = mark = time.time()
    total, shown = 0.0, 0
    stopping = []  # a polite end saves what was done
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda *_: stopping.append(True))
    while True:
        if stopping or (args.decay and decay_left == 0) or (args.steps and step >= args.steps) or time.time() - started > args.minutes * 60:
            break
        step += 1
        scale = args.rate * min(1.0, step / 100)
        if args.decay:
            scale *= decay_left / (args.decay * 60)
        fetch(step)
        x = torch.from_numpy(coming.pop(step).result())
        x, y = x[:, :-1], x[:, 1:]
        rows = max(1, args.micro // x.shape[1])
        parts = [(x[i : i + rows], y[i : i + rows]) for i in range(0, len(x), rows)]
        if x.shape[1] <= args.compile and x.shape[1] not in ready:
            ready.add(x.shape[1])
            one_pass(*parts[0])  # compiled by one thread alone
        passes = [pool.submit(one_pass, *p) for p in parts]
        for later in range(step + 1, step + 1 + ahead):
            fetch(later)
        passes = [p.result() for p in passes]
        value = sum(p[0] for p in passes) / y.numel()
        with torch.no_grad():
            grads = {n: sum(p[1][i].float() for p in passes) / y.numel() for i, n in enumerate(weights)}
            size = torch.stack([g.square().sum() for g in grads.values()]).sum().sqrt().item()
            if not math.isfinite(size):
                raise SystemExit(f"step {step}: the gradient is not finite")
            for g in grads.values():
                g.mul_(min(1.0, 1.0 / (size + 1e-6)))
            optimiser.step(master, grads, step, scale, pool)
            for n, w in weights.items():
                average[n].lerp_(master[n], max(0.005, 10 / (step + 10)))
                w.copy_(master[n])
        now = time.time()
        decay_left = max(0.0, decay_left - min(now - mark, 5.0))  # a stall of the machine must not end the decay at a stroke
        seconds, mark = seconds + now - mark, now
        tokens += y.numel()
        total, shown = total + value, shown + 1
        if step % 20 == 0:
            held = ""
            if step % 200 == 0:
                held = f"{held_bits(average, data, device):.4f}"
            log.write(f"{step}\t{tokens}\t{seconds:.0f}\t{total / shown:.4f}\t{size:.3f}\t{scale:.4f}\t{x.shape[1]}\t{held}\n")
            total, shown = 0.0, 0
        if step % 50 == 0:
            save(final if args.decay else latest)
    save(final if args.decay else latest)
    if args.workers:
        loader.shutdown(cancel_futures=True)


if __name__ == "__main__":
    main()
