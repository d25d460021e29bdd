from .scores cimport Scoring

cdef size_t attend_backward_bytes(int n, int head_dim) noexcept nogil
cdef void attend_backward(const float* q, size_t ldq, const float* k, const float* v, size_t ldkv,
                          const float* dout, size_t ldo, int n, int head_dim, const Scoring* how, int query_head,
                          float* dq, size_t lddq, float* dk, float* dv, size_t lddkv, float* work) noexcept nogil
