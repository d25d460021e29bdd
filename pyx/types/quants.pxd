# Rows of blocks as files hold them.

from libc.stdint cimport uint8_t

ctypedef void (*dequantize_fn)(const uint8_t* row, int n_blocks, float* out) noexcept nogil
ctypedef void (*quantize_fn)(const float* x, int n_blocks, uint8_t* row) noexcept nogil
ctypedef void (*search_fn)(const float* x, const float* importance, int n_blocks, uint8_t* row) noexcept nogil

cdef struct RowType:            # one row per type
    int number                  # GGUF's
    int block                   # elements
    int block_bytes
    dequantize_fn dequantize
    quantize_fn quantize        # as gguf.quants rounds; NULL: no such rule
    search_fn search            # scales searched for, by importance per column (or NULL); NULL: only rounded

cdef const RowType* row_type(int number) noexcept nogil
