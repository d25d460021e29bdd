"""Rotary position embedding (Su et al., 2021): each pair of a head's first n_rot elements turns by position * frequency."""

from libc.math cimport cos, sin

import numpy as np


cdef void rope_angles(int position, const double* frequencies, int n_rot, float* cosine, float* sine) noexcept nogil:
    """cosine and sine [n_rot / 2] of position * frequencies[i], computed in f64."""
    cdef int i
    for i in range(n_rot // 2):
        cosine[i] = <float>cos(position * frequencies[i])
        sine[i] = <float>sin(position * frequencies[i])


cdef inline void rotate(float* x, int n_head, int head_dim, int n_rot, const float* cosine, const float* sine,
                        int layout, float sign) noexcept nogil:
    cdef int _h, i, first, second, step = 2 if layout == PAIRS else 1, half = n_rot // 2
    cdef int gap = 1 if layout == PAIRS else half
    cdef float a, b
    for _h in range(n_head):
        for i in range(half):
            first = step * i
            second = first + gap
            a, b = x[first], x[second]
            x[first] = a * cosine[i] - sign * b * sine[i]
            x[second] = b * cosine[i] + sign * a * sine[i]
        x += head_dim


cdef void rope(float* x, int n_head, int head_dim, int n_rot, const float* cosine, const float* sine, int layout) noexcept nogil:
    """Turn x (n_head, head_dim) in place: (a, b) -> (a cos - b sin, b cos + a sin)."""
    rotate(x, n_head, head_dim, n_rot, cosine, sine, layout, 1)


cdef void rope_backward(float* dx, int n_head, int head_dim, int n_rot, const float* cosine, const float* sine, int layout) noexcept nogil:
    """Turn dx back in place: the transpose of a rotation is the opposite rotation."""
    rotate(dx, n_head, head_dim, n_rot, cosine, sine, layout, -1)


def rows(x, positions, frequencies, int layout, bint backward=False):
    """Apply to x (T, n_head, head_dim) f32 at positions (T,) with frequencies (n_rot / 2,) f64; returns a new array."""
    cdef float[:, :, ::1] out = np.array(x, np.float32)
    cdef double[::1] f = np.asarray(frequencies, np.float64)
    cdef float[:, ::1] angles = np.zeros((2, len(frequencies)), np.float32)
    cdef int t, n_rot = 2 * len(frequencies)
    for t in range(out.shape[0]):
        rope_angles(positions[t], &f[0], n_rot, &angles[0, 0], &angles[1, 0])
        if backward:
            rope_backward(&out[t, 0, 0], out.shape[1], out.shape[2], n_rot, &angles[0, 0], &angles[1, 0], layout)
        else:
            rope(&out[t, 0, 0], out.shape[1], out.shape[2], n_rot, &angles[0, 0], &angles[1, 0], layout)
    return np.asarray(out)
