"""Causal attention: out_i = sum over j <= i of softmax_j(scale q_i . k_j) v_j, forward from a KV cache, backward by recomputing.

Axes: rows = tokens x query heads of one KV head's group, positions j, head_dim padded to 16 lanes. Positions go in chunks
of CHUNK, each with a softmax of its own (largest score, sum, weighted values); chunks are joined in ascending order. Who
computes a chunk, and with how many rows beside it, changes nothing: one token alone and the same token in a prompt, one
thread and many give equal bits. What the mask hides is skipped by whole chunks and tiles.
"""

from libc.math cimport INFINITY
from libc.stdint cimport int8_t, uint8_t, uint16_t
from libc.string cimport memcpy, memset

from ..products.inputs cimport padded
from ..products.panels cimport panel_add
from .kv16 cimport STEPS, load_some, round_query, scores16, softmax16, step_of, store16, store_some, values16
from ..simd.verbs cimport (
    prefetch, transpose8, vf, vf_abs, vf_add, vf_amax, vf_fma, vf_fma1, vf_hamax, vf_hmax, vf_hsum, vf_load,
    vf_load_f16, vf_load_s8, vf_max, vf_min, vf_mul, vf_set1, vf_store, vf_store_f16, vf_sub, vf_to_i, vi_store_s8,
)
from .vmath cimport vf_exp

import numpy as np

cdef enum:
    STEP = 64           # positions of values brought to f32 at a time
    LDS = CHUNK + 16    # floats from row to row of scores: rows 1 KB apart would share four sets of the first-level cache
    DIRECT_ROWS = 8             # query rows up to which the cache is read as it lies; more share a copy in f32
    PREFETCH_TILES = 2           # tiles between what is asked of memory and what is read
    BLOCK = 32          # query rows of a backward block

cdef float F16_MAX = 65504

# name of a cache's type -> how Head names it
KV_TYPES = {"f32": KV_F32, "f16": KV_F16, "q8_0": KV_Q8_0, "s16": KV_S16}


# ======== the cache ========

cdef inline size_t element_bytes(int kind) noexcept nogil:
    if kind == KV_F32:
        return 4
    return 1 if kind == KV_Q8_0 else 2


cdef inline size_t scales_bytes(int head_dim, int kind) noexcept nogil:
    """Bytes of a tile's scales: an f16 per position and 32 elements; an f32 per position."""
    if kind == KV_S16:
        return STEPS
    return 32 * (padded(head_dim, 32) // 32) if kind == KV_Q8_0 else 0


cdef size_t tile_part_bytes(int head_dim, int kind) noexcept nogil:
    """Bytes of 16 positions' keys or values."""
    return scales_bytes(head_dim, kind) + 16 * padded(head_dim, 16) * element_bytes(kind)


cdef inline uint8_t* tile_at(const KvHead* head, int position, int head_dim) noexcept nogil:
    """The tile of 16 positions that holds `position`: keys, then values."""
    cdef size_t bytes = tile_part_bytes(head_dim, head.k_type) + tile_part_bytes(head_dim, head.v_type)
    return head.tiles + position // CHUNK * head.stride + position % CHUNK // 16 * bytes


cdef inline vf within_f16(vf x) noexcept nogil:
    """beyond f16's range its largest number: an infinity would soon be NaN, which only infinities and NaN become here"""
    cdef vf limited = vf_max(vf_set1(-F16_MAX), vf_min(vf_set1(F16_MAX), x))
    return vf_sub(limited, vf_sub(x, x))


cdef inline void store_row(uint8_t* part, int kind, int head_dim, const float* x, int j, bint across) noexcept nogil:
    """x[head_dim] as position j of a tile's part: a column of keys (across) or a row of values"""
    cdef size_t hdp = padded(head_dim, 16), step = 16 if across else 1, at = j if across else j * hdp
    cdef uint8_t* data = part + scales_bytes(head_dim, kind)
    cdef float row[32]
    cdef uint16_t half[32]
    cdef int8_t code[32]
    cdef float d, inverse
    cdef int i, b, n
    if kind == KV_S16:
        store16(part, head_dim, hdp, x, j, across)
        return
    for b in range(0, head_dim, 32):
        n = min(32, head_dim - b)
        memset(row, 0, sizeof(row))
        memcpy(row, x + b, 4 * n)
        if kind == KV_F32:
            for i in range(n):
                # an infinite key would hide its position instead of showing
                (<float*>data)[at + step * (b + i)] = row[i] - (row[i] - row[i])
            continue
        if kind == KV_F16:
            vf_store_f16(half, within_f16(vf_load(row)))
            vf_store_f16(half + 16, within_f16(vf_load(row + 16)))
            for i in range(n):
                (<uint16_t*>data)[at + step * (b + i)] = half[i]
            continue
        d = vf_hamax(vf_amax(vf_abs(vf_load(row)), vf_load(row + 16))) / 127
        vf_store_f16(half, within_f16(vf_set1(d)))
        d = vf_hmax(vf_load_f16(half))
        (<uint16_t*>part)[b // 2 + j] = half[0]
        # codes for the scale as it was stored; it may have been rounded down, so they are limited
        inverse = 1 / d if d > 0 else 0
        for i in range(0, 32, 16):
            vi_store_s8(code + i, vf_to_i(vf_max(vf_min(vf_mul(vf_load(row + i), vf_set1(inverse)), vf_set1(127)), vf_set1(-127))))
        for i in range(n):
            (<int8_t*>data)[at + step * (b + i)] = code[i]


cdef void store_kv(const KvHead* head, int position, int head_dim, const float* k, const float* v) noexcept nogil:
    """Write one position's key and value (head_dim,) to the head's cache."""
    cdef uint8_t* tile = tile_at(head, position, head_dim)
    store_row(tile, head.k_type, head_dim, k, position % 16, True)
    store_row(tile + tile_part_bytes(head_dim, head.k_type), head.v_type, head_dim, v, position % 16, False)


cdef inline vf load16(const uint8_t* data, size_t i, vf scale, int kind) noexcept nogil:
    """cached values i..i + 16 as f32, exactly: code times scale has 18 bits at most"""
    if kind == KV_F16:
        return vf_load_f16(<const uint16_t*>data + i)
    if kind == KV_Q8_0:
        return vf_mul(vf_load_s8(<const int8_t*>data + i), scale)
    return vf_load(<const float*>data + i)


cdef inline void widen_keys(const uint8_t* part, int head_dim, int kind, float* out) noexcept nogil:
    """a tile's keys as f32 [head_dim][16]"""
    cdef const uint8_t* data = part + scales_bytes(head_dim, kind)
    cdef vf scale = vf_set1(1)
    cdef int i
    for i in range(head_dim):
        if kind == KV_Q8_0 and i % 32 == 0:
            scale = vf_load_f16(<const uint16_t*>part + i // 2)
        vf_store(out + 16 * i, load16(data, 16 * i, scale, kind))


cdef inline void widen_values(const uint8_t* part, int head_dim, int kind, float* out) noexcept nogil:
    """a tile's values as f32 [16][head_dim padded to 16]"""
    cdef const uint8_t* data = part + scales_bytes(head_dim, kind)
    cdef size_t hdp = padded(head_dim, 16)
    cdef vf scale = vf_set1(1)
    cdef float d[16]
    cdef int i, j
    for i in range(0, <int>hdp, 16):
        if kind == KV_Q8_0:
            vf_store(d, vf_load_f16(<const uint16_t*>part + i // 32 * 16))
        for j in range(16):
            if kind == KV_Q8_0:
                scale = vf_set1(d[j])
            vf_store(out + j * hdp + i, load16(data, j * hdp + i, scale, kind))


# ======== few rows: straight from the cache ========

cdef inline void few_scores(const uint8_t* part, int head_dim, int kind, const float* q, size_t ldq, int rows, float* s, size_t lds) noexcept nogil:
    """s[rows][16] = q . the keys of a tile; rows (1 to 4) and kind are constants. Sums as panel_add's."""
    cdef const uint8_t* data = part + scales_bytes(head_dim, kind)
    cdef vf a0 = vf_set1(0), a1 = vf_set1(0), a2 = vf_set1(0), a3 = vf_set1(0), scale = vf_set1(1), v
    cdef const float* q1 = q + ldq
    cdef const float* q2 = q1 + ldq
    cdef const float* q3 = q2 + ldq
    cdef Py_ssize_t i
    cdef int b
    for b in range(0, head_dim, 32):
        if kind == KV_Q8_0:
            scale = vf_load_f16(<const uint16_t*>part + b // 2)
        for i in range(b, min(b + 32, head_dim)):
            v = load16(data, 0, scale, kind)
            data += 16 * element_bytes(kind)
            a0 = vf_fma1(v, q[i], a0)
            if rows > 1:
                a1 = vf_fma1(v, q1[i], a1)
            if rows > 2:
                a2 = vf_fma1(v, q2[i], a2)
            if rows > 3:
                a3 = vf_fma1(v, q3[i], a3)
    vf_store(s, a0)
    if rows > 1:
        vf_store(s + lds, a1)
    if rows > 2:
        vf_store(s + 2 * lds, a2)
    if rows > 3:
        vf_store(s + 3 * lds, a3)


cdef inline void few_values(const uint8_t* part, size_t tile, int n, int head_dim, int kind, int lane, const float* p, size_t ldp, int rows, float* o, size_t ldo) noexcept nogil:
    """o[rows][16 lanes from `lane`] += p . the values of n positions in tiles `tile` bytes apart; rows, kind constants"""
    cdef size_t hdp = padded(head_dim, 16), at = scales_bytes(head_dim, kind)
    cdef vf a0 = vf_load(o), a1 = a0, a2 = a0, a3 = a0, scale = vf_set1(1), v
    cdef float d[16]
    cdef int t, j
    if rows > 1:
        a1 = vf_load(o + ldo)
    if rows > 2:
        a2 = vf_load(o + 2 * ldo)
    if rows > 3:
        a3 = vf_load(o + 3 * ldo)
    for t in range(0, n, 16):
        if kind == KV_Q8_0:
            vf_store(d, vf_load_f16(<const uint16_t*>part + lane // 32 * 16))
        for j in range(min(16, n - t)):
            if kind == KV_Q8_0:
                scale = vf_set1(d[j])
            v = load16(part + at, j * hdp + lane, scale, kind)
            a0 = vf_fma1(v, p[j], a0)
            if rows > 1:
                a1 = vf_fma1(v, p[ldp + j], a1)
            if rows > 2:
                a2 = vf_fma1(v, p[2 * ldp + j], a2)
            if rows > 3:
                a3 = vf_fma1(v, p[3 * ldp + j], a3)
        part += tile
        p += 16
    vf_store(o, a0)
    if rows > 1:
        vf_store(o + ldo, a1)
    if rows > 2:
        vf_store(o + 2 * ldo, a2)
    if rows > 3:
        vf_store(o + 3 * ldo, a3)


cdef inline void scores_of(const uint8_t* part, int head_dim, int kind, const float* q, size_t ldq, int rows, float* s, size_t lds) noexcept nogil:
    """few_scores of up to 4 rows, kind constant"""
    if rows == 1:
        few_scores(part, head_dim, kind, q, ldq, 1, s, lds)
    elif rows == 2:
        few_scores(part, head_dim, kind, q, ldq, 2, s, lds)
    elif rows == 3:
        few_scores(part, head_dim, kind, q, ldq, 3, s, lds)
    else:
        few_scores(part, head_dim, kind, q, ldq, 4, s, lds)


cdef inline void values_of(const uint8_t* part, size_t tile, int n, int head_dim, int kind, int lane, const float* p, size_t ldp, int rows, float* o, size_t ldo) noexcept nogil:
    """few_values of up to 4 rows, kind constant"""
    if rows == 1:
        few_values(part, tile, n, head_dim, kind, lane, p, ldp, 1, o, ldo)
    elif rows == 2:
        few_values(part, tile, n, head_dim, kind, lane, p, ldp, 2, o, ldo)
    elif rows == 3:
        few_values(part, tile, n, head_dim, kind, lane, p, ldp, 3, o, ldo)
    else:
        few_values(part, tile, n, head_dim, kind, lane, p, ldp, 4, o, ldo)


cdef void tile_scores(const uint8_t* part, int head_dim, int kind, const float* q, size_t ldq, int rows, float* s, size_t lds) noexcept nogil:
    """s[rows][16] = q . the keys of a tile"""
    cdef int r, n
    for r in range(0, rows, 4):
        n = min(4, rows - r)
        if kind == KV_F16:
            scores_of(part, head_dim, KV_F16, q + r * ldq, ldq, n, s + r * lds, lds)
        elif kind == KV_Q8_0:
            scores_of(part, head_dim, KV_Q8_0, q + r * ldq, ldq, n, s + r * lds, lds)
        else:
            scores_of(part, head_dim, KV_F32, q + r * ldq, ldq, n, s + r * lds, lds)


cdef void tile_values(const uint8_t* part, size_t tile, int n, int head_dim, int kind, const float* p, size_t ldp, int rows, float* o, size_t ldo) noexcept nogil:
    """o[rows][head_dim] += p . the values of n positions"""
    cdef int r, some, lane
    for r in range(0, rows, 4):
        some = min(4, rows - r)
        for lane in range(0, head_dim, 16):
            if kind == KV_F16:
                values_of(part, tile, n, head_dim, KV_F16, lane, p + r * ldp, ldp, some, o + r * ldo + lane, ldo)
            elif kind == KV_Q8_0:
                values_of(part, tile, n, head_dim, KV_Q8_0, lane, p + r * ldp, ldp, some, o + r * ldo + lane, ldo)
            else:
                values_of(part, tile, n, head_dim, KV_F32, lane, p + r * ldp, ldp, some, o + r * ldo + lane, ldo)


# ======== a chunk, and chunks together ========

cdef inline void fetch(const uint8_t* p, size_t bytes) noexcept nogil:
    """Ask for memory that is read soon."""
    cdef size_t i
    for i in range(0, bytes, 64):
        prefetch(p + i)


cdef inline float softmax(float* s, int n, int width, float* peak) noexcept nogil:
    """s[n] becomes exp(s - peak), the rest of width (a multiple of 16) zero; returns the sum, peak[0] = the largest

    With a NaN in s the sum is NaN, whatever the peak: vf_exp hands it on.
    """
    cdef int i, whole = n // 16 * 16
    cdef vf top = vf_set1(-INFINITY), total = vf_set1(0), e
    for i in range(n, width):
        s[i] = -INFINITY
    for i in range(0, whole, 16):
        top = vf_max(top, vf_load(s + i))
    if whole < width:
        top = vf_max(top, vf_load(s + whole))
    peak[0] = vf_hmax(top)
    for i in range(0, whole, 16):
        e = vf_exp(vf_sub(vf_load(s + i), vf_set1(peak[0])))
        vf_store(s + i, e)
        total = vf_add(total, e)
    if whole < width:
        vf_store(s + whole, vf_exp(vf_sub(vf_load(s + whole), vf_set1(peak[0]))))
        for i in range(n, width):
            s[i] = 0
        total = vf_add(total, vf_load(s + whole))
    return vf_hsum(total)


cdef size_t attend_bytes(int rows, int head_dim) noexcept nogil:
    """Bytes of scratch for `rows` query rows."""
    cdef size_t hd = padded(head_dim, 16)
    return 4 * (rows * (3 * hd + LDS + 4) + STEP * hd) + 64


cdef void attend_chunk(const float* q, int rows, int group, int head_dim, int position, int chunk, const KvHead* head, float* o, float* peaks, float* totals, float* work) noexcept nogil:
    """o[r] (head_dim padded to 16) = sum over the chunk's positions of exp(score - peak) v, with peaks[r] and totals[r].

    q: scaled queries (rows, padded), token t's at rows t group and on, at position + t; rows that do not see the chunk
    are left out. work: scores [rows][LDS], then values [STEP][padded].
    """
    cdef size_t hdp = padded(head_dim, 16), k_bytes = tile_part_bytes(head_dim, head.k_type)
    cdef size_t tile = k_bytes + tile_part_bytes(head_dim, head.v_type)
    cdef int start = chunk * CHUNK, end = min(start + CHUNK, position + rows // group), n_tiles = (end - start + 15) // 16
    cdef int r, j, g, i, n, lo = max(0, start - position) * group, first, width = 16 * n_tiles
    cdef bint few = rows - lo <= DIRECT_ROWS
    cdef bint whole = head.k_type == KV_S16
    cdef const uint8_t* base = head.tiles + chunk * head.stride
    cdef float* s = work
    cdef float* wide = work + <size_t>rows * LDS
    if not few and not whole:
        memset(s + <size_t>lo * LDS, 0, 4 * <size_t>(rows - lo) * LDS)
    for j in range(n_tiles):
        first = max(lo, (start + 16 * j - position) * group)
        if few and j + PREFETCH_TILES < n_tiles:
            fetch(base + (j + PREFETCH_TILES) * tile, tile)
        if whole:
            scores16(base + j * tile, q + first * hdp, hdp, rows - first, s + first * LDS + 16 * j, LDS)
        elif few:
            tile_scores(base + j * tile, head_dim, head.k_type, q + first * hdp, hdp, rows - first, s + first * LDS + 16 * j, LDS)
        else:
            widen_keys(base + j * tile, head_dim, head.k_type, wide)
            panel_add(wide, 16, head_dim, q + first * hdp, hdp, rows - first, s + first * LDS + 16 * j, LDS)
    if head.v_type == KV_S16:
        for r in range(lo, rows, 4):
            n = min(4, rows - r)
            for i in range(r, r + n):
                totals[i] = softmax16(s + i * LDS, min(position + i // group + 1 - start, CHUNK), base + k_bytes, tile, CHUNK // 2, peaks + i)
            values16(base + k_bytes, tile, min(n_tiles, (position + (r + n - 1) // group - start) // 16 + 1), hdp, s + r * LDS, LDS, CHUNK // 2, n, o + r * hdp)
        return
    for r in range(lo, rows):
        totals[r] = softmax(s + r * LDS, min(position + r // group + 1 - start, width), width, peaks + r)
    memset(o + lo * hdp, 0, 4 * (rows - lo) * hdp)
    if few:
        tile_values(base + k_bytes, tile, end - start, head_dim, head.v_type, s + lo * LDS, LDS, rows - lo, o + lo * hdp, hdp)
        return
    for j in range(0, n_tiles, 4):
        n = min(STEP // 16, n_tiles - j)
        for i in range(n):
            widen_values(base + (j + i) * tile + k_bytes, head_dim, head.v_type, wide + 16 * i * hdp)
        first = max(lo, (start + 16 * j - position) * group)
        for g in range(0, <int>hdp, 16):
            panel_add(wide + g, hdp, min(16 * n, end - start - 16 * j), s + first * LDS + 16 * j, LDS, rows - first, o + first * hdp + g, hdp)


cdef inline float exp1(float x) noexcept nogil:
    return vf_hmax(vf_exp(vf_set1(x)))


cdef inline void join(float* o, float* peak, float* total, const float* other, float other_peak, float other_total, size_t hdp) noexcept nogil:
    """Put the next chunk's result into (o, peak, total)."""
    cdef float top = max(peak[0], other_peak), a = exp1(min(peak[0], other_peak) - top), b = 1
    cdef size_t i
    if top == peak[0]:
        a, b = b, a
    peak[0], total[0] = top, total[0] * a + other_total * b
    for i in range(0, hdp, 16):
        vf_store(o + i, vf_fma1(vf_load(o + i), a, vf_mul(vf_load(other + i), vf_set1(b))))


cdef inline void scaled_queries(const float* q, size_t ldq, int n_tokens, int group, int head_dim, float scale, int kind, float* out, float* steps) noexcept nogil:
    """(n_tokens, group, head_dim) with token stride ldq to rows of padded length, scaled, as keys of that kind want them

    steps: scratch, n_tokens * group.
    """
    cdef int t, g, j, r, hdp = <int>padded(head_dim, 16)
    for t in range(n_tokens):
        for g in range(group):
            r = t * group + g
            for j in range(0, hdp, 16):
                vf_store(out + r * hdp + j, vf_mul(load_some(q + t * ldq + g * head_dim + j, head_dim - j), vf_set1(scale)))
            if kind == KV_S16:
                steps[r] = step_of(out + r * hdp, hdp, False)
    if kind == KV_S16:
        for r in range(n_tokens * group):
            round_query(out + r * hdp, hdp, steps[r])


cdef void attend(const float* q, size_t ldq, int n_tokens, int group, int head_dim, float scale, int position, const KvHead* head, float* out, size_t ldo, float* work) noexcept nogil:
    """out (n_tokens, group, head_dim) for tokens at position, position + 1, ... that share one KV head.

    q and out: the group's first head of the first token, token strides ldq, ldo. work: attend_bytes. The cache must
    already hold the tokens' own keys and values.
    """
    cdef size_t hdp = padded(head_dim, 16)
    cdef int rows = n_tokens * group, t, g, r, j, chunk
    cdef float inverse
    cdef float* qs = work                       # (rows, hdp) scaled queries
    cdef float* o = qs + rows * hdp             # (rows, hdp)
    cdef float* part = o + rows * hdp           # (rows, hdp), one chunk's
    cdef float* peaks = part + rows * hdp
    cdef float* totals = peaks + rows
    cdef float* part_peaks = totals + rows
    cdef float* part_totals = part_peaks + rows
    scaled_queries(q, ldq, n_tokens, group, head_dim, scale, head.k_type, qs, peaks)
    attend_chunk(qs, rows, group, head_dim, position, 0, head, o, peaks, totals, part_totals + rows)
    for chunk in range(1, (position + n_tokens - 1) // CHUNK + 1):
        attend_chunk(qs, rows, group, head_dim, position, chunk, head, part, part_peaks, part_totals, part_totals + rows)
        for r in range(max(0, chunk * CHUNK - position) * group, rows):
            join(o + r * hdp, peaks + r, totals + r, part + r * hdp, part_peaks[r], part_totals[r], hdp)
    for t in range(n_tokens):
        for g in range(group):
            inverse = 1 / totals[t * group + g]
            for j in range(0, head_dim, 16):
                store_some(out + t * ldo + g * head_dim + j, vf_mul(vf_load(o + j), vf_set1(inverse)), head_dim - j)
            o += hdp


cdef void attend_part(const float* q, size_t ldq, int n_tokens, int group, int head_dim, float scale, int position, int chunk, const KvHead* head,
                      float* parts, size_t ld_token, size_t ld_head, float* work) noexcept nogil:
    """One chunk's share of `attend`, for `join_parts` to put together: parts[t ld_token + g ld_head + chunk * part_floats]."""
    cdef size_t hdp = padded(head_dim, 16)
    cdef int rows = n_tokens * group, t, g, r
    cdef float* qs = work
    cdef float* o = qs + rows * hdp
    cdef float* peaks = o + rows * hdp
    cdef float* totals = peaks + rows
    cdef float* to
    scaled_queries(q, ldq, n_tokens, group, head_dim, scale, head.k_type, qs, peaks)
    attend_chunk(qs, rows, group, head_dim, position, chunk, head, o, peaks, totals, totals + rows)
    for t in range(max(0, chunk * CHUNK - position), n_tokens):
        for g in range(group):
            r = t * group + g
            to = parts + t * ld_token + g * ld_head + chunk * part_floats(head_dim)
            memcpy(to, o + r * hdp, 4 * hdp)
            to[hdp], to[hdp + 1] = peaks[r], totals[r]


cdef void join_parts(float* parts, int n_chunks, int head_dim, float* out) noexcept nogil:
    """out[head_dim] of one token and query head from its n_chunks parts, which are overwritten."""
    cdef size_t hdp = padded(head_dim, 16), each = part_floats(head_dim)
    cdef float* next = parts
    cdef float inverse
    cdef int _chunk, j
    for _chunk in range(1, n_chunks):
        next += each
        join(parts, parts + hdp, parts + hdp + 1, next, next[hdp], next[hdp + 1], hdp)
    inverse = 1 / parts[hdp + 1]
    for j in range(0, head_dim, 16):
        store_some(out + j, vf_mul(vf_load(parts + j), vf_set1(inverse)), head_dim - j)


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
    cdef float inverse, peak
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
            inverse = 1 / softmax(p + r * width, t0 + r + 1, <int>past, &peak)
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

def forward(q, k, v, kv_type="f32", v_type=None, bint split=False):
    """Attention of one sequence: q (T, n_head, hd), k and v (T, n_head_kv, hd) f32 -> (T, n_head, hd); scale 1 / sqrt(hd).

    kv_type, v_type (None: the same): how keys and values are kept. split: one token at a time and chunk by chunk.
    """
    cdef float[:, :, ::1] qv = np.ascontiguousarray(q, np.float32), kv = np.ascontiguousarray(k, np.float32)
    cdef float[:, :, ::1] vv = np.ascontiguousarray(v, np.float32), out = np.full(np.shape(q), np.nan, np.float32)
    cdef int T = <int>qv.shape[0], hd = <int>qv.shape[2], n_kv = <int>kv.shape[1], group = <int>qv.shape[1] // n_kv, t, h, g, i
    cdef int n_chunks = (T - 1) // CHUNK + 1
    cdef size_t ld = qv.shape[1] * hd, each = n_chunks * part_floats(hd)
    cdef float scale = 1 / <float>hd ** 0.5
    cdef KvHead head
    head.k_type, head.v_type = KV_TYPES[kv_type], KV_TYPES[v_type or kv_type]
    head.stride = CHUNK // 16 * (tile_part_bytes(hd, head.k_type) + tile_part_bytes(hd, head.v_type))
    cdef uint8_t[::1] cache = np.zeros(n_chunks * head.stride, np.uint8), work = np.empty(attend_bytes(T * group, hd), np.uint8)
    cdef float[::1] parts = np.full(group * each, np.nan, np.float32)
    head.tiles = &cache[0]
    for h in range(n_kv):
        for t in range(T):
            store_kv(&head, t, hd, &kv[t, h, 0], &vv[t, h, 0])
        if not split:
            attend(&qv[0, h * group, 0], ld, T, group, hd, scale, 0, &head, &out[0, h * group, 0], ld, <float*>&work[0])
            continue
        for t in range(T):
            for i in reversed(range(t // CHUNK + 1)):
                attend_part(&qv[t, h * group, 0], ld, 1, group, hd, scale, t, i, &head, &parts[0], 0, each, <float*>&work[0])
            for g in range(group):
                join_parts(&parts[g * each], t // CHUNK + 1, hd, &out[t, h * group + g, 0])
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
