"""What a run leaves for programs to read: one JSON line per step."""

import contextlib
import json
import math
import os

from llamacy.errors import LlamacyError
from llamacy.formats.atomic import atomic_write


class RunLog:
    """Write `{"step", "epoch", "loss", "lr", "grad_norm", "tokens", ...}` lines to `path`, each at once.

    `done`: None for a new log; of a run that goes on the steps that were done: the log is cut back to these and goes
    on. LlamacyError when the file cannot be opened; when writing fails later (a full disk), the run is worth more than
    its log: `warn` is told once and the log ends there.
    """

    def __init__(self, path, warn, done=None):
        self.path, self.warn, self._last = path, warn, None
        try:
            n_cut = 0 if done is None else cut_back(path, done)
            if n_cut:
                warn(f"{path}: {n_cut} lines of steps after {done} are cut off, which are done again")
            self.file = open(path, "w" if done is None else "a", encoding="utf-8")  # noqa: SIM115 (closed by close)
        except OSError as error:
            raise LlamacyError(f"{path}: cannot write the log: {error.strerror}; choose another --log-json") from error

    def write(self, row):
        """Append one step."""
        if self.file is None:
            return
        try:
            line = json.dumps(plain(row), allow_nan=False) + "\n"
            self.file.write(line)
            self.file.flush()
            self._last = line.encode(), row
        except OSError as error:
            self.warn(f"warning: {self.path}: cannot write the log: {error.strerror}; training goes on without it")
            self.close()

    def amend(self, row):
        """Write the newest step's line anew with what was found later; `row` has that step's number."""
        if self.file is None or self._last is None or not os.path.isfile(self.path):
            return
        line, merged = self._last
        try:
            with open(self.path, "r+b") as file:
                file.seek(-len(line), os.SEEK_END)
                if file.read() == line:
                    file.seek(-len(line), os.SEEK_END)
                    file.write(json.dumps(plain(merged | row), allow_nan=False).encode() + b"\n")
        except OSError as error:
            self.warn(f"warning: {self.path}: cannot write the log: {error.strerror}")

    def close(self):
        """Close the file; what could not be written is lost."""
        file, self.file = self.file, None
        try:
            if file is not None:
                file.close()
        except OSError as error:
            self.warn(f"warning: {self.path}: the log is not complete: {error.strerror}")


def plain(row):
    """Return a row as JSON can hold it: null where a number is none, inner tables' too."""
    if isinstance(row, dict):
        return {key: plain(value) for key, value in row.items()}
    return None if isinstance(row, float) and not math.isfinite(row) else row


def cut_back(path, done):
    """Leave in a log the lines of steps 1 to `done`, of a step that was done twice the later one, whole or not at all.

    Lines that are no step (the half one of a process that was killed) go too. Returns how many lines went; what is not
    a file on a disk stays as it is.
    """
    if not os.path.isfile(path):
        return 0
    kept, n_lines, line = [], 0, b"\n"  # kept: (step, number of its line), both rising
    with open(path, "rb") as file:
        for n_lines, line in enumerate(file, 1):
            step = _step_of(line)
            while step is not None and kept and kept[-1][0] >= step:
                kept.pop()
            if step is not None and step <= done:
                kept.append((step, n_lines))
    if len(kept) == n_lines and line.endswith(b"\n"):
        return 0
    wanted = {number for _, number in kept}
    with open(path, "rb") as file, atomic_write(path) as new:
        for number, line in enumerate(file, 1):
            if number in wanted:
                new.write(line.rstrip(b"\r\n") + b"\n")
    return n_lines - len(kept)


def _step_of(line):
    """Return the step that a line of a log is of, None for none."""
    with contextlib.suppress(ValueError, RecursionError, AttributeError):
        step = json.loads(line).get("step")
        if type(step) is int and step > 0:
            return step
    return None
