"""One connection: HTTP/1.1 over the standard library, with limits on size and time, keep-alive and chunked streaming.

Knows nothing of models. `application.admit(head)` says what can be said before a body is read,
`application.answer(call)` gets each request as a Call and returns a Json, Text or Events.
"""

import contextlib
import select
import socket
import ssl
import sys
import time
from http.server import BaseHTTPRequestHandler
from io import BufferedReader, RawIOBase
from urllib.parse import parse_qs, unquote, urlsplit

from llamacy import __version__
from llamacy.server.answers import Call, Events, Head, Json
from llamacy.server.bodies import BODY_STEP, MAX_BODY, SMALL_BODY, Body
from llamacy.server.errors import ClientGone, HttpError, error_object

IDLE_SECONDS = 75  # between two requests of a connection
HEADER_SECONDS = 15  # from a request's first line to the end of its headers
LINGER_SECONDS = 2  # how long a refused body is read on, so that the client sees the answer and not a reset
LINGER_BYTES = 4 * MAX_BODY
# How often a client that has stopped sending is asked whether it still listens.
PROBE_SECONDS = 0.2
COMMENT = b"3\r\n:\n\n\r\n"  # a chunk of server-sent events that says nothing
ALERT = b"\x15"  # the first byte of TLS's good-bye


class _DeadlineReader(RawIOBase):
    """Reads a socket until `deadline` (monotonic seconds), however the bytes trickle in."""

    def __init__(self, connection):
        self.connection = connection
        self.deadline = 0.0
        self.last_byte = time.monotonic()

    def readable(self):
        return True

    def readinto(self, buffer):
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("the request took too long")
        self.connection.settimeout(left)
        n = self.connection.recv_into(buffer)
        self.last_byte = time.monotonic()
        return n


class Handler(BaseHTTPRequestHandler):
    """One connection: requests are read whole, given to the application, and answered."""

    protocol_version = "HTTP/1.1"
    server_version = f"llamacy/{__version__}"

    def version_string(self):
        return self.server_version

    def setup(self):
        self.disable_nagle_algorithm = self.request.family != socket.AF_UNIX
        super().setup()
        self.rfile.close()
        self._reader = _DeadlineReader(self.connection)
        self.rfile = BufferedReader(self._reader)
        self.is_answering = False
        self._ended = None  # when the client was seen to send nothing more
        self._probe = b""
        self.server.know(self)

    def finish(self):
        self.server.forget(self)
        with contextlib.suppress(OSError):
            super().finish()

    @property
    def idle_since(self):
        """When the client was last heard of, monotonic seconds; None while it is being answered."""
        return None if self.is_answering else self._reader.last_byte

    def hang_up(self):
        """End the connection, from any thread."""
        with contextlib.suppress(OSError):
            socket.socket.shutdown(self.connection, socket.SHUT_RDWR)

    def handle(self):
        # Nobody there, or nobody reading: the connection is closed.
        with contextlib.suppress(ClientGone, ConnectionError, TimeoutError, ssl.SSLError):
            if isinstance(self.connection, ssl.SSLSocket):
                self.connection.settimeout(HEADER_SECONDS)
                self.connection.do_handshake()
            super().handle()

    def handle_one_request(self):
        """Read one request and answer it; close_connection says whether another one may follow."""
        self._reader.deadline = time.monotonic() + IDLE_SECONDS
        self.close_connection = True
        self._began = time.monotonic()
        self.raw_requestline, self.requestline, self.request_version, self.command = b"", "", "", ""
        body = None
        try:
            self.raw_requestline = self.rfile.readline(65537)
            if not self.raw_requestline:
                return
            self._reader.deadline = time.monotonic() + HEADER_SECONDS
            if len(self.raw_requestline) > 65536:
                raise HttpError(414, "the request line is longer than 65536 bytes")
            if not self.raw_requestline.endswith(b"\n"):
                raise HttpError(400, "the request ends in the middle of its first line")
            if not self.parse_request():
                return
            self._reader.deadline = time.monotonic() + self.server.timeout_seconds
            body = Body(self.headers, self.rfile, self.server.max_body, self.server.memory)
            refused = self._refused(body)
            content = body.read()
        except HttpError as error:
            self._refuse(error)
        except TimeoutError:
            if self.raw_requestline:
                self._refuse(HttpError(408, "the request did not arrive in time"))
        else:
            self.connection.settimeout(self.server.timeout_seconds)
            with self.server.answering(self):
                self._answer(content, body.free, refused)
        finally:
            if body:
                body.free()

    def _refused(self, body):
        """Return the HttpError of a request that is not answered whatever its body says, None otherwise.

        Raises it where the body is not read for that.
        """
        try:
            self._admit()
        except HttpError as error:
            length = body.length()
            if length is None or length > SMALL_BODY:
                raise
            return error
        return None

    def _admit(self):
        path, query = self._split_path()
        self.server.application.admit(Head(self.command, path, query, self.headers))

    def handle_expect_100(self):
        """Say whether to go on before the client sends its body, so that one in vain is never sent."""
        try:
            Body(self.headers, self.rfile, self.server.max_body, self.server.memory).length()
            self._admit()
        except HttpError as error:
            self._refuse(error)
            return False
        return super().handle_expect_100()

    def is_connected(self):
        """Say whether the client is still there, without waiting.

        A client that sends nothing more may still listen (`nc -N`, shutdown(SHUT_WR)): it is asked by sending it
        something without meaning. Only one that closed its socket answers that with a reset. Without anything to send
        it counts as gone.
        """
        poll = select.poll()
        poll.register(self.connection, select.POLLIN)
        found = poll.poll(0)
        if not found:
            return True
        if found[0][1] & (select.POLLERR | select.POLLHUP | select.POLLNVAL):
            return False
        try:
            seen = socket.socket.recv(self.connection, 1, socket.MSG_PEEK)
        except OSError:
            return False
        if isinstance(self.connection, ssl.SSLSocket):
            return bool(seen) and seen != ALERT
        return bool(seen) or self._still_listens()

    def _still_listens(self):
        now = time.monotonic()
        if self._ended is None or now - self._ended > PROBE_SECONDS:
            self._ended = now
            try:
                self.connection.sendall(self._probe)
            except OSError:
                return False
        return bool(self._probe)

    def _answer(self, body, free, refused):
        self._probe = b"HTTP/1.1 100 Continue\r\n\r\n" if self.request_version != "HTTP/1.0" else b""
        try:
            if refused:
                raise refused
            path, query = self._split_path()
            call = Call(self.command, path, query, self.headers, body, self.is_connected, free)
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
            self._send_events(answer)
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

    def _send_events(self, answer):
        """Send events as they come; a failure on the way becomes a last event with the error object."""
        chunked = self.request_version != "HTTP/1.0"
        self.close_connection = self.close_connection or not chunked
        framing = {"Transfer-Encoding": "chunked"} if chunked else {}
        self._probe = COMMENT if chunked and answer.content_type == "text/event-stream" else b""
        # No proxy may hold back what is meant to be seen at once.
        unbuffered = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        self._head(200, {"Content-Type": answer.content_type, **unbuffered, **framing})
        for data in self._until_failure(answer):
            self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data) if chunked else data)
        if chunked:
            self.wfile.write(b"0\r\n\r\n")
        self._log(200)

    def _until_failure(self, answer):
        """Yield the events' bytes, in the end those of the failure if there is one."""
        try:
            for event in answer.source:
                yield answer.frame(event)
        except ClientGone:
            raise
        except Exception as error:
            yield answer.frame(answer.failure(self._failure(error).data))

    def _log(self, status):
        if self.server.verbose:
            seconds = time.monotonic() - self._began
            print(f"{self.client_address[0]} {self.requestline!r} {status} {seconds:.3f} s", file=sys.stderr)

    def log_message(self, *args):
        """Silent: `_log` says it once."""
