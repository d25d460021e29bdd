"""Temperature, fixed or dynamic, by llama.cpp's definitions."""

import math

import numpy as np

from llamacy.generate.samplers.candidates import likeliest


def apply_temperature(candidates, sampler, history):
    """Divide the logits by the temperature; at 0 or below only the likeliest is left, the lowest id on ties."""
    params = sampler.params
    temperature = params.temperature
    if params.dynatemp_range > 0:
        candidates.make_list()
        if candidates.count < 2:
            return
        temperature = dynamic_temperature(candidates, params)
    if temperature > 0:
        if candidates.ids is None:
            candidates.make_list()
        candidates.values /= temperature
    else:
        keep_likeliest(candidates)


def keep_likeliest(candidates):
    """Forbid all but the likeliest, the lowest id on ties; the others stay candidates, at minus infinity."""
    if candidates.ids is None:
        token, count = likeliest(candidates.row), len(candidates.row)
        candidates.take(np.array([token]), candidates.row[[token]], is_sorted=True)
    else:
        token, count = candidates.ids[candidates.values == candidates.top].min(), candidates.count
        candidates.keep(candidates.ids == token)
    candidates.silent = count - 1


def dynamic_temperature(candidates, params):
    """Return the temperature for these candidates: from temperature - range (at least 0) where one is certain to
    temperature + range where all are alike, by their entropy over the largest possible, to the power of the exponent.
    """
    p = candidates.probabilities()
    p = p[p > 0]
    entropy = max(0.0, -(p * np.log(p)).sum()) / math.log(candidates.count)
    low, high = max(0.0, params.temperature - params.dynatemp_range), params.temperature + params.dynatemp_range
    return low + (high - low) * entropy**params.dynatemp_exponent
