"""A Model against the engine and plain NumPy; texts in threads, left early, in a forked process."""

import json
import multiprocessing
import threading

import numpy as np
import pytest

import llamacy
from llamacy.kernels import matmul
from tests.server.test_server_command import ADAPTER, MODEL, ROOT
from tests.test_overflow import command

PROMPT = "This License grants you"
GREEDY = {"temperature": 0, "max_tokens": 12}


@pytest.fixture
def model():
    with llamacy.load(MODEL, threads=2) as opened:
        yield opened


def test_it_says_what_main_says(model):
    done = command("main", "-m", MODEL, "-p", PROMPT, "-n", 12, "--temp", 0)
    found = model.generate(PROMPT, **GREEDY)
    assert (PROMPT + str(found)).rstrip("\n") == done.stdout.rstrip("\n")
    assert found.finish_reason == "length" and len(found.tokens) == 12 and found.prompt_tokens == 6
    assert model.detokenize([token.id for token in found.tokens]) == found.text
    assert found.timings.predicted_n == 12 and found.tokens[0].logprob is None


def test_pieces_are_the_text(model):
    whole = model.generate(PROMPT, **GREEDY)
    pieces = model.generate(PROMPT, stream=True, **GREEDY)
    assert pieces.result is None
    assert "".join(pieces) == whole.text == str(pieces.result)
    assert [token.id for token in pieces.result.tokens] == [token.id for token in whole.tokens]


def test_stops_seeds_and_ids(model):
    whole = model.generate(PROMPT, **GREEDY).text
    word = whole.split()[2]
    cut = model.generate(PROMPT, stop=word, **GREEDY)
    assert cut.text == whole[: whole.index(word)] and (cut.finish_reason, cut.stop) == ("stop", word)
    assert model.generate(model.tokenize(PROMPT), **GREEDY).text == whole
    drawn = model.generate(PROMPT, max_tokens=12, temperature=2.0)
    assert model.generate(PROMPT, max_tokens=12, temperature=2.0, seed=drawn.seed).text == drawn.text


def test_a_text_that_is_left_frees_its_place(model):
    for _ in model.generate(PROMPT, stream=True, temperature=0, max_tokens=None):
        break
    with model.generate(PROMPT, stream=True, temperature=0, max_tokens=None) as pieces:
        next(pieces)
    assert pieces.result.finish_reason == "cancel" and len(pieces.result.tokens) == 1
    assert not model._engine.busy
    model.adapters.add(ADAPTER)  # which waits for nobody


def test_numbers_against_numpy(model):
    ids = model.tokenize(PROMPT)
    logits = model.logits(PROMPT).astype(np.float64)
    assert logits.shape == (len(ids), model.n_vocab)
    logs = logits - np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1, keepdims=True)) - logits.max(1)[:, None]
    score = model.score(PROMPT)
    np.testing.assert_allclose(score.logprobs, logs[np.arange(len(ids) - 1), ids[1:]], rtol=1e-5)
    assert score.tokens == ids and score.total == pytest.approx(score.logprobs.sum())
    assert score.perplexity == pytest.approx(np.exp(-score.logprobs.mean()))
    found = model.generate(ids, temperature=0, max_tokens=1, logprobs=3).tokens[0]
    best = np.argsort(-logs[-1], kind="stable")[:3]
    assert [token for token, _ in found.top] == best.tolist() and found.logprob == pytest.approx(
        logs[-1][best[0]], rel=1e-4
    )


def test_vectors(model):
    states = model.hidden_states(PROMPT)
    mean = states.mean(0)
    np.testing.assert_allclose(model.embed(PROMPT), mean / np.linalg.norm(mean), rtol=1e-4, atol=1e-6)
    both = model.embed([PROMPT, "other words"], pooling="last", normalize=False)
    np.testing.assert_allclose(both[0], states[-1], rtol=1e-5)
    assert both.dtype == np.float32 and both.shape == (2, model.n_embd)
    assert model.embed([]).shape == (0, model.n_embd)


def test_perplexity_is_the_command_s(model, tmp_path):
    text = (ROOT / "tests" / "data" / "golden" / "gpl3.txt").read_text(encoding="utf-8")[:4000]
    (tmp_path / "t.txt").write_text(text, encoding="utf-8")
    done = command("perplexity", "-m", MODEL, "-f", tmp_path / "t.txt", "-c", 64, "--json")
    wanted = json.loads(done.stdout)
    found = model.perplexity(text, window=64)
    assert (float(found), found.n_tokens) == (pytest.approx(wanted["ppl"], rel=1e-12), wanted["tokens"])


def test_adapters(model):
    plain, logits = model.generate(PROMPT, **GREEDY).text, model.logits(PROMPT)
    model.adapters.add(ADAPTER, 0.5, name="half")
    half, half_logits = model.generate(PROMPT, **GREEDY).text, model.logits(PROMPT)
    with llamacy.load(MODEL, threads=2, adapters=[(ADAPTER, 0.5)]) as other:
        assert other.generate(PROMPT, **GREEDY).text == half != plain
        np.testing.assert_array_equal(other.logits(PROMPT), half_logits)
    assert np.abs(half_logits - logits).max() > 0.1
    model.adapters.scale("half", 0)
    np.testing.assert_array_equal(model.logits(PROMPT), logits)
    model.adapters.scale(0, 0.5)
    assert model.generate(PROMPT, **GREEDY).text == half  # the engine's scales, then those of score and logits
    np.testing.assert_array_equal(model.logits(PROMPT), half_logits)
    assert [(each.name, each.scale) for each in model.adapters] == [("half", 0.5)]
    model.adapters.remove("half")
    assert len(model.adapters) == 0 and model.generate(PROMPT, **GREEDY).text == plain
    np.testing.assert_array_equal(model.logits(PROMPT), logits)
    with pytest.raises(llamacy.LlamacyError, match="there is no adapter 'half'; the model has none"):
        model.adapters.scale("half", 1)


def test_grammar_and_schema(model):
    assert model.generate(PROMPT, grammar='root ::= "yes" | "no"').text in ("yes", "no")
    schema = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"], "additionalProperties": False}
    assert json.loads(model.generate(PROMPT, schema=schema, max_tokens=40).text)["n"] in (1, 2)
    with pytest.raises(llamacy.LlamacyError, match="both"):
        model.generate(PROMPT, grammar="root ::= [a]", schema={})


def test_chat(model):
    asked = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}]
    with llamacy.load(MODEL, threads=1, chat_template="chatml") as other:
        text = other.chat_prompt(asked)
        assert (
            text == "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
        )
        assert other.chat(asked, **GREEDY).text == other.generate(text, **GREEDY).text
        assert other.chat_prompt("hi") == other.chat_prompt([{"role": "user", "content": "hi"}])


@pytest.mark.parametrize("parallel", [1, 3])
def test_threads_of_the_caller(parallel):
    prompts = [PROMPT, "You may copy", "The work is", "If you convey", "No one"]
    with llamacy.load(MODEL, threads=2, parallel=parallel) as model:
        wanted = [model.generate(prompt, **GREEDY).text for prompt in prompts]
        found = [None] * len(prompts)

        def ask(i):
            found[i] = "".join(model.generate(prompts[i], stream=True, **GREEDY))

        threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(prompts))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == wanted


def _forked(model, queue):
    try:
        queue.put(model.generate(PROMPT, **GREEDY).text)
    except llamacy.LlamacyError as error:
        queue.put(str(error))


WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"enum": ["Paris", "Rome"]},
                "days": {"type": "integer", "minimum": 1, "maximum": 9},
            },
            "required": ["city", "days"],
        },
    },
}


@pytest.fixture
def roomy():
    with llamacy.load(MODEL, threads=2, context=700) as opened:
        yield opened


@pytest.mark.filterwarnings("ignore:the model has no chat template")
def test_a_tool_that_must_be_called_is(roomy):
    """Its arguments follow the schema, whatever a model of random weights would say; the call reads as OpenAI's."""
    for choice in ("required", {"type": "function", "function": {"name": "weather"}}):
        found = roomy.chat("hi", tools=[WEATHER], tool_choice=choice, temperature=1.5, seed=4, max_tokens=300)
        (call,) = found.tool_calls
        assert (call["type"], call["function"]["name"], found.finish_reason) == ("function", "weather", "tool_calls")
        arguments = json.loads(call["function"]["arguments"])
        assert arguments["city"] in ("Paris", "Rome") and 1 <= arguments["days"] <= 9 and found.text == ""
        talk = [
            {"role": "user", "content": "hi"},
            found.message,
            {"role": "tool", "content": "rain", "name": "weather"},
        ]
        assert "rain" in roomy.chat_prompt([*talk, {"role": "user", "content": "and?"}], tools=[WEATHER])
    streamed = roomy.chat(
        "hi", tools=[WEATHER], tool_choice="required", temperature=1.5, seed=4, max_tokens=300, stream=True
    )
    assert "".join(streamed) == "" and streamed.result.tool_calls[0]["function"] == call["function"]
    assert roomy.chat("hi", tools=[WEATHER], tool_choice="none", **GREEDY).tool_calls == []


def test_thoughts_are_apart():
    template = "{% for m in messages %}{{ m.content }}{% endfor %}{# <think> #}"
    grammar = 'root ::= "<think>hm" "</think>" "yes"'
    with llamacy.load(MODEL, threads=1, chat_template=template) as model:
        found = model.chat("hi", grammar=grammar, temperature=0)
        assert (found.text, found.reasoning) == ("yes", "hm") and found.message["content"] == "yes"
        assert "".join(model.chat("hi", grammar=grammar, temperature=0, stream=True)) == "yes"


@pytest.mark.filterwarnings("ignore:the model has no chat template")
def test_tools_that_are_none_are_named(model):
    with pytest.raises(llamacy.LlamacyError, match="tool_choice: there is no tool 'rain'"):
        model.chat("hi", tools=[WEATHER], tool_choice={"function": {"name": "rain"}})
    with pytest.raises(llamacy.LlamacyError, match="messages: wanted at least one message"):
        model.chat([])


def test_a_forked_process_is_told(model):
    model.generate(PROMPT, **GREEDY)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=_forked, args=(model, queue))
    process.start()
    assert "forked" in queue.get(timeout=30)
    process.join(10)


def test_ctrl_c_leaves_the_model_usable(model, monkeypatch):
    wanted = model.generate(PROMPT, **GREEDY).text
    step, calls = model._engine.step, []

    def interrupted():
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        step()

    monkeypatch.setattr(model._engine, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        model.generate(PROMPT, **GREEDY)
    assert model.generate(PROMPT, **GREEDY).text == wanted


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"temperature": "hot"}, "temperature: wanted a number"),
        ({"top_p": 2}, "top_p: wanted"),
        ({"prompt": []}, "at least one token"),
        ({"prompt": [10**6]}, "wanted token ids from 0 to"),
        ({"prompt": [3] * 500}, "fewer than 128 tokens"),
    ],
)
def test_what_cannot_be_done_is_one_line(model, how, said):
    with pytest.raises(llamacy.LlamacyError, match=said) as caught:
        model.generate(**{"prompt": PROMPT, **how})
    assert "\n" not in str(caught.value)
    assert model.generate(PROMPT, **GREEDY)


def test_after_the_end(model):
    model.close()
    model.close()
    for ask in (lambda: model.generate(PROMPT), lambda: model.score(PROMPT), lambda: model.adapters.add(ADAPTER)):
        with pytest.raises(llamacy.LlamacyError, match="closed"):
            ask()


def test_what_is_passed_on(tmp_path):
    with pytest.raises(llamacy.LlamacyError, match="cannot be opened"):
        llamacy.load(tmp_path / "none.gguf")
    with llamacy.load(MODEL, context=0, activations="f32", cache_types=("f16", None), threads=1) as model:
        assert model.context == 128 and model._model.activations == "f32" and "f32" in matmul.PRECISIONS
        assert model._model.cache_types == ("f16", None)
