"""Adapters merged into their base model's weights: W + sum of scale * B A, tensor by tensor, in any type.

With magnitudes m, V = W + pair's scale * B A, a row's change is m / |V| V - W, times the user's scale.
"""

import numpy as np

from llamacy.errors import LlamacyError, brief, shown
from llamacy.formats.adapter import fitted
from llamacy.formats.architectures import LATENT, LATENT_HALVES, STACKED, expert_tensor, key_of
from llamacy.formats.hf_names import EMBEDDING, OUTPUT
from llamacy.formats.rewrite import can_write, matrix_type, rewritten, written_types
from llamacy.formats.types import FILE_TYPES


def merged(file, adapters, outtype=None, n_threads=1):
    """Return (metadata, tensors) for write_gguf: the model in `file` with `adapters` merged into it.

    adapters  list of (Adapter, user scale); those that do not fit are an error
    outtype   QuantType of every matrix; None: each tensor keeps its own type, and its bytes where nothing changes it
    Of a model without an output matrix a pair on the embedding acts on the input only and one on the output matrix on
    the output only, as they do at run time: the result gets an output matrix of its own.
    """
    for adapter, _ in adapters:
        _check(file, adapter)
    adapters = [(fitted(adapter, file), scale) for adapter, scale in adapters]
    for adapter, _ in adapters:
        if EMBEDDING in adapter.pairs and adapter.pairs[EMBEDDING].magnitude is not None:
            raise LlamacyError(f"{adapter.path}: DoRA of the embedding cannot be merged here; merge it with PEFT")
    changes = {name: _Change(name, adapters, info.shape) for name, info in file.tensors.items()}
    metadata = file.metadata if outtype is None else file.metadata | {"general.file_type": FILE_TYPES[outtype.name]}
    entries = [_entry(file, name, changes[name], outtype, n_threads) for name in file.tensors]
    on_output = _Change(OUTPUT, adapters, ())
    if EMBEDDING in file.tensors and OUTPUT not in file.tensors and (changes[EMBEDDING] or on_output):
        _, target, shape, reader = _entry(file, EMBEDDING, on_output, outtype, n_threads)
        entries.append((OUTPUT, target, shape, reader))
    return metadata, entries


def _entry(file, name, change, outtype, n_threads):
    """Return write_gguf's (name, type, shape, reader) of tensor `name` with `change` added."""
    info = file.tensors[name]
    target = info.type if outtype is None else matrix_type(info, outtype)
    if target is info.type and not change:
        return name, target, info.shape, lambda: file.data(name)
    if not can_write(target):
        what = f"tensor {brief(name)} is {target.name}, which can be read and not written"
        raise file.error(what, f"choose an --outtype: {', '.join(written_types())}")
    return name, target, info.shape, lambda: rewritten(file, info, target, n_threads, add=change.add_to)


def _check(file, adapter):
    architecture = file.metadata.get("general.architecture")
    if adapter.architecture not in ("", architecture) and not adapter.assumed:
        problem = f"it is for {shown(adapter.architecture)}, the model is {shown(architecture)}"
    else:
        problem = adapter.misfit(file.tensors)
    if problem:
        raise LlamacyError(f"{adapter.path} does not fit {file.path}: {problem}; use the model it was trained on")


class _Change:
    """What all adapters together add to one tensor: parts (its first row, b, a), b None for a norm's; of those with
    magnitudes (first row, pair, user's scale).
    """

    def __init__(self, name, adapters, shape):
        self.parts, self.magnified = [], []
        # of experts stacked in one tensor each has a name of its own
        half = key_of(name)
        whole = name.replace(f".{half}.", f".{LATENT}.")
        stacked = {name: 0} | {one: e * shape[-2] for e, one in enumerate(_experts_of(name, shape))}
        with np.errstate(over="ignore", invalid="ignore"):
            for adapter, scale in adapters:
                for one in stacked.keys() & adapter.pairs.keys():
                    pair = adapter.pairs[one]
                    if pair.magnitude is not None:
                        self.magnified.append((stacked[one], pair, np.float32(scale)))
                        continue
                    self.parts.append((stacked[one], pair.b, pair.a * np.float32(pair.scale * scale)))
                if half in LATENT_HALVES and len(shape) == 3 and whole in adapter.pairs:
                    self._add_half(half, adapter.pairs[whole], scale, shape, adapter.path)
                if name in adapter.norms:
                    self.parts.append((0, None, adapter.norms[name] * np.float32(scale)))

    def _add_half(self, half, pair, scale, shape, path):
        """Add what a pair on keys and values changes of the tensor of either, each head's in its place."""
        if pair.magnitude is not None:
            raise LlamacyError(
                f"{path}: DoRA of {LATENT}, which the model holds as {' and '.join(LATENT_HALVES)}, cannot be merged; "
                "give the adapter with --lora"
            )
        a = np.float32(pair.scale * scale) * pair.a
        for head, b in enumerate(pair.b.reshape(shape[0], -1, pair.rank)):
            sides = (a.T, b[: shape[2]].T) if half == LATENT_HALVES[0] else (b[-shape[1] :], a)
            self.parts.append((head * shape[1], *sides))

    def __bool__(self):
        return bool(self.parts or self.magnified)

    def add_to(self, values, start):
        """Add to `values`, f32 (n, n_cols): rows from `start` on."""
        with np.errstate(over="ignore", invalid="ignore"):
            original = values.copy() if self.magnified else None
            for first, pair, scale in self.magnified:
                lo, hi = max(first, start), min(first + len(pair.b), start + len(values))
                if lo < hi:
                    rows, of = slice(lo - start, hi - start), slice(lo - first, hi - first)
                    values[rows] += scale * (_magnified(original[rows], pair, of) - original[rows])
            for first, b, a in self.parts:
                if b is None:
                    values += a
                    continue
                lo, hi = max(first, start), min(first + len(b), start + len(values))
                if lo < hi:
                    values[lo - start : hi - start] += b[lo - first : hi - first] @ a


def _magnified(w, pair, rows):
    """Return m / |V| V of a pair's rows, f32, V = W + scale * B A; a row of V that is zero stays so."""
    v = w + pair.b[rows] @ (pair.a * np.float32(pair.scale))
    lengths = np.sqrt(np.square(v, dtype=np.float64).sum(axis=1))
    gain = pair.magnitude[rows] / np.where(lengths, lengths, 1)
    return v * gain[:, None].astype(np.float32)


def _experts_of(name, shape):
    """Return the names of the experts' matrices stacked in a tensor of this shape, none where it is no such tensor."""
    key = key_of(name)
    if key not in STACKED or len(shape) < 3 or not name.startswith("blk."):
        return []
    return [expert_tensor(key, name.split(".")[1], e) for e in range(shape[-3])]
