"""Anything a client may send: never a traceback, a hang or a 500; always a whole answer or a closed connection."""

import json
import socket

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamacy.server.options import OPTIONS
from tests.server.service import ask, serving, wait_until


@pytest.fixture(scope="module")
def service():
    with serving(n_ctx=48, chat_template="chatml") as running:
        yield running


leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6) | st.integers(0, 300)
values = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["id", "scale", "role", "content", "type", "text", "schema", "a"]), inner, max_size=4
        )
    ),
    max_leaves=8,
)
FIELDS = [
    *OPTIONS,
    *[
        "prompt",
        "messages",
        "lora",
        "logit_bias",
        "response_format",
        "json_schema",
        "grammar",
        "tools",
        "n",
        "logprobs",
    ],
    *["n_cmpl", "response_fields", "speculative.n_max", "adaptive_target", "best_of", "repetition_penalty"],
    *["top_logprobs", "stream_options", "echo", "suffix", "content", "tokens", "add_special", "with_pieces"],
]
PATHS = [
    *["/completion", "/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize", "/apply-template"],
    "/lora-adapters",
]
GOOD = {"prompt": "x", "messages": [{"role": "user", "content": "x"}], "content": "x", "tokens": [65], "n_predict": 3}


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(PATHS), st.dictionaries(st.sampled_from(FIELDS), values, max_size=3))
def test_any_fields(service, path, fields):
    raw = json.dumps({**GOOD, **fields}).encode()
    status, answer, headers = ask(service, "POST", path, raw=raw)
    assert status in (200, 400), (status, answer)
    if status == 400:
        assert answer["error"]["message"] and "\n" not in answer["error"]["message"].strip()
    elif headers["Content-Type"] == "text/event-stream":
        assert answer.endswith("\n\n")
    wait_until(lambda: service.engine.busy == service.engine.queued == 0)


@settings(max_examples=150, deadline=None)
@given(values, st.sampled_from(PATHS))
def test_any_json(service, value, path):
    assert ask(service, "POST", path, raw=json.dumps(value).encode())[0] in (200, 400)


lines = st.sampled_from(
    [
        *[
            b"POST /completion HTTP/1.1\r\n",
            b"GET /health HTTP/1.1\r\n",
            b"Content-Length: 5\r\n",
            b"Content-Length: 99\r\n",
        ],
        *[
            b"Transfer-Encoding: chunked\r\n",
            b"Expect: 100-continue\r\n",
            b"\r\n",
            b"5\r\nhello\r\n",
            b"0\r\n\r\n",
            b"{}",
            b":\n",
        ],
        *[
            b'Content-Length: 31\r\n\r\n{"prompt": "x", "n_predict": 1}',
            b"OPTIONS * HTTP/1.0\r\n",
            b"Connection: close\r\n",
        ],
    ]
)


@settings(max_examples=150, deadline=None)
@given(st.lists(lines | st.binary(max_size=12), max_size=8))
def test_any_bytes(service, parts):
    with socket.create_connection(("127.0.0.1", service.port), timeout=10) as connection:
        connection.sendall(b"".join(parts))
        connection.shutdown(socket.SHUT_WR)
        received = b""
        while part := connection.recv(65536):
            received += part
    assert b"Traceback" not in received and b" 500 " not in received
    assert received == b"" or received.startswith(b"HTTP/1.1 ") or b"HTTP" not in received
    assert ask(service, "GET", "/health")[0] == 200
