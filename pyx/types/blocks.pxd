# The quantised blocks, byte for byte as GGUF and ggjt v3 files hold them (source: the gguf package's quants.py).
# Byte j of `qs` holds element j in its low nibble and element j + 16 in its high one.

from libc.stdint cimport int8_t, uint8_t, uint16_t

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
