"""A server on a free port of 127.0.0.1 over a model without weights, and small clients for it."""

import contextlib
import http.client
import json
import socket
import threading
import time
from types import SimpleNamespace

from llamacy.generate.engine import Engine
from llamacy.server.app import Application
from llamacy.server.guard import Guard
from llamacy.server.listening import Server
from tests.generate.fakes import FakeModel


@contextlib.contextmanager
def serving(
    model=None,
    *,
    n_slots=2,
    n_ctx=256,
    max_queue=16,
    loaded=True,
    timeout_seconds=20,
    max_body=1 << 20,
    context_shift=False,
    batch_size=None,
    guard=None,
    api_keys=(),
    tls=None,
    host="127.0.0.1",
    **app,
):
    """Run a server; yields (app, server, engine, session, port)."""
    application = Application(alias="fake", guard=guard or Guard(api_keys=api_keys), **app)
    server = Server(host, 0, application, timeout_seconds=timeout_seconds, max_body=max_body, tls=tls)
    engine = None
    if loaded:
        model = model or FakeModel()
        more = {"context_shift": context_shift, "batch_size": batch_size}
        engine = Engine(model, n_slots=n_slots, n_ctx=n_ctx, max_queue=max_queue, **more)
        application.ready(model, engine)
        engine.start()
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    port = server.server_port
    try:
        yield SimpleNamespace(
            app=application, server=server, engine=engine, port=port, session=engine and engine.session, model=model
        )
    finally:
        if engine:
            if hasattr(engine.session, "gate"):
                engine.session.gate.set()
            engine.close()
        server.finish(2)


def ask(service, method, path, data=None, *, raw=None, headers=None):
    """Send one request; return (status, parsed JSON or text, headers)."""
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=20)
    body = raw if raw is not None else (None if data is None else json.dumps(data))
    default = {} if body is None else {"Content-Type": "application/json"}
    connection.request(method, path, body, {**default, **(headers or {})})
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    is_json = (answer.headers.get("Content-Type") or "").startswith("application/json")
    return answer.status, json.loads(text) if is_json and text else text, answer.headers


def post(service, path, **data):
    """POST an object; return the parsed answer of a request that must succeed."""
    status, answer, _ = ask(service, "POST", path, data)
    assert status == 200, answer
    return answer


def events(service, path, **data):
    """POST with stream=true; return the list of events, parsed, with "[DONE]" as it is."""
    status, text, headers = ask(service, "POST", path, {**data, "stream": True})
    assert status == 200 and headers["Content-Type"] == "text/event-stream", text
    found = []
    for block in text.split("\n\n")[:-1]:
        assert block.startswith("data: ")
        found.append(block[6:] if block == "data: [DONE]" else json.loads(block[6:]))
    return found


def error_of(service, method, path, data=None, **more):
    """Return (status, message) of a request that must fail with the error object."""
    status, answer, _ = ask(service, method, path, data, **more)
    assert set(answer) == {"error"} and set(answer["error"]) >= {"code", "message", "type"}, answer
    assert answer["error"]["code"] in (status, "context_length_exceeded")
    return status, answer["error"]["message"]


def talk(service, data, *, until=b"", timeout=10):
    """Send raw bytes; return everything that comes until the server closes, or `until` appears."""
    with socket.create_connection(("127.0.0.1", service.port), timeout=timeout) as connection:
        connection.sendall(data)
        received = b""
        while not (until and until in received):
            part = connection.recv(65536)
            if not part:
                break
            received += part
        return received


def open_request(service, path, data):
    """Send a POST and return its socket without reading the answer."""
    body = json.dumps(data).encode()
    connection = socket.create_connection(("127.0.0.1", service.port), timeout=10)
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    connection.sendall(head.encode() + body)
    return connection


def wait_until(condition, seconds=5):
    """Wait until condition() holds; AssertionError when it does not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)
