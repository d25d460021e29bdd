"""Products of packed matrices: y = W x for one token or many, and dx = W^T dy, from quantised weights.

Axes: T tokens, K columns of W (n_in), N rows of W (n_out). Rows of W go in tiles of 16, one vector lane a row, so that no
sum ever crosses lanes; blocks of 32 columns share a scale. Activations enter as f32 (EXACT), 8-bit or 16-bit integers
rounded per block of 32. The float operations of one output element and their order depend on the type and precision
only, never on T, on the thread count or on the tile it falls in.
"""

from cython.parallel cimport prange
from libc.stdint cimport int8_t, int16_t, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uintptr_t
from libc.stdlib cimport free
from libc.string cimport memcpy, memset

from .blocks cimport *
from .simd cimport *
from .tiles cimport *

import numpy as np

cdef extern from "<sys/mman.h>" nogil:
    int madvise(void*, size_t, int)
cdef extern from "<stdlib.h>" nogil:
    int posix_memalign(void**, size_t, size_t)

cdef enum:
    HUGE = 2 << 20
    ADVISE_HUGE = 14        # MADV_HUGEPAGE
    T_BLOCK = 256           # tokens whose inputs stay in L2 while the tiles pass
    U8_BLOCKS = 32          # blocks of 32 columns unpacked at a time: 16 KB of codes, L1
    S16_BLOCKS = 16
    F32_BLOCKS = 8
    BACK_ROWS = 128         # rows of W summed in int32 before scaling, see quantize_gradient
    W_LIMIT = 2047
    G_LIMIT = 8191


cdef size_t padded(size_t n, size_t to) noexcept nogil:
    """n rounded up to a multiple of `to`"""
    return (n + to - 1) // to * to


cdef inline uint8_t* aligned(void* p) noexcept nogil:
    return <uint8_t*>((<uintptr_t>p + 63) & ~<uintptr_t>63)


cdef int precision_of(const Packed* w, int wish) noexcept nogil:
    """The form of inputs that W uses when `wish` is asked for: INT8 needs an 8-bit product, both INTs an integer type."""
    if w.kernel.unpack_s16 == NULL:
        return EXACT
    return INT16 if wish == INT8 and w.kernel.depth == 0 else wish


# ======== inputs ========

cdef size_t acts_bytes(int n_rows, int n_cols, int precisions) noexcept nogil:
    """Bytes that acts_place needs for T = n_rows inputs of n_cols values in these precisions."""
    cdef size_t nb = (n_cols + 31) // 32, n = n_rows
    cdef size_t scales = padded(8 * n * nb, 64)
    return (padded(32 * n * nb, 64) + scales if precisions & INT8 else 0) + (
        padded(64 * n * nb, 64) + scales if precisions & INT16 else 0) + 64


cdef void acts_place(Acts* x, int n_rows, int n_cols, int precisions, uint8_t* memory) noexcept nogil:
    """Lay out the rounded forms in `memory` (acts_bytes); f32 and ld stay as they are."""
    cdef size_t nb = (n_cols + 31) // 32, n = n_rows
    cdef uint8_t* p = aligned(memory)
    x.n_rows, x.n_cols, x.n_blocks = n_rows, n_cols, <int>nb
    x.q8, x.q16 = NULL, NULL
    if precisions & INT8:
        x.q8 = <int8_t*>p
        x.scale8 = <float*>(p + padded(32 * n * nb, 64))
        x.sum8 = x.scale8 + n * nb
        p += padded(32 * n * nb, 64) + padded(8 * n * nb, 64)
    if precisions & INT16:
        x.q16 = <int16_t*>p
        x.scale16 = <float*>(p + padded(64 * n * nb, 64))
        x.sum16 = x.scale16 + n * nb


cdef inline float block_amax(vf a, vf b) noexcept nogil:
    return vf_hmax(vf_max(vf_abs(a), vf_abs(b)))


cdef void acts_quantize(Acts* x, int lo, int hi, int block_lo, int block_hi) noexcept nogil:
    """Round rows lo..hi, blocks block_lo..block_hi of x.f32 to the forms that x has; K is a multiple of 32."""
    cdef int t, b
    cdef vf a0, a1
    cdef vi i0, i1
    cdef float amax, inverse
    cdef size_t at
    cdef const float* row
    for t in range(lo, hi):
        row = x.f32 + t * x.ld
        for b in range(block_lo, block_hi):
            at = <size_t>t * x.n_blocks + b
            a0, a1 = vf_load(row + 32 * b), vf_load(row + 32 * b + 16)
            amax = block_amax(a0, a1)
            if x.q8 != NULL:
                inverse = 127 / amax if amax > 0 else 0
                i0 = vf_to_i(vf_mul(a0, vf_set1(inverse)))
                i1 = vf_to_i(vf_mul(a1, vf_set1(inverse)))
                vi_store_s8(x.q8 + 32 * at, i0)
                vi_store_s8(x.q8 + 32 * at + 16, i1)
                x.scale8[at] = amax / 127
                x.sum8[at] = x.scale8[at] * <float>vi_hsum(vi_add(i0, i1))
            if x.q16 != NULL:
                inverse = 32767 / amax if amax > 0 else 0
                i0 = vf_to_i(vf_mul(a0, vf_set1(inverse)))
                i1 = vf_to_i(vf_mul(a1, vf_set1(inverse)))
                vi_store_s16(x.q16 + 32 * at, i0)
                vi_store_s16(x.q16 + 32 * at + 16, i1)
                x.scale16[at] = amax / 32767
                x.sum16[at] = x.scale16[at] * <float>vi_hsum(vi_add(i0, i1))


# ======== quads: 4- and 5-bit types ========
# int16 sums: a product is at most 15 * 127 (31 * 127), maddubs adds two, so 8 (4) of them stay within
# 8 * 2 * 1905 = 30480 (4 * 2 * 3937 = 31496) < 32767.

cdef inline void unpack_quads_u8(const uint8_t* tile, int n, uint8_t* q, float* d, float* m,
                                 bint fifth, int offset, bint has_min, int tile_bytes) noexcept nogil:
    """n tiles to codes [n][8][64 bytes], d [n][16] and m - offset * d [n][16]"""
    cdef int b
    cdef vb high
    cdef vf scale
    for b in range(n):
        high = quad_high(tile, fifth)
        vb_store(q, quad(tile, fifth, high, 0))
        vb_store(q + 64, quad(tile, fifth, high, 1))
        vb_store(q + 128, quad(tile, fifth, high, 2))
        vb_store(q + 192, quad(tile, fifth, high, 3))
        vb_store(q + 256, quad(tile, fifth, high, 4))
        vb_store(q + 320, quad(tile, fifth, high, 5))
        vb_store(q + 384, quad(tile, fifth, high, 6))
        vb_store(q + 448, quad(tile, fifth, high, 7))
        scale = quad_scale(tile, fifth)
        vf_store(d + 16 * b, scale)
        vf_store(m + 16 * b, quad_min(tile, fifth) if has_min else vf_mul(scale, vf_set1(<float>-offset)))
        tile += tile_bytes
        q += TILE


cdef inline void unpack_quads_s16(const uint8_t* tile, int n, int16_t* q, float* d, float* m,
                                  bint fifth, int offset, bint has_min, int tile_bytes) noexcept nogil:
    """n tiles to code - offset as pairs [n][16][16 rows][2], d [n][16], m [n][16] where there is one"""
    cdef int b, g
    cdef uint8_t codes[TILE]
    cdef float scale[16]
    cdef float least[16]
    for b in range(n):
        unpack_quads_u8(tile, 1, codes, scale, least, fifth, offset, has_min, tile_bytes)
        for g in range(8):
            vw_store(q + 64 * g, vb_pair(vb_load(codes + 64 * g), 0, offset))
            vw_store(q + 64 * g + 32, vb_pair(vb_load(codes + 64 * g), 1, offset))
        memcpy(d + 16 * b, scale, 64)
        if has_min:
            memcpy(m + 16 * b, least, 64)
        tile += tile_bytes
        q += TILE


cdef inline void matvec_quads(const uint8_t* tile, int nb, const Acts* x, size_t t, float* y,
                              bint fifth, int offset, bint has_min, int tile_bytes) noexcept nogil:
    """y[16] = the row group's product with 8-bit input t"""
    cdef const int8_t* a = x.q8 + 32 * t * nb
    cdef const float* scale = x.scale8 + t * nb
    cdef const float* total = x.sum8 + t * nb
    cdef int b
    cdef vb high
    cdef vh h
    cdef vi s
    cdef vf d, m, acc = vf_set1(0)
    for b in range(nb):
        prefetch(tile + 2304)
        prefetch(tile + 2368)
        prefetch(tile + 2432)
        prefetch(tile + 2496)
        prefetch(tile + 2560)
        high = quad_high(tile, fifth)
        h = vh_dot(vh_zero(), quad(tile, fifth, high, 0), a)
        h = vh_dot(h, quad(tile, fifth, high, 1), a + 4)
        h = vh_dot(h, quad(tile, fifth, high, 2), a + 8)
        h = vh_dot(h, quad(tile, fifth, high, 3), a + 12)
        if fifth:
            s = vh_sum(h)
            h = vh_zero()
        h = vh_dot(h, quad(tile, fifth, high, 4), a + 16)
        h = vh_dot(h, quad(tile, fifth, high, 5), a + 20)
        h = vh_dot(h, quad(tile, fifth, high, 6), a + 24)
        h = vh_dot(h, quad(tile, fifth, high, 7), a + 28)
        s = vi_add(s, vh_sum(h)) if fifth else vh_sum(h)
        d = quad_scale(tile, fifth)
        m = quad_min(tile, fifth) if has_min else vf_mul(d, vf_set1(<float>-offset))
        acc = vf_fma(vf_mul(d, vf_set1(scale[b])), vi_to_f(s), acc)
        acc = vf_fma1(m, total[b], acc)
        tile += tile_bytes
        a += 32
    vf_store(y, acc)


# ======== pairs: 8-bit types ========

cdef void unpack_pairs_s16(const uint8_t* tile, int n, int16_t* q, float* d, float* m) noexcept nogil:
    cdef int b, p
    for b in range(n):
        for p in range(16):
            vw_store(q + 32 * p, vw_load_s8(<const int8_t*>tile + 32 * p))
        vf_store(d + 16 * b, vf_load_f16(tile + TILE))
        tile += 544
        q += TILE


cdef void matvec_q8_0(const uint8_t* tile, int nb, int n_cols, const Acts* x, size_t t, float* y) noexcept nogil:
    """y[16] = the row group's product with 16-bit input t"""
    cdef const int16_t* a = x.q16 + 32 * t * nb
    cdef const float* scale = x.scale16 + t * nb
    cdef int b, p
    cdef vi s
    cdef vf acc = vf_set1(0)
    for b in range(nb):
        for p in range(9):
            prefetch(tile + 3264 + 64 * p)
        s = vi_zero()
        for p in range(16):
            s = vi_dot(s, vw_load_s8(<const int8_t*>tile + 32 * p), a + 2 * p)
        acc = vf_fma(vf_mul(vf_load_f16(tile + TILE), vf_set1(scale[b])), vi_to_f(s), acc)
        tile += 544
        a += 32
    vf_store(y, acc)


# ======== integer types as f32 ========

cdef inline void unpack_f32(const uint8_t* tile, int n, float* w, unpack_s16_fn unpack, int tile_bytes,
                            bint has_min) noexcept nogil:
    """n tiles to weights [32 n][16 rows]"""
    cdef int16_t q[TILE]
    cdef float d[16]
    cdef float m[16]
    cdef int b, p
    cdef vf scale, least = vf_set1(0)
    cdef vw pair
    for b in range(n):
        unpack(tile, 1, q, d, m)
        scale = vf_load(d)
        if has_min:
            least = vf_load(m)
        for p in range(16):
            pair = vw_load(q + 32 * p)
            vf_store(w + 32 * p, vf_fma(scale, vw_even(pair), least))
            vf_store(w + 32 * p + 16, vf_fma(scale, vw_odd(pair), least))
        tile += tile_bytes
        w += TILE


# ======== the rows of the table ========

cdef void codes_q4_0(const uint8_t* block, uint32_t* codes, uint16_t* d, uint16_t* m) noexcept nogil:
    cdef const block_q4_0* x = <const block_q4_0*>block
    nibble_words(x.qs, codes)
    d[0] = x.d


cdef void codes_q4_1(const uint8_t* block, uint32_t* codes, uint16_t* d, uint16_t* m) noexcept nogil:
    cdef const block_q4_1* x = <const block_q4_1*>block
    nibble_words(x.qs, codes)
    d[0], m[0] = x.d, x.m


cdef void codes_q5_0(const uint8_t* block, uint32_t* codes, uint16_t* d, uint16_t* m) noexcept nogil:
    cdef const block_q5_0* x = <const block_q5_0*>block
    nibble_words(x.qs, codes)
    fifth_words(x.qh, codes)
    d[0] = x.d


cdef void codes_q5_1(const uint8_t* block, uint32_t* codes, uint16_t* d, uint16_t* m) noexcept nogil:
    cdef const block_q5_1* x = <const block_q5_1*>block
    nibble_words(x.qs, codes)
    fifth_words(x.qh, codes)
    d[0], m[0] = x.d, x.m


ctypedef void (*codes_fn)(const uint8_t* block, uint32_t* codes, uint16_t* d, uint16_t* m) noexcept nogil


cdef inline void pack_quads(const uint8_t* rows, size_t row_bytes, int n_rows, int b, uint8_t* tile,
                            codes_fn codes_of, int block_bytes, bint fifth, bint has_min) noexcept nogil:
    cdef uint32_t codes[128]
    cdef uint16_t d[16]
    cdef uint16_t m[16]
    cdef int r
    memset(codes, 0, sizeof(codes))
    memset(d, 0, sizeof(d))
    memset(m, 0, sizeof(m))
    for r in range(n_rows):
        codes_of(rows + r * row_bytes + <size_t>b * block_bytes, codes + 8 * r, d + r, m + r)
    write_quads(tile, codes, fifth)
    tile += 320 if fifth else 256
    memcpy(tile, d, 32)
    if has_min:
        memcpy(tile + 32, m, 32)


cdef void pack_q4_0(const uint8_t* rows, size_t rb, int n, int b, int k, uint8_t* tile) noexcept nogil:
    pack_quads(rows, rb, n, b, tile, codes_q4_0, 18, False, False)

cdef void u8_q4_0(const uint8_t* tile, int n, uint8_t* q, float* d, float* m) noexcept nogil:
    unpack_quads_u8(tile, n, q, d, m, False, 8, False, 288)

cdef void s16_q4_0(const uint8_t* tile, int n, int16_t* q, float* d, float* m) noexcept nogil:
    unpack_quads_s16(tile, n, q, d, m, False, 8, False, 288)

cdef void f32_q4_0(const uint8_t* tile, int n, float* w) noexcept nogil:
    unpack_f32(tile, n, w, s16_q4_0, 288, False)

cdef void matvec_q4_0(const uint8_t* tile, int nb, int k, const Acts* x, size_t t, float* y) noexcept nogil:
    matvec_quads(tile, nb, x, t, y, False, 8, False, 288)


cdef void pack_q4_1(const uint8_t* rows, size_t rb, int n, int b, int k, uint8_t* tile) noexcept nogil:
    pack_quads(rows, rb, n, b, tile, codes_q4_1, 20, False, True)

cdef void u8_q4_1(const uint8_t* tile, int n, uint8_t* q, float* d, float* m) noexcept nogil:
    unpack_quads_u8(tile, n, q, d, m, False, 0, True, 320)

cdef void s16_q4_1(const uint8_t* tile, int n, int16_t* q, float* d, float* m) noexcept nogil:
    unpack_quads_s16(tile, n, q, d, m, False, 0, True, 320)

cdef void f32_q4_1(const uint8_t* tile, int n, float* w) noexcept nogil:
    unpack_f32(tile, n, w, s16_q4_1, 320, True)

cdef void matvec_q4_1(const uint8_t* tile, int nb, int k, const Acts* x, size_t t, float* y) noexcept nogil:
    matvec_quads(tile, nb, x, t, y, False, 0, True, 320)


cdef void pack_q5_0(const uint8_t* rows, size_t rb, int n, int b, int k, uint8_t* tile) noexcept nogil:
    pack_quads(rows, rb, n, b, tile, codes_q5_0, 22, True, False)

cdef void u8_q5_0(const uint8_t* tile, int n, uint8_t* q, float* d, float* m) noexcept nogil:
    unpack_quads_u8(tile, n, q, d, m, True, 16, False, 352)

cdef void s16_q5_0(const uint8_t* tile, int n, int16_t* q, float* d, float* m) noexcept nogil:
    unpack_quads_s16(tile, n, q, d, m, True, 16, False, 352)

cdef void f32_q5_0(const uint8_t* tile, int n, float* w) noexcept nogil:
    unpack_f32(tile, n, w, s16_q5_0, 352, False)

cdef void matvec_q5_0(const uint8_t* tile, int nb, int k, const Acts* x, size_t t, float* y) noexcept nogil:
    matvec_quads(tile, nb, x, t, y, True, 16, False, 352)


cdef void pack_q5_1(const uint8_t* rows, size_t rb, int n, int b, int k, uint8_t* tile) noexcept nogil:
    pack_quads(rows, rb, n, b, tile, codes_q5_1, 24, True, True)

cdef void u8_q5_1(const uint8_t* tile, int n, uint8_t* q, float* d, float* m) noexcept nogil:
    unpack_quads_u8(tile, n, q, d, m, True, 0, True, 384)

cdef void s16_q5_1(const uint8_t* tile, int n, int16_t* q, float* d, float* m) noexcept nogil:
    unpack_quads_s16(tile, n, q, d, m, True, 0, True, 384)

cdef void f32_q5_1(const uint8_t* tile, int n, float* w) noexcept nogil:
    unpack_f32(tile, n, w, s16_q5_1, 384, True)

cdef void matvec_q5_1(const uint8_t* tile, int nb, int k, const Acts* x, size_t t, float* y) noexcept nogil:
    matvec_quads(tile, nb, x, t, y, True, 0, True, 384)


cdef void pack_q8_0(const uint8_t* rows, size_t rb, int n, int b, int k, uint8_t* tile) noexcept nogil:
    cdef const block_q8_0* x
    cdef int r, p
    memset(tile, 0, 544)
    for r in range(n):
        x = <const block_q8_0*>(rows + r * rb) + b
        for p in range(16):
            memcpy(tile + 32 * p + 2 * r, x.qs + 2 * p, 2)
        memcpy(tile + TILE + 2 * r, &x.d, 2)

cdef void f32_q8_0(const uint8_t* tile, int n, float* w) noexcept nogil:
    unpack_f32(tile, n, w, unpack_pairs_s16, 544, False)


# ---- floats ----

cdef inline void pack_floats(const uint8_t* rows, size_t rb, int n, int b, int k, uint8_t* tile, int size) noexcept nogil:
    cdef int r, c, last = min(32, k - 32 * b)
    memset(tile, 0, TILE * size)
    for r in range(n):
        for c in range(last):
            memcpy(tile + (16 * c + r) * size, rows + r * rb + <size_t>(32 * b + c) * size, size)

cdef inline vf load_float(const uint8_t* p, int number) noexcept nogil:
    if number == 0:
        return vf_load(<const float*>p)
    return vf_load_f16(p) if number == 1 else vf_load_bf16(p)

cdef inline void unpack_floats(const uint8_t* tile, int n, float* w, int number, int size) noexcept nogil:
    cdef int i
    for i in range(32 * n):
        vf_store(w + 16 * i, load_float(tile + 16 * size * i, number))

cdef inline void matvec_floats(const uint8_t* tile, int k, const Acts* x, size_t t, float* y, int number,
                               int size) noexcept nogil:
    cdef const float* a = x.f32 + t * x.ld
    cdef vf acc = vf_set1(0)
    cdef int i
    for i in range(k):
        acc = vf_fma1(load_float(tile + 16 * size * i, number), a[i], acc)
    vf_store(y, acc)

cdef void pack_f32(const uint8_t* rows, size_t rb, int n, int b, int k, uint8_t* tile) noexcept nogil:
    pack_floats(rows, rb, n, b, k, tile, 4)

cdef void f32_f32(const uint8_t* tile, int n, float* w) noexcept nogil:
    unpack_floats(tile, n, w, 0, 4)

cdef void matvec_f32(const uint8_t* tile, int nb, int k, const Acts* x, size_t t, float* y) noexcept nogil:
    matvec_floats(tile, k, x, t, y, 0, 4)

cdef void pack_f16(const uint8_t* rows, size_t rb, int n, int b, int k, uint8_t* tile) noexcept nogil:
    pack_floats(rows, rb, n, b, k, tile, 2)

cdef void f32_f16(const uint8_t* tile, int n, float* w) noexcept nogil:
    unpack_floats(tile, n, w, 1, 2)

cdef void matvec_f16(const uint8_t* tile, int nb, int k, const Acts* x, size_t t, float* y) noexcept nogil:
    matvec_floats(tile, k, x, t, y, 1, 2)

cdef void f32_bf16(const uint8_t* tile, int n, float* w) noexcept nogil:
    unpack_floats(tile, n, w, 30, 2)

cdef void matvec_bf16(const uint8_t* tile, int nb, int k, const Acts* x, size_t t, float* y) noexcept nogil:
    matvec_floats(tile, k, x, t, y, 30, 2)


cdef Kernel KERNELS[8]
KERNELS[0] = Kernel("F32", 0, 1, 4, 2048, 0, False, pack_f32, NULL, NULL, f32_f32, matvec_f32)
KERNELS[1] = Kernel("F16", 1, 1, 2, 1024, 0, False, pack_f16, NULL, NULL, f32_f16, matvec_f16)
KERNELS[2] = Kernel("BF16", 30, 1, 2, 1024, 0, False, pack_f16, NULL, NULL, f32_bf16, matvec_bf16)
KERNELS[3] = Kernel("Q4_0", 2, 32, 18, 288, 8, True, pack_q4_0, u8_q4_0, s16_q4_0, f32_q4_0, matvec_q4_0)
KERNELS[4] = Kernel("Q4_1", 3, 32, 20, 320, 8, True, pack_q4_1, u8_q4_1, s16_q4_1, f32_q4_1, matvec_q4_1)
KERNELS[5] = Kernel("Q5_0", 6, 32, 22, 352, 4, True, pack_q5_0, u8_q5_0, s16_q5_0, f32_q5_0, matvec_q5_0)
KERNELS[6] = Kernel("Q5_1", 7, 32, 24, 384, 4, True, pack_q5_1, u8_q5_1, s16_q5_1, f32_q5_1, matvec_q5_1)
KERNELS[7] = Kernel("Q8_0", 8, 32, 34, 544, 0, False, pack_q8_0, NULL, unpack_pairs_s16, f32_q8_0, matvec_q8_0)
# Symmetric 4- and 5-bit types have no minimum of their own; with 16-bit inputs the offset is taken off the codes.
KERNELS[3].has_min = False
KERNELS[5].has_min = False


# ======== matrix x matrix: tiles of 16 rows x 4 tokens ========

cdef struct Columns:        # four tokens of a panel product; past the last one they repeat it and write to a spare
    const void* a[4]
    const float* scale[4]
    const float* total[4]
    float* y[4]


cdef inline void columns_at(Columns* c, const uint8_t* a, size_t row_bytes, const float* scale, const float* total,
                            size_t nb, float* y, size_t ldy, int t, int t_end, float* spare) noexcept nogil:
    cdef int i, at
    for i in range(4):
        at = t + i if t + i < t_end else t_end - 1
        c.a[i] = a + at * row_bytes
        c.scale[i] = scale + at * nb
        c.total[i] = total + at * nb
        c.y[i] = y + at * ldy if t + i < t_end else spare


cdef inline vf close_block(vf d, vf m, float scale, float total, vi s, vf acc, bint has_min) noexcept nogil:
    """acc + d * scale * s + m * total, as matvec does it"""
    acc = vf_fma(vf_mul(d, vf_set1(scale)), vi_to_f(s), acc)
    return vf_fma1(m, total, acc) if has_min else acc


cdef void panel_u8(const uint8_t* q, const float* d, const float* m, int nb, int depth, const Columns* c) noexcept nogil:
    """y[4 tokens][16] += the panel's nb blocks; int16 sums are widened every `depth` steps.

    depth is deliberately not a constant: unrolled, gcc sinks the adds below the multiplies and spills the sums.
    """
    cdef const int8_t* a0 = <const int8_t*>c.a[0]
    cdef const int8_t* a1 = <const int8_t*>c.a[1]
    cdef const int8_t* a2 = <const int8_t*>c.a[2]
    cdef const int8_t* a3 = <const int8_t*>c.a[3]
    cdef int b, g, part
    cdef vb w
    cdef vh h0, h1, h2, h3
    cdef vi s0, s1, s2, s3
    cdef vf vd, vm
    for b in range(nb):
        s0 = vi_zero()
        s1, s2, s3 = s0, s0, s0
        for part in range(8 // depth):
            h0 = vh_zero()
            h1, h2, h3 = h0, h0, h0
            for g in range(depth):
                w = vb_load(q)
                h0 = vh_dot(h0, w, a0)
                h1 = vh_dot(h1, w, a1)
                h2 = vh_dot(h2, w, a2)
                h3 = vh_dot(h3, w, a3)
                q += 64
                a0, a1, a2, a3 = a0 + 4, a1 + 4, a2 + 4, a3 + 4
            s0, s1 = vi_add(s0, vh_sum(h0)), vi_add(s1, vh_sum(h1))
            s2, s3 = vi_add(s2, vh_sum(h2)), vi_add(s3, vh_sum(h3))
        vd, vm = vf_load(d + 16 * b), vf_load(m + 16 * b)
        vf_store(c.y[0], close_block(vd, vm, c.scale[0][b], c.total[0][b], s0, vf_load(c.y[0]), True))
        vf_store(c.y[1], close_block(vd, vm, c.scale[1][b], c.total[1][b], s1, vf_load(c.y[1]), True))
        vf_store(c.y[2], close_block(vd, vm, c.scale[2][b], c.total[2][b], s2, vf_load(c.y[2]), True))
        vf_store(c.y[3], close_block(vd, vm, c.scale[3][b], c.total[3][b], s3, vf_load(c.y[3]), True))


cdef inline void panel_s16(const int16_t* q, const float* d, const float* m, int nb, int pairs, const Columns* c,
                           bint has_min) noexcept nogil:
    cdef const int16_t* a0 = <const int16_t*>c.a[0]
    cdef const int16_t* a1 = <const int16_t*>c.a[1]
    cdef const int16_t* a2 = <const int16_t*>c.a[2]
    cdef const int16_t* a3 = <const int16_t*>c.a[3]
    cdef int b, p
    cdef vw w
    cdef vi s0, s1, s2, s3
    cdef vf vd, vm = vf_set1(0)
    for b in range(nb):
        s0 = vi_zero()
        s1, s2, s3 = s0, s0, s0
        for p in range(pairs):
            w = vw_load(q)
            s0 = vi_dot(s0, w, a0)
            s1 = vi_dot(s1, w, a1)
            s2 = vi_dot(s2, w, a2)
            s3 = vi_dot(s3, w, a3)
            q += 32
            a0, a1, a2, a3 = a0 + 2, a1 + 2, a2 + 2, a3 + 2
        vd = vf_load(d + 16 * b)
        if has_min:
            vm = vf_load(m + 16 * b)
        vf_store(c.y[0], close_block(vd, vm, c.scale[0][b], c.total[0][b], s0, vf_load(c.y[0]), has_min))
        vf_store(c.y[1], close_block(vd, vm, c.scale[1][b], c.total[1][b], s1, vf_load(c.y[1]), has_min))
        vf_store(c.y[2], close_block(vd, vm, c.scale[2][b], c.total[2][b], s2, vf_load(c.y[2]), has_min))
        vf_store(c.y[3], close_block(vd, vm, c.scale[3][b], c.total[3][b], s3, vf_load(c.y[3]), has_min))


cdef void panel_add(const float* p, size_t ps, int n, const float* x, size_t xs, int rows, float* y, size_t ys) noexcept nogil:
    """y[r][16] += sum over j < n of x[r][j] * p[j][16], for r < rows; ps, xs, ys: row strides in floats.

    The one f32 product of the engine: p is a weight panel, a LoRA factor, keys, values or activations.
    """
    cdef int r = 0, j
    cdef const float* w
    cdef const float* x0
    cdef const float* x1
    cdef const float* x2
    cdef const float* x3
    cdef vf a0, a1, a2, a3, v
    while r + 4 <= rows:
        x0 = x + r * xs
        x1, x2, x3 = x0 + xs, x0 + 2 * xs, x0 + 3 * xs
        a0, a1 = vf_load(y + r * ys), vf_load(y + (r + 1) * ys)
        a2, a3 = vf_load(y + (r + 2) * ys), vf_load(y + (r + 3) * ys)
        w = p
        for j in range(n):
            v = vf_load(w)
            a0 = vf_fma1(v, x0[j], a0)
            a1 = vf_fma1(v, x1[j], a1)
            a2 = vf_fma1(v, x2[j], a2)
            a3 = vf_fma1(v, x3[j], a3)
            w += ps
        vf_store(y + r * ys, a0)
        vf_store(y + (r + 1) * ys, a1)
        vf_store(y + (r + 2) * ys, a2)
        vf_store(y + (r + 3) * ys, a3)
        r += 4
    while r < rows:
        x0 = x + r * xs
        a0 = vf_load(y + r * ys)
        w = p
        for j in range(n):
            a0 = vf_fma1(vf_load(w), x0[j], a0)
            w += ps
        vf_store(y + r * ys, a0)
        r += 1


cdef void gemm_u8(const Packed* w, const Acts* x, float* y, size_t ldy, int lo, int hi) noexcept nogil:
    cdef uint8_t memory[TILE * U8_BLOCKS + 128 * U8_BLOCKS + 64]
    cdef uint8_t* q = aligned(memory)
    cdef float* d = <float*>(q + TILE * U8_BLOCKS)
    cdef float* m = d + 16 * U8_BLOCKS
    cdef float spare[16]
    cdef Columns c
    cdef const Kernel* k = w.kernel
    cdef int t0, t1, t, b, n, tile, pairs = TILE_COLS // 2
    cdef size_t nb = w.n_blocks
    memset(spare, 0, sizeof(spare))
    for t0 in range(0, x.n_rows, 256):
        t1 = min(t0 + T_BLOCK, x.n_rows)
        for b in range(0, w.n_blocks, 32):
            n = min(U8_BLOCKS, w.n_blocks - b)
            for tile in range(lo, hi):
                k.unpack_u8(w.tiles + (tile * nb + b) * k.tile_bytes, n, q, d, m)
                for t in range(t0, t1, 4):
                    columns_at(&c, <const uint8_t*>x.q8 + 32 * b, 32 * nb, x.scale8 + b, x.sum8 + b, nb,
                               y + 16 * tile, ldy, t, t1, spare)
                    panel_u8(q, d, m, n, k.depth, &c)


cdef void gemm_s16(const Packed* w, const Acts* x, float* y, size_t ldy, int lo, int hi) noexcept nogil:
    cdef uint8_t memory[2 * TILE * S16_BLOCKS + 128 * S16_BLOCKS + 64]
    cdef int16_t* q = <int16_t*>aligned(memory)
    cdef float* d = <float*>(q + TILE * S16_BLOCKS)
    cdef float* m = d + 16 * S16_BLOCKS
    cdef float spare[16]
    cdef Columns c
    cdef const Kernel* k = w.kernel
    cdef int t0, t1, t, b, n, tile, pairs = TILE_COLS // 2
    cdef size_t nb = w.n_blocks
    memset(spare, 0, sizeof(spare))
    for t0 in range(0, x.n_rows, 256):
        t1 = min(t0 + T_BLOCK, x.n_rows)
        for b in range(0, w.n_blocks, 16):
            n = min(S16_BLOCKS, w.n_blocks - b)
            for tile in range(lo, hi):
                k.unpack_s16(w.tiles + (tile * nb + b) * k.tile_bytes, n, q, d, m)
                for t in range(t0, t1, 4):
                    columns_at(&c, <const uint8_t*>(x.q16 + 32 * b), 64 * nb, x.scale16 + b, x.sum16 + b, nb,
                               y + 16 * tile, ldy, t, t1, spare)
                    if k.has_min:
                        panel_s16(q, d, m, n, pairs, &c, True)
                    else:
                        panel_s16(q, d, m, n, pairs, &c, False)


cdef void gemm_f32(const Packed* w, const Acts* x, float* y, size_t ldy, int lo, int hi) noexcept nogil:
    cdef uint8_t memory[4 * TILE * F32_BLOCKS + 64]
    cdef float* panel = <float*>aligned(memory)
    cdef const Kernel* k = w.kernel
    cdef int t0, b, n, tile, n_cols
    cdef size_t nb = w.n_blocks
    for t0 in range(0, x.n_rows, 256):
        for b in range(0, w.n_blocks, 8):
            n = min(F32_BLOCKS, w.n_blocks - b)
            n_cols = min(32 * n, w.n_cols - 32 * b)
            for tile in range(lo, hi):
                k.unpack_f32(w.tiles + (tile * nb + b) * k.tile_bytes, n, panel)
                panel_add(panel, 16, n_cols, x.f32 + t0 * x.ld + 32 * b, x.ld, min(T_BLOCK, x.n_rows - t0),
                          y + t0 * ldy + 16 * tile, ldy)


cdef void matmul_tiles(const Packed* w, const Acts* x, int precision, float* y, size_t ldy, int lo, int hi) noexcept nogil:
    """y[t][16 lo .. 16 hi) = W x for all T inputs; rows of y hold N padded to 16.

    precision: the form of x to use, as far as the type has it (precision_of).
    """
    cdef const Kernel* k = w.kernel
    cdef int t, tile
    precision = precision_of(w, precision)
    # matvec knows one form of inputs, the fastest that its type has
    if x.n_rows < 4 and precision == precision_of(w, INT8):
        for tile in range(lo, hi):
            for t in range(x.n_rows):
                k.matvec(w.tiles + <size_t>tile * w.n_blocks * k.tile_bytes, w.n_blocks, w.n_cols, x, t, y + t * ldy + 16 * tile)
        return
    for t in range(x.n_rows):
        memset(y + t * ldy + 16 * lo, 0, 64 * <size_t>(hi - lo))
    if precision == INT8:
        gemm_u8(w, x, y, ldy, lo, hi)
    elif precision == INT16:
        gemm_s16(w, x, y, ldy, lo, hi)
    else:
        gemm_f32(w, x, y, ldy, lo, hi)


# ======== backward: dx += W^T dy ========

cdef void quantize_gradient(const float* dy, size_t ldy, int n_rows, int lo, int hi, int16_t* q, float* scale) noexcept nogil:
    """Round tokens lo..hi of dy (T, N) to int16 of at most 8191 per 128 values; q (T, padded(N, 128)), scale (T, padded(N, 128) / 128).

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
            out = q + (<size_t>t * groups + g) * BACK_ROWS
            for i in range(0, BACK_ROWS, 16):
                vi_store_s16(out + i, vf_to_i(vf_mul(vf_load(row + i), vf_set1(inverse))))
            scale[<size_t>t * groups + g] = amax / G_LIMIT


cdef inline int unpack_back(const Packed* w, int group, int b, float* panel) noexcept nogil:
    """Rows 128 group .. +128, columns 32 b .. +32 as f32 [128 rows][32 columns]; returns the rows there are (multiple of 16)."""
    cdef float tile[TILE]
    cdef const Kernel* k = w.kernel
    cdef int i, r, c, first = group * (BACK_ROWS // TILE_ROWS), n = min(BACK_ROWS // TILE_ROWS, w.n_tiles - first)
    for i in range(n):
        k.unpack_f32(w.tiles + (<size_t>(first + i) * w.n_blocks + b) * k.tile_bytes, 1, tile)
        for r in range(0, 16, 8):
            for c in range(0, 32, 8):
                transpose8(tile + 16 * c + r, 16, panel + TILE * i + 32 * r + c, 32)
    return 16 * n


cdef void backward_f32(const Packed* w, const float* dy, size_t ldy, int n_tokens, float* dx, size_t ldx, int lo, int hi) noexcept nogil:
    cdef uint8_t memory[4 * 32 * BACK_ROWS + 64]
    cdef float* panel = <float*>aligned(memory)
    cdef int b, group, n
    for b in range(lo, hi):
        for group in range((w.n_rows + BACK_ROWS - 1) // BACK_ROWS):
            unpack_back(w, group, b, panel)
            n = min(BACK_ROWS, w.n_rows - group * BACK_ROWS)
            panel_add(panel, 32, n, dy + group * BACK_ROWS, ldy, n_tokens, dx + 32 * b, ldx)
            if 32 * b + 16 < w.n_cols:
                panel_add(panel + 16, 32, n, dy + group * BACK_ROWS, ldy, n_tokens, dx + 32 * b + 16, ldx)


cdef inline void round_panel(const float* panel, int rows, int16_t* q, float* scale) noexcept nogil:
    """16 of the panel's columns to int16 pairs of rows [64][16][2] of at most 2047, scale [16]; missing rows are zero"""
    cdef int r
    cdef vf peak = vf_set1(0), inverse
    for r in range(rows):
        peak = vf_max(peak, vf_abs(vf_load(panel + 32 * r)))
    vf_store(scale, vf_mul(peak, vf_set1(<float>(1.0 / W_LIMIT))))
    # A column of zeros divides by the smallest normal number instead: 0 * finite = 0.
    inverse = vf_div(vf_set1(W_LIMIT), vf_max(peak, vf_set1(1e-34)))
    for r in range(0, rows, 2):
        vw_store(q + 16 * r, vw_join(vf_to_i(vf_mul(vf_load(panel + 32 * r), inverse)),
                                     vf_to_i(vf_mul(vf_load(panel + 32 * r + 32), inverse))))
    memset(q + 16 * rows, 0, 32 * <size_t>(BACK_ROWS - rows))


cdef void backward_s16(const Packed* w, const int16_t* dyq, const float* dys, int n_tokens, float* dx, size_t ldx, int lo, int hi) noexcept nogil:
    cdef uint8_t memory[4 * 32 * BACK_ROWS + 2 * 32 * BACK_ROWS + 128 + 64]
    cdef float* panel = <float*>aligned(memory)
    cdef int16_t* q = <int16_t*>(panel + 32 * BACK_ROWS)
    cdef float* scale = <float*>(q + 32 * BACK_ROWS)
    cdef float spare[16]
    cdef Columns c
    cdef int b, group, rows, t, half, groups = (w.n_rows + BACK_ROWS - 1) // BACK_ROWS
    memset(spare, 0, sizeof(spare))
    for b in range(lo, hi):
        for group in range(groups):
            rows = unpack_back(w, group, b, panel)
            round_panel(panel, rows, q, scale)
            round_panel(panel + 16, rows, q + 16 * BACK_ROWS, scale + 16)
            for half in range(2 if 32 * b + 16 < w.n_cols else 1):
                for t in range(0, n_tokens, 4):
                    columns_at(&c, <const uint8_t*>(dyq + group * BACK_ROWS), 2 * BACK_ROWS * <size_t>groups, dys + group,
                               dys, groups, dx + 32 * b + 16 * half, ldx, t, n_tokens, spare)
                    panel_s16(q + 16 * BACK_ROWS * half, scale + 16 * half, NULL, 1, BACK_ROWS // 2, &c, False)


cdef void matmul_backward_tiles(const Packed* w, const float* dy, size_t ldy, const int16_t* dyq, const float* dys, int n_tokens, float* dx, size_t ldx, int lo, int hi) noexcept nogil:
    """dx[t][32 lo .. 32 hi) += W^T dy: exact where dyq is NULL, else from quantize_gradient's integers (relative error near 5e-4).

    dy (T, ldy), dx (T, ldx) with room for K padded to 16.
    """
    if dyq == NULL:
        backward_f32(w, dy, ldy, n_tokens, dx, ldx, lo, hi)
    else:
        backward_s16(w, dyq, dys, n_tokens, dx, ldx, lo, hi)


# ======== Python's side ========

cdef class Arena:
    """One aligned block of memory for all packed matrices of a model, on huge pages where the system has them."""

    def __cinit__(self, size_t size):
        cdef void* p = NULL
        if posix_memalign(&p, HUGE if size >= HUGE else 64, size + 4096) != 0:
            raise MemoryError(f"{size >> 20} MiB for the packed weights")
        madvise(p, size, ADVISE_HUGE)
        self.memory, self.size, self.used = <uint8_t*>p, size + 4096, 0

    def __dealloc__(self):
        free(self.memory)

    cdef uint8_t* take(self, size_t n_bytes) except NULL:
        cdef uint8_t* p = self.memory + self.used
        if self.used + n_bytes > self.size:
            raise MemoryError("the arena is full")
        self.used += padded(n_bytes, 64)
        return p


cdef const Kernel* find(int number) except NULL:
    cdef int i
    for i in range(<int>(sizeof(KERNELS) // sizeof(Kernel))):
        if KERNELS[i].number == number:
            return &KERNELS[i]
    raise ValueError(f"type {number} has no kernel")


def types():
    """Return {name: GGUF number} of the types that matrices may have here."""
    return {KERNELS[i].name.decode(): KERNELS[i].number for i in range(<int>(sizeof(KERNELS) // sizeof(Kernel)))}


def packed_bytes(int number, size_t n_rows, size_t n_cols):
    """Bytes that a (n_rows, n_cols) matrix of GGUF type `number` takes in an Arena."""
    cdef const Kernel* k = find(number)
    return padded(padded(n_rows, 16) // 16 * (padded(n_cols, 32) // 32) * <size_t>k.tile_bytes, 64)


cdef class PackedMatrix:
    """W (n_rows, n_cols), quantised, in tiles; made from the file's rows of blocks (uint8 (n_rows, row bytes))."""

    def __init__(self, const uint8_t[:, ::1] rows, int number, int n_cols, Arena arena=None, int n_threads=1):
        cdef const Kernel* k = find(number)
        cdef int n_rows = <int>rows.shape[0], tile, b
        cdef size_t row_bytes = rows.shape[1]
        cdef const uint8_t* source = &rows[0, 0]
        if n_cols % k.block or <size_t>n_cols // k.block * k.block_bytes != row_bytes:
            raise ValueError(f"{n_cols} columns of {k.name.decode()} do not make rows of {row_bytes} bytes")
        self.arena = arena or Arena(packed_bytes(number, n_rows, n_cols))
        self.w.kernel, self.w.n_rows, self.w.n_cols = k, n_rows, n_cols
        self.w.n_tiles, self.w.n_blocks = (n_rows + 15) // 16, (n_cols + 31) // 32
        self.w.tiles = self.arena.take(<size_t>self.w.n_tiles * self.w.n_blocks * k.tile_bytes)
        for tile in prange(self.w.n_tiles, num_threads=n_threads, schedule="static", nogil=True):
            for b in range(self.w.n_blocks):
                k.pack(source + 16 * tile * row_bytes, row_bytes, min(16, n_rows - 16 * tile), b, n_cols,
                       self.w.tiles + (<size_t>tile * self.w.n_blocks + b) * k.tile_bytes)

    @property
    def shape(self):
        return self.w.n_rows, self.w.n_cols

    @property
    def type_number(self):
        return self.w.kernel.number

    @property
    def n_bytes(self):
        return <size_t>self.w.n_tiles * self.w.n_blocks * self.w.kernel.tile_bytes


PRECISIONS = {"f32": EXACT, "int8": INT8, "int16": INT16}


def matmul(PackedMatrix w, x, activations="int8", int n_threads=1):
    """y = x W^T: x (T, K) f32 -> (T, N) f32, by the path that generation (T < 4) and prompts take."""
    cdef int T = len(x), K = w.w.n_cols, i, per, precision = PRECISIONS[activations]
    cdef float[:, ::1] xv = np.zeros((T, padded(K, 32)), np.float32)
    cdef float[:, ::1] y = np.full((T, padded(w.w.n_rows, 16)), np.nan, np.float32)
    cdef Acts acts
    cdef uint8_t[::1] memory
    if x.shape[1] != K:
        raise ValueError(f"x has {x.shape[1]} columns, wanted {K}")
    np.asarray(xv)[:, :K] = x
    precision = precision_of(&w.w, precision)
    memory = np.empty(acts_bytes(T, K, precision), np.uint8)
    acts_place(&acts, T, K, precision, &memory[0])
    acts.f32, acts.ld = &xv[0, 0], xv.shape[1]
    if precision != EXACT:
        acts_quantize(&acts, 0, T, 0, acts.n_blocks)
    per = (w.w.n_tiles + n_threads - 1) // n_threads
    for i in prange(n_threads, num_threads=n_threads, schedule="static", chunksize=1, nogil=True):
        matmul_tiles(&w.w, &acts, precision, &y[0, 0], y.shape[1], min(i * per, w.w.n_tiles), min((i + 1) * per, w.w.n_tiles))
    return np.asarray(y)[:, :w.w.n_rows]


def matmul_backward(PackedMatrix w, const float[:, ::1] dy, activations="int16", int n_threads=1):
    """dx = dy W: dy (T, N) f32 -> (T, K) f32; exact for "f32", 16-bit integers otherwise."""
    cdef int T = <int>dy.shape[0], i, per
    cdef size_t groups = padded(w.w.n_rows, BACK_ROWS) // BACK_ROWS
    cdef float[:, ::1] dx = np.zeros((T, padded(w.w.n_cols, 32)), np.float32)
    cdef int16_t[::1] q = np.zeros(T * groups * BACK_ROWS, np.int16)
    cdef float[::1] scale = np.zeros(T * groups, np.float32)
    cdef int16_t* qp = NULL
    if dy.shape[1] != w.w.n_rows:
        raise ValueError(f"dy has {dy.shape[1]} columns, wanted {w.w.n_rows}")
    if activations != "f32":
        qp = &q[0]
        quantize_gradient(&dy[0, 0], dy.shape[1], w.w.n_rows, 0, T, qp, &scale[0])
    per = (w.w.n_blocks + n_threads - 1) // n_threads
    for i in prange(n_threads, num_threads=n_threads, schedule="static", chunksize=1, nogil=True):
        matmul_backward_tiles(&w.w, &dy[0, 0], dy.shape[1], qp, &scale[0], T, &dx[0, 0], dx.shape[1],
                              min(i * per, w.w.n_blocks), min((i + 1) * per, w.w.n_blocks))
    return np.asarray(dx)[:, :w.w.n_cols]
