"""Rows of blocks: written by hand, against the gguf package bit for bit, and within the bounds that a type promises."""

import gguf
import numpy as np
import pytest

from llamacy.kernels.reference import quants
from llamacy.kernels.reference.grids import grid
from llamacy.kernels.reference.rows import pack, unpack

SIMPLE = ["F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"]
IN_GGUF = [name for name in quants.TYPES if name not in ("F32", "Q8_K")]


def kind(name):
    return gguf.GGMLQuantizationType[name]


def f16(*values):
    return np.array(values, "<f2").tobytes()


def block(*parts):
    return np.frombuffer(b"".join(bytes(part) for part in parts), np.uint8)


def hard_rows():
    """Return float32 rows (n, 256) of many magnitudes, ties, zeros, one-sided, constant and near-subnormal blocks."""
    rng = np.random.default_rng(11)
    rows = [rng.normal(size=(40, 256)) * 10.0 ** rng.integers(-4, 4, (40, 1))]
    rows.append(rng.integers(-8, 9, (6, 256)) / 2)
    rows.append(rng.integers(-127, 128, (6, 256)) / 2)
    rows.append(np.abs(rng.normal(size=(3, 256))))
    rows.append([np.zeros(256), -np.zeros(256), np.full(256, 3.0), np.full(256, -3.0), rng.normal(size=256) * 1e-7])
    rows.append(np.where(np.arange(256) % 32 == 5, -1, 1)[None] * 2.5)
    return np.vstack(rows).astype(np.float32)


@pytest.mark.parametrize("name", list(quants.TYPES))
def test_block_sizes_are_gguf_s(name):
    kind_here = quants.TYPES[name]
    assert (kind_here.block_size, kind_here.type_size) == gguf.GGML_QUANT_SIZES[kind(name)]


@pytest.mark.parametrize("name", SIMPLE)
def test_quantize_row_equals_gguf_bit_for_bit(name):
    rows = hard_rows()
    expected = np.ascontiguousarray(gguf.quants.quantize(rows, kind(name))).view(np.uint8)
    np.testing.assert_array_equal(quants.quantize(name, rows), expected)


@pytest.mark.parametrize("name", IN_GGUF)
def test_dequantize_row_equals_gguf_bit_for_bit(name):
    # random bytes reach every field; float16 scales among them may be infinite or NaN, as in the reference
    size = quants.TYPES[name].type_size
    rows = np.random.default_rng(13).integers(0, 256, (300, 4 * size), np.uint8)
    with np.errstate(all="ignore"):
        expected = gguf.quants.dequantize(rows, kind(name))
    found = quants.dequantize(name, rows)
    assert found.dtype == np.float32
    finite = np.isfinite(expected)
    assert finite.mean() > 0.8
    np.testing.assert_array_equal(found.view(np.uint32)[finite], expected.view(np.uint32)[finite])
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("name", [n for n in IN_GGUF if n.startswith(("IQ1", "IQ2", "IQ3")) and n != "IQ1_M"])
def test_grids_are_gguf_s(name):
    reference = getattr(gguf.quants, name)
    reference.init_grid()
    np.testing.assert_array_equal(grid(name), reference.grid.reshape(reference.grid_shape))


def test_q4_0_by_hand():
    # d 0.5; byte j holds j (low) and 15 - j (high): elements j and j + 16
    blocks = block(f16(0.5), [j | (15 - j) << 4 for j in range(16)])
    expected = np.r_[np.arange(16) - 8, 7 - np.arange(16)] * 0.5
    np.testing.assert_array_equal(quants.dequantize("Q4_0", blocks), expected)
    np.testing.assert_array_equal(quants.quantize("Q4_0", expected), blocks)


def test_q4_1_by_hand():
    blocks = block(f16(0.5, -3.0), [j | (15 - j) << 4 for j in range(16)])
    expected = np.r_[np.arange(16), 15 - np.arange(16)] * 0.5 - 3
    np.testing.assert_array_equal(quants.dequantize("Q4_1", blocks), expected)
    np.testing.assert_array_equal(quants.quantize("Q4_1", expected), blocks)


def test_q5_0_by_hand():
    # the fifth bits are set for elements 16 to 31 only: low nibbles 0..15 give -16..-1, high ones 0..15 give 0..15
    blocks = block(f16(0.25), [0, 0, 255, 255], [j * 17 for j in range(16)])
    expected = (np.arange(32) - 16) * 0.25
    np.testing.assert_array_equal(quants.dequantize("Q5_0", blocks), expected)
    np.testing.assert_array_equal(quants.quantize("Q5_0", expected), blocks)


def test_q5_1_by_hand():
    blocks = block(f16(0.25, 2.0), [0, 0, 255, 255], [j * 17 for j in range(16)])
    expected = np.arange(32) * 0.25 + 2
    np.testing.assert_array_equal(quants.dequantize("Q5_1", blocks), expected)
    np.testing.assert_array_equal(quants.quantize("Q5_1", expected), blocks)


def test_q8_0_by_hand():
    q = np.r_[-127, np.arange(-15, 16)].astype(np.int8)
    blocks = block(f16(2.0), q.tobytes())
    np.testing.assert_array_equal(quants.dequantize("Q8_0", blocks), 2.0 * q)
    np.testing.assert_array_equal(quants.quantize("Q8_0", 2.0 * q), blocks)
    # halves go away from zero: with d = 1, 2.5 -> 3 and -2.5 -> -3
    halves = np.zeros(32)
    halves[:3] = 127, 2.5, -2.5
    np.testing.assert_array_equal(quants.dequantize("Q8_0", quants.quantize("Q8_0", halves))[:3], [127, 3, -3])


def test_q8_k_by_hand():
    q = np.arange(-128, 128).astype(np.int8)
    sums = q.reshape(16, 16).sum(axis=1, dtype="<i2")
    blocks = block(np.float32(0.1).tobytes(), q.tobytes(), sums.tobytes())
    np.testing.assert_array_equal(quants.dequantize("Q8_K", blocks), np.float32(0.1) * q.astype(np.float32))


def test_plain_floats_by_hand():
    x = np.array([1.0, -2.5, 65504, 1e6, 1 + 2**-8, 1 + 3 * 2**-8], np.float32)
    np.testing.assert_array_equal(quants.dequantize("F32", quants.quantize("F32", x)), x)
    np.testing.assert_array_equal(quants.dequantize("F16", quants.quantize("F16", x[:4])), [1, -2.5, 65504, np.inf])
    # bf16 keeps 7 bits after the point: ties go to the even neighbour, 1 and 1 + 4 / 256
    np.testing.assert_array_equal(quants.dequantize("BF16", quants.quantize("BF16", x[4:])), [1, 1 + 2**-6])
    assert np.isnan(quants.dequantize("BF16", quants.quantize("BF16", np.float32([np.nan]))))


@pytest.mark.parametrize(
    ("name", "steps"), [("Q4_0", 8), ("Q4_1", 15), ("Q5_0", 16), ("Q5_1", 31), ("Q8_0", 127), ("F16", 0), ("BF16", 0)]
)
def test_quantising_errs_by_at_most_a_step(name, steps):
    """Half a step (a whole one at Q4_0's and Q5_0's cut upper end), plus float16's rounding of d and m."""
    x = np.random.default_rng(3).normal(size=(64, 32)).astype(np.float32)
    error = np.abs(quants.dequantize(name, quants.quantize(name, x), np.float64) - x)
    if steps == 0:
        assert np.all(error <= np.abs(x) * (2**-11 if name == "F16" else 2**-8))
        return
    reach = np.ptp(x, axis=1) if name.endswith("1") else np.abs(x).max(axis=1)
    step = reach / steps * (1.0 if name in ("Q4_0", "Q5_0") else 0.5)
    assert np.all(error.max(axis=1) <= step + 3 * 2**-11 * np.abs(x).max(axis=1))


@pytest.mark.parametrize(("bits", "run"), [(1, 1), (1, 32), (2, 4), (2, 32), (4, 1), (4, 16), (4, 64)])
def test_pack_is_the_inverse_of_unpack(bits, run):
    field = np.random.default_rng(5).integers(0, 256, (3, 64), np.uint8)
    np.testing.assert_array_equal(pack(unpack(field, bits, run), bits, run), field)


@pytest.mark.parametrize("name", list(quants.TYPES))
def test_rows_of_any_shape_and_broken_rows(name):
    size = quants.TYPES[name].type_size
    rows = np.random.default_rng(17).integers(0, 200, (2, 3, 2 * size), np.uint8)
    stacked = quants.dequantize(name, rows)
    np.testing.assert_array_equal(stacked[1, 2], quants.dequantize(name, rows[1, 2]))
    assert quants.dequantize(name, rows[:0]).shape == (0, *stacked.shape[1:])
    if size > 1:
        with pytest.raises(ValueError, match="whole blocks"):
            quants.dequantize(name, rows[..., 1:])
    if quants.TYPES[name].quantize:
        assert quants.quantize(name, stacked[:0]).shape == (0, *rows.shape[1:])
    if quants.TYPES[name].quantize and quants.TYPES[name].block_size > 1:
        with pytest.raises(ValueError, match="whole blocks"):
            quants.quantize(name, stacked[..., 1:])


@pytest.mark.parametrize(("bits", "top", "dtype"), [(8, 127, np.int8), (16, 32767, np.int16)])
def test_activations(bits, top, dtype):
    x = np.random.default_rng(19).normal(size=(5, 96)) * 10.0 ** np.arange(5)[:, None]
    x[2, 32:64] = 0
    q, scale, sums = quants.quantize_activations(x, bits)
    assert (q.dtype, scale.shape, sums.dtype, scale[2, 1]) == (dtype, (5, 3), np.int32, 0)
    np.testing.assert_allclose(scale, np.abs(x.reshape(5, 3, 32)).max(axis=2) / top, rtol=1e-15)
    np.testing.assert_array_equal(sums, q.reshape(5, 3, 32).astype(int).sum(axis=2))
    assert np.abs(q.astype(int)).max() == top
    error = np.abs(quants.dequantize_activations(q, scale) - x).reshape(5, 3, 32).max(axis=2)
    assert np.all(error <= 0.5 * scale * (1 + 1e-9))
    np.testing.assert_array_equal(quants.round_activations(x, bits), quants.dequantize_activations(q, scale))
    np.testing.assert_array_equal(quants.round_activations(x), x)


def test_activations_halves_go_to_even():
    x = np.zeros(32)
    x[:5] = 127, 0.5, 1.5, -2.5, -3.5
    np.testing.assert_array_equal(quants.quantize_activations(x)[0][:5], [127, 0, 2, -2, -4])


def test_quantized_linear_is_the_blocks_arithmetic():
    """Sum over blocks of d_w d_x (sum q_w q_x - 8 sum q_x): what vec_dot_q4_0_q8_0 computes in integers."""
    rng = np.random.default_rng(23)
    x, rows = rng.normal(size=(2, 64)), quants.quantize("Q4_0", rng.normal(size=(3, 64)))
    q_x, d_x, sums = quants.quantize_activations(x)
    blocks = rows.reshape(3, 2, 18)
    d_w = blocks[..., :2].copy().view(np.float16)[..., 0].astype(float)
    q_w = unpack(blocks[..., 2:].reshape(6, 16), 4, 16).reshape(3, 2, 32)
    dots = np.einsum("obk,tbk->tob", q_w, q_x.reshape(2, 2, 32).astype(int)) - 8 * sums[:, None]
    expected = (dots * d_w * d_x[:, None]).sum(axis=-1)
    np.testing.assert_allclose(quants.quantized_linear(x, rows, "Q4_0", bits=8), expected, rtol=1e-12)
