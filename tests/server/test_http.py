"""The wire: limits, wrong requests, keep-alive, keys, CORS, clients that hang up, loading, shutting down."""

import json
import re
import socket
import threading
import time

import pytest

from llamacy.errors import LlamacyError
from llamacy.server import http as wire
from llamacy.server import listening
from llamacy.server.listening import Server
from tests.generate.fakes import FakeModel
from tests.server.service import ask, error_of, events, open_request, post, serving, talk, wait_until

ENDLESS = {"prompt": "on and on", "ignore_eos": True, "n_predict": 200}


@pytest.fixture(scope="module")
def service():
    with serving() as running:
        yield running


@pytest.fixture
def fresh():
    with serving(n_slots=1, max_queue=2) as running:
        yield running


def statuses(received):
    return [int(part.split(b" ")[0]) for part in received.split(b"HTTP/1.1 ")[1:]]


def test_health_and_pages(service):
    assert ask(service, "GET", "/health")[:2] == (200, {"status": "ok"})
    assert ask(service, "GET", "/v1/health")[0] == 200
    status, text, headers = ask(service, "GET", "/")
    assert status == 200 and headers["Content-Type"] == "text/html; charset=utf-8" and "<!doctype html>" in text
    status, text, headers = ask(service, "HEAD", "/health")
    assert (status, text, headers["Content-Length"]) == (200, "", "16")


def test_the_page_needs_nothing_from_elsewhere(service):
    _, text, headers = ask(service, "GET", "/")
    assert headers["Content-Security-Policy"].startswith("default-src 'none'; style-src 'self'; script-src 'self'")
    parts = re.findall(r'(?:src|href)="(web/[^"]+)"', text)
    waiting, seen = [f"/{part}" for part in parts], set()
    while waiting:
        path = waiting.pop()
        seen.add(path)
        status, source, headers = ask(service, "GET", path)
        assert status == 200 and headers["Content-Type"].startswith(("text/css", "text/javascript"))
        assert not re.search(r"https?://[a-z]+\.|@import|url\(", source)
        waiting += {"/web/" + name for name in re.findall(r'from "\./([^"]+)"', source)} - seen
    assert not re.search(r"https?://|@import|<script(?![^>]+src)|<style", text)
    assert len(seen) >= 7
    assert error_of(service, "GET", "/web/../app.py")[0] == error_of(service, "GET", "/web/none.js")[0] == 404


def test_props_and_slots(service):
    _, props, _ = ask(service, "GET", "/props")
    assert props["total_slots"] == 2 and props["default_generation_settings"]["n_ctx"] == 256
    assert props["model_path"] == "fake.gguf" and props["model_alias"] == "fake"
    _, slots, _ = ask(service, "GET", "/slots")
    assert [slot["id"] for slot in slots] == [0, 1] and not any(slot["is_processing"] for slot in slots)


@pytest.mark.parametrize(
    ("method", "path", "status", "message"),
    [
        ("GET", "/nothing", 404, "no such path: '/nothing'"),
        ("POST", "/nothing", 404, "no such path: '/nothing'"),
        ("GET", "/completion", 405, "/completion: wanted POST, got GET"),
        ("POST", "/health", 405, "/health: wanted GET, got POST"),
        ("DELETE", "/lora-adapters", 405, "/lora-adapters: wanted GET or POST, got DELETE"),
        ("BREW", "/completion", 405, "/completion: wanted POST, got BREW"),
        ("GET", "/embedding", 405, "/embedding: wanted POST, got GET"),
        ("GET", "/metrics", 404, "/metrics is off: start the server with --metrics"),
        ("GET", "/../etc/passwd", 404, "no such path: '/../etc/passwd'"),
    ],
)
def test_paths_and_methods(service, method, path, status, message):
    assert error_of(service, method, path) == (status, message)


def test_allow_names_the_methods(service):
    assert ask(service, "GET", "/completion")[2]["Allow"] == "POST"


def test_a_query_does_not_change_the_path(service):
    assert ask(service, "GET", "/health?x=1")[0] == 200
    assert ask(service, "GET", "/slots?fail_on_no_slot=1")[0] == 200


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "the body is not JSON"),
        (b"{", "the body is not JSON"),
        (b'{"prompt": NaN}', "the body is not JSON: NaN is not a number in JSON"),
        (b'{"prompt": -Infinity}', "the body is not JSON: -Infinity is not a number"),
        (b"\xff\xfe\xfa", "the body is not JSON"),
        (b"[" * 100000, "the body's JSON is nested too deeply"),
        (b'{"temperature": 1e999}', "temperature: wanted a number, got inf"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "the body is not JSON"),
        (b"null", "the body: wanted an object, got null"),
        (b'"text"', "the body: wanted an object, got 'text'"),
    ],
)
def test_bodies_that_are_no_request(service, raw, message):
    status, got = error_of(service, "POST", "/completion", raw=raw)
    assert status == 400 and got.startswith(message)


def test_content_types(service):
    body = b'{"prompt": "x", "n_predict": 1}'
    for kind in ("text/plain", "application/x-www-form-urlencoded", "nonsense", "application/json", "a/b; c=d"):
        assert ask(service, "POST", "/completion", raw=body, headers={"Content-Type": kind})[0] == 200
    request = b"POST /completion HTTP/1.1\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body)
    assert statuses(talk(service, request + body)) == [200]


def test_surrogates_and_unicode_come_back(service):
    answer = post(service, "/completion", prompt="日本 \ud83d\ude00", n_predict=1)
    assert answer["prompt"] == "日本 \U0001f600"
    assert ask(service, "POST", "/detokenize", raw=b'{"tokens": [0]}')[1] == {"content": "\x00"}
    assert error_of(service, "POST", "/tokenize", raw=b'{"content": ["\\ud800"]}')[0] == 400


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET /health HTTP/9.9\r\n\r\n", 505),
        (b"GET / HTTP/1.1 extra\r\n\r\n", 400),
        (b"GET /" + b"x" * 70000 + b" HTTP/1.1\r\n\r\n", 414),
        (b"GET /health HTTP/1.1\r\nA: " + b"x" * 70000 + b"\r\n\r\n", 431),
        (b"GET /health HTTP/1.1\r\n" + b"A: b\r\n" * 200 + b"\r\n", 431),
        (b"GET http://[::1 HTTP/1.1\r\nConnection: close\r\n\r\n", 400),
        (b"POST /completion HTTP/1.1\r\nContent-Length: -5\r\n\r\n", 400),
        (b"POST /completion HTTP/1.1\r\nContent-Length: x\r\n\r\n", 400),
        (b"POST /completion HTTP/1.1\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabc", 400),
        (b"POST /completion HTTP/1.1\r\nContent-Length: 9999999999\r\n\r\n", 413),
        (b"POST /completion HTTP/1.1\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n", 413),
        (b"POST /completion HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n", 400),
        (b"POST /completion HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n", 400),
        (b"POST /completion HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
        (b"POST /completion HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n", 400),
        (b"POST /completion HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nffffffff\r\n", 413),
        (b"POST /completion HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\naXY\r\n0\r\n\r\n", 400),
    ],
)
def test_wrong_requests_get_an_error_object_and_a_closed_connection(service, request_bytes, status):
    received = talk(service, request_bytes)
    head, _, body = received.partition(b"\r\n\r\n")
    assert statuses(received) == [status]
    assert json.loads(body)["error"]["code"] == status
    assert b"Connection: close" in head
    assert ask(service, "GET", "/health")[0] == 200


def test_a_body_over_the_limit_is_answered_while_it_is_sent(service):
    body = b"x" * (4 << 20)
    status, message = error_of(service, "POST", "/completion", raw=body)
    assert status == 413 and "over the limit of 1048576 bytes" in message


def test_expect_100(service):
    body = b'{"prompt": "x", "n_predict": 1}'
    head = b"POST /completion HTTP/1.1\r\nExpect: 100-continue\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
    assert statuses(talk(service, head % len(body) + body)) == [100, 200]
    assert statuses(talk(service, head % (1 << 30))) == [413]


def test_chunked_requests(service):
    body = b'{"prompt": "x", "n_predict": 1}'
    head = b"POST /completion HTTP/1.1\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunks = b"5\r\n" + body[:5] + b"\r\n%x;ext=1\r\n" % (len(body) - 5) + body[5:] + b"\r\n0\r\nTrailer: x\r\n\r\n"
    assert statuses(talk(service, head + chunks)) == [200]


def test_keep_alive_and_pipelining(service):
    one = b'POST /tokenize HTTP/1.1\r\nContent-Length: 16\r\n\r\n{"content": "a"}'
    last = b"GET /health HTTP/1.1\r\nConnection: close\r\n\r\n"
    assert statuses(talk(service, one * 3 + b"GET /nothing HTTP/1.1\r\n\r\n" + last)) == [200, 200, 200, 404, 200]


def test_http_1_0_closes_and_streams_without_chunks(service):
    assert b"Connection: close" in talk(service, b"GET /health HTTP/1.0\r\n\r\n")
    body = b'{"prompt": "x", "n_predict": 2, "stream": true}'
    received = talk(service, b"POST /completion HTTP/1.0\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    assert b"chunked" not in received
    payload = received.partition(b"\r\n\r\n")[2]
    assert payload.startswith(b"data: {") and payload.endswith(b"}\n\n")


def test_slow_requests_are_given_up(monkeypatch):
    monkeypatch.setattr(wire, "HEADER_SECONDS", 0.3)
    monkeypatch.setattr(wire, "IDLE_SECONDS", 0.3)
    with serving(timeout_seconds=0.4) as running:
        begin = time.monotonic()
        assert talk(running, b"") == b""
        assert statuses(talk(running, b"POST /completion HTTP/1.1\r\nA")) == [408]
        assert statuses(talk(running, b"POST /completion HTTP/1.1\r\nContent-Length: 5\r\n\r\nab")) == [408]
        # Bytes that trickle in do not help.
        with socket.create_connection(("127.0.0.1", running.port), timeout=5) as connection:
            for byte in b"GET /health HTTP/1.1\r\n":
                try:
                    connection.sendall(bytes([byte]))
                except OSError:
                    break
                time.sleep(0.05)
        assert time.monotonic() - begin < 4
        assert ask(running, "GET", "/health")[0] == 200


def test_too_many_connections(monkeypatch):
    monkeypatch.setattr(listening, "MAX_CONNECTIONS", 3)
    with serving() as running:
        held = [socket.create_connection(("127.0.0.1", running.port)) for _ in range(3)]
        wait_until(lambda: running.server._room._value == 0)
        assert statuses(talk(running, b"GET /health HTTP/1.1\r\n\r\n")) == [503]
        for connection in held:
            connection.close()
        wait_until(lambda: running.server._room._value == 3)
        assert ask(running, "GET", "/health")[0] == 200


def test_api_keys():
    with serving(api_keys=("secret", "schlüssel")) as running:
        data = {"prompt": "x", "n_predict": 1}
        for headers in (
            {"Authorization": "Bearer secret"},
            {"X-Api-Key": "secret"},
            {"Authorization": "Bearer " + "schlüssel".encode().decode("latin-1")},
        ):
            assert ask(running, "POST", "/completion", data, headers=headers)[0] == 200
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Bearer "}, {"X-Api-Key": "secre"}):
            assert error_of(running, "POST", "/completion", data, headers=headers) == (401, "Invalid API Key")
        assert error_of(running, "GET", "/slots")[0] == 401
        assert error_of(running, "GET", "/nothing")[0] == 401
        assert ask(running, "GET", "/health")[0] == 200 and ask(running, "GET", "/")[0] == 200
        assert ask(running, "GET", "/slots")[2]["WWW-Authenticate"] == "Bearer"


def test_cors(service):
    _, _, headers = ask(service, "GET", "/health", headers={"Origin": "http://page.example"})
    assert headers["Access-Control-Allow-Origin"] == "http://page.example"
    wanted = {"Origin": "http://page.example", "Access-Control-Request-Headers": "authorization"}
    status, text, headers = ask(service, "OPTIONS", "/completion", headers=wanted)
    assert (status, text) == (200, "") and headers["Access-Control-Allow-Headers"] == "authorization"
    assert headers["Access-Control-Allow-Methods"] == "GET, POST, DELETE, OPTIONS"
    assert "Access-Control-Allow-Origin" not in ask(service, "GET", "/health")[2]
    # Errors have them too, or a page could not read why.
    assert "Access-Control-Allow-Origin" in ask(service, "GET", "/nothing", headers={"Origin": "http://x"})[2]


def test_while_loading_everything_but_the_page_is_503():
    with serving(loaded=False) as running:
        assert error_of(running, "GET", "/health") == (503, "Loading model")
        assert error_of(running, "POST", "/completion", {"prompt": "x"}) == (503, "Loading model")
        assert error_of(running, "GET", "/nothing")[0] == 404
        assert ask(running, "GET", "/")[0] == 200


def test_without_the_page():
    with serving(with_page=False) as running:
        assert error_of(running, "GET", "/")[0] == 404


def test_metrics():
    with serving(with_metrics=True) as running:
        post(running, "/completion", prompt="abcd", n_predict=3, ignore_eos=True)
        status, text, headers = ask(running, "GET", "/metrics")
        values = dict(line.split(" ") for line in text.splitlines() if not line.startswith("#"))
        assert status == 200 and headers["Content-Type"].startswith("text/plain; version=0.0.4")
        assert values["llamacpp:prompt_tokens_total"] == "5"
        assert values["llamacpp:tokens_predicted_total"] == "3"
        assert float(values["llamacpp:prompt_seconds_total"]) > 0
        assert values["llamacpp:requests_processing"] == "0"
        assert values["llamacpp:kv_cache_tokens"] == values["llamacpp:n_tokens_max"] == "7"


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_hangs_up_frees_its_slot(fresh, stream):
    fresh.session.gate.clear()
    gone = open_request(fresh, "/completion", {**ENDLESS, "stream": stream})
    wait_until(lambda: fresh.engine.busy == 1)
    queued = open_request(fresh, "/completion", {**ENDLESS, "stream": stream})
    wait_until(lambda: fresh.engine.queued == 1)
    gone.close()
    queued.close()
    wait_until(lambda: fresh.engine.slots[0].request.cancelled and fresh.engine._queue[0][0].cancelled)
    fresh.session.gate.set()
    wait_until(lambda: fresh.engine.busy == fresh.engine.queued == 0)
    assert post(fresh, "/completion", prompt="next", n_predict=2)["tokens_predicted"] == 2


def test_a_client_that_hangs_up_in_the_middle_of_a_stream():
    class Slow(FakeModel):
        def logits(self, seen, scales):
            time.sleep(0.01)
            return super().logits(seen, scales)

    with serving(Slow(), n_slots=1) as running:
        gone = open_request(running, "/completion", {**ENDLESS, "stream": True})
        assert gone.recv(100)
        gone.close()
        wait_until(lambda: running.engine.busy == 0, seconds=1.5)
        assert running.engine.slots[0].timings.predicted_n < 150


def test_hanging_up_in_the_middle_of_a_prompt():
    model = FakeModel()
    with serving(model, n_slots=1, n_ctx=4096) as running:
        running.engine.batch_size = 16
        original, seen = running.session.step, []

        def step(*args, **more):
            seen.append(1)
            time.sleep(0.02)
            return original(*args, **more)

        running.session.step = step
        gone = open_request(running, "/completion", {"prompt": "x" * 3000, "n_predict": 1})
        wait_until(lambda: len(seen) > 3)
        gone.close()
        wait_until(lambda: running.engine.busy == 0, seconds=2)
        assert len(seen) < 3000 / 16 / 2


def test_a_full_queue_is_429(fresh):
    fresh.session.gate.clear()
    open_ones = [open_request(fresh, "/completion", ENDLESS)]
    wait_until(lambda: fresh.engine.busy == 1)
    open_ones += [open_request(fresh, "/completion", ENDLESS) for _ in range(2)]
    wait_until(lambda: fresh.engine.queued == 2)
    status, answer, headers = ask(fresh, "POST", "/completion", {"prompt": "x"})
    assert status == 429 and "2 requests are waiting" in answer["error"]["message"]
    assert answer["error"]["type"] == "rate_limit_error" and headers["Retry-After"] == "1"
    # Several prompts in one request: none of them stays behind when there is no room for all.
    assert error_of(fresh, "POST", "/completion", {"prompt": ["a"] * 3})[0] == 429
    assert fresh.engine.queued == 2
    status, slots, _ = ask(fresh, "GET", "/slots")
    assert slots[0]["is_processing"] and slots[0]["params"]["n_predict"] == 200
    assert error_of(fresh, "GET", "/slots?fail_on_no_slot=1") == (503, "no slot available")
    for connection in open_ones:
        connection.close()


def test_many_clients_at_once_get_their_own_text():
    with serving(n_slots=3, max_queue=64) as running:
        expected = {p: post(running, "/completion", prompt=p, n_predict=15, seed=1)["content"] for p in "abcdefgh"}
        wrong = []

        def client(prompt, stream):
            data = {"prompt": prompt, "n_predict": 15, "seed": 1}
            if stream:
                text = "".join(part["content"] for part in events(running, "/completion", **data))
            else:
                text = post(running, "/completion", **data)["content"]
            if text != expected[prompt]:
                wrong.append((prompt, text))

        threads = [threading.Thread(target=client, args=(p, i % 2)) for i, p in enumerate("abcdefgh" * 3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert not wrong and not any(thread.is_alive() for thread in threads)


def test_an_internal_failure_is_500_and_the_server_goes_on(capfd):
    model = FakeModel()
    with serving(model) as running:
        model.fail = ValueError("something\nbroke")
        status, message = error_of(running, "POST", "/completion", {"prompt": "x"})
        assert (status, message) == (500, "internal error: ValueError: something\nbroke")
        assert capfd.readouterr().err.count("\n") == 1
        model.fail = MemoryError("no room")
        assert error_of(running, "POST", "/completion", {"prompt": "x"})[0] == 503
        model.fail = None
        assert post(running, "/completion", prompt="x", n_predict=1)["stop"]


def test_closing_answers_those_who_wait():
    with serving(n_slots=1) as running:
        running.session.gate.clear()
        waiting = [open_request(running, "/completion", ENDLESS) for _ in range(2)]
        wait_until(lambda: running.engine.queued == 1)
        closer = threading.Thread(target=running.engine.close)
        closer.start()
        running.session.gate.set()
        closer.join(5)
        assert error_of(running, "POST", "/completion", {"prompt": "x"}) == (503, "the server is shutting down")
        for connection in waiting:
            assert statuses(connection.recv(65536)) == [503]
            connection.close()


def test_a_taken_port_and_an_unknown_host_are_one_line(service):
    with pytest.raises(LlamacyError, match=r"^cannot listen on 127.0.0.1:\d+: .*; choose another --port"):
        Server("127.0.0.1", service.port, None)
    with pytest.raises(LlamacyError, match="--host no.such.host.invalid: cannot be resolved"):
        Server("no.such.host.invalid", 0, None)
    with pytest.raises(LlamacyError, match="cannot be resolved|cannot listen"):
        Server("x" * 300, 0, None)
