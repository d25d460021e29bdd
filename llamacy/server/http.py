"""Sockets: HTTP/1.1 over the standard library, with limits on size and time, keep-alive and chunked streaming.

Knows nothing of models. `application.answer(call)` gets each request as a Call and returns a Json, Text or Events.
"""

import contextlib
import json
import select
import socket
import sys
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BufferedReader, RawIOBase
from urllib.parse import parse_qs, unquote, urlsplit

from llamacy import __version__
from llamacy.errors import LlamacyError, one_line
from llamacy.server.errors import ClientGone, HttpError, error_object

MAX_BODY = 16 << 20
MAX_CONNECTIONS = 512
IDLE_SECONDS = 75  # between two requests of a connection
HEADER_SECONDS = 15  # from a request's first line to the end of its headers
LINGER_SECONDS = 2  # how long a refused body is read on, so that the client sees the answer and not a reset
LINGER_BYTES = 4 * MAX_BODY
BODY_STEP = 1 << 16


@dataclass
class Json:
    """An answer: anything json can write."""

    data: object
    status: int = 200
    headers: dict = field(default_factory=dict)
    content_type = "application/json; charset=utf-8"

    def encoded(self):
        """Return the body's bytes; ValueError where JSON has no form for the data."""
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


@dataclass
class Events:
    """Server-sent events: an iterator of JSON-able objects (or str as it stands), each one `data: ...` event.

    `close` is called at the end, whether all events were sent or none.
    """

    source: object
    close: object


@dataclass
class Call:
    """A request: `body` is complete, `path` has no query; `is_connected()` asks the socket whether anybody waits."""

    method: str
    path: str
    query: dict
    headers: object
    body: bytes
    is_connected: object

    def json(self):
        """Return the body as a JSON value; HttpError 400 or 415 when it is none."""
        kind = self.headers.get_content_type() if "Content-Type" in self.headers else "application/json"
        if kind != "application/json" and not kind.endswith("+json"):
            raise HttpError(
                415,
                f"Content-Type: wanted application/json, got {kind}; with curl add -H 'Content-Type: application/json'",
            )
        try:
            return json.loads(self.body, parse_constant=_no_constant)
        except RecursionError:
            raise HttpError(400, "the body's JSON is nested too deeply") from None
        except ValueError as error:
            raise HttpError(400, f"the body is not JSON: {error}") from None


def _no_constant(name):
    raise ValueError(f"{name} is not a number in JSON")


def dump(data):
    """Return `data` as JSON in UTF-8; lone surrogates, which UTF-8 cannot hold, as escapes."""
    try:
        return json.dumps(data, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError:
        return json.dumps(data, allow_nan=False).encode()


class _DeadlineReader(RawIOBase):
    """Reads a socket until `deadline` (monotonic seconds), however the bytes trickle in."""

    def __init__(self, connection):
        self.connection = connection
        self.deadline = 0.0

    def readable(self):
        return True

    def readinto(self, buffer):
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("the request took too long")
        self.connection.settimeout(left)
        return self.connection.recv_into(buffer)


class Handler(BaseHTTPRequestHandler):
    """One connection: requests are read whole, given to the application, and answered."""

    protocol_version = "HTTP/1.1"
    server_version = f"llamacy/{__version__}"
    disable_nagle_algorithm = True

    def version_string(self):
        return self.server_version

    def setup(self):
        super().setup()
        self.rfile.close()
        self._reader = _DeadlineReader(self.connection)
        self.rfile = BufferedReader(self._reader)

    def finish(self):
        with contextlib.suppress(OSError):
            super().finish()

    def handle(self):
        # Nobody there, or nobody reading: the connection is closed.
        with contextlib.suppress(ClientGone, ConnectionError, TimeoutError):
            super().handle()

    def handle_one_request(self):
        """Read one request and answer it; close_connection says whether another one may follow."""
        self._reader.deadline = time.monotonic() + IDLE_SECONDS
        self.close_connection = True
        self._began = time.monotonic()
        self.raw_requestline, self.requestline, self.request_version, self.command = b"", "", "", ""
        try:
            self.raw_requestline = self.rfile.readline(65537)
            if not self.raw_requestline:
                return
            self._reader.deadline = time.monotonic() + HEADER_SECONDS
            if len(self.raw_requestline) > 65536:
                self._refuse(HttpError(414, "the request line is longer than 65536 bytes"))
                return
            if not self.parse_request():
                return
            self._reader.deadline = time.monotonic() + self.server.timeout_seconds
            body = self._read_body()
        except HttpError as error:
            self._refuse(error)
            return
        except TimeoutError:
            if self.raw_requestline:
                self._refuse(HttpError(408, "the request did not arrive in time"))
            return
        self.connection.settimeout(self.server.timeout_seconds)
        with self.server.answering():
            self._answer(body)

    def _read_body(self):
        """Return the request's body; HttpError when its length is wrong, unknown or over the limit."""
        lengths = set(self.headers.get_all("Content-Length", []))
        encoding = self.headers.get("Transfer-Encoding")
        if encoding is not None:
            if encoding.strip().lower() != "chunked" or lengths:
                raise HttpError(400, "Transfer-Encoding: wanted chunked, and no Content-Length beside it")
            return self._read_chunks()
        if not lengths:
            return b""
        length = lengths.pop()
        if lengths or not (length.isascii() and length.isdigit()):
            raise HttpError(400, f"Content-Length: wanted one whole number, got {length!r:.40}")
        return self._read_exactly(self._checked(int(length) if len(length) < 20 else sys.maxsize))

    def _checked(self, length):
        if length > self.server.max_body:
            raise HttpError(413, f"the body is over the limit of {self.server.max_body} bytes")
        return length

    def _read_exactly(self, length):
        # In steps: memory is used for what arrives, not for what was announced.
        parts, left = [], length
        while left:
            part = self.rfile.read(min(left, BODY_STEP))
            if not part:
                raise ClientGone
            parts.append(part)
            left -= len(part)
        return b"".join(parts)

    def _read_chunks(self):
        parts, total = [], 0
        while True:
            line = self.rfile.readline(1026)
            digits = line.split(b";")[0].strip()
            if (
                not line.endswith(b"\n")
                or not digits
                or len(digits) > 8
                or set(digits) - set(b"0123456789abcdefABCDEF")
            ):
                raise HttpError(400, "the chunked body has a wrong chunk length")
            size = int(digits, 16)
            total = self._checked(total + size)
            if not size:
                break
            parts.append(self._read_exactly(size))
            if self.rfile.readline(3).strip():
                raise HttpError(400, "the chunked body has a wrong chunk end")
        for _ in range(100):
            if not self.rfile.readline(65537).strip():
                return b"".join(parts)
        raise HttpError(431, "the chunked body has too many trailers")

    def handle_expect_100(self):
        """Say whether to go on before the client sends its body, so that one over the limit is never sent."""
        length = self.headers.get("Content-Length", "")
        if length.isascii() and length.isdigit() and (len(length) > 19 or int(length) > self.server.max_body):
            self._refuse(HttpError(413, f"the body is over the limit of {self.server.max_body} bytes"))
            return False
        return super().handle_expect_100()

    def is_connected(self):
        """Say whether the client is still there, without waiting. A client that sends nothing more counts as gone."""
        poll = select.poll()
        poll.register(self.connection, select.POLLIN)
        if not poll.poll(0):
            return True
        try:
            return bool(self.connection.recv(1, socket.MSG_PEEK))
        except OSError:
            return False

    def _answer(self, body):
        try:
            path, query = self._split_path()
            call = Call(self.command, path, query, self.headers, body, self.is_connected)
            answer = self.server.application.answer(call)
            content = None if isinstance(answer, Events) else answer.encoded()
        except ClientGone:
            self.close_connection = True
            self._log(499)
            return
        except Exception as error:
            answer = self._failure(error)
            content = answer.encoded()
        if content is not None:
            self._send(answer, content)
            return
        try:
            self._send_events(answer.source)
        finally:
            answer.close()

    def _split_path(self):
        """Return the path without escapes and the query as a dict of lists."""
        try:
            url = urlsplit(self.path)
        except ValueError:
            raise HttpError(400, f"the path {self.path!r:.80} is not a URL's") from None
        return unquote(url.path), parse_qs(url.query)

    def _failure(self, error):
        """Return the answer that tells the client of an exception; one that nobody expected is logged too."""
        known = isinstance(error, HttpError)
        what = str(error) if known else f"{type(error).__name__}: {error}"
        if not known or error.is_logged:
            self.server.report(f"{self.command} {self.path!r:.200}: {what}")
        if known:
            return Json(error.body(), error.status, error.headers)
        status = 503 if isinstance(error, MemoryError) else 500
        return Json(error_object(status, f"internal error: {what}"), status)

    def _refuse(self, error):
        """Answer a request that could not be read, and close: where its rest begins is unknown."""
        self.close_connection = True
        self.connection.settimeout(LINGER_SECONDS)
        answer = self._failure(error)
        self._send(answer, answer.encoded())
        self._linger()

    def _linger(self):
        """Read and drop what the client still sends: closing at once would reset the connection before it reads."""
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_WR)
            self._reader.deadline = time.monotonic() + LINGER_SECONDS
            dropped = 0
            while dropped < LINGER_BYTES and (part := self.rfile.read1(BODY_STEP)):
                dropped += len(part)

    def send_error(self, code, message=None, explain=None):
        """What the standard library calls for a request it cannot parse; it may have got no further than HTTP/0.9."""
        self.request_version = "HTTP/1.1"
        self._refuse(HttpError(int(code), message or "bad request"))

    def _head(self, status, headers):
        self.send_response(status)
        for name, value in {**self.server.application.headers(self.headers_or_none()), **headers}.items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()

    def headers_or_none(self):
        """Return the request's headers; None when they could not be parsed."""
        return getattr(self, "headers", None)

    def _send(self, answer, content):
        headers = {"Content-Type": answer.content_type, "Content-Length": str(len(content)), **answer.headers}
        self._head(answer.status, headers)
        if self.command != "HEAD":
            self.wfile.write(content)
        self._log(answer.status)

    def _send_events(self, source):
        """Send events as they come; a failure on the way becomes a last event with the error object."""
        chunked = self.request_version != "HTTP/1.0"
        self.close_connection = self.close_connection or not chunked
        framing = {"Transfer-Encoding": "chunked"} if chunked else {}
        self._head(200, {"Content-Type": "text/event-stream", "Cache-Control": "no-cache", **framing})
        for content in self._until_failure(source):
            data = b"data: " + content + b"\n\n"
            self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data) if chunked else data)
        if chunked:
            self.wfile.write(b"0\r\n\r\n")
        self._log(200)

    def _until_failure(self, source):
        """Yield the events' bytes, in the end those of the failure if there is one."""
        try:
            for event in source:
                yield event.encode() if isinstance(event, str) else dump(event)
        except ClientGone:
            raise
        except Exception as error:
            yield self._failure(error).encoded()

    def _log(self, status):
        if self.server.verbose:
            seconds = time.monotonic() - self._began
            print(f"{self.client_address[0]} {self.requestline!r} {status} {seconds:.3f} s", file=sys.stderr)

    def log_message(self, *args):
        """Silent: `_log` says it once."""


class Server(ThreadingHTTPServer):
    """Listens on (host, port); a LlamacyError in one line when it cannot."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, host, port, application, *, timeout_seconds=600, max_body=MAX_BODY, verbose=False):
        self.application, self.timeout_seconds, self.max_body = application, timeout_seconds, max_body
        self.verbose = verbose
        self.busy = 0  # requests being answered
        self._counting = threading.Lock()
        self._room = threading.BoundedSemaphore(MAX_CONNECTIONS)
        try:
            self.address_family, _, _, _, address = socket.getaddrinfo(
                host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
        except (OSError, UnicodeError) as error:
            raise LlamacyError(f"--host {host}: cannot be resolved ({error}); 127.0.0.1 is this machine only") from None
        try:
            super().__init__(address, Handler)
        except OSError as error:
            raise LlamacyError(
                f"cannot listen on {host}:{port}: {error.strerror}; choose another --port or --host"
            ) from None

    def server_bind(self):
        # HTTPServer's own looks up the host's name, which can take seconds.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = self.server_address[:2]

    @contextlib.contextmanager
    def answering(self):
        """Count a request while it is answered."""
        with self._counting:
            self.busy += 1
        try:
            yield
        finally:
            with self._counting:
                self.busy -= 1

    def finish(self, seconds):
        """Accept nothing more, and wait up to `seconds` for the answers that are on their way."""
        self.shutdown()
        self.server_close()
        deadline = time.monotonic() + seconds
        while self.busy and time.monotonic() < deadline:
            time.sleep(0.01)

    @property
    def url(self):
        """The address to open, with the port that was really taken."""
        host, port = self.server_address[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def process_request(self, request, client_address):
        if not self._room.acquire(blocking=False):
            body = dump(error_object(503, f"{MAX_CONNECTIONS} connections are open already; try again later"))
            head = b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nConnection: close\r\n"
            with contextlib.suppress(OSError):
                request.setblocking(False)
                request.send(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except RuntimeError:  # no thread to be had
            self._room.release()
            raise

    def process_request_thread(self, request, client_address):
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def handle_error(self, request, client_address):
        self.report(f"connection of {client_address[0]}: {sys.exc_info()[1]!r}")

    def report(self, message):
        """Log one line."""
        print(one_line(message), file=sys.stderr)
