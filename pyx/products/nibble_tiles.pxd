# Tiles of 4- and 5-bit codes ("nibbles"): packing, unpacking to panels, products of few tokens with 8-bit inputs whose
# blocks have a step of their own. Layout: tiles.pxd. What a type makes of these functions: weight_types.pyx.tp.

from libc.stdint cimport int8_t, int16_t, uint8_t, uint16_t, uint32_t
from libc.string cimport memcpy, memset

from .inputs cimport Acts, U8_BLOCKS, even_chunk
from ..types.blocks cimport read_codes
from ..types.groups cimport Group, group_fn
from .outliers cimport nibbles_outliers
from ..simd.verbs cimport (
    prefetch_line, vb, vb_load, vb_pair, vb_store, vf, vf_fma, vf_fma1, vf_load, vf_mul, vf_set1, vf_store, vh, vh_dot,
    vh_sum, vh_zero, vi, vi_add, vi_to_f, vw, vw_even, vw_load, vw_odd, vw_store,
)
from .sizes cimport TILE, TILE_ROWS
from .tiles cimport (
    PREFETCH_BYTES, block2, close_block4, half4, prefetch_tile, quad, quad_high, quad_min, quad_scale, unpack_s16_fn,
    write_nibbles,
)


# ======== packing ========

cdef inline void pack_nibbles(const uint8_t* rows, size_t row_bytes, int n_rows, int b, uint8_t* tile, group_fn group,
                              int n_groups, int block_bytes, bint fifth, bint has_min, bint wide) noexcept nogil:
    """Columns 32 b .. of n_rows rows, from blocks of codes or, where scales are wide, by group, whose codes without a minimum
    have signs"""
    cdef uint32_t codes[128]
    cdef float d[16]            # the file's f16 where they are not wide
    cdef float m[16]
    cdef const uint8_t* block
    cdef Group x
    cdef int r, j, size = 64 if wide else 32
    if n_rows < TILE_ROWS:
        memset(codes, 0, sizeof(codes))
        memset(d, 0, sizeof(d))
        memset(m, 0, sizeof(m))
    for r in range(n_rows):
        block = rows + r * row_bytes + <size_t>(b // n_groups) * block_bytes
        if wide:
            group(block, b % n_groups, &x)
            if not has_min:
                for j in range(32):
                    x.q[j] += 16 if fifth else 8
            memcpy(codes + 8 * r, x.q, 32)
            d[r], m[r] = x.d * <float>x.s[0], -x.m[0]
        else:
            read_codes(block, fifth, has_min, codes + 8 * r, <uint16_t*>d + r, <uint16_t*>m + r)
    write_nibbles(tile, codes, fifth)
    tile += 320 if fifth else 256
    memcpy(tile, d, size)
    if has_min:
        memcpy(tile + size, m, size)


# ======== unpacking ========

cdef inline void unpack_nibbles_u8(const uint8_t* tile, int n, uint8_t* q, float* d, float* m,
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


cdef inline void unpack_nibbles_s16(const uint8_t* tile, int n, int16_t* q, float* d, float* m,
                                    bint fifth, int offset, bint has_min, int tile_bytes, bint wide) noexcept nogil:
    """n tiles to codes as pairs [n][16][16 rows][2], d [n][16], m - offset * d [n][16]"""
    cdef int b, g
    cdef uint8_t codes[TILE]
    cdef float scale[16]
    cdef float least[16]
    for b in range(n):
        unpack_nibbles_u8(tile, 1, codes, scale, least, fifth, offset, has_min, tile_bytes, wide)
        for g in range(8):
            vw_store(q + 64 * g, vb_pair(vb_load(codes + 64 * g), 0, 0))
            vw_store(q + 64 * g + 32, vb_pair(vb_load(codes + 64 * g), 1, 0))
        memcpy(d + 16 * b, scale, 64)
        memcpy(m + 16 * b, least, 64)
        tile += tile_bytes
        q += TILE


cdef inline void unpack_nibbles_f32(const uint8_t* tile, int n, float* w, unpack_s16_fn unpack, int tile_bytes) noexcept nogil:
    """n tiles to weights [32 n][16 rows]"""
    cdef int16_t q[TILE]
    cdef float d[16]
    cdef float m[16]
    cdef int _b, p
    cdef vf scale, least
    cdef vw pair
    for _b in range(n):
        unpack(tile, 1, q, d, m)
        scale, least = vf_load(d), vf_load(m)
        for p in range(16):
            pair = vw_load(q + 32 * p)
            vf_store(w + 32 * p, vf_fma(scale, vw_even(pair), least))
            vf_store(w + 32 * p + 16, vf_fma(scale, vw_odd(pair), least))
        tile += tile_bytes
        w += TILE


# ======== products of few tokens ========
# int16 sums: a product is at most 15 * 127 (31 * 127), maddubs adds two, so 8 (4) of them stay within
# 8 * 2 * 1905 = 30480 (4 * 2 * 3937 = 31496) < 32767.

cdef inline vi nibbles_dot(const uint8_t* tile, bint fifth, vb high, const int8_t* a) noexcept nogil:
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


cdef inline void matvec_nibbles(const uint8_t* tile, int nb, const Acts* x, size_t t, float* y,
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
            s = nibbles_dot(tile, fifth, quad_high(tile, fifth), a + 32 * b)
            d = quad_scale(tile, fifth, wide)
            m = quad_min(tile, fifth, wide) if has_min else vf_mul(d, vf_set1(<float>-offset))
            acc = vf_fma(vf_mul(d, vf_set1(scale[b])), vi_to_f(s), acc)
            acc = vf_fma1(m, total[b], acc)
            tile += tile_bytes
            b += 1
        vf_store(y, acc)
        nibbles_outliers(tile - (b - first) * tile_bytes, first, b, x, t, y, fifth, 0, tile_bytes, wide)
        acc = vf_load(y)


cdef inline void matvec4_nibbles(const uint8_t* tile, int nb, const Acts* x, size_t t, float* y, size_t ldy,
                                 bint fifth, int offset, bint has_min, int tile_bytes, bint wide) noexcept nogil:
    """y (4, ldy): matvec_nibbles of the four inputs from t on, a tile being read and widened once for them"""
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
            nibbles_outliers(tile - (b - first) * tile_bytes, first, b, x, t + i, y + i * ldy, fifth, 0, tile_bytes, wide)


# Memory answers two streams sooner than one: a plain loop that reads 500 MB on two threads is 6 % faster with two addresses
# a thread that lie far apart, this product of a large matrix 12 %. Besides, both groups share each broadcast of the input.
# Types with a fifth bit would run out of registers, and those of 8 bits gained nothing.

cdef inline vf closed(const uint8_t* tile, vh h, float scale, float total, vf acc, int offset, bint has_min, bint wide) noexcept nogil:
    """acc + the block's products, with the float operations of matvec_nibbles"""
    cdef vf d = quad_scale(tile, False, wide)
    cdef vf m = quad_min(tile, False, wide) if has_min else vf_mul(d, vf_set1(<float>-offset))
    acc = vf_fma(vf_mul(d, vf_set1(scale)), vi_to_f(vh_sum(h)), acc)
    return vf_fma1(m, total, acc)


cdef inline void matvec2_nibbles(const uint8_t* tile, const uint8_t* other, int nb, const Acts* x, float* y, float* yo,
                                 int offset, bint has_min, int tile_bytes, bint wide) noexcept nogil:
    """y[16], yo[16] = two row groups' products with 8-bit input 0; bit for bit what matvec_nibbles makes of each"""
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
        nibbles_outliers(tile - (b - first) * tile_bytes, first, b, x, 0, y, False, 0, tile_bytes, wide)
        nibbles_outliers(other - (b - first) * tile_bytes, first, b, x, 0, yo, False, 0, tile_bytes, wide)
        acc = vf_load(y)
        acco = vf_load(yo)
