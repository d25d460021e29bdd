"""Load and save LoRA adapters of any format, told apart by content."""

import os
import warnings
from dataclasses import replace

import numpy as np

from llamacy.errors import LlamacyError, UsageError, printable, shown
from llamacy.formats import mlx, peft
from llamacy.formats.base_copies import without_copies
from llamacy.formats.ggla import is_ggla, read_ggla, write_ggla
from llamacy.formats.gguf import MAGIC, read_gguf
from llamacy.formats.gguf_adapter import is_gguf_adapter, read_gguf_adapter, write_gguf_adapter
from llamacy.formats.hf_names import EMBEDDING, OUTPUT
from llamacy.formats.lora import Adapter, LoraPair
from llamacy.formats.mapped import MappedFile

__all__ = ["FORMATS", "Adapter", "LoraPair", "adapter_format", "fitted", "load_adapter", "save_adapter"]

# Format -> test of an open MappedFile, its reader, writer(path, adapter, base) that returns what it could not carry.
FORMATS = {
    "gguf": (is_gguf_adapter, read_gguf_adapter, write_gguf_adapter),
    "ggla": (is_ggla, read_ggla, write_ggla),
    "peft": (peft.is_peft, peft.read_peft, peft.write_peft),
    "mlx": (mlx.is_mlx, mlx.read_mlx, mlx.write_mlx),
}
# Those that are folders, and the file inside that tells them.
FOLDERS = {"peft": peft.WEIGHTS, "mlx": mlx.WEIGHTS}
# Those that have a place for DoRA's magnitudes.
WITH_MAGNITUDES = ("peft", "mlx")
TRIES = 8


def _file_of(path):
    """Return `path`, or the path of the weights inside when it is a folder."""
    if not os.path.isdir(path):
        return path
    for name in FOLDERS.values():
        if os.path.exists(os.path.join(path, name)):
            return os.path.join(path, name)
    if os.path.exists(os.path.join(path, "adapter_model.bin")):
        raise LlamacyError(
            f"{path}: holds a pickled adapter_model.bin, which could run anything; save it as safetensors"
        )
    names = [name for name in sorted(os.listdir(path)) if name.endswith((".bin", ".gguf")) and "checkpoint" not in name]
    advice = f"; give the file inside, {printable(os.path.join(path, names[0]))}" if names else ""
    raise LlamacyError(f"{path}: a folder without {' or '.join(FOLDERS.values())}; wanted an adapter{advice}")


def _format_of(source):
    return next((name for name, (is_this, _, _) in FORMATS.items() if is_this(source)), None)


def adapter_format(path):
    """Return the name of the adapter format of `path`, None for a file that is no adapter."""
    source = MappedFile(_file_of(path))
    try:
        return _format_of(source)
    finally:
        source.close()


def load_adapter(path, base=None):
    """Return the Adapter at `path` (a file or a folder), whatever its format; its arrays are its own, float32.

    `base` is the metadata of the model it is for; without it an adapter of PEFT or mlx-lm waits for Adapter.bound().
    Raises LlamacyError, one line, for what is missing, damaged or no adapter.
    """
    for _ in range(TRIES):
        place = _file_of(path)
        before = _identity(place)
        try:
            adapter = _read(place)
        except LlamacyError:
            if _identity(place) == before:
                raise
            continue
        if _identity(place) == before:  # so that a folder's two files are of one adapter
            break
    else:
        raise LlamacyError(f"{path}: is replaced again and again while it is read; try again when that is over")
    return adapter if base is None else adapter.bound(base)


def _identity(path):
    """Return what changes when the file at `path` is replaced, None where there is none."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _read(path):
    source = MappedFile(path)
    try:
        name = _format_of(source)
        if name is None and source.bytes[:4].tobytes() == MAGIC:
            if read_gguf(source).text("general.type") == "checkpoint":
                raise source.error("is a checkpoint, wanted an adapter", "give the adapter beside it")
            raise source.error("is a model, wanted an adapter", "give a model with -m and an adapter with --lora")
        if name is None:
            raise source.stranger("a LoRA adapter")
        adapter = FORMATS[name][1](source)
        _check_finite(adapter)
        return adapter
    finally:
        source.close()


def _check_finite(adapter):
    arrays = {
        f"{name} {part}": getattr(pair, part)
        for name, pair in adapter.pairs.items()
        for part in ("a", "b", "scale", "magnitude")
        if getattr(pair, part) is not None
    }
    for name, values in (arrays | adapter.norms).items():
        if not np.isfinite(values).all():
            what = f"{adapter.path}: {shown(name)} holds numbers that are infinite or none"
            raise LlamacyError(f"{what}; damaged, or its training diverged: train with a lower learning rate")


def fitted(adapter, model):
    """Return the Adapter as it applies to the open ModelFile `model`: rows in its order, copies compared.

    LlamacyError for a tensor that was trained whole or holds infinities or NaN, a warning for a pair that was trained
    beside other base values.
    """
    _check_finite(adapter)
    adapter = without_copies(adapter.bound(model.metadata), model)
    if adapter.one_embedding and OUTPUT not in model.tensors:
        adapter = replace(adapter, pairs={OUTPUT: adapter.pairs[EMBEDDING]} | adapter.pairs)
    return replace(adapter, one_embedding=False)


def check_magnitudes(adapter, path, format):
    """Raise LlamacyError where a format has no place for what a DoRA adapter is."""
    if not adapter.is_dora:
        return
    advice = "merge it into its model with bin/export-lora"
    if format not in WITH_MAGNITUDES:
        what = f"{path}: a DoRA adapter, whose magnitudes {format} has no place for"
        raise LlamacyError(f"{what}; write it as {' or '.join(WITH_MAGNITUDES)}, or {advice}")
    plain = next((name for name, pair in adapter.pairs.items() if pair.magnitude is None), None)
    if plain:
        what = f"{path}: {shown(plain)} has no magnitudes and others have some"
        raise LlamacyError(f"{what}, which {format} cannot say; {advice}")


def save_adapter(path, adapter, format="gguf", base=None):
    """Write `adapter` at `path`, whole or not at all; return the names of what the format cannot carry.

    `base` is the base model's metadata. Between PEFT or mlx-lm and the others it is needed, unless the adapter says
    itself how many heads the model has.
    """
    if format not in FORMATS:
        raise UsageError(f"adapter format {format!r} is unknown, wanted one of {', '.join(FORMATS)}")
    check_magnitudes(adapter, adapter.path or path, format)
    for copy in adapter.copies:
        if not copy.paired:
            what = f"{adapter.path}: holds {shown(copy.key)} whole, which is no LoRA pair"
            raise LlamacyError(f"{what}; name the base model with -m to see whether it was trained")
    if EMBEDDING in adapter.pairs and OUTPUT not in adapter.pairs and adapter.one_embedding != (format == "mlx"):
        what = "in a model without an output matrix mlx-lm alone applies a pair on the embedding to the output too"
        warnings.warn(f"{adapter.path or path}: {what}", stacklevel=2)
    if format not in FOLDERS and adapter.hf_rows:
        if base is None:
            raise LlamacyError(f"{adapter.path}: does not say which model it is for; name the base model with -m")
        adapter = adapter.bound(base)
    return FORMATS[format][2](path, adapter, base) + [copy.key for copy in adapter.copies]
