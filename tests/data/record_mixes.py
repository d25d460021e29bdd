"""Record which types llama.cpp's quantiser chooses: `bench/.venv/bin/python tests/data/record_mixes.py`.

Writes mixes.json: for small models of zeros (many layers, heads shared or not, an output matrix or none, rows that do
not divide into 256) and each mix, the types that llama_model_quantize of llama-cpp-python 0.3.36 wrote: a letter for
each tensor, in the order of `shapes_of`.
"""

import ctypes
import json
import sys
import tempfile
from pathlib import Path
from string import ascii_letters

import gguf
import numpy as np

HERE = Path(__file__).resolve().parent
FILE_TYPES = {
    "F16": 1, "BF16": 32, "Q4_0": 2, "Q4_1": 3, "Q5_0": 8, "Q5_1": 9, "Q8_0": 7, "Q2_K": 10, "Q3_K_S": 11, "Q3_K_M": 12,
    "Q3_K_L": 13, "Q4_K_S": 14, "Q4_K_M": 15, "Q5_K_S": 16, "Q5_K_M": 17, "Q6_K": 18, "IQ4_NL": 25, "IQ4_XS": 30,
    "TQ1_0": 36, "TQ2_0": 37, "MXFP4_MOE": 38,
}  # fmt: skip
# name -> n_embd, n_ff, n_layer, n_head, n_head_kv, has an output matrix
MODELS = {
    "shared heads": (256, 512, 24, 8, 2, True),
    "own heads, tied": (256, 256, 33, 4, 4, False),
    "rows of 192": (192, 256, 9, 3, 1, False),
    "seventy": (256, 256, 80, 4, 2, True),
}
N_VOCAB = 32


def shapes_of(n_embd, n_ff, n_layer, n_head, n_head_kv, has_output):
    """Return {tensor: shape in NumPy's order} of a llama."""
    n_kv = n_embd // n_head * n_head_kv
    shapes = {"token_embd.weight": (N_VOCAB, n_embd), "output_norm.weight": (n_embd,)}
    if has_output:
        shapes["output.weight"] = (N_VOCAB, n_embd)
    for i in range(n_layer):
        layer = {
            "attn_norm": (n_embd,), "ffn_norm": (n_embd,), "attn_q": (n_embd, n_embd), "attn_k": (n_kv, n_embd),
            "attn_v": (n_kv, n_embd), "attn_output": (n_embd, n_embd), "ffn_gate": (n_ff, n_embd),
            "ffn_up": (n_ff, n_embd), "ffn_down": (n_embd, n_ff),
        }  # fmt: skip
        shapes |= {f"blk.{i}.{name}.weight": shape for name, shape in layer.items()}
    return shapes


def metadata_of(n_embd, n_ff, n_layer, n_head, n_head_kv):
    """Return the metadata that the choice depends on, and what a loader wants besides."""
    return {
        "llama.context_length": 64,
        "llama.embedding_length": n_embd,
        "llama.feed_forward_length": n_ff,
        "llama.block_count": n_layer,
        "llama.attention.head_count": n_head,
        "llama.attention.head_count_kv": n_head_kv,
    }


def write(path, metadata, shapes):
    """Write a model of zeros, matrices in F16."""
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in metadata.items():
        writer.add_uint32(key, value)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([f"<{i}>" for i in range(N_VOCAB)])
    writer.add_token_scores([0.0] * N_VOCAB)
    writer.add_token_types([1] * N_VOCAB)
    for name, shape in shapes.items():
        writer.add_tensor(name, np.zeros(shape, np.float16 if len(shape) > 1 else np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def quantise(source, target, file_type):
    """Let llama.cpp quantise `source` and return {tensor: type's name}."""
    import llama_cpp

    how = llama_cpp.llama_model_quantize_default_params()
    how.ftype, how.nthread = file_type, 1
    assert llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(how)) == 0
    return {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(target).tensors}


def main():
    types, models = [], {}
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "in.gguf"), Path(folder, "out.gguf")
        for case, sizes in MODELS.items():
            shapes, metadata = shapes_of(*sizes), metadata_of(*sizes[:-1])
            write(source, metadata, shapes)
            chosen = {}
            for mix, file_type in FILE_TYPES.items():
                found = quantise(source, target, file_type)
                types += sorted(set(found.values()) - set(types))
                chosen[mix] = "".join(ascii_letters[types.index(found[name])] for name in shapes)
            models[case] = chosen
    record = {"types": dict(zip(ascii_letters, types, strict=False)), "models": models}
    (HERE / "mixes.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
