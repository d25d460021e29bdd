"""Products of a made-up processor, 8 tokens and 2 row groups at a time, in plain loops: what panels.pxd asks of a table, no more."""

from libc.stdint cimport int8_t, int16_t, int32_t, uint8_t
from libc.string cimport memcpy

from .four_tokens cimport four_tokens
from .inputs cimport Acts
from .panels cimport BackPanel, Gradients, PanelProducts, Tokens, load_sums, next_tokens, store_sums
from .tiles cimport Panel
from ..simd.verbs cimport U8_OFFSET


cdef inline int code8(const uint8_t* q, int b, int r, int c) noexcept nogil:
    return q[512 * b + 64 * (c >> 2) + 4 * r + (c & 3)]


cdef void eight_blocks8(const Panel* panels, int groups, const Acts* x, int b, int n, size_t first, size_t stride, float* sums) noexcept nogil:
    cdef int t, g, r, i, c, s
    cdef size_t at
    cdef float* y = sums
    for t in range(8):
        for g in range(groups):
            for i in range(n):
                at = (first + t * stride) * x.n_blocks + b + i
                for r in range(16):
                    s = 0
                    for c in range(32):
                        s += code8(panels[g].q, i, r, c) * x.q8[32 * at + c]
                    y[r] += panels[g].d[16 * i + r] * x.scale8[at] * <float>s
                    y[r] += panels[g].m[16 * i + r] * x.sum8[at]
            y += 16


cdef inline float counted(const Panel* p, int r, const Acts* x, int n, size_t at) noexcept nogil:
    """Row r's product with n blocks of inputs from `at` on, raised ones, in units"""
    cdef float total = 0
    cdef int32_t s
    cdef int i, j, c
    for i in range(0, n, 8):
        s = 0
        for j in range(i, min(i + 8, n)):
            for c in range(32):
                s += p.s[32 * j + 2 * r] * <int8_t>code8(p.q, j, r, c) * <int8_t>(<uint8_t>x.q8[32 * (at + j) + c] ^ U8_OFFSET)
        total += <float>s * x.scale8[at + i]
    return total


cdef void eight_superblocks8(const Panel* panels, int groups, const Acts* x, int b, int n, size_t first, size_t stride, float* sums) noexcept nogil:
    cdef int t, g, r, i
    cdef size_t at
    cdef float* y = sums
    for t in range(8):
        at = (first + t * stride) * x.n_blocks + b
        for g in range(groups):
            for r in range(16):
                for i in range(n if panels[g].has_min else 0):
                    y[r] += panels[g].m[16 * i + r] * x.sum8[at + i]
                y[r] += panels[g].units[r] * counted(panels + g, r, x, n, at)
            y += 16


cdef inline void one_block16(const Panel* p, int i, const Acts* x, size_t at, bint has_min, float* y) noexcept nogil:
    cdef const int16_t* q = <const int16_t*>p.q + 512 * i
    cdef int r, c
    cdef int32_t s
    for r in range(16):
        s = 0
        for c in range(32):
            s += q[32 * (c >> 1) + 2 * r + (c & 1)] * x.q16[32 * at + c]
        y[r] += p.d[16 * i + r] * x.scale16[at] * <float>s
        if has_min:
            y[r] += p.m[16 * i + r] * x.sum16[at]


cdef void eight_blocks16(const Panel* panels, int groups, const Acts* x, int b, int n, size_t first, size_t stride, float* sums) noexcept nogil:
    cdef int t, g, i
    for t in range(8):
        for g in range(groups):
            for i in range(n):
                one_block16(panels + g, i, x, (first + t * stride) * x.n_blocks + b + i, False, sums + 16 * (t * groups + g))


cdef void eight_blocks16_min(const Panel* panels, int groups, const Acts* x, int b, int n, size_t first, size_t stride, float* sums) noexcept nogil:
    cdef int t, g, i
    for t in range(8):
        for g in range(groups):
            for i in range(n):
                one_block16(panels + g, i, x, (first + t * stride) * x.n_blocks + b + i, True, sums + 16 * (t * groups + g))


cdef void eight_floats(const Panel* panels, int groups, const Acts* x, int b, int n, size_t first, size_t stride, float* sums) noexcept nogil:
    cdef int t, g, r, c
    cdef const float* w
    cdef const float* a
    for t in range(8):
        a = x.f32 + (first + t * stride) * x.ld + 32 * b
        for g in range(groups):
            w = <const float*>panels[g].q
            for c in range(min(32 * n, x.n_cols - 32 * b)):
                for r in range(16):
                    sums[16 * (t * groups + g) + r] += w[16 * c + r] * a[c]


cdef void back16(const BackPanel* p, int halves, const Gradients* dy, int group, float* y, size_t ldy) noexcept nogil:
    cdef int t, c, r
    cdef int32_t s
    cdef size_t at
    for t in range(dy.n_tokens):
        at = <size_t>dy.n_tokens * group + t
        for c in range(16 * halves):
            s = 0
            for r in range(128):
                s += p.q[2048 * (c >> 4) + 32 * (r >> 1) + 2 * (c & 15) + (r & 1)] * dy.q[128 * at + r]
            y[t * ldy + c] += p.scale[c] * dy.scale[at] * <float>s


ctypedef void (*eight_fn)(const Panel* panels, int groups, const Acts* x, int b, int n, size_t first, size_t stride, float* sums) noexcept nogil


cdef inline void in_eights(eight_fn eight, const Panel* panels, int groups, const Acts* x, int b, int n, int t0, int t1, bint fresh, float* y, size_t ldy) noexcept nogil:
    cdef float sums[8 * 2 * 16]
    cdef Tokens r
    cdef int t = t0
    while t < t1:
        r = next_tokens(t, t1, t0, 8)
        load_sums(sums, 8, groups, y + (t - t0) * ldy, ldy, &r, fresh)
        eight(panels, groups, x, b, n, r.first, r.stride, sums)
        store_sums(sums, 8, groups, y + (t - t0) * ldy, ldy, &r)
        t += r.new


cdef void blocks8(const Panel* panels, int groups, const Acts* x, int b, int n, int t0, int t1, bint fresh, float* y, size_t ldy) noexcept nogil:
    in_eights(eight_blocks8, panels, groups, x, b, n, t0, t1, fresh, y, ldy)


cdef void superblocks8(const Panel* panels, int groups, const Acts* x, int b, int n, int t0, int t1, bint fresh, float* y, size_t ldy) noexcept nogil:
    in_eights(eight_superblocks8, panels, groups, x, b, n, t0, t1, fresh, y, ldy)


cdef void blocks16(const Panel* panels, int groups, const Acts* x, int b, int n, int t0, int t1, bint fresh, float* y, size_t ldy) noexcept nogil:
    in_eights(eight_blocks16, panels, groups, x, b, n, t0, t1, fresh, y, ldy)


cdef void blocks16_min(const Panel* panels, int groups, const Acts* x, int b, int n, int t0, int t1, bint fresh, float* y, size_t ldy) noexcept nogil:
    in_eights(eight_blocks16_min, panels, groups, x, b, n, t0, t1, fresh, y, ldy)


cdef void floats(const Panel* panels, int groups, const Acts* x, int b, int n, int t0, int t1, bint fresh, float* y, size_t ldy) noexcept nogil:
    in_eights(eight_floats, panels, groups, x, b, n, t0, t1, fresh, y, ldy)


cdef PanelProducts EIGHT


cdef const PanelProducts* eight_tokens() noexcept nogil:
    """What four tokens' products unpack and round is right for these, too"""
    cdef int i
    memcpy(&EIGHT, four_tokens(), sizeof(EIGHT))
    EIGHT.blocks8[0].multiply = EIGHT.blocks8[1].multiply = blocks8
    EIGHT.superblocks8[0].multiply = EIGHT.superblocks8[1].multiply = superblocks8
    EIGHT.blocks16[0].multiply, EIGHT.blocks16[1].multiply = blocks16, blocks16_min
    EIGHT.floats.multiply, EIGHT.back16.multiply = floats, back16
    for i in range(2):
        EIGHT.blocks8[i].groups = EIGHT.superblocks8[i].groups = EIGHT.blocks16[i].groups = 2
    EIGHT.floats.groups = 2
    return &EIGHT
