# What one step of inference is asked and shares among its threads, and where each part lies. T: its tokens; E = n_embd.

from libc.stdint cimport uint8_t

from ..layers.block cimport Config
from ..products.inputs cimport padded

cdef enum:
    SPLIT_TOKENS = 32       # tokens of a step up to which the past is dealt among the threads chunk by chunk
    PIECE = 16              # row tiles of a product that a thread takes at a time when there are more tokens than that

cdef struct Run:            # consecutive positions of one slot: for each KV head one unit of attention, or one a chunk
    int slot
    int first               # index of its first token
    int n
    int position
    bint wanted             # the last layer needs its queries
    bint split              # into units of a chunk each, joined afterwards
    int chunks              # where split: the chunks up to its last token's; else 1

cdef struct Step:           # one call: sizes, inputs and the buffers all threads share
    int T
    int M
    const int* tokens
    const int* positions
    const int* slots
    const int* logits_at
    bint fewer              # than T: once the last layer's keys and values are stored, T becomes M, and x their rows
    int first_query         # of those that the last layer needs
    const float* lora_scales        # (T, n_adapters)
    const float* wanted_scales      # (M, n_adapters): those of logits_at
    bint split              # units are single chunks, joined afterwards
    bint apart              # no two runs share a slot: a unit of attention sees no key of another's
    int n_runs
    Run* runs
    float* parts            # (T, n_head, n_chunks, part_floats)
    float* x                # (T, E)
    float* normed           # (T, E)
    float* q                # (T, ldq)
    size_t ldq
    float* k                # (T, kv_p)
    float* v
    float* att              # (T, q_p); before, what latent attention's second matrices see
    float* gate             # (T, ff_p)
    float* q_low            # (T, q_a_p), (T, kv_a_p) and (T, kv_b_p): what latent attention's matrices give
    float* kv_low
    float* kv
    float* epilogue         # (SPLIT_TOKENS, E or ff_p): a product that is taken up at once
    float* u                # (T, ldu)
    size_t ldu
    float* cosine           # (T, n_ropes, n_rot / 2)
    float* sine
    bint hidden             # instead of logits, what they are made of
    float* logits           # (M, vocab_p), or (M, embd_p)
    bint astray             # one of them is not finite; whoever sees it sets this
    uint8_t* rounded        # of the widest input


cdef inline float* take(uint8_t* base, size_t* at, size_t n) noexcept nogil:
    """Room for n floats at base + at, which moves behind them"""
    cdef float* p = <float*>(base + at[0])
    at[0] += padded(4 * n, 64)
    return p


cdef inline size_t place_step(Step* s, const Config* c, size_t T, uint8_t* base) noexcept nogil:
    """Lay out the buffers of steps of up to T tokens from base on, `rounded` last; returns where that begins."""
    cdef size_t at = 0
    # Rows whole pages apart would share a few sets of the caches.
    s.ldq = c.q_p + 16 * (c.q_p % 512 == 0)
    s.x, s.normed = take(base, &at, T * c.embd_p), take(base, &at, T * c.embd_p)
    s.q, s.k, s.v = take(base, &at, T * s.ldq), take(base, &at, T * c.kv_p), take(base, &at, T * c.kv_p)
    s.att, s.gate = take(base, &at, T * max(c.q_p, c.q_a_p, c.kv_a_p)), take(base, &at, T * c.ff_p)
    s.q_low, s.kv_low, s.kv = take(base, &at, T * c.q_a_p), take(base, &at, T * c.kv_a_p), take(base, &at, T * c.kv_b_p)
    s.epilogue = take(base, &at, min(T, <size_t>SPLIT_TOKENS) * <size_t>max(c.ff_p, c.embd_p))
    s.cosine, s.sine = take(base, &at, T * c.n_ropes * c.n_rot // 2), take(base, &at, T * c.n_ropes * c.n_rot // 2)
    s.rounded = base + at
    return at
