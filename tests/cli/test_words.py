"""Words of a command line: flags are whole words, values may be anything, unknown flags are named."""

import string

import pytest

from llamacy.cli import hints
from llamacy.cli.common import optional, real, whole
from llamacy.cli.llama_cpp_flags import without_effect
from llamacy.cli.run import make_parser
from tools.commands_doc import commands, parser_of

# among them something for every flag, and texts that look like flags
VALUES = ["-5", "-0.5", "-1e-3", "-x", "5", "0.5", "0", "x", "x=int:-1", "50-1", "on", "linear", "{}", "1G"]
VALUES += ["/x", "5,8"]


def refusal(parser, words, capsys):
    """Return the one line that a wrong command line is answered with."""
    with pytest.raises(SystemExit) as exit:
        parser.parse_args(words)
    out, err = capsys.readouterr()
    assert (exit.value.code, out, err.count("\n")) == (2, "", 1)
    return err


def needed(parser, given=None):
    """Return words for what a parser requires besides the action `given`."""
    required = [action for action in parser._actions if action.required and action.option_strings]
    groups = [group._group_actions for group in parser._mutually_exclusive_groups if group.required]
    required += [group[0] for group in groups if given not in group]
    places = ["x" for action in parser._actions if not action.option_strings and action.nargs is None]
    return places + [word for action in required for word in (action.option_strings[-1], "x")]


@pytest.mark.parametrize("command", commands())
def test_no_word_of_several_letters_is_split_or_completed(command, capsys):
    parser = parser_of(command)
    flags = set(parser._option_string_actions) | set(without_effect(command))
    short = sorted(flag for flag in flags if not flag.startswith("--"))
    words = {flag + letter for flag in short for letter in "5xlN"} | {flag[:-1] for flag in short if len(flag) > 2}
    words |= {f"-{a}{b}" for a in string.ascii_letters for b in "abfhlnt"}
    words |= {flag[:-1] for flag in flags if flag.startswith("--")}
    for word in sorted(words - flags):
        assert f": unrecognized arguments: {word}" in refusal(parser, [*needed(parser), word], capsys), word


@pytest.mark.parametrize("command", commands())
def test_every_flag_takes_what_follows_it(command):
    parser = parser_of(command)
    for action in parser._actions:
        if not action.option_strings or action.nargs is not None or action.choices or action.dest == "lora":
            continue
        accepted = [value for value in VALUES if _accepts(action, value)]
        assert accepted, action.option_strings
        for flag in action.option_strings:
            for value in accepted:
                for words in ([flag, value], [f"{flag}={value}"]):
                    args = parser.parse_args(needed(parser, action) + words)
                    wanted = action.type(value) if action.type else value
                    assert getattr(args, action.dest) in (wanted, [wanted]), words


def _accepts(action, value):
    try:
        return action.type is None or action.type(value) is not None
    except Exception:
        return False


@pytest.fixture
def parser():
    parser = make_parser("try", "A parser with one flag of each kind.")
    optional(parser, "-n", "--count", dest="count", type=whole(), metavar="N")
    optional(parser, "-x", dest="x", type=real(), metavar="F")
    optional(parser, "-p", "--prompt", dest="prompt", metavar="TEXT")
    optional(parser, "-m", "--model-file", dest="model", metavar="FILE")
    optional(parser, "--pair", dest="pair", nargs=2)
    parser.add_argument("-e", "--escape", action="store_true")
    parser.add_argument("-np", "--parallel", type=whole(1))
    parser.add_argument("place", nargs="?")
    return parser


@pytest.mark.parametrize(
    ("line", "values"),
    [
        ("-n -1", {"count": -1}),
        ("-n=-1 -x -1e-3", {"count": -1, "x": -1e-3}),
        ("-x -.5", {"x": -0.5}),
        ("--prompt -n -n 3", {"prompt": "-n", "count": 3}),
        ("-p --no-such", {"prompt": "--no-such"}),
        ("-p -- -e", {"prompt": "--", "escape": True}),
        ("--model_file -", {"model": "-"}),
        ("--model_file=a_b=c", {"model": "a_b=c"}),
        ("-m -odd.gguf", {"model": "-odd.gguf"}),
        ("-np 256 x", {"parallel": 256, "place": "x"}),
        ("--pair a -0.5", {"pair": ["a", "-0.5"]}),
        ("--pair a -5e-1", {"pair": ["a", "-5e-1"]}),
        ("-e -- -n", {"escape": True, "place": "-n"}),
        ("-", {"place": "-"}),
        ("-3e5", {"place": "-3e5"}),
    ],
)
def test_values_are_taken_whole(parser, line, values):
    args = vars(parser.parse_args(line.split()))
    assert {name: args[name] for name in values} == values


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("-n", "argument -n/--count: expected one argument"),
        ("-n -e", "argument -n/--count: expected one argument"),
        ("-n -- 5", "argument -n/--count: expected one argument"),
        ("-n -zz", "argument -n/--count: wanted a whole number, got '-zz'"),
        ("-n5", "unrecognized arguments: -n5; a value is a word of its own: -n 5 (see"),
        ("-n-5", "unrecognized arguments: -n-5; a value is a word of its own: -n -5 (see"),
        ("-ngl 99", "unrecognized arguments: -ngl (see"),
        ("-ep", "unrecognized arguments: -ep (see"),
        ("-e=1", "argument -e/--escape: ignored explicit argument '1'"),
        ("--mode x", "unrecognized arguments: --mode (see"),
        ("--paralel 3", "unrecognized arguments: --paralel; did you mean --parallel?"),
        ("--no-parallel 3", "unrecognized arguments: --no-parallel (see"),
        ("--num-threads 3 --count 5", "unrecognized arguments: --num-threads (see"),
    ],
)
def test_wrong_lines_are_refused_by_name(parser, line, wanted, capsys):
    assert wanted in refusal(parser, line.split(), capsys)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--gradient-checkpointing", "; in llamacy this is --use-checkpointing (see"),
        ("--gradient_checkpointing", "; in llamacy this is --use-checkpointing (see"),
        ("--disable-checkpointing", "; in llamacy this is --no-checkpointing (see"),
        ("--no-use-checkpointing", "; in llamacy this is --no-checkpointing (see"),
        ("--checkpointing", "; in llamacy this is --use-checkpointing (see"),
        ("--max-seq-length 512", "; in llamacy this is --ctx-size (see"),
        ("--max_seq_length=512", "; in llamacy this is --ctx-size (see"),
        ("--iters 100", "; in llamacy this is --max-steps (see"),
        ("--per-device-train-batch-size 2", "; in llamacy this is --batch-size (see"),
        ("--gradient-accumulation-steps 2", "; in llamacy this is --grad-acc (see"),
        ("--num-train-epochs 2", "; in llamacy this is --epochs (see"),
        ("--lora-rank 8", "; in llamacy this is --rank (see"),
        ("--lora-layers 8", "; in llamacy this is --num-layers (see"),
        ("--output-dir x", "; in llamacy this is --outdir (see"),
        ("--adapter-path x", "; in llamacy this is --outdir (see"),
    ],
)
def test_other_tools_names_and_near_misses_are_answered(line, said, capsys):
    assert said in refusal(parser_of("finetune"), line.split(), capsys)


def test_a_name_means_what_the_command_has(capsys):
    assert "in llamacy this is --lora (see" in refusal(parser_of("main"), ["--adapter-path", "x"], capsys)
    assert "in llamacy this is --n-predict (see" in refusal(parser_of("main"), ["--max-new-tokens", "5"], capsys)
    assert "in llamacy" not in refusal(parser_of("tokenize"), ["-p", "x", "--iters", "5"], capsys)


def test_no_hint_names_the_opposite():
    for command in commands():
        flags = parser_of(command)._option_string_actions
        for flag in filter(lambda flag: flag.startswith("--"), flags):
            bare = flag.removeprefix("--no-") if flag.startswith("--no-") else flag[2:]
            for made in (f"--no-{bare}", f"--disable-{bare}", f"--enable-{bare}", f"--use-{bare}", f"--{bare}"):
                if made in flags:
                    continue
                said = hints.hint(made, flags).partition("did you mean ")[2].rstrip("?")
                contrary = made.startswith(("--no-", "--disable-"))
                assert not said or said.startswith("--no-") == contrary, (made, said)


def test_names_from_elsewhere_lead_to_flags_that_exist():
    flags = {flag for command in commands() for flag in parser_of(command)._option_string_actions}
    for name, answers in hints.ELSEWHERE.items():
        assert name.startswith("--") and "_" not in name
        assert any(answer in flags for answer in answers), name
