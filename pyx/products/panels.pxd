# Four tokens at a time through an unpacked panel of weights: which ones, and their results so far.

from ..simd.verbs cimport vf_load, vf_set1, vf_store

cdef enum:
    PART_TOKENS = 128       # tokens whose inputs stay in L2 while row tiles pass

cdef struct FourTokens:     # four tokens of a panel product; with fewer than four left they begin `skip` tokens earlier
    size_t first            # the first one's index
    size_t stride           # 1; 0 where there are fewer than four in all, and the four are one
    int skip


cdef inline int four_tokens(FourTokens* r, int t, int n) noexcept nogil:
    """Tokens t .. of n; returns how many of them are new: 4 - skip."""
    r.stride = 1 if n >= 4 else 0
    r.skip = max(t + 4 - n, 0) if n >= 4 else 3
    r.first = t - r.skip if n >= 4 else t
    return 4 - r.skip


cdef inline void tile_load(float* sums, const float* y, size_t ldy, const FourTokens* r, bint fresh) noexcept nogil:
    """sums [4][16] = the new tokens' results so far, y being the first of these"""
    cdef int i
    for i in range(4):
        vf_store(sums + 16 * i, vf_set1(0) if fresh or i < r.skip else vf_load(y + (i - r.skip) * ldy))


cdef inline void tile_store(const float* sums, float* y, size_t ldy, const FourTokens* r) noexcept nogil:
    cdef int i
    for i in range(r.skip, 4):
        vf_store(y + (i - r.skip) * ldy, vf_load(sums + 16 * i))
