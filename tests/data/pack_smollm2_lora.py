"""Make golden/smollm2_lora.npz small: `python tests/data/pack_smollm2_lora.py init.gguf final.gguf` (9.8 MB each).

The first A need no room: tests/model/golden.py draws them as torch did, bit for bit. What 12 steps of training added
to A and made of B = 0 are whole numbers up to 2047 with a step per matrix, low and high bytes apart (they compress
better).
That moves no recorded log-probability by more than 0.00007; the tests allow 0.0001 in all.
"""

import sys
from pathlib import Path

import numpy as np

GOLDEN = Path(__file__).resolve().parent / "golden"
sys.path.insert(0, str(GOLDEN.parents[2]))

from llamacy.formats.adapter import load_adapter  # noqa: E402  found through the line above
from tests.model.golden import first_a  # noqa: E402

LEVELS = 2047


def main(init, final):
    """Write the file; AssertionError if torch's generator was not the one that golden.first_a knows."""
    drawn, last = first_a(), load_adapter(final).pairs
    for name, pair in load_adapter(init).pairs.items():
        assert np.array_equal(drawn[name], pair.a) and not pair.b.any(), name
    arrays = {"names": np.array(list(drawn))}
    for part, values in (
        ("a", [last[name].a - a for name, a in drawn.items()]),
        ("b", [last[name].b for name in drawn]),
    ):
        steps = [np.float32(np.abs(x).max() / LEVELS) for x in values]
        codes = np.concatenate([np.rint(x / step).ravel() for x, step in zip(values, steps, strict=True)])
        codes = codes.astype(np.int16)
        arrays |= {f"{part}_steps": np.array(steps), f"{part}_low": codes.astype(np.uint8)}
        arrays[f"{part}_high"] = (codes >> 8).astype(np.int8)
    np.savez_compressed(GOLDEN / "smollm2_lora.npz", **arrays)


if __name__ == "__main__":
    main(*sys.argv[1:])
