# A KV cache lies in tiles of 16 positions, each keys [head_dim][16] and then values [16][head_dim padded to 16]: both
# products of attention read it in rows of 16 lanes. With q8_0 each part begins with its scales, f16 [head_dim / 32][16].
# CHUNK positions of one head are contiguous; chunks are `stride` bytes apart.

from libc.stdint cimport uint8_t

from ..products.inputs cimport padded

cdef enum KvType:
    KV_F32 = 0
    KV_F16 = 1
    KV_Q8_0 = 2
    KV_S16 = 3                  # kv16.pxd

cdef enum:
    CHUNK = 256                 # positions that share a softmax; see attention.pyx
    UNIT_ROWS = 64              # query rows of one KV head that a thread takes at a time, about

cdef struct KvHead:               # one KV head of one sequence
    uint8_t* tiles
    size_t stride
    int k_type
    int v_type

cdef inline size_t part_floats(int head_dim) noexcept nogil:
    """Floats of one chunk's result for one query: values, peak, total."""
    return padded(head_dim, 16) + 16

cdef size_t tile_part_bytes(int head_dim, int kind) noexcept nogil
cdef size_t attend_bytes(int rows, int head_dim) noexcept nogil
cdef void store_kv(const KvHead* head, int position, int head_dim, const float* k, const float* v) noexcept nogil
cdef void attend(const float* q, size_t ldq, int n_tokens, int group, int head_dim, float scale, int position, const KvHead* head, float* out, size_t ldo, float* work) noexcept nogil
cdef void attend_part(const float* q, size_t ldq, int n_tokens, int group, int head_dim, float scale, int position, int chunk, const KvHead* head,
                      float* parts, size_t ld_token, size_t ld_head, float* work) noexcept nogil
cdef void join_parts(float* parts, int n_chunks, int head_dim, float* out) noexcept nogil
cdef size_t attend_backward_bytes(int n, int head_dim) noexcept nogil
cdef void attend_backward(const float* q, size_t ldq, const float* k, const float* v, size_t ldkv,
                          const float* dout, size_t ldo, int n, int head_dim, float scale, float* dq, size_t lddq, float* dk, float* dv, size_t lddkv, float* work) noexcept nogil
