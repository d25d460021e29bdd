# Rows are padded to a multiple of 16 with zeros (in x and in the weights); n is the true length.

from libc.string cimport memcpy

ctypedef void (*NormRow)(const float* x, const float* w, const float* bias, int n, float eps, float* y) noexcept nogil
ctypedef void (*NormRowBackward)(const float* x, const float* w, const float* dy, int n, float eps, float* dx) noexcept nogil

cdef struct NormKind:           # a row of KINDS in norm.pyx
    NormRow apply               # y[n] of x[n]; y may be x. bias: NULL, or of a LayerNorm
    NormRowBackward backward    # dx[n] += the gradient of x

cdef struct Norm:
    const NormKind* kind
    const float* weight         # NULL: nothing happens here
    const float* bias           # NULL: none
    int n
    float eps

cdef struct HeadNorm:           # of queries or of keys
    Norm norm
    bint whole                  # of all heads together, a row; else of each head
    size_t each                 # floats from the weights of one head to those of the next: 0 where they share them

cdef enum:
    NORMED_HEAD = 1024          # head_dim up to which heads have norms of their own


cdef inline void norm_row(const Norm* norm, const float* x, float* y) noexcept nogil:
    """y[n] of x[n], which may be y; a copy where there is no norm"""
    if norm.weight != NULL:
        norm.kind.apply(x, norm.weight, norm.bias, norm.n, norm.eps, y)
    elif x != y:
        memcpy(y, x, 4 * <size_t>((norm.n + 15) // 16 * 16))


cdef const NormKind* norm_kind(name) except NULL
cdef void rms_norm(const float* x, const float* w, const float* bias, int n, float eps, float* y) noexcept nogil
cdef void rms_norm_backward(const float* x, const float* w, const float* dy, int n, float eps, float* dx) noexcept nogil
cdef void norm_heads(const HeadNorm* h, float* x, int first, int n_head, int head_dim) noexcept nogil
cdef void norm_heads_backward(const HeadNorm* h, const float* x, float* dx, int n_head, int head_dim) noexcept nogil
