"""A Job from its start to its result: set_up puts data, budget, model and trainer together, then train or estimate.

Nothing here knows flags or a terminal: what people are told goes through `say(text)`, what is counted is returned.
"""

import dataclasses
import math
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from llamacy.errors import LlamacyError, UsageError
from llamacy.formats.adapter import WITH_MAGNITUDES
from llamacy.system import peak_rss_bytes
from llamacy.train.batches import Plan
from llamacy.train.budget import Budget, folder_of
from llamacy.train.comparison import Comparison
from llamacy.train.data import Data, Subset
from llamacy.train.estimate import Case, rehearsed, seconds_of, shown
from llamacy.train.flops import peak_flops
from llamacy.train.loop import Run
from llamacy.train.outputs import Outputs, check_writable, claim
from llamacy.train.plot import check_plot
from llamacy.train.prepare import Prepared, template_of
from llamacy.train.progress import Progress, clock_time
from llamacy.train.report import Report, check_report, settings_of
from llamacy.train.runlog import RunLog
from llamacy.train.sources import path_and_weight
from llamacy.train.starting import checkpoint_to_resume, ids_of, starting_adapter
from llamacy.train.state import Progressed
from llamacy.train.stop import Stop
from llamacy.train.summary import CLOSE, OPEN, shown_lines, summary, token_lines
from llamacy.train.tensorboard import Logs, TensorBoardLog, check_tensorboard
from llamacy.train.trainer import Trainer
from llamacy.train.watching import Comparer, Pictures, facts


@dataclass
class SetUp:
    """All that a run consists of before its first step.

    data: all samples; train, held: those to train on and those to validate on, None without; checkpoint: the path of
    one to go on from, None; case, peak: the way of running that was chosen, and the bytes it takes at its peak;
    comparer: what base and adapter are compared by, asking: the bytes that it takes besides.
    """

    prepared: Prepared
    outputs: Outputs
    data: Data
    train: Data | Subset
    held: Data | Subset | None
    budget: Budget
    trainer: Trainer
    checkpoint: str | None
    case: Case
    peak: int
    comparer: Comparer
    asking: int

    @property
    def options(self):
        """The TrainOptions as they came to be."""
        return self.prepared.options


@dataclass
class Result:
    """How a run ended: `ended` is "end", "early" or "stopped", then by the signal `signum`; `done` what it came to.

    shaped: the data gave its prompts one shape, which prompts for the adapter need too. comparison: of base and
    adapter, None for none. failed: why a picture could not be written at the end, None where it could.
    """

    ended: str
    signum: int | None
    done: Progressed
    outputs: Outputs
    shaped: bool
    comparison: Comparison | None = None
    failed: LlamacyError | None = None


@dataclass
class Estimate:
    """What a run would need: bytes in memory at its peak (recomputed: with activations computed again), seconds for
    its n_steps at tokens_per_second, bytes on the disk for the adapter and a checkpoint, 0 where none is wanted.
    """

    peak: int
    recomputed: bool
    seconds: float
    n_steps: int
    tokens_per_second: float
    adapter: int
    checkpoint: int


def set_up(job, claims, say, estimate=False):
    """Return the SetUp of a Job; LlamacyError or UsageError, one line, for whatever would not work.

    claims: an ExitStack, which keeps the files that are written for this process until it is closed. estimate: nothing
    will be written.
    """
    _check_files(job)
    prepared = Prepared(job, say)
    prepared.check()
    start = prepared.start = starting_adapter(prepared)
    outputs = _outputs(job, prepared, None if estimate else claims)
    data = prepared.training_data()
    for line in data.report():
        say(line)
    checkpoint = checkpoint_to_resume(job, outputs, say, estimate)
    train, held = prepared.parts(data)
    budget = Budget(prepared, start, (train, held))
    more, rest = budget.loading()
    budget.settle(more)
    model = job.loading.load(job.model, note=say)
    case, peak = budget.settle(rest)
    options = prepared.options = dataclasses.replace(prepared.options, checkpointing=case.checkpointing)
    trainer = Trainer(model, options, case.pack_tokens)
    trainer.init_lora(options.rank, options.file_alpha, options.targets, options.seed, start, options.num_layers)
    if options.epochs > 1 or held is not None:
        trainer.keep_prefix(folder_of(outputs))
    comparer = Comparer(prepared, trainer, train, held, job.sample_prompts, say)
    asking = comparer.fits(budget, peak)
    return SetUp(prepared, outputs, data, train, held, budget, trainer, checkpoint, case, peak, comparer, asking)


def _check_files(job):
    """Raise LlamacyError where the log or the picture could not be written later."""
    if job.plot:
        check_plot(job.plot)
        check_writable(job.plot, "--plot")
    if job.report:
        check_report(job.report)
        check_writable(job.report, "--report")
    if job.log_json:
        check_writable(job.log_json, "--log-json")
    if job.tensorboard:
        check_tensorboard()
        check_writable(os.path.join(job.tensorboard, "events"), "--tensorboard")


def _outputs(job, prepared, claims):
    """Return the Outputs of a run, checked and claimed unless `claims` is None."""
    dora, usual = prepared.options.dora, WITH_MAGNITUDES[0]
    chosen = dora and job.lora_format is None  # here, and so the name of the folder
    if dora and job.lora_format not in (None, *WITH_MAGNITUDES):
        what = f"--lora-format {job.lora_format}: has no place for the magnitudes of DoRA"
        raise UsageError(f"{what}; name {' or '.join(WITH_MAGNITUDES)}, and merge that with bin/export-lora")
    outputs = Outputs(
        outdir=job.outdir,
        lora_out=job.lora_out or (f"adapter-{usual}" if chosen else None),
        save_path=job.save_path,
        checkpoint_out=job.checkpoint_out,
        adapter_format=job.lora_format or (usual if dora else "gguf"),
        base=prepared.metadata,
    )
    if claims is not None:
        outputs.check()
        data = (path_and_weight(argument)[0] for argument in (*job.train_data, *job.val_data))
        inputs = [*prepared.file.paths, *data]
        more = [(job.log_json, "--log-json"), (job.plot, "--plot"), (job.report, "--report")]
        claim(claims, [*outputs.written(), *more], inputs)
    return outputs


def estimate(setup):
    """Return the Estimate of a run, from a few steps done now: the trainer is used up, nothing is kept of them."""
    budget, trainer = setup.budget, setup.trainer
    plan = Plan(len(setup.train), budget.options)
    known = trainer.prefix is not None
    seconds, speed = seconds_of(trainer, plan, setup.train, setup.held, budget.options, known)
    adapter, checkpoint = budget.disk()
    kept = checkpoint if setup.outputs.checkpoint else 0
    peak = setup.peak + setup.asking
    return Estimate(peak, trainer.options.checkpointing, seconds, plan.n_steps, speed, adapter, kept)


def train(setup, say, progress=None, stop=None, asking=None):
    """Run the loop with its logs, its bar, its pictures and its signals; return the Result.

    progress: what shows the steps, None for a Progress on stderr. stop: what asks for an early end, None for a Stop.
    asking: who answers prompts with base and adapter (comparison.py), None for nobody.
    """
    job, options, outputs = setup.prepared.job, setup.options, setup.outputs
    setup.budget.tell_room(outputs, say)
    progress = progress or Progress(options.epochs)
    setup.comparer.asking = asking
    run = Run(setup.trainer, setup.train, options, outputs, progress, validation=setup.held,
              guess=math.log(setup.budget.config.n_vocab), ids=ids_of(setup.prepared, setup.data, setup.held),
              describe=lambda done: description(setup.prepared, setup.data, done), sample_every=job.sample_every,
              sample=lambda stop: _sampled(setup.comparer, run.done, progress, stop))  # fmt: skip
    if setup.checkpoint:
        run.resume(setup.checkpoint)
        say(f"{setup.checkpoint}: going on from step {run.done.step}")
    run.log = _logs(job, progress.note, run.done.step if setup.checkpoint else None)
    run.peak_flops = peak_flops(job.loading.threads) if job.log_json else 0.0
    pictures = Pictures(job.plot, job.report, progress.note)
    report = pictures.report = _report(setup, _said_before(setup, run, say))
    began = time.monotonic()
    run.watch = lambda done: pictures.draw_if_due(done, lambda: facts(run, began))
    progress.begin(run.plan.n_steps, run.done.step)
    failed = None
    try:
        with Stop(progress.note) if stop is None else stop as stop:
            ended = run.go(stop)
            progress.close()
            if ended != "stopped":
                _compare(setup, run, say, stop)
    finally:
        progress.close()
        if run.log:
            run.log.close()
        report.facts = facts(run, began, "" if sys.exc_info()[0] is None else ", then an error")
        failed = pictures.failure(run.done)
    return Result(ended, stop.signum, run.done, outputs, bool(template_of(setup.data)), setup.comparer.found, failed)


def _logs(job, warn, done):
    """Return the logs of a run as one, None for none; done: of a run that goes on the steps that were done."""
    logs = [RunLog(job.log_json, warn, done)] if job.log_json else []
    if job.tensorboard:
        logs.append(TensorBoardLog(job.tensorboard, warn, done))
    return Logs(logs) if logs else None


def _report(setup, said):
    """Return the Report of a run that begins."""
    job, options = setup.prepared.job, setup.options
    how = ", ".join([*([] if options.method == "sft" else [options.method]), *(["DoRA"] if options.dora else []),
                     f"rank {options.rank}"])  # fmt: skip
    return Report(f"{Path(job.model).name}, {how}", said=said, settings=settings_of(job, options),
                  comparison=setup.comparer.found)  # fmt: skip


def _said_before(setup, run, say):
    """Say what is about to be done; return these lines, and those on the data that were said before."""
    said, options = [], setup.options

    def tell(line):
        said.append(line)
        say(line)

    if setup.case.checkpointing and not setup.prepared.job.options.checkpointing:
        limit = shown(setup.budget.limit)
        tell(f"activations are computed again in the backward pass: without, more than {limit} are needed")
    _tell_before(setup, tell)
    _tell_time(setup, run, tell)
    tell(
        f"training {run.plan.n_steps} steps of {options.batch_size} x {options.grad_acc} samples: "
        f"{setup.budget.in_words()}, "
        f"alpha {options.alpha:g}, learning rate {options.learning_rate:g} ({options.lr_schedule})"
    )
    return [*setup.data.report(), *said]


def _sampled(comparer, done, progress, stop):
    """Show what base and adapter answer now; return it for the log."""
    lines, row = comparer.sample(done.step, stop) or ([], None)
    for line in lines:
        progress.note(line)
    return row


def _compare(setup, run, say, stop):
    """Say what base and the adapter that was saved answer, and how well they know the data."""
    lines, row = setup.comparer.finish(setup.outputs, run.done.best_step or run.done.step, stop) or ([], {})
    for line in lines:
        say(line)
    if run.log and row:
        run.log.amend({"step": run.done.step, "peak_rss_bytes": peak_rss_bytes()} | row)


def _tell_before(setup, say):
    """Say what is about to be trained, on what, and show one sample."""
    found = summary(setup.train)
    for line in found.lines():
        say(line)
    config, every = setup.budget.config, setup.budget.n_trained()
    shapes = (shape for layer in range(config.n_layer) for shape in config.layer_shapes(layer).values())
    weights = sum(math.prod(shape) for shape in shapes)
    weights += config.n_rows * config.n_embd
    say(
        f"adapter: {every:,} trained parameters, {100 * every / weights:.2f} % of the matrices' {weights:,}; at most "
        f"{shown(setup.peak + setup.asking)} of memory"
    )
    verbose = setup.prepared.job.verbose
    say(f"the first sample, what is learnt of it {'with a *' if verbose else 'in ' + OPEN + CLOSE}:")
    for line in (token_lines if verbose else shown_lines)(setup.train[0], setup.prepared.tokenizer):
        say(line)


def _tell_time(setup, run, say):
    """Say how long the steps that are left will take, from a pass that is done now and changes nothing."""
    first = run.done.step
    if first < run.plan.n_steps:
        known = getattr(setup.trainer, "prefix", None) is not None
        seconds, speed = rehearsed(setup.trainer, run.plan, setup.train, setup.held, setup.options, first, known)
        say(f"time: about {clock_time(seconds)}, at {speed:.0f} tokens/s as one pass took just now")


def description(prepared, data, done):
    """Return what the adapter's file says about how it came to be."""
    base = prepared.metadata.get("general.name") or Path(prepared.job.model).stem
    facts = {
        "general.name": f"{base} adapter",
        "general.base_model.count": 1,
        "general.base_model.0.name": str(base),
        "llamacy.step": done.step,
        "llamacy.loss": done.last_loss,
        "llamacy.n_samples": len(data),
    }
    if done.last_loss is None:
        del facts["llamacy.loss"]
    # What a prompt must look like for the adapter to answer as trained: for `main --instruct`.
    if template_of(data):
        facts["llamacy.prompt_template"] = template_of(data)
    return facts
