"""Penalties of repeated tokens: those of each token seen, by llama.cpp's definition."""

import numpy as np

from llamacy.kernels.text import sampling as vocabulary


def penalize_repeats(candidates, sampler, history):
    """Lower the logits of the last repeat_last_n tokens, prompt included.

    A token seen n > 0 times: x = x / repeat where x > 0, else x * repeat; then x -= n * frequency + presence.
    """
    p = sampler.params
    window = np.array(history if p.repeat_last_n < 0 else history[-p.repeat_last_n :], np.int32)
    if candidates.ids is None:
        row = candidates.change(window)
        vocabulary.penalize(row, window, p.repeat_penalty, p.frequency_penalty, p.presence_penalty)
        return
    seen, counts = np.unique(window, return_counts=True)
    hit, times = match(candidates.ids, seen, counts)
    x = candidates.values[hit]
    x = np.where(x > 0, x / p.repeat_penalty, x * p.repeat_penalty)
    candidates.values[hit] = x - times * p.frequency_penalty - p.presence_penalty
    candidates.is_sorted = False


def match(ids, keys, values):
    """Return (which of `ids` are among the ascending `keys`, a mask; those ids' values)."""
    if not len(keys):
        return np.zeros(len(ids), bool), values
    at = np.minimum(np.searchsorted(keys, ids), len(keys) - 1)
    hit = keys[at] == ids
    return hit, values[at[hit]]
