# Dropout on the input of a LoRA pair: y = W x + B (scale A (x o m)), m = 0 with probability p, else 1 / (1 - p).
#
# m is a function of (key of the call, matrix, token's row, column) alone, computed wherever it is needed: nothing is kept,
# and neither threads nor recomputation change it. Hashing: SplitMix64's output function (Steele, Lea, Flood, 2014).

from libc.stdint cimport uint64_t

from ..products.panels cimport panel_add
from .lowrank cimport LoraPair, scaled_product
from ..simd.verbs cimport vf_add, vf_load, vf_set1, vf_store

cdef enum:
    DROP_ROWS = 4           # rows whose masked inputs exist at a time, as many as panel_add takes together

cdef struct Dropout:
    uint64_t key
    int threshold           # of 65536: columns whose 16 random bits are below it are dropped; 0: no dropout
    float gain              # 1 / (1 - p)


cdef inline uint64_t scramble(uint64_t z) noexcept nogil:
    z = (z ^ (z >> 30)) * <uint64_t>0xbf58476d1ce4e5b9
    z = (z ^ (z >> 27)) * <uint64_t>0x94d049bb133111eb
    return z ^ (z >> 31)


cdef inline void masked(const Dropout* d, int matrix, int row, int tile, const float* x, float* y) noexcept nogil:
    """y[16] = x o m for columns 16 tile .. 16 tile + 16 of a row; y may be x."""
    cdef uint64_t state = scramble(d.key + (<uint64_t>matrix << 40) + (<uint64_t>row << 20) + <uint64_t>tile), bits
    cdef int i, j
    for i in range(0, 16, 4):
        bits = scramble(state + <uint64_t>(i + 1) * <uint64_t>0x9e3779b97f4a7c15)
        for j in range(4):
            y[i + j] = x[i + j] * d.gain if <int>((bits >> (16 * j)) & 0xffff) >= d.threshold else 0


cdef inline size_t dropout_floats(int n_tokens, int widest) noexcept nogil:
    """Floats of scratch that these functions need per thread."""
    return max(16 * <size_t>n_tokens, DROP_ROWS * <size_t>widest)


cdef inline void dropped_input(const LoraPair* p, const Dropout* d, int matrix, int first, const float* x, size_t ldx, int rows, float* u, size_t ldu, float* work) noexcept nogil:
    """u = scale * A (x o m) for `rows` tokens from row `first` of the call on"""
    cdef int r, i, tile, n
    for r in range(0, rows, 4):
        n = min(DROP_ROWS, rows - r)
        for i in range(n):
            for tile in range(p.in_p // 16):
                masked(d, matrix, first + r + i, tile, x + (r + i) * ldx + 16 * tile, work + <size_t>i * p.in_p + 16 * tile)
        scaled_product(p.at, p.width, p.n_in, p.scale, work, p.in_p, n, u + r * ldu, ldu, True, True)


cdef inline void dropped_gradient(const LoraPair* p, const Dropout* d, int matrix, const float* dut, size_t ldt, const float* x, size_t ldx, int n_tokens, int lo, int hi, float* work) noexcept nogil:
    """ga (r, n_in) += du^T (x o m) for column tiles lo..hi"""
    cdef int t, tile
    for tile in range(lo, hi):
        for t in range(n_tokens):
            masked(d, matrix, t, tile, x + t * ldx + 16 * tile, work + 16 * t)
        panel_add(work, 16, n_tokens, dut, ldt, p.rank, p.ga + 16 * tile, p.in_p)


cdef inline void dropped_backward(const LoraPair* p, const Dropout* d, int matrix, const float* du, size_t ldu, int n_tokens, float* dx, size_t ldx, int lo, int hi, float* work) noexcept nogil:
    """dx += m o (A^T du) for column tiles lo..hi"""
    cdef int t, tile
    for tile in range(lo, hi):
        for t in range(n_tokens):
            vf_store(work + 16 * t, vf_set1(0))
        panel_add(p.a + 16 * tile, p.in_p, p.rank, du, ldu, n_tokens, work, 16)
        for t in range(n_tokens):
            masked(d, matrix, t, tile, work + 16 * t, work + 16 * t)
            vf_store(dx + t * ldx + 16 * tile, vf_add(vf_load(dx + t * ldx + 16 * tile), vf_load(work + 16 * t)))
