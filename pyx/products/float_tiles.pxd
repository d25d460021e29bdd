# Tiles of floats, kept as they are: [32 columns][16 rows] f32, f16 or bf16. Inputs are f32.

from libc.stdint cimport uint8_t
from libc.string cimport memcpy, memset

from .inputs cimport Acts
from ..simd.verbs cimport vf, vf_fma1, vf_load, vf_load_bf16, vf_load_f16, vf_set1, vf_store
from .sizes cimport TILE

cdef inline void pack_floats(const uint8_t* rows, size_t rb, int n, int b, int k, uint8_t* tile, int size) noexcept nogil:
    cdef int r, c, last = min(32, k - 32 * b)
    memset(tile, 0, TILE * size)
    for r in range(n):
        for c in range(last):
            memcpy(tile + (16 * c + r) * size, rows + r * rb + <size_t>(32 * b + c) * size, size)

cdef inline vf load_float(const uint8_t* p, int number) noexcept nogil:
    if number == 0:
        return vf_load(<const float*>p)
    return vf_load_f16(p) if number == 1 else vf_load_bf16(p)

cdef inline void unpack_floats(const uint8_t* tile, int n, float* w, int number, int size) noexcept nogil:
    cdef int i
    for i in range(32 * n):
        vf_store(w + 16 * i, load_float(tile + 16 * size * i, number))

cdef inline void matvec_floats(const uint8_t* tile, int k, const Acts* x, size_t t, float* y, int number,
                               int size) noexcept nogil:
    cdef const float* a = x.f32 + t * x.ld
    cdef vf acc = vf_set1(0)
    cdef int i
    for i in range(k):
        acc = vf_fma1(load_float(tile + 16 * size * i, number), a[i], acc)
    vf_store(y, acc)
