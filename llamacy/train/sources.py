"""The files that an argument of --train-data names: `FILE`, `FILE:2` (each sample twice), a folder of a dataset.

What is packed (.gz, .xz, .bz2), a table in columns (Parquet, Arrow) or has the line ends of old Macs is written as JSON
lines or text into a temporary file without a name, in which samples can be found and read again.
"""

import bz2
import gzip
import json
import lzma
import math
import os
import re
import shutil
import stat
import tempfile
import zlib
from dataclasses import dataclass
from typing import BinaryIO

from llamacy.errors import LlamacyError, UsageError, shown, some

WEIGHT = re.compile(r"(.+):([0-9]+(?:\.[0-9]*)?|\.[0-9]+)")
MAX_WEIGHT = 1000
COPY = 1 << 20
# So much stays free on the disk that temporary files lie on.
SPARE = 64 << 20
PACKED = ((b"\x1f\x8b", gzip.open), (b"\xfd7zXZ\x00", lzma.open), (b"BZh", bz2.open))
DAMAGED = (OSError, EOFError, lzma.LZMAError, zlib.error, ValueError)
PARQUET, ARROW_STREAM = b"PAR1", b"\xff\xff\xff\xff"

# The files of a dataset's folder: those of the training split by these words in their paths, where any has one.
SUFFIXES = (".parquet", ".arrow", ".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".txt")
PACKED_SUFFIXES = (".gz", ".xz", ".bz2")
TRAIN, OTHERS = ("train",), ("test", "valid", "validation", "dev", "eval")
NOT_DATA = ("dataset_info.json", "dataset_dict.json", "state.json", "dataset_infos.json", "requirements.txt",
            "license.txt")  # fmt: skip
MAX_FILES = 10_000


@dataclass
class Source:
    """One open file: `path` is what people know it by, `weight` how often each of its samples is taken in an epoch."""

    path: str
    file: BinaryIO
    weight: float = 1.0


def path_and_weight(argument):
    """Return (path, weight) of FILE or FILE:WEIGHT; a file whose own name ends so is meant by it."""
    argument = os.fspath(argument)
    found = WEIGHT.fullmatch(argument)
    if found is None or os.path.exists(argument):
        return argument, 1.0
    weight = float(found[2])
    if not 0 < weight <= MAX_WEIGHT:
        raise UsageError(f"--train-data {shown(argument)}: wanted a weight above 0 and up to {MAX_WEIGHT}")
    return found[1], weight


def open_sources(argument, note):
    """Yield a Source for each file that `argument` names; `note(text)` tells what of a folder is left out.

    LlamacyError where there is none, or one cannot be read or unpacked.
    """
    path, weight = path_and_weight(argument)
    paths = _files_of(path, note) if os.path.isdir(path) else [path]
    for each in paths:
        yield Source(each, _readable(each, _open(each)), weight)


def _open(path):
    """Open a regular file; LlamacyError says what stands there instead."""
    try:
        file = open(path, "rb")  # noqa: SIM115 (kept open: samples are read while training)
    except FileNotFoundError as error:
        raise LlamacyError(
            f"{path}: no such file; wanted training data (examples/ in the project's folder has some)"
        ) from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise LlamacyError(f"{path}: cannot read the training data: {reason}") from error
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise LlamacyError(f"{path}: not a regular file; training data is read more than once, so save it first")
    return file


def _files_of(folder, note):
    """Return the data files of a folder, in order: of its training split alone where it has one."""
    found = []
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "cache-")))
        names = [name for name in sorted(names) if not name.startswith((".", "cache-"))]
        found += [os.path.join(root, name) for name in names if _is_data(name)]
        if len(found) > MAX_FILES:
            raise LlamacyError(f"{folder}: more than {MAX_FILES} files; name those that are meant")
    if not found:
        raise LlamacyError(f"{folder}: a folder without data files; wanted a dataset's folder with one of "
                           f"{', '.join(SUFFIXES)} in it")  # fmt: skip
    words = {path: set(re.split(r"[^a-z]+", os.path.relpath(path, folder).lower())) for path in found}
    training = [path for path in found if words[path] & set(TRAIN)]
    kept = training or [path for path in found if not words[path] & set(OTHERS)] or found
    left = [os.path.relpath(path, folder) for path in found if path not in kept]
    if left:
        note(f"{folder}: a dataset's folder: left out: {some(left)}; name a file to train on it")
    return kept


def _is_data(name):
    name = name.lower()
    for suffix in PACKED_SUFFIXES:
        name = name.removesuffix(suffix)
    return name.endswith(SUFFIXES) and name not in NOT_DATA


def _readable(path, file):
    """Return `file`, or what it holds as text in a temporary file."""
    try:
        head = file.read(4096)
        file.seek(0)
        unpack = next((opener for mark, opener in PACKED if head.startswith(mark)), None)
        if unpack:
            return _readable(path, _unpacked(path, file, unpack))
        if head.startswith(PARQUET) or (head.startswith(ARROW_STREAM) and path.endswith(".arrow")):
            return _from_columns(path, file, is_parquet=head.startswith(PARQUET))
        if b"\r" in head and b"\n" not in head and b"\0" not in head:
            return _copied(path, file, lambda block: block.replace(b"\r", b"\n"))
        return file
    except BaseException:
        file.close()
        raise


def _unpacked(path, file, opener):
    with file, opener(file, "rb") as packed:
        try:
            return _spooled(path, iter(lambda: packed.read(COPY), b""))
        except DAMAGED as error:
            raise LlamacyError(
                f"{path}: cannot be unpacked: {error or type(error).__name__}; is it complete?"
            ) from error


def _copied(path, file, change):
    """Return a changed copy of a file whose line ends are those of old Macs, unless it has newer ones as well."""
    for block in iter(lambda: file.read(COPY), b""):
        if b"\n" in block:
            file.seek(0)
            return file
    file.seek(0)
    with file:
        return _spooled(path, (change(block) for block in iter(lambda: file.read(COPY), b"")))


def _spooled(path, blocks):
    """Return a temporary file of these blocks; LlamacyError where the disk has no room for it."""
    try:
        spool = tempfile.TemporaryFile(prefix="llamacy-")  # noqa: SIM115 (lives as long as its samples are read)
        for block in blocks:
            if shutil.disk_usage(tempfile.gettempdir()).free < SPARE + len(block):
                raise OSError(28, "no room")
            spool.write(block)
        spool.flush()
    except OSError as error:
        if error.errno is None or not error.strerror:
            raise
        raise LlamacyError(
            f"{path}: no room for what is in it in {tempfile.gettempdir()}: {error.strerror}; free some space, or name "
            "another folder in TMPDIR"
        ) from error
    spool.seek(0)
    return spool


def _from_columns(path, file, is_parquet):
    """Return the rows of a Parquet or Arrow file as JSON lines."""
    try:
        import pyarrow
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError as error:
        kind = "Parquet" if is_parquet else "Arrow"
        raise LlamacyError(
            f"{path}: reading {kind} files needs pyarrow ({error}): pip install 'llamacy[parquet]', or save it as JSON "
            "lines"
        ) from error
    try:
        if is_parquet:
            batches = pyarrow.parquet.ParquetFile(file).iter_batches(256)
        else:
            batches = iter(pyarrow.ipc.open_stream(file))
        return _spooled(path, (_lines(batch) for batch in batches))
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise LlamacyError(f"{path}: a damaged file of columns: {error}") from error


def _lines(batch):
    return b"".join(
        json.dumps(_plain(row), ensure_ascii=False).encode("utf-8", "replace") + b"\n" for row in batch.to_pylist()
    )


def _plain(value):
    """Return a value of a column as JSON has it: dates and the like as text, bytes (of pictures) as what they are."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        # a map is a list of pairs
        return [_plain(item) for item in value]
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, bytes):
        return f"({len(value)} bytes)"
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (str, int, bool)) else str(value)
