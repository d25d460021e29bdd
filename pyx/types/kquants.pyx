"""The K types, the 4-bit tables (IQ4, MXFP4) and the ternary types: 32 neighbours of a block.

One section per type: where the block keeps what, and the group g (elements 32 g .. 32 g + 31) as codes and scales.
"Runs of n": n bytes hold the lowest bits of n neighbours, the next bits up belong to the n elements after those.
(Source of the layouts: ggml-common.h and gguf.quants, with which the tests compare bit for bit.)
"""

from libc.math cimport ldexpf
from libc.stdint cimport int8_t, uint8_t
from libc.string cimport memcpy

from .groups cimport FP4_LEVELS, Group, IQ4_LEVELS, half_at, one_scale, u16_at


# ---- Q2_K, 84 bytes: w = d s q - dmin m; 16 bytes s (low nibble), m (high) of 16 elements each; 2-bit q in runs of 32;
# f16 d, dmin

cdef void group_q2_k(const uint8_t* x, int g, Group* out) noexcept nogil:
    cdef const uint8_t* q = x + 16 + 32 * (g >> 2)
    cdef float least = half_at(x + 82)
    cdef int j, shift = 2 * (g & 3)
    for j in range(32):
        out.q[j] = (q[j] >> shift) & 3
    out.d = half_at(x + 80)
    for j in range(2):
        out.s[j] = x[2 * g + j] & 15
        out.m[j] = least * <float>(x[2 * g + j] >> 4)


# ---- Q3_K, 110 bytes: w = d (s - 32) (q + 4 h - 4); bits h in runs of 32; 2-bit q in runs of 32; 12 bytes of s for 16
# elements each: low nibbles in a run of 8, upper 2 bits in a run of 4; f16 d

cdef void group_q3_k(const uint8_t* x, int g, Group* out) noexcept nogil:
    cdef const uint8_t* q = x + 32 + 32 * (g >> 2)
    cdef const uint8_t* s = x + 96
    cdef int i, j, shift = 2 * (g & 3)
    for j in range(32):
        out.q[j] = <int8_t>((((q[j] >> shift) & 3) | ((x[j] >> g) & 1) << 2) - 4)
    out.d = half_at(x + 108)
    for j in range(2):
        i = 2 * g + j
        out.s[j] = (((s[i & 7] >> (4 * (i >> 3))) & 15) | ((s[8 + (i & 3)] >> (2 * (i >> 2))) & 3) << 4) - 32
        out.m[j] = 0


# ---- Q4_K, 144 bytes: w = d s q - dmin m; f16 d, dmin; 12 bytes of 6-bit s and m for 32 elements each; nibbles q in
# runs of 32

cdef inline void scale_and_minimum(const uint8_t* x, int g, Group* out) noexcept nogil:
    """d, s, m of group g from f16 d, dmin and 12 bytes: s 0-3 and m 0-3 are the low 6 bits of bytes 0-3 and 4-7, whose top
    bits belong to s 4-7 and m 4-7, low nibbles of which are the low (s) and high (m) nibbles of bytes 8-11"""
    cdef const uint8_t* p = x + 4
    cdef int s, m
    if g < 4:
        s, m = p[g] & 63, p[g + 4] & 63
    else:
        s = (p[g + 4] & 15) | (p[g - 4] >> 6) << 4
        m = (p[g + 4] >> 4) | (p[g] >> 6) << 4
    one_scale(out, half_at(x), s)
    out.m[0] = half_at(x + 2) * <float>m
    out.m[1] = out.m[0]

cdef void group_q4_k(const uint8_t* x, int g, Group* out) noexcept nogil:
    cdef const uint8_t* q = x + 16 + 32 * (g >> 1)
    cdef int j, shift = 4 * (g & 1)
    for j in range(32):
        out.q[j] = (q[j] >> shift) & 15
    scale_and_minimum(x, g, out)


# ---- Q5_K, 176 bytes: Q4_K with fifth bits in runs of 32 before the nibbles

cdef void group_q5_k(const uint8_t* x, int g, Group* out) noexcept nogil:
    cdef const uint8_t* high = x + 16
    cdef const uint8_t* q = x + 48 + 32 * (g >> 1)
    cdef int j, shift = 4 * (g & 1)
    for j in range(32):
        out.q[j] = ((q[j] >> shift) & 15) | ((high[j] >> g) & 1) << 4
    scale_and_minimum(x, g, out)


# ---- Q6_K, 210 bytes: w = d s (q - 32); low nibbles in runs of 64; upper 2 bits in runs of 32; 16 signed bytes s for 16
# elements each; f16 d

cdef void group_q6_k(const uint8_t* x, int g, Group* out) noexcept nogil:
    cdef const uint8_t* low = x + 64 * (g >> 2) + 32 * (g & 1)
    cdef const uint8_t* high = x + 128 + 32 * (g >> 2)
    cdef const int8_t* s = <const int8_t*>x + 192
    cdef int j, shift = 4 * ((g >> 1) & 1), shift_high = 2 * (g & 3)
    for j in range(32):
        out.q[j] = <int8_t>((((low[j] >> shift) & 15) | ((high[j] >> shift_high) & 3) << 4) - 32)
    one_scale(out, half_at(x + 208), s[2 * g])
    out.s[1] = s[2 * g + 1]


# ---- Q8_K, 292 bytes: w = d q; f32 d; 256 signed bytes; sums that nothing here needs

cdef void group_q8_k(const uint8_t* x, int g, Group* out) noexcept nogil:
    cdef float d
    memcpy(&d, x, 4)
    memcpy(out.q, x + 4 + 32 * g, 32)
    one_scale(out, d, 1)


# ---- IQ4_NL, 18 bytes: w = d level[q]; f16 d; nibbles in a run of 16

cdef inline void levels_of(const uint8_t* q, const int8_t* levels, Group* out) noexcept nogil:
    cdef int j
    for j in range(16):
        out.q[j] = levels[q[j] & 15]
        out.q[j + 16] = levels[q[j] >> 4]

cdef void group_iq4_nl(const uint8_t* x, int g, Group* out) noexcept nogil:
    levels_of(x + 2, IQ4_LEVELS, out)
    one_scale(out, half_at(x), 1)


# ---- IQ4_XS, 136 bytes: w = d (s - 32) level[q]; f16 d; upper 2 bits, then low nibbles of 8 scales s; nibbles in runs of 16

cdef void group_iq4_xs(const uint8_t* x, int g, Group* out) noexcept nogil:
    levels_of(x + 8 + 16 * g, IQ4_LEVELS, out)
    one_scale(out, half_at(x), <int>(((x[4 + (g >> 1)] >> (4 * (g & 1))) & 15) | ((u16_at(x + 2) >> (2 * g)) & 3) << 4) - 32)


# ---- MXFP4, 17 bytes: w = 2^(e - 127) fp4[q]; one byte e; nibbles in a run of 16

cdef void group_mxfp4(const uint8_t* x, int g, Group* out) noexcept nogil:
    levels_of(x + 1, FP4_LEVELS, out)
    one_scale(out, ldexpf(1, <int>x[0] - 128), 1)


# ---- TQ1_0, 54 bytes: w = d (digit - 1); digits to base 3, five a byte in a run of 32 and one of 16, four in the last 4
# bytes; f16 d. A byte is ceil(256 / 243 * number): digit i is the upper byte of 3 (byte 3^i mod 256).

cdef void group_tq1_0(const uint8_t* x, int g, Group* out) noexcept nogil:
    cdef int[5] power = [1, 3, 9, 27, 81]
    cdef int j, e, byte
    for j in range(32):
        e = 32 * g + j
        if e < 160:
            byte = x[e & 31] * power[e >> 5]
        elif e < 240:
            byte = x[32 + (e & 15)] * power[(e - 160) >> 4]
        else:
            byte = x[48 + (e & 3)] * power[(e - 240) >> 2]
        out.q[j] = <int8_t>(((byte & 255) * 3 >> 8) - 1)
    one_scale(out, half_at(x + 52), 1)


# ---- TQ2_0, 66 bytes: w = d (q - 1); 2-bit q in runs of 32; f16 d

cdef void group_tq2_0(const uint8_t* x, int g, Group* out) noexcept nogil:
    cdef const uint8_t* q = x + 32 * (g >> 2)
    cdef int j, shift = 2 * (g & 3)
    for j in range(32):
        out.q[j] = <int8_t>(((q[j] >> shift) & 3) - 1)
    one_scale(out, half_at(x + 64), 1)
