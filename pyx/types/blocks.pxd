# The quantised blocks, byte for byte as GGUF and ggjt v3 files hold them (source: the gguf package's quants.py).
# Byte j of `qs` holds element j in its low nibble and element j + 16 in its high one.

from libc.stdint cimport int8_t, uint8_t, uint16_t, uint32_t
from libc.string cimport memcpy

cdef extern from *:
    """
    #include <stdint.h>
    typedef struct __attribute__((packed)) { uint16_t d; uint8_t qs[16]; } block_q4_0;
    typedef struct __attribute__((packed)) { uint16_t d, m; uint8_t qs[16]; } block_q4_1;
    typedef struct __attribute__((packed)) { uint16_t d; uint8_t qh[4], qs[16]; } block_q5_0;
    typedef struct __attribute__((packed)) { uint16_t d, m; uint8_t qh[4], qs[16]; } block_q5_1;
    typedef struct __attribute__((packed)) { uint16_t d; int8_t qs[32]; } block_q8_0;
    """
    ctypedef struct block_q4_0:     # 18 bytes: x = d * (q - 8)
        uint16_t d
        uint8_t qs[16]
    ctypedef struct block_q4_1:     # 20 bytes: x = d * q + m
        uint16_t d
        uint16_t m
        uint8_t qs[16]
    ctypedef struct block_q5_0:     # 22 bytes: x = d * (q - 16), bit 4 of element j is bit j of qh
        uint16_t d
        uint8_t qh[4]
        uint8_t qs[16]
    ctypedef struct block_q5_1:     # 24 bytes: x = d * q + m
        uint16_t d
        uint16_t m
        uint8_t qh[4]
        uint8_t qs[16]
    ctypedef struct block_q8_0:     # 34 bytes: x = d * q
        uint16_t d
        int8_t qs[32]


# ---- codes of a block: 8 words of four neighbours, a byte each; d and m as the file's f16 ----

ctypedef void (*codes_fn)(const uint8_t* block, uint32_t* codes, uint16_t* d, uint16_t* m) noexcept nogil


cdef inline void nibble_words(const uint8_t* qs, uint32_t* codes) noexcept nogil:
    """16 bytes of nibbles to 8 words of four codes"""
    cdef uint32_t word
    cdef int g
    for g in range(4):
        memcpy(&word, qs + 4 * g, 4)
        codes[g] = word & 0x0f0f0f0f
        codes[g + 4] = (word >> 4) & 0x0f0f0f0f


cdef inline void fifth_words(const uint8_t* qh, uint32_t* codes) noexcept nogil:
    """32 high bits into bit 4 of 8 words of four codes"""
    cdef uint32_t bits, nibble
    cdef int g
    memcpy(&bits, qh, 4)
    for g in range(8):
        nibble = (bits >> (4 * g)) & 15
        # spread four bits to the lowest bit of four bytes
        codes[g] |= ((nibble * 0x00204081) & 0x01010101) << 4


cdef inline void codes_q4_0(const uint8_t* block, uint32_t* codes, uint16_t* d, uint16_t* m) noexcept nogil:
    cdef const block_q4_0* x = <const block_q4_0*>block
    nibble_words(x.qs, codes)
    d[0] = x.d


cdef inline void codes_q4_1(const uint8_t* block, uint32_t* codes, uint16_t* d, uint16_t* m) noexcept nogil:
    cdef const block_q4_1* x = <const block_q4_1*>block
    nibble_words(x.qs, codes)
    d[0], m[0] = x.d, x.m


cdef inline void codes_q5_0(const uint8_t* block, uint32_t* codes, uint16_t* d, uint16_t* m) noexcept nogil:
    cdef const block_q5_0* x = <const block_q5_0*>block
    nibble_words(x.qs, codes)
    fifth_words(x.qh, codes)
    d[0] = x.d


cdef inline void codes_q5_1(const uint8_t* block, uint32_t* codes, uint16_t* d, uint16_t* m) noexcept nogil:
    cdef const block_q5_1* x = <const block_q5_1*>block
    nibble_words(x.qs, codes)
    fifth_words(x.qh, codes)
    d[0], m[0] = x.d, x.m
