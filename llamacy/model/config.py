"""A model's sizes and constants, read from GGUF metadata and checked against its tensors."""

from dataclasses import dataclass

import numpy as np

from llamacy.errors import LlamacyError
from llamacy.formats.architectures import ARCHITECTURES, sizes

# Far above any model of the family: what a damaged header can ask for stays harmless.
LIMITS = {"n_embd": 1 << 17, "n_head": 1 << 12, "n_head_kv": 1 << 12, "n_ff": 1 << 19, "n_layer": 1 << 12}


@dataclass(frozen=True)
class ModelConfig:
    """Sizes in elements; rope_theta is the base of the rotary frequencies, rope_scale divides positions (1 = none)."""

    architecture: str
    n_embd: int
    n_head: int
    n_head_kv: int
    head_dim: int
    n_ff: int
    n_layer: int
    n_vocab: int
    n_ctx_train: int
    n_rot: int
    rms_eps: float
    rope_theta: float
    rope_scale: float = 1.0

    @property
    def shapes(self):
        """{matrix of a layer: (n_out, n_in)}, in the order of use."""
        lengths = sizes(self.n_embd, self.n_head, self.n_head_kv, self.head_dim, self.n_ff)
        return ARCHITECTURES[self.architecture].shapes(lengths)

    def frequencies(self, factors=None):
        """Radians per position of each rotating pair, f64 (n_rot / 2,); `factors` (n_rot / 2,) divide them."""
        exponents = np.arange(0, self.n_rot, 2, dtype=np.float64) / self.n_rot
        frequencies = self.rope_theta**-exponents / self.rope_scale
        return frequencies if factors is None else frequencies / np.asarray(factors, np.float64)


def read_config(file, rms_eps=None, rope_theta=None):
    """Return the ModelConfig of an open ModelFile; the arguments override what the file says.

    LlamacyError for a family without a row in ARCHITECTURES, missing keys, and sizes that do not fit together.
    """
    meta = file.metadata
    if file.text("general.type") == "adapter":
        raise LlamacyError(f"{file.path}: an adapter, wanted a model; give it with --lora and the model with -m")
    if file.text("general.type") == "checkpoint":
        raise LlamacyError(f"{file.path}: a checkpoint of finetune, wanted a model; --resume goes on from it")
    name = str(meta.get("general.architecture", ""))
    if name not in ARCHITECTURES:
        raise LlamacyError(
            f"{file.path}: architecture {name!r} is not supported, wanted one of {', '.join(ARCHITECTURES)}"
        )

    def read(key, default=None, kind=int):
        value = meta.get(f"{name}.{key}", default)
        try:
            if value is None or isinstance(value, (str, bytes)):
                raise TypeError
            return kind(value)
        except (TypeError, ValueError, OverflowError):
            raise LlamacyError(f"{file.path}: metadata key {name}.{key}: wanted a number, got {value!r}") from None

    embedding = file.tensors.get(ARCHITECTURES[name].embedding)
    if embedding is None or len(embedding.shape) != 2:
        raise LlamacyError(
            f"{file.path}: no {ARCHITECTURES[name].embedding} matrix: a vocabulary or part of a model only"
        )
    n_embd, n_head = read("embedding_length"), read("attention.head_count")
    if n_head < 1 or n_embd < 1:
        raise LlamacyError(f"{file.path}: {n_embd} embedding elements and {n_head} heads, wanted at least 1 of each")
    head_dim = read("attention.key_length", n_embd // n_head)
    config = ModelConfig(
        architecture=name,
        n_embd=n_embd,
        n_head=n_head,
        n_head_kv=read("attention.head_count_kv", n_head),
        head_dim=head_dim,
        n_ff=read("feed_forward_length"),
        n_layer=read("block_count"),
        n_vocab=embedding.shape[0],
        n_ctx_train=read("context_length", 2048),
        n_rot=read("rope.dimension_count", head_dim),
        rms_eps=rms_eps if rms_eps is not None else read("attention.layer_norm_rms_epsilon", 1e-5, float),
        rope_theta=rope_theta if rope_theta is not None else read("rope.freq_base", 10000.0, float),
        rope_scale=_rope_scale(file.path, meta, name, read),
    )
    _check(file.path, config)
    return config


def _rope_scale(path, meta, name, read):
    kind = str(meta.get(f"{name}.rope.scaling.type", "linear"))
    if kind == "none":
        return 1.0
    if kind != "linear":
        raise LlamacyError(f"{path}: rope scaling {kind!r} is not supported, wanted none or linear")
    return read("rope.scaling.factor", meta.get(f"{name}.rope.scale_linear", 1.0), float) or 1.0


def _check(path, c):
    for field, limit in LIMITS.items():
        if not 1 <= getattr(c, field) <= limit:
            raise LlamacyError(f"{path}: {field} is {getattr(c, field)}, wanted 1 to {limit}; the file is damaged")
    if c.n_head % c.n_head_kv:
        raise LlamacyError(f"{path}: {c.n_head} heads do not divide among {c.n_head_kv} key/value heads")
    if not (1 <= c.head_dim <= 4096 and 2 <= c.n_rot <= c.head_dim and c.n_rot % 2 == 0):
        raise LlamacyError(
            f"{path}: head size {c.head_dim} with {c.n_rot} rotating elements, wanted an even part of it"
        )
    positive = (c.rms_eps >= 0, c.rope_theta > 0, c.rope_scale > 0, c.n_ctx_train >= 1)
    if not all(positive) or not np.isfinite([c.rms_eps, c.rope_theta, c.rope_scale]).all():
        raise LlamacyError(
            f"{path}: rms_eps {c.rms_eps}, rope_theta {c.rope_theta}, rope scaling {c.rope_scale}, context length "
            f"{c.n_ctx_train}: wanted positive numbers"
        )
