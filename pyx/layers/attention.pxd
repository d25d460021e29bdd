from ..products.inputs cimport padded
from .kvcache cimport KvHead
from .scores cimport Scoring

cdef enum:
    UNIT_ROWS = 64              # query rows of one KV head that a thread takes at a time, about

cdef inline size_t part_floats(int head_dim) noexcept nogil:
    """Floats of one chunk's result for one query: values, peak, total."""
    return padded(head_dim, 16) + 16

cdef size_t attend_bytes(int rows, int head_dim) noexcept nogil
cdef void attend(const float* q, size_t ldq, int n_tokens, int group, int head_dim, const Scoring* how, int query_head, int position, const KvHead* head,
                 float* out, size_t ldo, float* work) noexcept nogil
cdef void attend_part(const float* q, size_t ldq, int n_tokens, int group, int head_dim, const Scoring* how, int position, int chunk, const KvHead* head,
                      float* parts, size_t ld_token, size_t ld_head, float* work) noexcept nogil
cdef void join_parts(float* parts, int head_dim, const Scoring* how, int query_head, int position, float* out) noexcept nogil
