# Functions of 16 floats at a time, written in the verbs of simd/.

from ..simd.verbs cimport (
    vf, vf_add, vf_amax, vf_div, vf_fma, vf_fnma, vf_hamax, vf_load, vf_max, vf_min, vf_mul, vf_pow2, vf_round,
    vf_set1, vf_sub,
)


cdef inline vf vf_exp(vf x) noexcept nogil:
    """exp(x), relative error below 2e-7; x is clamped to [-87, 88] (no zeros, no infinities). NaN stays NaN."""
    # x = n ln 2 + r, |r| <= ln 2 / 2; polynomial for exp(r) from Cephes (expf)
    # the bound first: where either is NaN, max and min give the second
    x = vf_min(vf_set1(88), vf_max(vf_set1(-87), x))
    cdef vf n = vf_round(vf_mul(x, vf_set1(1.44269504088896341)))
    cdef vf r = vf_fnma(n, vf_set1(-2.12194440e-4), vf_fnma(n, vf_set1(0.693359375), x))
    cdef vf p = vf_set1(1.9875691500e-4)
    p = vf_fma(p, r, vf_set1(1.3981999507e-3))
    p = vf_fma(p, r, vf_set1(8.3334519073e-3))
    p = vf_fma(p, r, vf_set1(4.1665795894e-2))
    p = vf_fma(p, r, vf_set1(1.6666665459e-1))
    p = vf_fma(p, r, vf_set1(5.0000001201e-1))
    p = vf_add(vf_fma(p, vf_mul(r, r), r), vf_set1(1))
    # n <= 127 after the clamp
    return vf_mul(p, vf_pow2(n))


cdef inline vf vf_exp2(vf y) noexcept nogil:
    """2 ** y for y <= 127, relative error below 4e-6 beside y's own rounding; y is clamped to -126. NaN stays NaN."""
    y = vf_max(vf_set1(-126), y)
    cdef vf n = vf_round(y)
    cdef vf r = vf_sub(y, n)
    # minimax in relative error for |r| <= 1 / 2
    cdef vf p = vf_set1(9.570102e-3)
    p = vf_fma(p, r, vf_set1(5.5917863e-2))
    p = vf_fma(p, r, vf_set1(2.4024744e-1))
    p = vf_fma(p, r, vf_set1(6.9312179e-1))
    p = vf_fma(p, r, vf_set1(0.99999928))
    return vf_mul(p, vf_pow2(n))


cdef inline vf vf_sigmoid(vf x) noexcept nogil:
    cdef vf one = vf_set1(1)
    return vf_div(one, vf_add(one, vf_exp(vf_sub(vf_set1(0), x))))


cdef inline vf vf_erf(vf z, vf bell) noexcept nogil:
    """erf(z) for z >= 0, error below 4e-7; bell: exp(-z^2). NaN stays NaN."""
    # 1 - bell t p(t) with t = 1 / (1 + 0.52 z): a fit that minimises the absolute error
    cdef vf one = vf_set1(1)
    cdef vf t = vf_div(one, vf_fma(z, vf_set1(0.52), one))
    cdef vf p = vf_set1(0.08860058)
    p = vf_fma(p, t, vf_set1(-0.50133181))
    p = vf_fma(p, t, vf_set1(0.88259891))
    p = vf_fma(p, t, vf_set1(-0.16771695))
    p = vf_fma(p, t, vf_set1(0.41991388))
    p = vf_fma(p, t, vf_set1(0.27793535))
    return vf_fnma(vf_mul(bell, t), p, one)


cdef inline vf vf_tanh(vf x) noexcept nogil:
    """tanh(x), absolute error below 2e-7; an infinity becomes NaN"""
    cdef vf one = vf_set1(1), e = vf_exp(vf_add(x, x))
    return vf_sub(vf_sub(one, vf_div(vf_add(one, one), vf_add(e, one))), vf_sub(x, x))


cdef inline bint all_finite(const float* x, int n) noexcept nogil:
    """Is none of x[n], a multiple of 16, an infinity or NaN?"""
    cdef vf most = vf_set1(0)
    cdef float peak
    cdef int i
    for i in range(0, n, 16):
        most = vf_amax(most, vf_load(x + i))
    peak = vf_hamax(most)
    return peak - peak == 0
