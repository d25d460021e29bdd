"""Scales that are infinite or none: found exactly where dequantised rows hold such numbers, in every type."""

import numpy as np
import pytest

from llamacy import kernels
from llamacy.formats.types import by_name
from llamacy.kernels.reference import quants as twins


def random_blocks(name, n=5000):
    """Return n rows of one block of random bytes, and which of them hold only numbers, by the twin's f32."""
    rows = np.random.default_rng(5).integers(0, 256, (n, by_name(name).type_size), np.uint8)
    with np.errstate(all="ignore"):
        return rows, np.isfinite(twins.dequantize(name, rows)).all(axis=1)


@pytest.mark.parametrize("name", twins.TYPES)
def test_a_block_is_refused_where_it_holds_other_than_numbers(name, isa):
    finite = kernels.load("finite", isa).finite
    rows, expected = random_blocks(name)
    assert 10 < (~expected).sum() < len(rows) / 2
    number = by_name(name).number
    np.testing.assert_array_equal([finite(rows[i : i + 1], number) for i in range(len(rows))], expected)


@pytest.mark.parametrize("name", twins.TYPES)
def test_one_block_among_many_is_found(name, isa):
    finite = kernels.load("finite", isa).finite
    rows, expected = random_blocks(name)
    number, bad = by_name(name).number, rows[~expected][0]
    good = rows[expected][:1050].reshape(21, -1)  # 16-bit floats: 50 to a row
    for n_threads in (1, 3):
        assert finite(good, number, n_threads)
        for row, column in ((0, 0), (7, 31), (20, 49)):
            damaged = good.copy()
            damaged[row, column * len(bad) : (column + 1) * len(bad)] = bad
            assert not finite(damaged, number, n_threads)


@pytest.mark.parametrize("name", ["F16", "BF16"])
@pytest.mark.parametrize("n", [1, 2, 3, 7])
def test_rows_of_an_odd_number_of_floats(name, n, isa):
    finite = kernels.load("finite", isa).finite
    number = by_name(name).number
    for i in range(n):
        rows = twins.quantize(name, np.ones((1, n)))
        assert finite(rows, number)
        rows.view(np.uint16)[0, i] = 0x7F80 if name == "BF16" else 0x7C00
        assert not finite(rows, number)


@pytest.mark.parametrize("name", twins.TYPES)
def test_packing_refuses_it(name, isa):
    matmul = kernels.load("matmul", isa)
    rows, expected = random_blocks(name)
    n_cols = 8 if by_name(name).block_size == 1 else by_name(name).block_size
    per = n_cols // by_name(name).block_size
    good, number = rows[expected][: 37 * per].reshape(37, -1), by_name(name).number
    assert matmul.PackedMatrix(good, number, n_cols, n_threads=2).shape == (37, n_cols)
    for row in (0, 16, 36):
        damaged = good.copy()
        damaged[row, -by_name(name).type_size :] = rows[~expected][0]
        with pytest.raises(ArithmeticError, match="infinite or none"):
            matmul.PackedMatrix(damaged, number, n_cols, n_threads=2)
