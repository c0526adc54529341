#!/usr/bin/env python3
"""Hearth and llama.cpp on the same processor, in turn, with the same weights and the same tokens.

    llama.py BINARY [--layers 4] [--rounds 5] [--formats bf16,q8_0,q4_k] [--folder DIR] [--out FILE.json]

The model has the shape of Mistral 7B with fewer layers and random weights: once as a checkpoint (safetensors), which
Hearth loads, and once as GGUF, packed by llama.cpp itself. Embeddings and head stay bf16 in both, so that both read the
same bytes. Three figures, medians of rounds in which the two take turns while the other one sleeps:

    prompt   tokens/s of 512 tokens that were never seen before, one sequence
    one      tokens/s of the answer, one sequence, after those 512
    eight    tokens/s of the answers of eight sequences together, after 64 each

Hearth is asked over HTTP as a client asks it, llama.cpp through its own functions in one process, without a server:
what a server costs counts against Hearth. Both use as many threads as there are cores.
"""
import argparse
import ctypes
import http.client
import json
import os
import pathlib
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[2]
HIDDEN, FFN, HEADS, KV_HEADS, DIM, VOCAB = 4096, 14336, 32, 8, 128, 32768
PROMPT, ANSWER, STREAMS, SHORT, STEPS = 512, 32, 8, 64, 16
KEY = "hearth_key_of_the_benchmark"


# ---- the model ------------------------------------------------------------------------------------------------------


def bf16(rng, rows, cols):
    """Random numbers that keep the size of a row through a product, as the bits of bf16."""
    wide = (rng.random((rows, cols), dtype=np.float32) - 0.5) * np.float32((12.0 / cols) ** 0.5)
    return (wide.view(np.uint32) >> 16).astype(np.uint16)


def tensors(layers):
    """Names in a checkpoint and in GGUF, and the numbers, one tensor at a time."""
    rng = np.random.default_rng(1)
    ones = np.full((HIDDEN,), 0x3F80, dtype=np.uint16)
    yield "model.embed_tokens.weight", "token_embd.weight", bf16(rng, VOCAB, HIDDEN)
    for i in range(layers):
        own, theirs = f"model.layers.{i}.", f"blk.{i}."
        yield own + "input_layernorm.weight", theirs + "attn_norm.weight", ones
        yield own + "self_attn.q_proj.weight", theirs + "attn_q.weight", bf16(rng, HEADS * DIM, HIDDEN)
        yield own + "self_attn.k_proj.weight", theirs + "attn_k.weight", bf16(rng, KV_HEADS * DIM, HIDDEN)
        yield own + "self_attn.v_proj.weight", theirs + "attn_v.weight", bf16(rng, KV_HEADS * DIM, HIDDEN)
        yield own + "self_attn.o_proj.weight", theirs + "attn_output.weight", bf16(rng, HIDDEN, HEADS * DIM)
        yield own + "post_attention_layernorm.weight", theirs + "ffn_norm.weight", ones
        yield own + "mlp.gate_proj.weight", theirs + "ffn_gate.weight", bf16(rng, FFN, HIDDEN)
        yield own + "mlp.up_proj.weight", theirs + "ffn_up.weight", bf16(rng, FFN, HIDDEN)
        yield own + "mlp.down_proj.weight", theirs + "ffn_down.weight", bf16(rng, HIDDEN, FFN)
    yield "model.norm.weight", "output_norm.weight", ones
    yield "lm_head.weight", "output.weight", bf16(rng, VOCAB, HIDDEN)


def write_checkpoint(folder, layers):
    folder.mkdir(parents=True)
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name, _, numbers in tensors(layers):
        header[name] = {"dtype": "BF16", "shape": list(numbers.shape), "data_offsets": [at, at + numbers.nbytes]}
        at += numbers.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(folder / "model.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, _, numbers in tensors(layers):
            file.write(numbers.tobytes())
    config = {
        "architectures": ["MistralForCausalLM"], "model_type": "mistral", "hidden_size": HIDDEN,
        "intermediate_size": FFN, "num_hidden_layers": layers, "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS, "vocab_size": VOCAB, "max_position_embeddings": 32768, "rms_norm_eps": 1e-5,
        "rope_theta": 1e6, "sliding_window": None, "hidden_act": "silu", "bos_token_id": 1, "eos_token_id": 2,
        "tie_word_embeddings": False, "torch_dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(ROOT / "tests/golden/tokenizers/mistral-v0.3" / name, folder / name)


def write_gguf(path, layers):
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(32768)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(1e6)
    writer.add_rope_dimension_count(DIM)
    writer.add_vocab_size(VOCAB)
    writer.add_tokenizer_model("no_vocab")
    for _, name, numbers in tensors(layers):
        if numbers.ndim == 1:
            writer.add_tensor(name, (numbers.astype(np.uint32) << 16).view(np.float32))
            continue
        if name.endswith(("attn_q.weight", "attn_k.weight")):
            # GGUF turns neighbours, a checkpoint the two halves of a head.
            heads = numbers.shape[0] // DIM
            numbers = numbers.reshape(heads, 2, DIM // 2, HIDDEN).swapaxes(1, 2).reshape(numbers.shape)
        writer.add_tensor(name, np.ascontiguousarray(numbers).view(np.uint8), raw_dtype=gguf.GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def pack(source, target, kind):
    import gguf
    import llama_cpp

    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = {"q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0, "q4_k": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_S}[kind]
    params.pure = True
    params.output_tensor_type = params.token_embedding_type = int(gguf.GGMLQuantizationType.BF16)
    status = llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(params))
    assert status == 0, f"llama.cpp packs {source} to {kind}: {status}"


# ---- llama.cpp ------------------------------------------------------------------------------------------------------


class Llama:
    def __init__(self, path, threads):
        import llama_cpp

        self.lib = llama_cpp
        silent = llama_cpp.llama_log_callback(lambda level, text, data: None)
        llama_cpp.llama_log_set(silent, ctypes.c_void_p(0))
        self.silent = silent
        params = llama_cpp.llama_model_default_params()
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
        assert self.model, f"llama.cpp does not load {path}"
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = 2048, PROMPT, PROMPT
        params.n_seq_max, params.kv_unified = STREAMS, True
        params.n_threads = params.n_threads_batch = threads
        self.context = llama_cpp.llama_init_from_model(self.model, params)
        assert self.context, "llama.cpp makes no context"
        self.batch = llama_cpp.llama_batch_init(PROMPT, 0, 1)

    def step(self, rows):
        """Computes rows of (token, position, sequence, wants logits) and gives the best tokens of those that want."""
        batch, wanted = self.batch, []
        batch.n_tokens = len(rows)
        for i, (token, position, sequence, logits) in enumerate(rows):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, position, 1
            batch.seq_id[i][0], batch.logits[i] = sequence, logits
            if logits:
                wanted.append(i)
        assert self.lib.llama_decode(self.context, batch) == 0, "llama.cpp does not decode"
        best = []
        for i in wanted:
            row = self.lib.llama_get_logits_ith(self.context, i)
            best.append(int(np.ctypeslib.as_array(row, (VOCAB,)).argmax()))
        return best

    def forget(self):
        self.lib.llama_memory_clear(self.lib.llama_get_memory(self.context), True)

    def alone(self, prompt):
        self.forget()
        start = time.perf_counter()
        last = len(prompt) - 1
        tokens = self.step([(token, i, 0, i == last) for i, token in enumerate(prompt)])
        first = time.perf_counter()
        for i in range(ANSWER):
            tokens += self.step([(tokens[-1], len(prompt) + i, 0, True)])
        return len(prompt) / (first - start), ANSWER / (time.perf_counter() - first)

    def together(self, prompts):
        self.forget()
        last = []
        for sequence, prompt in enumerate(prompts):
            last += self.step([(token, i, sequence, i == len(prompt) - 1) for i, token in enumerate(prompt)])
        start = time.perf_counter()
        for i in range(STEPS):
            last = self.step([(token, SHORT + i, sequence, True) for sequence, token in enumerate(last)])
        return STEPS * len(prompts) / (time.perf_counter() - start)


# ---- Hearth ---------------------------------------------------------------------------------------------------------


class Hearth:
    def __init__(self, binary, folder, kind, threads, scratch):
        state = scratch / f"state-{kind}"
        # Settings of the machine that measures are none of its business.
        settings = {name: value for name, value in os.environ.items() if not name.startswith("HEARTH")}
        arguments = [
            binary, "serve", "--model", str(folder), "--device", "cpu", "--threads", str(threads),
            "--context", "2048", "--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0", "--state-dir", str(state),
        ]
        if kind != "bf16":
            arguments += ["--quantize", kind]
        self.log = open(scratch / f"hearth-{kind}.log", "w+")
        self.process = subprocess.Popen(
            arguments, stdout=self.log, stderr=self.log, env={**settings, "HEARTH_KEY": KEY, "HEARTH__CONSOLE__LISTEN": "127.0.0.1:0"})
        deadline = time.time() + 300
        while True:
            text = pathlib.Path(self.log.name).read_text()
            found = re.search(r"serves .* at http://127\.0\.0\.1:(\d+)", text)
            if found and self.is_ready(int(found[1])):
                break
            if self.process.poll() is not None or time.time() > deadline:
                self.stop()
                sys.exit(f"error: hearth does not serve {folder}:\n{text}")
            time.sleep(0.2)
        self.port = int(found[1])
        self.model = self.get("/v1/models")["data"][0]["id"]

    def is_ready(self, port):
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", "/health/ready")
            return connection.getresponse().status == 200
        except OSError:
            return False

    def get(self, path):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request("GET", path, headers={"authorization": f"Bearer {KEY}"})
        return json.loads(connection.getresponse().read())

    def ask(self, prompt, tokens):
        """When the request went out, and when each token came."""
        body = {
            "model": self.model, "prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True,
            "stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        }
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        start = time.perf_counter()
        connection.request(
            "POST", "/v1/completions", json.dumps(body),
            {"authorization": f"Bearer {KEY}", "content-type": "application/json"})
        answer = connection.getresponse()
        if answer.status != 200:
            sys.exit(f"error: hearth answers {answer.status}: {answer.read().decode()}")
        times = []
        for line in answer:
            if not line.startswith(b"data: ") or line.startswith(b"data: [DONE]"):
                continue
            # A chunk may hold several tokens, or none yet of a character that is not whole.
            so_far = json.loads(line[6:])["usage"]["completion_tokens"]
            times += [time.perf_counter()] * (so_far - len(times))
        assert len(times) == tokens, f"hearth gave {len(times)} tokens of {tokens}"
        return start, times

    def alone(self, prompt):
        start, times = self.ask(prompt, ANSWER + 1)
        return len(prompt) / (times[0] - start), ANSWER / (times[-1] - times[0])

    def together(self, prompts):
        seen = [None] * len(prompts)

        def one(i):
            # Long enough that all of them decode together for STEPS tokens.
            seen[i] = self.ask(prompts[i], STEPS * 3)[1]

        threads = [threading.Thread(target=one, args=(i,)) for i in range(len(prompts))]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        begin, end = max(times[0] for times in seen), min(times[-1] for times in seen)
        return sum(begin < at <= end for times in seen for at in times) / (end - begin)

    def stop(self):
        self.process.terminate()
        self.process.wait()


# ---- both -----------------------------------------------------------------------------------------------------------


def compare(hearth, llama, rounds, seed):
    rng = np.random.default_rng(seed)
    prompt = lambda length: rng.integers(1000, VOCAB, length).tolist()
    runs = {side: {"prompt": [], "one": [], "eight": []} for side in ("hearth", "llama.cpp")}
    for turn in range(rounds + 1):
        alone, together = prompt(PROMPT), [prompt(SHORT) for _ in range(STREAMS)]
        sides = [("hearth", hearth), ("llama.cpp", llama)]
        for name, side in sides if turn % 2 else reversed(sides):
            figures = (*side.alone(alone), side.together(together))
            if turn:  # the first round warms both up
                for figure, value in zip(("prompt", "one", "eight"), figures):
                    runs[name][figure].append(value)
    return runs


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--formats", default="bf16,q8_0,q4_k")
    parser.add_argument("--folder", type=pathlib.Path, help="keeps the models there")
    parser.add_argument("--out", type=pathlib.Path)
    options = parser.parse_args()
    threads = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as temporary:
        scratch = pathlib.Path(temporary)
        folder = options.folder or scratch
        checkpoint, wide = folder / f"mistral-{options.layers}", folder / f"mistral-{options.layers}-bf16.gguf"
        if not checkpoint.exists():
            write_checkpoint(checkpoint, options.layers)
        if not wide.exists():
            write_gguf(wide, options.layers)
        result = {"threads": threads, "layers": options.layers, "rounds": options.rounds, "formats": {}}
        import llama_cpp

        result["llama.cpp"] = f"{llama_cpp.__version__}, {llama_cpp.llama_print_system_info().decode().strip()}"
        print(f"llama.cpp: {result['llama.cpp']}")
        print(f"{threads} threads, {options.layers} layers of Mistral 7B; tokens/s, medians of {options.rounds} (least to most)")
        for seed, kind in enumerate(options.formats.split(",")):
            path = folder / f"mistral-{options.layers}-{kind}.gguf"
            if not path.exists():
                pack(wide, path, kind)
            llama = Llama(path, threads)
            hearth = Hearth(options.binary, checkpoint, kind, threads, scratch)
            try:
                runs = compare(hearth, llama, options.rounds, seed)
            finally:
                hearth.stop()
            result["formats"][kind] = runs
            for figure in ("prompt", "one", "eight"):
                ours, theirs = runs["hearth"][figure], runs["llama.cpp"][figure]
                spread = lambda values: f"{statistics.median(values):7.1f} ({min(values):.1f} to {max(values):.1f})"
                ratio = statistics.median(ours) / statistics.median(theirs)
                print(f"{kind:>5} {figure:<7} hearth {spread(ours):<28} llama.cpp {spread(theirs):<28} ratio {ratio:.2f}", flush=True)
        if options.out:
            options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
