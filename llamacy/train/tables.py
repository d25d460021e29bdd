"""Tables as text (CSV, TSV): told by a first line of names that training data has, whatever separates the columns.

Fields may be quoted, with separators and line breaks in them, quotes in them doubled, as spreadsheets write them.
"""

import csv
import io

from llamacy.errors import LlamacyError, brief, shown
from llamacy.train.readers import MAX_RECORD, Span, decode, too_long

SEPARATORS = ("\t", ";", ",", "|")
NAMES = {"\t": "tabs", ";": "semicolons", ",": "commas", "|": "bars"}
# A table without names of ours: so many lines of the same number of columns are one, and not text with commas.
LINES_OF_TWO, LINES_OF_MORE = 8, 4
LOOKED_AT = 40
MAX_COLUMNS = 10_000
csv.field_size_limit(MAX_RECORD)


def table_reader(head, path, shapes):
    """Return the reader for a table that begins with `head`, None where it is none.

    LlamacyError for a table whose columns have no names that training data has.
    """
    text = head.decode("utf-8", "ignore")
    first = text.lstrip("\n\r").partition("\n")[0]
    for separator in SEPARATORS:
        names = _fields(first, separator)
        if len(names) > 1 and shapes.knows(names):
            return Table(path, shapes, separator)
    separator = _separator_of(text)
    if separator or _fields_named(path):
        what = f"a table with columns between {NAMES[separator]}" if separator else "a table"
        raise LlamacyError(
            f"{path}:1: {what}, but its first line names none that can be learnt from, it is {shown(first, 60)}; give "
            "it a first line such as question,answer or instruction,input,output"
        )
    return None


def _fields_named(path):
    path = path.lower()
    for suffix in (".gz", ".xz", ".bz2"):
        path = path.removesuffix(suffix)
    return path.endswith((".csv", ".tsv"))


def _fields(line, separator):
    try:
        return next(csv.reader([line.rstrip("\r\n")], delimiter=separator), [])[:MAX_COLUMNS]
    except csv.Error:
        return []


def _separator_of(text):
    """Return what separates the columns of a table, "" where the text is none."""
    lines = [line for line in text.splitlines()[:LOOKED_AT] if line.strip()]
    # the last one may be cut off
    lines = lines[:-1] if len(lines) == LOOKED_AT or len(lines) > LINES_OF_TWO else lines
    for separator in SEPARATORS[:3]:
        counts = {len(_fields(line, separator)) for line in lines}
        quoted = sum(line.startswith('"') and f'"{separator}"' in line for line in lines)
        wanted = 2 if quoted == len(lines) else LINES_OF_MORE if max(counts, default=0) > 2 else LINES_OF_TWO
        wanted = min(wanted, 3) if separator == "\t" else wanted
        if len(counts) == 1 and max(counts) > 1 and len(lines) >= wanted:
            return separator
    return ""


class Table:
    """A table: one record per row, by the names in its first line."""

    def __init__(self, path, shapes, separator):
        self.path, self.shapes, self.separator = path, shapes, separator
        self.kind = f"table, columns between {NAMES[separator]}"
        self.template = ""
        self.names = None

    def spans(self, file):
        """Yield the Span of each row; its lines go on while a quote is open."""
        mark = self.separator.encode()
        offset = start = file.tell()
        first, inside = 1, False
        for number, line in enumerate(iter(lambda: file.readline(MAX_RECORD + 1), b""), 1):
            if not inside:
                start, first = offset, number
            inside = _is_open(line, mark, inside)
            offset += len(line)
            if offset - start > MAX_RECORD:
                raise self._not_closed(first) if inside else too_long(self.path, first)
            if inside or not file_line(line):
                continue
            if self.names is None:
                self._name(_row(self, file, start, offset), first)
            else:
                yield Span(start, offset - start, first)
        if inside:
            raise self._not_closed(first)

    def _not_closed(self, line):
        return LlamacyError(f'{self.path}:{line}: a quote (") that is opened in this row is not closed')

    def _name(self, raw, line):
        self.names = [name.strip() for name in self._split(raw, line)]
        while self.names and not self.names[-1]:
            self.names.pop()
        for name in self.names:
            if self.names.count(name) > 1:
                raise LlamacyError(f"{self.path}:{line}: two columns are named {shown(name)}; wanted names that differ")

    def _split(self, raw, line):
        text = decode(raw, self.path, line)
        try:
            rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=self.separator))
        except csv.Error as error:
            raise LlamacyError(f"{self.path}:{line}: no row of a table: {error}") from error
        return rows[0] if rows else []

    def record(self, raw, line):
        """Return the row as a Record, an object with the columns' names as keys; empty fields are none."""
        fields = self._split(raw, line)
        n = len(self.names)
        if len(fields) > n and any(field.strip() for field in fields[n:]):
            raise LlamacyError(
                f"{self.path}:{line}: {len(fields)} fields, the first line names {n} "
                f"({', '.join(brief(name, 24) for name in self.names[:6])}); put quotes around a text with separators"
            )
        value = {name: field or None for name, field in zip(self.names, fields, strict=False) if name}
        record, self.template = self.shapes.record(value, f"{self.path}:{line}")
        return record


def file_line(line):
    """Does a line hold anything?"""
    return bool(line.strip())


def _row(table, file, start, end):
    here = file.tell()
    file.seek(start)
    raw = file.read(end - start)
    file.seek(here)
    return raw


def _is_open(line, separator, inside):
    """Is a quoted field open at the end of `line`, when one was (`inside`) or was not at its beginning?"""
    at = 0
    while True:
        if inside:
            at = line.find(b'"', at)
            if at < 0:
                return True
            doubled = line[at + 1 : at + 2] == b'"'
            at, inside = (at + 2, True) if doubled else (at + 1, False)
            if doubled:
                continue
        elif line[at : at + 1] == b'"':
            at, inside = at + 1, True
            continue
        at = line.find(separator, at)
        if at < 0:
            return False
        at += 1
