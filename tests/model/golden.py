"""The default model and what other programs said of it; see tests/data/README.md."""

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from llamacy.formats.lora import Adapter, LoraPair
from llamacy.model import load_model

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "tests" / "data"
GOLDEN = DATA / "golden"
MODEL = ROOT / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
ALPHA, RANK = 16.0, 8

needs_model = pytest.mark.skipif(not MODEL.exists(), reason=f"{MODEL} is not there: run make")


@cache
def model(activations, threads=2):
    """The default model, loaded once; a test that adds adapters gives them the scale 0 when it ends."""
    return load_model(MODEL, activations=activations, threads=threads)


@cache
def recorded(name):
    """The content of a JSON file."""
    return json.loads((GOLDEN / name).read_text())


def log_softmax(logits):
    """Of the last axis, in float64."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


# The matrices of a layer in PEFT's order: (name, n_in, n_out).
LAYER = (
    ("attn_q", 576, 576),
    ("attn_k", 576, 192),
    ("attn_v", 576, 192),
    ("attn_output", 576, 576),
    ("ffn_gate", 576, 1536),
    ("ffn_up", 576, 1536),
    ("ffn_down", 1536, 576),
)
N_LAYER = 30


def first_a():
    """PEFT's A as torch.manual_seed(0) makes them, f32 bit for bit, by tensor name in the order of the model.

    torch draws 24 bits of the same Mersenne twister as NumPy for each number, and thrice for a pair: A and B when their
    layers are made, A again when PEFT initialises it.
    """
    random, found = np.random.RandomState(0), {}

    def draw(n):
        return np.frombuffer(random.bytes(4 * n), "<u4") & 0xFFFFFF

    for layer in range(N_LAYER):
        for name, n_in, n_out in LAYER:
            draw(RANK * (n_in + n_out))
            bound = np.float32(1 / np.sqrt(n_in))
            numbers = draw(RANK * n_in) * 2.0**-24 * np.float64(2 * bound) - np.float64(bound)
            found[f"blk.{layer}.{name}.weight"] = numbers.astype(np.float32).reshape(RANK, n_in)
    return found


def stored_adapter(which):
    """PEFT's adapter before ("init", B = 0) or after ("final") its 12 steps, from smollm2_lora.npz."""
    first, shapes = first_a(), [(n_out, RANK) for _, _, n_out in LAYER] * N_LAYER
    b = [np.zeros(shape, np.float32) for shape in shapes]
    a = list(first.values())
    if which == "final":
        with np.load(GOLDEN / "smollm2_lora.npz") as file:
            assert file["names"].tolist() == list(first)
            a = [x + added for x, added in zip(a, _unpacked(file, "a", [x.shape for x in a]), strict=True)]
            b = _unpacked(file, "b", shapes)
    pairs = {name: LoraPair(*pair, ALPHA / RANK) for name, *pair in zip(first, a, b, strict=True)}
    return Adapter("llama", pairs, ALPHA)


def _unpacked(file, part, shapes):
    codes = (file[f"{part}_high"].astype(np.int16) << 8) + file[f"{part}_low"]
    pieces = np.split(codes, np.cumsum([rows * columns for rows, columns in shapes])[:-1])
    steps = file[f"{part}_steps"]
    return [piece.reshape(shape) * step for piece, shape, step in zip(pieces, shapes, steps, strict=True)]
