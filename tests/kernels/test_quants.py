"""Rows of blocks: compiled functions against the gguf package and the NumPy twin, bit for bit."""

import gguf
import numpy as np
import pytest

from llamacy import kernels
from llamacy.formats import types
from llamacy.kernels.reference import quants

TYPES = ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "MXFP4", "TQ1_0", "TQ2_0"]
BLOCKS = [name for name in TYPES if quants.TYPES[name].block_size > 1]


def number(name):
    return int(gguf.GGMLQuantizationType[name])


def width(name):
    """Three blocks, of at least 32 elements."""
    return 3 * max(32, quants.TYPES[name].block_size)


def rows_to_quantize(n=96):
    """float32 rows (_, n): many magnitudes, ties, constants, zeros, one-sided, tiny and beyond float16's scales."""
    rng = np.random.default_rng(5)
    rows = [
        rng.normal(size=(60, n)) * 10.0 ** rng.integers(-6, 5, (60, 1)),
        rng.integers(-16, 17, (20, n)) / 2,
        rng.integers(-127, 128, (20, n)) / 2,
        np.abs(rng.normal(size=(4, n))),
        -np.abs(rng.normal(size=(4, n))),
        np.outer([0.0, -0.0, 3.0, -3.0, 1e-7, -1e-30, 65504, -65504, 500000], np.ones(n)),
        np.where(np.arange(n) % 32 == 31, -1.0, 1.0)[None] * [[2.5], [-2.5]],
    ]
    return np.vstack(rows).astype(np.float32)


@pytest.mark.parametrize("name", TYPES)
def test_quantize_equals_gguf_and_the_twin_bit_for_bit(isa, name):
    rows = rows_to_quantize(width(name))
    with np.errstate(over="ignore"):
        expected = np.ascontiguousarray(gguf.quants.quantize(rows, gguf.GGMLQuantizationType[name])).view(np.uint8)
    found = kernels.load("quants", isa).quantize(rows, number(name))
    np.testing.assert_array_equal(found, quants.quantize(name, rows))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("name", BLOCKS)
def test_values_whose_step_has_no_inverse_count_as_zero(isa, name):
    # 1 / d would be infinite; gguf's own answer hangs on what the processor makes of infinity as an integer
    rows = (np.random.default_rng(8).normal(size=(4, width(name))) * 1e-40).astype(np.float32)
    found = kernels.load("quants", isa).quantize(rows, number(name))
    np.testing.assert_array_equal(found, quants.quantize(name, rows))
    assert not kernels.load("quants", isa).dequantize(found, number(name)).any()


@pytest.mark.parametrize("name", TYPES)
def test_dequantize_any_bytes_equals_gguf_and_the_twin(isa, name):
    # random bytes reach every code and every kind of scale: subnormal, infinite and NaN ones among them
    rows = np.random.default_rng(6).integers(0, 256, (400, 3 * quants.TYPES[name].type_size), np.uint8)
    with np.errstate(all="ignore"):
        expected = gguf.quants.dequantize(rows, gguf.GGMLQuantizationType[name])
    found = kernels.load("quants", isa).dequantize(rows, number(name))
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(found, quants.dequantize(name, rows))


def test_every_half_and_bfloat_number_survives_the_way_there_and_back(isa):
    bits = np.arange(1 << 16, dtype=np.uint16).reshape(64, -1)
    module = kernels.load("quants", isa)
    for name in ("F16", "BF16"):
        values = module.dequantize(bits.view(np.uint8), number(name))
        back = module.quantize(values, number(name)).view(np.uint16)
        same = back == bits
        # a NaN may come back quiet, but it stays one
        np.testing.assert_array_equal(same | np.isnan(values), True)
        assert np.isnan(module.dequantize(back.view(np.uint8), number(name))[np.isnan(values)]).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3.4e38])
@pytest.mark.parametrize("name", BLOCKS)
def test_what_a_type_cannot_hold_stays_in_its_block(isa, name, value):
    rows = np.random.default_rng(7).normal(size=(1, width(name))).astype(np.float32)
    module = kernels.load("quants", isa)
    clean = module.quantize(rows, number(name))
    rows[0, width(name) // 3 + 8] = value
    found, size = module.quantize(rows, number(name)), quants.TYPES[name].type_size
    np.testing.assert_array_equal(found[:, :size], clean[:, :size])
    np.testing.assert_array_equal(found[:, 2 * size :], clean[:, 2 * size :])


@pytest.mark.parametrize("name", TYPES)
def test_threads_and_empty_rows_change_nothing(isa, name):
    module, rows = kernels.load("quants", isa), rows_to_quantize(width(name))
    one = module.quantize(rows, number(name), 1)
    np.testing.assert_array_equal(module.quantize(rows, number(name), 3), one)
    np.testing.assert_array_equal(
        module.dequantize(one, number(name), 3).view(np.uint32), module.dequantize(one, number(name), 1).view(np.uint32)
    )
    assert module.quantize(np.zeros((0, width(name)), np.float32), number(name)).shape[0] == 0
    assert module.dequantize(np.zeros((2, 0), np.uint8), number(name)).shape == (2, 0)


def test_wrong_sizes_and_types_are_refused(isa):
    module = kernels.load("quants", isa)
    with pytest.raises(ValueError, match="blocks of 32"):
        module.quantize(np.zeros((1, 40), np.float32), number("Q4_0"))
    with pytest.raises(ValueError, match="blocks of 18"):
        module.dequantize(np.zeros((1, 40), np.uint8), number("Q4_0"))
    with pytest.raises(ValueError, match="type 99"):
        module.dequantize(np.zeros((1, 66), np.uint8), 99)


@pytest.mark.parametrize("kind", types.WEIGHT_TYPES, ids=lambda kind: kind.name)
def test_rows_may_begin_at_any_address(isa, kind):
    """A file's alignment may be 1: rows at odd addresses are read as elsewhere (how, `make asan` sees)."""
    module, n_cols = kernels.load("quants", isa), max(64, kind.block)
    n_bytes = n_cols // kind.block * kind.block_bytes
    rows = np.random.default_rng(7).integers(0, 256, (3, n_bytes), np.uint8)
    if kind.number in module.writable():
        values = np.random.default_rng(8).normal(size=(3, n_cols)).astype(np.float32)
        rows = module.quantize(values, kind.number)
    memory = np.empty(3 * n_bytes + 1, np.uint8)
    odd = memory[1 - memory.ctypes.data % 2 :][: 3 * n_bytes].reshape(3, n_bytes)
    odd[:] = rows
    assert odd.ctypes.data % 2 == 1
    np.testing.assert_array_equal(module.dequantize(odd, kind.number), module.dequantize(rows, kind.number))
    if kind.number in module.writable():
        products = kernels.load("matmul", isa)
        found = [products.matmul(products.PackedMatrix(each, kind.number, n_cols), values) for each in (odd, rows)]
        np.testing.assert_array_equal(*found)
