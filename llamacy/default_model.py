"""The model that is used where none is named: its file's name, and where it is looked for."""

from pathlib import Path

import llamacy
from llamacy.errors import LlamacyError

MODEL_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"


def default_model():
    """Return the path of the default model: in the project's models/, or installed without it in ~/.cache/llamacy.

    LlamacyError when it is in neither place.
    """
    here = Path(llamacy.__file__).resolve().parent.parent / "models" / MODEL_NAME
    cache = Path.home() / ".cache" / "llamacy" / MODEL_NAME
    for path in (here, cache):
        if path.is_file():
            return str(path)
    raise LlamacyError(
        f"the default model is neither at {here} nor at {cache}: "
        "run `make` in the project's folder, which fetches it, or name a model with -m FILE"
    )
