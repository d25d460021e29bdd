"""Grammars that a text must follow: what may come, as expressions. automaton.py runs them, constraint.py asks it.

A grammar is an expression over bytes: lit, some (one byte of a set), seq, alt, star, repeat, ref (a named rule), words
(one of many literals, each with what follows it), and over tokens as wholes: tok.
"""

from bisect import bisect_right
from typing import NamedTuple

from llamacy.errors import RequestError

# Bytes of a literal that are one piece: its rest is remembered from each of them on.
PIECE = 64
# From so many alternatives on that begin with a literal they are looked up by their bytes, all at once.
MANY = 4
MAX_NODES = 200_000  # expressions of a grammar


class Lit(NamedTuple):
    """These bytes."""

    text: bytes


class Some(NamedTuple):
    """One byte of a set, given as frozenset of ints."""

    of: frozenset


class Seq(NamedTuple):
    """One after the other."""

    parts: tuple


class Alt(NamedTuple):
    """One of them."""

    parts: tuple


class Star(NamedTuple):
    """Any number of times."""

    part: object


class Repeat(NamedTuple):
    """From `low` to `high` times; None: any number."""

    part: object
    low: int
    high: int | None


class Ref(NamedTuple):
    """The rule of that name."""

    name: str


class Tok(NamedTuple):
    """The token of that id as a whole, whatever its bytes are; any other where `negated`."""

    id: int
    negated: bool = False


class Words(NamedTuple):
    """One of some literals, then what belongs to it: table[begin:end], which is [(bytes, expression)] in their order.

    All of them begin with the same `depth` bytes, which have come already.
    """

    table: tuple
    begin: int
    end: int
    depth: int = 0

    def ended(self):
        """Return how many of the words are whole already; they come first."""
        at = self.begin
        while at < self.end and len(self.table[at][0]) == self.depth:
            at += 1
        return at - self.begin

    def branches(self):
        """Yield (byte, begin, end) of the words that go on with each byte."""
        table, depth, at = self.table, self.depth, self.begin + self.ended()
        while at < self.end:
            byte = table[at][0][depth]
            end = bisect_right(table, byte, at, self.end, key=lambda word: word[0][depth])
            yield byte, at, end
            at = end


class Later(NamedTuple):
    """make(at): an expression that is not made before a text comes to it."""

    make: object
    at: int


EMPTY = Lit(b"")


def lit(text):
    data = text.encode()
    if len(data) <= PIECE:
        return Lit(data)
    return Seq(tuple(Lit(data[i : i + PIECE]) for i in range(0, len(data), PIECE)))


def some(first, last=None):
    """Return one byte from `first` to `last`, or of a string's."""
    return Some(frozenset(range(first, last + 1) if last is not None else first.encode()))


def seq(*parts):
    return Seq(parts)


def alt(*parts):
    return Alt(parts)


def optional(part):
    return Alt((EMPTY, part))


def repeat(part, low, high=None):
    """Return `part` from `low` to `high` times; None: any number."""
    if high == 0:
        return EMPTY
    return Star(part) if low == 0 and high is None else Repeat(part, low, high)


def words(pairs):
    """Return one of [(bytes, the expression that follows)]: a look-up, however many there are."""
    table = tuple(sorted(pairs, key=lambda pair: pair[0]))
    return Words(table, 0, len(table))


def compact(node):
    """Return an expression that means the same, with many alternatives of literals as Words."""
    if isinstance(node, Seq):
        return Seq(tuple(map(compact, node.parts)))
    if isinstance(node, Star):
        return Star(compact(node.part))
    if isinstance(node, Repeat):
        return node._replace(part=compact(node.part))
    if not isinstance(node, Alt):
        return node
    found, others, parts = [], [], tuple(map(compact, _alternatives(node)))
    for part in parts:
        word = _first_word(part)
        if word is None:
            others.append(part)
        else:
            found.append(word)
    if len(found) < MANY:
        return Alt(parts)
    table = words(found)
    return Alt((table, *others)) if others else table


def _alternatives(node):
    """Yield the alternatives of an Alt, and of those in it."""
    waiting = [node]
    while waiting:
        node = waiting.pop()
        if isinstance(node, Alt):
            waiting += reversed(node.parts)
        else:
            yield node


def _first_word(node):
    """Return (the literal that an expression begins with, what follows it), None where it begins otherwise."""
    if isinstance(node, Lit):
        return (node.text, EMPTY) if node.text else None
    if not isinstance(node, Seq) or not node.parts:
        return None
    text, parts = b"", list(reversed(node.parts))
    while parts and isinstance(parts[-1], (Lit, Seq)):
        first = parts.pop()
        if isinstance(first, Seq):
            parts += reversed(first.parts)
        else:
            text += first.text
    return (text, Seq(tuple(reversed(parts))) if parts else EMPTY) if text else None


def check_size(rules):
    """RequestError where the expressions are more than a grammar may have."""
    n, waiting = 0, list(rules)
    while waiting:
        node = waiting.pop()
        n += 1
        if isinstance(node, (Seq, Alt)):
            waiting += node.parts
        elif isinstance(node, (Star, Repeat)):
            waiting.append(node.part)
        if n > MAX_NODES:
            raise RequestError(f"grammar: wanted at most {MAX_NODES} parts, got more")
