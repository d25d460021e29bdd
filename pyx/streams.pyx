"""One token's product of two row groups at once, the fastest way to read weights that nothing else limits.

Memory answers two streams sooner than one: a plain loop that reads 500 MB on two threads is 6 % faster with two addresses a
thread that lie far apart, this product of a large matrix 12 %. Besides, both groups share each broadcast of the input.
Types with a fifth bit would run out of registers, and those of 8 bits gained nothing.
"""

from libc.stdint cimport int8_t, uint8_t

from .acts cimport *
from .gemm cimport Packed, matmul_tiles, precision_of
from .kinds cimport quads_outliers
from .simd cimport *
from .tiles cimport *

ctypedef void (*two_groups_fn)(const uint8_t* tile, const uint8_t* other, int nb, const Acts* x, float* y, float* yo) noexcept nogil


cdef inline void step2(const uint8_t* tile, const uint8_t* other, int g, const int8_t* a, vh* h, vh* ho) noexcept nogil:
    """h += columns 4 g .. 4 g + 3 of both"""
    h[0] = vh_dot(h[0], quad(tile, False, vb_load(tile), g), a + 4 * g)
    ho[0] = vh_dot(ho[0], quad(other, False, vb_load(other), g), a + 4 * g)


cdef inline void block2(const uint8_t* tile, const uint8_t* other, const int8_t* a, vh* h, vh* ho) noexcept nogil:
    """h = both tiles' codes times 32 values; int16 holds eight steps of 4-bit codes, see kinds.pyx"""
    h[0] = vh_zero()
    ho[0] = vh_zero()
    step2(tile, other, 0, a, h, ho)
    step2(tile, other, 1, a, h, ho)
    step2(tile, other, 2, a, h, ho)
    step2(tile, other, 3, a, h, ho)
    step2(tile, other, 4, a, h, ho)
    step2(tile, other, 5, a, h, ho)
    step2(tile, other, 6, a, h, ho)
    step2(tile, other, 7, a, h, ho)


cdef inline vf closed(const uint8_t* tile, vh h, float scale, float total, vf acc, int offset, bint has_min, bint wide) noexcept nogil:
    """acc + the block's products, with the float operations of kinds.pyx's matvec_quads"""
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
            prefetch_tile(tile)
            prefetch_tile(other)
            block2(tile, other, a + 32 * b, &h, &ho)
            acc = closed(tile, h, x.scale8[b], x.sum8[b], acc, offset, has_min, wide)
            acco = closed(other, ho, x.scale8[b], x.sum8[b], acco, offset, has_min, wide)
            tile += tile_bytes
            other += tile_bytes
            b += 1
        vf_store(y, acc)
        vf_store(yo, acco)
        quads_outliers(tile - (b - first) * tile_bytes, first, b, x, 0, y, False, tile_bytes, wide)
        quads_outliers(other - (b - first) * tile_bytes, first, b, x, 0, yo, False, tile_bytes, wide)
        acc = vf_load(y)
        acco = vf_load(yo)


cdef void two_q4_0(const uint8_t* tile, const uint8_t* other, int nb, const Acts* x, float* y, float* yo) noexcept nogil:
    two_groups(tile, other, nb, x, y, yo, 8, False, 288, False)

cdef void two_q4_1(const uint8_t* tile, const uint8_t* other, int nb, const Acts* x, float* y, float* yo) noexcept nogil:
    two_groups(tile, other, nb, x, y, yo, 0, True, 320, False)

cdef void two_q4_k(const uint8_t* tile, const uint8_t* other, int nb, const Acts* x, float* y, float* yo) noexcept nogil:
    two_groups(tile, other, nb, x, y, yo, 0, True, 384, True)


cdef struct Row:            # a type by GGUF's number, and its product
    int number
    two_groups_fn product

cdef Row ROWS[3]
ROWS[0] = Row(2, two_q4_0)
ROWS[1] = Row(3, two_q4_1)
ROWS[2] = Row(12, two_q4_k)


cdef two_groups_fn product_of(int number) noexcept nogil:
    cdef int i
    for i in range(<int>(sizeof(ROWS) // sizeof(Row))):
        if ROWS[i].number == number:
            return ROWS[i].product
    return NULL


cdef void product_tiles(const Packed* w, const Acts* x, int precision, float* y, size_t ldy, int lo, int hi) noexcept nogil:
    """matmul_tiles; one token reads the first and the second half of the row groups side by side where the type has a row."""
    cdef two_groups_fn product = product_of(w.kernel.number) if x.n_rows == 1 and precision_of(w, precision) == INT8 else NULL
    cdef size_t row_bytes = <size_t>w.n_blocks * w.kernel.tile_bytes
    cdef int i, half = (hi - lo) // 2 if product != NULL else 0
    for i in range(lo, lo + half):
        product(w.tiles + i * row_bytes, w.tiles + (i + half) * row_bytes, w.n_blocks, x, y + 16 * i, y + 16 * (i + half))
    if lo + 2 * half < hi:
        matmul_tiles(w, x, precision, y, ldy, lo + 2 * half, hi)
