"""Load and save LoRA adapters of any format, told apart by content."""

from llamacy.errors import UsageError
from llamacy.formats import gguf
from llamacy.formats.gguf_adapter import is_gguf_adapter, read_gguf_adapter, write_gguf_adapter
from llamacy.formats.lora import Adapter, LoraPair
from llamacy.formats.mapped import MappedFile

__all__ = ["Adapter", "LoraPair", "load_adapter", "save_adapter"]

# First four bytes -> format's name, test whether it is an adapter at all, reader of a MappedFile.
READERS = {gguf.MAGIC: ("gguf", is_gguf_adapter, read_gguf_adapter)}
# Format -> writer(path, adapter) that returns the names it could not carry.
WRITERS = {"gguf": write_gguf_adapter}


def adapter_format(path):
    """Return the name of the adapter format of `path`, None for anything that is no adapter."""
    source = MappedFile(path)
    try:
        name, is_adapter, _ = READERS.get(source.bytes[:4].tobytes(), (None, None, None))
        return name if name and is_adapter(source) else None
    finally:
        source.close()


def load_adapter(path):
    """Return the Adapter at `path`, whatever its format; its arrays are its own (writable, float32).

    Raises LlamacyError, one line, for what is missing, damaged or no adapter.
    """
    source = MappedFile(path)
    try:
        _, _, read = READERS.get(source.bytes[:4].tobytes(), (None, None, None))
        if read is None:
            raise source.stranger("a LoRA adapter")
        return read(source)
    finally:
        source.close()


def save_adapter(path, adapter, format="gguf"):
    """Write `adapter` at `path`, whole or not at all; return the names of what the format cannot carry."""
    if format not in WRITERS:
        raise UsageError(f"adapter format {format!r} is unknown, wanted one of {', '.join(WRITERS)}")
    return WRITERS[format](path, adapter)
