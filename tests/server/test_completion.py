"""POST /completion: the answer, streaming, stop strings, probabilities, prompts in all shapes, adapters."""

import json
import math

import pytest

from tests.generate.fakes import BOS, EOS, N_VOCAB, PIECES, FakeModel
from tests.server.service import ask, error_of, events, post, serving


@pytest.fixture(scope="module")
def service():
    with serving() as running:
        yield running


@pytest.fixture(scope="module")
def adapted():
    with serving(FakeModel(adapters=2)) as running:
        yield running


@pytest.fixture(scope="module")
def hello():
    """A model that answers a prompt of one letter with "hello, héllo 日本!" and then its end token."""
    with serving(FakeModel(answer="hello, héllo 日本!".encode(), prompt_length=2)) as running:
        yield running


def test_the_whole_answer(hello):
    answer = post(hello, "/completion", prompt="x", seed=5, return_tokens=True, temperature=0.5, cache_prompt=False)
    timings, settings = answer.pop("timings"), answer.pop("generation_settings")
    text = "hello, héllo 日本!"
    assert answer == {
        "index": 0,
        "content": text,
        "tokens": [*text.encode(), EOS],
        "id_slot": answer["id_slot"],
        "stop": True,
        "model": "fake",
        "prompt": "x",
        "tokens_predicted": len(text.encode()) + 1,
        "tokens_evaluated": 2,
        "tokens_cached": 0,
        "truncated": False,
        "stop_type": "eos",
        "stopping_word": "",
        "stopped_eos": True,
        "stopped_limit": False,
        "stopped_word": False,
    }
    assert timings["prompt_n"] == 2 and timings["predicted_n"] == answer["tokens_predicted"]
    assert all(timings[name] > 0 for name in ("prompt_ms", "prompt_per_second", "predicted_ms", "predicted_per_second"))
    assert settings["seed"] == 5 and settings["temperature"] == 0.5 and settings["top_k"] == 40
    assert settings["n_ctx"] == 256 and settings["stop"] == [] and settings["n_predict"] == -1


@pytest.mark.parametrize("path", ["/completion", "/completions"])
def test_limits_and_stops(hello, path):
    answer = post(hello, path, prompt="x", n_predict=3)
    assert (answer["content"], answer["stop_type"], answer["stopped_limit"]) == ("hel", "limit", True)
    answer = post(hello, path, prompt="x", stop=["zzz", ", h"])
    assert (answer["content"], answer["stop_type"], answer["stopping_word"]) == ("hello", "word", ", h")
    assert answer["stopped_word"] and answer["tokens_predicted"] == 8
    answer = post(hello, path, prompt="x", n_predict=0)
    assert (answer["content"], answer["tokens_predicted"], answer["stop_type"]) == ("", 0, "limit")
    # In the middle of a character: the end is shown as such.
    assert post(hello, path, prompt="x", n_predict=9)["content"] == "hello, h\ufffd"
    assert post(hello, path, prompt="x", stop="lo")["content"] == "hel"


def test_streaming_gives_the_same_text_in_whole_characters(hello):
    whole = post(hello, "/completion", prompt="x")
    parts = events(hello, "/completion", prompt="x")
    assert [part["stop"] for part in parts] == [False] * (len(parts) - 1) + [True]
    assert "".join(part["content"] for part in parts) == whole["content"]
    assert all("\ufffd" not in part["content"] for part in parts)
    assert [id for part in parts for id in part["tokens"]] == [*whole["content"].encode(), EOS]
    assert parts[0] == {"index": 0, "content": "h", "tokens": [ord("h")], "stop": False}
    last = parts[-1]
    assert last["content"] == "" and last["stop_type"] == "eos" and last["timings"]["predicted_n"] == 22


def test_a_stop_string_is_never_shown_in_parts(hello):
    parts = events(hello, "/completion", prompt="x", stop=["llo 日"])
    shown = "".join(part["content"] for part in parts)
    assert shown == "hello, hé" and parts[-1]["stopping_word"] == "llo 日"
    # "llo" might have been the beginning: held back until the comma, then shown at once.
    assert [part["content"] for part in parts][:4] == ["h", "e", "llo,", " "]


def test_probabilities_of_every_token(hello):
    answer = post(hello, "/completion", prompt="x", n_probs=2, temperature=0.9)
    entries = answer["completion_probabilities"]
    assert len(entries) == answer["tokens_predicted"] == 22
    for entry in entries:
        assert set(entry) == {"id", "token", "bytes", "logprob", "top_logprobs"}
        assert len(entry["top_logprobs"]) == 2
        assert entry["top_logprobs"][0] == {key: entry[key] for key in ("id", "token", "bytes", "logprob")}
        assert -1 < entry["logprob"] <= 0
    assert entries[0]["token"] == "h" and entries[0]["bytes"] == [104]
    # Part of a character: its byte, and no text.
    assert entries[8]["token"] == "" and entries[8]["bytes"] == [0xC3]
    streamed = events(hello, "/completion", prompt="x", n_probs=2)
    flat = [entry for part in streamed[:-1] for entry in part["completion_probabilities"]]
    assert [entry["id"] for entry in flat] == [entry["id"] for entry in entries]
    assert "completion_probabilities" not in streamed[-1]


def test_probabilities_are_of_the_whole_softmax(service):
    plain = post(service, "/completion", prompt="ab", n_predict=1, n_probs=N_VOCAB)
    filtered = post(service, "/completion", prompt="ab", n_predict=1, n_probs=N_VOCAB, top_k=1, temperature=0)
    top = plain["completion_probabilities"][0]["top_logprobs"]
    assert top == filtered["completion_probabilities"][0]["top_logprobs"] and len(top) == N_VOCAB
    assert sum(math.exp(entry["logprob"]) for entry in top) == pytest.approx(1, abs=1e-5)


def test_seeds(service):
    def text(**more):
        return post(service, "/completion", prompt="seed", n_predict=20, **more)["content"]

    assert text(seed=1) == text(seed=1) != text(seed=2)
    assert text() != text()
    used = post(service, "/completion", prompt="seed", n_predict=20)
    assert text(seed=used["generation_settings"]["seed"]) == used["content"]
    assert text(temperature=0) == text(temperature=0, seed=9)


def test_prompt_shapes(service):
    plain = {"n_predict": 8, "temperature": 0}

    def content(prompt):
        return post(service, "/completion", prompt=prompt, **plain)["content"]

    ids = [BOS, *b"hello"]
    assert content("hello") == content(ids) == content([BOS, *b"he", "llo"]) == content(["he", *b"llo"])
    assert content(list(b"hello")) != content("hello")  # ids as they stand: no BOS
    several = post(service, "/completion", prompt=["hello", "world"], **plain)
    assert [answer["index"] for answer in several] == [0, 1]
    assert [answer["content"] for answer in several] == [content("hello"), content("world")]
    mixed = post(service, "/completion", prompt=[ids, "hello", [BOS, "hello"]], **plain)
    assert [answer["content"] for answer in mixed] == [content("hello")] * 3
    assert isinstance(post(service, "/completion", prompt=["hello"], **plain), list)
    # An empty prompt begins a text.
    assert content("") == content([BOS])


def test_several_prompts_stream_with_their_index(service):
    parts = events(service, "/completion", prompt=["a", "b", "c"], n_predict=5, temperature=0)
    for index, prompt in enumerate("abc"):
        mine = [part for part in parts if part["index"] == index]
        assert [part["stop"] for part in mine].count(True) == 1 and mine[-1]["stop"]
        alone = post(service, "/completion", prompt=prompt, n_predict=5, temperature=0)
        assert "".join(part["content"] for part in mine) == alone["content"]


def test_the_prompt_cache(service):
    first = post(service, "/completion", prompt="a long prompt to keep", n_predict=1)
    again = post(service, "/completion", prompt="a long prompt to keep", n_predict=1)
    # A slot that was used before may hold the BOS.
    assert first["tokens_cached"] <= 1 and first["timings"]["prompt_n"] == 22 - first["tokens_cached"]
    assert again["tokens_cached"] == 21 and again["timings"]["prompt_n"] == 1 and again["tokens_evaluated"] == 22
    fresh = post(service, "/completion", prompt="a long prompt to keep", n_predict=1, cache_prompt=False)
    assert fresh["tokens_cached"] == 0


def test_logit_bias(service):
    def first(bias):
        return post(
            service, "/completion", prompt="b", n_predict=1, return_tokens=True, temperature=0, logit_bias=bias
        )["tokens"][0]

    usual = first([])
    assert first([[usual, False]]) != usual
    assert first([[65, 100]]) == 65 and first({"65": 100}) == 65 and first([["A", 100.0]]) == 65
    assert first({"A": 100}) == 65


def test_ignore_eos(hello):
    answer = post(hello, "/completion", prompt="x", ignore_eos=True, n_predict=40)
    assert answer["tokens_predicted"] == 40 and answer["stop_type"] == "limit"


def test_a_full_context(service):
    answer = post(service, "/completion", prompt="x" * 240, ignore_eos=True)
    assert answer["truncated"] and answer["stop_type"] == "limit" and answer["tokens_predicted"] == 16


def test_null_is_the_default_and_unknown_fields_are_ignored(service):
    answer = post(service, "/completion", prompt="a", n_predict=1, temperature=None, stop=None, mirostat=0, user="me")
    assert answer["generation_settings"]["temperature"] == 0.8


def test_adapters_per_request_and_for_all(adapted):
    def text(**more):
        return post(adapted, "/completion", prompt="lora", n_predict=12, temperature=0, **more)["content"]

    both = [{"id": 0, "scale": 1.0}, {"id": 1, "scale": 1.0}]
    usual = text()
    assert text(lora=both) == usual
    one = text(lora=[{"id": 1, "scale": 0.5}])
    assert one != usual and text(lora=[]) not in (usual, one)
    assert ask(adapted, "GET", "/lora-adapters")[1] == [
        {"id": 0, "name": "a0", "path": "a0.gguf", "scale": 1.0},
        {"id": 1, "name": "a1", "path": "a1.gguf", "scale": 1.0},
    ]
    assert ask(adapted, "POST", "/lora-adapters", [{"id": 1, "scale": 0.5}])[1] == {"success": True}
    assert [adapter["scale"] for adapter in ask(adapted, "GET", "/lora-adapters")[1]] == [0.0, 0.5]
    assert text() == one
    for wrong in (None, 5, {"id": 0}, [{"id": 9, "scale": 1}], [5]):
        assert error_of(adapted, "POST", "/lora-adapters", wrong, raw=json.dumps(wrong))[0] == 400
    assert text() == one
    assert ask(adapted, "POST", "/lora-adapters", both)[0] == 200
    assert text() == usual


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        ([{"id": 2, "scale": 1}], "lora[0].id: wanted 0 or 1, got 2"),
        ([{"id": 0}], "lora[0]: wanted {id, scale}, got no scale"),
        ([{"id": 0, "scale": "1"}], "lora[0].scale: wanted a number, got '1'"),
        ({"id": 0, "scale": 1}, "lora: wanted a list, got an object"),
    ],
)
def test_wrong_adapters(adapted, lora, message):
    assert error_of(adapted, "POST", "/completion", {"prompt": "x", "lora": lora}) == (400, message)


def test_adapters_without_any(service):
    status, message = error_of(service, "POST", "/completion", {"prompt": "x", "lora": [{"id": 0, "scale": 1}]})
    assert status == 400 and "has no adapters" in message


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("temperature", "hot", "temperature: wanted a number, got 'hot'"),
        ("temperature", True, "temperature: wanted a number, got true"),
        ("temperature", 10**400, "temperature: wanted a number, got 1000"),
        ("temperature", [1], "temperature: wanted a number, got a list"),
        ("top_k", 1.5, "top_k: wanted a whole number, got 1.5"),
        ("top_p", 1.5, "top_p: wanted a number at least 0 and at most 1, got 1.5"),
        ("top_p", -1, "top_p: wanted a number at least 0 and at most 1, got -1"),
        ("min_p", 2, "min_p: wanted"),
        ("typical_p", 2, "typical_p: wanted"),
        ("repeat_penalty", 0, "repeat_penalty: wanted a number at least 1e-06, got 0"),
        ("repeat_last_n", -2, "repeat_last_n: wanted a whole number at least -1, got -2"),
        ("n_predict", -2, "n_predict: wanted a whole number at least -1 and at most 2147483647, got -2"),
        ("n_predict", "5", "n_predict: wanted"),
        ("max_tokens", "5", "max_tokens: wanted"),
        ("seed", 1.5, "seed: wanted"),
        ("n_probs", -1, "n_probs: wanted"),
        ("n_keep", -2, "n_keep: wanted"),
        ("stop", 5, "stop: wanted a list, got 5"),
        ("stop", [5], "stop[0]: wanted a string, got 5"),
        ("stop", ["x"] * 65, "stop: wanted a list of at most 64"),
        ("stream", 1, "stream: wanted true or false, got 1"),
        ("cache_prompt", "no", "cache_prompt: wanted true or false, got 'no'"),
        ("return_tokens", 0, "return_tokens: wanted"),
        ("ignore_eos", 0, "ignore_eos: wanted"),
        ("logit_bias", 3, "logit_bias: wanted a list, got 3"),
        ("logit_bias", [[N_VOCAB, 1]], f"logit_bias[0]: wanted a whole number at least 0 and at most {N_VOCAB - 1}"),
        ("logit_bias", [[1, True]], "logit_bias[0]: wanted a number, got true"),
        ("logit_bias", [[1]], "logit_bias[0]: wanted [token, bias], got a list"),
        ("logit_bias", [5], "logit_bias[0]: wanted [token, bias], got 5"),
        ("prompt", 5, "prompt: wanted a string, token ids or both mixed in a list, or a list of those, got 5"),
        ("prompt", [], "prompt: wanted a string, token ids or both mixed in a list, or a list of those, got an empty"),
        (
            "prompt",
            {"a": 1},
            "prompt: wanted a string, token ids or both mixed in a list, or a list of those, got an o",
        ),
        ("prompt", [1, None], "prompt[1]: wanted a token id or a string, got null"),
        ("prompt", [True], "prompt[0]: wanted a token id or a string, got true"),
        ("prompt", [[1], []], "prompt[1]: wanted a string"),
        ("prompt", [[1, [2]]], "prompt[0][1]: wanted a token id or a string, got a list"),
        ("prompt", [N_VOCAB], f"prompt[0]: wanted a whole number at least 0 and at most {N_VOCAB - 1}, got {N_VOCAB}"),
        ("prompt", [-1], "prompt[0]: wanted"),
        ("prompt", [1.5], "prompt[0]: wanted a whole number"),
        ("prompt", "x" * 256, "prompt: wanted fewer than 256 tokens (the context size), got 257"),
        ("prompt", ["x", "y" * 300], "prompt: wanted fewer than 256 tokens"),
        ("grammar", "root ::= x", "grammar: the rule 'x' is not defined"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_wrong_fields(service, field, value, message, stream):
    data = {"prompt": "x", "stream": stream, field: value}
    status, got = error_of(service, "POST", "/completion", data)
    assert status == 400 and got.startswith(message)


def test_no_prompt(service):
    assert error_of(service, "POST", "/completion", {}) == (
        400,
        "prompt: wanted a string, token ids or a list of those, got nothing",
    )
    assert error_of(service, "POST", "/completion", [1])[1] == "the body: wanted an object, got a list"


def test_everything_forbidden(service):
    bias = [[token, False] for token in range(N_VOCAB)]
    status, message = error_of(service, "POST", "/completion", {"prompt": "x", "logit_bias": bias})
    assert status == 400 and "no token can be chosen" in message
    parts = events(service, "/completion", prompt="x", logit_bias=bias)
    assert parts == [{"error": {"code": 400, "message": message, "type": "invalid_request_error"}}]


def test_tokenize_and_detokenize(service):
    assert post(service, "/tokenize", content="hé") == {"tokens": [104, 0xC3, 0xA9]}
    assert post(service, "/tokenize", content="h", add_special=True) == {"tokens": [BOS, 104]}
    pieces = post(service, "/tokenize", content="hé", with_pieces=True)["tokens"]
    assert pieces == [{"id": 104, "piece": "h"}, {"id": 0xC3, "piece": [0xC3]}, {"id": 0xA9, "piece": [0xA9]}]
    assert post(service, "/tokenize") == {"tokens": []}
    assert post(service, "/detokenize", tokens=[104, 0xC3, 0xA9, 261]) == {"content": "hé" + PIECES[261].decode()}
    assert error_of(service, "POST", "/tokenize", {"content": 5}) == (400, "content: wanted a string, got 5")
    assert error_of(service, "POST", "/detokenize", {"tokens": [999]})[0] == 400
    assert error_of(service, "POST", "/detokenize", {"tokens": "x"}) == (400, "tokens: wanted a list, got 'x'")
