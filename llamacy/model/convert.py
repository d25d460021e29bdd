"""Models and adapters into another format."""

import contextlib
import os
import warnings

from llamacy.default_model import default_model
from llamacy.errors import LlamacyError, UsageError, brief, some
from llamacy.formats.adapter import FOLDERS, fitted, load_adapter, save_adapter
from llamacy.formats.gguf_writer import write_gguf
from llamacy.formats.hf_folder import HfFolder
from llamacy.formats.lora import head_counts
from llamacy.formats.model_file import open_model
from llamacy.formats.rewrite import writable
from llamacy.formats.types import FILE_TYPES
from llamacy.model.from_hf import model_from_hf
from llamacy.model.mixes import MIXES

# How many neighbouring files are looked at for the model that an adapter belongs to.
MAX_NEIGHBOURS = 64


def convert_folder(
    path,
    output=None,
    *,
    to=None,
    outtype=None,
    name=None,
    vocab_only=False,
    threads=1,
    changes=None,
    note=warnings.warn,
):
    """Write the Hugging Face model in the folder `path` as GGUF v3; return what to tell.

    output: where, see filled; None: NAME-TYPE.gguf in the folder. name: its general.name, None for the folder's own.
    vocab_only: no tensors.
    outtype: the type of its matrices or a mix of types, by name; None for what they are. changes: other values for
    keys of its family.
    """
    _check_model_format(path, to)
    outtype = None if outtype is None else type_or_mix(outtype)
    with HfFolder(path) as folder:
        metadata, tensors, notes = model_from_hf(folder, outtype, threads)
        metadata |= _of_family(changes, metadata["general.architecture"]) | _named(name)
        tensors = [] if vocab_only else tensors
        stem = os.path.basename(os.path.abspath(path))
        output = filled(output or os.path.join(path, stem + "-{FTYPE}.gguf"), metadata)
        write_gguf(output, metadata, tensors)
    for text in notes:
        note(f"warning: {text}")
    pre = metadata.get("tokenizer.ggml.pre", "none")
    vocabulary = f"{len(metadata['tokenizer.ggml.tokens'])} tokens ({metadata['tokenizer.ggml.model']}, {pre})"
    return f"{output}: gguf model, {len(tensors)} tensors, {vocabulary}, from a Hugging Face folder"


def type_or_mix(name):
    """Return the QuantType called `name` (any case), or the Mix; UsageError where neither can be written."""
    mixes = set(MIXES) - set(FILE_TYPES)
    return MIXES[name.upper()] if name.upper() in mixes else writable(name, also=mixes)


def filled(output, metadata):
    """Return the path `output` with {ftype} or {outtype} in it replaced by a model's type, {FTYPE} in capitals."""
    mix = next((name for name, row in MIXES.items() if row.file_type == metadata["general.file_type"]), "mixed")
    for key in ("ftype", "outtype"):
        output = output.replace(f"{{{key}}}", mix.lower()).replace(f"{{{key.upper()}}}", mix)
    return output


def _named(name):
    return {} if name is None else {"general.name": name}


def convert_model(path, output, *, to=None, name=None, changes=None):
    """Write the model at `path` as GGUF v3, its blocks as they are; return what to tell.

    name, changes: see convert_folder.
    """
    _check_model_format(path, to)
    with open_model(path) as model:
        metadata = model.metadata | _of_family(changes, model.metadata.get("general.architecture", "llama"))
        metadata |= _named(name)
        # One reader per tensor, called while writing: older layouts are converted one at a time.
        tensors = [(t.name, t.type, t.shape, lambda name=t.name: model.data(name)) for t in model.tensors.values()]
        write_gguf(output, metadata, tensors, model.value_types)
        return f"{output}: gguf model, {len(tensors)} tensors, from {model.format} version {model.version}"


def _check_model_format(path, to):
    if to not in (None, "gguf"):
        raise UsageError(f"--to {to}: {path} is a model, which becomes gguf")


def _of_family(changes, architecture):
    return {f"{architecture}.{key}": value for key, value in (changes or {}).items()}


def convert_adapter(path, output, kind, *, to=None, base=None, note=warnings.warn):
    """Write the adapter at `path`, of format `kind`, in the format `to` (None: what the name `output` says).

    base: path of the model it belongs to; None: one is looked for, see with_base. Return what to tell, with what could
    not be carried.
    """
    adapter = load_adapter(path)
    wish = to or format_for(output, kind)
    adapter, metadata = with_base(adapter, wish, path, base, note)
    left_out = adapter.left_out + save_adapter(output, adapter, wish, metadata)
    report = f"{output}: {wish} adapter, {len(adapter.pairs)} pairs, from {kind}"
    return f"{report}; left out, for {wish} cannot carry it: {some(left_out, 5, brief)}" if left_out else report


def format_for(path, kind):
    """Return the adapter format that the name `path` asks for, for an adapter that is of format `kind` now."""
    if path.endswith(".gguf"):
        return "gguf"
    if path.endswith(".bin"):
        return "gguf" if kind == "ggla" else "ggla"
    if os.path.splitext(path)[1] and not os.path.isdir(path):
        raise UsageError(f"{path}: a name in .gguf, in .bin or of a folder tells the format; or say --to")
    return "peft"


def with_base(adapter, wish, path, base, note):
    """Return (the Adapter as it fits its base model, that model's metadata), None where none is needed or found.

    Without `base` it is the default model or one beside `path` whose shapes fit, which `note` is told.
    """
    if base is not None:
        with open_model(base) as model:
            problem = adapter.misfit(model.tensors)
            if problem:
                raise LlamacyError(f"{path} does not fit {base}: {problem}; name its own base model with -m")
            return fitted(adapter, model), model.metadata
    if adapter.hf_rows == (wish in FOLDERS) or head_counts(adapter.architecture, adapter.metadata):
        return adapter, None
    found = {near: metadata for near in _neighbours(path) if (metadata := _fitting(near, adapter)) is not None}
    heads = {str(_all_heads(metadata)) for metadata in found.values()}
    if len(heads) > 1:
        raise LlamacyError(f"{path} fits {' and '.join(found)}, whose heads differ; name its base model with -m")
    if not found:
        return adapter, None
    near, metadata = next(iter(found.items()))
    note(f"rows of q and k in the order of {near}, which the adapter fits")
    return adapter, metadata


def _all_heads(metadata):
    architecture = metadata.get("general.architecture")
    return architecture, head_counts(architecture, metadata)


def _fitting(path, adapter):
    """Return the metadata of the model at `path` if the adapter fits it, else None."""
    try:
        with open_model(path) as model:
            return None if adapter.misfit(model.tensors) else model.metadata
    except LlamacyError:
        return None


def _neighbours(adapter):
    """Yield the default model and the model files beside the path `adapter` (and beside its folder)."""
    with contextlib.suppress(LlamacyError):
        yield default_model()
    start = os.path.dirname(os.path.abspath(adapter))
    for folder in [start, os.path.dirname(start)] if os.path.isfile(adapter) else [start]:
        with contextlib.suppress(OSError):
            names = [name for name in sorted(os.listdir(folder)) if name.endswith((".gguf", ".bin"))]
            yield from (os.path.join(folder, name) for name in names[:MAX_NEIGHBOURS])
