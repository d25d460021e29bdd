"""Rotary position embedding (Su et al., 2021): each pair of a head's first n_rot elements turns by position * frequency."""

from libc.math cimport cos, sin

import numpy as np


cdef class RopeTables:
    """Tables of rotary positions, one for each way in which a model's layers turn their heads."""

    def __cinit__(self, tables, int n_rot):
        """tables: up to MAX_ROPES of (frequencies f64 (n_rot / 2,), factor on cosines and sines)."""
        cdef double[::1] frequencies
        if not 1 <= len(tables) <= MAX_ROPES:
            raise ValueError(f"{len(tables)} tables of rotary positions, wanted 1 to {MAX_ROPES}")
        self.n, self.n_rot, self.keep = len(tables), n_rot, []
        for i, (values, factor) in enumerate(tables):
            frequencies = np.array(values, np.float64)
            if 2 * frequencies.shape[0] != n_rot:
                raise ValueError(f"{frequencies.shape[0]} frequencies, wanted {n_rot // 2}")
            self.keep.append(frequencies)
            self.frequencies[i], self.factor[i] = &frequencies[0], factor

    cdef void angles(self, int position, float* cosine, float* sine) noexcept nogil:
        """cosine and sine (n, n_rot / 2) of a position, table after table"""
        cdef int i, half = self.n_rot // 2
        for i in range(self.n):
            rope_angles(position, self.frequencies[i], self.factor[i], self.n_rot, cosine + i * half, sine + i * half)


cdef void rope_angles(int position, const double* frequencies, double factor, int n_rot, float* cosine, float* sine) noexcept nogil:
    """factor times cosine and sine [n_rot / 2] of position * frequencies[i], computed in f64."""
    cdef int i
    for i in range(n_rot // 2):
        cosine[i] = <float>(factor * cos(position * frequencies[i]))
        sine[i] = <float>(factor * sin(position * frequencies[i]))


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
    """Turn dx back in place: the transpose of a rotation is the opposite rotation, a factor on it stays."""
    rotate(dx, n_head, head_dim, n_rot, cosine, sine, layout, -1)


def rows(x, positions, frequencies, int layout, bint backward=False, double factor=1):
    """Apply to x (T, n_head, head_dim) f32 at positions (T,) with frequencies (n_rot / 2,) f64 and a factor on cosines and
    sines; returns a new array."""
    cdef float[:, :, ::1] out = np.array(x, np.float32)
    cdef double[::1] f = np.asarray(frequencies, np.float64)
    cdef float[:, ::1] angles = np.zeros((2, len(frequencies)), np.float32)
    cdef int t, n_rot = 2 * len(frequencies)
    for t in range(out.shape[0]):
        rope_angles(positions[t], &f[0], factor, n_rot, &angles[0, 0], &angles[1, 0])
        if backward:
            rope_backward(&out[t, 0, 0], out.shape[1], out.shape[2], n_rot, &angles[0, 0], &angles[1, 0], layout)
        else:
            rope(&out[t, 0, 0], out.shape[1], out.shape[2], n_rot, &angles[0, 0], &angles[1, 0], layout)
    return np.asarray(out)
