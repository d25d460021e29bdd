# The types whose codes are points of a grid: see iquants.pyx.

from libc.stdint cimport uint8_t

from .groups cimport Group

cdef void group_iq2_xxs(const uint8_t* x, int g, Group* out) noexcept nogil
cdef void group_iq2_xs(const uint8_t* x, int g, Group* out) noexcept nogil
cdef void group_iq2_s(const uint8_t* x, int g, Group* out) noexcept nogil
cdef void group_iq3_xxs(const uint8_t* x, int g, Group* out) noexcept nogil
cdef void group_iq3_s(const uint8_t* x, int g, Group* out) noexcept nogil
cdef void group_iq1_s(const uint8_t* x, int g, Group* out) noexcept nogil
cdef void group_iq1_m(const uint8_t* x, int g, Group* out) noexcept nogil

cdef void dequantize_row_iq2_xxs(const uint8_t* row, int n, float* out) noexcept nogil
cdef void dequantize_row_iq2_xs(const uint8_t* row, int n, float* out) noexcept nogil
cdef void dequantize_row_iq2_s(const uint8_t* row, int n, float* out) noexcept nogil
cdef void dequantize_row_iq3_xxs(const uint8_t* row, int n, float* out) noexcept nogil
cdef void dequantize_row_iq3_s(const uint8_t* row, int n, float* out) noexcept nogil
cdef void dequantize_row_iq1_s(const uint8_t* row, int n, float* out) noexcept nogil
cdef void dequantize_row_iq1_m(const uint8_t* row, int n, float* out) noexcept nogil
