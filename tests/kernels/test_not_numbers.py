"""An infinity or NaN among a kernel's inputs: whatever depends on it is none too, and nothing else changes by a bit."""

import functools

import numpy as np
import pytest

from llamacy import kernels
from llamacy.formats.types import by_name
from tests.kernels.matrices import inputs, packed

STRANGE = {"nan": np.nan, "inf": np.inf, "-inf": -np.inf}
TYPES = ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL"]
TOKENS = [1, 2, 3, 4, 7, 17, 21]  # straight from the tiles, one, some, four at a time; unpacked
# (N, K): more blocks than any path unpacks at a time
N, K = 40, 1536


@functools.cache
def matrix(isa, name):
    values = np.random.default_rng(1).normal(size=(N, K)).astype(np.float32)
    rows = kernels.load("quants", isa).quantize(values, by_name(name).number)
    return packed(kernels.load("matmul", isa), name, rows, K)


def assert_only(strange, got, clean):
    """Rows of got that are `strange` hold no number, the others are what they were."""
    assert not np.isfinite(got[strange]).any()
    np.testing.assert_array_equal(got[~strange], clean[~strange])


@pytest.mark.parametrize("value", STRANGE)
@pytest.mark.parametrize("name", TYPES)
def test_products(isa, name, value):
    module, w, rng = kernels.load("matmul", isa), matrix(isa, name), np.random.default_rng(3)
    for activations in ("int8", "int16", "f32"):
        for n_embd in (0, 1024) if activations == "int8" else (0,):
            for t in TOKENS:
                x = inputs(t, K)
                x[:, 7] *= 1000  # outliers, in a block of most rows
                clean = module.matmul(w, x, activations, 1, n_embd)
                # the first and the last of four together; the block of zeros, that of a single value, any
                for row, column in ((0, 5), (t - 1, K - 1), (t // 2, int(rng.integers(K)))):
                    bad = x.copy()
                    bad[row, column] = STRANGE[value]
                    strange = np.arange(t) == row
                    assert_only(strange, module.matmul(w, bad, activations, 2, n_embd), clean)


@pytest.mark.parametrize("value", STRANGE)
@pytest.mark.parametrize("name", TYPES)
def test_products_backward(isa, name, value):
    module, w = kernels.load("matmul", isa), matrix(isa, name)
    for activations in ("int16", "f32"):
        for t in (1, 3, 4, 9):
            dy = np.random.default_rng(t).normal(size=(t, N)).astype(np.float32)
            clean = module.matmul_backward(w, dy, activations)
            for row, column in ((0, 0), (t - 1, N - 1)):
                bad = dy.copy()
                bad[row, column] = STRANGE[value]
                assert_only(np.arange(t) == row, module.matmul_backward(w, bad, activations, 2), clean)


HEADS, KV_HEADS = 4, 2


def attention_inputs(t, head_dim=40):
    rng = np.random.default_rng(2)
    return tuple(rng.normal(size=(t, n, head_dim)).astype(np.float32) for n in (HEADS, KV_HEADS, KV_HEADS))


@pytest.mark.parametrize("value", STRANGE)
@pytest.mark.parametrize("kind", kernels.load("attention").KV_TYPES)
@pytest.mark.parametrize("split", [False, True])
def test_attention(isa, kind, split, value):
    module, t = kernels.load("attention", isa), 300  # two chunks
    clean = module.forward(*attention_inputs(t), kind, None, split)
    for at in (0, 5, 270, t - 1):
        q, k, v = attention_inputs(t)
        q[at, 1, 3] = STRANGE[value]
        got = module.forward(q, k, v, kind, None, split)
        assert not np.isfinite(got[at, 1]).any()
        got[at, 1] = clean[at, 1]
        np.testing.assert_array_equal(got, clean)
        q, k, v = attention_inputs(t)
        k[at, 1, 3] = STRANGE[value]
        got = module.forward(q, k, v, kind, None, split)
        assert not np.isfinite(got[at:, 2:]).any()  # who sees position `at` of the second KV head
        np.testing.assert_array_equal(got[:, :2], clean[:, :2])
        np.testing.assert_array_equal(got[:at], clean[:at])
        q, k, v = attention_inputs(t)
        v[at, 0, 3] = STRANGE[value]
        got = module.forward(q, k, v, kind, None, split)
        assert not np.isfinite(got[at:, :2, 3]).any()
        np.testing.assert_array_equal(got[:, 2:], clean[:, 2:])
        if split or kind == "s16":  # a prompt's rows share the tile of their last one's positions
            np.testing.assert_array_equal(got[:at], clean[:at])


@pytest.mark.parametrize("value", STRANGE)
def test_attention_backward(isa, value):
    module, t, at = kernels.load("attention_backward", isa), 40, 17
    q, k, v = attention_inputs(t)
    dout = attention_inputs(t)[0][::-1].copy()
    clean = module.backward(q, k, v, dout)
    dout[at, 1, 3] = STRANGE[value]
    dq, dk, dv = module.backward(q, k, v, dout)
    assert not np.isfinite(dq[at, 1]).any() and not np.isfinite(dk[: at + 1, 0]).any()
    assert not np.isfinite(dv[: at + 1, 0, 3]).any()
    np.testing.assert_array_equal(dq[:, 2:], clean[0][:, 2:])
    np.testing.assert_array_equal(dk[:, 1], clean[1][:, 1])


@pytest.mark.parametrize("value", STRANGE)
def test_norm(isa, value):
    module, rng = kernels.load("norm", isa), np.random.default_rng(4)
    for n in (16, 37, 576):
        x, w, dy = (rng.normal(size=shape).astype(np.float32) for shape in ((3, n), n, (3, n)))
        clean, back = module.rows(x, w, 1e-5), module.rows(x, w, 1e-5, dy)
        bad, strange = x.copy(), np.arange(3) == 1
        bad[1, n // 2] = STRANGE[value]
        assert_only(strange, module.rows(bad, w, 1e-5), clean)
        assert_only(strange, module.rows(bad, w, 1e-5, dy), back)
        bad = dy.copy()
        bad[1, n // 2] = STRANGE[value]
        assert_only(strange, module.rows(x, w, 1e-5, bad), back)


def test_a_row_whose_squares_f32_does_not_hold_is_not_normed_to_zero(isa):
    x = np.full((2, 64), 1e25, np.float32)
    x[0] = 1
    y = kernels.load("norm", isa).rows(x, np.ones(64, np.float32), 1e-5)
    assert np.isfinite(y[0]).all() and not np.isfinite(y[1]).any()


@pytest.mark.parametrize("value", STRANGE)
def test_the_gate(isa, value):
    module, rng = kernels.load("mlp", isa), np.random.default_rng(5)
    gate, up, dh = (rng.normal(size=32).astype(np.float32) for _ in range(3))
    for which in (0, 1):
        bad = [gate.copy(), up.copy()]
        bad[which][20] = STRANGE[value]
        h = module.apply(*bad)
        assert not np.isfinite(h[20]) and np.isfinite(h[np.arange(32) != 20]).all()
    bad = dh.copy()
    bad[20] = STRANGE[value]
    for d in module.apply(gate, up, bad):
        assert not np.isfinite(d[20]) and np.isfinite(d[np.arange(32) != 20]).all()


@pytest.mark.parametrize("value", STRANGE)
def test_the_loss(isa, value):
    module, rng = kernels.load("loss", isa), np.random.default_rng(6)
    for n in (16, 97):
        logits = rng.normal(size=(3, n)).astype(np.float32)
        clean = module.rows(logits, [0, 3, n - 1], 0.5)
        if value == "-inf":  # a token that cannot be: its loss is infinite, the others' is not
            logits[1, 3] = -np.inf
            losses, _ = module.rows(logits, [0, 3, n - 1], 0.5)
            assert losses[1] == np.inf and losses[0] == clean[0][0]
            continue
        logits[1, n // 2] = STRANGE[value]
        losses, d = module.rows(logits, [0, 3, n - 1], 0.5)
        assert not np.isfinite(losses[1]) and not np.isfinite(d[1]).any()
        np.testing.assert_array_equal(losses[[0, 2]], clean[0][[0, 2]])
        np.testing.assert_array_equal(d[[0, 2]], clean[1][[0, 2]])
