"""Stand-ins that are simple enough to compute by hand: a tokenizer of bytes."""

import re

BOS, EOS, END = 256, 257, 258
SPECIALS = {"<s>": BOS, "</s>": EOS, "<|im_end|>": END}
SPLIT = re.compile("(" + "|".join(map(re.escape, SPECIALS)) + ")")


class ByteTokenizer:
    """Every byte is its own token; `<s>`, `</s>` and `<|im_end|>` are one token each."""

    n_vocab = 259
    bos_id, eos_id = BOS, EOS
    eog_ids = frozenset({EOS, END})

    def __init__(self, add_bos=False):
        self.add_bos = add_bos

    def encode(self, text, add_special=True, parse_special=True):
        ids = [BOS] if add_special and self.add_bos else []
        for part in SPLIT.split(text):
            ids += [SPECIALS[part]] if part in SPECIALS else part.encode()
        return ids

    def decode(self, ids, special=False):
        return b"".join(self.token_bytes(i) for i in ids).decode(errors="replace")

    def token_bytes(self, token):
        return bytes([token]) if token < 256 else next(k for k, v in SPECIALS.items() if v == token).encode()


def shown(sample, tokenizer=None):
    """Return (the text not trained, the text trained) of a sample, specials written out."""
    tokenizer = tokenizer or ByteTokenizer()
    pick = [tokenizer.decode([i for i, t in zip(sample.ids, sample.trained, strict=True) if t == flag])
            for flag in (False, True)]  # fmt: skip
    return tuple(pick)
