"""Softmax cross-entropy of one token, forward and backward in one pass over its logits."""

from libc.math cimport INFINITY, log

from ..simd.verbs cimport vf, vf_fnma, vf_hmax, vf_hsum, vf_load, vf_max, vf_mul, vf_set1, vf_store, vf_sub
from .scores cimport soft_cap
from .vmath cimport vf_exp

import numpy as np


cdef inline void capped_gradient(float* logits, int n, int target, float weight, float peak, double total, float cap) noexcept nogil:
    """Capped logits become weight * (softmax - one-hot(target)) * (1 - (logit / cap)^2), the gradient of those before"""
    cdef int i
    cdef float slope = 1 - logits[target] / cap * (logits[target] / cap)
    cdef vf x, t
    for i in range(0, n, 16):
        x = vf_load(logits + i)
        t = vf_mul(x, vf_set1(1 / cap))
        x = vf_mul(vf_exp(vf_sub(x, vf_set1(peak))), vf_set1(<float>(weight / total)))
        vf_store(logits + i, vf_mul(x, vf_fnma(t, t, vf_set1(1))))
    logits[target] -= weight * slope


cdef double cross_entropy(float* logits, int n, int target, float weight, float cap) noexcept nogil:
    """Return logsumexp(logits[n]) - logits[target]; logits become weight * (softmax - one-hot(target)).

    cap: both are of cap * tanh(logits / cap), and the gradient goes through it; 0: of the logits as they are. There is room
    up to a multiple of 16, which becomes zero. Sums of 16 lanes are kept in f64. With an infinity or NaN among the logits the
    loss is NaN.
    """
    cdef int i, width = (n + 15) // 16 * 16
    cdef vf top = vf_set1(-INFINITY), e
    cdef float peak, factor
    cdef double total = 0, loss
    if cap:
        soft_cap(logits, n, cap)
    for i in range(n, width):
        logits[i] = -INFINITY
    for i in range(0, width, 16):
        top = vf_max(top, vf_load(logits + i))
    peak = vf_hmax(top)
    loss = peak - logits[target]
    for i in range(0, width, 16):
        e = vf_exp(vf_sub(vf_load(logits + i), vf_set1(peak)))
        total += vf_hsum(e)
        if cap == 0:
            vf_store(logits + i, e)
    if cap:
        capped_gradient(logits, width, target, weight, peak, total, cap)
    for i in range(n, width):
        logits[i] = 0
    if cap:
        return loss + log(total)
    factor = <float>(weight / total)
    for i in range(0, width, 16):
        vf_store(logits + i, vf_mul(vf_load(logits + i), vf_set1(factor)))
    logits[target] -= weight
    return loss + log(total)


def rows(logits, targets, float weight, float cap=0):
    """(losses f64 (T,), d logits f32 (T, n)) of logits (T, n) and targets (T,)."""
    T, n = np.shape(logits)
    cdef float[:, ::1] x = np.zeros((T, (n + 15) // 16 * 16), np.float32)
    cdef double[::1] losses = np.zeros(T)
    cdef int t, cols = n
    np.asarray(x)[:, :n] = logits
    for t in range(T):
        losses[t] = cross_entropy(&x[t, 0], cols, targets[t], weight, cap)
    return np.asarray(losses), np.asarray(x)[:, :n]
