# DoRA: with V = W + scale B A a matrix acts as y = g V x + bias, row by row g = m / |V's row|, m trained. Backward the lengths
# |V| are constants (arXiv:2402.09353, section 4.3): dm = (dy V x) / |V|, and with dz = g dy all else is as of y = V x.
#
# Axes as in lowrank.pxd. V exists 32 columns of 16 rows at a time.

from libc.math cimport sqrt
from libc.string cimport memset

from ..products.gemm cimport Packed
from ..products.panels cimport panel_add
from ..simd.verbs cimport vf, vf_add, vf_fma, vf_fma1, vf_load, vf_mul, vf_set1, vf_store
from .lowrank cimport LoraPair


cdef inline void row_lengths(const Packed* w, int rank, float scale, const float* at, int width, const float* b, size_t ldb,
                             int tile, float* lengths) noexcept nogil:
    """lengths[16] = |rows of W + scale B A| of a row tile; at (K, width): A transposed, b (r, 16): the tile's B, a row each ldb"""
    cdef float values[16 * 32]
    cdef float low[16 * 32]
    cdef float part[16]
    cdef double sums[16]
    cdef int block, i, n
    cdef vf v, s
    memset(sums, 0, sizeof(sums))
    for block in range(w.n_blocks):
        n = min(32, w.n_cols - 32 * block)
        w.type.unpack_f32(w.tiles + (<size_t>tile * w.n_blocks + block) * w.type.tile_bytes, 1, values)
        memset(low, 0, sizeof(low))
        panel_add(b, ldb, rank, at + <size_t>32 * block * width, width, n, low, 16)
        s = vf_set1(0)
        for i in range(n):
            v = vf_fma1(vf_load(low + 16 * i), scale, vf_load(values + 16 * i))
            s = vf_fma(v, v, s)
        vf_store(part, s)
        for i in range(16):
            sums[i] += part[i]
    for i in range(16):
        lengths[i] = <float>sqrt(sums[i])


cdef inline void pair_gains(LoraPair* p, const Packed* w, int lo, int hi) noexcept nogil:
    """Refresh length and gain for row tiles lo..hi, from a pair and its transposes. A row that is zero stays so."""
    cdef int tile, i
    for tile in range(lo, hi):
        row_lengths(w, p.rank, p.scale, p.at, p.width, p.bt + 16 * tile, p.ldb, tile, p.length + 16 * tile)
        for i in range(16 * tile, 16 * tile + 16):
            p.gain[i] = p.m[i] / p.length[i] if p.length[i] != 0 else 0


cdef inline void magnify_rows(const LoraPair* p, const float* bias, float* y, size_t ldy, int lo, int hi) noexcept nogil:
    """Rows lo..hi of y = V x become g y + bias; bias: NULL for none"""
    cdef int t, i
    cdef vf v
    for t in range(lo, hi):
        for i in range(0, p.out_p, 16):
            v = vf_mul(vf_load(y + t * ldy + i), vf_load(p.gain + i))
            vf_store(y + t * ldy + i, v if bias == NULL else vf_add(v, vf_load(bias + i)))


cdef inline void magnify_rows_backward(const LoraPair* p, float* dy, size_t ldy, float* y, size_t ldz, int lo, int hi) noexcept nogil:
    """Rows lo..hi of dy become g dy; those of y = V x, dy y: what magnitude_gradient adds up"""
    cdef int t, i
    cdef vf d
    for t in range(lo, hi):
        for i in range(0, p.out_p, 16):
            d = vf_load(dy + t * ldy + i)
            vf_store(y + t * ldz + i, vf_mul(d, vf_load(y + t * ldz + i)))
            vf_store(dy + t * ldy + i, vf_mul(d, vf_load(p.gain + i)))


cdef inline void magnitude_gradient(const LoraPair* p, const float* products, size_t ld, int rows, int lo, int hi) noexcept nogil:
    """gm += the sum of dy y over `rows` tokens / |V|, for row tiles lo..hi"""
    cdef int tile, t, i
    cdef float sums[16]
    cdef vf s
    for tile in range(lo, hi):
        s = vf_set1(0)
        for t in range(rows):
            s = vf_add(s, vf_load(products + t * ld + 16 * tile))
        vf_store(sums, s)
        for i in range(16):
            if p.length[16 * tile + i] != 0:
                p.gm[16 * tile + i] += sums[i] / p.length[16 * tile + i]
