# Least squares for quantisers: which scale (and minimum) lets a group of numbers come nearest to itself.
#
# For given codes q the best scale of x ~ a q - b is a weighted linear regression; for a given scale the best codes are
# the nearest ones. A search tries scales that put the largest number on or near the last code, fits each, and goes on
# from the best in turns, codes and scale, while that helps.

from libc.math cimport fabsf
from libc.stdint cimport int8_t

from ..simd.verbs cimport (
    vf, vf_add, vf_fma, vf_fnma, vf_hsum, vf_load, vf_max, vf_min, vf_mul, vf_round, vf_set1, vf_store,
)

cdef struct Codes:
    int size                # numbers of a group: 16 or 32
    float low               # codes from low
    float high              # to high
    float step              # between candidates, in codes
    int tries               # candidates on each side of the last code
    const int8_t* nearest   # not NULL: codes are levels, entry 128 + i being the one nearest i

cdef struct Sums:           # over a group: w q q, w q, w q x
    float qq
    float q
    float qx

cdef extern from *:
    """
    #define TINY 1e-12f  /* below any number that an f16 scale can bring back; its reciprocal is far from overflow */
    """
    const float TINY

cdef enum:
    MAX_ROUNDS = 4


cdef inline void round_codes(const Codes* k, const float* x, float inverse, float minimum, float* q) noexcept nogil:
    """q = the codes nearest (x + minimum) * inverse; for a NaN the lowest"""
    cdef int i
    cdef vf v
    for i in range(0, k.size, 16):
        v = vf_mul(vf_add(vf_load(x + i), vf_set1(minimum)), vf_set1(inverse))
        vf_store(q + i, vf_min(vf_max(vf_round(v), vf_set1(k.low)), vf_set1(k.high)))
    if k.nearest != NULL:
        for i in range(k.size):
            q[i] = k.nearest[128 + <int>q[i]]


cdef inline Sums code_sums(int n, const float* x, const float* w, const float* q) noexcept nogil:
    cdef int i
    cdef Sums s
    cdef vf v, wq, qq = vf_set1(0), q1 = vf_set1(0), qx = vf_set1(0)
    for i in range(0, n, 16):
        v = vf_load(q + i)
        wq = vf_mul(vf_load(w + i), v)
        qq = vf_fma(wq, v, qq)
        q1 = vf_add(q1, wq)
        qx = vf_fma(wq, vf_load(x + i), qx)
    s.qq, s.q, s.qx = vf_hsum(qq), vf_hsum(q1), vf_hsum(qx)
    return s


cdef inline float weighted(int n, const float* w, const float* x, bint squared) noexcept nogil:
    """sum of w x, or w x x"""
    cdef int i
    cdef vf v, s = vf_set1(0)
    for i in range(0, n, 16):
        v = vf_load(x + i)
        s = vf_fma(vf_mul(vf_load(w + i), v) if squared else vf_load(w + i), v, s)
    return vf_hsum(s)


cdef inline float residual(int n, const float* x, const float* w, const float* q, float a, float b) noexcept nogil:
    """sum of w (x + b - a q)^2"""
    cdef int i
    cdef vf e, s = vf_set1(0)
    for i in range(0, n, 16):
        e = vf_fnma(vf_load(q + i), vf_set1(a), vf_add(vf_load(x + i), vf_set1(b)))
        s = vf_fma(vf_mul(vf_load(w + i), e), e, s)
    return vf_hsum(s)


cdef inline float fit_scale(const Codes* k, const float* x, const float* w, float* qq) noexcept nogil:
    """the scale a of x ~ a q with the least weighted error, 0 for (nearly) zeros; *qq = sum of w q q there"""
    cdef float q[32]
    cdef float peak = 0, edge, scale = 0, best = 0, code
    cdef int i, side, _attempt
    cdef Sums s
    qq[0] = 0
    for i in range(k.size):
        if fabsf(x[i]) > fabsf(peak) and w[i] > 0:
            peak = x[i]
    if not fabsf(peak) > TINY:
        return 0
    for side in range(2):
        edge = k.low if side else k.high
        for i in range(-k.tries, k.tries + 1):
            code = edge + <float>i * k.step
            if fabsf(code) < 1:
                continue
            round_codes(k, x, code / peak, 0, q)
            s = code_sums(k.size, x, w, q)
            if s.qx * s.qx > best * s.qq and s.qq > 0:
                best, scale, qq[0] = s.qx * s.qx / s.qq, s.qx / s.qq, s.qq
    for _attempt in range(MAX_ROUNDS):
        if not fabsf(scale) > TINY:
            break
        round_codes(k, x, 1 / scale, 0, q)
        s = code_sums(k.size, x, w, q)
        if not s.qx * s.qx > best * s.qq:
            break
        best, scale, qq[0] = s.qx * s.qx / s.qq, s.qx / s.qq, s.qq
    return scale


cdef inline float regression(const Sums* s, float total, float sum_x, bint below, float* b) noexcept nogil:
    """x ~ a q - b: a is returned, b (at least 0 if `below`) written"""
    cdef float det = total * s.qq - s.q * s.q, a
    a = (total * s.qx - s.q * sum_x) / det if det > 0 else 0
    b[0] = (s.q * a - sum_x) / total
    if below and not b[0] > 0:
        b[0] = 0
        a = s.qx / s.qq if s.qq > 0 else 0
    return a


cdef inline float fit_affine(const Codes* k, const float* x, const float* w, bint below, float* minimum, float* qq) noexcept nogil:
    """a of x ~ a q - b with the least weighted error, b (at least 0 if `below`) in *minimum; *qq = sum of w q q there"""
    cdef float q[32]
    cdef float total = 0, sum_x, sum_xx, lo = 0, hi = 0, a, b, inverse, error, best, scale = 0
    cdef int i
    cdef Sums s
    for i in range(k.size):
        if w[i] > 0:
            lo = x[i] if x[i] < lo or total == 0 else lo
            hi = x[i] if x[i] > hi or total == 0 else hi
            total += w[i]
    sum_x, sum_xx = weighted(k.size, w, x, False), weighted(k.size, w, x, True)
    lo = 0 if below and lo > 0 else lo
    minimum[0], qq[0] = -lo, 0
    if not (hi - lo > TINY and total > 0):
        return 0
    best = sum_xx
    b = -lo
    for i in range(-k.tries, k.tries + 1 + MAX_ROUNDS):
        if i <= k.tries:
            inverse, b = (k.high + <float>i * k.step) / (hi - lo), -lo
        elif scale > TINY:
            inverse, b = 1 / scale, minimum[0]
        else:
            break
        round_codes(k, x, inverse, b, q)
        s = code_sums(k.size, x, w, q)
        a = regression(&s, total, sum_x, below, &b)
        error = sum_xx - a * s.qx + b * sum_x
        if error < best:
            best, scale, minimum[0], qq[0] = error, a, b, s.qq
        elif i > k.tries:
            break
    return scale
