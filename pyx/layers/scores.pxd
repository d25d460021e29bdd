# What becomes of a query's scores: capped, masked to what the query sees, made weights by a softmax.

from libc.math cimport INFINITY
from libc.string cimport memset

from ..simd.verbs cimport (
    vf, vf_add, vf_fnma, vf_hmax, vf_hsum, vf_load, vf_max, vf_mul, vf_set1, vf_store, vf_sub,
)
from .vmath cimport vf_exp, vf_tanh

cdef enum:
    NO_WINDOW = 1 << 30

cdef struct Scoring:            # how a layer's queries meet its keys
    float scale                 # of scores
    float cap                   # scores become cap tanh(score / cap); 0: they stay as they are
    int window                  # positions that a query sees, its own the last of them, or NO_WINDOW
    const float* sinks          # (n_head): a score of no position, which only takes weight; NULL: none


cdef inline int first_seen(const Scoring* how, int position) noexcept nogil:
    """The first position that a query at `position` sees"""
    return max(0, position - how.window + 1)


cdef inline float exp1(float x) noexcept nogil:
    return vf_hmax(vf_exp(vf_set1(x)))


cdef inline float sink_weight(const Scoring* how, int query_head, float peak) noexcept nogil:
    """What a head's sink adds to a sum of exp(score - peak)"""
    return exp1(how.sinks[query_head] - peak) if how.sinks != NULL else 0


cdef inline vf soft_capped(vf x, float cap, float inverse) noexcept nogil:
    """cap * tanh(x / cap)"""
    return vf_mul(vf_set1(cap), vf_tanh(vf_mul(x, vf_set1(inverse))))


cdef inline void soft_cap(float* s, int n, float cap) noexcept nogil:
    """s[n] = cap * tanh(s / cap); s has room up to a multiple of 16"""
    cdef int i
    for i in range(0, n, 16):
        vf_store(s + i, soft_capped(vf_load(s + i), cap, 1 / cap))


cdef inline void soft_cap_slope(const float* s, int n, float cap, float* slope) noexcept nogil:
    """slope[n] = 1 - (s / cap)^2, the derivative at what soft_cap made s; both have room up to a multiple of 16"""
    cdef int i
    cdef vf t
    for i in range(0, n, 16):
        t = vf_mul(vf_load(s + i), vf_set1(1 / cap))
        vf_store(slope + i, vf_fnma(t, t, vf_set1(1)))


cdef inline float softmax_of(float* s, int first, int n, int width, float* peak) noexcept nogil:
    """softmax, below; first: zero is a constant"""
    cdef int i, begin = first // 16 * 16, whole = n // 16 * 16
    cdef vf top = vf_set1(-INFINITY), total = vf_set1(0), e
    memset(s, 0, 4 * begin)
    for i in range(begin, first):
        s[i] = -INFINITY
    for i in range(n, width):
        s[i] = -INFINITY
    for i in range(begin, whole, 16):
        top = vf_max(top, vf_load(s + i))
    if whole < width:
        top = vf_max(top, vf_load(s + whole))
    peak[0] = vf_hmax(top)
    for i in range(begin, whole, 16):
        e = vf_exp(vf_sub(vf_load(s + i), vf_set1(peak[0])))
        vf_store(s + i, e)
        if i < first:
            memset(s + i, 0, 4 * (first - i))
            e = vf_load(s + i)
        total = vf_add(total, e)
    if whole < width:
        vf_store(s + whole, vf_exp(vf_sub(vf_load(s + whole), vf_set1(peak[0]))))
        for i in range(n, width):
            s[i] = 0
        if whole < first:
            memset(s + whole, 0, 4 * (first - whole))
        total = vf_add(total, vf_load(s + whole))
    return vf_hsum(total)


cdef inline float softmax(float* s, int first, int n, int width, float* peak) noexcept nogil:
    """s[first:n] becomes exp(s - peak), the rest of width (a multiple of 16) zero; returns the sum, peak[0] = the largest

    With a NaN in s the sum is NaN, whatever the peak: vf_exp hands it on.
    """
    if first:
        return softmax_of(s, first, n, width, peak)
    return softmax_of(s, 0, n, width, peak)
