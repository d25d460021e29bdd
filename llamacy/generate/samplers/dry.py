"""DRY, "don't repeat yourself": tokens that would go on with a sequence that was there before are penalised, the longer
the sequence the more. By llama.cpp's definition, after https://github.com/oobabooga/text-generation-webui/pull/5677.
"""

import math
import threading
from collections import OrderedDict

import numpy as np

from llamacy.generate.samplers.penalties import match
from llamacy.kernels.text import sampling as vocabulary

# log of the largest f32: powers of dry_base end there
LOG_MAX = 88.7228391
# Of a breaker so many bytes count, and so many tokens behind the one that it begins in.
MAX_BYTES, MAX_TAIL = 40, 20
REMEMBERED = 16


def is_on(params):
    """Say whether the sampler does anything."""
    return params.dry_multiplier != 0 and params.dry_penalty_last_n != 0


def penalize_sequences(candidates, sampler, history):
    """Lower the logits of tokens that would go on with a repeated sequence of at least dry_allowed_length tokens.

    A sequence of length n before such a token costs it dry_multiplier * dry_base ** (n - dry_allowed_length). Sequences
    end at breakers; a token that holds a breaker is never penalised.
    """
    p = sampler.params
    window = history if p.dry_penalty_last_n < 0 else history[-p.dry_penalty_last_n :]
    if len(window) <= p.dry_allowed_length:
        return
    longest = sampler.breakers.tokens_since(window)
    if longest < p.dry_allowed_length:
        return
    window = np.array(window, np.int32)
    lengths = np.minimum(vocabulary.repeats(window)[:-1], longest)
    at = np.flatnonzero(lengths >= p.dry_allowed_length)
    # The longest sequence before each token decides: the last of equal ids in ascending order of length.
    at = at[np.argsort(lengths[at], kind="stable")]
    worst = dict(zip(window[at + 1].tolist(), lengths[at].tolist(), strict=True))
    ids = np.array(sorted(worst.keys() - sampler.breakers.single), np.int64)
    if not len(ids):
        return
    beyond = np.array([worst[token] for token in ids.tolist()], np.float64) - p.dry_allowed_length
    if p.dry_base > 1.000001:
        beyond = np.minimum(beyond, int(LOG_MAX / math.log(p.dry_base)))
    penalties = p.dry_multiplier * p.dry_base**beyond
    if candidates.ids is None:
        candidates.change(ids)[ids] -= penalties
        return
    hit, values = match(candidates.ids, ids, penalties)
    candidates.values[hit] -= values
    candidates.is_sorted = False


class Breakers:
    """The tokens at which a sequence ends: {id: tails}, the tokens behind it that make the breaker whole."""

    def __init__(self, tails):
        self._tails = tails
        self.single = frozenset(token for token, several in tails.items() if () in several)

    def tokens_since(self, window):
        """Return how many tokens there are behind the last breaker in `window`; all, where there is none."""
        for back, token in enumerate(reversed(window)):
            tails = self._tails.get(token)
            if tails is None:
                continue
            fitting = [len(tail) for tail in tails if len(tail) <= back and self._follows(window, back, tail)]
            if fitting:
                return back - max(fitting)
        return len(window)

    @staticmethod
    def _follows(window, back, tail):
        start = len(window) - back
        return tuple(window[start : start + len(tail)]) == tail


NONE = Breakers({})


def find_breakers(pieces, tokenizer, texts):
    """Return the Breakers of some texts: tokens that hold one of them, and tokens that end as one begins.

    pieces: the bytes of each token.
    """
    tails = {}
    for text in filter(None, texts):
        data = text.encode("utf-8", "surrogatepass")[:MAX_BYTES]
        for token, piece in enumerate(pieces):
            if data in piece:
                tails.setdefault(token, set()).add(())
        beginnings = tuple(data[:n] for n in range(1, len(data)))
        for token, piece in enumerate(pieces) if beginnings else ():
            if not piece.endswith(beginnings) or data in piece:
                continue
            for beginning in beginnings:
                if piece.endswith(beginning):
                    rest = data[len(beginning) :].decode("utf-8", "surrogateescape")
                    ids = tokenizer.encode(rest, add_special=False, parse_special=False)
                    tails.setdefault(token, set()).add(tuple(ids[:MAX_TAIL]))
    return Breakers(tails)


class BreakerTable:
    """A model's Breakers by their texts, the latest remembered. Safe to use from several threads."""

    def __init__(self, tokenizer, n_vocab):
        self._tokenizer, self._n_vocab = tokenizer, n_vocab
        self._pieces, self._known, self._lock = None, OrderedDict(), threading.Lock()

    def of(self, params):
        """Return the Breakers that a request's dry sampler needs."""
        return self.get(params.dry_sequence_breakers) if is_on(params) and "dry" in params.samplers else NONE

    def get(self, texts):
        """Return the Breakers of a tuple of texts."""
        with self._lock:
            if texts not in self._known:
                if self._pieces is None:
                    known = range(min(self._n_vocab, self._tokenizer.n_vocab))
                    self._pieces = [self._tokenizer.token_bytes(token) for token in known]
                self._known[texts] = find_breakers(self._pieces, self._tokenizer, texts)
                while len(self._known) > REMEMBERED:
                    self._known.popitem(last=False)
            self._known.move_to_end(texts)
            return self._known[texts]
