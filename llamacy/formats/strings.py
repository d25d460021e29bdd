"""A list of strings in one buffer: a vocabulary of 260,000 tokens costs three arrays and no Python strings."""

from collections.abc import Sequence

import numpy as np


class StringArray(Sequence):
    """Strings as views into one buffer.

    buffer   uint8 (n_bytes,)    usually as they stood in a file, lengths between them
    starts   int64 (n_strings,)  where each string begins in `buffer`
    lengths  int64 (n_strings,)  its bytes
    """

    def __init__(self, buffer, starts, lengths):
        self.buffer, self.starts, self.lengths = buffer, starts, lengths

    @classmethod
    def of(cls, strings):
        """Return a StringArray of Python strings or bytes."""
        pieces = [piece.encode() if isinstance(piece, str) else bytes(piece) for piece in strings]
        lengths = np.array([len(piece) for piece in pieces], np.int64)
        starts = np.zeros(len(pieces), np.int64)
        np.cumsum(lengths[:-1], out=starts[1:])
        return cls(np.frombuffer(b"".join(pieces), np.uint8), starts, lengths)

    def __len__(self):
        return len(self.starts)

    def bytes(self, index):
        """Return string `index` as bytes."""
        start = int(self.starts[index])
        return self.buffer[start : start + int(self.lengths[index])].tobytes()

    def __getitem__(self, index):
        """Return string `index` as str (bad UTF-8 replaced), or a list of them for a slice."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self.bytes(index).decode("utf-8", "replace")

    def __eq__(self, other):
        if isinstance(other, StringArray):
            return len(self) == len(other) and all(self.bytes(i) == other.bytes(i) for i in range(len(self)))
        return list(self) == other

    __hash__ = None

    def __repr__(self):
        return f"StringArray({len(self)} strings)"
