"""The loop around the trainer: which samples, which rate, when to measure, when to save, when to stop."""

import math
import time
from array import array
from dataclasses import dataclass, field

import numpy as np

from llamacy.errors import LlamacyError
from llamacy.formats.mapped import FileChanged
from llamacy.train.batches import Plan
from llamacy.train.checkpoint import load_checkpoint, save_checkpoint
from llamacy.train.memory import peak_rss_bytes
from llamacy.train.schedule import learning_rate, warmup_steps

# What a checkpoint must share with the run that goes on from it, and the flag that sets it.
FIXED = {
    "data": "--train-data and --val-split",
    "n_samples": "--train-data and --val-split",
    "batch_size": "--batch-size",
    "grad_acc": "--grad-acc",
    "n_ctx": "--ctx-size",
    "mask_prompt": "--mask-prompt and --train-on-prompt",
    "shuffle": "--shuffle",
    "seed": "--seed",
    "rank": "--rank",
    "alpha": "--lora-alpha and --rslora",
    "targets": "--target-modules",
    "num_layers": "--num-layers",
    "ranks": "--rank-wq and so on",
    "lora_dropout": "--lora-dropout",
}
LOSSES = "llamacy.losses"


@dataclass
class Progressed:
    """How far a run is; with the trainer's own state this is all that it needs to go on."""

    step: int = 0
    losses: array = field(default_factory=lambda: array("f"))
    validation: list = field(default_factory=list)
    best_loss: float = math.inf
    best_step: int = 0
    n_worse: int = 0


class Run:
    """One training run: `Run(...).go(stop)` trains to the end of the plan, or until `stop` or early stopping.

    trainer     what computes: step(micro_batches, lr), evaluate(batches), adapter(), state(), load_state(state)
    data        training samples: len() and [i] -> Sample; `data_id` changes when they do
    outputs     where files go
    progress    shows steps and notes to a person; log, if any, gets a dict per step
    validation  samples to measure the loss on, None without
    describe    progressed -> metadata to put in the adapter
    peak_flops  what the log's flop_utilisation is a share of; 0 leaves it out
    """

    def __init__(
        self, trainer, data, options, outputs, progress, *, data_id=0, validation=None, log=None, describe=None,
        peak_flops=0.0,
    ):  # fmt: skip
        self.trainer, self.data, self.validation = trainer, data, validation
        self.options, self.outputs = options, outputs
        self.progress, self.log, self.peak_flops = progress, log, peak_flops
        self.describe = describe or (lambda progressed: {})
        self.plan = Plan(len(data), options)
        self.n_warmup = warmup_steps(options.warmup_steps, self.plan.n_steps)
        self.done = Progressed()
        self.fixed = {name: getattr(options, name, None) for name in FIXED}
        self.fixed.update(data=data_id, n_samples=len(data), alpha=options.file_alpha, targets=list(options.targets),
                          ranks=dict(options.ranks) or None, lora_dropout=options.lora_dropout or None)  # fmt: skip
        self._saved = None

    def resume(self, path):
        """Go on from a checkpoint; LlamacyError names what differs where this run is not its continuation."""
        values, arrays = load_checkpoint(path)
        for name, flags in FIXED.items():
            was = values["fixed"].get(name)
            if was != self.fixed[name]:
                what = "other data" if name == "data" else f"{name} {was}, this run has {self.fixed[name]}"
                raise LlamacyError(
                    f"{path}: the checkpoint was made with {what}; give the same {flags}, or start anew without "
                    "--resume"
                )
        losses = array("f", arrays.pop(LOSSES).tobytes())
        self.trainer.load_state({**arrays, **values["trainer"]})
        self.done = Progressed(losses=losses, **values["progressed"])

    def go(self, stop=False):
        """Train; return what ended it: "end", "early" (the validation loss no longer falls) or "stopped"."""
        ended = "end"
        first = self.done.step
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
            if self._save_is_due(step) and self.done.step < self.plan.n_steps:
                self._tried(self.save)
        if self._saved != self.done.step:
            self.save()
        return ended

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
                           n_warmup=self.n_warmup, n_steps=self.plan.n_steps)  # fmt: skip
        result = self.trainer.step([[self.data[i] for i in batch] for batch in self.plan.step(step)], lr)
        seconds = max(time.monotonic() - began, 1e-9)
        speed = result.tokens / seconds
        if not (math.isfinite(result.loss) and math.isfinite(result.grad_norm)):
            raise LlamacyError(
                f"step {step + 1}: the loss is {result.loss} and the gradient's norm {result.grad_norm}: training has "
                "gone astray; what was saved before is unchanged; try a lower --learning-rate"
            )
        epoch = self.plan.epoch(step) + 1
        self.done.step = step + 1
        self.done.losses.append(result.loss)
        self.progress.step(step + 1, epoch, result.loss, speed)
        row = {"step": step + 1, "epoch": epoch, "loss": float(result.loss), "lr": lr,
               "grad_norm": float(result.grad_norm), "tokens": int(result.tokens),
               "trained_tokens": int(result.trained_tokens), "tokens_per_second": speed,
               "flops_per_second": result.flops / seconds}  # fmt: skip
        if self.peak_flops:
            row["flop_utilisation"] = result.flops / seconds / self.peak_flops
        val_loss = self._measure(stop) if self._measuring_is_due(step) else None
        if self.log:
            measured = {} if val_loss is None else {"val_loss": val_loss}
            self.log.write({**row, "peak_rss_bytes": peak_rss_bytes(), **measured})

    def _measuring_is_due(self, step):
        if self.validation is None:
            return False
        every = self.options.eval_every
        regular = (step + 1) % every == 0 if every else self.plan.ends_epoch(step)
        return regular or step + 1 == self.plan.n_steps

    def _measure(self, stop):
        """Return the loss on the validation samples and keep the best adapter; None if stopped meanwhile."""
        if stop:
            return None
        size, n = self.options.batch_size, len(self.validation)
        batches = ([self.validation[i] for i in range(at, min(at + size, n))] for at in range(0, n, size) if not stop)
        loss, _ = self.trainer.evaluate(batches)
        if stop:
            return None
        done, loss = self.done, float(loss)
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
            "n_steps": self.plan.n_steps,
            "fixed": self.fixed,
            "trainer": {name: _plain(value) for name, value in state.items() if name not in arrays},
            "progressed": {name: value for name, value in vars(self.done).items() if name != "losses"},
        }
        arrays[LOSSES] = np.array(self.done.losses, np.float32)
        save_checkpoint(path, values, arrays)


def _plain(value):
    """Return a NumPy scalar as Python's own, which JSON can hold."""
    return value.item() if isinstance(value, np.generic) else value
