"""What begins with / in main's chat: saving, loading, answering again, adapters."""

import json

import pytest

from llamacy.cli import main
from llamacy.cli.conversation import Conversation
from llamacy.cli.talk_commands import COMMANDS, Leave, run_command
from llamacy.errors import LlamacyError
from llamacy.generate.engine import Engine
from tests.generate.fakes import FakeModel


@pytest.fixture
def talk():
    model, n = FakeModel(adapters=1), iter(range(100))
    args = main.build_parser().parse_args(["--chat-template", "chatml", "-sys", "S"])
    return Conversation(args, model, Engine(model, n_ctx=2000), lambda ids: f"reply {next(n)}")


def contents(talk):
    return [message["content"] for message in talk.messages]


def test_save_and_load(talk, tmp_path):
    talk.say("one")
    path = tmp_path / "talk.jsonl"
    assert run_command(talk, f"/save {path}") == (True, f"3 messages are in {path}")
    assert json.loads(path.read_text())["messages"] == talk.messages
    talk.say("two")
    assert run_command(talk, f"/load {path}") == (True, "3 messages")
    assert contents(talk) == ["S", "one", "reply 0"]
    path.write_text('{"messages": [{"role": "pirate", "content": "x"}]}')
    for wrong in (path, tmp_path / "none", ""):
        with pytest.raises(LlamacyError, match="^/load"):
            run_command(talk, f"/load {wrong}")
    assert contents(talk) == ["S", "one", "reply 0"]


def test_answering_again(talk):
    with pytest.raises(LlamacyError, match="no answer yet"):
        run_command(talk, "/regen")
    talk.say("one")
    talk.say("two")
    run_command(talk, "/regen")
    assert contents(talk) == ["S", "one", "reply 0", "two", "reply 2"]

    def failing(ids):
        raise KeyboardInterrupt

    talk._answer = failing
    with pytest.raises(KeyboardInterrupt):
        run_command(talk, "/regen")
    assert contents(talk) == ["S", "one", "reply 0", "two", "reply 2"]


def test_system_and_clear(talk):
    talk.say("one")
    run_command(talk, "/system Be brief.")
    assert contents(talk) == ["Be brief.", "one", "reply 0"]
    run_command(talk, "/clear")
    assert contents(talk) == ["Be brief."]
    run_command(talk, "/system")
    assert contents(talk) == []


def test_adapters(talk, monkeypatch):
    assert run_command(talk, "/lora")[1] == "0: a0.gguf x 1"
    assert run_command(talk, "/lora 0 0.5")[1] == "0: a0.gguf x 0.5" and talk.engine.lora == (0.5,)
    with pytest.raises(LlamacyError, match="no such file"):
        run_command(talk, "/lora nothing.gguf")


def test_words_that_are_no_commands_are_messages(talk):
    for message in ("/etc/passwd is what?", "/unknown", "exit", "/exit\nmore"):
        assert run_command(talk, message) == (False, None)
    with pytest.raises(Leave):
        run_command(talk, "/exit")
    assert all(word in run_command(talk, "/help")[1] for word in COMMANDS)
