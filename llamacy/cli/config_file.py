"""--config FILE: a command's flags from a TOML file, `learning-rate = 1e-3`, and such a file of the flags of a run.

What stands on the command line has the last word.
"""

import json

from llamacy.errors import LlamacyError, UsageError, shown

MAX_BYTES = 1 << 20
# Flags that ask for something else than a run, or name the file itself.
NOT_KEPT = ("help", "version", "config", "estimate", "show_sample", "verbose", "resume")


def parsed(parser, argv):
    """Return the parsed flags of a command line, with those of the file that its --config names.

    LlamacyError where the file is no TOML, UsageError for a setting that is no flag or has no such value.
    """
    args = parser.parse_args(argv)
    if args.config is None:
        return args
    words = []
    for key, value in _read(args.config).items():
        action = _action(parser, key, args.config)
        # a list on the command line is instead of the file's, not besides it
        if not (_is_list(action) and getattr(args, action.dest)):
            words += _words(action, key, value, args.config)
    return parser.parse_args([*words, *argv])


def _read(path):
    try:
        import tomllib
    except ImportError:
        raise LlamacyError(f"{path}: reading --config needs Python 3.11 or newer; give the flags instead") from None
    try:
        with open(path, "rb") as file:
            raw = file.read(MAX_BYTES + 1)
        if len(raw) > MAX_BYTES:
            raise LlamacyError(f"{path}: more than {MAX_BYTES} bytes, wanted a file of flags")
        return tomllib.loads(raw.decode("utf-8"))
    except OSError as error:
        raise LlamacyError(f"{path}: cannot read --config: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise LlamacyError(f"{path}: not TOML, wanted lines such as learning-rate = 1e-3: {error}") from error


def _action(parser, key, path):
    """Return the flag that a key of the file is the name of, with - or _."""
    name = key.replace("_", "-")
    for action in parser._actions:
        if name in (flag.lstrip("-") for flag in action.option_strings) and action.dest not in NOT_KEPT:
            return action
    raise UsageError(f"{path}: {shown(key)} is no flag of {parser.prog}; see --help")


def _is_list(action):
    return type(action).__name__ == "_AppendAction"


def _words(action, key, value, path):
    """Return the words of a command line that say the same."""
    flag = max(action.option_strings, key=len)
    if action.nargs == 0:
        if not isinstance(value, bool):
            raise UsageError(f"{path}: {shown(key)}: wanted true or false, got {shown(value)}")
        return [flag] if value else []
    values = value if isinstance(value, list) else [value]
    if not values or not all(type(each) in (str, int, float) for each in values):
        raise UsageError(f"{path}: {shown(key)}: wanted a text or a number, got {shown(value)}")
    texts = [each if isinstance(each, str) else repr(each) for each in values]
    return [word for text in (texts if _is_list(action) else [",".join(texts)]) for word in (flag, text)]


def written(parser, args):
    """Return the flags of a run as TOML that --config reads: those with a value, whether given or by default."""
    lines = []
    for action in parser._actions:
        value = getattr(args, action.dest, None)
        if not action.option_strings or action.dest in NOT_KEPT or value in (None, [], {}):
            continue
        key = max(action.option_strings, key=len).lstrip("-")
        if action.nargs != 0 and not _is_plain(value):
            lines.append(f"# {key} is to be given on the command line again")
        elif action.nargs != 0:
            lines.append(f"{key} = {_toml(value)}")
        elif value == action.const and value != action.default:
            lines.append(f"{key} = true")
    return "\n".join([f"# {parser.prog} --config THIS FILE repeats the run", *lines, ""])


def _is_plain(value):
    """Can _words make a flag's value of it again?"""
    if isinstance(value, (list, tuple)):
        return all(type(each) in (str, int, float) for each in value)
    return type(value) in (str, int, float)


def _toml(value):
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return repr(value)
    return json.dumps(str(value)).replace("\x7f", "\\u007f")
