"""The quantised types as the products see them: packing to tiles, unpacking to panels, one token's product.

One section per layout, one block of one-line functions and one table row per type. Layouts: tiles.pxd; those with wide
scales are in scale_tiles.pyx.
"""

from libc.stdint cimport int8_t, int16_t, uint8_t, uint16_t, uint32_t
from libc.string cimport memcpy, memset

from .inputs cimport U8_BLOCKS, even_chunk
from ..types.blocks cimport block_q4_0, block_q4_1, block_q5_0, block_q5_1, block_q8_0
from ..types.groups cimport Group, group_fn
from ..types.kquants cimport group_q4_k, group_q5_k
from .outliers cimport quads_outliers
from ..simd.verbs cimport (
    prefetch_line, vb, vb_load, vb_pair, vb_store, vf, vf_fma, vf_fma1, vf_load, vf_load_bf16, vf_load_f16, vf_mul,
    vf_set1, vf_store, vh, vh_dot, vh_sum, vh_zero, vi, vi_add, vi_to_f, vw, vw_even, vw_load, vw_load_s8, vw_odd,
    vw_store,
)
from .superblocks cimport span_kernel
from .tiles cimport (
    PREFETCH_BYTES, TILE, TILE_ROWS, block2, close_block4, fifth_words, half4, nibble_words, prefetch_tile, quad, quad_high,
    quad_min, quad_scale, write_quads,
)
from .scale_tiles cimport (
    HALVES_BYTES, PAIRS_BYTES, SCALED_BYTES, WIDE_BYTES, f32_halves, f32_scaled, f32_wide, matvec4_q8_0, matvec4_scaled, matvec4_wide,
    matvec_halves, matvec_q8_0, matvec_scaled, matvec_wide, pack_iq1_m, pack_iq1_s, pack_iq2_s, pack_iq2_xs,
    pack_iq2_xxs, pack_iq3_s, pack_iq3_xxs, pack_iq4_nl, pack_iq4_xs, pack_mxfp4, pack_q2_k, pack_q3_k, pack_q6_k,
    pack_q8_k, pack_tq1_0, pack_tq2_0, s16_scaled, s16_wide,
)


# ======== quads: 4- and 5-bit types ========
# int16 sums: a product is at most 15 * 127 (31 * 127), maddubs adds two, so 8 (4) of them stay within
# 8 * 2 * 1905 = 30480 (4 * 2 * 3937 = 31496) < 32767.

cdef inline void unpack_quads_u8(const uint8_t* tile, int n, uint8_t* q, float* d, float* m,
                                 bint fifth, int offset, bint has_min, int tile_bytes, bint wide) noexcept nogil:
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
        scale = quad_scale(tile, fifth, wide)
        vf_store(d + 16 * b, scale)
        vf_store(m + 16 * b, quad_min(tile, fifth, wide) if has_min else vf_mul(scale, vf_set1(<float>-offset)))
        tile += tile_bytes
        q += TILE


cdef inline void unpack_quads_s16(const uint8_t* tile, int n, int16_t* q, float* d, float* m,
                                  bint fifth, int offset, bint has_min, int tile_bytes, bint wide) noexcept nogil:
    """n tiles to codes as pairs [n][16][16 rows][2], d [n][16], m - offset * d [n][16]"""
    cdef int b, g
    cdef uint8_t codes[TILE]
    cdef float scale[16]
    cdef float least[16]
    for b in range(n):
        unpack_quads_u8(tile, 1, codes, scale, least, fifth, offset, has_min, tile_bytes, wide)
        for g in range(8):
            vw_store(q + 64 * g, vb_pair(vb_load(codes + 64 * g), 0, 0))
            vw_store(q + 64 * g + 32, vb_pair(vb_load(codes + 64 * g), 1, 0))
        memcpy(d + 16 * b, scale, 64)
        memcpy(m + 16 * b, least, 64)
        tile += tile_bytes
        q += TILE


cdef inline vi quads_dot(const uint8_t* tile, bint fifth, vb high, const int8_t* a) noexcept nogil:
    """16 rows' codes times 32 values"""
    cdef vi s
    cdef vh h = vh_dot(vh_zero(), quad(tile, fifth, high, 0), a)
    cdef const uint8_t* ahead = tile + PREFETCH_BYTES
    prefetch_line(ahead)
    h = vh_dot(h, quad(tile, fifth, high, 1), a + 4)
    prefetch_line(ahead + 64)
    h = vh_dot(h, quad(tile, fifth, high, 2), a + 8)
    prefetch_line(ahead + 128)
    h = vh_dot(h, quad(tile, fifth, high, 3), a + 12)
    if fifth:
        s = vh_sum(h)
        h = vh_zero()
    prefetch_line(ahead + 192)
    h = vh_dot(h, quad(tile, fifth, high, 4), a + 16)
    prefetch_line(ahead + 256)
    h = vh_dot(h, quad(tile, fifth, high, 5), a + 20)
    if fifth:
        prefetch_line(ahead + 320)
    h = vh_dot(h, quad(tile, fifth, high, 6), a + 24)
    h = vh_dot(h, quad(tile, fifth, high, 7), a + 28)
    return vi_add(s, vh_sum(h)) if fifth else vh_sum(h)


cdef inline void matvec_quads(const uint8_t* tile, int nb, const Acts* x, size_t t, float* y,
                              bint fifth, int offset, bint has_min, int tile_bytes, bint wide) noexcept nogil:
    """y[16] = the row group's product with 8-bit input t; outliers when a panel of the GEMM would end, as it does it"""
    cdef const int8_t* a = x.q8 + 32 * t * nb
    cdef const float* scale = x.scale8 + t * nb
    cdef const float* total = x.sum8 + t * nb
    cdef int b = 0, first, chunk = even_chunk(nb, U8_BLOCKS)
    cdef vi s
    cdef vf d, m, acc = vf_set1(0)
    while b < nb:
        first = b
        while b < min(first + chunk, nb):
            s = quads_dot(tile, fifth, quad_high(tile, fifth), a + 32 * b)
            d = quad_scale(tile, fifth, wide)
            m = quad_min(tile, fifth, wide) if has_min else vf_mul(d, vf_set1(<float>-offset))
            acc = vf_fma(vf_mul(d, vf_set1(scale[b])), vi_to_f(s), acc)
            acc = vf_fma1(m, total[b], acc)
            tile += tile_bytes
            b += 1
        vf_store(y, acc)
        quads_outliers(tile - (b - first) * tile_bytes, first, b, x, t, y, fifth, 0, tile_bytes, wide)
        acc = vf_load(y)


cdef inline void matvec4_quads(const uint8_t* tile, int nb, const Acts* x, size_t t, float* y, size_t ldy,
                               bint fifth, int offset, bint has_min, int tile_bytes, bint wide) noexcept nogil:
    """y (4, ldy): matvec_quads of the four inputs from t on, a tile being read and widened once for them"""
    cdef const int8_t* a0 = x.q8 + 32 * t * nb
    cdef const int8_t* a1 = a0 + 32 * nb
    cdef const int8_t* a2 = a1 + 32 * nb
    cdef const int8_t* a3 = a2 + 32 * nb
    cdef const float* scale = x.scale8 + t * nb
    cdef const float* total = x.sum8 + t * nb
    cdef int b = 0, first, i, chunk = even_chunk(nb, U8_BLOCKS)
    cdef vb high
    cdef vh h0, h1, h2, h3
    cdef vi s0, s1, s2, s3
    cdef vf d, m
    for i in range(4):
        vf_store(y + i * ldy, vf_set1(0))
    while b < nb:
        first = b
        while b < min(first + chunk, nb):
            prefetch_tile(tile)
            high = quad_high(tile, fifth)
            h0 = vh_zero()
            h1, h2, h3 = h0, h0, h0
            half4(tile, fifth, high, 0, a0, a1, a2, a3, &h0, &h1, &h2, &h3)
            if fifth:
                s0, s1, s2, s3 = vh_sum(h0), vh_sum(h1), vh_sum(h2), vh_sum(h3)
                h0 = vh_zero()
                h1, h2, h3 = h0, h0, h0
            half4(tile, fifth, high, 4, a0, a1, a2, a3, &h0, &h1, &h2, &h3)
            if fifth:
                s0, s1, s2, s3 = vi_add(s0, vh_sum(h0)), vi_add(s1, vh_sum(h1)), vi_add(s2, vh_sum(h2)), vi_add(s3, vh_sum(h3))
            else:
                s0, s1, s2, s3 = vh_sum(h0), vh_sum(h1), vh_sum(h2), vh_sum(h3)
            d = quad_scale(tile, fifth, wide)
            m = quad_min(tile, fifth, wide) if has_min else vf_mul(d, vf_set1(<float>-offset))
            close_block4(y, ldy, d, m, scale + b, total + b, nb, s0, s1, s2, s3, True)
            a0, a1, a2, a3 = a0 + 32, a1 + 32, a2 + 32, a3 + 32
            tile += tile_bytes
            b += 1
        for i in range(4):
            quads_outliers(tile - (b - first) * tile_bytes, first, b, x, t + i, y + i * ldy, fifth, 0, tile_bytes, wide)


# Memory answers two streams sooner than one: a plain loop that reads 500 MB on two threads is 6 % faster with two addresses
# a thread that lie far apart, this product of a large matrix 12 %. Besides, both groups share each broadcast of the input.
# Types with a fifth bit would run out of registers, and those of 8 bits gained nothing.

cdef inline vf closed(const uint8_t* tile, vh h, float scale, float total, vf acc, int offset, bint has_min, bint wide) noexcept nogil:
    """acc + the block's products, with the float operations of matvec_quads"""
    cdef vf d = quad_scale(tile, False, wide)
    cdef vf m = quad_min(tile, False, wide) if has_min else vf_mul(d, vf_set1(<float>-offset))
    acc = vf_fma(vf_mul(d, vf_set1(scale)), vi_to_f(vh_sum(h)), acc)
    return vf_fma1(m, total, acc)


cdef inline void two_groups(const uint8_t* tile, const uint8_t* other, int nb, const Acts* x, float* y, float* yo,
                            int offset, bint has_min, int tile_bytes, bint wide) noexcept nogil:
    """y[16], yo[16] = two row groups' products with 8-bit input 0; bit for bit what matvec_quads makes of each"""
    cdef const int8_t* a = x.q8
    cdef int b = 0, first, chunk = even_chunk(nb, U8_BLOCKS)
    cdef vh h, ho
    cdef vf acc = vf_set1(0), acco = vf_set1(0)
    while b < nb:
        first = b
        while b < min(first + chunk, nb):
            h = vh_zero()
            ho = h
            block2(tile, other, a + 32 * b, &h, &ho)
            acc = closed(tile, h, x.scale8[b], x.sum8[b], acc, offset, has_min, wide)
            acco = closed(other, ho, x.scale8[b], x.sum8[b], acco, offset, has_min, wide)
            tile += tile_bytes
            other += tile_bytes
            b += 1
        vf_store(y, acc)
        vf_store(yo, acco)
        quads_outliers(tile - (b - first) * tile_bytes, first, b, x, 0, y, False, 0, tile_bytes, wide)
        quads_outliers(other - (b - first) * tile_bytes, first, b, x, 0, yo, False, 0, tile_bytes, wide)
        acc = vf_load(y)
        acco = vf_load(yo)


# ======== pairs: 8-bit types ========

cdef void unpack_pairs_s16(const uint8_t* tile, int n, int16_t* q, float* d, float* m) noexcept nogil:
    cdef int b, p
    for b in range(n):
        for p in range(16):
            vw_store(q + 32 * p, vw_load_s8(<const int8_t*>tile + 32 * p))
        vf_store(d + 16 * b, vf_load_f16(tile + TILE))
        tile += PAIRS_BYTES
        q += TILE


# ======== integer types as f32 ========

cdef inline void unpack_f32(const uint8_t* tile, int n, float* w, unpack_s16_fn unpack, int tile_bytes,
                            bint has_min) noexcept nogil:
    """n tiles to weights [32 n][16 rows]"""
    cdef int16_t q[TILE]
    cdef float d[16]
    cdef float m[16]
    cdef int _b, p
    cdef vf scale, least = vf_set1(0)
    cdef vw pair
    for _b in range(n):
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
    if n_rows < TILE_ROWS:
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
    unpack_quads_u8(tile, n, q, d, m, False, 8, False, 288, False)

cdef void s16_q4_0(const uint8_t* tile, int n, int16_t* q, float* d, float* m) noexcept nogil:
    unpack_quads_s16(tile, n, q, d, m, False, 8, False, 288, False)

cdef void f32_q4_0(const uint8_t* tile, int n, float* w) noexcept nogil:
    unpack_f32(tile, n, w, s16_q4_0, 288, True)

cdef void matvec_q4_0(const uint8_t* tile, int nb, int k, const Acts* x, size_t t, float* y) noexcept nogil:
    matvec_quads(tile, nb, x, t, y, False, 8, False, 288, False)

cdef void matvec2_q4_0(const uint8_t* tile, const uint8_t* other, int nb, const Acts* x, float* y, float* yo) noexcept nogil:
    two_groups(tile, other, nb, x, y, yo, 8, False, 288, False)

cdef void matvec4_q4_0(const uint8_t* tile, int nb, const Acts* x, size_t t, float* y, size_t ldy) noexcept nogil:
    matvec4_quads(tile, nb, x, t, y, ldy, False, 8, False, 288, False)


cdef void pack_q4_1(const uint8_t* rows, size_t rb, int n, int b, int k, uint8_t* tile) noexcept nogil:
    pack_quads(rows, rb, n, b, tile, codes_q4_1, 20, False, True)

cdef void u8_q4_1(const uint8_t* tile, int n, uint8_t* q, float* d, float* m) noexcept nogil:
    unpack_quads_u8(tile, n, q, d, m, False, 0, True, 320, False)

cdef void s16_q4_1(const uint8_t* tile, int n, int16_t* q, float* d, float* m) noexcept nogil:
    unpack_quads_s16(tile, n, q, d, m, False, 0, True, 320, False)

cdef void f32_q4_1(const uint8_t* tile, int n, float* w) noexcept nogil:
    unpack_f32(tile, n, w, s16_q4_1, 320, True)

cdef void matvec_q4_1(const uint8_t* tile, int nb, int k, const Acts* x, size_t t, float* y) noexcept nogil:
    matvec_quads(tile, nb, x, t, y, False, 0, True, 320, False)

cdef void matvec2_q4_1(const uint8_t* tile, const uint8_t* other, int nb, const Acts* x, float* y, float* yo) noexcept nogil:
    two_groups(tile, other, nb, x, y, yo, 0, True, 320, False)

cdef void matvec4_q4_1(const uint8_t* tile, int nb, const Acts* x, size_t t, float* y, size_t ldy) noexcept nogil:
    matvec4_quads(tile, nb, x, t, y, ldy, False, 0, True, 320, False)


cdef void pack_q5_0(const uint8_t* rows, size_t rb, int n, int b, int k, uint8_t* tile) noexcept nogil:
    pack_quads(rows, rb, n, b, tile, codes_q5_0, 22, True, False)

cdef void u8_q5_0(const uint8_t* tile, int n, uint8_t* q, float* d, float* m) noexcept nogil:
    unpack_quads_u8(tile, n, q, d, m, True, 16, False, 352, False)

cdef void s16_q5_0(const uint8_t* tile, int n, int16_t* q, float* d, float* m) noexcept nogil:
    unpack_quads_s16(tile, n, q, d, m, True, 16, False, 352, False)

cdef void f32_q5_0(const uint8_t* tile, int n, float* w) noexcept nogil:
    unpack_f32(tile, n, w, s16_q5_0, 352, True)

cdef void matvec_q5_0(const uint8_t* tile, int nb, int k, const Acts* x, size_t t, float* y) noexcept nogil:
    matvec_quads(tile, nb, x, t, y, True, 16, False, 352, False)

cdef void matvec4_q5_0(const uint8_t* tile, int nb, const Acts* x, size_t t, float* y, size_t ldy) noexcept nogil:
    matvec4_quads(tile, nb, x, t, y, ldy, True, 16, False, 352, False)


cdef void pack_q5_1(const uint8_t* rows, size_t rb, int n, int b, int k, uint8_t* tile) noexcept nogil:
    pack_quads(rows, rb, n, b, tile, codes_q5_1, 24, True, True)

cdef void u8_q5_1(const uint8_t* tile, int n, uint8_t* q, float* d, float* m) noexcept nogil:
    unpack_quads_u8(tile, n, q, d, m, True, 0, True, 384, False)

cdef void s16_q5_1(const uint8_t* tile, int n, int16_t* q, float* d, float* m) noexcept nogil:
    unpack_quads_s16(tile, n, q, d, m, True, 0, True, 384, False)

cdef void f32_q5_1(const uint8_t* tile, int n, float* w) noexcept nogil:
    unpack_f32(tile, n, w, s16_q5_1, 384, True)

cdef void matvec_q5_1(const uint8_t* tile, int nb, int k, const Acts* x, size_t t, float* y) noexcept nogil:
    matvec_quads(tile, nb, x, t, y, True, 0, True, 384, False)

cdef void matvec4_q5_1(const uint8_t* tile, int nb, const Acts* x, size_t t, float* y, size_t ldy) noexcept nogil:
    matvec4_quads(tile, nb, x, t, y, ldy, True, 0, True, 384, False)


cdef inline void pack_wide_quads(const uint8_t* rows, size_t row_bytes, int n_rows, int b, uint8_t* tile,
                                 group_fn group, int block_bytes, bint fifth) noexcept nogil:
    """Group b & 7 of n_rows blocks of 256"""
    cdef uint32_t codes[128]
    cdef float d[16]
    cdef float m[16]
    cdef Group x
    cdef int r
    if n_rows < TILE_ROWS:
        memset(codes, 0, sizeof(codes))
        memset(d, 0, sizeof(d))
        memset(m, 0, sizeof(m))
    for r in range(n_rows):
        group(rows + r * row_bytes + <size_t>(b >> 3) * block_bytes, b & 7, &x)
        memcpy(codes + 8 * r, x.q, 32)
        d[r], m[r] = x.d * <float>x.s[0], -x.m[0]
    write_quads(tile, codes, fifth)
    tile += 320 if fifth else 256
    memcpy(tile, d, 64)
    memcpy(tile + 64, m, 64)


cdef void pack_q4_k(const uint8_t* rows, size_t rb, int n, int b, int k, uint8_t* tile) noexcept nogil:
    pack_wide_quads(rows, rb, n, b, tile, group_q4_k, 144, False)

cdef void u8_q4_k(const uint8_t* tile, int n, uint8_t* q, float* d, float* m) noexcept nogil:
    unpack_quads_u8(tile, n, q, d, m, False, 0, True, 384, True)

cdef void s16_q4_k(const uint8_t* tile, int n, int16_t* q, float* d, float* m) noexcept nogil:
    unpack_quads_s16(tile, n, q, d, m, False, 0, True, 384, True)

cdef void f32_q4_k(const uint8_t* tile, int n, float* w) noexcept nogil:
    unpack_f32(tile, n, w, s16_q4_k, 384, True)

cdef void matvec_q4_k(const uint8_t* tile, int nb, int k, const Acts* x, size_t t, float* y) noexcept nogil:
    matvec_quads(tile, nb, x, t, y, False, 0, True, 384, True)

cdef void matvec2_q4_k(const uint8_t* tile, const uint8_t* other, int nb, const Acts* x, float* y, float* yo) noexcept nogil:
    two_groups(tile, other, nb, x, y, yo, 0, True, 384, True)

cdef void matvec4_q4_k(const uint8_t* tile, int nb, const Acts* x, size_t t, float* y, size_t ldy) noexcept nogil:
    matvec4_quads(tile, nb, x, t, y, ldy, False, 0, True, 384, True)


cdef void pack_q5_k(const uint8_t* rows, size_t rb, int n, int b, int k, uint8_t* tile) noexcept nogil:
    pack_wide_quads(rows, rb, n, b, tile, group_q5_k, 176, True)

cdef void u8_q5_k(const uint8_t* tile, int n, uint8_t* q, float* d, float* m) noexcept nogil:
    unpack_quads_u8(tile, n, q, d, m, True, 0, True, 448, True)

cdef void s16_q5_k(const uint8_t* tile, int n, int16_t* q, float* d, float* m) noexcept nogil:
    unpack_quads_s16(tile, n, q, d, m, True, 0, True, 448, True)

cdef void f32_q5_k(const uint8_t* tile, int n, float* w) noexcept nogil:
    unpack_f32(tile, n, w, s16_q5_k, 448, True)

cdef void matvec_q5_k(const uint8_t* tile, int nb, int k, const Acts* x, size_t t, float* y) noexcept nogil:
    matvec_quads(tile, nb, x, t, y, True, 0, True, 448, True)

cdef void matvec4_q5_k(const uint8_t* tile, int nb, const Acts* x, size_t t, float* y, size_t ldy) noexcept nogil:
    matvec4_quads(tile, nb, x, t, y, ldy, True, 0, True, 448, True)


cdef void pack_q8_0(const uint8_t* rows, size_t rb, int n, int b, int k, uint8_t* tile) noexcept nogil:
    cdef const block_q8_0* x
    cdef int r, p
    if n < TILE_ROWS:
        memset(tile, 0, PAIRS_BYTES)
    for r in range(n):
        x = <const block_q8_0*>(rows + r * rb) + b
        for p in range(16):
            memcpy(tile + 32 * p + 2 * r, x.qs + 2 * p, 2)
        memcpy(tile + TILE + 2 * r, &x.d, 2)

cdef void f32_q8_0(const uint8_t* tile, int n, float* w) noexcept nogil:
    unpack_f32(tile, n, w, unpack_pairs_s16, PAIRS_BYTES, False)


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


cdef Kernel KERNELS[26]
KERNELS[0] = Kernel("F32", 0, 1, 4, 2048, 0, False, pack_f32, NULL, NULL, f32_f32, matvec_f32, NULL, NULL, NULL)
KERNELS[1] = Kernel("F16", 1, 1, 2, 1024, 0, False, pack_f16, NULL, NULL, f32_f16, matvec_f16, NULL, NULL, NULL)
KERNELS[2] = Kernel("BF16", 30, 1, 2, 1024, 0, False, pack_f16, NULL, NULL, f32_bf16, matvec_bf16, NULL, NULL, NULL)
KERNELS[3] = Kernel("Q4_0", 2, 32, 18, 288, 8, True, pack_q4_0, u8_q4_0, s16_q4_0, f32_q4_0, matvec_q4_0, matvec2_q4_0, matvec4_q4_0, span_kernel(2))
KERNELS[4] = Kernel("Q4_1", 3, 32, 20, 320, 8, True, pack_q4_1, u8_q4_1, s16_q4_1, f32_q4_1, matvec_q4_1, matvec2_q4_1, matvec4_q4_1, span_kernel(3))
KERNELS[5] = Kernel("Q5_0", 6, 32, 22, 352, 4, True, pack_q5_0, u8_q5_0, s16_q5_0, f32_q5_0, matvec_q5_0, NULL, matvec4_q5_0, span_kernel(6))
KERNELS[6] = Kernel("Q5_1", 7, 32, 24, 384, 4, True, pack_q5_1, u8_q5_1, s16_q5_1, f32_q5_1, matvec_q5_1, NULL, matvec4_q5_1, span_kernel(7))
KERNELS[7] = Kernel("Q8_0", 8, 32, 34, PAIRS_BYTES, 0, False, pack_q8_0, NULL, unpack_pairs_s16, f32_q8_0, matvec_q8_0, NULL, matvec4_q8_0, NULL)
KERNELS[8] = Kernel("Q2_K", 10, 256, 84, HALVES_BYTES, 0, False, pack_q2_k, NULL, NULL, f32_halves, matvec_halves, NULL, NULL, NULL)
KERNELS[9] = Kernel("Q3_K", 11, 256, 110, WIDE_BYTES, 0, False, pack_q3_k, NULL, s16_wide, f32_wide, matvec_wide, NULL, matvec4_wide, NULL)
KERNELS[10] = Kernel("Q4_K", 12, 256, 144, 384, 8, True, pack_q4_k, u8_q4_k, s16_q4_k, f32_q4_k, matvec_q4_k, matvec2_q4_k, matvec4_q4_k, span_kernel(12))
KERNELS[11] = Kernel("Q5_K", 13, 256, 176, 448, 4, True, pack_q5_k, u8_q5_k, s16_q5_k, f32_q5_k, matvec_q5_k, NULL, matvec4_q5_k, span_kernel(13))
KERNELS[12] = Kernel("Q6_K", 14, 256, 210, SCALED_BYTES, 0, False, pack_q6_k, NULL, s16_scaled, f32_scaled, matvec_scaled, NULL, matvec4_scaled, NULL)
KERNELS[13] = Kernel("IQ4_NL", 20, 32, 18, WIDE_BYTES, 0, False, pack_iq4_nl, NULL, s16_wide, f32_wide, matvec_wide, NULL, matvec4_wide, NULL)
KERNELS[14] = Kernel("IQ4_XS", 23, 256, 136, WIDE_BYTES, 0, False, pack_iq4_xs, NULL, s16_wide, f32_wide, matvec_wide, NULL, matvec4_wide, NULL)
KERNELS[15] = Kernel("MXFP4", 39, 32, 17, WIDE_BYTES, 0, False, pack_mxfp4, NULL, s16_wide, f32_wide, matvec_wide, NULL, matvec4_wide, NULL)
KERNELS[16] = Kernel("Q8_K", 15, 256, 292, WIDE_BYTES, 0, False, pack_q8_k, NULL, s16_wide, f32_wide, matvec_wide, NULL, matvec4_wide, NULL)
KERNELS[17] = Kernel("TQ1_0", 34, 256, 54, WIDE_BYTES, 0, False, pack_tq1_0, NULL, s16_wide, f32_wide, matvec_wide, NULL, matvec4_wide, NULL)
KERNELS[18] = Kernel("TQ2_0", 35, 256, 66, WIDE_BYTES, 0, False, pack_tq2_0, NULL, s16_wide, f32_wide, matvec_wide, NULL, matvec4_wide, NULL)
KERNELS[19] = Kernel("IQ2_XXS", 16, 256, 66, WIDE_BYTES, 0, False, pack_iq2_xxs, NULL, s16_wide, f32_wide, matvec_wide, NULL, matvec4_wide, NULL)
KERNELS[20] = Kernel("IQ2_XS", 17, 256, 74, SCALED_BYTES, 0, False, pack_iq2_xs, NULL, s16_scaled, f32_scaled, matvec_scaled, NULL, matvec4_scaled, NULL)
KERNELS[21] = Kernel("IQ2_S", 22, 256, 82, SCALED_BYTES, 0, False, pack_iq2_s, NULL, s16_scaled, f32_scaled, matvec_scaled, NULL, matvec4_scaled, NULL)
KERNELS[22] = Kernel("IQ3_XXS", 18, 256, 98, WIDE_BYTES, 0, False, pack_iq3_xxs, NULL, s16_wide, f32_wide, matvec_wide, NULL, matvec4_wide, NULL)
KERNELS[23] = Kernel("IQ3_S", 21, 256, 110, WIDE_BYTES, 0, False, pack_iq3_s, NULL, s16_wide, f32_wide, matvec_wide, NULL, matvec4_wide, NULL)
KERNELS[24] = Kernel("IQ1_S", 19, 256, 50, WIDE_BYTES, 0, False, pack_iq1_s, NULL, s16_wide, f32_wide, matvec_wide, NULL, matvec4_wide, NULL)
KERNELS[25] = Kernel("IQ1_M", 29, 256, 56, SCALED_BYTES, 0, False, pack_iq1_m, NULL, s16_scaled, f32_scaled, matvec_scaled, NULL, matvec4_scaled, NULL)


cdef const Kernel* find_kind(int number) except NULL:
    cdef int i
    for i in range(<int>(sizeof(KERNELS) // sizeof(Kernel))):
        if KERNELS[i].number == number:
            return &KERNELS[i]
    raise ValueError(f"type {number} has no kernel")


cdef int kind_count() noexcept nogil:
    return <int>(sizeof(KERNELS) // sizeof(Kernel))


cdef const Kernel* kind_at(int i) noexcept nogil:
    """Row i of the table."""
    return &KERNELS[i]
