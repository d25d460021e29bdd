"""Every instruction set defines the same verbs; those on f32 do what NumPy does, with infinities and NaN as they say.

The integer verbs' results are tested by the products, on every set.
"""

import functools
import re
from pathlib import Path

import numpy as np
import pytest

from llamacy import kernels
from llamacy.kernels.isas import ISAS

SIMD = Path(__file__).resolve().parents[2] / "pyx" / "simd"
DECLARATIONS = {"__init__", "arm_neon", "immintrin", "x86", "system"}
TYPES = ["vf", "vi", "vb", "vw", "vh"]


def source(name):
    return (SIMD / f"{name}.pxd").read_text()


def verbs(name):
    """Return {verb: (what it returns, its parameters)}; names that begin with _ are a set's own."""
    found = re.findall(r"^cdef inline (\w+) ([a-z]\w*)\((.*)\) noexcept nogil:$", source(name), re.M)
    return {verb: (result, parameters) for result, verb, parameters in found}


def test_a_file_for_every_set_and_no_other():
    assert {path.stem for path in SIMD.glob("*.pxd")} - DECLARATIONS == set(ISAS)


@pytest.mark.parametrize("name", [name for name in ISAS if name != "generic"])
def test_same_verbs_with_the_same_parameters_as_the_portable_set(name):
    defined = verbs("generic")
    assert len(defined) > 40
    assert verbs(name) == defined


@pytest.mark.parametrize("name", ISAS)
def test_the_five_types_of_16_rows(name):
    assert [kind for kind in TYPES if re.search(rf"^(cdef struct|ctypedef \w+) {kind}\b", source(name), re.M)] == TYPES


# ---- f32: what each does, NaN included ----

NAN, INF = np.float32(np.nan), np.float32(np.inf)
# no product of them overflows: a set that rounds twice would make an infinity of a sum that is none
ORDINARY = np.array([0.0, -0.0, 1.5, -3.0, 2.5, -0.5, 7e15, -2e-15, 1e-38, 1e-44], np.float32)
# a quiet NaN and what x86 makes; those whose bits rounding to bf16 would carry away, with both signs
NANS = np.array([0x7FC00000, 0xFFC00000, 0x7FFFFFFF, 0xFFFFFFFF], np.uint32).view(np.float32)
VALUES = np.concatenate([ORDINARY, [INF, -INF], NANS])


def bf16(a):
    """Round half to even, in integers"""
    bits = a.view(np.uint32).astype(np.uint64)
    rounded = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16 << 16).astype(np.uint32).view(np.float32)
    return np.where(np.isnan(a), NAN, rounded)


def second_where_nan(better):
    """x86's minimum and maximum: the second operand where neither is better, as where either is NaN"""
    return lambda a, b, c: np.where(better(a, b), a, b)


def wide(a):
    return a.astype(np.float64)


# Verb -> what it gives for f32 a, b, c; sums of products exactly, to be rounded. Those of lanes: one number.
LANES = {
    "vf_add": lambda a, b, c: a + b,
    "vf_sub": lambda a, b, c: a - b,
    "vf_mul": lambda a, b, c: a * b,
    "vf_div": lambda a, b, c: a / b,
    "vf_max": second_where_nan(np.greater),
    "vf_min": second_where_nan(np.less),
    "vf_amax": lambda a, b, c: np.maximum(np.abs(a), np.abs(b)),  # NumPy's sees NaN
    "vf_sqrt": lambda a, b, c: np.sqrt(a),
    "vf_abs": lambda a, b, c: np.abs(a),
    "vf_fma": lambda a, b, c: wide(a) * b + c,
    "vf_fnma": lambda a, b, c: c - wide(a) * b,
    "vf_fma1": lambda a, b, c: wide(a) * b[0] + c,
    "vf_round": lambda a, b, c: np.rint(a),
    "vf_store_f16": lambda a, b, c: a.astype(np.float16).astype(np.float32),
    "vf_store_bf16": lambda a, b, c: bf16(a),
}
# Of whole numbers, or of ordinary ones only: NaN gives anything.
WHOLE = {"vf_pow2": lambda a: 2.0 ** wide(a), "vf_to_i": np.rint}
ACROSS = {"vf_hsum": np.sum, "vf_hmax": np.max, "vf_hamax": np.max}
# They move f32 or make them of integers: the others could not be called without them.
MOVE = {"vf_load", "vf_store", "vf_set1", "vf_load_f16", "vf_load_bf16", "vf_load_s8", "vi_to_f", "vw_even", "vw_odd"}


probe = functools.cache(functools.partial(kernels.load, "probe"))


def call(isa, verb, a, b=None, c=None):
    zeros = np.zeros(16, np.float32)
    lanes = [zeros if x is None else np.ascontiguousarray(x, np.float32) for x in (a, b, c)]
    return probe(isa).call(verb, *lanes)


def test_every_verb_on_f32_is_tested():
    on_f32 = {verb for verb, declared in verbs("generic").items() if "vf" in verb or "vf" in " ".join(declared)}
    assert on_f32 == {*LANES, *WHOLE, *ACROSS, *MOVE}


def test_the_portable_set_says_what_becomes_of_nan():
    assert re.search(r"^# NaN: ", source("generic"), re.M)
    for verb in (
        "vf_max",
        "vf_min",
        "vf_amax",
        "vf_pow2",
        "vf_hmax",
        "vf_hamax",
        "vf_store_f16",
        "vf_store_bf16",
        "vf_to_i",
    ):
        documented = re.search(rf' {verb}\(.*\) noexcept nogil:\n    """(.*)"""', source("generic"))
        assert documented and "NaN" in documented[1], verb


@pytest.mark.parametrize("name", [name for name in ISAS if name != "generic"])
def test_what_verbs_do_is_said_once(name):
    opening = source(name).partition("\n\n")[0].replace("\n# ", " ")
    assert "the verbs of generic.pxd, which says what they do" in opening
    assert not re.search(r'^cdef inline \w+ [a-z]\w*\(.*\n    """', source(name), re.M)


@pytest.mark.parametrize("verb", LANES)
def test_a_verb_does_what_numpy_does_with_every_pair_of_values(isa, verb):
    n, rng = len(VALUES), np.random.default_rng(1)
    assert n == 16
    third = [VALUES, np.ones(16, np.float32), rng.permutation(VALUES), rng.permutation(ORDINARY).repeat(2)[:16]]
    for shift in range(n):
        b = np.roll(VALUES, shift)
        for c in third:
            with np.errstate(all="ignore"):
                wanted = LANES[verb](VALUES if verb != "vf_amax" else np.abs(VALUES), b, c).astype(np.float32)
            got = call(isa, verb, VALUES if verb != "vf_amax" else np.abs(VALUES), b, c)
            if verb in ("vf_fma", "vf_fnma", "vf_fma1"):
                np.testing.assert_allclose(got, wanted, rtol=3e-7, atol=1e-44)
                continue
            np.testing.assert_array_equal(got, wanted)
            numbers = ~np.isnan(wanted)
            np.testing.assert_array_equal(np.signbit(got)[numbers], np.signbit(wanted)[numbers])


@pytest.mark.parametrize("verb", WHOLE)
def test_whole_numbers(isa, verb):
    values = np.array([-126, -1, 0, 1, 2, 3, 17, 126, 127, -64, 5, 6, 7, 8, 9, 10], np.float32)
    if verb == "vf_to_i":
        values = np.array(
            [0.5, 1.5, 2.5, -0.5, -1.5, 1e9, -1e9, 3.49, 0, -0.0, 7, 127.5, -127.5, 1e6, 0.1, -7], np.float32
        )
    np.testing.assert_array_equal(call(isa, verb, values), WHOLE[verb](values).astype(np.float32))
    call(isa, verb, VALUES)  # anything, but it comes back


@pytest.mark.parametrize("verb", ACROSS)
def test_verbs_across_lanes(isa, verb):
    rng = np.random.default_rng(2)
    for _ in range(5):
        values = rng.integers(0 if verb == "vf_hamax" else -99, 99, 16).astype(np.float32)
        assert (call(isa, verb, values) == ACROSS[verb](values)).all()
        for at in range(16):
            odd = values.copy()
            odd[at] = INF
            assert (call(isa, verb, odd) == INF).all()
            for nan in NANS if verb == "vf_hsum" else np.abs(NANS):
                odd[at] = nan
                found = call(isa, verb, odd)
                if verb == "vf_hmax":
                    assert np.isnan(found).all() or found[0] in values  # missed or seen
                else:
                    assert np.isnan(found).all()
    assert np.isnan(call(isa, verb, np.full(16, NAN))).all()
