"""Mirostat 1 and 2: keep the surprise of the text near a target, mirostat_tau bits a token.

Basu et al., https://arxiv.org/abs/2007.14966. As in llama.cpp they take the place of the whole chain: behind the logit
biases comes the temperature, then these. Each request has its own mu, the most surprise allowed, 2 tau at first.
"""

import math

import numpy as np

from llamacy.generate.samplers.candidates import EDGE, likeliest
from llamacy.generate.samplers.temperature import keep_likeliest
from llamacy.kernels.text import sampling as vocabulary

# The likeliest tokens from which Mirostat 1 estimates how steeply probabilities fall.
ESTIMATED_FROM = 100


def apply_mirostat(candidates, sampler, history):
    """Keep the k likeliest, k such that tokens so distributed have a surprise of mu (Mirostat 1)."""
    temperature, row = sampler.params.temperature, candidates.row
    if temperature <= 0:
        keep_likeliest(candidates)
        return
    candidates.take(*vocabulary.top_k(row, ESTIMATED_FROM), is_sorted=True)
    finite = candidates.values[candidates.values > -math.inf] / temperature
    k = zipf_count(finite, sampler.mu, sampler.n_vocab)
    candidates.take(*vocabulary.top_k(row, k), is_sorted=True)
    candidates.values /= temperature


def zipf_count(values, mu, n_vocab):
    """Return Mirostat 1's k, 1 to n_vocab, from the logits of the likeliest tokens, largest first.

    Probabilities are taken to fall as 1 / rank ** s; s is fitted by least squares to the ratios of neighbours.
    """
    ranks = np.arange(1, len(values))
    t = np.log((ranks + 1) / ranks)
    if not len(t):
        return 1
    s = float((t * -np.diff(values)).sum() / (t * t).sum())
    epsilon, log_n = s - 1, math.log(n_vocab)
    # epsilon / (1 - N ** -epsilon), which is 1 / log N at epsilon = 0; positive on both sides of it.
    ratio = epsilon / -math.expm1(-epsilon * log_n) if abs(epsilon) > 1e-9 and n_vocab > 1 else 1 / max(log_n, 1e-9)
    log_k = math.log(ratio) + mu * math.log(2)
    if s > 0:
        log_k /= s
    elif log_k != 0:
        log_k = math.copysign(math.inf, log_k)
    return n_vocab if log_k >= log_n else max(1, int(math.exp(max(log_k, 0))))


def apply_mirostat_v2(candidates, sampler, history):
    """Keep the tokens whose surprise is at most mu, the likeliest in any case (Mirostat 2)."""
    temperature, row = sampler.params.temperature, candidates.row
    if temperature <= 0:
        keep_likeliest(candidates)
        return
    scaled = row if temperature == 1 else row / np.float32(temperature)
    top = scaled[likeliest(scaled)]
    floor = vocabulary.log_sum_exp(scaled) - sampler.mu * math.log(2) - EDGE
    ids = np.flatnonzero(scaled >= np.float32(min(floor, top)))
    candidates.take(ids, scaled[ids])


def next_mu(mu, probability, params):
    """Return mu after a token of this probability among those kept."""
    return mu - params.mirostat_eta * (-math.log2(probability) - params.mirostat_tau)
