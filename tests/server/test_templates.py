"""Chat templates that come with the model: whatever they do, a request gets one line and the others get answers."""

import sys
import threading
from pathlib import Path

import pytest

from llamacy.text import jinja
from tests.generate.fakes import FakeModel
from tests.server.service import ask, error_of, events, post, serving, wait_until

KEY = "tokenizer.chat_template"
MESSAGES = [{"role": "user", "content": "hi"}]
CHATS = ("/v1/chat/completions", "/apply-template")


@pytest.fixture(scope="module")
def service():
    with serving() as running:
        yield running


@pytest.fixture
def template(service, monkeypatch):
    """Return a function that gives the served model another template."""
    return lambda value: monkeypatch.setitem(service.model.metadata, KEY, value)


@pytest.mark.parametrize("path", CHATS)
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (["a", "b"], f"{KEY}: wanted a chat template as text, got ['a', 'b']; name one with --chat-template"),
        (5, f"{KEY}: wanted a chat template as text, got 5; name one with --chat-template"),
        (False, f"{KEY}: wanted a chat template as text, got False; name one with --chat-template"),
        ("{% break %}", f"the chat template {KEY} is not valid: 'break' outside loop"),
        ("{{ " + "(" * 2000 + ")" * 2000 + " }}", f"the chat template {KEY} is not valid: it is nested too deeply"),
        ("{{ 'x' * 10 ** 9 }}", f"the chat template {KEY} takes more than 256 MB of memory on this conversation"),
        ("{{ raise_exception('\x1b[1m') }}", f"the chat template {KEY} refuses this conversation: \\x1b[1m"),
    ],
    ids=["list", "number", "false", "break", "nested", "huge", "escape"],
)
def test_a_template_that_does_not_work_is_400_and_named(service, template, capfd, path, value, message):
    template(value)
    assert error_of(service, "POST", path, {"messages": MESSAGES}) == (400, message)
    assert error_of(service, "POST", path, {"messages": MESSAGES, "stream": True}) == (400, message)
    # Nothing else is in need of the template.
    assert ask(service, "GET", "/props")[1]["chat_template"] == (value if isinstance(value, str) else "")
    assert post(service, "/completion", prompt="x", n_predict=1)["stop"]
    assert capfd.readouterr().err == ""


def test_others_are_answered_while_a_template_runs(service, template, monkeypatch):
    jinja._pool.close()
    processes, init = [], jinja._Process.__init__

    def noted(self):
        init(self)
        processes.append(self)

    monkeypatch.setattr(jinja._Process, "__init__", noted)
    monkeypatch.setattr(jinja, "SECONDS", 300)
    template("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}")
    answers = []
    waiting = threading.Thread(
        target=lambda: answers.append(error_of(service, "POST", CHATS[0], {"messages": MESSAGES})), daemon=True
    )
    waiting.start()
    wait_until(lambda: processes, 20)
    assert ask(service, "GET", "/health")[0] == 200
    assert post(service, "/completion", prompt="x", n_predict=5)["stop"]
    template("{{ messages[0].content }}")
    assert events(service, CHATS[0], messages=MESSAGES, max_tokens=3)[-1] == "[DONE]"
    assert not answers
    processes[0]._process.kill()
    waiting.join(20)
    assert answers == [(400, f"the chat template {KEY} ends its process on this conversation: signal 9")]


def test_without_jinja2_it_is_the_server_s_failure(capfd, monkeypatch):
    jinja._pool.close()
    monkeypatch.setattr(sys, "path", [path for path in sys.path if not (Path(path) / "jinja2").exists()])
    model = FakeModel()
    model.metadata[KEY] = "{{ messages }}"
    with serving(model) as running:
        status, message = error_of(running, "POST", CHATS[0], {"messages": MESSAGES})
        assert status == 500 and "needs jinja2" in message and "pip install" in message
        assert capfd.readouterr().err.count("\n") == 1
