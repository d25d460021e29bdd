"""Adapters as GGUF: what llama.cpp loads.

Source: llama.cpp's llama-adapter.cpp. `general.type` "adapter", `adapter.type` "lora", `adapter.lora.alpha` f32;
tensors `<base>.lora_a` (r, n_in) and `<base>.lora_b` (n_out, r); for token_embd a is (n_vocab, r) and b (n_embd, r). Of
a tensor in which n experts' matrices are stacked a is (n, r, n_in) and b (n, n_out, r).
Scale is alpha / r with the tensor's own r; alpha 0 means 1.
"""

import re

import numpy as np

from llamacy.errors import brief, shown
from llamacy.formats.architectures import STACKED, expert_tensor, of_expert
from llamacy.formats.arrays import float_tensor
from llamacy.formats.gguf import MAGIC, read_gguf
from llamacy.formats.gguf_writer import write_gguf
from llamacy.formats.hf_names import EMBEDDING
from llamacy.formats.lora import Adapter, LoraPair
from llamacy.formats.types import by_name

_STACKED = re.compile(rf"blk\.(\d+)\.({'|'.join(STACKED)})\.weight")
_OWN_KEYS = ("general.architecture", "general.type", "adapter.type", "adapter.lora.alpha")


def is_gguf_adapter(source):
    """Tell whether an open MappedFile is GGUF and says that it is an adapter."""
    return source.bytes[:4].tobytes() == MAGIC and read_gguf(source).text("general.type") == "adapter"


def read_gguf_adapter(source):
    """Return the Adapter in an open MappedFile that begins with "GGUF"."""
    with read_gguf(source) as file:
        kind = file.text("general.type", "model")
        if kind != "adapter" or file.text("adapter.type") != "lora":
            what = file.text("adapter.type", "nameless adapter") if kind == "adapter" else kind
            raise file.error(
                f"holds {shown(what)}, wanted a LoRA adapter", "give a model with -m and an adapter with --lora"
            )
        alpha = _alpha(file)
        pairs, left_out = {}, []
        for base, found in _grouped(file).items():
            if found.keys() == {"a", "b"}:
                pairs |= _pairs(file, base, found, alpha)
            elif found.keys() == {"other"}:
                left_out.append(found["other"])
            else:
                raise file.error(f"{brief(base)} has lora_{min(found)} without its counterpart", "the file is damaged")
        metadata = {key: value for key, value in file.metadata.items() if key not in _OWN_KEYS}
        architecture = str(file.metadata.get("general.architecture", ""))
        return Adapter(architecture, pairs, alpha, metadata, file.path, left_out)


def _alpha(file):
    alpha = file.metadata.get("adapter.lora.alpha", 0.0)
    if isinstance(alpha, (int, float)) and np.isfinite(alpha):
        return float(alpha)
    raise file.error(f"adapter.lora.alpha is {shown(alpha)}, wanted a finite number", "the file is damaged")


def _grouped(file):
    """Return base name -> {"a": name, "b": name} or {"other": name}."""
    groups = {}
    for name in file.tensors:
        base, _, side = name.rpartition(".lora_")
        key, base = (side, base) if side in ("a", "b") and base else ("other", name)
        groups.setdefault(base, {})[key] = name
    return groups


def _pairs(file, base, found, alpha):
    """Return {base tensor's name: LoraPair} of a tensor's pair: of experts stacked in one, each one's."""
    a, b = float_tensor(file, found["a"]), float_tensor(file, found["b"])
    if base == EMBEDDING and a.ndim == b.ndim == 2:
        a, b = np.ascontiguousarray(b.T), a
    layer = _STACKED.fullmatch(base)
    if layer and a.ndim == b.ndim == 3 and len(a) == len(b) and a.shape[1] == b.shape[2] > 0:
        scale = alpha / a.shape[1] if alpha else 1.0
        return {expert_tensor(layer[2], layer[1], e): LoraPair(a[e], b[e], scale) for e in range(len(a))}
    if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1] or a.shape[0] == 0:
        raise file.error(
            f"{brief(base)}: lora_a is {file.tensors[found['a']].shape} and lora_b {file.tensors[found['b']].shape}, "
            "wanted (r, n_in) and (n_out, r)",
            "for experts (n, r, n_in) and (n, n_out, r); other kinds are not supported",
        )
    base = expert_tensor(layer[2], layer[1], 0) if layer else base
    return {base: LoraPair(a, b, alpha / a.shape[0] if alpha else 1.0)}


def _stacked(pairs, n, scale_of):
    """Return (a (n, r, n_in), b (n, n_out, r)) of experts' pairs, {expert: LoraPair}; zero where one has none.

    Smaller ranks are filled up with zeros; scale_of: rank -> the scale that a reader gives it.
    """
    rank, one = max(pair.rank for pair in pairs.values()), next(iter(pairs.values()))
    a = np.zeros((n, rank, one.a.shape[1]), np.float32)
    b = np.zeros((n, one.b.shape[0], rank), np.float32)
    for e, pair in pairs.items():
        a[e, : pair.rank], b[e, :, : pair.rank] = pair.a, pair.folded_b(scale_of(rank))
    return a, b


def write_gguf_adapter(path, adapter, base=None):
    """Write `adapter` as GGUF with f32 tensors; return the names of what GGUF cannot carry (norm deltas)."""
    alpha = adapter.common_alpha()
    metadata = {
        "general.architecture": adapter.architecture,
        "general.type": "adapter",
        "adapter.type": "lora",
        "adapter.lora.alpha": float(alpha),
    }
    metadata.update((key, value) for key, value in adapter.metadata.items() if key not in _OWN_KEYS)
    f32, tensors, sides, experts = by_name("F32"), [], {}, {}
    for name, pair in adapter.pairs.items():
        a, b = pair.a, pair.folded_b(alpha / pair.rank if alpha else 1.0)
        sides[name] = (b, a.T) if name == EMBEDDING else (a, b)
        if one := of_expert(name):
            del sides[name]
            sides[one[0]] = None
            experts.setdefault(one[0], {})[one[1]] = pair
    known = {**adapter.metadata, **(base or {})}.get(f"{adapter.architecture}.expert_count", 0)
    for name, pairs in experts.items():
        n = max(known if isinstance(known, int) else 0, 1 + max(pairs))
        sides[name] = _stacked(pairs, n, lambda rank: alpha / rank if alpha else 1.0)
    for name, arrays in sides.items():
        for side, array in zip("ab", arrays, strict=True):
            tensors.append((f"{name}.lora_{side}", f32, array.shape, np.ascontiguousarray(array, np.float32)))
    write_gguf(path, metadata, tensors)
    return list(adapter.norms)
