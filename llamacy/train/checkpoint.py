"""The whole state of a run in one GGUF file, so that it goes on as if it had never stopped.

Arrays are tensors under their own names; all other values are one JSON text, in which floats keep every bit.
"""

import json

import numpy as np

from llamacy.errors import LlamacyError
from llamacy.formats.gguf_writer import write_gguf
from llamacy.formats.model_file import open_model
from llamacy.formats.types import by_name

KIND, VERSION = "checkpoint", 1
KEY = "llamacy.checkpoint"
# Types that GGUF has; unsigned ones are kept bit for bit as the signed type of their size.
DTYPES = {"float32": "F32", "float64": "F64", "int8": "I8", "int16": "I16", "int32": "I32", "int64": "I64"}
SIGNED = {"uint8": "int8", "uint16": "int16", "uint32": "int32", "uint64": "int64"}


def save_checkpoint(path, values, arrays):
    """Write `values` (what JSON can hold) and `arrays` (name -> array) at `path`, whole or not at all."""
    dtypes = {name: array.dtype.name for name, array in arrays.items()}
    tensors = []
    for name, array in arrays.items():
        stored = SIGNED.get(dtypes[name], dtypes[name])
        tensors.append((name, by_name(DTYPES[stored]), array.shape, np.ascontiguousarray(array).view(stored)))
    metadata = {
        "general.type": KIND,
        f"{KEY}.version": VERSION,
        f"{KEY}.values": json.dumps(values),
        f"{KEY}.dtypes": json.dumps(dtypes),
    }
    write_gguf(path, metadata, tensors)


def load_checkpoint(path):
    """Return (values, arrays) of a checkpoint; LlamacyError, one line, for anything else."""
    with _opened(path) as file:
        try:
            values, dtypes = (json.loads(file.metadata[f"{KEY}.{part}"]) for part in ("values", "dtypes"))
            arrays = {name: _array(file, name, dtype) for name, dtype in dtypes.items()}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise LlamacyError(f"{path}: the checkpoint is damaged ({error}); start without it") from error
    return values, arrays


def how_far(path):
    """Return (steps done, steps in all) of a checkpoint's run, (0, 0) where it does not say."""
    with _opened(path) as file:
        try:
            values = json.loads(file.metadata[f"{KEY}.values"])
            return int(values["progressed"]["step"]), int(values["n_steps"])
        except (KeyError, TypeError, ValueError):
            return 0, 0


def _opened(path):
    """Return the ModelFile of a checkpoint of this version."""
    file = open_model(path)
    kind, version = file.metadata.get("general.type", "model"), file.metadata.get(f"{KEY}.version")
    if kind != KIND or version is None:
        raise LlamacyError(f"{path}: its type is {kind}, wanted a checkpoint that bin/finetune wrote")
    if version != VERSION:
        raise LlamacyError(f"{path}: checkpoint version {version}, wanted {VERSION}; it is from another llamacy")
    return file


def _array(file, name, dtype):
    """Return one tensor as an array of its own."""
    info = file.tensors[name]
    stored = SIGNED.get(dtype, dtype)
    if info.type.name != DTYPES[stored]:
        raise ValueError(f"{name} is {info.type.name}, wanted {DTYPES[stored]}")
    return np.array(file.data(name).reshape(-1).view(stored).view(dtype).reshape(info.shape))
