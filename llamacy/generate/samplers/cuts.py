"""Stages that leave tokens out: top_k, typ_p, top_p, min_p, top_n_sigma and xtc, by llama.cpp's definitions.

Each sees only the candidates that are left and renormalises over them. All but top_k and top_n_sigma leave at least
min_keep, where there are so many.
"""

import math

import numpy as np

from llamacy.generate.samplers.candidates import EDGE, likeliest
from llamacy.kernels.text import sampling as vocabulary


def keep_top_k(candidates, sampler, history):
    """Keep the k likeliest."""
    k = sampler.params.top_k
    if candidates.ids is None:
        if k < len(candidates.row):
            candidates.take(*vocabulary.top_k(candidates.row, k), is_sorted=True)
    elif k < candidates.count:
        candidates.sort()
        candidates.keep_first(k)


def keep_typical(candidates, sampler, history):
    """Keep those whose surprise is nearest to the entropy, until they make up more than typical_p together.

    Meister et al., Locally Typical Sampling: https://arxiv.org/abs/2202.00666
    """
    params = sampler.params
    candidates.make_list()
    p = candidates.probabilities()
    surprise = -np.log(np.maximum(p, 1e-300))
    order = np.argsort(np.abs(surprise - (p * surprise).sum()), kind="stable")
    n = np.searchsorted(np.cumsum(p[order]), params.typical_p + EDGE, side="right") + 1
    candidates.keep(np.sort(order[: max(n, params.min_keep)]))


def keep_top_p(candidates, sampler, history):
    """Keep the likeliest until they make up at least top_p together."""
    params = sampler.params
    log_total = _list_for_top_p(candidates, sampler) if candidates.ids is None else None
    candidates.sort()
    sums = candidates.weights().cumsum()
    total = sums[-1] if log_total is None else math.exp(log_total - candidates.top)
    n = sums.searchsorted((params.top_p - EDGE) * total) + 1
    candidates.keep_first(n if n > params.min_keep else params.min_keep)


def _list_for_top_p(candidates, sampler):
    """List those of a whole vocabulary that top_p can keep, so that no more are sorted; return its log-sum-exp.

    The tokens with a probability below (1 - top_p) / V make up less than 1 - top_p together, so the set is full without
    them. Where min_p comes next, what it drops need not be sorted either.
    """
    params, row = sampler.params, candidates.row
    top, log_total = row[likeliest(row)], vocabulary.log_sum_exp(row)
    if params.min_keep > 1:
        candidates.make_list()
        return log_total
    floor = log_total + math.log((1 - params.top_p) / len(row)) - 1e-3
    if sampler.min_p_after_top_p:
        floor = max(floor, top + math.log(params.min_p) - 1e-3)
    candidates.make_list(min(floor, top))
    return log_total


def keep_min_p(candidates, sampler, history):
    """Keep those at least min_p times as likely as the likeliest."""
    params = sampler.params
    below = math.log(params.min_p) - EDGE
    if candidates.ids is None:
        row = candidates.row
        candidates.make_list(row[likeliest(row)] + below if params.min_keep <= 1 else -math.inf)
    kept = candidates.values >= candidates.top + below
    n = np.count_nonzero(kept)
    if n < params.min_keep:
        candidates.sort()
        n = params.min_keep
    if candidates.is_sorted:
        candidates.keep_first(n)
    else:
        candidates.keep(kept)


def keep_top_n_sigma(candidates, sampler, history):
    """Forbid those whose logit is more than n standard deviations (of all finite logits) below the largest.

    Tang et al., Top-n sigma: https://arxiv.org/abs/2411.07641. They stay candidates, at minus infinity.
    """
    candidates.make_list()
    if candidates.count < 2:
        return
    values = candidates.values
    finite = values[values > -math.inf]
    kept = values >= values.max() - sampler.params.top_n_sigma * finite.std() - EDGE
    count = candidates.count
    candidates.keep(kept)
    candidates.silent = count - len(candidates.ids)


def exclude_top_choices(candidates, sampler, history):
    """XTC: by chance, drop all tokens of at least xtc_threshold but the least likely of them.

    https://github.com/oobabooga/text-generation-webui/pull/6335. The chance has random numbers of its own, so that the
    draws are those of a request without it.
    """
    params = sampler.params
    candidates.make_list()
    if candidates.count < 2 or sampler.chance() > params.xtc_probability:
        return
    candidates.sort()
    above = int((candidates.probabilities() >= params.xtc_threshold - EDGE).sum())
    if above > 1 and candidates.count - (above - 1) >= params.min_keep:
        silent = candidates.silent
        candidates.keep(slice(above - 1, None))
        candidates.silent = silent
