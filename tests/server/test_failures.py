"""Whose fault it is: what a request asks for in vain is 400, the server's own failures are 500 or 503 and logged."""

import math

import numpy as np
import pytest

from llamacy.errors import LlamacyError
from tests.generate.fakes import N_VOCAB, FakeModel
from tests.server.service import error_of, events, post, serving

ASKED = {
    "/completion": {"prompt": "x"},
    "/v1/completions": {"prompt": "x"},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "x"}]},
}
EMBEDDINGS = ("/embedding", "/embeddings", "/v1/embeddings")
NOTHING = {"logit_bias": [[token, False] for token in range(N_VOCAB)]}


class BrokenModel(FakeModel):
    """Its rows of logits, or of hidden states, are `broken` throughout; None: whole."""

    broken = None

    def logits(self, seen, scales):
        row = super().logits(seen, scales)
        if self.broken is not None:
            row[:] = self.broken
        return row


@pytest.fixture(scope="module")
def broken():
    with serving(BrokenModel(), chat_template="chatml") as running:
        yield running


def failing(running, capfd, path, data, stream):
    """Return (status, type, message, lines on stderr) of a request that must fail, streamed or not."""
    capfd.readouterr()
    if not stream:
        status, message = error_of(running, "POST", path, data)
        kind = {400: "invalid_request_error", 500: "server_error", 503: "unavailable_error"}[status]
    else:
        (error,) = events(running, path, **data)[-1].values()
        status, message, kind = error["code"], error["message"], error["type"]
    return status, kind, message, capfd.readouterr().err.splitlines()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ASKED)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("temperature", [0, 1])
def test_logits_that_are_no_numbers_are_500(broken, capfd, path, value, temperature, stream):
    broken.model.broken = value
    data = {**ASKED[path], "temperature": temperature}
    status, kind, message, logged = failing(broken, capfd, path, data, stream)
    assert (status, kind) == (500, "server_error") and "logits are not finite" in message
    assert len(logged) == 1 and message in logged[0] and path in logged[0]
    # A wish that nothing may be chosen does not make it the request's fault.
    assert failing(broken, capfd, path, data | NOTHING, stream)[0] == 500
    broken.model.broken = None


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ASKED)
def test_a_request_that_forbids_everything_is_400(broken, capfd, path, stream):
    broken.model.broken = None
    for wish in (NOTHING, {"json_schema": {"const": "a"}, "logit_bias": [['"', False]]}):
        status, kind, message, logged = failing(broken, capfd, path, ASKED[path] | wish, stream)
        assert (status, kind, logged) == (400, "invalid_request_error", []) and "no token can be chosen" in message


@pytest.mark.parametrize("path", EMBEDDINGS)
def test_hidden_states_that_are_no_numbers_are_500(broken, capfd, monkeypatch, path):
    monkeypatch.setattr("tests.generate.fakes.hidden_state", lambda seen: np.array([1, math.nan], np.float32))
    status, kind, message, logged = failing(broken, capfd, path, {"input": "x"}, False)
    assert (status, kind) == (500, "server_error") and "hidden states are not finite" in message
    assert len(logged) == 1


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", [*ASKED, *EMBEDDINGS])
@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (LlamacyError("the step's result is not finite"), 500, "server_error"),
        (ZeroDivisionError("division by zero"), 500, "server_error"),
        (MemoryError("no room"), 503, "unavailable_error"),
    ],
)
def test_a_step_that_fails_is_not_the_request_s_fault(broken, capfd, path, error, status, kind, stream):
    if stream and path in EMBEDDINGS:
        return
    broken.model.broken, broken.model.fail = None, error
    data = ASKED.get(path, {"input": "x"})
    got, got_kind, message, logged = failing(broken, capfd, path, data, stream)
    assert (got, got_kind) == (status, kind) and str(error) in message
    assert len(logged) == 1 and str(error) in logged[0]
    broken.model.fail = None
    assert post(broken, "/completion", prompt="x", n_predict=1)["stop"]


@pytest.mark.parametrize(
    ("method", "path", "data"),
    [
        ("POST", "/completion", {"prompt": "x"}),
        ("POST", "/v1/chat/completions", ASKED["/v1/chat/completions"]),
        ("POST", "/tokenize", {"content": "x"}),
        ("POST", "/detokenize", {"tokens": [65]}),
        ("POST", "/apply-template", ASKED["/v1/chat/completions"]),
        ("POST", "/v1/embeddings", {"input": "x"}),
        ("GET", "/props", None),
    ],
)
def test_a_vocabulary_that_fails_is_500_everywhere(capfd, monkeypatch, method, path, data):
    with serving(chat_template="chatml") as running:

        def fail(*args, **how):
            raise LlamacyError("tokenizer.ggml.scores has 3 entries for 4 tokens")

        for name in ("encode", "decode", "token_bytes"):
            monkeypatch.setattr(type(running.model.tokenizer), name, fail)
        status, message = error_of(running, method, path, data)
        assert status == 500 and "has 3 entries" in message
        assert capfd.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_json_cannot_hold_is_500(broken, capfd, monkeypatch, stream):
    """What the application made of it is at fault, and the client still gets an answer."""
    monkeypatch.setattr("llamacy.server.api.timings_of", lambda timings: {"prompt_ms": math.nan})
    broken.model.broken = None
    data = {"prompt": "x", "n_predict": 1}
    status, kind, message, logged = failing(broken, capfd, "/completion", data, stream)
    assert (status, kind, len(logged)) == (500, "server_error", 1) and "ValueError" in message


def test_the_engine_outlives_what_fails_before_a_step(broken, monkeypatch):
    broken.model.broken = None

    def fail(*args, **how):
        raise MemoryError("no room for a batch")

    with monkeypatch.context() as patch:
        patch.setattr(broken.engine, "_alike", fail)
        assert error_of(broken, "POST", "/completion", {"prompt": "x"})[0] == 503
    with monkeypatch.context() as patch:
        patch.setattr("llamacy.generate.slot.Timings", fail)
        assert error_of(broken, "POST", "/completion", {"prompt": "x"})[0] == 503
    assert broken.engine.busy == 0
    assert post(broken, "/completion", prompt="x", n_predict=1)["stop"]
