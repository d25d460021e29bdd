"""Vocabularies small enough to merge by hand."""

from llamacy.text.tokenizer import Tokenizer

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6


def byte_level(words, merges, special=(), pre="gpt-2", **more):
    """Return a gpt2 tokenizer: the printable ASCII characters and the space, then `words`, then `special`.

    special: (text, type). more: tokenizer.ggml keys.
    """
    tokens = [chr(code) for code in range(0x21, 0x7F)] + ["\u0120", "\u010a", *words]
    types = [NORMAL] * len(tokens) + [kind for _, kind in special]
    return build("gpt2", tokens + [text for text, _ in special], types, merges=merges, pre=pre, **more)


def spaced(scores, special=(), with_bytes=True, **more):
    """Return a llama tokenizer: <unk>, <s>, </s>, the byte tokens, then the tokens of `scores`, then `special`."""
    tokens, types = ["<unk>", "<s>", "</s>"], [UNKNOWN, CONTROL, CONTROL]
    if with_bytes:
        tokens += [f"<0x{byte:02X}>" for byte in range(256)]
        types += [BYTE] * 256
    values = [0.0] * len(tokens) + list(scores.values()) + [0.0] * len(special)
    tokens += [*scores, *(text for text, _ in special)]
    types += [NORMAL] * len(scores) + [kind for _, kind in special]
    return build("llama", tokens, types, scores=values, **more)


def build(model, tokens, types, **more):
    metadata = {"tokenizer.ggml.model": model, "tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": types}
    general = {key.replace("_", ".", 1): more.pop(key) for key in list(more) if key.startswith("general_")}
    return Tokenizer.from_metadata(metadata | general | {f"tokenizer.ggml.{key}": value for key, value in more.items()})


def pieces(tokenizer, text, **how):
    """Return the bytes of each token of `text`, without BOS and EOS."""
    return [tokenizer.token_bytes(token) for token in tokenizer.encode(text, add_special=False, **how)]
