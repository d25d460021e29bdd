# A product of many tokens in parts: their inputs, rows of what a whole call's were rounded to.

from ..products.inputs cimport PART_TOKENS, Acts
from .team cimport ceil_div


cdef inline int parts_of(int n_tokens) noexcept nogil:
    return ceil_div(n_tokens, PART_TOKENS)


cdef inline Acts some_rows(const Acts* a, size_t lo, size_t hi) noexcept nogil:
    """Rows lo..hi of a; all, or so many that no short cut for few rows is taken, which wants other forms of them."""
    cdef Acts x = a[0]
    cdef size_t blocks = lo * a.n_blocks
    x.n_rows = <int>(hi - lo)
    x.f32 += lo * a.ld
    if a.q8 != NULL:
        x.q8, x.scale8, x.sum8 = a.q8 + 32 * blocks, a.scale8 + blocks, a.sum8 + blocks
        x.less8 = a.less8 + 2 * blocks
        x.outliers, x.outlier_bits = a.outliers + blocks, a.outlier_bits + blocks
    if a.q16 != NULL:
        x.q16, x.scale16, x.sum16 = a.q16 + 32 * blocks, a.scale16 + blocks, a.sum16 + blocks
    return x
