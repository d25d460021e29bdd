"""What a run leaves for programs to read: one JSON line per step."""

import json

from llamacy.errors import LlamacyError


class RunLog:
    """Write `{"step", "epoch", "loss", "lr", "grad_norm", "tokens", ...}` lines to `path`, each at once.

    `go_on` appends to what an earlier part of the run wrote. LlamacyError when the file cannot be opened; when writing
    fails later (a full disk), the run is worth more than its log: `warn` is told once and the log ends there.
    """

    def __init__(self, path, warn, go_on=False):
        self.path, self.warn = path, warn
        try:
            self.file = open(path, "a" if go_on else "w", encoding="utf-8")  # noqa: SIM115 (closed by close)
        except OSError as error:
            raise LlamacyError(f"{path}: cannot write the log: {error.strerror}; choose another --log-json") from error

    def write(self, row):
        """Append one step."""
        if self.file is None:
            return
        try:
            self.file.write(json.dumps(row, allow_nan=False) + "\n")
            self.file.flush()
        except OSError as error:
            self.warn(f"warning: {self.path}: cannot write the log: {error.strerror}; training goes on without it")
            self.close()

    def close(self):
        """Close the file; what could not be written is lost."""
        file, self.file = self.file, None
        try:
            if file is not None:
                file.close()
        except OSError as error:
            self.warn(f"warning: {self.path}: the log is not complete: {error.strerror}")
