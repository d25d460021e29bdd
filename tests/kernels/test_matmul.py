"""Products of packed matrices against float64: every type and precision, odd sizes, the extremes, threads.

Bounds. A weight is d * code + m. One block adds scale * d * sum(code * q) + m * scale * sum(q): the integer sums are
exact, each term takes at most 6 roundings, and each block adds at most 4 to the sum (a set without fused multiply-add):
gamma(4 blocks + 8) of sum (|d code| + |m|) |x|. Rounding x moves it by half a step of its block: amax / 254 in 8 bits,
amax / 32638 where int16 holds them (codes up to 16319 at least), times sum |w| of the block; 1.01 covers that the
step's inverse is itself rounded.
With f32 inputs the weights are rounded once or twice and K products summed: gamma(2 K + 4) of sum |w| |x|.
"""

import gguf
import numpy as np
import pytest

from llamacy import kernels
from llamacy.kernels.reference import quants
from tests.kernels.matrices import inputs, packed
from tests.kernels.rounding import assert_within, gamma

FLOATS, SYMMETRIC, WITH_MINIMUM = ["F32", "F16", "BF16"], ["Q4_0", "Q5_0", "Q8_0"], ["Q4_1", "Q5_1"]
TYPES = FLOATS + SYMMETRIC + WITH_MINIMUM
OFFSETS = {"Q4_0": 8, "Q5_0": 16}
LARGEST = {"int8": 127, "int16": 16319}  # codes of rounded inputs
TOKENS = [1, 2, 3, 4, 5, 9, 18]
# (N, K): a tile and a block; neither whole tiles nor whole vectors; more blocks than any path unpacks at a time
SIZES = [(16, 32), (1, 32), (33, 96), (40, 1120)]
ODD_COLUMNS = [(17, 1), (5, 37), (19, 300)]  # only floats have rows that are not whole blocks


def number(name):
    return int(gguf.GGMLQuantizationType[name])


def sizes(name):
    return SIZES + (ODD_COLUMNS if name in FLOATS else [])


def random_rows(name, n, k, seed=1):
    return quants.quantize(name, np.random.default_rng(seed).normal(size=(n, k)).astype(np.float32))


def absolute_terms(name, rows):
    """|d code| + |m| of every weight (n, k), codes as the 8-bit product takes them: what rounding errors scale with."""
    w = quants.dequantize(name, rows, np.float64)
    if name in FLOATS or name == "Q8_0":
        return np.abs(w)
    block = rows.reshape(len(rows), -1, quants.TYPES[name].type_size)
    d = np.ascontiguousarray(block[..., :2]).view(np.float16)[..., 0].astype(np.float64)
    m = -OFFSETS[name] * d if name in OFFSETS else np.ascontiguousarray(block[..., 2:4]).view(np.float16)[..., 0]
    m = np.repeat(m.astype(np.float64), 32, axis=1)
    return np.abs(w - m) + np.abs(m)


def half_steps(x, form):
    """How far rounding to int8 or int16 may move each element of x (t, k)."""
    peaks = np.abs(x.astype(np.float64)).reshape(len(x), -1, 32).max(axis=-1)
    return np.repeat(1.01 * peaks / (2 * LARGEST[form]), 32, axis=1)


def bound(name, rows, x, activations):
    """The most that matmul may differ from float64, (t, n); see the top of this file."""
    w, ax = np.abs(quants.dequantize(name, rows, np.float64)), np.abs(x.astype(np.float64))
    if activations == "f32" or name in FLOATS:
        return gamma(2 * x.shape[1] + 4) * ax @ w.T
    steps = half_steps(x, "int16" if name == "Q8_0" else activations)
    return steps @ w.T + gamma(4 * (x.shape[1] // 32) + 8) * (ax + steps) @ absolute_terms(name, rows).T


@pytest.mark.parametrize("activations", ["f32", "int8", "int16"])
@pytest.mark.parametrize("name", TYPES)
def test_matmul_is_within_the_rounding_of_its_inputs(isa, name, activations):
    module = kernels.load("matmul", isa)
    for n, k in sizes(name):
        rows = random_rows(name, n, k)
        matrix, w = packed(module, name, rows, k), quants.dequantize(name, rows, np.float64)
        for t in TOKENS + ([257] if n == 33 else []):
            x = inputs(t, k)
            y = module.matmul(matrix, x, activations)
            assert y.shape == (t, n)
            assert_within(y, x.astype(np.float64) @ w.T, bound(name, rows, x, activations))


@pytest.mark.parametrize("activations", ["f32", "int8", "int16"])
@pytest.mark.parametrize("name", TYPES)
def test_one_token_or_many_and_any_number_of_threads_are_bitwise_equal(isa, name, activations):
    module = kernels.load("matmul", isa)
    for (n, k), t in zip(sizes(name), (9, 5, 259, 7, 19, 6, 16), strict=False):
        matrix, x = packed(module, name, random_rows(name, n, k), k), inputs(t, k)
        together = module.matmul(matrix, x, activations)
        alone = np.vstack([module.matmul(matrix, x[i : i + 1], activations) for i in range(t)])
        np.testing.assert_array_equal(alone, together)
        for n_threads in (2, 3):
            np.testing.assert_array_equal(module.matmul(matrix, x, activations, n_threads), together)


@pytest.mark.parametrize("activations", ["f32", "int16"])
@pytest.mark.parametrize("name", TYPES)
def test_memory_for_panels_changes_nothing(isa, name, activations):
    module = kernels.load("matmul", isa)
    for n, k in SIZES:
        w = packed(module, name, random_rows(name, n, k), k)
        for t in (2, 4, 18):
            found = [module.matmul(w, inputs(t, k), activations, 2, 0, memory) for memory in (True, False)]
            np.testing.assert_array_equal(*found)


# one panel of blocks, two; straight from the tiles, unpacked; two panels of tokens
@pytest.mark.parametrize("t, k", [(7, 256), (7, 1440), (19, 1440), (261, 96)])
@pytest.mark.parametrize("name", [name for name in TYPES if name in OFFSETS or name in WITH_MINIMUM])
def test_values_far_above_the_rest_are_set_aside(isa, name, t, k):
    """Up to three values of a block, 1000 times the others, do not make its step coarse; a fourth one does."""
    module = kernels.load("matmul", isa)
    rows = random_rows(name, 48, k)
    w = quants.dequantize(name, rows, np.float64)
    x = inputs(t, k).reshape(t, -1, 32)
    rest = x.copy()
    for i, usual in enumerate(np.abs(x).mean(axis=(1, 2))):
        # of four tokens together some have outliers and some do not; two have the same ones; one has too many
        for at in range((0, 1, 3, 4, 1)[i % 5]):
            place = (7 * at + i // 2) % 32
            x[i, -1, place] = (-1) ** at * (1000 + at) * usual
            rest[i, -1, place] = 0 if at > 0 or i % 5 != 3 else x[i, -1, place]
    x, rest = x.reshape(t, k), rest.reshape(t, k)
    steps, wanted = half_steps(rest, "int8"), x.astype(np.float64) @ w.T
    wide = steps @ np.abs(w).T + gamma(k // 8 + 8 + 96) * (np.abs(x) + steps) @ absolute_terms(name, rows).T
    together = module.matmul(packed(module, name, rows, k), x, "int8")
    assert_within(together, wanted, wide)
    alone = np.vstack([module.matmul(packed(module, name, rows, k), x[i : i + 1], "int8") for i in range(t)])
    np.testing.assert_array_equal(alone, together)


# --- the extremes: every integer sum at its largest, compared with exact integers ------------------------------------


def uniform_rows(name, n, k, code, m=0.0):
    """Rows whose every code is `code` (stored form), with d = 1 and minimum m."""
    codes = np.full((n * k // 32, 32), code)
    parts = [quants.to_bytes("<f2", np.ones((len(codes), 1)))]
    if name in WITH_MINIMUM:
        parts.append(quants.to_bytes("<f2", np.full((len(codes), 1), m)))
    if name == "Q8_0":
        parts.append(quants.to_bytes("i1", codes))
    else:
        parts += [quants.pack(codes >> 4, 1, 1)] if name.startswith("Q5") else []
        parts.append(quants.pack(codes & 15, 4, 16))
    return np.ascontiguousarray(np.hstack(parts)).reshape(n, -1)


EXTREME_CODES = {"Q4_0": (0, 15), "Q4_1": (0, 15), "Q5_0": (0, 31), "Q5_1": (0, 31), "Q8_0": (-128, 127)}
SIGNS = {"plus": [1], "minus": [-1], "alternating": [1, -1], "pairs": [1, 1, -1, -1], "one end": [1] * 31 + [-1]}


@pytest.mark.parametrize("signs", SIGNS)
@pytest.mark.parametrize("name", EXTREME_CODES)
def test_no_integer_sum_overflows_with_8_bit_inputs(isa, name, signs):
    # amax 127 makes the scale 1: all products and sums are integers below 2^24, so that f32 holds them exactly;
    # Q8_0 takes 16 bits here, and is one block wide to stay as exact
    module, k = kernels.load("matmul", isa), 32 if name == "Q8_0" else 32 * 35
    pattern = np.resize(np.array(SIGNS[signs]), k) * LARGEST["int16" if name == "Q8_0" else "int8"]
    for code in EXTREME_CODES[name]:
        rows = uniform_rows(name, 17, k, code, m=-3.0)
        w = quants.dequantize(name, rows, np.float64)
        for t in (1, 4):
            x = np.tile(pattern, (t, 1)).astype(np.float32)
            exact = (x.astype(np.int64) @ w.T.astype(np.int64)).astype(np.float64)
            assert_within(module.matmul(packed(module, name, rows, k), x, "int8"), exact, np.abs(exact) * gamma(4))
            if name != "Q8_0":
                np.testing.assert_array_equal(module.matmul(packed(module, name, rows, k), x, "int8"), exact)


@pytest.mark.parametrize("signs", SIGNS)
@pytest.mark.parametrize("name", EXTREME_CODES)
def test_no_integer_sum_overflows_with_16_bit_inputs(isa, name, signs):
    # 32 products of at most 128 * 32767 fit int32; as f32 they and their sum over blocks are rounded, where a type's
    # offset is taken off the sum instead of the codes before it cancels
    module, k = kernels.load("matmul", isa), 32 * 35
    x = np.tile(np.resize(np.array(SIGNS[signs]), k) * float(LARGEST["int16"]), (5, 1)).astype(np.float32)
    for code in EXTREME_CODES[name]:
        rows = uniform_rows(name, 17, k, code)
        w = quants.dequantize(name, rows, np.float64)
        exact, terms = x.astype(np.float64) @ w.T, np.abs(x).astype(np.float64) @ absolute_terms(name, rows).T
        assert_within(module.matmul(packed(module, name, rows, k), x, "int16"), exact, gamma(4 * 35 + 8) * terms)


# --- backward --------------------------------------------------------------------------------------------------------


def backward_bound(w, dy, activations):
    """f32: gamma of the sum. int16: half a step of w per 128 rows and column, of dy per token and 128 rows."""
    w, dy = np.abs(w), np.abs(dy.astype(np.float64))
    total = 0
    for lo in range(0, len(w), 128):
        block, g = w[lo : lo + 128], dy[:, lo : lo + 128]
        if activations == "f32":
            total = total + gamma(2 * len(w) + 4) * g @ block
            continue
        w_half = 1.01 * block.max(axis=0, keepdims=True) / 4094
        g_half = 1.01 * g.max(axis=1, keepdims=True) / 16382
        moved = g.sum(axis=1, keepdims=True) * w_half + g_half * block.sum(axis=0) + len(block) * g_half * w_half
        total = total + moved + gamma(len(w) // 64 + 16) * (g @ block + moved)
    return total


@pytest.mark.parametrize("activations", ["f32", "int16"])
@pytest.mark.parametrize("name", TYPES)
def test_matmul_backward_is_within_its_rounding(isa, name, activations):
    module = kernels.load("matmul", isa)
    for n, k in [*sizes(name), (300, 64)]:
        rows = random_rows(name, n, k)
        matrix, w = packed(module, name, rows, k), quants.dequantize(name, rows, np.float64)
        for t in (1, 3, 4, 9):
            dy = np.random.default_rng(t).normal(size=(t, n)).astype(np.float32)
            dy[0, : n // 2] = 0
            dx = module.matmul_backward(matrix, dy, activations)
            assert dx.shape == (t, k)
            assert_within(dx, dy.astype(np.float64) @ w, backward_bound(w, dy, activations))
            alone = np.vstack([module.matmul_backward(matrix, dy[i : i + 1], activations) for i in range(t)])
            np.testing.assert_array_equal(alone, dx)
            for n_threads in (2, 3):
                np.testing.assert_array_equal(module.matmul_backward(matrix, dy, activations, n_threads), dx)


@pytest.mark.parametrize("sign", [1, -1])
def test_backward_sums_of_128_extremes_fit_int32(isa, sign):
    # 128 * 2047 * 8191 = 2146173056 < 2^31; every weight and gradient at its largest code
    module = kernels.load("matmul", isa)
    rows = quants.quantize("F32", np.full((256, 32), 2047.0, np.float32))
    dy = np.full((5, 256), sign * 8191.0, np.float32)
    dx = module.matmul_backward(packed(module, "F32", rows, 32), dy, "int16")
    np.testing.assert_allclose(dx, sign * 256 * 2047 * 8191.0, rtol=gamma(8))


def test_backward_of_zeros_is_zero_and_of_tiny_weights_finite(isa):
    module = kernels.load("matmul", isa)
    for value in (0.0, 1e-38, 1e-44):
        rows = quants.quantize("F32", np.full((128, 32), value, np.float32))
        dx = module.matmul_backward(packed(module, "F32", rows, 32), np.ones((4, 128), np.float32), "int16")
        assert_within(dx, 128 * value, 1e-2 * 128 * value + 1e-34 * 128)
        assert value or not dx.any()


def test_wrong_shapes_are_refused(isa):
    module = kernels.load("matmul", isa)
    rows = random_rows("Q4_0", 16, 64)
    with pytest.raises(ValueError, match="columns"):
        packed(module, "Q4_0", rows, 96)
    matrix = packed(module, "Q4_0", rows, 64)
    with pytest.raises(ValueError, match="wanted 64"):
        module.matmul(matrix, np.zeros((2, 32), np.float32))
    with pytest.raises(ValueError, match="wanted 16"):
        module.matmul_backward(matrix, np.zeros((2, 32), np.float32))
    with pytest.raises(ValueError, match="type 99"):
        module.PackedMatrix(rows, 99, 64)


def test_the_table_of_types_is_gguf_s(isa):
    assert kernels.load("matmul", isa).types() == {name: number(name) for name in quants.TYPES}


# --- what is set aside -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "limit"), [(576, 1.2), (1023, 1.2), (1024, 1.5), (2048, 1.5)])
@pytest.mark.parametrize("t", [1, 5])
def test_values_are_set_aside_from_the_documented_limit_on(isa, t, width, limit):
    """One row of W is 1 at a small value beside the largest: how that is rounded tells which step the block has."""
    module, k, small, beside = kernels.load("matmul", isa), 32 * 64, 0.31, 0.7
    w = np.zeros((16, k), np.float32)
    w[0, 65] = 1
    matrix = packed(module, "Q4_0", quants.quantize("Q4_0", w), k)
    for share, aside in ((0.97, False), (1.03, True)):
        x = np.full((t, k), 0.0, np.float32)
        x[:, ::32] = beside
        x[:, 65], x[:, 70] = small, beside
        # p is over the limit of 64 blocks whose others reach `beside` from p = limit * (63 beside + p) / 64 on
        x[:, 66] = share * limit * 63 * beside / (64 - limit)
        step = (beside if aside else x[0, 66]) / 127
        y = module.matmul(matrix, x, "int8", 1, width)
        np.testing.assert_allclose(y[:, 0], np.rint(np.float32(small) / step) * step, rtol=1e-6)
