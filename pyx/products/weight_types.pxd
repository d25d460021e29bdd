from libc.stdint cimport int16_t, uint8_t

from .inputs cimport Acts
from .superblocks cimport SpanKernel

ctypedef void (*unpack_u8_fn)(const uint8_t* tile, int n, uint8_t* q, float* d, float* m) noexcept nogil
ctypedef void (*unpack_s16_fn)(const uint8_t* tile, int n, int16_t* q, float* d, float* m) noexcept nogil
ctypedef void (*unpack_f32_fn)(const uint8_t* tile, int n, float* w) noexcept nogil
ctypedef void (*pack_fn)(const uint8_t* rows, size_t row_bytes, int n_rows, int b, int n_cols, uint8_t* tile) noexcept nogil
ctypedef void (*matvec_fn)(const uint8_t* tile, int nb, int n_cols, const Acts* x, size_t t, float* y) noexcept nogil
ctypedef void (*matvec2_fn)(const uint8_t* tile, const uint8_t* other, int nb, const Acts* x, float* y, float* yo) noexcept nogil
ctypedef void (*matvec4_fn)(const uint8_t* tile, int nb, const Acts* x, size_t t, float* y, size_t ldy) noexcept nogil

cdef struct Kernel:             # one row per quantised type
    const char* name
    int number                  # GGUF's
    int block                   # elements of a block in the file
    int block_bytes
    int tile_bytes
    int depth                   # products of 4 columns that int16 sums hold; 0: 16-bit activations instead
    bint has_min                # unpacked, w = d * q + m (an offset of the codes becomes m)
    pack_fn pack
    unpack_u8_fn unpack_u8
    unpack_s16_fn unpack_s16    # NULL: not an integer type
    unpack_f32_fn unpack_f32
    matvec_fn matvec
    matvec2_fn matvec2          # two row groups, input 0; NULL: no faster than one after the other
    matvec4_fn matvec4          # inputs t .. t + 3 together, y (4, ldy); NULL: only the panels' product
    const SpanKernel* span      # for inputs of which SPAN blocks share a step; NULL: no 8-bit product

cdef const Kernel* find_kind(int number) except NULL
cdef int kind_count() noexcept nogil
cdef const Kernel* kind_at(int i) noexcept nogil
