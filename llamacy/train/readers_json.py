"""Training data in JSON: one object per line, or objects in one array (or one after the other, over several lines).

An array is walked through a sliding buffer, so that its size does not matter; only a single record must fit in memory.
"""

import json
import re

from llamacy.errors import LlamacyError, brief, shown
from llamacy.train.readers import BLOCK, MAX_RECORD, Span, decode, instruct_prompt, too_long
from llamacy.train.samples import Record, check_text

ARRAY = re.compile(rb'\s*\[\s*(?:[{"\]\[]|$)')
OBJECT = re.compile(rb"""\s*\{\s*(?:["'}]|\w+\s*:|$)""")


def json_reader(head, path, shapes):
    """Return the reader for JSON that begins with `head`, None where it does not look like JSON."""
    if ARRAY.match(head):
        return JsonValues(path, shapes)
    if not OBJECT.match(head):
        return None
    text = head.lstrip().decode("latin-1")
    lines = "\n" not in text or _whole(text.partition("\n")[0]) or not _whole(text)
    return JsonLines(path, shapes) if lines else JsonValues(path, shapes)


def _whole(text):
    """Does `text` begin with a complete JSON value?"""
    try:
        _DECODER.raw_decode(text)
    except (ValueError, RecursionError):
        return False
    return True


def parse(raw, path, line):
    """Return the object that `raw` holds; LlamacyError says what is wrong with it, and in which line."""
    return parse_text(decode(raw, path, line), path, line)


def parse_text(text, path, line):
    """The same of decoded text."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise _broken(path, line + error.lineno - 1, error, text) from error
    except RecursionError as error:
        raise LlamacyError(f"{path}:{line}: JSON nested too deeply; wanted an object with text in it") from error
    except ValueError as error:
        raise _digits(path, line) from error
    if not isinstance(value, dict):
        wanted = '{"prompt": ..., "completion": ...}'
        raise LlamacyError(f"{path}:{line}: wanted a JSON object such as {wanted}, got {shown(text, 40)}")
    return value


def _digits(path, line):
    # Python's own bound on the digits of a whole number
    return LlamacyError(f"{path}:{line}: a number of thousands of digits; wanted an object with text in it")


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
    """JSON objects in one array, or one after the other without regard to lines."""

    kind = "JSON objects"

    def spans(self, file):
        """Yield the Span of each object, reading on only when one goes past what has been read."""
        window = _Window(file)
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
                if window.skip(_BLANK):
                    raise LlamacyError(f"{self.path}:{window.line}: text after the array's end; wanted one array")
                return
            length = self._length(window)
            yield Span(window.offset, length, window.line)
            window.advance(length)

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
            except ValueError as error:
                raise _digits(self.path, window.line) from error


_DECODER = json.JSONDecoder()
_BLANK = re.compile(r"[ \t\r\n]*")
_BETWEEN = re.compile(r"[ \t\r\n]*,?[ \t\r\n]*")


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


class Shapes:
    """The objects that training data may be made of, one row each: keys that must be there, and what they become.

    `render(messages, add_generation_prompt)` is the model's chat template; needed for "messages" only.
    """

    def __init__(self, render=None):
        self.render = render

    def record(self, value, where):
        """Return (Record, the name of its prompt's shape); LlamacyError names the keys that are missing."""
        for keys, make, template in self.ROWS:
            if all(key in value for key in keys):
                return make(self, value, where), template
        wanted = ", ".join(" and ".join(f'"{key}"' for key in keys) for keys, *_ in self.ROWS)
        got = ", ".join(f'"{brief(key, 24)}"' for key in list(value)[:8]) or "no keys"
        raise LlamacyError(f"{where}: missing keys: wanted {wanted}; got {got}")

    def _messages(self, value, where):
        turns = _turns(value["messages"], where)
        if self.render is None:
            raise LlamacyError(f'{where}: "messages" need a chat template, and this model has none')
        try:
            return Record(tuple(_rendered(turns, self.render)), closed=True)
        except LlamacyError as error:
            raise LlamacyError(f"{where}: {error}") from error

    def _prompt(self, value, where):
        prompt = check_text(value["prompt"], '"prompt"', where)
        return Record(((prompt, False), (check_text(value["completion"], '"completion"', where), True)))

    def _instruction(self, value, where):
        instruction, extra, output = (
            check_text(value.get(key), f'"{key}"', where) for key in ("instruction", "input", "output")
        )
        return Record(((instruct_prompt(instruction.strip(), extra.strip()), False), (output, True)))

    def _text(self, value, where):
        return Record(((check_text(value["text"], '"text"', where), True),))

    ROWS = (
        (("messages",), _messages, "chat"),
        (("prompt", "completion"), _prompt, ""),
        (("instruction", "output"), _instruction, "instruct"),
        (("text",), _text, ""),
    )


def _turns(messages, where):
    """Return the messages as [{"role", "content"}], content as one text; LlamacyError names the one that is wrong."""
    if not isinstance(messages, list) or not messages:
        raise LlamacyError(f'{where}: "messages" is empty or no list; wanted [{{"role": ..., "content": ...}}, ...]')
    turns = []
    for number, message in enumerate(messages):
        name = f'"messages"[{number}]'
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            raise LlamacyError(f'{where}: {name} has no "role" and "content"; wanted an object with both')
        content = message["content"]
        if isinstance(content, list):
            content = "".join(_part(part, name, where) for part in content)
        role = check_text(message["role"], f"{name}.role", where)
        turns.append({"role": role, "content": check_text(content, f"{name}.content", where)})
    return turns


def _part(part, name, where):
    if not isinstance(part, dict) or part.get("type") != "text":
        raise LlamacyError(f"{where}: {name}.content holds something other than text; only text can be trained")
    return check_text(part.get("text"), f"{name}.content", where)


def _rendered(turns, render):
    """Yield the rendered conversation in pieces, (text, True) for what an assistant turn adds to its prompt.

    What the template writes for the turns up to some point must be how it writes the whole: templates that rewrite
    earlier turns (such as dropping old thoughts) leave those untrained, as they do not look so when the model answers.
    """
    whole, done = render(turns, False), 0
    for number, turn in enumerate(turns):
        # A conversation that the assistant opens has no prompt to that turn.
        if turn["role"] != "assistant" or number == 0:
            continue
        begin, end = render(turns[:number], True), render(turns[: number + 1], False)
        if not (whole.startswith(end) and end.startswith(begin)) or len(begin) < done or not turn["content"].strip():
            continue
        yield whole[done : len(begin)], False
        yield end[len(begin) :], True
        done = len(end)
    if done < len(whole):
        yield whole[done:], False
