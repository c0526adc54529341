"""Writes the checkpoint in Hugging Face's layout beside this script and checks it against transformers' MistralForCausalLM.

    python export.py --run RUN            # RUN/final.pt when it is complete, else the running average in RUN/latest.pt
"""

import argparse
import json
import pathlib

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from transformers import MistralForCausalLM

import train

HERE = pathlib.Path(__file__).parent
IM_END = 7


def configs():
    config = {
        "architectures": ["MistralForCausalLM"], "model_type": "mistral", "vocab_size": train.VOCAB, "hidden_size": train.HIDDEN,
        "intermediate_size": train.FFN, "num_hidden_layers": train.LAYERS, "num_attention_heads": train.HEADS,
        "num_key_value_heads": train.KV_HEADS, "head_dim": train.HEAD_DIM, "hidden_act": "silu", "max_position_embeddings": 2048,
        "rms_norm_eps": train.EPS, "rope_theta": train.THETA, "sliding_window": None, "attention_dropout": 0.0,
        "tie_word_embeddings": True, "initializer_range": 0.02, "use_cache": True, "torch_dtype": "bfloat16",
        "bos_token_id": train.EOT, "eos_token_id": train.EOT, "pad_token_id": train.PAD,
    }
    generation = {"bos_token_id": train.EOT, "eos_token_id": [train.EOT, IM_END], "pad_token_id": train.PAD}
    return {"config.json": config, "generation_config.json": generation}


def complete(model, ids, most=48):
    out = []
    with torch.no_grad():
        while len(out) < most:
            token = model(torch.tensor([ids + out])).logits[0, -1].argmax().item()
            if token == train.EOT:
                break
            out.append(token)
    return out


def main():
    args = argparse.ArgumentParser()
    args.add_argument("--run", type=pathlib.Path, required=True)
    args = args.parse_args()
    torch.set_num_threads(2)
    final = args.run / "final.pt"
    saved = torch.load(final, map_location="cpu") if final.exists() else None
    if saved and not saved["decay_left"]:
        weights = saved["master"]
    else:
        saved = torch.load(args.run / "latest.pt", map_location="cpu")
        weights = saved["average"]
    weights = {n: p.to(torch.bfloat16).contiguous() for n, p in weights.items()}
    save_file(weights, str(HERE / "model.safetensors"), metadata={"format": "pt"})
    (HERE / "model.safetensors").chmod(0o644)
    for name, value in configs().items():
        (HERE / name).write_text(json.dumps(value, indent=2) + "\n")
    size = (HERE / "model.safetensors").stat().st_size
    count = sum(p.numel() for p in weights.values())
    assert size <= 8 << 20, size
    print(f"step {saved['step']}, {saved['tokens']} tokens, {saved['seconds']:.0f} s; {count} parameters, {size} bytes")

    model = MistralForCausalLM.from_pretrained(HERE, dtype=torch.float32, attn_implementation="eager").eval()
    tokenizer = Tokenizer.from_file(str(HERE / "tokenizer.json"))
    text = (HERE / "train.py").read_text()
    ids = tokenizer.encode(text).ids[:1500]
    with torch.no_grad():
        theirs = model(torch.tensor([ids])).logits
        ours = train.logits({n: p.float() for n, p in weights.items()}, torch.tensor([ids]))
    worst = ((theirs - ours).norm() / theirs.norm()).item()
    print(f"logits against transformers over {len(ids)} positions: relative difference {worst:.1e}")
    assert worst < 1e-5

    for prefix, suffix in [
        ("def read_lines(path):\n    with open(path) as f:\n        return ", "\n\n\ndef main():\n    for line in read_lines(sys.argv[1]):\n        print(line)\n"),
        ("impl Display for Error {\n    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {\n        ", "\n    }\n}\n"),
    ]:
        enc = lambda s: tokenizer.encode(s).ids
        out = complete(model, [train.PREFIX, *enc(prefix), train.SUFFIX, *enc(suffix), train.MIDDLE])
        print(f"{prefix}[[{tokenizer.decode(out)}]]{suffix}\n---")


if __name__ == "__main__":
    main()
