from libc.stdint cimport int16_t, uint8_t

from .inputs cimport OUTLIERS, PART_TOKENS, U8_BLOCKS, Acts

cdef struct Columns:        # the outliers of up to PART_TOKENS tokens in a panel: which columns they multiply, and with what
    int n
    int16_t column[32 * U8_BLOCKS]
    int end[PART_TOKENS]        # token t's entries end here, the next one's begin
    int16_t which[OUTLIERS * U8_BLOCKS * PART_TOKENS]
    float value[OUTLIERS * U8_BLOCKS * PART_TOKENS]

cdef void find_columns(const Acts* x, int b, int n, int t0, int t1, Columns* c) noexcept nogil
cdef void add_columns(const uint8_t* q, const float* d, const Columns* c, int n_tokens, float* w, float* y, size_t ldy) noexcept nogil
cdef void nibbles_outliers(const uint8_t* tile, int b, int end, const Acts* x, size_t t, float* y,
                           bint fifth, int offset, size_t tile_bytes, bint wide) noexcept nogil
