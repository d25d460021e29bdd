"""IQ1, IQ2, IQ3: codes are points of a grid, read only. 32 neighbours of a block.

A type's grid is laid out in memory when its first block is read. One section per type, as in kquants.pyx; "points" have
8 coordinates (4 for IQ3), "signs" are 7 bits whose eighth makes the number of minuses even, or whole bytes.
(Source of the layouts: ggml-common.h and gguf.quants.)
"""

from libc.stdint cimport int8_t, uint8_t, uint16_t, uint32_t
from libc.string cimport memcpy

from .groups cimport Group, half_at, one_scale, u16_at, u32_at

from llamacy.kernels.reference.grids import grid

cdef struct Grid:
    bint ready
    int8_t[16384] points

cdef Grid IQ2_XXS, IQ2_XS, IQ2_S, IQ3_XXS, IQ3_S, IQ1_S


cdef void fill(Grid* to, const char* name) noexcept with gil:
    """Lay out the named grid's points; a thread that comes second writes the same again."""
    cdef bytes content = grid(name.decode()).astype("i1").tobytes()
    memcpy(to.points, <const char*>content, len(content))
    to.ready = True


cdef inline const int8_t* points(Grid* of, const char* name) noexcept nogil:
    if not of.ready:
        fill(of, name)
    return of.points


cdef inline void put(const int8_t* point, uint32_t signs, int n, int8_t* q) noexcept nogil:
    """n coordinates, minus where the sign's bit is set"""
    cdef int i
    for i in range(n):
        q[i] = -point[i] if (signs >> i) & 1 else point[i]


cdef inline uint32_t even(uint32_t signs) noexcept nogil:
    """7 bits of signs with the eighth"""
    cdef uint32_t x = signs ^ signs >> 4
    x ^= x >> 2
    return signs | ((x ^ x >> 1) & 1) << 7


# ---- IQ2_XXS, 66 bytes: w = d (2 s + 1) / 8 * point; f16 d; a group: 4 points, u32 of 4 x 7 signs and 4 bits s

cdef void group_iq2_xxs(const uint8_t* x, int g, Group* out) noexcept nogil:
    cdef const int8_t* grid_points = points(&IQ2_XXS, "IQ2_XXS")
    cdef const uint8_t* p = x + 2 + 8 * g
    cdef uint32_t word = u32_at(p + 4)
    cdef int j
    for j in range(4):
        put(grid_points + 8 * p[j], even((word >> (7 * j)) & 127), 8, out.q + 8 * j)
    one_scale(out, half_at(x) / 8, 2 * <int>(word >> 28) + 1)


# ---- IQ2_XS, 74 bytes: w = d (2 s + 1) / 8 * point; f16 d; 32 u16 of 9 bits point, 7 signs; nibbles s for 16 elements each

cdef inline void two_scales(Group* out, float d, int s) noexcept nogil:
    one_scale(out, d, 2 * (s & 15) + 1)
    out.s[1] = 2 * (s >> 4) + 1

cdef void group_iq2_xs(const uint8_t* x, int g, Group* out) noexcept nogil:
    cdef const int8_t* grid_points = points(&IQ2_XS, "IQ2_XS")
    cdef uint32_t word
    cdef int j
    for j in range(4):
        word = u16_at(x + 2 + 8 * g + 2 * j)
        put(grid_points + 8 * (word & 511), even(word >> 9), 8, out.q + 8 * j)
    two_scales(out, half_at(x) / 8, x[66 + g])


# ---- IQ2_S, 82 bytes: w = d (2 s + 1) / 8 * point; f16 d; 32 low bytes of points; 32 bytes of signs; upper 2 bits of
# points; nibbles s for 16 elements each

cdef void group_iq2_s(const uint8_t* x, int g, Group* out) noexcept nogil:
    cdef const int8_t* grid_points = points(&IQ2_S, "IQ2_S")
    cdef int j, k
    for j in range(4):
        k = 4 * g + j
        put(grid_points + 8 * (x[2 + k] | ((x[66 + g] >> (2 * j)) & 3) << 8), x[34 + k], 8, out.q + 8 * j)
    two_scales(out, half_at(x) / 8, x[74 + g])


# ---- IQ3_XXS, 98 bytes: w = d (2 s + 1) / 4 * point; f16 d; 64 points of 4; 8 u32 of 4 x 7 signs and 4 bits s

cdef void group_iq3_xxs(const uint8_t* x, int g, Group* out) noexcept nogil:
    cdef const int8_t* grid_points = points(&IQ3_XXS, "IQ3_XXS")
    cdef const uint8_t* p = x + 2 + 8 * g
    cdef uint32_t word = u32_at(x + 66 + 4 * g), signs
    cdef int j
    for j in range(4):
        signs = even((word >> (7 * j)) & 127)
        put(grid_points + 4 * p[2 * j], signs, 4, out.q + 8 * j)
        put(grid_points + 4 * p[2 * j + 1], signs >> 4, 4, out.q + 8 * j + 4)
    one_scale(out, half_at(x) / 4, 2 * <int>(word >> 28) + 1)


# ---- IQ3_S, 110 bytes: w = d (2 s + 1) point; f16 d; 64 low bytes of points of 4; their ninth bits; signs; nibbles s for
# 32 elements each

cdef void group_iq3_s(const uint8_t* x, int g, Group* out) noexcept nogil:
    cdef const int8_t* grid_points = points(&IQ3_S, "IQ3_S")
    cdef int j
    for j in range(8):
        put(grid_points + 4 * (x[2 + 8 * g + j] | ((x[66 + g] >> j) & 1) << 8), x[74 + 4 * g + (j >> 1)] >> (4 * (j & 1)), 4,
            out.q + 4 * j)
    one_scale(out, half_at(x), 2 * ((x[106 + (g >> 1)] >> (4 * (g & 1))) & 15) + 1)


# ---- IQ1_S, 50 bytes: w = d (2 s + 1) (point +- 1/8); f16 d; 32 low bytes of points; 8 u16 of 4 x 3 upper bits, 3 bits s
# and a bit for minus. Codes are 8 point +- 1.

cdef inline void shifted(const int8_t* point, bint minus, int8_t* q) noexcept nogil:
    cdef int i
    for i in range(8):
        q[i] = 8 * point[i] + (-1 if minus else 1)

cdef void group_iq1_s(const uint8_t* x, int g, Group* out) noexcept nogil:
    cdef const int8_t* grid_points = points(&IQ1_S, "IQ1_S")
    cdef uint32_t word = u16_at(x + 34 + 2 * g)
    cdef int j
    for j in range(4):
        shifted(grid_points + 8 * (x[2 + 4 * g + j] | ((word >> (3 * j)) & 7) << 8), word >> 15, out.q + 8 * j)
    one_scale(out, half_at(x) / 8, 2 * <int>((word >> 12) & 7) + 1)


# ---- IQ1_M, 56 bytes: w = d (2 s + 1) (point +- 1/8); 32 low bytes of points; nibbles of 3 upper bits and a bit for minus;
# 4 u16: 4 x 3 bits s for 16 elements each, and in the top nibble a quarter of the f16 d, lowest first

cdef void group_iq1_m(const uint8_t* x, int g, Group* out) noexcept nogil:
    cdef const int8_t* grid_points = points(&IQ1_S, "IQ1_S")
    cdef uint32_t nibble, word = u16_at(x + 48 + 2 * (g >> 1)) >> (6 * (g & 1))
    cdef uint16_t d = 0
    cdef int j, k
    for j in range(4):
        k = 4 * g + j
        nibble = (x[32 + (k >> 1)] >> (4 * (k & 1))) & 15
        shifted(grid_points + 8 * (x[k] | (nibble & 7) << 8), nibble >> 3, out.q + 8 * j)
        d |= <uint16_t>((u16_at(x + 48 + 2 * j) >> 12) << (4 * j))
    one_scale(out, half_at(<const uint8_t*>&d) / 8, 2 * <int>(word & 7) + 1)
    out.s[1] = 2 * <int>((word >> 3) & 7) + 1
