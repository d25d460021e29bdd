"""Choose the next token from logits: a chain of small stages in llama.cpp's order, each a function in STAGES.

Logit bias, penalties, top_k, typical_p, top_p, min_p, temperature, then one draw. Stages after top_k see only the
candidates that are left, and each renormalises over them. Axis: V = n_vocab.
"""

import math
import secrets
from dataclasses import dataclass

import numpy as np

from llamacy.errors import LlamacyError, RequestError
from llamacy.kernels.text import sampling as vocabulary

NO_CHOICE = "no token can be chosen: "
FORBIDDEN = NO_CHOICE + "what the request asks for (logit_bias, penalties, a grammar) forbids every one"
NOT_FINITE = NO_CHOICE + "the model's logits are not finite numbers; is the model file damaged?"

FLOAT32_MAX = 3.4e38
# Choices that a constraint may refuse before all tokens are looked at.
TRIES = 4

# What each field may hold: (type, lowest, highest); None leaves a side open.
LIMITS = {
    "temperature": (float, None, None),
    "top_k": (int, None, None),
    "top_p": (float, 0, 1),
    "min_p": (float, 0, 1),
    "typical_p": (float, 0, 1),
    "repeat_penalty": (float, 1e-6, None),
    "repeat_last_n": (int, -1, None),
    "presence_penalty": (float, None, None),
    "frequency_penalty": (float, None, None),
    "seed": (int, -1, 2**64 - 1),
    "n_probs": (int, 0, None),
}


@dataclass(frozen=True)
class SamplingParams:
    """How one request chooses its tokens; a value outside LIMITS is a RequestError that names the field."""

    temperature: float = 0.8  # <= 0: always the likeliest token, the lowest id on ties
    top_k: int = 40  # <= 0: all
    top_p: float = 0.95
    min_p: float = 0.05
    typical_p: float = 1.0
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64  # 0: no penalties, -1: the whole context
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int = -1  # -1: a new one for each request
    logit_bias: tuple = ()  # of (id, bias); a bias of minus infinity forbids the token
    ignore_eos: bool = False
    n_probs: int = 0

    def __post_init__(self):
        for name, (kind, low, high) in LIMITS.items():
            check_number(name, getattr(self, name), kind, low, high)


def check_number(name, value, kind, low, high):
    """Raise RequestError unless `value` is a whole number (or any, where `kind` is float) from `low` to `high`."""
    kinds = (int,) if kind is int else (int, float)
    fine = isinstance(value, kinds) and not isinstance(value, bool) and abs(value) <= FLOAT32_MAX
    if fine and (low is None or value >= low) and (high is None or value <= high):
        return
    noun = "a whole number" if kind is int else "a number"
    sides = [f"at least {low}" if low is not None else "", f"at most {high}" if high is not None else ""]
    wanted = " ".join([noun, " and ".join(filter(None, sides))]).strip()
    raise RequestError(f"{name}: wanted {wanted}, got {value!r:.60}")


class Candidates:
    """The tokens still in the running: `ids` (n) and their logits `values` (n, float64).

    `row` is the whole vocabulary's logits (V, float32). `log_total`, where not None, is the log-sum-exp to normalise
    by: it stands for tokens that were left out early because no later stage could keep them.
    """

    __slots__ = ("row", "ids", "values", "is_sorted", "log_total", "_changed")

    def __init__(self, row):
        self.row, self._changed = row, []
        self.ids = self.values = self.log_total = None
        self.is_sorted = False

    def change(self, ids):
        """Return the row to change at `ids`, until restore(): copying it would cost more than everything else."""
        self._changed.append((ids, self.row[ids]))
        return self.row

    def restore(self):
        """Put back what was changed in the row."""
        for ids, values in reversed(self._changed):
            self.row[ids] = values

    def keep(self, which):
        """Keep the candidates at `which`: a slice, a mask or ascending positions."""
        self.ids, self.values = self.ids[which], self.values[which]

    @property
    def top(self):
        """The largest logit."""
        return self.values[0] if self.is_sorted else self.values.max()

    def cumulated(self):
        """Return the running sums of the softmax over the candidates (n), float64."""
        sums = np.exp(self.values - self.top).cumsum()
        return sums / (sums[-1] if self.log_total is None else math.exp(self.log_total - self.top))

    def sort(self):
        """Order by logit, largest first, the lower id first on ties."""
        if not self.is_sorted:
            self.keep(np.lexsort((self.ids, -self.values)))
            self.is_sorted = True


class NoChoice(Exception):
    """No candidate has a finite logit."""


def likeliest(row):
    """Return the id of the largest logit of row (V), the lowest on ties; NoChoice when there is none."""
    best = vocabulary.argmax(row)
    if best < 0 or not math.isfinite(row[best]):
        raise NoChoice
    return int(best)


def add_bias(candidates, sampler, history):
    if sampler.bias is not None:
        ids, values = sampler.bias
        np.add.at(candidates.change(ids), ids, values)


def penalize_repeats(candidates, sampler, history):
    p = sampler.params
    if p.repeat_last_n == 0 or (p.repeat_penalty, p.presence_penalty, p.frequency_penalty) == (1, 0, 0):
        return
    window = np.array(history if p.repeat_last_n < 0 else history[-p.repeat_last_n :], np.int32)
    vocabulary.penalize(candidates.change(window), window, p.repeat_penalty, p.frequency_penalty, p.presence_penalty)


def keep_top_k(candidates, sampler, history):
    p, row = sampler.params, candidates.row
    if 0 < p.top_k < len(row):
        candidates.ids, values = vocabulary.top_k(row, p.top_k)
        candidates.values = values.astype(np.float64)
        candidates.is_sorted = True
        if not math.isfinite(candidates.values[0]):
            raise NoChoice
        return
    floor = _floor(candidates, p)
    candidates.ids = np.flatnonzero(row >= floor)
    candidates.values = row[candidates.ids].astype(np.float64)


def _floor(candidates, params):
    """Return a logit below which no token can survive the later stages: saves sorting a whole vocabulary.

    The tokens with a probability below (1 - top_p) / V make up less than 1 - top_p together, so top_p's set is full
    without them; min_p's bound is its own. Typical sampling can keep any token: minus infinity.
    """
    row, floor = candidates.row, -math.inf
    top = row[likeliest(row)]
    if params.typical_p < 1:
        return floor
    if params.min_p > 0:
        floor = top + math.log(params.min_p) - 1e-3
    if params.top_p < 1:
        candidates.log_total = vocabulary.log_sum_exp(row)
        floor = max(floor, candidates.log_total + math.log((1 - params.top_p) / len(row)) - 1e-3)
    return np.float32(floor)


def keep_typical(candidates, sampler, history):
    if sampler.params.typical_p >= 1:
        return
    p = np.diff(candidates.cumulated(), prepend=0)
    surprise = -np.log(np.maximum(p, 1e-300))
    order = np.argsort(np.abs(surprise - (p * surprise).sum()), kind="stable")
    n = np.searchsorted(np.cumsum(p[order]), sampler.params.typical_p, side="right") + 1
    candidates.keep(np.sort(order[:n]))


def keep_top_p(candidates, sampler, history):
    if sampler.params.top_p < 1:
        candidates.sort()
        candidates.keep(slice(candidates.cumulated().searchsorted(sampler.params.top_p) + 1))
        candidates.log_total = None


def keep_min_p(candidates, sampler, history):
    if sampler.params.min_p > 0:
        candidates.keep(candidates.values >= candidates.top + math.log(sampler.params.min_p))


def divide_by_temperature(candidates, sampler, history):
    candidates.values = candidates.values / sampler.params.temperature


# Before the split every stage may change the whole row; a greedy choice needs no more than these.
ROW_STAGES = (add_bias, penalize_repeats)
STAGES = (keep_top_k, keep_typical, keep_top_p, keep_min_p, divide_by_temperature)


class Sampler:
    """One request's sampler: its parameters and its own random numbers, so that no neighbour changes its text."""

    def __init__(self, params, n_vocab, eog_ids=()):
        """`eog_ids`: the tokens that `ignore_eos` forbids. RequestError when a biased id is not in the vocabulary."""
        self.params = params
        self.seed = secrets.randbits(32) if params.seed == -1 else params.seed
        self.bias = _bias(params, n_vocab, eog_ids)
        self._random = None

    def sample(self, logits, history, constraint=None):
        """Return the id of the next token.

        logits: (V) float32, C-contiguous, writable, in the end as it was; history: all ids before it, oldest first, for
        the penalties. constraint: what says which tokens may come (grammar.Constraint): most choices are allowed, so
        first a few are tried, and only then all tokens looked at.

        RequestError when the request leaves no token to choose, LlamacyError when the model gave none.
        """
        try:
            # Biases and temperatures may be beyond f32: what comes of it is looked at, not warned of.
            with np.errstate(all="ignore"):
                return self._sample(logits, history, constraint)
        except NoChoice:
            pass
        top = logits.max()  # NaN where any is
        raise RequestError(FORBIDDEN) if math.isfinite(top) else LlamacyError(NOT_FINITE)

    def _sample(self, logits, history, constraint):
        chosen = self._choose(logits, history)
        if constraint is None or constraint.allows(chosen):
            return chosen
        row = logits.copy()
        for _ in range(TRIES):
            row[chosen] = -math.inf
            chosen = self._choose(row, history)
            if constraint.allows(chosen):
                return chosen
        return self._choose(np.where(constraint.mask(), logits, np.float32(-math.inf)), history)

    def _choose(self, logits, history):
        candidates = Candidates(logits)
        try:
            for stage in ROW_STAGES:
                stage(candidates, self, history)
            if self.params.temperature <= 0:
                return likeliest(candidates.row)
            for stage in STAGES:
                stage(candidates, self, history)
        finally:
            candidates.restore()
        return self._draw(candidates)

    def _draw(self, candidates):
        """Draw by probability: one random number per token, whatever is left to choose from."""
        # The last sum is exactly 1: a number in [0, 1) always falls on a possible token.
        return int(candidates.ids[candidates.cumulated().searchsorted(self._uniform(), side="right")])

    def _uniform(self):
        if self._random is None:
            # Imported late: a greedy run does not pay for it.
            from numpy.random import default_rng

            self._random = default_rng(self.seed).random
        return self._random()


def _bias(params, n_vocab, eog_ids):
    """Return the logit biases as (ids, float32 values), None without any."""
    pairs = list(params.logit_bias)
    for token, _ in pairs:
        if not 0 <= token < n_vocab:
            raise RequestError(f"logit_bias: wanted a token id from 0 to {n_vocab - 1}, got {token}")
    pairs += [(token, -math.inf) for token in sorted(eog_ids) if params.ignore_eos]
    if not pairs:
        return None
    ids, values = zip(*pairs, strict=True)
    return np.array(ids), np.array(values, np.float32)


def token_probs(logits, token, n):
    """Return (log-probability of `token`, [(id, log-probability)] of the n likeliest), of the whole softmax (V)."""
    log_total = vocabulary.log_sum_exp(logits)
    ids, values = vocabulary.top_k(logits, n)
    top = (values - np.float64(log_total)).tolist()
    return float(logits[token] - np.float64(log_total)), list(zip(ids.tolist(), top, strict=True))
