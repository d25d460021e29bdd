"""The whole state of a run in one GGUF file, so that it goes on as if it had never stopped.

Arrays are tensors under their own names; all other values are one JSON text, in which floats keep every bit.
"""

import json
from hashlib import blake2b

import numpy as np

from llamacy.errors import LlamacyError, shown
from llamacy.formats.gguf_writer import write_gguf
from llamacy.formats.model_file import open_model
from llamacy.formats.safetensors import json_object
from llamacy.formats.types import by_name

KIND, VERSION = "checkpoint", 3
KEY = "llamacy.checkpoint"
UNKNOWN = object()  # what an earlier version did not write
MAX_VALUES = 1 << 26
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
    texts = {"values": json.dumps(values), "dtypes": json.dumps(dtypes)}
    metadata = {"general.type": KIND, f"{KEY}.version": VERSION} | {f"{KEY}.{part}": texts[part] for part in texts}
    metadata[f"{KEY}.digest"] = _digest(texts.values(), (array for _, _, _, array in tensors))
    write_gguf(path, metadata, tensors)


def _digest(texts, arrays):
    """Return a text that changes with any bit of what is kept."""
    found = blake2b(digest_size=16)
    for text in texts:
        found.update(text.encode("utf-8", "replace"))
    for array in arrays:
        found.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
    return found.hexdigest()


def load_checkpoint(path):
    """Return (values, arrays) of a checkpoint, in which every value and array is as it was saved.

    LlamacyError, one line, for anything else: what they mean is for others to check.
    """
    with _opened(path) as file:
        values = _table(path, file, "values")
        dtypes = _table(path, file, "dtypes")
        for name in {*dtypes, *file.tensors}:
            if name not in dtypes or name not in file.tensors:
                raise damaged(path, f"{shown(name)} is {'a tensor' if name in file.tensors else 'a type'} alone")
        arrays = {name: _array(path, file, name, dtype) for name, dtype in dtypes.items()}
        version = file.metadata[f"{KEY}.version"]
        texts = (file.metadata[f"{KEY}.{part}"] for part in ("values", "dtypes"))
        if version > 1 and file.metadata.get(f"{KEY}.digest") != _digest(
            texts, (arrays[name] for name in file.tensors)
        ):
            raise damaged(path, "its content is not what its digest says")
    return UPGRADES[version](path, values), arrays


def how_far(path):
    """Return (steps done, steps in all) of a checkpoint's run; LlamacyError where it does not say."""
    with _opened(path) as file:
        values = _table(path, file, "values")
    try:
        step, n_steps = values["progressed"]["step"], values["n_steps"]
    except (KeyError, TypeError):
        step = n_steps = None
    if type(step) is not int or type(n_steps) is not int:
        raise damaged(path, "it does not say how far its run was")
    return step, n_steps


def damaged(path, what):
    """Return the error for a checkpoint of this version that cannot be as it was written."""
    return LlamacyError(f"{path}: the checkpoint is damaged: {what}; start anew without it")


def _from_first(path, values):
    """Version 1 knew nothing of the model, of each pair and of the validation data: these are UNKNOWN."""
    fixed = values.get("fixed")
    if not isinstance(fixed, dict):
        raise damaged(path, "it does not say what its run was set up with")
    values = {"validation": UNKNOWN} | values
    return _from_second(path, values | {"fixed": dict.fromkeys(("model", "val_split", "pairs"), UNKNOWN) | fixed})


def _from_second(path, values):
    """Version 2 skipped no steps, and kept neither their gradients' norms nor their rates."""
    progressed = values.get("progressed")
    if not isinstance(progressed, dict):
        return values
    return values | {"progressed": {"n_skipped": 0, "n_astray": 0, "known_from": progressed.get("step")} | progressed}


# Version -> what makes this version's values of its.
UPGRADES = {1: _from_first, 2: _from_second, VERSION: lambda path, values: values}


def _opened(path):
    """Return the ModelFile of a checkpoint of a version that is known."""
    file = open_model(path)
    kind, version = file.text("general.type", "model"), file.metadata.get(f"{KEY}.version")
    if kind != KIND or version is None:
        raise LlamacyError(f"{path}: its type is {shown(kind)}, wanted a checkpoint that bin/finetune wrote")
    if type(version) is not int or version < 1:
        raise damaged(path, f"version: wanted a whole number from 1, got {shown(version)}")
    if version not in UPGRADES:
        raise LlamacyError(
            f"{path}: checkpoint version {version}, wanted at most {VERSION}; it is from a later llamacy: use that, or "
            "start anew without it"
        )
    return file


def _table(path, file, part):
    """Return the JSON object under one of our keys."""
    text = file.metadata.get(f"{KEY}.{part}")
    if not isinstance(text, str) or len(text) > MAX_VALUES:
        raise damaged(path, f"{part}: wanted a text of at most {MAX_VALUES} characters, got {shown(text)}")
    return json_object(file, text.encode("utf-8", "replace"))


def _array(path, file, name, dtype):
    """Return one tensor as an array of its own."""
    info = file.tensors[name]
    stored = DTYPES.get(SIGNED.get(dtype, dtype)) if isinstance(dtype, str) else None
    if info.type.name != stored:
        raise damaged(path, f"{shown(name)} is {info.type.name}, wanted {stored or shown(dtype)}")
    content = file.data(name).reshape(-1).view(SIGNED.get(dtype, dtype)).view(dtype)
    return np.array(content.reshape(info.shape))
