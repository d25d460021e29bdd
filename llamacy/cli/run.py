"""What all commands share: the parser's habits and the mapping from failures to one line and an exit code."""

import argparse
import contextlib
import os
import sys

from llamacy import __version__
from llamacy.errors import LlamacyError, one_line, printable


class Parser(argparse.ArgumentParser):
    """argparse with llama.cpp's habits: `_` works for `-`, no abbreviations, one line for wrong usage."""

    def parse_known_args(self, args=None, namespace=None):
        words, joined = iter(sys.argv[1:] if args is None else args), []
        for word in words:
            joined.append(self._with_text(self._with_hyphens(word), words))
            if word == "--":
                joined += words
        return super().parse_known_args(joined, namespace)

    def _with_text(self, word, words):
        """Join a flag that takes a text with the next of `words`, whatever it is: texts may begin with a dash."""
        action = self._option_string_actions.get(word)
        if action is None or action.nargs is not None or action.metavar != "TEXT":
            return word
        long = next(name for name in action.option_strings if name.startswith("--"))
        text = next(words, None)
        return word if text is None else f"{long}={text}"

    def _with_hyphens(self, arg):
        name, equals, value = arg.partition("=")
        hyphened = "--" + name[2:].replace("_", "-")
        known = name.startswith("--") and hyphened in self._option_string_actions
        return hyphened + equals + value if known else arg

    def error(self, message):
        unknown = message.partition("unrecognized arguments: ")[2].split()
        if unknown and unknown[0].startswith("--"):
            # imported here: a right command line has no use for it
            from difflib import get_close_matches

            near = get_close_matches(unknown[0].partition("=")[0], self._option_string_actions, 1, 0.8)
            message += "".join(f"; did you mean {name}?" for name in near)
        self.exit(2, f"{self.prog}: {one_line(message)} (see {self.prog} --help)\n")


class HelpFormatter(argparse.HelpFormatter):
    """argparse's help with a flag's value said once, as Python 3.13 does, and the default where there is a value."""

    def _format_action_invocation(self, action):
        if not action.option_strings or action.nargs == 0:
            return super()._format_action_invocation(action)
        value = self._format_args(action, self._get_default_metavar_for_optional(action))
        return f"{', '.join(action.option_strings)} {value}"

    def _get_help_string(self, action):
        # By identity: 0 equals False, but is a default to show.
        silent = any(action.default is nothing for nothing in (None, False, argparse.SUPPRESS))
        return action.help if silent or not action.option_strings else f"{action.help} (default: %(default)s)"


def make_parser(prog, description):
    """Return a Parser with `--version` and defaults shown in `--help`."""
    parser = Parser(prog=prog, description=description, allow_abbrev=False, formatter_class=HelpFormatter)
    parser.add_argument("--version", action="version", version=f"llamacy {__version__}")
    return parser


def run(main, argv=None):
    """Call `main(argv)` and return its exit code; failures become one line on stderr.

    0 success, 1 failure, 2 wrong usage, 130 Ctrl-C. `LLAMACY_DEBUG=1` shows the traceback instead.
    """
    name = os.path.basename(sys.argv[0]) or "llamacy"
    try:
        code = main(sys.argv[1:] if argv is None else list(argv)) or 0
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # The reader went away (`| head`): not an error of ours, and nothing more can be written.
        return 0
    except KeyboardInterrupt:
        say("")
        return 130
    except (LlamacyError, OSError, MemoryError) as error:
        if os.environ.get("LLAMACY_DEBUG") == "1":
            raise
        say(one_line(f"{name}: {_words(error)}"))
        return getattr(error, "exit_code", 1)
    finally:
        _drop_unwritten(sys.stdout)
        _drop_unwritten(sys.stderr)


def say(text):
    """Tell the user something that is not the result, if there is still somebody to read it.

    Control characters are written as escapes: names from files may stand in it.
    """
    with contextlib.suppress(OSError):
        print("\n".join(map(printable, text.split("\n"))), file=sys.stderr, flush=True)


def _drop_unwritten(stream):
    """Let go of what a stream could not write: Python would try again at its end, fail, and exit with 120."""
    try:
        stream.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _words(error):
    if isinstance(error, MemoryError):
        return f"out of memory: {error or 'the allocation failed'}; try a smaller --ctx-size or --batch-size"
    return str(error)
