"""Open a model file of any format, told apart by its first bytes."""

from llamacy.formats import ggml, gguf
from llamacy.formats.layout import ModelFile, TensorInfo
from llamacy.formats.mapped import MappedFile

__all__ = ["ModelFile", "TensorInfo", "open_model"]

# First four bytes -> reader of a MappedFile.
READERS = {gguf.MAGIC: gguf.read_gguf, **dict.fromkeys(ggml.MAGICS, ggml.read_ggml)}


def open_model(path, use_mmap=True):
    """Return the ModelFile at `path`: GGUF or legacy GGML, by content and not by name.

    Nothing is read but the header; tensors are views on the mapping (with use_mmap=False, on one copy in memory).
    Raises LlamacyError, one line, for whatever is missing, damaged or something else.
    """
    source = MappedFile(path, use_mmap)
    reader = READERS.get(source.bytes[:4].tobytes())
    if reader is None:
        raise source.stranger("a GGUF or legacy GGML model")
    return reader(source)
