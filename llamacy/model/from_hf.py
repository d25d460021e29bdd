"""A Hugging Face model folder as GGUF: metadata and tensors, read one at a time while the file is written."""

import math
import os

import numpy as np

from llamacy.errors import shown
from llamacy.formats.rewrite import matrix_type
from llamacy.formats.types import FILE_TYPES, by_name
from llamacy.model.hf_config import HfConfig
from llamacy.model.hf_keys import family_keys
from llamacy.model.hf_tensors import Plan
from llamacy.model.mixes import Mix, choose_types
from llamacy.text.hf_tokenizer import tokenizer_metadata


def model_from_hf(folder, outtype=None, n_threads=1):
    """Return (metadata, tensors, notes) for write_gguf of an open HfFolder.

    outtype  QuantType of all matrices, or a Mix of types; vectors become F32; None: each matrix keeps its own
    notes    what the reader of the result should know, a list of texts
    LlamacyError, one line, for families and settings that would not run as they were trained.
    """
    config = HfConfig(folder)
    if not folder.has("tokenizer.json") and not folder.has("tokenizer.model"):
        raise config.error("no tokenizer.json or tokenizer.model beside it", "download the tokenizer's files too")
    plan = Plan(config)
    keys, notes = family_keys(config, plan.n_vocab)
    metadata = {"general.architecture": config.family, "general.type": "model", "general.name": _name(config)}
    metadata |= {f"{config.family}.{key}": value for key, value in keys.items()}
    metadata |= tokenizer_metadata(folder, plan.n_vocab, config.values, config.family)
    tensors, kinds = plan.entries(_targets(outtype, metadata), n_threads)
    for name, factors in _rope_factors(config).items():
        tensors.append((name, by_name("F32"), factors.shape, factors))
    metadata["general.size_label"] = _size_label(tensors, config.n_expert)
    common = max(kinds, key=kinds.get, default="F32") if outtype is None else getattr(outtype, "name", None)
    file_type = outtype.file_type if isinstance(outtype, Mix) else FILE_TYPES[common]
    metadata |= {"general.file_type": file_type, "general.quantization_version": 2}
    return metadata, tensors, notes + plan.notes


def _name(config):
    name = config.whole_config.get("_name_or_path")
    name = name if isinstance(name, str) and name else os.path.basename(os.path.abspath(config.folder.path))
    return os.path.basename(name)


def _size_label(tensors, n_expert):
    """Return how large the model is, as llama.cpp's converter writes it: "135M", with experts "8x1.2B"."""
    counts = {name: math.prod(shape) for name, _, shape, _ in tensors}
    stacked = sum(count for name, count in counts.items() if "_exps.weight" in name)
    total = sum(counts.values()) - stacked + (stacked // n_expert if n_expert else 0)
    unit, letter = next((unit, letter) for unit, letter in _UNITS if total > unit or letter == "K")
    digits = 1 if round(total / unit) < 10 else 0
    return f"{n_expert}x" * bool(n_expert) + f"{total / unit:.{digits}f}{letter}"


_UNITS = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K"))


def _targets(outtype, metadata):
    """Return the function that gives {name: QuantType to write} of matrices, [TensorInfo by GGUF's names]."""
    if isinstance(outtype, Mix):
        return lambda infos: {name: kind for name, (kind, _) in choose_types(infos, metadata, outtype).items()}
    return lambda infos: {info.name: matrix_type(info, outtype or info.type) for info in infos}


def _rope_factors(config):
    """Return {tensor: what rotary frequencies are divided by, f32 (n_rot / 2,)}, for scalings held as numbers."""
    rope = config.rope
    if rope["rope_type"] == "llama3":
        return {config.row.rope_factors: _llama3(config, rope)}
    if rope["rope_type"] == "longrope":
        return {f"rope_factors_{name}.weight": _listed(config, rope, f"{name}_factor") for name in ("long", "short")}
    return {}


def _listed(config, rope, key):
    values = rope.get(key)
    good = isinstance(values, list) and len(values) == config.n_rot // 2
    if not good or not all(isinstance(x, (int, float)) and 0 < x < 1e30 for x in values):
        what = f"{key} is {shown(values)}, wanted {config.n_rot // 2} positive numbers"
        raise config.error(what, "correct it")
    return np.array(values, np.float32)


def _llama3(config, rope):
    """Waves shorter than original / high_freq_factor turn as trained, those longer than original / low_freq_factor by
    `factor` slower, those between in between. (Llama 3.1's published rule.)
    """
    factor, low, high, original = (
        config.number(key, values=rope, default=default)
        for key, default in (("factor", 8.0), ("low_freq_factor", 1.0), ("high_freq_factor", 4.0),
                             ("original_max_position_embeddings", 8192))
    )  # fmt: skip
    if high <= low:
        raise config.error(f"high_freq_factor {high} is not above low_freq_factor {low}", "correct it")
    half = np.arange(0, config.n_rot, 2, dtype=np.float64) / config.n_rot
    waves = 2 * math.pi * config.number("rope_theta", values=rope) ** half
    smooth = np.clip((original / waves - low) / (high - low), 0, 1)
    return (1 / ((1 - smooth) / factor + smooth)).astype(np.float32)
