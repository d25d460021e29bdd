"""OpenAI's endpoints: shapes of answers and chunks, n, logprobs, usage, templates; and the openai client itself."""

import json

import pytest

from tests.generate.fakes import FakeModel
from tests.server.service import ask, error_of, events, post, serving

HELLO = [{"role": "user", "content": "hi"}]
# chatml, the built-in format for models without a template: BOS and 55 bytes for HELLO.
PROMPT = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture(scope="module")
def service():
    with serving(chat_template="chatml") as running:
        yield running


@pytest.fixture(scope="module")
def hello():
    model = FakeModel(answer="héllo 日本".encode(), prompt_length=1 + len(PROMPT))
    with serving(model, chat_template="chatml") as running:
        yield running


def chat(service, **data):
    return post(service, "/v1/chat/completions", **{"messages": HELLO, **data})


def test_a_chat_completion(hello):
    answer = chat(hello, seed=1)
    assert answer.pop("id").startswith("chatcmpl-") and answer.pop("created") > 1.7e9
    assert answer.pop("timings")["predicted_n"] == 14
    assert answer == {
        "object": "chat.completion",
        "model": "fake",
        "system_fingerprint": None,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "héllo 日本", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {
            "prompt_tokens": 1 + len(PROMPT),
            "completion_tokens": 14,
            "total_tokens": 1 + len(PROMPT) + 14,
            "prompt_tokens_details": {"cached_tokens": 0},
        },
    }


def test_finish_reasons_and_limits(hello):
    for limit in ("max_tokens", "max_completion_tokens", "n_predict"):
        answer = chat(hello, **{limit: 4})
        assert answer["choices"][0]["message"]["content"] == "hél" and answer["usage"]["completion_tokens"] == 4
        assert answer["choices"][0]["finish_reason"] == "length"
    answer = chat(hello, stop="o")["choices"][0]
    assert (answer["message"]["content"], answer["finish_reason"]) == ("héll", "stop")
    assert chat(hello, stop=["zz", "日"])["choices"][0]["message"]["content"] == "héllo "


def test_chunks(hello):
    parts = events(hello, "/v1/chat/completions", messages=HELLO, stream_options={"include_usage": True})
    assert parts[-1] == "[DONE]"
    usage, chunks = parts[-2], parts[:-2]
    assert usage["choices"] == [] and usage["usage"]["completion_tokens"] == 14
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in parts[:-1]}) == 1 and all(chunk["usage"] is None for chunk in chunks)
    first, last = chunks[0]["choices"][0], chunks[-1]["choices"][0]
    assert first == {
        "index": 0,
        "delta": {"role": "assistant", "content": ""},
        "logprobs": None,
        "finish_reason": None,
    }
    assert last == {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}
    deltas = [chunk["choices"][0]["delta"].get("content", "") for chunk in chunks]
    assert "".join(deltas) == "héllo 日本" and "日" in deltas
    assert all(chunk["choices"][0]["finish_reason"] is None for chunk in chunks[:-1])
    parts = events(hello, "/v1/chat/completions", messages=HELLO)
    assert all("usage" not in part for part in parts[:-1])


def test_logprobs(hello):
    entries = chat(hello, logprobs=True, top_logprobs=3)["choices"][0]["logprobs"]["content"]
    assert len(entries) == 13 and all(len(entry["top_logprobs"]) == 3 for entry in entries)
    assert entries[0]["token"] == "h" and entries[0]["bytes"] == [104] and entries[0]["logprob"] <= 0
    assert all(entry["top_logprobs"] == [] for entry in chat(hello, logprobs=True)["choices"][0]["logprobs"]["content"])
    parts = events(hello, "/v1/chat/completions", messages=HELLO, logprobs=True, top_logprobs=1)
    flat = [
        entry
        for part in parts[:-1]
        for choice in part["choices"]
        for entry in (choice["logprobs"] or {"content": []})["content"]
    ]
    assert [entry["bytes"] for entry in flat] == [entry["bytes"] for entry in entries]


def test_several_choices(service):
    answer = chat(service, n=3, max_tokens=12, seed=5)
    texts = [choice["message"]["content"] for choice in answer["choices"]]
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2] and len(set(texts)) == 3
    assert answer["usage"]["prompt_tokens"] == 1 + len(PROMPT) and answer["usage"]["completion_tokens"] == 36
    assert texts[0] == chat(service, max_tokens=12, seed=5)["choices"][0]["message"]["content"]
    assert texts == [choice["message"]["content"] for choice in chat(service, n=3, max_tokens=12, seed=5)["choices"]]
    parts = events(service, "/v1/chat/completions", messages=HELLO, n=3, max_tokens=12, seed=5)[:-1]
    streamed = ["", "", ""]
    for part in parts:
        streamed[part["choices"][0]["index"]] += part["choices"][0]["delta"].get("content", "")
    assert streamed == texts


def test_messages_become_the_template_s_text(service):
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": None},
        {"role": "user", "content": "日本"},
    ]
    assert post(service, "/apply-template", messages=messages) == {
        "prompt": "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\na\nb<|im_end|>\n"
        "<|im_start|>assistant\n<|im_end|>\n<|im_start|>user\n日本<|im_end|>\n<|im_start|>assistant\n"
    }


def test_the_model_s_own_template_and_a_template_that_refuses():
    model = FakeModel(answer=b"yes", prompt_length=7)
    model.metadata["tokenizer.chat_template"] = (
        "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}"
        "[{{ m.content }}]{% endfor %}ok"
    )
    with serving(model) as running:
        assert chat(running)["choices"][0]["message"]["content"] == "yes"
        assert ask(running, "GET", "/props")[1]["chat_template"].startswith("{% for")
        data = {"messages": [{"role": "tool", "content": "x"}]}
        assert error_of(running, "POST", "/v1/chat/completions", data) == (
            400,
            "the chat template tokenizer.chat_template refuses this conversation: no tools",
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"messages": []}, "messages: wanted at least one message, got none"),
        ({"messages": None}, "messages: wanted a list, got null"),
        ({"messages": "hi"}, "messages: wanted a list, got 'hi'"),
        ({"messages": ["hi"]}, "messages[0]: wanted an object, got 'hi'"),
        ({"messages": [{"content": "hi"}]}, "messages[0].role: wanted a string, got null"),
        ({"messages": [{"role": "user"}]}, "messages[0].content: wanted a string, got null"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content: wanted a string, got 5"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages[0].content[0].type: wanted 'text' or 'input_text'",
        ),
        ({"messages": [{"role": "pirate", "content": "hi"}]}, "chat format chatml: wanted messages of system, user"),
        ({"n": 0}, "n: wanted a whole number at least 1 and at most 64, got 0"),
        ({"max_tokens": "many"}, "max_tokens: wanted a whole number"),
        ({"max_completion_tokens": -3}, "max_completion_tokens: wanted a whole number at least -1"),
        ({"logprobs": 1}, "logprobs: wanted true or false, got 1"),
        (
            {"logprobs": True, "top_logprobs": 21},
            "top_logprobs: wanted a whole number at least 0 and at most 20, got 21",
        ),
        ({"temperature": "hot"}, "temperature: wanted a number, got 'hot'"),
        ({"tools": [{"type": "function"}]}, "tools[0].function: wanted an object, got null"),
        ({"stream_options": True}, "stream_options: wanted an object, got true"),
        (
            {"stream": True, "stream_options": {"include_usage": 1}},
            "stream_options.include_usage: wanted true or false",
        ),
        ({"messages": [{"role": "user", "content": "x" * 300}]}, "prompt: wanted fewer than 256 tokens"),
    ],
)
def test_wrong_chats(service, change, message):
    status, got = error_of(service, "POST", "/v1/chat/completions", {"messages": HELLO, **change})
    assert status == 400 and got.startswith(message)


def test_a_text_completion(service):
    answer = post(service, "/v1/completions", prompt="abc", seed=1)
    assert answer["object"] == "text_completion" and answer["id"].startswith("cmpl-")
    choice = answer["choices"][0]
    assert set(choice) == {"index", "text", "logprobs", "finish_reason"} and choice["finish_reason"] == "length"
    # OpenAI's default.
    assert answer["usage"]["completion_tokens"] == 16 and len(choice["text"]) > 0
    native = post(service, "/completion", prompt="abc", seed=1, n_predict=16)
    assert choice["text"] == native["content"]


def test_text_completions_of_several_prompts(service):
    answer = post(service, "/v1/completions", prompt=["abc", "def"], n=2, max_tokens=5, seed=1)
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    single = post(service, "/v1/completions", prompt="def", max_tokens=5, seed=1)
    assert answer["choices"][2]["text"] == single["choices"][0]["text"]
    assert answer["usage"]["prompt_tokens"] == 8 and answer["usage"]["completion_tokens"] == 20


def test_text_logprobs_and_echo(service):
    answer = post(service, "/v1/completions", prompt="abc", max_tokens=4, logprobs=2, temperature=0)
    logprobs = answer["choices"][0]["logprobs"]
    assert "".join(logprobs["tokens"]) == answer["choices"][0]["text"]
    assert set(logprobs) == {"tokens", "token_logprobs", "top_logprobs", "text_offset"}
    assert all(len(top) == 2 for top in logprobs["top_logprobs"]) and logprobs["text_offset"][0] == 0
    echoed = post(service, "/v1/completions", prompt="abc", max_tokens=4, echo=True, temperature=0)
    assert echoed["choices"][0]["text"] == "abc" + answer["choices"][0]["text"]
    parts = events(service, "/v1/completions", prompt="abc", max_tokens=4, echo=True, temperature=0)
    assert "".join(part["choices"][0]["text"] for part in parts[:-1]) == echoed["choices"][0]["text"]
    assert error_of(service, "POST", "/v1/completions", {"prompt": "a", "suffix": "b"})[1] == "suffix: not supported"
    assert error_of(service, "POST", "/v1/completions", {})[0] == 400


@pytest.mark.parametrize("path", ["/v1/models", "/models"])
def test_models(service, path):
    _, answer, _ = ask(service, "GET", path)
    assert answer["object"] == "list" and answer["data"][0]["id"] == "fake" and answer["data"][0]["object"] == "model"


def test_the_openai_client():
    openai = pytest.importorskip("openai")
    model = FakeModel(answer="héllo 日本".encode(), prompt_length=1 + len(PROMPT))
    with serving(model, chat_template="chatml", api_keys=("k",)) as running:
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{running.port}/v1", api_key="k", max_retries=0)
        answer = client.chat.completions.create(model="x", messages=HELLO, logprobs=True, top_logprobs=2)
        assert answer.choices[0].message.content == "héllo 日本" and answer.usage.total_tokens > 50
        assert answer.choices[0].logprobs.content[0].top_logprobs[0].token == "h"
        stream = client.chat.completions.create(
            model="x", messages=HELLO, stream=True, stream_options={"include_usage": True}
        )
        chunks = list(stream)
        assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "héllo 日本"
        assert chunks[-1].usage.completion_tokens == 14
        assert client.completions.create(model="x", prompt="abc", max_tokens=3).choices[0].finish_reason in (
            "length",
            "stop",
        )
        assert [found.id for found in client.models.list()] == ["fake"]
        assert client.models.retrieve("fake").id == "fake"
        with pytest.raises(openai.NotFoundError, match="no such model: 'other'"):
            client.models.retrieve("other")
        with pytest.raises(openai.BadRequestError, match="temperature: wanted a number"):
            client.chat.completions.create(model="x", messages=HELLO, temperature="hot")
        with pytest.raises(openai.AuthenticationError):
            client.with_options(api_key="wrong").models.list()
        vector = client.embeddings.create(model="x", input="text").data[0].embedding
        assert sum(value * value for value in vector) == pytest.approx(1)


PERSON = {"properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer"}}, "required": ["name"]}


@pytest.mark.parametrize(
    ("path", "data"),
    [
        ("/v1/chat/completions", {"response_format": {"type": "json_object"}}),
        ("/v1/chat/completions", {"response_format": {"type": "json_object", "schema": PERSON}}),
        (
            "/v1/chat/completions",
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "p", "strict": True, "schema": PERSON},
                }
            },
        ),
        ("/completion", {"json_schema": PERSON}),
    ],
)
def test_answers_in_json(service, path, data):
    for seed in range(4):
        request = {"messages": HELLO, "prompt": "x", "n_predict": 150, "seed": seed, **data}
        answer = post(service, path, **request)
        choice = answer["choices"][0] if "choices" in answer else answer
        text = choice["message"]["content"] if "choices" in answer else choice["content"]
        assert text.startswith("{")
        if choice.get("finish_reason") == "stop" or choice.get("stop_type") == "eos":
            value = json.loads(text)
            assert isinstance(value, dict) and (
                "json_object" in str(data) and "schema" not in str(data) or value["name"]
            )
        else:
            assert answer.get("tokens_predicted", 150) == 150


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("json", "response_format: wanted an object, got 'json'"),
        ({"type": "xml"}, "response_format.type: wanted 'text' or 'json_object' or 'json_schema', got 'xml'"),
        ({}, "response_format.type: wanted"),
        ({"type": "json_schema"}, "response_format.json_schema: wanted an object, got null"),
        (
            {"type": "json_schema", "json_schema": {"schema": {"not": {"pattern": "x"}}}},
            "schema.not: 'pattern' is not supported in what must not hold",
        ),
    ],
)
def test_wrong_response_formats(service, value, message):
    data = {"messages": HELLO, "response_format": value}
    status, got = error_of(service, "POST", "/v1/chat/completions", data)
    assert status == 400 and got.startswith(message)
