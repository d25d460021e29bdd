"""What the application is asked, and what it may answer with: Json, Text or Events."""

import json
import json.decoder
import json.scanner
from dataclasses import dataclass, field

from llamacy.server.errors import HttpError

AT_ONCE = 1 << 20  # bytes of a body that are read in one call
STEP = 1000  # numbers that are written in one call


@dataclass
class Json:
    """An answer: anything json can write."""

    data: object
    status: int = 200
    headers: dict = field(default_factory=dict)
    content_type = "application/json; charset=utf-8"

    def encoded(self):
        """Return the body's bytes; ValueError where JSON has no form for the data."""
        try:
            return "".join(_pieces(self.data)).encode()
        except UnicodeEncodeError:
            return dump(self.data)


@dataclass
class Text:
    """An answer as it stands."""

    text: str
    content_type: str = "text/plain; charset=utf-8"
    status: int = 200
    headers: dict = field(default_factory=dict)

    def encoded(self):
        """Return the body's bytes."""
        return self.text.encode()


def server_sent(event):
    """Return an event as `data: ...`: JSON-able, or str as it stands."""
    return b"data: " + (event.encode() if isinstance(event, str) else dump(event)) + b"\n\n"


def named(event):
    """Return an event as Anthropic's and OpenAI's responses have it: its `type` is its name too."""
    return b"event: " + str(event.get("type", "error")).encode() + b"\n" + server_sent(event)


def a_line(event):
    """Return an event as a line of JSON."""
    return dump(event) + b"\n"


@dataclass
class Events:
    """A stream: an iterator of events, which `frame` writes.

    `close` is called at the end, whether all events were sent or none. `failure` makes the last event of an error's
    object.
    """

    source: object
    close: object
    frame: object = server_sent
    failure: object = lambda body: body

    @property
    def content_type(self):
        return "application/x-ndjson" if self.frame is a_line else "text/event-stream"


@dataclass
class Head:
    """A request before its body: `path` has no query."""

    method: str
    path: str
    query: dict
    headers: object


@dataclass
class Call(Head):
    """A request: `body` is complete; `is_connected()` asks the socket whether anybody waits.

    `free`: called when the body's bytes are not needed any more.
    """

    body: bytes
    is_connected: object
    free: object = lambda: None

    def json(self):
        """Return the body as a JSON value, once, whatever its Content-Type says; HttpError 400 when it is none."""
        body, self.body = self.body, b""
        try:
            return _loads(body)
        except RecursionError:
            raise HttpError(400, "the body's JSON is nested too deeply") from None
        except ValueError as error:
            raise HttpError(400, f"the body is not JSON: {error}") from None
        finally:
            del body
            self.free()


def _loads(body):
    """Return JSON's value; a large body is read by Python's own reader, which lets other threads go on meanwhile."""
    if len(body) <= AT_ONCE:
        return json.loads(body, parse_constant=_no_constant)
    decoder = json.JSONDecoder(parse_constant=_no_constant)
    decoder.parse_object, decoder.parse_array = json.decoder.JSONObject, json.decoder.JSONArray
    decoder.scan_once = json.scanner.py_make_scanner(decoder)
    return decoder.decode(body.decode(json.detect_encoding(body), "surrogatepass"))


def _pieces(data):
    """Yield `data` as JSON, piece by piece: other threads go on in between, which they could not within one call."""
    if isinstance(data, dict) and all(isinstance(key, str) for key in data):
        for i, (key, value) in enumerate(data.items()):
            yield ("{" if i == 0 else ", ") + _text(key) + ": "
            yield from _pieces(value)
        yield "}" if data else "{}"
    elif isinstance(data, list) and data and isinstance(data[0], (dict, list)):
        for i, value in enumerate(data):
            yield "[" if i == 0 else ", "
            yield from _pieces(value)
        yield "]"
    elif isinstance(data, list) and len(data) > STEP:
        for i in range(0, len(data), STEP):
            yield ("[" if i == 0 else ", ") + _text(data[i : i + STEP])[1:-1]
        yield "]"
    else:
        yield _text(data)


def _text(data):
    return json.dumps(data, ensure_ascii=False, allow_nan=False)


def _no_constant(name):
    raise ValueError(f"{name} is not a number in JSON")


def dump(data):
    """Return `data` as JSON in UTF-8; lone surrogates, which UTF-8 cannot hold, as escapes."""
    try:
        return json.dumps(data, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError:
        return json.dumps(data, allow_nan=False).encode()
