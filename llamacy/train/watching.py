"""What a run shows of itself while it lasts and at its end: plot and page are drawn anew, base and adapter compared."""

import shutil
import time

from llamacy.errors import LlamacyError
from llamacy.formats.adapter import load_adapter
from llamacy.system import peak_rss_bytes
from llamacy.train.comparison import (
    ANSWER,
    Comparison,
    answer_lines,
    ask_or_say,
    compare,
    measured,
    perplexity,
    perplexity_lines,
    questions,
)
from llamacy.train.estimate import asking_bytes, shown
from llamacy.train.plot import write_plot
from llamacy.train.progress import clock_time
from llamacy.train.report import Report, write_report

# Plot and page are drawn anew after this many seconds at the earliest, and so that drawing takes at most this share.
INTERVAL, SHARE = 5.0, 0.02


class Pictures:
    """The plot and the page of a run, None where none is wanted; `warn(text)` tells people."""

    def __init__(self, plot, page, warn, clock=time.monotonic):
        self.plot, self.page, self._warn, self._clock = plot, page, warn, clock
        self.report, self._next, self._failed = Report(""), clock() + INTERVAL, set()

    def draw(self, done):
        """Draw both of what is `done`; LlamacyError or OSError where one cannot be written, after trying the other."""
        failed = None
        for path, write in ((self.plot, self._write_plot), (self.page, self._write_page)):
            try:
                if path:
                    write(path, done)
            except (LlamacyError, OSError) as error:
                what = error if isinstance(error, LlamacyError) else f"{path}: {error.strerror}"
                failed = LlamacyError(f"the picture of the run cannot be written: {what}")
        if failed:
            raise failed

    def failure(self, done):
        """Draw a last time; return the LlamacyError that says why not, None where it worked."""
        try:
            self.draw(done)
        except LlamacyError as error:
            return error
        return None

    def draw_if_due(self, done, facts=list):
        """Draw where it is time to, with the page's facts() then; what fails is said once, and tried again."""
        began = self._clock()
        if began < self._next or not (self.plot or self.page):
            return
        self.report.facts = facts()
        try:
            self.draw(done)
            self._failed.clear()
        except LlamacyError as error:
            if str(error) not in self._failed:
                self._failed.add(str(error))
                self._warn(f"warning: {error}; training goes on and will try again")
        now = self._clock()
        self._next = now + max(INTERVAL, (now - began) / SHARE)

    def _write_plot(self, path, done):
        write_plot(path, self.report.title, done.losses, done.validation, done.rates, done.grad_norms)

    def _write_page(self, path, done):
        self.report.done = done
        write_report(path, self.report)


class Comparer:
    """Compares base and adapter: with the questions and samples of a run's data, once there is somebody to ask.

    prepared, trainer, train, held: of the SetUp; n: prompts, 0 for no comparison; say(text) tells of what fails.
    """

    def __init__(self, prepared, trainer, train, held, n, say):
        self.found, self.asking, self._say = None, None, say
        self._trainer, self._metadata = trainer, prepared.metadata
        self._data = {"training": train} | ({} if held is None else {"validation": held})
        if not n:
            return
        n_learnt = trainer.options.epochs * len(train)
        self._samples = {name: measured(data, n_learnt) for name, data in self._data.items()}
        with prepared.masked():
            chosen = questions(train if held is None else held, n, prepared.tokenizer, trainer.options.n_ctx)
        self.found = Comparison(chosen, held is not None)

    def fits(self, budget, peak):
        """Return the bytes that asking takes beside the run's peak; where that is more than there is, give up: 0."""
        if self.found is None:
            return 0
        lengths = [len(sample.ids) for samples in self._samples.values() for sample in samples]
        lengths += [len(question.ids) + ANSWER for question in self.found.questions]
        longest = min(max(lengths, default=1), self._trainer.options.n_ctx)
        more = asking_bytes(self._trainer.model, longest) + 2 * budget.disk()[0]
        if budget.limit is None or peak + more <= budget.limit:
            return more
        self.found = None
        self._say(f"base and adapter are not compared: that would take {shown(more)} more than there is")
        return 0

    def sample(self, step, stop):
        """Ask the adapter as it is now; return (lines for a terminal, what the log says), None for nothing."""
        if self.found is None or self.asking is None or not self.found.questions:
            return None
        found = ask_or_say(compare, self._say, self.asking, self.found, step, self._trainer.adapter(), stop)
        return None if found is None else (self._lines(found), self._row(found))

    def finish(self, outputs, step, stop):
        """Ask the adapter that was saved, of `step`, and measure perplexities; return as sample does."""
        if self.found is None or self.asking is None or stop:
            return None
        adapter = ask_or_say(load_adapter, self._say, outputs.adapter, self._metadata)
        if adapter is None:
            return None
        lines, row = [], {}
        if self.found.questions:
            found = ask_or_say(compare, self._say, self.asking, self.found, step, adapter, stop)
            if found:
                lines, row = self._lines(found), {"samples": self._row(found)}
        for name, samples in self._samples.items():
            arguments = (self.asking, samples, len(self._data[name]), adapter, stop)
            each = ask_or_say(perplexity, self._say, *arguments) if samples else None
            if each:
                self.found.perplexity[name] = each
        if self.found.perplexity:
            lines += perplexity_lines(self.found.perplexity, _columns())
            row["perplexity"] = {
                name: {"base": each.base, "adapter": each.adapter} for name, each in self.found.perplexity.items()
            }
        return lines, row

    def _lines(self, answers):
        return answer_lines(self.found, answers, _columns())

    def _row(self, answers):
        rows = zip(self.found.questions, answers.base, answers.adapter, strict=True)
        return [
            {"prompt": question.prompt, "wanted": question.wanted, "base": base, "adapter": adapter}
            for question, base, adapter in rows
        ]


def _columns():
    """Return how wide a line may be."""
    return shutil.get_terminal_size().columns - 1


def facts(run, began, ended=""):
    """Return what the page says of how far a Run is: [(name, value), ...]."""
    done, n_steps = run.done, run.plan.n_steps
    rows = [("steps", f"{done.step} of {n_steps}{ended}")]
    if done.last_loss is not None:
        rows.append(("loss, first and last", f"{done.first_loss:.4f}, {done.last_loss:.4f}"))
    if run.before is not None:
        rows.append(("validation loss, before training", f"{run.before:.4f}"))
    if done.validation:
        rows.append(("validation loss, newest", f"{done.validation[-1][1]:.4f} at step {done.validation[-1][0]}"))
    if done.best_step:
        rows.append(("validation loss, best", f"{done.best_loss:.4f} at step {done.best_step}, the adapter's"))
    if done.n_skipped:
        rows.append(("steps skipped", f"{done.n_skipped}: their loss or gradient was no number"))
    rows += [("time", clock_time(time.monotonic() - began)), ("peak memory so far", shown(peak_rss_bytes()))]
    return rows
