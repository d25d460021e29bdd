"""A small llama with rows that blocks of 256 divide: zeros beside its numbers, which change nothing that it says.

Of every 256 channels of the residual, and of the heads' outputs, 192 are the model's own and 64 are zero. Groups of 16
and 32 are either: quantising the padded model costs what quantising the model itself would, if its rows had K types.
"""

import numpy as np

from llamacy import kernels
from llamacy.formats.gguf_writer import write_gguf
from llamacy.formats.model_file import open_model
from llamacy.formats.types import by_name

OWN, BLOCK = 192, 256


def places(n):
    """Where n channels, a multiple of OWN, lie among the padded ones."""
    return np.concatenate([np.arange(start, start + OWN) for start in range(0, n // OWN * BLOCK, BLOCK)])


def spread(values, axis):
    """values with zeros among the entries of one axis."""
    shape = list(values.shape)
    shape[axis] = shape[axis] // OWN * BLOCK
    out = np.zeros(shape, np.float32)
    out[(slice(None),) * axis + (places(values.shape[axis]),)] = values
    return out


def write_padded(source, target):
    """Write the llama at `source` (n_embd 576, heads of 64 in threes) padded, in F16."""
    tensors = []
    with open_model(source) as model:
        metadata = dict(model.metadata)
        for name, info in model.tensors.items():
            rows = np.ascontiguousarray(model.data(name)).view(np.uint8).reshape(info.shape[0], -1)
            if len(info.shape) == 1:
                values = kernels.quants.dequantize(rows.reshape(1, -1), info.type.number)[0]
                # the mean of squares is over more channels
                values, kind = spread(values, 0) * np.float32(np.sqrt(OWN / BLOCK)), "F32"
            else:
                values, kind = kernels.quants.dequantize(rows, info.type.number), "F16"
                # a fourth query head beside every three of a KV head
                out = any(part in name for part in ("attn_q.", "attn_output.", "ffn_down."))
                values = spread(values, 0) if out else values
                values = (values if "ffn_down." in name else spread(values, 1)).astype(np.float16)
            tensors.append((name, by_name(kind), values.shape, values))
    metadata["llama.embedding_length"] = metadata["llama.embedding_length"] // OWN * BLOCK
    metadata["llama.attention.head_count"] = metadata["llama.attention.head_count"] // 3 * 4
    metadata["llama.attention.layer_norm_rms_epsilon"] *= OWN / BLOCK
    metadata["general.file_type"] = 1
    write_gguf(target, metadata, tensors)
