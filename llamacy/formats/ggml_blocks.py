"""Quantised blocks of the first file versions, rebuilt as GGUF's.

Up to ggjt v1 a byte of nibbles holds elements 2j and 2j+1, later j and j+16. Up to ggjt v2 the scales of Q4_0, Q4_1 and
Q8_0 are f32, later f16 (Q5_0 and Q5_1 came with f16). Rounding a scale to f16 is what the tools' next version did too.
"""

import numpy as np

# Type name -> (f32 scales in front in the wide form, bytes of nibbles at the end). In the order of their numbers.
BLOCKS = {"Q4_0": (1, 16), "Q4_1": (2, 16), "Q5_0": (0, 16), "Q5_1": (0, 16), "Q8_0": (1, 0)}
_FLOATS = ("F32", "F16")

# Blocks converted at a time: what is unpacked in between stays in the cache.
_CHUNK = 1 << 14


def stored_bytes(quant_type, nbytes, wide_scales):
    """Return the bytes that `nbytes` of GGUF's layout take in the old one; None for types it never had."""
    if quant_type.name in _FLOATS:
        return nbytes
    if quant_type.name not in BLOCKS:
        return None
    extra = 2 * BLOCKS[quant_type.name][0] if wide_scales else 0
    return nbytes // quant_type.type_size * (quant_type.type_size + extra)


def converter(wide_scales, neighbour_nibbles):
    """Return a ModelFile converter for the old layout: (TensorInfo, file's bytes) -> uint8 (n_rows, row_bytes).

    Raises OverflowError where an f32 scale has no f16.
    """

    def convert(info, content):
        size = stored_bytes(info.type, info.nbytes, wide_scales)
        stored = content[info.offset : info.offset + size]
        shape = (info.n_rows, info.row_bytes)
        if info.type.name in _FLOATS:
            # These files do not align their tensors; a copy from malloc is aligned.
            return stored.reshape(shape) if info.offset % 4 == 0 else stored.copy().reshape(shape)
        n_scales, n_nibbles = BLOCKS[info.type.name]
        blocks = stored.reshape(info.nbytes // info.type.type_size, -1)
        out = np.empty((len(blocks), info.type.type_size), np.uint8)
        for start in range(0, len(blocks), _CHUNK):
            old, new = blocks[start : start + _CHUNK], out[start : start + _CHUNK]
            wide = 2 * n_scales if wide_scales else 0
            new[:, 2 * n_scales :] = old[:, 2 * n_scales + wide :]
            new[:, : 2 * n_scales] = narrow(old[:, : 4 * n_scales]) if wide else old[:, : 2 * n_scales]
            if neighbour_nibbles and n_nibbles:
                new[:, -n_nibbles:] = halves_apart(new[:, -n_nibbles:])
        return out.reshape(shape)

    return convert


def narrow(scales):
    """Return f32 scales, uint8 (n, 4 k), as f16, uint8 (n, 2 k)."""
    values = np.ascontiguousarray(scales).view(np.float32)
    with np.errstate(over="ignore"):
        halves = values.astype(np.float16)
    if not np.isfinite(halves).all():
        raise OverflowError(f"a scale of {values[~np.isfinite(halves)][0]:g} has no f16")
    return halves.view(np.uint8)


def halves_apart(nibbles):
    """Return bytes of elements (2j, 2j+1) as bytes of elements (j, j+16); uint8 (n, 16) both."""
    elements = np.stack((nibbles & 15, nibbles >> 4), axis=-1).reshape(len(nibbles), 32)
    return elements[:, :16] | elements[:, 16:] << 4
