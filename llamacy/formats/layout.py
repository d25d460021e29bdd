"""What every model file comes down to: metadata and named tensors, whatever the format it was read from."""

from dataclasses import dataclass
from hashlib import blake2b

from llamacy.errors import shown
from llamacy.formats.types import REMOVED, TYPES, QuantType

# A tensor without elements wants no bytes, so that the file's size does not bound its other extents; this does.
MAX_EMPTY = 1 << 32
# Bytes of each tensor that tell models apart.
DIGESTED = 64


@dataclass(frozen=True)
class TensorInfo:
    """Where one tensor lies. `shape` is NumPy's order (rows first), `offset` absolute in file number `part`."""

    name: str
    type: QuantType
    shape: tuple
    offset: int
    nbytes: int
    part: int = 0

    @property
    def dims(self):
        """The shape without leading ones, which say nothing: (1, 1, 64, 32) is a matrix, (1, 64) a vector."""
        ones = next((i for i, extent in enumerate(self.shape[:-1]) if extent != 1), len(self.shape) - 1)
        return self.shape[max(0, ones) :]

    @property
    def row_bytes(self):
        return self.type.row_bytes(self.shape[-1] if self.shape else 1)

    @property
    def n_rows(self):
        rows = 1
        for extent in self.shape[:-1]:
            rows *= extent
        return rows

    @property
    def n_elements(self):
        return self.n_rows * (self.shape[-1] if self.shape else 1)


class ModelFile:
    """An open model or adapter file.

    path, size   of the file in bytes; of all parts together when it is split, whose `paths` are also there
    format       "gguf", or "ggml", "ggmf", "ggjt"; and its version
    metadata     dict of GGUF keys; legacy files present theirs under GGUF's names
    value_types  for scalar metadata the file's own type ("u32", "f32", ...), for those who write it again
    tensors      dict name -> TensorInfo, in the file's order
    """

    def __init__(self, sources, format, version, metadata, tensors, value_types=None, converter=None):
        """`sources` are MappedFiles; `converter(info, bytes)` rebuilds old layouts as GGUF's, None: as they stand."""
        self._sources = list(sources)
        self.paths = [source.path for source in self._sources]
        self.path = self.paths[0]
        self.size = sum(source.size for source in self._sources)
        self.format, self.version = format, version
        self.metadata, self.tensors = metadata, {info.name: info for info in tensors}
        self.value_types = value_types or {}
        self._converter = converter

    def data(self, name):
        """Return tensor `name` as uint8 (n_rows, row_bytes): a read-only view on the file, GGUF's block layout.

        Only where a legacy file's layout differs is it a converted copy.
        """
        self.check(name)
        info = self.tensors[name]
        content = self._sources[info.part].bytes
        if self._converter is not None:
            return self._converter(info, content)
        return content[info.offset : info.offset + info.nbytes].reshape(info.n_rows, info.row_bytes)

    @property
    def is_mapped(self):
        """Whether `data` gives views on the mapped file, not copies."""
        return self._converter is None and self._sources[0].mapped

    def check(self, name):
        """Raise FileChanged where tensor `name` can no longer be read as it was; costs a microsecond.

        Whoever keeps what `data` returned calls this before coming back to it.
        """
        info = self.tensors[name]
        self._sources[info.part].fetch(info.offset, info.nbytes)

    def release(self, name, done=False):
        """Give the memory pages of tensor `name` back to the system; touching the data reads the file again.

        Without a mapping nothing is given back until it is `done`: what `data` returned before is no longer read.
        """
        info = self.tensors[name]
        self._sources[info.part].release(info.offset, info.nbytes, done)

    def text(self, key, default=""):
        """Return metadata `key` as a text: what is none is shown as one, which equals no name."""
        value = self.metadata.get(key, default)
        return value if isinstance(value, str) else shown(value)

    def digest(self):
        """Return 16 hexadecimal digits that change with the tensors' names, types, shapes and beginnings."""
        found = blake2b(digest_size=8)
        for info in sorted(self.tensors.values(), key=lambda info: info.name):
            end = info.offset + min(info.nbytes, DIGESTED)
            beginning = self._sources[info.part].bytes[info.offset : end].tobytes()
            found.update(repr((info.name, info.type.name, info.shape, beginning)).encode())
        return found.hexdigest()

    def error(self, what, advice):
        """Return a LlamacyError that names this file."""
        return self._sources[0].error(what, advice)

    def close(self):
        """Let go of the file; arrays still in use keep it mapped until they are gone."""
        for source in self._sources:
            source.close()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()


def tensor_type(source, name, number):
    """Return the QuantType with `number`, or raise the error that names the tensor."""
    if number in TYPES:
        return TYPES[number]
    if number in REMOVED:
        what = f"tensor {shown(name)} has type {REMOVED[number]}, which was given up"
        raise source.error(what, "quantise the original model again")
    raise source.error(f"tensor {shown(name)} has unknown type {number}", "damaged, or newer than this program")


def tensor_info(source, name, number, shape, offset, part=0):
    """Return a checked TensorInfo: known type, whole blocks, inside the file.

    `shape` is NumPy's order, Python ints of any size; `number` the type; `offset` absolute.
    """
    quant_type = tensor_type(source, name, number)
    row = shape[-1] if shape else 1
    if row % quant_type.block_size:
        raise source.error(
            f"tensor {shown(name)} has rows of {row} elements, wanted whole blocks of {quant_type.block_size} "
            f"({quant_type.name})",
            "the file is damaged",
        )
    nbytes = quant_type.row_bytes(row)
    for extent in shape[:-1]:
        nbytes *= extent
    if offset + nbytes > source.size:
        raise source.error(
            f"truncated or damaged: tensor {shown(name)} wants bytes {offset} to {offset + nbytes}, the file ends at "
            f"{source.size}",
            "copy or download it again",
        )
    if nbytes == 0 and max(shape) > MAX_EMPTY:
        raise source.error(f"tensor {shown(name)} has the shape {shown(tuple(shape))}", "the file is damaged")
    return TensorInfo(name, quant_type, tuple(shape), offset, nbytes, part)


def check_distinct(source, tensors):
    """Raise unless names differ and no two tensors share a byte."""
    if len({info.name for info in tensors}) != len(tensors):
        seen = set()
        double = next(info.name for info in tensors if info.name in seen or seen.add(info.name))
        raise source.error(f"two tensors are called {shown(double)}", "the file is damaged")
    ordered = sorted((info for info in tensors if info.nbytes), key=lambda info: info.offset)
    for before, after in zip(ordered, ordered[1:], strict=False):
        if before.offset + before.nbytes > after.offset:
            raise source.error(
                f"tensors {shown(before.name)} and {shown(after.name)} overlap at byte {after.offset}",
                "the file is damaged",
            )
