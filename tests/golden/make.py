"""Makes the golden checkpoints: one small random model of the true architecture per family, and what the reference gives.

    python make.py [NAME ...]        (torch, transformers >= 5, safetensors; CPU; no network)

Every checkpoint under checkpoints/NAME has the files and the tensor names a model of that family has on the hub: the
config.json is the hub's own with smaller numbers. Weights are random, seeded by the name, scaled by fan-in so that
attention is peaked and logits spread over several units: a wrong GELU, epsilon, window or frequency shows in the logits.

The reference is transformers with attn_implementation="eager" in f32 on the CPU over the weights as they are stored
(bf16 and f16 weights are widened, which is exact). golden.safetensors holds, per case C (`single`: one token; `long`: a
prompt longer than a chunk and longer than the window; `batch.I`: prompts of different lengths):

    C.tokens  i32 [n]     prompt, then 64 tokens chosen greedily
    C.prompt  i32 [1]     how many of them are the prompt
    C.argmax  i32 [n]     the reference's best token after each position (from the prompt's end on it is the next token)
    C.margin  f32 [n]     best logit minus second best
    C.rows    i32 [r]     positions whose logits are kept
    C.logits  f32 [r, V]
    C.half    bf16 [r, V] only for `long` of bf16 and f16 checkpoints: the same by transformers in that type throughout
    C.router  f32 [l, n]  only with experts: last chosen router logit minus first not chosen, per layer

Two runs give the same bytes; golden.safetensors' metadata names the versions that made it.
"""

import hashlib
import json
import pathlib
import shutil
import sys

import torch
import transformers
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

HERE = pathlib.Path(__file__).parent
GREEDY = 64
# The hub has 1e-5 and 1e-6; on rows of unit variance that would hide below the tolerance.
EPSILON = 2e-3
LONG = 140
BATCH = [1, 2, 5, 16, 17, 33, 48, 70]
LONG_ROWS = [0, 1, 15, 16, 17, 23, 24, 25, 31, 32, 63, 64, 65, 100, 127, 128, 139, 140, 171, 202]
TYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}

MISTRAL = dict(
    architectures=["MistralForCausalLM"], attention_dropout=0.0, bos_token_id=1, eos_token_id=2, hidden_act="silu",
    hidden_size=64, initializer_range=0.02, intermediate_size=128, max_position_embeddings=32768, model_type="mistral",
    num_attention_heads=4, num_hidden_layers=2, num_key_value_heads=2, rms_norm_eps=EPSILON, rope_theta=10000.0,
    sliding_window=None, tie_word_embeddings=False, torch_dtype="bfloat16", transformers_version="4.42.0",
    use_cache=True, vocab_size=320,
)
LLAMA = dict(
    architectures=["LlamaForCausalLM"], attention_bias=False, attention_dropout=0.0, bos_token_id=1, eos_token_id=2,
    hidden_act="silu", hidden_size=64, initializer_range=0.02, intermediate_size=128, max_position_embeddings=8192,
    mlp_bias=False, model_type="llama", num_attention_heads=4, num_hidden_layers=2, num_key_value_heads=2,
    pretraining_tp=1, rms_norm_eps=EPSILON, rope_scaling=None, rope_theta=500000.0, tie_word_embeddings=False,
    torch_dtype="bfloat16", transformers_version="4.40.0", use_cache=True, vocab_size=320,
)
GEMMA = dict(
    architectures=["GemmaForCausalLM"], attention_bias=False, attention_dropout=0.0, bos_token_id=2, eos_token_id=1,
    head_dim=64, hidden_act="gelu_pytorch_tanh", hidden_activation="gelu_pytorch_tanh", hidden_size=96,
    initializer_range=0.02, intermediate_size=128, max_position_embeddings=8192, model_type="gemma",
    num_attention_heads=4, num_hidden_layers=2, num_key_value_heads=1, pad_token_id=0, rms_norm_eps=EPSILON / 2,
    rope_scaling=None, rope_theta=10000.0, torch_dtype="bfloat16", transformers_version="4.39.3", use_cache=True,
    vocab_size=320,
)
QWEN = dict(
    architectures=["Qwen2ForCausalLM"], attention_dropout=0.0, bos_token_id=1, eos_token_id=3, hidden_act="silu",
    hidden_size=56, initializer_range=0.02, intermediate_size=144, max_position_embeddings=32768, max_window_layers=2,
    model_type="qwen2", num_attention_heads=7, num_hidden_layers=2, num_key_value_heads=1, rms_norm_eps=EPSILON / 2,
    rope_theta=1000000.0, sliding_window=131072, tie_word_embeddings=True, torch_dtype="bfloat16",
    transformers_version="4.44.0", use_cache=True, use_sliding_window=False, vocab_size=320,
)

# name -> (config, generation_config, shards)
CHECKPOINTS = {
    # Mistral 7B v0.1: a window, shorter than the prompts.
    "mistral-v0.1": ({**MISTRAL, "sliding_window": 24, "transformers_version": "4.34.0"}, dict(eos_token_id=2), 2),
    # Mistral 7B v0.3 and Codestral 22B: no window, larger theta.
    "mistral-v0.3": ({**MISTRAL, "rope_theta": 1e6, "torch_dtype": "float32"}, dict(eos_token_id=2), 1),
    "codestral-v0.1": (
        {**MISTRAL, "rope_theta": 1e6, "num_attention_heads": 6, "hidden_size": 96},
        dict(eos_token_id=2), 1,
    ),
    # Mistral Small 24B 2501: heads apart from the width. 2506: the same as the text part of a model with vision.
    "mistral-small-2501": (
        {**MISTRAL, "rope_theta": 1e8, "head_dim": 64, "attention_bias": False}, dict(eos_token_id=2), 1,
    ),
    "mistral-small-2506": (
        dict(
            architectures=["Mistral3ForConditionalGeneration"], image_token_index=10, model_type="mistral3",
            multimodal_projector_bias=False, projector_hidden_act="gelu", spatial_merge_size=2,
            text_config=dict(
                attention_dropout=0.0, head_dim=32, hidden_act="silu", hidden_size=64, initializer_range=0.02,
                intermediate_size=128, max_position_embeddings=131072, model_type="mistral", num_attention_heads=4,
                num_hidden_layers=2, num_key_value_heads=2, rms_norm_eps=EPSILON, rope_theta=1e9, sliding_window=None,
                use_cache=True, vocab_size=320,
            ),
            tie_word_embeddings=False, torch_dtype="bfloat16", transformers_version="4.52.4",
            vision_config=dict(
                attention_dropout=0.0, head_dim=8, hidden_act="silu", hidden_size=16, image_size=28,
                initializer_range=0.02, intermediate_size=16, model_type="pixtral", num_attention_heads=2,
                num_channels=3, num_hidden_layers=1, patch_size=14, rope_theta=10000.0,
            ),
            vision_feature_layer=-1,
        ),
        dict(bos_token_id=1, eos_token_id=2, pad_token_id=11), 1,
    ),
    "mixtral-8x7b-v0.1": (
        {**MISTRAL, "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "rope_theta": 1e6,
         "num_experts_per_tok": 2, "num_local_experts": 8, "output_router_logits": False, "intermediate_size": 48,
         "router_aux_loss_coef": 0.02}, dict(eos_token_id=2), 2,
    ),
    # CodeGemma 2B: one key head, tied head, no tie_word_embeddings key. 7B: as many key heads as query heads, wider than the model.
    "codegemma-2b": (GEMMA, dict(eos_token_id=1), 1),
    "codegemma-7b": (
        {**GEMMA, "num_attention_heads": 3, "num_key_value_heads": 3, "head_dim": 48, "hidden_act": "gelu",
         "hidden_activation": None}, dict(eos_token_id=[1, 107]), 1,
    ),
    # CodeLlama 13B: as many key heads as query heads.
    "codellama-13b": (
        {**LLAMA, "rope_theta": 1e6, "num_key_value_heads": 4, "max_position_embeddings": 16384,
         "torch_dtype": "float16"}, dict(eos_token_id=2), 1,
    ),
    # DeepSeek Coder: linear scaling in the old style.
    "deepseek-coder-33b": (
        {**LLAMA, "rope_scaling": {"factor": 4.0, "type": "linear"}, "rope_theta": 100000, "rms_norm_eps": EPSILON / 2,
         "max_position_embeddings": 16384, "pad_token_id": 32018 % 320}, dict(eos_token_id=2), 3,
    ),
    "llama-3-8b": ({**LLAMA}, dict(eos_token_id=[2, 9]), 1),
    # Llama 3.1: original context small enough that all three bands of the scaling lie inside the prompt.
    "llama-3.1-8b": (
        {**LLAMA, "eos_token_id": [2, 8, 9],
         "rope_scaling": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                          "original_max_position_embeddings": 64, "rope_type": "llama3"},
         "max_position_embeddings": 512}, dict(eos_token_id=[2, 8, 9], temperature=0.6, top_p=0.9), 1,
    ),
    # The same model as written by transformers 5: dtype and rope_parameters.
    "llama-3.3-70b": (
        {**{k: v for k, v in LLAMA.items() if k not in ("rope_theta", "rope_scaling", "torch_dtype")},
         "dtype": "bfloat16", "eos_token_id": [2, 8, 9], "head_dim": 16, "pad_token_id": None,
         "rope_parameters": {"factor": 8.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
                             "original_max_position_embeddings": 96, "rope_theta": 500000.0, "rope_type": "llama3"},
         "max_position_embeddings": 768, "transformers_version": "5.0.0"}, dict(eos_token_id=[2, 8, 9]), 1,
    ),
    # Qwen2.5-Coder: biases; small ones tie the head.
    "qwen2.5-coder-0.5b": (QWEN, dict(eos_token_id=[3, 4], repetition_penalty=1.1), 1),
    "qwen2.5-coder-7b": (
        {**QWEN, "tie_word_embeddings": False, "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2},
        dict(eos_token_id=[3, 4]), 1,
    ),
}


def shapes(config):
    """Tensor names and shapes as on the hub, with what is drawn: a gain for matrices, `norm` and `bias` by name."""
    text = config.get("text_config", config)
    prefix = "language_model." if "text_config" in config else ""
    family = text["model_type"]
    hidden, ffn = text["hidden_size"], text["intermediate_size"]
    heads, kv = text["num_attention_heads"], text["num_key_value_heads"]
    dim = text.get("head_dim") or hidden // heads
    gemma = family == "gemma"
    tied = text.get("tie_word_embeddings", gemma)
    norm = "norm0" if gemma else "norm1"
    out = {}

    def put(name, shape, what):
        out[prefix + name] = (shape, what)

    # A tied matrix is head and embedding: logits of several units matter more than the embedding's size. What Gemma
    # adds to its scaled embedding must be large beside it, or every token predicts itself.
    put("model.embed_tokens.weight", (text["vocab_size"], hidden), 3.0 / hidden**0.5 if tied else 1.0)
    back = 5.0 if gemma else 1.0
    for layer in range(text["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        put(at + "input_layernorm.weight", (hidden,), norm)
        for name, rows in (("q", heads * dim), ("k", kv * dim), ("v", kv * dim)):
            put(at + f"self_attn.{name}_proj.weight", (rows, hidden), 1.0 / hidden**0.5)
            if family == "qwen2":
                put(at + f"self_attn.{name}_proj.bias", (rows,), "bias")
        put(at + "self_attn.o_proj.weight", (hidden, heads * dim), back / (heads * dim) ** 0.5)
        put(at + "post_attention_layernorm.weight", (hidden,), norm)
        if family == "mixtral":
            put(at + "block_sparse_moe.gate.weight", (text["num_local_experts"], hidden), 2.0 / hidden**0.5)
            for expert in range(text["num_local_experts"]):
                to = at + f"block_sparse_moe.experts.{expert}."
                put(to + "w1.weight", (ffn, hidden), 1.2 / hidden**0.5)
                put(to + "w2.weight", (hidden, ffn), 1.2 / ffn**0.5)
                put(to + "w3.weight", (ffn, hidden), 1.2 / hidden**0.5)
        else:
            put(at + "mlp.gate_proj.weight", (ffn, hidden), 1.2 / hidden**0.5)
            put(at + "mlp.up_proj.weight", (ffn, hidden), 1.2 / hidden**0.5)
            put(at + "mlp.down_proj.weight", (hidden, ffn), 1.2 * back / ffn**0.5)
    put("model.norm.weight", (hidden,), norm)
    if not tied:
        put("lm_head.weight", (text["vocab_size"], hidden), 3.0 / hidden**0.5)
    if prefix:
        out.update(vision(config))
    return out


def vision(config):
    """The parts of a Mistral Small 3.2 file that the text path does not use."""
    v, width = config["vision_config"], config["text_config"]["hidden_size"]
    h, f = v["hidden_size"], v["intermediate_size"]
    at = "vision_tower.transformer.layers.0."
    names = {
        "vision_tower.patch_conv.weight": (h, 3, v["patch_size"], v["patch_size"]),
        "vision_tower.ln_pre.weight": (h,),
        **{at + f"attention.{n}_proj.weight": (h, h) for n in "qkvo"},
        at + "attention_norm.weight": (h,), at + "ffn_norm.weight": (h,),
        at + "feed_forward.gate_proj.weight": (f, h), at + "feed_forward.up_proj.weight": (f, h),
        at + "feed_forward.down_proj.weight": (h, f),
        "multi_modal_projector.norm.weight": (h,),
        "multi_modal_projector.patch_merger.merging_layer.weight": (h, h * 4),
        "multi_modal_projector.linear_1.weight": (width, h), "multi_modal_projector.linear_2.weight": (width, width),
    }
    return {name: (shape, 0.1) for name, shape in names.items()}


def generator(*what):
    seed = hashlib.sha256("/".join(what).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(seed[:8], "little") >> 1)


def weights(name, config):
    dtype = TYPES[config.get("torch_dtype") or config["dtype"]]
    out = {}
    for tensor, (shape, what) in shapes(config).items():
        draw = torch.randn(shape, generator=generator(name, tensor))
        if what == "norm1":
            draw = 1.0 + 0.2 * draw
        elif what == "norm0":
            draw = 0.2 * draw
        elif what == "bias":
            draw = 0.5 * draw
        else:
            draw = what * draw
        out[tensor] = draw.to(dtype).contiguous()
    return out


def write(folder, config, generation, shards, tensors):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    generation = {"_from_model_config": True, "bos_token_id": 1, **generation, "transformers_version": "4.40.0"}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    names = list(tensors)
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return
    weight_map, step = {}, -(-len(names) // shards)
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        part = {n: tensors[n] for n in names[shard * step : (shard + 1) * step]}
        save_file(part, folder / file, metadata={"format": "pt"})
        weight_map |= {n: file for n in part}
    size = sum(t.numel() * t.element_size() for t in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")


def load(folder, dtype, vision):
    if vision:
        from transformers import AutoModelForImageTextToText as Auto
    else:
        Auto = AutoModelForCausalLM
    model, info = Auto.from_pretrained(
        folder, dtype=dtype, attn_implementation="eager", output_loading_info=True, local_files_only=True)
    bad = {k: v for k, v in info.items() if v}
    assert not bad, f"{folder.name}: transformers disagrees with the names or shapes: {bad}"
    return model.eval()


@torch.no_grad()
def logits(model, tokens, routers=False):
    got = model(input_ids=torch.tensor([tokens]), use_cache=False, **({"output_router_logits": True} if routers else {}))
    return got.logits[0].float(), [r.float() for r in got.router_logits] if routers else []


def cases(name, vocab):
    draw = generator(name, "prompts")
    prompt = lambda n: torch.randint(3, vocab, (n,), generator=draw).tolist()
    yield "single", prompt(1), None
    yield "long", prompt(LONG), LONG_ROWS
    for i, n in enumerate(BATCH):
        yield f"batch.{i}", prompt(n), None


def golden(name, config, folder):
    text = config.get("text_config", config)
    dtype = TYPES[config.get("torch_dtype") or config["dtype"]]
    see = "text_config" in config
    routers = text["model_type"] == "mixtral"
    reference = load(folder, torch.float32, see)
    half = None if dtype == torch.float32 else load(folder, dtype, see)
    out = {}
    for case, prompt, rows in cases(name, text["vocab_size"]):
        tokens = list(prompt)
        for _ in range(GREEDY):
            tokens.append(int(logits(reference, tokens)[0][-1].argmax()))
        full, router = logits(reference, tokens, routers)
        top = full.topk(2).values
        rows = rows or [len(prompt) - 1, len(tokens) - 1]
        ints = lambda v: torch.tensor(v, dtype=torch.int32)
        out |= {
            f"{case}.tokens": ints(tokens), f"{case}.prompt": ints([len(prompt)]),
            f"{case}.argmax": full.argmax(-1).to(torch.int32), f"{case}.margin": (top[:, 0] - top[:, 1]).contiguous(),
            f"{case}.rows": ints(rows), f"{case}.logits": full[rows].contiguous(),
        }
        if half is not None and case == "long":
            out[f"{case}.half"] = logits(half, tokens)[0][rows].to(torch.bfloat16).contiguous()
        if routers:
            best = torch.stack(router).topk(text["num_experts_per_tok"] + 1).values
            out[f"{case}.router"] = (best[..., -2] - best[..., -1]).contiguous()
    # One key: several are written in any order, and the same run is to give the same file.
    meta = {"made_with": f"transformers {transformers.__version__}, torch {torch.__version__}, eager attention, f32"}
    save_file(out, folder / "golden.safetensors", metadata=meta)
    spread = out["long.logits"].std().item()
    note = ""
    if half is not None:
        error = (out["long.half"].float() - out["long.logits"]).norm(dim=-1) / out["long.logits"].norm(dim=-1)
        note = f", transformers in {dtype}: error {error.max():.4f}"
    print(f"{name}: logits std {spread:.2f}, median margin {out['long.margin'].median():.3f}{note}")


def main():
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    for name in sys.argv[1:] or CHECKPOINTS:
        config, generation, shards = CHECKPOINTS[name]
        folder = HERE / "checkpoints" / name
        shutil.rmtree(folder, ignore_errors=True)
        write(folder, config, generation, shards, weights(name, config))
        golden(name, config, folder)


if __name__ == "__main__":
    main()
