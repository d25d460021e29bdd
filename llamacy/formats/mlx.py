"""mlx-lm adapters: a folder with adapter_config.json and adapters.safetensors.

Source: mlx-lm's tuner. `<module>.lora_a` (n_in, r), `<module>.lora_b` (r, n_out): y += scale * (x A) B, for an
embedding rows of A B, which models without an output matrix of their own use for their output too. The scale stands in
lora_parameters; files from before mid-2024 have an alpha too: their scale is scale * alpha / rank. With fine_tune_type
dora each has `<module>.m` (n_out,) too, as PEFT's magnitudes.
"""

import re
from collections import Counter

import numpy as np

from llamacy.errors import shown
from llamacy.formats.arrays import float_tensor
from llamacy.formats.base_copies import BaseCopy
from llamacy.formats.hf_names import EMBEDDING, OUTPUT, grouped_sides, hf_name, number
from llamacy.formats.lora import Adapter, LoraPair
from llamacy.formats.peft import ALL_WEIGHTS, CONFIG, read_config, write_folder
from llamacy.formats.safetensors import is_safetensors, read_safetensors

WEIGHTS = ALL_WEIGHTS[1]
_TENSOR = re.compile(r"(.+)\.lora_([ab])")


def is_mlx(source):
    """Tell whether an open MappedFile is safetensors with mlx-lm's names."""
    return is_safetensors(source) and any(name.endswith(".lora_a") for name in read_safetensors(source).tensors)


def read_mlx(source):
    """Return the Adapter in an open MappedFile of mlx-lm's safetensors; see Adapter.bound for the order of its rows."""
    with read_safetensors(source) as file:
        config = read_config(file)
        kind = config.get("fine_tune_type", "lora")
        if kind not in ("lora", "dora"):
            what = f"{CONFIG}: fine_tune_type is {shown(kind)}, wanted lora or dora"
            raise file.error(what, "train plain LoRA, or fuse it")
        parameters = config.get("lora_parameters")
        if not isinstance(parameters, dict):
            raise file.error(f"{CONFIG}: lora_parameters is {shown(parameters)}, wanted a table", "correct it")
        scale = number(file, parameters, "scale", 20.0)
        alpha = number(file, parameters, "alpha", 0) if "alpha" in parameters else None
        pairs = {}
        magnitudes = {name.removesuffix(".m"): name for name in file.tensors if kind == "dora" and name.endswith(".m")}
        groups, copies = grouped_sides(file, _TENSOR, [*magnitudes.values()])
        for base, sides in groups.items():
            a, b = float_tensor(file, sides["a"]), float_tensor(file, sides["b"])
            if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[0] or b.shape[0] == 0:
                what = f"{shown(base)}: lora_a is {a.shape} and lora_b {b.shape}, wanted (n_in, r) and (r, n_out)"
                raise file.error(what, "mixture-of-experts and quantised adapters are not supported")
            a, b = (b, a) if base == EMBEDDING else (np.ascontiguousarray(a.T), np.ascontiguousarray(b.T))
            own = scale if alpha is None else scale * alpha / a.shape[0]
            module = _TENSOR.fullmatch(sides["a"])[1]
            m = _magnitude(file, magnitudes.pop(module, None), base, b) if kind == "dora" else None
            pairs[base] = LoraPair(a, b, own, m)
        if magnitudes:
            raise file.error(f"{shown(next(iter(magnitudes.values())))} has no pair beside it", "the file is damaged")
        first = next(iter(pairs.values()))
        copies = [BaseCopy(name, file.path, key, name in pairs) for name, key in copies]
        alpha, one = first.scale * first.rank, EMBEDDING in pairs and OUTPUT not in pairs
        return Adapter("", pairs, alpha, {}, file.path, hf_rows=True, copies=copies, one_embedding=one)


def _magnitude(file, name, base, b):
    """Return the magnitudes of a pair with B, f32 (n_out,)."""
    if base == EMBEDDING:
        raise file.error("DoRA of the embedding cannot be applied", "fuse it")
    if name is None or file.tensors[name].shape != (len(b),):
        found = "is missing" if name is None else f"is {file.tensors[name].shape}, wanted ({len(b)},)"
        raise file.error(f"{shown(base)}: m {found}", "the file is damaged")
    return float_tensor(file, name)


def write_mlx(path, adapter, base=None):
    """Write `adapter` as an mlx-lm folder at `path`; return the names of what it cannot carry.

    mlx-lm has one rank and one scale for all: smaller ranks are filled up with zeros, other scales folded into B.
    `base` is the base model's metadata: q's and k's rows go back to Hugging Face's order by its heads.
    """
    adapter = adapter.unbound(base)
    family = adapter.architecture
    known = {name: pair for name, pair in adapter.pairs.items() if hf_name(name, family)}
    rank = max((pair.rank for pair in known.values()), default=1)
    scales = Counter(pair.scale for pair in known.values() if pair.scale)
    scale = scales.most_common(1)[0][0] if scales else 1.0
    tensors, layers, keys = {}, set(), {}
    for name, pair in known.items():
        module = hf_name(name, family)
        layer = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", module)
        layers |= {int(layer[1])} if layer else set()
        keys[layer[2] if layer else module] = None
        more = rank - pair.rank
        a, b = np.pad(pair.a, ((0, more), (0, 0))), np.pad(pair.folded_b(scale), ((0, 0), (0, more)))
        a, b = (b, a) if name == EMBEDDING else (a.T, b.T)
        tensors |= {f"{module}.lora_a": a, f"{module}.lora_b": b}
        tensors |= {f"{module}.m": pair.magnitude} if pair.magnitude is not None else {}
    # mlx-lm counts layers from the last one.
    n_layer = (base or {}).get(f"{adapter.architecture}.block_count", max(layers, default=-1) + 1)
    parameters = {"rank": rank, "scale": scale, "dropout": 0.0, "keys": list(keys)}
    number_of = n_layer - min(layers, default=n_layer)
    kind = "dora" if adapter.is_dora else "lora"
    config = {"fine_tune_type": kind, "num_layers": number_of, "lora_parameters": parameters}
    write_folder(path, WEIGHTS, tensors, {"format": "mlx"}, config)
    return list(adapter.norms) + [name for name in adapter.pairs if name not in known]
