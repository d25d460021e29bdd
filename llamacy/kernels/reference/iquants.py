"""The types whose quants are indices: into a curve (IQ4), a float format (MXFP4), a grid (IQ1-IQ3); and base 3 (TQ)."""

import numpy as np

from llamacy.kernels.reference.grids import grid
from llamacy.kernels.reference.rows import dequantizer, fields, numbers, pack, quantizer, spread, to_bytes, unpack

IQ4_LEVELS = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113])
# E2M1 of the OCP Microscaling Formats specification; minus zero counts as zero
FP4_LEVELS = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6])


@dequantizer("IQ4_NL")
def dequantize_row_iq4_nl(blocks):
    """x = d level[q]: f16 d; nibbles as Q4_0."""
    d, q = fields(blocks, 2, 16)
    return numbers("<f2", d) * IQ4_LEVELS[unpack(q, 4, 16)]


@dequantizer("IQ4_XS")
def dequantize_row_iq4_xs(blocks):
    """x = d (s - 32) level[q]: f16 d; upper 2 bits of 8 scales s, their low nibbles; groups of 32, nibbles as Q4_0."""
    d, high, low, q = fields(blocks, 2, 2, 4, 128)
    s = unpack(low, 4, 1) + 16 * unpack(high, 2, 1) - 32
    return spread(numbers("<f2", d) * s, 256) * IQ4_LEVELS[unpack(q, 4, 16)]


@dequantizer("MXFP4")
def dequantize_row_mxfp4(blocks):
    """x = 2^(e - 127) fp4[q]: one byte e; nibbles as Q4_0."""
    e, q = fields(blocks, 1, 16)
    return np.ldexp(FP4_LEVELS[unpack(q, 4, 16)], e.astype(np.int64) - 127)


@quantizer("MXFP4")
def quantize_row_mxfp4(x):
    """e = floor(log2 max |x|) + 125, each number to the first of the nearest levels."""
    peak = np.abs(x).max(axis=1, keepdims=True)
    with np.errstate(divide="ignore"):
        e = np.clip(np.where(peak > 0, np.floor(np.log2(peak)) + 125, 0), 0, 254)
    levels = np.ldexp(FP4_LEVELS, e.astype(np.int64) - 127).astype(np.float32)
    q = np.abs(levels[:, None, :] - x[:, :, None]).argmin(axis=2)
    return np.hstack([to_bytes("u1", e), pack(q, 4, 16)])


@dequantizer("TQ1_0")
def dequantize_row_tq1_0(blocks):
    """x = d (digit - 1): base-3 digits, 5 a byte in a run of 32 and one of 16, 4 a byte in the last 4 bytes; f16 d.

    A byte is ceil(256 / 243 * number), so that the highest digit of (byte * 3^i mod 256) is (that * 3) >> 8.
    """
    parts = fields(blocks, 32, 16, 4, 2)
    digits = [
        ((part.astype(np.int64)[:, None] * 3 ** np.arange(n)[:, None] % 256) * 3 >> 8).reshape(len(blocks), -1)
        for part, n in zip(parts[:3], (5, 5, 4), strict=True)
    ]
    return numbers("<f2", parts[3]) * (np.hstack(digits) - 1)


@dequantizer("TQ2_0")
def dequantize_row_tq2_0(blocks):
    """x = d (q - 1): 2-bit q in runs of 32; f16 d."""
    q, d = fields(blocks, 64, 2)
    return numbers("<f2", d) * (unpack(q, 2, 32) - 1)


def _ternary(x):
    """d = max |x| and digits 0 .. 2 of x = d (digit - 1), halves away from zero."""
    d = np.abs(x).max(axis=1, keepdims=True)
    with np.errstate(divide="ignore", over="ignore"):
        inverse = np.float32(1) / d
    scaled = x * np.where(np.isfinite(inverse), inverse, np.float32(0))
    return d, 1 + (np.sign(scaled) * (np.abs(scaled) >= 0.5)).astype(np.int64)


@quantizer("TQ1_0")
def quantize_row_tq1_0(x):
    """d = max |x|; digits x / d rounded; a byte is ceil(256 / 243 * number), the first of its digits the highest."""
    d, digits = _ternary(x)
    parts = np.split(digits, [160, 240], axis=1)
    number = np.hstack(
        [
            (part.reshape(len(x), n, -1) * 3 ** np.arange(4, 4 - n, -1)[:, None]).sum(axis=1)
            for part, n in zip(parts, (5, 5, 4), strict=True)
        ]
    )
    return np.hstack([to_bytes("u1", (256 * number + 242) // 243), to_bytes("<f2", d)])


@quantizer("TQ2_0")
def quantize_row_tq2_0(x):
    """d = max |x|; q = x / d rounded, plus 1."""
    d, q = _ternary(x)
    return np.hstack([pack(q, 2, 32), to_bytes("<f2", d)])


# --- grids -----------------------------------------------------------------------------------------------------------


def _points(name, index):
    """Return the grid's points at index (n, k) as elements (n, k * dimensions)."""
    return grid(name)[index].reshape(len(index), -1)


def _signs(bits):
    """Return (-1)^bit of bytes (n, k), lowest bit first: (n, 8 k)."""
    return 1 - 2 * unpack(bits, 1, 1)


def _even_signs(index):
    """Return the signs (n, 8 k) of 7-bit indices (n, k): the eighth sign makes the number of minuses even."""
    parity = unpack(index.astype(np.uint8), 1, 1).reshape(*index.shape, 8).sum(axis=-1) & 1
    return _signs(index | parity << 7)


@dequantizer("IQ2_XXS")
def dequantize_row_iq2_xxs(blocks):
    """x = d (s + 1/2) / 4 * sign * point: f16 d; 8 times 4 bytes of points and a u32 of 4 x 7 sign bits, 4 bits s."""
    d, rest = fields(blocks, 2, 64)
    index, words = rest.reshape(-1, 8, 8)[:, :, :4].reshape(-1, 32), numbers("<u4", rest)[:, 1::2]
    return spread(numbers("<f2", d) * (0.5 + (words >> 28)) / 4, 256) * _points("IQ2_XXS", index) * _word_signs(words)


def _word_signs(words):
    """Return the signs (n, 32 k) of words (n, k) holding four 7-bit indices each, lowest first."""
    return _even_signs((words[..., None] >> np.arange(0, 28, 7) & 127).reshape(len(words), -1))


@dequantizer("IQ2_XS")
def dequantize_row_iq2_xs(blocks):
    """x = d (s + 1/2) / 4 * sign * point: f16 d; 32 u16 of 9 bits point, 7 bits signs; nibbles s for groups of 16."""
    d, q, s = fields(blocks, 2, 64, 8)
    q, scale = numbers("<u2", q), numbers("<f2", d) * (0.5 + unpack(s, 4, 1)) / 4
    return spread(scale, 256) * _points("IQ2_XS", q & 511) * _even_signs(q >> 9)


@dequantizer("IQ2_S")
def dequantize_row_iq2_s(blocks):
    """x = d (s + 1/2) / 4 * sign * point: f16 d; 32 low bytes of points; signs; upper 2 bits of points; nibbles s."""
    d, low, signs, high, s = fields(blocks, 2, 32, 32, 8, 8)
    scale = numbers("<f2", d) * (0.5 + unpack(s, 4, 1)) / 4
    return spread(scale, 256) * _points("IQ2_S", low + 256 * unpack(high, 2, 1)) * _signs(signs)


@dequantizer("IQ3_XXS")
def dequantize_row_iq3_xxs(blocks):
    """x = d (s + 1/2) / 2 * sign * point: f16 d; 64 points of 4; 8 u32 of 4 x 7 sign bits and 4 bits s."""
    d, index, words = fields(blocks, 2, 64, 32)
    words = numbers("<u4", words)
    return spread(numbers("<f2", d) * (0.5 + (words >> 28)) / 2, 256) * _points("IQ3_XXS", index) * _word_signs(words)


@dequantizer("IQ3_S")
def dequantize_row_iq3_s(blocks):
    """x = d (2 s + 1) sign * point: f16 d; 64 low bytes of points of 4; ninth bits; signs; nibbles s for 32 each."""
    d, low, high, signs, s = fields(blocks, 2, 64, 8, 32, 4)
    scale = numbers("<f2", d) * (2 * unpack(s, 4, 1) + 1)
    return spread(scale, 256) * _points("IQ3_S", low + 256 * unpack(high, 1, 1)) * _signs(signs)


@dequantizer("IQ1_S")
def dequantize_row_iq1_s(blocks):
    """x = d (2 s + 1) (point +- 1/8): f16 d; 32 low bytes of points; 8 u16: 4 x 3 upper bits, 3 bits s, minus bit."""
    d, low, words = fields(blocks, 2, 32, 16)
    words = numbers("<u2", words)
    high = (words[..., None] >> np.arange(0, 12, 3) & 7).reshape(len(words), -1)
    scale, shift = numbers("<f2", d) * (2 * (words >> 12 & 7) + 1), 0.125 - 0.25 * (words >> 15)
    return spread(scale, 256) * (_points("IQ1_S", low + 256 * high) + spread(shift, 256))


@dequantizer("IQ1_M")
def dequantize_row_iq1_m(blocks):
    """x = d (2 s + 1) (point +- 1/8): 32 low bytes of points; nibbles of 3 upper bits and a minus bit; 4 u16.

    Each u16 holds 4 x 3 bits of s for groups of 16, and in its top nibble a quarter of the f16 d, lowest first.
    """
    low, nibbles, words = fields(blocks, 32, 16, 8)
    words, nibbles = numbers("<u2", words), unpack(nibbles, 4, 1)
    d = (words >> 12 << np.arange(0, 16, 4)).sum(axis=1, keepdims=True).astype("<u2").view("<f2").astype(np.float64)
    s = (words[..., None] >> np.arange(0, 12, 3) & 7).reshape(len(words), -1)
    shift = 0.125 - 0.25 * (nibbles >> 3)
    return spread(d * (2 * s + 1), 256) * (_points("IQ1_S", low + 256 * (nibbles & 7)) + spread(shift, 256))
