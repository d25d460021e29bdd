"""Choose the next token from logits: a chain of small stages in the request's order (samplers.SAMPLERS), then one draw.

Logit biases come first. Axis: V = n_vocab.
"""

import math
import secrets

import numpy as np

from llamacy.errors import LlamacyError, RequestError
from llamacy.generate.samplers import MIROSTAT, SAMPLERS
from llamacy.generate.samplers.candidates import Candidates, NoChoice, likeliest, uniform
from llamacy.generate.samplers.dry import NONE
from llamacy.generate.samplers.mirostat import next_mu
from llamacy.generate.samplers.params import sampler_names
from llamacy.kernels.text import sampling as vocabulary

NO_CHOICE = "no token can be chosen: "
FORBIDDEN = NO_CHOICE + "what the request asks for (logit_bias, penalties, a grammar) forbids every one"
NOT_FINITE = NO_CHOICE + "the model's logits are not finite numbers; is the model file damaged?"

# Choices that a constraint may refuse before all tokens are looked at.
TRIES = 4


class Sampler:
    """One request's sampler: its parameters and its own random numbers, so that no neighbour changes its text."""

    def __init__(self, params, n_vocab, eog_ids=(), breakers=NONE):
        """`eog_ids`: the tokens that `ignore_eos` forbids; `breakers`: where sequences end, for dry.

        RequestError when a biased id is not in the vocabulary.
        """
        self.params, self.n_vocab, self.breakers = params, n_vocab, breakers
        self.seed = secrets.randbits(32) if params.seed == -1 else params.seed
        self.bias = _bias(params, n_vocab, eog_ids)
        self.mu = 2 * params.mirostat_tau
        names = [name for name in sampler_names(params.samplers) if SAMPLERS[name].is_on(params)]
        changes = None if params.mirostat else _before_greedy(names, params)
        self._is_greedy = changes is not None
        self._stages = [SAMPLERS[name].apply for name in (changes if self._is_greedy else names)]
        if params.mirostat:
            self._stages = [MIROSTAT[params.mirostat]]
        # What min_p drops next, the first top_p need not sort.
        self.min_p_after_top_p = "top_p" in names and names[names.index("top_p") + 1 :][:1] == ["min_p"]
        self._random = self._chances = self._chance = None
        self.drawn_from = None  # the Candidates of the last draw, None after a greedy choice

    def sample(self, logits, history, constraint=None):
        """Return the id of the next token.

        logits: (V) float32, C-contiguous, writable, in the end as it was; history: all ids before it, oldest first, for
        the penalties. constraint: what says which tokens may come (constraint.Constraint): most choices are allowed, so
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
        self._chance = None
        chosen = self._choose(logits, history)
        if constraint is not None and not constraint.allows(chosen):
            chosen = self._choose_allowed(chosen, logits.copy(), history, constraint)
        if self.params.mirostat:
            self.mu = next_mu(self.mu, self.probability_of(chosen), self.params)
        return chosen

    def _choose_allowed(self, chosen, row, history, constraint):
        """Return a token that the constraint allows; `row`: a copy of the logits, `chosen` a token that it does not."""
        original = row.copy()
        for _ in range(TRIES):
            row[chosen] = -math.inf
            chosen = self._choose(row, history)
            if constraint.allows(chosen):
                return chosen
        return self._choose(np.where(constraint.mask(), original, np.float32(-math.inf)), history)

    def _choose(self, logits, history):
        candidates = Candidates(logits)
        try:
            if self.bias is not None:
                ids, values = self.bias
                np.add.at(candidates.change(ids), ids, values)
            for stage in self._stages:
                stage(candidates, self, history)
            if self._is_greedy:
                self.drawn_from = None
                return likeliest(candidates.row)
            if candidates.ids is None:
                candidates.make_list()
        finally:
            candidates.restore()
        self.drawn_from = candidates
        return self._draw(candidates)

    def _draw(self, candidates):
        """Draw by probability: one random number per token, whatever is left to choose from."""
        # A number below 1 times the last sum is, rounded too, below that sum: it always falls on a possible token.
        sums = candidates.weights().cumsum()
        return int(candidates.ids[sums.searchsorted(self._uniform() * sums[-1], "right")])

    def _uniform(self):
        if self._random is None:
            self._random = uniform(self.seed)
        return self._random()

    def chance(self):
        """Return a number in [0, 1), the same for all choices of one token: xtc's own, independent of the draws."""
        if self._chances is None:
            self._chances = uniform([self.seed, 1])
        if self._chance is None:
            self._chance = self._chances()
        return self._chance

    def probability_of(self, token):
        """Return the probability that the last chosen token had in its draw."""
        if self.drawn_from is None:
            return 1.0
        return float(self.drawn_from.probabilities()[self.drawn_from.ids == token].sum())

    def likely(self, chosen, n):
        """Return [(id, probability)] of the n likeliest tokens of the last draw, in which `chosen` was drawn."""
        if self.drawn_from is None:
            return [(chosen, 1.0)][:n]
        ids, p = self.drawn_from.ids, self.drawn_from.probabilities()
        order = np.lexsort((ids, -p))[:n]
        order = order[p[order] > 0]
        return list(zip(ids[order].tolist(), p[order].tolist(), strict=True))


def _before_greedy(names, params):
    """Return the samplers after which the chain `names` can only end with the likeliest token of the whole row.

    None where it may end otherwise: the chain must be run.
    """
    if params.temperature > 0 or params.dynatemp_range > 0 or "temperature" not in names:
        return None
    before = names[: names.index("temperature")]
    n = next((i for i, name in enumerate(before) if name not in ("penalties", "dry")), len(before))
    return before[:n] if all(SAMPLERS[name].keeps_top for name in before[n:]) else None


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
