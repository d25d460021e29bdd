# Are a matrix's scales numbers? See finite.pyx.

from libc.stdint cimport uint8_t, uint32_t

cdef struct ScaleField:         # one row per type
    int number                  # GGUF's
    int step                    # bytes from one to the next
    int at                      # byte of the step where four bytes are read
    uint32_t first, second      # bits of those; all set in one of both: no number

cdef const ScaleField* scale_field(int number) noexcept nogil
cdef bint scales_finite(const ScaleField* field, const uint8_t* rows, size_t n_bytes) noexcept nogil
