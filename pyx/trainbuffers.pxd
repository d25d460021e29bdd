# What one training call keeps and shares. T: its tokens; E = n_embd, F = n_ff.

from libc.stdint cimport int16_t, uint8_t

cdef struct Kept:           # one layer's activations, all (T, ...)
    float* x                # E: the residual at entry
    float* q                # after rope
    float* k
    float* v
    float* att
    float* mid              # E: the residual after attention
    float* gate             # F
    float* up
    float* u                # the pairs' low-rank inputs, one after the other

cdef struct Gradient:       # dy of one matrix in the form that its backward product wants
    int16_t* q              # NULL: f32
    float* scale

cdef struct Buffers:        # shared by all threads, (T, ...) where not said otherwise
    float* normed           # E
    float* h                # F
    float* part             # E
    float* dx               # E: gradient of the residual
    float* dn               # E: gradient of a norm's output
    float* dh               # F
    float* datt
    float* dq
    float* dk               # per query head, then summed into the KV heads' columns
    float* dv
    float* du               # like Kept.u
    float* ut               # (w, T): one pair's u, transposed; one after the other
    float* dut
    float* cosine
    float* sine
    float* logits           # (HEAD_ROWS, n_vocab)
    float* rows             # (HEAD_ROWS, E): the head's inputs
    float* drows            # (HEAD_ROWS, E)
    int16_t* rounded_dy
    float* dy_scale
    uint8_t* rounded
    uint8_t* cache          # keys and values of one layer as attention reads them
