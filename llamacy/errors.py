"""The errors users see: one line each, saying what, where, wanted, got and what to do.

What stands in a file may be hostile: control characters that act on a terminal, or a name of a megabyte. `shown` is
how a value from a file or a request enters a line; whatever was missed is caught by LlamacyError itself.
"""

import reprlib

SHOWN = 80  # characters of one value
LINE = 2000  # and of a whole line: long enough for two paths and a list of what there is

_BRIEF = reprlib.Repr()
_BRIEF.maxstring = _BRIEF.maxother = SHOWN
_BRIEF.maxlevel = 3


class LlamacyError(Exception):
    """A failure with a one-line message for the user; commands exit with 1."""

    exit_code = 1

    def __init__(self, message=""):
        super().__init__(one_line(message))


class RequestError(LlamacyError):
    """What was asked for cannot be done, though model and program are sound; a server answers 400, to others 500."""


class NotFinite(LlamacyError):
    """A step's results hold infinities or NaN; `values` (rows, n) f32 are all its results, finite rows among them."""

    def __init__(self, values):
        super().__init__(
            "the model's results are not numbers (infinite or NaN): it or an adapter is damaged, or an adapter's scale "
            "is too large; try without the adapter"
        )
        self.values = values


class UsageError(LlamacyError):
    """Wrong flags or arguments; commands exit with 2."""

    exit_code = 2


def printable(text):
    """Return `text` with everything that could act on a terminal or break the line written as an escape."""
    return text if text.isprintable() else "".join(c if c.isprintable() else _escaped(c) for c in text)


def shown(value, limit=SHOWN):
    """Return a value read from a file as one short printable text: strings and bytes quoted, long ones cut.

    Costs no more than what is shown, however large the value is.
    """
    if isinstance(value, (bytes, bytearray)):
        value = bytes(value[: 4 * limit + 4]).decode("utf-8", "replace")
    if isinstance(value, str):
        return repr(_cut(str(value), limit))
    if hasattr(value, "tolist"):  # NumPy's: of an array its beginning, of a scalar the number
        value = value.tolist() if getattr(value, "ndim", 0) == 0 else value.ravel()[: _BRIEF.maxlist + 1].tolist()
    try:
        return _cut(printable(_BRIEF.repr(value)), limit)
    except ValueError:
        return "a number of thousands of digits"


def brief(value, limit=SHOWN):
    """Return a text for a label, without quotes; what is no text as `shown` does."""
    return _cut(printable(value[: limit + 1]), limit) if isinstance(value, str) else shown(value, limit)


def some(names, most=3, show=shown):
    """Return the first of several names from a file as one text, the others counted; `show`: shown or brief."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(show, names[:most])) + more


def one_line(text):
    """Return `text` as one printable line of at most LINE characters; of a longer one its two ends."""
    text = _ends(str(text))
    return _ends(printable(" ".join(part.strip() for part in text.strip().splitlines())))


def _cut(text, limit):
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _ends(text):
    return text if len(text) <= LINE else f"{text[: LINE - 500]} ... {text[-400:]}"


def _escaped(char):
    return char.encode("unicode_escape").decode()
