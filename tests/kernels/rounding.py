"""Bounds on float32 arithmetic, for tests that compare with float64, and slopes for tests of backward passes."""

import numpy as np

U = 2.0**-24  # half a unit in the last place of 1: what one float32 operation may be off, relatively


def gamma(n):
    """Relative bound of n roundings in sequence: n u / (1 - n u) (Higham, Accuracy and Stability, 3.1)."""
    return n * U / (1 - n * U)


def assert_within(found, exact, bound):
    """Assert |found - exact| <= bound, element by element; NaN is never within."""
    found, exact, bound = np.broadcast_arrays(np.asarray(found, np.float64), exact, bound)
    excess = np.abs(found - exact) - bound
    wrong = ~(excess <= 0)
    if wrong.any():
        i = np.unravel_index(np.argmax(np.where(np.isnan(excess), np.inf, excess)), excess.shape)
        raise AssertionError(f"{wrong.sum()} outside; at {i}: {found[i]!r}, wanted {exact[i]!r} +- {bound[i]:.3g}")


def slope(f, x, direction, h):
    """Central difference of the scalar f at x along `direction`; error h^2 f''' / 6 + (error of f) / h."""
    up, down = (x + h * direction).astype(np.float32), (x - h * direction).astype(np.float32)
    # what float32 made of the step: the difference quotient is taken over it
    moved = np.sum((up.astype(np.float64) - down) * direction) / np.sum(direction.astype(np.float64) ** 2)
    return (f(up) - f(down)) / moved
