"""Training files, told apart by what is in them: each reader knows where a record begins and what it says.

A reader has `kind` (for the report), `template` (the shape of its prompts), `spans(file)`, which yields the place of
each record in one pass over the binary file, and `record(raw, line)`, which turns those bytes into a Record.
Nothing here holds more than one record in memory. JSON has its readers in readers_json.py.
"""

import codecs
import re
from dataclasses import dataclass

from llamacy.errors import LlamacyError
from llamacy.train.kinds import not_utf8
from llamacy.train.samples import Record

MAX_RECORD = 64 << 20
BLOCK = 1 << 16
HEAD = 1 << 16

COLON = rb"(?::|\xef\xbc\x9a|(?=\r?\n))"
INSTRUCTION = re.compile(rb"(?:\xef\xbb\xbf)*[ \t]*(?:<s>[ \t]*)?#{2,4}[ \t]*instruction[ \t]*" + COLON, re.IGNORECASE)
HEADING = re.compile(r"[ \t]*#{2,4}[ \t]*(input|response|end)\b[ \t]*(?:[:：]|$)[ \t]*(.*)", re.IGNORECASE)


@dataclass(frozen=True)
class Span:
    """Where one record lies: offset and length in bytes, and its first line, counted from 1."""

    start: int
    length: int
    line: int


def decode(raw, path, line):
    """Return UTF-8 bytes as text with `\\n` line ends; LlamacyError names the line that is not UTF-8."""
    try:
        return raw.decode("utf-8").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise not_utf8(raw, path, line) from error


def too_long(path, line):
    """The error for a record that would not fit in memory."""
    return LlamacyError(f"{path}:{line}: one record is longer than {MAX_RECORD >> 20} MB; wanted one sample per record")


def instruct_prompt(instruction, extra=""):
    """Return the prompt that instruction data is trained with, up to where the answer begins."""
    middle = f"### Input:\n{extra}\n" if extra else ""
    return f"### Instruction:\n{instruction}\n{middle}### Response:\n"


class InstructionText:
    """Text in `### Instruction:` / `### Input:` / `### Response:` blocks, indented or not: one record per block.

    What stands before the first block is a remark and left out, unless it is repeated before the second one: then it
    is a preamble, part of every prompt.
    """

    kind = "instruction text"
    template = "instruct"

    def __init__(self, path):
        self.path = path
        self.preamble = self._remark = ""

    @staticmethod
    def fits(head):
        """Does one of the first lines begin a block?"""
        lines = [line for line in head.splitlines(keepends=True) if line.strip()]
        return any(INSTRUCTION.match(line) for line in lines[:8])

    def spans(self, file):
        """Yield the Span of each block, from its heading to the next one's."""
        offset, n_blocks, first = file.tell(), 0, 1
        start = offset
        for number, line in enumerate(iter(lambda: file.readline(MAX_RECORD + 1), b""), 1):
            if INSTRUCTION.match(line):
                if n_blocks <= 1:
                    self._note_preamble(file, start, offset, n_blocks)
                if n_blocks:
                    yield Span(start, offset - start, first)
                start, first, n_blocks = offset, number, n_blocks + 1
            offset += len(line)
            if offset - start > MAX_RECORD:
                raise too_long(self.path, first)
        yield Span(start, offset - start, first)

    def _note_preamble(self, file, start, end, n_blocks):
        """Keep the text before the first block, then drop it again unless the first block ends with it."""
        here = file.tell()
        file.seek(start)
        text = _tidy(decode(file.read(end - start), self.path, 1))
        file.seek(here)
        if n_blocks == 0:
            self._remark = text
        elif self._remark and text.endswith(self._remark):
            self.preamble = self._remark

    def record(self, raw, line):
        """Return the block as a prompt, in one fixed shape whatever its spacing, and an answer."""
        text = decode(INSTRUCTION.sub(b"", raw, count=1), self.path, line)
        sections, name = {"instruction": []}, "instruction"
        for row in text.split("\n"):
            heading = None if name == "end" else HEADING.match(row)
            # Behind the answer's heading only an end mark is ours: an answer may itself speak of "### Input:".
            if heading and (name != "response" or heading[1].lower() == "end"):
                name, row = heading[1].lower(), heading[2]
                sections[name] = []
            sections[name].append(row)
        if "response" not in sections:
            raise LlamacyError(f'{self.path}:{line}: this block has no "### Response:" line; wanted one in every block')
        parts = {key: _tidy("\n".join(rows)) for key, rows in sections.items()}
        prompt, answer = instruct_prompt(parts["instruction"], parts.get("input", "")), parts["response"]
        if self.preamble:
            prompt, answer = f"{self.preamble}\n\n{prompt}", answer.removesuffix(self.preamble).rstrip()
        return Record(((prompt, False), (answer, True)))


def _tidy(text):
    """Return text without common indentation and without blank space around it."""
    first, _, rest = text.partition("\n")
    rows = [row for row in rest.split("\n") if row.strip()]
    # The first row may stand behind its heading's colon: its own indentation says nothing about the others'.
    if first.strip():
        return (first.strip() + "\n" + _dedent(rest, rows)).rstrip()
    return _dedent(rest, rows).strip("\n").rstrip()


def _dedent(text, rows):
    """Remove from every row the indentation that `rows` share."""
    indents = [row[: len(row) - len(row.lstrip(" \t"))] for row in rows]
    shared = min(indents, key=len, default="")
    while shared and not all(indent.startswith(shared) for indent in indents):
        shared = shared[:-1]
    return "\n".join(row.removeprefix(shared) if row.strip() else "" for row in text.split("\n"))


class MarkedText:
    """Any text in which each sample begins with a marker; what stands before the first one is left out."""

    kind = "text with sample starts"
    template = ""

    def __init__(self, path, marker, include_marker):
        self.path = path
        self.marker = marker
        self.include_marker = include_marker

    def spans(self, file):
        """Yield the Span from each marker to the next."""
        starts = self._starts(file)
        start, line = next(starts, (None, None))
        if start is None:
            raise LlamacyError(f"{self.path}: no sample starts with {self.marker!r}; check --sample-start")
        for following, next_line in starts:
            yield self._span(start, following, line)
            start, line = following, next_line
        yield self._span(start, file.seek(0, 2), line)

    def _span(self, start, end, line):
        if end - start > MAX_RECORD:
            raise too_long(self.path, line)
        return Span(start, end - start, line)

    def _starts(self, file):
        """Yield (offset, line) of each marker, in whichever line ends the file has."""
        marks = {self.marker.encode(), self.marker.replace("\n", "\r\n").encode()}
        pattern = re.compile(b"|".join(map(re.escape, sorted(marks, key=len, reverse=True))))
        overlap = max(map(len, marks)) - 1
        offset, line, buffer = file.tell(), 1, b""
        while True:
            block = file.read(BLOCK)
            buffer += block
            counted = used = 0
            # Without the next block a marker at the very end could be the shorter half of a longer match.
            limit = len(buffer) if not block else len(buffer) - overlap
            for match in pattern.finditer(buffer):
                if match.start() >= limit:
                    break
                line += buffer.count(b"\n", counted, match.start())
                counted = match.start()
                yield offset + match.start(), line
                used = match.end()
            if not block:
                return
            keep = max(used, limit, 0)
            line += buffer.count(b"\n", counted, keep)
            offset, buffer = offset + keep, buffer[keep:]

    def record(self, raw, line):
        """Return the text of one sample, all of it to be learnt."""
        text = decode(raw, self.path, line)
        text = text if self.include_marker else text.removeprefix(self.marker)
        return Record(((text.strip(), True),))


class PlainText:
    """Any other text: blocks to tokenise one after the other, cut where no tokenizer joins what is on both sides."""

    kind = "plain text"
    template = ""
    _cut = re.compile(r"(?<=[A-Za-z])(?=\n)")

    def __init__(self, path):
        self.path = path

    def blocks(self, file):
        """Yield the whole file as pieces of text; each but the first begins with a line break where there is one."""
        decoder = codecs.getincrementaldecoder("utf-8")()
        line, pending = 1, ""
        for raw in iter(lambda: file.read(BLOCK), b""):
            pending += self._decode(decoder, raw, line)
            line += raw.count(b"\n")
            text = pending[:-1].replace("\r\n", "\n") + pending[-1:]
            cut = self._cut_point(text)
            if cut:
                yield text[:cut]
            pending = text[cut:]
        self._decode(decoder, b"", line, final=True)
        yield pending.replace("\r\n", "\n")

    def _cut_point(self, text):
        """Where to cut: between a letter and a line break, else before a line break or space, else at the end."""
        for match in reversed(list(self._cut.finditer(text, max(0, len(text) - 8192)))):
            return match.start()
        return max(text.rfind("\n"), 0) or max(text.rfind(" "), 0) or len(text)

    def _decode(self, decoder, raw, line, final=False):
        try:
            return decoder.decode(raw, final)
        except UnicodeDecodeError as error:
            raise not_utf8(error.object, self.path, line) from error
