"""The model that is used where none is named: its file's name, and where it is looked for."""

import os
from pathlib import Path

import llamacy
from llamacy.errors import LlamacyError

MODEL_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"


class NoDefaultModel(LlamacyError):
    """The default model is not there."""


def places():
    """Return where it may be, the best first: the project's models/, and the user's cache folder."""
    root = Path(llamacy.__file__).resolve().parent.parent
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "models" / MODEL_NAME, cache / "llamacy" / MODEL_NAME


def fetch_target():
    """Return where it is fetched to: in a clone its models/, installed without one the user's cache folder."""
    here, cache = places()
    return here if (here.parent.parent / "pyx").is_dir() else cache


def default_model():
    """Return the path of the default model; NoDefaultModel, a LlamacyError, where it is in no place."""
    here, cache = places()
    for path in (here, cache):
        if path.is_file():
            return str(path)
    raise NoDefaultModel(
        f"the default model is neither at {here} nor at {cache}: llamacy-fetch (in a clone ./bin/fetch) fetches it; "
        "or name a model with -m FILE"
    )
