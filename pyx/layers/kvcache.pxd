# Where keys and values lie: tiles of 16 positions, each keys [head_dim][16] and then values [16][head_dim padded to 16]: both
# products of attention read them in rows of 16 lanes. With q8_0 each part begins with its scales, f16 [head_dim / 32][16];
# s16 is kv16.pxd's. CHUNK positions of one head are contiguous; chunks are `stride` bytes apart. Where layers look back no
# further than a window, `ring` chunks are all there is, and a later chunk takes the place of the one `ring` chunks before.

from libc.stdint cimport int8_t, uint8_t, uint16_t
from libc.string cimport memcpy, memset

from ..products.inputs cimport padded
from ..simd.verbs cimport (
    vf, vf_abs, vf_amax, vf_hamax, vf_hmax, vf_load, vf_load_f16, vf_load_s8, vf_max, vf_min, vf_mul, vf_set1,
    vf_store, vf_store_f16, vf_sub, vf_to_i, vi_store_s8,
)
from .kv16 cimport STEPS, store16

cdef enum KvType:
    KV_F32 = 0
    KV_F16 = 1
    KV_Q8_0 = 2
    KV_S16 = 3                  # kv16.pxd

cdef enum:
    CHUNK = 256                 # positions that share a softmax; see attention.pyx
    ALL_CHUNKS = 1 << 30        # a ring that never comes round

cdef extern from *:
    """
    #define LLAMACY_F16_MAX 65504.0f
    """
    const float F16_MAX "LLAMACY_F16_MAX"

cdef struct KvHead:             # one KV head of one sequence in one layer
    uint8_t* tiles
    size_t stride
    int ring                    # chunks
    int k_type
    int v_type


cdef inline size_t element_bytes(int kind) noexcept nogil:
    if kind == KV_F32:
        return 4
    return 1 if kind == KV_Q8_0 else 2


cdef inline size_t scales_bytes(int head_dim, int kind) noexcept nogil:
    """Bytes of a tile's scales: an f16 per position and 32 elements; an f32 per position."""
    if kind == KV_S16:
        return STEPS
    return 32 * (padded(head_dim, 32) // 32) if kind == KV_Q8_0 else 0


cdef inline size_t tile_part_bytes(int head_dim, int kind) noexcept nogil:
    """Bytes of 16 positions' keys or values."""
    return scales_bytes(head_dim, kind) + 16 * padded(head_dim, 16) * element_bytes(kind)


cdef inline size_t tile_bytes(const KvHead* head, int head_dim) noexcept nogil:
    return tile_part_bytes(head_dim, head.k_type) + tile_part_bytes(head_dim, head.v_type)


cdef inline uint8_t* chunk_at(const KvHead* head, int chunk) noexcept nogil:
    """The tiles of a chunk"""
    return head.tiles + <size_t>(chunk if chunk < head.ring else chunk % head.ring) * head.stride


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


cdef inline void store_kv(const KvHead* head, int position, int head_dim, const float* k, const float* v) noexcept nogil:
    """Write one position's key and value (head_dim,) to the head's cache."""
    cdef size_t keys = tile_part_bytes(head_dim, head.k_type), tile = keys + tile_part_bytes(head_dim, head.v_type)
    cdef uint8_t* at = chunk_at(head, position // CHUNK) + position % CHUNK // 16 * tile
    store_row(at, head.k_type, head_dim, k, position % 16, True)
    store_row(at + keys, head.v_type, head_dim, v, position % 16, False)


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
