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


def stored_adapter(which):
    """PEFT's adapter before ("init", B = 0) or after ("final") its 12 steps, from smollm2_lora.npz."""
    pairs = {}
    with np.load(GOLDEN / "smollm2_lora.npz") as file:
        for name in file["names"]:
            a, b = file[f"{name}.a"].astype(np.float32), np.zeros((len(file[f"{name}.b"]), RANK), np.float32)
            if which == "final":
                a = a + file[f"{name}.da"] * file[f"{name}.da_step"].astype(np.float32)
                b = file[f"{name}.b"] * file[f"{name}.b_step"].astype(np.float32)
            pairs[str(name)] = LoraPair(a, b, ALPHA / RANK)
    return Adapter("llama", pairs, ALPHA)
