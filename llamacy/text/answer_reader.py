"""An answer as it streams, taken apart: its text, the thoughts before it, and calls of tools.

`AnswerReader.feed(text)` returns Parts, each as early as it can be told; whatever is no call in the end is text.
"""

import json
import re
from typing import NamedTuple


class Part(NamedTuple):
    """`kind`: text, thought, call (`text` is the tool's name) or arguments (a piece of the last call's JSON)."""

    kind: str
    text: str


class AnswerReader:
    """`thoughts`: (opening, closing) or None; `begins_inside`: the prompt has opened them already.

    tool_format: how calls are written, None: there are no tools. most_calls: what is beyond is left out.
    """

    def __init__(self, thoughts=None, begins_inside=False, tool_format=None, most_calls=None):
        self._thoughts, self._inside, self._format = thoughts, begins_inside and thoughts is not None, tool_format
        self._held, self._at_start, self._reader = "", True, None
        self._most, self.n_calls = most_calls, 0
        self._trim = self._inside  # blanks around thoughts are no text
        if tool_format and tool_format.reader == "channels":
            self._reader = Channels(tool_format)

    def feed(self, text):
        """Return the Parts that a piece of the answer makes certain."""
        self._held += text
        return self._counted(self._parts(False))

    def flush(self):
        """Return the Parts of what was held back: nothing more comes."""
        return self._counted(self._parts(True))

    def _counted(self, parts):
        found = []
        for part in parts:
            self.n_calls += part.kind == "call"
            is_beyond = self._most is not None and self.n_calls > self._most
            if part.text or part.kind == "call":
                found += [] if is_beyond and part.kind in ("call", "arguments") else [part]
        return found

    def _parts(self, is_end):
        while True:
            if self._reader:
                parts, self._held, is_done = self._reader.read(self._held, is_end)
                self._trim = self._trim or any(part.kind == "call" for part in parts)  # blanks behind calls are no text
                yield from parts
                if not is_done:
                    return
                self._reader = None
            elif self._inside:
                if not (yield from self._thought(is_end)):
                    return
            elif not (yield from self._text(is_end)):
                return

    def _thought(self, is_end):
        """Yield thoughts; return whether there is more to look at."""
        closing = self._thoughts[1]
        if self._trim:
            self._held = self._held.lstrip()
            self._trim = not self._held
        at = self._held.find(closing)
        if at >= 0:
            thought, self._held = self._held[:at].rstrip(), self._held[at + len(closing) :]
            self._inside, self._trim, self._at_start = False, True, True
            yield Part("thought", thought)
            return True
        # Blanks before the end are no thought.
        safe = len(self._held) if is_end else len(self._held) - _overlap(self._held, [closing])
        safe = len(self._held[:safe].rstrip())
        thought, self._held = self._held[:safe], "" if is_end else self._held[safe:]
        yield Part("thought", thought)
        return False

    def _text(self, is_end):
        """Yield text up to what begins something else; return whether there is more to look at."""
        if self._trim:
            self._held = self._held.lstrip()
            self._trim = not self._held
        if self._at_start:
            begins = self._begins(is_end)
            if begins is None:
                return False
            if begins:
                return True
        openings = [self._format.opening] if self._format else []
        at = min((at for opening in openings if (at := self._held.find(opening)) >= 0), default=-1)
        if at >= 0:
            text, self._held = self._held[:at], self._held[at + len(openings[0]) :]
            self._reader = READERS[self._format.reader](self._format)
            self._trim = False
            yield Part("text", text)
            return True
        safe = len(self._held) if is_end else len(self._held) - _overlap(self._held, openings)
        text, self._held = self._held[:safe], self._held[safe:]
        yield Part("text", text)
        return False

    def _begins(self, is_end):
        """Say whether the answer begins with thoughts, or with a call that nothing announces; None: not known yet."""
        start = self._held.lstrip()
        if self._thoughts:
            opening = self._thoughts[0]
            if start.startswith(opening):
                self._held, self._inside, self._trim, self._at_start = start[len(opening) :], True, True, False
                return True
            if not is_end and opening.startswith(start):
                return None
        bare = self._format is not None and self._format.name == "llama3"
        if bare and not start and not is_end:
            return None
        self._at_start = False
        if bare and start.startswith("{"):
            self._held, self._reader = start, JsonCalls(self._format, announced=False)
            return True
        return False


def _overlap(text, marks):
    """Return how many characters at the end of a text may be the beginning of a mark."""
    return max(
        (n for mark in marks for n in range(1, min(len(mark), len(text) + 1)) if text.endswith(mark[:n])), default=0
    )


class _Value:
    """Follows a JSON value character by character to its end."""

    def __init__(self, depth=0):
        """`depth`: of the brackets that are open already."""
        self.at, self._depth, self._in_string, self._escaped = 0, depth, False, False

    def end(self, text):
        """Return where the value at a text's start ends; None where it is not whole: ask again with more of it."""
        while self.at < len(text):
            char = text[self.at]
            self.at += 1
            if self._escaped:
                self._escaped = False
            elif self._in_string:
                self._escaped = char == "\\"
                self._in_string = char != '"'
                if char == '"' and not self._depth:
                    return self.at
            elif char == '"':
                self._in_string = True
            elif char in "{[":
                self._depth += 1
            elif char in "}]":
                if not self._depth:
                    self.at -= 1
                    return self.at
                self._depth -= 1
                if not self._depth:
                    return self.at
            elif not self._depth and char in ", \n\t\r":
                self.at -= 1
                return self.at
        return None


class JsonCalls:
    """JSON objects {name, arguments}, one, in a list, or behind each other; then the format's closing mark.

    read(text, is_end) -> (Parts, the rest of the text, whether the calls are over). announced: an opening mark was
    there, which is text again where no call follows.
    """

    HEAD = re.compile(r'\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=[{\["])')

    def __init__(self, format, announced=True):
        self._format, self._announced = format, announced
        self._value = None  # the arguments that stream now
        self._packed = None  # are they JSON in a string?
        self._object = None  # an object that is not understood yet
        self._tail = None  # what an object has behind its arguments
        self._any = False

    def read(self, text, is_end):
        parts = []
        while True:
            if self._value:
                text, is_whole = self._arguments(text, parts)
                if not is_whole:
                    return parts, "" if is_end else text, False
                self._tail = _Value(depth=1)
            if self._tail:
                end = self._tail.end(text)
                if end is None:
                    return parts, "" if is_end else text, False
                text, self._tail = text[end:], None
            if self._object is None:
                bare, closing = text.lstrip(" \n\r\t,;[]" if self._any else " \n\r\t["), self._format.closing
                if closing and self._any and bare.startswith(closing):
                    return parts, bare[len(closing) :], True
                if not is_end and (not bare or (self._any and closing.startswith(bare))):
                    return parts, text, False
                if not bare.startswith("{"):
                    return (parts, bare, True) if self._any else self._end(parts, text)
                self._object, text = _Value(), bare
            head = self.HEAD.match(text)
            if head:
                self._object, self._any = None, True
                parts.append(Part("call", json.loads(head[1])))
                text, self._value, self._packed = text[head.end() :], _Value(), None
                continue
            end = self._object.end(text)
            call = None if end is None else _call_of(text[:end])
            if end is None and not is_end:
                return parts, text, False
            if call is None:
                return self._end(parts, text)
            parts += call
            self._object, self._any, text = None, True, text[end:]

    def _arguments(self, text, parts):
        """Pass arguments on; return (the rest of the text, whether they are whole)."""
        end = self._value.end(text)
        if self._packed is None:
            self._packed = text.startswith('"')
        if self._packed:  # JSON in a string
            if end is not None:
                parts.append(Part("arguments", _unpacked(text[:end])))
                self._value = None
                return text[end:], True
            return text, False
        upto = len(text) if end is None else end
        parts.append(Part("arguments", text[:upto]))
        if end is not None:
            self._value = None
            return text[end:], True
        self._value.at -= upto
        return text[upto:], False

    def _end(self, parts, text):
        """Return the end of calls that are none: their opening is text, what follows is looked at again."""
        opening = self._format.opening if self._announced and not self._any else ""
        return [*parts, Part("text", opening)], text, True


def _unpacked(text):
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, str) else text


def _call_of(text):
    """Return the Parts of a whole JSON object with a call, in whatever order; None where it has none."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    value = value.get("function", value) if isinstance(value, dict) else None
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return None
    arguments = value.get("arguments", value.get("parameters", {}))
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return [Part("call", value["name"]), Part("arguments", text)]


class Mistral(JsonCalls):
    """Mistral's: a list of JSON objects, or name[ARGS]{arguments}, each behind [TOOL_CALLS]."""

    NAME = re.compile(r"\s*([\w.-]+)\s*(?:\[CALL_ID\][\w-]*)?(?:\[ARGS\])?\s*(?=\{)")
    PART_OF_NAME = re.compile(r"\s*[\w.-]*\s*(?:\[[\w-]*\]?[\w-]*)?(?:\[[A-Z]*\]?)?\s*\Z")

    def __init__(self, format):
        super().__init__(format)
        self._by_name = None

    def read(self, text, is_end):
        if self._by_name is None and text.strip():
            self._by_name = text.lstrip()[0] not in "[{"
        if not self._by_name:
            return (
                super().read(text, is_end)
                if self._by_name is not None
                else (self._end([], text) if is_end else ([], text, False))
            )
        parts = []
        while True:
            if self._value:
                text, is_whole = self._arguments(text, parts)
                if not is_whole:
                    return parts, "" if is_end else text, False
                return parts, text, True
            head = self.NAME.match(text)
            if head:
                self._any = True
                parts.append(Part("call", head[1]))
                text, self._value, self._packed = text[head.end() :], _Value(), None
                continue
            if not is_end and self.PART_OF_NAME.match(text):
                return parts, text, False
            return self._end(parts, text)


class Gemma:
    """FunctionGemma's: call:name{key:<escape>text<escape>,other:5}, whole ones only."""

    def __init__(self, format):
        self._format = format

    def read(self, text, is_end):
        at = text.find(self._format.closing)
        if at < 0 and not is_end:
            return [], text, False
        body, rest = (text, "") if at < 0 else (text[:at], text[at + len(self._format.closing) :])
        match = re.match(r"\s*call:([\w.-]+)\s*", body)
        try:
            if not match:
                raise ValueError
            value, end = self._value(body, match.end())
            if body[end:].strip():
                raise ValueError
        except (ValueError, IndexError, RecursionError):
            return [Part("text", self._format.opening)], text, True
        return [Part("call", match[1]), Part("arguments", json.dumps(value, ensure_ascii=False))], rest, True

    def _value(self, text, at):
        """Return (the value that begins at `at`, where it ends); ValueError where there is none."""
        if text.startswith("<escape>", at):
            end = text.index("<escape>", at + 8)
            return text[at + 8 : end], end + 8
        if text[at] == "{":
            found, at = {}, at + 1
            while text[at] != "}":
                key = re.compile(r"\s*(?:<escape>)?([^:{}<>]+?)(?:<escape>)?\s*:").match(text, at)
                if not key:
                    raise ValueError
                found[key[1]], at = self._value(text, key.end())
                at += text[at] == ","
            return found, at + 1
        if text[at] == "[":
            items, at = [], at + 1
            while text[at] != "]":
                value, at = self._value(text, at)
                items.append(value)
                at += text[at] == ","
            return items, at + 1
        plain = re.compile(r"[^,{}\[\]<>]+").match(text, at)
        if not plain:
            raise ValueError
        try:
            return json.loads(plain[0]), plain.end()
        except ValueError:
            return plain[0].strip(), plain.end()


class Channels:
    """gpt-oss's: messages <|channel|>name<|message|>..., thoughts in `analysis`, calls to functions.NAME."""

    ENDS = ("<|end|>", "<|call|>", "<|return|>", "<|start|>", "<|channel|>")

    def __init__(self, format):
        self._kind = None  # of the message that streams now

    def read(self, text, is_end):
        parts = []
        while True:
            if self._kind is None:
                head, mark, body = text.partition("<|message|>")
                if not mark:
                    # Nothing of a head is ever text, but an answer without any is.
                    if is_end and head.strip() and "<|" not in head:
                        parts.append(Part("text", head))
                    return parts, "" if is_end else text, False
                tool = re.search(r"to=functions\.([\w.-]+)", head)
                is_thought = "analysis" in head.rpartition("<|channel|>")[2]
                self._kind = "arguments" if tool else "thought" if is_thought else "text"
                if tool:
                    parts.append(Part("call", tool[1]))
                text = body
                continue
            at, mark = min(((at, end) for end in self.ENDS if (at := text.find(end)) >= 0), default=(-1, ""))
            if at < 0:
                safe = len(text) if is_end else len(text) - _overlap(text, self.ENDS)
                parts.append(Part(self._kind, text[:safe]))
                return parts, text[safe:], False
            parts.append(Part(self._kind, text[:at]))
            text = text[at:] if mark == "<|channel|>" else text[at + len(mark) :]
            self._kind = None


READERS = {"json": JsonCalls, "mistral": Mistral, "gemma": Gemma, "channels": Channels}
