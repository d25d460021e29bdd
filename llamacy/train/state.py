"""What a checkpoint says of a run, checked field by field before anything is made of it."""

import math
import sys
from array import array
from dataclasses import dataclass, field

import numpy as np

from llamacy.errors import LlamacyError, shown
from llamacy.train.checkpoint import UNKNOWN, damaged, load_checkpoint

# Arrays of a checkpoint with a number for each step, and the fields of Progressed that they are.
LOSSES = "llamacy.losses"
COURSE = {LOSSES: "losses", "llamacy.grad_norms": "grad_norms", "llamacy.rates": "rates"}


def _numbers():
    return field(default_factory=lambda: array("f"))


@dataclass
class Progressed:
    """How far a run is; with the trainer's own state this is all that it needs to go on.

    step        optimiser steps done; of each the loss, the gradient's norm before clipping (both NaN where it was
                skipped) and the learning rate
    n_skipped   of these steps, those whose loss or gradient was none, so that nothing was changed; n_astray: of the
                newest ones, in a row
    known_from  steps before it, which a checkpoint of an earlier version counted, have neither norm nor rate: NaN
    validation  [step, loss] of each measurement; best_loss and best_step are inf and 0 before the first that was kept
    n_worse     measurements since the best one
    """

    step: int = 0
    losses: array = _numbers()
    grad_norms: array = _numbers()
    rates: array = _numbers()
    validation: list = field(default_factory=list)
    best_loss: float = math.inf
    best_step: int = 0
    n_worse: int = 0
    n_skipped: int = 0
    n_astray: int = 0
    known_from: int = 0

    def add(self, loss, grad_norm, rate):
        """Take in what a step found; loss and grad_norm None where it was skipped."""
        self.step += 1
        skipped = loss is None
        self.n_skipped, self.n_astray = self.n_skipped + skipped, self.n_astray + 1 if skipped else 0
        self.losses.append(math.nan if skipped else loss)
        self.grad_norms.append(math.nan if skipped else grad_norm)
        self.rates.append(rate)

    @property
    def n_updates(self):
        """How often the adapter was changed."""
        return self.step - self.n_skipped

    @property
    def first_loss(self):
        """That of what training began with, None before there is one."""
        return next((loss for loss in self.losses if loss == loss), None)

    @property
    def last_loss(self):
        """The newest that there is, None without."""
        return next((loss for loss in reversed(self.losses) if loss == loss), None)

    def go_back(self, n_updates):
        """Be what it was when the adapter had been changed so often."""
        self.step = 0
        while n_updates:
            n_updates -= self.losses[self.step] == self.losses[self.step]
            self.step += 1
        kept = self.losses[: self.step]
        self.n_skipped, self.n_astray = sum(loss != loss for loss in kept), 0
        for name in COURSE.values():
            del getattr(self, name)[self.step :]

    def plain(self):
        """Return what is no array, by name."""
        return {name: value for name, value in vars(self).items() if name not in COURSE.values()}

    def forget_best(self):
        """Begin measuring anew."""
        self.validation, self.best_loss, self.best_step, self.n_worse = [], math.inf, 0, 0


@dataclass(frozen=True)
class State:
    """A checkpoint's content.

    n_steps     of the run in all
    fixed       what it was set up with, by name, as JSON has it; UNKNOWN for what the checkpoint is too old for
    trainer     name -> array or whole number
    validation  the id of the validation data, None for none, UNKNOWN
    """

    n_steps: int
    fixed: dict
    trainer: dict
    progressed: Progressed
    validation: object


def load_state(path, fixed, defaults=None):
    """Return the State in a checkpoint; `fixed` are the names of settings that it must hold.

    defaults: what settings were before checkpoints held them.
    LlamacyError, one line, for a file that is no checkpoint, damaged, or of a later version.
    """
    values, arrays = load_checkpoint(path)
    check = _Check(path)
    check.keys("the values", values, {"n_steps", "fixed", "trainer", "progressed", "validation"})
    if isinstance(values["fixed"], dict):
        values["fixed"] = (defaults or {}) | values["fixed"]
    check.keys("fixed", values["fixed"], set(fixed))
    check.whole("n_steps", values["n_steps"], 1)
    check.that(isinstance(values["trainer"], dict), "trainer", values["trainer"], "a table")
    validation = values["validation"]
    known = validation is None or validation is UNKNOWN or type(validation) is int
    check.that(known, "validation", validation, "a whole number or null")
    progressed = check.progressed(values["progressed"], arrays, values["n_steps"])
    check.that(validation is not None or not progressed.validation, "validation", validation, "what was measured with")
    twice = arrays.keys() & values["trainer"].keys()
    check.that(not twice, "trainer", twice, "each name once")
    return State(values["n_steps"], values["fixed"], {**arrays, **values["trainer"]}, progressed, validation)


def check_trainer(path, found, wanted, n_updates):
    """LlamacyError unless `found` has what `wanted` has, the state of a trainer set up alike; n_updates: steps done,
    without those that were skipped."""
    check = _Check(path)
    check.keys("the trainer's state", found, set(wanted))
    for name, value in wanted.items():
        if not isinstance(value, np.ndarray):
            check.whole(name, found[name], 0)
        elif not isinstance(found[name], np.ndarray) or found[name].shape != value.shape:
            shape = getattr(found[name], "shape", "none")
            raise LlamacyError(
                f"{path}: {name} has shape {shape}, this model and rank want {value.shape}; give the same --model, "
                "--rank and --target-modules, or start anew without --resume"
            )
        else:
            good = found[name].dtype == value.dtype and np.isfinite(found[name]).all()
            check.that(good, name, found[name], f"finite {value.dtype} numbers")
    count = found.get("n_steps", n_updates)
    check.that(count == n_updates, "the trainer's n_steps", count, f"{n_updates}, as the progress says")


class _Check:
    """Tests of one checkpoint's fields, each an error that names the field, what was wanted and what is there."""

    def __init__(self, path):
        self.path = path

    def that(self, good, name, got, wanted):
        if not good:
            raise damaged(self.path, f"{name}: wanted {wanted}, got {shown(got)}")

    def keys(self, name, table, wanted):
        """A table with exactly these keys."""
        self.that(isinstance(table, dict), name, table, "a table")
        missing, more = sorted(wanted - table.keys()), sorted(table.keys() - wanted)
        self.that(not missing, name, "none", f"the field {shown(missing[0])}" if missing else "")
        self.that(not more, name, f"the field {shown(more[0])}" if more else "", "no others than are known")

    def whole(self, name, value, low, high=2**63 - 1):
        good = type(value) is int and low <= value <= high
        self.that(good, name, value, f"a whole number from {low}" + (f" to {high}" if high < 2**63 - 1 else ""))

    def finite(self, name, value):
        # compared and not math.isfinite: a whole number may be larger than any float
        good = type(value) in (int, float) and abs(value) <= sys.float_info.max
        self.that(good, name, value, "a finite number")

    def row(self, name, numbers, absent):
        """Return an array with a number for each step as one of Python's, NaN where `absent` (n,) says so."""
        good = getattr(numbers, "dtype", None) == np.float32 and numbers.ndim == 1 and not np.isinf(numbers).any()
        self.that(good, name, numbers, "a row of f32 numbers, none infinite")
        self.that(len(numbers) == len(absent), name, f"{len(numbers)}", f"{len(absent)}, one for each step")
        self.that((np.isnan(numbers) == absent).all(), name, "others", "no number where a step was skipped, only there")
        return array("f", numbers.tobytes())

    def course(self, table, arrays, step):
        """Return {field: a number for each step}. Skipped steps, by the losses, have no gradient either."""
        losses = arrays.get(LOSSES)
        known = getattr(losses, "dtype", None) == np.float32 and losses.ndim == 1
        skipped = np.isnan(losses) if known and len(losses) == step else np.zeros(step, bool)
        self.whole("known_from", table["known_from"], 0, step)
        early = np.arange(step) < table["known_from"]
        unknown = np.full(step if early.all() else 0, np.nan, np.float32)
        absent = {"losses": skipped, "grad_norms": skipped | early, "rates": early}
        last = step - 1 - max(np.flatnonzero(~skipped), default=-1)
        self.whole("n_skipped", table["n_skipped"], int(skipped.sum()), int(skipped.sum()))
        self.whole("n_astray", table["n_astray"], int(last), int(last))
        # losses are in the files of all versions
        return {
            field: self.row(f"the {field}", arrays.pop(name, None if name == LOSSES else unknown), absent[field])
            for name, field in COURSE.items()
        }

    def progressed(self, table, arrays, n_steps):
        """Return the Progressed of its fields and arrays, which are taken out of `arrays`."""
        self.keys("progressed", table, set(Progressed().plain()))
        self.whole("step", table["step"], 0, n_steps)
        step = table["step"]
        rows = self.course(table, arrays, step)
        measured, last = table["validation"], 0
        self.that(isinstance(measured, list), "validation", measured, "a list")
        for row in measured:
            self.that(isinstance(row, list) and len(row) == 2, "validation", row, "pairs of step and loss")
            self.whole("a step of validation", row[0], last + 1, step)
            self.finite("a loss of validation", row[1])
            last = row[0]
        self.whole("best_step", table["best_step"], 0, step)
        best = [table["best_step"], table["best_loss"]]
        known = best in measured if best[0] else best[1] == math.inf
        self.that(known and type(best[1]) is float, "best_loss", best[1], f"the validation loss of step {best[0]}")
        worse = 0
        for row in measured:
            worse = 0 if row[0] <= best[0] or row[1] < best[1] else worse + 1
        self.whole("n_worse", table["n_worse"], worse, worse)
        return Progressed(**rows, **table)
