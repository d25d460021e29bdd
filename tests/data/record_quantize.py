"""Record llama.cpp's errors of quantising: `bench/.venv/bin/python tests/data/record_quantize.py`.

Writes quantize_errors.json: for each type, sample and weighting the weighted sum of squared errors over that of the
squares, of what ggml_quantize_chunk of llama-cpp-python 0.3.36 makes of `samples()`.
"""

import ctypes
import json
import sys
from pathlib import Path

import gguf
import numpy as np

HERE = Path(__file__).resolve().parent
TYPES = ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS"]
# With an importance these types are searched for, too.
BY_IMPORTANCE = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", *TYPES]


def samples():
    """Return {name: float32 (64, 512)} and the importance of the columns, float32 (512,)."""
    rng = np.random.default_rng(17)
    rows = {
        "normal": rng.normal(size=(64, 512)),
        "heavy tails": rng.standard_t(4, (64, 512)),
        "one-sided": np.abs(rng.normal(size=(64, 512))) - 0.3,
        "outliers": rng.normal(size=(64, 512)) * np.where(rng.random((64, 512)) < 0.01, 10, 1),
    }
    importance = rng.lognormal(0, 1.5, 512).astype(np.float32)
    return {name: (0.02 * x).astype(np.float32) for name, x in rows.items()}, importance


def errors(x, y, importance=None):
    """Return the relative squared errors of y: each alike, by |x| + rms, and by importance where there is one."""
    size = np.abs(x) + np.sqrt(np.mean(np.square(x)))
    weights = {"plain": np.ones_like(x), "by size": size} if importance is None else {"by importance": importance}
    squares, wrong = np.square(x, dtype=np.float64), np.square(y.astype(np.float64) - x)
    return {name: float(f"{(w * wrong).sum() / (w * squares).sum():.4g}") for name, w in weights.items()}


def ggml_rows(ggml, name, x, importance=None):
    """Return the rows of blocks that ggml makes of x, uint8."""
    number = int(gguf.GGMLQuantizationType[name])
    block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(number)]
    out = np.empty((len(x), x.shape[1] // block * size), np.uint8)
    costs = importance.ctypes.data_as(ctypes.POINTER(ctypes.c_float)) if importance is not None else None
    ggml.ggml_quantize_chunk(
        ctypes.c_int(number),
        x.ctypes.data_as(ctypes.POINTER(ctypes.c_float)),
        out.ctypes.data_as(ctypes.c_void_p),
        *(ctypes.c_int64(n) for n in (0, *x.shape)),
        costs,
    )
    return out


def main():
    import llama_cpp

    ggml = ctypes.CDLL(str(next((Path(llama_cpp.__file__).parent / "lib").glob("libggml-base.so"))))
    rows, importance = samples()
    record = {}
    for name in BY_IMPORTANCE:
        for weights in (None, importance) if name in TYPES else (importance,):
            for sample, x in rows.items():
                blocks = ggml_rows(ggml, name, x, weights)
                found = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[name])
                record.setdefault(name, {}).setdefault(sample, {}).update(errors(x, found, weights))
    (HERE / "quantize_errors.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
