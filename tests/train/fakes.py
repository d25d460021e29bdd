"""Stand-ins that are simple enough to compute by hand: a tokenizer of bytes, a trainer of four numbers."""

import re
from typing import NamedTuple

import numpy as np

from llamacy.formats.adapter import Adapter, LoraPair
from llamacy.train.health import astray

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


class StepResult(NamedTuple):
    loss: float
    grad_norm: float
    tokens: int
    trained_tokens: int
    flops: int = 1000
    more: dict = {}


class FakeTrainer:
    """Moves four numbers towards the mean of what it sees, with momentum: any change of order or rate shows."""

    def __init__(self):
        self.w, self.m, self.n_steps = np.zeros(4, np.float32), np.zeros(4, np.float32), 0
        self.seen, self.rates = [], []
        self.good_loss, self.good = np.inf, (self.w, 0)

    def step(self, micro_batches, lr):
        samples = [sample for batch in micro_batches for sample in batch]
        self.seen.append([[sample.ids.tolist() for sample in batch] for batch in micro_batches])
        self.rates.append(lr)
        result, pull = self.probe(samples), self.pull(samples)
        if astray(result.loss, result.grad_norm):
            return result
        if result.loss <= self.good_loss:
            self.good = self.w, self.n_steps
        self.m = np.float32(0.9) * self.m + np.float32(0.1) * pull
        self.w = self.w + np.float32(lr) * self.m
        self.n_steps += 1
        return result

    def pull(self, samples):
        return np.mean([np.resize(sample.ids, 4) for sample in samples], axis=0, dtype=np.float32) / 256 - self.w

    def probe(self, samples):
        pull = self.pull(samples)
        return StepResult(
            float(np.square(pull).sum()), float(np.abs(pull).max()), sum(len(s.ids) for s in samples),
            sum(s.n_trained for s in samples),
        )  # fmt: skip

    def rehearse(self, samples):
        self.probe(samples)

    def go_back(self):
        self.w, n_steps = self.good
        return n_steps

    def evaluate(self, batches):
        losses = [np.square(np.resize(s.ids, 4) / 256 - self.w).sum() for batch in batches for s in batch]
        return float(np.mean(losses)), len(losses)

    def adapter(self):
        pair = LoraPair(self.w.reshape(1, 4).copy(), np.ones((2, 1), np.float32))
        return Adapter("llama", {"blk.0.attn_q.weight": pair}, 1.0)

    def state(self):
        return {"w": self.w, "m": self.m, "n_steps": np.int64(self.n_steps)}

    def load_state(self, state):
        self.w, self.m, self.n_steps = state["w"], state["m"], state["n_steps"]
