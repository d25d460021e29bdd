# T: rows of activations (tokens)   K: columns of the matrix (n_in)   N: rows of the matrix (n_out)

from libc.stdint cimport int8_t, int16_t, uint8_t, uintptr_t

cdef enum Precision:            # how activations enter the product
    EXACT = 1                   # f32
    INT8 = 2
    INT16 = 4

cdef enum:
    BACK_ROWS = 128             # values of dy that share a scale: rows of W summed in int32 before scaling
    W_LIMIT = 2047              # the weights' and the gradients' largest integers there, see quantize_gradient
    G_LIMIT = 8191
    S16_LIMIT = 16319           # 127 * 128 + 63
    U8_BLOCKS = 40              # blocks of 32 columns unpacked at a time, at most: 20 KB of codes, L1

cdef struct Acts:               # T rows of inputs; only the wanted forms are there
    int n_rows
    int n_cols
    int n_blocks
    const float* f32            # (T, ld)
    size_t ld
    int8_t* q8                  # (T, 32 n_blocks), scale (T, n_blocks), sum = scale * sum of the codes
    float* scale8
    float* sum8
    int8_t* low8                # where fine8 (T, n_blocks) is 1, the block is scale * q8 + scale / 128 * low8: 15 bits
    uint8_t* fine8
    float fine_over             # set where a block's largest value is over this many times the usual one
    int16_t* q16                # the same, 15 bits: at most S16_LIMIT
    float* scale16
    float* sum16
    int8_t* high16              # q16 = 128 high + low, for the 8-bit product of one token
    int8_t* low16


cdef inline size_t padded(size_t n, size_t to) noexcept nogil:
    """n rounded up to a multiple of `to`"""
    return (n + to - 1) // to * to


cdef inline uint8_t* aligned(void* p) noexcept nogil:
    """p rounded up to a cache line"""
    return <uint8_t*>((<uintptr_t>p + 63) & ~<uintptr_t>63)


cdef inline int even_chunk(int n_blocks, int most) noexcept nogil:
    """n_blocks in equal chunks of at most `most`: no short last one, whose start-up would weigh more"""
    cdef int chunks = (n_blocks + most - 1) // most
    return (n_blocks + chunks - 1) // chunks


cdef inline float low_factor(float scale) noexcept nogil:
    """What a block's low bits count, its scale being `scale`"""
    return scale * <float>(1.0 / 128)


cdef float fine_over(int n_embd) noexcept nogil
cdef size_t acts_bytes(int n_rows, int n_cols, int precisions) noexcept nogil
cdef void acts_place(Acts* x, int n_rows, int n_cols, int precisions, uint8_t* memory) noexcept nogil
cdef void acts_quantize(Acts* x, int lo, int hi, int block_lo, int block_hi) noexcept nogil
cdef void quantize_gradient(const float* dy, size_t ldy, int n_rows, int T, int lo, int hi, int16_t* q, float* scale) noexcept nogil
