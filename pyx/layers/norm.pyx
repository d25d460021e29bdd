"""Norms of a row, forward and backward: RMSNorm (Zhang and Sennrich, 2019) and LayerNorm (Ba, Kiros, Hinton, 2016).

RMSNorm: y = w * x / sqrt(mean(x^2) + eps). LayerNorm: y = w * (x - mean(x)) / sqrt(variance(x) + eps) + bias.
"""

from libc.math cimport sqrt
from libc.string cimport memcpy, memset

from ..simd.verbs cimport vf, vf_add, vf_fma, vf_fma1, vf_fnma, vf_hsum, vf_load, vf_mul, vf_set1, vf_store, vf_sub

import numpy as np


cdef inline float inverse_rms(const float* x, int n, float eps) noexcept nogil:
    cdef vf s = vf_set1(0)
    cdef double mean
    cdef int i
    for i in range(0, n, 16):
        s = vf_fma(vf_load(x + i), vf_load(x + i), s)
    mean = <double>vf_hsum(s) / n
    # a sum that f32 does not hold would make every y zero: NaN instead
    return <float>(1 / sqrt(mean + eps) + (mean - mean))


cdef void rms_norm(const float* x, const float* w, const float* bias, int n, float eps, float* y) noexcept nogil:
    """y[n] = w * x * r with r = 1 / sqrt(mean(x^2) + eps); y may be x. There is no bias."""
    cdef vf r = vf_set1(inverse_rms(x, n, eps))
    cdef int i
    for i in range(0, n, 16):
        vf_store(y + i, vf_mul(vf_mul(vf_load(x + i), r), vf_load(w + i)))


cdef void rms_norm_backward(const float* x, const float* w, const float* dy, int n, float eps, float* dx) noexcept nogil:
    """dx[n] += r * (w * dy - x * r^2 * mean(w * dy * x))."""
    cdef float r = inverse_rms(x, n, eps)
    cdef vf s = vf_set1(0), g
    cdef float back
    cdef int i
    for i in range(0, n, 16):
        s = vf_fma(vf_mul(vf_load(w + i), vf_load(dy + i)), vf_load(x + i), s)
    back = vf_hsum(s) / n * r * r
    for i in range(0, n, 16):
        g = vf_fnma(vf_load(x + i), vf_set1(back), vf_mul(vf_load(w + i), vf_load(dy + i)))
        vf_store(dx + i, vf_fma1(g, r, vf_load(dx + i)))


cdef inline vf centred(const float* x, int i, int n, float mean) noexcept nogil:
    """x[i:i + 16] - mean, and 0 from n on"""
    cdef float part[16]
    cdef int j
    if i + 16 <= n:
        return vf_sub(vf_load(x + i), vf_set1(mean))
    for j in range(16):
        part[j] = x[i + j] - mean if i + j < n else 0
    return vf_load(part)


cdef inline float mean_of(const float* x, int n) noexcept nogil:
    cdef vf s = vf_set1(0)
    cdef int i
    for i in range(0, n, 16):
        s = vf_add(vf_load(x + i), s)
    return vf_hsum(s) / n


cdef inline float inverse_deviation(const float* x, int n, float mean, float eps) noexcept nogil:
    cdef vf s = vf_set1(0), d
    cdef double variance
    cdef int i
    for i in range(0, n, 16):
        d = centred(x, i, n, mean)
        s = vf_fma(d, d, s)
    variance = <double>vf_hsum(s) / n
    return <float>(1 / sqrt(variance + eps) + (variance - variance))


cdef void layer_norm(const float* x, const float* w, const float* bias, int n, float eps, float* y) noexcept nogil:
    """y[n] = w * (x - mean) * r + bias with r = 1 / sqrt(variance + eps); y may be x, bias NULL for none."""
    cdef float mean = mean_of(x, n)
    cdef vf r = vf_set1(inverse_deviation(x, n, mean, eps)), normal
    cdef int i
    for i in range(0, n, 16):
        normal = vf_mul(centred(x, i, n, mean), r)
        vf_store(y + i, vf_fma(normal, vf_load(w + i), vf_load(bias + i) if bias != NULL else vf_set1(0)))


cdef void layer_norm_backward(const float* x, const float* w, const float* dy, int n, float eps, float* dx) noexcept nogil:
    """dx[n] += r * (g - mean(g) - z * mean(g * z)) with g = w * dy and z = (x - mean) * r."""
    cdef float mean = mean_of(x, n), r = inverse_deviation(x, n, mean, eps), level, slope
    cdef vf s = vf_set1(0), along = vf_set1(0), g
    cdef float part[16]
    cdef int i, j
    for i in range(0, n, 16):
        g = vf_mul(vf_load(w + i), vf_load(dy + i))
        s, along = vf_add(s, g), vf_fma(g, centred(x, i, n, mean), along)
    level, slope = vf_hsum(s) / n, vf_hsum(along) / n * r * r
    for i in range(0, n, 16):
        g = vf_sub(vf_mul(vf_load(w + i), vf_load(dy + i)), vf_set1(level))
        g = vf_fnma(centred(x, i, n, mean), vf_set1(slope), g)
        if i + 16 > n:
            vf_store(part, g)
            for j in range(n - i, 16):
                part[j] = 0
            g = vf_load(part)
        vf_store(dx + i, vf_fma1(g, r, vf_load(dx + i)))


cdef NormKind[2] KINDS
KINDS[0] = NormKind(rms_norm, rms_norm_backward)
KINDS[1] = NormKind(layer_norm, layer_norm_backward)
KIND_OF = {"rms": 0, "layer": 1}
LONGEST_HEAD = NORMED_HEAD


cdef const NormKind* norm_kind(name) except NULL:
    """The row of KINDS of a name, one of KIND_OF"""
    return &KINDS[<int>KIND_OF[name]]


cdef void norm_heads(const HeadNorm* h, float* x, int first, int n_head, int head_dim) noexcept nogil:
    """x (n_head, head_dim) = the norms of its heads, of which `first` is the first one's number among the weights"""
    cdef float row[NORMED_HEAD]
    cdef const Norm* norm = &h.norm
    cdef int i
    cdef bint whole = head_dim % 16 == 0
    for i in range(n_head):
        if whole:
            norm.kind.apply(x, norm.weight + (first + i) * h.each, NULL, head_dim, norm.eps, x)
        else:
            load_head(x, head_dim, row)
            norm.kind.apply(row, norm.weight + (first + i) * h.each, NULL, head_dim, norm.eps, row)
            memcpy(x, row, 4 * <size_t>head_dim)
        x += head_dim


cdef void norm_heads_backward(const HeadNorm* h, const float* x, float* dx, int n_head, int head_dim) noexcept nogil:
    """dx (n_head, head_dim), the gradient of the norms of x's heads, becomes the gradient of x."""
    cdef float row[NORMED_HEAD]
    cdef float dy[NORMED_HEAD]
    cdef float out[NORMED_HEAD]
    cdef const Norm* norm = &h.norm
    cdef int i
    for i in range(n_head):
        load_head(x, head_dim, row)
        load_head(dx, head_dim, dy)
        memset(out, 0, sizeof(out))
        norm.kind.backward(row, norm.weight + i * h.each, dy, head_dim, norm.eps, out)
        memcpy(dx, out, 4 * <size_t>head_dim)
        x += head_dim
        dx += head_dim


cdef inline void load_head(const float* x, int n, float* row) noexcept nogil:
    """row = x[n], padded to 16 with zeros"""
    cdef int i
    memcpy(row, x, 4 * <size_t>n)
    for i in range(n, (n + 15) // 16 * 16):
        row[i] = 0


def rows(x, w, float eps, dy=None, kind="rms", bias=None):
    """Apply to every row of x (T, n) f32: the norm, or its backward (dx) where dy (T, n) is given."""
    T, n = x.shape
    width = (n + 15) // 16 * 16
    cdef float[:, ::1] xv = np.zeros((T, width), np.float32), out = np.zeros((T, width), np.float32)
    cdef float[:, ::1] dv = np.zeros((T, width), np.float32)
    cdef float[::1] wv = np.zeros(width, np.float32), bv = np.zeros(width, np.float32)
    cdef const NormKind* row = norm_kind(kind)
    cdef int t, cols = n
    np.asarray(xv)[:, :n], np.asarray(wv)[:n] = x, w
    if bias is not None:
        np.asarray(bv)[:n] = bias
    if dy is not None:
        np.asarray(dv)[:, :n] = dy
    for t in range(T):
        if dy is None:
            row.apply(&xv[t, 0], &wv[0], &bv[0] if bias is not None else NULL, cols, eps, &out[t, 0])
        else:
            row.backward(&xv[t, 0], &wv[0], &dv[t, 0], cols, eps, &out[t, 0])
    # padding is zero, but in rows that are no numbers
    numbers = np.isfinite(np.asarray(out)[:, :n]).all(axis=1)
    assert not np.asarray(out)[numbers, n:].any()
    return np.asarray(out)[:, :n]
