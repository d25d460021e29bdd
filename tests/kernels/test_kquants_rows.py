"""Rows of every type, compiled, against the gguf package and the NumPy twins, bit for bit, on every instruction set."""

import gguf
import numpy as np
import pytest

from llamacy import kernels
from llamacy.formats.types import TYPES, by_name
from llamacy.kernels.reference import quants as twins

SETS = kernels.available()
NAMES = [name for name in twins.TYPES if name not in ("F32", "F16", "BF16")]


def random_rows(name, n=200, seed=13):
    """Return rows of 4 blocks of random bytes: every field takes every value."""
    kind = by_name(name)
    return np.random.default_rng(seed).integers(0, 256, (n, 4 * kind.type_size), np.uint8)


@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize("name", NAMES)
def test_dequantize_equals_gguf_and_the_twin_bit_for_bit(name, isa):
    rows = random_rows(name)
    found = kernels.load("quants", isa).dequantize(rows, by_name(name).number)
    with np.errstate(all="ignore"):
        expected = [twins.dequantize(name, rows)]
        if name != "Q8_K":
            expected.append(gguf.quants.dequantize(rows, gguf.GGMLQuantizationType[name]))
    for reference in expected:
        finite = np.isfinite(reference)
        assert finite.mean() > 0.8
        np.testing.assert_array_equal(found.view(np.uint32)[finite], reference.view(np.uint32)[finite])
        np.testing.assert_array_equal(np.isfinite(found), finite)


@pytest.mark.parametrize("isa", SETS)
def test_every_type_of_the_twins_has_rows(isa):
    assert {TYPES[number].name for number in kernels.load("quants", isa).types()} == set(twins.TYPES)


@pytest.mark.parametrize("isa", SETS)
def test_threads_do_not_change_rows(isa):
    quants = kernels.load("quants", isa)
    rows = random_rows("Q4_K", 7)
    one, three = (quants.dequantize(rows, by_name("Q4_K").number, n) for n in (1, 3))
    np.testing.assert_array_equal(one.view(np.uint32), three.view(np.uint32))


@pytest.mark.parametrize("isa", SETS)
def test_a_read_only_type_says_so(isa):
    with pytest.raises(ValueError, match="can be read, not written"):
        kernels.load("quants", isa).quantize(np.zeros((1, 256), np.float32), by_name("IQ2_XXS").number)
