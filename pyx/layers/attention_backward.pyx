"""Backward of causal attention over one sequence: from the gradient of its output to those of queries, keys and values.

Axes: rows = tokens of one query head, positions, head_dim padded to 16 lanes. P, the softmax, is computed again, BLOCK rows at
a time, from the first position that the block's first row sees to the last row's own; what the mask hides beside is zero.
"""

from libc.stdint cimport uint8_t
from libc.string cimport memset

from ..products.inputs cimport padded
from ..products.panels cimport panel_add
from ..simd.verbs cimport transpose8, vf, vf_fma, vf_hsum, vf_load, vf_mul, vf_set1, vf_store, vf_sub
from .scores cimport NO_WINDOW, Scoring, first_seen, sink_weight, soft_cap, soft_cap_slope, softmax

import numpy as np

cdef enum:
    BLOCK = 32          # query rows of a block

cdef struct Backward:   # one query head: rows padded to 16, or panels of 16 rows, of hdp floats; width: n padded to 16
    int n
    size_t width
    size_t hdp
    float* qs           # scaled queries
    float* ks           # keys
    float* kt           # the same and values, in panels
    float* vt
    float* ds           # dout
    float* gq           # gradients
    float* gk
    float* gv
    float* p            # (BLOCK, width): P
    float* dp           # its gradient, then that of the scores
    float* slope        # the soft cap's
    float* pt           # (width, BLOCK): p and dp, transposed
    float* dpt


cdef size_t attend_backward_bytes(int n, int head_dim) noexcept nogil:
    """Bytes of scratch for a sequence of n tokens."""
    cdef size_t hd = padded(head_dim, 16), width = padded(n, 16)
    return 4 * (8 * width * hd + 5 * BLOCK * width) + 64


cdef inline void to_panels(const float* rows, int n, size_t hdp, float* panels) noexcept nogil:
    """(n, hdp) to [n / 16][hdp][16]; rows are there (zero) up to a multiple of 16"""
    cdef int p, i, j
    for p in range(0, n, 16):
        for i in range(0, 16, 8):
            for j in range(0, <int>hdp, 8):
                transpose8(rows + (p + i) * hdp + j, hdp, panels + p * hdp + 16 * j + i, 16)


cdef inline void gather(const Backward* b, const float* source, size_t ld, int head_dim, float scale, float* out) noexcept nogil:
    """(n, head_dim) with stride ld to (width, hdp), scaled, zeros around"""
    cdef int t, j
    memset(out, 0, 4 * b.width * b.hdp)
    for t in range(b.n):
        for j in range(head_dim):
            out[t * b.hdp + j] = source[t * ld + j] * scale


cdef inline Backward place(int n, int head_dim, float* work) noexcept nogil:
    """Where everything lies in attend_backward_bytes of work; the gradients are zero"""
    cdef Backward b
    cdef size_t each
    b.n, b.width, b.hdp = n, padded(n, 16), padded(head_dim, 16)
    each = b.width * b.hdp
    b.qs, b.ks, b.kt, b.vt = work, work + each, work + 2 * each, work + 3 * each
    b.ds, b.gq, b.gk, b.gv = work + 4 * each, work + 5 * each, work + 6 * each, work + 7 * each
    b.p = work + 8 * each
    b.dp, b.slope = b.p + BLOCK * b.width, b.p + 2 * BLOCK * b.width
    b.pt, b.dpt = b.p + 3 * BLOCK * b.width, b.p + 4 * BLOCK * b.width
    memset(b.gq, 0, 12 * each)
    return b


cdef inline void block_scores(const Backward* b, int head_dim, const Scoring* how, int t0, int rows, int begin, int past) noexcept nogil:
    """p = scores and dp = dout v^T of rows t0 and on with positions begin..past, both multiples of 16"""
    cdef int j, r
    memset(b.p, 0, 8 * BLOCK * b.width)
    for j in range(begin, past, 16):
        panel_add(b.kt + j * b.hdp, 16, head_dim, b.qs + t0 * b.hdp, b.hdp, rows, b.p + j, b.width)
        panel_add(b.vt + j * b.hdp, 16, head_dim, b.ds + t0 * b.hdp, b.hdp, rows, b.dp + j, b.width)
    if how.cap == 0:
        return
    for r in range(rows):
        soft_cap(b.p + r * b.width + begin, past - begin, how.cap)
        soft_cap_slope(b.p + r * b.width + begin, past - begin, how.cap, b.slope + r * b.width + begin)


cdef inline void row_gradient(float* p, float* dp, const float* slope, const Scoring* how, int query_head, int at, int begin, int past) noexcept nogil:
    """Of the query at `at`: its scores p become P, dp the gradient of the scores as they were before the cap"""
    cdef int j
    cdef float peak, inverse
    cdef vf total = vf_set1(0)
    inverse = softmax(p + begin, max(0, first_seen(how, at) - begin), at + 1 - begin, past - begin, &peak)
    inverse = 1 / (inverse + sink_weight(how, query_head, peak))
    for j in range(begin, past, 16):
        vf_store(p + j, vf_mul(vf_load(p + j), vf_set1(inverse)))
        total = vf_fma(vf_load(p + j), vf_load(dp + j), total)
    total = vf_set1(vf_hsum(total))
    for j in range(begin, past, 16):
        vf_store(dp + j, vf_mul(vf_load(p + j), vf_sub(vf_load(dp + j), total)))
    if how.cap == 0:
        return
    for j in range(begin, past, 16):
        vf_store(dp + j, vf_mul(vf_load(dp + j), vf_load(slope + j)))


cdef inline void add_block(const Backward* b, int t0, int rows, int begin, int past) noexcept nogil:
    """gq, gk, gv += a block's share, from p and dp"""
    cdef int i, j, count = min(past, b.n) - begin
    for i in range(0, BLOCK, 8):
        for j in range(begin, past, 8):
            transpose8(b.p + i * b.width + j, b.width, b.pt + j * BLOCK + i, BLOCK)
            transpose8(b.dp + i * b.width + j, b.width, b.dpt + j * BLOCK + i, BLOCK)
    for j in range(0, <int>b.hdp, 16):
        panel_add(b.ks + begin * b.hdp + j, b.hdp, count, b.dp + begin, b.width, rows, b.gq + t0 * b.hdp + j, b.hdp)
        panel_add(b.qs + t0 * b.hdp + j, b.hdp, rows, b.dpt + begin * BLOCK, BLOCK, count, b.gk + begin * b.hdp + j, b.hdp)
        panel_add(b.ds + t0 * b.hdp + j, b.hdp, rows, b.pt + begin * BLOCK, BLOCK, count, b.gv + begin * b.hdp + j, b.hdp)


cdef void attend_backward(const float* q, size_t ldq, const float* k, const float* v, size_t ldkv,
                          const float* dout, size_t ldo, int n, int head_dim, const Scoring* how, int query_head,
                          float* dq, size_t lddq, float* dk, float* dv, size_t lddkv, float* work) noexcept nogil:
    """dq, dk, dv (n, head_dim) of one query head over a sequence of n tokens from position 0, written (not accumulated).

    With dP = dout v^T: dS = P (dP - sum(P dP)), times the soft cap's slope; dq = scale dS k, dk = scale dS^T q, dv = P^T dout.
    work: attend_backward_bytes.
    """
    cdef Backward b = place(n, head_dim, work)
    cdef int t, r, j, rows, begin, past
    gather(&b, v, ldkv, head_dim, 1, b.qs)
    to_panels(b.qs, n, b.hdp, b.vt)
    gather(&b, k, ldkv, head_dim, 1, b.ks)
    to_panels(b.ks, n, b.hdp, b.kt)
    gather(&b, q, ldq, head_dim, how.scale, b.qs)
    gather(&b, dout, ldo, head_dim, 1, b.ds)
    for t in range(0, n, 32):
        rows = min(BLOCK, n - t)
        begin, past = first_seen(how, t) // 16 * 16, <int>padded(t + rows, 16)
        block_scores(&b, head_dim, how, t, rows, begin, past)
        for r in range(rows):
            row_gradient(b.p + r * b.width, b.dp + r * b.width, b.slope + r * b.width, how, query_head, t + r, begin, past)
        add_block(&b, t, rows, begin, past)
    for t in range(n):
        for j in range(head_dim):
            # qs carries the scale already, so gk does too
            dq[t * lddq + j] = b.gq[t * b.hdp + j] * how.scale
            dk[t * lddkv + j] = b.gk[t * b.hdp + j]
            dv[t * lddkv + j] = b.gv[t * b.hdp + j]


def backward(q, k, v, dout, float cap=0, int window=NO_WINDOW, sinks=None):
    """(dq, dk, dv) of attention.forward in f32."""
    cdef float[:, :, ::1] qv = np.ascontiguousarray(q, np.float32), kv = np.ascontiguousarray(k, np.float32)
    cdef float[:, :, ::1] vv = np.ascontiguousarray(v, np.float32), g = np.ascontiguousarray(dout, np.float32)
    cdef float[:, :, ::1] dq = np.zeros(np.shape(q), np.float32)
    cdef float[:, :, ::1] dk = np.zeros(np.shape(q), np.float32), dv = np.zeros(np.shape(q), np.float32)
    cdef int T = <int>qv.shape[0], n_head = <int>qv.shape[1], hd = <int>qv.shape[2], n_kv = <int>kv.shape[1], h
    cdef uint8_t[::1] work = np.empty(attend_backward_bytes(T, hd), np.uint8)
    cdef const float[::1] of_sinks
    cdef Scoring how = Scoring(1 / <float>hd ** 0.5, cap, window, NULL)
    if sinks is not None:
        of_sinks = np.ascontiguousarray(sinks, np.float32)
        how.sinks = &of_sinks[0]
    for h in range(n_head):
        attend_backward(&qv[0, h, 0], n_head * hd, &kv[0, h * n_kv // n_head, 0], &vv[0, h * n_kv // n_head, 0], n_kv * hd,
                        &g[0, h, 0], n_head * hd, T, hd, &how, h, &dq[0, h, 0], n_head * hd,
                        &dk[0, h, 0], &dv[0, h, 0], n_head * hd, <float*>&work[0])
    shape = (T, n_kv, n_head // n_kv, hd)
    return np.asarray(dq), np.asarray(dk).reshape(shape).sum(2), np.asarray(dv).reshape(shape).sum(2)
