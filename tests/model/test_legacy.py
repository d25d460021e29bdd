"""A ggjt v3 file of August 2023: the text and the perplexity that llama.cpp got from it then."""

import numpy as np
import pytest

from llamacy.model import load_model
from tests.model import golden

FILE = golden.DATA / "tiny.ggmlv3.q4_0.bin"
GREEDY = " may add to the\n    c) Convey individual copies of the\n    c) Convey individual copies of the"


@pytest.mark.parametrize("activations", ["f32", "int8"])
def test_greedy_text(activations):
    model = load_model(FILE, activations=activations, threads=2)
    # its own tools put a space before a prompt, and so does the vocabulary's rule
    ids = model.tokenizer.encode("This License grants you")
    session, n_prompt, text = model.new_session(1, 128), len(ids), ""
    logits = session.step(ids, np.arange(n_prompt), np.zeros(n_prompt, int), [n_prompt - 1])
    while len(text) < len(GREEDY):
        ids.append(int(logits[0].argmax()))
        text = model.tokenizer.decode(ids[n_prompt:])
        logits = session.step(ids[-1:], [len(ids) - 1], [0], [0])
    # token 0 begins " This": the decoder may leave out the space before the first word of what it is given
    assert text.lstrip() == GREEDY.lstrip()


@pytest.mark.parametrize(("activations", "share"), [("f32", 0.0005), ("int8", 0.005)])
def test_perplexity(activations, share):
    # 419.55 is in exact arithmetic with epsilon 5e-6: windows of 128, BOS first in each, their second half scored
    model = load_model(FILE, activations=activations, threads=2, rms_eps=5e-6)
    text = (golden.GOLDEN / "gpl3.txt").read_bytes()[:6000].decode()
    ids, total, n = model.tokenizer.encode(text), 0.0, 0
    half = np.arange(64, 127)
    for start in range(0, len(ids) - 127, 128):
        window = np.array(ids[start : start + 128])
        inputs = np.r_[model.tokenizer.bos_id, window[1:]]
        logits = model.new_session(1, 128).step(inputs, np.arange(128), np.zeros(128, int), half)
        total -= golden.log_softmax(logits)[np.arange(63), window[half + 1]].sum()
        n += 63
    assert np.exp(total / n) == pytest.approx(419.55, rel=share)
