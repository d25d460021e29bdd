"""Hugging Face's tokenizer files made from a GGUF vocabulary, by the formats' documentation: the way there, by hand."""

import struct

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6
LLAMA3 = (
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*"
    "|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
)
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
# What the models' own tokenizer.json files say.
PRE_TOKENIZERS = {
    "gpt-2": BYTE_LEVEL,
    "llama-bpe": {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": LLAMA3}, "behavior": "Isolated", "invert": False},
            BYTE_LEVEL | {"use_regex": False},
        ],
    },
    "smollm": {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, BYTE_LEVEL]},
}


def added_tokens(tokens, types):
    """The added_tokens of tokenizer.json: control, unknown and user-defined ones."""
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return [
        {"id": i, "content": tokens[i], "special": kind in (CONTROL, UNKNOWN)} | plain
        for i, kind in enumerate(types)
        if kind in (CONTROL, UNKNOWN, USER_DEFINED)
    ]


def byte_level(metadata, pre, *, bos=None, pairs=False):
    """tokenizer.json of a gpt2 vocabulary; `bos` is the text that its template begins with."""
    tokens, types = list(metadata["tokenizer.ggml.tokens"]), list(metadata["tokenizer.ggml.token_type"])
    merges = list(metadata["tokenizer.ggml.merges"])
    post = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}
    if bos is not None:
        single = [{"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
        pair = [*single, {"Sequence": {"id": "B", "type_id": 1}}]
        about = {bos: {"id": bos, "ids": [tokens.index(bos)], "tokens": [bos]}}
        template = {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": about}
        post = {"type": "Sequence", "processors": [post, template]}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added_tokens(tokens, types),
        "normalizer": None,
        "pre_tokenizer": PRE_TOKENIZERS[pre],
        "post_processor": post,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": pre == "llama-bpe",
            "vocab": {text: i for i, text in enumerate(tokens) if types[i] == NORMAL},
            "merges": [merge.split(" ") for merge in merges] if pairs else merges,
        },
    }


def sentencepiece_merges(tokens, scores):
    """The merges that transformers gives a SentencePiece vocabulary: all ways to split each piece, the best first."""
    ids = {text: i for i, text in enumerate(tokens)}
    found = []
    for text, i in ids.items():
        ways = [(text[:cut], text[cut:]) for cut in range(1, len(text))]
        found += [
            (-scores[i], i, ids[left], ids[right], left, right) for left, right in ways if left in ids and right in ids
        ]
    return [[left, right] for *_, left, right in sorted(found)]


def spaced(metadata):
    """tokenizer.json of a llama vocabulary: BPE with byte fallback, spaces as U+2581, one put in front."""
    tokens, types = list(metadata["tokenizer.ggml.tokens"]), list(metadata["tokenizer.ggml.token_type"])
    scores = [float(score) for score in metadata["tokenizer.ggml.scores"]]
    prepend = {"type": "Prepend", "prepend": "\u2581"}
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
    mergeable = {text: score for text, score, kind in zip(tokens, scores, types, strict=True) if kind == NORMAL}
    return {
        "version": "1.0",
        "added_tokens": added_tokens(tokens, types),
        "normalizer": {"type": "Sequence", "normalizers": [prepend, replace]},
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE",
            "unk_token": "<unk>",
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": {text: i for i, text in enumerate(tokens)},
            "merges": sentencepiece_merges(list(mergeable), list(mergeable.values())),
        },
    }


def varint(number):
    out = b""
    while number > 127:
        out, number = out + bytes([number & 127 | 128]), number >> 7
    return out + bytes([number])


def field(number, content):
    """One field of a protobuf message: bytes, a float or an int (negative ones as 64 bits)."""
    if isinstance(content, bytes):
        return varint(number << 3 | 2) + varint(len(content)) + content
    if isinstance(content, float):
        return varint(number << 3 | 5) + struct.pack("<f", content)
    return varint(number << 3) + varint(content % (1 << 64))


def sentencepiece(metadata, *, model_type=2, prefix=True):
    """tokenizer.model of a llama vocabulary."""
    rows = zip(*(metadata[f"tokenizer.ggml.{key}"] for key in ("tokens", "scores", "token_type")), strict=True)
    pieces = [
        field(1, field(1, text.encode()) + field(2, float(score)) + (field(3, int(kind)) if kind != NORMAL else b""))
        for text, score, kind in rows
    ]
    trainer = field(1, b"data.txt") + field(3, model_type) + field(35, 1)  # byte_fallback
    trainer += field(40, 0) + field(41, 1) + field(42, 2) + field(43, -1)
    normalizer = field(1, b"identity") + field(3, int(prefix)) + field(4, 0)  # no white space removed
    return b"".join(pieces) + field(2, trainer) + field(3, normalizer)
