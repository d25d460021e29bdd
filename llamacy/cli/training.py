"""What `finetune` does: data, model, trainer and loop put together. All words go to stderr, files to their folder."""

import contextlib
import dataclasses
import os
import shutil
import warnings
from functools import cached_property
from pathlib import Path

import llamacy
from llamacy.cli.common import default_model, fit_threads, open_model_from
from llamacy.cli.main import unescape
from llamacy.cli.run import say
from llamacy.cli.starting import checkpoint_to_resume, ids_of, starting_adapter
from llamacy.errors import LlamacyError
from llamacy.formats.model_file import open_model
from llamacy.model.config import read_config
from llamacy.model.weights import check_tensors
from llamacy.text import chat
from llamacy.text.tokenizer import open_tokenizer
from llamacy.train.batches import Plan, split
from llamacy.train.data import Subset, open_data
from llamacy.train.estimate import (
    cases,
    choose,
    disk_bytes,
    longest_pass,
    seconds_of,
    shown,
    training_bytes,
    weights_bytes,
)
from llamacy.train.flops import peak_flops
from llamacy.train.loop import Run
from llamacy.train.lora import pair_ranks, places
from llamacy.train.memory import available_bytes, peak_rss_bytes, rss_bytes
from llamacy.train.outputs import Outputs, check_writable, claim
from llamacy.train.plot import check_plot, write_plot
from llamacy.train.progress import Progress, clock_time
from llamacy.train.runlog import RunLog
from llamacy.train.samples import Encoder
from llamacy.train.stop import Stop
from llamacy.train.trainer import Trainer

SAMPLE_DATA = Path(llamacy.__file__).resolve().parent.parent / "examples" / "instructions.jsonl"


class Prepared:
    """What is known before the model is loaded: its vocabulary, the options that fit it, and the data.

    Bad data is told here, before anything slow or large is done.
    """

    def __init__(self, args, options):
        self.args = args
        # Kept open until the end: the tokenizer and the metadata may be views on the mapped file.
        self.file = open_model(args.model)
        self.file.metadata.update(args.override_kv)
        self.metadata = self.file.metadata
        self.tokenizer = open_tokenizer(self.file)
        self.options = self._fitted(options)
        self.encoder = Encoder(self.tokenizer, self.options.n_ctx, self.options.mask_prompt)

    def _fitted(self, options):
        """Return the options with a context that the model has, and the shape of the adapter to start from."""
        architecture = self.metadata.get("general.architecture", "")
        told = self.metadata.get(f"{architecture}.context_length")
        most = told if isinstance(told, int) and told > 0 else options.n_ctx
        wanted = most if self.args.ctx_size == 0 else options.n_ctx
        if wanted > most and self.args.ctx_size:
            say(f"--ctx-size {wanted} is more than the model has: {most} is used")
        layers, deep = self.metadata.get(f"{architecture}.block_count"), options.num_layers
        if deep and type(layers) is int and 0 < layers < deep:
            say(f"--num-layers {deep} is more than the model has: all {layers} are trained")
            deep = layers
        return dataclasses.replace(options, n_ctx=min(wanted, most), num_layers=deep)

    def check(self):
        """Raise LlamacyError where the model is one that cannot be trained, before time goes into the data."""
        config = read_config(self.file, self.args.rms_eps, self.args.rope_theta)
        config.check_context(self.options.n_ctx, self.file.path)
        check_tensors(self.file, config)

    def open(self, paths):
        """Return the Data in `paths`."""
        marker = unescape(self.args.sample_start) if self.args.escape else self.args.sample_start
        return open_data(
            paths,
            self.encoder,
            render=self._render,
            sample_start=marker,
            include_sample_start=self.args.include_sample_start,
        )

    @cached_property
    def _template(self):
        """The chat template: the one chosen, else the model's."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            template = chat.template_for(self.metadata, self.args.chat_template)
        for warning in caught:
            say(f"warning: {warning.message}")
        return template

    def _render(self, messages, add_generation_prompt):
        """Write messages out by the chat template."""
        bos, eos = (
            "" if token is None else self.tokenizer.token_bytes(token).decode(errors="replace")
            for token in (self.tokenizer.bos_id, self.tokenizer.eos_id)
        )
        return chat.render(messages, self._template, bos=bos, eos=eos, add_generation_prompt=add_generation_prompt)

    def training_data(self):
        """Return the Data to train on: what the flags name, else the sample data."""
        if self.args.train_data:
            return self.open(self.args.train_data)
        if not SAMPLE_DATA.is_file():
            raise LlamacyError(f"{SAMPLE_DATA}: the sample data is not there; name your own with --train-data FILE")
        return self.open([os.path.relpath(SAMPLE_DATA) if SAMPLE_DATA.is_relative_to(Path.cwd()) else SAMPLE_DATA])

    def parts(self, data):
        """Return (samples to train on, samples to validate on or None)."""
        if self.args.val_data:
            return data, self.open(self.args.val_data)
        if not self.options.val_split:
            return data, None
        train, held = split(len(data), self.options.val_split, self.options.seed)
        if not len(held):
            raise LlamacyError(
                f"--val-split {self.options.val_split}: wanted 2 samples or more to split, got {len(data)}"
            )
        return Subset(data, train), Subset(data, held)


def show_samples(args, options):
    """Print samples as tokens, one per line, a `*` at those that are trained."""
    prepared = Prepared(args, options)
    data = prepared.training_data()
    for i in range(min(args.show_sample, len(data))):
        sample = data[i]
        print(f"sample {i + 1} of {len(data)}: {len(sample.ids)} tokens, {sample.n_trained} trained (*)")
        for token, trained in zip(sample.ids.tolist(), sample.trained.tolist(), strict=True):
            print(f"{'*' if trained else ' '} {token:6} {quoted(prepared.tokenizer.token_bytes(token))}")
    for line in data.report():
        say(line)
    return 0


def quoted(raw):
    """Return a token's bytes as a quoted text, or as bytes where they are only part of a character."""
    try:
        return repr(raw.decode())
    except UnicodeDecodeError:
        return repr(raw)


def finetune(args, options):
    """Train, and return the exit code: 0, or 128 + the signal that ended it early."""
    with contextlib.ExitStack() as claims:
        return finetune_alone(args, options, claims)


def finetune_alone(args, options, claims):
    """The same; `claims` keeps the files that are written for this process until it is closed."""
    if args.plot:
        check_plot(args.plot)
        check_writable(args.plot, "--plot")
    if args.log_json:
        check_writable(args.log_json, "--log-json")
    prepared = Prepared(args, options)
    prepared.check()
    outputs = Outputs(
        outdir=args.outdir,
        lora_out=args.lora_out,
        save_path=args.save_path,
        checkpoint_out=args.checkpoint_out,
        adapter_format=args.lora_format,
        base=prepared.metadata,
    )
    if not args.estimate:
        outputs.check()
        inputs = [*prepared.file.paths, *(args.train_data or ()), *(args.val_data or ())]
        claim(claims, [*outputs.written(), (args.log_json, "--log-json"), (args.plot, "--plot")], inputs)
    start = prepared.start = starting_adapter(args, prepared)
    data = prepared.training_data()
    for line in data.report():
        say(line)
    checkpoint = checkpoint_to_resume(args, outputs)
    train, held = prepared.parts(data)
    budget = Budget(args, prepared, start, (train, held))
    prepared.ranks = in_words(budget.ranks)
    packed, embedding = weights_bytes(prepared.file, budget.config)
    # read without a mapping, the file shrinks as the packed weights grow
    budget.settle(max(packed + embedding, prepared.file.size if args.no_mmap else 0))
    model = open_model_from(args)
    case, peak = budget.settle(embedding)
    options = prepared.options = dataclasses.replace(prepared.options, checkpointing=case.checkpointing)
    trainer = Trainer(model, options, case.pack_tokens)
    trainer.init_lora(options.rank, options.file_alpha, options.targets, options.seed, start, options.num_layers)
    if options.epochs > 1 or held is not None:
        trainer.keep_prefix(budget.folder(outputs))
    if args.estimate:
        return tell_estimate(budget, outputs, trainer, (train, held), peak)
    tell_room(budget, outputs)
    if case.checkpointing and not args.checkpointing:
        say(f"activations are computed again in the backward pass: without, more than {shown(budget.limit)} are needed")
    return train_and_tell(args, prepared, outputs, trainer, (data, train, held), checkpoint)


class Budget:
    """How much memory the run may take, and which way of running stays within it."""

    def __init__(self, args, prepared, start, data):
        self.args, self.options = args, prepared.options
        self.config = read_config(prepared.file, args.rms_eps, args.rope_theta)
        self.threads = fit_threads(args.threads)
        self.longest = max(part.longest() for part in data if part is not None)
        self.usual = max(longest_pass(self.options, part) for part in data if part is not None)
        where = places(self.config, prepared.options.targets, prepared.options.num_layers)
        self.ranks = {where[name]: rank for name, rank in pair_ranks(self.config, prepared.options, start).items()}
        self.limit = None

    def needs(self, longest, more=0):
        """Yield (case, bytes at its peak) of each way to run, with samples of up to `longest` tokens.

        more: bytes that are still to be loaded.
        """
        for case in cases(self.options, self.usual if longest == self.longest else longest, longest):
            parts = training_bytes(self.config, self.ranks, case, self.threads, self.args.activations)
            yield case, max(peak_rss_bytes(), rss_bytes() + more + sum(parts.values()))

    def settle(self, more=0):
        """Return (case, bytes at its peak) that fits; LlamacyError, with what would, when none does."""
        free = available_bytes()
        self.limit = self.args.max_ram or (None if free is None else rss_bytes() + free)
        chosen = choose(self.needs(self.longest, more), self.limit)
        if chosen is None:
            need = min(need for _, need in self.needs(self.longest, more))
            whose = "--max-ram" if self.args.max_ram else "free memory"
            raise LlamacyError(
                f"{whose} {shown(self.limit)}: the run needs {shown(need)} for samples of {self.longest} tokens; "
                f"wanted --max-ram {shown(need)}{self.advice(more)}"
            )
        return chosen

    def advice(self, more):
        """Return what else would fit."""
        if self.options.checkpointing is False:
            return ", or --use-checkpointing"
        for n_ctx in (self.longest // 2, self.longest // 4, self.longest // 8):
            if n_ctx >= 16 and choose(self.needs(n_ctx, more), self.limit):
                return f", or --ctx-size {n_ctx}"
        return ", or a smaller model"

    def folder(self, outputs):
        """Where temporary files go: the adapter's folder, when it is there."""
        folder = os.path.dirname(outputs.adapter) or "."
        return folder if os.path.isdir(folder) else None


def in_words(ranks):
    """Return what {place: rank} comes to."""
    low, high = min(ranks.values()), max(ranks.values())
    return f"rank {low}" if low == high else f"ranks {low} to {high}"


def tell_estimate(budget, outputs, trainer, data, peak):
    """Print what the run would need; nothing is kept of the steps that measure it."""
    train, held = data
    plan = Plan(len(train), budget.options)
    seconds, speed = seconds_of(trainer, plan, train, held, budget.options, trainer.prefix is not None)
    adapter, checkpoint = disk_bytes(budget.config, budget.ranks)
    kept = f" + {shown(checkpoint)} checkpoint" if outputs.checkpoint else ""
    note = ", activations computed again" if trainer.options.checkpointing else ""
    print(f"peak memory: {shown(peak)}{note}")
    print(f"time: {clock_time(seconds)} ({plan.n_steps} steps, {speed:.0f} tokens/s measured)")
    print(f"disk: {shown(adapter)} adapter{kept}")
    return 0


def tell_room(budget, outputs):
    """Warn before hours are spent where what the run will save does not fit on the disk."""
    adapter, checkpoint = disk_bytes(budget.config, budget.ranks)
    needed = adapter + (checkpoint if outputs.checkpoint else 0)
    free = shutil.disk_usage(os.path.dirname(os.path.realpath(outputs.adapter))).free
    if free < needed:
        say(f"warning: {outputs.adapter}: {shown(free)} are free there, the run will save {shown(needed)}")


def train_and_tell(args, prepared, outputs, trainer, data, checkpoint):
    """Run the loop with its log, its bar and its signals, and say where the result is."""
    whole, train, held = data
    options = prepared.options
    progress = Progress(options.epochs)
    run = Run(trainer, train, options, outputs, progress, validation=held, ids=ids_of(args, prepared, whole, held),
              describe=lambda done: description(args, prepared, whole, done))  # fmt: skip
    if checkpoint:
        run.resume(checkpoint)
        say(f"{checkpoint}: going on from step {run.done.step}")
    log = RunLog(args.log_json, progress.note, run.done.step if checkpoint else None) if args.log_json else None
    if log:
        run.log, run.peak_flops = log, peak_flops(fit_threads(args.threads))
    progress.begin(run.plan.n_steps, run.done.step)
    say(
        f"training {run.plan.n_steps} steps of {options.batch_size} x {options.grad_acc} samples: {prepared.ranks}, "
        f"alpha {options.alpha:g}, learning rate {options.learning_rate:g} ({options.lr_schedule})"
    )
    try:
        with Stop(progress.note) as stop:
            ended = run.go(stop)
    finally:
        progress.close()
        if log:
            log.close()
    if args.plot:
        write_plot(args.plot, f"{Path(args.model).name}, rank {options.rank}", run.done.losses, run.done.validation)
    tell_result(args, outputs, run.done, ended, shaped=bool(template_of(whole)))
    return 128 + stop.signum if ended == "stopped" else 0


def template_of(data):
    """Return what shape the data gives its prompts ("instruct", "chat"), "" for none or several."""
    return data.templates[0] if len(data.templates) == 1 else ""


def tell_result(args, outputs, done, ended, shaped):
    """Say how the run ended, where its adapter is, and how to use it; `shaped`: prompts need the shape of training."""
    words = {"end": "done", "early": "stopped early: the validation loss no longer falls", "stopped": "stopped"}
    kept = f", the best by validation loss ({done.best_loss:.4f})" if done.best_step else ""
    say(f"{words[ended]} at step {done.step}")
    say(f"adapter: {outputs.adapter}, of step {done.best_step or done.step}{kept}")
    if ended == "stopped" and outputs.checkpoint:
        say(f"the state of the run is in {outputs.checkpoint}: the same command with --resume goes on")
    model = "" if args.model == default_or_none() else f" -m {args.model}"
    say(f'try it: ./bin/main{model} --lora {outputs.adapter}{" -ins" if shaped else ""} -p "..."')


def default_or_none():
    """Return the default model's path, None where there is none."""
    try:
        return default_model()
    except LlamacyError:
        return None


def description(args, prepared, data, done):
    """Return what the adapter's file says about how it came to be."""
    base = prepared.metadata.get("general.name") or Path(args.model).stem
    facts = {
        "general.name": f"{base} adapter",
        "general.base_model.count": 1,
        "general.base_model.0.name": str(base),
        "llamacy.step": done.step,
        "llamacy.loss": float(done.losses[-1]),
        "llamacy.n_samples": len(data),
    }
    # What a prompt must look like for the adapter to answer as trained: for `main --instruct`.
    if template_of(data):
        facts["llamacy.prompt_template"] = template_of(data)
    return facts
