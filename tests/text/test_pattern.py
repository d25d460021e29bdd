"""The expressions of pre-tokenizers, against Python's re on the characters of an alphabet."""

import re
import unicodedata
from functools import lru_cache

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llamacy.kernels.text.splitter import SPACES, Splitter, char_class
from llamacy.text import pattern
from llamacy.text.pretokenizers import BY_NAME, ROWS, pretokenizer, splitter

EXAMPLES = ["I'll we'VE'd 12345 \n\n  x\t\r\n  y   ", "ABCdefGHIjkl'sX \u00c9漢字e\u0301x  \u3000\u3002\u3000a "]
# ASCII, some of each class beyond it, and the ends of the ranges that the rows name.
ALPHABET = "".join(map(chr, range(128))) + "éßµªºǅʰ漢가ひ٣४½Ⅷ²—…¿«€＋´🦙𝒜𝟘ÄÖſİ一龥ࠀ、।～：！Ａｚ’“𐐀𞤀"
ALPHABET += "\u0301\u0940\u200d\xa0\u3000\u2028\x85\u1680\ufffd\ue000\u0378\ud7ff" + "".join(EXAMPLES)


def members(name):
    """The characters of the alphabet in a Unicode class, escaped for a set."""
    classes = {char: "s" if ord(char) in SPACES else unicodedata.category(char) for char in sorted(set(ALPHABET))}
    name = {"d": "Nd"}.get(name, name)
    return "".join(re.escape(char) for char, found in classes.items() if found.startswith(name))


@lru_cache(maxsize=100)
def for_re(expression):
    """Write an expression for Python's re: Unicode classes as the characters of the alphabet that they hold."""
    out, inside = [], False
    for found in re.finditer(r"\\p\{(\w+)\}|\\([sSd])|\\.|.", expression, re.DOTALL):
        text, name = found[0], found[1] or found[2]
        if name:
            chars = members(name.lower() if found[2] else name)
            out.append(chars if inside else f"[{'^' if name == 'S' and found[2] else ''}{chars}]")
            continue
        out.append(r"\Z" if text == "$" and not inside else "\\" + text if inside and text in "[&|~" else text)
        inside = text == "[" or (inside and text != "]")
    return re.compile("".join(out))


def split_by_re(expressions, text):
    pieces = [text]
    for expression in expressions:
        pieces = [part for piece in pieces for part in isolated(for_re(expression), piece)]
    return pieces


def isolated(compiled, text):
    """Matches and what lies between them, as tokenizers' Split with behaviour "isolated"."""
    at = 0
    for found in compiled.finditer(text):
        yield from filter(None, (text[at : found.start()], found.group()))
        at = found.end()
    if at < len(text):
        yield text[at:]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.names[0])
@settings(max_examples=150, deadline=None)
@given(text=st.text(st.sampled_from(ALPHABET), max_size=30))
@example(text=EXAMPLES[0])
@example(text=EXAMPLES[1])
def test_every_row_cuts_as_re_does(row, text):
    pieces = [piece.decode() for piece in splitter(row.expressions).split(text.encode())]
    assert pieces == split_by_re(row.expressions, text)


SMALL = [
    *(r"a|ab|abc", r"(?:a|ab)(?:c|bcd)", r"a*b", r"a+a", r"[ab]{2,3}", r"a{2}", r"(?:ab)+", r"(?:ab|a)*b"),
    *(r"(?:a?b){2}c?", r"a(?=b)", r"a(?!b)", r"\s+$", r"b+c", r"[^a]b?", r"[a-c]+|d", r"(?:(?=a)b|c)*d", r"(?=ab)"),
    *(r"a{0,2}b", r"(?:a|b){1,2}c", r"\$a|\[b", r"[\]a-]+", r"(?!a)[a-d]{3}"),
]


@pytest.mark.parametrize("expression", SMALL)
@settings(max_examples=200, deadline=None)
@given(text=st.text("abcd $[]-", max_size=12))
def test_operators_match_as_re_does(expression, text):
    pieces = Splitter([pattern.compile_pattern(expression)]).split(text.encode())
    assert [piece.decode() for piece in pieces] == list(isolated(re.compile(expression), text))


@pytest.mark.parametrize(
    "expression",
    [r"a)", r"(a", r"[ab", r"\p{Xx}", r"\w", r"*a", r"(?:a*)*", r"[\Sa]", r"(a)", r"[b-a]", "a\\", "|".join("a" * 33)],
)
def test_what_is_not_understood_is_an_error(expression):
    with pytest.raises(ValueError, match="."):
        pattern.compile_pattern(expression)


def test_classes_are_those_of_unicode():
    for code in [*range(0x3000), 0x4E00, 0xD800, 0x1D49C, 0x1F999, 0x10FFFF]:
        category = unicodedata.category(chr(code))
        found = char_class(code)
        for name in ("L", "M", "N", "P", "S"):
            assert bool(found & pattern.CLASSES.get(name)) == (category[0] == name), hex(code)
        assert bool(found & pattern.SPACE_BIT) == (chr(code).isspace() and not 0x1C <= code <= 0x1F), hex(code)


def test_bytes_that_are_not_utf8_are_symbols():
    cut = splitter(BY_NAME["gpt-2"].expressions)
    assert cut.split(b"ab\xff\xc3(\xe2\x82 x\xed\xa0\x80") == [b"ab", b"\xff\xc3(\xe2\x82", b" x", b"\xed\xa0\x80"]
    assert cut.split(b"") == []


def test_names_are_known_once():
    names = [name for row in ROWS for name in row.names]
    assert len(names) == len(set(names))
    assert pretokenizer("llama-bpe").add_bos and not pretokenizer("qwen2").add_bos
