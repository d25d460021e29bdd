"""The K types: 256 elements a block, in groups of 16 or 32 with small scales of their own."""

import numpy as np

from llamacy.kernels.reference.rows import dequantizer, fields, numbers, spread, unpack


@dequantizer("Q2_K")
def dequantize_row_q2_k(blocks):
    """x = d s q - dmin m: bytes of nibbles s (low), m (high) for groups of 16; 2-bit q in runs of 32; f16 d, dmin."""
    scales, q, d, dmin = fields(blocks, 16, 64, 2, 2)
    s, m = numbers("<f2", d) * (scales & 15), numbers("<f2", dmin) * (scales >> 4)
    return spread(s, 256) * unpack(q, 2, 32) - spread(m, 256)


@dequantizer("Q3_K")
def dequantize_row_q3_k(blocks):
    """x = d (s - 32) (q + 4 h - 4): third bits h in runs of 32; 2-bit q in runs of 32; 16 6-bit s; f16 d.

    The first 8 bytes of the scales hold the low 4 bits of s (run 8), the last 4 the high 2 bits (run 4).
    """
    high, q, scales, d = fields(blocks, 32, 64, 12, 2)
    s = unpack(scales[:, :8], 4, 8) + 16 * unpack(scales[:, 8:], 2, 4) - 32
    return spread(numbers("<f2", d) * s, 256) * (unpack(q, 2, 32) + 4 * unpack(high, 1, 32) - 4)


def scales_and_minima(packed):
    """Unpack the 12 bytes of Q4_K and Q5_K into s and m, 6 bits each: int64 (n, 8) twice.

    Bytes 0-3 hold s 0-3 and bytes 4-7 hold m 0-3 in their low 6 bits; bytes 8-11 hold the low 4 bits of s 4-7 (low
    nibble) and of m 4-7 (high nibble), whose upper 2 bits are the top bits of bytes 0-3 and 4-7.
    """
    first, second, low = (part.astype(np.int64) for part in np.split(packed, 3, axis=1))
    s = np.hstack([first & 63, (low & 15) | (first >> 6 << 4)])
    m = np.hstack([second & 63, (low >> 4) | (second >> 6 << 4)])
    return s, m


@dequantizer("Q4_K")
def dequantize_row_q4_k(blocks):
    """x = d s q - dmin m: f16 d, dmin; 12 bytes of 6-bit s and m for groups of 32; nibbles q in runs of 32."""
    d, dmin, packed, q = fields(blocks, 2, 2, 12, 128)
    s, m = scales_and_minima(packed)
    return spread(numbers("<f2", d) * s, 256) * unpack(q, 4, 32) - spread(numbers("<f2", dmin) * m, 256)


@dequantizer("Q5_K")
def dequantize_row_q5_k(blocks):
    """x = d s q - dmin m as Q4_K, with fifth bits in runs of 32 between the scales and the nibbles."""
    d, dmin, packed, high, low = fields(blocks, 2, 2, 12, 32, 128)
    s, m = scales_and_minima(packed)
    q = unpack(low, 4, 32) + 16 * unpack(high, 1, 32)
    return spread(numbers("<f2", d) * s, 256) * q - spread(numbers("<f2", dmin) * m, 256)


@dequantizer("Q6_K")
def dequantize_row_q6_k(blocks):
    """x = d s (q - 32): low nibbles in runs of 64; upper 2 bits in runs of 32; 16 signed bytes s; f16 d."""
    low, high, s, d = fields(blocks, 128, 64, 16, 2)
    q = unpack(low, 4, 64) + 16 * unpack(high, 2, 32) - 32
    return spread(numbers("<f2", d) * numbers("i1", s), 256) * q


@dequantizer("Q8_K")
def dequantize_row_q8_k(blocks):
    """x = d q: float32 d; 256 signed bytes; the sums of groups of 16 as i16, for dot products only."""
    d, q, _ = fields(blocks, 4, 256, 32)
    return numbers("<f4", d) * numbers("i1", q)
