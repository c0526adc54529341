#!/usr/bin/env python3
"""Peers on the same machine in the same run, as far as they can be imported: nothing is installed or downloaded.

    peers.py [--out FILE.json] [--quick]

- PyTorch: copy bandwidth and a bf16 product of 8192 x 8192 x 8192 (cuBLAS): what gpu_bench's ceilings stand beside.
- transformers: the Mistral 7B shape with random weights, static cache, compiled, one sequence, 128 tokens in, 256 out.
- vLLM: the same shape with dummy weights, 64 and 256 sequences, 512 in, 256 out, no two prompts alike.

A peer that fails is a line and a field of its own; the others go on.
"""
import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time

SHAPE = {
    "architectures": ["MistralForCausalLM"], "model_type": "mistral", "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32768,
    "max_position_embeddings": 32768, "rms_norm_eps": 1e-5, "rope_theta": 1000000.0, "sliding_window": None,
    "hidden_act": "silu", "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
}
# Of its weights a token reads all but the embedding.
ACTIVE_BYTES = 14.23e9
INPUT, OUTPUT = 128, 256


def median_ms(torch, work, rounds=11, launches=4):
    times = []
    for index in range(rounds + 1):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(launches):
            work()
        end.record()
        end.synchronize()
        if index:
            times.append(begin.elapsed_time(end) / launches)
    return statistics.median(times)


def ceilings(torch, quick):
    numbers = 1 << (24 if quick else 29)
    source = torch.empty(numbers, dtype=torch.bfloat16, device="cuda").fill_(1)
    target = torch.empty_like(source)
    copy = median_ms(torch, lambda: target.copy_(source))
    del source, target
    side = 1024 if quick else 8192
    x, w = (torch.randn(side, side, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    product = median_ms(torch, lambda: torch.matmul(x, w.t()))
    return {
        "version": torch.__version__, "device": torch.cuda.get_device_name(0), "copy_gb_s": 4 * numbers / copy / 1e6,
        "product_side": side, "product_tflop_s": 2 * side**3 / product / 1e9,
    }


def decode(torch, quick, copy_gb_s):
    import transformers
    from transformers import MistralConfig, MistralForCausalLM, StaticCache

    own = {name: value for name, value in SHAPE.items() if name not in ("architectures", "model_type", "torch_dtype")}
    if quick:
        own["num_hidden_layers"] = 2
    config = MistralConfig(**own)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        model = MistralForCausalLM(config).eval()
    torch.set_default_dtype(torch.float32)
    output = 8 if quick else OUTPUT

    def cache():
        sizes = dict(max_cache_len=INPUT + OUTPUT)
        try:
            return StaticCache(config=config, **sizes)
        except TypeError:  # older releases ask for more
            return StaticCache(config=config, max_batch_size=1, device="cuda", dtype=torch.bfloat16, **sizes)

    def step(token, place, past):
        logits = model(input_ids=token, cache_position=place, past_key_values=past, use_cache=True).logits
        return logits[:, -1:].argmax(-1)

    compiled = torch.compile(step, mode="reduce-overhead", fullgraph=False)
    rates = []
    with torch.inference_mode():
        for _ in range(3):  # the first compiles, the second captures
            past = cache()
            prompt = torch.randint(3, config.vocab_size, (1, INPUT), device="cuda")
            token = step(prompt, torch.arange(INPUT, device="cuda"), past)
            torch.cuda.synchronize()
            begin = time.perf_counter()
            for at in range(INPUT, INPUT + output):
                token = compiled(token, torch.tensor([at], device="cuda"), past).clone()
            torch.cuda.synchronize()
            rates.append(output / (time.perf_counter() - begin))
    share = ACTIVE_BYTES * rates[-1] / (copy_gb_s * 1e9)
    return {
        "version": transformers.__version__, "layers": config.num_hidden_layers, "input": INPUT, "output": output,
        "tokens_per_s": rates[-1], "tokens_per_s_runs": rates, "share_of_copy": None if quick else share,
    }


def vllm_server(quick):
    import vllm
    from vllm import LLM, SamplingParams

    folder = tempfile.mkdtemp(prefix="hearth-peers-")
    with open(os.path.join(folder, "config.json"), "w") as file:
        json.dump(SHAPE | ({"num_hidden_layers": 2} if quick else {}), file)
    engine = LLM(model=folder, load_format="dummy", skip_tokenizer_init=True, dtype="bfloat16", max_model_len=2048,
                 enable_prefix_caching=False, gpu_memory_utilization=0.85)
    input_, output = (512, 8) if quick else (512, 256)
    sampling = SamplingParams(max_tokens=output, ignore_eos=True, detokenize=False, temperature=0.0)
    results = []
    for sequences in (64, 256):
        seconds = None
        for attempt in range(2):  # the first warms up
            draw = random.Random(sequences + attempt)
            prompts = [{"prompt_token_ids": [draw.randrange(3, 32000) for _ in range(input_)]} for _ in range(sequences)]
            begin = time.perf_counter()
            engine.generate(prompts, sampling, use_tqdm=False)
            seconds = time.perf_counter() - begin
        results.append({
            "sequences": sequences, "input": input_, "output": output,
            "output_tokens_per_s_with_prompts": sequences * output / seconds,
        })
    return {"version": vllm.__version__, "loads": results}


def attempt(name, work):
    try:
        figures = work()
        print(f"{name}: {json.dumps(figures)}", flush=True)
        return figures
    except ImportError as error:
        print(f"{name}: not here ({error})", flush=True)
        return {"absent": str(error)}
    except Exception as error:  # a peer that fails must not take the others' figures with it
        print(f"{name}: failed: {type(error).__name__}: {error}", flush=True)
        return {"failed": f"{type(error).__name__}: {error}"}


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--out")
    arguments.add_argument("--quick", action="store_true")
    arguments.add_argument("--only", choices=["torch", "vllm"], help="one peer, in this process")
    asked = arguments.parse_args()
    result = {}

    def keep():
        if asked.out:
            with open(asked.out, "w") as file:
                json.dump(result, file, indent=2)
                file.write("\n")

    if asked.only != "vllm":
        def torch_ceilings():
            import torch
            if not torch.cuda.is_available():
                raise ImportError("PyTorch sees no GPU")
            return ceilings(torch, asked.quick)

        result["torch"] = attempt("torch", torch_ceilings)
        keep()
        if "copy_gb_s" in result["torch"]:
            import torch
            result["transformers"] = attempt("transformers", lambda: decode(torch, asked.quick, result["torch"]["copy_gb_s"]))
            keep()
    if asked.only == "vllm":
        result["vllm"] = attempt("vllm", lambda: vllm_server(asked.quick))
        keep()
    elif asked.only is None:
        # A process of its own: this one holds the memory of the other model.
        own = tempfile.NamedTemporaryFile(suffix=".json")
        command = [sys.executable, __file__, "--only", "vllm", "--out", own.name] + ["--quick"] * asked.quick
        if "torch" in sys.modules:
            sys.modules["torch"].cuda.empty_cache()
        subprocess.run(command, check=False)
        try:
            result |= json.load(open(own.name))
        except ValueError:
            result["vllm"] = {"failed": "the process left no result"}
        keep()


if __name__ == "__main__":
    main()
