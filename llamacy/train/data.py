"""Training data of any size: one pass finds where each sample lies, and a sample is read and tokenised when needed.

What stays in memory is 12 bytes per sample. Plain text, which has no samples of its own, is tokenised once into a
temporary file and cut into windows there.
"""

import bisect
import itertools
import os
import stat
import tempfile
import zlib
from array import array

import numpy as np

from llamacy.errors import LlamacyError
from llamacy.train.readers import HEAD, InstructionText, MarkedText, PlainText
from llamacy.train.readers_json import Shapes, json_reader
from llamacy.train.samples import Encoder, Record, Sample, has_answer

__all__ = ["Data", "Encoder", "Record", "Sample", "Subset", "open_data"]

BOM = b"\xef\xbb\xbf"
# How many records are tokenised to find the longest: bytes per token differ from text to text, but not by much.
LONGEST = 64


def open_data(paths, encoder, *, render=None, sample_start="", include_sample_start=False):
    """Return the Data in `paths`, which are told apart by content (see examples/README.md).

    `render(messages, add_generation_prompt) -> str` is the model's chat template, for data made of messages.
    LlamacyError: a file is missing, empty, broken or not text, or no sample has anything to train on.
    """
    parts = [_open_part(os.fspath(path), encoder, Shapes(render), sample_start, include_sample_start) for path in paths]
    data = Data(parts)
    if not len(data):
        first = next((part.first_skipped for part in parts if part.first_skipped), paths[0])
        raise LlamacyError(
            f"{first}: no usable sample: of {data.n_skipped} read none has a token to train on within "
            f"{encoder.n_ctx} tokens; check that there are answers, or raise --ctx-size"
        )
    return data


class Data:
    """Samples of several files, in file order: `len(data)`, `data[i] -> Sample`."""

    def __init__(self, parts):
        self.parts = parts
        self.ends = list(itertools.accumulate(len(part) for part in parts))

    def __len__(self):
        return self.ends[-1] if self.ends else 0

    def __getitem__(self, i):
        if not 0 <= i < len(self):
            raise IndexError(i)
        part = bisect.bisect_right(self.ends, i)
        return self.parts[part].sample(i - (self.ends[part - 1] if part else 0))

    @property
    def n_cut(self):
        """How many samples are longer than the context and lose their end."""
        return sum(part.n_cut for part in self.parts)

    @property
    def n_skipped(self):
        """How many records are left out, because nothing in them can be trained on."""
        return sum(part.n_skipped for part in self.parts)

    @property
    def templates(self):
        """The shapes of prompt that the samples have: "instruct", "chat", or "" for none of ours."""
        return sorted(set().union(*(part.templates for part in self.parts)))

    def longest(self):
        """Return the longest sample's number of tokens, as told by those of the longest text."""
        return max(part.longest() for part in self.parts)

    def report(self):
        """Return one line per file on what it holds, and one each on what was cut and left out."""
        lines = [f"{part.path}: {_count(len(part))} ({part.kind})" for part in self.parts]
        for part in self.parts:
            if isinstance(part, Windows) and part.path.lower().endswith((".csv", ".tsv")):
                lines.append(f"{part.path}: a table, learnt as text, commas and all: for answers make JSON lines")
        if self.n_cut:
            lines.append(f"{_count(self.n_cut)} longer than the context, cut at its end (see --ctx-size)")
        if self.n_skipped:
            first = next(part.first_skipped for part in self.parts if part.first_skipped)
            lines.append(f"{_count(self.n_skipped)} skipped, with nothing left to train on: the first at {first}")
        return lines

    def fingerprint(self):
        """Return a number that changes when the files' content or the samples found in them do."""
        return zlib.crc32(",".join(str(part.checksum) for part in self.parts).encode())

    def close(self):
        """Close the files; samples cannot be read any more."""
        for part in self.parts:
            part.close()


class Subset:
    """Some samples of other data, in the order of `indices`: `len(subset)`, `subset[i] -> Sample`."""

    def __init__(self, data, indices):
        self.data = data
        self.indices = indices

    def __len__(self):
        return len(self.indices)

    def __getitem__(self, i):
        return self.data[int(self.indices[i])]

    def longest(self):
        """Return what no sample's length exceeds, in tokens: that of all the data."""
        return self.data.longest()


def _count(n):
    return f"{n} sample" if n == 1 else f"{n} samples"


def _open_part(path, encoder, shapes, sample_start, include_sample_start):
    """Open one file and look at its beginning; return its samples as Records or Windows."""
    file = _open_text(path)
    try:
        head = file.read(HEAD)
        file.seek(len(BOM) if head.startswith(BOM) else 0)
        head = head.removeprefix(BOM)
        _check_head(head, path)
        reader = json_reader(head, path, shapes)
        if reader is None and sample_start:
            reader = MarkedText(path, sample_start, include_sample_start)
        if reader is None and InstructionText.fits(head):
            reader = InstructionText(path)
        if reader is None:
            return Windows(PlainText(path), file, encoder)
        return Records(reader, file, encoder)
    except BaseException:
        file.close()
        raise


def _open_text(path):
    """Open a regular file for reading; LlamacyError says what stands there instead."""
    try:
        file = open(path, "rb")  # noqa: SIM115 (kept open: samples are read while training)
    except FileNotFoundError as error:
        raise LlamacyError(
            f"{path}: no such file; wanted training data (examples/ in the project's folder has some)"
        ) from error
    except OSError as error:
        raise LlamacyError(f"{path}: cannot read the training data: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise LlamacyError(f"{path}: not a regular file; training data is read more than once, so save it first")
    return file


def _check_head(head, path):
    """Refuse at once what cannot be UTF-8 text, by its first bytes."""
    if not head.strip():
        raise LlamacyError(f"{path}: the file is empty; wanted instruction text, JSON lines or plain text")
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise LlamacyError(f"{path}:1: this is UTF-16 text, wanted UTF-8; convert it with iconv -f UTF-16 -t UTF-8")
    if b"\0" in head:
        raise LlamacyError(f"{path}: not a text file: it holds NUL bytes; wanted instruction text, JSON or plain text")


class Records:
    """The samples of a file with records: where each lies, 12 bytes per sample."""

    def __init__(self, reader, file, encoder):
        self.path, self.kind = reader.path, reader.kind
        self.reader, self.file, self.encoder = reader, file, encoder
        self.templates = set()
        self.n_cut = self.n_skipped = self.checksum = 0
        self.first_skipped = ""
        self.starts, self.lengths = array("Q"), array("I")
        for span in reader.spans(file):
            if self._usable(span):
                self.starts.append(span.start)
                self.lengths.append(span.length)

    def __len__(self):
        return len(self.starts)

    def _usable(self, span):
        """Check a record once, before training: is it sound, is it cut, is anything left to train on?"""
        raw = self._read(span.start, span.length)
        record = self.reader.record(raw, span.line)
        usable, cut = has_answer(record), False
        if usable and not self.encoder.surely_fits(record):
            sample, cut = self.encoder.encode(record)
            usable = sample.n_trained > 0
        if usable:
            self.n_cut += cut
            self.checksum = zlib.crc32(raw, self.checksum)
            self.templates.add(self.reader.template)
        else:
            self.n_skipped += 1
            self.first_skipped = self.first_skipped or f"{self.path}:{span.line}"
        return usable

    def _read(self, start, length):
        here = self.file.tell()
        self.file.seek(start)
        raw = self.file.read(length)
        self.file.seek(here)
        if len(raw) != length:
            raise LlamacyError(f"{self.path}: the file became shorter while it was read; leave it alone while training")
        return raw

    def longest(self):
        """Return the most tokens that one of the LONGEST longest records by bytes has."""
        order = np.argsort(np.frombuffer(self.lengths, np.uint32), kind="stable")[-LONGEST:]
        return max(len(self.sample(int(i)).ids) for i in order)

    def sample(self, i):
        """Read and tokenise sample i."""
        return self.encoder.encode(self.reader.record(self._read(self.starts[i], self.lengths[i]), 1))[0]

    def close(self):
        """Close the file."""
        self.file.close()


class Windows:
    """The samples of plain text: windows of n_ctx tokens, side by side, BOS first where the model adds it.

    The last window may be shorter; no EOS is added, as a window's end is not the text's. The tokens lie in a temporary
    file, int32, which has no name and vanishes with the process.
    """

    def __init__(self, reader, file, encoder):
        self.path, self.kind = reader.path, f"{reader.kind} in windows of {encoder.n_ctx} tokens"
        self.templates = {""}
        self.n_cut = self.n_skipped = 0
        self.first_skipped = ""
        self.checksum = encoder.n_ctx
        self.first = encoder.first
        self.size = encoder.n_ctx - len(self.first)
        self.spool = tempfile.TemporaryFile(prefix="llamacy-")  # noqa: SIM115 (lives as long as self)
        self.n_tokens = 0
        with file:
            for text in reader.blocks(file):
                ids = np.array(self._ids(encoder.tokenizer, text), np.int32)
                self.n_tokens += len(ids)
                self._keep(ids.tobytes())
                self.checksum = zlib.crc32(ids.tobytes(), self.checksum)
        # A last window needs two tokens: the first of a sequence is never predicted.
        n_whole, rest = divmod(self.n_tokens, self.size)
        self.n_windows = n_whole + (rest + len(self.first) >= 2)
        if not self.n_windows:
            self.n_skipped, self.first_skipped = 1, self.path

    def _keep(self, content):
        try:
            self.spool.write(content)
            self.spool.flush()
        except OSError as error:
            raise LlamacyError(
                f"{self.path}: no room for its tokens in {tempfile.gettempdir()}: {error.strerror}; "
                "free some space, or name another folder in TMPDIR"
            ) from error

    def _ids(self, tokenizer, text):
        """Tokenise the next block: without a BOS of its own, or the space that some tokenizers put before a text."""
        ids = tokenizer.encode(text, add_special=False) if text else []
        if self.n_tokens:
            return ids[1:] if text.startswith("\n") and ids and tokenizer.token_bytes(ids[0]) == b" " else ids
        return ids[1:] if ids[:1] == self.first else ids

    def __len__(self):
        return self.n_windows

    def longest(self):
        """Return a window's length."""
        return min(self.n_tokens, self.size) + len(self.first)

    def sample(self, i):
        """Return window i, all of it trained but its first token."""
        self.spool.seek(4 * i * self.size)
        ids = np.frombuffer(self.spool.read(4 * self.size), np.int32)
        ids = np.concatenate([np.array(self.first, np.int32), ids])
        trained = np.ones(len(ids), np.bool_)
        trained[:1] = False
        return Sample(ids, trained)

    def close(self):
        """Remove the temporary file."""
        self.spool.close()
