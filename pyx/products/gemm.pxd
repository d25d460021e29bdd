# Matrices packed in tiles and their products.
# T: rows of activations (tokens)   K: columns of the matrix (n_in)   N: rows of the matrix (n_out)

from libc.stdint cimport int16_t, uint8_t

from .inputs cimport Acts
from .weight_types cimport WeightType

cdef struct Packed:
    const WeightType* type
    uint8_t* tiles
    float* units                # (n_tiles, 16) of the rows' scales, see superblocks.pxd; NULL where the type has no such product
    int n_rows
    int n_cols
    int n_tiles                 # ceil(n_rows / 16)
    int n_blocks                # ceil(n_cols / 32)
    int precision               # what this matrix wants of its inputs when nothing else is asked for

cdef int precision_of(const Packed* w, int wish) noexcept nogil
cdef void matmul_tiles(const Packed* w, const Acts* x, int precision, float* y, size_t ldy, int lo, int hi) noexcept nogil
cdef void matmul_backward_tiles(const Packed* w, const float* dy, size_t ldy, const int16_t* dyq, const float* dys, int n_tokens, float* dx, size_t ldx, int lo, int hi) noexcept nogil
cdef size_t unpacking_bytes() noexcept nogil
