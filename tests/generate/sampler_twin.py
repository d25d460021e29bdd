"""The samplers once more, in plain NumPy and by their definitions alone: whole lists, sorted each time, no short cuts.

A chain goes over (ids, logits f64) of all candidates, those at minus infinity included. TWINS has a function for each
sampler: (ids, x, params, history, more) -> (ids, x); `more` holds `excludes` (whether xtc's chance came) and `breakers`
(token sequences that end a repetition).
"""

import math

import numpy as np


def softmax(x):
    weights = np.exp(x - x.max())
    return weights / weights.sum()


def by_likelihood(ids, x):
    order = np.lexsort((ids, -x))
    return ids[order], x[order]


def window_of(history, n):
    return history if n < 0 else history[max(0, len(history) - n) :]


def penalties(ids, x, p, history, more):
    window = window_of(history, p.repeat_last_n)
    x = x.copy()
    for i, token in enumerate(ids):
        if token in window:
            x[i] = x[i] / p.repeat_penalty if x[i] > 0 else x[i] * p.repeat_penalty
            x[i] -= window.count(token) * p.frequency_penalty + p.presence_penalty
    return ids, x


def dry(ids, x, p, history, more):
    window = window_of(history, p.dry_penalty_last_n)
    n = len(window)
    if p.dry_multiplier == 0 or n <= p.dry_allowed_length:
        return ids, x
    longest = since_breaker(window, more["breakers"])
    single = {sequence[0] for sequence in more["breakers"] if len(sequence) == 1}
    x = x.copy()
    for i, token in enumerate(ids):
        # How long an end of the window is, at most, that came before this token earlier in the window.
        lengths = []
        for j in range(1, n):
            if window[j] == token:
                length = 0
                while length < j and window[j - 1 - length] == window[n - 1 - length]:
                    length += 1
                lengths.append(min(length, longest))
        best = max(lengths, default=-1)
        if best >= p.dry_allowed_length and longest >= p.dry_allowed_length and token not in single:
            x[i] -= p.dry_multiplier * p.dry_base ** (best - p.dry_allowed_length)
    return ids, x


def since_breaker(window, breakers):
    for start in reversed(range(len(window))):
        ends = [start + len(b) for b in breakers if tuple(window[start : start + len(b)]) == tuple(b)]
        if ends:
            return len(window) - max(ends)
    return len(window)


def top_n_sigma(ids, x, p, history, more):
    if p.top_n_sigma <= 0 or len(x) < 2:
        return ids, x
    finite = x[np.isfinite(x)]
    deviation = math.sqrt(((finite - finite.mean()) ** 2).mean())
    return ids, np.where(x < x.max() - p.top_n_sigma * deviation, -np.inf, x)


def top_k(ids, x, p, history, more):
    ids, x = by_likelihood(ids, x)
    return (ids[: p.top_k], x[: p.top_k]) if p.top_k > 0 else (ids, x)


def typ_p(ids, x, p, history, more):
    if p.typical_p >= 1:
        return ids, x
    ids, x = by_likelihood(ids[np.isfinite(x)], x[np.isfinite(x)])
    q = softmax(x)
    surprise = -np.log(np.maximum(q, 1e-300))
    distance = np.abs(surprise - (q * surprise).sum())
    nearest = np.argsort(distance, kind="stable")
    n = max(int((np.cumsum(q[nearest]) <= p.typical_p).sum()) + 1, p.min_keep)
    return ids[nearest[:n]], x[nearest[:n]]


def top_p(ids, x, p, history, more):
    if p.top_p >= 1:
        return ids, x
    ids, x = by_likelihood(ids, x)
    n = max(int((np.cumsum(softmax(x)) < p.top_p).sum()) + 1, p.min_keep)
    return ids[:n], x[:n]


def min_p(ids, x, p, history, more):
    if p.min_p <= 0:
        return ids, x
    ids, x = by_likelihood(ids, x)
    q = softmax(x)
    n = max(int((q >= p.min_p * q.max()).sum()), p.min_keep)
    return ids[:n], x[:n]


def xtc(ids, x, p, history, more):
    if p.xtc_probability <= 0 or p.xtc_threshold > 0.5 or len(x) < 2 or not more["excludes"]:
        return ids, x
    ids, x = by_likelihood(ids, x)
    # At a threshold of 0 all are above it, but for those that no draw can take.
    last = int(((softmax(x) >= p.xtc_threshold) & (x > -np.inf)).sum()) - 1
    return (ids[last:], x[last:]) if last > 0 and len(x) - last >= p.min_keep else (ids, x)


def temperature(ids, x, p, history, more):
    t = p.temperature
    if p.dynatemp_range > 0:
        if len(x) < 2:
            return ids, x
        q = softmax(x)
        entropy = -sum(value * math.log(value) for value in q if value > 0) / math.log(len(x))
        low, high = max(0, t - p.dynatemp_range), t + p.dynatemp_range
        t = low + (high - low) * max(entropy, 0) ** p.dynatemp_exponent
    if t > 0:
        return ids, x / t
    return ids, np.where(ids == ids[x == x.max()].min(), x, -np.inf)


TWINS = {
    f.__name__: f for f in (penalties, dry, top_n_sigma, top_k, typ_p, top_p, min_p, xtc, temperature)
}  # fmt: skip


def distribution(logits, history, p, excludes=True, breakers=()):
    """Return the probability of each token (V), float64, that the chain of p.samplers leaves it."""
    ids, x = np.arange(len(logits)), logits.astype(np.float64)
    for token, bias in p.logit_bias:
        x[token] += bias
    for name in p.samplers:
        ids, x = TWINS[name](ids, x, p, list(history), {"excludes": excludes, "breakers": breakers})
    result = np.zeros(len(logits))
    result[ids] = softmax(x)
    return result


def mirostat(logits, p, mu):
    """Return what Mirostat 1 or 2 leaves of the logits at this mu, as `distribution` does."""
    ids, x = by_likelihood(*temperature(np.arange(len(logits)), logits.astype(np.float64), p, [], {}))
    q = softmax(x)
    if p.mirostat == 2:
        n = max(1, int(sum(value > 0 and -math.log2(value) <= mu for value in q)))
    elif p.temperature <= 0:
        n = 1
    else:
        s = slope(q)
        epsilon = s - 1
        n = int(max(1, (epsilon * 2**mu / (1 - len(x) ** -epsilon)) ** (1 / s)))
    result = np.zeros(len(logits))
    result[ids[:n]] = softmax(x[:n])
    return result


def slope(q):
    t = [math.log((i + 2) / (i + 1)) for i in range(min(99, len(q) - 1))]
    b = [math.log(q[i] / q[i + 1]) for i in range(len(t))]
    return sum(a * c for a, c in zip(t, b, strict=True)) / sum(a * a for a in t)
