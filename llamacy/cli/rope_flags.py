"""How positions rotate queries and keys: flags instead of what the model's file says."""

import argparse
import math

from llamacy.cli.values import optional, real
from llamacy.errors import UsageError


def add_rope_flags(group):
    """Add how positions rotate queries and keys; see rope_overrides."""
    optional(group, "--rope-theta", "--rope-freq-base", dest="rope_theta", type=or_model(real(0)), metavar="F",
             help="rotary base instead of the file's")  # fmt: skip
    optional(group, "--rope-scaling", dest="rope_scaling", type=rope_scaling, metavar="none|linear",
             help="how positions are scaled (default: as the file says, linear with --rope-scale)")  # fmt: skip
    optional(group, "--rope-scale", dest="rope_scale", type=or_model(real(0)), metavar="N",
             help="divide positions by N: a context N times as long (default: the file's)")  # fmt: skip
    optional(group, "--rope-freq-scale", dest="rope_scale", type=inverse, metavar="F", help="the same, 1/N")


def or_model(parse):
    """Return an argparse type: what `parse` gives, None for 0, which asks for the file's value as in llama.cpp."""

    def parse_or_none(text):
        return parse(text) or None

    parse_or_none.__name__ = parse.__name__
    return parse_or_none


def inverse(text):
    """Parse a number into 1 / number, 0 into None."""
    value = real(0)(text)
    if value and not math.isfinite(1 / value):
        raise argparse.ArgumentTypeError(f"wanted a number above 0, got {text!r}")
    return 1 / value if value else None


def rope_scaling(text):
    """Parse a way of scaling positions; those that are not built are named."""
    if text not in ("none", "linear"):
        raise argparse.ArgumentTypeError(f"wanted none or linear, for no other scaling is built, got {text!r}")
    return text


def rope_overrides(args):
    """Return the metadata that --rope-scaling and --rope-scale stand for."""
    if args.rope_scaling == "none" and args.rope_scale not in (None, 1):
        raise UsageError("--rope-scaling none and --rope-scale are both given: name one")
    kind = args.rope_scaling or (args.rope_scale and "linear")
    values = {"{arch}.rope.scaling.type": kind, "{arch}.rope.scaling.factor": args.rope_scale}
    return {key: value for key, value in values.items() if value is not None}
