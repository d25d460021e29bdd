"""`main`'s chat: history, templates, what is typed, and what happens when it grows too long."""

import io
import sys
from types import SimpleNamespace

import pytest

from llamacy.cli import conversation, main
from llamacy.cli.conversation import Conversation, messages_of, template_of
from llamacy.cli.run import run
from llamacy.errors import LlamacyError
from tests.generate.fakes import FakeModel
from tests.generate.test_main_cli import Stdout


def flags(*words):
    return main.build_parser().parse_args(list(words))


def chatting(*words, n_ctx=4096, replies=None, model=None):
    """Return (a Conversation in chatml, the list of prompts it asks about as text)."""
    model, asked = model or FakeModel(), []

    def answer(ids):
        asked.append(model.tokenizer.decode(ids))
        return "reply"

    args = flags("--chat-template", "chatml", *words)
    return Conversation(args, model, SimpleNamespace(n_ctx=n_ctx), answer), asked


def turn(role, text):
    return f"<|im_start|>{role}\n{text}<|im_end|>\n"


OPEN = "<|im_start|>assistant\n"


def test_the_history_is_kept_and_cleared():
    talk, asked = chatting("-sys", "Be brief.")
    talk.say("one")
    talk.say("two")
    talk.clear()
    talk.say("three")
    system = turn("system", "Be brief.")
    assert asked == [
        system + turn("user", "one") + OPEN,
        system + turn("user", "one") + turn("assistant", "reply") + turn("user", "two") + OPEN,
        system + turn("user", "three") + OPEN,
    ]


def test_a_long_conversation_forgets_its_beginning_and_says_so(capsys):
    talk, asked = chatting("-sys", "S", n_ctx=250)
    for i in range(6):
        talk.say(f"question {i}")
    assert asked[-1].startswith(turn("system", "S")) and "question 5" in asked[-1] and "question 0" not in asked[-1]
    assert len(asked[-1]) < 250
    assert "forgot the oldest 1 of the questions and answers: the context is 250 tokens" in capsys.readouterr().err


def test_a_message_that_fails_is_not_kept():
    talk, asked = chatting()

    def failing(ids):
        raise LlamacyError("too long")

    answer, talk._answer = talk._answer, failing
    with pytest.raises(LlamacyError):
        talk.say("one")
    talk._answer = answer
    talk.say("two")
    assert asked == [turn("user", "two") + OPEN]


@pytest.mark.parametrize(
    ("words", "shapes", "template"),
    [
        (["-ins"], [], "instruct"),
        (["-ins"], [{}], "instruct"),
        (["-ins"], [{"llamacy.prompt_template": "instruct"}], "instruct"),
        (["-ins"], [{"llamacy.prompt_template": "chat"}], "the model's"),
        (["-ins"], [{"llamacy.prompt_template": "chat"}, {}], "instruct"),
        (["-cnv"], [{"llamacy.prompt_template": "instruct"}], "the model's"),
        (["-ins", "--chat-template", "alpaca"], [], "alpaca"),
        (["-cnv", "--chat-template", "llama2"], [], "llama2"),
    ],
)
def test_the_template(words, shapes, template):
    model = FakeModel()
    model.metadata["tokenizer.chat_template"] = "the model's"
    model.adapters = [(SimpleNamespace(metadata=metadata), 1.0) for metadata in shapes]
    found, stops = template_of(flags(*words), model)
    assert found == template and bool(stops) == (template == "instruct")


def test_what_is_typed():
    assert list(messages_of(["one", "", "  two ", "a\\", "b\\", "c", "\\", "", "end\\"])) == [
        "one",
        "two",
        "a\nb\nc",
        "end",
    ]


@pytest.fixture
def chat(monkeypatch, capfd):
    """Return a function: (arguments, stdin) -> (exit code, stdout, stderr)."""

    def call(*argv, stdin="", **model):
        monkeypatch.setattr(main, "open_model_from", lambda args: FakeModel(**model))
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
        monkeypatch.setattr(sys, "stdout", Stdout())
        return run(main.main, list(argv)), sys.stdout.text, capfd.readouterr().err

    return call


def test_a_chat_from_a_pipe_ends_with_its_input(chat):
    words = ["-cnv", "--chat-template", "chatml", "--temp", "0", "-n", "8"]
    code, both, _ = chat(*words, stdin="first\nsecond\n")
    assert code == 0 and both.count("\n") == 2 and len(both) == 18
    assert chat(*words, stdin="first\n/exit\nsecond\n")[1] == both[:9]
    # --prompt is the first message.
    assert chat(*words, "-p", "first", stdin="second\n")[1] == both
    # What was said before matters, unless it is cleared.
    cleared = chat(*words, stdin="other\n/clear\nfirst\n")[1]
    assert cleared[9:] == both[:9] != both[9:]


def test_the_cache_keeps_the_conversation(chat):
    more = {"answer": b"abcdefg", "prompt_length": 1 + len(turn("user", "hello there") + OPEN)}
    _, _, err = chat("-cnv", "--chat-template", "chatml", "-n", "4", stdin="hello there\nand more\n", **more)
    # Of the first answer's four tokens only the last was not in the cache.
    new = 1 + len("<|im_end|>\n" + turn("user", "and more") + OPEN)
    assert f"prompt: {new} tokens" in err


def test_instruct_with_a_prompt_answers_once(chat):
    text = "### Instruction:\nhi\n### Response:\n"
    code, out, _ = chat("-ins", "-p", "hi", answer=b"yes\n### Instruction:\nno", prompt_length=1 + len(text))
    assert (code, out) == (0, text + "yes\n")
    _, out, _ = chat("-ins", "-p", "hi", "--no-display-prompt", answer=b"yes", prompt_length=1 + len(text))
    assert out == "yes\n"


def test_a_message_too_long_for_the_context_is_one_line(chat):
    code, out, err = chat("-cnv", "--chat-template", "chatml", "-c", "64", stdin="x" * 100)
    assert (code, out) == (1, "") and "wanted fewer than 64 tokens" in err and err.count("\n") == 1


def test_an_unknown_template_is_one_line(chat):
    code, _, err = chat("--chat-template", "nonsense", stdin="hi")
    assert code == 1 and "chat template 'nonsense': no such file, nor one of" in err and err.count("\n") == 1


@pytest.mark.parametrize("words", [["-cnv"], ["-ins", "-p", "hi"]])
def test_a_template_that_takes_too_much_is_one_line(chat, tmp_path, words):
    path = tmp_path / "greedy.jinja"
    path.write_text("{{ 'x' * 10 ** 10 }}")
    code, out, err = chat(*words, "--chat-template", str(path), stdin="hi")
    assert (code, out) == (1, "") and f"{path} takes more than 256 MB of memory" in err and err.count("\n") == 1


def test_ctrl_c_ends_the_answer_and_not_the_conversation(chat, monkeypatch):
    from llamacy.generate.engine import Engine

    run_, calls = Engine.run, []

    def interrupted(self, request):
        calls.append(1)
        if len(calls) == 1:
            self.submit(request)
            for _ in range(3):
                self.step()
            raise KeyboardInterrupt
        return run_(self, request)

    monkeypatch.setattr(Engine, "run", interrupted)
    words = ["-cnv", "--chat-template", "chatml", "-n", "8", "--ignore-eos", "--temp", "0"]
    code, out, _ = chat(*words, stdin="one\ntwo\n")
    first, second = out.splitlines()
    assert code == 0 and len(first) == 3 and len(second) == 8


def test_the_terminal_prompt(monkeypatch, capsys):
    typed = iter(["one", "two"])

    def fake_input(prompt):
        try:
            return next(typed)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", fake_input)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: True))
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(isatty=lambda: True))
    assert list(conversation.lines()) == ["one", "two"]


THINKING = (
    "{% for m in messages %}[{{ m.role }}]{% if m.reasoning_content %}({{ m.reasoning_content }}){% endif %}"
    "{{ m.content }}{% endfor %}{% if add_generation_prompt %}[assistant]{{ opening }}{% endif %}{# </think> #}"
)


@pytest.mark.parametrize(
    ("words", "reply", "kept"),
    [
        ([], "<think>\nhm\n</think>\n\nYes.", "(hm)Yes."),
        (["--reasoning-format", "none"], "<think>hm</think>Yes.", "<think>hm</think>Yes."),
        (["--chat-template-kwargs", '{"opening": "<think>"}'], "hm\n</think>Yes.", "(hm)Yes."),
        ([], "Yes.", "Yes."),
        ([], "Yes <think> no", "Yes <think> no"),
    ],
    ids=["apart", "none", "opened by the prompt", "without", "in the middle"],
)
def test_thoughts_reach_the_next_prompt_apart(tmp_path, words, reply, kept):
    (tmp_path / "t.jinja").write_text(THINKING)
    model, asked = FakeModel(), []

    def answer(ids):
        asked.append(model.tokenizer.decode(ids, special=True))
        return reply

    args = flags("--chat-template", str(tmp_path / "t.jinja"), *words)
    talk = Conversation(args, model, SimpleNamespace(n_ctx=4096), answer)
    talk.say("one")
    talk.say("two")
    opening = "<think>" if "--chat-template-kwargs" in words else ""
    assert asked[1].removeprefix("<s>").strip() == f"[user]one[assistant]{kept}[user]two[assistant]{opening}"
