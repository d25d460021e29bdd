"""What a checkpoint says of a run, checked field by field before anything is made of it."""

import math
import sys
from array import array
from dataclasses import dataclass, field

import numpy as np

from llamacy.errors import LlamacyError, shown
from llamacy.train.checkpoint import UNKNOWN, damaged, load_checkpoint

LOSSES = "llamacy.losses"


@dataclass
class Progressed:
    """How far a run is; with the trainer's own state this is all that it needs to go on.

    step        optimiser steps done, and `losses` of each
    validation  [step, loss] of each measurement; best_loss and best_step are inf and 0 before the first that was kept
    n_worse     measurements since the best one
    """

    step: int = 0
    losses: array = field(default_factory=lambda: array("f"))
    validation: list = field(default_factory=list)
    best_loss: float = math.inf
    best_step: int = 0
    n_worse: int = 0

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
    losses = arrays.pop(LOSSES, None)
    good = losses is not None and losses.dtype == np.float32 and losses.ndim == 1 and np.isfinite(losses).all()
    check.that(good, "the losses", losses, "a row of finite f32 numbers")
    progressed = check.progressed(values["progressed"], losses, values["n_steps"])
    check.that(validation is not None or not progressed.validation, "validation", validation, "what was measured with")
    twice = arrays.keys() & values["trainer"].keys()
    check.that(not twice, "trainer", twice, "each name once")
    return State(values["n_steps"], values["fixed"], {**arrays, **values["trainer"]}, progressed, validation)


def check_trainer(path, found, wanted, step):
    """LlamacyError unless `found` has what `wanted` has, the state of a trainer set up alike; `step`: steps done."""
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
    count = found.get("n_steps", step)
    check.that(count == step, "the trainer's n_steps", count, f"{step}, as the progress says")


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

    def progressed(self, table, losses, n_steps):
        """Return the Progressed of its fields."""
        self.keys("progressed", table, {"step", "validation", "best_loss", "best_step", "n_worse"})
        self.whole("step", table["step"], 0, n_steps)
        step = table["step"]
        self.that(len(losses) == step, "the losses", f"{len(losses)}", f"{step}, one for each step")
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
        return Progressed(losses=array("f", losses.tobytes()), **table)
