"""Hugging Face's names of modules <-> GGUF's names of tensors, and what their adapters share."""

import re

from llamacy.errors import shown, some
from llamacy.formats.architectures import (
    ARCHITECTURES,
    LM_HEAD,
    MATRICES,
    OTHER_MATRICES,
    OUTPUT_NORM,
    STACKED,
    TOKEN_EMBD,
    expert_tensor,
    key_of,
    of_expert,
)

_MODULE = re.compile(r"(?:model\.|language_model\.)*(?:layers\.(0|[1-9]\d{0,4})\.)?([a-z_.\d]+)")
# What PEFT's wrappers add to the name of a tensor that they hold as it is.
_COPIED = re.compile(r"^base_model\.model\.|\.base_layer(?=\.(?:weight|bias)$)")
_TENSOR = re.compile(r"(?:blk\.(\d+)\.)?([a-z_.]+)\.weight")
_NUMBERED = re.compile(r"(.+\.)(0|[1-9]\d{0,4})(\..+)")
_TOP = {part.name: part.hf for part in (TOKEN_EMBD, LM_HEAD)}
_TOP_BACK = {hf.removeprefix("model."): ours for ours, hf in _TOP.items()}
EMBEDDING, OUTPUT = f"{TOKEN_EMBD.name}.weight", f"{LM_HEAD.name}.weight"


def _matrices():
    """Return {module in a layer: matrix} of all families: no two call different matrices by one name."""
    found = {matrix.hf: matrix.name for matrix in (*MATRICES, *OTHER_MATRICES) if matrix.hf}
    names = {matrix.name for matrix in (*MATRICES, *OTHER_MATRICES)}
    for family in ARCHITECTURES.values():
        found |= {module: part for part, module in family.hf_names.items() if part in names}
    return found


_MATRIX_OF = _matrices()


def gguf_name(module):
    """Return the GGUF tensor of a module ("model.layers.0.mlp.up_proj" -> "blk.0.ffn_up.weight"), None if unknown."""
    match = _MODULE.fullmatch(module)
    if match is None:
        return None
    known = (_TOP_BACK if match[1] is None else _MATRIX_OF).get(match[2])
    if match[1] is not None and (one := _NUMBERED.fullmatch(match[2])):
        key = _MATRIX_OF.get(f"{one[1]}*{one[3]}")
        return expert_tensor(key, match[1], one[2]) if key in STACKED else None
    if known is None:
        return None
    return f"{known}.weight" if match[1] is None else f"blk.{match[1]}.{known}.weight"


def gguf_tensor(name, architecture="llama"):
    """Return the GGUF name of a model's tensor ("model.norm.weight" -> "output_norm.weight"), None if unknown."""
    module, _, side = name.rpartition(".")
    match, family = _MODULE.fullmatch(module), ARCHITECTURES[architecture]
    if side not in ("weight", "bias") or match is None:
        return None
    if match[1] is None:
        top = {
            family.hf_name(part.name).removeprefix("model."): part.name for part in (OUTPUT_NORM, TOKEN_EMBD, LM_HEAD)
        }
        known = top.get(match[2])
        return (
            known
            and f"{family.output_norm if known == OUTPUT_NORM.name else known + '.weight'}"[: -len("weight")] + side
        )
    norms = {family.hf_name(norm): family.gguf_name(norm) for norm in family.norms}
    known = norms.get(match[2]) or _MATRIX_OF.get(match[2])
    return known and f"blk.{match[1]}.{known}.{side}"


def hf_name(tensor, architecture="llama"):
    """Return the module of a GGUF tensor in a family, None if it has none; undoes gguf_name."""
    family = ARCHITECTURES.get(architecture) or ARCHITECTURES["llama"]
    if one := of_expert(tensor):
        return f"model.layers.{tensor.split('.')[1]}.{family.hf_name(key_of(tensor)).replace('*', str(one[1]))}"
    match = _TENSOR.fullmatch(tensor)
    if match is None:
        return None
    if match[1] is None:
        return _TOP.get(match[2])
    known = family.hf_name(match[2]) if match[2] in _MATRIX_OF.values() else None
    return f"model.layers.{match[1]}.{known}" if known and "*" not in known else None


def grouped_sides(file, pattern, but=()):
    """Return (pairs, copies) of a safetensors adapter.

    pairs   GGUF base name -> {"a": tensor name, "b": tensor name}
    copies  tensors of the base model that stand there too: the GGUF name and the tensor's name of each
    but: tensors that were understood otherwise. `pattern` matches whole names with the module in group 1 and the side
    (a, b, A, B) in group 2. Whatever is neither of a known tensor, or lacks its counterpart, is an error that names
    it: leaving it out would change the result.
    """
    groups, copies, strange = {}, [], []
    for name in (name for name in file.tensors if name not in but):
        match = pattern.fullmatch(name)
        base = gguf_name(match[1]) if match else None
        if base is None:
            whole = None if match else gguf_tensor(_COPIED.sub("", name))
            strange += [] if whole else [name]
            copies += [(whole, name)] if whole else []
            continue
        side = groups.setdefault(base, {})
        if match[2].lower() in side:
            raise file.error(f"{shown(base)} stands twice, last as {shown(name)}", "the file holds several adapters")
        side[match[2].lower()] = name
    if strange:
        what = f"{some(strange)} cannot be represented as LoRA of a known matrix"
        raise file.error(what, "train without modules_to_save and biases, or merge in the program that trained it")
    for base, sides in groups.items():
        if len(sides) != 2:
            raise file.error(f"{shown(base)} has only {shown(*sides.values())}", "the file is damaged")
    return groups, copies


def number(file, config, key, default):
    """Return config[key] as a finite positive float."""
    value = config.get(key, default)
    if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < 1e30:
        return float(value)
    raise file.error(f"adapter_config.json: {key} is {shown(value)}, wanted a positive number", "correct it")
