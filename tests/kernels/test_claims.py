"""What docs/accuracy.md says of single kernels."""

import numpy as np
import pytest

from llamacy import kernels
from llamacy.kernels.reference import quants
from tests.kernels.matrices import packed
from tests.model import claims


@pytest.mark.parametrize("name", ["Q4_0", "Q4_1", "Q8_0"])
def test_the_backward_product_is_as_near_as_claimed(isa, name):
    rng = np.random.default_rng(0)
    rows = quants.quantize(name, rng.normal(size=(1536, 576)).astype(np.float32))
    dy = rng.normal(size=(16, 1536)).astype(np.float32)
    exact = dy.astype(np.float64) @ quants.dequantize(name, rows, np.float64)
    module = kernels.load("matmul", isa)
    off = module.matmul_backward(packed(module, name, rows, 576), dy, "int16") - exact
    (claim,) = claims.sentence("a relative error near N")
    assert claims.holds(np.sqrt(np.mean(off**2) / np.mean(exact**2)), claim)
