"""Which type each tensor of a quantised file gets: one table row per mix.

Facts of llama.cpp's quantisation (src/llama-quant.cpp): errors in attention's values and in the second matrix of the
feed-forward net hurt most, most of all in the first and last layers, so that a mix gives those more bits; the output
matrix (the embedding, where it serves as one) gets Q6_K; rows that do not divide into a type's blocks fall back to a
type of smaller ones.
"""

import re
from dataclasses import dataclass, field

from llamacy.formats.architectures import MATRICES, OTHER_MATRICES
from llamacy.formats.types import by_name


@dataclass(frozen=True)
class Layer:
    """Where a tensor stands, for the rules: layer `i` of `n`, and what else they ask for.

    n_gqa: query heads that share a KV head. by_importance: whether an importance matrix is at hand.
    """

    i: int
    n: int
    n_gqa: int = 1
    by_importance: bool = False


def always(layer):
    """For every layer."""
    return True


def sensitive(layer):
    """The first and the last eighth of the layers, and every third one between them."""
    eighth = layer.n // 8
    return layer.i < eighth or layer.i >= 7 * layer.n // 8 or (layer.i - eighth) % 3 == 2


def first(count):
    """The first `count` layers."""
    return lambda layer: layer.i < count


def first_part(parts):
    """The first of so many equal parts of the layers."""
    return lambda layer: layer.i < layer.n // parts


def shared_heads(layer):
    """Where four query heads or more share a KV head: the matrix is small and counts much."""
    return layer.n_gqa >= 4


def blind_start(layer):
    """The first eighth, where nothing says which columns count."""
    return layer.i < layer.n // 8 and not layer.by_importance


def guarded_start(layer):
    """The first eighth, where an importance matrix may exaggerate."""
    return layer.i < layer.n // 8 and layer.by_importance


@dataclass(frozen=True)
class Mix:
    """A row of MIXES.

    file_type   number that files store as general.file_type (llama.cpp's LLAMA_FTYPE)
    base        type of all matrices without a rule
    rules       role -> ((type, condition on Layer), ...), the first that holds; roles as in ROLES
    experts     the type of stacked experts' matrices, where it is another
    """

    file_type: int
    base: str
    rules: dict = field(default_factory=dict)
    experts: str = None


# What a tensor does, by its matrix; a layer may have it once for each expert.
ROLES = {matrix.name: matrix.role for matrix in (*MATRICES, *OTHER_MATRICES) if matrix.role}
_ROLE = re.compile(rf"\.({'|'.join(ROLES)})(_\w*exps?|\.\d+)?\.weight")
OUTPUT, EMBEDDINGS = "output.weight", ("token_embd.weight", "per_layer_token_embd.weight")

_IQ4 = {"value": (("Q5_K", shared_heads),), "down": (("Q5_K", blind_start),)}
_SENSITIVE = {"value": (("Q6_K", sensitive),), "down": (("Q6_K", sensitive),)}
_TERNARY = {"embedding": (("Q4_K", always),)}

MIXES = {
    "F32": Mix(0, "F32"),
    "F16": Mix(1, "F16"),
    "BF16": Mix(32, "BF16"),
    "Q4_0": Mix(2, "Q4_0", {"down": (("Q4_1", guarded_start),)}),
    "Q4_1": Mix(3, "Q4_1"),
    "Q5_0": Mix(8, "Q5_0", {"down": (("Q5_1", guarded_start),)}),
    "Q5_1": Mix(9, "Q5_1"),
    "Q8_0": Mix(7, "Q8_0"),
    "Q2_K": Mix(
        10,
        "Q2_K",
        {
            "value": (("Q4_K", shared_heads), ("Q3_K", always)),
            "attention": (("Q3_K", always),),
            "down": (("Q3_K", always),),
        },
    ),
    "Q3_K_S": Mix(11, "Q3_K"),
    "Q3_K_M": Mix(
        12,
        "Q3_K",
        {
            "value": (("Q5_K", first(2)), ("Q4_K", always)),
            "attention": (("Q4_K", always),),
            "down": (("Q5_K", first_part(16)), ("Q4_K", always)),
        },
    ),
    "Q3_K_L": Mix(13, "Q3_K", dict.fromkeys(("value", "attention", "down"), (("Q5_K", always),))),
    "Q4_K_S": Mix(14, "Q4_K", {"value": (("Q5_K", first(4)),), "down": (("Q5_K", first_part(8)),)}),
    "Q4_K_M": Mix(15, "Q4_K", _SENSITIVE),
    "Q5_K_S": Mix(16, "Q5_K"),
    "Q5_K_M": Mix(17, "Q5_K", _SENSITIVE),
    "Q6_K": Mix(18, "Q6_K"),
    "IQ4_NL": Mix(25, "IQ4_NL", _IQ4),
    "IQ4_XS": Mix(30, "IQ4_XS", _IQ4),
    "TQ1_0": Mix(36, "TQ1_0", _TERNARY),
    "TQ2_0": Mix(37, "TQ2_0", _TERNARY),
    "MXFP4": Mix(38, "MXFP4"),
    "MXFP4_MOE": Mix(38, "Q8_0", experts="MXFP4"),
}
ALIASES = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}

# A type whose blocks do not divide a row -> what is taken instead; where that does not either, F16.
FALLBACKS = {
    **dict.fromkeys(("Q2_K", "Q3_K", "TQ1_0", "TQ2_0"), "Q4_0"),
    "Q4_K": "Q5_0",
    "Q5_K": "Q5_1",
    "Q6_K": "Q8_0",
    "IQ4_XS": "IQ4_NL",
}

# Matrices that stay as they are: small, and not read by a product (norms, routing, positions, state-space models).
KEPT = re.compile(
    r"_norm\.weight|ffn_gate_inp\.weight|ffn_gate_tid2eid\.weight|altup|laurel|per_layer_model_proj|position_embd"
    r"|token_types\.weight|ssm_conv1d|shortconv\.conv\.weight|indexer\.[kq]_proj\.weight|attn_rel_b\.weight"
    r"|time_mix_(first|w[012]|v[012]|a[012]|g[12]|decay_w[12]|lerp_fused)\.weight"
)
_LAYER = re.compile(r"blk\.(\d+)\.")


@dataclass(frozen=True)
class Wishes:
    """What a user may ask beyond a mix; types are names or None.

    patterns: (compiled expression, type's name), the first that is found in a matrix's name counts.
    """

    pure: bool = False
    leave_output: bool = False
    output_type: str = None
    embedding_type: str = None
    by_importance: bool = False
    patterns: tuple = ()

    def pattern_type(self, name):
        """Return the type's name that the patterns give a tensor, None without one."""
        return next((kind for pattern, kind in self.patterns if pattern.search(name)), None)


def mix_name(text):
    """Return the name in MIXES that `text` (any case, an alias, or the number that files store) means, or None."""
    name = text.upper()
    if name.isdecimal():
        return next((mix for mix, row in MIXES.items() if row.file_type == int(name)), None)
    name = ALIASES.get(name, name)
    return name if name in MIXES else None


def idle_patterns(tensors, wishes):
    """Return the expressions of `wishes.patterns` that are found in no matrix whose type a mix decides."""
    names = [info.name for info in tensors if not _is_kept(info, wishes)]
    return [pattern.pattern for pattern, _ in wishes.patterns if not any(map(pattern.search, names))]


def choose_types(tensors, metadata, mix, wishes=None):
    """Return {tensor name: (QuantType it gets, QuantType it would have got but for its shape)}.

    tensors: TensorInfos; metadata: GGUF's, which says how many layers and heads there are; mix: a row of MIXES.
    Vectors, and matrices that no product reads, keep their type.
    """
    wishes = wishes or Wishes()
    shape = _Shape(tensors, metadata)
    chosen = {}
    for info in tensors:
        wanted = info.type if _is_kept(info, wishes) else by_name(_wanted(info, mix, wishes, shape))
        chosen[info.name] = (fitting(wanted, info.shape[-1] if info.shape else 1), wanted)
    return chosen


def fitting(quant_type, n_columns):
    """Return `quant_type`, or the nearest type whose blocks divide rows of `n_columns`."""
    if n_columns % quant_type.block_size == 0:
        return quant_type
    other = by_name(FALLBACKS.get(quant_type.name, "F16"))
    return other if n_columns % other.block_size == 0 else by_name("F16")


def is_quantised(quant_type):
    """Whether a type rounds to blocks: everything but plain numbers."""
    return quant_type.block_size > 1


class _Shape:
    """What the rules ask about the whole model."""

    def __init__(self, tensors, metadata):
        family = metadata.get("general.architecture", "llama")
        numbers = {key: _number(metadata.get(f"{family}.{key}")) for key in _KEYS}
        self.n_layer, self.n_head, self.n_head_kv, self.n_expert = numbers.values()
        self.n_gqa = self.n_head // self.n_head_kv if self.n_head_kv else 1
        self.is_tied = all(info.name != OUTPUT for info in tensors)
        # Llama 2 70B and its kin: the value matrix is an eighth of the query's, so that more bits cost little
        self.has_small_values = family == "llama" and self.n_layer == 80 and self.n_gqa > 1
        values = [info for info in tensors if _role(info.name) == "value" and len(info.dims) > 1]
        self.n_values = len(values)
        order = sorted(values, key=lambda info: (_layer(info.name), info.name))
        self.value_index = {info.name: i for i, info in enumerate(order)}


_KEYS = ("block_count", "attention.head_count", "attention.head_count_kv", "expert_count")


def _number(value):
    """Return a count of the metadata, the largest where it has one for each layer, 0 where it has none."""
    try:
        return max(0, int(max(value) if hasattr(value, "__len__") and not isinstance(value, str) else value))
    except (TypeError, ValueError):
        return 0


def _layer(name):
    match = _LAYER.match(name)
    return int(match[1]) if match else 0


def _role(name):
    if name == OUTPUT:
        return "output"
    if name in EMBEDDINGS:
        return "embedding"
    match = _ROLE.search(name)
    return match and ROLES[match[1]]


def _is_kept(info, wishes):
    real_dims = sum(extent > 1 for extent in info.shape[:-1])
    if real_dims == 0 or not info.name.endswith("weight") or KEPT.search(info.name):
        return True
    return wishes.leave_output and info.name == OUTPUT


def _wanted(info, mix, wishes, shape):
    """Return the name of the type that the mix and the wishes give a matrix, whatever its rows."""
    role = _role(info.name)
    if role == "embedding" and wishes.embedding_type:
        return wishes.embedding_type
    if role == "output" and wishes.output_type:
        return wishes.output_type
    if asked := wishes.pattern_type(info.name):
        return asked
    if wishes.pure or not is_quantised(by_name(mix.base)):
        return mix.base
    if role == "output" or (role == "embedding" and shape.is_tied):
        return wishes.output_type or _output_type(info, mix)
    if mix.experts:
        return mix.experts if len(info.dims) > 2 else mix.base
    layer = Layer(
        shape.value_index[info.name] if role == "value" else _layer(info.name),
        shape.n_values if role == "value" else shape.n_layer,
        shape.n_gqa,
        wishes.by_importance,
    )
    wanted = next((name for name, condition in mix.rules.get(role, ()) if condition(layer)), mix.base)
    if role == "value" and shape.has_small_values and wanted in ("Q3_K", "Q4_K"):
        wanted = "Q5_K"
    if shape.n_expert == 8:
        wanted = _EIGHT_EXPERTS.get(role, lambda name, base: name)(wanted, mix.base)
    return wanted


# In Mixtral's shape attention is a small part of the file: more bits cost next to nothing.
_EIGHT_EXPERTS = {
    "value": lambda name, base: "Q8_0",
    "key": lambda name, base: "Q8_0",
    "attention": lambda name, base: "Q5_K" if base in ("Q2_K", "Q3_K", "Q4_K", "IQ4_NL", "IQ4_XS") else base,
}


def _output_type(info, mix):
    fits = info.shape[-1] % by_name(mix.base).block_size == 0
    return "Q6_K" if fits and mix.base != "Q8_0" else "Q8_0"
