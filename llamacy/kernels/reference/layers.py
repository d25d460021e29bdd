"""The layers in float64, forward and backward side by side: what every compiled kernel is compared with.

Axes: T tokens, C n_embd, H query heads, G key/value heads (H a multiple of G), D head_dim, K keys, V n_vocab, R rank.
Arrays in, new arrays out; nothing is written in place. Every `x_backward` takes the gradient of the output first, then
what the forward pass took, and returns the gradients of its arrays in the same order.
"""

import math

import numpy as np


def _f64(*arrays):
    converted = [np.asarray(a, np.float64) for a in arrays]
    return converted if len(converted) > 1 else converted[0]


# --- linear, with and without a low-rank adapter ---------------------------------------------------------------------


def linear(x, w):
    """y = x W^T: x (T, n_in), w (n_out, n_in), y (T, n_out)."""
    x, w = _f64(x, w)
    return x @ w.T


def linear_backward(dy, x, w):
    """Return dx = dy W (T, n_in) and dw = dy^T x (n_out, n_in)."""
    dy, x, w = _f64(dy, x, w)
    return dy @ w, dy.T @ x


def lora_linear(x, w, a, b, scale, keep=None):
    """y = W x + scale * B (A (x * keep)): x (T, n_in), w (n_out, n_in), a (R, n_in), b (n_out, R), y (T, n_out).

    `scale` is one number or one a token (T,). `keep` (T, n_in) is dropout on the adapter's input: 0 or 1 / (1 - p)
    each; None keeps all.
    """
    return linear(x, w) + low_rank(x, a, b, scale, keep)


def low_rank(x, a, b, scale, keep=None):
    """The adapter's part alone, scale * B (A (x * keep)); several adapters add up."""
    x, a, b = _f64(x, a, b)
    adapted = x if keep is None else x * keep
    return _per_token(scale) * (adapted @ a.T @ b.T)


def lora_linear_backward(dy, x, w, a, b, scale, keep=None):
    """Return dx (T, n_in), da (R, n_in) and db (n_out, R); w is frozen and its gradient never formed."""
    dy, x, w, a, b = _f64(dy, x, w, a, b)
    adapted = x if keep is None else x * keep
    dy_scaled = _per_token(scale) * dy
    dlow = dy_scaled @ b
    dadapted = dlow @ a
    dx = dy @ w + (dadapted if keep is None else dadapted * keep)
    return dx, dlow.T @ adapted, dy_scaled.T @ (adapted @ a.T)


def row_lengths(w, a, b, scale):
    """|each row of V|, V = W + scale * B A: (n_out,)."""
    w, a, b = _f64(w, a, b)
    return np.linalg.norm(w + scale * b @ a, axis=1)


def dora_linear(x, w, a, b, scale, m, keep=None, lengths=None):
    """y = (m / |V|) V x, row by row, V = W + scale * B A: m (n_out,), the rest as lora_linear (arXiv:2402.09353).

    `lengths` (n_out,): |V|, a constant to the backward pass, instead of what V has.
    """
    lengths = row_lengths(w, a, b, scale) if lengths is None else lengths
    return _f64(m) / lengths * lora_linear(x, w, a, b, scale, keep)


def dora_linear_backward(dy, x, w, a, b, scale, m, keep=None):
    """Return dx, da and db as lora_linear_backward, and dm (n_out,)."""
    dy, m = _f64(dy, m)
    lengths = row_lengths(w, a, b, scale)
    dm = (dy * lora_linear(x, w, a, b, scale, keep)).sum(axis=0) / lengths
    return *lora_linear_backward(m / lengths * dy, x, w, a, b, scale, keep), dm


def _per_token(scale):
    return np.asarray(scale, np.float64)[..., None]


# --- root mean square norm (arXiv:1910.07467) ------------------------------------------------------------------------


def rms_norm(x, w, eps):
    """y = w * x / sqrt(mean(x^2) + eps) over the last axis: x (T, C), w (C,)."""
    x, w = _f64(x, w)
    return w * x * _inverse_rms(x, eps)


def rms_norm_backward(dy, x, w, eps):
    """Return dx (T, C) and dw (C,). With r = 1 / rms and g = w * dy: dx = r g - r^3 x mean(g x)."""
    dy, x, w = _f64(dy, x, w)
    r = _inverse_rms(x, eps)
    g = w * dy
    dx = r * g - r**3 * x * np.mean(g * x, axis=-1, keepdims=True)
    return dx, (dy * x * r).reshape(-1, x.shape[-1]).sum(axis=0)


def _inverse_rms(x, eps):
    return 1 / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + eps)


# --- layer norm (arXiv:1607.06450) -----------------------------------------------------------------------------------


def layer_norm(x, w, bias, eps):
    """y = w * (x - mean(x)) / sqrt(variance(x) + eps) + bias over the last axis: x (T, C), w and bias (C,)."""
    x, w, bias = _f64(x, w, bias)
    z, _ = _standardised(x, eps)
    return w * z + bias


def layer_norm_backward(dy, x, w, eps):
    """Return dx (T, C), dw (C,) and dbias (C,). With z the standardised x: dx = r (g - mean(g) - z mean(g z))."""
    dy, x, w = _f64(dy, x, w)
    z, r = _standardised(x, eps)
    g, flat = w * dy, (-1, x.shape[-1])
    dx = r * (g - g.mean(axis=-1, keepdims=True) - z * np.mean(g * z, axis=-1, keepdims=True))
    return dx, (dy * z).reshape(flat).sum(axis=0), dy.reshape(flat).sum(axis=0)


def _standardised(x, eps):
    centred = x - x.mean(axis=-1, keepdims=True)
    r = 1 / np.sqrt(np.mean(centred**2, axis=-1, keepdims=True) + eps)
    return centred * r, r


# --- rotary positions (arXiv:2104.09864) -----------------------------------------------------------------------------


def rope_angles(positions, n_rot, theta, scale=1.0, factors=None):
    """angle[t, i] = positions[t] / scale * theta^(-2 i / n_rot) / factors[i]: (T, n_rot / 2) radians.

    `scale` is the linear scaling factor (4 stretches the context fourfold), `factors` (n_rot / 2,) are the frequency
    factors of Llama 3's files (the tensor rope_freqs.weight); None means ones.
    """
    frequency = _f64(theta) ** (-np.arange(0, n_rot, 2) / n_rot)
    if factors is not None:
        frequency = frequency / _f64(factors)
    return _f64(positions)[:, None] / scale * frequency


def rope(x, positions, theta, layout, n_rot=None, scale=1.0, factors=None):
    """Turn pairs of the first n_rot (default D) elements of each head by `rope_angles`: x (T, H, D).

    `layout` 'pairs' turns neighbours (2 i, 2 i + 1), as Llama's GGUF files want; 'halves' turns (i, i + n_rot / 2).
    """
    return turn(x, rope_angles(positions, n_rot or x.shape[-1], theta, scale, factors), 1.0, layout)


def rope_backward(dy, positions, theta, layout, n_rot=None, scale=1.0, factors=None):
    """Return dx (T, H, D): a rotation's transpose is the rotation by the opposite angle."""
    return turn(dy, -rope_angles(positions, n_rot or dy.shape[-1], theta, scale, factors), 1.0, layout)


def turn(x, angles, factor, layout):
    """Turn pairs of the first elements of each head by `angles` (T, n_rot / 2), cosines and sines times `factor`."""
    half = angles.shape[1]
    first, second = {
        "pairs": (np.s_[..., 0 : 2 * half : 2], np.s_[..., 1 : 2 * half : 2]),
        "halves": (np.s_[..., 0:half], np.s_[..., half : 2 * half]),
    }[layout]
    x = _f64(x)
    cos, sin = factor * np.cos(angles)[:, None, :], factor * np.sin(angles)[:, None, :]
    y = x.copy()
    y[first] = x[first] * cos - x[second] * sin
    y[second] = x[first] * sin + x[second] * cos
    return y


# --- gated feed-forward (arXiv:2002.05202) ---------------------------------------------------------------------------


def silu(x):
    """x * sigmoid(x), without overflow for any finite x."""
    x = _f64(x)
    return x * _sigmoid(x)


def _sigmoid(x):
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, 1, small) / (1 + small)


def swiglu(gate, up):
    """silu(gate) * up, element by element."""
    return silu(gate) * _f64(up)


def swiglu_backward(dy, gate, up):
    """Return dgate and dup; silu'(g) = s (1 + g (1 - s)) with s = sigmoid(g)."""
    dy, gate, up = _f64(dy, gate, up)
    s = _sigmoid(gate)
    return dy * up * s * (1 + gate * (1 - s)), dy * gate * s


def swiglu_clamped(gate, up):
    """g sigmoid(1.702 g) (u + 1) with g = min(gate, 7) and u = up between -7 and 7: gpt-oss's."""
    g, u = np.minimum(_f64(gate), 7), np.clip(_f64(up), -7, 7)
    return g * _sigmoid(1.702 * g) * (u + 1)


def swiglu_clamped_backward(dy, gate, up):
    """Return dgate and dup; what is cut off has no gradient."""
    dy, gate, up = _f64(dy, gate, up)
    g, u = np.minimum(gate, 7), np.clip(up, -7, 7)
    s = _sigmoid(1.702 * g)
    dgate = dy * (u + 1) * s * (1 + 1.702 * g * (1 - s))
    return dgate * (gate <= 7), dy * g * s * (np.abs(up) <= 7)


# --- other curves: of gate with up, or of one matrix's output, which is called gate, alone ----------------------------


def gelu(x):
    """x (1 + erf(x / sqrt(2))) / 2 (arXiv:1606.08415), and its slope."""
    x = _f64(x)
    share = 0.5 * (1 + _erf(x / np.sqrt(2)))
    return x * share, share + x * np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi)


def gelu_tanh(x):
    """x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2, and its slope."""
    x, root = _f64(x), np.sqrt(2 / np.pi)
    t = np.tanh(root * (x + 0.044715 * x**3))
    return 0.5 * x * (1 + t), 0.5 * (1 + t) + 0.5 * x * (1 - t**2) * root * (1 + 3 * 0.044715 * x**2)


def relu_squared(x):
    """max(x, 0)^2 (arXiv:2109.08668), and its slope."""
    x = np.maximum(_f64(x), 0)
    return x**2, 2 * x


_erf = np.vectorize(math.erf, otypes=[np.float64])

# name -> (function of gate: value and slope, whether up multiplies it)
_CURVES = {
    "geglu_tanh": (gelu_tanh, True),
    "geglu_erf": (gelu, True),
    "gelu_tanh": (gelu_tanh, False),
    "gelu_erf": (gelu, False),
    "relu_squared": (relu_squared, False),
}


_GATED = {"swiglu": (swiglu, swiglu_backward), "swiglu_clamped": (swiglu_clamped, swiglu_clamped_backward)}


def is_gated(name):
    """Whether an MLP's activation is of two matrices."""
    return name in _GATED or _CURVES[name][1]


def activate(name, gate, up):
    """What is between the matrices of an MLP; up is not looked at where the activation has one input."""
    if name in _GATED:
        return _GATED[name][0](gate, up)
    curve, gated = _CURVES[name]
    return curve(gate)[0] * (_f64(up) if gated else 1)


def activate_backward(name, dy, gate, up):
    """Return dgate and dup, which is None where there is no up."""
    if name in _GATED:
        return _GATED[name][1](dy, gate, up)
    curve, gated = _CURVES[name]
    value, slope = curve(gate)
    dy = _f64(dy)
    return (dy * _f64(up) * slope, dy * value) if gated else (dy * slope, None)


# --- attention -------------------------------------------------------------------------------------------------------


def segment_positions(segments):
    """Return each token's index within its segment, a run of equal ids: [5, 5, 5, 9, 9] -> [0, 1, 2, 0, 1]."""
    segments = np.asarray(segments)
    starts = np.r_[True, segments[1:] != segments[:-1]] if segments.size else np.zeros(0, bool)
    index = np.arange(segments.size)
    return index - np.maximum.accumulate(np.where(starts, index, 0))


def causal_mask(segments, positions, key_segments=None, key_positions=None, window=None):
    """mask[t, k] = key k is in token t's segment (or cache slot) at a position not after its own: bool (T, K).

    Without `key_*` the keys are the tokens themselves; with them, the entries of a cache. `window`: how many positions
    a token sees, its own the last of them.
    """
    segments, positions = np.asarray(segments), np.asarray(positions)
    key_segments = segments if key_segments is None else np.asarray(key_segments)
    key_positions = positions if key_positions is None else np.asarray(key_positions)
    mask = (segments[:, None] == key_segments) & (key_positions <= positions[:, None])
    return mask if window is None else mask & (key_positions > positions[:, None] - window)


def soft_cap(x, cap):
    """cap * tanh(x / cap), between -cap and cap; x itself where cap is None."""
    return _f64(x) if cap is None else cap * np.tanh(_f64(x) / cap)


def soft_cap_backward(dy, x, cap):
    """Return dx: tanh' = 1 - tanh^2."""
    return _f64(dy) if cap is None else _f64(dy) * (1 - np.tanh(_f64(x) / cap) ** 2)


def attention(q, k, v, mask, scale=None, cap=None, sinks=None):
    """softmax(scale * q k^T, where mask) v for each query head h, with key/value head h // (H / G).

    q (T, H, D), k and v (K, G, D), v's D may be another, mask (T, K) bool with a key for every token, scale default
    1 / sqrt(D). `cap`: see soft_cap, of the scores. `sinks` (H,): a score of no key, which only adds to the
    denominator.
    Returns out (T, H, D) and lse (T, H), the logarithm of each softmax's denominator, which the backward kernels keep.
    """
    q, k, v, scale = _attention_inputs(q, k, v, scale)
    scores = np.where(mask, soft_cap(_scores(q, k, scale), cap), -np.inf)
    lse = _denominators(scores, sinks)
    out = np.einsum("htk,khd->thd", np.exp(scores - lse[..., None]), v)
    return out, lse.T


def attention_backward(dout, q, k, v, mask, scale=None, cap=None, sinks=None):
    """Return dq (T, H, D), dk and dv (K, G, D): ds = p (dp - sum(p dp)), p the softmax; a group's heads add up.

    The sinks are frozen.
    """
    n_head_kv = np.shape(k)[1]
    q, k, v, scale = _attention_inputs(q, k, v, scale)
    dout = _f64(dout)
    products = _scores(q, k, scale)
    scores = np.where(mask, soft_cap(products, cap), -np.inf)
    p = np.exp(scores - _denominators(scores, sinks)[..., None])
    dv = np.einsum("htk,thd->khd", p, dout)
    dp = np.einsum("thd,khd->htk", dout, v)
    ds = scale * soft_cap_backward(p * (dp - np.sum(p * dp, axis=-1, keepdims=True)), products, cap)
    dq = np.einsum("htk,khd->thd", ds, k)
    dk = np.einsum("htk,thd->khd", ds, q)
    n_keys, n_head, head_dim = dk.shape
    by_group = (n_keys, n_head_kv, n_head // n_head_kv, head_dim)
    return dq, dk.reshape(by_group).sum(axis=2), dv.reshape(*by_group[:3], -1).sum(axis=2)


def _attention_inputs(q, k, v, scale):
    """Return q, k, v and scale with every key/value head repeated for its group of query heads."""
    q, k, v = _f64(q, k, v)
    group = q.shape[1] // k.shape[1]
    scale = q.shape[2] ** -0.5 if scale is None else scale
    return q, np.repeat(k, group, axis=1), np.repeat(v, group, axis=1), scale


def _scores(q, k, scale):
    return scale * np.einsum("thd,khd->htk", q, k)


def _denominators(scores, sinks):
    """Return the logarithm of each softmax's denominator (H, T)."""
    lse = np.logaddexp.reduce(scores, axis=-1)
    return lse if sinks is None else np.logaddexp(lse, _f64(sinks)[:, None])


# --- loss ------------------------------------------------------------------------------------------------------------


def log_softmax(logits):
    """logits - log(sum(exp(logits))) over the last axis, shifted by the maximum so that nothing overflows."""
    logits = _f64(logits)
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def cross_entropy(logits, targets, n_trained=None):
    """-sum(log_softmax(logits)[t, targets[t]]) / n_trained over the trained tokens: logits (T, V), targets (T,) ids.

    A negative target is a token that is not trained on. `n_trained` defaults to the trained tokens here; a micro-batch
    gives the count of its whole step. No trained token: 0.
    """
    rows, n_trained = _trained(targets, n_trained)
    return float(-np.sum(log_softmax(logits)[rows, np.asarray(targets)[rows]]) / n_trained)


def cross_entropy_backward(logits, targets, n_trained=None):
    """Return dlogits (T, V) = (softmax - one hot) / n_trained; zero rows where a token is not trained on."""
    rows, n_trained = _trained(targets, n_trained)
    dlogits = np.zeros(np.shape(logits))
    dlogits[rows] = np.exp(log_softmax(logits)[rows])
    dlogits[rows, np.asarray(targets)[rows]] -= 1
    return dlogits / n_trained


def _trained(targets, n_trained):
    """Return the trained rows' indices and the count to divide by (at least 1: an empty mean is 0)."""
    rows = np.flatnonzero(np.asarray(targets) >= 0)
    return rows, max(1, rows.size if n_trained is None else n_trained)


# --- optimiser -------------------------------------------------------------------------------------------------------


def clip_by_global_norm(grads, max_norm):
    """Scale a list of arrays to a global norm of at most max_norm (0: never). Returns (grads, norm before).

    The factor is min(1, max_norm / (norm + 1e-6)), as torch.nn.utils.clip_grad_norm_ has it.
    """
    grads = [_f64(g) for g in grads]
    norm = float(np.sqrt(sum(np.sum(g**2) for g in grads)))
    factor = min(1.0, max_norm / (norm + 1e-6)) if max_norm > 0 else 1.0
    return [g * factor for g in grads], norm


def adamw_step(p, grad, m, v, step, lr, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0):
    """One AdamW step (arXiv:1711.05101, as torch.optim.AdamW): returns new (p, m, v); `step` counts from 1.

    m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2;  p = (1 - lr wd) p - lr m^ / (sqrt(v^) + eps), where m^ and v^ are
    m / (1 - b1^step) and v / (1 - b2^step): the decay is not part of the gradient.
    """
    p, grad, m, v = _f64(p, grad, m, v)
    m = beta1 * m + (1 - beta1) * grad
    v = beta2 * v + (1 - beta2) * grad**2
    m_hat, v_hat = m / (1 - beta1**step), v / (1 - beta2**step)
    return (1 - lr * weight_decay) * p - lr * m_hat / (np.sqrt(v_hat) + eps), m, v
