"""The outputs of layers that are not trained, kept between epochs: they are a function of a sample's tokens alone.

A sample's values lie in a temporary file without a name, as f32, so that a run with it is bit for bit the run without.
The system's file cache serves them as fast as memory would, and takes that memory back when others need it.
"""

import contextlib
import os
import tempfile
from hashlib import blake2b

import numpy as np

# At most this much, and at most this share of what is free where the file lies.
LIMIT = 8 << 30
SHARE = 0.5
# Their places are kept in memory, some 200 bytes each.
MOST = 1 << 16


class PrefixCache:
    """Rows f32 (T, width) by the tokens (T,) they belong to; what does not fit in `limit` bytes is not kept."""

    def __init__(self, folder, width, limit=LIMIT):
        self.width = width
        self.places = {}
        self.used = 0
        self.limit = 0
        self.file = None
        with contextlib.suppress(OSError):
            # without a place to write, training goes on without
            self.file = tempfile.TemporaryFile(dir=folder, prefix="llamacy-")  # noqa: SIM115 (lives as long as self)
            system = os.fstatvfs(self.file.fileno())
            self.limit = min(limit, int(SHARE * system.f_bavail * system.f_frsize))

    def lookup(self, tokens, starts, rows):
        """Fill rows (sum T, width) for sequences tokens[starts[i] : starts[i + 1]]; False when any is missing."""
        parts = [(lo, hi, self.places.get(_key(tokens[lo:hi]))) for lo, hi in zip(starts, starts[1:], strict=False)]
        if any(place is None for _, _, place in parts):
            return False
        return all(self._read(place, rows[lo:hi]) for lo, hi, place in parts)

    def store(self, tokens, starts, rows):
        """Keep the rows of sequences, as far as there is room."""
        for lo, hi in zip(starts, starts[1:], strict=False):
            key, size = _key(tokens[lo:hi]), rows[lo:hi].nbytes
            if key in self.places or self.used + size > self.limit or len(self.places) >= MOST:
                continue
            try:
                written = os.pwrite(self.file.fileno(), memoryview(rows[lo:hi]).cast("B"), self.used)
            except OSError:
                written = 0
            if written != size:
                self.limit = self.used
                return
            self.places[key] = self.used
            self.used += size

    def _read(self, place, rows):
        try:
            return os.preadv(self.file.fileno(), [memoryview(rows).cast("B")], place) == rows.nbytes
        except OSError:
            return False


def _key(tokens):
    return blake2b(np.ascontiguousarray(tokens, np.int32).tobytes(), digest_size=16).digest()
