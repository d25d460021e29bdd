"""The keys below a family's name in a file's metadata: which are read, and at which values others change nothing.

A row is None for a key that is read or says nothing about the arithmetic, else a function of the ModelConfig that
returns the values at which the key is neutral, None where any is: at others the model would not compute what its file
says, so it is refused by name. A family that has the part of its own puts None for its keys into its own table.
"""

import math
import re

from llamacy.errors import LlamacyError, shown


def only(*values):
    """Return a row: neutral at these values."""
    return lambda config: values


def of_yarn(*values):
    """Return a row: read with yarn scaling, neutral at these values with any other."""
    return lambda config: None if config.rope.scaling == "yarn" else values


# In files 0 stands for "not there", for factors as for sizes.
OFF, ONE = only(0), only(0, 1)

# Read by model/config.py, or nothing that a step of a dense decoder depends on.
_HARMLESS = (
    *("vocab_size", "context_length", "embedding_length", "block_count", "feed_forward_length"),
    *("attention.head_count", "attention.head_count_kv", "attention.key_length"),
    *("attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon"),
    *("attention.sliding_window", "attention.sliding_window_pattern"),
    *("rope.dimension_count", "rope.freq_base", "rope.scale_linear", "rope.scaling.type", "rope.scaling.factor"),
    *("rope.scaling.attn_factor", "rope.scaling.original_context_length", "rope.scaling.yarn_truncate"),
    # which nothing reads but yarn; how the model came to be
    *("rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow", "rope.scaling.finetuned"),
    *("leading_dense_block_count", "decoder_start_token_id", "pooling_type"),
)

# Parts that other decoders have.
_PARTS = (
    *("attn_logit_softcapping", "final_logit_softcapping", "use_parallel_residual", "swin_norm"),
    *("attention.max_alibi_bias", "attention.clamp_kqv", "attention.relative_buckets_count"),
    *("attention.group_norm_epsilon", "attention.group_norm_groups", "attention.shared_kv_layers"),
    *("attention.q_lora_rank", "attention.kv_lora_rank", "attention.decay_lora_rank", "attention.iclr_lora_rank"),
    *("attention.value_residual_mix_lora_rank", "attention.gate_lora_rank"),
    *("attention.key_length_mla", "attention.value_length_mla"),
    *("attention.temperature_length", "attention.temperature_scale"),
    *("attention.indexer.head_count", "attention.indexer.key_length", "attention.indexer.top_k"),
    "rope.dimension_sections",
    *("expert_chunk_feed_forward_length", "expert_group_scale", "experts_per_group"),
    *("moe_every_n_layers", "moe_latent_size", "router_logit_softcapping"),
    *("nextn_predict_layers", "n_deepstack_layers", "decoder_block_count", "rescale_every_n_layers"),
    *("time_mix_extra_dim", "time_decay_extra_dim", "token_shift_count", "activation_sparsity_scale"),
    *("altup.active_idx", "altup.num_inputs", "embedding_length_per_layer_input"),
    *("swiglu_clamp_exp", "swiglu_clamp_shexp", "classifier.output_labels", "shortconv.l_cache", "kda.head_dim"),
    *("ssm.conv_kernel", "ssm.inner_size", "ssm.state_size", "ssm.time_step_rank", "ssm.group_count", "ssm.dt_b_c_rms"),
    *("wkv.head_size", "posnet.embedding_length", "posnet.block_count"),
    *("convnext.embedding_length", "convnext.block_count"),
)

# What files call the curve of an MLP.
_TANH = ("gelu_pytorch_tanh", "gelu_tanh", "gelu_new", "gelu_fast", "gelu")
_WORDS = {
    "swiglu": ("silu", "swish"),
    "geglu_tanh": _TANH,
    "geglu_erf": ("gelu",),
    "gelu_tanh": _TANH,
    "gelu_erf": ("gelu",),
    "relu_squared": ("relu2",),
}

# Read by model/config.py where the family has experts, and the file too.
_OF_EXPERTS = (
    *("expert_count", "expert_used_count", "expert_feed_forward_length", "expert_shared_feed_forward_length"),
    *("expert_shared_count", "expert_weights_norm", "expert_gating_func", "expert_weights_scale"),
)
# The same for a model without: of scales one is neutral too.
_WITHOUT_EXPERTS = {"expert_weights_scale": (0, 1)}


def _read_with_experts(key):
    """Return a row: read where the model has experts, elsewhere neutral at what says that there are none."""
    return lambda config: None if config.experts else _WITHOUT_EXPERTS.get(key, (0,))


KEYS = {
    **dict.fromkeys(_HARMLESS),
    **{key: _read_with_experts(key) for key in _OF_EXPERTS},
    **dict.fromkeys(_PARTS, OFF),
    "tensor_data_layout": only("reference", "Meta AI original pth"),
    "hidden_act": lambda config: _WORDS[config.family.activation],
    "hidden_activation": lambda config: _WORDS[config.family.activation],
    "features_length": lambda config: (0, config.n_embd),
    "embedding_length_out": lambda config: (0, config.n_embd),
    "attention.value_length": lambda config: (config.head_dim,),
    "attention.key_length_swa": lambda config: (config.head_dim,),
    "attention.value_length_swa": lambda config: (config.head_dim,),
    "attention.causal": only(True),
    "attention.scale": lambda config: (0, config.score_scale),
    "attention.output_scale": ONE,
    "rope.freq_base_swa": lambda config: None if len(config.ropes) > 1 else (0, config.rope.theta),
    "rope.dimension_count_swa": lambda config: (config.rope.n_rot,),
    "rope.scaling.yarn_attn_factor": of_yarn(-1, 0, 1),
    "rope.scaling.yarn_ext_factor": of_yarn(-1, 0),
    "rope.scaling.yarn_log_multiplier": of_yarn(0),
    "rope.scaling.alpha": ONE,
    "logit_scale": ONE,
    "residual_scale": ONE,
    "embedding_scale": ONE,
    "full_attention_interval": ONE,
    "expert_group_count": ONE,
    "expert_group_used_count": ONE,
    "interleave_moe_layer_step": ONE,
}

# Words of keys that speak of arithmetic: such a key without a row is refused unless it is off, others get a warning.
_ARITHMETIC = re.compile(
    r"(?:.*[._])?(?:activation|act|alpha|attention|attn|base|beta|bias|blocks?|cap|capping|causal|clamp|conv|count|dims?"
    r"|embedding|eps|epsilon|experts?|factor|freq|function|gate|gating|heads?|hidden|interval|kernel|layers?|length"
    r"|limit|logits?|lora|mask|mixer|mla|moe|mtp|multiplier|norm|parallel|pattern|period|positions?|rank|residual|rope"
    r"|rotary|router|routing|scale|scaling|sections|shared|softcap|softcapping|sparsity|ssm|swa|temperature|theta"
    r"|threshold|tied?|window|yarn)(?:[._].*)?",
    re.DOTALL,
)
_EXPERTS = re.compile(r"(expert|experts|moe|router)_.*|.*_moe_.*", re.DOTALL)


def check_keys(file, config, keys):
    """Raise LlamacyError for the first key that asks for what the engine does not do; `keys` is the family's table.

    Returns the names of those without a row that hardly matter, for a warning.
    """
    strange, prefix = [], f"{config.architecture}."
    for name, value in file.metadata.items():
        key = name.removeprefix(prefix)
        if key == name or (key in keys and keys[key] is None):
            continue
        neutral = keys[key](config) if key in keys else (0, "")
        if neutral is None or _is_neutral(value, neutral):
            continue
        if key in keys or _ARITHMETIC.fullmatch(key.lower()):
            raise LlamacyError(f"{file.path}: {_refusal(name, key, value, neutral if key in keys else ())}")
        strange.append(name)
    return strange


def _is_neutral(value, neutral):
    """Tell whether a value, or every element of an array, is one of `neutral`; numbers to f32's precision."""
    if isinstance(value, str):
        return value in neutral
    # Late: the commands read the families' table for their flags, and --help answers without NumPy.
    import numpy as np

    if not isinstance(value, (int, float, np.ndarray)):
        return False
    numbers = [number for number in neutral if not isinstance(number, str)]
    found = np.unique(np.asarray(value, np.float64)).tolist()
    return all(any(math.isclose(x, number, rel_tol=1e-5) for number in numbers) for x in found)


def _refusal(name, key, value, neutral):
    what = f"{shown(name)} is {shown(value)}"
    if _EXPERTS.fullmatch(key):
        return f"a mixture of experts ({what}) of a kind that is not supported; use another program or a dense model"
    if not neutral:
        return f"{what}: a key that is not known here and may change what the model computes; use another program"
    wanted = " or ".join(f"{number:.6g}" if isinstance(number, float) else str(number) for number in neutral)
    return (
        f"{what}, which changes what the model computes and is not supported, wanted {wanted} or no such key; use "
        f"another program, or --override-kv {name}={_typed(neutral[-1], value)} to do without"
    )


def _typed(plain, value):
    """Return a neutral value as --override-kv takes it, of the kind that the file's value has."""
    if isinstance(value, bool):
        return f"bool:{str(bool(plain)).lower()}"
    kind = "str" if isinstance(plain, str) else "float" if isinstance(plain, float) else "int"
    return f"{kind}:{plain}"
