# n: a multiple of 16

ctypedef void (*Activate)(const float* gate, const float* up, int n, float* h) noexcept nogil
ctypedef void (*ActivateBackward)(const float* dh, int n, float* gate, float* up) noexcept nogil

cdef struct Activation:         # a row of ACTIVATIONS in mlp.pyx.tp
    bint gated                  # of two matrices' outputs; else of one's, which is called gate, and up is not looked at
    Activate apply              # h[n] of gate and up; h may be gate or up
    ActivateBackward backward   # gate[n], up[n] become their gradients

cdef const Activation* activation(name) except NULL
