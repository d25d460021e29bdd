"""When a text counts as a wanted one: a row for each way of comparing."""

import unicodedata


def normalised(text):
    """Return a text as `normalised` compares it: in Unicode's form NFKC (full-width digits and letters become plain
    ones), in lower case, white space as single spaces and none around, without one full stop at the end.
    """
    words = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return words[:-1].rstrip() if words.endswith((".", "。")) and not words.endswith("..") else words


def _same(text, wanted):
    return normalised(text) == normalised(wanted)


def _exact(text, wanted):
    return text.strip() == wanted.strip()


def _first_line(text, wanted):
    lines = text.strip().splitlines() or [""]
    return _same(lines[0], wanted)


def _contains(text, wanted):
    return normalised(wanted) in normalised(text)


MATCHES = {"normalised": _same, "exact": _exact, "first-line": _first_line, "contains": _contains}
