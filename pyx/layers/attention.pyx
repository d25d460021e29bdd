"""Causal attention: out_i = sum over j <= i of softmax_j(scale q_i . k_j) v_j, forward from a KV cache, backward by recomputing.

Axes: rows = tokens x query heads of one KV head's group, positions j, head_dim padded to 16 lanes. Positions go in chunks
of CHUNK, each with a softmax of its own (largest score, sum, weighted values); chunks are joined in ascending order. Who
computes a chunk, and with how many rows beside it, changes nothing: one token alone and the same token in a prompt, one
thread and many give equal bits. What the mask hides is skipped by whole chunks and tiles.
"""

from libc.stdint cimport uint8_t, uint16_t
from libc.string cimport memcpy, memset

from ..products.inputs cimport padded
from ..products.panels cimport panel_add
from ..simd.verbs cimport prefetch, vf, vf_fma1, vf_load, vf_load_f16, vf_mul, vf_set1, vf_store
from .kv16 cimport load_some, round_query, scores16, softmax16, step_of, store_some, values16
from .kvcache cimport (
    ALL_CHUNKS, CHUNK, KV_F16, KV_F32, KV_Q8_0, KV_S16, KvHead, chunk_at, element_bytes, load16, scales_bytes, store_kv,
    tile_bytes, tile_part_bytes, widen_keys, widen_values,
)
from .scores cimport NO_WINDOW, Scoring, exp1, first_seen, sink_weight, soft_cap, softmax

import numpy as np

cdef enum:
    STEP = 64           # positions of values brought to f32 at a time
    LDS = CHUNK + 16    # floats from row to row of scores: rows 1 KB apart would share four sets of the first-level cache
    DIRECT_ROWS = 8             # query rows up to which the cache is read as it lies; more share a copy in f32
    PREFETCH_TILES = 2           # tiles between what is asked of memory and what is read

# name of a cache's type -> how Head names it
KV_TYPES = {"f32": KV_F32, "f16": KV_F16, "q8_0": KV_Q8_0, "s16": KV_S16}


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


cdef size_t attend_bytes(int rows, int head_dim) noexcept nogil:
    """Bytes of scratch for `rows` query rows."""
    cdef size_t hd = padded(head_dim, 16)
    return 4 * (rows * (3 * hd + LDS + 4) + STEP * hd) + 64


cdef inline int rows_before(int position, int end, int n_tokens, int group) noexcept nogil:
    """How many rows of n_tokens, at `position` and on, with `group` rows each, belong to positions before `end`"""
    return max(0, min(end - position, n_tokens)) * group


cdef void chunk_scores(const float* q, int rows, int group, int head_dim, const Scoring* how, int position, int chunk, const KvHead* head, float* s, float* wide) noexcept nogil:
    """s[rows][LDS] = scores of a chunk's positions, of the tiles that a row sees any of; wide: scratch for a tile's keys"""
    cdef size_t hdp = padded(head_dim, 16), tile = tile_bytes(head, head_dim)
    cdef int n_tokens = rows // group, start = chunk * CHUNK, end = min(start + CHUNK, position + n_tokens), n_tiles = (end - start + 15) // 16
    cdef int lo = rows_before(position, start, n_tokens, group), j, at, first, last
    cdef bint few = rows - lo <= DIRECT_ROWS, whole = head.k_type == KV_S16
    cdef const uint8_t* base = chunk_at(head, chunk)
    if not few and not whole:
        memset(s + <size_t>lo * LDS, 0, 4 * <size_t>(rows - lo) * LDS)
    for j in range(max(0, first_seen(how, position + lo // group) - start) // 16, n_tiles):
        first = rows_before(position, start + 16 * j, n_tokens, group)
        last = rows_before(position, start + 16 * j + 15 + how.window, n_tokens, group)
        if few and j + PREFETCH_TILES < n_tiles:
            fetch(base + (j + PREFETCH_TILES) * tile, tile)
        if whole:
            scores16(base + j * tile, q + first * hdp, hdp, last - first, s + first * LDS + 16 * j, LDS)
        elif few:
            tile_scores(base + j * tile, head_dim, head.k_type, q + first * hdp, hdp, last - first, s + first * LDS + 16 * j, LDS)
        else:
            widen_keys(base + j * tile, head_dim, head.k_type, wide)
            panel_add(wide, 16, head_dim, q + first * hdp, hdp, last - first, s + first * LDS + 16 * j, LDS)
    if how.cap == 0:
        return
    for j in range(lo, rows_before(position, start + CHUNK - 1 + how.window, n_tokens, group)):
        at = position + j // group
        first = max(0, first_seen(how, at) - start) // 16 * 16
        soft_cap(s + j * LDS + first, min(at + 1 - start, CHUNK) - first, how.cap)


cdef void attend_chunk(const float* q, int rows, int group, int head_dim, const Scoring* how, int position, int chunk,
                       const KvHead* head, float* o, float* peaks, float* totals, float* work) noexcept nogil:
    """o[r] (head_dim padded to 16) = sum over the chunk's positions of exp(score - peak) v, with peaks[r] and totals[r].

    q: scaled queries (rows, padded), token t's at rows t group and on, at position + t; rows that see nothing of the chunk
    are left out. work: scores [rows][LDS], then values [STEP][padded].
    """
    cdef size_t hdp = padded(head_dim, 16), tile = tile_bytes(head, head_dim)
    cdef int n_tokens = rows // group, start = chunk * CHUNK, end = min(start + CHUNK, position + n_tokens), width = <int>padded(end - start, 16)
    cdef int lo = rows_before(position, start, n_tokens, group), hi = rows_before(position, start + CHUNK - 1 + how.window, n_tokens, group)
    cdef int r, i, n, at, begin, first, last
    cdef const uint8_t* values = chunk_at(head, chunk) + tile_part_bytes(head_dim, head.k_type)
    cdef float* s = work
    cdef float* wide = work + <size_t>rows * LDS
    chunk_scores(q, rows, group, head_dim, how, position, chunk, head, s, wide)
    if head.v_type == KV_S16:
        for r in range(lo, hi, 4):
            n, at = min(4, hi - r), 0
            for i in range(r, r + n):
                at = position + i // group
                totals[i] = softmax16(s + i * LDS, max(0, first_seen(how, at) - start), min(at + 1 - start, CHUNK), values, tile, CHUNK // 2, peaks + i)
            begin = max(0, first_seen(how, position + r // group) - start) // 16
            values16(values + begin * tile, tile, min(width // 16, (at - start) // 16 + 1) - begin, hdp,
                     s + r * LDS + 8 * begin, LDS, CHUNK // 2 - 8 * begin, n, o + r * hdp)
        return
    for r in range(lo, hi):
        at = position + r // group
        totals[r] = softmax(s + r * LDS, max(0, first_seen(how, at) - start), min(at + 1 - start, width), width, peaks + r)
    memset(o + lo * hdp, 0, 4 * (hi - lo) * hdp)
    begin = max(0, first_seen(how, position + lo // group) - start) // 16 * 16
    if rows - lo <= DIRECT_ROWS:
        tile_values(values + begin // 16 * tile, tile, end - start - begin, head_dim, head.v_type, s + lo * LDS + begin, LDS, hi - lo, o + lo * hdp, hdp)
        return
    for i in range(begin, width, 64):
        n = min(STEP, width - i)
        for r in range(0, n, 16):
            widen_values(values + (i + r) // 16 * tile, head_dim, head.v_type, wide + r * hdp)
        first = rows_before(position, start + i, n_tokens, group)
        last = rows_before(position, start + i + n - 1 + how.window, n_tokens, group)
        for r in range(0, <int>hdp, 16):
            panel_add(wide + r, hdp, min(n, end - start - i), s + first * LDS + i, LDS, last - first, o + first * hdp + r, hdp)


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


cdef void attend(const float* q, size_t ldq, int n_tokens, int group, int head_dim, const Scoring* how, int query_head, int position, const KvHead* head,
                 float* out, size_t ldo, float* work) noexcept nogil:
    """out (n_tokens, group, head_dim) for tokens at position, position + 1, ... that share one KV head.

    q and out: the group's first head, number query_head, of the first token, token strides ldq, ldo. work: attend_bytes.
    The cache must already hold the tokens' own keys and values.
    """
    cdef size_t hdp = padded(head_dim, 16)
    cdef int rows = n_tokens * group, t, g, r, j, first = first_seen(how, position) // CHUNK, chunk
    cdef float inverse
    cdef float* qs = work                       # (rows, hdp) scaled queries
    cdef float* o = qs + rows * hdp             # (rows, hdp)
    cdef float* part = o + rows * hdp           # (rows, hdp), one chunk's
    cdef float* peaks = part + rows * hdp
    cdef float* totals = peaks + rows
    cdef float* part_peaks = totals + rows
    cdef float* part_totals = part_peaks + rows
    scaled_queries(q, ldq, n_tokens, group, head_dim, how.scale, head.k_type, qs, peaks)
    attend_chunk(qs, rows, group, head_dim, how, position, first, head, o, peaks, totals, part_totals + rows)
    for chunk in range(first + 1, (position + n_tokens - 1) // CHUNK + 1):
        attend_chunk(qs, rows, group, head_dim, how, position, chunk, head, part, part_peaks, part_totals, part_totals + rows)
        for r in range(rows_before(position, chunk * CHUNK, n_tokens, group), rows_before(position, chunk * CHUNK + CHUNK - 1 + how.window, n_tokens, group)):
            if first_seen(how, position + r // group) // CHUNK < chunk:
                join(o + r * hdp, peaks + r, totals + r, part + r * hdp, part_peaks[r], part_totals[r], hdp)
                continue
            memcpy(o + r * hdp, part + r * hdp, 4 * hdp)
            peaks[r], totals[r] = part_peaks[r], part_totals[r]
    for t in range(n_tokens):
        for g in range(group):
            r = t * group + g
            inverse = 1 / (totals[r] + sink_weight(how, query_head + g, peaks[r]))
            for j in range(0, head_dim, 16):
                store_some(out + t * ldo + g * head_dim + j, vf_mul(vf_load(o + j), vf_set1(inverse)), head_dim - j)
            o += hdp


cdef void attend_part(const float* q, size_t ldq, int n_tokens, int group, int head_dim, const Scoring* how, int position, int chunk, const KvHead* head,
                      float* parts, size_t ld_token, size_t ld_head, float* work) noexcept nogil:
    """One chunk's share of `attend`, for `join_parts` to put together: parts[t ld_token + g ld_head + chunk * part_floats]."""
    cdef size_t hdp = padded(head_dim, 16)
    cdef int rows = n_tokens * group, t, g, r
    cdef float* qs = work
    cdef float* o = qs + rows * hdp
    cdef float* peaks = o + rows * hdp
    cdef float* totals = peaks + rows
    cdef float* to
    scaled_queries(q, ldq, n_tokens, group, head_dim, how.scale, head.k_type, qs, peaks)
    attend_chunk(qs, rows, group, head_dim, how, position, chunk, head, o, peaks, totals, totals + rows)
    for t in range(rows_before(position, chunk * CHUNK, n_tokens, 1), rows_before(position, chunk * CHUNK + CHUNK - 1 + how.window, n_tokens, 1)):
        for g in range(group):
            r = t * group + g
            to = parts + t * ld_token + g * ld_head + chunk * part_floats(head_dim)
            memcpy(to, o + r * hdp, 4 * hdp)
            to[hdp], to[hdp + 1] = peaks[r], totals[r]


cdef void join_parts(float* parts, int head_dim, const Scoring* how, int query_head, int position, float* out) noexcept nogil:
    """out[head_dim] of one token and query head from the parts of all chunks that it sees, which are overwritten."""
    cdef size_t hdp = padded(head_dim, 16), each = part_floats(head_dim)
    cdef int _chunk, first = first_seen(how, position) // CHUNK, j
    cdef float* o = parts + first * each
    cdef float* next = o
    cdef float inverse
    for _chunk in range(first, position // CHUNK):
        next += each
        join(o, o + hdp, o + hdp + 1, next, next[hdp], next[hdp + 1], hdp)
    inverse = 1 / (o[hdp + 1] + sink_weight(how, query_head, o[hdp]))
    for j in range(0, head_dim, 16):
        store_some(out + j, vf_mul(vf_load(o + j), vf_set1(inverse)), head_dim - j)


# ======== Python's side ========

def forward(q, k, v, kv_type="f32", v_type=None, bint split=False, float cap=0, int window=NO_WINDOW, sinks=None, int ring=ALL_CHUNKS):
    """Attention of one sequence: q (T, n_head, hd), k and v (T, n_head_kv, hd) f32 -> (T, n_head, hd); scale 1 / sqrt(hd).

    kv_type, v_type (None: the same): how keys and values are kept. split: one token at a time and chunk by chunk; then the
    cache may have `ring` chunks only, at least those that a window reaches into. cap, window, sinks (n_head,): see Scoring.
    """
    cdef float[:, :, ::1] qv = np.ascontiguousarray(q, np.float32), kv = np.ascontiguousarray(k, np.float32)
    cdef float[:, :, ::1] vv = np.ascontiguousarray(v, np.float32), out = np.full(np.shape(q), np.nan, np.float32)
    cdef int T = <int>qv.shape[0], hd = <int>qv.shape[2], n_kv = <int>kv.shape[1], group = <int>qv.shape[1] // n_kv, t, h, g, i
    cdef int n_chunks = (T - 1) // CHUNK + 1, first
    cdef size_t ld = qv.shape[1] * hd, each = n_chunks * part_floats(hd)
    cdef const float[::1] of_sinks
    cdef Scoring how = Scoring(1 / <float>hd ** 0.5, cap, window, NULL)
    cdef KvHead head
    if sinks is not None:
        of_sinks = np.ascontiguousarray(sinks, np.float32)
        how.sinks = &of_sinks[0]
    head.k_type, head.v_type, head.ring = KV_TYPES[kv_type], KV_TYPES[v_type or kv_type], ring
    head.stride = CHUNK // 16 * tile_bytes(&head, hd)
    cdef uint8_t[::1] cache = np.zeros(min(n_chunks, ring) * head.stride, np.uint8), work = np.empty(attend_bytes(T * group, hd), np.uint8)
    cdef float[::1] parts = np.full(group * each, np.nan, np.float32)
    head.tiles = &cache[0]
    for h in range(n_kv):
        for t in range(T):
            store_kv(&head, t, hd, &kv[t, h, 0], &vv[t, h, 0])
            if not split:
                continue
            first = first_seen(&how, t) // CHUNK
            for i in reversed(range(first, t // CHUNK + 1)):
                attend_part(&qv[t, h * group, 0], ld, 1, group, hd, &how, t, i, &head, &parts[0], 0, each, <float*>&work[0])
            for g in range(group):
                join_parts(&parts[g * each], hd, &how, h * group + g, t, &out[t, h * group + g, 0])
        if not split:
            attend(&qv[0, h * group, 0], ld, T, group, hd, &how, h * group, 0, &head, &out[0, h * group, 0], ld, <float*>&work[0])
    return np.asarray(out)
