"""Rows of quantised blocks: bytes as the files hold them, and the numbers that they stand for; rounded activations.

`TYPES` has a row for every type: the simple ones are here, the K types in kquants.py, the rest in iquants.py.
Layouts: ggml-common.h and the `gguf` package, which the tests compare with, bit for bit.
"""

import numpy as np

from llamacy.kernels.reference import iquants, kquants  # noqa: F401  their types join the table
from llamacy.kernels.reference.layers import linear
from llamacy.kernels.reference.rows import TYPES, dequantizer, fields, numbers, pack, quantizer, to_bytes, unpack


def dequantize(name, rows, dtype=np.float32):
    """Return (..., n) of rows uint8 (..., n / block_size * type_size) of the named type; in float64 exact."""
    return TYPES[name].dequantize(rows, dtype)


def quantize(name, x):
    """Return rows uint8 (..., n / block_size * type_size) of the named type for x (..., n), taken as float32."""
    return TYPES[name].quantize(x)


# --- plain floats ----------------------------------------------------------------------------------------------------


@dequantizer("F32")
def dequantize_row_f32(blocks):
    """float32 as it is."""
    return numbers("<f4", blocks)


@quantizer("F32")
def quantize_row_f32(x):
    """float32 as it is."""
    return to_bytes("<f4", x)


@dequantizer("F16")
def dequantize_row_f16(blocks):
    """IEEE half precision."""
    return numbers("<f2", blocks)


@quantizer("F16")
def quantize_row_f16(x):
    """IEEE half precision, nearest, ties to even; beyond 65504 infinite."""
    return to_bytes("<f2", x)


@dequantizer("BF16")
def dequantize_row_bf16(blocks):
    """The upper half of a float32."""
    return (numbers("<u2", blocks) << 16).astype(np.uint32).view(np.float32)


@quantizer("BF16")
def quantize_row_bf16(x):
    """The upper half of the float32, nearest, ties to even; a NaN stays one (its quiet bit is set)."""
    bits = x.view(np.uint32).astype(np.int64)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return to_bytes("<u2", np.where(np.isnan(x), (bits >> 16) | 0x40, rounded))


# --- 32 elements, one scale ------------------------------------------------------------------------------------------


@dequantizer("Q4_0")
def dequantize_row_q4_0(blocks):
    """x = d (q - 8): f16 d; 16 bytes, byte j holding elements j (low nibble) and j + 16 (high)."""
    d, q = fields(blocks, 2, 16)
    return numbers("<f2", d) * (unpack(q, 4, 16) - 8)


@dequantizer("Q4_1")
def dequantize_row_q4_1(blocks):
    """x = d q + m: f16 d, f16 m; nibbles as Q4_0."""
    d, m, q = fields(blocks, 2, 2, 16)
    return numbers("<f2", d) * unpack(q, 4, 16) + numbers("<f2", m)


@dequantizer("Q5_0")
def dequantize_row_q5_0(blocks):
    """x = d (q - 16): f16 d; fifth bits, bit j of the little-endian u32 for element j; nibbles as Q4_0."""
    d, high, q = fields(blocks, 2, 4, 16)
    return numbers("<f2", d) * (unpack(q, 4, 16) + 16 * unpack(high, 1, 1) - 16)


@dequantizer("Q5_1")
def dequantize_row_q5_1(blocks):
    """x = d q + m: f16 d, f16 m; fifth bits and nibbles as Q5_0."""
    d, m, high, q = fields(blocks, 2, 2, 4, 16)
    return numbers("<f2", d) * (unpack(q, 4, 16) + 16 * unpack(high, 1, 1)) + numbers("<f2", m)


@dequantizer("Q8_0")
def dequantize_row_q8_0(blocks):
    """x = d q: f16 d; 32 signed bytes."""
    d, q = fields(blocks, 2, 32)
    return numbers("<f2", d) * numbers("i1", q)


def _inverse(d):
    """1 / d in float32, 0 where that is not finite (d zero or so small that no type could hold it)."""
    with np.errstate(divide="ignore", over="ignore"):
        inverse = np.float32(1) / d
    return np.where(np.isfinite(inverse), inverse, np.float32(0))


def _steps(x, inverse, offset, top):
    """trunc(x * inverse + offset) in float32, two roundings (no fused multiply-add), at most `top`."""
    return np.minimum(np.trunc(x * inverse + np.float32(offset)), top).astype(np.int64)


def _around_zero(x, half):
    """d and q in 0 .. 2 half - 1 for x = d (q - half): the element of largest magnitude becomes -half exactly."""
    largest = np.take_along_axis(x, np.abs(x).argmax(axis=1, keepdims=True), axis=1)
    d = largest / np.float32(-half)
    return d, _steps(x, _inverse(d), half + 0.5, 2 * half - 1)


def _from_minimum(x, top):
    """d, m and q in 0 .. top for x = d q + m, from the minimum to the maximum."""
    low, high = x.min(axis=1, keepdims=True), x.max(axis=1, keepdims=True)
    d = (high - low) / np.float32(top)
    return d, low, _steps(x - low, _inverse(d), 0.5, top)


@quantizer("Q4_0")
def quantize_row_q4_0(x):
    """d = (element of largest magnitude) / -8, q = min(15, trunc(x / d + 8.5))."""
    d, q = _around_zero(x, 8)
    return np.hstack([to_bytes("<f2", d), pack(q, 4, 16)])


@quantizer("Q4_1")
def quantize_row_q4_1(x):
    """m = min, d = (max - min) / 15, q = trunc((x - m) / d + 0.5)."""
    d, m, q = _from_minimum(x, 15)
    return np.hstack([to_bytes("<f2", d), to_bytes("<f2", m), pack(q, 4, 16)])


@quantizer("Q5_0")
def quantize_row_q5_0(x):
    """d = (element of largest magnitude) / -16, q = min(31, trunc(x / d + 16.5))."""
    d, q = _around_zero(x, 16)
    return np.hstack([to_bytes("<f2", d), pack(q >> 4, 1, 1), pack(q & 15, 4, 16)])


@quantizer("Q5_1")
def quantize_row_q5_1(x):
    """m = min, d = (max - min) / 31, q = trunc((x - m) / d + 0.5)."""
    d, m, q = _from_minimum(x, 31)
    return np.hstack([to_bytes("<f2", d), to_bytes("<f2", m), pack(q >> 4, 1, 1), pack(q & 15, 4, 16)])


@quantizer("Q8_0")
def quantize_row_q8_0(x):
    """d = max |x| / 127, q = x / d rounded to nearest, halves away from zero."""
    d = np.abs(x).max(axis=1, keepdims=True) / np.float32(127)
    scaled = x * _inverse(d)
    magnitude = np.floor(np.abs(scaled))
    magnitude += np.floor(2 * (np.abs(scaled) - magnitude))
    return np.hstack([to_bytes("<f2", d), to_bytes("i1", np.copysign(magnitude, scaled))])


# --- activations -----------------------------------------------------------------------------------------------------


def quantize_activations(x, bits=8, block=32):
    """q = rint(x / scale), scale = max |x| / (2^(bits - 1) - 1) of each block: x (..., n) in whole blocks of `block`.

    Halves go to even. Returns q int8 or int16 (..., n), scale float64 (..., n / block), 0 for a block of zeros, and the
    blocks' sums of q, int32 (..., n / block), which multiply a weight's minimum or offset.
    """
    top = 2 ** (bits - 1) - 1
    blocks = np.asarray(x, np.float64).reshape(*np.shape(x)[:-1], -1, block)
    scale = np.abs(blocks).max(axis=-1) / top
    q = np.rint(blocks / np.where(scale == 0, 1, scale)[..., None]).astype({8: np.int8, 16: np.int16}[bits])
    return q.reshape(np.shape(x)), scale, q.sum(axis=-1, dtype=np.int32)


def dequantize_activations(q, scale):
    """x = scale * q: q (..., n), scale (..., n / block) -> float64 (..., n)."""
    return np.repeat(scale, q.shape[-1] // scale.shape[-1], axis=-1) * q


def round_activations(x, bits=None, block=32):
    """What is left of x (..., n) after quantize_activations: float64 (..., n); bits None leaves x alone."""
    if bits is None:
        return np.asarray(x, np.float64)
    q, scale, _ = quantize_activations(x, bits, block)
    return dequantize_activations(q, scale)


def quantized_linear(x, rows, name, bits=None):
    """y = x W^T, W being rows uint8 (n_out, bytes) of the named type and x (T, n_in) rounded to `bits`: (T, n_out)."""
    return linear(round_activations(x, bits), dequantize(name, rows, np.float64))
