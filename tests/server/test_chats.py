"""Chats beyond text: tools in the families' formats, thoughts, answers that go on, log-probabilities of prompts."""

import json

import numpy as np
import pytest

from tests.generate.fakes import BOS, FakeModel
from tests.server.service import ask, error_of, events, post, serving

USER = {"role": "user", "content": "weather?"}
KEY = "tokenizer.chat_template"
CITY = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 5}}, "required": ["city"]}
TOOL = {"type": "function", "function": {"name": "weather", "description": "of a city", "parameters": CITY}}
CLOCK = {"type": "function", "function": {"name": "clock", "parameters": {"type": "object", "properties": {}}}}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>'
JINJA = """{% for m in messages %}<{{ m.role }}>{{ m.content }}{% if m.tool_calls %}
{{ m.tool_calls | tojson }}{% endif %}{% endfor %}
{% if tools %}{{ tools | tojson }}{% endif %}{% if add_generation_prompt %}<assistant>{% endif %}"""
HERMES, THINKING = JINJA + "{# <tool_call> #}", JINJA + "{# <think> #}"
OPENED = JINJA.replace("<assistant>", "<assistant><think>\n")


@pytest.fixture(scope="module")
def service():
    with serving(FakeModel(), n_ctx=4096, n_slots=2) as running:
        yield running


@pytest.fixture
def says(service, monkeypatch):
    """Return a function: the model answers with a text to what it is asked, rendered by a template."""

    def set_answer(text, data, template="chatml"):
        monkeypatch.setitem(service.model.metadata, KEY, None)
        if template == "chatml":
            monkeypatch.setattr(service.app, "chat_template", "chatml")
        else:
            monkeypatch.setattr(service.app, "chat_template", None)
            monkeypatch.setitem(service.model.metadata, KEY, template)
        prompt = post(service, "/apply-template", **data)["prompt"]
        monkeypatch.setattr(service.model, "answer", text.encode())
        monkeypatch.setattr(service.model, "prompt_length", 1 + len(prompt.encode()))
        return prompt

    return set_answer


def chat(service, **data):
    return post(service, "/v1/chat/completions", **data)["choices"][0]


def streamed(service, **data):
    """Return (text, thoughts, calls, finish_reason) of a stream's chunks put together."""
    text, thought, calls, reason = "", "", [], None
    for part in events(service, "/v1/chat/completions", **data)[:-1]:
        (one,) = part["choices"]
        delta, reason = one["delta"], one["finish_reason"] or reason
        text, thought = text + (delta.get("content") or ""), thought + delta.get("reasoning_content", "")
        for call in delta.get("tool_calls", ()):
            if call["index"] == len(calls):
                assert call["type"] == "function" and call["id"] and call["function"]["name"]
                calls.append([call["function"]["name"], ""])
            calls[call["index"]][1] += call["function"]["arguments"]
    return text, thought, calls, reason


@pytest.mark.parametrize("template", ["chatml", HERMES])
def test_a_call_is_parsed_and_streamed(service, says, template):
    data = {"messages": [USER], "tools": [TOOL]}
    prompt = says("Let me see. " + CALL, data, template)
    assert '"weather"' in prompt and ("<tools>" in prompt) == (template == "chatml")
    choice = chat(service, **data)
    (call,) = choice["message"]["tool_calls"]
    assert choice["finish_reason"] == "tool_calls" and choice["message"]["content"] == "Let me see. "
    assert call["type"] == "function" and call["function"] == {"name": "weather", "arguments": '{"city": "Paris"}'}
    assert streamed(service, **data) == ("Let me see. ", "", [["weather", '{"city": "Paris"}']], "tool_calls")
    says(CALL, data, template)
    assert chat(service, **data)["message"]["content"] is None


def test_without_a_call_it_is_text(service, says):
    data = {"messages": [USER], "tools": [TOOL]}
    says("Sunny <b>!", data)
    choice = chat(service, **data)
    assert (choice["message"]["content"], choice["finish_reason"]) == ("Sunny <b>!", "stop")
    assert "tool_calls" not in choice["message"]
    data = {"messages": [USER], "tools": [TOOL], "tool_choice": "none"}
    assert "weather" not in says(CALL, data).replace("weather?", "")
    assert chat(service, **data)["message"]["content"] == CALL


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
@pytest.mark.parametrize("template", ["chatml", HERMES, JINJA + "{# <|python_tag|> #}", JINJA + "{# [TOOL_CALLS] #}",
                                      JINJA + "{# [TOOL_CALLS] [ARGS] #}"])  # fmt: skip
def test_a_call_that_must_come_follows_its_schema(service, says, choice, template):
    data = {"messages": [USER], "tools": [TOOL, CLOCK], "tool_choice": choice, "temperature": 1}
    says("what the model likes to say", data, template)
    for seed in range(4):
        one = chat(service, **data, seed=seed)
        (call,) = one["message"]["tool_calls"]
        arguments = json.loads(call["function"]["arguments"])
        assert one["finish_reason"] == "tool_calls" and one["message"]["content"] is None
        if call["function"]["name"] == "weather":
            assert set(arguments) == {"city"} and len(arguments["city"]) <= 5
        else:
            assert choice == "required" and call["function"]["name"] == "clock" and arguments == {}
        if "[TOOL_CALLS]" in template:
            assert len(call["id"]) == 9 and call["id"].isalnum()


def test_calls_that_may_come_follow_their_schemas_too(service, says):
    data = {"messages": [USER], "tools": [TOOL], "temperature": 0}
    says('<tool_call>\n{"name": "weather", "arguments": {"town": "Paris"}}\n</tool_call>', data)
    (call,) = chat(service, **data)["message"]["tool_calls"]
    assert set(json.loads(call["function"]["arguments"])) == {"city"}


def test_several_calls_where_they_are_asked_for(service, says):
    data = {"messages": [USER], "tools": [TOOL], "parallel_tool_calls": True}
    says(CALL + "\n" + CALL, data)
    assert len(chat(service, **data)["message"]["tool_calls"]) == 2
    says(CALL + "\n" + CALL, {**data, "parallel_tool_calls": False})
    assert len(chat(service, **{**data, "parallel_tool_calls": False})["message"]["tool_calls"]) == 1


def test_results_of_calls_go_into_the_prompt(service, says):
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
    messages = [
        USER,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": [{"type": "text", "text": "rain"}]},
    ]
    prompt = says("It rains.", {"messages": messages})
    assert '{"name": "weather", "arguments": {"city": "Oslo"}}' in prompt and "<tool_response>\nrain\n" in prompt
    assert chat(service, messages=messages)["message"]["content"] == "It rains."
    prompt = says("It rains.", {"messages": messages, "tools": [TOOL]}, HERMES)
    assert "<tool>rain" in prompt and '"arguments": {"city": "Oslo"}' in prompt


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tools": [{"type": "web_search"}]}, "tools[0].type: wanted 'function', got 'web_search'"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name: wanted letters"),
        ({"tool_choice": "required"}, "tool_choice: required wants tools, got none"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice: there is no"),
        ({"tools": [TOOL], "tool_choice": "maybe"}, "tool_choice: wanted 'none' or 'auto'"),
        ({"functions": [{}]}, "functions: not supported"),
        ({"structured_outputs": {"json": {}}}, "structured_outputs: not supported"),
        ({"guided_json": {}, "guided_regex": "a"}, "guided_regex: not supported"),
        ({"skip_special_tokens": False}, "skip_special_tokens: not supported"),
        ({"continue_final_message": True}, "continue_final_message: the last message is not the assistant's"),
        ({"messages": [USER, {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}]},
         "messages[1].tool_calls[0].function.arguments: wanted JSON"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs.messages: is said by the"),
    ],
)  # fmt: skip
def test_wrong_chats(service, says, change, message):
    says("x", {"messages": [USER]})
    status, got = error_of(service, "POST", "/v1/chat/completions", {"messages": [USER], **change})
    assert status == 400 and got.startswith(message)


def test_a_schema_that_cannot_be_followed_is_refused_only_where_it_must_be(service, says):
    odd = {
        "type": "function",
        "function": {"name": "f", "parameters": {"properties": {"a": {"not": {"multipleOf": 3}}}}},
    }
    data = {"messages": [USER], "tools": [odd]}
    says('<tool_call>{"name": "f", "arguments": {"a": 2}}</tool_call>', data)
    assert chat(service, **data)["message"]["tool_calls"][0]["function"]["arguments"] == '{"a": 2}'
    status, message = error_of(service, "POST", "/v1/chat/completions", {**data, "tool_choice": "required"})
    assert status == 400 and message.startswith("tools.f.parameters.a.not: 'multipleOf'")


@pytest.mark.parametrize(
    ("template", "answer"), [(THINKING, "<think>\nhm\n</think>\n\nYes."), (OPENED, "hm\n</think>\n\nYes.")]
)
def test_thoughts_are_apart(service, says, template, answer):
    data = {"messages": [USER]}
    says(answer, data, template)
    message = chat(service, **data)["message"]
    assert (message["reasoning_content"], message["content"]) == ("hm", "Yes.")
    assert streamed(service, **data) == ("Yes.", "hm", [], "stop")
    assert chat(service, **data, reasoning_format="none")["message"]["content"] == answer


def test_schemas_begin_behind_thoughts(service, says):
    data = {"messages": [USER], "response_format": {"type": "json_schema", "json_schema": {"schema": {"enum": [5]}}}}
    says("hm\n</think>\n\nYes.", data, OPENED)
    message = chat(service, **data)["message"]
    assert message["reasoning_content"] == "hm" and message["content"] == "5"


def test_an_answer_goes_on(service, says):
    begun = [USER, {"role": "assistant", "content": "It is "}]
    prompt = says("sunny", {"messages": begun})
    assert prompt.endswith("<|im_start|>assistant\nIt is ")
    assert chat(service, messages=begun)["message"]["content"] == "sunny"
    prompt = says("sunny", {"messages": begun, "continue_final_message": False})
    assert prompt.endswith("It is <|im_end|>\n<|im_start|>assistant\n")
    assert not says("", {"messages": [USER], "add_generation_prompt": False}).endswith("assistant\n")
    twice = [USER, *[{"role": "assistant", "content": "a"}] * 2]
    assert error_of(service, "POST", "/v1/chat/completions", {"messages": twice})[0] == 400


def test_template_values_and_parts(service, says):
    template = "{{ enable_thinking }}{{ messages[0].content }}"
    parts = [{"type": "text", "text": "a"}, {"type": "input_text", "text": "b"}, {"type": "refusal", "refusal": "c"}]
    data = {"messages": [{"role": "user", "content": parts}], "chat_template_kwargs": {"enable_thinking": False}}
    assert says("", data, template) == "Falsea\nb\nc"
    data = {"messages": [USER], "stream_options": {"include_usage": None}, "seed": -(10**30), "stream": True}
    says("hello", data)
    assert streamed(service, **data)[0] == "hello"


def test_logprobs_are_without_the_stop_string(service, says):
    data = {"messages": [USER], "stop": " wor", "logprobs": True}
    says("hello world", data)
    choice = chat(service, **data)
    assert "".join(one["token"] for one in choice["logprobs"]["content"]) == choice["message"]["content"] == "hello"
    found = [part["choices"][0] for part in events(service, "/v1/chat/completions", **data)[:-1]]
    tokens = [one["token"] for part in found if part["logprobs"] for one in part["logprobs"]["content"]]
    assert "".join(tokens) == "hello"
    data["stop"] = "lowe"  # begun, but never whole
    assert "".join(one["token"] for one in chat(service, **data)["logprobs"]["content"]) == "hello world"


def test_timings_and_usage_end_a_stream(service, says):
    data = {"messages": [USER], "stream_options": {"include_usage": True}}
    says("hello", data)
    parts = events(service, "/v1/chat/completions", **data)
    assert parts[-3]["timings"]["predicted_n"] == 6 and parts[-3]["choices"][0]["finish_reason"] == "stop"
    assert parts[-2]["usage"]["completion_tokens"] == 6


@pytest.mark.parametrize("prompt", ["hello", list(b"hello")])
def test_prompts_with_their_log_probabilities(prompt):
    """As lm-eval asks for them: each of the prompt's tokens after those before it, whatever is in the cache."""
    model = FakeModel()
    with serving(model, batch_size=8) as running:
        for stream in (False, True):
            data = {"prompt": prompt, "max_tokens": 0 if stream else 2, "echo": True, "logprobs": 3, "temperature": 0}
            if stream:
                parts = events(running, "/v1/completions", **data)[:-1]
                (found,) = [part["choices"][0]["logprobs"] for part in parts if part["choices"][0]["logprobs"]]
            else:
                found = post(running, "/v1/completions", **data)["choices"][0]["logprobs"]
            ids = [BOS, *b"hello"] if isinstance(prompt, str) else list(b"hello")
            expected = [None]
            for n in range(1, len(ids)):
                row = model.logits(np.array(ids[:n]), b"").astype(np.float64)
                expected.append(row[ids[n]] - np.log(np.exp(row).sum()))
            expected = expected[1:] if isinstance(prompt, str) else expected
            assert found["tokens"][:5] == list("hello") and len(found["tokens"]) == (5 if stream else 7)
            assert found["text_offset"][:5] == list(range(5))
            for got, wanted in zip(found["token_logprobs"], expected, strict=False):
                assert got == wanted if wanted is None else got == pytest.approx(wanted, abs=1e-5)
            assert found["top_logprobs"][4] and len(found["top_logprobs"][4]) == 3


def test_the_openapi_less_errors_keep_their_shape(service):
    status, answer, _ = ask(service, "POST", "/v1/chat/completions", {"messages": []})
    assert status == 400 and answer["error"]["type"] == "invalid_request_error"
