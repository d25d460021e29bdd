# What one training call keeps and shares, and where each part lies. T: its tokens; E = n_embd, F = n_ff.
#
# Everything is laid out anew for each call's length, without gaps, in memory reserved once for the longest: what shorter
# calls do not reach is never touched and takes no memory, and no call touches pages that a longer one has not. Only the
# cache, whose size also depends on the number of sequences, grows when a call wants more than those before.

from libc.stdint cimport int16_t, uint8_t

from ..layers.attention cimport UNIT_ROWS, attend_bytes
from ..layers.attention_backward cimport attend_backward_bytes
from ..layers.block cimport N_SLOTS, Config, widest_input
from ..layers.dropout cimport dropout_floats
from ..layers.experts cimport OF_EXPERT
from ..layers.kvcache cimport ALL_CHUNKS, CHUNK, KV_F32, KvHead, tile_part_bytes
from ..products.gemm cimport unpacking_bytes
from ..products.inputs cimport BACK_ROWS, INT16, acts_bytes, padded
from .stepbuffers cimport take

cdef enum:
    HEAD_ROWS = 128         # tokens whose logits exist at a time
    UNIT_TILES = 2          # what a thread takes at a time: row tiles of a product,
    UNIT_BLOCKS = 2         # column blocks of a backward one,
    UNIT_COLUMNS = 8        # groups of 16 columns of a pair's gradients,
    HEAD_TILES = 16         # row tiles of logits

cdef struct Extent:         # what the layout depends on, besides the model
    int T
    int n_segments
    int first_layer         # the first one with a pair: the layers below keep nothing
    int ldu                 # columns of all pairs' low-rank inputs of the widest layer
    int expert_ldu          # the same of one expert's pairs
    int item                # bytes of a kept activation: 2 (bf16) or 4 (f32)
    bint checkpointing      # keep each layer's input only; the rest is computed again when the backward pass comes to it
    bint magnified          # pairs have magnitudes

cdef struct Kept:           # one layer's activations, all (T, ...); in the last layer from att on only the scored tokens
    float* x                # E: the residual at entry
    float* mid              # E: what the norm before the MLP sees: the residual after attention, or x in a parallel layer
    float* u                # the pairs' low-rank inputs, one after the other
    void* q                 # these are `item` bytes a value; q and k after rope, before norms or a pair's magnitudes where they have such
    void* k
    void* v
    void* att
    void* q_low             # as in Buffers
    void* kv_low
    void* gate              # F
    void* up                # with gated MLPs
    void* attention         # E: what attention adds to x, before its norm; with post_norms or magnitudes
    void* mlp               # E: the same of the MLP
    float* logits           # of layers with experts: (T, n padded to 16),
    int* chosen             # (T, k),
    float* weights          # (T, k),
    float* expert_u         # and of R = T k rows, (R, expert_ldu)
    void* expert_gate       # (R, expert_p)
    void* expert_up

cdef struct Gradient:       # dy of one matrix, and the form that its backward product wants
    const float* dy
    size_t ld
    int16_t* q              # NULL: f32
    float* scale
    float* product          # of a matrix whose pair has magnitudes: W x + B u, then times dy; NULL for others
    size_t ldp

cdef struct Buffers:        # shared by all threads, (T, ...) where not said otherwise
    float* normed           # E
    float* part             # E: a product before it is added; backward its gradient, and that of a norm's output
    float* dx               # E: gradient of the residual
    float* tail             # E: the same in the last layer, of scored tokens only
    float* q                # of the layer at work; the gradient takes q's place
    float* k
    float* v
    float* att
    float* datt             # forward, in the last layer: att of scored tokens
    float* dk               # per query head, then summed into the KV heads' columns
    float* dv
    float* gate             # F
    float* up
    float* h
    float* dh               # in the last layer first the gradient of att of scored tokens
    float* q_low            # latent attention's: what the first matrices of queries, and of keys and values, give (q_a_p), (kv_a_p),
    float* kv_low
    float* q_in             # what the second see,
    float* kv_in
    float* dq_low           # the gradients of the first two
    float* dkv_low
    float* part_low         # the gradient of a second one's input
    float* kv               # what the second gives of keys and values (kv_b_p); backward its gradient
    float* du               # like Kept.u
    float* ut               # (w, T): one pair's u, transposed; one after the other
    float* dut
    float* cosine           # n_ropes, n_rot / 2
    float* sine
    float* logits           # (HEAD_ROWS, n_vocab)
    float* rows             # (HEAD_ROWS, E): the head's inputs
    float* drows            # (HEAD_ROWS, E)
    int16_t* rounded_dy
    float* dy_scale
    uint8_t* rounded
    uint8_t* cache          # keys and values of one layer as attention reads them


cdef inline Extent extent_of(const Config* c, dict ranks, int T, int n_segments, activations, bint checkpointing, bint magnified):
    """What the memory of calls of T tokens in n_segments sequences depends on."""
    cdef Extent e
    widths, of_expert = [0] * c.n_layer, {}
    for (layer, slot), (rank, _) in ranks.items():
        if slot < N_SLOTS:
            widths[layer] += padded(rank, 16)
        else:
            expert = layer, (slot - N_SLOTS) // OF_EXPERT
            of_expert[expert] = of_expert.get(expert, 0) + padded(rank, 16)
    e.T, e.n_segments, e.checkpointing, e.magnified = T, n_segments, checkpointing, magnified
    e.first_layer, e.ldu = min([layer for layer, _ in ranks] or [c.n_layer]), max(widths)
    e.expert_ldu = max(of_expert.values(), default=0)
    e.item = 4 if activations == "f32" else 2
    return e


cdef inline size_t work_bytes(const Config* c, int T) noexcept nogil:
    """Bytes of scratch per thread."""
    cdef size_t dropped = 4 * dropout_floats(T, max(widest_input(c), c.expert_p))
    return padded(max(attend_bytes(UNIT_ROWS + c.n_head // c.n_head_kv, c.head_dim), attend_backward_bytes(T, c.head_dim),
                      dropped, unpacking_bytes()), 4096)


cdef inline size_t place_buffers(Buffers* b, const Config* c, const Extent* e, uint8_t* base) noexcept nogil:
    """Lay out the shared buffers but the cache from base on; returns the bytes they take."""
    cdef size_t T = e.T, at = 0, n, scored = min(T, HEAD_ROWS)
    b.normed, b.part = take(base, &at, T * c.embd_p), take(base, &at, T * c.embd_p)
    b.dx, b.tail = take(base, &at, T * c.embd_p), take(base, &at, T * c.embd_p)
    b.q, b.k, b.v = take(base, &at, T * c.q_p), take(base, &at, T * c.kv_p), take(base, &at, T * c.kv_p)
    b.att, b.datt = take(base, &at, T * c.q_p), take(base, &at, T * padded(c.q_p, 32))
    b.dk, b.dv = take(base, &at, T * c.q_p), take(base, &at, T * c.q_p)
    b.gate, b.up, b.h = take(base, &at, T * c.ff_p), take(base, &at, T * c.ff_p), take(base, &at, T * c.ff_p)
    b.dh = take(base, &at, T * padded(max(c.ff_p, c.q_p), 32))
    if c.kv_rank:
        b.q_low, b.q_in, b.dq_low = take(base, &at, T * c.q_a_p), take(base, &at, T * c.q_a_p), take(base, &at, T * c.q_a_p)
        b.kv_low, b.kv_in, b.dkv_low = take(base, &at, T * c.kv_a_p), take(base, &at, T * c.kv_a_p), take(base, &at, T * c.kv_a_p)
        b.kv, b.part_low = take(base, &at, T * c.kv_b_p), take(base, &at, T * padded(max(c.q_a_p, c.kv_a_p), 32))
    b.du = take(base, &at, T * e.ldu)
    b.ut, b.dut = take(base, &at, padded(T, 16) * e.ldu), take(base, &at, padded(T, 16) * e.ldu)
    b.cosine, b.sine = take(base, &at, T * c.n_ropes * c.n_rot // 2), take(base, &at, T * c.n_ropes * c.n_rot // 2)
    b.logits = take(base, &at, scored * c.vocab_p)
    b.rows, b.drows = take(base, &at, scored * c.embd_p), take(base, &at, scored * c.embd_p)
    b.rounded = base + at
    at += acts_bytes(e.T, widest_input(c), INT16)
    # the largest gradients alive at once: gate and up, or q, k and v, or a tile of logits
    n = max(T * 2 * padded(c.ff_p, BACK_ROWS), T * (padded(c.q_p, BACK_ROWS) + 2 * padded(c.kv_p, BACK_ROWS)), T * padded(c.embd_p, BACK_ROWS),
            scored * padded(c.vocab_p, BACK_ROWS))
    n = max(n, T * (padded(max(c.q_p, c.q_a_p), BACK_ROWS) + padded(c.kv_a_p, BACK_ROWS)), T * padded(c.kv_b_p, BACK_ROWS))
    b.rounded_dy = <int16_t*>(base + at)
    at += padded(2 * n, 64)
    b.dy_scale = take(base, &at, n // BACK_ROWS)
    return at


cdef inline size_t cache_bytes(const Config* c, const Extent* e) noexcept nogil:
    """Bytes of a layer's keys and values: every sequence is padded to 16 positions."""
    return 8 * (e.T + 16 * <size_t>e.n_segments) * c.n_head_kv * padded(c.head_dim, 16)


cdef inline size_t place_layer(Kept* k, const Config* c, const Extent* e, uint8_t* base, size_t at) noexcept nogil:
    """Lay out one layer's activations but x behind base + at; returns where they end."""
    cdef size_t T = e.T, quarter = e.item * T
    k.mid, k.u = take(base, &at, T * c.embd_p), take(base, &at, T * e.ldu)
    # `take` counts in floats
    k.q, k.att = take(base, &at, quarter * c.q_p // 4), take(base, &at, quarter * c.q_p // 4)
    k.k, k.v = take(base, &at, quarter * c.kv_p // 4), take(base, &at, quarter * c.kv_p // 4)
    k.q_low, k.kv_low = take(base, &at, quarter * c.q_a_p // 4), take(base, &at, quarter * c.kv_a_p // 4)
    k.gate, k.up = take(base, &at, quarter * c.ff_p // 4), take(base, &at, quarter * c.ff_p // 4 if c.gated else 0)
    if c.post_norms or e.magnified:
        k.attention, k.mlp = take(base, &at, quarter * c.embd_p // 4), take(base, &at, quarter * c.embd_p // 4)
    if c.n_expert:
        at = place_experts(k, c, e, base, at)
    return at


cdef inline size_t place_experts(Kept* k, const Config* c, const Extent* e, uint8_t* base, size_t at) noexcept nogil:
    """The same of what its experts keep"""
    cdef size_t T = e.T, R = T * c.n_used, quarter = e.item * R
    k.logits = take(base, &at, T * padded(c.n_expert, 16))
    k.chosen, k.weights = <int*>take(base, &at, R), take(base, &at, R)
    k.expert_u = take(base, &at, R * e.expert_ldu)
    k.expert_gate, k.expert_up = take(base, &at, quarter * c.expert_p // 4), take(base, &at, quarter * c.expert_p // 4)
    return at


cdef inline size_t place_kept(Kept* kept, const Config* c, const Extent* e, uint8_t* base) noexcept nogil:
    """Lay out what layers keep, kept[n_layer + 1]; layers that keep nothing share one layer's room. Returns the bytes."""
    cdef size_t residual = padded(4 * <size_t>e.T * c.embd_p, 64), at = 2 * residual, shared = at
    cdef int layer
    # x of a layer that keeps nothing is read while the next one's is written: two places in turn
    for layer in range(c.n_layer + 1):
        if layer < c.n_layer and (layer <= e.first_layer or e.checkpointing):
            at = max(at, place_layer(kept + layer, c, e, base, shared))
        kept[layer].x = <float*>(base + layer % 2 * residual)
    for layer in range(e.first_layer + 1, c.n_layer + 1):
        kept[layer].x = take(base, &at, <size_t>e.T * c.embd_p)
        if layer < c.n_layer and not e.checkpointing:
            at = place_layer(kept + layer, c, e, base, at)
    return at


cdef inline KvHead cached_kv_head(const Buffers* b, const Config* c, const int* starts, int segment, int kv_head) noexcept nogil:
    """Where a sequence's keys and values of the current layer lie; sequences begin at multiples of 16 positions."""
    cdef KvHead h
    cdef size_t width = padded(c.head_dim, 16), length = padded(starts[segment + 1] - starts[segment], 16)
    # each sequence before this one took at most 15 positions more than its length
    cdef size_t before = starts[segment] + 16 * <size_t>segment
    h.tiles = b.cache + 8 * width * (c.n_head_kv * before + kv_head * length)
    h.stride = CHUNK // 16 * 2 * tile_part_bytes(c.head_dim, KV_F32)
    h.k_type, h.v_type, h.ring = KV_F32, KV_F32, ALL_CHUNKS
    return h
