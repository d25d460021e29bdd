"""Write GGUF v3, streaming: memory holds one tensor at a time, and the file appears whole or not at all."""

import struct

import numpy as np

from llamacy.errors import LlamacyError, shown
from llamacy.formats.atomic import atomic_write
from llamacy.formats.gguf import ARRAY, DEFAULT_ALIGNMENT, MAGIC, MAX_DIMS, SCALARS, STRING
from llamacy.formats.strings import StringArray

VERSION = 3
# ggml keeps a name in 64 bytes, the closing NUL among them; longer ones make llama.cpp refuse the file.
MAX_NAME = 63

_NUMBERS = {name: number for number, (name, _, _) in SCALARS.items()}
_BY_DTYPE = {np.dtype(dtype): number for number, (_, dtype, _) in SCALARS.items()}
_INT_RANGES = [("u32", 0, 1 << 32), ("i32", -(1 << 31), 1 << 31), ("i64", -(1 << 63), 1 << 63), ("u64", 0, 1 << 64)]


def write_gguf(path, metadata, tensors, value_types=None):
    """Write a GGUF v3 file at `path`, replacing an old one only when complete.

    metadata     dict of str, bool, int, float, NumPy scalars and 1-D arrays, StringArray, lists (also nested);
                 `general.alignment` (a power of two, default 32) is obeyed
    tensors      iterable of (name, QuantType, shape in NumPy order, data); data is bytes-like, an array, or a function
                 without arguments that returns one: called once, in order, while the file is written
    value_types  dict key -> "u32", "f64", ... where Python's int or float should not become u32 (or the next that
                 holds it) and f32; ModelFile.value_types fits
    Raises LlamacyError for values GGUF cannot hold, data of another size than its shape, and failures of the disk.
    """
    with atomic_write(path) as file:
        write_gguf_to(file, path, metadata, tensors, value_types)


def write_gguf_to(file, path, metadata, tensors, value_types=None):
    """Write what write_gguf writes into an open binary file; `path` is what errors call it."""
    tensors = list(tensors)
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if not 0 < alignment < 1 << 32 or alignment & (alignment - 1):
        raise LlamacyError(f"{path}: general.alignment is {shown(alignment)}, wanted a power of two")
    header = _header(path, metadata, tensors, value_types or {}, alignment)
    file.write(header)
    file.write(bytes(-len(header) % alignment))
    for name, quant_type, shape, data in tensors:
        wanted = _nbytes(path, name, quant_type, shape)
        _write_tensor(file, path, name, wanted, data)
        file.write(bytes(-wanted % alignment))


def _write_tensor(file, path, name, wanted, data):
    """Write one tensor's data; a function of its own, so that no name holds one tensor while the next is made."""
    content = _contiguous(data() if callable(data) else data)
    if content.nbytes != wanted:
        raise LlamacyError(f"{path}: tensor {shown(name)} has {content.nbytes} bytes of data, its shape wants {wanted}")
    file.write(content)


def _contiguous(data):
    """Return `data` as a flat uint8 array, copied only when it is not contiguous."""
    if isinstance(data, np.ndarray):
        return np.ascontiguousarray(data).reshape(-1).view(np.uint8)
    return np.frombuffer(data, np.uint8)


def _nbytes(path, name, quant_type, shape):
    row = shape[-1] if shape else 1
    if row % quant_type.block_size:
        raise LlamacyError(
            f"{path}: tensor {shown(name)} has rows of {row}, {quant_type.name} wants whole blocks of "
            f"{quant_type.block_size}"
        )
    total = quant_type.row_bytes(int(row))
    for extent in shape[:-1]:
        total *= int(extent)
    return total


def _header(path, metadata, tensors, value_types, alignment):
    parts = [MAGIC, struct.pack("<IQQ", VERSION, len(tensors), len(metadata))]
    for key, value in metadata.items():
        parts += [_string(key), _tagged(path, key, value, value_types.get(key))]
    offset, seen = 0, set()
    for name, quant_type, shape, _ in tensors:
        if not name or "\0" in name or len(name.encode()) > MAX_NAME or name in seen or len(shape) > MAX_DIMS:
            raise LlamacyError(
                f"{path}: tensor {shown(name)} of shape {tuple(shape)}: wanted a new name of 1 to {MAX_NAME} bytes "
                f"without NUL and at most {MAX_DIMS} dimensions"
            )
        seen.add(name)
        extents = [int(extent) for extent in reversed(shape)]
        parts += [_string(name), struct.pack(f"<I{len(extents)}QIQ", len(extents), *extents, quant_type.number, offset)]
        offset += -(-_nbytes(path, name, quant_type, shape) // alignment) * alignment
    return b"".join(parts)


def _string(text):
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def _tagged(path, key, value, wish):
    """Return the type number and the value's bytes."""
    number, content = _value(path, key, value, wish)
    return struct.pack("<I", number) + content


def _value(path, key, value, wish=None):
    """Return (type number, bytes) of one metadata value."""
    if isinstance(value, str):
        return STRING, _string(value)
    if isinstance(value, StringArray):
        strings = b"".join(_string(value.bytes(i)) for i in range(len(value)))
        return ARRAY, struct.pack("<IQ", STRING, len(value)) + strings
    if isinstance(value, np.ndarray) and value.ndim == 1:
        number = _by_dtype(path, key, value.dtype)
        return ARRAY, struct.pack("<IQ", number, len(value)) + value.astype(SCALARS[number][1], copy=False).tobytes()
    if isinstance(value, np.generic):
        wish, value = SCALARS[_by_dtype(path, key, value.dtype)][0], value.item()
    if isinstance(value, (bool, int, float)):
        number = _NUMBERS[wish or _scalar_type(path, key, value)]
        try:
            return number, struct.pack("<" + SCALARS[number][2], value)
        except (struct.error, OverflowError):
            raise LlamacyError(f"{path}: {shown(key)} = {shown(value)} does not fit {SCALARS[number][0]}") from None
    if isinstance(value, (list, tuple)):
        return _list(path, key, value)
    raise LlamacyError(f"{path}: {shown(key)} is a {type(value).__name__}, which GGUF cannot hold")


def _by_dtype(path, key, dtype):
    number = _BY_DTYPE.get(dtype.newbyteorder("<"))
    if number is None:
        raise LlamacyError(f"{path}: {shown(key)} is of dtype {dtype}, which GGUF cannot hold")
    return number


def _scalar_type(path, key, value):
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, float):
        return "f32"
    for name, low, end in _INT_RANGES:
        if low <= value < end:
            return name
    raise LlamacyError(f"{path}: {shown(key)} = {shown(value)} is beyond 64 bits")


def _list(path, key, values):
    """Return an array of strings, of numbers (i32 where they fit, f32), or of arrays."""
    if all(isinstance(value, str) for value in values) and values:
        return _value(path, key, StringArray.of(values))
    if all(isinstance(value, (bool, int, float)) for value in values):
        array = np.array(values)
        if array.dtype == np.float64:
            array = array.astype(np.float32)
        elif array.dtype == np.int64 and np.array_equal(array, array.astype(np.int32)):
            array = array.astype(np.int32)
        return _value(path, key, array if len(values) else array.astype(np.int32))
    parts = [_value(path, key, value) for value in values]
    if any(number != ARRAY for number, _ in parts):
        raise LlamacyError(f"{path}: {shown(key)} mixes kinds of values, which GGUF cannot hold")
    return ARRAY, struct.pack("<IQ", ARRAY, len(parts)) + b"".join(content for _, content in parts)
