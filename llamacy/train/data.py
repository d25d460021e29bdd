"""Training data of any size: one pass finds where each sample lies, and a sample is read and tokenised when needed.

What stays in memory is 12 bytes per sample. Plain text, which has no samples of its own, is tokenised once into a
temporary file and cut into windows there.
"""

import bisect
import itertools
import os
import tempfile
import zlib
from array import array

import numpy as np

from llamacy.errors import LlamacyError
from llamacy.train.batches import permutation
from llamacy.train.kinds import check_head
from llamacy.train.notes import Notes
from llamacy.train.readers import HEAD, InstructionText, MarkedText, PlainText
from llamacy.train.readers_json import json_reader
from llamacy.train.samples import Encoder, Record, Sample, has_answer
from llamacy.train.shapes import PREFERENCES, Shapes
from llamacy.train.sources import open_sources
from llamacy.train.tables import table_reader

__all__ = ["Data", "Encoder", "Record", "Sample", "Subset", "open_data"]

BOM = b"\xef\xbb\xbf"
# How many records are tokenised to find the longest: bytes per token differ from text to text, but not by much.
LONGEST = 64
# Keeps the draws for files' weights apart from others, as batches.SPLIT_STREAM does.
WEIGHT_STREAM = 1 << 33


def open_data(
    paths, encoder, *, render=None, sample_start="", include_sample_start=False, keep_empty=False, max_samples=None,
    needs="", shapes=Shapes,
):  # fmt: skip
    """Return the Data in `paths`, which are told apart by content (see examples/README.md).

    paths: files, folders of datasets, or these with `:WEIGHT` behind. `render(messages, add_generation_prompt,
    **variables) -> str` is the model's chat template, for data made of messages. keep_empty: empty answers are taught.
    max_samples: of each file no more than its first so many. needs: what a method's data must be, see Shapes.
    shapes: the class that makes Records of objects.
    LlamacyError: a file is missing, empty, broken or not text, or no sample has anything to train on.
    """
    reading = _Reading(encoder, render, sample_start, include_sample_start, keep_empty, max_samples, needs, shapes)
    parts, told = [], []
    for argument in paths:
        parts += [reading.part(source) for source in open_sources(argument, told.append)]
    reading.notes.close()
    data = Data(parts, [*told, *reading.notes.lines()])
    if not len(data):
        first = next((part.first_skipped for part in parts if part.first_skipped), parts[0].path)
        raise LlamacyError(
            f"{first}: no usable sample: of {data.n_skipped} read none has a token to train on within "
            f"{encoder.n_ctx} tokens; check that there are answers, or raise --ctx-size"
        )
    return data


class Data:
    """Samples of several files, in file order: `len(data)`, `data[i] -> Sample`; each once, whatever its weight.

    notes: lines on what the files hold that is not learnt as it stands.
    """

    def __init__(self, parts, notes=()):
        self.parts, self.notes = parts, notes
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
        return max(part.longest() for part in self.parts if len(part))

    def weighted(self, indices, seed):
        """Return how often each of these samples is taken in an epoch: an array in which they stand so often.

        A weight's whole part is how often each is, its fraction the share of them that is once more.
        """
        result, indices, begin = [], np.asarray(indices, np.int64), 0
        for number, (part, end) in enumerate(zip(self.parts, self.ends, strict=True)):
            own, begin = indices[(indices >= begin) & (indices < end)], end
            times, fraction = divmod(part.weight, 1)
            more = permutation(len(own), seed, WEIGHT_STREAM + number)[: round(fraction * len(own))]
            result.append(np.sort(np.concatenate([np.repeat(own, int(times)), own[more]])))
        return np.concatenate(result)

    @property
    def is_weighted(self):
        """Is some file's weight another than 1?"""
        return any(part.weight != 1 for part in self.parts)

    def report(self):
        """Return one line per file on what it holds, and one each on what was cut and left out."""
        lines = [f"{part.path}: {_count(len(part))} ({part.kind}){_times(part.weight)}" for part in self.parts]
        if self.n_cut:
            lines.append(f"{_count(self.n_cut)} longer than the context, cut at its end (see --ctx-size)")
        if self.n_skipped:
            first = next(part.first_skipped for part in self.parts if part.first_skipped)
            lines.append(f"{_count(self.n_skipped)} skipped, with nothing left to train on: the first at {first}")
        return [*lines, *self.notes]

    def fingerprint(self):
        """Return a number that changes when the files' content or the samples found in them do."""
        sums = (f"{part.checksum}{'' if part.weight == 1 else f':{part.weight}'}" for part in self.parts)
        return zlib.crc32(",".join(sums).encode())

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


def _times(weight):
    return "" if weight == 1 else f", {weight:g} times each"


class _Reading:
    """How files are read: what `open_data` was told, once for all of them."""

    def __init__(self, encoder, render, sample_start, include_sample_start, keep_empty, max_samples, needs, shapes):
        self.encoder, self.keep_empty, self.most = encoder, keep_empty, max_samples
        self.sample_start, self.include_sample_start = sample_start, include_sample_start
        self.notes = Notes()
        self.needs = needs
        self.shapes = shapes(render, encoder.end_text, keep_empty, self.notes, needs)

    def part(self, source):
        """Look at a Source's beginning; return its samples as Records or Windows."""
        path, file = source.path, source.file
        try:
            head = file.read(HEAD)
            while head.startswith(BOM):
                head = head[len(BOM) :]
            file.seek(-len(head), os.SEEK_CUR)
            check_head(head, path)
            reader = self._reader(head, path)
            if self.needs and not hasattr(reader, "shapes"):
                raise LlamacyError(f"{path}: no preferences: wanted JSON or a table of {PREFERENCES[self.needs]}")
            if reader is None:
                part = Windows(PlainText(path), file, self.encoder, self.most)
            else:
                part = Records(reader, file, self.encoder, self.keep_empty, self.most)
        except BaseException:
            file.close()
            raise
        part.weight = source.weight
        return part

    def _reader(self, head, path):
        """Return what finds the records of a file that begins with `head`, None for plain text."""
        reader = json_reader(head, path, self.shapes)
        if reader is None and self.sample_start:
            reader = MarkedText(path, self.sample_start, self.include_sample_start)
        if reader is None and InstructionText.fits(head):
            reader = InstructionText(path)
        return reader or table_reader(head, path, self.shapes)


class Records:
    """The samples of a file with records: where each lies, 12 bytes per sample."""

    weight = 1

    def __init__(self, reader, file, encoder, keep_empty=False, most=None):
        self.path, self.kind = reader.path, reader.kind
        self.reader, self.file, self.encoder, self.keep_empty = reader, file, encoder, keep_empty
        self.templates = set()
        self.n_cut = self.n_skipped = self.checksum = 0
        self.first_skipped = ""
        self.starts, self.lengths = array("Q"), array("I")
        for span in reader.spans(file):
            if len(self.starts) == most:
                self.kind += f", the first {most} of more"
                break
            if self._usable(span):
                self.starts.append(span.start)
                self.lengths.append(span.length)

    def __len__(self):
        return len(self.starts)

    def _usable(self, span):
        """Check a record once, before training: is it sound, is it cut, is anything left to train on?"""
        raw = self._read(span.start, span.length)
        record = self.reader.record(raw, span.line)
        usable, cut = has_answer(record, self.keep_empty), False
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
        return self.encoder.encode(self.record(i))[0]

    def record(self, i):
        """Read sample i as a Record, before it is tokenised."""
        return self.reader.record(self._read(self.starts[i], self.lengths[i]), 1)

    def close(self):
        """Close the file."""
        self.file.close()


class Windows:
    """The samples of plain text: windows of n_ctx tokens, side by side, BOS first where the model adds it.

    The last window may be shorter; no EOS is added, as a window's end is not the text's. The tokens lie in a temporary
    file, int32, which has no name and vanishes with the process.
    """

    weight = 1

    def __init__(self, reader, file, encoder, most=None):
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
        if most is not None and self.n_windows > most:
            self.n_windows = most
            self.kind += f", the first {most} of more"
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
