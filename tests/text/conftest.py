"""The recorded vocabularies, and the default model's where it has been fetched."""

import lzma
from functools import cache, lru_cache
from pathlib import Path

import pytest

from llamacy.formats.model_file import open_model
from llamacy.text.tokenizer import Tokenizer

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "tests" / "data"
MODEL = ROOT / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="session")
def data():
    """The folder of recorded files; the README in each says where they come from."""
    return DATA


@pytest.fixture(scope="session")
def vocabulary_file(tmp_path_factory):
    """A function from the name of a recorded vocabulary to its file, unpacked."""
    folder = tmp_path_factory.mktemp("vocabularies")

    @cache
    def unpack(name):
        target = folder / f"{name}.gguf"
        target.write_bytes(lzma.decompress((DATA / "tokenizers" / f"{name}.gguf.xz").read_bytes()))
        return target

    return unpack


@pytest.fixture(scope="session")
def recorded(vocabulary_file):
    """A function from the name of a recorded vocabulary to its Tokenizer."""
    return lru_cache(maxsize=None)(lambda name: Tokenizer.from_metadata(open_model(vocabulary_file(name)).metadata))


@pytest.fixture(scope="session")
def smollm2_metadata():
    """The default model's metadata; skips where `make` has not fetched it."""
    if not MODEL.exists():
        pytest.skip(f"{MODEL} is not there: run make")
    return open_model(MODEL).metadata
