"""What all block types share: the table of types, row functions made of block functions, and the fields of a block.

A row of n elements is n / block_size blocks of type_size bytes, one after the other. Dequantising is exact: products of
a type's scales and quants have at most 24 significant bits, so that the float64 value rounded once to float32 is what
float32 arithmetic gives too. Quantising is defined in float32, rounding by rounding, because ties decide bits.
"""

from dataclasses import dataclass, replace
from functools import wraps

import numpy as np

from llamacy.kernels.weight_types import BY_NAME


@dataclass(frozen=True)
class BlockType:
    """One type: elements and bytes of a block, and its row functions (`quantize` is None for a read-only type)."""

    block_size: int
    type_size: int
    dequantize: object
    quantize: object = None


TYPES = {}


def dequantizer(name):
    """Register f(blocks uint8 (n, type_size)) -> (n, block_size) as the type's function on rows uint8 (..., bytes).

    The function made takes `dtype`: float32 by default, float64 for the exact values.
    """

    block_size, type_size = BY_NAME[name].block, BY_NAME[name].block_bytes

    def register(f):
        @wraps(f)
        def dequantize_row(rows, dtype=np.float32):
            rows = np.ascontiguousarray(rows, np.uint8)
            if rows.shape[-1] % type_size:
                raise ValueError(f"{name}: a row of {rows.shape[-1]} bytes is not whole blocks of {type_size}")
            with np.errstate(over="ignore", invalid="ignore"):  # infinite or NaN scales are the file's own business
                values = f(rows.reshape(-1, type_size)).astype(dtype) if rows.size else np.empty(0, dtype)
            return values.reshape(*rows.shape[:-1], rows.shape[-1] // type_size * block_size)

        TYPES[name] = BlockType(block_size, type_size, dequantize_row)
        return dequantize_row

    return register


def quantizer(name):
    """Register f(blocks float32 (n, block_size)) -> uint8 (n, type_size) as the type's function on rows (..., n)."""

    def register(f):
        @wraps(f)
        def quantize_row(x):
            x, kind = np.ascontiguousarray(x, np.float32), TYPES[name]
            if x.shape[-1] % kind.block_size:
                raise ValueError(f"{name}: a row of {x.shape[-1]} elements is not whole blocks of {kind.block_size}")
            with np.errstate(over="ignore"):  # a scale beyond float16 becomes infinite
                blocks = f(x.reshape(-1, kind.block_size)) if x.size else np.empty(0, np.uint8)
            return blocks.reshape(*x.shape[:-1], x.shape[-1] // kind.block_size * kind.type_size)

        TYPES[name] = replace(TYPES[name], quantize=quantize_row)
        return quantize_row

    return register


def fields(blocks, *sizes):
    """Cut blocks (n, bytes) into consecutive fields of the given bytes, which must be all of them."""
    assert sum(sizes) == blocks.shape[1]
    return np.split(blocks, np.cumsum(sizes)[:-1], axis=1)


def numbers(kind, field):
    """Read bytes (n, k) as little-endian numbers, widened to float64 or int64 so that nothing wraps."""
    values = np.ascontiguousarray(field).view(kind)
    return values.astype(np.float64 if values.dtype.kind == "f" else np.int64)


def to_bytes(kind, values):
    """Write numbers (n, k) as little-endian bytes uint8 (n, k * size)."""
    return np.ascontiguousarray(values.astype(kind)).view(np.uint8).reshape(len(values), -1)


def unpack(field, bits, run):
    """Unpack bytes (n, k) holding 8 / bits values each, in stretches of `run` bytes -> int64 (n, k * 8 / bits).

    A stretch holds first the lowest bits of each of its bytes, then the next bits of each: Q4_0's nibbles are bits 4,
    run 16; run 1 is plain little-endian order.
    """
    shifts = np.arange(0, 8, bits)[:, None]
    stretches = field.astype(np.int64).reshape(len(field), -1, 1, run)
    return ((stretches >> shifts) & ((1 << bits) - 1)).reshape(len(field), -1)


def pack(values, bits, run):
    """The inverse of `unpack`: (n, values) -> uint8 (n, values * bits / 8)."""
    shifts = np.arange(0, 8, bits)[:, None]
    stretches = values.astype(np.int64).reshape(len(values), -1, 8 // bits, run)
    return (stretches << shifts).sum(axis=2).astype(np.uint8).reshape(len(values), -1)


def spread(scales, n):
    """Repeat (rows, groups) to (rows, n): each group's scale over its n / groups elements."""
    return np.repeat(scales, n // scales.shape[1], axis=1)
