"""Models and adapters measured beside each other, as `evaluate` does it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from llamacy.errors import UsageError
from llamacy.evaluation.compare import Candidate, Measured, Plan, compare
from llamacy.evaluation.matching import MATCHES
from llamacy.evaluation.table import as_dict, as_markdown
from llamacy.library.training import _files, _tell
from llamacy.model.loading import Loading
from llamacy.system import fit_threads

if TYPE_CHECKING:
    from llamacy.library.models import Model

Path = str | os.PathLike


class Evaluation(list):
    """A list of Measured, one for each model and adapter; `str()` and `print` give the table."""

    def __str__(self) -> str:
        return as_markdown(self)

    def as_dicts(self) -> list[dict]:
        """Return the rows as JSON has them: estimates as NAME and NAME_stderr."""
        return [as_dict(row) for row in self]


def evaluate(
    model: Path | Model | None | Iterable = None,
    data: Path | Iterable | None = None,
    *,
    text: Path | None = None,
    adapters: Iterable[Any] = (),
    reference: Path | None = None,
    save_reference: Path | None = None,
    context: int | None = None,
    match: str = "normalised",
    max_tokens: int | None = None,
    max_samples: int | None = None,
    chat_template: str | None = None,
    threads: int | None = None,
    activations: str = "int8",
    progress: Callable[[str], Any] | None = None,
) -> Evaluation:
    """Measure models and adapters on the same text and questions; return an Evaluation, a row for each.

    model           path, or a Model that `load` opened (with its adapters as they are), or a list of these; None: the
                    default model
    adapters        paths, what `finetune` returned, or (one of these, scale): each model is measured alone, and once
                    more with each of them
    data            questions with answers, or with choices, in the forms of training data: paths, or records (dicts)
    text            path of a text: its perplexity in windows of `context` tokens (None: 512), and the divergence from
                    the first row's model
    reference       path of a run to take the divergence from instead; save_reference: where to keep the first row's
    context         tokens of a window, and of a question at most (None: 4096, at most the model's); 0: the model's own
    match           how an answer must equal the wanted one: "normalised", "exact", "first-line", "contains"
    max_tokens      of an answer; None: 16 more than the longest wanted one
    max_samples     questions to take of each file, None: all        chat_template    as in `load`
    threads, activations    as in `load`, for models that are given as paths
    progress        called with a line for each step
    LlamacyError for whatever cannot be used. Measured has perplexity, kl, kl_median, kl_999, kl_max, same_top, rms_dp,
    accuracy, loss, acc, acc_norm, answers; estimates are (value, error), None is what was not measured.
    """
    if match not in MATCHES:
        raise UsageError(f"match: wanted one of {', '.join(MATCHES)}, got {match!r:.40}")
    if max_tokens is not None and max_tokens < 1:
        raise UsageError(f"max_tokens: wanted 1 or more, got {max_tokens}")
    with contextlib.ExitStack() as stack:
        plan = Plan(
            text=None if text is None else os.fspath(text),
            data=_files(data, "data", stack),
            n_ctx=context,
            reference=None if reference is None else os.fspath(reference),
            save_reference=None if save_reference is None else os.fspath(save_reference),
            match=match,
            n_predict=max_tokens,
            chat_template=chat_template,
            max_samples=max_samples,
        )
        loading = Loading(activations, fit_threads(threads))
        models = [model] if model is None or isinstance(model, (str, os.PathLike)) or hasattr(model, "idle") else model
        pairs = [_adapter(*each) if isinstance(each, tuple) else _adapter(each) for each in adapters]
        candidates = []
        for each in models:
            path, opening = _opening(each, loading)
            candidates.append(Candidate(path, opening))
            candidates += [Candidate(path, opening, (pair,)) for pair in pairs]
        return Evaluation(compare(candidates, plan, _tell, progress))


def _adapter(adapter, scale=1.0):
    """Return (path or Adapter, scale)."""
    found = getattr(adapter, "adapter", adapter)
    return (found if hasattr(found, "pairs") else os.fspath(found)), float(scale)


def _opening(model, loading):
    """Return (path, a function that gives a context with the inner model)."""
    if hasattr(model, "idle"):
        return model.path, model.idle
    if model is None:
        from llamacy.default_model import default_model

        model = default_model()
    path = os.fspath(model)

    @contextlib.contextmanager
    def opening():
        loaded = loading.load(path)
        try:
            yield loaded
        finally:
            loaded.file.close()

    return path, opening


__all__ = ["Evaluation", "Measured", "evaluate"]
