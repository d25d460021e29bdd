# Matrices packed in tiles, inputs rounded per block of 32, and the products of both.
# T: rows of activations (tokens)   K: columns of the matrix (n_in)   N: rows of the matrix (n_out)

from libc.stdint cimport int8_t, int16_t, int32_t, uint8_t

ctypedef void (*unpack_u8_fn)(const uint8_t* tile, int n, uint8_t* q, float* d, float* m) noexcept nogil
ctypedef void (*unpack_s16_fn)(const uint8_t* tile, int n, int16_t* q, float* d, float* m) noexcept nogil
ctypedef void (*unpack_f32_fn)(const uint8_t* tile, int n, float* w) noexcept nogil
ctypedef void (*pack_fn)(const uint8_t* rows, size_t row_bytes, int n_rows, int b, int n_cols, uint8_t* tile) noexcept nogil
ctypedef void (*matvec_fn)(const uint8_t* tile, int nb, int n_cols, const Acts* x, size_t t, float* y) noexcept nogil

cdef struct Kernel:             # one row per quantised type
    const char* name
    int number                  # GGUF's
    int block                   # elements of a block in the file
    int block_bytes
    int tile_bytes
    int depth                   # products of 4 columns that int16 sums hold; 0: 16-bit activations instead
    bint has_min                # w = d * q + m
    pack_fn pack
    unpack_u8_fn unpack_u8
    unpack_s16_fn unpack_s16    # NULL: not an integer type
    unpack_f32_fn unpack_f32
    matvec_fn matvec

cdef enum Precision:            # how activations enter the product
    EXACT = 1                   # f32
    INT8 = 2
    INT16 = 4

cdef struct Packed:
    const Kernel* kernel
    uint8_t* tiles
    int n_rows
    int n_cols
    int n_tiles                 # ceil(n_rows / 16)
    int n_blocks                # ceil(n_cols / 32)
    int precision               # what this matrix wants of its inputs when nothing else is asked for

cdef struct Acts:               # T rows of inputs; only the wanted forms are there
    int n_rows
    int n_cols
    int n_blocks
    const float* f32            # (T, ld)
    size_t ld
    int8_t* q8                  # (T, 32 n_blocks), scale (T, n_blocks), sum = scale * sum of the codes
    float* scale8
    float* sum8
    int16_t* q16
    float* scale16
    float* sum16

cdef int precision_of(const Packed* w, int wish) noexcept nogil
cdef size_t acts_bytes(int n_rows, int n_cols, int precisions) noexcept nogil
cdef void acts_place(Acts* x, int n_rows, int n_cols, int precisions, uint8_t* memory) noexcept nogil
cdef void acts_quantize(Acts* x, int lo, int hi, int block_lo, int block_hi) noexcept nogil
cdef void matmul_tiles(const Packed* w, const Acts* x, int precision, float* y, size_t ldy, int lo, int hi) noexcept nogil
cdef void matmul_backward_tiles(const Packed* w, const float* dy, size_t ldy, const int16_t* dyq, const float* dys, int n_tokens, float* dx, size_t ldx, int lo, int hi) noexcept nogil
cdef void quantize_gradient(const float* dy, size_t ldy, int n_rows, int lo, int hi, int16_t* q, float* scale) noexcept nogil
cdef void panel_add(const float* p, size_t ps, int n, const float* x, size_t xs, int rows, float* y, size_t ys) noexcept nogil
cdef size_t padded(size_t n, size_t to) noexcept nogil

cdef class Arena:
    cdef uint8_t* memory
    cdef size_t size
    cdef size_t used
    cdef uint8_t* take(self, size_t n_bytes) except NULL

cdef class PackedMatrix:
    cdef Packed w
    cdef Arena arena
