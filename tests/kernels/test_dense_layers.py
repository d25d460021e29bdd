"""LayerNorm and the curves of an MLP against float64, and their backward passes against finite differences.

vf_exp's relative error is below 2e-7 = 3.4 u, vf_erf's absolute one below 4e-7 = 7 u.
"""

import numpy as np
import pytest

from llamacy import kernels
from llamacy.kernels.reference import layers
from tests.kernels.rounding import U, assert_within, gamma
from tests.kernels.test_layers import assert_gradient, normal

CURVES = ("geglu_tanh", "geglu_erf", "gelu_tanh", "gelu_erf", "relu_squared")
GATED = ("geglu_tanh", "geglu_erf")


@pytest.mark.parametrize("n", [1, 2, 15, 16, 100, 576])
@pytest.mark.parametrize("offset", [0.0, 30.0])
@pytest.mark.parametrize("with_bias", [False, True])
def test_layer_norm(isa, n, offset, with_bias):
    module, x, w = kernels.load("norm", isa), normal(1, 5, n) + np.float32(offset), normal(2, n)
    bias = normal(3, n) if with_bias else None
    y = module.rows(x, w, 1e-5, kind="layer", bias=bias)
    exact = layers.layer_norm(x, w, 0 if bias is None else bias, 1e-5)
    # the mean is off by some u of the largest sums, which the deviation divides
    x = x.astype(np.float64)
    r = 1 / np.sqrt(x.var(axis=1, keepdims=True) + 1e-5)
    off = gamma(n // 16 + 8) * (np.abs(x).mean(axis=1, keepdims=True) + np.abs(x)) * r
    sizes = np.abs(exact) + (0 if bias is None else np.abs(bias))
    bound = gamma(n // 16 + 16) * sizes + 3 * off * (np.abs(w) + np.abs(exact))
    assert_within(y, exact, bound)


def test_layer_norm_of_equal_numbers_is_its_bias(isa):
    module, bias = kernels.load("norm", isa), normal(1, 40)
    y = module.rows(np.full((2, 40), 7, np.float32), normal(2, 40), 1e-5, kind="layer", bias=bias)
    np.testing.assert_allclose(y, np.tile(bias, (2, 1)), atol=1e-3)


@pytest.mark.parametrize("n", [2, 15, 16, 100])
def test_layer_norm_backward(isa, n):
    module, x, w, dy = kernels.load("norm", isa), normal(1, 5, n) + 1, normal(2, n), normal(3, 5, n)
    exact = layers.layer_norm_backward(dy, x, w, 1e-5)[0]
    terms = np.abs(w * dy).max() / np.sqrt(x.var(axis=1, keepdims=True) + 1e-5) * (1 + np.abs(x - x.mean()) ** 2)
    assert_within(module.rows(x, w, 1e-5, dy, kind="layer"), exact, gamma(n + 64) * terms)


def test_layer_norm_slopes(isa):
    module, x, w = kernels.load("norm", isa), normal(1, 3, 40), normal(2, 40)
    run = lambda p, dy=None: module.rows(p, w, 1e-5, dy, kind="layer")  # noqa: E731
    assert_gradient(run, lambda dy: run(x, dy), x, 4)


def test_rms_norm_and_layer_norm_agree_where_the_mean_is_zero(isa):
    module, x, w = kernels.load("norm", isa), normal(1, 3, 48), normal(2, 48)
    x -= x.mean(axis=1, keepdims=True)
    found = [module.rows(x, w, 1e-5, kind=kind) for kind in ("rms", "layer")]
    np.testing.assert_allclose(*found, rtol=1e-4, atol=1e-5)


def inputs():
    """Pairs (gate, up), each 80 long: ordinary values, and gates where the curves are 0 or x to the last bit."""
    far = [-1e4, -200, -90, -20, -10, -6, -5, -1e-30, 0, 1e-30, 5, 6, 10, 20, 200, 1e4]
    return np.r_[np.linspace(-4, 4, 33), far, normal(2, 31)].astype(np.float32), normal(3, 80)


@pytest.mark.parametrize("name", CURVES)
def test_curves(isa, name):
    gate, up = inputs()
    exact = layers.activate(name, gate, up)
    size = np.abs(gate * (up if name in GATED else 1)).astype(np.float64)
    # erf's error, halved; the exponent of tanh's form is off by some u of itself, and a share of 1 by that
    bound = gamma(16) * np.abs(exact) + (3e-7 if name.endswith("erf") else 16 * U * np.minimum(gate**2, 40)) * size
    assert_within(kernels.load("mlp", isa).apply(gate, up, name=name), exact, bound + 2e-38 * (1 + size))


@pytest.mark.parametrize("name", CURVES)
def test_curves_backward(isa, name):
    gate, up = inputs()
    dh = normal(4, 80)
    dgate, dup = layers.activate_backward(name, dh, gate, up)
    found_gate, found_up = kernels.load("mlp", isa).apply(gate, up, dh, name=name)
    size = np.abs(dh * (up if name in GATED else 1)).astype(np.float64)
    bell = np.minimum(1 + np.abs(gate.astype(np.float64)) ** 4, 2e3)
    assert_within(found_gate, dgate, gamma(24) * np.abs(dgate) + 2e-6 * size * bell)
    if name in GATED:
        assert_within(found_up, dup, gamma(16) * np.abs(dup) + 1e-6 * np.abs(dh * gate))
    else:
        np.testing.assert_array_equal(found_up, up)


@pytest.mark.parametrize("name", CURVES)
def test_curves_slopes(isa, name):
    module, gate, up = kernels.load("mlp", isa), normal(1, 32), normal(2, 32)
    run = lambda p, u, dh=None: module.apply(p, u, dh, name=name)  # noqa: E731
    assert_gradient(lambda p: run(p, up), lambda dh: run(gate, up, dh)[0], gate, 6)
    if name in GATED:
        assert_gradient(lambda p: run(gate, p), lambda dh: run(gate, up, dh)[1], up, 7)


@pytest.mark.parametrize("name", CURVES)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_not_numbers_stay_so(isa, name, value):
    gate, up = normal(1, 32), normal(2, 32)
    gate[5] = value
    module = kernels.load("mlp", isa)
    assert not np.isfinite(module.apply(gate, up, name=name)[5])
    assert np.isfinite(np.delete(module.apply(gate, up, name=name), 5)).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30])
def test_a_row_that_layer_norm_cannot_hold_is_not_a_number(isa, value):
    module, x = kernels.load("norm", isa), normal(1, 2, 48)
    x[0, 7] = value
    y = module.rows(x, np.ones(48, np.float32), 1e-5, kind="layer")
    assert np.isnan(y[0]).all() and np.isfinite(y[1]).all()
