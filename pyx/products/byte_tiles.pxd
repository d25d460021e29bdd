# Tiles whose codes take a byte each, "s8", "wide", "scaled" and "halves": types whose codes are 8-bit numbers, or whose
# scales span 16 columns. Layouts: tiles.pxd. What a type makes of these functions: weight_types.pyx.tp.
#
# Inputs are 16-bit integers of at most S16_LIMIT (inputs.pxd); "halves", whose minima span 16 columns too, take f32 ones.

from libc.stdint cimport int8_t, int16_t, uint8_t
from libc.string cimport memcpy, memset

from .inputs cimport Acts
from ..types.groups cimport Group, group_fn
from ..types.sizes cimport Q8_0_BYTES
from ..simd.verbs cimport (
    prefetch, prefetch_line, vf, vf_fma, vf_fma1, vf_load, vf_load_f16, vf_mul, vf_set1, vf_store, vi, vi_dot,
    vi_to_f, vi_zero, vw, vw_even, vw_load_s8, vw_mul, vw_odd, vw_store,
)
from .sizes cimport HALVES_BYTES, S8_BYTES, SCALED_BYTES, TILE, TILE_ROWS, WIDE_BYTES
from .tiles cimport close_block4, pair4

cdef enum:                  # what becomes of a group's scales
    ONE_SCALE               # one for all 32 columns: goes into d
    FOLD                    # Q3_K: into the codes, -s * q: s in -32 .. 31 times q in -4 .. 3, within -128 .. 124
    FOLD_MIN                # Q2_K: into the codes, s * q <= 15 * 3; the minima stay


# ======== packing ========

cdef inline void put_pairs(const int8_t* q, int r, uint8_t* tile) noexcept nogil:
    """Row r's 32 codes"""
    cdef int p
    for p in range(16):
        memcpy(tile + 32 * p + 2 * r, q + 2 * p, 2)


cdef inline void pack_wide(const uint8_t* rows, size_t row_bytes, int n_rows, int b, uint8_t* tile, group_fn group,
                           int n_groups, int block_bytes, int scales) noexcept nogil:
    """Columns 32 b .. of n_rows rows, from blocks of n_groups * 32 elements"""
    cdef float* d = <float*>(tile + TILE)
    cdef Group x
    cdef int r, j
    if n_rows < TILE_ROWS:
        memset(tile, 0, HALVES_BYTES if scales == FOLD_MIN else WIDE_BYTES)
    for r in range(n_rows):
        group(rows + r * row_bytes + <size_t>(b // n_groups) * block_bytes, b % n_groups, &x)
        d[r] = x.d
        if scales == ONE_SCALE:
            d[r] = x.d * <float>x.s[0]
        elif scales == FOLD:
            d[r] = -x.d
            for j in range(32):
                x.q[j] = <int8_t>(-x.s[j >> 4] * x.q[j])
        else:
            for j in range(32):
                x.q[j] = <int8_t>(x.s[j >> 4] * x.q[j])
            d[16 + r], d[32 + r] = -x.m[0], -x.m[1]
        put_pairs(x.q, r, tile)


cdef inline void pack_scaled(const uint8_t* rows, size_t row_bytes, int n_rows, int b, uint8_t* tile, group_fn group,
                             int block_bytes) noexcept nogil:
    """Group b & 7 of n_rows blocks of 256"""
    cdef Group x
    cdef int r
    if n_rows < TILE_ROWS:
        memset(tile, 0, SCALED_BYTES)
    for r in range(n_rows):
        group(rows + r * row_bytes + <size_t>(b >> 3) * block_bytes, b & 7, &x)
        put_pairs(x.q, r, tile)
        memset(tile + TILE + 2 * r, x.s[0], 2)
        memset(tile + TILE + 32 + 2 * r, x.s[1], 2)
        memcpy(tile + TILE + 64 + 4 * r, &x.d, 4)


cdef inline void pack_s8(const uint8_t* rows, size_t rb, int n, int b, uint8_t* tile) noexcept nogil:
    """Q8_0's blocks as they are: f16 d, 32 codes"""
    cdef const uint8_t* x
    cdef int r
    if n < TILE_ROWS:
        memset(tile, 0, S8_BYTES)
    for r in range(n):
        x = rows + r * rb + <size_t>Q8_0_BYTES * b
        put_pairs(<const int8_t*>x + 2, r, tile)
        memcpy(tile + TILE + 2 * r, x, 2)


# ======== unpacking ========
# scaled: |s * code| <= 128 * 32 = 4096 (Q6_K; IQ2: 31 * 43, IQ1_M: 15 * 9): fits int16, and the sum of 32 products with
# inputs of at most S16_LIMIT = 16319 fits int32: 32 * 4096 * 16319 = 2138963968 < 2 ** 31.

cdef inline vw pair_of(const uint8_t* tile, int p, int tile_bytes) noexcept nogil:
    """Columns 2 p and 2 p + 1"""
    cdef vw codes = vw_load_s8(<const int8_t*>tile + 32 * p)
    return vw_mul(codes, vw_load_s8(<const int8_t*>tile + TILE + 32 * (p >> 3))) if tile_bytes == SCALED_BYTES else codes


cdef inline vf pairs_scale(const uint8_t* tile, int tile_bytes) noexcept nogil:
    if tile_bytes == S8_BYTES:
        return vf_load_f16(tile + TILE)
    return vf_load(<const float*>(tile + TILE + (64 if tile_bytes == SCALED_BYTES else 0)))


cdef inline void s16_bytes(const uint8_t* tile, int n, int16_t* q, float* d, int tile_bytes) noexcept nogil:
    """n tiles to pairs [n][16][16 rows][2] and scales [n][16]"""
    cdef int b, p
    for b in range(n):
        for p in range(16):
            vw_store(q + 32 * p, pair_of(tile, p, tile_bytes))
        vf_store(d + 16 * b, pairs_scale(tile, tile_bytes))
        tile += tile_bytes
        q += TILE


cdef inline void f32_bytes(const uint8_t* tile, int n, float* w, int tile_bytes) noexcept nogil:
    """n tiles to weights [32 n][16 rows]"""
    cdef int _b, p
    cdef vf d
    cdef vw pair
    for _b in range(n):
        d = pairs_scale(tile, tile_bytes)
        for p in range(16):
            pair = pair_of(tile, p, tile_bytes)
            vf_store(w + 32 * p, vf_mul(d, vw_even(pair)))
            vf_store(w + 32 * p + 16, vf_mul(d, vw_odd(pair)))
        tile += tile_bytes
        w += TILE


# ======== one token's product, and four tokens' ========

cdef inline void matvec_bytes(const uint8_t* tile, int nb, const Acts* x, size_t t, float* y, int tile_bytes) noexcept nogil:
    """y[16] = the row group's product with 16-bit input t"""
    cdef const int16_t* a = x.q16 + 32 * t * nb
    cdef const float* scale = x.scale16 + t * nb
    cdef int b, p
    cdef vi s
    cdef vf acc = vf_set1(0)
    for b in range(nb):
        s = vi_zero()
        for p in range(16):
            s = vi_dot(s, pair_of(tile, p, tile_bytes), a + 2 * p)
            if p <= tile_bytes // 64:
                prefetch_line(tile + 3 * tile_bytes + 64 * p)
        acc = vf_fma(vf_mul(pairs_scale(tile, tile_bytes), vf_set1(scale[b])), vi_to_f(s), acc)
        tile += tile_bytes
        a += 32
    vf_store(y, acc)


cdef inline void pairs4(const uint8_t* tile, int p, const int16_t* a0, const int16_t* a1, const int16_t* a2, const int16_t* a3,
                        vi* s0, vi* s1, vi* s2, vi* s3, int tile_bytes) noexcept nogil:
    """s += 16 rows' codes of 8 columns from 2 p on times four inputs' values"""
    pair4(pair_of(tile, p, tile_bytes), a0 + 2 * p, a1 + 2 * p, a2 + 2 * p, a3 + 2 * p, s0, s1, s2, s3)
    p += 1
    pair4(pair_of(tile, p, tile_bytes), a0 + 2 * p, a1 + 2 * p, a2 + 2 * p, a3 + 2 * p, s0, s1, s2, s3)
    p += 1
    pair4(pair_of(tile, p, tile_bytes), a0 + 2 * p, a1 + 2 * p, a2 + 2 * p, a3 + 2 * p, s0, s1, s2, s3)
    p += 1
    pair4(pair_of(tile, p, tile_bytes), a0 + 2 * p, a1 + 2 * p, a2 + 2 * p, a3 + 2 * p, s0, s1, s2, s3)


cdef inline void matvec4_bytes(const uint8_t* tile, int nb, const Acts* x, size_t t, float* y, size_t ldy, int tile_bytes) noexcept nogil:
    """y (4, ldy): matvec_bytes of the four inputs from t on"""
    cdef const int16_t* a0 = x.q16 + 32 * t * nb
    cdef const int16_t* a1 = a0 + 32 * nb
    cdef const int16_t* a2 = a1 + 32 * nb
    cdef const int16_t* a3 = a2 + 32 * nb
    cdef const float* scale = x.scale16 + t * nb
    cdef int b, p
    cdef vi s0, s1, s2, s3
    cdef vf d, none = vf_set1(0)
    for p in range(4):
        vf_store(y + p * ldy, none)
    for b in range(nb):
        for p in range(tile_bytes // 64 + 1):
            prefetch(tile + 3 * tile_bytes + 64 * p)
        s0 = vi_zero()
        s1, s2, s3 = s0, s0, s0
        pairs4(tile, 0, a0, a1, a2, a3, &s0, &s1, &s2, &s3, tile_bytes)
        pairs4(tile, 4, a0, a1, a2, a3, &s0, &s1, &s2, &s3, tile_bytes)
        pairs4(tile, 8, a0, a1, a2, a3, &s0, &s1, &s2, &s3, tile_bytes)
        pairs4(tile, 12, a0, a1, a2, a3, &s0, &s1, &s2, &s3, tile_bytes)
        d = pairs_scale(tile, tile_bytes)
        close_block4(y, ldy, d, none, scale + b, NULL, nb, s0, s1, s2, s3, False)
        tile += tile_bytes
        a0, a1, a2, a3 = a0 + 32, a1 + 32, a2 + 32, a3 + 32


# ======== halves: a minimum per 16 columns, f32 inputs ========

cdef inline void f32_halves(const uint8_t* tile, int n, float* w) noexcept nogil:
    cdef int _b, p
    cdef vf d, m
    cdef vw pair
    for _b in range(n):
        d = vf_load(<const float*>(tile + TILE))
        for p in range(16):
            m = vf_load(<const float*>(tile + TILE) + 16 + 16 * (p >> 3))
            pair = vw_load_s8(<const int8_t*>tile + 32 * p)
            vf_store(w + 32 * p, vf_fma(d, vw_even(pair), m))
            vf_store(w + 32 * p + 16, vf_fma(d, vw_odd(pair), m))
        tile += HALVES_BYTES
        w += TILE


cdef inline void matvec_halves(const uint8_t* tile, int nb, const Acts* x, size_t t, float* y) noexcept nogil:
    """y[16] = the row group's product with f32 input t, in the order of the panels' product"""
    cdef const float* a = x.f32 + t * x.ld
    cdef float w[TILE]
    cdef int _b, j
    cdef vf acc = vf_set1(0)
    for _b in range(nb):
        f32_halves(tile, 1, w)
        for j in range(32):
            acc = vf_fma1(vf_load(w + 16 * j), a[j], acc)
        tile += HALVES_BYTES
        a += 32
    vf_store(y, acc)
