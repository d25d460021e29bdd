"""Tensors of the base model that an adapter's file holds as they are, beside the pairs: copies of it, or not.

PEFT saves the embeddings that it adapts (`embed_tokens.base_layer.weight`), those of a model whose vocabulary was
resized, and whole modules that it trained (modules_to_save). Only the model itself can tell which: a copy changes
nothing, other values mean another model.
"""

import warnings
from dataclasses import dataclass, replace

import numpy as np

from llamacy import kernels
from llamacy.errors import LlamacyError, shown
from llamacy.formats.arrays import float_rows
from llamacy.formats.lora import base_tensor, row_order
from llamacy.formats.mapped import MappedFile
from llamacy.formats.safetensors import read_safetensors

# Elements in f32 at a time.
CHUNK = 1 << 22
# The relative error of a row that rounding to a type leaves, about: floats by their mantissa, blocks by their bits.
_MANTISSA = {"F64": 52, "F32": 24, "F16": 11, "BF16": 8}
# All rows together, and a single one, may be so many times as far from the original; beyond LIMIT they are unrelated.
WHOLE, ROW, LIMIT = 2.0, 4.0, 0.9


@dataclass(frozen=True)
class BaseCopy:
    """A tensor in an adapter's file that stands for one of the base model.

    name    the base tensor's name in GGUF
    path    the safetensors file, and `key` its name there
    paired  a pair adapts the same tensor: the model's own values are meant, whatever stands here
    """

    name: str
    path: str
    key: str
    paired: bool


def without_copies(adapter, model):
    """Return the Adapter without its copies of tensors of the open ModelFile `model`, each compared with the model's.

    One beside a pair that differs is a warning; one that stands alone would change the result: LlamacyError.
    """
    for copy in adapter.copies:
        found = _difference(copy, model)
        if found is None:
            continue
        what = f"{adapter.path}: {shown(copy.key)} {found}"
        if not copy.paired:
            raise LlamacyError(f"{what}: a whole trained tensor is no LoRA pair; train without modules_to_save")
        warnings.warn(f"{what}: the model's values are used, not those it was trained on", stacklevel=2)
    return replace(adapter, copies=[]) if adapter.copies else adapter


def _difference(copy, model):
    """Return in words how the copy differs from the model's tensor beyond rounding, None where it does not."""
    name = base_tensor(copy.name, model.tensors)
    if name not in model.tensors:
        return f"is {copy.name}, which {model.path} does not have"
    with read_safetensors(MappedFile(copy.path)) as file:
        if copy.key not in file.tensors:
            raise file.error(f"tensor {shown(copy.key)} is gone", "do not change the adapter while it is read")
        ours, theirs = model.tensors[name], file.tensors[copy.key]
        if ours.n_elements != theirs.n_elements or (theirs.shape[-1:] != ours.shape[-1:]):
            return f"has shape {theirs.shape}, {name} of {model.path} has {ours.shape}"
        if ours.type.number not in kernels.quants.types():
            return f"cannot be compared with {name} of {model.path}, which is {ours.type.name}"
        error, size = _distances(file, copy, model, name)
        noise = rounding(ours.type) + rounding(theirs.type)
    # rows of nearly nothing (tokens that were never trained) are measured by the others
    floor = 1e-6 * np.mean(size)
    with np.errstate(invalid="ignore", divide="ignore"):
        each = np.sqrt(error / np.maximum(size, max(floor, 1e-30)))
        whole = np.sqrt(np.sum(error) / max(np.sum(size), 1e-30))
    far = int(np.sum(~(each <= min(ROW * noise, LIMIT))))
    if far == 0 and whole <= min(WHOLE * noise, LIMIT):
        return None
    where = f"in {far} of {len(each)} rows" if 0 < far < len(each) else "everywhere"
    return f"differs from {name} of {model.path} {where}"


def _distances(file, copy, model, name):
    """Return (squared distance, squared length) of each row of the copy and the model's, float64 (n_rows,) each."""
    info = model.tensors[name]
    content, n_cols = model.data(name), info.shape[-1]
    order = row_order(copy.name, info.n_rows, model.metadata, file.path)
    error, size = np.empty(info.n_rows), np.empty(info.n_rows)
    step = max(1, CHUNK // max(1, n_cols))
    with np.errstate(over="ignore", invalid="ignore"):
        for start in range(0, info.n_rows, step):
            part = slice(start, start + step)
            base = kernels.quants.dequantize(np.ascontiguousarray(content[part]), info.type.number)
            theirs = float_rows(file, copy.key, part if order is None else order[part])
            error[part] = np.square(theirs - base).sum(1, dtype=np.float64)
            size[part] = np.maximum(*(np.square(x).sum(1, dtype=np.float64) for x in (theirs, base)))
    model.release(name)
    return error, size


def rounding(quant_type):
    """Return the relative error that storing a row as this QuantType leaves, about."""
    bits = _MANTISSA.get(quant_type.name)
    return 2.0 ** (-bits if bits else 1 - 8 * quant_type.type_size / quant_type.block_size)
