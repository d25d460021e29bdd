"""What `finetune` asks for and says: its flags as a Job, and what comes of it in words."""

import contextlib
import sys

from llamacy.cli.common import loading_from
from llamacy.cli.prompt import unescape
from llamacy.cli.run import say
from llamacy.default_model import default_model
from llamacy.errors import LlamacyError
from llamacy.formats.atomic import atomic_write
from llamacy.library.comparing import Comparing
from llamacy.train.estimate import shown
from llamacy.train.finetune import estimate, set_up, train
from llamacy.train.job import Job
from llamacy.train.prepare import Prepared
from llamacy.train.progress import clock_time
from llamacy.train.summary import CLOSE, OPEN, token_lines, whole_lines

# Flags that are fields of a Job by the same name
SAME = ("model", "include_sample_start", "keep_empty", "max_samples", "chat_template", "template_kwargs",
        "init_lora", "checkpoint_in", "resume", "outdir", "lora_out", "save_path", "checkpoint_out", "lora_format",
        "log_json", "plot", "report", "tensorboard", "sample_prompts", "sample_every", "max_ram",
        "verbose")  # fmt: skip


def job_from(args, options):
    """Return the Job of parsed flags and the TrainOptions that they mean."""
    given = {"rank": args.rank, "alpha": args.alpha, "targets": args.targets, "n_ctx": args.ctx_size or None}
    return Job(
        options=options,
        loading=loading_from(args),
        chosen=frozenset(name for name, value in given.items() if value is not None)
        | (frozenset({"rslora"}) if args.rslora else frozenset()),
        whole_context=args.ctx_size == 0,
        train_data=tuple(args.train_data or ()),
        val_data=tuple(args.val_data or ()),
        sample_start=unescape(args.sample_start) if args.escape else args.sample_start,
        **{name: getattr(args, name) for name in SAME},
    )


def finetune(args, options, flags):
    """Train, and return the exit code: 0, or 128 + the signal that ended it early. flags: the run's, for --config."""
    job = job_from(args, options)
    with contextlib.ExitStack() as claims:
        setup = set_up(job, claims, say, args.estimate)
        if args.estimate:
            tell_estimate(estimate(setup))
            return 0
        _keep_flags(f"{setup.outputs.adapter}.toml", flags)
        result = train(setup, say, asking=Comparing(setup.trainer.model, setup.options.n_ctx))
    tell_result(job.model, result)
    if result.failed:
        raise result.failed
    return 128 + result.signum if result.ended == "stopped" else 0


def _keep_flags(path, flags):
    """Write the run's flags beside its adapter; a run is worth more than the record of it."""
    try:
        with atomic_write(path) as file:
            file.write(flags.encode("utf-8", "replace"))
    except (LlamacyError, OSError) as error:
        say(f"warning: {path}: the flags of this run cannot be kept: {error}")


def show_samples(args, options):
    """Print samples as text, what is trained of it marked; with --verbose token by token too, a `*` at such ones."""
    if hasattr(sys.stdout, "reconfigure"):  # a terminal may not know the marks
        sys.stdout.reconfigure(errors="backslashreplace")
    prepared = Prepared(job_from(args, options), say)
    data = prepared.training_data()
    for i in range(min(args.show_sample, len(data))):
        sample = data[i]
        marks = "(*)" if args.verbose else f"({OPEN}{CLOSE})"
        print(f"sample {i + 1} of {len(data)}: {len(sample.ids)} tokens, {sample.n_trained} trained {marks}")
        lines = token_lines if args.verbose else whole_lines
        print("\n".join(lines(sample, prepared.tokenizer)))
    for line in data.report():
        say(line)
    return 0


def tell_estimate(found):
    """Print what the run would need."""
    kept = f" + {shown(found.checkpoint)} checkpoint" if found.checkpoint else ""
    note = ", activations computed again" if found.recomputed else ""
    print(f"peak memory: {shown(found.peak)}{note}")
    print(f"time: {clock_time(found.seconds)} ({found.n_steps} steps, {found.tokens_per_second:.0f} tokens/s measured)")
    print(f"disk: {shown(found.adapter)} adapter{kept}")


def tell_result(model, result):
    """Say how the run ended, where its adapter is, and how to use it."""
    done, outputs = result.done, result.outputs
    words = {"end": "done", "early": "stopped early: the validation loss no longer falls", "stopped": "stopped"}
    kept = f", the best by validation loss ({done.best_loss:.4f})" if done.best_step else ""
    say(f"{words[result.ended]} at step {done.step}")
    say(f"adapter: {outputs.adapter}, of step {done.best_step or done.step}{kept}")
    if result.ended == "stopped" and outputs.checkpoint:
        say(f"the state of the run is in {outputs.checkpoint}: the same command with --resume goes on")
    named = "" if model == default_or_none() else f" -m {model}"
    say(f'try it: ./bin/main{named} --lora {outputs.adapter}{" -ins" if result.shaped else ""} -p "..."')


def default_or_none():
    """Return the default model's path, None where there is none."""
    try:
        return default_model()
    except LlamacyError:
        return None
