"""The verbs on f32 for Python, a call each: tests/kernels/test_verbs.py asks every instruction set what it does with what."""

from libc.string cimport strcmp

from .verbs cimport (
    vf, vf_abs, vf_add, vf_amax, vf_div, vf_fma, vf_fma1, vf_fnma, vf_hamax, vf_hmax, vf_hsum, vf_load, vf_load_bf16,
    vf_load_f16, vf_max, vf_min, vf_mul, vf_pow2, vf_round, vf_set1, vf_sqrt, vf_store, vf_store_bf16, vf_store_f16, vf_sub,
    vf_to_i, vi_to_f,
)

import numpy as np

ctypedef vf (*verb_fn)(vf a, vf b, vf c) noexcept nogil

cdef struct Verb:
    const char* name
    verb_fn call


cdef vf add(vf a, vf b, vf c) noexcept nogil:
    return vf_add(a, b)

cdef vf sub(vf a, vf b, vf c) noexcept nogil:
    return vf_sub(a, b)

cdef vf mul(vf a, vf b, vf c) noexcept nogil:
    return vf_mul(a, b)

cdef vf div(vf a, vf b, vf c) noexcept nogil:
    return vf_div(a, b)

cdef vf max_(vf a, vf b, vf c) noexcept nogil:
    return vf_max(a, b)

cdef vf min_(vf a, vf b, vf c) noexcept nogil:
    return vf_min(a, b)

cdef vf amax(vf a, vf b, vf c) noexcept nogil:
    return vf_amax(a, b)

cdef vf sqrt(vf a, vf b, vf c) noexcept nogil:
    return vf_sqrt(a)

cdef vf abs_(vf a, vf b, vf c) noexcept nogil:
    return vf_abs(a)

cdef vf fma(vf a, vf b, vf c) noexcept nogil:
    return vf_fma(a, b, c)

cdef vf fnma(vf a, vf b, vf c) noexcept nogil:
    return vf_fnma(a, b, c)

cdef vf fma1(vf a, vf b, vf c) noexcept nogil:
    cdef float x[16]
    vf_store(x, b)
    return vf_fma1(a, x[0], c)

cdef vf round_(vf a, vf b, vf c) noexcept nogil:
    return vf_round(a)

cdef vf pow2(vf a, vf b, vf c) noexcept nogil:
    return vf_pow2(a)

cdef vf hsum(vf a, vf b, vf c) noexcept nogil:
    return vf_set1(vf_hsum(a))

cdef vf hmax(vf a, vf b, vf c) noexcept nogil:
    return vf_set1(vf_hmax(a))

cdef vf hamax(vf a, vf b, vf c) noexcept nogil:
    return vf_set1(vf_hamax(a))

cdef vf f16(vf a, vf b, vf c) noexcept nogil:
    cdef char x[32]
    vf_store_f16(x, a)
    return vf_load_f16(x)

cdef vf bf16(vf a, vf b, vf c) noexcept nogil:
    cdef char x[32]
    vf_store_bf16(x, a)
    return vf_load_bf16(x)

cdef vf to_i(vf a, vf b, vf c) noexcept nogil:
    return vi_to_f(vf_to_i(a))


cdef Verb[20] VERBS
VERBS[0] = Verb("vf_add", add)
VERBS[1] = Verb("vf_sub", sub)
VERBS[2] = Verb("vf_mul", mul)
VERBS[3] = Verb("vf_div", div)
VERBS[4] = Verb("vf_max", max_)
VERBS[5] = Verb("vf_min", min_)
VERBS[6] = Verb("vf_amax", amax)
VERBS[7] = Verb("vf_sqrt", sqrt)
VERBS[8] = Verb("vf_abs", abs_)
VERBS[9] = Verb("vf_fma", fma)
VERBS[10] = Verb("vf_fnma", fnma)
VERBS[11] = Verb("vf_fma1", fma1)
VERBS[12] = Verb("vf_round", round_)
VERBS[13] = Verb("vf_pow2", pow2)
VERBS[14] = Verb("vf_hsum", hsum)
VERBS[15] = Verb("vf_hmax", hmax)
VERBS[16] = Verb("vf_hamax", hamax)
VERBS[17] = Verb("vf_store_f16", f16)
VERBS[18] = Verb("vf_store_bf16", bf16)
VERBS[19] = Verb("vf_to_i", to_i)


def call(name, const float[::1] a, const float[::1] b, const float[::1] c):
    """A verb's result, f32 (16,), for a, b, c f32 (16,), of which it takes as many as it has: what is a single number in
    all lanes; 16-bit floats and integers as f32 again; vf_fma1's number is b's first."""
    cdef float[::1] out = np.empty(16, np.float32)
    cdef bytes wanted = name.encode()
    cdef int i
    for i in range(20):
        if strcmp(VERBS[i].name, wanted) == 0:
            vf_store(&out[0], VERBS[i].call(vf_load(&a[0]), vf_load(&b[0]), vf_load(&c[0])))
            return np.asarray(out)
    raise KeyError(name)
