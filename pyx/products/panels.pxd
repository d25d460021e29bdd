# Products of many tokens: panels of weights, unpacked once for up to PART_TOKENS tokens, times some tokens at a time.
#
# How a processor multiplies a panel is a row of function pointers; the walk over blocks and row groups (gemm.pyx) calls them
# once a panel, for all its tokens. panels.pyx chooses the table; four_tokens.pyx is the one that every instruction set has.
# Another may take other tokens or several row groups at a time, unpack to what its instructions want and end with the same
# sums: integers are exact in any order, each block's (superblock's) f32 operations are as four_tokens.pyx's.

from libc.stdint cimport int16_t, uint8_t

from .inputs cimport BACK_ROWS, Acts
from ..simd.verbs cimport vf_load, vf_set1, vf_store
from .tiles cimport Panel
from .weight_types cimport WeightType

cdef enum:
    MOST_GROUPS = 2         # row groups that a product may take at a time

# one row group's blocks: n tiles
ctypedef void (*unpack_fn)(const WeightType* k, const uint8_t* tiles, int n, const float* units, Panel* panel) noexcept nogil
# y [tokens][groups][16], rows ldy apart, becomes (fresh) or += panels of n blocks from block b on times inputs t0 to t1; y is t0's
ctypedef void (*multiply_fn)(const Panel* panels, int groups, const Acts* x, int b, int n, int t0, int t1, bint fresh, float* y, size_t ldy) noexcept nogil
ctypedef void (*panel_add_fn)(const float* p, size_t ps, int n, const float* x, size_t xs, int rows, float* y, size_t ys) noexcept nogil

cdef struct Product:            # y = W x for one form of inputs
    int groups                  # row groups at a time; at the end `multiply` may get fewer
    int blocks                  # of a panel, at most
    int whole                   # ... in multiples of this
    unpack_fn unpack
    multiply_fn multiply

cdef struct Gradients:          # dy (T, N): f32, or quantize_gradient's integers
    const float* f32
    size_t ld
    const int16_t* q
    const float* scale
    int n_tokens

cdef struct BackPanel:          # BACK_ROWS rows x 32 columns of W
    float w[BACK_ROWS * 32]             # [rows][32 columns]
    int16_t q[BACK_ROWS * 32]           # [2 halves of the columns][row / 2][16 columns][2 rows], rounded to scale
    float scale[32]
    int rows                            # there are; w holds whole tiles, q zeros behind them

ctypedef void (*round_fn)(BackPanel* panel) noexcept nogil
# y [tokens][halves][16], rows ldy apart, += W^T of rows `group` BACK_ROWS .. times all tokens' dy
ctypedef void (*multiply_back_fn)(const BackPanel* panel, int halves, const Gradients* dy, int group, float* y, size_t ldy) noexcept nogil

cdef struct BackProduct:        # dx = W^T dy
    round_fn round              # what becomes of w
    multiply_back_fn multiply

cdef struct PanelProducts:      # one processor's
    Product blocks8[2]          # 8-bit inputs, a step for each block: codes of four, of five bits
    Product superblocks8[2]     # the same with a step for SUPERBLOCK blocks
    Product blocks16[2]         # 16-bit inputs: without, with a minimum
    Product floats
    BackProduct back16
    BackProduct back_floats
    panel_add_fn add

cdef struct Tokens:             # that a product takes at a time; where too few are left they begin `skip` tokens earlier
    size_t first                # the first one's index
    size_t stride               # 1; 0 where there are too few in all, and they are all the same one
    int skip
    int new                     # how many were not there before: together - skip


cdef inline Tokens next_tokens(int t, int t1, int t0, int together) noexcept nogil:
    """`together` tokens from t on, of t0 to t1"""
    cdef int skip = max(t + together - t1, 0)
    if t1 - t0 < together:
        return Tokens(t, 0, together - 1, 1)
    return Tokens(t - skip, 1, skip, together - skip)


cdef inline void load_sums(float* sums, int together, int groups, const float* y, size_t ldy, const Tokens* r, bint fresh) noexcept nogil:
    """sums [tokens][groups][16] = their results so far, y being the first new one's; fresh: there are none. Skipped ones' are lost."""
    cdef int t, g
    for t in range(together):
        for g in range(groups):
            vf_store(sums + 16 * (t * groups + g), vf_set1(0) if fresh or t < r.skip else vf_load(y + (t - r.skip) * ldy + 16 * g))


cdef inline void store_sums(const float* sums, int together, int groups, float* y, size_t ldy, const Tokens* r) noexcept nogil:
    cdef int t, g
    for t in range(r.skip, together):
        for g in range(groups):
            vf_store(y + (t - r.skip) * ldy + 16 * g, vf_load(sums + 16 * (t * groups + g)))


cdef const PanelProducts* panel_products() noexcept nogil
cdef void panel_add(const float* p, size_t ps, int n, const float* x, size_t xs, int rows, float* y, size_t ys) noexcept nogil
