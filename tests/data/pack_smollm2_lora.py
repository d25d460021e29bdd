"""Make golden/smollm2_lora.npz small: `python tests/data/pack_smollm2_lora.py init.gguf final.gguf` (9.8 MB each).

For every matrix: `.a` the first A in f16; `.da` and `.b`, int8 with a step per row, what 12 steps of training added to
A and made of B = 0. Rounding them moves no recorded log-probability by more than 0.0009; the tests allow 0.003.
"""

import sys
from pathlib import Path

import numpy as np

GOLDEN = Path(__file__).resolve().parent / "golden"
sys.path.insert(0, str(GOLDEN.parents[2]))

from llamacy.formats.adapter import load_adapter  # noqa: E402  found through the line above


def rounded(x):
    """Return x (rows, n) as int8 codes and their steps f32 (rows, 1)."""
    step = np.abs(x).max(axis=1, keepdims=True) / 127
    return np.rint(x / step).astype(np.int8), step.astype(np.float32)


def main(init, final):
    """Write the file."""
    first, last = load_adapter(init).pairs, load_adapter(final).pairs
    arrays = {"names": np.array(list(first))}
    for name, pair in first.items():
        arrays[f"{name}.a"] = pair.a.astype(np.float16)
        arrays[f"{name}.da"], arrays[f"{name}.da_step"] = rounded(last[name].a - arrays[f"{name}.a"])
        arrays[f"{name}.b"], arrays[f"{name}.b_step"] = rounded(last[name].b)
    np.savez_compressed(GOLDEN / "smollm2_lora.npz", **arrays)


if __name__ == "__main__":
    main(*sys.argv[1:])
