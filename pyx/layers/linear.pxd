from ..products.gemm cimport Packed
from ..products.inputs cimport Acts

cdef struct Lora:               # one adapter's pair on one matrix: y += scale * B (A x)
    int rank
    int width                   # rank padded to 16; with `stretch` rank + 1 is
    float scale                 # alpha / rank * the user's scale
    float user                  # the user's scale
    float* a                    # (n_cols, width): A transposed
    float* b                    # [n_tiles][rank][16]: B's rows in tiles
    float* stretch              # (n_rows padded to 16): W x is times 1 + user * stretch, see magnitude.pxd; NULL: none

cdef struct Linear:
    Packed w
    const float* bias           # (n_rows padded to 16) or NULL
    Lora* loras                 # one per adapter; a == NULL where it has none

cdef inline int low_rank_width(const Linear* l, int n_lora) noexcept nogil:
    """Columns of u that one linear's adapters take."""
    cdef int j, width = 0
    for j in range(n_lora):
        width += l.loras[j].width
    return width


cdef int linear_precisions(const Linear* first, int n, int wish) noexcept nogil
cdef void low_rank_input(const Linear* first, int n_linear, int n_lora, const Acts* x, const float* scales, float* u, size_t ldu, int thread, int of) noexcept nogil
cdef void linear_tiles(const Linear* l, int n_lora, const Acts* x, int precision, const float* u, size_t ldu, float* y, size_t ldy, int lo, int hi) noexcept nogil
