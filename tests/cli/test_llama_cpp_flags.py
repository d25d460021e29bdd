"""llama.cpp's flags: those without effect are taken with a note, the others are built or refused by name."""

import csv
from pathlib import Path

import pytest

from llamacy.cli import llama_cpp_flags
from tests.cli.test_words import needed, refusal
from tools.commands_doc import commands, parser_of

FLAGS = Path(__file__).resolve().parents[1] / "data" / "llama_cpp_flags.tsv"
COMMANDS = sorted(llama_cpp_flags.WITHOUT_EFFECT)
# two words here, and llama.cpp's one as well: see test_adapter_flags
OURS = {"--lora-scaled"}


def recorded(tools):
    """Yield (flags, how many values: "0", "1", "2" or "?") of llama.cpp's tools."""
    with open(FLAGS) as file:
        for row in csv.DictReader(file, delimiter="\t"):
            if set(tools) & set(row["tools"].split(",")):
                yield row["flags"].split(","), row["values"]


def test_the_commands_are_known():
    assert set(COMMANDS) <= set(commands())


@pytest.mark.parametrize("command", COMMANDS)
def test_flags_without_effect_change_nothing_and_are_named_once(command, capsys):
    parser = parser_of(command)
    plain = parser.parse_args(needed(parser))
    flags = [flag for row in llama_cpp_flags.WITHOUT_EFFECT[command] for flag in row]
    assert len(flags) == len(set(flags)), "a flag has two rows"
    assert not set(flags) & set(parser._option_string_actions), "a flag of the command's own"
    capsys.readouterr()
    for flag, kind in llama_cpp_flags.without_effect(command).items():
        for values in [["x"] * kind.values] + [[value] for value in kind.optional[:1]]:
            assert parser.parse_args([flag, *values, *needed(parser)]) == plain
            said = " ".join([flag, *values])
            assert capsys.readouterr() == ("", f"{said}: no effect here\n")


def test_all_of_them_are_in_one_note(capsys):
    parser = parser_of("main")
    args = parser.parse_args(
        ["-ngl", "99", "-p", "-fa", "--jinja", "-fa", "-n", "5", "--tensor_split=3,1", "-co", "auto", "--poll", "-1"]
    )
    assert (args.prompt, args.n_predict) == ("-fa", 5)
    said = "-ngl 99, --jinja, -fa, --tensor-split 3,1, -co auto, --poll -1: no effect here\n"
    assert capsys.readouterr() == ("", said)
    parser.parse_args(["-p", "x"])
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("-ngl", "argument -ngl: expected one argument"),
        ("-ngl --temp 1", "argument -ngl: expected one argument"),
        ("-ngl -- 99", "argument -ngl: expected one argument"),
        ("-fa perhaps", "unrecognized arguments: perhaps"),
        ("-m -hf a/b", "argument -m/--model: expected one argument"),
        ("-ngl 99 --frobnicate", "unrecognized arguments: --frobnicate (see"),
    ],
)
def test_wrong_uses_of_them_are_refused(line, wanted, capsys):
    assert wanted in refusal(parser_of("main"), line.split(), capsys)


@pytest.mark.parametrize("command", ["main", "server"])
def test_what_is_not_built_is_refused_with_a_reason(command, capsys):
    parser = parser_of(command)
    for flag, reason in llama_cpp_flags.REASONS.items():
        if flag in parser._option_string_actions:
            continue  # the same name for something else
        assert flag not in llama_cpp_flags.without_effect(command)
        for words in ([flag, "x"], [f"{flag}=x"], ["-c", "0", "--no-such", flag]):
            said = refusal(parser, words, capsys)
            assert "unrecognized arguments: " in said and flag in said and reason in said


@pytest.mark.parametrize(
    ("command", "tools"), [("main", ("cli", "completion")), ("server", ("server",)), ("perplexity", ("completion",))]
)
def test_flags_take_as_many_values_as_in_llama_cpp(command, tools):
    parser, ignored = parser_of(command), llama_cpp_flags.without_effect(command)
    seen = 0
    for flags, values in recorded(tools):
        for flag in set(flags) - OURS:
            if flag in ignored:
                kind = ignored[flag]
                assert ("?" if kind.optional else str(kind.values)) == values, flag
            elif flag in parser._option_string_actions:
                nargs = parser._option_string_actions[flag].nargs
                assert values in {None: ("1", "?"), 0: ("0",)}[nargs], flag
            else:
                continue
            seen += 1
    assert seen > 60
