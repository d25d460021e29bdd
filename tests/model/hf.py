"""A llama as Hugging Face keeps it, put together by hand: config.json, safetensors of any dtype, a tokenizer.json."""

import json
import struct

import numpy as np

from llamacy.kernels.reference import quants

LAYER = {
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj", "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
}  # fmt: skip
TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


def hf_name(name):
    """blk.0.attn_q.weight -> model.layers.0.self_attn.q_proj.weight."""
    *head, matrix, side = name.split(".")
    return f"model.layers.{head[1]}.{LAYER[matrix]}.{side}" if head else f"{TOP[matrix]}.{side}"


def in_halves(name, values, head_dim):
    """q and k with each head's rows as halves, which GGUF has as neighbours; element by element."""
    if ".attn_q." not in name and ".attn_k." not in name:
        return values
    out = np.empty_like(values)
    for row in range(len(values)):
        head, place = divmod(row, head_dim)
        out[head * head_dim + place // 2 + place % 2 * (head_dim // 2)] = values[row]
    return out


def safetensors(tensors, dtype="F32"):
    """The bytes of a safetensors file of {name: array} as F32, F16, BF16 or whatever else `dtype` calls 4-byte data."""
    header, data = {"__metadata__": {"format": "pt"}}, b""
    for name, values in tensors.items():
        kind = dtype if dtype in ("F16", "BF16") else "F32"
        raw = quants.quantize(kind, np.atleast_2d(values)).tobytes()
        place = [len(data), len(data) + len(raw)]
        header[name] = {"dtype": dtype, "shape": list(values.shape), "data_offsets": place}
        data += raw
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    return struct.pack("<Q", len(raw)) + raw + data


def config_json(config, **change):
    """config.json of a twin's Config."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": config.n_embd,
        "intermediate_size": config.n_ff,
        "num_hidden_layers": config.n_layer,
        "num_attention_heads": config.n_head,
        "num_key_value_heads": config.n_head_kv,
        "max_position_embeddings": 256,
        "rms_norm_eps": config.rms_eps,
        "rope_theta": config.rope_theta,
        "hidden_act": "silu",
        "vocab_size": config.n_vocab,
        "tie_word_embeddings": False,
    } | change


def tokenizer_json(n_vocab):
    """A byte-level tokenizer of n_vocab single characters."""
    return {
        "model": {"type": "BPE", "vocab": {chr(0x100 + i): i for i in range(n_vocab)}, "merges": []},
        "pre_tokenizer": {"type": "ByteLevel"},
        "added_tokens": [],
    }


def write_folder(path, config, weights, dtype="F32", shards=1, **change):
    """Write `weights` (GGUF's names and order of rows) as a folder of one or several files."""
    path.mkdir(exist_ok=True)
    tensors = {hf_name(name): in_halves(name, values, config.head_dim) for name, values in weights.items()}
    (path / "config.json").write_text(json.dumps(config_json(config, **change)))
    (path / "tokenizer.json").write_text(json.dumps(tokenizer_json(config.n_vocab)))
    if shards == 1:
        (path / "model.safetensors").write_bytes(safetensors(tensors, dtype))
        return tensors
    weight_map = {}
    for i in range(shards):
        part = dict(list(tensors.items())[i::shards])
        name = f"model-{i + 1:05}-of-{shards:05}.safetensors"
        (path / name).write_bytes(safetensors(part, dtype))
        weight_map |= dict.fromkeys(part, name)
    (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return tensors
