"""Small tensors as float32: what adapters and norms are stored in. Whole models go through the kernels instead."""

import numpy as np

from llamacy.errors import brief


def _from_bf16(raw):
    return (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32)


def _from_q8_0(raw):
    """Blocks of an f16 scale and 32 signed bytes: x = d * q."""
    blocks = raw.reshape(-1, 34)
    scales = np.ascontiguousarray(blocks[:, :2]).view(np.float16).astype(np.float32)
    return (scales * np.ascontiguousarray(blocks[:, 2:]).view(np.int8)).reshape(raw.shape[0], -1)


# Type name -> function from contiguous uint8 (n_rows, row_bytes) to float (n_rows, n_columns).
_DECODERS = {
    "F32": lambda raw: raw.view(np.float32),
    "F16": lambda raw: raw.view(np.float16),
    "F64": lambda raw: raw.view(np.float64),
    "BF16": _from_bf16,
    "Q8_0": _from_q8_0,
}


def float_tensor(model_file, name):
    """Return tensor `name` of a ModelFile as a new, writable float32 array of its shape.

    Raises LlamacyError for types that adapters are not stored in.
    """
    return float_rows(model_file, name, slice(None)).reshape(model_file.tensors[name].shape)


def float_rows(model_file, name, rows):
    """Return the rows of tensor `name` that a slice names as new float32 (n, n_cols); see float_tensor."""
    info = model_file.tensors[name]
    decode = _DECODERS.get(info.type.name)
    if decode is None:
        what = f"tensor {brief(name)} is {info.type.name}, wanted one of {', '.join(_DECODERS)}"
        raise model_file.error(what, "convert it")
    # A copy first: file offsets need not be aligned for the wider types.
    raw = np.array(model_file.data(name)[rows])
    with np.errstate(over="ignore", invalid="ignore"):
        return decode(raw).astype(np.float32, copy=False)
