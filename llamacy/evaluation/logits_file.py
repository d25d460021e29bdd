"""llama.cpp's file of all log-probabilities (`--kl-divergence-base`): 2 bytes for each word of the vocabulary.

    8 bytes "_logits_", u32 n_ctx, i32 n_vocab, i32 n_windows | tokens i32 (n_windows * n_ctx,) | positions
    position: f32 step, f32 lowest, n_vocab x u16 (one more where n_vocab is odd); ln P_i = lowest + step * value

`lowest` is at most 16 below the highest: what is less likely than that is written as it. What lies below -16 does not
count in llama.cpp's divergence, nor in this.
"""

import contextlib
import os

import numpy as np

from llamacy.errors import LlamacyError
from llamacy.evaluation.divergence import Compared, log_norms
from llamacy.evaluation.reference import Rows, scored
from llamacy.formats.atomic import atomic_write

MAGIC = b"_logits_"
RANGE = np.float32(16)


def row_bytes(n_vocab):
    """Return the bytes of one position."""
    return 8 + 2 * (n_vocab + n_vocab % 2)


class LogitsWriter:
    """Writes such a file: `add` for the parts of all windows."""

    def __init__(self, file, header, tokens):
        self._file = file
        sizes = [header[name] for name in ("n_ctx", "n_vocab", "n_windows")]
        file.write(MAGIC + np.array(sizes, "<i4").tobytes() + np.asarray(tokens, "<i4").tobytes())

    def add(self, logits, targets):
        """Keep some positions: logits f32 (n, n_vocab)."""
        for row, norm in zip(logits, log_norms(logits), strict=True):
            high = row.max()
            low = max(row.min(), high - RANGE)
            step = (high - low) / np.float32(65535)
            steps = np.rint((np.maximum(row, low) - low) / step) if step else np.zeros(len(row))
            self._file.write(np.array([step, low - norm], "<f4").tobytes() + steps.astype("<u2").tobytes())
            self._file.write(b"\0\0" * (len(row) % 2))


@contextlib.contextmanager
def write_logits(path, header, tokens):
    """Give a LogitsWriter of the file at `path`, which appears whole when the block ends well, or not at all."""
    with atomic_write(path) as file:
        yield LogitsWriter(file, header, tokens)


class LogitsFile(Rows):
    """Such a file that is read; what it offers is what Reference does. It does not tell which model it is of."""

    model = digest = ""

    def __init__(self, file, path):
        self._file, self.path = file, path
        size = file.seek(0, os.SEEK_END)
        file.seek(len(MAGIC))
        head = file.read(12)
        if len(head) != 12:
            raise LlamacyError(f"{path}: the file is cut off in its head; make it again")
        self.n_ctx, self.n_vocab, self.n_windows = (int(value) for value in np.frombuffer(head, "<i4"))
        self._begin = 20 + 4 * self.n_ctx * self.n_windows
        if self.n_ctx < 4 or self.n_vocab < 1 or self.n_windows < 1:
            raise LlamacyError(f"{path}: its sizes cannot be: {self.n_windows} windows of {self.n_ctx} tokens")
        wanted = self._begin + self.n_windows * scored(self.n_ctx) * row_bytes(self.n_vocab)
        if size != wanted:
            raise LlamacyError(f"{path}: wanted {wanted} bytes by its head, got {size}: cut off, or of another kind")
        self.tokens = np.frombuffer(file.read(4 * self.n_ctx * self.n_windows), "<i4")
        if not 0 <= self.tokens.min() <= self.tokens.max() < self.n_vocab:
            raise LlamacyError(f"{path}: holds token ids that its vocabulary of {self.n_vocab} words does not have")

    def compare(self, logits, targets):
        """Return the Compared of the next positions: logits f32 (n, n_vocab) of the model, targets the n tokens."""
        norms, rows, nbytes = log_norms(logits), [], row_bytes(self.n_vocab)
        for row, norm, target in zip(logits, norms, targets, strict=True):
            content = self._file.read(nbytes)
            if len(content) != nbytes:
                raise LlamacyError(f"{self.path}: became shorter while it was read")
            step, low = np.frombuffer(content, "<f4", 2)
            logp = step * np.frombuffer(content, "<u2", self.n_vocab, 8) + low
            if not (np.isfinite(step) and np.isfinite(low)):
                raise LlamacyError(f"{self.path}: holds a probability that is no number")
            counted = logp > -RANGE
            kl = np.exp(logp) * (logp - (row - np.float32(norm)))
            same = int(row.argmax()) == int(logp.argmax())
            rows.append((kl.sum(where=counted, dtype=np.float64), norm - row[target], -logp[target], same))
        kl, nll, base, same = zip(*rows, strict=True)
        return Compared(np.array(kl), np.array(nll, np.float64), np.array(base, np.float64), np.array(same))

    def close(self):
        """Close the file."""
        self._file.close()
