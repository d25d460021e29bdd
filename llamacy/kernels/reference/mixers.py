"""Other first halves of a layer in float64: latent attention, and short convolutions in attention's place.

`linears` are a model's matrices by name, `config` its numbers (model.py), axes as in layers.py. norm: function of a
norm's name and rows; norm_backward of these and the gradient; turn and turn_back: of heads (T, H, n_rot), by position.
"""

from types import SimpleNamespace

import numpy as np


def latent(linears, config, n, x, norm, turn):
    """Return what attention compares of x (T, C): q, k (T, H, D), v (T, H, n_value), beside what the way back needs."""
    p, made, heads = f"blk.{n}.", SimpleNamespace(x=x), (len(x), config.n_head, -1)
    plain = config.head_dim - config.n_rot
    if config.q_rank:
        made.low_q = linears.forward(p + "attn_q_a.weight", x)
        made.q_seen = norm(p + "attn_q_a_norm", made.low_q)
        q = linears.forward(p + "attn_q_b.weight", made.q_seen).reshape(heads)
    else:
        q = linears.forward(p + "attn_q.weight", x).reshape(heads)
    low = linears.forward(p + "attn_kv_a_mqa.weight", x)
    made.low_kv, shared = np.split(low, [config.kv_rank], axis=1)
    made.kv_seen = norm(p + "attn_kv_a_norm", made.low_kv)
    kv = linears.forward(p + "attn_kv_b.weight", made.kv_seen).reshape(heads)
    made.q = np.concatenate([q[..., :plain], turn(q[..., plain:])], axis=2)
    shared = np.repeat(turn(shared[:, None]), config.n_head, axis=1)
    made.k, made.v = np.concatenate([kv[..., :plain], shared], axis=2), kv[..., plain:]
    return made


def latent_backward(linears, config, n, made, dq, dk, dv, norm_backward, turn_back):
    """Return dx (T, C); the adapters' gradients go to linears.gradients."""
    p, plain = f"blk.{n}.", config.head_dim - config.n_rot
    dq = np.concatenate([dq[..., :plain], turn_back(dq[..., plain:])], axis=2).reshape(len(dq), -1)
    if config.q_rank:
        dq = linears.backward(p + "attn_q_b.weight", dq, made.q_seen)
        dq = norm_backward(p + "attn_q_a_norm", made.low_q, dq)
        dx = linears.backward(p + "attn_q_a.weight", dq, made.x)
    else:
        dx = linears.backward(p + "attn_q.weight", dq, made.x)
    dkv = np.concatenate([dk[..., :plain], dv], axis=2).reshape(len(dk), -1)
    dlow = norm_backward(p + "attn_kv_a_norm", made.low_kv, linears.backward(p + "attn_kv_b.weight", dkv, made.kv_seen))
    dshared = turn_back(dk[..., plain:]).sum(axis=1)
    return dx + linears.backward(p + "attn_kv_a_mqa.weight", np.concatenate([dlow, dshared], axis=1), made.x)


def _earlier(x, positions, j):
    """x (T, C) of j positions before in each sequence, zero before its first; tokens stand in order."""
    moved = np.zeros_like(x)
    moved[j:] = x[: len(x) - j]
    return moved * (np.asarray(positions) >= j)[:, None]


def convolution(linears, n, x, positions):
    """Return c * (taps * (b * x)) of x (T, C), and what the way back needs."""
    made = SimpleNamespace(input=x)
    made.b, made.c, made.x = np.split(linears.forward(f"blk.{n}.shortconv.in_proj.weight", x), 3, axis=1)
    taps = linears.weights[f"blk.{n}.shortconv.conv.weight"].T[::-1]
    made.sum = sum(tap * _earlier(made.b * made.x, positions, j) for j, tap in enumerate(taps))
    return made.c * made.sum, made


def convolution_backward(linears, n, made, dy, positions):
    """Return dx (T, C) of dy."""
    taps, dsum = linears.weights[f"blk.{n}.shortconv.conv.weight"].T[::-1], dy * made.c
    dz = np.zeros_like(dsum)
    for j, tap in enumerate(taps):
        there = tap * dsum * (np.asarray(positions) >= j)[:, None]
        dz[: len(dz) - j] += there[j:]
    parts = np.concatenate([dz * made.x, dy * made.sum, dz * made.b], axis=1)
    return linears.backward(f"blk.{n}.shortconv.in_proj.weight", parts, made.input)


def linear_shapes(config, n):
    """Return {name within layer n: (n_out, n_in)} of the matrices of such a first half, {} for plain attention."""
    c, heads, plain = config.n_embd, config.n_head, config.head_dim - (config.n_rot or 0)
    if n in config.convolving:
        return {"shortconv.in_proj": (3 * c, c), "shortconv.out_proj": (c, c)}
    if not config.kv_rank:
        return {}
    q, rank = heads * config.head_dim, config.q_rank
    queries = {"attn_q_a": (rank, c), "attn_q_b": (q, rank)} if rank else {"attn_q": (q, c)}
    return queries | {
        "attn_kv_a_mqa": (config.kv_rank + config.n_rot, c),
        "attn_kv_b": (heads * (plain + config.n_value), config.kv_rank),
        "attn_output": (c, heads * config.n_value),
    }


def vector_shapes(config, n):
    """Return {name within layer n: shape} of its norms and taps."""
    if n in config.convolving:
        return {"shortconv.conv": (config.n_embd, config.n_taps)}
    found = {"attn_kv_a_norm": (config.kv_rank,)} if config.kv_rank else {}
    return found | ({"attn_q_a_norm": (config.q_rank,)} if config.q_rank else {})
