"""PEFT adapters: a folder with adapter_config.json and adapter_model.safetensors.

Source: PEFT's documentation and files. `base_model.model.<module>.lora_A.weight` (r, n_in), `.lora_B.weight`
(n_out, r); scale lora_alpha / r, with use_rslora lora_alpha / sqrt(r); rank_pattern and alpha_pattern name exceptions
by the end of the module's name. With use_dora each has `.lora_magnitude_vector` (n_out,), see LoraPair. An embedding
has `lora_embedding_A` (r, n_vocab) and `lora_embedding_B` (n_embd, r). Beside the pairs of embed_tokens and lm_head
stands the base's own tensor, `.base_layer.weight`.
"""

import json
import math
import os
import re
from collections import Counter

import numpy as np

from llamacy.errors import shown
from llamacy.formats.arrays import float_tensor
from llamacy.formats.base_copies import BaseCopy
from llamacy.formats.hf_names import EMBEDDING, grouped_sides, hf_name, number
from llamacy.formats.lora import Adapter, LoraPair, head_counts
from llamacy.formats.mapped import MappedFile
from llamacy.formats.peft_experts import expert_pairs
from llamacy.formats.safetensors import is_safetensors, json_object, put_safetensors, read_safetensors
from llamacy.formats.together import replaced_together

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# What an adapter's weights are called in PEFT's and mlx-lm's folders, whose other file has one name.
ALL_WEIGHTS = (WEIGHTS, "adapters.safetensors")
BASE_NAME = "general.base_model.0.name"
_OURS = "llamacy"
_BY_MODULE = (("lora_alpha", "alpha_pattern"), ("r", "rank_pattern"))
_MAX_CONFIG = 1 << 20
_TENSOR = re.compile(r"(?:base_model\.model\.)?(.+?)\.lora_(?:embedding_)?([AB])(?:\.(?!bias)\w+)?(?:\.weight)?")

_MAGNITUDE = re.compile(r"(?:base_model\.model\.)?(.+?)\.lora_magnitude_vector(?:\.\w+){0,2}")

# Settings that change what the numbers mean, the values under which they do not, and what to do otherwise.
_PLAIN = [
    ("peft_type", ("LORA",), "wanted a LoRA adapter"),
    ("use_qalora", (None, False), "train without it, or merge it with PEFT"),
    ("layer_replication", (None, [], {}), "merge it with PEFT"),
    ("use_bdlora", (None, False), "merge it with PEFT"),
    ("kasa_config", (None, {}), "merge it with PEFT"),
    ("monteclora_config", (None, {}), "merge it with PEFT"),
    ("arrow_config", (None, {}), "it chooses among adapters token by token"),
    ("alora_invocation_tokens", (None, []), "an activated LoRA would act on every token here"),
    ("init_lora_weights", (None, True, False, "gaussian", "orthogonal", "eva"),
     "it changed the base weights; convert it to plain LoRA with PEFT's path_initial_model_for_weight_conversion"),
]  # fmt: skip


def is_peft(source):
    """Tell whether an open MappedFile is safetensors with PEFT's names."""
    return is_safetensors(source) and any(".lora_A" in name or ".lora_embedding_A" in name for name in _names(source))


def _names(source):
    return read_safetensors(source).tensors


def read_config(file):
    """Return the adapter_config.json beside an open ModelFile as a dict."""
    path = os.path.join(os.path.dirname(file.path), CONFIG)
    if not os.path.exists(path):
        raise file.error(f"has no {CONFIG} beside it", "keep the adapter's files in one folder")
    source = MappedFile(path)
    if source.size > _MAX_CONFIG:
        raise source.error(f"has {source.size} bytes, wanted at most {_MAX_CONFIG}", "check the file")
    return json_object(source, source.bytes.tobytes())


def read_peft(source):
    """Return the Adapter in an open MappedFile of PEFT's safetensors; see Adapter.bound for the order of its rows."""
    with read_safetensors(source) as file:
        config = read_config(file)
        for key, plain, advice in _PLAIN:
            if config.get(key) not in plain:
                raise file.error(f"{CONFIG}: {key} is {shown(config.get(key))}", advice)
        alpha_of, rank_of = (_by_module(file, config, *names) for names in _BY_MODULE)
        stacked, used = expert_pairs(file, config, rank_of)
        magnitudes = _magnitudes(file, config)
        if stacked and magnitudes is not None:
            raise file.error(f"{CONFIG}: use_dora is True, of experts' parameters", "merge it with PEFT")
        pairs = {}
        for name, (a, b, parameter) in stacked.items():
            divisor = math.sqrt(len(a)) if config.get("use_rslora") else len(a)
            pairs[name] = LoraPair(a, b, alpha_of(parameter) / divisor)
        groups, copies = grouped_sides(file, _TENSOR, [*used, *(magnitudes or {}).values()])
        for base, sides in groups.items():
            a, b = float_tensor(file, sides["a"]), float_tensor(file, sides["b"])
            if base == EMBEDDING and "embedding" in sides["a"]:
                a, b = np.ascontiguousarray(b.T), np.ascontiguousarray(a.T)
            if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1] or a.shape[0] == 0:
                what = f"{shown(base)}: A is {a.shape} and B {b.shape}, wanted (r, n_in) and (n_out, r)"
                raise file.error(what, "the file is damaged")
            divisor = math.sqrt(a.shape[0]) if config.get("use_rslora") else a.shape[0]
            module = _TENSOR.fullmatch(sides["a"])[1]
            magnitude = None if magnitudes is None else _magnitude(file, magnitudes.pop(module, None), base, b)
            pairs[base] = LoraPair(a, b, alpha_of(module) / divisor, magnitude)
        if magnitudes:
            raise file.error(f"{shown(next(iter(magnitudes.values())))} has no pair beside it", "the file is damaged")
        return _adapter(file, config, pairs, [BaseCopy(name, file.path, key, name in pairs) for name, key in copies])


def _adapter(file, config, pairs, copies):
    metadata = {}
    base_name = config.get("base_model_name_or_path")
    if isinstance(base_name, str) and base_name:
        metadata = {"general.base_model.count": 1, BASE_NAME: base_name}
    alpha = number(file, config, "lora_alpha", 8)
    adapter = Adapter("", pairs, alpha, metadata, file.path, hf_rows=True, copies=copies)
    # What write_peft left there tells the heads, so that such a file needs no model to become GGUF again.
    ours = file.metadata.get(_OURS)
    return adapter.bound(json_object(file, ours.encode())) if ours else adapter


def _magnitudes(file, config):
    """Return {module: name of its magnitudes} of a DoRA adapter, None for another."""
    found = {match[1]: name for name in file.tensors if (match := _MAGNITUDE.fullmatch(name))}
    if config.get("use_dora") in (None, False):
        if found:
            what = f"{shown(next(iter(found.values())))} is there and {CONFIG} says"
            raise file.error(f"{what} use_dora {shown(config.get('use_dora'))}", "correct it")
        return None
    if config["use_dora"] is not True:
        raise file.error(f"{CONFIG}: use_dora is {shown(config['use_dora'])}, wanted true or false", "correct it")
    return found


def _magnitude(file, name, base, b):
    """Return the magnitudes of a pair with B, f32 (n_out,); an embedding's are n_embd."""
    if name is None:
        raise file.error(f"{shown(base)} has no lora_magnitude_vector, which use_dora asks for", "the file is damaged")
    found = float_tensor(file, name)
    if found.ndim != 1 or (len(found) != len(b) and base != EMBEDDING):
        raise file.error(f"{shown(name)} is {found.shape}, wanted ({len(b)},)", "the file is damaged")
    return found


def _by_module(file, config, key, pattern_key):
    """Return a function from a module's name to its alpha, or rank: config[key], but for what patterns say."""
    default, patterns = number(file, config, key, 8), config.get(pattern_key) or {}
    if not isinstance(patterns, dict):
        raise file.error(f"{CONFIG}: {pattern_key} is {shown(patterns)}, wanted a table", "correct it")
    known = [(_pattern(file, pattern_key, text), number(file, patterns, text, None)) for text in patterns]
    return lambda module: next((value for pattern, value in known if pattern.fullmatch(module)), default)


def _pattern(file, key, text):
    """Return PEFT's regular expression for a pattern's key, refusing those that could take for ever to match."""
    # what repeats: escaped characters, sets of them and the marks of groups do not
    plain = re.sub(r"\\.|\[\^?\]?[^\]]*\]", "x", text).replace("(?:", "(")
    repeated, optional = (len(re.findall(marks, plain)) for marks in (r"[*+{]", r"\?"))
    if len(text) > 200 or repeated > 3 or optional > 3 or re.search(r"\)[*+{]|\(\?", plain):
        raise file.error(f"{CONFIG}: {key} {shown(text)} is too intricate", "name the modules plainly")
    try:
        return re.compile(rf"(.*\.)?({text})")
    except (re.error, OverflowError) as error:
        raise file.error(f"{CONFIG}: {key} {shown(text)}: {shown(str(error))}", "correct it") from None


def write_peft(path, adapter, base=None):
    """Write `adapter` as a PEFT folder at `path`; return the names of what it cannot carry.

    `base` is the base model's metadata: q's and k's rows go back to Hugging Face's order by its heads.
    """
    heads = head_counts(adapter.architecture, {**adapter.metadata, **(base or {})})
    adapter = adapter.unbound(base)
    left_out = list(adapter.norms)
    tensors, modules = {}, {}
    for name, pair in adapter.pairs.items():
        module = hf_name(name, adapter.architecture)
        if module is None:
            left_out.append(name)
            continue
        modules[module] = pair
        sides = {"lora_A.weight": pair.a, "lora_B.weight": pair.b}
        if name == EMBEDDING:
            sides = {"lora_embedding_A": pair.b.T, "lora_embedding_B": pair.a.T}
        if pair.magnitude is not None:
            sides["lora_magnitude_vector"] = pair.magnitude
        tensors.update((f"base_model.model.{module}.{side}", array) for side, array in sides.items())
    about = {"format": "pt"}
    if heads:
        about[_OURS] = json.dumps({"general.architecture": adapter.architecture} | heads)
    write_folder(path, WEIGHTS, tensors, about, _config(adapter, modules))
    return left_out


def write_folder(path, weights, tensors, about, config):
    """Write an adapter's folder, `tensors` as the file `weights` and `config` as CONFIG: both or, on failure, neither.

    Weights of another format of adapters go: the folder is one adapter.
    """
    with replaced_together(path, (CONFIG, *ALL_WEIGHTS)) as create:
        with create(weights) as file:
            put_safetensors(file, tensors, about)
        with create(CONFIG) as file:
            file.write(json.dumps(config, indent=2).encode() + b"\n")


def _config(adapter, modules):
    """Return adapter_config.json's content: the commonest rank and alpha, the exceptions as patterns."""
    ranks = {module: pair.rank for module, pair in modules.items()}
    alphas = {module: _whole(pair.scale * pair.rank) for module, pair in modules.items()}
    rank, alpha = (Counter(values.values()).most_common(1)[0][0] if values else 1 for values in (ranks, alphas))
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": adapter.metadata.get(BASE_NAME, ""),
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {module: value for module, value in ranks.items() if value != rank},
        "alpha_pattern": {module: value for module, value in alphas.items() if value != alpha},
        "target_modules": _targets(list(modules)),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "use_rslora": False,
        "use_dora": adapter.is_dora,
        "inference_mode": True,
    }


def _whole(alpha):
    """Return alpha as int where it is one, as PEFT has it."""
    return round(alpha) if abs(alpha - round(alpha)) < 1e-6 * max(1, abs(alpha)) else alpha


def _targets(modules):
    """Return short names where each stands for all its layers from 0 on, whole names otherwise."""
    layers = {}
    for module in modules:
        layer = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", module)
        if layer:
            layers.setdefault(layer[2].rpartition(".")[2], set()).add(int(layer[1]))
    last = max((layer for found in layers.values() for layer in found), default=-1)
    if any(found != set(range(last + 1)) for found in layers.values()):
        return modules
    return sorted(layers) + [module.rpartition(".")[2] for module in modules if ".layers." not in module]
