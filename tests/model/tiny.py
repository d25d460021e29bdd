"""Small llamas: random weights as a GGUF file of any types, and what the float64 twin says of the same file."""

import struct

import numpy as np

from llamacy import kernels
from llamacy.formats import types
from llamacy.formats.gguf_writer import write_gguf
from llamacy.kernels.reference import model as twin
from llamacy.kernels.reference import quants

# whole blocks of 32, so that every type can hold every matrix
CONFIG = twin.Config(n_vocab=97, n_embd=64, n_head=4, n_head_kv=2, n_ff=96, n_layer=2)
NORMAL, UNKNOWN, CONTROL = 1, 2, 3


def metadata(config):
    """Return the GGUF metadata of a twin's Config, with a vocabulary of single pieces."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<{i}>" for i in range(3, config.n_vocab))]
    values = {
        "general.architecture": "llama",
        "general.name": "tiny",
        "llama.embedding_length": config.n_embd,
        "llama.attention.head_count": config.n_head,
        "llama.attention.head_count_kv": config.n_head_kv,
        "llama.feed_forward_length": config.n_ff,
        "llama.block_count": config.n_layer,
        "llama.context_length": 256,
        "llama.attention.layer_norm_rms_epsilon": config.rms_eps,
        "llama.rope.freq_base": config.rope_theta,
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [0.0] * config.n_vocab,
        "tokenizer.ggml.token_type": [UNKNOWN, CONTROL, CONTROL] + [NORMAL] * (config.n_vocab - 3),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }
    if config.n_expert:
        values |= {
            "llama.expert_count": config.n_expert,
            "llama.expert_used_count": config.n_used,
            "llama.expert_feed_forward_length": config.n_ff_expert,
            "llama.expert_weights_norm": config.renormalised,
            "llama.expert_weights_scale": config.expert_scale,
            "llama.expert_gating_func": 2 if config.scores == "sigmoid" else 1,
        }
    if config.rope_scale != 1:
        values |= {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": config.rope_scale}
    return values


def write_llama(path, config, weights, type_name="F32", *, change=None, leave_out=()):
    """Write `weights` ({name: array}) with matrices as `type_name` (a name, or name -> name); return them dequantised.

    change: metadata to set, None to take a key out. leave_out: tensors not to write.
    """
    kind_of = type_name if callable(type_name) else lambda name: type_name
    if config.rope_factors is not None:
        weights = weights | {"rope_freqs.weight": np.array(config.rope_factors)}
    tensors, exact = [], {}
    for name, values in weights.items():
        kind = kind_of(name) if values.ndim >= 2 and not name.endswith(".bias") else "F32"
        rows = quants.quantize(kind, values.reshape(-1, values.shape[-1]))
        exact[name] = quants.dequantize(kind, rows, np.float64).reshape(values.shape)
        if name not in leave_out:
            tensors.append((name, types.by_name(kind), values.shape, rows))
    values = metadata(config) | (change or {})
    write_gguf(path, {key: value for key, value in values.items() if value is not None}, tensors)
    return exact


def write_imatrix(path, entries, without=()):
    """Write {name: (sums (n, k), counts (n,))} as llama.cpp's imatrix does."""
    tensors = []
    for name, (sums, counts) in entries.items():
        tensors.append((f"{name}.in_sum2", types.by_name("F32"), np.shape(sums), np.array(sums, np.float32)))
        tensors.append((f"{name}.counts", types.by_name("F32"), (len(counts), 1), np.array(counts, np.float32)))
    tensors = [entry for entry in tensors if entry[0] not in without]
    write_gguf(path, {"general.type": "imatrix", "imatrix.chunk_count": 2, "imatrix.chunk_size": 512}, tensors)
    return path


def use_isa(monkeypatch, isa):
    """Let models be made and run with one instruction set until the test ends."""
    for name in ("quants", "finite", "matmul", "weights", "decoder", "trainstep", "adamw"):
        monkeypatch.setattr(kernels, name, kernels.load(name, isa), raising=False)


def tokens_of(config, n, seed=3):
    """Return n random ids."""
    return np.random.default_rng(seed).integers(0, config.n_vocab, n)


def logits_of(model, tokens, n_ctx=256, **how):
    """Return the logits (T, V) of one sequence, all at once."""
    n = np.arange(len(tokens))
    return model.new_session(1, n_ctx).step(tokens, n, np.zeros(len(n), int), n, **how)


def write_dat(path, entries, dataset=None, chunks=0):
    """Write {name: (calls, values)} as llama.cpp's imatrix did before 2025; without `dataset` as before 2024."""
    data = [struct.pack("<i", len(entries))]
    for name, (calls, values) in entries.items():
        data.append(
            struct.pack(f"<i{len(name)}s2i{len(values)}f", len(name), name.encode(), calls, len(values), *values)
        )
    if dataset is not None:
        data.append(struct.pack(f"<2i{len(dataset)}s", chunks, len(dataset), dataset.encode()))
    path.write_bytes(b"".join(data))
    return path
