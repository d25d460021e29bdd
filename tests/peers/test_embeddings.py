"""Texts as vectors, against llama.cpp's on the same file: its 8-bit activations leave an angle of some hundredths."""

import numpy as np
import pytest

from llamacy.default_model import default_model
from llamacy.model import load_model
from llamacy.server.embeddings import POOLINGS, normalised

llama_cpp = pytest.importorskip("llama_cpp")

TEXTS = ["The cat sits on the mat.", "Interest rates rose by two percent.", "Wie spät ist es? 日本"]


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_pooled_hidden_states_are_llama_cpps(pooling):
    kind = getattr(llama_cpp, f"LLAMA_POOLING_TYPE_{pooling.upper()}")
    peer = llama_cpp.Llama(default_model(), embedding=True, pooling_type=kind, n_ctx=128, n_threads=1, verbose=False)
    model = load_model(default_model(), threads=1)
    for text in TEXTS:
        ids = model.tokenizer.encode(text)
        assert ids == peer.tokenize(text.encode())
        at = np.arange(len(ids))
        ours = normalised(POOLINGS[pooling](model.new_session(1, 64).step(ids, at, 0 * at, at, hidden=True)), 2)
        theirs = normalised(peer.create_embedding(text)["data"][0]["embedding"], 2)
        assert ours @ theirs > 0.999
