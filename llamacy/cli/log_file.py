"""`--log-file`: what a command says on stderr, in a file as well."""

import contextlib
import sys

from llamacy.cli.values import optional


def add_log_file_flag(group):
    """Add --log-file; see log_to."""
    optional(group, "--log-file", dest="log_file", metavar="FILE", help="write what goes to stderr to this file too")


class Both:
    """A text stream that writes to two; the second may fail without harm to the first."""

    def __init__(self, stream, file):
        self._stream, self._file = stream, file

    def write(self, text):
        with contextlib.suppress(OSError, ValueError):
            self._file.write(text)
            self._file.flush()
        return self._stream.write(text)

    def __getattr__(self, name):
        return getattr(self._stream, name)


def log_to(path):
    """From now on write what goes to sys.stderr to the file at `path` too (None: not); it begins empty."""
    if path is not None:
        sys.stderr = Both(sys.stderr, open(path, "w", encoding="utf-8", errors="backslashreplace"))  # noqa: SIM115
