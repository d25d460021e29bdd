r"""Compile the regular expressions of pre-tokenizers for the matcher in pyx/splitting.pxd.

The instructions are explained there. Understood is what tokenizer.json files use: literals, sets `[...]` with ranges
and negation, `\p{..} \s \S \d`, groups `(?:...)`, alternatives, greedy `? * + {n} {n,m}`, lookahead `(?=...)`
`(?!...)`, `$`. The re module has no \p{L}, and matching must be compiled code anyway.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from llamacy.errors import shown
from llamacy.kernels.text.splitter import CLASS_BITS, SPACE_BIT, char_class

OP_MATCH, OP_RUN, OP_SPLIT, OP_JUMP, OP_LOOK, OP_END = range(6)
ALL_ASCII = (1 << 128) - 1
ESCAPES = {"r": "\r", "n": "\n", "t": "\t", "f": "\f", "v": "\v"}
CLASSES = {**CLASS_BITS, "N": 64 | 128, "L": 31, "s": SPACE_BIT, "d": CLASS_BITS["Nd"]}


class CharSet(NamedTuple):
    """Code points with any of the class bits or in any of the ranges; all others if negated."""

    mask: int
    ranges: tuple
    negated: bool = False

    def ascii(self):
        """Return the members below 128 as the bits of an int."""
        bits = 0
        for code, classes in enumerate(_ascii_classes()):
            if classes & self.mask:
                bits |= 1 << code
        for low, high in self.ranges:
            if low < 128:
                bits |= (1 << min(high, 127) + 1) - (1 << low)
        return bits ^ ALL_ASCII if self.negated else bits

    def beyond_ascii(self):
        """Say whether a code point from 128 on can be a member."""
        return self.negated or self.mask != 0 or any(high > 127 for _, high in self.ranges)


class Repeat(NamedTuple):
    """`item` from `least` to `most` (None: any number of) times, as many as lead to a match."""

    item: object
    least: int
    most: int | None


class Look(NamedTuple):
    """Whether `item` follows (or, negative, does not), consuming nothing."""

    item: object
    negative: bool


class Choice(NamedTuple):
    """The first of several sequences that leads to a match."""

    options: tuple


END = "end"  # `$`: only at the end of the text
# A sequence is a tuple of CharSet, Repeat, Look, Choice and END; every CharSet stands for one character.


@lru_cache(maxsize=1)
def _ascii_classes():
    return [char_class(code) for code in range(128)]


class _Parser:
    """Recursive descent over one expression; ValueError names what is not understood, and where."""

    def __init__(self, text):
        self.text, self.at = text, 0

    def fail(self, what):
        raise ValueError(f"{what} at {self.at} of the expression {shown(self.text)}")

    def take(self, text):
        found = self.text.startswith(text, self.at)
        self.at += len(text) if found else 0
        return found

    def next(self):
        if self.at >= len(self.text):
            self.fail("unexpected end")
        self.at += 1
        return self.text[self.at - 1]

    def choice(self):
        options = [self.sequence()]
        while self.take("|"):
            options.append(self.sequence())
        return Choice(tuple(options))

    def sequence(self):
        items = []
        while self.at < len(self.text) and self.text[self.at] not in "|)":
            items.append(self.repeated(self.item()))
        return tuple(items)

    def item(self):
        for opening, make in (
            ("(?:", lambda inner: inner),
            ("(?=", lambda inner: Look(inner, False)),
            ("(?!", lambda inner: Look(inner, True)),
        ):
            if self.take(opening):
                inner = self.choice()
                if not self.take(")"):
                    self.fail("missing )")
                return make(inner)
        if self.take("["):
            return self.char_set()
        if self.take("$"):
            return END
        char = self.next()
        if char in "(*+?{":
            self.fail(f"{shown(char)} not understood")
        mask, code, negated = self.escape() if char == "\\" else (0, ord(char), False)
        return CharSet(mask, () if code is None else ((code, code),), negated)

    def escape(self):
        """Return (class bits, code point or None, negated) of what follows a backslash."""
        char = self.next()
        if char == "p":
            close = self.text.find("}", self.at)
            name = self.text[self.at + 1 : close]
            if self.text[self.at : self.at + 1] != "{" or name not in CLASSES:
                self.fail("unknown class")
            self.at = close + 1
            return CLASSES[name], None, False
        if char in "sSd":
            return CLASSES[char.lower()], None, char == "S"
        if char.isalnum() and char not in ESCAPES:
            self.fail(f"\\{char} not understood")
        return 0, ord(ESCAPES.get(char, char)), False

    def char_set(self):
        negated, mask, ranges = self.take("^"), 0, []
        while not self.take("]"):
            char = self.next()
            bits, low, inverse = self.escape() if char == "\\" else (0, ord(char), False)
            if inverse:
                self.fail("\\S inside a set not understood")
            mask |= bits
            if low is None:
                continue
            high = low
            if self.text[self.at : self.at + 1] == "-" and self.text[self.at + 1 : self.at + 2] != "]":
                self.at += 1
                char = self.next()
                high = self.escape()[1] if char == "\\" else ord(char)
            if high is None or high < low:
                self.fail("bad range")
            ranges.append((low, high))
        return CharSet(mask, tuple(sorted(ranges)), negated)

    def repeated(self, item):
        bounds = {"?": (0, 1), "*": (0, None), "+": (1, None)}.get(self.text[self.at : self.at + 1])
        if bounds:
            self.at += 1
        elif self.take("{"):
            close = self.text.index("}", self.at)
            least, comma, most = self.text[self.at : close].partition(",")
            bounds = int(least), int(most) if most else None if comma else int(least)
            self.at = close + 1
        else:
            return item
        return Repeat(item, *bounds)


def parse(text):
    """Return the Choice that an expression stands for."""
    parser = _Parser(text)
    tree = parser.choice()
    if parser.at < len(text):
        parser.fail("unexpected )")
    return tree


def _first(node):
    """Return (ASCII bits, whether others too, whether it can match nothing) of how a match can begin."""
    if isinstance(node, CharSet):
        return node.ascii(), node.beyond_ascii(), False
    if isinstance(node, Repeat):
        bits, beyond, empty = _first(node.item)
        return bits, beyond, empty or node.least == 0
    if isinstance(node, Choice):
        parts = [_first(option) for option in node.options]
        bits = 0
        for part in parts:
            bits |= part[0]
        return bits, any(part[1] for part in parts), any(part[2] for part in parts)
    if isinstance(node, tuple) and not isinstance(node, Look):
        bits, beyond = 0, False
        for item in node:
            more, more_beyond, empty = _first(item)
            bits, beyond = bits | more, beyond or more_beyond
            if not empty:
                return bits, beyond, False
        return bits, beyond, True
    return 0, False, True  # Look and END consume nothing


class _Program:
    """Instructions and sets of one expression while they are written."""

    def __init__(self):
        self.code, self.sets = [], {}

    def emit(self, *instruction):
        self.code.append(list(instruction) + [0] * (4 - len(instruction)))
        return len(self.code) - 1

    def write(self, node):
        if isinstance(node, CharSet):
            self.emit(OP_RUN, self.set_number(node), 1, 1)
        elif isinstance(node, Repeat):
            self.write_repeat(node)
        elif isinstance(node, Look):
            look = self.emit(OP_LOOK, 0, int(node.negative))
            self.write(node.item)
            self.emit(OP_MATCH)
            self.code[look][1] = len(self.code)
        elif isinstance(node, Choice):
            self.write_choice(node.options)
        elif node == END:
            self.emit(OP_END)
        else:
            for item in node:
                self.write(item)

    def set_number(self, chars):
        return self.sets.setdefault(chars, len(self.sets))

    def write_choice(self, options):
        jumps = []
        for option in options[:-1]:
            split = self.emit(OP_SPLIT)
            self.write(option)
            jumps.append(self.emit(OP_JUMP))
            self.code[split][1] = len(self.code)
        self.write(options[-1])
        for jump in jumps:
            self.code[jump][1] = len(self.code)

    def write_repeat(self, node):
        if isinstance(node.item, CharSet):
            self.emit(OP_RUN, self.set_number(node.item), node.least, -1 if node.most is None else node.most)
            return
        if node.most is None and _first(node.item)[2]:
            raise ValueError("a group that can match nothing is repeated without end")
        for _ in range(node.least):
            self.write(node.item)
        if node.most is None:
            split = self.emit(OP_SPLIT)
            self.write(node.item)
            self.emit(OP_JUMP, split)
            self.code[split][1] = len(self.code)
        else:
            splits = []
            for _ in range(node.most - node.least):
                splits.append(self.emit(OP_SPLIT))
                self.write(node.item)
            for split in splits:
                self.code[split][1] = len(self.code)


@lru_cache(maxsize=64)
def compile_pattern(text):
    """Return one stage for a Splitter: the arrays of the struct Stage from `code` on, in its order."""
    options = parse(text).options
    if len(options) > 32:
        raise ValueError(f"{len(options)} alternatives in {shown(text)}, at most 32")
    program, starts, first = _Program(), [], [0] * 129
    for number, option in enumerate(options):
        starts.append(len(program.code))
        program.write(option)
        program.emit(OP_MATCH)
        bits, beyond, empty = _first(option)
        for code in range(128):
            if empty or bits >> code & 1:
                first[code] |= 1 << number
        if empty or beyond:
            first[128] |= 1 << number
    sets = list(program.sets)
    head = options[0][0] if options[0] else None
    skips = len(options) == 1 and isinstance(head, Repeat) and isinstance(head.item, CharSet) and head[1:3] == (1, None)
    ascii_bits = b"".join(chars.ascii().to_bytes(16, "little") for chars in sets) or bytes(16)
    range_starts = np.cumsum([0] + [len(chars.ranges) for chars in sets])
    return (
        np.array(program.code, dtype=np.int32).reshape(-1),
        np.array(starts, dtype=np.int32),
        np.array(first, dtype=np.uint32),
        np.unpackbits(np.frombuffer(ascii_bits, dtype=np.uint8), bitorder="little"),
        np.array([chars.mask for chars in sets] or [0], dtype=np.uint32),
        np.array([chars.negated for chars in sets] or [0], dtype=np.uint8),
        range_starts.astype(np.int32),
        np.array([bound for chars in sets for pair in chars.ranges for bound in pair] or [0], dtype=np.uint32),
        program.sets[head.item] if skips else -1,
    )
