"""Families whose parts are not all computed: the one line that says which, and lists those that run."""

import re

import numpy as np
import pytest

from llamacy.errors import LlamacyError
from llamacy.formats import architectures
from llamacy.formats.architectures import ARCHITECTURES, MISSING, running
from llamacy.formats.gguf_writer import write_gguf
from llamacy.formats.types import by_name
from llamacy.model import load_model


def test_what_a_family_needs_is_named_and_those_that_run_are_listed(tmp_path, monkeypatch):
    """By a row of its own: which of the real ones wait changes."""
    row = architectures.Architecture(needs=("half built", "llama's", "unbuilt"))
    monkeypatch.setitem(ARCHITECTURES, "waiting", row)
    monkeypatch.setitem(MISSING, "half built", "its left half")
    monkeypatch.setitem(MISSING, "unbuilt", "its right half")
    embedding = np.zeros((4, 32), np.float32)
    write_gguf(
        tmp_path / "m.gguf",
        {"general.architecture": "waiting"},
        [("token_embd.weight", by_name("F32"), embedding.shape, embedding)],
    )
    with pytest.raises(LlamacyError) as caught:
        load_model(tmp_path / "m.gguf")
    families = re.fullmatch(
        r".*m\.gguf: architecture 'waiting' needs its left half, its right half, which cannot be computed here yet; "
        r"families that run: (.*)",
        str(caught.value),
    )
    assert families and families[1].split(", ") == running() and "waiting" not in running()
    assert {"llama", "qwen2", "smollm3"} <= set(running())


def test_every_part_that_is_missing_is_needed_by_a_family():
    """A row of MISSING that nobody needs is a part that was built and forgotten here."""
    assert set(MISSING) <= {part for row in ARCHITECTURES.values() for part in row.needs}
