"""Open a model file of any format, told apart by its first bytes."""

from llamacy.formats import ggml, gguf
from llamacy.formats.gguf_split import join_parts
from llamacy.formats.layout import ModelFile, TensorInfo
from llamacy.formats.mapped import MappedFile

__all__ = ["ModelFile", "TensorInfo", "open_model"]

# First four bytes -> reader of a MappedFile.
READERS = {gguf.MAGIC: gguf.read_gguf, **dict.fromkeys(ggml.MAGICS, ggml.read_ggml)}


def open_model(path, use_mmap=True):
    """Return the ModelFile at `path`: GGUF or legacy GGML, by content and not by name.

    Of a split model any part opens the whole. Nothing is read but the header; tensors are views on the mapping (with
    use_mmap=False the whole file is read, and they are views on that copy).
    Raises LlamacyError, one line, for whatever is missing, damaged or something else.
    """
    source = MappedFile(path, use_mmap)
    reader = READERS.get(source.bytes[:4].tobytes())
    if reader is None:
        raise source.stranger("a GGUF or legacy GGML model")
    model = reader(source)
    count = model.metadata.get("split.count", 0)
    return join_parts(source, count, use_mmap) if isinstance(count, int) and count > 1 else model
