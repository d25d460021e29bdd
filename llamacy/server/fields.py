"""Reading a request's JSON strictly: each field has a type, a range and a default; null means the default.

Each reader is a function (name, value) -> value that raises HttpError 400 in one line: which field, wanted, got.
"""

import math

from llamacy.errors import LlamacyError
from llamacy.generate.samplers.params import (
    LIMITS,
    MAX_BREAKERS,
    SamplingParams,
    check_number,
    sampler_names,
    samplers_from_text,
)
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
    """Return {name: value} for a table {name: (reader, default, *other names)}; fields not in it are left alone."""
    mapping("the body", data)
    values = {}
    for name, (reader, default, *others) in table.items():
        given = next((key for key in (name, *others) if data.get(key) is not None), None)
        values[name] = default if given is None else reader(given, data[given])
    return values


def seed(name, value):
    """Read a seed: any whole number; -1 asks for a new one."""
    value = number(int)(name, value)
    return value if value == -1 else value % 2**64


def samplers(name, value):
    """Read the samplers to use, in order: a list of names, or a text of letters or of names with semicolons."""
    if isinstance(value, str):
        return samplers_from_text(value)
    if not isinstance(value, list):
        raise wrong(name, "a list of names", value)
    return sampler_names(value)


def breakers(name, value):
    """Read dry's sequence breakers: a list of texts that is not empty, as llama.cpp's server wants it."""
    found = tuple(items(text, MAX_BREAKERS)(name, value))
    if not found:
        raise wrong(name, "a list of at least one string", value)
    return found


def with_defaults(table, defaults):
    """Return a table as `read_all` wants it with other defaults."""
    return {name: (reader, defaults.get(name, default), *others) for name, (reader, default, *others) in table.items()}


# The fields that are SamplingParams' own, with its limits and defaults; the names of other servers for some.
OTHER_NAMES = {"repeat_penalty": ("repetition_penalty",), "n_probs": ("logprobs",)}
SAMPLING = {
    name: (number(*limits), getattr(SamplingParams, name), *OTHER_NAMES.get(name, ()))
    for name, limits in LIMITS.items()
}
SAMPLING |= {
    "seed": (seed, SamplingParams.seed),
    "samplers": (samplers, SamplingParams.samplers),
    "dry_sequence_breakers": (breakers, SamplingParams.dry_sequence_breakers),
    "ignore_eos": (flag, False),
    "post_sampling_probs": (flag, False),
}
