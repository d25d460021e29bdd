# Blocks of 32 codes of four or five bits, byte for byte as GGUF and ggjt v3 files hold them (source: the gguf package's quants.py).
#
# f16 d; f16 m where the type has minima (x = d q + m, else x = d (q - 8), or d (q - 16)); 4 bytes of fifth bits where there are
# such, bit j for element j; 16 bytes of nibbles, byte j holding element j in its low one and element j + 16 in its high one.

from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memcpy


cdef inline int code_block_bytes(bint fifth, bint has_min) noexcept nogil:
    return 18 + (4 if fifth else 0) + (2 if has_min else 0)


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


cdef inline void read_codes(const uint8_t* block, bint fifth, bint has_min, uint32_t* codes, uint16_t* d, uint16_t* m) noexcept nogil:
    """A block's codes as 8 words of four neighbours, a byte each; d and m as the file's f16"""
    memcpy(d, block, 2)
    if has_min:
        memcpy(m, block + 2, 2)
    block += 4 if has_min else 2
    nibble_words(block + 4 if fifth else block, codes)
    if fifth:
        fifth_words(block, codes)


cdef inline void write_codes(uint8_t* block, bint fifth, bint has_min, const uint8_t* codes) noexcept nogil:
    """32 codes to a block; its f16 are somebody else's"""
    cdef uint32_t high = 0
    cdef int j
    block += 4 if has_min else 2
    if fifth:
        for j in range(32):
            high |= <uint32_t>(codes[j] >> 4) << j
        memcpy(block, &high, 4)
        block += 4
    for j in range(16):
        block[j] = (codes[j] & 15) | (codes[j + 16] & 15) << 4
