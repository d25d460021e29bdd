# Where a session's keys and values lie. One chunk of all layers and heads is contiguous, so that the pages of a short sequence
# (2 MB each) are few. Layers that see no further than a window lie apart, behind the others of a slot, in a ring: position p in
# the place of p - n_ring * CHUNK. It holds what the first token of a step sees and the step's own tokens.

from libc.stdint cimport uint8_t

from ..layers.kvcache cimport CHUNK, KvHead, tile_part_bytes
from ..layers.scores cimport NO_WINDOW
from ..products.inputs cimport padded

cdef struct CacheLayout:
    int n_kv                    # heads of a layer
    int k_type
    int v_type
    int tiles                   # of a chunk
    size_t chunk_bytes          # of one head
    int n_chunks                # of a slot in layers that see all
    int n_whole                 # such layers
    int n_ring                  # chunks of a slot in the others; 0: there are none
    int n_ringed                # such layers
    int window                  # the widest of the layers that have one; 0: none has


cdef inline CacheLayout cache_layout(int n_kv, int head_dim, int k_type, int v_type, list windows, int n_ctx, int max_batch):
    """windows: of each layer, NO_WINDOW for none"""
    cdef CacheLayout l
    n_tokens = max(n_ctx, 1)
    l.n_kv, l.k_type, l.v_type, l.n_chunks = n_kv, k_type, v_type, (n_tokens - 1) // CHUNK + 1
    l.tiles = <int>padded(min(n_tokens, CHUNK), 16) // 16
    l.chunk_bytes = l.tiles * (tile_part_bytes(head_dim, k_type) + tile_part_bytes(head_dim, v_type))
    narrow = [window for window in windows if window < NO_WINDOW]
    l.window = max(narrow, default=0)
    # a whole tile, as write_cache stores them, takes the place of nothing that is seen
    l.n_ring = (l.window - 1 + max(max_batch, 16) - 1) // CHUNK + 1 if narrow else 0
    if l.n_ring >= l.n_chunks:
        l.n_ring = 0
    l.n_ringed = len(narrow) if l.n_ring else 0
    l.n_whole = len(windows) - l.n_ringed
    return l


cdef inline bint in_ring(const CacheLayout* l, int window) noexcept nogil:
    """Does a layer with this window lie in the ring?"""
    return l.n_ring > 0 and window < NO_WINDOW


cdef inline size_t slot_bytes(const CacheLayout* l) noexcept nogil:
    return l.chunk_bytes * l.n_kv * (<size_t>l.n_whole * l.n_chunks + <size_t>l.n_ringed * l.n_ring)


cdef inline KvHead kv_head_at(const CacheLayout* l, uint8_t* cache, int slot, int kv_head, bint ringed, int place) noexcept nogil:
    """One head of a slot in the layer that is number `place` of its kind"""
    cdef KvHead h
    h.k_type, h.v_type, h.ring = l.k_type, l.v_type, l.n_ring if ringed else l.n_chunks
    h.stride = l.chunk_bytes * l.n_kv * (l.n_ringed if ringed else l.n_whole)
    h.tiles = cache + slot * slot_bytes(l) + (place * l.n_kv + kv_head) * l.chunk_bytes
    if ringed:
        h.tiles += l.chunk_bytes * l.n_kv * l.n_whole * l.n_chunks
    return h
