"""What all commands share: the parser's habits and the mapping from failures to one line and an exit code."""

import argparse
import contextlib
import os
import sys
import textwrap

from llamacy import __version__
from llamacy.cli.environment import Environment
from llamacy.cli.llama_cpp_flags import REASONS, epilog, without_effect
from llamacy.cli.words import NUMBER, Words
from llamacy.errors import LlamacyError, one_line, printable

HELP = {"-h", "--help", "--usage", "--version"}


class Parser(argparse.ArgumentParser):
    """argparse with llama.cpp's habits: flags are whole words, `_` works for `-`, one line for wrong usage."""

    def __init__(self, **more):
        super().__init__(**more)
        self._negative_number_matcher = NUMBER  # argparse's own knows no exponents
        self._ignored, self._without_effect = without_effect(self.prog), []
        self.reads_variables = False

    def parse_args(self, args=None, namespace=None):
        args = super().parse_args(args, namespace)
        if self._without_effect:
            say(one_line(", ".join(self._without_effect)) + ": no effect here")
        return args

    def parse_known_args(self, args=None, namespace=None):
        given = list(sys.argv[1:] if args is None else args)
        words = Words(self._option_string_actions, self._ignored, REASONS)
        try:
            joined, self._without_effect = words.read(given)
            joined = self._of_environment(given) + joined
        except ValueError as error:
            self.error(str(error))
        return super().parse_known_args(joined, namespace)

    def _of_environment(self, given):
        """Return the words that environment variables stand for; `given`: the command line's."""
        if not self.reads_variables or HELP & set(given):
            return []
        environment = Environment(self._option_string_actions, self._ignored)
        words, ignored, unknown = environment.read(os.environ, given)
        self._without_effect = ignored + self._without_effect
        if unknown and self.prog == "server":  # the other commands have not all of its flags
            say(one_line(f"warning: {', '.join(unknown)}: unknown, without effect"))
        return words

    def _get_option_tuples(self, option_string):
        """Return argparse's completions and splits of an unknown word: none."""
        return []

    def _get_values(self, action, arg_strings):
        """Return a flag's value; argparse before 3.13 drops one that is `--`."""
        alone = action.option_strings and arg_strings == ["--"]
        return self._get_value(action, "--") if alone else super()._get_values(action, arg_strings)

    def error(self, message):
        unknown = [word for word in message.partition("unrecognized arguments: ")[2].split() if word.startswith("-")]
        if unknown:
            # imported here: a right command line has no use for it
            from llamacy.cli.hints import hint

            hints = (hint(word, self._option_string_actions) for word in unknown)
            message += next(filter(None, hints), "")
        self.exit(2, f"{self.prog}: {one_line(message)} (see {self.prog} --help)\n")


class HelpFormatter(argparse.HelpFormatter):
    """argparse's help with a flag's value said once, as Python 3.13 does, and the default where there is a value."""

    def _format_action_invocation(self, action):
        if not action.option_strings or action.nargs == 0:
            return super()._format_action_invocation(action)
        value = self._format_args(action, self._get_default_metavar_for_optional(action))
        return f"{', '.join(action.option_strings)} {value}"

    def _fill_text(self, text, width, indent):
        return textwrap.fill(" ".join(text.split()), width, initial_indent=indent, subsequent_indent=indent,
                             break_on_hyphens=False)  # fmt: skip

    def _get_help_string(self, action):
        # By identity: 0 equals False, but is a default to show.
        silent = any(action.default is nothing for nothing in (None, False, argparse.SUPPRESS))
        return action.help if silent or not action.option_strings else f"{action.help} (default: %(default)s)"


def make_parser(prog, description, variables=False):
    """Return a Parser with `--version` and defaults shown in `--help`; variables: LLAMA_ARG_* are read too."""
    parser = Parser(prog=prog, description=description, allow_abbrev=False, formatter_class=HelpFormatter,
                    epilog=epilog(prog), add_help=False)  # fmt: skip
    parser.add_argument("-h", "--help", "--usage", action="help", help="show this help message and exit")
    parser.reads_variables = variables
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
