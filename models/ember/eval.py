"""Measures the exported checkpoint on the held-out files: bits per byte left to right, and fill-in-the-middle of single lines.

    python eval.py --run RUN
"""

import argparse
import json
import math
import pathlib
import random

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

import train

HERE = pathlib.Path(__file__).parent
WINDOW, STRIDE = 1024, 512  # a token sees at least 512 tokens before it, where the file has them


def file_nats(w, ids):
    ids = [train.EOT, *ids]
    nats = 0.0
    for start in range(0, max(1, len(ids) - 1 - (WINDOW - STRIDE)), STRIDE):
        part = torch.tensor([ids[start : start + WINDOW + 1]])
        cost = train.losses(w, part[:, :-1], part[:, 1:])[0]
        nats += cost[STRIDE if start else 0 :].sum().item()
    return nats


def lines(doc, rng, many):
    """Cursors in lines of code: behind the indent or within the line; the middle is the rest of the line."""
    text = doc["text"]
    begins = [0] + [i + 1 for i, c in enumerate(text) if c == "\n"]
    found = []
    for begin in rng.sample(begins, min(len(begins), 4 * many)):
        end = text.find("\n", begin)
        line = text[begin:end] if end > begin else ""
        body = line.strip()
        if len(body) < 8 or body.startswith(("#", "//")):
            continue
        indent = begin + len(line) - len(line.lstrip())
        a = rng.randint(indent, end - 3)
        found.append((text[max(0, a - 2000) : a], text[a:end], text[end : end + 800]))
    return found[:many]


def main():
    args = argparse.ArgumentParser()
    args.add_argument("--run", type=pathlib.Path, required=True)
    args.add_argument("--threads", type=int, default=1)
    args.add_argument("--many", type=int, default=12, help="fill-in-the-middle cases a file")
    args = args.parse_args()
    torch.set_num_threads(args.threads)
    w = {n: p.float() for n, p in load_file(HERE / "model.safetensors").items()}
    tokenizer = Tokenizer.from_file(str(HERE / "tokenizer.json"))
    enc = lambda s: tokenizer.encode(s, add_special_tokens=False).ids
    held = [d for d in map(json.loads, open(args.run / "corpus.jsonl", encoding="utf-8")) if d["held"]]

    sums = {}
    with torch.no_grad():
        for d in held:
            row = sums.setdefault(d["path"][-3:], [0.0, 0, 0])
            ids = enc(d["text"])
            row[0] += file_nats(w, ids) / math.log(2)
            row[1] += len(d["text"].encode())
            row[2] += len(ids)
    total = [sum(r[i] for r in sums.values()) for i in range(3)]
    for name, r in [("all", total), *sorted(sums.items())]:
        print(f"{name}: {r[0] / r[1]:.4f} bits per byte, {r[0] / r[2] * math.log(2):.4f} nats a token, {r[1]} bytes", flush=True)

    rng = random.Random(7)
    newline = {i for i in range(train.VOCAB) if tokenizer.decode([i], skip_special_tokens=False).startswith("\n")} | {train.EOT}
    cases = [c for d in held for c in lines(d, rng, args.many)]
    right = tokens_right = count = size = 0
    nats_fim = nats_plain = 0.0
    with torch.no_grad():
        for prefix, middle, suffix in cases:
            p, m, s = enc(prefix), enc(middle), enc(suffix)
            x = [train.PREFIX, *p, train.SUFFIX, *s, train.MIDDLE, *m]
            z = train.logits(w, torch.tensor([x]))[0, -len(m) - 1 :]
            best = z.argmax(-1).tolist()
            # Greedy decoding gives the middle exactly when every step's best token is the middle's, then the end or a line break.
            hits = [b == t for b, t in zip(best, m)]
            right += all(hits) and best[-1] in newline
            tokens_right += sum(hits)
            count += len(m)
            size += len(middle.encode())
            target = torch.tensor(m)
            nats_fim += torch.nn.functional.cross_entropy(z[:-1], target, reduction="sum").item()
            z = train.logits(w, torch.tensor([[train.EOT, *p, *m]]))[0, -len(m) - 1 : -1]
            nats_plain += torch.nn.functional.cross_entropy(z, target, reduction="sum").item()
    print(f"fill-in-the-middle, rest of a line, {len(cases)} cases: exact {right / len(cases):.3f}, tokens right {tokens_right / count:.3f},")
    print(f"  bits per byte of the middles {nats_fim / math.log(2) / size:.4f}, without the suffix, left to right {nats_plain / math.log(2) / size:.4f}")


if __name__ == "__main__":
    main()
