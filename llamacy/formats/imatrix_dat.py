"""Importance matrices as llama.cpp's `imatrix` wrote them until 2025 and ik_llama.cpp's still does (`imatrix.dat`).

i32 number of entries; for each i32 length of the tensor's name, the name, i32 calls, i32 number of values and f32
values: the columns' mean squares times the calls, of stacked matrices one after the other. Then, in files since 2024,
i32 chunks, i32 length of the data's name and the name. (Source: common/imatrix-loader.cpp of llama.cpp.)
"""

import numpy as np

from llamacy.errors import shown
from llamacy.formats.mapped import Cursor

MAX_ENTRIES, MAX_NAME, MAX_DATASET = 1 << 16, 1 << 10, 1 << 16


def is_dat(source):
    """Tell whether an open MappedFile may be such a file: it has no magic, but its first numbers and name are small."""
    cursor = Cursor(source)
    if cursor.left < 12:
        return False
    entries, length = cursor.unpack("2i", "the header")
    name = source.bytes[8 : 8 + max(0, min(length, MAX_NAME))].tobytes()
    return 1 <= entries <= MAX_ENTRIES and 1 <= length <= MAX_NAME and name.isascii() and b"\0" not in name


def read_dat(source):
    """Return ({tensor name: mean squares float32 (1, n)}, the data's name, chunks) of an open MappedFile."""
    cursor, columns = Cursor(source), {}
    (n_entries,) = cursor.unpack("i", "the number of entries")
    for _ in range(n_entries):
        name, means = _entry(cursor)
        if name in columns:
            raise source.error(f"{shown(name)} has two entries", "the file is damaged")
        columns[name] = means
    chunks, dataset = 0, ""
    if cursor.left:
        chunks, length = cursor.unpack("2i", "what follows the entries")
        if length < 0:
            raise source.error(f"a name of {length} bytes", "the file is damaged")
        dataset = cursor.name(length, MAX_DATASET, "the data's name") if length else ""
    if cursor.left:
        raise source.error(f"{cursor.left} bytes follow the last entry", "the file is damaged")
    return columns, dataset, max(0, chunks)


def _entry(cursor):
    """Return the next entry's (name, mean squares)."""
    source = cursor.source
    (length,) = cursor.unpack("i", "the length of a name")
    if length < 1:
        raise source.error(f"a name of {length} bytes", "the file is damaged")
    name = cursor.name(length, MAX_NAME, "a tensor's name")
    calls, n = cursor.unpack("2i", "an entry's numbers", name)
    if n < 1:
        raise source.error(f"{shown(name)} has {n} values, wanted at least one", "the file is damaged")
    values = np.frombuffer(cursor.raw(4 * n, "the values of", name), "<f4")
    if not (np.isfinite(values).all() and (values >= 0).all()):
        raise source.error(f"{shown(name)} holds values that are negative or not finite", "the file is damaged")
    return name, (values / np.float32(calls) if calls > 0 else values).astype(np.float32)[None]
