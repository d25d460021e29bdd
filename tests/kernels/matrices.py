"""Matrices and inputs that the tests of products share."""

import numpy as np

from llamacy.formats.types import by_name


def packed(module, name, rows, n_cols):
    """A PackedMatrix of `module` (a set's matmul): rows of blocks of type `name`."""
    return module.PackedMatrix(rows, by_name(name).number, n_cols)


def inputs(t, k, seed=2):
    """x (t, k) f32 of several magnitudes, with a block of zeros and one of a single value in it."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(t, k)) * 10.0 ** rng.integers(-3, 3, (t, 1))
    x[0, :32] = 0
    x[-1, -32:-1] = 0
    return x.astype(np.float32)
