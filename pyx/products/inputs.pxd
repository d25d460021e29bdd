# T: rows of activations (tokens)   K: columns of the matrix (n_in)   N: rows of the matrix (n_out)

from libc.stdint cimport int8_t, int16_t, uint8_t, uint64_t, uintptr_t
from libc.string cimport memcpy

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
    OUTLIERS = 3                # values that a block may set aside
    PANEL_SUPERBLOCKS = 5             # U8_BLOCKS // SUPERBLOCK
    SUPERBLOCK = 8                    # blocks of wide models that share a step: their products are summed as integers, see superblocks.pxd
    PART_TOKENS = 128           # inputs that stay in L2 while row tiles pass
    STREAM_TOKENS = 16          # inputs up to which tiles are multiplied as they stream by: unpacking would not pay

cdef struct Outliers:           # values of a block that its codes do not hold: its codes are 0 there
    uint8_t k[4]                # their places, 0 .. 31
    float value[OUTLIERS]

cdef struct Acts:               # T rows of inputs; only the wanted forms are there
    int n_rows
    int n_cols
    int n_blocks
    const float* f32            # (T, ld)
    size_t ld
    int8_t* q8                  # (T, 32 n_blocks), scale (T, n_blocks), sum = scale * sum of the codes
    float* scale8
    float* sum8                 # and of the outliers
    int superblock                    # blocks that share a step: 1 or SUPERBLOCK
    bint raised                 # q8 holds codes + U8_OFFSET
    int16_t* less8              # (T, n_blocks, 2): twice -4 times the sum of the codes
    Outliers* outliers          # (T, n_blocks); outlier_bits (T, n_blocks): bit i is set where the i-th is there
    uint8_t* outlier_bits
    float outlier_over          # what makes one: this many times the mean of all blocks' largest values
    uint8_t* unpacking          # for products of many inputs: unpacking_bytes of the thread's own, see gemm.pyx
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


cdef extern from * nogil:
    int lowest_bit "__builtin_ctzll"(uint64_t)


cdef inline uint64_t eight_bits(const uint8_t* bits, int n) noexcept nogil:
    """outlier_bits of eight blocks, those of the first n only; bits 8 i to 8 i + 2 are block i's. Reads 8 bytes: scales follow."""
    cdef uint64_t r
    memcpy(&r, bits, 8)
    return r if n >= 8 else r & ((<uint64_t>1 << 8 * n) - 1)


cdef inline float or_nan(float peak) noexcept nogil:
    """peak; NaN where it is infinite"""
    return peak - (peak - peak)


cdef inline int even_chunk(int n_blocks, int most) noexcept nogil:
    """n_blocks in equal chunks of at most `most`: no short last one, whose start-up would weigh more"""
    cdef int chunks = (n_blocks + most - 1) // most
    return (n_blocks + chunks - 1) // chunks


cdef inline int superblock_chunk(int n_blocks) noexcept nogil:
    """Blocks of whole superblocks that are unpacked at a time"""
    return SUPERBLOCK * even_chunk((n_blocks + SUPERBLOCK - 1) // SUPERBLOCK, PANEL_SUPERBLOCKS)


cdef void acts_for_width(Acts* x, int n_embd) noexcept nogil
cdef size_t acts_bytes(int n_rows, int n_cols, int precisions) noexcept nogil
cdef void acts_place(Acts* x, int n_rows, int n_cols, int precisions, uint8_t* memory) noexcept nogil
cdef void acts_quantize(Acts* x, int lo, int hi, int block_lo, int block_hi) noexcept nogil
cdef void quantize_gradient(const float* dy, size_t ldy, int n_rows, int T, int lo, int hi, int16_t* q, float* scale) noexcept nogil
