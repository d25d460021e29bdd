"""Models and adapters measured on the same text and the same questions: what `evaluate` does, start here."""

import contextlib
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field

from llamacy.errors import UsageError
from llamacy.evaluation.answering import choose, write
from llamacy.evaluation.divergence import Estimate
from llamacy.evaluation.questions import Questions
from llamacy.evaluation.reference import Reference, Writer, header_of, vocabulary_digest, write_reference
from llamacy.evaluation.texts import check_tokens, open_reference, run_windows
from llamacy.formats.adapter import load_adapter
from llamacy.generate.context import fit_context
from llamacy.generate.perplexity import read_tokens
from llamacy.train.job import Job
from llamacy.train.options import TrainOptions
from llamacy.train.prepare import Prepared

WINDOW = 512


@dataclass(frozen=True)
class Candidate:
    """A model as it is to be measured. open() -> a context with the loaded Model.

    adapters: (path, or an Adapter, scale) each.
    """

    model: str
    open: Callable = field(compare=False, repr=False)
    adapters: tuple = ()
    name: str = ""

    @property
    def label(self):
        """What the table calls it."""
        name = os.path.basename(self.model).removesuffix(".gguf")
        return self.name or " + ".join(
            [name, *(path + (f":{scale:g}" if scale != 1 else "") for path, scale in self.named)]
        )

    @property
    def named(self):
        """The adapters as (path, scale), of one that is in no file "adapter"."""
        return tuple((str(getattr(each, "path", each)) or "adapter", scale) for each, scale in self.adapters)


@dataclass(frozen=True)
class Plan:
    """What to measure.

    text            path of a text, for perplexity in windows of n_ctx tokens (None: 512), n_chunks of them at most
    data            paths of questions, of n_ctx tokens at most (None: the model's context, at most 4096)
    reference       path of a reference run to compare with; None: the first candidate is the reference
    save_reference  path to keep the first candidate's run at
    match           a row of matching.MATCHES; n_predict: tokens of an answer, None: by the longest wanted one
    chat_template, max_samples    as in training
    """

    text: str | None = None
    data: tuple = ()
    n_ctx: int | None = None
    n_chunks: int | None = None
    reference: str | None = None
    save_reference: str | None = None
    match: str = "normalised"
    n_predict: int | None = None
    chat_template: str | None = None
    max_samples: int | None = None


@dataclass
class Measured:
    """What a model came to; None where it was not measured. Shares are of 1, losses and divergences in nats.

    perplexity             of the text, n_tokens of which were scored
    kl, kl_median, kl_999, kl_max, same_top, rms_dp    from the reference, whose name is in `reference`
    accuracy, loss         of n_questions to be answered in words        acc, acc_norm    of those with choices
    answers                list of dicts, one for each question
    Estimates are (value, error).
    """

    name: str
    model: str
    adapters: tuple = ()
    reference: str = ""
    n_tokens: int = 0
    n_questions: int = 0
    perplexity: Estimate | None = None
    kl: Estimate | None = None
    kl_median: float | None = None
    kl_999: float | None = None
    kl_max: float | None = None
    same_top: Estimate | None = None
    rms_dp: Estimate | None = None
    accuracy: Estimate | None = None
    loss: float | None = None
    acc: Estimate | None = None
    acc_norm: Estimate | None = None
    answers: list = field(default_factory=list, repr=False)


def compare(candidates, plan, say, progress=None):
    """Return a Measured for each Candidate, in their order; LlamacyError for whatever cannot be used.

    say(text) is told what is left out; progress(text) what is being done.
    """
    if not (plan.text or plan.data or plan.reference):
        raise UsageError("nothing to measure: name a text (-f FILE), questions (--data FILE) or a --reference")
    if plan.reference and plan.save_reference:
        raise UsageError("--reference and --save-reference are both given: a run is compared, or kept to compare with")
    if plan.save_reference and not plan.text:
        raise UsageError("--save-reference: wanted a text to make it of (-f FILE)")
    with contextlib.ExitStack() as stack:
        texts = _Texts(plan, len(candidates), stack, say)
        known, rows = {}, []
        for group in _groups(candidates):
            with group[0].open() as model:
                for candidate in group:
                    rows.append(Measured(candidate.label, candidate.model, candidate.named))
                    with _applied(model, candidate.adapters):
                        _measure(model, candidate, plan, texts, known, rows[-1], say, progress or (lambda text: None))
        return rows


def _groups(candidates):
    """Return the candidates in lists of neighbours with the same model, which is loaded once."""
    groups = []
    for candidate in candidates:
        if groups and groups[-1][0].model == candidate.model and groups[-1][0].open == candidate.open:
            groups[-1].append(candidate)
        else:
            groups.append([candidate])
    return groups


@contextlib.contextmanager
def _applied(model, adapters):
    """Apply adapters, (path or Adapter, scale) each, and take them off again."""
    indices = []
    try:
        for each, scale in adapters:
            adapter = each if hasattr(each, "pairs") else load_adapter(each, model.metadata)
            indices.append(model.add_adapter(adapter, scale))
        yield
    finally:
        for index in indices:
            model.remove_adapter(index)


def _measure(model, candidate, plan, texts, known, row, say, progress):
    """Fill in a Measured. known: the Questions by model, read once."""
    if plan.text or plan.reference:
        texts.measure(model, row, lambda i, n: progress(f"{row.name}: window {i} of {n}"))
    if not plan.data:
        return
    if candidate.model not in known:
        known[candidate.model] = _questions(model, candidate.model, plan, say)
    questions = known[candidate.model]

    def tell(i, n):
        progress(f"{row.name}: question {i} of {n}")

    if questions.kind == "choice":
        found = choose(model, questions, tell)
        row.acc, row.acc_norm = found.acc, found.acc_norm
    else:
        found = write(model, questions, match=plan.match, n_predict=plan.n_predict, progress=tell)
        row.accuracy, row.loss = found.accuracy, found.loss
    row.n_questions, row.answers = found.n, found.items


def _questions(model, path, plan, say):
    n_ctx = fit_context(plan.n_ctx, model.config)
    prepared = Prepared(Job(path, TrainOptions(), chat_template=plan.chat_template), say)
    prepared.metadata = model.metadata  # with what was said to be otherwise
    questions = Questions(plan.data, model.tokenizer, n_ctx, prepared.render, plan.max_samples)
    for line in questions.notes:
        say(line)
    prepared.file.close()
    return questions


class _Texts:
    """The text and the run that all are compared with: from a file, or the first candidate's."""

    def __init__(self, plan, n_candidates, stack, say):
        self.plan, self._stack, self._say = plan, stack, say
        self._wanted, self._base, self._base_name = n_candidates > 1 or plan.save_reference, None, ""
        if plan.reference:
            self._base = stack.enter_context(open_reference(plan.reference))
            self._base_name = self._base.model or plan.reference

    def _tokens(self, model):
        """Return (ids, n_ctx) of the text by this model's words."""
        base, n_ctx = self._base, self.plan.n_ctx
        if base is not None and self.plan.reference:
            if not self.plan.text:
                n = base.n_windows if self.plan.n_chunks is None else min(self.plan.n_chunks, base.n_windows)
                return base.tokens[: n * base.n_ctx], base.n_ctx
            n_ctx = n_ctx or base.n_ctx
        n_ctx = model.config.n_ctx_train if n_ctx == 0 else n_ctx or WINDOW
        tokens = read_tokens(model, self.plan.text, n_ctx, self.plan.n_chunks)
        if base is not None and self.plan.reference:
            base.check_model(model)
            check_tokens(base, tokens, n_ctx, self.plan.text)
            tokens = tokens[: len(base.tokens)]
        return tokens[: len(tokens) // n_ctx * n_ctx], n_ctx

    def measure(self, model, row, progress):
        """Fill in a Measured's perplexity and divergence."""
        tokens, n_ctx = self._tokens(model)
        n_windows = len(tokens) // n_ctx
        if n_ctx > model.config.n_ctx_train:
            self._say(f"warning: windows of {n_ctx} tokens are above the context of {model.config.n_ctx_train}")

        def tell(i, score, divergence):
            progress(i, n_windows)

        if self._wanted and self._base is None:
            score, divergence = self._first(model, tokens, n_ctx, row, tell), None
        else:
            base = self._base if self._base is None or self._comparable(model, tokens) else None
            score, divergence = run_windows(model, tokens, n_ctx, base=base, progress=tell)
        row.perplexity, row.n_tokens = Estimate(score.perplexity, score.error), score.n_tokens
        if divergence is not None:
            row.reference, row.kl, row.same_top = self._base_name, divergence.kl, divergence.same_top
            row.rms_dp = divergence.rms_dp
            row.kl_median, row.kl_999, row.kl_max = map(float, divergence.kl_quantiles((0.5, 0.999, 1)))

    def _first(self, model, tokens, n_ctx, row, tell):
        """Measure the first candidate, and keep its run for the others; return its Score."""
        header, path = header_of(model, tokens, n_ctx), self.plan.save_reference
        if path:
            with write_reference(path, header, tokens) as writer:
                score, _ = run_windows(model, tokens, n_ctx, writer=writer, progress=tell)
            self._base = self._stack.enter_context(open_reference(path))
        else:
            file = self._stack.enter_context(tempfile.TemporaryFile(prefix="llamacy-"))  # noqa: SIM115
            writer = Writer(file, header, tokens)
            score, _ = run_windows(model, tokens, n_ctx, writer=writer, progress=tell)
            writer.close()
            self._base = Reference(file, "the reference")
        self._base_name = row.name
        return score

    def _comparable(self, model, tokens):
        """Can this model's probabilities be compared with the reference's? A note where the first one's cannot."""
        if self.plan.reference:
            return True  # what does not fit is an error there: it was asked for
        base = self._base
        same = (
            model.config.n_vocab == base.n_vocab and vocabulary_digest(model.tokenizer, base.n_vocab) == base.vocabulary
        )
        if not same:
            self._say(f"{model.path}: another vocabulary than {self._base_name}'s: no divergence from it")
        return same
