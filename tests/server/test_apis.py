"""The other APIs over the same engine: Anthropic's, OpenAI's responses, Ollama's; slots, infill, the description."""

import json

import pytest

from llamacy.server import routes
from tests.generate.fakes import FakeModel
from tests.server.service import ask, error_of, events, post, serving, talk

USER = {"role": "user", "content": "weather?"}
SCHEMA = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 5}}, "required": ["city"]}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>'


@pytest.fixture(scope="module")
def service():
    with serving(FakeModel(), n_ctx=4096, n_slots=2, chat_template="chatml") as running:
        yield running


@pytest.fixture
def says(service, monkeypatch):
    """Return a function: the model answers with a text to a conversation, with tools in OpenAI's shape."""

    def set_answer(text, messages, tools=()):
        prompt = post(service, "/apply-template", messages=messages, tools=list(tools))["prompt"]
        monkeypatch.setattr(service.model, "answer", text.encode())
        monkeypatch.setattr(service.model, "prompt_length", 1 + len(prompt.encode()))

    return set_answer


def named_events(service, path, **data):
    """Return the events of a stream that have names, which must be their types."""
    status, text, headers = ask(service, "POST", path, {**data, "stream": True})
    assert status == 200 and headers["Content-Type"] == "text/event-stream", text
    found = []
    for block in filter(None, text.split("\n\n")):
        name, _, data = block.partition("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == "event: " + found[-1]["type"]
    return found


def lines(service, path, **data):
    status, text, headers = ask(service, "POST", path, data)
    assert status == 200 and headers["Content-Type"] == "application/x-ndjson", text
    return [json.loads(line) for line in text.splitlines()]


OPENAI_TOOL = {"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}
ANTHROPIC = {"max_tokens": 99, "messages": [USER], "model": "any"}


class TestAnthropic:
    def test_text(self, service, says):
        says("Sunny.", [{"role": "system", "content": "Short."}, USER])
        data = {**ANTHROPIC, "system": [{"type": "text", "text": "Short."}]}
        answer = post(service, "/v1/messages", **data)
        assert answer["content"] == [{"type": "text", "text": "Sunny."}] and answer["type"] == "message"
        assert (answer["stop_reason"], answer["stop_sequence"], answer["model"]) == ("end_turn", None, "any")
        usage = answer["usage"]
        counted = post(service, "/v1/messages/count_tokens", messages=[USER], system="Short.")["input_tokens"]
        assert usage["input_tokens"] + usage["cache_read_input_tokens"] == counted and usage["output_tokens"] == 7
        found = named_events(service, "/v1/messages", **data)
        assert [event["type"] for event in found[:2]] == ["message_start", "content_block_start"]
        assert "".join(e["delta"]["text"] for e in found if e["type"] == "content_block_delta") == "Sunny."
        assert [event["type"] for event in found[-3:]] == ["content_block_stop", "message_delta", "message_stop"]
        stopped = post(service, "/v1/messages", **data, stop_sequences=["n"])
        assert (stopped["stop_reason"], stopped["stop_sequence"]) == ("stop_sequence", "n")
        assert post(service, "/v1/messages", **data | {"max_tokens": 2})["stop_reason"] == "max_tokens"

    def test_tools(self, service, says):
        says("I see. " + CALL, [USER], [OPENAI_TOOL])
        data = {**ANTHROPIC, "tools": [{"name": "weather", "input_schema": SCHEMA}]}
        answer = post(service, "/v1/messages", **data)
        assert [block["type"] for block in answer["content"]] == ["text", "tool_use"]
        assert answer["content"][1]["input"] == {"city": "Paris"} and answer["stop_reason"] == "tool_use"
        found = named_events(service, "/v1/messages", **data)
        starts = [event["content_block"]["type"] for event in found if event["type"] == "content_block_start"]
        pieces = [e["delta"].get("partial_json", "") for e in found if e["type"] == "content_block_delta"]
        assert starts == ["text", "tool_use"] and json.loads("".join(pieces)) == {"city": "Paris"}
        messages = [
            USER,
            {"role": "assistant", "content": answer["content"]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "x", "content": "rain"}]},
        ]
        assert post(service, "/v1/messages", **data | {"messages": messages, "max_tokens": 3})["content"]

    def test_errors(self, service):
        status, answer, _ = ask(service, "POST", "/v1/messages", {"messages": [USER]})
        assert (status, answer["type"], answer["error"]["type"]) == (400, "error", "invalid_request_error")
        assert answer["error"]["message"].startswith("max_tokens: ")
        status, answer, _ = ask(service, "POST", "/v1/messages", {**ANTHROPIC, "mcp_servers": [{}]})
        assert answer["error"]["message"] == "mcp_servers: not supported"
        service.model.fail = ValueError("broke")
        found = named_events(service, "/v1/messages", **ANTHROPIC)
        service.model.fail = None
        assert found[-1]["type"] == "error" and "broke" in found[-1]["error"]["message"]


class TestResponses:
    def test_text(self, service, says):
        says("Sunny.", [{"role": "system", "content": "Short."}, USER])
        data = {"input": "weather?", "instructions": "Short.", "model": "any", "max_output_tokens": 99}
        answer = post(service, "/v1/responses", **data)
        (item,) = answer["output"]
        assert item["content"] == [{"type": "output_text", "text": "Sunny.", "annotations": []}]
        assert answer["status"] == "completed" and answer["usage"]["output_tokens"] == 7
        found = named_events(service, "/v1/responses", **data)
        assert [event["sequence_number"] for event in found] == list(range(len(found)))
        assert "".join(e["delta"] for e in found if e["type"] == "response.output_text.delta") == "Sunny."
        assert found[-1]["type"] == "response.completed"
        assert found[-1]["response"]["output"][0]["content"] == item["content"]
        cut = post(service, "/v1/responses", **data | {"max_output_tokens": 2})
        assert (cut["status"], cut["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})

    def test_tools(self, service, says):
        says(CALL, [USER], [OPENAI_TOOL])
        data = {"input": [USER], "tools": [{"type": "function", "name": "weather", "parameters": SCHEMA}]}
        (item,) = post(service, "/v1/responses", **data)["output"]
        assert (item["type"], item["name"], item["arguments"]) == ("function_call", "weather", '{"city": "Paris"}')
        found = named_events(service, "/v1/responses", **data)
        done = [event for event in found if event["type"] == "response.function_call_arguments.done"]
        assert [event["arguments"] for event in done] == ['{"city": "Paris"}']
        output = {"type": "function_call_output", "call_id": item["call_id"], "output": "rain"}
        again = post(service, "/v1/responses", input=[USER, item, output], max_output_tokens=3)
        assert again["output"][0]["type"] == "message"

    def test_formats_and_refusals(self, service):
        text = {"format": {"type": "json_schema", "name": "x", "schema": {"enum": [7]}}}
        assert post(service, "/v1/responses", input="x", text=text)["output"][0]["content"][0]["text"] == "7"
        for name in ("previous_response_id", "conversation", "background"):
            status, message = error_of(service, "POST", "/v1/responses", {"input": "x", name: "y"})
            assert status == 400 and message.startswith(f"{name}: not supported")
        assert error_of(service, "POST", "/v1/responses", {"input": [{"type": "image"}]})[0] == 400


class TestOllama:
    def test_chat(self, service, says):
        says("Sunny.", [USER])
        data = {
            "model": "any:latest",
            "messages": [USER],
            "options": {"temperature": 0, "num_predict": 50, "num_gpu": 1},
        }
        found = lines(service, "/api/chat", **data)
        assert "".join(one["message"]["content"] for one in found) == "Sunny."
        assert found[-1]["done"] and found[-1]["done_reason"] == "stop" and found[-1]["eval_count"] == 7
        assert all(one["model"] == "any:latest" for one in found)
        answer = post(service, "/api/chat", **data, stream=False)
        assert answer["message"] == {"role": "assistant", "content": "Sunny."} and answer["done"]

    def test_tools_and_schemas(self, service, says):
        says(CALL, [USER], [OPENAI_TOOL])
        data = {"messages": [USER], "tools": [OPENAI_TOOL]}
        wanted = [{"function": {"name": "weather", "arguments": {"city": "Paris"}}}]
        assert post(service, "/api/chat", **data, stream=False)["message"]["tool_calls"] == wanted
        found = lines(service, "/api/chat", **data)
        assert [one["message"]["tool_calls"] for one in found if "tool_calls" in one["message"]] == [wanted]
        assert (
            post(service, "/api/chat", messages=[USER], format={"enum": [5]}, stream=False)["message"]["content"] == "5"
        )

    def test_generate(self, service, says):
        says("Sunny.", [USER])
        answer = post(service, "/api/generate", prompt="weather?", stream=False)
        assert answer["response"] == "Sunny." and answer["done_reason"] == "stop"
        raw = {"prompt": "abc", "raw": True, "options": {"num_predict": 4, "seed": 1}}
        found = lines(service, "/api/generate", **raw)
        assert (
            "".join(one["response"] for one in found) == post(service, "/api/generate", **raw, stream=False)["response"]
        )

    def test_models_and_vectors(self, service):
        (model,) = ask(service, "GET", "/api/tags")[1]["models"]
        assert model["name"] == "fake" and ask(service, "GET", "/api/ps")[1]["models"]
        assert post(service, "/api/show", model="fake:latest")["model_info"]["general.architecture"] == "llama"
        assert ask(service, "POST", "/api/show", {"model": "other"})[0] == 404
        assert set(ask(service, "GET", "/api/version")[1]) == {"version"}
        both = post(service, "/api/embed", input=["a", "b"])["embeddings"]
        assert len(both) == 2 and post(service, "/api/embeddings", prompt="a")["embedding"] == both[0]

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"options": {"num_ctx": 5000}}, "options.num_ctx: wanted a whole number"),
            ({"options": {"penalize_newline": True}}, "options.penalize_newline: not supported"),
            ({"messages": [{**USER, "images": ["x"]}]}, "messages[0].images: not supported"),
            ({"format": 5}, "format: wanted an object, got 5"),
        ],
    )
    def test_errors(self, service, change, message):
        status, answer, _ = ask(service, "POST", "/api/chat", {"messages": [USER], **change})
        assert status == 400 and answer["error"].startswith(message)


def test_slots_are_saved_restored_and_erased(tmp_path):
    with serving(FakeModel(), n_slots=2, slot_save_path=str(tmp_path)) as running:
        prompt = {"prompt": "abcdefgh", "n_predict": 3, "id_slot": 0, "temperature": 0, "ignore_eos": True}
        text = post(running, "/completion", **prompt)["content"]
        n = len(running.engine.slots[0].cached)
        saved = post(running, "/slots/0?action=save", filename="a.bin")
        assert (saved["n_saved"], saved["filename"]) == (n, "a.bin") and saved["n_written"] > 0
        assert post(running, "/slots/0?action=erase")["n_erased"] == n
        assert post(running, "/completion", **prompt)["timings"]["cache_n"] == 0
        assert post(running, "/slots/1?action=restore", filename="a.bin")["n_restored"] == n
        again = post(running, "/completion", **prompt | {"id_slot": 1})
        assert again["content"] == text and again["timings"]["cache_n"] == 8
        for path, data, status in (
            ("/slots/5?action=save", {"filename": "a"}, 404),
            ("/slots/0?action=melt", {"filename": "a"}, 400),
            ("/slots/0?action=save", {"filename": "../a"}, 400),
            ("/slots/0?action=save", {}, 400),
            ("/slots/0?action=restore", {"filename": "none"}, 404),
        ):
            assert error_of(running, "POST", path, data)[0] == status, path
    with serving() as running:
        assert error_of(running, "POST", "/slots/0?action=save", {"filename": "a"})[0] == 501


def test_a_model_without_marks_cannot_fill_in(service):
    status, message = error_of(service, "POST", "/infill", {"input_prefix": "a", "input_suffix": "b"})
    assert status == 501 and "prefix and suffix and middle" in message
    assert error_of(service, "POST", "/v1/rerank", {"query": "a", "documents": ["b"]})[0] == 501


def test_filling_in(service, monkeypatch):
    for key, token in (("fim_pre_token_id", 259), ("fim_suf_token_id", 260), ("fim_mid_token_id", 261)):
        monkeypatch.setitem(service.model.metadata, f"tokenizer.ggml.{key}", token)
    data = {"input_prefix": "ab", "input_suffix": "cd", "prompt": "x", "n_predict": 3}
    answer = post(service, "/infill", **data)
    assert answer["tokens_evaluated"] == 1 + 3 + 4 + 1 and answer["tokens_predicted"] == 3
    extra = [{"filename": "f", "text": "t"}]
    assert post(service, "/infill", **data, input_extra=extra)["tokens_evaluated"] > answer["tokens_evaluated"]
    assert error_of(service, "POST", "/infill", {"input_prefix": "a"})[0] == 400
    assert events(service, "/infill", **data)[-1]["stop"]


def test_the_description_has_every_path(service):
    status, found, _ = ask(service, "GET", "/openapi.json")
    assert status == 200 and found["openapi"] == "3.1.0"
    there = {(method.upper(), path) for path, operations in found["paths"].items() for method in operations}
    # What this model or this server cannot do (501) is left out.
    without = {key for key in routes.ROUTES if "rerank" in key[1] or key in (("POST", "/infill"), ("POST", "/props"))}
    assert there >= set(routes.ROUTES) - without and not there & without
    assert "/v1/chat/completions" in ask(service, "GET", "/docs")[1]
    same = [found["paths"][path]["post"] for path in ("/chat/completions", "/v1/chat/completions")]
    assert same[0] == same[1] and same[0]["summary"] == "Answer a conversation (OpenAI)"


def test_errors_before_the_body_have_their_apis_shape():
    with serving(api_keys=("k",)) as running:
        assert ask(running, "POST", "/v1/messages", {})[1]["error"]["type"] == "authentication_error"
        assert ask(running, "POST", "/v1/messages", {}, headers={"x-api-key": "k"})[0] == 400
        assert ask(running, "GET", "/api/tags")[1] == {"error": "Invalid API Key"}
        assert b" 401 " in talk(running, b"GET /api/tags HTTP/1.0\r\n\r\n")
