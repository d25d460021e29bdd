"""What layers do with scores: windows, soft caps and sinks, forward from a cache and backward, against float64.

Bounds are test_attention's: a cap moves a score by no more than it was off, and by 2e-7 of the cap (vf_tanh); a sink
brings one exponential and one sum more, and makes outputs smaller.
"""

import numpy as np
import pytest

from llamacy import kernels
from llamacy.kernels.reference import layers
from tests.kernels.rounding import assert_within, gamma
from tests.kernels.test_attention import cache_error, qkv, relative_error, weights_error
from tests.kernels.test_layers import assert_gradient, normal

# tokens, query heads, key/value heads, head_dim: one tile, several, several chunks; few and many rows of a group
SHAPES = [(17, 3, 1, 24), (64, 3, 3, 64), (131, 6, 2, 20), (530, 2, 1, 16)]
# windows: itself alone, beside a tile's edge, beside a chunk's, all there is
PARTS = {
    **{f"window {n}": {"window": n} for n in (1, 16, 17, 255, 257, 9999)},
    "cap": {"cap": 1.5},
    "sinks": {"sinks": True},
    "all": {"window": 37, "cap": 2.0, "sinks": True},
    "all, two chunks": {"window": 290, "cap": 0.75, "sinks": True},
}
KINDS = [("f32", "f32"), ("f16", "q8_0"), ("s16", "s16")]


def parts_of(name, n_head):
    """(what the kernels are told, the window, what the twin is told besides the mask)"""
    told = dict(PARTS[name])
    if told.pop("sinks", False):
        told["sinks"] = np.linspace(-2, 4, n_head).astype(np.float32)
    return told, told.get("window"), {key: told[key] for key in ("cap", "sinks") if key in told}


def mask_of(n, window):
    return layers.causal_mask(np.zeros(n, int), np.arange(n), window=window)


@pytest.mark.parametrize("kinds", KINDS, ids=" ".join)
@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_forward(isa, shape, parts, kinds):
    told, window, more = parts_of(parts, shape[1])
    (q, k, v), mask = qkv(*shape), mask_of(shape[0], window)
    exact, _ = layers.attention(q, k, v, mask, **more)
    off = np.broadcast_to(cache_error(v, kinds[1], values=True), v.shape)
    sizes = layers.attention(q, k, np.abs(v) + off, mask, **more)[0]
    errors = layers.attention(q, k, off, mask, **more)[0]
    q_error = cache_error(q, "s16") if kinds[0] == "s16" else 0.0
    relative = relative_error(q, k, cache_error(k, kinds[0]), q_error) + 4e-7 * more.get("cap", 0) + 4e-7
    if kinds[1] == "s16":
        relative, errors = relative + 5e-6, errors + weights_error(q, k, v, mask, more.get("cap"))
    found = kernels.load("attention", isa).forward(q, k, v, *kinds, **told)
    assert_within(found, exact, relative * sizes + errors)


@pytest.mark.parametrize("kind", ["f32", "f16", "q8_0", "s16"])
@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_one_token_at_a_time_in_a_ring_gives_the_same_bits(isa, shape, parts, kind):
    module, arrays, (told, window, _) = kernels.load("attention", isa), qkv(*shape), parts_of(parts, shape[1])
    ring = {"ring": (window + 255) // 256 + 1} if window else {}
    np.testing.assert_array_equal(
        module.forward(*arrays, kind, split=True, **told, **ring), module.forward(*arrays, kind, **told)
    )


@pytest.mark.parametrize("kind", ["f32", "s16"])
def test_nothing_before_the_window_is_seen(isa, kind):
    module, (q, k, v) = kernels.load("attention", isa), qkv(300, 2, 1, 16)
    before = module.forward(q, k, v, kind, window=20)
    k[:250], v[:250] = 1e3 * k[:250], 1e3 * v[:250]
    np.testing.assert_array_equal(module.forward(q, k, v, kind, window=20)[269:], before[269:])
    assert (module.forward(q, k, v, kind, window=20)[268] != before[268]).any()


def test_a_sink_far_above_or_below_all_scores(isa):
    module, (q, k, v) = kernels.load("attention", isa), qkv(20, 2, 1, 16)
    above = module.forward(q, k, v, sinks=np.full(2, 1e4))
    np.testing.assert_allclose(above, 0, atol=1e-30)
    np.testing.assert_array_equal(module.forward(q, k, v, sinks=np.full(2, -1e4)), module.forward(q, k, v))


@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_backward(isa, shape, parts):
    (n, n_head, n_head_kv, head_dim), (q, k, v) = shape, qkv(*shape)
    (told, window, more), dout = parts_of(parts, n_head), normal(4, n, n_head, head_dim)
    mask = mask_of(n, window)
    exact = layers.attention_backward(dout, q, k, v, mask, **more)
    found = kernels.load("attention_backward", isa).backward(q, k, v, dout, **told)
    # every product of the backward pass with all its terms positive: what relative errors multiply
    group, scale = n_head // n_head_kv, head_dim**-0.5
    qa, da = np.abs(q, dtype=np.float64), np.abs(dout, dtype=np.float64)
    ka, va = (np.repeat(np.abs(x, dtype=np.float64), group, axis=1) for x in (k, v))
    scores = np.einsum("thd,khd->htk", q.astype(np.float64), np.repeat(k, group, axis=1)) * scale
    # without the sinks, whose share only makes P smaller
    p = np.exp(layers.log_softmax(np.where(mask, layers.soft_cap(scores, more.get("cap")), -np.inf)))
    dp = np.einsum("thd,khd->htk", da, va)
    ds = scale * p * (dp + np.sum(p * dp, axis=-1, keepdims=True))
    kv_shape = (n, n_head_kv, group, head_dim)
    sizes = (
        np.einsum("htk,khd->thd", ds, ka),
        np.einsum("htk,thd->khd", ds, qa).reshape(kv_shape).sum(axis=2),
        np.einsum("htk,thd->khd", p, da).reshape(kv_shape).sum(axis=2),
    )
    # the slope 1 - t^2 is off by what the score is, at most twice, and two roundings
    relative = 5 * relative_error(q, k) + gamma(4 * head_dim + 4 * n + 16) + 2e-6
    for name, x, want, size in zip(("dq", "dk", "dv"), found, exact, sizes, strict=True):
        assert x.shape == want.shape, name
        assert_within(x, want, relative * size)


@pytest.mark.parametrize("parts", ["window 16", "cap", "sinks", "all"])
def test_slopes(isa, parts):
    forward, backward = kernels.load("attention", isa).forward, kernels.load("attention_backward", isa).backward
    (q, k, v), (told, _, _) = qkv(19, 4, 2, 10), parts_of(parts, 4)
    for i, x in enumerate((q, k, v)):

        def at(point, i=i):
            return forward(*(point if j == i else y for j, y in enumerate((q, k, v))), **told)

        assert_gradient(at, lambda dout, i=i: backward(q, k, v, dout, **told)[i], x, 9 + i)
