"""A linear layer: y = W x + bias + sum of the adapters' scale * B (A x), from packed W.

An adapter with magnitudes, V = W + scale B A and y = (m / |V|) V x row by row, is held as g B in B's place and a stretch
g - 1 of W x, g = m / |V|. All of it is times the user's scale, so that at 0 the adapter is off, and several add up. That scale
stands in u behind the pair's low-rank inputs.
"""

from libc.string cimport memset

from ..products.gemm cimport matmul_tiles, precision_of
from ..products.panels cimport panel_add
from ..simd.verbs cimport vf, vf_add, vf_fma1, vf_load, vf_mul, vf_set1, vf_store


cdef int linear_precisions(const Linear* first, int n, int wish) noexcept nogil:
    """The forms of inputs that n linears need, as a set of bits."""
    cdef int i, bits = 0
    for i in range(n):
        bits |= precision_of(&first[i].w, wish)
    return bits


cdef void low_rank_input(const Linear* first, int n_linear, int n_lora, const Acts* x, const float* scales, float* u, size_t ldu, int thread, int of) noexcept nogil:
    """u = scale * A x for every adapter of n linears sharing x, one after the other in u's rows (T, ldu).

    scales: (T, n_lora) per token, or NULL. The work is dealt to threads in slices of 16 columns of u.
    """
    cdef int i, j, c, t, slice_ = 0
    cdef const Lora* lora
    cdef float factor
    for i in range(n_linear):
        for j in range(n_lora):
            lora = first[i].loras + j
            for c in range(0, lora.width, 16):
                if slice_ % of == thread:
                    for t in range(x.n_rows):
                        memset(u + t * ldu + c, 0, 64)
                    panel_add(lora.a + c, lora.width, x.n_cols, x.f32, x.ld, x.n_rows, u + c, ldu)
                    for t in range(x.n_rows):
                        factor = lora.scale * (scales[t * n_lora + j] if scales != NULL else 1)
                        vf_store(u + t * ldu + c, vf_mul(vf_load(u + t * ldu + c), vf_set1(factor)))
                        if lora.stretch != NULL and c <= lora.rank < c + 16:
                            u[t * ldu + lora.rank] = lora.user * (scales[t * n_lora + j] if scales != NULL else 1)
                slice_ += 1
            u += lora.width


cdef inline void stretch_tiles(const Linear* l, int n_lora, int n_rows, const float* u, size_t ldu, float* y, size_t ldy, int lo, int hi) noexcept nogil:
    """y times 1 + the sum of the adapters' stretches times their users' scales, for row tiles lo..hi"""
    cdef int j, t, tile
    cdef size_t at = 0
    cdef vf factor
    cdef bint any_ = False
    for j in range(n_lora):
        any_ = any_ or l.loras[j].stretch != NULL
    for t in range(n_rows if any_ else 0):
        for tile in range(lo, hi):
            factor, at = vf_set1(1), t * ldu
            for j in range(n_lora):
                if l.loras[j].stretch != NULL:
                    factor = vf_fma1(vf_load(l.loras[j].stretch + 16 * tile), u[at + l.loras[j].rank], factor)
                at += l.loras[j].width
            vf_store(y + t * ldy + 16 * tile, vf_mul(vf_load(y + t * ldy + 16 * tile), factor))


cdef void linear_tiles(const Linear* l, int n_lora, const Acts* x, int precision, const float* u, size_t ldu, float* y, size_t ldy, int lo, int hi) noexcept nogil:
    """y = W x + bias + sum of the adapters' B u, for row tiles lo..hi; u: this linear's part of low_rank_input."""
    cdef int j, t, tile
    cdef const Lora* lora
    matmul_tiles(&l.w, x, precision, y, ldy, lo, hi)
    stretch_tiles(l, n_lora, x.n_rows, u, ldu, y, ldy, lo, hi)
    if l.bias != NULL:
        for t in range(x.n_rows):
            for tile in range(lo, hi):
                vf_store(y + t * ldy + 16 * tile, vf_add(vf_load(y + t * ldy + 16 * tile), vf_load(l.bias + 16 * tile)))
    for j in range(n_lora):
        lora = l.loras + j
        if lora.width:
            for tile in range(lo, hi):
                panel_add(lora.b + <size_t>tile * lora.rank * 16, 16, lora.rank, u, ldu, x.n_rows, y + 16 * tile, ldy)
        u += lora.width
