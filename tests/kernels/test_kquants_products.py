"""Products of every quantised type with 8-bit, 16-bit and f32 inputs, on every set, within derived bounds."""

import numpy as np
import pytest

from llamacy import kernels
from llamacy.formats.types import by_name
from llamacy.kernels.reference import quants as twins

SETS = kernels.available()
NAMES = [name for name in twins.TYPES if by_name(name).block_size > 1]
# The largest integer of an input; types without an 8-bit product take 16 bits, Q2_K takes f32.
INT8 = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "MXFP4"]
LIMITS = {"int8": 127, "int16": 16319}


def limit_of(name, activations):
    if name == "Q2_K" or activations == "f32":
        return None
    return LIMITS["int8" if activations == "int8" and name in INT8 else "int16"]


def rows_of(name, n_rows, n_cols, seed=5):
    """Return rows of random blocks whose values are finite and moderate, some of them repeated."""
    kind = by_name(name)
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (4000, kind.type_size), np.uint8)
    with np.errstate(all="ignore"):
        peak = np.abs(twins.dequantize(name, blocks)).max(axis=1)
    good = blocks[(peak < 1e3) & (peak > 1e-3)]
    assert len(good) > 8
    return good[rng.integers(0, len(good), n_rows * n_cols // kind.block_size)].reshape(n_rows, -1)


def bound(w, x, limit):
    """Half a step of every input, |w| times, and f32's rounding of K sums (2^-24 each, twice that for products)."""
    magnitude = np.abs(x) @ np.abs(w).T
    rounding = (w.shape[1] + 8) * 2.0**-23 * magnitude
    if limit is None:
        return rounding
    step = np.abs(x).reshape(len(x), -1, 32).max(axis=2) / limit
    return rounding + (0.5 + 1e-4) * step @ np.abs(w).reshape(len(w), -1, 32).sum(axis=2).T


@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize("name", NAMES)
def test_product_is_near_the_exact_one(name, isa):
    matmul, kind = kernels.load("matmul", isa), by_name(name)
    rows = rows_of(name, 37, 768)
    w = twins.dequantize(name, rows, np.float64)
    packed = matmul.PackedMatrix(rows, kind.number, 768)
    x = np.random.default_rng(7).normal(size=(9, 768)).astype(np.float32)
    x[2, 32:96] = 0
    for activations in ("int8", "int16", "f32"):
        nine = matmul.matmul(packed, x, activations)
        error = np.abs(nine - x.astype(np.float64) @ w.T)
        assert np.all(error <= bound(w, x.astype(np.float64), limit_of(name, activations))), (activations, error.max())
        np.testing.assert_array_equal(nine.view(np.uint32), matmul.matmul(packed, x, activations, 3).view(np.uint32))
        # one token alone: the same numbers as among nine
        np.testing.assert_array_equal(nine[4:5], matmul.matmul(packed, x[4:5], activations))


@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize("name", NAMES)
def test_backward_is_near_the_exact_one(name, isa):
    matmul = kernels.load("matmul", isa)
    rows = rows_of(name, 37, 256)
    w = twins.dequantize(name, rows, np.float64)
    packed = matmul.PackedMatrix(rows, by_name(name).number, 256)
    dy = np.random.default_rng(9).normal(size=(5, 37)).astype(np.float32)
    expected = dy.astype(np.float64) @ w
    error = np.abs(matmul.matmul_backward(packed, dy, "f32") - expected)
    assert np.all(error <= (37 + 8) * 2.0**-23 * (np.abs(dy) @ np.abs(w)))


@pytest.mark.parametrize("isa", SETS)
def test_q6_k_sums_stay_within_int32_at_the_extreme(isa):
    """Codes -32, scales -128, and inputs all at the limit: 32 * 4096 * 16319 is just below 2^31."""
    matmul = kernels.load("matmul", isa)
    block = np.zeros(210, np.uint8)
    block[192:208] = 128  # s = -128; q = 0 stands for -32
    block[208:] = np.frombuffer(np.float16(0.5).tobytes(), np.uint8)
    rows = np.tile(block, (16, 2))
    packed = matmul.PackedMatrix(rows, by_name("Q6_K").number, 512)
    for n_tokens in (1, 4):
        y = matmul.matmul(packed, np.full((n_tokens, 512), 3.0, np.float32), "int16")
        np.testing.assert_allclose(y, 512 * 3 * 2048, rtol=1e-6)


@pytest.mark.parametrize("isa", SETS)
def test_5_bit_sums_stay_within_int16_at_the_extreme(isa):
    """Codes all 31 and 8-bit inputs all 127: eight products a lane, closed every four columns' step."""
    matmul = kernels.load("matmul", isa)
    block = np.full(176, 255, np.uint8)
    block[:4] = np.frombuffer(np.float16([1, 0]).tobytes(), np.uint8)
    packed = matmul.PackedMatrix(np.tile(block, (16, 1)), by_name("Q5_K").number, 256)
    for n_tokens in (1, 4):
        y = matmul.matmul(packed, np.full((n_tokens, 256), -2.0, np.float32), "int8")
        np.testing.assert_allclose(y, -2.0 * 256 * 63 * 31, rtol=1e-6)


@pytest.mark.parametrize("isa", SETS)
def test_q3_k_scales_go_into_codes_at_the_extreme(isa):
    """-32 times -4 is 128, which int8 holds only negated."""
    matmul = kernels.load("matmul", isa)
    block = np.zeros(110, np.uint8)
    block[108:] = np.frombuffer(np.float16(0.25).tobytes(), np.uint8)
    packed = matmul.PackedMatrix(np.tile(block, (16, 1)), by_name("Q3_K").number, 256)
    y = matmul.matmul(packed, np.ones((1, 256), np.float32), "f32")
    np.testing.assert_array_equal(y, np.full((1, 16), 256 * 128 * 0.25))


@pytest.mark.parametrize("isa", SETS)
def test_every_row_type_has_products(isa):
    types = kernels.load("matmul", isa).types()
    assert {name: by_name(name).number for name in twins.TYPES} == types
