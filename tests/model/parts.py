"""Small models of every form that a layer has: each a twin's Config, the row of ARCHITECTURES and the file it makes."""

from dataclasses import replace

from llamacy.formats import types
from llamacy.formats.architectures import ARCHITECTURES, Architecture
from llamacy.formats.gguf_writer import write_gguf
from llamacy.formats.metadata_keys import KEYS
from llamacy.kernels.reference import model as twin
from tests.model import tiny

NAME = "parts"
# Heads and MLP end within a tile and within a vector; the first, a middle and the last layer differ in what they do.
BASE = twin.Config(n_vocab=83, n_embd=40, n_head=4, n_head_kv=2, n_ff=56, n_layer=3, key_length=12)
LAYER = {"norm": "layer", "norm_biases": True}
BEHIND = ("post_attention_norm", "post_ffw_norm")
BOTH = ("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm")
UNGATED = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_up", "ffn_down")
SCALES = {"embedding_scale": 3.0, "residual_scale": 0.7, "score_scale": 0.4, "logit_scale": 0.625}
# a head's last elements turn; values are shorter than keys
LATENT = replace(BASE, n_head_kv=4, kv_rank=21, q_rank=18, n_value=7, n_rot=4)

CASES = {
    "head_dim": BASE,
    "biases": replace(BASE, biases=("attn_output", "ffn_gate", "ffn_up", "ffn_down", "output")),
    "head norms": replace(BASE, head_norms="heads"),
    "head norms of whole vectors": replace(BASE, head_norms="heads", key_length=16, rope_layout="halves"),
    "head norms apart": replace(BASE, head_norms="each", norm="layer"),
    "row norms": replace(BASE, head_norms="rows"),
    "row norms of one head": replace(BASE, head_norms="rows", n_head=1, n_head_kv=1),
    "layer norm": replace(BASE, norm="layer", rms_eps=0.1),
    "layer norm with bias": replace(BASE, **LAYER),
    "norms behind": replace(BASE, norms=BEHIND),
    "norms before and behind": replace(BASE, norms=BOTH),
    "layer norms before and behind": replace(BASE, norms=BOTH, **LAYER, residual_scale=0.5),
    "parallel": replace(BASE, norms=("attn_norm",), parallel=True),
    "parallel with two norms": replace(BASE, parallel=True, **LAYER),
    "parallel with norms behind": replace(BASE, parallel=True, norms=("attn_norm", *BEHIND), residual_scale=0.5),
    "geglu_tanh": replace(BASE, activation="geglu_tanh"),
    "geglu_erf": replace(BASE, activation="geglu_erf"),
    "gelu_tanh": replace(BASE, activation="gelu_tanh", biases=UNGATED),
    "gelu_erf": replace(BASE, activation="gelu_erf"),
    "relu_squared": replace(BASE, activation="relu_squared"),
    "scales": replace(BASE, **SCALES),
    "all at once": replace(
        BASE, **LAYER, **SCALES, norms=BOTH, head_norms="rows", activation="gelu_erf", biases=(*UNGATED, "output"),
    ),
    "all at once, parallel": replace(
        BASE, **LAYER, **SCALES, norms=("attn_norm",), head_norms="each", activation="geglu_tanh", parallel=True,
    ),
    "latent": LATENT,
    "latent, queries at once": replace(LATENT, q_rank=0, n_value=12),
    "latent, experts of groups": replace(
        LATENT, n_dense=1, n_expert=8, n_used=2, n_ff_expert=24, n_ff_shared=40, scores="sigmoid", groups=(4, 2),
        selection=True, expert_scale=1.5,
    ),
    "convolutions": replace(BASE, convolving=(0, 2), n_taps=3, head_norms="heads", rope_layout="halves"),
    "a last layer of attention": replace(BASE, convolving=(0, 1), n_taps=5, head_norms="heads", rope_layout="halves"),
}  # fmt: skip
_SHAPES = {
    "each": {"attn_q_norm": ("head", "head_dim"), "attn_k_norm": ("head_kv", "head_dim")},
    "rows": {"attn_q_norm": ("q",), "attn_k_norm": ("kv",)},
}
_SCALE_KEYS = {
    "embedding_scale": "embedding_scale",
    "residual_scale": "residual_scale",
    "attention.scale": "score_scale",
    "logit_scale": "logit_scale",
}


def row(config):
    """The family of a case."""
    if config.kv_rank or config.convolving:
        return ARCHITECTURES["deepseek2" if config.kv_rank else "lfm2"]
    return Architecture(
        rope_layout=("pairs", "halves").index(config.rope_layout),
        matrices=tuple(twin.linear_shapes(config)),
        norms=tuple(twin.norm_shapes(config)),
        norm=config.norm,
        norm_biases=config.norm_biases,
        row_norms=config.head_norms == "rows",
        sizes_of=_SHAPES.get(config.head_norms, {}),
        activation=config.activation,
        parallel=config.parallel,
        output_bias="output" in config.biases,
        biases=tuple(name for name in config.biases if name != "output"),
        keys=KEYS | dict.fromkeys(_SCALE_KEYS),
    )


def write(path, config, seed=5, leave_out=(), change=None):
    """Write a random model of a case, matrices as f32; return its weights."""
    weights = twin.random_weights(config, seed)
    if config.convolving:  # as the family calls it
        weights["token_embd_norm.weight"] = weights["output_norm.weight"]
        leave_out = (*leave_out, "output_norm.weight")
    values = {key.replace("llama.", f"{NAME}."): value for key, value in tiny.metadata(config).items()}
    values |= {"general.architecture": NAME, f"{NAME}.attention.key_length": config.head_dim}
    values |= {f"{NAME}.attention.value_length": config.head_dim}
    values |= {f"{NAME}.attention.layer_norm_epsilon": config.rms_eps} if config.norm == "layer" else {}
    values |= {f"{NAME}.{key}": value for key, value in _mixer_keys(config).items()}
    for key, name in _SCALE_KEYS.items():
        if getattr(config, name) not in (None, 1.0):
            values[f"{NAME}.{key}"] = getattr(config, name)
    f32, kept = types.by_name("F32"), {name: w for name, w in weights.items() if name not in leave_out}
    write_gguf(path, values | (change or {}), [(name, f32, w.shape, w.astype("float32")) for name, w in kept.items()])
    return weights


def _mixer_keys(config):
    """What files say of latent attention, convolutions, and groups of experts."""
    if config.convolving:
        heads = [0 if i in config.convolving else config.n_head_kv for i in range(config.n_layer)]
        return {"attention.head_count_kv": heads, "shortconv.l_cache": config.n_taps}
    if not config.kv_rank:
        return {}
    found = {"attention.kv_lora_rank": config.kv_rank, "rope.dimension_count": config.n_rot}
    found |= {"attention.q_lora_rank": config.q_rank, "attention.value_length": config.n_value}
    groups = dict(zip(("expert_group_count", "expert_group_used_count"), config.groups, strict=True))
    return found | (groups if config.groups[0] else {})


def use(monkeypatch, config):
    """Let the engine know the family of a case until the test ends."""
    monkeypatch.setitem(ARCHITECTURES, NAME, row(config))
