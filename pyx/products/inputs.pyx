"""Inputs of the matrix products, rounded: 8 or 16 bits per block of 32 for W x, 16 bits per 128 values for W^T dy.

8 bits do for most values: a product's rounding noise averages out over its columns. Not where one value is far larger
than the rest, as a few channels of every model's activations are; such a block's step is coarse for the whole product.
Values over `outlier_over` times the blocks' mean largest value are set aside, up to three a block, and multiplied in f32:
a column of W times one number, for a few columns of hundreds. Wide models, which average more noise out, share a step among
SUPERBLOCK blocks (superblocks.pxd).

A block's largest value is found by vf_amax, which sees infinities and NaN. A block with one gets a step that is NaN, and so
does all that is multiplied with it: integers alone would make numbers of them.
"""

from libc.math cimport fabsf
from libc.stdint cimport int8_t, int16_t, uint8_t
from libc.string cimport memcpy, memset

from ..simd.verbs cimport (
    U8_OFFSET, vf, vf_abs, vf_amax, vf_fma, vf_hamax, vf_load, vf_mul, vf_set1, vf_to_i, vi, vi_add, vi_hsum,
    vi_store_s16, vi_store_s8, vi_to_f,
)

# At 1.2 the log-probabilities of a model with n_embd 576 are off by 0.03 on average, with none set aside by 0.07. Wide models
# average more noise out and need help with true outliers only: in a normal distribution one value of 500 is over 1.5.
cdef float OUTLIER_OVER = 1.2


cdef void acts_for_width(Acts* x, int n_embd) noexcept nogil:
    """How 8-bit codes are made for a model of this width; after acts_place, which asks for steps of one block each"""
    if n_embd < 1024:
        return
    x.outlier_over, x.superblock, x.raised = 1.5, SUPERBLOCK, x.n_rows > STREAM_TOKENS


cdef size_t acts_bytes(int n_rows, int n_cols, int precisions) noexcept nogil:
    """Bytes that acts_place needs for T = n_rows inputs of n_cols values in these precisions."""
    cdef size_t nb = (n_cols + 31) // 32, n = n_rows
    cdef size_t scales = padded(12 * n * nb, 64)
    return (padded((33 + sizeof(Outliers)) * n * nb, 64) + scales if precisions & INT8 else 0) + (
        padded(128 * n * nb, 64) + padded(8 * n * nb, 64) if precisions & INT16 else 0) + 64


cdef void acts_place(Acts* x, int n_rows, int n_cols, int precisions, uint8_t* memory) noexcept nogil:
    """Lay out the rounded forms in `memory` (acts_bytes); f32 and ld stay as they are."""
    cdef size_t nb = (n_cols + 31) // 32, n = n_rows
    cdef uint8_t* p = aligned(memory)
    x.n_rows, x.n_cols, x.n_blocks = n_rows, n_cols, <int>nb
    x.q8, x.q16, x.outlier_over, x.superblock, x.raised = NULL, NULL, OUTLIER_OVER, 1, False
    x.unpacking = NULL
    if precisions & INT8:
        x.q8 = <int8_t*>p
        x.outliers = <Outliers*>(x.q8 + 32 * n * nb)
        x.outlier_bits = <uint8_t*>(x.outliers + n * nb)
        p += padded((33 + sizeof(Outliers)) * n * nb, 64)
        x.scale8 = <float*>p
        x.sum8 = x.scale8 + n * nb
        x.less8 = <int16_t*>(x.sum8 + n * nb)
        p += padded(12 * n * nb, 64)
    if precisions & INT16:
        x.q16 = <int16_t*>p
        x.high16 = <int8_t*>(p + 64 * n * nb)
        x.low16 = x.high16 + 32 * n * nb
        x.scale16 = <float*>(p + padded(128 * n * nb, 64))
        x.sum16 = x.scale16 + n * nb


cdef inline float block_amax(vf a, vf b) noexcept nogil:
    return vf_hamax(vf_amax(vf_abs(a), b))


cdef inline float larger(float a, float b) noexcept nogil:
    """the larger of two that have no signs; NaN where either is"""
    return b if b > a or b != b else a


cdef inline void split16(vi q, int8_t* high, int8_t* low) noexcept nogil:
    """q = 128 high + low with -64 <= low <= 64 and |high| <= 127, for |q| <= S16_LIMIT"""
    cdef vi h = vf_to_i(vf_mul(vi_to_f(q), vf_set1(<float>(1.0 / 128))))
    vi_store_s8(high, h)
    vi_store_s8(low, vf_to_i(vf_fma(vi_to_f(h), vf_set1(-128), vi_to_f(q))))


cdef float find_peaks(const float* row, int n_blocks, int block_lo, int block_hi, float* peaks) noexcept nogil:
    """peaks[b] = the largest value of each block b in block_lo .. block_hi; returns the mean of all blocks'"""
    cdef int b
    cdef float amax, total = 0
    for b in range(n_blocks):
        amax = block_amax(vf_load(row + 32 * b), vf_load(row + 32 * b + 16))
        total += amax
        if block_lo <= b < block_hi:
            peaks[b] = amax
    return total / n_blocks


cdef float set_aside(Acts* x, size_t at, const float** a, float* rest, float limit) noexcept nogil:
    """Move values over the limit, the largest first, from block `at`, which is a[0][32], to x.outliers; a[0] becomes what is
    left, `rest` where values were moved, and x.sum8 their sum; returns the largest one left"""
    cdef float amax = x.scale8[at]
    cdef Outliers* out = x.outliers + at
    cdef int n = 0, k
    x.sum8[at] = 0
    if amax > limit:
        memcpy(rest, a[0], 4 * 32)
        a[0] = rest
        while n < OUTLIERS and amax > limit:
            k = 0
            while k < 31 and fabsf(rest[k]) != amax:
                k += 1
            out.k[n], out.value[n], rest[k] = <uint8_t>k, rest[k], 0
            x.sum8[at] += out.value[n]
            amax = block_amax(vf_load(rest), vf_load(rest + 16))
            n += 1
    x.outlier_bits[at] = <uint8_t>((1 << n) - 1)
    return amax


cdef inline void round8(Acts* x, size_t at, const float* a, float amax) noexcept nogil:
    """Block `at` = a[32], what its outliers leave; amax: what 127 stands for"""
    cdef float inverse = 127 / amax if amax > 0 else 0
    cdef vi i0 = vf_to_i(vf_mul(vf_load(a), vf_set1(inverse))), i1 = vf_to_i(vf_mul(vf_load(a + 16), vf_set1(inverse)))
    cdef int sum = vi_hsum(vi_add(i0, i1))
    vi_store_s8(x.q8 + 32 * at, i0)
    vi_store_s8(x.q8 + 32 * at + 16, i1)
    x.less8[2 * at] = x.less8[2 * at + 1] = <int16_t>(-4 * sum)
    x.scale8[at] = amax * <float>(1.0 / 127)
    x.sum8[at] += x.scale8[at] * <float>sum


cdef inline void round_span(Acts* x, size_t at, const float* a, int n, float limit) noexcept nogil:
    """n blocks with one step; their largest values stand in scale8"""
    cdef float rest[32 * SUPERBLOCK]
    cdef const float* left[SUPERBLOCK]
    cdef float amax = 0
    cdef int b
    for b in range(n):
        left[b] = a + 32 * b
        amax = larger(amax, set_aside(x, at + b, left + b, rest + 32 * b, limit))
    amax = or_nan(amax)
    for b in range(n):
        round8(x, at + b, left[b], amax)


cdef inline void raise_codes(uint8_t* q, size_t n) noexcept nogil:
    """n codes + U8_OFFSET"""
    cdef size_t i
    for i in range(n):
        q[i] ^= U8_OFFSET


cdef void round16(Acts* x, size_t at, vf a0, vf a1) noexcept nogil:
    cdef float amax = or_nan(block_amax(a0, a1))
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
    """Round rows lo..hi, blocks block_lo..block_hi (whole superblocks) of x.f32 to the forms that x has; K is a multiple of 32."""
    cdef int t, b
    cdef vf a0, a1
    cdef float limit
    cdef const float* row
    cdef size_t at
    for t in range(lo, hi):
        row, at = x.f32 + t * x.ld, <size_t>t * x.n_blocks
        if x.q8 != NULL:
            limit = x.outlier_over * find_peaks(row, x.n_blocks, block_lo, block_hi, x.scale8 + at)
            b = block_lo
            while b < block_hi:
                round_span(x, at + b, row + 32 * b, min(x.superblock, block_hi - b), limit)
                b += x.superblock
            if x.raised:
                raise_codes(<uint8_t*>x.q8 + 32 * (at + block_lo), 32 * (block_hi - block_lo))
        if x.q16 != NULL:
            for b in range(block_lo, block_hi):
                a0, a1 = vf_load(row + 32 * b), vf_load(row + 32 * b + 16)
                round16(x, at + b, a0, a1)


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
                peak = vf_amax(peak, vf_load(row + i))
            amax = or_nan(vf_hamax(peak))
            inverse = G_LIMIT / amax if amax > 0 else 0
            out = q + (g * <size_t>T + t) * BACK_ROWS
            for i in range(0, BACK_ROWS, 16):
                vi_store_s16(out + i, vf_to_i(vf_mul(vf_load(row + i), vf_set1(inverse))))
            scale[g * <size_t>T + t] = amax / G_LIMIT
