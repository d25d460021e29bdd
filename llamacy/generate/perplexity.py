"""How surprised a model is by a text, by llama.cpp's protocol.

The text is cut into windows of N tokens; in each, the second half is scored, so that every scored token has at least
N/2 tokens before it. Where the model wants a BOS it takes the place of the window's first token.
(Protocol: llama.cpp, tools/perplexity, and https://huggingface.co/docs/transformers/perplexity.)
"""

import math
from dataclasses import dataclass

import numpy as np

from llamacy.errors import LlamacyError

# Logits held at once, in numbers: 32 MB, whatever the vocabulary.
MAX_LOGITS = 1 << 23


@dataclass
class Score:
    """Sums over the scored tokens: their count, negative log-likelihoods (nats) and squares of those."""

    n_tokens: int = 0
    nll: float = 0.0
    nll_squared: float = 0.0

    def add(self, nll):
        """Take in the negative log-likelihoods of some tokens, float64 (n,)."""
        self.n_tokens += len(nll)
        self.nll += float(nll.sum())
        self.nll_squared += float(np.square(nll).sum())

    @property
    def perplexity(self):
        """exp(mean negative log-likelihood)."""
        return math.exp(self.nll / self.n_tokens)

    @property
    def error(self):
        """The perplexity's standard error, from the spread of the tokens' log-likelihoods."""
        mean = self.nll / self.n_tokens
        variance = max(self.nll_squared / self.n_tokens - mean * mean, 0.0)
        return self.perplexity * math.sqrt(variance / max(self.n_tokens - 1, 1))


def cross_entropy(logits, targets):
    """Return -log softmax(logits)[targets], float64 (n,); logits are float32 (n, n_vocab) and overwritten."""
    picked = logits[np.arange(len(targets)), targets].astype(np.float64)
    highest = logits.max(axis=1, keepdims=True)
    np.exp(np.subtract(logits, highest, out=logits), out=logits)
    return highest[:, 0] + np.log(logits.sum(axis=1, dtype=np.float64)) - picked


def scored_rows(session, window, bos, n_vocab):
    """Run a window of token ids through slot 0; yield (logits f32 (n, n_vocab), targets) of its second half, in parts.

    `bos` replaces the window's first token where it is not None. The logits at position i predict token i + 1: targets
    are those tokens' ids. A part is MAX_LOGITS numbers at most, so that no window's logits are ever held together.
    """
    first, end = len(window) // 2, len(window) - 1
    inputs = window[:end] if bos is None else [bos, *window[1:end]]
    rows = max(1, min(session.max_batch, MAX_LOGITS // n_vocab))
    position = 0
    while position < end:
        stop = min(position + session.max_batch, first) if position < first else min(position + rows, end)
        scored = range(stop - position) if position >= first else range(0)
        slots = [0] * (stop - position)
        logits = session.step(inputs[position:stop], range(position, stop), slots, scored)
        if scored:
            yield logits, window[position + 1 : stop + 1]
        position = stop


def score_window(session, window, bos, n_vocab, score):
    """Run one window of token ids through slot 0 and add its second half's tokens to `score`; see scored_rows."""
    for logits, targets in scored_rows(session, window, bos, n_vocab):
        score.add(cross_entropy(logits, targets))


def bos_of(tokenizer):
    """Return the token that takes the place of a window's first one, None where the model wants none."""
    return tokenizer.bos_id if tokenizer.add_bos else None


def measure(model, tokens, n_ctx, progress=None):
    """Return the Score of `tokens` (ids) in windows of `n_ctx`; `progress(i, score)` is called after each window."""
    bos = bos_of(model.tokenizer)
    session, score = model.new_session(1, n_ctx), Score()
    for i in range(len(tokens) // n_ctx):
        score_window(session, tokens[i * n_ctx : (i + 1) * n_ctx], bos, model.config.n_vocab, score)
        if progress:
            progress(i + 1, score)
    return score


def read_tokens(model, path, n_ctx, n_chunks):
    """Return the ids of the first `n_chunks` windows (None: all) of a text file; LlamacyError if there is not one."""
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
    except UnicodeDecodeError as error:
        raise LlamacyError(f"{path}: not UTF-8 text at byte {error.start}; convert it first, e.g. with iconv") from None
    tokens = model.tokenizer.encode(text, parse_special=False)
    if len(tokens) < n_ctx:
        raise LlamacyError(f"{path}: {len(tokens)} tokens, wanted at least one window of {n_ctx}: try a smaller -c")
    return tokens if n_chunks is None else tokens[: n_chunks * n_ctx]
