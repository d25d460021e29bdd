"""Small models of every family, made of a seeded stream of numbers.

What transformers, PEFT and llama.cpp say of them is recorded in tests/data/families/NAME.json by
tests/peers/record_families.py. A case is a Hugging Face config.json. The names and shapes of its tensors are what
transformers saved for it; their values come from `tensors`, the same in every version of NumPy.
"""

import json
import zlib
from pathlib import Path

import numpy as np

from llamacy.kernels.reference.model import uniform
from tests.model import hf

DATA = Path(__file__).resolve().parents[1] / "data" / "families"
N_VOCAB, SEED = 128, 5
_SIZES = {
    "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 6,
    "num_key_value_heads": 3, "max_position_embeddings": 128, "vocab_size": N_VOCAB, "rms_norm_eps": 1e-5,
    "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2, "attention_dropout": 0.0, "tie_word_embeddings": False,
}  # fmt: skip
_ROPE = {"rope_theta": 10000.0, "rope_type": "default"}
_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "rope_theta": 10000.0}
_MOE = {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
_SLIDE, _FULL = "sliding_attention", "full_attention"


def _case(name, *, rope=_ROPE, **more):
    return _SIZES | {"architectures": [name], "rope_parameters": rope} | more


def _granite(name, **more):
    scales = {
        "attention_multiplier": 0.2,
        "embedding_multiplier": 2.0,
        "residual_multiplier": 0.6,
        "logits_scaling": 1.5,
    }
    return _case(name, **scales, **more)


CASES = {
    "llama-llama3": _case(
        "LlamaForCausalLM", attention_bias=True, head_dim=12, rope=_ROPE | {
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    ),
    "llama-yarn": _case("LlamaForCausalLM", head_dim=8, rope=_YARN | {"beta_fast": 8.0, "beta_slow": 2.0}),
    "mistral": _case("MistralForCausalLM", sliding_window=12, head_dim=16),
    "mistral3": _case(
        "Ministral3ForCausalLM", head_dim=16, model_type="ministral3",
        rope=_YARN | {"beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0,
                      "llama_4_scaling_beta": 0.1, "original_max_position_embeddings": 16},
    ),
    "qwen2": _case("Qwen2ForCausalLM", tie_word_embeddings=True, use_sliding_window=False, num_key_value_heads=6),
    "qwen3": _case("Qwen3ForCausalLM", head_dim=20, attention_bias=True, use_sliding_window=False),
    "gemma": _case("GemmaForCausalLM", head_dim=20, num_key_value_heads=1, hidden_activation="gelu_pytorch_tanh",
                   tie_word_embeddings=True),
    "gemma2": _case(
        "Gemma2ForCausalLM", head_dim=16, query_pre_attn_scalar=30, attn_logit_softcapping=4.0, num_hidden_layers=3,
        final_logit_softcapping=5.0, sliding_window=10, tie_word_embeddings=True,
        layer_types=[_SLIDE, _FULL, _SLIDE],
    ),
    "gemma3": _case(
        "Gemma3ForCausalLM", head_dim=16, query_pre_attn_scalar=20, sliding_window=9, num_hidden_layers=6,
        tie_word_embeddings=True, layer_types=[*[_SLIDE] * 5, _FULL],
        rope={_FULL: {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6}, _SLIDE: _ROPE},
    ),
    "phi2": _case("PhiForCausalLM", intermediate_size=192, num_key_value_heads=6, hidden_act="gelu_new",
                  layer_norm_eps=1e-5, rope=_ROPE | {"partial_rotary_factor": 0.5}),
    "phi3": _case("Phi3ForCausalLM", sliding_window=12, original_max_position_embeddings=128,
                  num_attention_heads=3, num_key_value_heads=1, rope=_ROPE | {"partial_rotary_factor": 0.75}),
    "phi3-long": _case(
        "Phi3ForCausalLM", sliding_window=None, original_max_position_embeddings=16,
        rope=_ROPE | {"rope_type": "longrope", "short_factor": [1.0, 1.1, 1.3, 1.9],
                      "long_factor": [1.2, 1.9, 3.0, 4.0], "original_max_position_embeddings": 16,
                      "partial_rotary_factor": 1.0},
    ),
    "smollm3": _case("SmolLM3ForCausalLM", num_hidden_layers=4, no_rope_layers=[1, 1, 1, 0], use_sliding_window=False,
                     tie_word_embeddings=True),
    "olmo2": _case("Olmo2ForCausalLM"),
    "olmo3": _case(
        "Olmo3ForCausalLM", num_hidden_layers=4, sliding_window=11, layer_types=[_SLIDE, _SLIDE, _SLIDE, _FULL],
        rope={_FULL: _YARN, _SLIDE: _ROPE},
    ),
    "granite": _granite("GraniteForCausalLM"),
    "stablelm": _case("StableLmForCausalLM", use_parallel_residual=False, use_qkv_bias=True, layer_norm_eps=1e-5,
                      num_attention_heads=3, num_key_value_heads=3, rope=_ROPE | {"partial_rotary_factor": 0.25}),
    "stablelm-parallel": _case(
        "StableLmForCausalLM", use_parallel_residual=True, qk_layernorm=True, layer_norm_eps=1e-5,
        num_attention_heads=3, num_key_value_heads=1, rope=_ROPE | {"partial_rotary_factor": 0.5},
    ),
    "starcoder2": _case("Starcoder2ForCausalLM", hidden_act="gelu_pytorch_tanh", norm_epsilon=1e-5, use_bias=True,
                        sliding_window=13, tie_word_embeddings=True),
    "cohere2": _case(
        "Cohere2ForCausalLM", head_dim=8, layer_norm_eps=1e-5, logit_scale=0.5, num_hidden_layers=4, sliding_window=9,
        layer_types=[_SLIDE, _SLIDE, _SLIDE, _FULL], tie_word_embeddings=True,
    ),
    "glm4": _case("Glm4ForCausalLM", head_dim=16, attention_bias=False, rope=_ROPE | {"partial_rotary_factor": 0.5}),
    "ernie4_5": _case("Ernie4_5ForCausalLM", head_dim=16, use_bias=False, tie_word_embeddings=True),
    "exaone4": _case("Exaone4ForCausalLM", head_dim=16, sliding_window=None, sliding_window_pattern=0,
                     layer_types=[_FULL, _FULL]),
    "exaone4-window": _case(
        "Exaone4ForCausalLM", head_dim=8, num_hidden_layers=4, sliding_window=9, sliding_window_pattern="LLLG",
        layer_types=[_SLIDE, _SLIDE, _SLIDE, _FULL],
    ),
    "seed_oss": _case("SeedOssForCausalLM", head_dim=16, attention_bias=True, attention_out_bias=False,
                      residual_dropout=0.0),
    "helium": _case("HeliumForCausalLM", head_dim=8, rope=_ROPE | {"rope_theta": 100000.0}),
    "mixtral": _case("MixtralForCausalLM", num_local_experts=5, num_experts_per_tok=3, sliding_window=None,
                     intermediate_size=24, head_dim=8),
    "qwen2moe": _case(
        "Qwen2MoeForCausalLM", **_MOE, shared_expert_intermediate_size=40, norm_topk_prob=False, mlp_only_layers=[],
        decoder_sparse_step=1, use_sliding_window=False, qkv_bias=True,
    ),
    "qwen3moe": _case("Qwen3MoeForCausalLM", **_MOE, norm_topk_prob=True, head_dim=16, mlp_only_layers=[],
                      decoder_sparse_step=1, use_sliding_window=False),
    "olmoe": _case("OlmoeForCausalLM", num_experts=5, num_experts_per_tok=2, intermediate_size=24, clip_qkv=None,
                   num_key_value_heads=6, norm_topk_prob=False),
    "granitemoe": _granite("GraniteMoeForCausalLM", num_local_experts=5, num_experts_per_tok=2, intermediate_size=24,
                           tie_word_embeddings=True),
    "gpt-oss": _case(
        "GptOssForCausalLM", head_dim=16, num_local_experts=5, num_experts_per_tok=2, intermediate_size=32,
        sliding_window=9, layer_types=[_SLIDE, _FULL], attention_bias=True,
        rope=_YARN | {"rope_theta": 150000.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False},
    ),
    "deepseek2": _case(
        "DeepseekV2ForCausalLM", kv_lora_rank=20, q_lora_rank=28, qk_nope_head_dim=16, qk_rope_head_dim=8,
        v_head_dim=12, head_dim=8, num_key_value_heads=6, first_k_dense_replace=1, n_routed_experts=5,
        n_shared_experts=1,
        num_experts_per_tok=2, moe_intermediate_size=24, norm_topk_prob=False, n_group=1, topk_group=1,
        routed_scaling_factor=1.0, topk_method="greedy", num_hidden_layers=3,
    ),
    # queries of one matrix, experts of the best groups, yarn
    "deepseek2-lite": _case(
        "DeepseekV2ForCausalLM", kv_lora_rank=20, q_lora_rank=None, qk_nope_head_dim=12, qk_rope_head_dim=6,
        v_head_dim=12, head_dim=6, num_key_value_heads=6, first_k_dense_replace=1, n_routed_experts=6,
        n_shared_experts=2, num_experts_per_tok=2, moe_intermediate_size=24, norm_topk_prob=False, n_group=3,
        topk_group=2, routed_scaling_factor=2.0, topk_method="group_limited_greedy", num_hidden_layers=3,
        rope=_YARN | {"mscale": 0.707, "mscale_all_dim": 0.707},
    ),
    # sigmoids, a bias that decides, groups by their two best
    "deepseek3": _case(
        "DeepseekV3ForCausalLM", kv_lora_rank=20, q_lora_rank=28, qk_nope_head_dim=16, qk_rope_head_dim=8,
        v_head_dim=16, head_dim=8, num_key_value_heads=6, first_k_dense_replace=1, n_routed_experts=8,
        n_shared_experts=1, num_experts_per_tok=3, moe_intermediate_size=24, norm_topk_prob=True, n_group=4,
        topk_group=2, routed_scaling_factor=2.5, scoring_func="sigmoid", num_hidden_layers=3,
        rope=_YARN | {"mscale": 1.0, "mscale_all_dim": 0.6},
    ),
    "lfm2-attention": _case(
        "Lfm2ForCausalLM", norm_eps=1e-5, conv_L_cache=4, conv_bias=False, block_auto_adjust_ff_dim=True,
        block_ffn_dim_multiplier=1.5, block_multiple_of=16, num_hidden_layers=4,
        layer_types=[_FULL, "conv", "conv", _FULL], tie_word_embeddings=True, rope=_ROPE | {"rope_theta": 1e6},
    ),
    "lfm2": _case(
        "Lfm2ForCausalLM", norm_eps=1e-5, conv_L_cache=3, conv_bias=False, block_auto_adjust_ff_dim=False,
        block_ffn_dim_multiplier=1.0, block_multiple_of=256, num_hidden_layers=3, layer_types=["conv", _FULL, "conv"],
        tie_word_embeddings=True, rope=_ROPE | {"rope_theta": 1e6},
    ),
}  # fmt: skip


def _numbers(name, shape):
    return uniform((SEED, zlib.crc32(name.encode())), shape)


def values(name, shape, case):
    """Return a tensor's values, f32: spreads that keep the variances of a layer near 1, norms around 1."""
    u, gemma = _numbers(name, shape), CASES[case]["architectures"][0].startswith("Gemma")
    if name.endswith(("bias", "sinks")):
        u = u / 2
    elif len(shape) == 1:
        u = u / 2 if gemma else 1 + u / 2
    else:
        turned = case.startswith("gpt-oss") and len(shape) == 3
        n_in = shape[-2] if turned else shape[-1]
        wide = 2.0 if name.endswith(("mlp.gate.weight", "router.weight", "router.layer.weight")) else 1.0
        u = u * np.sqrt(3 / n_in) * wide
    return u.astype(np.float32)


def tensors(case, shapes):
    """Return {name: f32 array} of a Hugging Face model whose tensors have these shapes."""
    return {name: values(name, tuple(shape), case) for name, shape in shapes.items()}


def adapter(shapes):
    """Return {name: f32 array} of a LoRA adapter's tensors; B is not zero, so that every gradient flows."""
    found = {}
    for name, shape in shapes.items():
        spread = np.sqrt(3 / shape[-1]) * (0.25 if ".lora_B." in name else 1)
        found[name] = (_numbers(name, tuple(shape)) * spread).astype(np.float32)
    return found


def write_folder(path, case, shapes):
    """Write the model as a Hugging Face folder."""
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(CASES[case]))
    (path / "tokenizer.json").write_text(json.dumps(hf.tokenizer_json(N_VOCAB)))
    (path / "model.safetensors").write_bytes(hf.safetensors(tensors(case, shapes)))


def write_adapter(path, shapes, rank, alpha, targets):
    """Write the adapter as PEFT's folder."""
    path.mkdir(parents=True)
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": alpha, "target_modules": targets, "task_type": "CAUSAL_LM"}
    if any(".experts.base_layer." in name for name in shapes):  # gate_proj and up_proj are one parameter of experts
        config |= {"rank_pattern": {r".*\.gate_up_proj": 2 * rank}, "alpha_pattern": {r".*\.gate_up_proj": 2 * alpha}}
        config["target_parameters"] = ["gate_up_proj", "down_proj"]
    (path / "adapter_config.json").write_text(json.dumps(config))
    (path / "adapter_model.safetensors").write_bytes(hf.safetensors(adapter(shapes)))


def rows(n, length, seed=0):
    """Return n lists of `length` random ids."""
    found = (_numbers(f"ids {seed}", (n, length)) + 1) / 2
    return (3 + np.floor(found * (N_VOCAB - 3))).astype(int).tolist()
