from libc.stdint cimport int16_t, int32_t, uint8_t

from .inputs cimport PANEL_SPANS, U8_BLOCKS, Acts

cdef struct SpanPanel:      # a row group's blocks, unpacked for span_tokens
    uint8_t q[512 * U8_BLOCKS]              # codes less the offset, with signs: [block][8 steps][16 rows][4 columns]
    int16_t s[32 * U8_BLOCKS]               # [block][16 rows][2]: d as a whole number of units, twice
    int32_t base[16 * PANEL_SPANS]          # [span][16 rows]: what the inputs' U8_OFFSET adds, taken off beforehand
    float d[16 * U8_BLOCKS]                 # [block][16 rows]
    float m[16 * U8_BLOCKS]                 # the minimum that the offset leaves, where the type has one

ctypedef void (*span_unpack_fn)(const uint8_t* tile, int n, const float* units, SpanPanel* p) noexcept nogil
ctypedef void (*span_matvec_fn)(const uint8_t* tile, const float* units, int nb, const Acts* x, size_t t, float* y) noexcept nogil
ctypedef void (*span_matvec2_fn)(const uint8_t* tile, const uint8_t* other, const float* units, const float* others, int nb, const Acts* x, float* y, float* yo) noexcept nogil
ctypedef void (*span_matvec4_fn)(const uint8_t* tile, const float* units, int nb, const Acts* x, size_t t, float* y, size_t ldy) noexcept nogil

cdef struct SpanKernel:     # one row per type of 4 or 5 bits
    int number              # GGUF's
    bint fifth
    bint has_min
    bint wide               # scales are f32
    span_unpack_fn unpack
    span_matvec_fn matvec
    span_matvec2_fn matvec2     # two row groups; NULL: no faster than one after the other
    span_matvec4_fn matvec4

cdef const SpanKernel* span_kernel(int number) noexcept nogil
cdef void find_units(const uint8_t* tile, int nb, size_t tile_bytes, bint fifth, bint wide, float* units) noexcept nogil
