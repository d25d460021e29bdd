"""RMSNorm: y = w * x / sqrt(mean(x^2) + eps) (Zhang and Sennrich, 2019), forward and backward, one row at a time."""

from libc.math cimport sqrt

from ..simd.verbs cimport vf, vf_fma, vf_fma1, vf_fnma, vf_hsum, vf_load, vf_mul, vf_set1, vf_store

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


cdef void rms_norm(const float* x, const float* w, int n, float eps, float* y) noexcept nogil:
    """y[n] = w * x * r with r = 1 / sqrt(mean(x^2) + eps); y may be x."""
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


def rows(x, w, float eps, dy=None):
    """Apply to every row of x (T, n) f32: the norm, or its backward (dx) where dy (T, n) is given."""
    T, n = x.shape
    width = (n + 15) // 16 * 16
    cdef float[:, ::1] xv = np.zeros((T, width), np.float32), out = np.zeros((T, width), np.float32)
    cdef float[:, ::1] dv = np.zeros((T, width), np.float32)
    cdef float[::1] wv = np.zeros(width, np.float32)
    cdef int t, cols = n
    np.asarray(xv)[:, :n], np.asarray(wv)[:n] = x, w
    if dy is not None:
        np.asarray(dv)[:, :n] = dy
    for t in range(T):
        if dy is None:
            rms_norm(&xv[t, 0], &wv[0], cols, eps, &out[t, 0])
        else:
            rms_norm_backward(&xv[t, 0], &wv[0], &dv[t, 0], cols, eps, &out[t, 0])
    return np.asarray(out)[:, :n]
