# Latent attention (DeepSeek-V2, 2024): keys and values of all heads are made of one short row, and so may queries be.
#
#     q = Wq norm(Wqa n)  or  Wq n
#     c, r = Wkva n                               c (kv_rank), r (n_rot): what positions turn, one key for all heads
#     kv = Wkvb norm(c)                           of each head a key without positions, then a value
#     key of head h = (kv's, r turned)            values are shorter than keys: zeros follow them
#
# Attention then is any other's, with a key head for each query head.

from libc.string cimport memcpy, memset

from ..products.inputs cimport padded
from .block cimport Config
from .norm cimport Norm, norm_row


cdef inline int plain_key(const Config* c) noexcept nogil:
    """Elements of a head's key that positions do not turn"""
    return c.head_dim - c.n_rot


cdef inline void norm_start(const Norm* norm, const float* x, float* y) noexcept nogil:
    """y = the norm of the first n elements of a longer row x; zeros pad it"""
    memset(y, 0, 4 * <size_t>padded(norm.n, 16))
    memcpy(y, x, 4 * <size_t>norm.n)
    norm_row(norm, y, y)


cdef inline void spread_heads(const Config* c, const float* kv, const float* r, float* k, float* v) noexcept nogil:
    """k and v (n_head, head_dim) of kv (n_head, key and value) and r (n_rot)"""
    cdef int h, n = plain_key(c), each = n + c.n_value
    for h in range(c.n_head):
        memcpy(k + h * c.head_dim, kv + h * each, 4 * <size_t>n)
        memcpy(k + h * c.head_dim + n, r, 4 * <size_t>c.n_rot)
        memcpy(v + h * c.head_dim, kv + h * each + n, 4 * <size_t>c.n_value)
        memset(v + h * c.head_dim + c.n_value, 0, 4 * <size_t>(c.head_dim - c.n_value))


cdef inline void spread_heads_backward(const Config* c, const float* dk, const float* dv, float* dkv, float* dr) noexcept nogil:
    """dkv and dr of dk and dv; dkv's padding is zero"""
    cdef int h, i, n = plain_key(c), each = n + c.n_value, width = c.n_head * each
    memset(dr, 0, 4 * <size_t>c.n_rot)
    for h in range(c.n_head):
        memcpy(dkv + h * each, dk + h * c.head_dim, 4 * <size_t>n)
        memcpy(dkv + h * each + n, dv + h * c.head_dim, 4 * <size_t>c.n_value)
        for i in range(c.n_rot):
            dr[i] += dk[h * c.head_dim + n + i]
    memset(dkv + width, 0, 4 * <size_t>(padded(width, 16) - width))


cdef inline void close_heads(const Config* c, float* x) noexcept nogil:
    """What attention gave of each head, x (n_head, head_dim), without the zeros behind values, in place"""
    cdef int h, i
    for h in range(1, c.n_head):
        for i in range(c.n_value):
            x[h * c.n_value + i] = x[h * c.head_dim + i]


cdef inline void open_heads(const Config* c, float* x) noexcept nogil:
    """The reverse, zeros put in"""
    cdef int h, i
    for h in range(c.n_head - 1, -1, -1):
        for i in range(c.n_value - 1, -1, -1):
            x[h * c.head_dim + i] = x[h * c.n_value + i]
        memset(x + h * c.head_dim + c.n_value, 0, 4 * <size_t>(c.head_dim - c.n_value))
