"""SwiGLU (Shazeer, 2020): h = silu(gate) * up with silu(x) = x * sigmoid(x), forward and backward."""

from ..simd.verbs cimport vf, vf_fma, vf_load, vf_mul, vf_set1, vf_store, vf_sub
from .vmath cimport vf_sigmoid

import numpy as np


cdef void swiglu(const float* gate, const float* up, int n, float* h) noexcept nogil:
    """h[n] = silu(gate) * up; h may be gate or up."""
    cdef int i
    cdef vf g
    for i in range(0, n, 16):
        g = vf_load(gate + i)
        vf_store(h + i, vf_mul(vf_mul(g, vf_sigmoid(g)), vf_load(up + i)))


cdef void swiglu_backward(const float* dh, int n, float* gate, float* up) noexcept nogil:
    """gate[n], up[n] become d gate = dh up s (1 + gate (1 - s)) and d up = dh gate s, with s = sigmoid(gate)."""
    cdef int i
    cdef vf g, u, s, d, one = vf_set1(1)
    for i in range(0, n, 16):
        g, u, d = vf_load(gate + i), vf_load(up + i), vf_load(dh + i)
        s = vf_sigmoid(g)
        vf_store(up + i, vf_mul(d, vf_mul(g, s)))
        vf_store(gate + i, vf_mul(vf_mul(d, u), vf_mul(s, vf_fma(g, vf_sub(one, s), one))))


def apply(gate, up, dh=None):
    """h of 1-d f32 arrays (a multiple of 16 long), or (d gate, d up) where dh is given."""
    cdef float[::1] g = np.array(gate, np.float32), u = np.array(up, np.float32), d
    if dh is None:
        swiglu(&g[0], &u[0], <int>g.shape[0], &g[0])
        return np.asarray(g)
    d = np.array(dh, np.float32)
    swiglu_backward(&d[0], <int>g.shape[0], &g[0], &u[0])
    return np.asarray(g), np.asarray(u)
