"""A model file in other types: read, rounded and written a tensor at a time."""

from dataclasses import dataclass

import numpy as np

from llamacy import kernels
from llamacy.errors import LlamacyError, brief
from llamacy.formats.gguf_split import write_parts
from llamacy.formats.gguf_writer import write_gguf
from llamacy.formats.rewrite import CHUNK
from llamacy.formats.types import QuantType
from llamacy.model.mixes import choose_types, is_quantised

# Version of the block layouts, which files carry as general.quantization_version (ggml's GGML_QNT_VERSION).
LAYOUTS_VERSION = 2


@dataclass(frozen=True)
class Step:
    """What becomes of one tensor: `target` is its type in the new file, `wanted` what it would be but for its shape."""

    info: object
    target: QuantType
    wanted: QuantType

    @property
    def is_copy(self):
        return self.info.type is self.target

    @property
    def nbytes(self):
        """Bytes of the tensor in the new file."""
        return self.target.row_bytes(self.info.shape[-1] if self.info.shape else 1) * self.info.n_rows


def plan(model, mix, wishes, allow_requantize=False):
    """Return the Steps of a ModelFile's tensors, in its order; LlamacyError where one must not be rounded."""
    tensors = list(model.tensors.values())
    chosen = choose_types(tensors, model.metadata, mix, wishes)
    steps = [Step(info, *chosen[info.name]) for info in tensors]
    for step in steps:
        kind = step.info.type
        if step.is_copy:
            continue
        if kind.number not in kernels.quants.types():
            raise model.error(f"tensor {brief(step.info.name)} is {kind.name}, which cannot be read", "leave it out")
        if is_quantised(kind) and not allow_requantize:
            raise model.error(
                f"tensor {brief(step.info.name)} is {kind.name} already, and rounding it again loses accuracy",
                "start from an F32, F16 or BF16 model, or say --allow-requantize",
            )
    return steps


def fallbacks(steps):
    """Return {(wanted type's name, taken type's name): number of tensors} where rows do not divide into blocks."""
    counts = {}
    for step in steps:
        if step.target is not step.wanted:
            key = step.wanted.name, step.target.name
            counts[key] = counts.get(key, 0) + 1
    return counts


def copies(model):
    """Return the Steps that leave every tensor of a ModelFile as it is."""
    return [Step(info, info.type, info.type) for info in model.tensors.values()]


def write_model(model, path, steps, file_type, *, imatrix=None, n_threads=1, progress=None, keep_split=False):
    """Write a ModelFile's tensors as `steps` say to a GGUF file at `path`, which appears when it is complete.

    file_type  general.file_type of the new file, None where no tensor changes
    imatrix    Imatrix or None: what errors in each column cost
    keep_split the new file is in as many parts as the model's, at the paths that gguf_split.part_paths makes of `path`
    progress   progress(step, elements done so far, elements in all), called while tensors are made
    """
    kind = {"general.quantization_version": LAYOUTS_VERSION, "general.file_type": file_type}
    metadata = model.metadata | (kind if file_type is not None else {})
    types = {**model.value_types, "general.quantization_version": "u32", "general.file_type": "u32"}
    if imatrix is not None:
        about = {
            "file": imatrix.path,
            "dataset": imatrix.dataset,
            "entries_count": len(imatrix.columns),
            "chunks_count": imatrix.chunks,
        }
        metadata |= {f"quantize.imatrix.{key}": value for key, value in about.items() if value}
    work = _Work(model, imatrix, n_threads, progress, sum(step.info.n_elements for step in steps))
    entries = [(step.info.name, step.target, step.info.shape, lambda step=step: work.content(step)) for step in steps]
    if not keep_split:
        write_gguf(path, metadata, entries, types)
        return
    parts = [[] for _ in model.paths]
    for step, entry in zip(steps, entries, strict=True):
        parts[step.info.part].append(entry)
    write_parts(path, metadata, parts, types)


class _Work:
    """Makes the content of one tensor after the other."""

    def __init__(self, model, imatrix, n_threads, progress, total):
        self.model, self.imatrix, self.n_threads = model, imatrix, n_threads
        self.progress, self.total, self.done = progress, total, 0
        self.written = None

    def content(self, step):
        """Return the tensor as uint8 (n_rows, row bytes) of its new type."""
        info = step.info
        if self.written is not None:
            self.model.release(self.written)
        self.written = info.name
        content = self.model.data(info.name)
        if step.is_copy:
            self._tell(step, info.n_elements)
            return content
        out = np.empty((info.n_rows, step.target.row_bytes(info.shape[-1])), np.uint8)
        for start, stop, importance in self._pieces(info):
            values = kernels.quants.dequantize(
                np.ascontiguousarray(content[start:stop]), info.type.number, self.n_threads
            )
            out[start:stop] = self._rounded(step, values, importance)
            self._tell(step, values.size)
        return out

    def _pieces(self, info):
        """Yield (first row, end, importance of the columns or None): some rows at a time, of one matrix each."""
        importance = self.imatrix.for_tensor(info) if self.imatrix is not None else None
        n_matrices = len(importance) if importance is not None else 1
        rows, most = info.n_rows // n_matrices, max(1, CHUNK // info.shape[-1])
        for matrix in range(n_matrices):
            for start in range(matrix * rows, (matrix + 1) * rows, most):
                stop = min(start + most, (matrix + 1) * rows)
                yield start, stop, None if importance is None else importance[matrix]

    def _rounded(self, step, values, importance):
        """Return values, f32 (n, n_cols), as rows of blocks; LlamacyError where not all are finite before and after."""
        number = step.target.number
        rows = kernels.quants.quantize(values, number, self.n_threads, importance)
        if not (
            np.isfinite(values).all() and np.isfinite(kernels.quants.dequantize(rows, number, self.n_threads)).all()
        ):
            raise LlamacyError(
                f"{self.model.path}: tensor {brief(step.info.name)} holds numbers that {step.target.name} cannot hold "
                f"(the largest is {np.abs(values).max():g}); the file is damaged, or choose another type"
            )
        return rows

    def _tell(self, step, n_elements):
        self.done += n_elements
        if self.progress is not None:
            self.progress(step, self.done, self.total)
