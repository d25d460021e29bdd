# The weight types as products see them, one row each: weight_types.pyx.tp.

from libc.stdint cimport uint8_t

from .inputs cimport Acts
from .tiles cimport Panel, unpack_s16_fn

ctypedef void (*unpack_u8_fn)(const uint8_t* tile, int n, uint8_t* q, float* d, float* m) noexcept nogil
ctypedef void (*unpack_f32_fn)(const uint8_t* tile, int n, float* w) noexcept nogil
ctypedef void (*unpack_superblock_fn)(const uint8_t* tile, int n, const float* units, Panel* p) noexcept nogil
ctypedef void (*pack_fn)(const uint8_t* rows, size_t row_bytes, int n_rows, int b, int n_cols, uint8_t* tile) noexcept nogil
ctypedef void (*matvec_fn)(const uint8_t* tile, const float* units, const Acts* x, size_t t, float* y) noexcept nogil
ctypedef void (*matvec2_fn)(const uint8_t* tile, const uint8_t* other, const float* units, const float* others, const Acts* x, float* y, float* yo) noexcept nogil
ctypedef void (*matvec4_fn)(const uint8_t* tile, const float* units, const Acts* x, size_t t, float* y, size_t ldy) noexcept nogil

cdef struct Streaming:          # products of few tokens, straight from a row group's tiles
    matvec_fn matvec            # input t; NULL: no such products
    matvec2_fn matvec2          # two row groups, input 0; NULL: no faster than one after the other
    matvec4_fn matvec4          # inputs t .. t + 3 together, y (4, ldy); NULL: only the panels' product

cdef struct WeightType:
    const char* name
    int number                  # GGUF's
    int block                   # elements of a block in the file
    int block_bytes
    int tile_bytes
    int depth                   # products of 4 columns that int16 sums hold; 0: inputs of 16 bits or f32 instead
    bint fifth                  # codes of five bits
    bint has_min                # tiles hold a minimum beside each scale
    bint unpacks_min            # unpacked, w = d * q + m (an offset of the codes becomes m), else d * q
    bint f32_scales             # a tile's scales are f32, else f16
    pack_fn pack
    unpack_u8_fn unpack_u8      # NULL: no codes of 4 or 5 bits
    unpack_s16_fn unpack_s16    # NULL: not an integer type
    unpack_f32_fn unpack_f32
    unpack_superblock_fn unpack_superblock      # for inputs of which SUPERBLOCK blocks share a step; NULL: no such product
    Streaming blocks            # of the inputs the type is fastest with, a step for each block
    Streaming superblocks       # where SUPERBLOCK blocks share one

cdef const WeightType* weight_type(int number) except NULL
cdef int weight_type_count() noexcept nogil
cdef const WeightType* weight_type_at(int i) noexcept nogil
