"""`main` as llama.cpp's tools are used: chats of one turn, texts by turns, templates and what they are given."""

from types import SimpleNamespace

import pytest

from llamacy.cli import main as command
from tests.cli.test_words import refusal
from tests.generate.test_conversation import OPEN, chat, turn  # noqa: F401  a fixture
from tests.generate.test_main_cli import main  # noqa: F401  a fixture

CHATML = ["--chat-template", "chatml"]


def length(text):
    """Return a prompt's tokens with the fake tokenizer: a BOS and a token per byte."""
    return 1 + len(text.encode())


def test_a_single_turn(chat):  # noqa: F811
    asked = turn("user", "hi") + OPEN
    more = {"answer": b"yes", "prompt_length": length(asked)}
    assert chat("-st", *CHATML, "-p", "hi", stdin="no\n", **more)[:2] == (0, "yes\n")
    assert chat("-st", *CHATML, stdin="hi\nno\n", **more)[:2] == (0, "yes\n")
    assert chat("-st", *CHATML, stdin="", **more)[:2] == (0, "")
    assert chat("-cnv", "-st", *CHATML, stdin="\n\nhi\nno\n", **more)[:2] == (0, "yes\n")


def test_no_conversation_continues_the_prompt(main):  # noqa: F811
    code, out, err = main("-no-cnv", "-p", "Hi", stdin=b"other")
    assert (code, out) == (0, "Hihello\n") and "warning" not in err
    code, out, err = main("-no-cnv", "-p", "Hi", "-sys", "Be brief.", *CHATML, "-st")
    assert (code, out) == (0, "Hihello\n")
    assert "warning: --chat-template, --system-prompt, --single-turn: without effect, for this is no chat" in err
    # the last of both wins
    assert command.mode_of(command.build_parser().parse_args(["-no-cnv", "-cnv"])) is command.converse


@pytest.mark.parametrize(
    ("line", "mode"),
    [
        ("", "complete"),
        ("-p x", "complete"),
        ("-no-cnv", "complete"),
        ("-no-cnv -sys x", "complete"),
        ("-no-cnv --in-prefix x", "complete"),
        ("-ins -p x", "complete"),
        ("-ins -f x", "complete"),
        ("-ins", "converse"),
        ("-i -p x", "converse"),
        ("-if", "converse"),
        ("-cnv", "converse"),
        ("-st -p x", "converse"),
        ("-sys x -p x", "converse"),
        ("--chat-template-file x", "converse"),
        ("--reasoning off", "converse"),
        ("-i -no-cnv", "talk_raw"),
        ("-if -no-cnv -p x", "talk_raw"),
        ("--in-prefix x", "talk_raw"),
        ("-cnv --in-suffix x", "talk_raw"),
        ("-i --in-prefix-bos", "talk_raw"),
    ],
)
def test_the_flags_say_what_is_done(line, mode):
    assert command.mode_of(command.build_parser().parse_args(line.split())).__name__ == mode


def test_a_system_message_from_a_file(chat, tmp_path):  # noqa: F811
    (tmp_path / "system.txt").write_bytes("\ufeffBe brief.\r\n".encode())
    asked = turn("system", "Be brief.") + turn("user", "hi") + OPEN
    more = {"answer": b"yes", "prompt_length": length(asked)}
    given = chat("-sysf", str(tmp_path / "system.txt"), *CHATML, stdin="hi", **more)
    assert given[:2] == (0, "yes\n") == chat("-sys", "Be brief.", *CHATML, stdin="hi", **more)[:2]
    code, _, err = chat("-sysf", "x", "-sys", "y", stdin="hi")
    assert code == 2 and "--system-prompt and --system-prompt-file are both given: name one" in err


def test_a_template_from_a_file_is_given_names(chat, tmp_path, monkeypatch):  # noqa: F811
    pytest.importorskip("jinja2")
    monkeypatch.chdir(tmp_path)
    source = "{{ messages[0].content }}{% if enable_thinking is defined %} {{ enable_thinking }}{% endif %} {{ n }}"
    (tmp_path / "chatml").write_text(source)  # the name of a built-in format, but a file
    for words, text in (
        (["--chat-template-kwargs", '{"n": 3}'], "hi 3"),
        (["--chat-template-kwargs", '{"n": [1], "enable_thinking": true}'], "hi True [1]"),
        (["--reasoning", "off"], "hi False "),
        (["-rea", "on", "--chat-template-kwargs", '{"enable_thinking": false}'], "hi True "),
        (["--reasoning", "auto"], "hi "),
        (["--reasoning-budget", "0"], "hi False "),
        (["--reasoning-effort", "low", "--reasoning-format", "none"], "hi "),
    ):
        more = {"answer": b"yes", "prompt_length": length(text)}
        assert chat("--chat-template-file", "chatml", *words, stdin="hi", **more)[:2] == (0, "yes\n"), words
        # -ins with a prompt shows what was asked
        shown = chat("-ins", "-p", "hi", "--chat-template-file", "chatml", *words, **more)
        assert shown[:2] == (0, f"{text}yes\n"), words


def test_names_for_a_format_without_use_for_them_are_told(chat):  # noqa: F811
    _, _, err = chat(*CHATML, "--reasoning", "off", "--reasoning-effort", "low", "-n", "1", stdin="hi")
    told = "the built-in template chatml takes nothing but messages: enable_thinking, reasoning_effort without effect"
    assert told in err
    assert "warning" not in chat(*CHATML, "--reasoning-effort", "default", "-n", "1", stdin="hi")[2]


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("--chat-template-kwargs [1]", "wanted a JSON object, got '[1]'"),
        ("--chat-template-kwargs {a}", "wanted a JSON object, got '{a}'"),
        ("--reasoning maybe", "wanted on, off or auto, got 'maybe'"),
        ("--reasoning-budget 5", "wanted a whole number from -1 to 0, got '5'"),
        ("--reasoning-format deepseek", "invalid choice: 'deepseek'"),
    ],
)
def test_wrong_values_for_templates(line, wanted, capsys):
    assert wanted in refusal(command.build_parser(), line.split(), capsys)


def test_both_templates_are_too_many(chat):  # noqa: F811
    code, _, err = chat(*CHATML, "--chat-template-file", "x", stdin="hi")
    assert code == 2 and "--chat-template and --chat-template-file are both given" in err and err.count("\n") == 1


def test_messages_of_several_lines(chat):  # noqa: F811
    asked = turn("user", "one\ntwo") + OPEN
    more = {"answer": b"yes", "prompt_length": length(asked)}
    assert chat("-cnv", "-mli", *CHATML, stdin="one\ntwo\\\n", **more)[:2] == (0, "yes\n")


def test_until_the_context_is_full(main):  # noqa: F811
    more = ("-p", "Hi", "--ignore-eos")
    # -1 makes room for a usual text only, -2 takes the model's whole context; nothing is dropped then
    code, out, err = main(*more, "-n", "-2", "--context-shift", answer=b"x" * 99, n_ctx_train=50)
    assert (code, out) == (0, "Hi" + "x" * 48 + "\n") and "generation: 48 tokens" in err
    assert main(*more, "-n", "-2", "-c", "20", answer=b"x" * 99)[1] == "Hi" + "x" * 18 + "\n"
    assert main("-p", "Hi", "-n", "-2")[1] == "Hihello\n"
    for n_predict, n_ctx in (("-1", 3 + 4096), ("-2", 5000)):
        args = command.build_parser().parse_args(["-n", n_predict])
        assert (
            command.session_context(
                args, SimpleNamespace(config=SimpleNamespace(n_ctx_train=5000, n_ctx_plain=5000)), 3
            )
            == n_ctx
        )


def test_special_tokens_are_shown(main, monkeypatch):  # noqa: F811
    from tests.generate import fakes

    monkeypatch.setitem(fakes.PIECES, fakes.EOS, b"</s>")
    assert main("-p", "Hi")[1] == "Hihello\n"
    assert main("-p", "Hi", "-sp")[1] == "Hihello</s>\n"


def test_verbose_says_what_is_used(main):  # noqa: F811
    _, out, err = main("-p", "Hi", "-v", "--temp", "0.25")
    assert out == "Hihello\n"
    for part in ("model: fake (fake.gguf)", "context: 131 tokens", "temperature=0.25", "72 -> 'H'"):
        assert part in err


@pytest.fixture
def scripted(chat, monkeypatch):  # noqa: F811
    """Return a function: (flags, stdin, answers) -> (stdout, the prompts that were asked as text)."""
    from llamacy.generate.engine import Engine
    from llamacy.generate.request import Result, Token

    def call(*words, stdin, answers):
        asked, left = [], list(answers)

        def run(engine, request):
            asked.append("".join(chr(token) if token < 256 else f"<{token}>" for token in request.prompt))
            for char in left.pop(0):
                if request.on_token(Token(257 if char == "$" else ord(char), char == "$")):
                    return Result("word")
            return Result("eos" if char == "$" else "limit")

        monkeypatch.setattr(Engine, "run", run)
        code, out, err = chat(*words, stdin=stdin)
        assert code == 0, err
        return out, asked

    return call


def test_a_text_by_turns(scripted):
    out, asked = scripted(
        "-i", "-r", "User:", "--in-prefix", " ", "--in-suffix", "\\nBob:", "-e", "-p", "Bob: Hello.\\nUser:",
        stdin="Who?\nWhy?\n", answers=[" It is I.\nUser:", " So.\nUser:", "!\nUser:"],
    )  # fmt: skip
    prompt = "Bob: Hello.\nUser:"
    # the model begins
    turns = [prompt, " It is I.\nUser: Who?\nBob:", " So.\nUser: Why?\nBob:"]
    assert asked == ["<256>" + "".join(turns[: i + 1]) for i in range(3)]
    assert out == f"{prompt} It is I.\nUser: \nBob: So.\nUser: \nBob:!\nUser: "


def test_the_user_may_begin(scripted):
    words = ["-if", "-r", "User:", "--in-prefix", " ", "--in-suffix", "\nBob:", "-p", "Bob: Hello.\nUser:"]
    out, asked = scripted(*words, stdin="Who?\nWhy?\n", answers=[" I.\nUser:", " So$"])
    assert asked == [
        "<256>Bob: Hello.\nUser: Who?\nBob:",
        "<256>Bob: Hello.\nUser: Who?\nBob: I.\nUser: Why?\nBob:",
    ]
    # an end of the text asks in the user's name
    assert out == "Bob: Hello.\nUser: \nBob: I.\nUser: \nBob: So\nUser: "


def test_a_bos_before_each_turn_and_one_turn_only(scripted):
    words = ["-no-cnv", "-i", "-st", "--in-prefix-bos", "--no-display-prompt"]
    out, asked = scripted(*words, stdin="a\nb\n", answers=["x$"])
    assert asked == ["<256><256>a"] and out == "x\n"


def test_a_text_by_turns_forgets_its_beginning(scripted, capfd):
    words = ["-no-cnv", "-i", "-c", "24", "--keep", "3"]
    out, asked = scripted(*words, stdin="0123456789\nabcdefghij\n", answers=["vw$", "yz$"])
    assert asked[0] == "<256>0123456789" and asked[1].startswith("<256>01") and asked[1].endswith("defghij")
    assert len(asked[1]) < 24 + 4
