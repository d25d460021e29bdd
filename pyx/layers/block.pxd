# A layer: what it has (Block) and what happens to a row of activations in it, forward and backward beside each other.
#
#     n = prepare_input(x, attn_norm)
#     q, k, v = W n + bias + B (A n)                  linear.pyx; training's own pairs: lowrank.pxd
#     prepare_heads(q), prepare_heads(k)              rope
#     temper_queries(q)                               a factor that grows with the position
#     a = attend(q, k, v), scores times score_scale   attention.pyx
#     x = add_residual(x, W a)
#     n = prepare_input(x, ffn_norm)
#     gate, up = W n
#     h = activate(gate, up)
#     x = add_residual(x, W h)
#
# Inference and training are schedules over these: which thread does which rows, and where threads wait for each other. The
# same in plain NumPy: llamacy/kernels/reference/model.py. What a family has beyond this is a field of Block, a line in a row
# function and in its backward, and a line there.

from libc.math cimport log

from ..simd.verbs cimport vf_add, vf_load, vf_store
from .linear cimport Linear
from .mlp cimport swiglu, swiglu_backward
from .norm cimport rms_norm, rms_norm_backward
from .rope cimport rope, rope_backward

cdef enum:                      # a layer's matrices in the order of use, as MATRICES in formats/architectures.py has them
    ATTN_Q = 0
    ATTN_K = 1
    ATTN_V = 2
    ATTN_OUTPUT = 3
    FFN_GATE = 4
    FFN_UP = 5
    FFN_DOWN = 6
    N_SLOTS = 7

cdef struct Rope:               # rotary positions: each pair of a head's first n_rot elements turns
    int n_rot
    int layout                  # see rope.pxd
    int table                   # how far: which of the step's RopeTables

cdef struct Block:              # one layer
    const float* attn_norm      # (n_embd padded to 16)
    const float* ffn_norm
    Linear linear[7]            # by slot; a bias is NULL where the family has none
    const Rope* rope            # NULL: positions do not turn this layer's heads
    float score_scale

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
    float rms_eps
    double temperature          # queries at positions from temperature_length on are times 1 + temperature * log(1 + floor(position / length))
    int temperature_length      # 0: none are
    int embd_p
    int q_p
    int kv_p
    int ff_p
    int vocab_p


cdef inline size_t angles_at(const Config* c, const Block* b, size_t t) noexcept nogil:
    """Where a layer's angles of row t stand among a step's cosines, and sines (T, n_ropes, n_rot / 2)"""
    return (t * c.n_ropes + (b.rope.table if b != NULL and b.rope != NULL else 0)) * (c.n_rot // 2)


cdef inline void prepare_input(const Config* c, const float* norm, const float* x, float* n) noexcept nogil:
    """n = what the matrices behind a norm see of x, both (embd_p)"""
    rms_norm(x, norm, c.n_embd, c.rms_eps, n)


cdef inline void prepare_input_backward(const Config* c, const float* norm, const float* x, const float* dn, float* dx) noexcept nogil:
    """dx += the gradient of x"""
    rms_norm_backward(x, norm, dn, c.n_embd, c.rms_eps, dx)


cdef inline void prepare_heads(const Config* c, const Block* b, float* x, int n_head, const float* cosine, const float* sine) noexcept nogil:
    """Queries or keys (n_head, head_dim) as attention compares them, in place; cosine, sine: the position's angles"""
    if b.rope != NULL:
        rope(x, n_head, c.head_dim, b.rope.n_rot, cosine, sine, b.rope.layout)


cdef inline void prepare_heads_backward(const Config* c, const Block* b, float* dx, int n_head, const float* cosine, const float* sine) noexcept nogil:
    """The gradient of what they were made of, in place"""
    if b.rope != NULL:
        rope_backward(dx, n_head, c.head_dim, b.rope.n_rot, cosine, sine, b.rope.layout)


cdef inline void temper_queries(const Config* c, float* x, int n_head, int position) noexcept nogil:
    """Queries (n_head, head_dim) times what their position asks for, in place; so is their gradient."""
    cdef int i
    cdef float factor
    if c.temperature_length and position >= c.temperature_length:
        factor = <float>(1 + c.temperature * log(1 + position // c.temperature_length))
        for i in range(n_head * c.head_dim):
            x[i] *= factor


cdef inline void activate(const float* gate, const float* up, int n, float* h) noexcept nogil:
    """h[n] = silu(gate) * up; h may be gate or up, n is a multiple of 16"""
    swiglu(gate, up, n, h)


cdef inline void activate_backward(const float* dh, int n, float* gate, float* up) noexcept nogil:
    """gate[n], up[n] become their gradients"""
    swiglu_backward(dh, n, gate, up)


cdef inline void add_residual(const float* x, const float* y, int n, float* out) noexcept nogil:
    """out[n] = x + y; out may be x, n is a multiple of 16. Backward, both have the gradient of out."""
    cdef int i
    for i in range(0, n, 16):
        vf_store(out + i, vf_add(vf_load(x + i), vf_load(y + i)))
