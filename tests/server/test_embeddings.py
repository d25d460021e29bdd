"""POST /embedding and /v1/embeddings: pooled and normalised hidden states, in both shapes, beside other requests."""

import base64
import threading
from types import SimpleNamespace

import numpy as np
import pytest

from llamacy.server.embeddings import pooling_of
from tests.generate.fakes import BOS, FakeModel, hidden_state
from tests.server.service import ask, error_of, post, serving

LONG = "a long text, longer than a step has room for. " * 5


def states(text):
    ids = np.array([BOS, *text.encode()])
    return np.stack([hidden_state(ids[: i + 1]) for i in range(len(ids))]).astype(np.float64)


def unit(vector):
    return vector / np.sqrt((vector * vector).sum())


POOLED = {"mean": lambda rows: rows.mean(axis=0), "last": lambda rows: rows[-1], "cls": lambda rows: rows[0]}


@pytest.fixture(scope="module", params=["mean", "last", "cls", "none"])
def pooling(request):
    with serving(pooling=request.param) as service:
        yield service, request.param


@pytest.mark.parametrize("path", ["/embedding", "/embeddings"])
@pytest.mark.parametrize("name", ["content", "input"])
def test_a_vector_for_each_text_or_each_token(pooling, path, name):
    service, kind = pooling
    texts = ["hello", LONG, "x"]
    answer = post(service, path, **{name: texts})
    assert [item["index"] for item in answer] == [0, 1, 2]
    for text, item in zip(texts, answer, strict=True):
        wanted = [unit(POOLED[kind](states(text)))] if kind != "none" else states(text)
        np.testing.assert_allclose(item["embedding"], wanted, rtol=1e-6)


def test_the_file_says_how_texts_are_pooled():
    """llama.cpp's numbers; a model that ranks texts is one that this server cannot pool as it should."""

    def of(**metadata):
        return SimpleNamespace(config=SimpleNamespace(architecture="llama"), metadata=metadata, path="m.gguf")

    named = {0: "none", 1: "mean", 2: "cls", 3: "last"}
    assert {value: pooling_of(of(**{"llama.pooling_type": value})) for value in named} == named
    assert pooling_of(of()) == "mean"
    for value in (4, -1, "mean"):
        with pytest.warns(UserWarning, match=r"m.gguf: llama.pooling_type is .*, which is not known"):
            assert pooling_of(of(**{"llama.pooling_type": value})) == "mean"


def test_openai(pooling):
    service, kind = pooling
    if kind == "none":
        assert error_of(service, "POST", "/v1/embeddings", {"input": "x"})[0] == 400
        return
    wanted = unit(POOLED[kind](states("hello")))
    answer = post(service, "/v1/embeddings", input="hello", model="any")
    assert (answer["object"], answer["model"], answer["usage"]) == (
        "list",
        "fake",
        {"prompt_tokens": 6, "total_tokens": 6},
    )
    (item,) = answer["data"]
    assert (item["object"], item["index"]) == ("embedding", 0)
    np.testing.assert_allclose(item["embedding"], wanted, rtol=1e-6)
    answer = post(service, "/v1/embeddings", input=[[BOS, *b"hello"], "hello"], encoding_format="base64", dimensions=8)
    for item in answer["data"]:
        vector = np.frombuffer(base64.b64decode(item["embedding"]), "<f4")
        np.testing.assert_allclose(vector, wanted, rtol=1e-6)


@pytest.mark.parametrize(
    ("kind", "norm"),
    [
        (-1, lambda v: 1),
        (0, lambda v: np.abs(v).max() / 32760),
        (1, lambda v: np.abs(v).sum()),
        (3, lambda v: (np.abs(v) ** 3).sum() ** (1 / 3)),
    ],
)
def test_other_norms(kind, norm):
    with serving(pooling="last") as service:
        vector = states("hello")[-1]
        answer = post(service, "/embedding", content="hello", embd_normalize=kind)
        np.testing.assert_allclose(answer[0]["embedding"][0], vector / norm(vector), rtol=1e-6)


def test_beside_requests_that_generate():
    with serving(FakeModel(adapters=1), n_slots=3) as service:
        texts, found = ["one", "two " * 30, "three"], {}
        alone = [post(service, "/completion", prompt=text, seed=1, n_predict=20)["content"] for text in texts]

        def generate(i):
            found[i] = post(service, "/completion", prompt=texts[i], seed=1, n_predict=20)["content"]

        def embed(i):
            found[i, "e"] = post(service, "/v1/embeddings", input=texts[i])["data"][0]["embedding"]

        threads = [threading.Thread(target=do, args=(i,)) for i in range(3) for do in (generate, embed)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for i, text in enumerate(texts):
            assert found[i] == alone[i]
            np.testing.assert_allclose(found[i, "e"], unit(states(text).mean(axis=0)), rtol=1e-6)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({}, "input: wanted"),
        ({"input": 5}, "input: wanted"),
        ({"input": [[999999]]}, "wanted a whole number"),
        ({"input": "x" * 300}, "context size"),
        ({"input": "x", "encoding_format": "text"}, "encoding_format: wanted"),
        ({"input": "x", "dimensions": 4}, "dimensions: wanted"),
    ],
)
def test_wrong_requests_are_refused(data, words):
    with serving() as service:
        status, message = error_of(service, "POST", "/v1/embeddings", data)
        assert status == 400 and words in message
        assert ask(service, "GET", "/v1/embeddings")[0] == 405
