"""Inputs of the matrix products, rounded: 8 or 16 bits per block of 32 for W x, 16 bits per 128 values for W^T dy.

8 bits do for most blocks: a product's rounding noise averages out over its columns. Not where one value is far larger
than the rest, as a few channels of every model's activations are; such a block's step is coarse for the whole product.
Blocks whose largest value is over `fine_over` times the usual (root mean square over the row) get seven bits more.
"""

from libc.math cimport sqrtf
from libc.stdint cimport int8_t, int16_t, uint8_t
from libc.string cimport memcpy, memset

from .simd cimport *

# At 1.2 the log-probabilities of a model with n_embd 576 are off by 0.034 on average, without low bits by 0.07. Wide models
# average more noise out and need help with true outliers only: in a normal distribution no block is 2.5 times the usual.
cdef float FINE_OVER = 1.2


cdef float fine_over(int n_embd) noexcept nogil:
    """Acts.fine_over for a model of this width"""
    return FINE_OVER if n_embd < 1024 else 2.5


cdef size_t acts_bytes(int n_rows, int n_cols, int precisions) noexcept nogil:
    """Bytes that acts_place needs for T = n_rows inputs of n_cols values in these precisions."""
    cdef size_t nb = (n_cols + 31) // 32, n = n_rows
    cdef size_t scales = padded(8 * n * nb, 64)
    return (padded(65 * n * nb, 64) + scales if precisions & INT8 else 0) + (
        padded(128 * n * nb, 64) + scales if precisions & INT16 else 0) + 64


cdef void acts_place(Acts* x, int n_rows, int n_cols, int precisions, uint8_t* memory) noexcept nogil:
    """Lay out the rounded forms in `memory` (acts_bytes); f32 and ld stay as they are."""
    cdef size_t nb = (n_cols + 31) // 32, n = n_rows
    cdef uint8_t* p = aligned(memory)
    x.n_rows, x.n_cols, x.n_blocks = n_rows, n_cols, <int>nb
    x.q8, x.q16, x.fine_over = NULL, NULL, FINE_OVER
    if precisions & INT8:
        x.q8 = <int8_t*>p
        x.low8 = x.q8 + 32 * n * nb
        x.fine8 = <uint8_t*>(x.low8 + 32 * n * nb)
        x.scale8 = <float*>(p + padded(65 * n * nb, 64))
        x.sum8 = x.scale8 + n * nb
        p += padded(65 * n * nb, 64) + padded(8 * n * nb, 64)
    if precisions & INT16:
        x.q16 = <int16_t*>p
        x.high16 = <int8_t*>(p + 64 * n * nb)
        x.low16 = x.high16 + 32 * n * nb
        x.scale16 = <float*>(p + padded(128 * n * nb, 64))
        x.sum16 = x.scale16 + n * nb


cdef inline float block_amax(vf a, vf b) noexcept nogil:
    return vf_hmax(vf_max(vf_abs(a), vf_abs(b)))


cdef inline void split16(vi q, int8_t* high, int8_t* low) noexcept nogil:
    """q = 128 high + low with -64 <= low <= 64 and |high| <= 127, for |q| <= S16_LIMIT"""
    cdef vi h = vf_to_i(vf_mul(vi_to_f(q), vf_set1(<float>(1.0 / 128))))
    vi_store_s8(high, h)
    vi_store_s8(low, vf_to_i(vf_fma(vi_to_f(h), vf_set1(-128), vi_to_f(q))))


cdef float find_peaks(const float* row, int n_blocks, int block_lo, int block_hi, float* peaks) noexcept nogil:
    """peaks[b] = the largest value of each block b in block_lo .. block_hi; returns all blocks' root mean square"""
    cdef int b
    cdef float amax, total = 0
    for b in range(n_blocks):
        amax = block_amax(vf_load(row + 32 * b), vf_load(row + 32 * b + 16))
        total += amax * amax
        if block_lo <= b < block_hi:
            peaks[b] = amax
    return sqrtf(total / n_blocks)


cdef inline vi low_bits(vf x, vi q) noexcept nogil:
    """128 times what rounding x to q lost: -64 .. 64"""
    return vf_to_i(vf_mul(vf_fma(vi_to_f(q), vf_set1(-1), x), vf_set1(128)))


cdef inline void round8(Acts* x, size_t at, vf a0, vf a1, float limit) noexcept nogil:
    """Block `at`, whose largest value stands in scale8"""
    cdef float amax = x.scale8[at], inverse = 127 / amax if amax > 0 else 0, total
    cdef vi i0, i1, l0, l1
    a0, a1 = vf_mul(a0, vf_set1(inverse)), vf_mul(a1, vf_set1(inverse))
    i0, i1 = vf_to_i(a0), vf_to_i(a1)
    vi_store_s8(x.q8 + 32 * at, i0)
    vi_store_s8(x.q8 + 32 * at + 16, i1)
    total = <float>vi_hsum(vi_add(i0, i1))
    x.fine8[at] = amax > limit
    if x.fine8[at]:
        l0, l1 = low_bits(a0, i0), low_bits(a1, i1)
        vi_store_s8(x.low8 + 32 * at, l0)
        vi_store_s8(x.low8 + 32 * at + 16, l1)
        total += <float>vi_hsum(vi_add(l0, l1)) / 128
    x.scale8[at] = amax * <float>(1.0 / 127)
    x.sum8[at] = x.scale8[at] * total


cdef void round16(Acts* x, size_t at, vf a0, vf a1, float amax) noexcept nogil:
    cdef float inverse = S16_LIMIT / amax if amax > 0 else 0
    cdef vi i0 = vf_to_i(vf_mul(a0, vf_set1(inverse))), i1 = vf_to_i(vf_mul(a1, vf_set1(inverse)))
    vi_store_s16(x.q16 + 32 * at, i0)
    vi_store_s16(x.q16 + 32 * at + 16, i1)
    if x.n_rows < 4:
        split16(i0, x.high16 + 32 * at, x.low16 + 32 * at)
        split16(i1, x.high16 + 32 * at + 16, x.low16 + 32 * at + 16)
    x.scale16[at] = amax / S16_LIMIT
    x.sum16[at] = x.scale16[at] * <float>vi_hsum(vi_add(i0, i1))


cdef void acts_quantize(Acts* x, int lo, int hi, int block_lo, int block_hi) noexcept nogil:
    """Round rows lo..hi, blocks block_lo..block_hi of x.f32 to the forms that x has; K is a multiple of 32."""
    cdef int t, b
    cdef vf a0, a1
    cdef float limit = 0
    cdef const float* row
    cdef size_t at
    for t in range(lo, hi):
        row, at = x.f32 + t * x.ld, <size_t>t * x.n_blocks
        if x.q8 != NULL:
            limit = x.fine_over * find_peaks(row, x.n_blocks, block_lo, block_hi, x.scale8 + at)
        for b in range(block_lo, block_hi):
            a0, a1 = vf_load(row + 32 * b), vf_load(row + 32 * b + 16)
            if x.q8 != NULL:
                round8(x, at + b, a0, a1, limit)
            if x.q16 != NULL:
                round16(x, at + b, a0, a1, block_amax(a0, a1))


cdef void quantize_gradient(const float* dy, size_t ldy, int n_rows, int T, int lo, int hi, int16_t* q, float* scale) noexcept nogil:
    """Round tokens lo..hi of dy (T, N) to int16 of at most 8191 per 128 values; q (groups of 128, T, 128), scale (groups, T).

    The sum of 128 products with weights of at most 2047 fits int32: 128 * 2047 * 8191 = 2146173056 < 2 ** 31.
    """
    cdef int t, g, i, n
    cdef int groups = (n_rows + BACK_ROWS - 1) // BACK_ROWS
    cdef const float* row
    cdef int16_t* out
    cdef float buffer[BACK_ROWS]
    cdef float amax, inverse
    cdef vf peak
    for t in range(lo, hi):
        for g in range(groups):
            row = dy + t * ldy + g * BACK_ROWS
            n = min(BACK_ROWS, n_rows - g * BACK_ROWS)
            if n < BACK_ROWS:
                memset(buffer, 0, sizeof(buffer))
                memcpy(buffer, row, 4 * n)
                row = buffer
            peak = vf_abs(vf_load(row))
            for i in range(16, BACK_ROWS, 16):
                peak = vf_max(peak, vf_abs(vf_load(row + i)))
            amax = vf_hmax(peak)
            inverse = G_LIMIT / amax if amax > 0 else 0
            out = q + (g * <size_t>T + t) * BACK_ROWS
            for i in range(0, BACK_ROWS, 16):
                vi_store_s16(out + i, vf_to_i(vf_mul(vf_load(row + i), vf_set1(inverse))))
            scale[g * <size_t>T + t] = amax / G_LIMIT
