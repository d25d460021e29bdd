"""--config FILE: the flags of a command from TOML (`learning-rate = 1e-3`) or YAML, and such a file of those of a run.

What stands on the command line has the last word.
"""

import json
import os

from llamacy.errors import LlamacyError, UsageError, shown

MAX_BYTES = 1 << 20
# Flags that ask for something else than a run, or name the file itself.
NOT_KEPT = ("help", "version", "config", "estimate", "show_sample", "verbose", "resume")


def parsed(parser, argv):
    """Return the parsed flags of a command line, with those of the file that its --config names.

    LlamacyError where the file cannot be read, UsageError for a setting that is no flag or has no such value.
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
    """Return the settings of a file: YAML by its name, else TOML."""
    read = _yaml if os.path.splitext(path)[1].lower() in (".yaml", ".yml") else _toml_of
    try:
        with open(path, "rb") as file:
            raw = file.read(MAX_BYTES + 1)
        if len(raw) > MAX_BYTES:
            raise LlamacyError(f"{path}: more than {MAX_BYTES} bytes, wanted a file of flags")
        return read(path, raw)
    except OSError as error:
        raise LlamacyError(f"{path}: cannot read --config: {error.strerror}") from error


def _toml_of(path, raw):
    try:
        import tomllib
    except ImportError:
        raise LlamacyError(f"{path}: reading --config needs Python 3.11 or newer; give the flags instead") from None
    try:
        return tomllib.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise LlamacyError(f"{path}: not TOML, wanted lines such as learning-rate = 1e-3: {error}") from error


def _yaml(path, raw):
    try:
        import yaml
    except ImportError as error:
        raise LlamacyError(
            f"{path}: YAML needs the pyyaml package: pip install 'llamacy[yaml]', or write the flags as TOML"
        ) from error

    class Once(yaml.SafeLoader):
        """As TOML has it, each key stands once."""

        def construct_mapping(self, node, deep=False):
            keys = [key.value for key, _ in node.value]
            twice = next((key for key in keys if keys.count(key) > 1), None)
            if twice is not None:
                raise yaml.YAMLError(f"{shown(twice)} stands twice")
            return super().construct_mapping(node, deep)

    try:
        found = yaml.load(raw.decode("utf-8"), Once)
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise LlamacyError(f"{path}: not YAML, wanted lines such as learning-rate: 1e-3: {error}") from error
    if not isinstance(found, dict):
        raise LlamacyError(f"{path}: wanted lines such as learning-rate: 1e-3, got {shown(found)}")
    return {str(key): value for key, value in found.items()}


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
    if isinstance(value, bool) and {*(action.choices or ())} == {"on", "off"}:  # what YAML makes of these words
        value = "on" if value else "off"
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
        value = _in_words(value)
        if action.nargs != 0 and not _is_plain(value):
            lines.append(f"# {key} is to be given on the command line again")
        elif action.nargs != 0:
            lines.append(f"{key} = {_toml(value)}")
        elif value == action.const and value != action.default:
            lines.append(f"{key} = true")
    return "\n".join([f"# {parser.prog} --config THIS FILE repeats the run", *lines, ""])


def _in_words(value):
    """Return a value that is no text, number or list of these as the command line has it."""
    if isinstance(value, dict):
        return json.dumps(value)
    if isinstance(value, list) and all(isinstance(each, tuple) for each in value):  # of --override-kv
        kinds = [(key, type(each).__name__, each) for key, each in value]
        return [f"{key}={kind}:{str(each).lower() if kind == 'bool' else each}" for key, kind, each in kinds]
    return value


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
