"""Training data in JSON: one object per line, or objects in one array (or one after the other, over several lines).

An array is walked through a sliding buffer, so that its size does not matter; only a single record must fit in memory.
"""

import json
import re

from llamacy.errors import LlamacyError, shown
from llamacy.train.conversations import is_message
from llamacy.train.readers import BLOCK, MAX_RECORD, Span, decode, too_long

ARRAY = re.compile(rb'\s*\[\s*(?:[{"\]\[]|$)')
OBJECT = re.compile(rb"""\s*\{\s*(?:["'}]|\w+\s*:|$)""")
# Objects around the records of a whole file: the key that these stand under.
WRAPPERS = ("data", "rows", "train", "examples", "samples", "records", "items", "instances")


class Number(float):
    """A number with a fraction, and how it was `written`: as an answer 1.50 is not 1.5."""

    def __new__(cls, text):
        self = super().__new__(cls, text)
        self.written = text
        return self


def _whole_number(text):
    """Return an int; one of thousands of digits, of which Python makes none, stays a text."""
    try:
        return int(text)
    except ValueError:
        return text


def _constant(name):
    """NaN is how pandas writes what is missing."""
    return None if name == "NaN" else float(name)


_DECODER = json.JSONDecoder(parse_float=Number, parse_int=_whole_number, parse_constant=_constant)


def json_reader(head, path, shapes):
    """Return the reader for JSON that begins with `head`, None where it does not look like JSON."""
    text = head.lstrip().decode("latin-1")
    if ARRAY.match(head):
        return JsonLists(path, shapes) if _begins_with_message(text) else JsonValues(path, shapes)
    if not OBJECT.match(head):
        return None
    if wrapper := _wrapper(text):
        return JsonValues(path, shapes, wrapper)
    lines = "\n" not in text or _whole(text.partition("\n")[0]) or not _whole(text)
    return JsonLines(path, shapes) if lines else JsonValues(path, shapes)


def _begins_with_message(text):
    """Does an array begin with a message, so that it is a conversation itself?"""
    try:
        return is_message(_DECODER.raw_decode(text, _BLANK.match(text, 1).end())[0])
    except (ValueError, RecursionError):
        return False


def _wrapper(text):
    """Return the key of the array in which an object, the whole file, keeps its records; None where it is a record."""
    at = 1
    try:
        while True:
            at = _BETWEEN.match(text, at).end()
            key, at = _DECODER.raw_decode(text, at)
            at = _BLANK.match(text, _BLANK.match(text, at).end() + 1).end()
            if text[at : at + 1] == "[" and isinstance(key, str) and key.lower() in WRAPPERS:
                at = _BLANK.match(text, at + 1).end()
                records = text[at : at + 1] in ("{", "[") and not _begins_with_message("[" + text[at:])
                return key if records else None
            at = _DECODER.raw_decode(text, at)[1]
    except (ValueError, RecursionError):
        return None


def _whole(text):
    """Does `text` begin with a complete JSON value?"""
    try:
        _DECODER.raw_decode(text)
    except (ValueError, RecursionError):
        return False
    return True


def parse(raw, path, line):
    """Return the object, or the list of messages, that `raw` holds; LlamacyError says what is wrong with it, and in
    which line.
    """
    # joined files leave a byte order mark before a line
    return parse_text(decode(raw, path, line).lstrip("\ufeff"), path, line)


def parse_text(text, path, line):
    """The same of decoded text."""
    try:
        value, end = _DECODER.raw_decode(text, _BLANK.match(text).end())
        if _BLANK.match(text, end).end() < len(text):
            raise json.JSONDecodeError("Extra data", text, end)
    except json.JSONDecodeError as error:
        raise _broken(path, line + error.lineno - 1, error, text) from error
    except RecursionError as error:
        raise LlamacyError(f"{path}:{line}: JSON nested too deeply; wanted an object with text in it") from error
    if isinstance(value, list) and value and is_message(value[0]):
        return value
    if not isinstance(value, dict):
        wanted = '{"prompt": ..., "completion": ...}'
        raise LlamacyError(f"{path}:{line}: wanted a JSON object such as {wanted}, got {shown(text, 40)}")
    return value


def _broken(path, line, error, text):
    whole = text.split("\n")[error.lineno - 1]
    near = whole[max(0, error.colno - 21) : error.colno + 19]
    return LlamacyError(f"{path}:{line}: broken JSON: {error.msg} at column {error.colno}, near {shown(near)}")


class JsonLines:
    """One JSON object per line; empty lines do not matter."""

    kind = "JSON lines"

    def __init__(self, path, shapes):
        self.path = path
        self.shapes = shapes
        self.template = ""

    def spans(self, file):
        """Yield the Span of each line that is not empty."""
        offset = file.tell()
        for number, line in enumerate(iter(lambda: file.readline(MAX_RECORD + 1), b""), 1):
            if len(line) > MAX_RECORD:
                raise too_long(self.path, number)
            if not line.isspace():
                yield Span(offset, len(line), number)
            offset += len(line)

    def record(self, raw, line):
        """Return the object as a Record, by the first of the known shapes that it has the keys of."""
        value = parse(raw.rstrip(), self.path, line)
        record, self.template = self.shapes.record(value, f"{self.path}:{line}")
        return record


class JsonValues(JsonLines):
    """JSON objects in one array, or one after the other without regard to lines.

    wrapper: the key of the array in an object that is the whole file; None where there is no such object.
    """

    kind = "JSON objects"

    def __init__(self, path, shapes, wrapper=None):
        super().__init__(path, shapes)
        self.wrapper = wrapper

    def spans(self, file):
        """Yield the Span of each object, reading on only when one goes past what has been read."""
        window = _Window(file)
        if self.wrapper is not None:
            self._enter(window)
        in_array = window.skip(_BLANK) == "["
        if in_array:
            window.advance(1)
        while True:
            following = window.skip(_BETWEEN if in_array else _BLANK)
            if following == "":
                if in_array:
                    raise LlamacyError(f"{self.path}:{window.line}: the array is not closed: the file is cut off")
                return
            if in_array and following == "]":
                window.advance(1)
                self._leave(window)
                return
            length = self._length(window)
            yield Span(window.offset, length, window.line)
            window.advance(length)

    def _enter(self, window):
        """Go to the array in the object around it."""
        window.skip(_BLANK)
        window.advance(1)
        while True:
            window.skip(_BETWEEN)
            key = self._value(window)
            window.skip(_COLON)
            if key == self.wrapper and window.skip(_BLANK) == "[":
                return
            self._value(window)
            self.shapes.notes.unused(key, f"{self.path}:{window.line}")

    def _leave(self, window):
        """Read what stands behind the array: nothing, or the rest of the object around it."""
        where = f"{self.path}:{window.line}"
        if self.wrapper is not None:
            while window.skip(_BETWEEN) == '"':
                key = self._value(window)
                window.skip(_COLON)
                self._value(window)
                self.shapes.notes.unused(key, where)
            if window.skip(_BLANK) != "}":
                raise LlamacyError(f"{where}: the object around the records is not closed: the file is cut off")
            window.advance(1)
        if window.skip(_BLANK):
            raise LlamacyError(f"{self.path}:{window.line}: text after the array's end; wanted one array")

    def _value(self, window):
        """Return the JSON value at the window's beginning and go past it."""
        length = self._length(window)
        text = window.text[window.position : window.position + length].encode("latin-1").decode("utf-8", "replace")
        window.advance(length)
        return _DECODER.decode(text)

    def _length(self, window):
        """Return the length in bytes of the JSON value at the window's beginning."""
        while True:
            try:
                return _DECODER.raw_decode(window.text, window.position)[1] - window.position
            except json.JSONDecodeError as error:
                # Well inside the window more text cannot mend it; a string without an end is told at its beginning.
                inside = error.pos + 16 < len(window.text) and not error.msg.startswith("Unterminated")
                if len(window.text) - window.position > MAX_RECORD:
                    raise too_long(self.path, window.line) from error
                if inside or not window.read():
                    rest = window.text[window.position : error.pos + 64].encode("latin-1")
                    parse_text(rest.decode("utf-8", "replace"), self.path, window.line)
                    raise LlamacyError(f"{self.path}:{window.line}: broken JSON: {error.msg}") from error
            except RecursionError as error:
                raise LlamacyError(f"{self.path}:{window.line}: JSON nested too deeply") from error


_BLANK = re.compile(r"[ \t\r\n]*")
_BETWEEN = re.compile(r"[ \t\r\n]*,?[ \t\r\n]*")
_COLON = re.compile(r"[ \t\r\n]*:?[ \t\r\n]*")


class JsonLists(JsonValues):
    """Conversations, each a list of messages, one after the other."""

    kind = "lists of messages"

    def spans(self, file):
        """Yield the Span of each list."""
        window = _Window(file)
        while window.skip(_BLANK):
            length = self._length(window)
            yield Span(window.offset, length, window.line)
            window.advance(length)


class _Window:
    """The part of a file that is being looked at: bytes as Latin-1 text, so that a position is a byte offset.

    JSON's own marks are ASCII; the text inside strings is decoded later, record by record.
    """

    def __init__(self, file):
        self.file = file
        self.start = file.tell()
        self.text, self.position, self.line = "", 0, 1

    @property
    def offset(self):
        return self.start + self.position

    def read(self):
        """Read on: what is left is kept and at least doubled. Return whether there was more."""
        left = self.text[self.position :]
        more = self.file.read(max(BLOCK, len(left))).decode("latin-1")
        self.start, self.text, self.position = self.offset, left + more, 0
        return bool(more)

    def advance(self, length):
        end = self.position + length
        self.line += self.text.count("\n", self.position, end)
        self.position = end

    def skip(self, pattern):
        """Go past what `pattern` matches; return the character that follows, "" at the file's end."""
        while True:
            end = pattern.match(self.text, self.position).end()
            if end < len(self.text):
                self.advance(end - self.position)
                return self.text[end]
            if not self.read():
                self.advance(len(self.text))
                return ""
