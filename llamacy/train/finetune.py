"""A Job from its start to its result: set_up puts data, budget, model and trainer together, then train or estimate.

Nothing here knows flags or a terminal: what people are told goes through `say(text)`, what is counted is returned.
"""

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path

from llamacy.errors import UsageError
from llamacy.formats.adapter import WITH_MAGNITUDES
from llamacy.train.batches import Plan
from llamacy.train.budget import Budget, folder_of
from llamacy.train.data import Data, Subset
from llamacy.train.estimate import Case, rehearsed, seconds_of, shown
from llamacy.train.flops import peak_flops
from llamacy.train.loop import Run
from llamacy.train.outputs import Outputs, check_writable, claim
from llamacy.train.plot import check_plot, write_plot
from llamacy.train.prepare import Prepared, template_of
from llamacy.train.progress import Progress, clock_time
from llamacy.train.runlog import RunLog
from llamacy.train.sources import path_and_weight
from llamacy.train.starting import checkpoint_to_resume, ids_of, starting_adapter
from llamacy.train.state import Progressed
from llamacy.train.stop import Stop
from llamacy.train.summary import CLOSE, OPEN, shown_lines, summary, token_lines
from llamacy.train.trainer import Trainer


@dataclass
class SetUp:
    """All that a run consists of before its first step.

    data: all samples; train, held: those to train on and those to validate on, None without; checkpoint: the path of
    one to go on from, None; case, peak: the way of running that was chosen, and the bytes it takes at its peak.
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

    @property
    def options(self):
        """The TrainOptions as they came to be."""
        return self.prepared.options


@dataclass
class Result:
    """How a run ended: `ended` is "end", "early" or "stopped", then by the signal `signum`; `done` what it came to.

    shaped: the data gave its prompts one shape, which prompts for the adapter need too.
    """

    ended: str
    signum: int | None
    done: Progressed
    outputs: Outputs
    shaped: bool


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
    return SetUp(prepared, outputs, data, train, held, budget, trainer, checkpoint, case, peak)


def _check_files(job):
    """Raise LlamacyError where the log or the picture could not be written later."""
    if job.plot:
        check_plot(job.plot)
        check_writable(job.plot, "--plot")
    if job.log_json:
        check_writable(job.log_json, "--log-json")


def _outputs(job, prepared, claims):
    """Return the Outputs of a run, checked and claimed unless `claims` is None."""
    dora, usual = prepared.options.dora, WITH_MAGNITUDES[0]
    if dora and job.lora_format not in (None, *WITH_MAGNITUDES):
        what = f"--lora-format {job.lora_format}: has no place for the magnitudes of DoRA"
        raise UsageError(f"{what}; name {' or '.join(WITH_MAGNITUDES)}, and merge that with bin/export-lora")
    outputs = Outputs(
        outdir=job.outdir,
        lora_out=job.lora_out,
        save_path=job.save_path,
        checkpoint_out=job.checkpoint_out,
        adapter_format=job.lora_format or (usual if dora else "gguf"),
        base=prepared.metadata,
    )
    if claims is not None:
        outputs.check()
        data = (path_and_weight(argument)[0] for argument in (*job.train_data, *job.val_data))
        inputs = [*prepared.file.paths, *data]
        claim(claims, [*outputs.written(), (job.log_json, "--log-json"), (job.plot, "--plot")], inputs)
    return outputs


def estimate(setup):
    """Return the Estimate of a run, from a few steps done now: the trainer is used up, nothing is kept of them."""
    budget, trainer = setup.budget, setup.trainer
    plan = Plan(len(setup.train), budget.options)
    known = trainer.prefix is not None
    seconds, speed = seconds_of(trainer, plan, setup.train, setup.held, budget.options, known)
    adapter, checkpoint = budget.disk()
    kept = checkpoint if setup.outputs.checkpoint else 0
    return Estimate(setup.peak, trainer.options.checkpointing, seconds, plan.n_steps, speed, adapter, kept)


def train(setup, say, progress=None, stop=None):
    """Run the loop with its log, its bar and its signals; return the Result.

    progress: what shows the steps, None for a Progress on stderr. stop: what asks for an early end, None for a Stop.
    """
    job, options, outputs, checkpoint = setup.prepared.job, setup.options, setup.outputs, setup.checkpoint
    setup.budget.tell_room(outputs, say)
    if setup.case.checkpointing and not job.options.checkpointing:
        limit = shown(setup.budget.limit)
        say(f"activations are computed again in the backward pass: without, more than {limit} are needed")
    progress = progress or Progress(options.epochs)
    guess = math.log(setup.budget.config.n_vocab)
    run = Run(setup.trainer, setup.train, options, outputs, progress, validation=setup.held, guess=guess,
              ids=ids_of(setup.prepared, setup.data, setup.held),
              describe=lambda done: description(setup.prepared, setup.data, done))  # fmt: skip
    if checkpoint:
        run.resume(checkpoint)
        say(f"{checkpoint}: going on from step {run.done.step}")
    log = RunLog(job.log_json, progress.note, run.done.step if checkpoint else None) if job.log_json else None
    if log:
        run.log, run.peak_flops = log, peak_flops(job.loading.threads)
    _tell_before(setup, say)
    _tell_time(setup, run, say)
    progress.begin(run.plan.n_steps, run.done.step)
    say(
        f"training {run.plan.n_steps} steps of {options.batch_size} x {options.grad_acc} samples: "
        f"{setup.budget.in_words()}, "
        f"alpha {options.alpha:g}, learning rate {options.learning_rate:g} ({options.lr_schedule})"
    )
    try:
        with Stop(progress.note) if stop is None else stop as stop:
            ended = run.go(stop)
    finally:
        progress.close()
        if log:
            log.close()
    if job.plot:
        write_plot(job.plot, f"{Path(job.model).name}, rank {options.rank}", run.done.losses, run.done.validation)
    return Result(ended, stop.signum, run.done, outputs, shaped=bool(template_of(setup.data)))


def _tell_before(setup, say):
    """Say what is about to be trained, on what, and show one sample."""
    found = summary(setup.train)
    for line in found.lines():
        say(line)
    config, every = setup.budget.config, setup.budget.n_trained()
    weights = config.n_layer * sum(n_out * n_in for n_out, n_in in config.shapes.values())
    weights += config.n_rows * config.n_embd
    say(
        f"adapter: {every:,} trained parameters, {100 * every / weights:.2f} % of the matrices' {weights:,}; at most "
        f"{shown(setup.peak)} of memory"
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
