"""Importance matrices as llama.cpp's `imatrix` writes them today (GGUF) or wrote them before (imatrix_dat.py): what an
error in each column costs.

For each matrix two tensors, F32: NAME.in_sum2, the squares of its inputs summed over the tokens, (n_matrices, n_cols)
where experts are stacked; NAME.counts, how many tokens those were, one for each of the stacked matrices. The columns'
mean squares are what quantisers weigh errors by. (Source: common/imatrix-loader.cpp of llama.cpp.)
"""

from dataclasses import dataclass, field, replace

import numpy as np

from llamacy.errors import LlamacyError, shown
from llamacy.formats.gguf import MAGIC
from llamacy.formats.imatrix_dat import is_dat, read_dat
from llamacy.formats.mapped import MappedFile
from llamacy.formats.model_file import open_model
from llamacy.formats.strings import StringArray

_SUMS, _COUNTS = ".in_sum2", ".counts"


@dataclass
class Imatrix:
    """path; columns: tensor name -> float32 (n_matrices, n_cols), none negative; dataset, chunks: what it was made of.

    A file of the old form says nothing of stacked matrices: their columns stand in one row.
    """

    path: str
    columns: dict = field(default_factory=dict)
    dataset: str = ""
    chunks: int = 0

    def only(self, include=(), exclude=()):
        """Return the Imatrix of those entries in whose names one of `include` stands (none: all), none of `exclude`.

        LlamacyError for a text that stands in no name.
        """
        for text in (*include, *exclude):
            if not any(text in name for name in self.columns):
                raise LlamacyError(f"{self.path}: no entry has {shown(text)} in its name; choose another text")
        kept = {
            name: values
            for name, values in self.columns.items()
            if (not include or any(text in name for text in include)) and not any(text in name for text in exclude)
        }
        return replace(self, columns=kept)

    def for_tensor(self, info):
        """Return the importance for a TensorInfo, float32 (n_matrices, n_cols), None where the file has none.

        LlamacyError where it is of another size.
        """
        found = self.columns.get(info.name)
        if found is None:
            return None
        n_matrices = info.dims[0] if len(info.dims) > 2 else 1
        if len(found) == 1 and found.size == n_matrices * info.shape[-1]:
            found = found.reshape(n_matrices, -1)
        if found.shape != (n_matrices, info.shape[-1]):
            raise LlamacyError(
                f"{self.path}: {shown(info.name)} has {found.shape[0]} x {found.shape[1]} columns, the model's has "
                f"{n_matrices} x {info.shape[-1]}; use the imatrix of this model"
            )
        return found


def read_imatrix(path):
    """Return the Imatrix at `path`; LlamacyError, one line, for anything else."""
    source = MappedFile(path)
    if source.bytes[:4].tobytes() != MAGIC:
        if not is_dat(source):
            raise source.stranger("an importance matrix of llama.cpp, GGUF or .dat")
        return Imatrix(source.path, *read_dat(source))
    with open_model(path) as file:
        names = [name.removesuffix(_SUMS) for name in file.tensors if name.endswith(_SUMS)]
        if not names:
            raise file.error(
                f"holds no importance (no tensor ends in {_SUMS})", "give the file that llama-imatrix wrote"
            )
        columns = {name: _means(file, name) for name in names}
        return Imatrix(file.path, columns, *_about(file.metadata))


def _about(metadata):
    """Return what a GGUF file says of the data: (the first set's name, chunks)."""
    names, chunks = metadata.get("imatrix.datasets", ()), metadata.get("imatrix.chunk_count", 0)
    first = names[0] if isinstance(names, StringArray) and len(names) else ""
    return first, int(chunks) if isinstance(chunks, (int, np.integer)) else 0


def _means(file, name):
    """Return sums / counts, ones for matrices that saw no token: float32 (n_matrices, n_cols)."""
    sums, counts = _numbers(file, name + _SUMS), _numbers(file, name + _COUNTS).reshape(-1)
    sums = sums.reshape(len(counts), -1) if len(counts) and sums.size % len(counts) == 0 else sums
    if len(sums) != len(counts) or not (np.isfinite(sums).all() and np.isfinite(counts).all() and (sums >= 0).all()):
        raise file.error(
            f"{shown(name)} has {sums.size} sums and {len(counts)} counts, wanted finite sums for each count",
            "the file is damaged",
        )
    seen = counts > 0
    means = np.where(seen[:, None], sums / np.where(seen, counts, 1)[:, None], 1)
    if not (means <= np.finfo(np.float32).max).all():
        raise file.error(f"{shown(name)} has a mean of {means.max():g}, which f32 cannot hold", "the file is damaged")
    return means.astype(np.float32)


def _numbers(file, name):
    """Return tensor `name`, which must be F32, as float64 (n_rows, n_cols)."""
    if name not in file.tensors or file.tensors[name].type.name != "F32":
        raise file.error(f"{shown(name)} is missing or not F32", "the file is damaged")
    with np.errstate(invalid="ignore"):  # a signalling NaN is one, whatever NumPy says of it
        return np.array(file.data(name)).view(np.float32).astype(np.float64)
