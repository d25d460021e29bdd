# Blocks of 256 (and the 4-bit tables' 32) elements, seen 32 neighbours at a time; the file's bytes stay as they are.

from libc.stdint cimport int8_t, uint8_t, uint16_t, uint32_t
from libc.string cimport memcpy

from ..simd.verbs cimport vf_load_f16, vf_set1, vf_store, vf_store_f16

cdef struct Group:          # w[j] = d * s[j / 16] * q[j] - m[j / 16]: the product of two is exact in f32, each sum rounds once
    int8_t q[32]
    float d
    int s[2]                # at most 8 bits with their sign
    float m[2]

cdef extern from *:
    """
    #include <stdint.h>
    static const int8_t __attribute__((unused)) IQ4_LEVELS[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
    /* E2M1 of the OCP Microscaling Formats specification, doubled; minus zero counts as zero */
    static const int8_t __attribute__((unused)) FP4_LEVELS[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
    """
    const int8_t[16] IQ4_LEVELS
    const int8_t[16] FP4_LEVELS

ctypedef void (*group_fn)(const uint8_t* block, int g, Group* out) noexcept nogil


cdef inline float half_at(const uint8_t* p) noexcept nogil:
    """the f16 at p"""
    cdef uint16_t lanes[16]
    cdef float out[16]
    memcpy(lanes, p, 2)
    vf_store(out, vf_load_f16(lanes))
    return out[0]


cdef inline uint16_t to_f16(float x) noexcept nogil:
    """the bits of x rounded to f16"""
    cdef uint16_t lanes[16]
    vf_store_f16(lanes, vf_set1(x))
    return lanes[0]


cdef inline uint32_t u16_at(const uint8_t* p) noexcept nogil:
    """16 bits at any address: rows of a safetensors file may begin at an odd one"""
    cdef uint16_t h
    memcpy(&h, p, 2)
    return h


cdef inline uint32_t u32_at(const uint8_t* p) noexcept nogil:
    return u16_at(p) | u16_at(p + 2) << 16


cdef inline void one_scale(Group* out, float d, int s) noexcept nogil:
    """No minima, and one factor for all 32 values."""
    out.d = d
    out.s[0], out.s[1] = s, s
    out.m[0], out.m[1] = 0, 0


cdef inline void dequantize_groups(group_fn group, int block_bytes, int n_groups, const uint8_t* row, int n_blocks,
                                   float* out) noexcept nogil:
    """n_blocks blocks of n_groups groups to f32"""
    cdef Group x
    cdef int _b, g, j
    for _b in range(n_blocks):
        for g in range(n_groups):
            group(row, g, &x)
            for j in range(32):
                out[j] = (x.d * <float>x.s[j >> 4]) * <float>x.q[j] - x.m[j >> 4]
            out += 32
        row += block_bytes
