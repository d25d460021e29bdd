"""Record rotary frequencies in ropes.json: `python tests/data/record_ropes.py`, where there are transformers and torch.

Each case: a configuration's `rope_parameters`, the length of a text (null where it does not matter), and what
transformers makes of both for heads of 16 elements and a trained length of 256.
"""

import json
from pathlib import Path

from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

LLAMA_3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
LONGROPE = {
    "original_max_position_embeddings": 64,
    "short_factor": [1 + 0.1 * i for i in range(8)],
    "long_factor": [2 + 0.5 * i for i in range(8)],
}
CASES = {
    "linear": ("linear", {"factor": 4.0}, None),
    "llama3": ("llama3", {"factor": 8.0, **LLAMA_3}, None),
    "dynamic, short": ("dynamic", {"factor": 2.0}, 200),
    "dynamic, long": ("dynamic", {"factor": 2.0}, 700),
    "yarn": ("yarn", {"factor": 4.0, "original_max_position_embeddings": 64}, None),
    "yarn, not truncated": (
        "yarn",
        {"factor": 32.0, "original_max_position_embeddings": 4096, "truncate": False, "rope_theta": 150000.0},
        None,
    ),
    "yarn, narrow range": (
        "yarn",
        {"factor": 8.0, "original_max_position_embeddings": 128, "beta_fast": 2.0, "beta_slow": 1.5},
        None,
    ),
    "yarn, its own factor": (
        "yarn",
        {"factor": 4.0, "original_max_position_embeddings": 64, "attention_factor": 1.3},
        None,
    ),
    "yarn, mscale": (
        "yarn",
        {"factor": 40.0, "original_max_position_embeddings": 4096, "mscale": 1.0, "mscale_all_dim": 0.7},
        None,
    ),
    "yarn, part of a head": (
        "yarn",
        {"factor": 4.0, "original_max_position_embeddings": 512, "partial_rotary_factor": 0.75},
        None,
    ),
    "longrope, short": ("longrope", LONGROPE, 64),
    "longrope, long": ("longrope", LONGROPE, 65),
}


def recorded(kind, settings, length):
    """Return one case with transformers' numbers."""
    settings = {"rope_theta": 10000.0, "rope_type": kind} | settings
    config = LlamaConfig(
        hidden_size=64, num_attention_heads=4, head_dim=16, max_position_embeddings=256, rope_parameters=settings
    )
    frequencies, factor = ROPE_INIT_FUNCTIONS[kind](config, None, length)
    return {
        "rope_parameters": settings,
        "seq_len": length,
        "inv_freq": [float(f"{x:.9g}") for x in frequencies.double().tolist()],
        "attention_factor": float(factor),
    }


if __name__ == "__main__":
    lines = [f" {json.dumps(name)}: {json.dumps(recorded(*case))}" for name, case in CASES.items()]
    Path(__file__).with_name("ropes.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")
