"""Patterns of JSON schemas (ECMA-262's regular expressions) as expressions over the characters of a JSON string.

The regular part of them: characters, classes, groups, alternatives, repetitions, ^ and $ at the ends. What looks
around, refers back or counts words is refused by name.
"""

import json

from llamacy.errors import RequestError
from llamacy.generate.grammar import EMPTY, alt, lit, repeat, seq
from llamacy.generate.utf8 import MAX_CODE, characters, others

MAX_PATTERN = 1 << 14
MAX_OUT = 100  # characters of a string that must not come
MAX_DEPTH = 50
MAX_REPEATS = 10_000
DIGITS, WORD = [(0x30, 0x39)], [(0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A)]
BLANKS = [(9, 13), (0x20, 0x20), (0xA0, 0xA0), (0x1680, 0x1680), (0x2000, 0x200A), (0x2028, 0x2029), (0x202F, 0x202F),
          (0x205F, 0x205F), (0x3000, 0x3000), (0xFEFF, 0xFEFF)]  # fmt: skip
LINE_ENDS = [(10, 10), (13, 13), (0x2028, 0x2029)]
CLASSES = {"d": DIGITS, "w": WORD, "s": BLANKS}
CONTROLS = {"n": 10, "r": 13, "t": 9, "f": 12, "v": 11, "0": 0}
HEX_DIGITS = {"x": 2, "u": 4}


def pattern_string(pattern, where):
    """Return the JSON strings in which a pattern is found; RequestError where it is not a regular one."""
    return seq(lit('"'), _Pattern(pattern, where).whole(), lit('"'))


def json_characters(ranges):
    """Return one character of some ranges as a JSON string has it; None where there is none."""
    plain, escaped = [], []
    for first, last in ranges:
        special = [code for code in (*range(0x20), 0x22, 0x5C) if first <= code <= last]
        escaped += [lit(json.dumps(chr(code))[1:-1]) for code in special]
        begin = first
        for code in special:
            plain += [(begin, code - 1)] if code > begin else []
            begin = code + 1
        plain += [(begin, last)] if begin <= last else []
    parts = [found for found in [characters(plain)] if found is not None] + escaped
    return alt(*parts) if len(parts) > 1 else parts[0] if parts else None


def other_strings(texts, where):
    """Return the JSON strings but these."""
    if sum(map(len, texts)) > MAX_PATTERN or max(map(len, texts)) > MAX_OUT:
        raise RequestError(f"{where}: wanted at most {MAX_OUT} characters of a string that is out")
    return seq(lit('"'), _but(set(texts)), lit('"'))


def _but(texts):
    """Return what strings have between their quotes that are none of `texts`."""
    firsts = {}
    for text in texts:
        if text:
            firsts.setdefault(text[0], set()).add(text[1:])
    parts = [EMPTY] if "" not in texts else []
    parts.append(seq(json_characters(others([(ord(char), ord(char)) for char in sorted(firsts)])), ANYTHING))
    parts += [seq(json_characters([(ord(char), ord(char))]), _but(rest)) for char, rest in firsts.items()]
    return alt(*parts)


ANYTHING = repeat(json_characters([(0, MAX_CODE)]), 0)


class _Pattern:
    """A cursor over a pattern."""

    def __init__(self, text, where):
        self.text, self.at, self._where, self._depth = text, 0, where, 0
        if not isinstance(text, str) or len(text) > MAX_PATTERN:
            raise RequestError(f"{where}: wanted a pattern of at most {MAX_PATTERN} characters")

    def fail(self, what):
        raise RequestError(f"{self._where}: {what}, at character {self.at + 1} of {self.text[:60]!r}")

    def peek(self):
        return self.text[self.at : self.at + 1]

    def take(self, mark):
        if not self.text.startswith(mark, self.at):
            return False
        self.at += len(mark)
        return True

    def whole(self):
        """Return what the whole string may be."""
        found = self.alternatives(is_top=True)
        if self.at < len(self.text):
            self.fail("wanted no ) here")
        return found

    def alternatives(self, is_top=False):
        parts = [self.sequence(is_top)]
        while self.take("|"):
            parts.append(self.sequence(is_top))
        return alt(*parts) if len(parts) > 1 else parts[0]

    def sequence(self, is_top):
        """Read up to | or ); at the top, what may stand around it is part of it."""
        begins = is_top and self.take("^")
        parts, ends = ([] if begins or not is_top else [ANYTHING]), False
        while self.peek() and self.peek() not in "|)":
            if self.take("$"):
                if not is_top or (self.peek() and self.peek() != "|"):
                    self.fail("$ is supported at the end only")
                ends = True
                break
            parts.append(self.repeated(self.item()))
        if is_top and not ends:
            parts.append(ANYTHING)
        return seq(*parts)

    def item(self):
        char = self.peek()
        if char == "(":
            return self.group()
        if char == "[":
            return self.of(self.char_class())
        if char == "^":
            self.fail("^ is supported at the beginning only")
        if char in "*+?{" and not (char == "{" and not self._is_count()):
            self.fail(f"wanted something before {char!r}")
        self.at += 1
        if char == ".":
            return self.of(others(LINE_ENDS))
        if char == "\\":
            return self.of(self.escape(False))
        return self.of([(ord(char), ord(char))])

    def of(self, ranges):
        found = json_characters(ranges)
        if found is None:
            self.fail("no character is in this class")
        return found

    def group(self):
        self._depth += 1
        if self._depth > MAX_DEPTH:
            self.fail(f"more than {MAX_DEPTH} groups in each other")
        self.at += 1
        if self.take("?"):
            if self.take("<") and self.peek() not in ("=", "!", ""):
                self.at = self.text.find(">", self.at) + 1
                if not self.at:
                    self.fail("wanted a name and >")
            elif not self.take(":"):
                self.fail("what looks around (?=, ?!, ?<=, ?<!) is not supported")
        found = self.alternatives()
        if not self.take(")"):
            self.fail("wanted )")
        self._depth -= 1
        return found

    def _is_count(self):
        head, mark, _ = self.text[self.at + 1 : self.at + 16].partition("}")
        return bool(mark) and all(part.isdigit() or not part for part in head.split(",", 1)) and head[:1].isdigit()

    def repeated(self, node):
        while self.peek() and self.peek() in "*+?{":
            if self.peek() == "{":
                if not self._is_count():
                    break
                head = self.text[self.at + 1 : self.text.index("}", self.at)]
                self.at += len(head) + 2
                low, comma, high = head.partition(",")
                bounds = int(low), int(high) if high else (None if comma else int(low))
                if max(bounds[0], bounds[1] or 0) > MAX_REPEATS:
                    self.fail(f"wanted at most {MAX_REPEATS} repetitions")
                if bounds[1] is not None and bounds[1] < bounds[0]:
                    self.fail("wanted the larger number last")
            else:
                bounds = {"*": (0, None), "+": (1, None), "?": (0, 1)}[self.peek()]
                self.at += 1
            self.take("?")  # lazy or not: the same strings
            if self.take("+"):
                self.fail("possessive repetitions are not supported")
            node = repeat(node, *bounds) if node != EMPTY else node
        return node

    def escape(self, in_class):
        """Return the ranges of what stands behind a backslash."""
        char = self.peek()
        self.at += 1
        if char.lower() in CLASSES and char:
            ranges = CLASSES[char.lower()]
            return others(ranges) if char.isupper() else ranges
        if char in CONTROLS and not (char == "0" and self.peek().isdigit()):
            return [(CONTROLS[char], CONTROLS[char])]
        if in_class and char == "b":
            return [(8, 8)]
        if char == "c" and self.peek().isalpha() and self.peek().isascii():
            self.at += 1
            return [(ord(self.text[self.at - 1]) % 32,) * 2]
        if char in HEX_DIGITS:
            return [(self._code(char),) * 2]
        if not char or char.isalnum():
            self.fail(f"\\{char} is not supported")
        return [(ord(char), ord(char))]

    def _code(self, kind):
        if kind == "u" and self.take("{"):
            digits, mark, _ = self.text[self.at :].partition("}")
            self.at += len(digits) + len(mark)
        else:
            digits = self.text[self.at : self.at + HEX_DIGITS[kind]]
            self.at += len(digits)
            if len(digits) < HEX_DIGITS[kind]:
                self.fail("wanted hexadecimal digits")
        try:
            code = int(digits, 16)
        except ValueError:
            self.fail("wanted hexadecimal digits")
        if code > MAX_CODE or 0xD800 <= code <= 0xDFFF:
            self.fail("there is no such character")
        return code

    def char_class(self):
        self.at += 1
        negated, ranges = self.take("^"), []
        while not self.take("]"):
            first = self._class_atom()
            if self.peek() == "-" and self.text[self.at + 1 : self.at + 2] not in ("]", ""):
                self.at += 1
                last = self._class_atom()
                if len(first) != 1 or len(last) != 1 or first[0][0] > last[0][1] or first[0][0] != first[0][1]:
                    self.fail("the range of this class is empty or not one of characters")
                first = [(first[0][0], last[0][1])]
            ranges += first
        return others(ranges) if negated else ranges

    def _class_atom(self):
        if not self.peek():
            self.fail("wanted ]")
        if self.take("\\"):
            return self.escape(True)
        self.at += 1
        return [(ord(self.text[self.at - 1]),) * 2]
