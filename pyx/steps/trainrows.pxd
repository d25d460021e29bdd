# Rows lo..hi of what a training call works on; a row is a token, and each thread does its share of them.

from libc.stdint cimport int16_t
from libc.string cimport memcpy, memset

from ..layers.block cimport Block, Config, angles_at, prepare_heads, prepare_heads_backward, scale_row, temper_queries
from ..layers.kvcache cimport KvHead, store_kv
from ..layers.norm cimport HeadNorm, Norm, norm_row
from ..products.inputs cimport padded
from ..simd.verbs cimport vf_add, vf_load, vf_load_bf16, vf_store, vf_store_bf16
from .trainbuffers cimport Buffers, cached_kv_head


cdef inline void input_rows(const Config* c, const Norm* norm, const float* x, float* n, int lo, int hi) noexcept nogil:
    """n = what the matrices behind a norm see of x, both (T, embd_p)"""
    cdef size_t t
    for t in range(lo, hi):
        norm_row(norm, x + t * c.embd_p, n + t * c.embd_p)


cdef inline void input_rows_backward(const Config* c, const Norm* norm, const float* x, const float* dn, float* dx, int lo, int hi) noexcept nogil:
    """dx += the gradient of x, all (T, embd_p)"""
    cdef size_t t
    for t in range(lo, hi):
        if norm.weight != NULL:
            norm.kind.backward(x + t * c.embd_p, norm.weight, dn + t * c.embd_p, norm.n, norm.eps, dx + t * c.embd_p)
        else:
            add_row(dn + t * c.embd_p, c.embd_p, dx + t * c.embd_p)


cdef inline void add_row(const float* x, int n, float* sum_) noexcept nogil:
    """sum_[n] += x"""
    cdef int i
    for i in range(0, n, 16):
        vf_store(sum_ + i, vf_add(vf_load(x + i), vf_load(sum_ + i)))


cdef inline void branch_rows_backward(const Config* c, const Norm* after, const float* x, const float* dx, float* dy, int lo, int hi) noexcept nogil:
    """dy = the gradient of what a branch's last matrix gives, of dx behind the sum, all (T, embd_p); x: that, where a norm is
    after it"""
    cdef size_t t, at
    for t in range(lo, hi):
        at = t * c.embd_p
        if after.weight == NULL:
            scale_row(dx + at, c.residual_scale, c.embd_p, dy + at)
            continue
        clear_rows(dy, c.embd_p, <int>t, <int>t + 1)
        after.kind.backward(x + at, after.weight, dx + at, after.n, after.eps, dy + at)
        scale_row(dy + at, c.residual_scale, c.embd_p, dy + at)


cdef inline void head_rows(const Config* c, const Block* l, const HeadNorm* norm, const Buffers* b, float* x, size_t ld, int n_head,
                           int lo, int hi) noexcept nogil:
    """Each row's queries or keys (T, n_head, head_dim) as attention compares them"""
    cdef size_t t, at
    for t in range(lo, hi):
        at = angles_at(c, l, t)
        if norm.whole:
            norm_row(&norm.norm, x + t * ld, x + t * ld)
        prepare_heads(c, l, norm, x + t * ld, 0, n_head, b.cosine + at, b.sine + at)


cdef inline void head_rows_backward(const Config* c, const Block* l, const HeadNorm* norm, const Buffers* b, const float* x, size_t ldx,
                                    float* dx, size_t ld, int n_head, int lo, int hi) noexcept nogil:
    """The gradient of what they were made of, x (T, ldx), which is looked at where they have norms; datt is used up then"""
    cdef size_t t, at, n = padded(norm.norm.n, 16)
    for t in range(lo, hi):
        at = angles_at(c, l, t)
        prepare_heads_backward(c, l, norm, x + t * ldx, dx + t * ld, n_head, b.cosine + at, b.sine + at)
        if norm.whole:
            memcpy(b.datt + t * c.q_p, dx + t * ld, 4 * n)
            memset(dx + t * ld, 0, 4 * n)
            norm.norm.kind.backward(x + t * ldx, norm.norm.weight, b.datt + t * c.q_p, norm.norm.n, norm.norm.eps, dx + t * ld)


cdef inline void temper_rows(const Config* c, const int* position, float* x, size_t ld, int lo, int hi) noexcept nogil:
    """Each row's queries (T, n_head, head_dim), or their gradient, times their position's factor"""
    cdef size_t t
    for t in range(lo, hi):
        temper_queries(c, x + t * ld, c.n_head, position[t])


cdef inline void store_rows(const Config* c, const Buffers* b, const int* starts, int n_segments, int lo, int hi) noexcept nogil:
    """Each row's keys and values to the cache"""
    cdef KvHead head
    cdef int s, h, t
    cdef size_t at
    for s in range(n_segments):
        for h in range(c.n_head_kv):
            head = cached_kv_head(b, c, starts, s, h)
            for t in range(max(lo, starts[s]), min(hi, starts[s + 1])):
                at = t * <size_t>c.kv_p + h * c.head_dim
                store_kv(&head, t - starts[s], c.head_dim, b.k + at, b.v + at)


cdef inline void activate_rows(const Config* c, const Block* l, const Buffers* b, int lo, int hi) noexcept nogil:
    """h of gate and up"""
    cdef size_t t
    for t in range(lo, hi):
        l.activation.apply(b.gate + t * c.ff_p, b.up + t * c.ff_p, c.ff_p, b.h + t * c.ff_p)


cdef inline void activate_rows_backward(const Config* c, const Block* l, const Buffers* b, int lo, int hi) noexcept nogil:
    """gate and up become their gradients"""
    cdef size_t t
    for t in range(lo, hi):
        l.activation.backward(b.dh + t * c.ff_p, c.ff_p, b.gate + t * c.ff_p, b.up + t * c.ff_p)


cdef inline void save_rows(const float* x, void* kept, size_t ld, int lo, int hi, int item) noexcept nogil:
    """Rows lo..hi of x (T, ld), rounded to bf16 where an item has 2 bytes; ld is a multiple of 16."""
    cdef size_t i
    if item == 4:
        memcpy(<float*>kept + lo * ld, x + lo * ld, 4 * ld * (hi - lo))
        return
    for i in range(lo * ld, hi * ld, 16):
        vf_store_bf16(<int16_t*>kept + i, vf_load(x + i))


cdef inline void restore_rows(const void* kept, float* x, size_t ld, int lo, int hi, int item) noexcept nogil:
    """Rows lo..hi of x (T, ld) as they were kept"""
    cdef size_t i
    if item == 4:
        memcpy(x + lo * ld, <const float*>kept + lo * ld, 4 * ld * (hi - lo))
        return
    for i in range(lo * ld, hi * ld, 16):
        vf_store(x + i, vf_load_bf16(<const int16_t*>kept + i))


cdef inline void sum_groups(float* row, int n_head_kv, int group, int head_dim) noexcept nogil:
    """A row's query-head gradients (n_head, head_dim) added up per KV head, to the row's first columns; zeros pad them"""
    cdef int h, g, j, end = n_head_kv * head_dim
    cdef const float* x
    cdef float* total
    for h in range(n_head_kv):
        x, total = row + h * group * head_dim, row + h * head_dim
        for j in range(head_dim):
            total[j] = x[j]
        for g in range(1, group):
            for j in range(head_dim):
                total[j] += x[g * head_dim + j]
    for j in range(end, <int>padded(end, 16)):
        row[j] = 0


cdef inline void clear_rows(float* x, size_t ld, int lo, int hi) noexcept nogil:
    """Rows lo..hi of x (T, ld) = 0"""
    memset(x + lo * ld, 0, 4 * ld * (hi - lo))
