"""Tensors in another type, some rows at a time: what merging and converting share."""

import numpy as np

from llamacy.errors import UsageError, brief, shown
from llamacy.formats.types import FILE_TYPES, by_name
from llamacy.kernels import quants

# Elements in f32 at a time, beside the one tensor that is being written.
CHUNK = 1 << 22


def written_types():
    """Return the names of the types that rows can be quantised to."""
    return [name for name in FILE_TYPES if can_write(by_name(name))]


def writable(name, also=()):
    """Return the QuantType called `name` (any case); UsageError unless rows can be quantised to it.

    also: names that the caller takes besides, for the error to tell.
    """
    if name.upper() not in FILE_TYPES or not can_write(by_name(name)):
        wanted = ", ".join([*written_types(), *sorted(also)])
        raise UsageError(f"type {shown(name)} cannot be written, wanted one of {wanted}")
    return by_name(name)


def can_write(quant_type):
    """Tell whether rows can be quantised to a QuantType."""
    return quant_type.number in quants.writable()


def matrix_type(info, wanted):
    """Return the QuantType to write tensor `info` in: `wanted`, or F16 where its blocks do not fit the rows.

    Vectors and tensors that are no weights (whole numbers) keep their own.
    """
    if len(info.dims) < 2 or info.type.number not in quants.types():
        return info.type
    return wanted if info.shape[-1] % wanted.block_size == 0 else by_name("F16")


def rewritten(file, info, target, n_threads=1, *, order=None, add=None):
    """Return tensor `info` of a ModelFile as rows of type `target`, uint8 (n_rows, row bytes).

    order  int (n_rows,): row i of the result is row order[i] of the tensor
    add    function (f32 values (n, n_cols), first row): adds to the values in place
    """
    content, n_cols = file.data(info.name), info.shape[-1]
    out = np.empty((info.n_rows, target.row_bytes(n_cols)), np.uint8)
    step = max(1, CHUNK // max(1, n_cols))
    for start in range(0, info.n_rows, step):
        part = slice(start, start + step)
        rows = np.ascontiguousarray(content[part] if order is None else content[order[part]])
        if target is info.type and add is None:
            out[part] = rows
            continue
        values = quants.dequantize(rows, info.type.number, n_threads)
        if add is not None:
            add(values, start)
        if not np.isfinite(values).all():
            what = f"tensor {brief(info.name)} would hold numbers that are not finite"
            raise file.error(what, "damaged, or too large a scale")
        out[part] = quants.quantize(values, target.number, n_threads)
    file.release(info.name)
    return out
