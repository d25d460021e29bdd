"""AdamW's steps and the gradient's norm against float64."""

import numpy as np
import pytest

from llamacy import kernels
from llamacy.kernels.reference import layers
from tests.kernels.rounding import U, assert_within

SETTINGS = {"lr": 0.01, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.1}


def gradients(step, n):
    """Gradients of many magnitudes, zeros among them, the same sign pattern reversing every other step."""
    rng = np.random.default_rng(step)
    sizes = 10.0 ** np.random.default_rng(0).integers(-7, 3, n)
    return np.where(np.arange(n) % 7 == 3, 0, rng.normal(size=n) * sizes).astype(np.float32)


def start(n):
    p = np.random.default_rng(99).normal(size=n).astype(np.float32)
    return p, np.zeros(n, np.float32), np.zeros(n, np.float32)


@pytest.mark.parametrize("scale", [1.0, 0.37])
def test_steps_follow_the_formula(isa, scale):
    # A step rounds p twice and the update some 8 times. In m terms may cancel: its error is that of the largest
    # gradient so far, which sqrt(v) grows with: |update| <= lr * steps^1/2, its error lr * steps^1/2 * 12 u * steps.
    module, n, steps = kernels.load("adamw", isa), 64, 8
    p, m, v = start(n)
    exact, largest, factor = [x.astype(np.float64) for x in (p, m, v)], np.zeros(n), np.float64(np.float32(scale))
    for t in range(1, steps + 1):
        g = gradients(t, n)
        largest = np.maximum(largest, np.abs(g * factor))
        module.step(p, g, m, v, t, *SETTINGS.values(), scale)
        exact = layers.adamw_step(exact[0], g * factor, *exact[1:], t, **SETTINGS)
        assert_within(m, exact[1], 6 * t * U * largest)
        assert_within(v, exact[2], 6 * t * U * exact[2] + 1e-44)
        assert_within(p, exact[0], 2 * t * U * (np.abs(exact[0]) + 0.1) + 0.01 * 12 * U * t**1.5)


def test_threads_change_nothing_and_padding_stays_zero(isa):
    module, results = kernels.load("adamw", isa), []
    for n_threads in (1, 2, 3):
        state = start(80)
        state[0][-8:] = 0
        for t in (1, 2):
            g = gradients(t, 80)
            g[-8:] = 0
            module.step(state[0], g, *state[1:], t, *SETTINGS.values(), 1.0, n_threads)
        assert not any(x[-8:].any() for x in state)
        results.append(np.concatenate(state))
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


def test_parameters_are_kept_as_they_were(isa):
    module, before = kernels.load("adamw", isa), np.full(80, np.nan, np.float32)
    for n_threads in (1, 3):
        p, m, v = start(80)
        alone = p.copy(), m.copy(), v.copy()
        module.step(p, gradients(1, 80), m, v, 1, *SETTINGS.values(), 1.0, n_threads, before)
        module.step(alone[0], gradients(1, 80), *alone[1:], 1, *SETTINGS.values(), 1.0, n_threads)
        np.testing.assert_array_equal(before, start(80)[0])
        np.testing.assert_array_equal(p, alone[0])
        assert (p != before).any()
    with pytest.raises(ValueError, match="before"):
        module.step(p, gradients(1, 80), m, v, 2, *SETTINGS.values(), 1.0, 1, before[:64])


def test_lengths_that_differ_or_are_not_whole_vectors_are_refused(isa):
    module = kernels.load("adamw", isa)
    for n, other in ((16, 32), (20, 20)):
        p, m, v = start(n)
        with pytest.raises(ValueError, match="multiple of 16"):
            module.step(p, np.zeros(other, np.float32), m, v, 1, *SETTINGS.values())


def test_norm(isa):
    module = kernels.load("adamw", isa)
    g = gradients(1, 1000)
    assert module.norm(g) == pytest.approx(np.linalg.norm(g.astype(np.float64)), rel=1e-12)
    # squares beyond float32 are summed in float64
    assert module.norm(np.full(4, 1e30, np.float32)) == pytest.approx(2e30, rel=1e-6)
    assert module.norm(np.zeros(0, np.float32)) == 0
