"""How positions rotate queries and keys: flags instead of what the model's file says."""

import argparse
import math

from llamacy.cli.values import optional, real, whole
from llamacy.errors import UsageError

KINDS = ("none", "linear", "yarn")
# of yarn: flag -> the key that it sets, what it is, its type; as in llama.cpp -1, and for a length 0, leave the file's
YARN = {
    "--yarn-orig-ctx": ("original_context_length", "N", "tokens that were trained before yarn", whole(-1)),
    "--yarn-ext-factor": ("yarn_ext_factor", "F", "share of the frequencies that yarn keeps", real(-1)),
    "--yarn-attn-factor": ("yarn_attn_factor", "F", "factor on attention's turned values", real(-1)),
    "--yarn-beta-slow": ("yarn_beta_slow", "F", "turns up to which yarn stretches", real(-1)),
    "--yarn-beta-fast": ("yarn_beta_fast", "F", "turns from which on yarn keeps", real(-1)),
}


def add_rope_flags(group):
    """Add how positions rotate queries and keys; see rope_overrides."""
    optional(group, "--rope-theta", "--rope-freq-base", dest="rope_theta", type=or_model(real(0)), metavar="F",
             help="rotary base instead of the file's")  # fmt: skip
    optional(group, "--rope-scaling", dest="rope_scaling", type=rope_scaling, metavar="none|linear|yarn",
             help="how positions are scaled (default: as the file says, linear with --rope-scale)")  # fmt: skip
    optional(group, "--rope-scale", dest="rope_scale", type=or_model(real(0)), metavar="N",
             help="divide positions by N: a context N times as long (default: the file's)")  # fmt: skip
    optional(group, "--rope-freq-scale", dest="rope_scale", type=inverse, metavar="F", help="the same, 1/N")
    for flag, (_, metavar, text, parse) in YARN.items():
        optional(group, flag, dest=_dest(flag), type=parse, metavar=metavar, help=f"{text} (default: the file's)")


def _dest(flag):
    return flag[2:].replace("-", "_")


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
    if text not in KINDS:
        raise argparse.ArgumentTypeError(f"wanted one of {', '.join(KINDS)}, got {text!r}")
    return text


def rope_overrides(args):
    """Return the metadata that --rope-scaling, --rope-scale and those of yarn stand for."""
    if args.rope_scaling == "none" and args.rope_scale not in (None, 1):
        raise UsageError("--rope-scaling none and --rope-scale are both given: name one")
    kind = args.rope_scaling or (args.rope_scale and "linear")
    values = {"{arch}.rope.scaling.type": kind, "{arch}.rope.scaling.factor": args.rope_scale}
    values = {key: value for key, value in values.items() if value is not None}
    for flag, (key, *_) in YARN.items():
        value = getattr(args, _dest(flag), None)
        if value is None or value == -1 or (value == 0 and flag == "--yarn-orig-ctx"):
            continue
        if kind not in (None, "yarn"):
            raise UsageError(f"{flag} and {kind} scaling: it is one of --rope-scaling yarn")
        values[f"{{arch}}.rope.scaling.{key}"] = value
    return values
