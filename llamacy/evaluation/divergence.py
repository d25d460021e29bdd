"""How far a model's probabilities are from a reference's, token by token, by llama.cpp's definitions.

P is the reference's distribution over the next token, Q the model's; all logarithms are natural.
    KL(P||Q) = sum_i P_i (ln P_i - ln Q_i)        dp = Q(token) - P(token) of the token that stands in the text
Sums are f64; of each token two f32 stay, for the quantiles.
"""

import math
from array import array
from typing import NamedTuple

import numpy as np

QUANTILES = (0.999, 0.99, 0.95, 0.9, 0.5, 0.1, 0.05, 0.01, 0.001)


class Compared(NamedTuple):
    """n tokens: KL(P||Q) f64 (n,), the token's -ln Q and -ln P f64 (n,), is P's likeliest token Q's too, bool (n,)."""

    kl: np.ndarray
    nll: np.ndarray
    base_nll: np.ndarray
    same_top: np.ndarray


class Estimate(NamedTuple):
    """A mean, or what is made of one, and its standard error."""

    value: float
    error: float


def log_norms(logits):
    """Return ln sum exp of each row, f64 (n,), so that logits - it are log-probabilities; logits f32 (n, n_vocab)."""
    highest = logits.max(axis=1)
    sums = [np.exp(row - top).sum(dtype=np.float64) for row, top in zip(logits, highest, strict=True)]
    return highest + np.log(np.array(sums))


class Divergence:
    """What was compared so far: `add` takes Compared tokens in, the properties say what they come to."""

    def __init__(self):
        self._kl, self._dp = array("f"), array("f")
        self.n_tokens = self._same = 0
        # sums of: nll, base nll, their squares and product; KL and its square; dp, its square and fourth power
        self._sums = np.zeros(10)

    def add(self, compared):
        """Take in a Compared."""
        kl, nll, base, same = compared
        dp = np.exp(-nll) - np.exp(-base)
        terms = (nll, base, nll * nll, base * base, nll * base, kl, kl * kl, dp, dp**2, dp**4)
        self._sums += [float(term.sum(dtype=np.float64)) for term in terms]
        self.n_tokens += len(kl)
        self._same += int(np.count_nonzero(same))
        self._kl.extend(kl.astype(np.float32))
        self._dp.extend(dp.astype(np.float32))

    def _estimate(self, total, squares):
        """The mean of n values with these sums, and its standard error, 0 of one value."""
        n = self.n_tokens
        mean = float(total) / n
        return Estimate(mean, math.sqrt(max(squares / n - mean * mean, 0.0) / max(n - 1, 1)))

    def _covariance(self):
        """Of the means of nll and base nll."""
        n, (a, b, ab) = self.n_tokens, self._sums[[0, 1, 4]]
        return (ab / n - (a / n) * (b / n)) / max(n - 1, 1)

    @property
    def perplexity(self):
        """The model's: exp(mean -ln Q)."""
        mean = self._estimate(*self._sums[[0, 2]])
        return Estimate(math.exp(mean.value), math.exp(mean.value) * mean.error)

    @property
    def base_perplexity(self):
        """The reference's: exp(mean -ln P)."""
        mean = self._estimate(*self._sums[[1, 3]])
        return Estimate(math.exp(mean.value), math.exp(mean.value) * mean.error)

    @property
    def log_ratio(self):
        """ln(perplexity / base_perplexity); its error counts that both are of the same tokens."""
        own, base = self._estimate(*self._sums[[0, 2]]), self._estimate(*self._sums[[1, 3]])
        variance = own.error**2 + base.error**2 - 2 * self._covariance()
        return Estimate(own.value - base.value, math.sqrt(max(variance, 0.0)))

    @property
    def difference(self):
        """perplexity - base_perplexity."""
        own, base = self.perplexity, self.base_perplexity
        variance = own.error**2 + base.error**2 - 2 * own.value * base.value * self._covariance()
        return Estimate(own.value - base.value, math.sqrt(max(variance, 0.0)))

    @property
    def correlation(self):
        """Of the tokens' ln Q and ln P, -1 to 1; NaN where one of them is the same for all tokens."""
        errors = self._estimate(*self._sums[[0, 2]]).error * self._estimate(*self._sums[[1, 3]]).error
        return self._covariance() / errors if errors else math.nan

    @property
    def kl(self):
        """The mean KL(P||Q)."""
        return self._estimate(*self._sums[[5, 6]])

    @property
    def dp(self):
        """The mean dp, a share of 1."""
        return self._estimate(*self._sums[[7, 8]])

    @property
    def rms_dp(self):
        """The root of the mean dp^2."""
        mean = self._estimate(*self._sums[[8, 9]])
        root = math.sqrt(mean.value)
        return Estimate(root, mean.error / (2 * root) if root else 0.0)

    @property
    def same_top(self):
        """The share of tokens where both find the same token likeliest."""
        return share(self._same, self.n_tokens)

    def kl_quantiles(self, shares=QUANTILES):
        """Return KL's quantiles f64 (len(shares),), between neighbours where a share falls between two tokens."""
        return np.quantile(np.frombuffer(self._kl, np.float32).astype(np.float64), shares)

    def dp_quantiles(self, shares=QUANTILES):
        """Return dp's quantiles in the same way."""
        return np.quantile(np.frombuffer(self._dp, np.float32).astype(np.float64), shares)


def share(n_right, n):
    """Return n_right of n as an Estimate: p and sqrt(p (1 - p) / (n - 1))."""
    p = n_right / n
    return Estimate(p, math.sqrt(p * (1 - p) / max(n - 1, 1)))
