"""AdamW with decoupled weight decay (Loshchilov and Hutter, 2019), as torch.optim.AdamW computes it."""

from cython.parallel cimport prange
from libc.math cimport sqrt, sqrtf

import numpy as np


def step(float[::1] w, const float[::1] g, float[::1] m, float[::1] v, int t, double lr, double beta1, double beta2,
         double eps, double weight_decay, double grad_scale=1.0, int n_threads=1):
    """Update w, m, v (n,) in place with gradient grad_scale * g at step t = 1, 2, ...

    w -= lr decay w;  m += (1 - beta1)(g - m);  v = beta2 v + (1 - beta2) g^2;
    w -= lr / (1 - beta1^t) * m / (sqrt(v) / sqrt(1 - beta2^t) + eps)
    """
    cdef Py_ssize_t i, n = w.shape[0]
    cdef float keep = <float>(1 - lr * weight_decay), rate = <float>(lr / (1 - beta1 ** t))
    cdef float root = <float>(1 / sqrt(1 - beta2 ** t)), b1 = <float>(1 - beta1), b2 = <float>beta2, c2 = <float>(1 - beta2)
    cdef float small = <float>eps, scale = <float>grad_scale, x
    if not (g.shape[0] == n and m.shape[0] == n and v.shape[0] == n):
        raise ValueError("w, g, m and v differ in length")
    for i in prange(n, num_threads=n_threads, schedule="static", nogil=True):
        x = scale * g[i]
        m[i] += b1 * (x - m[i])
        v[i] = b2 * v[i] + c2 * x * x
        w[i] = w[i] * keep - rate * m[i] / (sqrtf(v[i]) * root + small)


def norm(const float[::1] g):
    """Euclidean norm of g (n,), summed in f64 in one fixed order."""
    cdef double total = 0
    cdef Py_ssize_t i
    with nogil:
        for i in range(g.shape[0]):
            total += <double>g[i] * g[i]
    return sqrt(total)
