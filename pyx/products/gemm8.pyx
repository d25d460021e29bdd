"""Prompts and batches with 8-bit inputs: y = W x from panels of weights, unpacked once for up to 128 tokens.

Two ways to end a block: in f32 where each has a step of its own, in int32 where SUPERBLOCK blocks share one (superblocks.pxd).
"""

from libc.stdint cimport int8_t, int16_t, int32_t, uint8_t

from .inputs cimport SUPERBLOCK, U8_BLOCKS, aligned, even_chunk, superblock_chunk
from .gemm cimport Packed, panel_add
from .weight_types cimport WeightType
from .outliers cimport Columns, add_columns, find_columns
from .panels cimport PART_TOKENS, FourTokens, four_tokens, tile_load, tile_store
from ..simd.verbs cimport (
    vb, vb_load, vf, vf_load, vf_set1, vf_store, vh, vh_mix, vh_sum, vh_zero, vi, vi_add, vi_load, vi_store,
    vi_zero, vw, vw_load,
)
from .superblocks cimport SuperblockPanel
from .sizes cimport TILE
from .tiles cimport add_units, close_block4, close_superblock, step_u8, weigh4

cdef struct Unpacked:       # one thread's: more than a stack may hold
    SuperblockPanel panel
    float columns[32 * U8_BLOCKS * 16]
    Columns found


cdef size_t unpacking_bytes() noexcept nogil:
    """Bytes of an input's `unpacking`, which gemm_u8 wants"""
    return sizeof(Unpacked) + 64


# ======== a step for every block ========

# A block's steps are written out: a loop over them would end in a mispredicted branch, once a block.

cdef inline void half_u8(const uint8_t* q, const int8_t* a0, const int8_t* a1, const int8_t* a2, const int8_t* a3,
                         vh* h0, vh* h1, vh* h2, vh* h3) noexcept nogil:
    """h += the products of 16 columns"""
    step_u8(vb_load(q), a0, a1, a2, a3, h0, h1, h2, h3)
    step_u8(vb_load(q + 64), a0 + 4, a1 + 4, a2 + 4, a3 + 4, h0, h1, h2, h3)
    step_u8(vb_load(q + 128), a0 + 8, a1 + 8, a2 + 8, a3 + 8, h0, h1, h2, h3)
    step_u8(vb_load(q + 192), a0 + 12, a1 + 12, a2 + 12, a3 + 12, h0, h1, h2, h3)


cdef inline void block_u8(const uint8_t* q, const int8_t* a0, const int8_t* a1, const int8_t* a2, const int8_t* a3, bint fifth,
                          vi* s0, vi* s1, vi* s2, vi* s3) noexcept nogil:
    """s = a block's products; int16 sums hold half of one with five bits"""
    cdef vh h0 = vh_zero()
    cdef vh h1 = h0, h2 = h0, h3 = h0
    cdef vi zero = vi_zero()
    half_u8(q, a0, a1, a2, a3, &h0, &h1, &h2, &h3)
    s0[0], s1[0], s2[0], s3[0] = zero, zero, zero, zero
    if fifth:
        s0[0], s1[0], s2[0], s3[0] = vh_sum(h0), vh_sum(h1), vh_sum(h2), vh_sum(h3)
        h0 = vh_zero()
        h1, h2, h3 = h0, h0, h0
    half_u8(q + 256, a0 + 16, a1 + 16, a2 + 16, a3 + 16, &h0, &h1, &h2, &h3)
    s0[0], s1[0] = vi_add(s0[0], vh_sum(h0)), vi_add(s1[0], vh_sum(h1))
    s2[0], s3[0] = vi_add(s2[0], vh_sum(h2)), vi_add(s3[0], vh_sum(h3))


cdef inline void panel_u8(const uint8_t* q, const float* d, const float* m, int nb, const int8_t* a0, size_t lda,
                          const float* scale, const float* total, size_t lds, bint fifth, float* sums) noexcept nogil:
    """sums [4 tokens][16] += the panel's nb blocks"""
    cdef const int8_t* a1 = a0 + lda
    cdef const int8_t* a2 = a1 + lda
    cdef const int8_t* a3 = a2 + lda
    cdef int _b
    cdef vi s0, s1, s2, s3
    cdef vf vd, vm
    for _b in range(nb):
        block_u8(q, a0, a1, a2, a3, fifth, &s0, &s1, &s2, &s3)
        vd, vm = vf_load(d), vf_load(m)
        close_block4(sums, 16, vd, vm, scale, total, lds, s0, s1, s2, s3, True)
        q, d, m, scale, total = q + TILE, d + 16, m + 16, scale + 1, total + 1
        a0, a1, a2, a3 = a0 + 32, a1 + 32, a2 + 32, a3 + 32


cdef inline void tokens_u8(const uint8_t* q, const float* d, const float* m, int b, int n, const Acts* x, int t0, int t1,
                           float* y, size_t ldy, bint fifth) noexcept nogil:
    """Tokens t0..t1 with an unpacked panel of n blocks from block b on"""
    cdef float sums[64]
    cdef FourTokens r
    cdef size_t nb = x.n_blocks, at
    cdef int t = t0, new
    while t < t1:
        new = four_tokens(&r, t, t1)
        at = r.first * nb + b
        tile_load(sums, y + t * ldy, ldy, &r, b == 0)
        panel_u8(q, d, m, n, x.q8 + 32 * at, 32 * nb * r.stride, x.scale8 + at, x.sum8 + at, nb * r.stride, fifth, sums)
        tile_store(sums, y + t * ldy, ldy, &r)
        t += new


cdef void gemm_blocks(const Packed* w, const Acts* x, float* y, size_t ldy, int lo, int hi) noexcept nogil:
    cdef Unpacked* work = <Unpacked*>aligned(x.unpacking)
    cdef uint8_t* q = work.panel.q
    cdef float* d = work.panel.d
    cdef float* m = work.panel.m
    cdef const WeightType* k = w.type
    cdef int t0, t1, b, n, tile
    for t0 in range(0, x.n_rows, 128):
        t1 = min(t0 + PART_TOKENS, x.n_rows)
        b = 0
        while b < w.n_blocks:
            n = min(even_chunk(w.n_blocks, U8_BLOCKS), w.n_blocks - b)
            find_columns(x, b, n, t0, t1, &work.found)
            for tile in range(lo, hi):
                k.unpack_u8(w.tiles + (tile * <size_t>w.n_blocks + b) * k.tile_bytes, n, q, d, m)
                if k.fifth:
                    tokens_u8(q, d, m, b, n, x, t0, t1, y + 16 * tile, ldy, True)
                else:
                    tokens_u8(q, d, m, b, n, x, t0, t1, y + 16 * tile, ldy, False)
                add_columns(q, d, &work.found, t1 - t0, work.columns, y + t0 * ldy + 16 * tile, ldy)
            b += n


# ======== a step for a superblock of blocks ========

cdef inline void mix4(vb w, const uint8_t* a0, const uint8_t* a1, const uint8_t* a2, const uint8_t* a3,
                      vh* h0, vh* h1, vh* h2, vh* h3) noexcept nogil:
    """h += 16 rows' codes of four columns times four inputs' values"""
    h0[0] = vh_mix(h0[0], w, a0)
    h1[0] = vh_mix(h1[0], w, a1)
    h2[0] = vh_mix(h2[0], w, a2)
    h3[0] = vh_mix(h3[0], w, a3)


cdef inline void mixed_half(const uint8_t* q, const uint8_t* a0, const uint8_t* a1, const uint8_t* a2, const uint8_t* a3,
                            vh* h0, vh* h1, vh* h2, vh* h3) noexcept nogil:
    """h += the products of 16 columns"""
    mix4(vb_load(q), a0, a1, a2, a3, h0, h1, h2, h3)
    mix4(vb_load(q + 64), a0 + 4, a1 + 4, a2 + 4, a3 + 4, h0, h1, h2, h3)
    mix4(vb_load(q + 128), a0 + 8, a1 + 8, a2 + 8, a3 + 8, h0, h1, h2, h3)
    mix4(vb_load(q + 192), a0 + 12, a1 + 12, a2 + 12, a3 + 12, h0, h1, h2, h3)


cdef inline void mixed_block(const uint8_t* q, vw s, const uint8_t* a0, const uint8_t* a1, const uint8_t* a2, const uint8_t* a3,
                             bint fifth, int32_t* acc) noexcept nogil:
    """acc [4 tokens][16] += s * a block's products"""
    cdef vh h0 = vh_zero()
    cdef vh h1 = h0, h2 = h0, h3 = h0
    mixed_half(q, a0, a1, a2, a3, &h0, &h1, &h2, &h3)
    if fifth:
        weigh4(acc, h0, h1, h2, h3, s)
        h0 = vh_zero()
        h1, h2, h3 = h0, h0, h0
    mixed_half(q + 256, a0 + 16, a1 + 16, a2 + 16, a3 + 16, &h0, &h1, &h2, &h3)
    weigh4(acc, h0, h1, h2, h3, s)


cdef inline void panel_superblocks(const SuperblockPanel* p, int nb, const uint8_t* a0, size_t lda, const float* scale, size_t lds,
                            bint fifth, float* sums) noexcept nogil:
    """sums [4 tokens][16] = the panel's nb blocks, in units"""
    cdef const uint8_t* a1 = a0 + lda
    cdef const uint8_t* a2 = a1 + lda
    cdef const uint8_t* a3 = a2 + lda
    cdef const uint8_t* q = p.q
    cdef const int16_t* s = p.s
    cdef const int32_t* base = p.base
    cdef int i, _b
    cdef int32_t acc[64]
    for i in range(4):
        vf_store(sums + 16 * i, vf_set1(0))
    while nb > 0:
        for i in range(4):
            vi_store(acc + 16 * i, vi_load(base))
        for _b in range(min(nb, SUPERBLOCK)):
            mixed_block(q, vw_load(s), a0, a1, a2, a3, fifth, acc)
            q, s, a0, a1, a2, a3 = q + TILE, s + 32, a0 + 32, a1 + 32, a2 + 32, a3 + 32
        for i in range(4):
            close_superblock(sums + 16 * i, scale[i * lds], vi_load(acc + 16 * i))
        base, scale, nb = base + 16, scale + SUPERBLOCK, nb - SUPERBLOCK


cdef inline void tokens_superblocks(const SuperblockPanel* p, const float* units, int b, int n, const Acts* x, int t0, int t1,
                             float* y, size_t ldy, bint fifth, bint fresh) noexcept nogil:
    """Tokens t0..t1 with an unpacked panel of n blocks from block b on"""
    cdef float sums[64]
    cdef FourTokens r
    cdef size_t nb = x.n_blocks, at
    cdef int t = t0, new, i
    while t < t1:
        new = four_tokens(&r, t, t1)
        at = r.first * nb + b
        panel_superblocks(p, n, <const uint8_t*>x.q8 + 32 * at, 32 * nb * r.stride, x.scale8 + at, nb * r.stride, fifth, sums)
        for i in range(new):
            add_units(y + (t + i) * ldy, vf_load(units), vf_load(sums + 16 * (r.skip + i)), fresh)
        t += new


cdef void add_minima(const SuperblockPanel* p, int b, int n, const Acts* x, int t0, int t1, float* y, size_t ldy) noexcept nogil:
    """y of tokens t0..t1 += minima times sums of inputs, of n blocks from block b on"""
    cdef int t
    if b == 0:
        for t in range(t0, t1):
            vf_store(y + t * ldy, vf_set1(0))
    panel_add(p.m, 16, n, x.sum8 + t0 * <size_t>x.n_blocks + b, x.n_blocks, t1 - t0, y + t0 * ldy, ldy)


cdef void gemm_superblocks(const Packed* w, const Acts* x, float* y, size_t ldy, int lo, int hi) noexcept nogil:
    """Inputs are raised (inputs.pxd)"""
    cdef Unpacked* work = <Unpacked*>aligned(x.unpacking)
    cdef SuperblockPanel* p = &work.panel
    cdef const WeightType* k = w.type
    cdef const float* units
    cdef float* out
    cdef int t0, t1, b, n, tile
    cdef bint fresh
    for t0 in range(0, x.n_rows, 128):
        t1 = min(t0 + PART_TOKENS, x.n_rows)
        b = 0
        while b < w.n_blocks:
            n = min(superblock_chunk(w.n_blocks), w.n_blocks - b)
            find_columns(x, b, n, t0, t1, &work.found)
            for tile in range(lo, hi):
                units, out, fresh = w.units + 16 * tile, y + 16 * tile, b == 0
                k.unpack_superblock(w.tiles + (tile * <size_t>w.n_blocks + b) * k.tile_bytes, n, units, p)
                if k.has_min:
                    add_minima(p, b, n, x, t0, t1, out, ldy)
                    fresh = False
                if k.fifth:
                    tokens_superblocks(p, units, b, n, x, t0, t1, out, ldy, True, fresh)
                else:
                    tokens_superblocks(p, units, b, n, x, t0, t1, out, ldy, False, fresh)
                add_columns(p.q, p.d, &work.found, t1 - t0, work.columns, out + t0 * ldy, ldy)
            b += n


cdef void gemm_u8(const Packed* w, const Acts* x, float* y, size_t ldy, int lo, int hi) noexcept nogil:
    """y[t][16 lo .. 16 hi) = W x for more than STREAM_TOKENS inputs"""
    if x.superblock > 1:
        gemm_superblocks(w, x, y, ldy, lo, hi)
    else:
        gemm_blocks(w, x, y, ldy, lo, hi)
