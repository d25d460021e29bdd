from libc.stdint cimport uint8_t

from ..products.inputs cimport Acts
from ..products.gemm cimport Packed
from ..types.quants cimport RowType

cdef struct Lora:               # one adapter's pair on one matrix: y += scale * B (A x)
    int rank
    int width                   # rank padded to 16
    float scale                 # alpha / rank * the user's scale
    float* a                    # (n_cols, width): A transposed
    float* b                    # [n_tiles][rank][16]: B's rows in tiles

cdef struct Linear:
    Packed w
    const float* bias           # (n_rows padded to 16) or NULL
    Lora* loras                 # one per adapter; a == NULL where it has none

cdef enum:                      # a layer's matrices, in the order they are used
    ATTN_Q = 0
    ATTN_K = 1
    ATTN_V = 2
    ATTN_OUTPUT = 3
    FFN_GATE = 4
    FFN_UP = 5
    FFN_DOWN = 6
    N_SLOTS = 7

cdef struct Layer:
    const float* attn_norm      # (n_embd padded to 16)
    const float* ffn_norm
    Linear linear[7]

cdef struct Config:             # sizes; *_p are padded to 16, buffers' row strides
    int n_embd
    int n_head
    int n_head_kv
    int head_dim
    int n_ff
    int n_layer
    int n_vocab
    int n_rot
    int rope_layout
    float rms_eps
    int embd_p
    int q_p
    int kv_p
    int ff_p
    int vocab_p

cdef inline int low_rank_width(const Linear* l, int n_lora) noexcept nogil:
    """Columns of u that one linear's adapters take."""
    cdef int j, width = 0
    for j in range(n_lora):
        width += l.loras[j].width
    return width


cdef int linear_precisions(const Linear* first, int n, int wish) noexcept nogil
cdef void low_rank_input(const Linear* first, int n_linear, int n_lora, const Acts* x, const float* scales, float* u, size_t ldu, int thread, int of) noexcept nogil
cdef void linear_tiles(const Linear* l, int n_lora, const Acts* x, int precision, const float* u, size_t ldu, float* y, size_t ldy, int lo, int hi) noexcept nogil

cdef class Weights:
    cdef Config config
    cdef Layer* layers
    cdef Linear output
    cdef const float* output_norm
    cdef const uint8_t* embedding   # NULL: rows of the output matrix
    cdef size_t embedding_row
    cdef const RowType* embedding_type
    cdef double[::1] frequencies
    cdef int n_lora
    cdef Lora* embedding_pairs      # one per adapter; rank 0 where it does not adapt the embedding
    cdef list embedding_loras       # their own scales
    cdef dict norms                 # (layer, name) -> vector; layer -1 the output norm
    cdef int max_width          # widest low-rank input of any group of linears, all adapters together
    cdef list keep
    cdef list adapters
    cdef float* vector(self, array) except NULL
    cdef const float* norm(self, int layer, name, array) except NULL
    cdef int set_linear(self, Linear* l, matrix, bias) except -1
    cdef Linear* linear_at(self, int layer, int slot) noexcept
    cdef void embed(self, int token, const float* scales, float* x) noexcept nogil
    cdef void add_embedding_pair(self, const Lora* l, int token, float factor, float* x) noexcept nogil
    cdef add_embedding(self, pair)
