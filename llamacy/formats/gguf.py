"""Read GGUF v1, v2 and v3 (little-endian) without copying tensors.

Layout (ggml's docs/gguf.md; v1 had 32-bit counts and lengths): "GGUF", u32 version, tensor count, key count;
keys: name, u32 type, value; tensors: name, u32 n_dims, extents (fastest first), u32 type, u64 offset; padding to the
alignment; data.
"""

import numpy as np

from llamacy.errors import shown
from llamacy.formats.layout import ModelFile, check_distinct, tensor_info
from llamacy.formats.mapped import Cursor
from llamacy.formats.strings import StringArray
from llamacy.kernels.text.scan import scan_strings

MAGIC = b"GGUF"
DEFAULT_ALIGNMENT = 32
MAX_DIMS = 4

# Bounds on what becomes Python objects, far above any real file (the largest have some thousand tensors).
MAX_KEYS = 1 << 16
MAX_TENSORS = 1 << 18
MAX_NAME = 1 << 16
MAX_NESTING = 4
MAX_NESTED = 1 << 12

# GGUF's number of a value type -> our name for it, NumPy's dtype, struct's letter.
SCALARS = {
    0: ("u8", "<u1", "B"),
    1: ("i8", "<i1", "b"),
    2: ("u16", "<u2", "H"),
    3: ("i16", "<i2", "h"),
    4: ("u32", "<u4", "I"),
    5: ("i32", "<i4", "i"),
    6: ("f32", "<f4", "f"),
    7: ("bool", "?", "?"),
    10: ("u64", "<u8", "Q"),
    11: ("i64", "<i8", "q"),
    12: ("f64", "<f8", "d"),
}
STRING, ARRAY = 8, 9


def read_gguf(source):
    """Return the ModelFile of an open MappedFile that begins with "GGUF". Everything read is checked first."""
    reader = _Reader(source)
    metadata, value_types = reader.metadata()
    tensors = reader.tensors(_alignment(source, metadata))
    # All of the header was copied: nobody comes back to its pages.
    source.release(0, reader.cursor.position)
    return ModelFile([source], "gguf", reader.version, metadata, tensors, value_types)


def _alignment(source, metadata):
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if isinstance(alignment, int) and 0 < alignment < 1 << 32 and alignment & (alignment - 1) == 0:
        return alignment
    raise source.error(f"general.alignment is {shown(alignment)}, wanted a power of two", "the file is damaged")


class _Reader:
    """The header, from front to back: construct, then metadata(), then tensors()."""

    def __init__(self, source):
        self.source = source
        self.cursor = Cursor(source, len(MAGIC))
        self.version = self.cursor.u32("the version")
        self._check_version()
        self.width = 4 if self.version == 1 else 8
        self.n_tensors = self._number("the tensor count")
        self.n_keys = self._number("the key count")
        self.nested = 0

    def _check_version(self):
        swapped = int.from_bytes(self.version.to_bytes(4, "little"), "big")
        if self.version & 0xFFFF == 0 and 1 <= swapped <= 0xFFFF:
            raise self.source.error(
                f"is a big-endian GGUF file (version {swapped}), wanted little-endian",
                "convert it with `gguf-convert-endian FILE little` of the gguf package",
            )
        if self.version not in (1, 2, 3):
            raise self.source.error(
                f"GGUF version {self.version}, wanted 1, 2 or 3", "damaged, or newer than this program"
            )

    def _number(self, what, of=None):
        return self.cursor.unpack("I" if self.width == 4 else "Q", what, of)[0]

    def _count(self, count, limit, smallest, what, of=None):
        """Return `count` if the rest of the file can hold that many entries of `smallest` bytes, at most `limit`."""
        most = min(limit, self.cursor.left // smallest)
        if count > most:
            what = what if of is None else f"{what} {shown(of)}"
            raise self.source.error(f"truncated or damaged: {what} is {count}, at most {most} fit", "download it again")
        return count

    def _name(self, what):
        return self.cursor.name(self._number(f"the length of {what}"), MAX_NAME, what)

    def metadata(self):
        """Return (dict of values, dict of the scalars' type names)."""
        metadata, value_types = {}, {}
        for _ in range(self._count(self.n_keys, MAX_KEYS, self.width + 5, "the key count")):
            key = self._name("key")
            if key in metadata:
                raise self.source.error(f"key {shown(key)} stands twice", "the file is damaged")
            number = self.cursor.u32("the type of", key)
            metadata[key] = self._value(number, key, 0)
            if number in SCALARS:
                value_types[key] = SCALARS[number][0]
        return metadata, value_types

    def _value(self, number, key, depth):
        if number in SCALARS:
            name, _, letter = SCALARS[number]
            value = self.cursor.unpack("B" if name == "bool" else letter, "key", key)[0]
            return bool(value) if name == "bool" else value
        if number == STRING:
            length = self._number("the length of", key)
            return self.cursor.raw(length, "key", key).decode("utf-8", "replace")
        if number == ARRAY:
            return self._array(key, depth)
        raise self.source.error(f"key {shown(key)} has unknown type {number}", "damaged, or newer than this program")

    def _array(self, key, depth):
        number = self.cursor.u32("the element type of", key)
        count = self._number("the length of", key)
        if number in SCALARS:
            return self._numbers(number, count, key)
        if number == STRING:
            return self._strings(count, key)
        if number == ARRAY:
            return self._nested(count, key, depth)
        raise self.source.error(f"array {shown(key)} has unknown type {number}", "damaged, or newer than this program")

    def _numbers(self, number, count, key):
        name, dtype, _ = SCALARS[number]
        dtype = np.dtype(np.uint8 if name == "bool" else dtype)
        start = self.cursor.take(count * dtype.itemsize, "array", key)
        values = self.source.bytes[start : start + count * dtype.itemsize].view(dtype)
        return values != 0 if name == "bool" else values.copy()

    def _strings(self, count, key):
        self._count(count, 1 << 62, self.width, "the length of", key)
        begin = self.cursor.position
        starts, lengths = np.empty(count, np.int64), np.empty(count, np.int64)
        end = scan_strings(self.source.bytes, begin, self.width, starts, lengths)
        if end < 0:
            raise self.source.error(
                f"truncated or damaged: string {-1 - end} of {shown(key)} leaves the file", "download it again"
            )
        self.cursor.position = end
        starts -= begin
        return StringArray(self.source.bytes[begin:end].copy(), starts, lengths)

    def _nested(self, count, key, depth):
        """Return an array of arrays as a list; depth and number are bounded, for each costs a Python object."""
        self.nested += self._count(count, MAX_NESTED, self.width + 4, "the length of", key)
        if depth + 1 >= MAX_NESTING or self.nested > MAX_NESTED:
            raise self.source.error(
                f"array {shown(key)} is nested deeper than {MAX_NESTING} or holds more than {MAX_NESTED} arrays",
                "the file is damaged",
            )
        return [self._array(key, depth + 1) for _ in range(count)]

    def tensors(self, alignment):
        """Return the list of TensorInfo, offsets made absolute, none outside the file or across another."""
        cursor, entries = self.cursor, []
        for _ in range(self._count(self.n_tensors, MAX_TENSORS, self.width + 17, "the tensor count")):
            name = self._name("tensor name")
            n_dims = cursor.u32("the dimensions of", name)
            if n_dims > MAX_DIMS:
                what = f"tensor {shown(name)} has {n_dims} dimensions, wanted at most {MAX_DIMS}"
                raise self.source.error(what, "the file is damaged")
            extents = cursor.unpack(("I" if self.width == 4 else "Q") * n_dims, "the shape of", name)
            number, offset = cursor.unpack("IQ", "the place of", name)
            if offset % alignment:
                what = f"tensor {shown(name)} lies at {offset}, wanted a multiple of {alignment}"
                raise self.source.error(what, "the file is damaged")
            entries.append((name, number, extents[::-1], offset))
        start = -(-cursor.position // alignment) * alignment
        found = [tensor_info(self.source, *entry[:3], start + entry[3]) for entry in entries]
        check_distinct(self.source, found)
        return found
