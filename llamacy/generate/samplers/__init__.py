"""The samplers, one row each in SAMPLERS: what changes the candidates for the next token or leaves some out."""

from typing import NamedTuple

from llamacy.generate.samplers.cuts import (
    exclude_top_choices,
    keep_min_p,
    keep_top_k,
    keep_top_n_sigma,
    keep_top_p,
    keep_typical,
)
from llamacy.generate.samplers.dry import is_on as _has_dry
from llamacy.generate.samplers.dry import penalize_sequences
from llamacy.generate.samplers.mirostat import apply_mirostat, apply_mirostat_v2
from llamacy.generate.samplers.penalties import penalize_repeats
from llamacy.generate.samplers.temperature import apply_temperature


class Row(NamedTuple):
    """A sampler: `apply(candidates, sampler, history)` changes the candidates; is_on(params): whether it would.

    letter: its name in --sampling-seq. others: more names, as llama.cpp knows them.
    keeps_top: the likeliest token stays a candidate, and the likeliest one.
    """

    letter: str
    apply: object
    is_on: object
    keeps_top: bool
    others: tuple = ()


def _has_penalties(p):
    return p.repeat_last_n != 0 and (p.repeat_penalty, p.presence_penalty, p.frequency_penalty) != (1, 0, 0)


# In llama.cpp's default order.
SAMPLERS = {
    "penalties": Row("e", penalize_repeats, _has_penalties, False),
    "dry": Row("d", penalize_sequences, _has_dry, False),
    "top_n_sigma": Row("s", keep_top_n_sigma, lambda p: p.top_n_sigma > 0, True, ("top-n-sigma",)),
    "top_k": Row("k", keep_top_k, lambda p: p.top_k > 0, True, ("top-k",)),
    "typ_p": Row(
        "y", keep_typical, lambda p: p.typical_p < 1, False, ("typical-p", "typical_p", "typical", "typ-p", "typ")
    ),
    "top_p": Row("p", keep_top_p, lambda p: p.top_p < 1, True, ("top-p", "nucleus")),
    "min_p": Row("m", keep_min_p, lambda p: p.min_p > 0, True, ("min-p",)),
    "xtc": Row("x", exclude_top_choices, lambda p: p.xtc_probability > 0 and p.xtc_threshold <= 0.5, False),
    "temperature": Row("t", apply_temperature, lambda p: p.temperature != 1 or p.dynatemp_range > 0, True, ("temp",)),
}
DEFAULT_ORDER = tuple(SAMPLERS)
# What takes the place of the chain: params.mirostat -> the stage.
MIROSTAT = {1: apply_mirostat, 2: apply_mirostat_v2}

NAMES = {name: name for name in SAMPLERS} | {other: name for name, row in SAMPLERS.items() for other in row.others}
LETTERS = {row.letter: name for name, row in SAMPLERS.items()}
