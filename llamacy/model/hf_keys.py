"""config.json -> the metadata below a family's name: the keys that llama.cpp's converter writes, and few more.

A row of KEYS_OF is what a family's files have beside the usual keys: GGUF's key -> the names in config.json, or a
function of the HfConfig; None of either leaves the key out.
"""

import math

from llamacy.errors import shown
from llamacy.model.hf_config import MAX_SIZE

_SIZES = {
    "block_count": ("num_hidden_layers",),
    "embedding_length": ("hidden_size",),
    "feed_forward_length": ("intermediate_size", "block_ff_dim"),
}
_ROPE_NUMBERS = {  # of a yarn scaling: GGUF's key -> config.json's
    "rope.scaling.yarn_ext_factor": ("extrapolation_factor",),
    "rope.scaling.yarn_attn_factor": ("attention_factor", "attn_factor"),
    "rope.scaling.yarn_beta_fast": ("beta_fast",),
    "rope.scaling.yarn_beta_slow": ("beta_slow",),
}
_ROPE_KINDS = ("default", "llama3", "linear", "yarn", "dynamic", "longrope")
# Families whose files name no head size unless it is said, no rope base, or no number of rotating elements.
_NAMES_N_ROT = {
    *("llama", "mistral3", "smollm3", "granite", "granitemoe", "phi2", "phi3", "stablelm", "cohere2", "glm4", "helium"),
}
_NAMES_VOCABULARY = {
    *("llama", "mistral3", "smollm3", "granite", "granitemoe", "cohere2", "exaone4", "deepseek2", "lfm2", "helium"),
}
_WITHOUT_BASE = {"gemma", "gemma2", "phi2", "stablelm"}  # 10000 is meant
_LAYER_NORMS = {"phi2", "stablelm", "starcoder2", "cohere2"}
_EXPERT_WIDTH = ("moe_intermediate_size", "intermediate_size")


def _temperature(config):
    return config.rope.get("llama_4_scaling_beta")


def _score_scale(config):
    """What scores are multiplied by, where it is not one over the root of the head size."""
    scalar = config.number("query_pre_attn_scalar", default=config.head_dim)
    return None if scalar == config.head_dim else 1 / math.sqrt(scalar)


def _longrope_factor(config):
    if "long_factor" not in config.rope:
        return None
    if config.rope.get("attention_factor") is not None:
        return config.number("attention_factor", values=config.rope)
    original = original_context(config)
    stretch = config.whole("max_position_embeddings") / original
    scale = stretch if config.rope.get("factor") is None else config.number("factor", values=config.rope)
    return math.sqrt(1 + math.log(scale) / math.log(original)) if scale > 1 else 1.0


def _normalised(usual):
    """Whether the chosen experts' weights are made to sum to one, where that is not the family's rule."""
    return lambda config: None if config.values.get("norm_topk_prob", usual) is usual else not usual


def _of_v3(config):
    """Whether a deepseek2 model chooses experts as DeepSeek-V3 does: sigmoids, chosen with a bias, by groups."""
    return config.get("architectures")[0] == "DeepseekV3ForCausalLM"


def _groups(key):
    """The number of groups of experts, or of those used: none where the model does not look at them."""
    return lambda c: c.get(key) if _of_v3(c) or c.get("topk_method") != "greedy" else c.get(key) and 1


def _gating(config):
    if config.get("scoring_func") is None and not _of_v3(config):
        return None
    return 2 if _of_v3(config) else 1


def _mla(key):
    return lambda config: config.whole(key)


_GRANITE = {
    "attention.scale": ("attention_multiplier",),
    "embedding_scale": ("embedding_multiplier",),
    "residual_scale": ("residual_multiplier",),
    "logit_scale": ("logits_scaling",),
}
KEYS_OF = {
    "gemma2": {
        "attn_logit_softcapping": ("attn_logit_softcapping",),
        "final_logit_softcapping": ("final_logit_softcapping",),
        "attention.scale": _score_scale,
    },
    "gemma3": {"final_logit_softcapping": ("final_logit_softcapping",), "attention.scale": _score_scale},
    "phi3": {
        "rope.scaling.original_context_length": lambda config: original_context(config),
        "rope.scaling.attn_factor": _longrope_factor,
    },
    "mistral3": {
        "rope.scaling.yarn_log_multiplier": lambda config: config.rope.get("mscale_all_dim"),
        "attention.temperature_scale": _temperature,
    },
    "granite": _GRANITE,
    "granitemoe": _GRANITE | {"expert_shared_feed_forward_length": ("shared_intermediate_size",)},
    "stablelm": {"use_parallel_residual": lambda config: bool(config.values.get("use_parallel_residual", False))},
    "cohere2": {"logit_scale": ("logit_scale",), "rope.scaling.type": lambda config: "none"},
    "qwen2moe": {
        "expert_feed_forward_length": ("moe_intermediate_size",),
        "expert_shared_feed_forward_length": ("shared_expert_intermediate_size",),
        "expert_weights_norm": _normalised(False),
    },
    "qwen3moe": {"expert_feed_forward_length": ("moe_intermediate_size",), "expert_weights_norm": _normalised(True)},
    "olmoe": {"expert_weights_norm": _normalised(False)},
    "gpt-oss": {"expert_feed_forward_length": ("intermediate_size",)},
    "deepseek2": {
        "leading_dense_block_count": lambda config: config.n_dense,
        "attention.q_lora_rank": ("q_lora_rank",),
        "attention.kv_lora_rank": ("kv_lora_rank",),
        "attention.key_length": lambda config: config.whole("kv_lora_rank") + config.whole("qk_rope_head_dim"),
        "attention.value_length": _mla("kv_lora_rank"),
        "attention.key_length_mla": lambda c: c.whole("qk_nope_head_dim") + c.whole("qk_rope_head_dim"),
        "attention.value_length_mla": _mla("v_head_dim"),
        "rope.dimension_count": _mla("qk_rope_head_dim"),
        "attention.head_count_kv": lambda config: 1,
        "expert_feed_forward_length": lambda config: config.whole(*_EXPERT_WIDTH),
        "expert_shared_count": ("n_shared_experts",),
        "expert_weights_scale": ("routed_scaling_factor",),
        "expert_weights_norm": lambda config: config.values.get("norm_topk_prob") or None,
        "expert_gating_func": _gating,
        "expert_group_count": _groups("n_group"),
        "expert_group_used_count": _groups("topk_group"),
        "rope.scaling.yarn_log_multiplier": lambda c: c.rope.get("mscale_all_dim") and 0.1 * c.rope["mscale_all_dim"],
    },
    "lfm2": {
        "shortconv.l_cache": ("conv_L_cache",),
        "attention.layer_norm_rms_epsilon": lambda config: config.number("norm_eps", default=1e-5),
        "attention.head_count_kv": lambda config: [
            config.heads["attention.head_count_kv"] if kind == "full_attention" else 0 for kind in lfm2_layers(config)
        ],
        "feed_forward_length": lambda config: lfm2_width(config),
    },
}


def family_keys(config, n_vocab):
    """Return ({key below the family's name: value}, notes) of an HfConfig whose embedding has n_vocab rows."""
    found = {key: config.whole(*names) for key, names in _SIZES.items()} | config.heads
    found["context_length"] = config.whole("max_position_embeddings", "n_positions", default=2048)
    if config.family in _NAMES_VOCABULARY:
        found["vocab_size"] = n_vocab
    if config.get("head_dim") is not None and config.head_dim == config.get("head_dim") and config.family not in (
        "phi2", "phi3", "stablelm"
    ):  # fmt: skip
        found |= {"attention.key_length": config.head_dim, "attention.value_length": config.head_dim}
    if config.family in _NAMES_N_ROT or config.n_rot != config.head_dim:
        found["rope.dimension_count"] = config.n_rot
    if config.family not in ("phi2", "stablelm"):
        found["attention.layer_norm_rms_epsilon"] = config.number(
            "rms_norm_eps", "layer_norm_eps", "norm_epsilon", default=1e-6
        )
    if config.family in _LAYER_NORMS:
        found["attention.layer_norm_epsilon"] = config.number(
            "layer_norm_eps", "norm_epsilon", "norm_eps", default=1e-5
        )
    if config.n_expert:
        found["expert_count"] = config.n_expert
        found["expert_used_count"] = config.whole("num_experts_per_tok", "num_experts_per_token")
    rope, notes = _rope_keys(config)
    found |= rope
    windows, more = _window_keys(config, found["context_length"])
    found |= windows
    for key, source in KEYS_OF.get(config.family, {}).items():
        value = source(config) if callable(source) else config.get(*source)
        if value is not None:
            found[key] = _checked(config, key, value)
    return found, notes + more


def _checked(config, key, value):
    """Return a value of KEYS_OF, which comes from the file as it is, as GGUF has it."""
    if isinstance(value, (bool, str, list)):
        return value
    if isinstance(value, int) and abs(value) < MAX_SIZE:
        return float(value) if key in _FLOATS else value
    if isinstance(value, float) and abs(value) < 1e30:
        return value
    raise config.error(f"{key} would be {shown(value)}, wanted a number", "correct it")


_FLOATS = {
    *("attn_logit_softcapping", "final_logit_softcapping", "attention.scale", "embedding_scale", "residual_scale"),
    *("logit_scale", "attention.temperature_scale", "rope.scaling.yarn_log_multiplier", "expert_weights_scale"),
}


def _rope_keys(config):
    rope, kind = config.rope, config.rope["rope_type"]
    base = config.number("rope_theta", values=rope)
    found = {} if config.family in _WITHOUT_BASE and base == 10000 else {"rope.freq_base": base}
    notes = []
    if config.rope_of_windows is not None and config.window is not None:
        found["rope.freq_base_swa"] = config.rope_of_windows
    if kind not in _ROPE_KINDS or (kind == "longrope" and config.family != "phi3"):
        wanted = "wanted default, linear, llama3, dynamic or yarn"
        raise config.error(f"rope scaling {shown(kind)} is not supported", wanted)
    if kind == "dynamic":
        notes.append("dynamic rope scaling changes nothing within the trained context, and is left out beyond it")
    if kind in ("linear", "yarn"):
        found |= {"rope.scaling.type": kind, "rope.scaling.factor": config.number("factor", values=rope)}
    if kind == "yarn":
        found["rope.scaling.original_context_length"] = original_context(config)
        if rope.get("truncate") is False:  # which llama.cpp does not know
            found["rope.scaling.yarn_truncate"] = False
        for key, names in _ROPE_NUMBERS.items():
            if any(rope.get(name) is not None for name in names):
                found[key] = config.number(*names, values=rope)
        found |= _mscale(config, found["rope.scaling.factor"])
    return found, notes


def _mscale(config, factor):
    """Return the key of yarn's whole factor where two mscales give it and no other key of the family can."""
    rope, names = config.rope, ("mscale", "mscale_all_dim")
    said = rope.get("attention_factor") is not None or not all(rope.get(name) for name in names)
    if config.family == "deepseek2":
        return _latent_mscale(config, factor)
    if said or (config.family == "mistral3" and rope["mscale"] == 1):
        return {}
    over, under = (0.1 * config.number(name, values=rope) * math.log(max(factor, 1)) + 1 for name in names)
    return {"rope.scaling.yarn_attn_factor": over / under}


def _latent_mscale(config, factor):
    """The same of latent attention, where scores are scaled too: its key alone says that both mscales are equal."""
    rope = config.rope
    if rope.get("attention_factor") is not None or not rope.get("mscale_all_dim"):
        return {}
    if rope.get("mscale") == rope["mscale_all_dim"]:
        return {}
    grown = 0.1 * math.log(max(factor, 1))
    over, under = rope.get("mscale"), config.number("mscale_all_dim", values=rope)
    factor = (grown * config.number("mscale", values=rope) + 1) / (grown * under + 1) if over else grown + 1
    return {"rope.scaling.yarn_attn_factor": factor}


def original_context(config):
    """Return the context before rope was scaled."""
    original = config.rope.get("original_max_position_embeddings", config.get("original_max_position_embeddings"))
    if original is None and config.rope["rope_type"] == "default":
        original = config.whole("max_position_embeddings")
    if type(original) is not int or not 0 < original < MAX_SIZE:
        raise config.error(f"original_max_position_embeddings is {shown(original)}", "wanted a whole number")
    return original


def _window_keys(config, n_ctx):
    """Return ({key: value}, notes) of windows; those of llama's kin llama.cpp's converter leaves out."""
    window, kinds = config.window, config.layer_types
    if config.family == "phi3":
        return {"attention.sliding_window": window or 0}, []
    if window is None:
        return {}, []
    if config.family == "gemma3" and config.get("sliding_window_pattern") == 1:
        return {}, []
    found = {"attention.sliding_window": window}
    pattern = _pattern(config, kinds)
    if pattern is not None:
        found["attention.sliding_window_pattern"] = pattern
    if window >= n_ctx and config.family not in FAMILY_PATTERNS and pattern is None:
        return {}, []
    return found, []


# Families whose files need no list of which layers have a window: period p, every p-th has none.
FAMILY_PATTERNS = {"gemma2": 2, "gemma3": 6, "cohere2": 4, "gpt-oss": 2}


def _pattern(config, kinds):
    """Return which layers have a window, a list of bool; None where that is all of them or the family's rule."""
    n_layer = config.whole("num_hidden_layers")
    period = config.get("sliding_window_pattern", "_sliding_window_pattern")
    if kinds is None and config.family == "exaone4" and isinstance(period, str):
        kinds = ["sliding_attention" if period[i % len(period)] == "L" else "" for i in range(n_layer)]
    if kinds is None and isinstance(period, int) and period > 0:
        kinds = ["" if (i + 1) % period == 0 else "sliding_attention" for i in range(n_layer)]
    if kinds is None and config.family == "olmo2":  # olmo3
        kinds = ["" if i % 4 == 3 else "sliding_attention" for i in range(n_layer)]
    if kinds is None:
        return None
    found = [kind == "sliding_attention" for kind in kinds]
    usual = FAMILY_PATTERNS.get(config.family)
    rule = [(i + 1) % usual != 0 for i in range(n_layer)] if usual else [True] * n_layer
    return None if found == rule and config.family not in ("exaone4", "olmo2") else found


def lfm2_layers(config):
    """Return each layer's kind, "conv" or "full_attention"."""
    if config.layer_types is not None:
        return config.layer_types
    full = config.values.get("full_attn_idxs") or []
    return ["full_attention" if i in full else "conv" for i in range(config.whole("num_hidden_layers"))]


def lfm2_width(config):
    """Return n_ff, which config.json may ask to be adjusted."""
    width = config.whole("block_ff_dim", "intermediate_size")
    if not config.values.get("block_auto_adjust_ff_dim", True):
        return width
    width = int(config.number("block_ffn_dim_multiplier", default=1.0) * int(2 * width / 3))
    multiple = config.whole("block_multiple_of", default=256)
    return multiple * -(-width // multiple)
