"""AdamW with decoupled weight decay (Loshchilov and Hutter, 2019), as torch.optim.AdamW computes it."""

from cython.parallel cimport prange
from libc.math cimport sqrt

from ..simd.verbs cimport vf, vf_div, vf_fma, vf_load, vf_mul, vf_set1, vf_sqrt, vf_store, vf_sub

from llamacy.kernels.threads import check_threads


cdef struct Rates:
    float keep          # 1 - lr * decay
    float rate          # lr / (1 - beta1^t)
    float root          # 1 / sqrt(1 - beta2^t)
    float gain1         # 1 - beta1 and 1 - beta2, rounded once: 1 - (float)0.999 is off by 1e-5
    float beta2
    float gain2
    float eps
    float scale         # of the gradient


cdef void update(const Rates* r, float* w, const float* g, float* m, float* v, float* before) noexcept nogil:
    """16 parameters; before: where they go as they were, or NULL"""
    cdef vf x = vf_mul(vf_load(g), vf_set1(r.scale)), m1 = vf_load(m), v1
    m1 = vf_fma(vf_sub(x, m1), vf_set1(r.gain1), m1)
    v1 = vf_fma(vf_mul(x, x), vf_set1(r.gain2), vf_mul(vf_load(v), vf_set1(r.beta2)))
    vf_store(m, m1)
    vf_store(v, v1)
    x = vf_div(vf_mul(m1, vf_set1(r.rate)), vf_fma(vf_sqrt(v1), vf_set1(r.root), vf_set1(r.eps)))
    if before != NULL:
        vf_store(before, vf_load(w))
    vf_store(w, vf_sub(vf_mul(vf_load(w), vf_set1(r.keep)), x))


def step(float[::1] w, const float[::1] g, float[::1] m, float[::1] v, int t, double lr, double beta1, double beta2,
         double eps, double weight_decay, double grad_scale=1.0, int n_threads=1, float[::1] before=None):
    """Update w, m, v (n,) in place with gradient grad_scale * g at step t = 1, 2, ...; n is a multiple of 16. before (n,): gets w
    as it was.

    w -= lr decay w;  m += (1 - beta1)(g - m);  v = beta2 v + (1 - beta2) g^2;
    w -= lr / (1 - beta1^t) * m / (sqrt(v) / sqrt(1 - beta2^t) + eps)
    """
    cdef Py_ssize_t i, n = w.shape[0]
    cdef float* kept = NULL
    cdef Rates r
    r.keep, r.rate, r.root = 1 - lr * weight_decay, lr / (1 - beta1 ** t), 1 / sqrt(1 - beta2 ** t)
    r.gain1, r.beta2, r.gain2, r.eps, r.scale = 1 - beta1, beta2, 1 - beta2, eps, grad_scale
    if not (g.shape[0] == n and m.shape[0] == n and v.shape[0] == n and n % 16 == 0):
        raise ValueError("w, g, m and v differ in length, or it is not a multiple of 16")
    if before is not None and before.shape[0] != n:
        raise ValueError("w and before differ in length")
    kept = &before[0] if before is not None and n else NULL
    check_threads(n_threads)
    for i in prange(n // 16, num_threads=n_threads, schedule="static", nogil=True):
        update(&r, &w[16 * i], &g[16 * i], &m[16 * i], &v[16 * i], kept + 16 * i if kept != NULL else NULL)


def norm(const float[::1] g):
    """Euclidean norm of g (n,), summed in f64 in one fixed order."""
    cdef double total = 0
    cdef Py_ssize_t i
    with nogil:
        for i in range(g.shape[0]):
            total += <double>g[i] * g[i]
    return sqrt(total)
