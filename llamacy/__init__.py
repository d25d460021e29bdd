"""llamacy: fine-tune a quantised language model on a laptop's CPU, talk to the result, serve it.

    import llamacy

    with llamacy.load("model.gguf") as model:
        print(model.generate("Once upon a time", max_tokens=40))
    result = llamacy.finetune("model.gguf", "data.jsonl")
    result.save("adapter.gguf")

What there is, in detail: load and Model, finetune, evaluate, convert, quantize, serve; every failure is a LlamacyError.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # for editors and type checkers; at run time the names come when they are asked for
    from llamacy.errors import LlamacyError
    from llamacy.library.evaluating import Evaluation, evaluate
    from llamacy.library.files import convert, quantize
    from llamacy.library.models import Model, load
    from llamacy.library.results import Completion, Score
    from llamacy.library.serving import serve
    from llamacy.library.training import Finetuned, finetune

__version__ = "0.1.0"

# Where each name comes from: imported when it is first asked for, so that `import llamacy` costs next to nothing.
_HOMES = {
    "load": "llamacy.library.models",
    "Model": "llamacy.library.models",
    "Completion": "llamacy.library.results",
    "Score": "llamacy.library.results",
    "finetune": "llamacy.library.training",
    "Finetuned": "llamacy.library.training",
    "evaluate": "llamacy.library.evaluating",
    "Evaluation": "llamacy.library.evaluating",
    "convert": "llamacy.library.files",
    "quantize": "llamacy.library.files",
    "serve": "llamacy.library.serving",
    "LlamacyError": "llamacy.errors",
}

__all__ = ["Completion", "Evaluation", "Finetuned", "LlamacyError", "Model", "Score", "__version__"]
__all__ += ["convert", "evaluate", "finetune", "load", "quantize", "serve"]


def __getattr__(name):
    if name not in _HOMES:
        raise AttributeError(f"module 'llamacy' has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_HOMES[name]), name)
    return value


def __dir__():
    return sorted({*globals(), *_HOMES})
