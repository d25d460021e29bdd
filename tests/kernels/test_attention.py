"""Causal attention, forward from a cache and backward, against float64 and finite differences.

Bounds. A score is off by e = gamma(2 D + 4) max sum |q| |k| / D^1/2, its exponential so by a factor exp(2 e) (the row's
sum moves too) and 8 roundings, the sums over n keys by gamma(2 n). In an f16 cache every key and value is rounded once:
2^-11 relatively (2^-25 below f16's normal numbers), which moves a score by 2^-11 sum |q| |k| and the output likewise.
In a q8_0 cache 32 values share a scale d = amax / 127, itself an f16: a value moves by d / 2, or (the scale rounded
down, the largest code limited) by 127 * 2^-11 d < 0.07 d more. In an s16 cache a key's or query's step is the larger of
amax / 32767 and norm / 46000, a value's amax / 16383; everything moves by half a step. Weights, too, are multiples of a
step: the largest of weight * step of the value / 32767, or their sum / 130000; their exponentials are 5e-6 off.
"""

import numpy as np
import pytest

from llamacy import kernels
from llamacy.kernels.reference import layers
from tests.kernels.rounding import assert_within, gamma
from tests.kernels.test_layers import assert_gradient, normal

# tokens, query heads, key/value heads, head_dim: groups of 1 to 6; lengths around 16, 32, 64 and 256; odd head sizes
SHAPES = [
    (1, 2, 2, 16),
    (15, 4, 2, 16),
    (17, 3, 1, 24),
    (33, 2, 2, 10),
    (64, 3, 3, 64),
    (131, 6, 2, 20),
    (257, 6, 1, 40),
    (530, 1, 1, 16),
]
KINDS = [("f32", "f32"), ("f16", "f16"), ("q8_0", "q8_0"), ("f16", "q8_0"), ("s16", "s16")]
KINDS += [("s16", "q8_0"), ("f32", "s16")]


def qkv(n, n_head, n_head_kv, head_dim):
    return normal(1, n, n_head, head_dim), normal(2, n, n_head_kv, head_dim), normal(3, n, n_head_kv, head_dim)


def causal(n):
    return np.tril(np.ones((n, n), bool))


def relative_error(q, k, k_error=0.0, q_error=0.0):
    """The most that a softmax probability may be off, relatively; k_error, q_error: how far elements may be off."""
    group = q.shape[1] // k.shape[1]
    keys, off = (np.repeat(np.broadcast_to(x, k.shape), group, axis=1) for x in (np.abs(k), np.float64(k_error)))
    products = np.einsum("thd,khd->htk", np.abs(q, dtype=np.float64), gamma(2 * q.shape[2] + 4) * keys + off)
    products += np.einsum("thd,khd->htk", np.broadcast_to(q_error, q.shape), keys + off)
    return np.expm1(2 * products.max() / np.sqrt(q.shape[2])) + gamma(8 + 2 * len(q))


def step_of(x):
    """The step of every query's or key's codes in products of whole numbers."""
    x = x.astype(np.float64)
    return np.maximum(np.abs(x).max(axis=2) / 32767, np.linalg.norm(x, axis=2) / 46000)


def weights_error(q, k, v, mask, cap=None):
    """How far an output may be off because its weights, times the step of their value, are whole numbers."""
    group, step = q.shape[1] // v.shape[1], np.abs(v, dtype=np.float64).max(axis=2) / 16383
    keys, codes, steps = (np.repeat(x, group, axis=1) for x in (k, np.abs(v) / step[..., None], step))
    scores = np.einsum("thd,khd->htk", q.astype(np.float64), keys) / np.sqrt(q.shape[2])
    p = np.exp(layers.log_softmax(np.where(mask, layers.soft_cap(scores, cap), -np.inf))) * steps.T[:, None]
    of_weights = np.maximum(p.max(axis=2) / 32767, p.sum(axis=2) / 130000)
    return 0.55 * of_weights.T[..., None] * np.einsum("tk,khd->thd", mask.astype(np.float64), codes)


def cache_error(x, kind, values=False):
    """How far each cached element may be from what was stored, by the type's definition."""
    if kind == "f32":
        return np.float64(0)
    if kind == "f16":
        return np.abs(x, dtype=np.float64) * 2.0**-11 + 2.0**-25
    if kind == "s16":
        step = np.abs(x, dtype=np.float64).max(axis=2) / 16383 if values else step_of(x)
        return np.broadcast_to(0.501 * step[..., None], x.shape)
    padded = np.zeros((*x.shape[:2], (x.shape[2] + 31) // 32 * 32))
    padded[..., : x.shape[2]] = np.abs(x)
    d = padded.reshape(*x.shape[:2], -1, 32).max(axis=3) / 127
    return np.repeat(0.57 * d + 2.0**-24, 32, axis=2)[..., : x.shape[2]]


@pytest.mark.parametrize("kinds", KINDS, ids=" ".join)
@pytest.mark.parametrize("shape", SHAPES)
def test_attention(isa, shape, kinds):
    q, k, v = qkv(*shape)
    mask = causal(shape[0])
    exact, _ = layers.attention(q, k, v, mask)
    # the rounded values' share of the output is their errors' weighted mean, at most half as much again where P moves
    off = np.broadcast_to(cache_error(v, kinds[1], values=True), v.shape)
    sizes, errors = layers.attention(q, k, np.abs(v) + off, mask)[0], layers.attention(q, k, off, mask)[0]
    q_error = cache_error(q, "s16") if kinds[0] == "s16" else 0.0
    relative = relative_error(q, k, cache_error(k, kinds[0]), q_error)
    if kinds[1] == "s16":
        relative, errors = relative + 5e-6, errors + weights_error(q, k, v, mask)
    found = kernels.load("attention", isa).forward(q, k, v, *kinds)
    assert_within(found, exact, relative * sizes + errors)


@pytest.mark.parametrize("kind", ["f32", "f16", "q8_0", "s16"])
@pytest.mark.parametrize("shape", SHAPES)
def test_one_token_at_a_time_and_chunk_by_chunk_gives_the_same_bits(isa, shape, kind):
    module, arrays = kernels.load("attention", isa), qkv(*shape)
    np.testing.assert_array_equal(module.forward(*arrays, kind, split=True), module.forward(*arrays, kind))


def test_numbers_that_f16_cannot_hold(isa):
    # one key: its value comes out, as near as the cache's type can hold it
    q, k, v = qkv(1, 1, 1, 32)
    v[0, 0, :3] = 1e6, -1e6, 1e-9
    for kind, most in (("f16", 65504), ("q8_0", 1e6), ("s16", 1e6)):
        out = kernels.load("attention", isa).forward(q, k, v, "f16", kind)[0, 0]
        np.testing.assert_allclose(out[:2], [most, -most], rtol=1e-3)
        assert np.isfinite(out).all()
    for kind in ("q8_0", "s16"):
        assert (kernels.load("attention", isa).forward(q, k, 0 * v, kind) == 0).all()


@pytest.mark.parametrize("scale", [1e-27, 1e-33, 1e-37])
def test_values_too_small_for_a_step_of_weights_are_lost_and_never_grow(isa, scale):
    q, k, v = qkv(20, 2, 1, 32)
    found = kernels.load("attention", isa).forward(q, k, np.float32(scale) * v, "s16")
    assert np.abs(found).max() <= scale * np.abs(v).max()


def test_whole_numbers_at_their_limits(isa):
    # sums as near to 2^31 as the type lets them come: all elements and all weights alike, and one that is all there is
    for spike in (False, True):
        q, k, v = (np.full(shape, 3.0, np.float32) for shape in ((512, 1, 64), (512, 1, 64), (512, 1, 64)))
        if spike:
            q[..., 1:], k[..., 1:], v[..., 1:] = 0, 0, 0
        found = kernels.load("attention", isa).forward(q, -k, v, "s16")
        # 256 weights alike are 508 steps each, up to half a step off
        np.testing.assert_allclose(found, v, rtol=1.1e-3)


def test_what_a_later_sequence_finds_in_a_cache_does_not_matter(isa):
    # values beside a position's own, in the tile that holds it, may be anything that was stored before
    module, (q, k, v) = kernels.load("attention", isa), qkv(20, 2, 1, 16)
    for array in (k, v):
        array[7:] = np.inf
    before = module.forward(q[:7], k[:7], v[:7], "s16")
    np.testing.assert_array_equal(module.forward(q, k, v, "s16")[:7], before)


def test_no_token_sees_a_later_one(isa):
    module, (q, k, v) = kernels.load("attention", isa), qkv(40, 2, 1, 16)
    before = module.forward(q, k, v)
    for array in (q, k, v):
        array[25:] = 1e4
    np.testing.assert_array_equal(module.forward(q, k, v)[:25], before[:25])


def test_scores_too_large_for_exp_do_not_overflow(isa):
    # scores up to 1e6: the softmax picks one key, whose value comes out as it went in
    q, k, v = qkv(20, 2, 1, 16)
    exact, _ = layers.attention(1e3 * q, 1e3 * k, v, causal(20))
    found = kernels.load("attention", isa).forward(1e3 * q, 1e3 * k, v)
    np.testing.assert_allclose(found, exact, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_attention_backward(isa, shape):
    (n, n_head, n_head_kv, head_dim), (q, k, v) = shape, qkv(*shape)
    dout = normal(4, n, n_head, head_dim)
    exact = layers.attention_backward(dout, q, k, v, causal(n))
    found = kernels.load("attention_backward", isa).backward(q, k, v, dout)
    # every product of the backward pass with all its terms positive: what relative errors multiply
    group, scale = n_head // n_head_kv, head_dim**-0.5
    qa, da = np.abs(q, dtype=np.float64), np.abs(dout, dtype=np.float64)
    ka, va = (np.repeat(np.abs(x, dtype=np.float64), group, axis=1) for x in (k, v))
    scores = np.einsum("thd,khd->htk", q.astype(np.float64), np.repeat(k, group, axis=1)) * scale
    p = np.exp(layers.log_softmax(np.where(causal(n), scores, -np.inf)))
    dp = np.einsum("thd,khd->htk", da, va)
    ds = scale * p * (dp + np.sum(p * dp, axis=-1, keepdims=True))
    kv_shape = (n, n_head_kv, group, head_dim)
    sizes = (
        np.einsum("htk,khd->thd", ds, ka),
        np.einsum("htk,thd->khd", ds, qa).reshape(kv_shape).sum(axis=2),
        np.einsum("htk,thd->khd", p, da).reshape(kv_shape).sum(axis=2),
    )
    # p, dp and their row sum each bring their own error; two more sums of n or D terms follow
    relative = 3 * relative_error(q, k) + gamma(4 * head_dim + 4 * n + 16)
    for name, x, want, size in zip(("dq", "dk", "dv"), found, exact, sizes, strict=True):
        assert x.shape == want.shape, name
        assert_within(x, want, relative * size)


def test_attention_slopes(isa):
    forward_of, backward_of = kernels.load("attention", isa).forward, kernels.load("attention_backward", isa).backward
    q, k, v = qkv(19, 4, 2, 10)
    for i, x in enumerate((q, k, v)):

        def forward(point, i=i):
            return forward_of(*(point if j == i else y for j, y in enumerate((q, k, v))))

        assert_gradient(forward, lambda dout, i=i: backward_of(q, k, v, dout)[i], x, 9 + i)
