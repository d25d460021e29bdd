"""What is between the matrices of an MLP, forward and backward: h = f(gate) * up (Shazeer, 2020), or f(gate) alone.

f: silu, x * sigmoid(x); gelu (Hendrycks and Gimpel, 2016), x times the normal distribution's share below x, exact by erf
or by its approximation with tanh; or the square of relu (So et al., 2021).
"""

from ..simd.verbs cimport vf, vf_abs, vf_add, vf_fma, vf_load, vf_max, vf_min, vf_mul, vf_set1, vf_store, vf_sub
from .vmath cimport vf_erf, vf_exp, vf_sigmoid

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


# ---- f of x, and its slope where that is asked for ----


cdef inline vf gelu_tanh(vf x, vf* slope) noexcept nogil:
    """x (1 + tanh(u)) / 2 = x sigmoid(2 u) with 2 u = sqrt(8 / pi) (x + 0.044715 x^3)"""
    cdef vf square = vf_mul(x, x), one = vf_set1(1)
    cdef vf s = vf_sigmoid(vf_mul(x, vf_fma(square, vf_set1(1.5957691216057308 * 0.044715), vf_set1(1.5957691216057308))))
    cdef vf u
    if slope != NULL:
        u = vf_mul(x, vf_fma(square, vf_set1(3 * 1.5957691216057308 * 0.044715), vf_set1(1.5957691216057308)))
        slope[0] = vf_mul(s, vf_fma(u, vf_sub(one, s), one))
    return vf_mul(x, s)


cdef inline vf gelu_erf(vf x, vf* slope) noexcept nogil:
    """x (1 + erf(x / sqrt(2))) / 2"""
    cdef vf half = vf_set1(0.5), size = vf_abs(x), bell = vf_exp(vf_mul(vf_mul(x, x), vf_set1(-0.5)))
    cdef vf e = vf_erf(vf_mul(size, vf_set1(0.7071067811865476)), bell), sign
    if slope != NULL:
        sign = vf_max(vf_set1(-1), vf_min(vf_set1(1), vf_mul(x, vf_set1(1e30))))
        slope[0] = vf_fma(vf_mul(x, vf_set1(0.3989422804014327)), bell, vf_fma(vf_mul(sign, e), half, half))
    return vf_mul(half, vf_fma(size, e, x))


cdef inline vf relu_squared(vf x, vf* slope) noexcept nogil:
    # where either is NaN, max gives the second
    x = vf_max(vf_set1(0), x)
    if slope != NULL:
        slope[0] = vf_add(x, x)
    return vf_mul(x, x)


# ---- of two matrices ----


cdef void geglu_tanh(const float* gate, const float* up, int n, float* h) noexcept nogil:
    cdef int i
    for i in range(0, n, 16):
        vf_store(h + i, vf_mul(gelu_tanh(vf_load(gate + i), NULL), vf_load(up + i)))


cdef void geglu_tanh_backward(const float* dh, int n, float* gate, float* up) noexcept nogil:
    cdef int i
    cdef vf slope, f, d
    for i in range(0, n, 16):
        f, d = gelu_tanh(vf_load(gate + i), &slope), vf_load(dh + i)
        vf_store(gate + i, vf_mul(vf_mul(d, vf_load(up + i)), slope))
        vf_store(up + i, vf_mul(d, f))


cdef void geglu_erf(const float* gate, const float* up, int n, float* h) noexcept nogil:
    cdef int i
    for i in range(0, n, 16):
        vf_store(h + i, vf_mul(gelu_erf(vf_load(gate + i), NULL), vf_load(up + i)))


cdef void geglu_erf_backward(const float* dh, int n, float* gate, float* up) noexcept nogil:
    cdef int i
    cdef vf slope, f, d
    for i in range(0, n, 16):
        f, d = gelu_erf(vf_load(gate + i), &slope), vf_load(dh + i)
        vf_store(gate + i, vf_mul(vf_mul(d, vf_load(up + i)), slope))
        vf_store(up + i, vf_mul(d, f))


cdef enum:
    CLAMP = 7               # of swiglu_clamped

cdef float SHARPNESS = 1.702


cdef inline vf clamped(vf x) noexcept nogil:
    """x between -CLAMP and CLAMP; NaN stays, as the second of two does"""
    return vf_max(vf_set1(-CLAMP), vf_min(vf_set1(CLAMP), x))


cdef inline vf at_most(vf x, float most) noexcept nogil:
    """1 where x <= most, else 0"""
    return vf_max(vf_set1(0), vf_min(vf_set1(1), vf_fma(vf_sub(vf_set1(most), x), vf_set1(1e30), vf_set1(1))))


cdef void swiglu_clamped(const float* gate, const float* up, int n, float* h) noexcept nogil:
    """gpt-oss's: h = g sigmoid(1.702 g) (u + 1) of gate at most 7 and up between -7 and 7"""
    cdef int i
    cdef vf g, s
    for i in range(0, n, 16):
        g = vf_min(vf_set1(CLAMP), vf_load(gate + i))
        s = vf_mul(g, vf_sigmoid(vf_mul(g, vf_set1(SHARPNESS))))
        vf_store(h + i, vf_fma(s, clamped(vf_load(up + i)), s))


cdef void swiglu_clamped_backward(const float* dh, int n, float* gate, float* up) noexcept nogil:
    cdef int i
    cdef vf g, u, s, d, one = vf_set1(1), steep
    for i in range(0, n, 16):
        g, u, d = vf_min(vf_set1(CLAMP), vf_load(gate + i)), vf_load(up + i), vf_load(dh + i)
        steep = vf_mul(g, vf_set1(SHARPNESS))
        s = vf_sigmoid(steep)
        steep = vf_mul(s, vf_fma(steep, vf_sub(one, s), one))
        steep = vf_mul(vf_mul(d, steep), at_most(vf_load(gate + i), CLAMP))
        vf_store(gate + i, vf_fma(steep, clamped(u), steep))
        vf_store(up + i, vf_mul(vf_mul(d, vf_mul(g, s)), at_most(vf_abs(u), CLAMP)))


# ---- of one ----


cdef void plain_gelu_tanh(const float* gate, const float* up, int n, float* h) noexcept nogil:
    cdef int i
    for i in range(0, n, 16):
        vf_store(h + i, gelu_tanh(vf_load(gate + i), NULL))


cdef void plain_gelu_tanh_backward(const float* dh, int n, float* gate, float* up) noexcept nogil:
    cdef int i
    cdef vf slope
    for i in range(0, n, 16):
        gelu_tanh(vf_load(gate + i), &slope)
        vf_store(gate + i, vf_mul(vf_load(dh + i), slope))


cdef void plain_gelu_erf(const float* gate, const float* up, int n, float* h) noexcept nogil:
    cdef int i
    for i in range(0, n, 16):
        vf_store(h + i, gelu_erf(vf_load(gate + i), NULL))


cdef void plain_gelu_erf_backward(const float* dh, int n, float* gate, float* up) noexcept nogil:
    cdef int i
    cdef vf slope
    for i in range(0, n, 16):
        gelu_erf(vf_load(gate + i), &slope)
        vf_store(gate + i, vf_mul(vf_load(dh + i), slope))


cdef void plain_relu_squared(const float* gate, const float* up, int n, float* h) noexcept nogil:
    cdef int i
    for i in range(0, n, 16):
        vf_store(h + i, relu_squared(vf_load(gate + i), NULL))


cdef void plain_relu_squared_backward(const float* dh, int n, float* gate, float* up) noexcept nogil:
    cdef int i
    cdef vf slope
    for i in range(0, n, 16):
        relu_squared(vf_load(gate + i), &slope)
        vf_store(gate + i, vf_mul(vf_load(dh + i), slope))


# By name, as formats/architectures.py calls them; the numbers are those of ROWS.
ACTIVATIONS = {name: i for i, name in enumerate(
    ("swiglu", "geglu_tanh", "geglu_erf", "gelu_tanh", "gelu_erf", "relu_squared", "swiglu_clamped"))}
cdef Activation[7] ROWS
ROWS[0] = Activation(True, swiglu, swiglu_backward)
ROWS[1] = Activation(True, geglu_tanh, geglu_tanh_backward)
ROWS[2] = Activation(True, geglu_erf, geglu_erf_backward)
ROWS[3] = Activation(False, plain_gelu_tanh, plain_gelu_tanh_backward)
ROWS[4] = Activation(False, plain_gelu_erf, plain_gelu_erf_backward)
ROWS[5] = Activation(False, plain_relu_squared, plain_relu_squared_backward)
ROWS[6] = Activation(True, swiglu_clamped, swiglu_clamped_backward)


cdef const Activation* activation(name) except NULL:
    """The row of a name"""
    return &ROWS[<int>ACTIVATIONS[name]]


def apply(gate, up, dh=None, name="swiglu"):
    """h of 1-d f32 arrays (a multiple of 16 long), or (d gate, d up) where dh is given."""
    cdef float[::1] g = np.array(gate, np.float32), u = np.array(up, np.float32), d
    cdef const Activation* row = activation(name)
    if dh is None:
        row.apply(&g[0], &u[0], <int>g.shape[0], &g[0])
        return np.asarray(g)
    d = np.array(dh, np.float32)
    row.backward(&d[0], <int>g.shape[0], &g[0], &u[0])
    return np.asarray(g), np.asarray(u)
