# Weights as the kernels read them: tiles of 16 rows x 32 columns, a row group's tiles one after the other.
#
#   nibbles codes [g = 8][32 bytes]: byte 4 r + i holds columns 4 g + i of row r (low nibble) and row r + 8 (high nibble);
#           5-bit types then have [64 bytes] of fifth bits: bit g of byte 4 r + i;   f16 d[16];   f16 m[16] where there is one;
#           Q4_K, Q5_K: f32 d[16], f32 m[16], their two levels of scales multiplied out, which f32 holds exactly;
#           MXFP4: levels + 16 with five bits, f32 d[16]
#   s8      codes [p = 16][16 rows][2] int8: columns 2 p, 2 p + 1;   f16 d[16]
#   wide    codes as s8;   f32 d[16];   Q2_K: f32 m[2 halves][16], d and m for columns 0..15 and 16..31
#   scaled  codes as s8;   int8 s[2 halves][16 rows][2], each twice;   f32 d[16]:  w = d * (s * code)
#   floats  [32 columns][16 rows] f32, f16 or bf16
#
# A weight is d * (code - offset) + m. Rows past the matrix are zero.
#
# For products of many tokens a row group's next blocks are unpacked to a panel, see panels.pxd.

from libc.stdint cimport int8_t, int16_t, int32_t, uint8_t, uint32_t
from libc.string cimport memcpy

from .inputs cimport PANEL_SUPERBLOCKS, U8_BLOCKS
from ..simd.verbs cimport (
    prefetch, prefetch_line, vb, vb_load, vb_nibbles, vb_or_bit, vf, vf_fma, vf_fma1, vf_load, vf_load_f16, vf_mul,
    vf_set1, vf_store, vh, vh_dot, vh_mix, vi, vi_dot, vi_to_f, vw,
)
from .sizes cimport TILE, TILE_ROWS

ctypedef void (*unpack_s16_fn)(const uint8_t* tile, int n, int16_t* q, float* d, float* m) noexcept nogil

cdef struct Panel:          # a row group's blocks, unpacked; what a product does not use is not touched
    # codes of 8 bits [block][8 steps][16 rows][4 columns] or of 16 bits [block][16 steps][16 rows][2 columns], or f32 weights
    # [column][16 rows]
    uint8_t q[TILE * U8_BLOCKS]
    float d[TILE_ROWS * U8_BLOCKS]          # [block][16 rows]
    float m[TILE_ROWS * U8_BLOCKS]          # the weights' value where codes are zero
    # where SUPERBLOCK blocks share a step, see superblocks.pxd:
    int16_t s[2 * TILE_ROWS * U8_BLOCKS]    # [block][16 rows][2]: d as a whole number of units, twice
    int32_t base[TILE_ROWS * PANEL_SUPERBLOCKS]     # [superblock][16 rows]: what the inputs' U8_OFFSET adds, taken off beforehand
    const float* units                      # [16 rows]
    bint has_min                            # m holds something

cdef enum:
    PREFETCH_BYTES = 1536   # how far ahead of their reading products of few tokens ask for memory, bytes


cdef inline vb quad(const uint8_t* tile, bint fifth, vb high, int g) noexcept nogil:
    """Codes of columns 4 g .. 4 g + 3 for the 16 rows (g constant)."""
    cdef vb q = vb_nibbles(tile + 32 * g)
    if fifth:
        q = vb_or_bit(q, high, g, 4)
    return q


cdef inline vb quad_high(const uint8_t* tile, bint fifth) noexcept nogil:
    return vb_load(tile + 256) if fifth else vb_load(tile)


cdef inline vf quad_scale(const uint8_t* tile, bint fifth, bint wide) noexcept nogil:
    tile += 320 if fifth else 256
    return vf_load(<const float*>tile) if wide else vf_load_f16(tile)


cdef inline vf quad_min(const uint8_t* tile, bint fifth, bint wide) noexcept nogil:
    tile += 320 if fifth else 256
    return vf_load(<const float*>tile + 16) if wide else vf_load_f16(tile + 32)


cdef inline void close_block(float* sums, vf d, vf m, float scale, float total, vi s, bint has_min) noexcept nogil:
    """sums[16] += d * scale * s + m * total: how every product of rounded inputs ends a block"""
    cdef vf y = vf_fma(vf_mul(d, vf_set1(scale)), vi_to_f(s), vf_load(sums))
    vf_store(sums, vf_fma1(m, total, y) if has_min else y)


cdef inline void close_block4(float* sums, size_t lds, vf d, vf m, const float* scale, const float* total, size_t nb,
                              vi s0, vi s1, vi s2, vi s3, bint has_min) noexcept nogil:
    """The same for four inputs: sums (4, lds), scale and total (4, nb); total may be NULL where there is no minimum"""
    close_block(sums, d, m, scale[0], total[0] if has_min else 0, s0, has_min)
    close_block(sums + lds, d, m, scale[nb], total[nb] if has_min else 0, s1, has_min)
    close_block(sums + 2 * lds, d, m, scale[2 * nb], total[2 * nb] if has_min else 0, s2, has_min)
    close_block(sums + 3 * lds, d, m, scale[3 * nb], total[3 * nb] if has_min else 0, s3, has_min)


cdef inline void prefetch_tile(const uint8_t* tile) noexcept nogil:
    """Ask for 320 bytes, a tile of 4-bit codes"""
    prefetch(tile + PREFETCH_BYTES)
    prefetch(tile + PREFETCH_BYTES + 64)
    prefetch(tile + PREFETCH_BYTES + 128)
    prefetch(tile + PREFETCH_BYTES + 192)
    prefetch(tile + PREFETCH_BYTES + 256)


cdef inline vh dot4(vh h, vb w, const int8_t* a, bint raised) noexcept nogil:
    """h + 16 rows' codes of four columns times an input's values; raised: codes have signs, inputs U8_OFFSET added"""
    return vh_mix(h, w, <const uint8_t*>a) if raised else vh_dot(h, w, a)


cdef inline void step4(vb w, const int8_t* a0, const int8_t* a1, const int8_t* a2, const int8_t* a3,
                       vh* h0, vh* h1, vh* h2, vh* h3, bint raised) noexcept nogil:
    """The same for four inputs"""
    h0[0] = dot4(h0[0], w, a0, raised)
    h1[0] = dot4(h1[0], w, a1, raised)
    h2[0] = dot4(h2[0], w, a2, raised)
    h3[0] = dot4(h3[0], w, a3, raised)


cdef inline void pair4(vw w, const int16_t* a0, const int16_t* a1, const int16_t* a2, const int16_t* a3,
                       vi* s0, vi* s1, vi* s2, vi* s3) noexcept nogil:
    """s += 16 rows' codes of two columns times four inputs' 16-bit values"""
    s0[0] = vi_dot(s0[0], w, a0)
    s1[0] = vi_dot(s1[0], w, a1)
    s2[0] = vi_dot(s2[0], w, a2)
    s3[0] = vi_dot(s3[0], w, a3)


cdef inline void half4(const uint8_t* tile, bint fifth, vb high, int g, const int8_t* a0, const int8_t* a1, const int8_t* a2,
                       const int8_t* a3, vh* h0, vh* h1, vh* h2, vh* h3) noexcept nogil:
    """h += 16 rows' codes of 16 columns from 4 g on times four inputs' values"""
    step4(quad(tile, fifth, high, g), a0 + 4 * g, a1 + 4 * g, a2 + 4 * g, a3 + 4 * g, h0, h1, h2, h3, False)
    g += 1
    step4(quad(tile, fifth, high, g), a0 + 4 * g, a1 + 4 * g, a2 + 4 * g, a3 + 4 * g, h0, h1, h2, h3, False)
    g += 1
    step4(quad(tile, fifth, high, g), a0 + 4 * g, a1 + 4 * g, a2 + 4 * g, a3 + 4 * g, h0, h1, h2, h3, False)
    g += 1
    step4(quad(tile, fifth, high, g), a0 + 4 * g, a1 + 4 * g, a2 + 4 * g, a3 + 4 * g, h0, h1, h2, h3, False)


cdef inline void step2(const uint8_t* tile, const uint8_t* other, int g, const int8_t* a, vh* h, vh* ho) noexcept nogil:
    """h += columns 4 g .. 4 g + 3 of both"""
    h[0] = vh_dot(h[0], quad(tile, False, vb_load(tile), g), a + 4 * g)
    ho[0] = vh_dot(ho[0], quad(other, False, vb_load(other), g), a + 4 * g)


cdef inline void prefetch2(const uint8_t* tile, const uint8_t* other, int at) noexcept nogil:
    prefetch_line(tile + PREFETCH_BYTES + at)
    prefetch_line(other + PREFETCH_BYTES + at)


cdef inline void block2(const uint8_t* tile, const uint8_t* other, const int8_t* a, vh* h, vh* ho) noexcept nogil:
    """h += both tiles' codes times 32 values; int16 holds eight steps of 4-bit codes, see nibble_tiles.pxd

    What is read 1.5 KB later is asked for a line at a time: ten requests at once wait for each other and hold up the loads
    behind them, which makes a token of a large model 3 to 4 % slower.
    """
    prefetch2(tile, other, 0)
    step2(tile, other, 0, a, h, ho)
    step2(tile, other, 1, a, h, ho)
    prefetch2(tile, other, 64)
    step2(tile, other, 2, a, h, ho)
    step2(tile, other, 3, a, h, ho)
    prefetch2(tile, other, 128)
    step2(tile, other, 4, a, h, ho)
    step2(tile, other, 5, a, h, ho)
    prefetch2(tile, other, 192)
    step2(tile, other, 6, a, h, ho)
    prefetch2(tile, other, 256)
    step2(tile, other, 7, a, h, ho)


# ---- packing: 16 rows of blocks to a tile ----

cdef inline void write_nibbles(uint8_t* tile, const uint32_t* codes, bint fifth) noexcept nogil:
    """codes [16 rows][8]: dword g holds the codes of columns 4 g .. 4 g + 3"""
    cdef int r, g
    cdef uint32_t word
    for g in range(8):
        for r in range(8):
            word = (codes[8 * r + g] & 0x0f0f0f0f) | ((codes[8 * r + 64 + g] & 0x0f0f0f0f) << 4)
            memcpy(tile + 32 * g + 4 * r, &word, 4)
    if fifth:
        for r in range(16):
            word = 0
            for g in range(8):
                word |= ((codes[8 * r + g] >> 4) & 0x01010101) << g
            memcpy(tile + 256 + 4 * r, &word, 4)
