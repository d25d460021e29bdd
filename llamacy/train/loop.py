"""The loop around the trainer: which samples, which rate, when to measure, when to save, when to stop."""

import json
import math
import os
import time

import numpy as np

from llamacy.errors import LlamacyError, shown
from llamacy.formats.mapped import FileChanged
from llamacy.system import peak_rss_bytes
from llamacy.train.batches import Plan
from llamacy.train.checkpoint import UNKNOWN, save_checkpoint
from llamacy.train.health import IN_A_ROW, WORSE, astray
from llamacy.train.options import recipe
from llamacy.train.schedule import learning_rate, warmup_steps
from llamacy.train.state import COURSE, Progressed, check_trainer, load_state

# What a checkpoint must share with the run that goes on from it, and the flag that sets it.
FIXED = {
    "model": "--model",
    "val_split": "--val-split",
    "data": "--train-data and --val-split",
    "n_samples": "--train-data and --val-split",
    "batch_size": "--batch-size",
    "grad_acc": "--grad-acc",
    "n_ctx": "--ctx-size",
    "mask_prompt": "--mask-prompt and --train-on-prompt",
    "shuffle": "--shuffle",
    "seed": "--seed",
    "rank": "--rank or --init-lora",
    "alpha": "--lora-alpha, --rslora and --init-lora",
    "targets": "--target-modules and --init-lora",
    "num_layers": "--num-layers",
    "ranks": "--rank-wq and so on, and --init-lora",
    "lora_dropout": "--lora-dropout",
    "pairs": "--init-lora",
    "recipe": "--method, --beta, --loraplus-ratio, --init-weights, --neftune-alpha and patterns",
}
# Those whose values say nothing to a person, and what they stand for.
DIGESTS = {
    "model": "another model",
    "data": "other data",
    "pairs": "other ranks or scales of its pairs",
    "recipe": "another method",
}


class Run:
    """One training run: `Run(...).go(stop)` trains to the end of the plan, or until `stop` or early stopping.

    trainer     what computes: step(micro_batches, lr), probe(samples), evaluate(batches), adapter(), go_back(),
                state(), load_state(state); takes good_loss
    data        training samples: len() and [i] -> Sample
    ids         what changes with the model, the data, the pairs and the validation samples, by these names
    outputs     where files go
    progress    shows steps and notes to a person; log, if any, gets a dict per step
    validation  samples to measure the loss on, None without
    describe    progressed -> metadata to put in the adapter
    guess       the loss of a model that knows nothing, ln(vocabulary): a first loss above it is told
    watch       called with the Progressed after each step; sample(stop) every sample_every steps: what it returns is in
                the log
    peak_flops  what the log's flop_utilisation is a share of; 0 leaves it out
    """

    def __init__(
        self, trainer, data, options, outputs, progress, *, ids=None, validation=None, log=None, describe=None,
        peak_flops=0.0, guess=None, watch=None, sample=None, sample_every=0,
    ):  # fmt: skip
        self.trainer, self.data, self.validation = trainer, data, validation
        self.options, self.outputs = options, outputs
        self.progress, self.log, self.peak_flops, self.guess = progress, log, peak_flops, guess
        self.describe = describe or (lambda progressed: {})
        self.watch, self.sample, self.sample_every = watch, sample, sample_every
        self.plan = Plan(len(data), options)
        self.n_warmup = warmup_steps(options.warmup_steps, self.plan.n_steps, options.warmup_ratio)
        self.done = Progressed()
        self.ids = {"validation": None if validation is None else 0} | (ids or {})
        self.fixed = {name: self.ids[name] if name in self.ids else getattr(options, name, None) for name in FIXED}
        self.fixed.update(n_samples=len(data), alpha=options.file_alpha, targets=list(options.targets),
                          ranks=dict(options.ranks) or None, lora_dropout=options.lora_dropout or None)  # fmt: skip
        self.fixed["recipe"] = recipe(options)
        self._saved = self._first = self.before = None

    def resume(self, path):
        """Go on from a checkpoint; LlamacyError names what differs where this run is not its continuation."""
        state = load_state(path, FIXED, {"recipe": None})
        for name, flags in FIXED.items():
            was, now = state.fixed[name], self.fixed[name]
            if was is not UNKNOWN and _as_json(was) != _as_json(now):
                what = DIGESTS.get(name) or f"{name} {shown(was)}, this run has {shown(now)}"
                raise LlamacyError(
                    f"{path}: the checkpoint was made with {what}; give the same {flags}, or start anew without "
                    "--resume"
                )
        check_trainer(path, state.trainer, self.trainer.state(), state.progressed.n_updates)
        try:
            self.trainer.load_state(state.trainer)
        except LlamacyError as error:
            raise LlamacyError(f"{path}: {error}") from error
        self.done = state.progressed
        self._trust_best(state.validation)

    def _trust_best(self, measured_with):
        """Forget the best loss, and say so, where it is of other samples or its adapter is gone."""
        now = self.ids["validation"]
        reason = None
        if self.validation is None:
            reason = "this run measures no validation loss"
        elif measured_with is not UNKNOWN and measured_with != now:
            reason = "the validation data is not that of before"
        elif not os.path.exists(self.outputs.adapter):
            reason = f"its adapter {self.outputs.adapter} is not there"
        if reason and self.done.best_step:
            best = f"{self.done.best_loss:.4f} of step {self.done.best_step}"
            self.progress.note(f"{reason}: the best loss so far, {best}, is forgotten, and the newest adapter is saved")
        if reason:
            self.done.forget_best()

    def go(self, stop=False):
        """Train; return what ended it: "end", "early" (the validation loss no longer falls) or "stopped"."""
        ended, due = "end", False
        first, self._first = self.done.step, self.done.n_updates
        self._tell_good_loss()
        if first == 0:
            self._measure_before(stop)
        for step in range(first, self.plan.n_steps):
            try:
                self._train(step, stop)
            except FileChanged:  # the model is lost, what was trained so far is not
                if self.done.step > first:
                    self.save()
                raise
            if self.options.early_stop and self.done.n_worse >= self.options.early_stop:
                ended = "early"
            elif stop:
                ended = "stopped"
            if ended != "end":
                break
            # what gives no numbers is not worth keeping until it does again
            due = due or self._save_is_due(step)
            if due and self.done.step < self.plan.n_steps and not self.done.n_astray:
                due = False
                self._tried(self.save)
        if ended != "stopped" and self.done.step > first:
            self._probe()
        if self._saved != self.done.step:
            self.save()
        return ended

    def _measure_before(self, stop):
        """Say what the validation loss is before any training: what the adapter has to be better than."""
        if self.validation is not None:
            loss = self._validation_loss(stop)
            if loss is not None and math.isfinite(loss):
                self.before = loss
                self.progress.note(f"step 0: validation loss {loss:.4f}, before training")
            elif loss is not None:
                self.progress.note(f"warning: the validation loss is {loss} before any training; check the data")

    def _tell_good_loss(self):
        """From the first step on the trainer knows which pairs are worth keeping."""
        if self.done.first_loss is not None:
            self.trainer.good_loss = WORSE * self.done.first_loss

    def _probe(self):
        """Look at what the last update left, as the next steps would: as many samples as such steps end a run."""
        steps = range(self.done.step - 1, max(-1, self.done.step - 1 - IN_A_ROW), -1)
        firsts = (next((self.data[i] for i in batch if self.data[i].n_trained), None)
                  for batch in (sum(self.plan.step(step), []) for step in steps))  # fmt: skip
        wrong = None
        for sample in filter(None, firsts):
            found = self.trainer.probe([sample])
            wrong = astray(found.loss, found.grad_norm)
            if not wrong:
                return
        if wrong:
            self._end_astray(f"after step {self.done.step}: {wrong}")

    def _end_astray(self, what):
        """Save the last good adapter, where no better one is, and end the run."""
        done, path = self.done, self.outputs.adapter
        advice = "training has gone astray; {kept}; try a lower --learning-rate"
        if done.best_step:
            kept = f"{path} is the best by validation loss, of step {done.best_step}"
        elif done.n_updates == self._first:
            kept = "nothing was trained or saved"
            if not done.n_updates:
                advice = "the model itself gives this, before any training; {kept}; try another file of it"
        else:
            done.go_back(self.trainer.go_back())
            kept = f"{path} is the adapter of step {done.step}"
            try:
                self._write_adapter([path])
            except (LlamacyError, OSError) as error:
                kept = f"that of step {done.step}, the last good one, could not be saved ({error})"
        raise LlamacyError(f"{what}: {advice.format(kept=kept)}")

    def _tried(self, save, *arguments):
        """Return whether save(*arguments) worked; if not, say why: there may be room again when the next is due."""
        try:
            save(*arguments)
        except (LlamacyError, OSError) as error:
            self.progress.note(f"warning: {error}; training goes on and will try again")
            return False
        return True

    def _train(self, step, stop):
        """Do optimiser step `step` (from 0), measure where that is due, and tell."""
        began = time.monotonic()
        lr = learning_rate(step, schedule=self.options.lr_schedule, peak=self.options.learning_rate,
                           n_warmup=self.n_warmup, n_steps=self.plan.n_steps, floor=self.options.min_lr_ratio,
                           decay=self.options.decay_ratio)  # fmt: skip
        result = self.trainer.step([[self.data[i] for i in batch] for batch in self.plan.step(step)], lr)
        seconds = max(time.monotonic() - began, 1e-9)
        speed = result.tokens / seconds
        wrong = astray(result.loss, result.grad_norm)
        epoch, done = self.plan.epoch(step) + 1, self.done
        done.add(*(None, None) if wrong else (float(result.loss), float(result.grad_norm)), lr)
        self._tell_good_loss()
        self.progress.step(step + 1, epoch, done.losses[-1] if wrong else result.loss, speed)
        row = {"step": step + 1, "epoch": epoch, "loss": None if wrong else float(result.loss), "lr": lr,
               "grad_norm": None if wrong else float(result.grad_norm), "tokens": int(result.tokens),
               "trained_tokens": int(result.trained_tokens), "tokens_per_second": speed,
               "flops_per_second": result.flops / seconds}  # fmt: skip
        row |= {"skipped": wrong} if wrong else result.more
        if wrong:
            self._skipped(wrong, row)
        elif done.n_updates == 1:
            self._tell_first(result.loss, row)
        if self.peak_flops:
            row["flop_utilisation"] = result.flops / seconds / self.peak_flops
        val_loss = self._measure(stop) if self._measuring_is_due(step) else None
        measured = {} if val_loss is None else {"val_loss": val_loss}
        # the last step's are those of the adapter that is saved: asked for by the caller
        if self.sample_every and (step + 1) % self.sample_every == 0 and step + 1 < self.plan.n_steps:
            samples = self.sample(stop)
            measured |= {"samples": samples} if samples else {}
        if self.log:
            self.log.write({**row, "peak_rss_bytes": peak_rss_bytes(), **measured})
        if self.watch:
            self.watch(self.done)

    def _skipped(self, wrong, row):
        """Say that a step went astray, and end the run where too many did so in a row."""
        done = self.done
        if done.n_astray < IN_A_ROW:
            self.progress.note(
                f"warning: step {done.step}: {wrong}; the step is skipped, {IN_A_ROW} in a row end the run"
            )
            return
        if self.log:
            self.log.write(row)
        self._end_astray(f"step {done.step}: {wrong}, in {IN_A_ROW} steps in a row")

    def _tell_first(self, loss, row):
        """Put what was measured before into the first row, and say so where the first loss is that of no knowledge."""
        if self.before is not None:
            row["val_loss_before"] = self.before
        # of preferences the wanted answers' own, where there are any
        plain = self.options.method == "sft"
        loss, of = (loss, "") if plain else (row.get("nll_loss", -math.inf), " of the wanted answers")
        if self.guess is not None and loss > self.guess:
            self.progress.note(
                f"warning: the first loss{of}, {loss:.4f}, is above that of guessing, {self.guess:.2f}: the chat "
                "template or the form of the prompts may not fit this model; look at --show-sample 1"
            )

    def _measuring_is_due(self, step):
        if self.validation is None:
            return False
        every = self.options.eval_every
        regular = (step + 1) % every == 0 if every else self.plan.ends_epoch(step)
        return regular or step + 1 == self.plan.n_steps

    def _validation_loss(self, stop):
        """Return the loss on the validation samples, None if stopped meanwhile."""
        if stop:
            return None
        size, n = self.options.batch_size, len(self.validation)
        batches = ([self.validation[i] for i in range(at, min(at + size, n))] for at in range(0, n, size) if not stop)
        loss, _ = self.trainer.evaluate(batches)
        return None if stop else float(loss)

    def _measure(self, stop):
        """Return the loss on the validation samples and keep the best adapter; None if stopped meanwhile."""
        loss = self._validation_loss(stop)
        if loss is None:
            return None
        done = self.done
        if not math.isfinite(loss):
            self._end_astray(f"step {done.step}: the validation loss is {loss}")
        done.validation.append((done.step, loss))
        better = loss < done.best_loss
        done.n_worse = 0 if better else done.n_worse + 1
        remark = f"the best was {done.best_loss:.4f} at step {done.best_step}"
        if better:
            remark = "the best so far, not saved"
        if better and self._tried(self._write_adapter, [self.outputs.adapter]):
            done.best_loss, done.best_step = loss, done.step
            remark = "the best so far, saved"
        self.progress.note(f"step {done.step}: validation loss {loss:.4f}, {remark}")
        return loss

    def _save_is_due(self, step):
        options = self.options
        if options.save_every_steps and (step + 1) % options.save_every_steps == 0:
            return True
        epoch_ends = options.save_every and self.plan.ends_epoch(step)
        return bool(epoch_ends) and (self.plan.epoch(step) + 1) % options.save_every == 0

    def save(self):
        """Write the adapter (with validation only where none is better) and the checkpoint."""
        numbered_adapter, numbered_checkpoint = self.outputs.numbered(self.done.step)
        newest = "" if self.done.best_step else self.outputs.adapter
        self._write_adapter(filter(None, [numbered_adapter, newest]))
        for path in filter(None, [numbered_checkpoint, self.outputs.checkpoint]):
            self._write_checkpoint(path)
        if self.options.save_total_limit:
            self.outputs.prune(self.options.save_total_limit)
        self._saved = self.done.step

    def _write_adapter(self, paths):
        adapter = None
        for path in paths:
            if adapter is None:
                adapter = self.trainer.adapter()
                adapter.metadata.update(self.describe(self.done))
            self.outputs.save_adapter(path, adapter)

    def _write_checkpoint(self, path):
        state = self.trainer.state()
        arrays = {name: value for name, value in state.items() if isinstance(value, np.ndarray)}
        values = {
            "n_steps": max(self.plan.n_steps, self.done.step),
            "fixed": self.fixed,
            "trainer": {name: _plain(value) for name, value in state.items() if name not in arrays},
            "validation": self.ids["validation"],
            "progressed": self.done.plain(),
        }
        for name, numbers in COURSE.items():
            arrays[name] = np.array(getattr(self.done, numbers), np.float32)
        save_checkpoint(path, values, arrays)


def _as_json(value):
    """Return what tells two settings apart, kinds of numbers too, as they come back from a checkpoint."""
    return json.dumps(value, sort_keys=True)


def _plain(value):
    """Return a NumPy scalar as Python's own, which JSON can hold."""
    return value.item() if isinstance(value, np.generic) else value
