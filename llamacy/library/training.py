"""Fine-tuning from Python: the run of `bin/finetune`, its data from anywhere, its result in memory."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from llamacy.errors import LlamacyError, UsageError
from llamacy.formats.adapter import load_adapter, save_adapter
from llamacy.library.comparing import Comparing
from llamacy.model.loading import Loading
from llamacy.system import fit_threads
from llamacy.train.finetune import set_up, train
from llamacy.train.job import Job
from llamacy.train.options import LISTS, TrainOptions, target_modules
from llamacy.train.plot import check_plot, write_plot
from llamacy.train.progress import Progress
from llamacy.train.stop import Stop

if TYPE_CHECKING:
    from llamacy.library.models import Model

D = TrainOptions
RECORDS = ".records.jsonl"  # how a file is named that records were written to
LOG = logging.getLogger("llamacy")


class Step(NamedTuple):
    """What a callback is told after an optimiser step; step and epoch count from 1, loss is its mean (nats), NaN where
    it was skipped."""

    step: int
    n_steps: int
    epoch: int
    loss: float
    tokens_per_second: float


@dataclass
class Finetuned:
    """A trained adapter and how it came to be.

    adapter     the Adapter, for `Model.adapters.add`
    losses      list of float: the loss at each optimiser step      validation  list of (step, loss)
    steps       optimiser steps that were done                      best_step   the adapter's, by validation; else None
    ended       "end", "early" (validation no longer fell) or "stopped" (Ctrl-C, or the callback)
    grad_norms, learning_rates      at each step, as losses are; NaN for the loss and norm of a step that was skipped
    answers     of base and adapter to prompts, where they were asked for: list of {"step", "prompt", "wanted", "base",
                "adapter"}
    perplexity  {"training": {"base": float, "adapter": float}, "validation": ...}, {} where it was not measured
    path        where the run wrote the adapter, None where no `output` was named
    """

    adapter: Any
    losses: list[float]
    validation: list[tuple[int, float]]
    steps: int
    best_step: int | None
    ended: str
    path: str | None
    base: dict = dataclasses.field(repr=False)
    grad_norms: list[float] = dataclasses.field(default_factory=list, repr=False)
    learning_rates: list[float] = dataclasses.field(default_factory=list, repr=False)
    answers: list[dict] = dataclasses.field(default_factory=list, repr=False)
    perplexity: dict = dataclasses.field(default_factory=dict)

    def save(self, path: str | os.PathLike, format: str = "gguf") -> str:
        """Write the adapter at `path`, whole or not at all: gguf, ggla, peft or mlx (the last two are folders).

        A warning names what the format cannot carry; LlamacyError where it cannot be written.
        """
        lost = save_adapter(str(path), self.adapter, format, self.base)
        if lost:
            warnings.warn(f"{path}: the format {format} cannot carry {', '.join(lost)}", stacklevel=2)
        return str(path)

    def plot(self, path: str | os.PathLike) -> None:
        """Draw the losses, learning rate and gradient norm, .svg or .png."""
        check_plot(str(path))
        write_plot(str(path), "fine-tuning", self.losses, self.validation, self.learning_rates, self.grad_norms)


def finetune(
    model: str | os.PathLike | Model | None = None,
    data: str | os.PathLike | Iterable | None = None,
    *,
    rank: int = D.rank,
    alpha: float = D.alpha,
    epochs: int = D.epochs,
    learning_rate: float = D.learning_rate,
    targets: str | Iterable[str] | None = None,
    context: int | None = None,
    validation: str | os.PathLike | Iterable | None = None,
    output: str | os.PathLike | None = None,
    init: Any = None,
    resume: bool = False,
    chat_template: str | None = None,
    sample_start: str = "",
    threads: int | None = None,
    activations: Literal["int16", "f32"] = "int16",
    max_ram: int | None = None,
    format: Literal["gguf", "ggla", "peft", "mlx"] | None = None,
    report: str | os.PathLike | None = None,
    plot: str | os.PathLike | None = None,
    log_json: str | os.PathLike | None = None,
    tensorboard: str | os.PathLike | None = None,
    sample_every: int = 0,
    sample_prompts: int | None = None,
    progress: bool | None = None,
    callback: Callable[[Step], Any] | None = None,
    **options: Any,
) -> Finetuned:
    """Train a LoRA adapter on a quantised model; return a Finetuned. The model's file is never changed.

    model          path, or a Model that `load` opened; None: the default model
    data           what to learn: a path or several, or an iterable of records (dicts such as {"instruction": ...,
                   "output": ...} or {"messages": [...]}, a Hugging Face dataset too); None: the sample data
    rank, alpha    of the adapter; an adapter to start from (`init`) brings its own where these are left as they are
    epochs         times to go through the data        learning_rate  at its highest
    targets        names of matrices, a list or one str with commas; None: all linear ones
    context        tokens of a sample at most; None: 512, at most the model's; 0: the model's own
    validation     data as above to measure with; or val_split=0.1 to hold out a share
    chat_template  how messages are written out: a name, a file, or Jinja source; None: the model's own
    sample_start   of a plain text: a sample begins where this stands; "": windows of `context`
    output         folder for the adapter and its checkpoint while it trains; None: none, and resume is not possible
    resume         go on from the checkpoint in `output`
    threads        to compute with; None: the physical cores
    activations    "int16", near to exact, or "f32"
    max_ram        bytes to stay below; None: the free memory
    format         of the adapter in `output`: gguf, ggla, peft or mlx; None: gguf, with dora=True peft
    report         a page on the run, .html; plot: a picture, .svg or .png; both are drawn anew while it trains
    log_json       a file with a JSON line for each step; tensorboard: a folder for TensorBoard (its package is needed)
    sample_every   ask base and adapter every so many steps, for the log, the page and `answers`; 0: not
    sample_prompts how many prompts they are asked at the end and then; 0: none, and no perplexities are measured;
                   None: 3 where there is a report or sample_every, else 0
    progress       True, False, or None: a bar where there is a terminal or a notebook
    callback       called with a Step after each optimiser step; returns True to end the run there
    options        any other field of TrainOptions: batch_size, grad_acc, max_steps, lora_dropout, seed, dora, ...;
                   rank_pattern and alpha_pattern as PEFT has them, {expression: number}; layers "0-9,20" or numbers
    Ctrl-C ends the run after its step, and what was trained is returned. LlamacyError for whatever would not work.
    """
    if resume and output is None:
        raise UsageError("resume: wanted the output of the run to go on with, got None")
    with contextlib.ExitStack() as stack:
        folder = str(output) if output is not None else stack.enter_context(tempfile.TemporaryDirectory())
        given = {"rank": rank, "alpha": alpha, "epochs": epochs, "learning_rate": learning_rate, **options}
        if targets is not None:
            given["targets"] = target_modules(targets if isinstance(targets, str) else ",".join(targets))
        given |= {name: _listed(read, given[name]) for name, read in LISTS.items() if given.get(name)}
        if context:
            given["n_ctx"] = context
        job = Job(
            model=_path_of(model),
            options=_options(given),
            loading=Loading(activations, fit_threads(threads), overrides=_overrides_of(model)),
            chosen=frozenset(
                name for name in ("rank", "alpha", "targets", "n_ctx", "rslora") if _is_chosen(name, given)
            ),
            whole_context=context == 0,
            train_data=_files(data, "data", stack),
            val_data=_files(validation, "validation", stack),
            sample_start=sample_start,
            chat_template=chat_template,
            init_lora=None if init is None else _adapter_file(init, stack),
            resume=resume,
            outdir=folder,
            checkpoint_out=None if output is not None else "",
            lora_format=format,
            max_ram=max_ram,
            **_shown(report, plot, log_json, tensorboard, sample_every, sample_prompts),
        )
        with _named(job):
            setup = set_up(job, stack, _tell)
        stop = _Asked(lambda text: None)
        shown = _Reported(_shows(progress), job.options.epochs, callback, stop)
        result = train(setup, _tell, shown, stop, Comparing(setup.trainer.model, setup.options.n_ctx))
        if result.failed:
            _tell(f"warning: {result.failed}")
        base, done = setup.prepared.metadata, result.done
        return Finetuned(
            adapter=load_adapter(result.outputs.adapter, base),
            losses=[float(loss) for loss in done.losses],
            validation=[(int(step), float(loss)) for step, loss in done.validation],
            steps=done.step,
            best_step=done.best_step or None,
            ended=result.ended,
            path=result.outputs.adapter if output is not None else None,
            base=base,
            grad_norms=[float(norm) for norm in done.grad_norms],
            learning_rates=[float(rate) for rate in done.rates],
            **_compared(result.comparison),
        )


def _shown(report, plot, log_json, tensorboard, sample_every, sample_prompts):
    """Return the fields of a Job that say what a run shows of itself."""
    paths = {"report": report, "plot": plot, "log_json": log_json, "tensorboard": tensorboard}
    for name, value in (("sample_every", sample_every), ("sample_prompts", sample_prompts)):
        if value is not None and (type(value) is not int or value < 0):
            raise UsageError(f"{name}: wanted 0 or more, got {value!r}")
    if sample_prompts is None:
        sample_prompts = 3 if report is not None or sample_every else 0
    return {name: None if path is None else os.fspath(path) for name, path in paths.items()} | {
        "sample_every": sample_every,
        "sample_prompts": sample_prompts,
    }


def _compared(found):
    """Return a Comparison, or None, as the fields of a Finetuned."""
    if found is None:
        return {}
    answers = [
        {"step": each.step, "prompt": question.prompt, "wanted": question.wanted, "base": base, "adapter": adapter}
        for each in found.answers
        for question, base, adapter in zip(found.questions, each.base, each.adapter, strict=True)
    ]
    perplexity = {name: {"base": each.base, "adapter": each.adapter} for name, each in found.perplexity.items()}
    return {"answers": answers, "perplexity": perplexity}


@contextlib.contextmanager
def _named(job):
    """Errors name records by what they were given as, not by the file that they were written to."""
    try:
        yield
    except LlamacyError as error:
        text = str(error)
        for name in ("report", "plot", "log_json", "tensorboard"):
            text = text.replace(f"--{name.replace('_', '-')}", name)
        for path in job.train_data + job.val_data:
            name = os.path.basename(path).removesuffix(RECORDS)
            text = text.replace(f"{path}:", f"{name}: record ") if path.endswith(RECORDS) else text
        if text == str(error):
            raise
        raise type(error)(text) from None


def _listed(read, value):
    """Return what `read` makes of a text, of a dict of patterns or of layers' numbers."""
    if isinstance(value, dict):
        value = ",".join(f"{expression}={number}" for expression, number in value.items())
    elif not isinstance(value, str):
        value = ",".join(map(str, value))
    return read(value)


def _options(given):
    known = {field.name for field in dataclasses.fields(TrainOptions)}
    for name in given:
        if name not in known:
            raise TypeError(f"finetune() got an unexpected keyword argument {name!r}")
    try:
        return TrainOptions(**given)
    except UsageError as error:
        flags = {field.metadata["flag"]: field.name for field in dataclasses.fields(TrainOptions)}
        flag, colon, rest = str(error).partition(":")
        raise UsageError(flags.get(flag, flag) + colon + rest) from None


def _is_chosen(name, given):
    return name in given and given[name] != getattr(D, name)


def _path_of(model):
    if model is None:
        from llamacy.default_model import default_model

        return default_model()
    return str(getattr(model, "path", model))


def _overrides_of(model):
    loading = getattr(model, "loading", None)
    return loading.overrides if loading else {}


def _adapter_file(init, stack):
    """Return the path of an adapter to start from: as it is, or written from memory."""
    adapter = getattr(init, "adapter", init)
    if not hasattr(adapter, "pairs"):
        return str(adapter)
    path = os.path.join(stack.enter_context(tempfile.TemporaryDirectory()), "init.gguf")
    save_adapter(path, adapter, base=getattr(init, "base", None))
    return path


def _files(data, what, stack):
    """Return the paths of data: given as such, or records written to a file, one JSON object a line."""
    if data is None:
        return ()
    if isinstance(data, (str, os.PathLike)):
        return (os.fspath(data),)
    records = iter(data if not isinstance(data, Mapping) else [data])
    first = next(records, None)
    if first is None:
        raise LlamacyError(f"{what}: wanted paths or records, got none")
    if isinstance(first, (str, os.PathLike)):
        return (os.fspath(first), *map(os.fspath, records))
    path = os.path.join(stack.enter_context(tempfile.TemporaryDirectory()), what + RECORDS)
    with open(path, "w", encoding="utf-8") as file:
        _write(file, first, what, 1)
        for number, record in enumerate(records, 2):
            _write(file, record, what, number)
    return (path,)


def _write(file, record, what, number):
    if not isinstance(record, Mapping):
        raise LlamacyError(f"{what}: record {number}: wanted a dict, got {type(record).__name__}")
    try:
        file.write(json.dumps(dict(record), ensure_ascii=False, default=_plain) + "\n")
    except (TypeError, ValueError) as error:
        raise LlamacyError(f"{what}: record {number}: cannot be written as JSON: {error}") from None


def _plain(value):
    """What json does not know: NumPy's numbers and arrays."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is no text, number, list or dict")


def _tell(text):
    """Warnings as warnings, what is done to the log named "llamacy"."""
    if text.startswith("warning: "):
        warnings.warn(text.removeprefix("warning: "), stacklevel=2)
    else:
        LOG.info(text)


class _Asked(Stop):
    """A Stop that a callback may ask for too."""

    asked = False

    def __bool__(self):
        return self.asked or super().__bool__()


def _in_notebook():
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return shell is not None and "IPKernelApp" in getattr(shell, "config", {})


def _shows(progress):
    """Return "bar", "notebook" or "" for a wish."""
    if progress is False or progress is None and not (sys.stderr.isatty() or _in_notebook()):
        return ""
    return "notebook" if _in_notebook() else "bar"


class _Reported:
    """What the loop tells of its steps: to a callback, and to a bar where one is wanted."""

    def __init__(self, kind, n_epochs, callback, stop):
        self._callback, self._stop, self._n_steps = callback, stop, 0
        self._bar = _Notebook(n_epochs) if kind == "notebook" else Progress(n_epochs) if kind else None

    def begin(self, n_steps, n_done=0):
        self._n_steps = n_steps
        if self._bar:
            self._bar.begin(n_steps, n_done)

    def step(self, step, epoch, loss, tokens_per_second):
        if self._bar:
            self._bar.step(step, epoch, loss, tokens_per_second)
        if self._callback and self._callback(Step(step, self._n_steps, epoch, float(loss), float(tokens_per_second))):
            self._stop.asked = True

    def note(self, text):
        if self._bar:
            self._bar.note(text)
        else:
            _tell(text)

    def close(self):
        if self._bar:
            self._bar.close()


class _Notebook:
    """The same bar in a notebook, by tqdm.auto where it is installed; else silent."""

    def __init__(self, n_epochs):
        self._bar, self.n_epochs = None, n_epochs

    def begin(self, n_steps, n_done=0):
        with contextlib.suppress(ImportError):
            from tqdm.auto import tqdm

            self._bar = tqdm(total=n_steps, initial=n_done, unit="step")

    def step(self, step, epoch, loss, tokens_per_second):
        if self._bar is not None:
            self._bar.set_postfix(
                epoch=f"{epoch}/{self.n_epochs}", loss=f"{loss:.4f}", speed=f"{tokens_per_second:.0f}/s"
            )
            self._bar.update(1)

    def note(self, text):
        _tell(text)

    def close(self):
        if self._bar is not None:
            self._bar.close()
