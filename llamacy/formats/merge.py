"""Adapters merged into their base model's weights: W + sum of scale * B A, tensor by tensor, in any type."""

import numpy as np

from llamacy.errors import LlamacyError, UsageError
from llamacy.formats.hf_names import EMBEDDING
from llamacy.formats.types import FILE_TYPES, by_name
from llamacy.kernels import quants

OUTPUT = "output.weight"
# Elements in f32 at a time, beside the one tensor that is being written.
_CHUNK = 1 << 22


def written_types():
    """Return the names of the types that rows can be quantised to."""
    return [name for name in FILE_TYPES if _can_write(by_name(name))]


def writable(name):
    """Return the QuantType called `name` (any case); UsageError unless rows can be quantised to it."""
    if name.upper() not in FILE_TYPES or not _can_write(by_name(name)):
        raise UsageError(f"type {name} cannot be written, wanted one of {', '.join(written_types())}")
    return by_name(name)


def _can_write(quant_type):
    try:
        quants.quantize(np.empty((0, quant_type.block_size), np.float32), quant_type.number)
    except ValueError:
        return False
    return True


def merged(file, adapters, outtype=None, n_threads=1):
    """Return (metadata, tensors) for write_gguf: the model in `file` with `adapters` merged into it.

    adapters  list of (Adapter, user scale), bound to the model; those that do not fit are an error
    outtype   QuantType of every matrix; None: each tensor keeps its own type, and its bytes where nothing changes it
    A pair on the embedding of a model that has no output matrix acts on the input only, as it does at run time: the
    result gets an output matrix of its own.
    """
    for adapter, _ in adapters:
        _check(file, adapter)
    changes = {name: _Change(name, adapters) for name in file.tensors}
    metadata = file.metadata if outtype is None else file.metadata | {"general.file_type": FILE_TYPES[outtype.name]}
    entries = [_entry(file, name, changes[name], outtype, n_threads) for name in file.tensors]
    if EMBEDDING in file.tensors and OUTPUT not in file.tensors and changes[EMBEDDING].parts:
        _, target, shape, reader = _entry(file, EMBEDDING, _Change(OUTPUT, adapters), outtype, n_threads)
        entries.append((OUTPUT, target, shape, reader))
    return metadata, entries


def _entry(file, name, change, outtype, n_threads):
    """Return write_gguf's (name, type, shape, reader) of tensor `name` with `change` added."""
    info = file.tensors[name]
    target = _target(info, outtype)
    if target is info.type and not change.parts:
        return name, target, info.shape, lambda: file.data(name)
    if not _can_write(target):
        what = f"tensor {name} is {target.name}, which can be read and not written"
        raise file.error(what, f"choose an --outtype: {', '.join(written_types())}")
    return name, target, info.shape, lambda: _rewritten(file, info, target, change, n_threads)


def _check(file, adapter):
    architecture = file.metadata.get("general.architecture")
    if adapter.architecture and adapter.architecture != architecture:
        problem = f"it is for {adapter.architecture!r}, the model is {architecture!r}"
    else:
        problem = adapter.misfit(file.tensors)
    if problem:
        raise LlamacyError(f"{adapter.path} does not fit {file.path}: {problem}; use the model it was trained on")


def _target(info, outtype):
    """Return the type to write a tensor in: matrices in `outtype` (f16 where its blocks do not fit), norms as is."""
    if outtype is None or len(info.shape) < 2 or info.type.number not in quants.types():
        return info.type
    return outtype if info.shape[-1] % outtype.block_size == 0 else by_name("F16")


class _Change:
    """What all adapters together add to one tensor."""

    def __init__(self, name, adapters):
        self.parts = []
        with np.errstate(over="ignore", invalid="ignore"):
            for adapter, scale in adapters:
                if name in adapter.pairs:
                    pair = adapter.pairs[name]
                    self.parts.append((pair.b, pair.a * np.float32(pair.scale * scale)))
                elif name in adapter.norms:
                    self.parts.append((None, adapter.norms[name] * np.float32(scale)))

    def add_to(self, values, start):
        """Add to `values`, f32 (n, n_cols): rows from `start` on."""
        with np.errstate(over="ignore", invalid="ignore"):
            for b, a in self.parts:
                values += a if b is None else b[start : start + len(values)] @ a


def _rewritten(file, info, target, change, n_threads):
    """Return tensor `info` with `change` added as rows of `target`, uint8 (n_rows, row bytes)."""
    content, n_cols = file.data(info.name), info.shape[-1]
    out = np.empty((info.n_rows, target.row_bytes(n_cols)), np.uint8)
    step = max(1, _CHUNK // max(1, n_cols))
    for start in range(0, info.n_rows, step):
        rows = np.ascontiguousarray(content[start : start + step])
        values = quants.dequantize(rows, info.type.number, n_threads)
        change.add_to(values, start)
        if not np.isfinite(values).all():
            raise file.error(f"tensor {info.name} would hold numbers that are not finite", "use a smaller scale")
        out[start : start + step] = quants.quantize(values, target.number, n_threads)
    file.release(info.name)
    return out
