"""safetensors: a JSON header and raw arrays, little-endian.

Source: the format's specification. u64 header length, a JSON object name -> {dtype, shape, data_offsets} (and
`__metadata__`, strings only), padded with spaces, then the data; offsets count from there.
"""

import json
import struct

import numpy as np

from llamacy.errors import shown
from llamacy.formats.atomic import atomic_write
from llamacy.formats.layout import ModelFile, check_distinct, tensor_info
from llamacy.formats.mapped import Cursor
from llamacy.formats.types import by_name

# A bound on the header, which becomes Python objects; the largest real ones have some hundred kilobytes.
MAX_HEADER = 1 << 24
_MAX_DIMS = 8
_DTYPES = ("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8")
_BYTES = {"U8": "I8"}  # a type that GGUF has none of its own for: packed bytes


def is_safetensors(source):
    """Tell whether an open MappedFile looks like safetensors: a length that fits and an opening brace."""
    head = source.bytes[:9].tobytes()
    return len(head) == 9 and head[8:] == b"{" and int.from_bytes(head[:8], "little") <= source.size - 8


def read_safetensors(source):
    """Return the ModelFile of an open MappedFile of safetensors; `__metadata__` is its metadata."""
    cursor = Cursor(source)
    (length,) = cursor.unpack("Q", "the header's length")
    if length > MAX_HEADER:
        raise source.error(f"a header of {length} bytes, wanted at most {MAX_HEADER}", "the file is damaged")
    header = json_object(source, cursor.raw(length, "the header"))
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise source.error("__metadata__ is no table of strings", "the file is damaged")
    tensors = [_tensor(source, name, entry, cursor.position) for name, entry in header.items()]
    check_distinct(source, tensors)
    return ModelFile([source], "safetensors", 1, metadata, tensors)


def json_object(source, raw):
    """Return the dict that `raw` bytes say in JSON; damage, doubled keys and endless nesting are errors."""
    try:
        found = json.loads(raw.decode("utf-8"), object_pairs_hook=_distinct)
    except (ValueError, RecursionError) as error:
        reason = "nested too deep" if isinstance(error, RecursionError) else " ".join(str(error).split())
        raise source.error(f"damaged JSON: {shown(reason)}", "copy or download it again") from None
    if not isinstance(found, dict):
        raise source.error(f"JSON holds a {type(found).__name__}, wanted an object", "check the path")
    return found


def _distinct(pairs):
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice")
    return found


def _tensor(source, name, entry, start):
    entry = entry if isinstance(entry, dict) else {}
    dtype, shape, place = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not (_naturals(shape) and len(shape) <= _MAX_DIMS and _naturals(place) and len(place) == 2):
        what = f"tensor {shown(name)} has shape {shown(shape)} at {shown(place)}"
        raise source.error(what, "the file is damaged")
    if dtype not in _DTYPES:
        raise source.error(f"tensor {shown(name)} is {shown(dtype)}, wanted one of {', '.join(_DTYPES)}", "convert it")
    info = tensor_info(source, name, by_name(_BYTES.get(dtype, dtype)).number, tuple(shape), start + place[0])
    if info.nbytes != place[1] - place[0]:
        what = f"tensor {shown(name)} has {place[1] - place[0]} bytes, its shape wants {info.nbytes}"
        raise source.error(what, "the file is damaged")
    return info


def _naturals(values):
    """Tell whether `values` is a list of whole numbers from 0 on that 64 bits can hold."""
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 1 << 63 for value in values)


def write_safetensors(path, tensors, metadata):
    """Write a dict of arrays as F32, whole or not at all, with `metadata` (str to str)."""
    with atomic_write(path) as file:
        put_safetensors(file, tensors, metadata)


def put_safetensors(file, tensors, metadata):
    """Write the same into a binary file."""
    header, place = {"__metadata__": metadata} if metadata else {}, 0
    for name, array in tensors.items():
        header[name] = {"dtype": "F32", "shape": list(array.shape), "data_offsets": [place, place + 4 * array.size]}
        place += 4 * array.size
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    file.write(struct.pack("<Q", len(raw)) + raw)
    for array in tensors.values():
        file.write(np.ascontiguousarray(array, "<f4"))
