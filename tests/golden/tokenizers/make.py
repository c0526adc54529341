"""Makes the golden tokenizers, the 10,000 lines and what the reference encodes and decodes them to.

    python make.py [mistral-v0.3-source.model]   (tokenizers, sentencepiece; no network)

lines.jsonl      10,000 JSON strings, one a line: code, prose in many scripts, emoji, whitespace runs, text that looks like
                 special tokens. Drawn by a seeded generator from the tables below.
NAME/tokenizer.json, tokenizer_config.json
                 `mistral-v0.3` is the real one: the sentencepiece model v3 of mistral-common (Apache-2.0), converted
                 to the hub's tokenizer.json; it is remade only when that file is given. The others are small
                 (2,000 tokens), trained on the Python standard library, of the exact structure of their family:
                 normalizer, pre-tokenizer expressions, decoder, post-processor, special tokens and their flags.
NAME/expected.bin
                 per line three little-endian u32, in the order of lines.jsonl:
                   1. ids of the line, special-token text recognised (what `encode(line, add_special_tokens=False)` gives)
                   2. ids of the line, special tokens spelled out as text (`encode_special_tokens = True`)
                   3. the text that decoding the ids of 2 gives, special tokens not skipped
                 Each is FNV-1a 64 folded to 32 bits (high half xor low half), over the ids as little-endian u32 or
                 over the UTF-8 of the text.
"""

import json
import pathlib
import random
import struct
import sys
import sysconfig

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

HERE = pathlib.Path(__file__).parent
LINES = 10_000
VOCAB = 2_000

GPT4 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
        r"|\s+(?!\S)|\s+")
TEKKEN = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
          r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
          r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")

WORDS = """return self def class import from lambda yield async await None True False if else elif for while try except
raise with pass break continue struct impl pub fn let mut match trait where use mod crate unsafe static const i32 u64
String Vec Option Result Some Ok Err println! format! function var const => === !== null undefined console.log package
main func chan go defer select SELECT FROM WHERE JOIN ON GROUP BY ORDER INSERT INTO #include <stdio.h> printf malloc
sizeof void int char unsigned long double template typename std::vector namespace public private protected @Override
HTTP JSON getElementById addEventListener x y i n idx tmp foo bar baz_qux CamelCaseName snake_case_name SCREAMING_CASE
can't we're I'll they've it's O'Neill don't""".split()
PROSE = [
    "The quick brown fox jumps over the lazy dog.", "Größe, Straße, Äpfel und Öl", "Où est la bibliothèque ?",
    "¿Dónde está el niño?", "Привет, мир! Как дела?", "Γειά σου Κόσμε", "שלום עולם", "مرحبا بالعالم", "नमस्ते दुनिया",
    "สวัสดีชาวโลก", "こんにちは世界。コードを書く", "函数返回值的类型是整数", "안녕하세요 세계", "ქართული ენა", "Tiếng Việt có dấu",
    "e\u0301 vs \u00e9, A\u030a vs \u00c5, \ufb01 ligature", "ｆｕｌｌｗｉｄｔｈ ＡＢＣ１２３", "zero\u200bwidth\u200djoin\u00a0nbsp\u2028line",
    "İstanbul ıışğ", "ΑΒΓ ǅ ǲ ᾈ", "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𝟘𝟙𝟚", "x² + y³ ≤ √z ∑∫∂ ½", "\ufeffbom first", "\x00\x01\x07\x1b[31mred\x1b[0m\x7f",
]
EMOJI = ["😀", "👩‍👩‍👧‍👦", "🏳️‍🌈", "👍🏽", "🇪🇺", "❤️", "🤷🏻‍♀️", "1️⃣", "🫠", "\U0001f9d1\u200d\U0001f680"]
SPECIAL = [
    "<s>", "</s>", "<unk>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[PREFIX]", "[SUFFIX]", "[MIDDLE]", "<bos>", "<eos>",
    "<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|file_separator|>", "<PRE>", " <SUF>", "▁<MID>", "<EOT>",
    "<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>", "<|EOT|>", "<｜end▁of▁sentence｜>", "<|begin_of_text|>", "<|eot_id|>",
    "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<start_of_turn>", "<0x0A>", "<0xE2>", "▁", "▁▁", "Ġ", "Ċ", "##",
]
SPACES = [" ", "  ", "   ", "    ", "        ", "\t", "\t\t", "\n", "\r\n", "\n\n", " \n", "\u3000", "\u2003", " " * 17, " " * 40]
PUNCTUATION = list("()[]{}<>.,;:!?'\"`~@#$%^&*-_=+|/\\") + ["->", "::", "//", "/*", "*/", "&&", "||", "...", "--", "==", "\"\"\""]


def line(draw):
    kind = draw.randrange(10)
    if kind == 0:
        return draw.choice(PROSE) + draw.choice(["", " ", draw.choice(PROSE)])
    if kind == 1:  # any code points but surrogates
        planes = [(0x20, 0x7E), (0xA0, 0x24F), (0x370, 0x52F), (0x590, 0x6FF), (0x900, 0x97F), (0x3040, 0x30FF),
                  (0x4E00, 0x9FFF), (0xAC00, 0xD7A3), (0x1F300, 0x1FAFF), (0xE000, 0xE010), (0x10FFF0, 0x10FFFF)]
        return "".join(chr(draw.randint(*draw.choice(planes))) for _ in range(draw.randint(1, 16)))
    if kind == 2:
        return "".join(draw.choice([draw.choice(SPECIAL), draw.choice(WORDS), draw.choice(SPACES)]) for _ in range(draw.randint(1, 6)))
    if kind == 3:
        return "".join(draw.choice([draw.choice(EMOJI), draw.choice(WORDS), " "]) for _ in range(draw.randint(1, 6)))
    if kind == 4:
        return "".join(draw.choice([draw.choice(SPACES), draw.choice(SPACES), draw.choice(WORDS)]) for _ in range(draw.randint(1, 8)))
    if kind == 5:
        return draw.choice(["", "-", "0x"]) + "".join(draw.choice("0123456789.,_eE") for _ in range(draw.randint(1, 24)))
    parts = [" " * (4 * draw.randint(0, 4))]
    for _ in range(draw.randint(1, 9)):
        parts += [draw.choice(WORDS), draw.choice([" ", " ", "", draw.choice(PUNCTUATION)])]
    return "".join(parts) + draw.choice(["", "\n", " "])


def added(content, at, special=True, normalized=False):
    return dict(id=at, content=content, single_word=False, lstrip=False, rstrip=False, normalized=normalized, special=special)


def first_token(token, at):
    piece = {"SpecialToken": {"id": token, "type_id": 0}}
    return dict(
        type="TemplateProcessing", single=[piece, {"Sequence": {"id": "A", "type_id": 0}}],
        pair=[piece, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        special_tokens={token: {"id": token, "ids": [at], "tokens": [token]}},
    )


def split(expression):
    return dict(type="Split", pattern={"Regex": expression}, behavior="Isolated", invert=False)


BYTES = dict(type="ByteLevel", add_prefix_space=False, trim_offsets=True, use_regex=False)
REPLACE = dict(type="Replace", pattern={"String": " "}, content="▁")
PIECES = [dict(type="Replace", pattern={"String": "▁"}, content=" "), dict(type="ByteFallback"), dict(type="Fuse")]
STRIP = [dict(type="Strip", content=" ", start=1, stop=0)]


def corpus():
    """A few megabytes of the standard library, plus our prose so that other scripts get merges."""
    root = pathlib.Path(sysconfig.get_paths()["stdlib"])
    files = sorted(root.glob("*.py"))[:110]
    return [f.read_text("utf-8", "replace") for f in files] + PROSE * 40


def train(pretokenizer, alphabet):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pretokenizer
    trainer = trainers.BpeTrainer(vocab_size=VOCAB, initial_alphabet=alphabet, show_progress=False, min_frequency=2)
    tokenizer.train_from_iterator(corpus(), trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return list(model["vocab"]), model["merges"]


def model(vocab, merges, pieces, ignore_merges=False):
    return dict(
        type="BPE", dropout=None, unk_token="<unk>" if pieces else None, continuing_subword_prefix=None,
        end_of_word_suffix=None, fuse_unk=pieces, byte_fallback=pieces, ignore_merges=ignore_merges,
        vocab={t: i for i, t in enumerate(vocab)}, merges=merges,
    )


def document(added_tokens, normalizer, pre_tokenizer, post_processor, decoder, model):
    return dict(version="1.0", truncation=None, padding=None, added_tokens=added_tokens, normalizer=normalizer,
                pre_tokenizer=pre_tokenizer, post_processor=post_processor, decoder=decoder, model=model)


def sequence(kind, items):
    return {"type": "Sequence", kind: items}


def with_pieces(first, trained):
    """Sentencepiece's order: control tokens, 256 bytes, then pieces."""
    vocab, merges = trained
    return first + [f"<0x{b:02X}>" for b in range(256)] + [t for t in vocab if t not in first], merges


def small():
    # Pieces begin with their run of spaces, as sentencepiece's do.
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("▁*[^▁\\n]+|▁+|\\n+"), "isolated")
    trainer = trainers.BpeTrainer(vocab_size=VOCAB, show_progress=False, min_frequency=2, limit_alphabet=300)
    tokenizer.train_from_iterator(corpus(), trainer)
    trained = json.loads(tokenizer.to_str())["model"]
    pieces = (list(trained["vocab"]), trained["merges"])

    def bytelevel(*before):
        steps = [pre_tokenizers.Split(Regex(e), "isolated") for e in before]
        return train(pre_tokenizers.Sequence(steps + [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]),
                     pre_tokenizers.ByteLevel.alphabet())

    # CodeLlama: old style, the space comes from a normalizer; infilling tokens carry the marker in their names.
    vocab, merges = with_pieces(["<unk>", "<s>", "</s>"], pieces)
    fim = ["▁<PRE>", "▁<SUF>", "▁<MID>", "▁<EOT>"]
    yield "codellama", document(
        [added(t, i, normalized=True) for i, t in enumerate(vocab[:3])]
        + [added(t, len(vocab) + i) for i, t in enumerate(fim)],
        sequence("normalizers", [dict(type="Prepend", prepend="▁"), REPLACE]), None, first_token("<s>", 1),
        sequence("decoders", PIECES + STRIP), model(vocab, merges, True),
    ), dict(add_bos_token=True, add_eos_token=False, bos_token="<s>", eos_token="</s>", prefix_token="▁<PRE>",
            middle_token="▁<MID>", suffix_token="▁<SUF>", eot_token="▁<EOT>", tokenizer_class="CodeLlamaTokenizer",
            legacy=None, unk_token="<unk>")

    # CodeGemma: no space in front; runs of spaces and newlines are tokens of their own, added but not special.
    first = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>",
             "<|file_separator|>", "<start_of_turn>", "<end_of_turn>"]
    runs = ["\n" * n for n in range(2, 8)] + ["▁" * n for n in range(2, 17)]
    vocab, merges = with_pieces(first + runs, pieces)
    yield "codegemma", document(
        [added(t, i) for i, t in enumerate(first)] + [added(t, len(first) + i, special=False) for i, t in enumerate(runs)],
        REPLACE, dict(type="Split", pattern={"String": " "}, behavior="MergedWithPrevious", invert=False),
        first_token("<bos>", 2), sequence("decoders", PIECES), model(vocab, merges, True),
    ), dict(add_bos_token=True, add_eos_token=False, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>",
            unk_token="<unk>", tokenizer_class="GemmaTokenizer")

    # DeepSeek Coder: five expressions one after another; the first token is asked for in tokenizer_config.json only;
    # infilling tokens are added but not special.
    steps = ["[\\r\\n]", "\\s?\\p{L}+", "\\s?\\p{P}+", "[一-龥ࠀ-一가-퟿]+"]
    vocab, merges = bytelevel(*steps)
    names = ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜fim▁hole｜>", "<｜fim▁begin｜>", "<｜fim▁end｜>", "<|User|>", "<|Assistant|>", "<|EOT|>"]
    yield "deepseek-coder", document(
        [added(t, len(vocab) + i, special=i in (0, 1, 7), normalized=True) for i, t in enumerate(names)],
        sequence("normalizers", []),
        sequence("pretokenizers", [split(e) for e in steps] + [dict(type="Digits", individual_digits=True), BYTES]),
        dict(type="ByteLevel", add_prefix_space=True, trim_offsets=False, use_regex=True),
        dict(type="ByteLevel", add_prefix_space=True, trim_offsets=True, use_regex=True), model(vocab, merges, False),
    ), dict(add_bos_token=True, add_eos_token=False, bos_token={"__type": "AddedToken", "content": names[0]},
            eos_token={"__type": "AddedToken", "content": names[1]}, legacy=True, tokenizer_class="LlamaTokenizerFast")

    # Llama 3: whole words that are tokens skip the merges.
    expression = GPT4 % "{1,3}"
    vocab, merges = bytelevel(expression)
    names = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>", "<|eot_id|>"]
    yield "llama-3", document(
        [added(t, len(vocab) + i) for i, t in enumerate(names)], None, sequence("pretokenizers", [split(expression), BYTES]),
        sequence("processors", [dict(type="ByteLevel", add_prefix_space=True, trim_offsets=False, use_regex=True),
                                first_token(names[0], len(vocab))]),
        dict(type="ByteLevel", add_prefix_space=True, trim_offsets=True, use_regex=True), model(vocab, merges, False, True),
    ), dict(bos_token=names[0], eos_token=names[5], clean_up_tokenization_spaces=True, tokenizer_class="PreTrainedTokenizerFast")

    # Qwen 2.5: NFC, single digits, no first token; infilling tokens are added but not special.
    expression = GPT4 % ""
    vocab, merges = bytelevel(expression)
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>",
             "<|fim_suffix|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>"]
    yield "qwen2.5-coder", document(
        [added(t, len(vocab) + i, special=i < 3) for i, t in enumerate(names)], dict(type="NFC"),
        sequence("pretokenizers", [split(expression), BYTES]),
        dict(type="ByteLevel", add_prefix_space=False, trim_offsets=False, use_regex=False),
        dict(type="ByteLevel", add_prefix_space=False, trim_offsets=False, use_regex=False), model(vocab, merges, False),
    ), dict(add_bos_token=False, add_prefix_space=False, bos_token=None, eos_token="<|im_end|>", pad_token="<|endoftext|>",
            tokenizer_class="Qwen2Tokenizer")

    # Mistral Small (Tekken): control tokens come first.
    vocab, merges = bytelevel(TEKKEN)
    names = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[PREFIX]", "[MIDDLE]", "[SUFFIX]", "<pad>"]
    yield "mistral-small", document(
        [added(t, i) for i, t in enumerate(names)], None, sequence("pretokenizers", [split(TEKKEN), BYTES]),
        first_token("<s>", 1), dict(type="ByteLevel", add_prefix_space=True, trim_offsets=True, use_regex=True),
        model(names + vocab, merges, False, True),
    ), dict(add_bos_token=True, bos_token="<s>", eos_token="</s>", pad_token="<pad>", tokenizer_class="PreTrainedTokenizerFast")


def real(path):
    """The sentencepiece model as the hub's tokenizer.json has it: pieces by id, merges by score, among equals the longest left half first."""
    import sentencepiece

    source = sentencepiece.SentencePieceProcessor(model_file=str(path))
    vocab = [source.id_to_piece(i) for i in range(source.get_piece_size())]
    ids = {t: i for i, t in enumerate(vocab)}
    merges = []
    for piece, at in ids.items():
        if source.is_control(at) or source.is_byte(at) or source.is_unknown(at):
            continue
        pairs = [(piece[:i], piece[i:]) for i in range(1, len(piece)) if piece[:i] in ids and piece[i:] in ids]
        merges += [(-source.get_score(at), -len(a), -len(b), a, b) for a, b in sorted(pairs, key=lambda p: (ids[p[0]], ids[p[1]]))]
    merges.sort(key=lambda m: m[:3])
    control = [at for at in range(len(vocab)) if source.is_control(at) or source.is_unknown(at)]
    return document(
        [added(vocab[at], at) for at in control], None,
        dict(type="Metaspace", replacement="▁", prepend_scheme="first", split=False), first_token("<s>", 1),
        sequence("decoders", PIECES + STRIP), model(vocab, [[a, b] for *_, a, b in merges], True),
    ), dict(add_bos_token=True, add_eos_token=False, add_prefix_space=True, bos_token="<s>", eos_token="</s>",
            legacy=False, tokenizer_class="LlamaTokenizer", unk_token="<unk>")


def fold(data):
    h = 0xCBF29CE484222325
    for byte in data:
        h = ((h ^ byte) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return (h >> 32) ^ (h & 0xFFFFFFFF)


def expect(folder, lines):
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    number = lambda ids: fold(struct.pack(f"<{len(ids)}I", *ids))
    out = bytearray()
    plain = [e.ids for e in tokenizer.encode_batch(lines, add_special_tokens=False)]
    tokenizer.encode_special_tokens = True
    literal = [e.ids for e in tokenizer.encode_batch(lines, add_special_tokens=False)]
    same = 0
    for text, a, b in zip(lines, plain, literal):
        back = tokenizer.decode(b, skip_special_tokens=False)
        same += back == text
        out += struct.pack("<3I", number(a), number(b), fold(back.encode()))
    (folder / "expected.bin").write_bytes(out)
    total = sum(map(len, literal))
    print(f"{folder.name}: {tokenizer.get_vocab_size()} tokens, {total} ids, {same} lines come back as they were")


def main():
    draw = random.Random(20240609)
    lines = [line(draw) for _ in range(LINES)]
    (HERE / "lines.jsonl").write_text("".join(json.dumps(l, ensure_ascii=False) + "\n" for l in lines), "utf-8")
    made = list(small())
    if len(sys.argv) > 1:
        made.append(("mistral-v0.3", *real(sys.argv[1])))
    for name, tokenizer, config in made:
        folder = HERE / name
        folder.mkdir(exist_ok=True)
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False, separators=(",", ":")), "utf-8")
        (folder / "tokenizer_config.json").write_text(json.dumps(config, ensure_ascii=False, indent=1) + "\n", "utf-8")
    for folder in sorted(p for p in HERE.iterdir() if (p / "tokenizer.json").exists()):
        expect(folder, lines)


if __name__ == "__main__":
    main()
