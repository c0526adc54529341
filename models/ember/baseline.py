"""What a 5-gram model makes of the same files: interpolated modified Kneser-Ney (Chen and Goodman 1998), over bytes and over ember's
own tokens, counted on the training files and measured in bits per byte on the held-out ones.

    python baseline.py --run RUN
"""

import argparse
import json
import math
import pathlib

import numpy as np
from tokenizers import Tokenizer

HERE = pathlib.Path(__file__).parent
ORDER = 5


def grams(docs, bits, start):
    """Every 5-gram as one integer, the newest symbol in the low bits; a document's first ones see `start` before it."""
    out = []
    for d in docs:
        padded = np.concatenate([np.full(ORDER - 1, start, np.uint64), d.astype(np.uint64)])
        key = np.zeros(len(d), np.uint64)
        for i in range(ORDER):
            key = (key << np.uint64(bits)) | padded[i : i + len(d)]
        out.append(key)
    return np.concatenate(out)


def find(table, keys):
    at = np.minimum(np.searchsorted(table, keys), len(table) - 1)
    return at, table[at] == keys


class Level:
    """Counts of one order: raw for the highest, for the others how many different symbols stand before the gram."""

    def __init__(self, keys, counts, bits):
        self.keys, self.counts = keys, counts
        n = [int((counts == i).sum()) for i in range(1, 5)]
        y = n[0] / (n[0] + 2 * n[1])
        self.discount = np.array([0.0] + [i - (i + 1) * y * n[i] / n[i - 1] for i in (1, 2, 3)])
        heads = keys >> np.uint64(bits)
        first = np.flatnonzero(np.r_[True, heads[1:] != heads[:-1]])
        self.heads = heads[first]
        self.total = np.add.reduceat(counts, first).astype(np.float64)
        self.left = np.add.reduceat(self.discount[np.minimum(counts, 3)], first)

    def probability(self, keys, bits, below):
        at, seen = find(self.keys, keys)
        count = np.where(seen, self.counts[at], 0)
        head, known = find(self.heads, keys >> np.uint64(bits))
        total = np.where(known, self.total[head], 1.0)
        own = (count - self.discount[np.minimum(count, 3)]) / total
        return np.where(known, own + self.left[head] / total * below, below)


class KneserNey:
    def __init__(self, keys, bits, symbols):
        self.bits, self.symbols, self.levels = bits, symbols, []
        keys, counts = np.unique(keys, return_counts=True)
        for order in range(ORDER, 0, -1):
            self.levels.insert(0, Level(keys, counts, bits))
            keys, counts = np.unique(keys & self.mask(order - 1), return_counts=True)

    def mask(self, order):
        return np.uint64((1 << (self.bits * order)) - 1)

    def probability(self, keys):
        p = np.full(len(keys), 1.0 / self.symbols)
        for order, level in enumerate(self.levels, 1):
            p = level.probability(keys & self.mask(order), self.bits, p)
        return p


def measure(name, train, held, bits, start, symbols, size):
    model = KneserNey(grams(train, bits, start), bits, symbols)
    keys = grams(held, bits, start)
    for key in keys[:: len(keys) // 5]:  # a distribution sums to one
        every = (key >> np.uint64(bits) << np.uint64(bits)) | np.arange(1 << bits, dtype=np.uint64)
        assert abs(model.probability(every).sum() - 1) < 1e-6 or symbols != 1 << bits
    p = model.probability(keys)
    print(f"{name}: {-np.log2(p).sum() / sum(size.values()):.4f} bits per byte on {len(held)} held-out files", flush=True)
    return -np.log2(p)


def main():
    args = argparse.ArgumentParser()
    args.add_argument("--run", type=pathlib.Path, required=True)
    args = args.parse_args()
    docs = [json.loads(line) for line in open(args.run / "corpus.jsonl", encoding="utf-8")]
    train = [d["text"] for d in docs if not d["held"]]
    held = [d for d in docs if d["held"]]
    kinds = [".py" if d["path"].endswith(".py") else ".rs" for d in held]
    size = {k: sum(len(d["text"].encode()) for d, kind in zip(held, kinds) if kind == k) for k in sorted(set(kinds))}
    tokenizer = Tokenizer.from_file(str(HERE / "tokenizer.json"))

    def tokens(texts):
        for i in range(0, len(texts), 256):
            for e in tokenizer.encode_batch_fast(texts[i : i + 256], add_special_tokens=False):
                yield np.array(e.ids, np.uint16)

    def as_bytes(texts):
        return [np.frombuffer(t.encode(), np.uint8) for t in texts]

    text = [d["text"] for d in held]
    for name, make, bits in (("tokens", lambda t: list(tokens(t)), 12), ("bytes", as_bytes, 8)):
        parts = make(text)
        cost = measure(f"5-gram over {name}", make(train), parts, bits, 0, 1 << bits, size)
        ends = np.cumsum([len(p) for p in parts])
        per = [c.sum() for c in np.split(cost, ends[:-1])]
        for k in size:
            print(f"  {k}: {sum(c for c, kind in zip(per, kinds) if kind == k) / size[k]:.4f} over {size[k]} bytes", flush=True)


if __name__ == "__main__":
    main()
