"""Write a model of a well-known shape with random weights: `python bench/make_model.py 1.1B Q4_0 OUT.gguf`.

Speed and memory do not depend on what the weights are, so that nothing has to be downloaded to measure large models.
"""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from llamacy.formats.gguf_writer import write_gguf
from llamacy.formats.types import by_name

N_VOCAB = 32000
DEVIATION = 0.02

# name -> n_embd, n_ff, n_layer, n_head, n_head_kv, separate output matrix (SmolLM2-135M, TinyLlama and Llama 2 7B)
SHAPES = {
    "tiny": (64, 192, 2, 4, 2, True),
    "135M": (576, 1536, 30, 9, 3, False),
    "1.1B": (2048, 5632, 22, 32, 4, True),
    "7B": (4096, 11008, 32, 32, 32, True),
}

# type -> standard deviation of its numbers at scale 1, and the bytes of a block before the numbers, from the scale
BLOCKS = {
    "Q4_0": (4.61, lambda d: np.array([d], np.float16).tobytes()),
    "Q4_1": (4.61, lambda d: np.array([d, -7.5 * d], np.float16).tobytes()),
    "Q8_0": (73.9, lambda d: np.array([d], np.float16).tobytes()),
}


def random_matrix(rng, quant_type, shape):
    """Return the bytes of a matrix with mean about 0 and DEVIATION; uint8 (blocks, bytes), or float32 for F32."""
    if quant_type.name == "F32":
        return rng.normal(0, DEVIATION, shape).astype(np.float32)
    deviation, header = BLOCKS[quant_type.name]
    head = np.frombuffer(header(DEVIATION / deviation), np.uint8)
    n_blocks = int(np.prod(shape)) // quant_type.block_size
    data = np.frombuffer(rng.bytes(n_blocks * quant_type.type_size), np.uint8).reshape(n_blocks, -1).copy()
    data[:, : len(head)] = head
    return data


def tensors_of(shape, quant_type, rng):
    """Yield (name, type, shape in NumPy order, data) of a llama model; matrices are made when they are written."""
    n_embd, n_ff, n_layer, n_head, n_head_kv, has_output = SHAPES[shape]
    n_kv = n_embd // n_head * n_head_kv
    matrices = {
        "attn_q": (n_embd, n_embd),
        "attn_k": (n_kv, n_embd),
        "attn_v": (n_kv, n_embd),
        "attn_output": (n_embd, n_embd),
        "ffn_gate": (n_ff, n_embd),
        "ffn_up": (n_ff, n_embd),
        "ffn_down": (n_embd, n_ff),
    }

    def matrix(name, dims):
        return f"{name}.weight", quant_type, dims, lambda: random_matrix(rng, quant_type, dims)

    def norm(name):
        return f"{name}.weight", by_name("F32"), (n_embd,), np.ones(n_embd, np.float32)

    yield matrix("token_embd", (N_VOCAB, n_embd))
    for layer in range(n_layer):
        yield norm(f"blk.{layer}.attn_norm")
        yield norm(f"blk.{layer}.ffn_norm")
        for name, dims in matrices.items():
            yield matrix(f"blk.{layer}.{name}", dims)
    yield norm("output_norm")
    if has_output:
        yield matrix("output", (N_VOCAB, n_embd))


def metadata_of(shape):
    """Return the GGUF metadata: the shape, and a SentencePiece-style vocabulary of specials, bytes, made-up words."""
    n_embd, n_ff, n_layer, n_head, n_head_kv, _ = SHAPES[shape]
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    kinds = [2, 3, 3] + [6] * 256
    words = [f"▁w{i}" for i in range(N_VOCAB - len(pieces))]
    return {
        "general.architecture": "llama",
        "general.name": f"random {shape}",
        "llama.context_length": 8192,
        "llama.embedding_length": n_embd,
        "llama.feed_forward_length": n_ff,
        "llama.block_count": n_layer,
        "llama.attention.head_count": n_head,
        "llama.attention.head_count_kv": n_head_kv,
        "llama.rope.dimension_count": n_embd // n_head,
        "llama.rope.freq_base": 10000.0,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.vocab_size": N_VOCAB,
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": pieces + words,
        "tokenizer.ggml.scores": np.arange(0, -N_VOCAB, -1, np.float32),
        "tokenizer.ggml.token_type": np.array(kinds + [1] * len(words), np.int32),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }


def main(shape, type_name, out):
    if shape not in SHAPES or type_name not in (*BLOCKS, "F32"):
        return f"usage: make_model.py {'|'.join(SHAPES)} {'|'.join(BLOCKS)}|F32 OUT.gguf"
    write_gguf(out, metadata_of(shape), tensors_of(shape, by_name(type_name), np.random.default_rng(1)))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]) if len(sys.argv) == 4 else main("", "", ""))
