"""Toy models of other families and what transformers said of them; see tests/data/README.md."""

import json
from functools import cache
from pathlib import Path

import numpy as np

from llamacy.formats.adapter import load_adapter
from llamacy.formats.model_file import open_model
from llamacy.model import load_model

DATA = Path(__file__).resolve().parents[1] / "data" / "families"
FAMILIES = sorted(path.name for path in DATA.iterdir() if path.is_dir())


@cache
def expected(family):
    """The recorded numbers."""
    return json.loads((DATA / family / "expected.json").read_text())


def model(family, activations="f32", threads=2):
    """A family's model, loaded anew."""
    return load_model(DATA / family / "model.gguf", activations=activations, threads=threads)


def adapter(family, which):
    """PEFT's adapter: "init" before the recorded training steps, "final" after them."""
    return load_adapter(DATA / family / f"adapter_{which}")


def tensors_of(family):
    """The model's tensors, {GGUF name: float32 array}."""
    with open_model(DATA / family / "model.gguf") as file:
        flat = {name: np.array(file.data(name)).view(np.float32) for name in file.tensors}
        return {name: values.reshape(file.tensors[name].shape) for name, values in flat.items()}


def logits_of(opened, tokens):
    """Logits (T, V) of one sequence at once, float64."""
    n = np.arange(len(tokens))
    return opened.new_session(1, 128).step(tokens, n, np.zeros(len(n), int), n).astype(np.float64)


def mean_nll(logits, tokens):
    """The mean of -log p(token i + 1 | tokens up to i)."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return -log_p[np.arange(len(tokens) - 1), tokens[1:]].mean()
