"""Reading a request's JSON strictly: each field has a type, a range and a default; null means the default.

Each reader is a function (name, value) -> value that raises HttpError 400 in one line: which field, wanted, got.
"""

import math

from llamacy.errors import LlamacyError
from llamacy.generate.samplers.params import LIMITS, SamplingParams, check_number
from llamacy.server.errors import HttpError

MAX_STOPS = 64


def wrong(name, wanted, value):
    """Return the error for a field that is not what it should be."""
    return HttpError(400, f"{name}: wanted {wanted}, got {shown(value)}")


def shown(value):
    """Return a value for a message: short, whatever it is."""
    names = {
        dict: "an object",
        list: "a list" if value else "an empty list",
        type(None): "null",
        bool: "true" if value else "false",
    }
    return names.get(type(value)) or f"{value!r:.60}"


def number(kind, low=None, high=None):
    """Return a reader of an int or float within bounds; 40.0 counts as a whole number."""

    def read(name, value):
        if kind is int and isinstance(value, float) and value.is_integer():
            value = int(value)
        try:
            check_number(name, value, kind, low, high)
        except LlamacyError as error:
            wanted = str(error).removeprefix(f"{name}: wanted ").rpartition(", got ")[0]
            raise wrong(name, wanted, value) from None
        return kind(value)

    return read


def flag(name, value):
    """Read true or false."""
    if not isinstance(value, bool):
        raise wrong(name, "true or false", value)
    return value


def text(name, value):
    """Read a string."""
    if not isinstance(value, str):
        raise wrong(name, "a string", value)
    return value


def choice(*names):
    """Return a reader of one of `names`."""

    def read(name, value):
        if value not in names:
            raise wrong(name, " or ".join(map(repr, names)), value)
        return value

    return read


def items(reader, most=None):
    """Return a reader of a list whose items `reader` takes."""

    def read(name, value):
        if not isinstance(value, list):
            raise wrong(name, "a list", value)
        if most is not None and len(value) > most:
            raise HttpError(400, f"{name}: wanted a list of at most {most}, got {len(value)} items")
        return [reader(f"{name}[{i}]", item) for i, item in enumerate(value)]

    return read


def mapping(name, value):
    """Read an object."""
    if not isinstance(value, dict):
        raise wrong(name, "an object", value)
    return value


def stops(name, value):
    """Read stop strings: a string or a list of them; empty ones never stop anything."""
    return [stop for stop in items(text, MAX_STOPS)(name, [value] if isinstance(value, str) else value) if stop]


def bias_value(name, value):
    """Read a bias: a number, or false for a token that must not come."""
    return -math.inf if value is False else number(float)(name, value)


def token_id(n_vocab):
    """Return a reader of a token id."""
    return number(int, 0, n_vocab - 1)


def read_all(data, table):
    """Return {name: value} for a table {name: (reader, default, *other names)}; fields not in it are ignored."""
    mapping("the body", data)
    values = {}
    for name, (reader, default, *others) in table.items():
        given = next((key for key in (name, *others) if data.get(key) is not None), None)
        values[name] = default if given is None else reader(given, data[given])
    return values


# The fields that are SamplingParams' own, with its limits and defaults.
SAMPLING = {name: (number(*limits), getattr(SamplingParams, name)) for name, limits in LIMITS.items()}
