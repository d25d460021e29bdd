"""Who may ask: keys before bodies, foreign names and pages, compressed bodies, memory, half-closed and idle clients."""

import gzip
import socket
import ssl
import time
import zlib
from pathlib import Path

import pytest

from llamacy.errors import LlamacyError
from llamacy.generate.request import Request
from llamacy.server import bodies, listening
from llamacy.server.guard import Guard
from llamacy.server.listening import Server, tls_context
from tests.server.service import ask, error_of, events, open_request, post, serving, talk, wait_until

BODY = b'{"prompt": "x", "n_predict": 2}'
TLS = Path(__file__).parents[1] / "data" / "tls"


@pytest.fixture(scope="module")
def keyed():
    with serving(api_keys=("secret",)) as running:
        yield running


@pytest.fixture(scope="module")
def local():
    with serving(guard=Guard(hosts=("llm.example",), origins=("https://page.example",))) as running:
        yield running


def statuses(received):
    return [int(part.split(b" ")[0]) for part in received.split(b"HTTP/1.1 ")[1:]]


def test_the_key_is_asked_for_before_the_body(keyed):
    """A body that was announced but never sent: the answer is there all the same."""
    head = b"POST /completion HTTP/1.1\r\nContent-Length: 900000\r\n\r\n"
    assert statuses(talk(keyed, head, until=b"}}", timeout=5)) == [401]
    expecting = b"POST /completion HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 9\r\n\r\n"
    assert statuses(talk(keyed, expecting, until=b"}}", timeout=5)) == [401]


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_bearer_in_any_case(keyed, scheme):
    assert ask(keyed, "POST", "/completion", raw=BODY, headers={"Authorization": f"{scheme} secret"})[0] == 200
    assert ask(keyed, "POST", "/completion", raw=BODY, headers={"Authorization": f"{scheme} wrong"})[0] == 401


@pytest.mark.parametrize(
    ("host", "status"),
    [("127.0.0.1:80", 200), ("localhost", 200), ("a.localhost:1", 200), ("[::1]:80", 200), ("llm.example:8080", 200),
     ("container:8080", 200), ("evil.example", 403), ("evil.example:8080", 403), ("127.0.0.1.evil.example", 403)],
)  # fmt: skip
def test_hosts(local, host, status):
    assert ask(local, "GET", "/health", headers={"Host": host})[0] == status


def test_origins(local):
    """A page that may not ask is refused, not only kept from reading the answer."""
    foreign, known = {"Origin": "https://evil.example"}, {"Origin": "https://page.example"}
    assert error_of(local, "POST", "/completion", raw=BODY, headers=foreign)[0] == 403
    assert "Access-Control-Allow-Origin" not in ask(local, "GET", "/health", headers=foreign)[2]
    status, _, headers = ask(local, "POST", "/completion", raw=BODY, headers=known)
    assert status == 200 and headers["Access-Control-Allow-Origin"] == "https://page.example"


def test_only_own_pages_and_keys_change_the_server(keyed):
    with serving() as running:
        for headers, status in (
            ({"Origin": "https://page.example"}, 403),
            ({"Origin": "null"}, 403),
            ({"Origin": f"http://127.0.0.1:{running.port}"}, 200),
            ({}, 200),
        ):
            assert ask(running, "POST", "/lora-adapters", [], headers=headers)[0] == status, headers
    with_key = {"Origin": "https://page.example", "Authorization": "Bearer secret"}
    assert ask(keyed, "POST", "/lora-adapters", [], headers=with_key)[0] == 200


@pytest.mark.parametrize("coding", ["gzip", "deflate", "raw"])
def test_compressed_bodies(coding):
    packer = zlib.compressobj(wbits=-15)
    raw = {"gzip": gzip.compress(BODY), "deflate": zlib.compress(BODY), "raw": packer.compress(BODY) + packer.flush()}
    with serving() as running:
        name = {"Content-Encoding": "deflate" if coding == "raw" else coding}
        assert ask(running, "POST", "/completion", raw=raw[coding], headers=name)[1]["tokens_predicted"] == 2
        status, message = error_of(running, "POST", "/completion", raw=BODY, headers={"Content-Encoding": "br"})
        assert status == 415 and message.startswith("Content-Encoding: wanted gzip")
        for data in (raw[coding][:-3], BODY):
            assert error_of(running, "POST", "/completion", raw=data, headers=name)[0] == 400
        bomb = {"gzip": gzip.compress, "deflate": zlib.compress, "raw": zlib.compress}[coding](b" " * (2 << 20))
        assert error_of(running, "POST", "/completion", raw=bomb, headers=name)[0] == 413


def test_the_memory_of_all_bodies_is_bounded(monkeypatch):
    with serving() as running:
        running.server.memory = bodies.BodyMemory(300_000)
        head = b"POST /completion HTTP/1.1\r\nContent-Length: 900000\r\n\r\n"
        holders = [socket.create_connection(("127.0.0.1", running.port)) for _ in range(2)]
        for holder in holders:
            holder.sendall(head + b"x" * 260_000)
        wait_until(lambda: running.server.memory._used > 200_000)
        status, message = error_of(running, "POST", "/completion", raw=b" " * 200_000 + BODY)
        assert status == 503 and "bodies of" in message
        assert post(running, "/completion", prompt="x", n_predict=1)["stop"]  # a small one always finds room
        for holder in holders:
            holder.close()
        wait_until(lambda: running.server.memory._used == 0)
        assert ask(running, "POST", "/completion", raw=b" " * 200_000 + BODY)[0] == 200
        wait_until(lambda: running.server.memory._used == 0)


@pytest.mark.parametrize("stream", [False, True])
def test_half_closed_clients_get_their_answer(stream):
    """printf ... | nc -N: the request is all that they send, and they wait for the answer."""
    with serving() as running:
        running.session.gate.clear()
        data = {"prompt": "x", "n_predict": 3, "stream": stream}
        client = open_request(running, "/completion", data)
        client.shutdown(socket.SHUT_WR)
        wait_until(lambda: running.engine.busy == 1)
        time.sleep(0.5)  # long enough for the server to have looked
        assert not running.engine.slots[0].request.cancelled
        running.session.gate.set()
        received = b""
        while part := client.recv(65536):
            received += part
        assert statuses(received)[-1] == 200 and b'"stop": true' in received


def test_a_cut_request_line_is_400(keyed):
    with socket.create_connection(("127.0.0.1", keyed.port), timeout=5) as client:
        client.sendall(b"GET /health HTTP/1.1")
        client.shutdown(socket.SHUT_WR)
        assert statuses(client.recv(65536)) == [400]


def test_idle_connections_make_room(monkeypatch):
    monkeypatch.setattr(listening, "MAX_CONNECTIONS", 3)
    monkeypatch.setattr(listening, "SPARE_SECONDS", 0.2)
    with serving() as running:
        busy = open_request(running, "/completion", {"prompt": "x", "n_predict": 3})
        running.session.gate.clear()
        held = [socket.create_connection(("127.0.0.1", running.port)) for _ in range(2)]
        held[0].sendall(b"POST /completion HTTP/1.1\r\n")
        wait_until(lambda: running.server._room._value == 0)
        time.sleep(0.3)
        for _ in range(4):
            assert ask(running, "GET", "/health")[0] == 200
        running.session.gate.set()
        assert statuses(busy.recv(65536)) == [200]  # who is being answered keeps its connection


def test_tls():
    context = ssl.create_default_context(cafile=TLS / "cert.pem")
    with serving(tls=tls_context(TLS / "key.pem", TLS / "cert.pem")) as running:
        with socket.create_connection(("127.0.0.1", running.port), timeout=5) as raw:
            assert raw.send(b"GET /health HTTP/1.1\r\n\r\n") and b"200" not in raw.recv(100)
        with (
            socket.create_connection(("127.0.0.1", running.port), timeout=5) as raw,
            context.wrap_socket(raw, server_hostname="localhost") as client,
        ):
            client.sendall(b"POST /completion HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY)
            assert statuses(client.recv(65536)) == [200]
        running.session.gate.clear()
        raw = socket.create_connection(("127.0.0.1", running.port), timeout=5)
        client = context.wrap_socket(raw, server_hostname="localhost")
        client.sendall(b"POST /completion HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY)
        wait_until(lambda: running.engine.busy == 1)
        client.close()
        wait_until(lambda: running.engine.slots[0].request.cancelled)
        assert running.server.url.startswith("https://")
    with pytest.raises(LlamacyError, match=r"^--ssl-key-file .*wanted a key and its certificate"):
        tls_context(TLS / "cert.pem", TLS / "cert.pem")
    with pytest.raises(LlamacyError, match="No such file"):
        tls_context("nothing.pem", TLS / "cert.pem")


def test_unix_sockets(tmp_path):
    path = tmp_path / "llamacy.sock"
    with serving(host=str(path)) as running:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            client.sendall(b"POST /completion HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY)
            assert statuses(client.recv(65536)) == [200]
        with pytest.raises(LlamacyError, match="cannot listen on .*llamacy.sock"):
            Server(str(path), 0, None)
        assert running.server.is_local
    assert not path.exists()
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    with serving(host=str(path)):  # what a server left behind is no obstacle
        assert path.exists()


def test_long_texts_are_refused_before_they_are_cut_into_tokens(keyed):
    keyed.model.tokenizer.encode, encode = None, keyed.model.tokenizer.encode
    headers = {"Authorization": "Bearer secret"}
    try:
        data = {"prompt": "x" * 2000}
        status, answer, _ = ask(keyed, "POST", "/completion", data, headers=headers)
        assert status == 400
        assert answer["error"]["type"] == "exceed_context_size_error" and answer["error"]["n_ctx"] == 256
    finally:
        keyed.model.tokenizer.encode = encode


def test_many_inputs_are_one_request():
    with serving(max_queue=2, n_slots=2) as running:
        answers = post(running, "/completion", prompt=["a"] * 300, n_predict=1)
        assert len(answers) == 300 and {answer["stop"] for answer in answers} == {True}
        found = post(running, "/v1/embeddings", input=[chr(97 + i % 26) for i in range(300)])
        assert [item["index"] for item in found["data"]] == list(range(300))
        assert found["data"][0]["embedding"] != found["data"][1]["embedding"] == found["data"][27]["embedding"]
        assert error_of(running, "POST", "/completion", {"prompt": ["a"] * 2049})[0] == 400


def test_a_short_chat_does_not_wait_for_a_long_list(monkeypatch):
    ended, end = [], Request.end
    monkeypatch.setattr(Request, "end", lambda self, result: (ended.append(len(self.prompt)), end(self, result)))
    with serving(n_slots=1, max_queue=8) as running:
        running.session.gate.clear()
        long = open_request(running, "/completion", {"prompt": ["abc"] * 60, "n_predict": 4, "ignore_eos": True})
        wait_until(lambda: running.engine.busy == 1)
        short = open_request(running, "/completion", {"prompt": "wxyz", "n_predict": 4, "ignore_eos": True})
        wait_until(lambda: len(running.engine._queue) == 2)
        running.session.gate.set()
        assert statuses(short.recv(65536)) == [200]
        # its own turn came after the one that was at work, and perhaps one more of the list
        assert ended.index(max(ended)) <= 3
        long.close()


def test_embeddings_leave_a_stream_its_turns():
    with serving(n_slots=4, n_ctx=2048, batch_size=512) as running:
        running.session.gate.clear()
        stream = open_request(
            running, "/completion", {"prompt": "x", "n_predict": 40, "ignore_eos": True, "stream": True}
        )
        wait_until(lambda: running.engine.busy == 1)
        texts = open_request(running, "/v1/embeddings", {"input": ["a" * 1000] * 12})
        wait_until(lambda: running.engine.queued == 12)
        running.session.gate.set()
        received = b""
        while b"[DONE]" not in received and b'"stop": true' not in received:
            received += stream.recv(65536)
        sizes = running.session.steps[2:70]
        # Every other step is the stream's, and the embeddings' own are no longer than the prompt share.
        assert sizes.count(1) >= 30 and max(sizes) <= 128
        texts.close()


def test_contexts_that_overflow_are_said_as_others_say_it():
    with serving(n_ctx=32, chat_template="chatml") as running:
        data = {"messages": [{"role": "user", "content": "x" * 100}]}
        status, answer, _ = ask(running, "POST", "/v1/chat/completions", data)
        error = answer["error"]
        assert status == 400 and error["type"] == "exceed_context_size_error"
        assert error["code"] == "context_length_exceeded" and error["n_prompt_tokens"] == 151 and error["n_ctx"] == 32
        assert "this model's maximum context length is 32 tokens" in error["message"]
        assert ask(running, "POST", "/completion", {"prompt": "x" * 100})[1]["error"]["code"] == 400


def test_events_are_not_held_back(keyed):
    with serving() as running:
        assert events(running, "/completion", prompt="x", n_predict=1)
        assert (
            ask(running, "POST", "/completion", {"prompt": "x", "n_predict": 1, "stream": True})[2]["X-Accel-Buffering"]
            == "no"
        )
