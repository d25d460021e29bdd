"""Searched scales: against llama.cpp's recorded errors, a fine scan in NumPy, blocks written by hand, and odd rows."""

import json
from pathlib import Path

import gguf
import numpy as np
import pytest

from llamacy import kernels
from llamacy.formats.types import by_name
from llamacy.kernels.reference import quants as twins
from llamacy.kernels.reference.iquants import IQ4_LEVELS
from tests.data.record_quantize import BY_IMPORTANCE, TYPES, errors, samples

RECORD = json.loads((Path(__file__).resolve().parents[1] / "data" / "quantize_errors.json").read_text())
SAMPLES, IMPORTANCE = samples()
# (codes from, to), has a minimum of its own in each group
CODES = {"Q2_K": (0, 3, True), "Q3_K": (-4, 3, False), "Q4_K": (0, 15, True), "Q5_K": (0, 31, True)}
CODES |= {"Q6_K": (-32, 31, False), "Q4_0": (-8, 7, False), "Q5_0": (-16, 15, False)}


def quantized(isa, name, x, importance=None):
    return kernels.load("quants", isa).quantize(x, by_name(name).number, 1, importance)


def values(name, rows):
    """Rows of blocks as gguf reads them."""
    return gguf.quants.dequantize(rows, gguf.GGMLQuantizationType[name])


@pytest.mark.parametrize("sample", SAMPLES)
@pytest.mark.parametrize("name", TYPES)
def test_errors_are_no_larger_than_llama_cpps(isa, name, sample):
    x = SAMPLES[sample]
    for weighting, error in errors(x, values(name, quantized(isa, name, x))).items():
        assert error <= RECORD[name][sample][weighting] * 1.001, weighting


@pytest.mark.parametrize("sample", SAMPLES)
@pytest.mark.parametrize("name", BY_IMPORTANCE)
def test_errors_by_importance_are_no_larger_than_llama_cpps(isa, name, sample):
    x = SAMPLES[sample]
    error = errors(x, values(name, quantized(isa, name, x, IMPORTANCE)), IMPORTANCE)["by importance"]
    assert error <= RECORD[name][sample]["by importance"] * 1.001


@pytest.mark.parametrize("name", ["IQ4_NL", "Q4_0", "Q5_0"])
def test_a_fine_scan_of_scales_finds_hardly_better(isa, name):
    """Every f16 scale in reach, in NumPy, with the same costs: blocks of one scale leave nothing else to choose.

    In IQ4_NL the largest number stays near the last level, which its scales must not forget.
    """
    x = np.random.default_rng(2).normal(size=(40, 32)).astype(np.float32)
    cost = np.abs(x) + 4 * np.sqrt(np.mean(np.square(x), axis=1, keepdims=True))
    low, high, _ = CODES.get(name, (-127, 113, False))
    levels = np.array(IQ4_LEVELS if name == "IQ4_NL" else range(low, high + 1), np.float64)
    peaks = np.abs(x).max(axis=1, keepdims=True)
    best = np.full(len(x), np.inf)
    for size in np.linspace(*((0.93, 1.07) if name == "IQ4_NL" else (0.75, 1.3)), 400):
        for sign in (-1, 1):
            scale = (sign * peaks * size / max(-low, high)).astype(np.float16).astype(np.float64)
            codes = np.abs(x[..., None] / scale[..., None] - levels).argmin(axis=-1)
            best = np.minimum(best, (cost * np.square(levels[codes] * scale - x)).sum(axis=1))
    found = values(name, quantized(isa, name, x, np.ones(32, np.float32)))
    assert (cost * np.square(found - x)).sum() < 1.02 * best.sum()


@pytest.mark.parametrize("name", CODES)
def test_numbers_that_a_block_can_say_come_back(isa, name):
    """Blocks made of every code, some scales and minima: nothing is lost but the last bit of an f16 factor."""
    low, high, has_minimum = CODES[name]
    rng, kind = np.random.default_rng(4), twins.TYPES[name]
    size = {"Q2_K": 16, "Q3_K": 16, "Q6_K": 16}.get(name, 32)
    codes = np.stack([rng.permutation(np.resize(np.arange(low, high + 1), size)) for _ in range(256 // size)])
    if kind.block_size == 32:
        codes = codes[:1]
    scale = 0.25 * np.resize([3, 1, 2], len(codes))[:, None]
    minimum = 0.5 * np.resize([1, 3, 2], len(codes))[:, None] * has_minimum
    x = (scale * codes - minimum).reshape(1, -1).astype(np.float32)
    rows = quantized(isa, name, x, np.ones(x.shape[1], np.float32))
    np.testing.assert_allclose(values(name, rows), x, rtol=0, atol=2e-3 * np.abs(x).max())


def test_where_the_bits_of_a_block_go(isa):
    """Codes 0 .. 15 in every group of Q4_K, scale 1 and no minimum: written by hand but for d and the scales."""
    x = np.tile(np.arange(16, dtype=np.float32), 16)[None]
    row = quantized(isa, "Q4_K", x)[0]
    d, dmin = row[:4].view(np.float16).astype(np.float32)
    assert dmin == 0
    scales, minima = row[4:8] & 63, row[8:12] & 63
    np.testing.assert_allclose(d * scales, 1, rtol=1e-3)
    assert not minima.any() and len(set(scales)) == 1
    np.testing.assert_array_equal(row[12:16], np.full(4, scales[0] & 15))
    np.testing.assert_array_equal(row[4:8] >> 6, np.full(4, scales[0] >> 4))
    # byte j of a run of 32 holds elements j and j + 32, both j mod 16
    np.testing.assert_array_equal(row[16:], np.tile(np.arange(16) * 17, 8))


@pytest.mark.parametrize("name", BY_IMPORTANCE)
def test_rows_without_anything_to_fit(isa, name):
    """Zeros, one number for all, f16's smallest and largest, one number among zeros: no crash, and near."""
    n = max(256, twins.TYPES[name].block_size)
    rows = [np.zeros(n), np.full(n, 3.0), np.full(n, -3.0), np.full(n, 1e-7), np.full(n, 60000.0), np.eye(1, n)[0]]
    x = np.array([*rows, -rows[-1]], np.float32)
    found = values(name, quantized(isa, name, x, np.ones(n, np.float32)))
    assert not found[0].any()
    top = np.abs(x).max(axis=1)
    np.testing.assert_array_less(np.abs(found - x).max(axis=1)[[1, 2, 4, 5, 6]], 0.05 * top[[1, 2, 4, 5, 6]])
    assert np.abs(found[3]).max() < 2e-7


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3.4e38])
@pytest.mark.parametrize("name", BY_IMPORTANCE)
def test_what_a_type_cannot_hold_stays_in_its_block(isa, name, value):
    kind = twins.TYPES[name]
    x = np.random.default_rng(7).normal(size=(1, 3 * kind.block_size)).astype(np.float32)
    ones = np.ones(x.shape[1], np.float32)
    clean = quantized(isa, name, x, ones)
    x[0, kind.block_size + 8] = value
    found, size = quantized(isa, name, x, ones), kind.type_size
    np.testing.assert_array_equal(found[:, :size], clean[:, :size])
    np.testing.assert_array_equal(found[:, 2 * size :], clean[:, 2 * size :])


@pytest.mark.parametrize("name", BY_IMPORTANCE)
def test_columns_without_importance_do_not_count(isa, name):
    """Wild numbers in unimportant columns leave the others as good as without them; all 0 is no importance."""
    x = np.random.default_rng(9).normal(size=(8, 256)).astype(np.float32)
    importance = np.ones(256, np.float32)
    importance[::16] = 0
    wild = x.copy()
    wild[:, ::16] *= 3
    counted = importance > 0
    error = [np.square(values(name, quantized(isa, name, a, importance)) - x)[:, counted].mean() for a in (x, wild)]
    assert error[1] < 1.5 * error[0]
    zero = quantized(isa, name, x, np.zeros(256, np.float32))
    assert np.square(values(name, zero) - x).mean() < 0.15


@pytest.mark.parametrize("name", TYPES)
def test_threads_change_nothing(isa, name):
    module, x = kernels.load("quants", isa), SAMPLES["normal"][:7]
    one, three = (module.quantize(x, by_name(name).number, n) for n in (1, 3))
    np.testing.assert_array_equal(one, three)


def test_what_can_be_written_and_wrong_importance(isa):
    module = kernels.load("quants", isa)
    rounded = {"F32", "F16", "BF16", "Q8_0", "MXFP4", "TQ1_0", "TQ2_0"}
    assert set(module.writable()) == {by_name(name).number for name in (*rounded, *BY_IMPORTANCE)}
    with pytest.raises(ValueError, match="importance of 32 columns for rows of 64"):
        module.quantize(np.zeros((1, 64), np.float32), by_name("Q4_0").number, 1, np.ones(32, np.float32))
