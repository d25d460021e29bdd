"""Which encoding bytes that are no UTF-8 are likely in: for advice in an error, so that a guess is good enough.

Each encoding is tried on the text around the first bad byte; the one whose letters are those that people write in it
wins: letters of one script, the frequent ones before the rare.
"""

import re

LOOKED_AT = 1 << 16
# Bytes that are damaged, not another encoding: at most this share of the text's bytes beyond ASCII.
DAMAGE = 0.05

# encoding as Python names it -> (as iconv does, what is written in it, frequent letters, allowed besides)
_MARKS = "‘’“”–—…€\xa0«»°§©®·¿¡ºª´£"
_WEST = "¿¡àáâãäåæçèéêëìíîïñòóôõöøùúûüßÄÖÜÉØÅÀÇ"
_EAST = "ąćęłńóśźżčďěňřšťůžáéíúýőűöü"
SINGLE = {
    "cp1252": ("WINDOWS-1252", "Western European", _WEST),
    "cp1250": ("WINDOWS-1250", "Central European", _EAST),
    "cp1254": ("WINDOWS-1254", "Turkish", "ğışİŞĞçöüÇÖÜ"),
    "cp1251": ("WINDOWS-1251", "Cyrillic", "".join(map(chr, range(0x430, 0x450)))),
    "koi8-r": ("KOI8-R", "Cyrillic", "".join(map(chr, range(0x430, 0x450)))),
    "cp1253": ("WINDOWS-1253", "Greek", "".join(map(chr, range(0x3AC, 0x3CF)))),
}  # fmt: skip
# encoding -> (as iconv does, what is written in it, the frequent characters as a range of its own bytes or of Unicode)
_KANA, _HANGUL = re.compile("[\u3041-\u30ff]"), re.compile("[\uac00-\ud7a3]")
DOUBLE = {
    "gb18030": ("GB18030", "Chinese, simplified", None, rb"[\xb0-\xd7][\xa1-\xfe]"),
    "big5": ("BIG5", "Chinese, traditional", None, rb"[\xa4-\xc6][\x40-\x7e\xa1-\xfe]"),
    "cp932": ("CP932", "Japanese, Shift-JIS", _KANA, None),
    "euc_jp": ("EUC-JP", "Japanese", _KANA, None),
    "euc_kr": ("EUC-KR", "Korean", _HANGUL, None),
}
_PAIRS = re.compile(rb"[\x81-\xfe][\x30-\xfe]")


def advice(raw):
    """Return what to do about `raw`, bytes with some that are no UTF-8: the likely encoding, as iconv's argument."""
    raw = raw[:LOOKED_AT]
    if _is_damaged(raw):
        return "the rest is UTF-8, so that this is damage; drop such bytes with iconv -c -f UTF-8 -t UTF-8"
    name, words = likely(raw)
    return f"it looks like {name} ({words}); convert the file first: iconv -f {name} -t UTF-8"


def _is_damaged(raw):
    """Is all but a small part of what goes beyond ASCII valid UTF-8?"""
    high = sum(byte >= 0x80 for byte in raw)
    good = len(raw.decode("utf-8", "ignore").encode()) - (len(raw) - high)
    return good > 8 and high - good <= max(1, DAMAGE * high)


def likely(raw):
    """Return (iconv's name, what is written in it) of the encoding that `raw` is likely in."""
    scores = {name: _single_score(raw, name, row[2]) for name, row in SINGLE.items()}
    scores |= {name: _double_score(raw, name, *row[2:]) for name, row in DOUBLE.items()}
    best = max(scores, key=scores.get)
    return (SINGLE | DOUBLE)[best][:2]


def _single_score(raw, name, frequent):
    """Return the share of the characters beyond ASCII that are frequent letters, inside words and small ones first."""
    text = raw.decode(name, "replace")
    high = [at for at, char in enumerate(text) if ord(char) > 127]
    total = 0.0
    latin = not any("\u0370" <= char <= "\u04ff" for char in frequent)
    for at in high:
        char, before = text[at], text[at - 1 : at]
        if not latin and before.isascii() and before.isalpha():
            total -= 1.0  # words are of one script
        elif char in frequent:
            # A capital behind a small letter is what a wrong table makes of a word.
            total += 1.0 if not (before.islower() and char.isupper()) else -0.5
        elif char in _MARKS:
            total += 0.6
        elif char.lower() in frequent:
            total += 0.8 if not before.isalpha() or before.isupper() else -0.5
        else:
            total -= 1.0
    # of two that fit alike the more common one
    return total / max(1, len(high)) + 0.1 * (name == "cp1252")


def _double_score(raw, name, script, lead):
    """The same of an encoding of two bytes a character: pairs that are frequent, among all that are beyond ASCII."""
    end = len(raw)
    while end > len(raw) - 4 and not _decodes(raw[:end], name):
        end -= 1  # the piece may end within a character
    if not _decodes(raw[:end], name):
        return -1.0
    text = raw[:end].decode(name)
    high = [char for char in text if ord(char) > 127]
    if script:
        # Hangul are nearly all of what is written in them; between kana there are Chinese characters.
        share = sum(bool(script.match(char)) for char in high) / max(1, len(high))
        return 1.2 * (share if script is _HANGUL else min(1, 3 * share))
    pairs = _PAIRS.findall(raw)
    frequent = sum(bool(re.fullmatch(lead, pair)) for pair in pairs)
    letters = sum(
        "\u4e00" <= char <= "\u9fff" or "\u3000" <= char <= "\u303f" or "\uff00" <= char <= "\uffef" for char in high
    )
    return 1.1 * min(frequent / max(1, len(pairs)), letters / max(1, len(high)))


def _decodes(raw, name):
    try:
        raw.decode(name)
    except UnicodeDecodeError:
        return False
    return True
