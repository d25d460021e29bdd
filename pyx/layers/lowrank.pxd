# A trained LoRA pair on one linear layer, y = W x + B u with u = scale * A x, forward and backward. Every product is
# panel_add: 16 columns at a time over whatever lies in rows of them.
#
# Axes: T tokens, K = n_in, N = n_out, r rank, w = r padded to 16.

from ..products.inputs cimport padded
from ..products.panels cimport panel_add
from ..simd.verbs cimport vf_load, vf_mul, vf_set1, vf_store

cdef struct LoraPair:
    int rank                # 0: this matrix is not trained
    int width               # w
    int n_in
    int n_out
    int in_p                # K and N padded to 16
    int out_p
    int part                # of a matrix fused of several, each of which has B's rows for its own outputs: which; A is part 0's
    bint last               # no part follows
    int ldb                 # from row to row of bt: all parts' out_p
    float scale
    float* a                # (r, K)   parameters
    float* bt               # (r, N)   B transposed, a row each ldb
    float* at               # (K, w)   their transposes, made before each step
    float* bn               # (N, w)
    float* ga               # (r, K)   gradients, accumulated
    float* gbt              # (r, N)
    float* m                # (N) trained lengths of rows, see magnitude.pxd; NULL: none, and so all below
    float* gm               # (N) its gradient, accumulated
    float* length           # (N) of W + scale B A's rows, made before each step,
    float* gain             # (N) and m / length


cdef inline void pair_size(LoraPair* p, int rank, float scale, int n_in, int n_out) noexcept nogil:
    p.rank, p.width, p.scale, p.n_in, p.n_out = rank, <int>padded(rank, 16), scale, n_in, n_out
    p.in_p, p.out_p = <int>padded(n_in, 16), <int>padded(n_out, 16)
    p.part, p.last, p.ldb = 0, True, p.out_p


cdef inline int columns_before(const LoraPair* pairs, int slot) noexcept nogil:
    """The column of a layer's joint low-rank inputs where one matrix's begin; pairs: of its first matrix on"""
    cdef int i, at = 0
    for i in range(slot - pairs[slot].part):
        if pairs[i].part == 0:
            at += pairs[i].width
    return at


cdef inline void pair_transpose(LoraPair* p, int lo, int hi) noexcept nogil:
    """Refresh at and bn from a and bt, rows lo..hi of both."""
    cdef int i, j
    for i in range(lo, min(hi, p.n_in) if p.part == 0 else lo):
        for j in range(p.rank):
            p.at[i * p.width + j] = p.a[<size_t>j * p.in_p + i]
    for i in range(lo, min(hi, p.n_out)):
        for j in range(p.rank):
            p.bn[i * p.width + j] = p.bt[<size_t>j * p.ldb + i]


cdef inline void scaled_product(const float* panel, int width, int n, float scale, const float* x, size_t ldx, int rows, float* u, size_t ldu,
                                bint first, bint last) noexcept nogil:
    """u (rows, width) = scale * x (rows, n) panel (n, width); a sum of several, of which this is the first or the last"""
    cdef int t, c
    for c in range(0, width, 16):
        for t in range(rows if first else 0):
            vf_store(u + t * ldu + c, vf_set1(0))
        panel_add(panel + c, width, n, x, ldx, rows, u + c, ldu)
        for t in range(rows if last else 0):
            vf_store(u + t * ldu + c, vf_mul(vf_load(u + t * ldu + c), vf_set1(scale)))


cdef inline void pair_input(const LoraPair* p, const float* x, size_t ldx, int rows, float* u, size_t ldu) noexcept nogil:
    """u = scale * A x"""
    scaled_product(p.at, p.width, p.n_in, p.scale, x, ldx, rows, u, ldu, True, True)


cdef inline void pair_output(const LoraPair* p, const float* u, size_t ldu, int rows, float* y, size_t ldy, int lo, int hi) noexcept nogil:
    """y += B u for row tiles lo..hi"""
    cdef int tile
    for tile in range(lo, hi):
        panel_add(p.bt + 16 * tile, p.ldb, p.rank, u, ldu, rows, y + 16 * tile, ldy)


cdef inline void pair_input_backward(const LoraPair* p, const float* dy, size_t ldy, int rows, float* du, size_t ldu) noexcept nogil:
    """du = scale * B^T dy, the gradient with respect to A x, once the last part has added its own"""
    scaled_product(p.bn, p.width, p.n_out, p.scale, dy, ldy, rows, du, ldu, p.part == 0, p.last)


cdef inline void transpose_rows(const float* u, size_t ldu, int lo, int hi, int rank, float* ut, size_t ldt) noexcept nogil:
    """ut (r, T) from u (T, w), tokens lo..hi"""
    cdef int t, j
    for t in range(lo, hi):
        for j in range(rank):
            ut[j * ldt + t] = u[t * ldu + j]


cdef inline void pair_gradient(const float* left, size_t ldl, int rank, const float* right, size_t ldr, int n_tokens, float* g, size_t ldg, int lo, int hi) noexcept nogil:
    """g (r, n) += left (r, T) right (T, n) for column tiles lo..hi: dA = du^T x, dB^T = u^T dy"""
    cdef int tile, t
    # tokens a few at a time: their columns lie on pages and cache sets of their own
    for t in range(0, n_tokens, 32):
        for tile in range(lo, hi):
            panel_add(right + t * ldr + 16 * tile, ldr, min(32, n_tokens - t), left + t, ldl, rank, g + 16 * tile, ldg)


cdef inline void pair_backward(const LoraPair* p, const float* du, size_t ldu, int rows, float* dx, size_t ldx, int lo, int hi) noexcept nogil:
    """dx += A^T du for column tiles lo..hi"""
    cdef int tile
    for tile in range(lo, hi):
        panel_add(p.a + 16 * tile, p.in_p, p.rank, du, ldu, rows, dx + 16 * tile, ldx)
