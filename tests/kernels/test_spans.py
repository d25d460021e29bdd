"""Products of wide models: spans of 256 inputs with one step, blocks summed as integers; against exact numbers.

Bounds. A weight is d * (code - offset) + m' with m' = m + offset * d (none for Q4_0, Q5_0). Inputs are off by half a
step of their span, peak / 254 at most (values that are set aside are exact, so the peak of all is an upper bound).
Scales are counted in units of 2 ** -11 of the power of two below the row's largest: off by half a unit. Integer sums
are exact; in f32 come, for every span, a product of scales, a conversion and an addition, for every block a minimum's
product and addition.
"""

import gguf
import numpy as np
import pytest

from llamacy import kernels
from llamacy.formats.types import by_name
from llamacy.kernels.reference import quants
from tests.kernels.matrices import inputs, packed
from tests.kernels.rounding import assert_within, gamma

WIDTH = 2048  # a model that has spans
OFFSETS = {"Q4_0": 8, "Q4_1": 8, "Q5_0": 16, "Q5_1": 16, "Q4_K": 8, "Q5_K": 16}
# and one whose scales are powers of two, of codes that are levels
ALL = OFFSETS | {"MXFP4": 16}
# (N, K): one short span; a span and a bit; two panels of whole spans and a short one; odd rows
SIZES = {32: [(16, 64), (33, 288), (5, 1440), (40, 1024)], 256: [(16, 256), (33, 1536), (5, 1792)]}


def sizes(name):
    return SIZES[by_name(name).block_size]


def random_rows(name, n, k, seed=1):
    """Rows of normal weights, their blocks of several magnitudes: scales between the row's largest and a 64th of it."""
    rng = np.random.default_rng(seed)
    w = rng.normal(size=(n, k // 32, 32)) * 2.0 ** -rng.uniform(0, 6, (n, k // 32, 1))
    return kernels.load("quants").quantize(w.reshape(n, k).astype(np.float32), by_name(name).number)


def scales(name, rows):
    """d and m (n, blocks of 32), float64, read by hand or by gguf's package."""
    block = rows.reshape(len(rows), -1, by_name(name).type_size)
    if name == "MXFP4":
        d = 2.0 ** (block[..., 0].astype(np.float64) - 128)
        return d, -ALL[name] * d
    head = np.ascontiguousarray(block[..., :4]).view(np.float16).astype(np.float64)
    if not name.endswith("K"):
        return head[..., 0], head[..., 1] if name.endswith("1") else -OFFSETS[name] * head[..., 0]
    flat = np.ascontiguousarray(block[..., 4:16]).reshape(-1, 12)
    s, m = (part.reshape(len(rows), -1, 8) for part in gguf.quants.Q4_K.get_scale_min(flat))
    return (head[..., :1] * s).reshape(len(rows), -1), (-head[..., 1:] * m).reshape(len(rows), -1)


def half_steps(x):
    """How far rounding may move each element of x (t, k)."""
    blocks = np.abs(x.astype(np.float64)).reshape(len(x), -1, 32).max(axis=-1)
    spans = [blocks[:, b : b + 8].max(axis=1, keepdims=True) for b in range(0, blocks.shape[1], 8)]
    return 1.01 / 254 * np.repeat(np.hstack(spans), 256, axis=1)[:, : x.shape[1]]


def bound(name, rows, x, rest):
    """The most that a product may differ from float64, (t, n); rest: x without what is set aside."""
    w, (d, m), offset = quants.dequantize(name, rows, np.float64), scales(name, rows), ALL[name]
    k, steps = x.shape[1], half_steps(rest)
    left = np.repeat(m + offset * d if name not in ("Q4_0", "Q5_0", "MXFP4") else 0 * d, 32, axis=1)
    codes = np.abs(w - left) / np.maximum(np.repeat(np.abs(d), 32, axis=1), 1e-30)
    unit = 2.0 ** (np.floor(np.log2(np.abs(d).max(axis=1, keepdims=True))) - 11)
    terms = np.abs(w - left) + np.abs(left) + unit * codes
    scale_error = (np.abs(rest) + steps) @ (unit / 2 * codes).T
    return steps @ np.abs(w).T + scale_error + gamma(k // 8 + 32) * (np.abs(x) + steps) @ terms.T


@pytest.mark.parametrize("name", ALL)
def test_product_is_within_the_rounding_of_inputs_and_scales(isa, name):
    module = kernels.load("matmul", isa)
    for n, k in sizes(name):
        rows = random_rows(name, n, k)
        matrix, w = packed(module, name, rows, k), quants.dequantize(name, rows, np.float64)
        for t in (1, 2, 4, 7, 16, 17, 133):
            x = inputs(t, k)
            y = module.matmul(matrix, x, "int8", 1, WIDTH)
            assert_within(y, x.astype(np.float64) @ w.T, bound(name, rows, x, x))


@pytest.mark.parametrize("name", ALL)
def test_one_token_or_many_and_any_number_of_threads_are_bitwise_equal(isa, name):
    module = kernels.load("matmul", isa)
    for (n, k), t in zip([*sizes(name), (80, 512)], (9, 5, 259, 18, 21), strict=False):
        matrix, x = packed(module, name, random_rows(name, n, k), k), inputs(t, k)
        together = module.matmul(matrix, x, "int8", 1, WIDTH)
        alone = np.vstack([module.matmul(matrix, x[i : i + 1], "int8", 1, WIDTH) for i in range(t)])
        np.testing.assert_array_equal(alone, together)
        for n_threads in (2, 3):
            np.testing.assert_array_equal(module.matmul(matrix, x, "int8", n_threads, WIDTH), together)
            one = module.matmul(matrix, x[:1], "int8", n_threads, WIDTH)
            np.testing.assert_array_equal(one, together[:1])


@pytest.mark.parametrize("t", [3, 6, 131])
@pytest.mark.parametrize("name", ALL)
def test_values_far_above_the_rest_are_set_aside(isa, name, t):
    """Three values of a block, 1000 times the others, make no step coarse, not even their span's."""
    module, k = kernels.load("matmul", isa), 1536
    rows = random_rows(name, 48, k)
    rng = np.random.default_rng(3)
    rest = rng.normal(size=(t, k)).astype(np.float32)
    x = rest.copy()
    for i in range(t):
        for place in ((), (40, 50, 63), (1, 700, 1535))[i % 3]:
            x[i, place], rest[i, place] = 1000 + i, 0
    w = quants.dequantize(name, rows, np.float64)
    together = module.matmul(packed(module, name, rows, k), x, "int8", 2, WIDTH)
    assert_within(together, x.astype(np.float64) @ w.T, bound(name, rows, x, rest))
    alone = np.vstack([module.matmul(packed(module, name, rows, k), x[i : i + 1], "int8", 1, WIDTH) for i in range(t)])
    np.testing.assert_array_equal(alone, together)


def uniform_rows(name, n, k, code, d):
    """Rows whose every code is `code`, every scale d (K types: 63 times it), every minimum zero."""
    size = by_name(name).block_size
    codes, head = np.full((n * k // size, size), code), np.array([d, 0], np.float16).view(np.uint8)
    if name.endswith("K"):
        six_bits = np.array([255] * 4 + [0] * 4 + [15] * 4, np.uint8)  # eight scales of 63, eight minima of 0
        bits = 255 if code >> 4 else 0
        rest = [six_bits] + ([np.full(32, bits, np.uint8)] if name == "Q5_K" else [])
        block = np.concatenate([head, *rest, np.full(128, (code & 15) * 17, np.uint8)])
        return np.tile(block, (n, k // 256))
    parts = [np.tile(head[: 4 if name.endswith("1") else 2], (len(codes), 1))]
    parts += [quants.pack(codes >> 4, 1, 1)] if name.startswith("Q5") else []
    return np.ascontiguousarray(np.hstack([*parts, quants.pack(codes & 15, 4, 16)])).reshape(n, -1)


SIGNS = {"plus": [1], "minus": [-1], "alternating": [1, -1], "pairs": [1, 1, -1, -1], "one end": [1] * 31 + [-1]}


@pytest.mark.parametrize("signs", SIGNS)
@pytest.mark.parametrize("name", OFFSETS)
def test_no_integer_sum_overflows(isa, name, signs):
    """Largest codes, inputs and scales (1.999: 4094 units): a span's true sum comes near 2 ** 31, int16's to 32640."""
    module, k = kernels.load("matmul", isa), 512
    x = np.resize(np.array(SIGNS[signs]), k) * np.float32(127)
    for code in (0, 2 * OFFSETS[name] - 1):
        rows = uniform_rows(name, 17, k, code, 1.999)
        w = quants.dequantize(name, rows, np.float64)
        assert len(np.unique(w)) == 1
        d = np.abs(scales(name, rows)[0]).max()
        for t in (1, 4, 18):
            y = module.matmul(packed(module, name, rows, k), np.tile(x, (t, 1)).astype(np.float32), "int8", 1, WIDTH)
            terms = np.abs(x).sum() * OFFSETS[name] * d
            unit = 2.0 ** (np.floor(np.log2(d)) - 11)
            off = unit / 2 * OFFSETS[name] * np.abs(x).sum()
            assert_within(y, np.broadcast_to(x.astype(np.float64) @ w.T, y.shape), gamma(64) * 3 * terms + off)


def test_scales_near_the_largest_are_exact_and_rows_of_zeros_are_zero(isa):
    """Scales within a factor of two of the row's largest are whole numbers of units; a row of zeros is no NaN."""
    module, k = kernels.load("matmul", isa), 256
    block = uniform_rows("Q4_0", 8, k, 15, 1.0).reshape(8, 8, 18)
    block[..., :2] = np.random.default_rng(1).uniform(1, 2, (8, 8, 1)).astype(np.float16).view(np.uint8)
    rows = np.vstack([block.reshape(8, -1), np.zeros((8, k // 32 * 18), np.uint8)])
    w = quants.dequantize("Q4_0", rows, np.float64)
    x = np.full((1, k), 127, np.float32)
    y = module.matmul(packed(module, "Q4_0", rows, k), x, "int8", 1, WIDTH)
    assert_within(y, x.astype(np.float64) @ w.T, gamma(4) * np.abs(x.astype(np.float64) @ w.T))
    assert not y[:, 8:].any()


def test_scales_too_small_for_units_are_as_good_as_zero(isa):
    """Blocks of 2 ** -128 and a little more, as all-zero blocks of MXFP4 have them: no NaN, and nothing that counts."""
    module, k = kernels.load("matmul", isa), 512
    rows = np.random.default_rng(2).integers(0, 256, (17, k // 32, 17), np.uint8)
    rows[..., 0] = np.arange(17)[:, None]
    matrix = packed(module, "MXFP4", rows.reshape(17, -1), k)
    for t in (1, 4, 18):
        y = module.matmul(matrix, inputs(t, k), "int8", 1, WIDTH)
        assert np.abs(y).max() < 1e-28
    rows[3, 5, 0] = 127  # one that is not small: its neighbours change nothing
    w = quants.dequantize("MXFP4", rows.reshape(17, -1), np.float64)
    x = inputs(4, k)
    y = module.matmul(packed(module, "MXFP4", rows.reshape(17, -1), k), x, "int8", 1, WIDTH)
    assert_within(y, x.astype(np.float64) @ w.T, bound("MXFP4", rows.reshape(17, -1), x, x) + 1e-28)


def test_narrow_models_keep_a_step_for_every_block(isa):
    """A block of large inputs does not make its neighbours' step coarse at a width of 576, and does at 2048."""
    module, k = kernels.load("matmul", isa), 256
    rows = random_rows("Q4_0", 16, k)
    x = np.random.default_rng(4).normal(size=(1, k)).astype(np.float32)
    x[:, :32] *= 1.4
    exact = x.astype(np.float64) @ quants.dequantize("Q4_0", rows, np.float64).T
    narrow, wide = (module.matmul(packed(module, "Q4_0", rows, k), x, "int8", 1, width) for width in (576, WIDTH))
    assert np.abs(narrow - exact).mean() < np.abs(wide - exact).mean()
