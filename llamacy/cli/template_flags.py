"""Which chat template is used, and what it is given besides the messages: for `main` and `server`."""

import argparse
import json
import os

from llamacy.cli.common import optional, whole
from llamacy.cli.run import say
from llamacy.errors import UsageError, one_line
from llamacy.text.chat import OWN_NAMES
from llamacy.text.chat_formats import FORMATS

ON, OFF, AUTO = ("on", "true", "enabled", "1"), ("off", "false", "disabled", "0"), ("auto", "-1")


IN_SIGHT = "auto = thoughts are shown and reach the next prompt as the template has it (default), none = as text"


def add_template_flags(group, text, thoughts=IN_SIGHT, formats=("none", "auto")):
    """Add --chat-template (`text`: its help) and what goes with it; see template_of and template_values."""
    optional(group, "--chat-template", dest="chat_template", metavar="NAME|FILE", help=text)
    optional(group, "--chat-template-file", dest="chat_template_file", metavar="FILE", help="the same, always a file")
    optional(group, "--chat-template-kwargs", dest="template_kwargs", default={}, type=template_kwargs, metavar="JSON",
             help="names and values for the template, such as '{\"enable_thinking\": false}'")  # fmt: skip
    optional(group, "-rea", "--reasoning", dest="reasoning", type=on_off_auto, metavar="on|off|auto",
             help="tell the template to let the model think or not (default: auto, as it has it)")  # fmt: skip
    optional(group, "--reasoning-effort", dest="reasoning_effort", metavar="LEVEL",
             help="tell the template how much: low, medium, high, ... (default: as the template has it)")  # fmt: skip
    optional(group, "--reasoning-budget", dest="reasoning_budget", type=whole(-1, 0), metavar="N",
             help="0 = as --reasoning off, -1 = without limit (the default)")  # fmt: skip
    optional(group, "--reasoning-format", dest="reasoning_format", choices=formats, help=thoughts)


def json_object(text):
    """Parse a JSON object."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise argparse.ArgumentTypeError(f"wanted a JSON object, got {text!r}: {error}") from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"wanted a JSON object, got {text!r}")
    return value


def template_kwargs(text):
    """Parse a JSON object of names that a template may be given."""
    values = json_object(text)
    for name in sorted(OWN_NAMES & values.keys()):
        raise argparse.ArgumentTypeError(f"{name} is said by the conversation itself, got {text!r}")
    return values


def on_off_auto(text):
    """Parse llama.cpp's on, off or auto and their synonyms into True, False or None."""
    for words, value in ((ON, True), (OFF, False), (AUTO, None)):
        if text in words:
            return value
    raise argparse.ArgumentTypeError(f"wanted on, off or auto, got {text!r}")


def template_override(args):
    """Return the template that the flags name, for llamacy.text.chat.template_for; None for the model's own."""
    if args.chat_template and args.chat_template_file:
        raise UsageError("--chat-template and --chat-template-file are both given: name one")
    if args.chat_template_file:
        return os.path.join(".", args.chat_template_file)  # never the name of a built-in format
    return args.chat_template


def template_values(args):
    """Return what the flags give the template besides the messages, {name: value}."""
    values = dict(args.template_kwargs)
    thinking = False if args.reasoning_budget == 0 else args.reasoning
    if thinking is not None:
        values["enable_thinking"] = thinking
    if args.reasoning_effort == "default":
        values.pop("reasoning_effort", None)
    elif args.reasoning_effort is not None:
        values["reasoning_effort"] = args.reasoning_effort
    return values


def warn_of_unused(template, values):
    """Say on stderr that a built-in format has no use for values that were given to it."""
    if template in FORMATS and values:
        names = ", ".join(values)
        say(f"warning: the built-in template {template} takes nothing but messages: {one_line(names)} without effect")
