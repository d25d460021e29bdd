"""Where a run's adapter and checkpoint go, and that they can, before anything is trained."""

import contextlib
import os
import re
import shutil
import tempfile

from llamacy.errors import LlamacyError, UsageError
from llamacy.formats.adapter import FOLDERS, FORMATS, save_adapter
from llamacy.formats.locks import claimed

ADAPTER_FLAGS = "--outdir or --save-path"
DEFAULT_OUTDIR, DEFAULT_NAME, CHECKPOINT = "adapter", "adapter.bin", "checkpoint.gguf"
# llama.cpp's finetune fills this in with the step, and writes one more file with the word LATEST in its place.
PATTERN, LATEST = "ITERATION", "LATEST"


class Outputs:
    """The files of a run: `adapter` and `checkpoint` are the paths of the newest (or best) ones.

    A name with ITERATION in it stands for two files: one per save with the step's number, which stays, and one with
    LATEST, which is replaced. `checkpoint` is "" where none is wanted. `base` is the base model's metadata, which some
    adapter formats need.
    """

    def __init__(
        self, *, outdir=None, lora_out=None, save_path=None, checkpoint_out=None, adapter_format="gguf", base=None
    ):
        folder = outdir or (os.path.dirname(save_path) or "." if save_path else DEFAULT_OUTDIR)
        self._adapter = save_path or os.path.join(folder, lora_out or DEFAULT_NAME)
        self._checkpoint = os.path.join(folder, CHECKPOINT) if checkpoint_out is None else checkpoint_out
        self.adapter_format, self.base = adapter_format, base
        self.adapter, self.checkpoint = named(self._adapter, LATEST), named(self._checkpoint, LATEST)

    def check(self):
        """Create the folders; LlamacyError where a file could not be written later, UsageError for no such format."""
        if self.adapter_format not in FORMATS:
            raise UsageError(f"--lora-format: wanted one of {', '.join(FORMATS)}, got {self.adapter_format!r}")
        check_writable(self.adapter, ADAPTER_FLAGS, folder_wanted=self.adapter_format in FOLDERS)
        if self.checkpoint:
            check_writable(self.checkpoint, "--checkpoint-out")

    def written(self):
        """Return (path, flags that choose it) of the adapter and the checkpoint."""
        return [(self.adapter, ADAPTER_FLAGS), (self.checkpoint, "--outdir or --checkpoint-out")]

    def numbered(self, step):
        """Return (adapter, checkpoint) paths with the step's number, "" for those that have no place for one."""
        paths = (self._adapter, self._checkpoint)
        return tuple(named(path, str(step)) if named(path, LATEST) != path else "" for path in paths)

    def prune(self, most):
        """Remove of the files with a step's number all but the `most` newest."""
        for pattern in filter(None, (self._adapter, self._checkpoint)):
            folder, name = os.path.split(pattern)
            if PATTERN not in name:
                continue
            number = re.compile(r"(\d+)".join(re.escape(part) for part in name.split(PATTERN)))
            found = [(int(match[1]), match[0]) for match in map(number.fullmatch, os.listdir(folder or ".")) if match]
            for _, old in sorted(found)[:-most]:
                path = os.path.join(folder, old)
                with contextlib.suppress(OSError):
                    shutil.rmtree(path) if os.path.isdir(path) and not os.path.islink(path) else os.remove(path)

    def save_adapter(self, path, adapter):
        """Write the adapter at `path`, whole or not at all; return the names of what its format cannot carry."""
        return save_adapter(path, adapter, self.adapter_format, self.base)


def claim(stack, outputs, inputs):
    """Have files for this process alone until the ExitStack `stack` is closed, or the process is gone.

    outputs  (path, flag) of each file that a run writes, "" or None for none; devices and pipes are left out
    inputs   paths of files that it reads, of which none may be written
    LlamacyError where another process has one of them, UsageError where one name is given for two things.
    """
    taken = {os.path.realpath(path): "is read by this run" for path in inputs}
    for path, flag in outputs:
        if not path or (os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path))):
            continue
        real = os.path.realpath(path)
        if real in taken:
            raise UsageError(f"{path}: {taken[real]}; choose another {flag}")
        taken[real] = f"is written as {flag} says"
        stack.enter_context(claimed(path, f"wait until it ends, or choose another {flag}"))


def named(path, word):
    """Return `path` with ITERATION in its last part replaced."""
    folder, name = os.path.split(path)
    return os.path.join(folder, name.replace(PATTERN, word))


def check_writable(path, flag, folder_wanted=False):
    """Create the folder of `path` and try to write there; LlamacyError names the folder and the flag to change."""
    folder = os.path.dirname(os.path.realpath(path))
    if not folder_wanted and (os.path.isdir(path) or path.endswith(os.sep)):
        raise LlamacyError(f"{path}: is a folder, wanted a file's name; choose another {flag}")
    if folder_wanted and os.path.exists(path) and not os.path.isdir(path):
        raise LlamacyError(f"{path}: is a file, wanted a folder for this --lora-format; choose another {flag}")
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise LlamacyError(f"{folder}: cannot write there: {error.strerror}; choose another {flag}") from error
