"""How positions turn queries and keys: from a file's metadata to the tables that the compiled steps are given.

A table is a frequency for each pair of a head's first n_rot elements and a factor on all cosines and sines. What makes
it of the base is the file's scaling, one row of SCALINGS. Two of them depend on how long a context is opened: one cache
has keys of one kind, so that the choice is made once, as llama.cpp does, and not by each text's length.
"""

import math
from dataclasses import dataclass

import numpy as np

from llamacy.errors import LlamacyError, shown


@dataclass(frozen=True)
class Rope:
    """What a file says of its rotary positions; lengths in tokens.

    n_rot            elements of a head that turn, the first ones        theta   base of the frequencies
    scaling          a row of SCALINGS                                   factor  by which it stretches the context
    original         what was trained before the context was stretched   trained what the file was trained for
    attn_factor      on cosines and sines, beside what the scaling says; None: nothing is said
    yarn_attn_factor the same instead of what yarn says                  log_multiplier  yarn's mscale_all_dim
    beta_fast, beta_slow     turns within `original` from which on yarn keeps, up to which it stretches a frequency
    ext_factor       the share of the kept ones that it keeps            truncate  round that range outwards
    """

    n_rot: int
    theta: float = 10000.0
    scaling: str = "linear"
    factor: float = 1.0
    original: int = 0
    trained: int = 0
    attn_factor: float | None = None
    yarn_attn_factor: float | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    ext_factor: float = 1.0
    log_multiplier: float = 0.0
    truncate: bool = True

    def plain(self, theta=None):
        """Radians per position of each pair as they were first trained, f64 (n_rot / 2,)."""
        exponents = np.arange(0, self.n_rot, 2, dtype=np.float64) / self.n_rot
        return (self.theta if theta is None else theta) ** -exponents

    def table(self, n_ctx, factors=None):
        """Return (frequencies f64 (n_rot / 2,), factor on cosines and sines) for a context of n_ctx positions.

        factors: RopeFactors of the file, None without any.
        """
        factors = factors or RopeFactors()
        frequencies, factor = SCALINGS[self.scaling](self, n_ctx, factors)
        return (frequencies if factors.every is None else frequencies / factors.every), factor

    def is_stretched(self, n_ctx):
        """Whether positions of a context of n_ctx turn otherwise than those of one within the original length."""
        return self.scaling in BY_CONTEXT and n_ctx > self.original

    def note(self, n_ctx):
        """Return what a user should know of a context of n_ctx positions, None where there is nothing."""
        if not self.is_stretched(n_ctx):
            return None
        return (
            f"positions turn as {self.scaling} scaling has it for long texts, since the context of {n_ctx} is longer "
            f"than the original {self.original}; --ctx-size {self.original} or less turns them as for short ones"
        )


@dataclass(frozen=True)
class RopeFactors:
    """What a file's tensors divide frequencies by, f64 (n_rot / 2,) or None: always, in short and in long texts."""

    every: np.ndarray | None = None
    short: np.ndarray | None = None
    long: np.ndarray | None = None


# ---- the scalings: Rope, positions of the context, RopeFactors -> frequencies, factor on cosines and sines ----


def _as_trained(rope, n_ctx, factors):
    return rope.plain(), _said(rope)


def _linear(rope, n_ctx, factors):
    return rope.plain() / rope.factor, _said(rope)


def _yarn(rope, n_ctx, factors):
    """arXiv:2309.00071: what turns often within the original length is kept, what turns seldom is stretched."""
    low, high = _turning(rope, rope.beta_fast), _turning(rope, rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rope.n_rot - 1)
    stretched = np.clip((np.arange(rope.n_rot // 2) - low) / (high - low or 0.001), 0, 1)
    kept = (1 - stretched) * rope.ext_factor
    return rope.plain() * (kept + (1 - kept) / rope.factor), _yarn_factor(rope) * _said(rope)


def _turning(rope, turns):
    """The pair, as a fraction, that turns so many times within the original length."""
    return rope.n_rot * math.log(rope.original / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))


def _yarn_factor(rope):
    if rope.yarn_attn_factor is not None:
        return rope.yarn_attn_factor
    if rope.ext_factor == 0 or rope.factor <= 1:
        return 1.0
    grown = 0.1 * math.log(rope.factor)
    return (grown + 1) / (grown * rope.log_multiplier + 1) if rope.log_multiplier else grown + 1


def _longrope(rope, n_ctx, factors):
    """arXiv:2402.13753: factors for each frequency, one set up to the original length and one beyond."""
    factor = rope.attn_factor
    if factor is None:
        stretch = rope.factor if rope.factor > 1 else rope.trained / rope.original
        factor = math.sqrt(1 + math.log(stretch) / math.log(rope.original)) if stretch > 1 else 1.0
    return rope.plain() / (factors.long if rope.is_stretched(n_ctx) else factors.short), factor


def _dynamic(rope, n_ctx, factors):
    """The base grows with the context, beyond what was trained."""
    grown = rope.factor * max(n_ctx, rope.original) / rope.original - (rope.factor - 1)
    return rope.plain(rope.theta * grown ** (rope.n_rot / (rope.n_rot - 2))), _said(rope)


def _said(rope):
    return 1.0 if rope.attn_factor is None else rope.attn_factor


SCALINGS = {
    "none": _as_trained,
    "linear": _linear,
    "yarn": _yarn,
    "longrope": _longrope,
    "dynamic": _dynamic,
}
BY_CONTEXT = ("longrope", "dynamic")

# ---- reading ----

SHORT, LONG = "rope_factors_short.weight", "rope_factors_long.weight"
_NUMBERS = {  # of Rope: the key that says it
    "attn_factor": "rope.scaling.attn_factor",
    "yarn_attn_factor": "rope.scaling.yarn_attn_factor",
    "beta_fast": "rope.scaling.yarn_beta_fast",
    "beta_slow": "rope.scaling.yarn_beta_slow",
    "ext_factor": "rope.scaling.yarn_ext_factor",
    "log_multiplier": "rope.scaling.yarn_log_multiplier",
}
_MAY_BE_ZERO = ("ext_factor", "log_multiplier")
UNSAID = (-1, 0)  # how files write numbers that are not there


def read_rope(keys, n_rot, n_ctx_train, truncates, theta=None):
    """Return the Rope of an open model; keys: its metadata below the family's name; theta: instead of the file's base.

    truncates: see Architecture.

    LlamacyError for a scaling that is not known or lacks what it needs, and for numbers that cannot be.
    """
    kind = _scaling(keys)
    said = {name: keys.number(key) for name, key in _NUMBERS.items() if keys.get(key) is not None}
    said = {name: x for name, x in said.items() if x not in UNSAID or (x == 0 and name in _MAY_BE_ZERO)}
    factor = 1.0 if kind == "none" else _factor(keys)
    original = keys.whole("rope.scaling.original_context_length", 0) or n_ctx_train
    said["truncate"] = keys.flag("rope.scaling.yarn_truncate", truncates(factor, original))
    rope = Rope(
        n_rot=n_rot,
        theta=theta if theta is not None else keys.number("rope.freq_base", 10000.0),
        scaling=kind,
        factor=factor,
        original=original,
        trained=n_ctx_train,
        **said,
    )
    _check(keys, rope)
    return rope


def local_rope(keys, rope, base):
    """Return the Rope of layers with a window in a family where they have one of their own, which nothing scales.

    base: theirs where the file does not tell, 0 for that of `rope`, the other layers'.
    """
    key = "rope.freq_base_swa"
    theta = keys.number(key, 0.0) or base or rope.theta
    if not 0 < theta < np.inf:
        raise keys.error(key, "a number above 0", theta)
    return Rope(rope.n_rot, theta, original=rope.original, trained=rope.trained)


def _scaling(keys):
    """The file's scaling; factors for short and long texts are longrope, whatever it is called."""
    kind = keys.get("rope.scaling.type")
    if kind is not None and (not isinstance(kind, str) or kind not in SCALINGS):
        raise LlamacyError(
            f"{keys.file.path}: rope scaling {shown(kind)} is not supported, wanted one of {', '.join(SCALINGS)}"
        )
    there = [name for name in (SHORT, LONG) if name in keys.file.tensors]
    if len(there) == 1 or (kind == "longrope" and not there):
        missing = SHORT if SHORT not in there else LONG
        raise LlamacyError(
            f"{keys.file.path}: tensor {missing} is missing, which longrope scaling needs; the file is incomplete"
        )
    if there and kind not in (None, "none", "longrope"):
        raise LlamacyError(
            f"{keys.file.path}: rope scaling {kind!r} beside factors for short and long texts (tensor {SHORT}) is not "
            "supported, wanted longrope or none"
        )
    return "longrope" if there else kind or "linear"


def _factor(keys):
    key = "rope.scaling.factor" if keys.get("rope.scaling.factor") is not None else "rope.scale_linear"
    return keys.number(key, 1.0) or 1.0


def _check(keys, rope):
    least = {name: 0.0 for name, value in vars(rope).items() if isinstance(value, float)} | {"original": 0}
    if rope.scaling == "yarn":
        least["theta"] = 1.0  # by whose logarithm the pairs are found
    named = {"theta": "rope_theta", "factor": "rope scaling", "original": "original context length"} | _NUMBERS
    for name, low in least.items():
        value = getattr(rope, name)
        if not (low < value < np.inf or (value == 0 and name in _MAY_BE_ZERO)):
            raise LlamacyError(f"{keys.file.path}: {named[name]} {value}: wanted a number above {low:g}")
    if (rope.scaling == "dynamic" and rope.n_rot < 4) or (rope.scaling == "longrope" and rope.original < 2):
        raise LlamacyError(
            f"{keys.file.path}: {rope.scaling} scaling of {rope.n_rot} rotating elements from {rope.original} tokens "
            "on, wanted at least 4 and 2"
        )
