"""Causal attention: out_i = sum over j <= i of softmax_j(scale q_i . k_j) v_j, forward from a KV cache, backward by recomputing.

Axes: rows = tokens x query heads of one KV head's group, positions j, head_dim padded to 16 lanes. A block of rows meets
16 positions at a time; what the mask hides is skipped by whole tiles. Scores live in a scratch of (rows, positions).
"""

from libc.math cimport INFINITY
from libc.stdint cimport uint8_t, uint16_t
from libc.string cimport memcpy, memset

from .acts cimport padded
from .gemm cimport panel_add
from .simd cimport *
from .vmath cimport vf_exp

import numpy as np

cdef enum:
    STEP = 64           # positions of values brought to f32 at a time
    BLOCK = 32          # query rows of a backward block


cdef size_t attend_bytes(int rows, int head_dim, int n_past) noexcept nogil:
    """Bytes of scratch for `rows` query rows over n_past positions."""
    cdef size_t hd = padded(head_dim, 16)
    return 4 * (2 * rows * hd + rows * (padded(n_past, 16) + 16) + 16 * hd + STEP * hd) + 64


cdef void store_kv(const Head* head, int position, int head_dim, const float* k, const float* v) noexcept nogil:
    """Write one position's key and value (head_dim,) to the head's cache."""
    cdef size_t hdp = padded(head_dim, 16), at = <size_t>(position // 16) * 16 * head_dim + position % 16
    cdef uint16_t half[16]
    cdef float row[16]
    cdef int i, j, n
    for i in range(0, head_dim, 16):
        n = min(16, head_dim - i)
        if head.half:
            memset(row, 0, sizeof(row))
            memcpy(row, k + i, 4 * n)
            vf_store_f16(half, vf_load(row))
            for j in range(n):
                (<uint16_t*>head.k)[at + 16 * <size_t>(i + j)] = half[j]
            memcpy(row, v + i, 4 * n)
            vf_store_f16(<uint16_t*>head.v + position * hdp + i, vf_load(row))
        else:
            for j in range(n):
                (<float*>head.k)[at + 16 * <size_t>(i + j)] = k[i + j]
                (<float*>head.v)[position * hdp + i + j] = v[i + j]


cdef inline void widen(const void* source, size_t at, int n, bint half, float* out) noexcept nogil:
    """n (a multiple of 16) cached values from element `at` on, as f32"""
    cdef int i
    if half:
        for i in range(0, n, 16):
            vf_store(out + i, vf_load_f16(<const uint16_t*>source + at + i))
    else:
        memcpy(out, <const float*>source + at, 4 * <size_t>n)


cdef inline float softmax(float* s, int n, int width) noexcept nogil:
    """s[n] becomes exp(s - max), the rest of width (a multiple of 16) zero; returns the sum"""
    cdef int i, whole = n // 16 * 16
    cdef float peak = -INFINITY
    cdef vf top = vf_set1(-INFINITY), total = vf_set1(0), e
    for i in range(n, width):
        s[i] = -INFINITY
    for i in range(0, width, 16):
        top = vf_max(top, vf_load(s + i))
    peak = vf_hmax(top)
    for i in range(0, whole, 16):
        e = vf_exp(vf_sub(vf_load(s + i), vf_set1(peak)))
        vf_store(s + i, e)
        total = vf_add(total, e)
    if whole < width:
        vf_store(s + whole, vf_exp(vf_sub(vf_load(s + whole), vf_set1(peak))))
        for i in range(n, width):
            s[i] = 0
        total = vf_add(total, vf_load(s + whole))
    return vf_hsum(total)


cdef void attend(const float* q, size_t ldq, int n_tokens, int group, int head_dim, float scale, int position, const Head* head, float* out, size_t ldo, float* work) noexcept nogil:
    """out (n_tokens, group, head_dim) for tokens at position, position + 1, ... that share one KV head.

    q and out: the group's first head of the first token, token strides ldq, ldo. work: attend_bytes. The cache must
    already hold the tokens' own keys and values.
    """
    cdef size_t hdp = padded(head_dim, 16), width = padded(position + n_tokens, 16)
    cdef int rows = n_tokens * group, t, g, r, j, first, n_past = position + n_tokens
    cdef float* qs = work                       # (rows, hdp) scaled queries
    cdef float* o = qs + rows * hdp             # (rows, hdp)
    cdef float* panel = o + rows * hdp          # keys [head_dim][16], then values [STEP][hdp]
    cdef float* s = panel + (16 + STEP) * hdp   # (rows, width)
    cdef float inverse
    for t in range(n_tokens):
        for g in range(group):
            for j in range(head_dim):
                qs[(t * group + g) * hdp + j] = q[t * ldq + g * head_dim + j] * scale
    memset(o, 0, 4 * rows * hdp)
    memset(s, 0, 4 * rows * width)
    for j in range(0, n_past, 16):
        widen(head.k, <size_t>j * head_dim, 16 * head_dim, head.half, panel)
        first = max(0, j - position) * group
        panel_add(panel, 16, head_dim, qs + first * hdp, hdp, rows - first, s + first * width + j, width)
    for r in range(rows):
        inverse = 1 / softmax(s + r * width, position + r // group + 1, <int>width)
        for j in range(0, <int>width, 16):
            vf_store(s + r * width + j, vf_mul(vf_load(s + r * width + j), vf_set1(inverse)))
    for j in range(0, n_past, 64):
        t = min(STEP, n_past - j)
        widen(head.v, j * hdp, t * <int>hdp, head.half, panel)
        first = max(0, j - position) * group
        for g in range(0, <int>hdp, 16):
            panel_add(panel + g, hdp, t, s + first * width + j, width, rows - first, o + first * hdp + g, hdp)
    for t in range(n_tokens):
        for g in range(group):
            memcpy(out + t * ldo + g * head_dim, o + (t * group + g) * hdp, 4 * head_dim)


# ======== backward ========

cdef size_t attend_backward_bytes(int n, int head_dim) noexcept nogil:
    """Bytes of scratch for a sequence of n tokens."""
    cdef size_t hd = padded(head_dim, 16), width = padded(n, 16)
    return 4 * (8 * width * hd + 4 * BLOCK * width) + 64


cdef inline void to_panels(const float* rows, int n, size_t hdp, float* panels) noexcept nogil:
    """(n, hdp) to [n / 16][hdp][16]; rows are there (zero) up to a multiple of 16"""
    cdef int p, i, j
    for p in range(0, n, 16):
        for i in range(0, 16, 8):
            for j in range(0, <int>hdp, 8):
                transpose8(rows + (p + i) * hdp + j, hdp, panels + p * hdp + 16 * j + i, 16)


cdef inline void gather(const float* source, size_t ld, int n, int head_dim, float scale, float* out, size_t hdp, size_t width) noexcept nogil:
    """(n, head_dim) with stride ld to (width, hdp), scaled, zeros around"""
    cdef int t, j
    memset(out, 0, 4 * width * hdp)
    for t in range(n):
        for j in range(head_dim):
            out[t * hdp + j] = source[t * ld + j] * scale


cdef void attend_backward(const float* q, size_t ldq, const float* k, const float* v, size_t ldkv,
                          const float* dout, size_t ldo, int n, int head_dim, float scale, float* dq, size_t lddq, float* dk, float* dv, size_t lddkv, float* work) noexcept nogil:
    """dq, dk, dv (n, head_dim) of one query head over a sequence of n tokens from position 0, written (not accumulated).

    P = softmax(scale q k^T) is computed again, a block of rows at a time: with dP = dout v^T,
    dS = P (dP - sum(P dP)), dq = scale dS k, dk = scale dS^T q, dv = P^T dout.
    """
    cdef size_t hdp = padded(head_dim, 16), width = padded(n, 16), rows, past
    cdef float* qs = work
    cdef float* ks = qs + width * hdp
    cdef float* kt = ks + width * hdp
    cdef float* vt = kt + width * hdp
    cdef float* ds = vt + width * hdp           # dout
    cdef float* gq = ds + width * hdp
    cdef float* gk = gq + width * hdp
    cdef float* gv = gk + width * hdp
    cdef float* p = gv + width * hdp            # (BLOCK, width) each
    cdef float* dp = p + BLOCK * width
    cdef float* pt = dp + BLOCK * width         # (width, BLOCK)
    cdef float* dpt = pt + BLOCK * width
    cdef int t0, r, i, j, count
    cdef float inverse
    cdef vf total
    gather(v, ldkv, n, head_dim, 1, qs, hdp, width)
    to_panels(qs, n, hdp, vt)
    gather(k, ldkv, n, head_dim, 1, ks, hdp, width)
    to_panels(ks, n, hdp, kt)
    gather(q, ldq, n, head_dim, scale, qs, hdp, width)
    gather(dout, ldo, n, head_dim, 1, ds, hdp, width)
    memset(gq, 0, 12 * width * hdp)
    for t0 in range(0, n, 32):
        rows = min(BLOCK, n - t0)
        past = padded(t0 + rows, 16)
        memset(p, 0, 8 * BLOCK * width)
        for j in range(0, <int>past, 16):
            panel_add(kt + j * hdp, 16, head_dim, qs + t0 * hdp, hdp, <int>rows, p + j, width)
            panel_add(vt + j * hdp, 16, head_dim, ds + t0 * hdp, hdp, <int>rows, dp + j, width)
        for r in range(<int>rows):
            inverse = 1 / softmax(p + r * width, t0 + r + 1, <int>past)
            total = vf_set1(0)
            for j in range(0, <int>past, 16):
                vf_store(p + r * width + j, vf_mul(vf_load(p + r * width + j), vf_set1(inverse)))
                total = vf_fma(vf_load(p + r * width + j), vf_load(dp + r * width + j), total)
            total = vf_set1(vf_hsum(total))
            for j in range(0, <int>past, 16):
                vf_store(dp + r * width + j, vf_mul(vf_load(p + r * width + j), vf_sub(vf_load(dp + r * width + j), total)))
        for i in range(0, 32, 8):
            for j in range(0, <int>past, 8):
                transpose8(p + i * width + j, width, pt + j * BLOCK + i, BLOCK)
                transpose8(dp + i * width + j, width, dpt + j * BLOCK + i, BLOCK)
        count = min(<int>past, n)
        for j in range(0, <int>hdp, 16):
            panel_add(ks + j, hdp, count, dp, width, <int>rows, gq + t0 * hdp + j, hdp)
            panel_add(qs + t0 * hdp + j, hdp, <int>rows, dpt, BLOCK, count, gk + j, hdp)
            panel_add(ds + t0 * hdp + j, hdp, <int>rows, pt, BLOCK, count, gv + j, hdp)
    for t0 in range(n):
        for j in range(head_dim):
            # qs carries the scale already, so gk does too
            dq[t0 * lddq + j] = gq[t0 * hdp + j] * scale
            dk[t0 * lddkv + j] = gk[t0 * hdp + j]
            dv[t0 * lddkv + j] = gv[t0 * hdp + j]


# ======== Python's side ========

def forward(q, k, v, bint half=False):
    """Attention of one sequence: q (T, n_head, hd), k and v (T, n_head_kv, hd) f32 -> (T, n_head, hd); scale 1 / sqrt(hd)."""
    cdef float[:, :, ::1] qv = np.ascontiguousarray(q, np.float32), kv = np.ascontiguousarray(k, np.float32)
    cdef float[:, :, ::1] vv = np.ascontiguousarray(v, np.float32), out = np.full(np.shape(q), np.nan, np.float32)
    cdef int T = <int>qv.shape[0], hd = <int>qv.shape[2], n_kv = <int>kv.shape[1], group = <int>qv.shape[1] // n_kv, t, h
    cdef size_t each = padded(T, 16) * padded(hd, 16) * (2 if half else 4)
    cdef uint8_t[::1] cache = np.zeros(2 * each, np.uint8), work = np.empty(attend_bytes(T * group, hd, T), np.uint8)
    cdef Head head
    head.k, head.v, head.half = &cache[0], &cache[each], half
    for h in range(n_kv):
        for t in range(T):
            store_kv(&head, t, hd, &kv[t, h, 0], &vv[t, h, 0])
        attend(&qv[0, h * group, 0], qv.shape[1] * hd, T, group, hd, 1 / <float>hd ** 0.5, 0, &head,
               &out[0, h * group, 0], qv.shape[1] * hd, <float*>&work[0])
    return np.asarray(out)


def backward(q, k, v, dout):
    """(dq, dk, dv) of `forward` in f32."""
    cdef float[:, :, ::1] qv = np.ascontiguousarray(q, np.float32), kv = np.ascontiguousarray(k, np.float32)
    cdef float[:, :, ::1] vv = np.ascontiguousarray(v, np.float32), g = np.ascontiguousarray(dout, np.float32)
    cdef float[:, :, ::1] dq = np.zeros(np.shape(q), np.float32)
    cdef float[:, :, ::1] dk = np.zeros(np.shape(q), np.float32), dv = np.zeros(np.shape(q), np.float32)
    cdef int T = <int>qv.shape[0], n_head = <int>qv.shape[1], hd = <int>qv.shape[2], n_kv = <int>kv.shape[1], h
    cdef uint8_t[::1] work = np.empty(attend_backward_bytes(T, hd), np.uint8)
    for h in range(n_head):
        attend_backward(&qv[0, h, 0], n_head * hd, &kv[0, h * n_kv // n_head, 0], &vv[0, h * n_kv // n_head, 0], n_kv * hd,
                        &g[0, h, 0], n_head * hd, T, hd, 1 / <float>hd ** 0.5, &dq[0, h, 0], n_head * hd,
                        &dk[0, h, 0], &dv[0, h, 0], n_head * hd, <float*>&work[0])
    shape = (T, n_kv, n_head // n_kv, hd)
    return np.asarray(dq), np.asarray(dk).reshape(shape).sum(2), np.asarray(dv).reshape(shape).sum(2)
