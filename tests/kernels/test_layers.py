"""Norm, rotary positions, SwiGLU and the loss against float64, and their backward passes against finite differences.

vf_exp's relative error is below 2e-7 = 3.4 u; it clamps to [-87, 88], which adds at most exp(-87) < 2e-38 absolutely.
"""

import numpy as np
import pytest

from llamacy import kernels
from llamacy.kernels.reference import layers
from tests.kernels.rounding import U, assert_within, gamma, slope

PAIRS, HALVES = 0, 1
LAYOUTS = {"pairs": PAIRS, "halves": HALVES}


def normal(seed, *shape, scale=1.0):
    return (np.random.default_rng(seed).normal(size=shape) * scale).astype(np.float32)


def assert_gradient(forward, backward, x, seed, h=1e-2, tolerance=3e-4):
    """Check backward(dy) against central differences of sum(dy * forward(x)) along random directions.

    With |x|, |dy| near 1 and h = 0.01 the third derivative gives about 1e-4 |direction|, float32's rounding of n
    outputs n^1/2 u / h, less than that.
    """
    dy = normal(seed, *np.shape(forward(x)))
    dx = backward(dy).astype(np.float64)
    for i in range(3):
        direction = normal((seed, i), *x.shape)
        direction /= np.linalg.norm(direction)
        found = slope(lambda point: np.sum(dy.astype(np.float64) * forward(point)), x, direction, h)
        assert found == pytest.approx(np.sum(dx * direction), abs=tolerance * np.linalg.norm(dx))


# --- norm: n / 16 + 4 sums of squares, a root and two products; the mean's error halves in the root -------------------


@pytest.mark.parametrize("n", [1, 15, 16, 100, 576])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_rms_norm(isa, n, scale):
    module, x, w = kernels.load("norm", isa), normal(1, 5, n, scale=scale), normal(2, n)
    y, exact = module.rows(x, w, 1e-5), layers.rms_norm(x, w, 1e-5)
    assert_within(y, exact, gamma(n // 16 + 12) * np.abs(exact))
    np.testing.assert_array_equal(module.rows(np.zeros((1, n), np.float32), w, 1e-5), 0)


@pytest.mark.parametrize("n", [1, 15, 16, 100, 576])
def test_rms_norm_backward(isa, n):
    module, x, w, dy = kernels.load("norm", isa), normal(1, 5, n), normal(2, n), normal(3, 5, n)
    exact, _ = layers.rms_norm_backward(dy, x, w, 1e-5)
    r = 1 / np.sqrt(np.mean(x.astype(np.float64) ** 2, axis=1, keepdims=True) + 1e-5)
    terms = r * (np.abs(w * dy) + r**2 * np.abs(x) * np.mean(np.abs(w * dy * x), axis=1, keepdims=True))
    assert_within(module.rows(x, w, 1e-5, dy), exact, gamma(3 * (n // 16) + 24) * terms)


def test_rms_norm_slopes(isa):
    module, x, w = kernels.load("norm", isa), normal(1, 3, 40), normal(2, 40)
    assert_gradient(lambda p: module.rows(p, w, 1e-5), lambda dy: module.rows(x, w, 1e-5, dy), x, 4)


# --- rope: cos and sin rounded to f32, two products, a sum -----------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("head_dim", "n_rot", "scale", "scaled"), [(16, 16, 1, False), (24, 10, 4, False), (64, 64, 1, True)]
)
def test_rope_and_its_inverse(isa, layout, head_dim, n_rot, scale, scaled):
    module, positions = kernels.load("rope", isa), np.array([0, 1, 7, 4095, 131071])
    factors = np.linspace(1, 8, n_rot // 2) if scaled else None
    x = normal(1, 5, 3, head_dim)
    frequencies = layers.rope_angles([1], n_rot, 10000.0, scale, factors)[0]
    how = (positions, 10000.0, layout, n_rot, scale, factors)
    longest = np.abs(x).max(axis=2, keepdims=True).astype(np.float64)
    # a different order of the products in the angle moves it by some 1e-16 * 131071 radians: less than u
    bound = gamma(8) * 2 * longest
    assert_within(module.rows(x, positions, frequencies, LAYOUTS[layout]), layers.rope(x, *how), bound)
    back = module.rows(x, positions, frequencies, LAYOUTS[layout], True)
    assert_within(back, layers.rope_backward(x, *how), bound)
    np.testing.assert_array_equal(back[..., n_rot:], x[..., n_rot:])
    turned = module.rows(x, positions, frequencies, LAYOUTS[layout])
    assert_within(module.rows(turned, positions, frequencies, LAYOUTS[layout], True), x, 4 * bound)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_rope_slopes(isa, layout):
    module, x, positions = kernels.load("rope", isa), normal(1, 4, 2, 12), np.arange(4) * 3
    frequencies = layers.rope_angles([1], 8, 100.0)[0]
    run = lambda p, back=False: module.rows(p, positions, frequencies, LAYOUTS[layout], back)  # noqa: E731
    assert_gradient(run, lambda dy: run(dy, True), x, 5)


# --- swiglu: an exponential, a quotient and products -----------------------------------------------------------------


def gates():
    """Pairs (gate, up), each 64 long: ordinary values, and gates where the sigmoid is 0 or 1 to the last bit."""
    far = [-1e4, -200, -90, -87, -30, -1e-30, 0, 1e-30, 30, 87, 90, 200, 1e4]
    return np.r_[normal(1, 32, scale=3), far, normal(2, 19)].astype(np.float32), normal(3, 64)


def test_swiglu(isa):
    gate, up = gates()
    exact = layers.swiglu(gate, up)
    # beyond the clamp, silu(g) = -|g| exp(-|g|) becomes at most |g| exp(-87)
    bound = gamma(12) * np.abs(exact) + 2e-38 * np.abs(gate * up)
    assert_within(kernels.load("mlp", isa).apply(gate, up), exact, bound)


def test_swiglu_backward(isa):
    gate, up = gates()
    dh = normal(4, 64)
    dgate, dup = layers.swiglu_backward(dh, gate, up)
    found_gate, found_up = kernels.load("mlp", isa).apply(gate, up, dh)
    # s (1 + g (1 - s)): 1 - s is off by u (1 - s) + u s, times |g| s
    s = 1 / (1 + np.exp(-np.clip(gate.astype(np.float64), -700, 700)))
    terms = np.abs(dh * up) * s * (1 + np.abs(gate))
    assert_within(found_gate, dgate, gamma(16) * terms + 2e-38 * np.abs(dh * up) * (1 + np.abs(gate)))
    assert_within(found_up, dup, gamma(12) * np.abs(dup) + 2e-38 * np.abs(gate * dh))


def test_swiglu_slopes(isa):
    module, gate, up = kernels.load("mlp", isa), normal(1, 32), normal(2, 32)
    assert_gradient(lambda p: module.apply(p, up), lambda dh: module.apply(gate, up, dh)[0], gate, 6)
    assert_gradient(lambda p: module.apply(gate, p), lambda dh: module.apply(gate, up, dh)[1], up, 7)


def clamped_gates():
    """Pairs on both sides of every bound, at it, and where the sigmoid is 0 or 1."""
    values = np.array([-1e4, -90, -8, -7.0001, -7, -6.9999, -1, 0, 1, 6.9999, 7, 7.0001, 8, 90, 1e4, 0.5], np.float32)
    return np.repeat(values, 16), np.tile(values, 16)


def test_clamped_swiglu(isa):
    gate, up = clamped_gates()
    exact = layers.swiglu_clamped(gate, up)
    # u + 1 is rounded once, in a product of at most 7 * 8
    g = np.minimum(gate.astype(np.float64), 7)
    s = 1 / (1 + np.exp(-np.clip(1.702 * g, -700, 700)))
    # beyond the exponential's clamp the sigmoid is exp(-87)
    bound = np.abs(g) * (gamma(14) * s + 2e-38) * (1 + np.minimum(np.abs(up), 7))
    assert_within(kernels.load("mlp", isa).apply(gate, up, name="swiglu_clamped"), exact, bound)


def test_clamped_swiglu_backward(isa):
    gate, up = clamped_gates()
    dh = normal(4, len(gate))
    dgate, dup = layers.swiglu_clamped_backward(dh, gate, up)
    found_gate, found_up = kernels.load("mlp", isa).apply(gate, up, dh, "swiglu_clamped")
    g = np.minimum(gate.astype(np.float64), 7)
    s = 1 / (1 + np.exp(-np.clip(1.702 * g, -700, 700)))
    terms = np.abs(dh) * (1 + 1.702 * np.abs(g)) * (1 + np.minimum(np.abs(up), 7))
    assert_within(found_gate, dgate, (gamma(20) * s + 2e-38) * terms)
    assert_within(found_up, dup, np.abs(dh * g) * (gamma(14) * s + 2e-38))
    assert not dgate[gate > 7].any() and not dup[np.abs(up) > 7].any()


def test_clamped_swiglu_slopes(isa):
    module, gate, up = kernels.load("mlp", isa), normal(1, 32), normal(2, 32)

    def run(gate, up, dh=None):
        return module.apply(gate, up, dh, "swiglu_clamped")

    assert_gradient(lambda p: run(p, up), lambda dh: run(gate, up, dh)[0], gate, 6)
    assert_gradient(lambda p: run(gate, p), lambda dh: run(gate, up, dh)[1], up, 7)


@pytest.mark.parametrize("place", [0, 1])
def test_clamped_swiglu_of_no_number_is_none(isa, place):
    pair = [np.ones(16, np.float32), np.ones(16, np.float32)]
    pair[place][3] = np.nan
    assert np.isnan(kernels.load("mlp", isa).apply(*pair, name="swiglu_clamped")).sum() == 1


# --- cross entropy ---------------------------------------------------------------------------------------------------


def loss_bounds(x, weight):
    """Bounds on the loss (T,) and its gradient (T, n).

    x - max is rounded (relative u, an error of |x - max| u in the exponent), exp is off by 4 u, 16 lanes are summed
    in f32 (4 u), the factor and the product by 2 u; clamped terms add n exp(-87).
    """
    x = x.astype(np.float64)
    below = x.max(axis=1, keepdims=True) - x
    p = np.exp(layers.log_softmax(x))
    relative = (12 + below) * U
    total = np.sum(p * relative, axis=1, keepdims=True)
    floor = x.shape[1] * 2e-38
    peak_minus_target = U * below.max(axis=1)
    return total[:, 0] + 4 * U + floor + peak_minus_target, abs(weight) * (p * (relative + total + 4 * U) + U + floor)


@pytest.mark.parametrize("n", [1, 2, 16, 97, 1000])
@pytest.mark.parametrize("scale", [1.0, 30.0, 1e4, 1e30])
def test_cross_entropy(isa, n, scale):
    x = normal(n, 6, n, scale=scale)
    targets = np.random.default_rng(n).integers(0, n, 6)
    losses, dx = kernels.load("loss", isa).rows(x, targets, 0.25)
    exact = np.array([layers.cross_entropy(x[i : i + 1], targets[i : i + 1]) for i in range(6)])
    bound, dbound = loss_bounds(x, 0.25)
    assert_within(losses, exact, bound)
    assert_within(dx, 0.25 * 6 * layers.cross_entropy_backward(x, targets), dbound)


def test_cross_entropy_where_float32_would_overflow_or_vanish(isa):
    module = kernels.load("loss", isa)
    x = np.array([[0.0, 1000, -1000], [3e38, -3e38, 0], [-1e30, -1e30, -1e30]], np.float32)
    losses, dx = module.rows(x, [0, 0, 1], 1.0)
    np.testing.assert_allclose(losses, [1000, 0, np.log(3)], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(dx, [[-1, 1, 0], [0, 0, 0], [1 / 3, -2 / 3, 1 / 3]], atol=1e-6)


@pytest.mark.parametrize("n", [1, 16, 97, 1000])
@pytest.mark.parametrize(("scale", "cap"), [(1.0, 0.5), (30.0, 30.0), (1e30, 30.0)])
def test_cross_entropy_of_capped_logits(isa, n, scale, cap):
    x, targets = normal(n, 6, n, scale=scale), np.random.default_rng(n).integers(0, n, 6)
    losses, dx = kernels.load("loss", isa).rows(x, targets, 0.25, cap)
    capped = layers.soft_cap(x, cap)
    exact = np.array([layers.cross_entropy(capped[i : i + 1], targets[i : i + 1]) for i in range(6)])
    bound, dbound = loss_bounds(capped, 0.25)
    # the cap brings an error of 2e-7 of itself to every logit, twice to their differences, and 4e-7 to its slope
    assert_within(losses, exact, bound + 4e-7 * cap)
    of_capped = 0.25 * 6 * layers.cross_entropy_backward(capped, targets)
    assert_within(dx, layers.soft_cap_backward(of_capped, x, cap), dbound + (5e-7 * cap + 1e-6) * np.abs(of_capped))


@pytest.mark.parametrize("cap", [0.0, 1.5])
def test_cross_entropy_slopes(isa, cap):
    module, x, targets = kernels.load("loss", isa), normal(1, 4, 33), np.array([0, 5, 32, 7])

    def weighted(dy):
        return np.vstack([module.rows(x[i : i + 1], targets[i : i + 1], float(dy[i]), cap)[1] for i in range(len(x))])

    assert_gradient(lambda p: module.rows(p, targets, 1.0, cap)[0], weighted, x, 8)
