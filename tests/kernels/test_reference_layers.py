"""The float64 layers: values against hand-worked cases, every backward pass against central finite differences."""

import numpy as np
import pytest

from llamacy.kernels.reference import layers

# A central difference errs by h^2 / 6 = 2e-11 times the third derivative, and by 1e-16 |f| / h = 1e-11 |f| in rounding.
STEP, BOUND = 1e-5, 1e-8


def numeric_gradient(f, x):
    """df/dx of a scalar function by central differences, element by element."""
    gradient = np.full(x.shape, np.nan)
    for i in np.ndindex(x.shape):
        up, down = x.copy(), x.copy()
        up[i] += STEP
        down[i] -= STEP
        gradient[i] = (f(up) - f(down)) / (2 * STEP)
    return gradient


def check_backward(forward, gradients, arrays):
    """Compare `gradients` of sum(dy * forward(*arrays)) with finite differences, one array at a time."""
    assert len(gradients) == len(arrays)
    for i, gradient in enumerate(gradients):
        expected = numeric_gradient(lambda x, i=i: forward(*arrays[:i], x, *arrays[i + 1 :]), arrays[i])
        assert gradient.shape == arrays[i].shape
        assert np.abs(expected).max() > 0.01, "the case says nothing about this array"
        np.testing.assert_allclose(gradient, expected, rtol=BOUND, atol=BOUND * np.abs(expected).max())


@pytest.fixture
def rng():
    return np.random.default_rng(7)


def test_linear_backward(rng):
    x, w, dy = rng.normal(size=(3, 5)), rng.normal(size=(4, 5)), rng.normal(size=(3, 4))
    check_backward(lambda x, w: np.sum(dy * layers.linear(x, w)), layers.linear_backward(dy, x, w), [x, w])


@pytest.mark.parametrize("per_token", [False, True])
@pytest.mark.parametrize("dropout", [False, True])
def test_lora_linear_backward(rng, per_token, dropout):
    x, w, dy = rng.normal(size=(3, 5)), rng.normal(size=(4, 5)), rng.normal(size=(3, 4))
    a, b = rng.normal(size=(2, 5)), rng.normal(size=(4, 2))
    scale = rng.normal(size=3) if per_token else 1.7
    keep = rng.choice([0, 1.25], size=x.shape) if dropout else None
    gradients = layers.lora_linear_backward(dy, x, w, a, b, scale, keep)
    check_backward(lambda x, a, b: np.sum(dy * layers.lora_linear(x, w, a, b, scale, keep)), gradients, [x, a, b])


def test_lora_linear_is_the_merged_matrix(rng):
    x, w, a, b = (rng.normal(size=s) for s in ((3, 5), (4, 5), (2, 5), (4, 2)))
    np.testing.assert_allclose(layers.lora_linear(x, w, a, b, 0.5), layers.linear(x, w + 0.5 * b @ a), rtol=1e-13)


def test_rms_norm_by_hand():
    # mean of squares (9 + 16) / 2 = 12.5, plus eps 3.5 is 16: divide by 4
    np.testing.assert_allclose(layers.rms_norm([[3.0, 4.0]], [2.0, -1.0], 3.5), [[1.5, -1.0]], rtol=1e-15)


def test_rms_norm_backward(rng):
    x, w, dy = rng.normal(size=(3, 6)), rng.normal(size=6), rng.normal(size=(3, 6))
    gradients = layers.rms_norm_backward(dy, x, w, 0.1)
    check_backward(lambda x, w: np.sum(dy * layers.rms_norm(x, w, 0.1)), gradients, [x, w])


def test_rope_by_hand():
    # theta 10000 over 4 elements: frequencies 1 and 1/100; the position pi/2 turns the first pair by a quarter
    x = np.array([[[1.0, 2.0, 3.0, 4.0]]])
    c, s = np.cos(np.pi / 200), np.sin(np.pi / 200)
    pairs = [-2, 1, 3 * c - 4 * s, 3 * s + 4 * c]
    halves = [-3, 2 * c - 4 * s, 1, 2 * s + 4 * c]
    np.testing.assert_allclose(layers.rope(x, [np.pi / 2], 1e4, "pairs")[0, 0], pairs, atol=1e-15)
    np.testing.assert_allclose(layers.rope(x, [np.pi / 2], 1e4, "halves")[0, 0], halves, atol=1e-15)


def test_rope_scale_factors_and_partial_rotation(rng):
    x = rng.normal(size=(2, 3, 8))
    plain = layers.rope(x, [3, 8], 1e4, "pairs")
    np.testing.assert_allclose(layers.rope(x, [12, 32], 1e4, "pairs", scale=4.0), plain, rtol=1e-13)
    np.testing.assert_allclose(layers.rope(x, [6, 16], 1e4, "pairs", factors=[2, 2, 2, 2]), plain, rtol=1e-13)
    partial = layers.rope(x, [3, 8], 1e4, "halves", n_rot=4)
    np.testing.assert_array_equal(partial[..., 4:], x[..., 4:])
    np.testing.assert_array_equal(partial[..., :4], layers.rope(x[..., :4], [3, 8], 1e4, "halves"))


def test_rope_layouts_are_one_permutation_apart(rng):
    x = rng.normal(size=(2, 3, 8))
    as_pairs = x.reshape(2, 3, 2, 4).swapaxes(2, 3).reshape(2, 3, 8)
    turned = layers.rope(as_pairs, [3, 8], 1e4, "pairs").reshape(2, 3, 4, 2).swapaxes(2, 3).reshape(2, 3, 8)
    np.testing.assert_allclose(turned, layers.rope(x, [3, 8], 1e4, "halves"), rtol=1e-14)


@pytest.mark.parametrize("layout", ["pairs", "halves"])
def test_rope_backward(rng, layout):
    x, dy, args = rng.normal(size=(3, 2, 6)), rng.normal(size=(3, 2, 6)), ([0, 5, 9], 1e4, layout, 4, 2.0, [1.0, 3.0])
    check_backward(lambda x: np.sum(dy * layers.rope(x, *args)), [layers.rope_backward(dy, *args)], [x])


def test_swiglu_values_and_extremes():
    np.testing.assert_allclose(layers.silu([0.0, np.log(3)]), [0, 0.75 * np.log(3)], rtol=1e-15)
    with np.errstate(over="raise"):
        np.testing.assert_array_equal(layers.swiglu([-1e4, 1e4], [1.0, 2.0]), [0, 2e4])
        dgate, dup = layers.swiglu_backward([1.0, 1.0], [-1e4, 1e4], [1.0, 2.0])
    np.testing.assert_array_equal([dgate, dup], [[0, 2], [0, 1e4]])


def test_swiglu_backward(rng):
    gate, up, dy = rng.normal(size=(3, 3, 5))
    check_backward(lambda g, u: np.sum(dy * layers.swiglu(g, u)), layers.swiglu_backward(dy, gate, up), [gate, up])


@pytest.mark.parametrize("name", ["geglu_tanh", "geglu_erf", "gelu_tanh", "gelu_erf", "relu_squared"])
def test_curves_backward(rng, name):
    gate, up, dy = rng.normal(size=(3, 3, 5))
    backward = layers.activate_backward(name, dy, gate, up)
    if layers.is_gated(name):
        check_backward(lambda g, u: np.sum(dy * layers.activate(name, g, u)), backward, [gate, up])
    else:
        assert backward[1] is None
        check_backward(lambda g: np.sum(dy * layers.activate(name, g, None)), backward[:1], [gate])


def test_curves_values():
    """The normal distribution's shares below -1 and 1; tanh's form is near; squares of what is above 0."""
    x, shares = np.array([-1.0, 0.0, 1.0]), np.array([0.158655253931457, 0.5, 0.841344746068543])
    np.testing.assert_allclose(layers.activate("gelu_erf", x, None), x * shares, rtol=1e-14)
    np.testing.assert_allclose(layers.activate("geglu_erf", x, [2, 2, 2]), 2 * x * shares, rtol=1e-14)
    np.testing.assert_allclose(layers.activate("gelu_tanh", x, None), x * shares, atol=2e-4)
    np.testing.assert_array_equal(layers.activate("relu_squared", [-2.0, 3.0], None), [0, 9])


def test_layer_norm(rng):
    x, dy = rng.normal(size=(2, 4, 6))
    w, bias = rng.normal(size=(2, 6))
    y = layers.layer_norm(x, np.ones(6), 0, 0)
    np.testing.assert_allclose([y.mean(axis=1), y.var(axis=1)], [[0] * 4, [1] * 4], atol=1e-14)
    backward = layers.layer_norm_backward(dy, x, w, 0.1)
    check_backward(lambda x, w, b: np.sum(dy * layers.layer_norm(x, w, b, 0.1)), backward, [x, w, bias])


def test_segment_positions():
    np.testing.assert_array_equal(layers.segment_positions([5, 5, 5, 9, 9, 5]), [0, 1, 2, 0, 1, 0])
    assert layers.segment_positions([]).size == 0


def test_causal_mask():
    expected = [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]
    np.testing.assert_array_equal(layers.causal_mask([0, 0, 1, 1], [0, 1, 0, 1]), np.array(expected, bool))
    # one new token at position 2 of slot 1 against a cache of two slots, the later entry stale
    cached = layers.causal_mask([1], [2], [0, 1, 1, 1, 1], [0, 0, 1, 2, 3])
    np.testing.assert_array_equal(cached, [[False, True, True, True, False]])


def packed(rng, heads=4, groups=2, lengths=(3, 1, 4)):
    """Return q, k, v, dout and the mask of three packed samples."""
    segments = np.repeat(np.arange(len(lengths)), lengths)
    q, dout = rng.normal(size=(2, segments.size, heads, 3))
    k, v = rng.normal(size=(2, segments.size, groups, 3))
    return q, k, v, dout, layers.causal_mask(segments, layers.segment_positions(segments))


def test_attention_by_hand():
    # one head, keys 0 and log 3 after scaling: weights 1/4 and 3/4, denominator 1 + 3
    q, k, v = np.array([[[1.0]]]), np.array([[[0.0]], [[2 * np.log(3)]]]), np.array([[[8.0]], [[4.0]]])
    out, lse = layers.attention(q, k, v, np.ones((1, 2), bool), scale=0.5)
    np.testing.assert_allclose([out[0, 0, 0], lse[0, 0]], [5.0, np.log(4)], rtol=1e-15)


def test_attention_stays_within_samples_and_heads_share_a_group(rng):
    q, k, v, _, mask = packed(rng)
    out, _ = layers.attention(q, k, v, mask)
    alone, _ = layers.attention(q[4:], k[4:], v[4:], np.tri(4, dtype=bool))
    np.testing.assert_allclose(out[4:], alone, rtol=1e-13)
    one_head, _ = layers.attention(q[:, 3:], k[:, 1:], v[:, 1:], mask)
    np.testing.assert_allclose(out[:, 3:], one_head, rtol=1e-13)


@pytest.mark.parametrize(("heads", "groups"), [(4, 2), (3, 3), (3, 1)])
def test_attention_backward(rng, heads, groups):
    q, k, v, dout, mask = packed(rng, heads, groups)
    gradients = layers.attention_backward(dout, q, k, v, mask)
    check_backward(lambda q, k, v: np.sum(dout * layers.attention(q, k, v, mask)[0]), gradients, [q, k, v])


def test_cross_entropy_by_hand():
    # probabilities 1/4, 3/4 and a masked token; shifted by 1000 nothing changes or overflows
    logits = np.log([[1.0, 3.0], [1.0, 3.0], [5.0, 1.0]])
    expected = -(np.log(0.25) + np.log(0.75)) / 2
    assert layers.cross_entropy(logits, [0, 1, -1]) == pytest.approx(expected, rel=1e-15)
    assert layers.cross_entropy(logits + 1000, [0, 1, -1]) == pytest.approx(expected, rel=1e-12)
    assert layers.cross_entropy(logits, [0, 1, -1], n_trained=8) == pytest.approx(expected / 4, rel=1e-15)


def test_cross_entropy_backward(rng):
    logits, targets = rng.normal(size=(4, 6)), [2, -1, 0, 5]
    for n_trained in (None, 7):
        gradient = layers.cross_entropy_backward(logits, targets, n_trained)
        np.testing.assert_array_equal(gradient[1], 0)
        check_backward(lambda x, n=n_trained: layers.cross_entropy(x, targets, n), [gradient], [logits])


def test_nothing_trained_costs_nothing(rng):
    logits = rng.normal(size=(2, 3))
    assert layers.cross_entropy(logits, [-1, -100]) == 0
    np.testing.assert_array_equal(layers.cross_entropy_backward(logits, [-1, -100]), np.zeros((2, 3)))


def test_clip_by_global_norm():
    grads = [np.array([3.0, 0.0]), np.array([[4.0]])]
    clipped, norm = layers.clip_by_global_norm(grads, 1.0)
    assert norm == 5
    np.testing.assert_allclose(np.concatenate([g.ravel() for g in clipped]), [0.6, 0, 0.8], rtol=1e-6)
    for max_norm in (0, 6.0):
        unchanged, norm = layers.clip_by_global_norm(grads, max_norm)
        assert norm == 5
        np.testing.assert_array_equal(unchanged[0], grads[0])


def test_adamw_step_by_hand():
    # the first step's corrected moments are g and g^2, so p moves by lr * sign(g) after decaying by lr * wd
    p, m, v = layers.adamw_step([1.0, -2.0], [0.5, -4.0], [0, 0], [0, 0], 1, lr=0.1, eps=0, weight_decay=0.2)
    np.testing.assert_allclose(p, [0.98 - 0.1, -1.96 + 0.1], rtol=1e-14)
    np.testing.assert_allclose([m, v], [[0.05, -0.4], [0.00025, 0.016]], rtol=1e-13)
    # second step with zero gradient: m^ = 0.9 m / 0.19, v^ = 0.999 v / 0.001999
    p2, _, _ = layers.adamw_step(p, [0, 0], m, v, 2, lr=0.1, eps=0)
    np.testing.assert_allclose(p2, p - 0.1 * (0.9 * m / 0.19) / np.sqrt(0.999 * v / 0.001999), rtol=1e-13)
