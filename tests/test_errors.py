"""What stands in a file or a request enters an error line short and harmless; the line itself is one."""

import time
import unicodedata

import numpy as np
import pytest

from llamacy.cli import run
from llamacy.errors import LINE, SHOWN, LlamacyError, UsageError, one_line, printable, shown

# Everything that moves a cursor, changes the direction of text or begins a line.
ACTING = ["\x1b[2J", "\r", "\n", "\x07", "\x00", "\x7f", "\x9b31m", "\u202e", "\u2028", "\u200b", "\ufeff", "\ud800"]


def harmless(text):
    """Tell whether no character of `text` is control, format, surrogate or a separator but the space."""
    return all(unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Zl", "Zp") for c in text)


@pytest.mark.parametrize("acting", ACTING)
def test_what_acts_on_a_terminal_is_escaped(acting):
    for text in (f"a{acting}b", acting * 10):
        for show in (printable, shown, one_line, LlamacyError, lambda text: shown([{text: (text,)}])):
            assert harmless(str(show(text)))
    assert harmless(shown(f"a{acting}b".encode("utf-8", "surrogatepass")))


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("llama", "'llama'"),
        ("讲一个笑话", "'讲一个笑话'"),
        (b"\xff\x00", r"'�\x00'"),
        ("5", "'5'"),
        (5, "5"),
        (2.5, "2.5"),
        (None, "None"),
        (True, "True"),
        (np.float32(0.5), "0.5"),
        ((64, 32), "(64, 32)"),
        (np.arange(3), "[0, 1, 2]"),
        ([1] * 100, "[1, 1, 1, 1, 1, 1, ...]"),
        ("x" * 80, repr("x" * 80)),
        ("x" * 81, repr("x" * 77 + "...")),
        pytest.param(10**5000, "a number of thousands of digits", id="digits"),
    ],
)
def test_a_value_as_it_is_shown(value, words):
    assert shown(value) == words


@pytest.mark.parametrize(
    "value",
    ["\x1b" * 10**7, b"\xff" * 10**7, np.zeros(10**7), ["x" * 10**6] * 10**5, {"x" * 10**7: ["y" * 10**7]}, [[[[[]]]]]],
    ids=["text", "bytes", "array", "list", "object", "nested"],
)
def test_a_huge_value_is_cut_at_no_cost(value):
    began = time.process_time()
    assert len(shown(value)) <= 4 * SHOWN + 2
    assert time.process_time() - began < 1


def test_spaces_and_the_beginning_and_end_of_a_long_line_are_kept():
    assert str(LlamacyError("/a  b.gguf: wrong;\n  do   this\n")) == "/a  b.gguf: wrong; do   this"
    text = str(UsageError("/a.gguf: " + "\x1b" * 500_000 + "; download it again"))
    assert text.startswith("/a.gguf: \\x1b") and text.endswith("; download it again") and len(text) <= LINE


@pytest.mark.parametrize("kind", [LlamacyError, OSError, MemoryError])
def test_whatever_a_command_ends_with_is_one_harmless_line(kind, capsys):
    def fail(argv):
        raise kind("a\x1b]0;title\x07\nb" + "x" * 10**6)

    assert run.run(fail, []) == 1
    line = capsys.readouterr().err
    assert line.endswith("\n") and harmless(line[:-1]) and len(line) <= LINE + 1 and r"a\x1b]0;title\x07 b" in line


def test_wrong_usage_and_notes_are_harmless(capsys):
    with pytest.raises(SystemExit):
        run.make_parser("info", "Show.").parse_args(["--no\x1b[2J"])
    run.say("two\x1b\nlines")
    err = capsys.readouterr().err
    assert r"--no\x1b[2J" in err and err.endswith("two\\x1b\nlines\n") and harmless(err.replace("\n", ""))
