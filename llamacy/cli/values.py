"""How flags are added and what their values may be."""

import argparse
import math


def whole(low=None, high=None):
    """Return an argparse type: an integer from `low` to `high`, both included; None leaves that side open."""
    return _number(int, "a whole number", low, high)


def some_or_all(text):
    """Parse a number of parts to take, -1 for all, which is None."""
    return None if text == "-1" else whole(1)(text)


def real(low=None, high=None):
    """Return an argparse type: a finite number from `low` to `high`, both included; None leaves that side open."""
    return _number(float, "a number", low, high)


def _number(kind, noun, low, high):
    sides = [(low, f" from {low}"), (high, f" to {high}" if low is not None else f" up to {high}")]
    wanted = noun + "".join(text for bound, text in sides if bound is not None)

    def parse(text):
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value) or (low is not None and value < low) or (high is not None and value > high):
            raise argparse.ArgumentTypeError(f"wanted {wanted}, got {text!r}")
        return value

    parse.__name__ = noun
    return parse


def optional(group, *flags, dest, default=None, **rest):
    """Add an argument whose `default` is not printed in `--help`: the text says what happens without it."""
    # Set first: argparse writes a later set_defaults() into the argument, and from there into the help.
    if group.get_default(dest) is None:
        group.set_defaults(**{dest: default})
    group.add_argument(*flags, dest=dest, default=argparse.SUPPRESS, **rest)


class Append(argparse.Action):
    """Collect a repeatable flag's values in a new list, so that the default stays as it is."""

    def __call__(self, parser, namespace, values, option_string=None):
        setattr(namespace, self.dest, [*getattr(namespace, self.dest), values])


class Extend(argparse.Action):
    """The same for values that are lists."""

    def __call__(self, parser, namespace, values, option_string=None):
        setattr(namespace, self.dest, [*getattr(namespace, self.dest), *values])
