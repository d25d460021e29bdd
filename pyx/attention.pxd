# Keys lie in panels of 16 positions, [position / 16][head_dim][16], values in rows, [position][head_dim padded to 16]:
# both products of attention are then panel_add. One head's keys and values are contiguous.

cdef struct Head:               # one KV head of one sequence
    void* k
    void* v
    bint half                   # f16 instead of f32

cdef size_t attend_bytes(int rows, int head_dim, int n_past) noexcept nogil
cdef void store_kv(const Head* head, int position, int head_dim, const float* k, const float* v) noexcept nogil
cdef void attend(const float* q, size_t ldq, int n_tokens, int group, int head_dim, float scale, int position, const Head* head, float* out, size_t ldo, float* work) noexcept nogil
cdef size_t attend_backward_bytes(int n, int head_dim) noexcept nogil
cdef void attend_backward(const float* q, size_t ldq, const float* k, const float* v, size_t ldkv,
                          const float* dout, size_t ldo, int n, int head_dim, float scale, float* dq, size_t lddq, float* dk, float* dv, size_t lddkv, float* work) noexcept nogil
