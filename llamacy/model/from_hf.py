"""A Hugging Face model folder as GGUF: metadata and tensors, read one at a time while the file is written."""

import math
import os
import re
from dataclasses import replace

import numpy as np

from llamacy.errors import shown, some
from llamacy.formats.architectures import ARCHITECTURES, BY_NAME, sizes
from llamacy.formats.hf_names import EMBEDDING, gguf_tensor
from llamacy.formats.lora import paired_from_halves, permuted_rows
from llamacy.formats.rewrite import can_write, matrix_type, rewritten
from llamacy.formats.types import FILE_TYPES, by_name
from llamacy.kernels import quants
from llamacy.model.mixes import Mix, choose_types
from llamacy.text.hf_tokenizer import tokenizer_metadata

CONFIG = "config.json"
# "architectures" in config.json -> general.architecture.
CONVERTED = ("llama", "qwen2", "smollm3", "ernie4_5", "seed_oss")
FAMILIES = {name: family for family in CONVERTED for name in ARCHITECTURES[family].hf}

# GGUF's key -> config.json's key and what it must be; those of the second table may be missing.
_SIZES = {
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
}
_ROPE_NUMBERS = {  # of a yarn scaling: GGUF's key -> config.json's
    "rope.scaling.yarn_ext_factor": ("extrapolation_factor",),
    "rope.scaling.yarn_attn_factor": ("attention_factor", "attn_factor"),
    "rope.scaling.yarn_beta_fast": ("beta_fast",),
    "rope.scaling.yarn_beta_slow": ("beta_slow",),
}
# Tensors that old files hold and that follow from the configuration.
_DERIVED = re.compile(r".*\.(rotary_emb\.inv_freq|masked_bias|attn\.bias)")
_MAX_SIZE = 1 << 31


def model_from_hf(folder, outtype=None, n_threads=1):
    """Return (metadata, tensors, notes) for write_gguf of an open HfFolder.

    outtype  QuantType of all matrices, or a Mix of types; vectors become F32; None: each matrix keeps its own
    notes    what the reader of the result should know, a list of texts
    LlamacyError, one line, for families and settings that would not run as they were trained.
    """
    config = folder.json(CONFIG)
    reader = _Config(folder, config)
    architecture = _family(reader)
    n_vocab = _rows(folder, "model.embed_tokens.weight")
    metadata, notes = _metadata(reader, architecture, n_vocab)
    if not folder.has("tokenizer.json") and not folder.has("tokenizer.model"):
        raise reader.error("no tokenizer.json or tokenizer.model beside it", "download the tokenizer's files too")
    metadata |= tokenizer_metadata(folder, n_vocab, config)
    tensors, kinds = _tensors(reader, architecture, _targets(outtype, metadata), n_threads)
    factors = _rope_factors(reader)
    if factors is not None:
        tensors.append((ARCHITECTURES[architecture].rope_factors, by_name("F32"), factors.shape, factors))
    common = max(kinds, key=kinds.get, default="F32") if outtype is None else getattr(outtype, "name", None)
    file_type = outtype.file_type if isinstance(outtype, Mix) else FILE_TYPES[common]
    return metadata | {"general.file_type": file_type, "general.quantization_version": 2}, tensors, notes


def _targets(outtype, metadata):
    """Return the function that gives {name: QuantType to write} of matrices, [TensorInfo by GGUF's names]."""
    if isinstance(outtype, Mix):
        return lambda infos: {name: kind for name, (kind, _) in choose_types(infos, metadata, outtype).items()}
    return lambda infos: {info.name: matrix_type(info, outtype or info.type) for info in infos}


class _Config:
    """config.json with checks."""

    def __init__(self, folder, values):
        self.folder, self.values = folder, values

    def error(self, what, advice):
        return self.folder.error(CONFIG, what, advice)

    def whole(self, key, default=None):
        """Return a positive whole number; `default` where it is missing or null, an error where that is None."""
        value = self.values.get(key)
        value = default if value is None else value
        if type(value) is int and 0 < value < _MAX_SIZE:
            return value
        raise self.error(f"{key} is {shown(value)}, wanted a positive whole number", "is it a model of the family?")

    def number(self, values, key, default=None):
        """Return values[key] as a positive float."""
        value = values.get(key, default)
        if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < 1e30:
            return float(value)
        raise self.error(f"{key} is {shown(value)}, wanted a positive number", "correct it")

    @property
    def heads(self):
        """GGUF's keys of how many heads there are: of queries, of keys and values."""
        n_head = self.whole("num_attention_heads")
        return {
            "attention.head_count": n_head,
            "attention.head_count_kv": self.whole("num_key_value_heads", n_head),
        }

    @property
    def head_dim(self):
        return self.whole("head_dim", max(1, self.whole("hidden_size") // self.whole("num_attention_heads")))

    @property
    def rope(self):
        """The rope settings as one dict, wherever the version of transformers put them."""
        found = self.values.get("rope_parameters") or self.values.get("rope_scaling") or {}
        if not isinstance(found, dict):
            raise self.error(f"the rope scaling is {shown(found)}, wanted a table", "correct it")
        theta = self.values.get("rope_theta")
        kind = found.get("rope_type", found.get("type", "default"))
        return {"rope_theta": 10000.0 if theta is None else theta} | found | {"rope_type": kind}


def _family(reader):
    names = reader.values.get("architectures")
    name = names[0] if isinstance(names, list) and names and isinstance(names[0], str) else None
    architecture = FAMILIES.get(name)
    if architecture is None:
        raise reader.error(
            f"architecture {shown(name)}, wanted one of {', '.join(FAMILIES)}", "other families need their GGUF file"
        )
    if reader.values.get("quantization_config"):
        method = reader.values["quantization_config"]
        method = method.get("quant_method") if isinstance(method, dict) else method
        raise reader.error(f"its weights are quantised by {shown(method)}", "convert the original model")
    turned = reader.values.get("no_rope_layers")  # 1 where a layer has rope
    if turned is not None and turned != [int(ARCHITECTURES[architecture].has_rope(i)) for i in range(len(turned))]:
        raise reader.error(f"no_rope_layers is {shown(turned)}, not the family's pattern", "it cannot run here")
    if reader.values.get("hidden_act", "silu") not in ("silu", "swish"):
        raise reader.error(f"hidden_act is {shown(reader.values['hidden_act'])}, wanted silu", "it cannot run here")
    return architecture


def _rows(folder, name):
    entry = folder.tensors.get(name)
    if entry is None or len(entry[1].shape) != 2:
        raise folder.error(CONFIG, f"the weights hold no matrix {name}", "is the download complete?")
    return entry[1].shape[0]


def _metadata(reader, architecture, n_vocab):
    """Return (general.* and the family's keys, notes)."""
    name = reader.values.get("_name_or_path")
    name = name if isinstance(name, str) and name else os.path.basename(os.path.abspath(reader.folder.path))
    found = {key: reader.whole(theirs) for key, theirs in _SIZES.items()}
    found |= reader.heads
    found["context_length"] = reader.whole("max_position_embeddings", 2048)
    found["vocab_size"] = n_vocab
    if reader.values.get("head_dim") is not None:
        found |= {"attention.key_length": reader.head_dim, "attention.value_length": reader.head_dim}
    found["rope.dimension_count"] = reader.head_dim
    found["attention.layer_norm_rms_epsilon"] = reader.number(reader.values, "rms_norm_eps", 1e-6)
    found |= _rope_keys(reader)
    general = {"general.architecture": architecture, "general.type": "model", "general.name": os.path.basename(name)}
    notes = []
    window = reader.values.get("sliding_window") if reader.values.get("use_sliding_window", True) else None
    if window is not None and reader.whole("sliding_window") < found["context_length"]:
        found["attention.sliding_window"] = window
        notes.append(f"attention has a window of {window} tokens: it runs here in contexts up to that")
    return general | {f"{architecture}.{key}": value for key, value in found.items()}, notes


def _rope_keys(reader):
    rope = reader.rope
    found, kind = {"rope.freq_base": reader.number(rope, "rope_theta")}, rope["rope_type"]
    if kind not in ("default", "llama3", "linear", "yarn"):
        raise reader.error(f"rope scaling {shown(kind)} is not supported", "wanted default, linear, llama3 or yarn")
    if kind in ("linear", "yarn"):
        found |= {"rope.scaling.type": kind, "rope.scaling.factor": reader.number(rope, "factor")}
    if kind == "yarn":
        original = rope.get("original_max_position_embeddings")
        if type(original) is not int or not 0 < original < _MAX_SIZE:
            raise reader.error(f"original_max_position_embeddings is {shown(original)}", "wanted a whole number")
        found["rope.scaling.original_context_length"] = original
        for key, names in _ROPE_NUMBERS.items():
            name = next((name for name in names if rope.get(name) is not None), None)
            if name:
                found[key] = reader.number(rope, name)
    return found


def _rope_factors(reader):
    """Return what llama 3 divides each rotary frequency by, f32 (head_dim / 2,); None for other scalings.

    Waves shorter than original / high_freq_factor turn as trained, those longer than original / low_freq_factor by
    `factor` slower, those between in between. (Llama 3.1's published rule.)
    """
    rope = reader.rope
    if rope["rope_type"] != "llama3":
        return None
    factor, low, high, original = (
        reader.number(rope, key, default)
        for key, default in (("factor", 8.0), ("low_freq_factor", 1.0), ("high_freq_factor", 4.0),
                             ("original_max_position_embeddings", 8192))
    )  # fmt: skip
    if high <= low:
        raise reader.error(f"high_freq_factor {high} is not above low_freq_factor {low}", "correct it")
    half = np.arange(0, reader.head_dim, 2, dtype=np.float64) / reader.head_dim
    waves = 2 * math.pi * reader.number(rope, "rope_theta") ** half
    smooth = np.clip((original / waves - low) / (high - low), 0, 1)
    return (1 / ((1 - smooth) / factor + smooth)).astype(np.float32)


# ---- tensors ----


def _tensors(reader, architecture, targets_of, n_threads):
    """Return (write_gguf's entries, {type: elements of matrices})."""
    entries, kinds, strange, seen, files = [], {}, [], {}, {}
    tied = bool(reader.values.get("tie_word_embeddings"))
    for name, (file, info) in reader.folder.tensors.items():
        ours = gguf_tensor(name, architecture)
        if _DERIVED.fullmatch(name) or (tied and ours == ARCHITECTURES[architecture].output):
            continue
        if ours is None or ours in seen or not 1 <= len(info.shape) <= 2:
            strange.append(name)
            continue
        seen[ours], files[ours] = info, file
    targets = targets_of([replace(info, name=ours) for ours, info in seen.items() if len(info.shape) == 2])
    for ours, info in seen.items():
        file, target = files[ours], targets.get(ours, by_name("F32"))
        if info.type.number not in quants.types() or not can_write(target):
            raise file.error(f"tensor {shown(info.name)} is {info.type.name}", "wanted F32, F16 or BF16: convert it")
        order = _order(reader, architecture, ours, info)
        if len(info.shape) == 2:
            kinds[target.name] = kinds.get(target.name, 0) + info.n_elements
        entries.append((ours, target, info.shape, _reader(file, info, target, order, n_threads)))
    if strange:
        what = f"{some(strange, 3)}: no tensors that a {architecture} model has"
        raise reader.error(what, "mixture-of-experts and multi-modal models need their GGUF file")
    _check_shapes(reader, architecture, seen)
    return entries, kinds


def _reader(file, info, target, order, n_threads):
    """Return the function that write_gguf calls for one tensor's bytes."""
    if len(info.shape) == 1:
        return lambda: _vector(file, info, order)
    if target is info.type and order is None:
        return lambda: file.data(info.name)
    return lambda: rewritten(file, info, target, n_threads, order=order)


def _vector(file, info, order):
    values = quants.dequantize(np.ascontiguousarray(file.data(info.name)), info.type.number)[0]
    return values if order is None else values[order]


def _order(reader, architecture, name, info):
    """Return where row i of q's or k's GGUF tensor stands in the folder's, None for tensors that keep their order."""
    place = permuted_rows(architecture, name)
    if place is None:
        return None
    heads = reader.heads[BY_NAME[place[1]].heads]
    if info.shape[0] % (2 * heads):
        raise reader.error(f"{name} has {info.shape[0]} rows, which are no {heads} heads", "the files do not match")
    return paired_from_halves(np.arange(info.shape[0])[:, None], heads)[:, 0]


def _check_shapes(reader, architecture, seen):
    """Raise unless every matrix and norm of every layer is there in the shape that the configuration asks for."""
    family, n_layer = ARCHITECTURES[architecture], reader.whole("num_hidden_layers")
    n_embd = reader.whole("hidden_size")
    lengths = sizes(n_embd, *reader.heads.values(), reader.head_dim, reader.whole("intermediate_size"))
    shapes = family.shapes(lengths)
    if n_layer * len(shapes) > len(seen):
        raise reader.error(f"{n_layer} layers, and the weights hold {len(seen)} tensors", "is the download complete?")
    wanted = {family.output_norm: (n_embd,), EMBEDDING: (seen[EMBEDDING].shape[0], n_embd)}
    for layer in range(n_layer):
        wanted |= {BY_NAME[key].tensor(layer): shape for key, shape in shapes.items()}
        wanted |= {BY_NAME[key].tensor(layer, "bias"): shapes[key][:1] for key in family.biases}
        wanted |= {f"blk.{layer}.{family.gguf_name(name)}.weight": (n_embd,) for name in family.norms}
    if family.output in seen:
        wanted[family.output] = wanted[EMBEDDING]
    elif not reader.values.get("tie_word_embeddings"):
        raise reader.error(
            "the weights hold no lm_head.weight, and tie_word_embeddings is not set", "download it again"
        )
    for name, shape in wanted.items():
        found = tuple(seen[name].shape) if name in seen else "missing"
        if found != shape:
            raise reader.error(f"{name} is {found}, wanted {shape}", "the files do not match, or a file is missing")
    extra = [name for name in seen if name not in wanted and not name.endswith(".bias")]
    if extra:
        raise reader.error(f"{extra[0]} belongs to no layer of the {n_layer}", "the files do not match")
