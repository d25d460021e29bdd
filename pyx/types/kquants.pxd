# The K types, the 4-bit tables and the ternary types: see kquants.pyx.

from libc.stdint cimport int8_t, uint8_t

from .groups cimport Group

cdef void group_q2_k(const uint8_t* x, int g, Group* out) noexcept nogil
cdef void group_q3_k(const uint8_t* x, int g, Group* out) noexcept nogil
cdef void group_q4_k(const uint8_t* x, int g, Group* out) noexcept nogil
cdef void group_q5_k(const uint8_t* x, int g, Group* out) noexcept nogil
cdef void group_q6_k(const uint8_t* x, int g, Group* out) noexcept nogil
cdef void group_q8_k(const uint8_t* x, int g, Group* out) noexcept nogil
cdef void group_iq4_nl(const uint8_t* x, int g, Group* out) noexcept nogil
cdef void group_iq4_xs(const uint8_t* x, int g, Group* out) noexcept nogil
cdef void group_mxfp4(const uint8_t* x, int g, Group* out) noexcept nogil
cdef void group_tq1_0(const uint8_t* x, int g, Group* out) noexcept nogil
cdef void group_tq2_0(const uint8_t* x, int g, Group* out) noexcept nogil

cdef void dequantize_row_q2_k(const uint8_t* row, int n, float* out) noexcept nogil
cdef void dequantize_row_q3_k(const uint8_t* row, int n, float* out) noexcept nogil
cdef void dequantize_row_q4_k(const uint8_t* row, int n, float* out) noexcept nogil
cdef void dequantize_row_q5_k(const uint8_t* row, int n, float* out) noexcept nogil
cdef void dequantize_row_q6_k(const uint8_t* row, int n, float* out) noexcept nogil
cdef void dequantize_row_q8_k(const uint8_t* row, int n, float* out) noexcept nogil
cdef void dequantize_row_iq4_nl(const uint8_t* row, int n, float* out) noexcept nogil
cdef void dequantize_row_iq4_xs(const uint8_t* row, int n, float* out) noexcept nogil
cdef void dequantize_row_mxfp4(const uint8_t* row, int n, float* out) noexcept nogil
cdef void dequantize_row_tq1_0(const uint8_t* row, int n, float* out) noexcept nogil
cdef void dequantize_row_tq2_0(const uint8_t* row, int n, float* out) noexcept nogil

cdef int8_t[16] IQ4_LEVELS
cdef int8_t[16] FP4_LEVELS      # doubled
