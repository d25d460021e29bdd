# Layouts with f32 scales and the types that use them: see scale_tiles.pyx.

from libc.stdint cimport int16_t, uint8_t

from .inputs cimport Acts

cdef enum:                  # bytes of a tile
    PAIRS_BYTES = 544
    WIDE_BYTES = 576
    SCALED_BYTES = 640
    HALVES_BYTES = 704

cdef void pack_q2_k(const uint8_t* rows, size_t rb, int n, int b, int k, uint8_t* tile) noexcept nogil
cdef void pack_q3_k(const uint8_t* rows, size_t rb, int n, int b, int k, uint8_t* tile) noexcept nogil
cdef void pack_q6_k(const uint8_t* rows, size_t rb, int n, int b, int k, uint8_t* tile) noexcept nogil
cdef void pack_iq4_nl(const uint8_t* rows, size_t rb, int n, int b, int k, uint8_t* tile) noexcept nogil
cdef void pack_iq4_xs(const uint8_t* rows, size_t rb, int n, int b, int k, uint8_t* tile) noexcept nogil
cdef void pack_mxfp4(const uint8_t* rows, size_t rb, int n, int b, int k, uint8_t* tile) noexcept nogil
cdef void pack_q8_k(const uint8_t* rows, size_t rb, int n, int b, int k, uint8_t* tile) noexcept nogil
cdef void pack_tq1_0(const uint8_t* rows, size_t rb, int n, int b, int k, uint8_t* tile) noexcept nogil
cdef void pack_tq2_0(const uint8_t* rows, size_t rb, int n, int b, int k, uint8_t* tile) noexcept nogil
cdef void pack_iq2_xxs(const uint8_t* rows, size_t rb, int n, int b, int k, uint8_t* tile) noexcept nogil
cdef void pack_iq2_xs(const uint8_t* rows, size_t rb, int n, int b, int k, uint8_t* tile) noexcept nogil
cdef void pack_iq2_s(const uint8_t* rows, size_t rb, int n, int b, int k, uint8_t* tile) noexcept nogil
cdef void pack_iq3_xxs(const uint8_t* rows, size_t rb, int n, int b, int k, uint8_t* tile) noexcept nogil
cdef void pack_iq3_s(const uint8_t* rows, size_t rb, int n, int b, int k, uint8_t* tile) noexcept nogil
cdef void pack_iq1_s(const uint8_t* rows, size_t rb, int n, int b, int k, uint8_t* tile) noexcept nogil
cdef void pack_iq1_m(const uint8_t* rows, size_t rb, int n, int b, int k, uint8_t* tile) noexcept nogil

cdef void s16_wide(const uint8_t* tile, int n, int16_t* q, float* d, float* m) noexcept nogil
cdef void s16_scaled(const uint8_t* tile, int n, int16_t* q, float* d, float* m) noexcept nogil
cdef void f32_wide(const uint8_t* tile, int n, float* w) noexcept nogil
cdef void f32_scaled(const uint8_t* tile, int n, float* w) noexcept nogil
cdef void f32_halves(const uint8_t* tile, int n, float* w) noexcept nogil
cdef void matvec_wide(const uint8_t* tile, int nb, int n_cols, const Acts* x, size_t t, float* y) noexcept nogil
cdef void matvec_scaled(const uint8_t* tile, int nb, int n_cols, const Acts* x, size_t t, float* y) noexcept nogil
cdef void matvec_q8_0(const uint8_t* tile, int nb, int n_cols, const Acts* x, size_t t, float* y) noexcept nogil
cdef void matvec4_q8_0(const uint8_t* tile, int nb, const Acts* x, size_t t, float* y, size_t ldy) noexcept nogil
cdef void matvec4_wide(const uint8_t* tile, int nb, const Acts* x, size_t t, float* y, size_t ldy) noexcept nogil
cdef void matvec4_scaled(const uint8_t* tile, int nb, const Acts* x, size_t t, float* y, size_t ldy) noexcept nogil
cdef void matvec_halves(const uint8_t* tile, int nb, int n_cols, const Acts* x, size_t t, float* y) noexcept nogil
