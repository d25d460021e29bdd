"""What a server can be started with: endpoints open and closed, a prefix, what requests ask for, template values."""

import pytest

from llamacy.cli import server_flags
from llamacy.errors import LlamacyError, UsageError
from tests.cli.test_words import refusal
from tests.generate.fakes import EOS, PIECES, FakeModel
from tests.server.service import ask, error_of, events, post, serving

TEMPLATE = (
    "{{ messages[0].content }}{% if enable_thinking is defined %} thinking={{ enable_thinking }}{% endif %}"
    "{% if n %} n={{ n }}{% endif %}{% if reasoning_effort %} effort={{ reasoning_effort }}{% endif %}"
)


def parsed(*words):
    return server_flags.build_parser().parse_args(list(words))


def test_endpoints_that_are_closed_say_how_to_open_them():
    with serving(with_slots=False) as service:
        status, answer, _ = ask(service, "GET", "/slots")
        assert (status, answer["error"]["type"]) == (501, "not_supported_error")
        assert "Start it with `--slots`" in answer["error"]["message"]
        assert error_of(service, "POST", "/props", {})[0] == 501
        assert ask(service, "GET", "/props")[0] == 200
    with serving(with_props=True) as service:
        assert post(service, "/props") == {"success": True}
        assert error_of(service, "POST", "/props", {"n_ctx": 5}) == (400, "'n_ctx': no property that can be changed")
        assert error_of(service, "POST", "/props", [1])[0] == 400
        assert ask(service, "GET", "/slots")[0] == 200


def test_a_server_for_embeddings_makes_no_text():
    with serving(embeddings_only=True, embd_normalize=-1) as service:
        messages = [{"role": "user", "content": "x"}]
        for path, data in (
            ("/completion", {"prompt": "x"}),
            ("/v1/completions", {"prompt": "x", "stream": True}),
            ("/v1/chat/completions", {"messages": messages}),
        ):
            assert error_of(service, "POST", path, data) == (
                501, "This server does not support completions. Start it without `--embeddings`"
            )  # fmt: skip
        plain = post(service, "/embedding", content="hello")
        asked = ask(service, "POST", "/embedding", {"content": "hello", "embd_normalize": 2})[1]
        assert abs(sum(value * value for value in asked[0]["embedding"][0]) - 1) < 1e-6
        assert abs(sum(value * value for value in plain[0]["embedding"][0]) - 1) > 1e-3


def test_all_paths_begin_with_the_prefix():
    with serving(prefix="/llm/one", api_keys=("secret",)) as service:
        assert ask(service, "GET", "/llm/one/health")[:2] == (200, {"status": "ok"})
        assert ask(service, "GET", "/llm/one/")[0] == 200
        key = {"Authorization": "Bearer secret"}
        assert ask(service, "GET", "/llm/one/v1/models", headers=key)[0] == 200
        assert error_of(service, "GET", "/llm/one/v1/models")[0] == 401
        assert error_of(service, "GET", "/llm/one/nothing", headers=key)[0] == 404
        for path in ("/health", "/llm/onehealth", "/llm/one", "/", "/v1/models"):
            status, message = error_of(service, "GET", path, headers=key)
            assert status == 404 and "all begin with /llm/one/" in message
        answer = ask(service, "POST", "/llm/one/completion", {"prompt": "x", "n_predict": 1}, headers=key)
        assert answer[0] == 200


def test_what_requests_ask_for_that_do_not_say():
    defaults = {"n_predict": 3, "n_keep": 2, "stop": ("zz",), "cache_prompt": False}
    with serving(FakeModel(answer=b"hello zz", prompt_length=2), defaults=defaults) as service:
        for path in ("/completion", "/v1/completions"):
            answer = post(service, path, prompt="x")
            assert (answer.get("content") or answer["choices"][0]["text"]) == "hel"
        assert post(service, "/completion", prompt="x", n_predict=5)["content"] == "hello"
        assert post(service, "/completion", prompt="x", max_tokens=4, n_predict=None)["content"] == "hell"
        answer = post(service, "/completion", prompt="x", n_predict=20)
        assert (answer["content"], answer["stopping_word"]) == ("hello ", "zz")
        assert post(service, "/completion", prompt="x", n_predict=20, stop=["l"])["content"] == "he"
        assert answer["generation_settings"]["n_keep"] == 2
        assert post(service, "/completion", prompt="x")["timings"]["cache_n"] == 0
        assert post(service, "/completion", prompt="x", cache_prompt=True)["timings"]["cache_n"] == 1
        params = ask(service, "GET", "/props")[1]["default_generation_settings"]["params"]
        assert (params["n_predict"], params["stop"], params["temperature"]) == (3, ["zz"], 0.8)


def test_special_tokens_as_text(monkeypatch):
    monkeypatch.setitem(PIECES, EOS, b"</s>")
    for special, text in ((False, "hi"), (True, "hi</s>")):
        with serving(FakeModel(answer=b"hi", prompt_length=2), special=special) as service:
            assert post(service, "/completion", prompt="x")["content"] == text
            assert "".join(part["content"] for part in events(service, "/completion", prompt="x")) == text


def test_the_template_is_given_the_servers_names_and_the_requests():
    pytest.importorskip("jinja2")
    model = FakeModel()
    model.metadata["tokenizer.chat_template"] = TEMPLATE
    with serving(model, template_values={"enable_thinking": False, "n": 1}) as service:

        def written(**data):
            return post(service, "/apply-template", messages=[{"role": "user", "content": "hi"}], **data)["prompt"]

        assert written() == "hi thinking=False n=1"
        assert written(chat_template_kwargs={"n": 2}) == "hi thinking=False n=2"
        assert written(chat_template_kwargs={"enable_thinking": True, "n": 0}) == "hi thinking=True"
        assert written(reasoning_effort="high") == "hi thinking=False n=1 effort=high"
        thinking = {"enable_thinking": True}
        assert written(reasoning_effort="none", chat_template_kwargs=thinking) == "hi thinking=False n=1"
        assert written(chat_template_kwargs=None) == "hi thinking=False n=1"
        chat = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
        answer = post(service, "/v1/chat/completions", chat_template_kwargs={"n": 5}, **chat)
        assert answer["usage"]["prompt_tokens"] == 1 + len("hi thinking=False n=5")
        for value, message in (
            ([1], "chat_template_kwargs: wanted an object, got a list"),
            ({"messages": []}, "chat_template_kwargs.messages: is said by the conversation itself"),
            ({"bos_token": "x"}, "chat_template_kwargs.bos_token: is said by the conversation itself"),
        ):
            wrong = {**chat, "chat_template_kwargs": value}
            assert error_of(service, "POST", "/v1/chat/completions", wrong) == (400, message)
        assert error_of(service, "POST", "/apply-template", {**chat, "reasoning_effort": 3})[0] == 400


def test_flags_become_defaults_of_requests():
    names = {"n_predict", "n_keep", "stop", "cache_prompt"}
    assert not names & server_flags.defaults_of(parsed()).keys()
    line = "-n 5 --keep -1 -r a --stop - --no-cache-prompt"
    wanted = {"n_predict": 5, "n_keep": -1, "stop": ("a", "-"), "cache_prompt": False}
    given = server_flags.defaults_of(parsed(*line.split()))
    assert {name: given[name] for name in names} == wanted
    assert server_flags.defaults_of(parsed("--cache-prompt"))["cache_prompt"] is True


def test_keys_of_flags_and_files(tmp_path):
    (tmp_path / "keys").write_text("# mine\n\n one \ntwo\n")
    assert server_flags.read_keys(parsed("--api-key", "a,b", "--api-key", "-key")) == ("a", "b", "-key")
    assert server_flags.read_keys(parsed("--api-key-file", str(tmp_path / "keys"))) == ("one", "two")
    (tmp_path / "keys").write_text("# none\n")
    with pytest.raises(LlamacyError, match="wanted a key a line, got none"):
        server_flags.read_keys(parsed("--api-key-file", str(tmp_path / "keys")))
    for empty in ("", "a,", ","):
        with pytest.raises(UsageError, match="got an empty one"):
            server_flags.read_keys(parsed("--api-key", empty))


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("--api-prefix llm", "wanted a path such as /llm, got 'llm'"),
        ("--api-prefix /a//b", "wanted a path such as /llm, got '/a//b'"),
        ("-np 0", "wanted a whole number from 1 to 256, got '0'"),
        ("-np -2", "wanted a whole number from 1 to 256, got '-2'"),
        ("-n -2", "wanted a whole number from -1, got '-2'"),
        ("--chat-template-kwargs {\"messages\":1}", "messages is said by the conversation itself"),
    ],
)  # fmt: skip
def test_what_cannot_be(line, wanted, capsys):
    assert wanted in refusal(server_flags.build_parser(), line.split(), capsys)


def test_how_many_slots():
    assert [server_flags.slots_of(parsed(*words)) for words in ((), ("-np", "-1"), ("-np", "7"))] == [4, 4, 7]
