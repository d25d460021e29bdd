"""Adapters as llama.cpp's own `finetune` wrote them from September 2023 to early 2024 (`adapter.bin`, "ggla").

Source: read off the tool and its files. u32 magic, version 1, r, alpha; then tensors to the end of the file: u32
n_dims, name length, type (0 f32, 1 f16), extents (fastest first), the name, zeros up to a 32-byte file offset, data.
`<base>.loraA` is (n_in, r) and `<base>.loraB` (n_out, r): W += alpha / r * B @ A.T, the header's r for every tensor.
Norms have rank 1: A is (n, 1) and B one number.
"""

import struct
from collections import Counter

import numpy as np

from llamacy.errors import shown
from llamacy.formats.arrays import float_tensor
from llamacy.formats.atomic import atomic_write
from llamacy.formats.layout import ModelFile, check_distinct, tensor_info
from llamacy.formats.lora import Adapter, LoraPair
from llamacy.formats.mapped import Cursor

MAGIC = b"algg"  # u32 0x67676c61
VERSION, ALIGNMENT = 1, 32
_F32, _F16 = 0, 1
_MAX_TENSORS = 1 << 16


def is_ggla(source):
    """Tell whether an open MappedFile begins as a ggla adapter."""
    return source.bytes[:4].tobytes() == MAGIC


def read_ggla(source):
    """Return the Adapter in an open MappedFile that begins with MAGIC."""
    cursor = Cursor(source, len(MAGIC))
    version, rank, alpha = cursor.unpack("3I", "the header")
    if version != VERSION or rank == 0:
        what = f"ggla version {version} with rank {rank}, wanted version {VERSION} and a positive rank"
        raise source.error(what, "the file is damaged")
    with ModelFile([source], "ggla", version, {}, _tensors(cursor)) as file:
        pairs, norms = {}, {}
        for base in dict.fromkeys(name[: -len(".loraA")] for name in file.tensors):
            a, b = _halves(file, base)
            if file.tensors[f"{base}.loraB"].shape == (1,):
                with np.errstate(over="ignore", invalid="ignore"):
                    norms[base] = a[:, 0] * b[0, 0] * np.float32(alpha / rank)
            else:
                pairs[base] = LoraPair(np.ascontiguousarray(a.T), b, alpha / rank)
    return Adapter("llama", pairs, float(alpha), {}, source.path, [], norms, assumed=True)


def _tensors(cursor):
    source, found = cursor.source, []
    while cursor.left:
        if len(found) == _MAX_TENSORS:
            raise source.error(f"holds more than {_MAX_TENSORS} tensors", "the file is damaged")
        n_dims, length, number = cursor.unpack("3I", "a tensor's header")
        if not 1 <= n_dims <= 2 or number not in (_F32, _F16):
            what = f"tensor {len(found)} has {n_dims} dimensions and type {number}, wanted 1 or 2 and f32 or f16"
            raise source.error(what, "the file is damaged")
        extents = cursor.unpack("I" * n_dims, "a tensor's shape")
        name = cursor.name(length, 256, "tensor name")
        if not name.endswith((".loraA", ".loraB")) or len(name) == len(".loraA"):
            raise source.error(f"unknown tensor {shown(name)}", "wanted names that end in .loraA and .loraB")
        cursor.take(-cursor.position % ALIGNMENT, "padding")
        info = tensor_info(source, name, number, extents[::-1], cursor.position)
        cursor.take(info.nbytes, "tensor", name)
        found.append(info)
    check_distinct(source, found)
    return found


def _halves(file, base):
    """Return A (n_in, r) and B (n_out, r) of `base`, float32."""
    sides = []
    for side in ("A", "B"):
        name = f"{base}.lora{side}"
        if name not in file.tensors:
            raise file.error(f"tensor {shown(name)} is missing", "the file is damaged")
        array = float_tensor(file, name)
        sides.append(array.reshape(-1, 1) if array.ndim == 1 else array)
    a, b = sides
    if a.shape[1] != b.shape[1] or a.shape[1] == 0:
        what = f"{shown(base)}: loraA is {a.shape} and loraB {b.shape}, wanted equal ranks"
        raise file.error(what, "the file is damaged")
    return a, b


def write_ggla(path, adapter, base=None):
    """Write `adapter` as ggla with f32 tensors; return what it cannot carry (metadata: the format has no place for it).

    The header holds whole numbers and one r for all: scales that do not fit are folded into B. Without rows to reorder
    `base` is not needed; an adapter in Hugging Face's order must be bound first.
    """
    rank, alpha = _header(adapter)
    scale = alpha / rank
    with atomic_write(path) as file:
        file.write(MAGIC + struct.pack("<3I", VERSION, rank, alpha))
        for name, pair in adapter.pairs.items():
            _write(file, f"{name}.loraA", pair.a.T)
            _write(file, f"{name}.loraB", pair.folded_b(scale))
        for name, delta in adapter.norms.items():
            _write(file, f"{name}.loraA", (delta / np.float32(scale)).reshape(-1, 1))
            _write(file, f"{name}.loraB", np.ones(1))
    return [f"metadata {key}" for key in adapter.metadata]


def _header(adapter):
    """Return whole (r, alpha) that most pairs can use as they are."""
    votes = Counter((pair.rank, round(pair.scale, 6)) for pair in adapter.pairs.values())
    (rank, scale), _ = votes.most_common(1)[0] if votes else ((1, 1.0), 0)
    alpha = round(scale * rank)
    return (rank, alpha) if 0 < alpha < 1 << 32 and abs(alpha / rank - scale) < 1e-6 else (rank, rank)


def _write(file, name, array):
    raw = name.encode()
    extents = array.shape[::-1]
    file.write(struct.pack("<3I", len(extents), len(raw), _F32) + struct.pack(f"<{len(extents)}I", *extents) + raw)
    file.write(bytes(-file.tell() % ALIGNMENT))
    file.write(np.ascontiguousarray(array, np.float32))
