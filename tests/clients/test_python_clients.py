"""The clients that people use, unchanged: openai, anthropic, ollama, litellm and LangChain."""

import json

import pytest
from pydantic import BaseModel, Field

PARIS = [{"role": "user", "content": "What is the capital of France? One sentence."}]
GREEDY = {"messages": PARIS, "extra_body": {"temperature": 0}}
CITY = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 20}}, "required": ["city"]}
TOOL = {"type": "function", "function": {"name": "get_weather", "description": "Weather of a city", "parameters": CITY}}


class Answer(BaseModel):
    """What is to be said."""

    city: str = Field(max_length=20)
    population: int = Field(ge=1, le=50_000_000)


@pytest.fixture(scope="session")
def openai_client(server):
    import openai

    return openai.OpenAI(base_url=server + "/v1", api_key="none", max_retries=0, timeout=60)


class TestOpenai:
    def test_chat(self, openai_client):
        answer = openai_client.chat.completions.create(model="any", messages=PARIS, max_tokens=30, temperature=0)
        assert "Paris" in answer.choices[0].message.content and answer.usage.completion_tokens > 3

    def test_stream(self, openai_client):
        parts = openai_client.chat.completions.create(
            model="any",
            messages=PARIS,
            max_tokens=30,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
        parts = list(parts)
        text = "".join(part.choices[0].delta.content or "" for part in parts if part.choices)
        assert "Paris" in text and parts[-1].usage.total_tokens > 10

    @pytest.mark.parametrize("stream", [False, True])
    def test_a_tool_that_must_be_called(self, openai_client, stream):
        choice = {"type": "function", "function": {"name": "get_weather"}}
        question = [{"role": "user", "content": "What is the weather in Oslo?"}]
        more = {"model": "any", "messages": question, "tools": [TOOL], "tool_choice": choice, "max_tokens": 60}
        if stream:
            with openai_client.chat.completions.stream(**more) as events:
                for _ in events:
                    pass
                answer = events.get_final_completion()
        else:
            answer = openai_client.chat.completions.create(**more)
        (call,) = answer.choices[0].message.tool_calls
        assert call.function.name == "get_weather" and set(json.loads(call.function.arguments)) == {"city"}
        assert answer.choices[0].finish_reason == "tool_calls"
        result = {"role": "tool", "tool_call_id": call.id, "content": "rain, 5 degrees"}
        messages = [*question, answer.choices[0].message, result]
        last = openai_client.chat.completions.create(model="any", messages=messages, tools=[TOOL], max_tokens=30)
        assert last.choices[0].message.role == "assistant"

    def test_structured_output(self, openai_client):
        answer = openai_client.chat.completions.parse(
            model="any", messages=PARIS, response_format=Answer, max_tokens=80, temperature=0
        )
        assert isinstance(answer.choices[0].message.parsed, Answer)

    def test_completions_with_log_probabilities(self, openai_client):
        answer = openai_client.completions.create(
            model="any", prompt="The capital of France is", max_tokens=1, echo=True, logprobs=2, temperature=0
        )
        logprobs = answer.choices[0].logprobs
        assert "".join(logprobs.tokens) == answer.choices[0].text and len(logprobs.tokens) == 6

    def test_responses(self, openai_client):
        answer = openai_client.responses.create(
            model="any", input=PARIS[0]["content"], max_output_tokens=30, temperature=0
        )
        assert "Paris" in answer.output_text and answer.status in ("completed", "incomplete")
        kinds = []
        with openai_client.responses.stream(
            model="any", input=PARIS[0]["content"], max_output_tokens=30, temperature=0
        ) as events:
            for event in events:
                kinds.append(event.type)
            final = events.get_final_response()
        assert final.output_text == answer.output_text and "response.output_text.delta" in kinds
        tool = {"type": "function", **TOOL["function"], "strict": True}
        called = openai_client.responses.create(
            model="any", input="Weather in Oslo?", tools=[tool], tool_choice="required", max_output_tokens=60
        )
        (call,) = [item for item in called.output if item.type == "function_call"]
        assert set(json.loads(call.arguments)) == {"city"}
        parsed = openai_client.responses.parse(model="any", input=PARIS, text_format=Answer, max_output_tokens=80)
        assert isinstance(parsed.output_parsed, Answer)

    def test_embeddings_and_models(self, openai_client):
        answer = openai_client.embeddings.create(model="any", input=["a", "b"] * 20)
        assert len(answer.data) == 40 and len(answer.data[0].embedding) == 576
        (model,) = openai_client.models.list().data
        assert openai_client.models.retrieve(model.id).id == model.id

    def test_errors(self, openai_client):
        import openai

        with pytest.raises(openai.BadRequestError) as caught:
            openai_client.chat.completions.create(model="any", messages=[{"role": "user", "content": "word " * 5000}])
        assert caught.value.code == "context_length_exceeded"


class TestAnthropic:
    @pytest.fixture(scope="class")
    def client(self, server):
        import anthropic

        return anthropic.Anthropic(base_url=server, api_key="none", max_retries=0, timeout=60)

    def test_messages(self, client):
        answer = client.messages.create(model="any", max_tokens=30, system="Be brief.", **GREEDY)
        assert "Paris" in answer.content[0].text and answer.usage.output_tokens > 3
        with client.messages.stream(model="any", max_tokens=30, system="Be brief.", **GREEDY) as s:
            assert "".join(s.text_stream) == answer.content[0].text
            assert s.get_final_message().stop_reason == answer.stop_reason
        assert client.messages.count_tokens(model="any", messages=PARIS).input_tokens > 10

    @pytest.mark.parametrize("stream", [False, True])
    def test_tools(self, client, stream):
        tool = {"name": "get_weather", "description": "Weather", "input_schema": CITY}
        question = [{"role": "user", "content": "Weather in Oslo?"}]
        more = {"model": "any", "max_tokens": 60, "tools": [tool], "tool_choice": {"type": "any"}, "messages": question}
        if stream:
            with client.messages.stream(**more) as s:
                answer = s.get_final_message()
        else:
            answer = client.messages.create(**more)
        (block,) = [block for block in answer.content if block.type == "tool_use"]
        assert answer.stop_reason == "tool_use" and set(block.input) == {"city"}
        result = {"type": "tool_result", "tool_use_id": block.id, "content": "rain"}
        content = [block.model_dump(exclude_none=True) for block in answer.content]
        messages = [*question, {"role": "assistant", "content": content}, {"role": "user", "content": [result]}]
        assert client.messages.create(model="any", max_tokens=20, tools=[tool], messages=messages).content

    def test_errors(self, client):
        import anthropic

        with pytest.raises(anthropic.BadRequestError, match="maximum context length"):
            client.messages.create(model="any", max_tokens=5, messages=[{"role": "user", "content": "word " * 5000}])


class TestOllama:
    @pytest.fixture(scope="class")
    def client(self, server):
        import ollama

        return ollama.Client(host=server)

    def test_chat_and_generate(self, client):
        options = {"temperature": 0, "num_predict": 30}
        answer = client.chat(model="any", messages=PARIS, options=options)
        assert "Paris" in answer.message.content and answer.done
        parts = client.chat(model="any", messages=PARIS, options=options, stream=True)
        assert "".join(part.message.content for part in parts) == answer.message.content
        assert "Paris" in client.generate(model="any", prompt=PARIS[0]["content"], options=options).response
        parts = client.generate(model="any", prompt="The capital of France is", raw=True, options=options, stream=True)
        assert "Paris" in "".join(part.response for part in parts)

    def test_schemas_and_tools(self, client):
        answer = client.chat(
            model="any", messages=PARIS, format=Answer.model_json_schema(), options={"num_predict": 80}
        )
        assert Answer.model_validate_json(answer.message.content)
        assert client.chat(model="any", messages=PARIS, tools=[TOOL], options={"num_predict": 10}).message

    def test_the_rest(self, client):
        (model,) = client.list().models
        assert client.show(model.model).details.family == "llama"
        assert len(client.embed(model="any", input=["a", "b"]).embeddings) == 2
        assert client.ps().models


class TestLitellm:
    def more(self, server):
        return {"model": "openai/any", "api_base": server + "/v1", "api_key": "none", "messages": PARIS}

    def test_chat_and_tools(self, server):
        import litellm

        answer = litellm.completion(**self.more(server), max_tokens=30, temperature=0)
        assert "Paris" in answer.choices[0].message.content
        called = litellm.completion(**self.more(server), tools=[TOOL], tool_choice="required", max_tokens=60)
        assert called.choices[0].message.tool_calls[0].function.name == "get_weather"

    def test_too_long_a_context_is_told_as_such(self, server):
        import litellm

        with pytest.raises(litellm.ContextWindowExceededError):
            litellm.completion(**self.more(server) | {"messages": [{"role": "user", "content": "word " * 5000}]})


class TestLangchain:
    @pytest.fixture(scope="class")
    def model(self, server):
        from langchain_openai import ChatOpenAI

        return ChatOpenAI(base_url=server + "/v1", api_key="none", model="any", max_tokens=80, temperature=0)

    def test_chat_and_tools(self, model):
        assert "Paris" in model.invoke(PARIS[0]["content"]).content
        bound = model.bind_tools([TOOL], tool_choice="get_weather")
        assert bound.invoke("Weather in Oslo?").tool_calls[0]["name"] == "get_weather"
        assert "".join(part.content for part in model.stream(PARIS[0]["content"]))

    @pytest.mark.parametrize("method", ["json_schema", "function_calling"])
    def test_structured_output(self, model, method):
        assert isinstance(model.with_structured_output(Answer, method=method).invoke(PARIS[0]["content"]), Answer)

    def test_embeddings(self, server):
        from langchain_openai import OpenAIEmbeddings

        embeddings = OpenAIEmbeddings(
            base_url=server + "/v1", api_key="none", model="any", check_embedding_ctx_length=False
        )
        assert len(embeddings.embed_documents(["text"] * 100)) == 100
