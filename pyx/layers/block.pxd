# A layer: what it has (Block) and what happens to a row of activations in it, forward and backward beside each other.
#
#     n = norm_row(attn_norm, x)                      norm.pyx
#     q, k, v = W n + bias + B (A n)                  linear.pyx; training's own pairs: lowrank.pxd
#     prepare_heads(q), prepare_heads(k)              their norms, rope
#     temper_queries(q)                               a factor that grows with the position
#     a = attend(q, k, v)                             attention.pyx, attention_backward.pyx; scores.pxd: caps, windows, sinks
#     x = add_branch(x, post_attention_norm, W a)
#     n = norm_row(ffn_norm, x)
#     gate, up = W n
#     h = activation(gate, up)                        mlp.pyx
#     x = add_branch(x, post_ffw_norm, W h)
#
# A norm that a family does not have changes nothing. Where a layer is `parallel`, the MLP sees what attention sees, x as it
# was before both. Behind the last layer come output_norm, the output matrix and finish_logits.
#
# Latent attention makes queries, keys and values otherwise (latent.pxd); a layer with a short convolution has it for
# `attend` (shortconv.pxd).
#
# A layer with experts has that MLP once for each of them, and adds the outputs of those that the router chose, weighted:
# experts.pxd. Its matrices of the MLP are then those of the expert that all tokens share, or not there.
#
# Inference and training are schedules over these: which thread does which rows, and where threads wait for each other. The
# same in plain NumPy: llamacy/kernels/reference/model.py. What a family has beyond this is a field of Block, a line in a row
# function and in its backward, and a line there.

from libc.math cimport log

from ..simd.verbs cimport vf_fma1, vf_load, vf_mul, vf_set1, vf_store
from .experts cimport Experts
from .linear cimport Linear
from .mlp cimport Activation
from .norm cimport HeadNorm, Norm, norm_heads, norm_heads_backward, norm_row
from .rope cimport rope, rope_backward
from .scores cimport Scoring, soft_cap

cdef enum:                      # a layer's matrices in the order of use, as MATRICES in formats/architectures.py has them
    ATTN_Q = 0
    ATTN_K = 1
    ATTN_V = 2
    ATTN_OUTPUT = 3
    FFN_GATE = 4
    FFN_UP = 5
    FFN_DOWN = 6
    ATTN_Q_A = 7                # latent attention's, see latent.pxd; the only one of queries where they are not of low rank
    ATTN_KV_A = 8
    ATTN_KV_B = 9
    N_SLOTS = 10

cdef struct Rope:               # rotary positions: each pair of n_rot elements of a head turns
    int n_rot
    int first                   # its first element that turns
    int layout                  # see rope.pxd
    int table                   # how far: which of the step's RopeTables

cdef struct Block:              # one layer
    Norm attn_norm
    Norm ffn_norm
    Norm post_attention_norm    # of what attention, or the MLP, adds to x
    Norm post_ffw_norm
    HeadNorm q_norm
    HeadNorm k_norm
    Norm q_a_norm               # of latent attention
    Norm kv_a_norm
    const float* taps           # (n_taps, embd_p): a short convolution is in the place of attention, see shortconv.pxd; or NULL
    int n_parts[10]             # by slot: how many matrices from this on are one in the model's file, and to adapters; 0: a later one of such
    Linear linear[10]           # by slot; a bias is NULL, and a matrix has no tiles, where the family has none
    const Activation* activation
    int first_of_mlp            # slot of the first of the matrices whose outputs are activated,
    int n_of_mlp                # and how many there are
    bint parallel
    const Rope* rope            # NULL: positions do not turn this layer's heads
    Scoring scores
    Experts* experts            # NULL: one MLP for all tokens

cdef struct Config:             # sizes; *_p are padded to 16, buffers' row strides
    int n_embd
    int n_head
    int n_head_kv
    int head_dim
    int n_ff
    int n_layer
    int n_vocab
    int n_rot
    int n_ropes                 # tables of rotary positions
    double temperature          # queries at positions from temperature_length on are times 1 + temperature * log(1 + floor(position / length))
    int temperature_length      # 0: none are
    bint gated                  # MLPs have gate and up
    bint post_norms             # layers norm what attention and the MLP add to x
    float embedding_scale
    float residual_scale        # of what attention and the MLP add to x
    float logit_scale
    float logit_cap             # logits become cap tanh(logit / cap); 0: they stay as they are
    int embd_p
    int q_p
    int kv_p
    int ff_p
    int vocab_p
    int n_expert                # 0: no layer has any
    int n_used                  # of them by each token
    int expert_p                # the widest expert's n_ff
    int kv_rank                 # what keys and values are made of in latent attention; 0: no layer has that
    int n_value                 # elements of a head's value, head_dim or, in latent attention, less
    int q_a_p                   # outputs of its matrices, padded: the first of queries,
    int kv_a_p                  # the first and the second of keys and values
    int kv_b_p
    int n_taps                  # of short convolutions; 0: no layer has one


cdef inline int widest_input(const Config* c) noexcept nogil:
    """The widest input of a matrix, padded; of experts' apart"""
    return max(max(c.q_p, c.embd_p, c.ff_p), max(c.q_a_p, c.kv_a_p))


cdef inline size_t angles_at(const Config* c, const Block* b, size_t t) noexcept nogil:
    """Where a layer's angles of row t stand among a step's cosines, and sines (T, n_ropes, n_rot / 2)"""
    return (t * c.n_ropes + (b.rope.table if b != NULL and b.rope != NULL else 0)) * (c.n_rot // 2)


cdef inline void prepare_heads(const Config* c, const Block* b, const HeadNorm* norm, float* x, int first, int n_head,
                               const float* cosine, const float* sine) noexcept nogil:
    """Queries or keys (n_head, head_dim) from head `first` on as attention compares them, in place; cosine, sine: the
    position's angles. A norm of whole rows comes before."""
    if norm.norm.weight != NULL and not norm.whole:
        norm_heads(norm, x, first, n_head, c.head_dim)
    if b.rope != NULL:
        rope(x + b.rope.first, n_head, c.head_dim, b.rope.n_rot, cosine, sine, b.rope.layout)


cdef inline void prepare_heads_backward(const Config* c, const Block* b, const HeadNorm* norm, const float* x, float* dx, int n_head,
                                        const float* cosine, const float* sine) noexcept nogil:
    """The gradient of what all heads were made of, in place; x: that, where they have norms of their own"""
    if b.rope != NULL:
        rope_backward(dx + b.rope.first, n_head, c.head_dim, b.rope.n_rot, cosine, sine, b.rope.layout)
    if norm.norm.weight != NULL and not norm.whole:
        norm_heads_backward(norm, x, dx, n_head, c.head_dim)


cdef inline void temper_queries(const Config* c, float* x, int n_head, int position) noexcept nogil:
    """Queries (n_head, head_dim) times what their position asks for, in place; so is their gradient."""
    cdef int i
    cdef float factor
    if c.temperature_length and position >= c.temperature_length:
        factor = <float>(1 + c.temperature * log(1 + position // c.temperature_length))
        for i in range(n_head * c.head_dim):
            x[i] *= factor


cdef inline void add_branch(const Config* c, const float* x, const float* y, int n, float* out) noexcept nogil:
    """out[n] = x + residual_scale * y; out may be x, n is a multiple of 16. Backward, x has the gradient of out, y that times
    the scale."""
    cdef float scale = c.residual_scale
    cdef int i
    for i in range(0, n, 16):
        vf_store(out + i, vf_fma1(vf_load(y + i), scale, vf_load(x + i)))


cdef inline void scale_row(const float* x, float scale, int n, float* out) noexcept nogil:
    """out[n] = scale * x; out may be x, n is a multiple of 16"""
    cdef int i
    for i in range(0, n, 16):
        vf_store(out + i, vf_mul(vf_load(x + i), vf_set1(scale)))


cdef inline void scale_logits(const Config* c, float* x, int n) noexcept nogil:
    """n logits, or their gradient, times what the family says; n is a multiple of 16"""
    if c.logit_scale != 1:
        scale_row(x, c.logit_scale, n, x)


cdef inline void finish_logits(const Config* c, float* logits, int n) noexcept nogil:
    """What is done to n logits before they are anyone's; the loss goes through the cap itself, see loss.pyx"""
    scale_logits(c, logits, n)
    if c.logit_cap:
        soft_cap(logits, n, c.logit_cap)
