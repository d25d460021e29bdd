"""A model's sizes and constants, read from GGUF metadata and checked against its tensors."""

import warnings
from dataclasses import dataclass, replace

import numpy as np

from llamacy.errors import LlamacyError, shown, some
from llamacy.formats.architectures import (
    ARCHITECTURES,
    BY_NAME,
    SHARED_EXPERT,
    SLOTS,
    STACKED,
    Matrix,
    expert_tensor,
    one_without,
    running,
    sizes,
)
from llamacy.formats.metadata_keys import check_keys
from llamacy.model.experts import FIRST_EXPERT, LIMITS, NO_EXPERTS, Experts, read_experts
from llamacy.model.rope import Rope, local_rope, read_rope

# Assumed, with a warning, where a file does not say.
RMS_EPS, N_CTX = 1e-5, 2048


@dataclass(frozen=True)
class Place:
    """A matrix of a layer that an adapter may sit on: its row in the table, number and shape (n_out, n_in)."""

    key: str
    layer: int
    slot: int
    shape: tuple


@dataclass(frozen=True)
class Latent:
    """What queries (0: not), keys and values are made of, in elements, and how long a head's values are."""

    q_rank: int
    kv_rank: int
    n_value: int


@dataclass(frozen=True)
class ModelConfig:
    """Sizes in elements; ropes are the ways in which positions turn queries and keys, the last in layers with a window.

    n_rows are those of the embedding and output matrices, n_vocab the ids that have a token: some files pad their
    matrices. temperature (factor, length): queries at positions from `length` on are multiplied by
    1 + factor ln(1 + floor(position / length)), with length 0 none. window: positions that a token sees in the layers
    of `windowed`, its own included; None without a limit. score_cap, logit_cap: what attention's scores and logits stay
    below, 0 without a limit. The scales multiply embeddings, what attention and the MLP add to x, scores and logits.
    latent: how keys and values are made of a short row. convolving: layers with a short convolution of n_taps positions
    instead of attention. rms_eps: of all norms, LayerNorms too. parallel: attention and the MLP see the same norm of x.
    """

    architecture: str
    n_embd: int
    n_head: int
    n_head_kv: int
    head_dim: int
    n_ff: int
    n_layer: int
    n_vocab: int
    n_rows: int
    n_ctx_train: int
    rms_eps: float
    ropes: tuple[Rope, ...]
    temperature: tuple = (0.0, 0)
    window: int | None = None
    windowed: tuple = ()
    score_cap: float = 0.0
    logit_cap: float = 0.0
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    score_scale: float = 1.0
    logit_scale: float = 1.0
    parallel: bool = False
    experts: Experts | None = None
    latent: Latent | None = None
    convolving: tuple = ()
    n_taps: int = 0

    @property
    def family(self):
        """The row of ARCHITECTURES."""
        return ARCHITECTURES[self.architecture]

    @property
    def kernel_sizes(self):
        """What the compiled steps are told: they compute a logit for every row."""
        names = ("n_embd", "n_head", "n_head_kv", "head_dim", "n_ff", "n_layer")
        more = {"n_vocab": self.n_rows, "n_rot": self.rope.n_rot, "n_ropes": len(self.ropes)}
        more |= {"gated": self.family.gated, "post_norms": "post_ffw_norm" in self.family.norms}
        found = {name: getattr(self, name) for name in names} | more | (vars(self.latent) if self.latent else {})
        found |= {"n_taps": self.n_taps} if self.convolving else {}
        if self.experts is None:
            return found
        dense = self.n_ff if len(self.experts.layers) < self.n_layer else 1
        of_experts = {"n_expert": self.experts.n, "n_used": self.experts.n_used, "n_ff_expert": self.experts.n_ff}
        return found | of_experts | {"n_ff": max(dense, self.experts.n_ff_shared)}

    @property
    def kernel_parts(self):
        """What the compiled steps are told of a layer beside its sizes: names and numbers by Weights' words."""
        scales = ("embedding_scale", "residual_scale", "score_scale", "logit_scale", "score_cap", "logit_cap")
        found = {name: getattr(self, name) for name in ("rms_eps", "temperature", "parallel", *scales)}
        found["rope_first"] = self.head_dim - self.rope.n_rot if self.latent else 0
        words = ("rope_layout", "norm", "activation", "expert_activation", "row_norms")
        return found | {name: getattr(self.family, name) for name in words}

    @property
    def rope(self):
        """The usual one of `ropes`."""
        return self.ropes[0]

    @property
    def n_ctx_plain(self):
        """The longest context in which positions turn as in short ones; n_ctx_train where length changes nothing."""
        return min([rope.original for rope in self.ropes if rope.is_stretched(self.n_ctx_train)] + [self.n_ctx_train])

    def rope_of(self, layer):
        """Which of `ropes` turns a layer's heads, None where positions do not."""
        family = ARCHITECTURES[self.architecture]
        turned = layer in self.windowed or not (family.rope_in_windows and self.window)
        if not (turned and family.has_rope(layer)) or layer in self.convolving:
            return None
        return len(self.ropes) - 1 if layer in self.windowed else 0

    @property
    def shapes(self):
        """{matrix that a layer without experts may have: (n_out, n_in)}, in the order of use."""
        return self.family.shapes(self.lengths)

    @property
    def lengths(self):
        """What the shapes of a layer's parts are said in."""
        e = self.experts or NO_EXPERTS
        more = {"expert": e.n, "ff_exp": e.n_ff, "ff_shexp": e.n_ff_shared}
        more |= {"conv_in": 3 * self.n_embd, "conv": self.n_taps}
        if self.latent:
            plain, value = self.head_dim - self.rope.n_rot, self.latent.n_value
            more |= {"q_rank": self.latent.q_rank, "kv_rank": self.latent.kv_rank, "key_plain": plain, "value": value}
            more |= {"kv_a": self.latent.kv_rank + self.rope.n_rot, "kv_b": self.n_head * (plain + value)}
            more |= {"values": self.n_head * value}
        return sizes(self.n_embd, self.n_head, self.n_head_kv, self.head_dim, self.n_ff, **more)

    def norm_shape(self, name):
        """The shape of a layer's norm, by its name in NORMS."""
        return self.family.shape(name, self.lengths)

    def part_rows(self, matrix):
        """{part of a matrix: its rows}, one after the other: see Architecture.fused."""
        parts = self.family.parts(matrix)
        if len(parts) == 1 or matrix in self.family.even:
            return dict.fromkeys(parts, self.shapes[matrix][0] // len(parts))
        return {part: self.lengths[BY_NAME[part].n_out] for part in parts}

    def lacks(self, layer, part):
        """Whether a layer is without a part that layers of the family may have: its norms, vectors, and matrices."""
        if self.latent:
            return part in ("attn_q_a", "attn_q_b", "attn_q_a_norm") if self.latent.q_rank == 0 else part == "attn_q"
        if self.family.convolves and part.startswith(("attn_", "shortconv.")) and part != "attn_norm":
            return part.startswith("attn_") is (layer in self.convolving)
        return False

    def layer_shapes(self, layer):
        """{matrix of a layer: its shape, (n_out, n_in) or (n, n_out, n_in)}, in the order of use."""
        family = ARCHITECTURES[self.architecture]
        if self.experts is None or layer not in self.experts.layers:
            return {key: shape for key, shape in self.shapes.items() if not self.lacks(layer, key)}
        keys = [key for key in family.matrices if not key.startswith("ffn_")]
        keys += [key for key in family.experts if key in BY_NAME and isinstance(BY_NAME[key], Matrix)]
        unshared = () if self.experts.n_ff_shared else (*SHARED_EXPERT, "ffn_gate_inp_shexp")
        return {
            key: family.shape(key, self.lengths) for key in keys if key not in unshared and not self.lacks(layer, key)
        }

    def places(self, layer):
        """{base tensor's name: Place} of a layer's matrices that an adapter may sit on, in the order of use.

        Each expert's is called as files of 2023 called it, "blk.0.ffn_up.5.weight".
        """
        found, family = {}, ARCHITECTURES[self.architecture]
        for key, shape in self.layer_shapes(layer).items():
            if key in SLOTS or key in family.fused:
                found[BY_NAME[key].tensor(layer)] = Place(key, layer, family.slot(key), shape)
            elif key in STACKED:
                for e in range(shape[0]):
                    slot = FIRST_EXPERT + len(STACKED) * e + STACKED.index(key)
                    found[expert_tensor(key, layer, e)] = Place(key, layer, slot, shape[1:])
        return found

    def layer_window(self, layer):
        """Return how many positions a token sees in a layer, its own included; None: all up to its own."""
        return self.window if layer in self.windowed else None


def read_config(file, rms_eps=None, rope_theta=None):
    """Return the ModelConfig of an open ModelFile; the arguments override what the file says.

    LlamacyError for a family without a row in ARCHITECTURES, missing keys, sizes that do not fit together, and keys
    that ask for what the engine does not do. A warning for those that are assumed or not known.
    """
    meta = file.metadata
    if file.text("general.type") == "adapter":
        raise LlamacyError(f"{file.path}: an adapter, wanted a model; give it with --lora and the model with -m")
    if file.text("general.type") == "checkpoint":
        raise LlamacyError(f"{file.path}: a checkpoint of finetune, wanted a model; --resume goes on from it")
    name = meta.get("general.architecture", "")
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise LlamacyError(
            f"{file.path}: architecture {shown(name)} is not supported, wanted one of {', '.join(running())}"
        )
    if ARCHITECTURES[name].missing:
        raise LlamacyError(
            f"{file.path}: architecture {shown(name)} needs {', '.join(ARCHITECTURES[name].missing)}, which cannot be "
            f"computed here yet; families that run: {', '.join(running())}"
        )
    keys = _Keys(file, name)
    n_rows, n_vocab = _vocabulary(file, ARCHITECTURES[name].embedding)
    keys.n_layer = keys.whole("block_count")
    n_embd, n_head = keys.whole("embedding_length"), keys.per_layer("attention.head_count")
    if n_head < 1 or n_embd < 1:
        raise LlamacyError(f"{file.path}: {n_embd} embedding elements and {n_head} heads, wanted at least 1 of each")
    latent, head_dim = None, keys.whole("attention.key_length", n_embd // n_head)
    if ARCHITECTURES[name].latent:
        latent, head_dim = read_latent(keys, head_dim)
    n_head_kv, convolving, n_taps = _key_heads(keys, ARCHITECTURES[name], n_head)
    n_ctx_train = keys.assumed("context_length", N_CTX, keys.whole, "--override-kv")
    n_rot, truncates = keys.whole("rope.dimension_count", head_dim), ARCHITECTURES[name].truncates
    rope = read_rope(keys, n_rot, n_ctx_train, truncates, rope_theta)
    if latent and rope.log_multiplier and rope.yarn_attn_factor is None:
        rope = replace(rope, yarn_attn_factor=1.0)  # it is on all of a key: see _of_latent in architectures.py
    n_ff = keys.per_layer("feed_forward_length")
    window = keys.whole("attention.sliding_window", ARCHITECTURES[name].window) or None
    windowed = _windowed(keys, ARCHITECTURES[name]) if window else ()
    config = ModelConfig(
        architecture=name,
        n_embd=n_embd,
        n_head=n_head,
        n_head_kv=n_head if latent else n_head_kv,
        head_dim=head_dim,
        n_ff=n_ff,
        n_layer=keys.n_layer,
        n_vocab=n_vocab,
        n_rows=n_rows,
        n_ctx_train=n_ctx_train,
        rms_eps=rms_eps if rms_eps is not None else _EPSILON[ARCHITECTURES[name].norm](keys),
        ropes=(rope, *(_local_ropes(keys, rope) if windowed else ())),
        temperature=_temperature(keys, rope) if ARCHITECTURES[name].tempered else (0.0, 0),
        window=window,
        windowed=windowed,
        score_cap=keys.number("attn_logit_softcapping", ARCHITECTURES[name].score_cap),
        logit_cap=keys.number("final_logit_softcapping", ARCHITECTURES[name].logit_cap),
        experts=read_experts(keys, ARCHITECTURES[name], n_ff),
        latent=latent,
        convolving=convolving,
        n_taps=n_taps,
    )
    _check(file.path, config)
    config = replace(config, **_scales(keys, config), parallel=_parallel(file, config))
    strange = check_keys(file, config, ARCHITECTURES[name].keys)
    if strange:
        warnings.warn(f"{file.path}: {some(strange)}: not known here, and ignored", stacklevel=1)
    return config


class _Keys:
    """The family's metadata, as numbers."""

    def __init__(self, file, name):
        self.file, self.name, self.n_layer = file, name, 0

    def get(self, key, default=None):
        return self.file.metadata.get(f"{self.name}.{key}", default)

    def error(self, key, wanted, value):
        name = f"{self.name}.{key}"
        return LlamacyError(f"{self.file.path}: metadata key {name}: wanted {wanted}, got {shown(value)}")

    def number(self, key, default=None):
        """Return a key's value as a float; LlamacyError unless it is one number."""
        value = self.get(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self.error(key, "a number", value)
        return float(value)

    def whole(self, key, default=None):
        """Return a key's value as an int; LlamacyError unless it is one whole number."""
        value = self.get(key, default)
        if isinstance(value, float) and value.is_integer():
            return int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.error(key, "a whole number", value)
        return value

    def flag(self, key, default):
        """Return a key's value as a bool; LlamacyError unless it is one."""
        value = self.get(key, default)
        if not isinstance(value, bool):
            raise self.error(key, "true or false", value)
        return value

    def per_layer(self, key, default=None):
        """Return a key's value as an int, where it may also be an array of equal ones, one for each layer."""
        value = self.get(key, default)
        if not isinstance(value, np.ndarray):
            return self.whole(key, default)
        if len(value) != self.n_layer or value.dtype.kind not in "iu" or not len(value):
            raise self.error(key, f"a whole number, or {self.n_layer} of them", value)
        if (value != value[0]).any():
            raise self.error(key, "one size for all layers", value)
        return int(value[0])

    def assumed(self, key, default, read, flag):
        """Return read(key), or the default with a warning that names the flag to say otherwise."""
        if self.get(key) is not None:
            return read(key)
        what = f"{self.name}.{key} is missing, {default} is assumed"
        warnings.warn(f"{self.file.path}: {what}; {flag} sets it", stacklevel=1)
        return default


def read_latent(keys, key_length):
    """Return (Latent, elements of a head's keys) of a family that has it; key_length: what attention.key_length says.

    LlamacyError for sizes that cannot be.
    """
    n_key = keys.whole("attention.key_length_mla", 0) or key_length
    n_value = keys.whole("attention.value_length_mla", 0) or keys.whole("attention.value_length", n_key)
    found = Latent(keys.whole("attention.q_lora_rank", 0), keys.whole("attention.kv_lora_rank", 0), n_value)
    n_rot, most = keys.whole("rope.dimension_count", 0), LIMITS["n_embd"]
    if not (0 <= found.q_rank <= most and 1 <= found.kv_rank <= most and 1 <= n_value <= n_key and 0 < n_rot < n_key):
        raise LlamacyError(
            f"{keys.file.path}: keys of {n_key} elements, {n_rot} of them rotating, values of {n_value}, made of "
            f"{found.kv_rank}, queries of {found.q_rank}: wanted longer keys than values, and parts of them that turn"
        )
    return found, n_key


def _key_heads(keys, family, n_head):
    """Return (heads of keys and values, layers that have a convolution instead, its positions)."""
    key = "attention.head_count_kv"
    value = keys.get(key)
    if not (family.convolves and isinstance(value, np.ndarray)):
        return keys.per_layer(key, n_head), (), 0
    there = sorted(set(value.tolist()) - {0}) if value.dtype.kind in "iu" else []
    if len(value) != keys.n_layer or len(there) != 1:
        raise keys.error(key, f"{keys.n_layer} times 0 or one whole number", value)
    n_taps = keys.whole("shortconv.l_cache", 0)
    if not 1 <= n_taps <= 64:
        raise keys.error("shortconv.l_cache", "1 to 64", n_taps)
    return there[0], tuple(np.flatnonzero(value == 0).tolist()), n_taps


def _local_ropes(keys, rope):
    """Return what turns layers with a window where that is not `rope`, which turns the others: one, or none."""
    base = ARCHITECTURES[keys.name].local_rope
    return [] if base is None else [local_rope(keys, rope, base)]


def _windowed(keys, family):
    """Return the layers that have the window: of the file's pattern, an array or a period, else the family's."""
    key, layers = "attention.sliding_window_pattern", range(keys.n_layer)
    pattern = keys.get(key)
    if pattern is None:
        return tuple(filter(family.windowed, layers))
    if not isinstance(pattern, np.ndarray):
        return tuple(filter(one_without(keys.whole(key)), layers))
    if len(pattern) != len(layers) or pattern.dtype.kind not in "biu" or not np.isin(pattern, (0, 1)).all():
        raise keys.error(key, f"a period, or {len(layers)} times whether a layer has a window", pattern)
    return tuple(np.flatnonzero(pattern).tolist())


def _vocabulary(file, embedding):
    """Return (rows of the embedding, ids that have a token)."""
    info = file.tensors.get(embedding)
    if info is None or len(info.dims) != 2:
        raise LlamacyError(f"{file.path}: no {embedding} matrix: a vocabulary or part of a model only")
    n_rows, tokens = info.dims[0], file.metadata.get("tokenizer.ggml.tokens", ())
    n_tokens = len(tokens) if hasattr(tokens, "__len__") and not isinstance(tokens, str) else 0
    if n_tokens > n_rows:
        raise LlamacyError(
            f"{file.path}: {embedding} has {n_rows} rows for a vocabulary of {n_tokens} tokens, wanted a row for each; "
            "the file is damaged, or its tokenizer another model's"
        )
    return n_rows, n_tokens or n_rows


def _rms_eps(keys):
    key = "attention.layer_norm_rms_epsilon"
    if keys.get(key) is None and keys.get("attention.layer_norm_epsilon") is not None:
        raise LlamacyError(
            f"{keys.file.path}: {keys.name}.attention.layer_norm_epsilon without {keys.name}.{key}: its norms are of "
            "another kind, wanted RMS norms; use another program, or say --rms-eps to run it all the same"
        )
    return keys.assumed(key, RMS_EPS, keys.number, "--rms-eps")


def _layer_eps(keys):
    return keys.assumed("attention.layer_norm_epsilon", RMS_EPS, keys.number, "--rms-eps")


_EPSILON = {"rms": _rms_eps, "layer": _layer_eps}


def _scales(keys, config):
    """Return the multipliers by their fields' names: a family's own where its files say nothing, which may be 0."""
    family = config.family
    usual = {
        "embedding_scale": ("embedding_scale", family.embedding_scale(config)),
        "residual_scale": ("residual_scale", 1.0),
        "score_scale": ("attention.scale", family.score_scale(config)),
        "logit_scale": ("logit_scale", 1.0),
    }
    found = {}
    for name, (key, default) in usual.items():
        # a key that the family does not read is refused by check_keys where it says anything
        value = keys.number(key, 0.0) if key in family.keys and family.keys[key] is None else 0.0
        if not (0 <= value < 1e30):
            raise keys.error(key, "a positive number", value)
        found[name] = value or default
    if family.logit_divisor:
        found["logit_scale"] = 1 / found["logit_scale"]
    return found


def _parallel(file, config):
    """Whether attention and the MLP see the same norm of x: where a family has both forms, the file says which."""
    parallel = config.family.parallel
    if parallel is not None:
        return parallel
    # by their norms: converters wrote the key, use_parallel_residual, as true where config.json did not have it
    return f"blk.0.{config.family.gguf_name('ffn_norm')}.weight" not in file.tensors


def _temperature(keys, rope):
    factor = keys.number("attention.temperature_scale", 0.0)
    length = keys.whole("attention.temperature_length", 0) or rope.original
    if not (np.isfinite(factor) and 0 < length < 1 << 31):
        raise LlamacyError(
            f"{keys.file.path}: {keys.name}.attention.temperature_scale is {factor} from {length} positions on, wanted "
            "a number and a length"
        )
    return (factor, length) if factor else (0.0, 0)


def _check(path, c):
    for field, limit in LIMITS.items():
        if not 1 <= getattr(c, field) <= limit:
            raise LlamacyError(f"{path}: {field} is {getattr(c, field)}, wanted 1 to {limit}; the file is damaged")
    if c.n_head % c.n_head_kv:
        raise LlamacyError(f"{path}: {c.n_head} heads do not divide among {c.n_head_kv} key/value heads")
    n_rot = c.rope.n_rot
    if not (1 <= c.head_dim <= 4096 and 2 <= n_rot <= c.head_dim and n_rot % 2 == 0):
        raise LlamacyError(f"{path}: head size {c.head_dim} with {n_rot} rotating elements, wanted an even part of it")
    positive = (c.rms_eps >= 0, c.n_ctx_train >= 1, (c.window or 1) >= 1, c.score_cap >= 0, c.logit_cap >= 0)
    if not all(positive) or not np.isfinite([c.rms_eps, c.score_cap, c.logit_cap]).all():
        raise LlamacyError(
            f"{path}: rms_eps {c.rms_eps}, context length {c.n_ctx_train}, window {c.window}, caps {c.score_cap} and "
            f"{c.logit_cap}: wanted positive numbers"
        )
