# Products of wide models: 256 inputs share a step, and their 8 blocks are summed as integers.
#
# With a step for every block each block ends in f32: for every 16 results a conversion, a product of scales and a fused
# multiply-add, a fifth of all instructions. Where 8 blocks have one step, a block's int16 sums are multiplied by its weights'
# scale as a whole number and added in int32; f32 comes once a superblock. The scales of a row are counted in units of its own, a
# power of two: 2 ** -11 of its largest scale's power of two, so that an f16 scale within a factor of four of the largest is
# exact and others are off by half a unit, 1/4096 of the largest at most.
#
# So that all products have the same bits, each adds to a result, panel by panel: the minima's share, block after block; units
# times the panel's superblocks, summed from zero; what was set aside.
#
# Sums, codes less the offset being c (|c| <= 8, or 16), inputs a (|a| <= 127), scales s (|s| <= 4096):
#   int16  raised inputs are at most 255: 8 steps of 2 products, 8 * 2 * 8 * 255 = 32640 < 32768 (4 * 2 * 16 * 255 as well)
#          few inputs meet codes without signs: nibble_tiles.pxd's bounds; sums of 4-bit ones begin with -4 times the sum A of the
#          block's inputs, A0 + A1 over the columns of the two int16 lanes: one ends as a sum of (code - 4) a, 16 * 11 * 127 at
#          most, less 4 A1, 4 * 16 * 127 at most: 30480
#   int32  the true sum of a superblock is at most 8 * 32 * 16 * 127 * 4096 = 2130706432 < 2 ** 31; on the way to it the sum may
#          wrap, forwards and back

from libc.stdint cimport int8_t, int16_t, int32_t, uint8_t
from libc.string cimport memset

from .inputs cimport SUPERBLOCK, Acts, superblock_chunk
from .outliers cimport nibbles_outliers
from ..simd.verbs cimport (
    U8_OFFSET, vb, vb_add, vb_minus, vb_store, vf, vf_div, vf_fma, vf_fma1, vf_load, vf_mul, vf_set1, vf_store, vf_to_i,
    vh, vh_dot, vh_mix, vh_start, vh_weigh, vh_zero, vi, vi_dot, vi_load, vi_store, vi_sub, vi_to_f, vi_zero, vw, vw_join,
    vw_store,
)
from .sizes cimport TILE
from .tiles cimport Panel, block2, half4, prefetch_tile, quad, quad_high, quad_min, quad_scale

cdef void find_units(const uint8_t* tile, int nb, size_t tile_bytes, bint fifth, bint wide, float* units) noexcept nogil


cdef inline vw in_units(vf d, vf inverse) noexcept nogil:
    """A block's scales as whole numbers of units, twice each"""
    cdef vi s = vf_to_i(vf_mul(d, inverse))
    return vw_join(s, s)


cdef inline void weigh4(int32_t* acc, vh h0, vh h1, vh h2, vh h3, vw s) noexcept nogil:
    """acc [4 inputs][16] += s * h"""
    vi_store(acc, vh_weigh(vi_load(acc), h0, s))
    vi_store(acc + 16, vh_weigh(vi_load(acc + 16), h1, s))
    vi_store(acc + 32, vh_weigh(vi_load(acc + 32), h2, s))
    vi_store(acc + 48, vh_weigh(vi_load(acc + 48), h3, s))


cdef inline void close_superblock(float* sums, float scale, vi s) noexcept nogil:
    """sums[16] += scale * s"""
    vf_store(sums, vf_fma1(vi_to_f(s), scale, vf_load(sums)))


cdef inline void add_units(float* y, vf units, vf sums) noexcept nogil:
    """y[16] += units * sums"""
    vf_store(y, vf_fma(units, sums, vf_load(y)))


cdef inline vf left_minimum(const uint8_t* tile, vf d, bint fifth, int offset, bint wide) noexcept nogil:
    """What the weights are where codes less the offset are zero"""
    return vf_fma(d, vf_set1(<float>offset), quad_min(tile, fifth, wide))


# ======== many tokens: panels ========

cdef inline vb unpack_step(const uint8_t* tile, bint fifth, vb high, int offset, int g, uint8_t* q) noexcept nogil:
    """Columns 4 g .. 4 g + 3 to q"""
    cdef vb w = vb_minus(quad(tile, fifth, high, g), offset)
    vb_store(q + 64 * g, w)
    return w


cdef inline vb unpack_block(const uint8_t* tile, bint fifth, int offset, uint8_t* q) noexcept nogil:
    """32 columns to q; returns their sums by four: 8 * -16 at least, 8 * 15 at most"""
    cdef vb high = quad_high(tile, fifth), sum = unpack_step(tile, fifth, high, offset, 0, q)
    sum = vb_add(sum, unpack_step(tile, fifth, high, offset, 1, q))
    sum = vb_add(sum, unpack_step(tile, fifth, high, offset, 2, q))
    sum = vb_add(sum, unpack_step(tile, fifth, high, offset, 3, q))
    sum = vb_add(sum, unpack_step(tile, fifth, high, offset, 4, q))
    sum = vb_add(sum, unpack_step(tile, fifth, high, offset, 5, q))
    sum = vb_add(sum, unpack_step(tile, fifth, high, offset, 6, q))
    return vb_add(sum, unpack_step(tile, fifth, high, offset, 7, q))


cdef inline void superblock_unpack(const uint8_t* tile, int n, const float* units, Panel* p,
                                   bint fifth, int offset, bint has_min, int tile_bytes, bint wide) noexcept nogil:
    """n tiles, whole superblocks but for the matrix's last one"""
    cdef uint8_t raised[4]
    cdef int b
    cdef vb sum
    cdef vw s
    cdef vf d, inverse = vf_div(vf_set1(1), vf_load(units))
    cdef vi base = vi_zero()
    memset(raised, U8_OFFSET, 4)
    p.units, p.has_min = units, has_min
    for b in range(n):
        sum, d = unpack_block(tile, fifth, offset, p.q + TILE * b), quad_scale(tile, fifth, wide)
        s = in_units(d, inverse)
        base = vh_weigh(base if b & (SUPERBLOCK - 1) else vi_zero(), vh_mix(vh_zero(), sum, raised), s)
        vi_store(p.base + 16 * (b // SUPERBLOCK), vi_sub(vi_zero(), base))
        vw_store(p.s + 32 * b, s)
        vf_store(p.d + 16 * b, d)
        if has_min:
            vf_store(p.m + 16 * b, left_minimum(tile, d, fifth, offset, wide))
        tile += tile_bytes


# ======== few tokens: straight from the tiles ========

cdef inline vh first_sums(const int16_t* less, bint fifth) noexcept nogil:
    """What a block's int16 sums begin with: the offset of 4-bit codes; that of 5-bit ones would not fit"""
    return vh_zero() if fifth else vh_start(less)


cdef inline vi weigh_less(vi acc, vh h, const int16_t* less, vw s, bint fifth) noexcept nogil:
    """acc + s * (h less the offset); less8 holds half of what 5-bit codes want"""
    acc = vh_weigh(acc, h, s)
    return vi_dot(vi_dot(acc, s, less), s, less) if fifth else acc


cdef inline vi dot(vi acc, const uint8_t* tile, bint fifth, const int8_t* a, const int16_t* less, vw s) noexcept nogil:
    """acc += s * (16 rows' codes less the offset, times 32 values); less: acts' less8 of the block"""
    cdef vb high = quad_high(tile, fifth)
    cdef vh h = vh_dot(first_sums(less, fifth), quad(tile, fifth, high, 0), a)
    h = vh_dot(h, quad(tile, fifth, high, 1), a + 4)
    h = vh_dot(h, quad(tile, fifth, high, 2), a + 8)
    h = vh_dot(h, quad(tile, fifth, high, 3), a + 12)
    if fifth:
        acc, h = vh_weigh(acc, h, s), vh_zero()
    h = vh_dot(h, quad(tile, fifth, high, 4), a + 16)
    h = vh_dot(h, quad(tile, fifth, high, 5), a + 20)
    h = vh_dot(h, quad(tile, fifth, high, 6), a + 24)
    h = vh_dot(h, quad(tile, fifth, high, 7), a + 28)
    return weigh_less(acc, h, less, s, fifth)


cdef inline void superblock_matvec(const uint8_t* tile, const float* units, int nb, const Acts* x, size_t t, float* y,
                                   bint fifth, int offset, bint has_min, int tile_bytes, bint wide) noexcept nogil:
    """y[16] = the row group's product with input t; outliers when a panel would end"""
    cdef const int8_t* a = x.q8 + 32 * t * nb
    cdef const int16_t* less = x.less8 + 2 * t * nb
    cdef const float* scale = x.scale8 + t * nb
    cdef const float* total = x.sum8 + t * nb
    cdef int b = 0, end, first, chunk = superblock_chunk(nb)
    cdef vf d, sums, acc = vf_set1(0), inverse = vf_div(vf_set1(1), vf_load(units))
    cdef vi s
    while b < nb:
        first, sums = b, vf_set1(0)
        while b < min(first + chunk, nb):
            s, end = vi_zero(), min(b + SUPERBLOCK, nb)
            while b < end:
                prefetch_tile(tile)
                d = quad_scale(tile, fifth, wide)
                s = dot(s, tile, fifth, a + 32 * b, less + 2 * b, in_units(d, inverse))
                if has_min:
                    acc = vf_fma1(left_minimum(tile, d, fifth, offset, wide), total[b], acc)
                tile += tile_bytes
                b += 1
            sums = vf_fma1(vi_to_f(s), scale[b - 1], sums)
        vf_store(y, vf_fma(vf_load(units), sums, acc))
        nibbles_outliers(tile - (b - first) * tile_bytes, first, b, x, t, y, fifth, offset, tile_bytes, wide)
        acc = vf_load(y)


cdef inline void superblock_matvec2(const uint8_t* tile, const uint8_t* other, const float* units, const float* others, int nb, const Acts* x,
                                    float* y, float* yo, int offset, bint has_min, int tile_bytes, bint wide) noexcept nogil:
    """y[16], yo[16] = two row groups' products with input 0, see nibble_tiles.pxd; bit for bit what matvec makes of each"""
    cdef float sums[32]
    cdef int b = 0, end, first, chunk = superblock_chunk(nb)
    cdef vh h, ho
    cdef vf d, inverse = vf_div(vf_set1(1), vf_load(units)), inverseo = vf_div(vf_set1(1), vf_load(others))
    cdef vi s, so
    vf_store(y, vf_set1(0))
    vf_store(yo, vf_set1(0))
    while b < nb:
        first = b
        vf_store(sums, vf_set1(0))
        vf_store(sums + 16, vf_set1(0))
        while b < min(first + chunk, nb):
            s, end = vi_zero(), min(b + SUPERBLOCK, nb)
            so = s
            while b < end:
                h = vh_start(x.less8 + 2 * b)
                ho = h
                block2(tile, other, x.q8 + 32 * b, &h, &ho)
                d = quad_scale(tile, False, wide)
                s = vh_weigh(s, h, in_units(d, inverse))
                if has_min:
                    vf_store(y, vf_fma1(left_minimum(tile, d, False, offset, wide), x.sum8[b], vf_load(y)))
                d = quad_scale(other, False, wide)
                so = vh_weigh(so, ho, in_units(d, inverseo))
                if has_min:
                    vf_store(yo, vf_fma1(left_minimum(other, d, False, offset, wide), x.sum8[b], vf_load(yo)))
                tile += tile_bytes
                other += tile_bytes
                b += 1
            close_superblock(sums, x.scale8[b - 1], s)
            close_superblock(sums + 16, x.scale8[b - 1], so)
        add_units(y, vf_load(units), vf_load(sums))
        add_units(yo, vf_load(others), vf_load(sums + 16))
        nibbles_outliers(tile - (b - first) * tile_bytes, first, b, x, 0, y, False, offset, tile_bytes, wide)
        nibbles_outliers(other - (b - first) * tile_bytes, first, b, x, 0, yo, False, offset, tile_bytes, wide)


cdef inline void block4(const uint8_t* tile, bint fifth, const int8_t* a, const int16_t* less, size_t nb, vw s, int32_t* acc) noexcept nogil:
    """acc [4][16] += s * (a tile's codes less the offset, times four inputs' 32 values)"""
    cdef const int8_t* a1 = a + 32 * nb
    cdef const int8_t* a2 = a1 + 32 * nb
    cdef const int8_t* a3 = a2 + 32 * nb
    cdef vb high = quad_high(tile, fifth)
    cdef vh h0 = first_sums(less, fifth), h1 = first_sums(less + 2 * nb, fifth)
    cdef vh h2 = first_sums(less + 4 * nb, fifth), h3 = first_sums(less + 6 * nb, fifth)
    half4(tile, fifth, high, 0, a, a1, a2, a3, &h0, &h1, &h2, &h3)
    if fifth:
        weigh4(acc, h0, h1, h2, h3, s)
        h0 = vh_zero()
        h1, h2, h3 = h0, h0, h0
    half4(tile, fifth, high, 4, a, a1, a2, a3, &h0, &h1, &h2, &h3)
    vi_store(acc, weigh_less(vi_load(acc), h0, less, s, fifth))
    vi_store(acc + 16, weigh_less(vi_load(acc + 16), h1, less + 2 * nb, s, fifth))
    vi_store(acc + 32, weigh_less(vi_load(acc + 32), h2, less + 4 * nb, s, fifth))
    vi_store(acc + 48, weigh_less(vi_load(acc + 48), h3, less + 6 * nb, s, fifth))


cdef inline void superblock_matvec4(const uint8_t* tile, const float* units, int nb, const Acts* x, size_t t, float* y, size_t ldy,
                                    bint fifth, int offset, bint has_min, int tile_bytes, bint wide) noexcept nogil:
    """y (4, ldy): matvec of the four inputs from t on, a tile being read and widened once for them"""
    cdef const float* scale = x.scale8 + t * nb
    cdef const float* total = x.sum8 + t * nb
    cdef int32_t acc[64]
    cdef float sums[64]
    cdef int b = 0, end, first, i, chunk = superblock_chunk(nb)
    cdef vf d, m, inverse = vf_div(vf_set1(1), vf_load(units))
    for i in range(4):
        vf_store(y + i * ldy, vf_set1(0))
    while b < nb:
        first = b
        for i in range(4):
            vf_store(sums + 16 * i, vf_set1(0))
        while b < min(first + chunk, nb):
            for i in range(4):
                vi_store(acc + 16 * i, vi_zero())
            end = min(b + SUPERBLOCK, nb)
            while b < end:
                prefetch_tile(tile)
                d = quad_scale(tile, fifth, wide)
                block4(tile, fifth, x.q8 + 32 * (t * nb + b), x.less8 + 2 * (t * nb + b), nb, in_units(d, inverse), acc)
                if has_min:
                    m = left_minimum(tile, d, fifth, offset, wide)
                    for i in range(4):
                        vf_store(y + i * ldy, vf_fma1(m, total[i * nb + b], vf_load(y + i * ldy)))
                tile += tile_bytes
                b += 1
            for i in range(4):
                close_superblock(sums + 16 * i, scale[i * nb + b - 1], vi_load(acc + 16 * i))
        for i in range(4):
            add_units(y + i * ldy, vf_load(units), vf_load(sums + 16 * i))
            nibbles_outliers(tile - (b - first) * tile_bytes, first, b, x, t + i, y + i * ldy, fifth, offset, tile_bytes, wide)
