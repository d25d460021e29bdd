# Blocks whose scales are searched for: see kquantize.pyx. `importance` is per column of the row, or NULL.

from libc.stdint cimport uint8_t

cdef void search_row_q2_k(const float* x, const float* importance, int n, uint8_t* row) noexcept nogil
cdef void search_row_q3_k(const float* x, const float* importance, int n, uint8_t* row) noexcept nogil
cdef void search_row_q4_k(const float* x, const float* importance, int n, uint8_t* row) noexcept nogil
cdef void search_row_q5_k(const float* x, const float* importance, int n, uint8_t* row) noexcept nogil
cdef void search_row_q6_k(const float* x, const float* importance, int n, uint8_t* row) noexcept nogil
cdef void search_row_iq4_nl(const float* x, const float* importance, int n, uint8_t* row) noexcept nogil
cdef void search_row_iq4_xs(const float* x, const float* importance, int n, uint8_t* row) noexcept nogil
cdef void search_row_q4_0(const float* x, const float* importance, int n, uint8_t* row) noexcept nogil
cdef void search_row_q4_1(const float* x, const float* importance, int n, uint8_t* row) noexcept nogil
cdef void search_row_q5_0(const float* x, const float* importance, int n, uint8_t* row) noexcept nogil
cdef void search_row_q5_1(const float* x, const float* importance, int n, uint8_t* row) noexcept nogil
