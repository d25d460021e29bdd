# A gated short convolution (LFM2, 2025) in the place of attention: with b, c and x from one matrix, in the places of queries,
# keys and values,
#
#     z = b * x;  y = c * (sum over j of taps[j] * z of j positions before)
#
# for each channel apart; before a sequence's first position z is zero. taps (n_taps, channels), the newest position first.

from ..simd.verbs cimport vf, vf_fma, vf_load, vf_mul, vf_set1, vf_store


cdef inline vf earlier(const float* taps, int n_taps, size_t ld, const float* b, const float* x, size_t ldb, size_t ldx, int t, int i) noexcept nogil:
    """Channels i..i + 16 of the sum at position t of a sequence, whose rows of b and x begin at position 0"""
    cdef vf s = vf_set1(0)
    cdef int j
    for j in range(min(n_taps, t + 1)):
        s = vf_fma(vf_load(taps + j * ld + i), vf_mul(vf_load(b + (t - j) * ldb + i), vf_load(x + (t - j) * ldx + i)), s)
    return s


cdef inline void convolve(const float* taps, int n_taps, size_t ld, const float* b, size_t ldb, const float* c, const float* x, size_t ldx,
                          int n, int lo, int hi, float* y, size_t ldy) noexcept nogil:
    """Channels lo..hi, multiples of 16, of all n positions of a sequence; c has x's stride"""
    cdef int t, i
    for t in range(n):
        for i in range(lo, hi, 16):
            vf_store(y + t * ldy + i, vf_mul(vf_load(c + t * ldx + i), earlier(taps, n_taps, ld, b, x, ldb, ldx, t, i)))


cdef inline void convolve_backward(const float* taps, int n_taps, size_t ld, float* b, size_t ldb, const float* c, const float* x, size_t ldx,
                                   const float* dy, size_t ldy, int n, int lo, int hi, float* dc, float* dx, size_t ldd) noexcept nogil:
    """dc, dx, and db in the place of b: backwards, for what earlier positions are is still needed"""
    cdef vf dz, wanted
    cdef int t, i, j
    for t in range(n - 1, -1, -1):
        for i in range(lo, hi, 16):
            vf_store(dc + t * ldd + i, vf_mul(vf_load(dy + t * ldy + i), earlier(taps, n_taps, ld, b, x, ldb, ldx, t, i)))
            dz = vf_set1(0)
            for j in range(min(n_taps, n - t)):
                wanted = vf_mul(vf_load(dy + (t + j) * ldy + i), vf_load(c + (t + j) * ldx + i))
                dz = vf_fma(vf_load(taps + j * ld + i), wanted, dz)
            vf_store(dx + t * ldd + i, vf_mul(dz, vf_load(b + t * ldb + i)))
            vf_store(b + t * ldb + i, vf_mul(dz, vf_load(x + t * ldx + i)))
