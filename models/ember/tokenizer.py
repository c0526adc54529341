"""Trains ember's tokenizer: byte-level BPE, 4,096 entries, digits apart, a line break with the next line's indent as one piece.

    python tokenizer.py --run RUN         # reads RUN/corpus.jsonl, writes tokenizer.json and tokenizer_config.json here
"""

import argparse
import json
import pathlib

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

HERE = pathlib.Path(__file__).parent
# The order is part of the checkpoint: ids 0 to 7.
SPECIAL = ["<|endoftext|>", "<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|fim_pad|>", "<|file_sep|>", "<|im_start|>", "<|im_end|>"]
SPLIT = r"\n+[ \t]*|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
CHAT = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def main():
    args = argparse.ArgumentParser()
    args.add_argument("--run", type=pathlib.Path, required=True)
    args = args.parse_args()
    docs = [json.loads(line) for line in open(args.run / "corpus.jsonl", encoding="utf-8")]

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(SPLIT), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=4096, special_tokens=SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator((d["text"] for d in docs if not d["held"]), trainer)
    tokenizer.save(str(HERE / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": False, "add_eos_token": False, "add_prefix_space": False,
        "bos_token": SPECIAL[0], "eos_token": SPECIAL[0], "pad_token": "<|fim_pad|>", "clean_up_tokenization_spaces": False,
        "model_max_length": 2048, "chat_template": CHAT,
    }
    (HERE / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")

    tokens = size = 0
    for d in docs:
        if d["held"]:
            ids = tokenizer.encode(d["text"]).ids
            assert tokenizer.decode(ids, skip_special_tokens=False) == d["text"], d["path"]
            tokens, size = tokens + len(ids), size + len(d["text"].encode())
    print(f"held-out files round-trip; {size / tokens:.3f} bytes a token")


main()
