"""Where the server listens: TCP or a Unix socket, with TLS or without; and how many connections it has at once."""

import contextlib
import errno
import os
import socket
import ssl
import stat
import sys
import threading
import time
from http.server import ThreadingHTTPServer

from llamacy.errors import LlamacyError, one_line
from llamacy.server.answers import dump
from llamacy.server.bodies import MAX_BODY, BodyMemory
from llamacy.server.errors import error_object
from llamacy.server.http import Handler

MAX_CONNECTIONS = 512
# A connection that has been silent for so long makes room for a new one where there is none.
SPARE_SECONDS = 1.0
MAKE_ROOM_SECONDS = 1.0  # how long that may take


def is_path(host):
    """Say whether a host names a Unix socket, as in llama.cpp: a path that ends with .sock, or begins with unix:."""
    return host.endswith(".sock") or host.startswith("unix:")


def tls_context(key_file, cert_file):
    """Return the ssl.SSLContext of a private key and certificate chain in PEM files; LlamacyError in one line."""
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(cert_file, key_file, password=lambda: "")
        context.set_alpn_protocols(["http/1.1"])
        return context
    except (OSError, ValueError) as error:
        what = error.strerror if isinstance(error, FileNotFoundError) else error
        raise LlamacyError(
            f"--ssl-key-file {key_file}, --ssl-cert-file {cert_file}: wanted a key and its certificate in PEM form: "
            f"{one_line(str(what))}"
        ) from None


class Server(ThreadingHTTPServer):
    """Listens on (host, port), or on a Unix socket; a LlamacyError in one line when it cannot."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, host, port, application, *, timeout_seconds=600, max_body=MAX_BODY, verbose=False, tls=None):
        """`tls`: an ssl.SSLContext."""
        self.application, self.timeout_seconds, self.max_body = application, timeout_seconds, max_body
        self.verbose, self._tls = verbose, tls
        self.memory = BodyMemory()
        self.busy = 0  # requests being answered
        self._counting = threading.Lock()
        self._room = threading.BoundedSemaphore(MAX_CONNECTIONS)
        self._handlers = set()
        self._path = host.removeprefix("unix:") if host and is_path(host) else None
        where = self._path or f"{host}:{port}"
        address = self._unix_address() if self._path else self._tcp_address(host, port)
        try:
            super().__init__(address, Handler)
        except OSError as error:
            raise LlamacyError(
                f"cannot listen on {where}: {error.strerror or error}; choose another --port or --host"
            ) from None

    def _tcp_address(self, host, port):
        try:
            self.address_family, _, _, _, address = socket.getaddrinfo(
                host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
        except (OSError, UnicodeError) as error:
            raise LlamacyError(f"--host {host}: cannot be resolved ({error}); 127.0.0.1 is this machine only") from None
        return address

    def _unix_address(self):
        """Return the socket's path; one that a server left behind is removed."""
        self.address_family = socket.AF_UNIX
        with contextlib.suppress(OSError):
            if stat.S_ISSOCK(os.stat(self._path).st_mode):
                with socket.socket(socket.AF_UNIX) as probe:
                    if probe.connect_ex(self._path) == errno.ECONNREFUSED:
                        os.unlink(self._path)
        return self._path

    def server_bind(self):
        # HTTPServer's own looks up the host's name, which can take seconds.
        if self._path is None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = ("", 0) if self._path else self.server_address[:2]

    def server_close(self):
        super().server_close()
        if self._path:
            with contextlib.suppress(OSError):
                os.unlink(self._path)

    def get_request(self):
        connection, address = super().get_request()
        if self._tls:
            # The handshake is made in the connection's own thread: it can take as long as the client likes.
            connection = self._tls.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        return connection, address or ("unix",)

    @property
    def is_local(self):
        """Can only this machine connect?"""
        if self._path:
            return True
        host = self.server_address[0]
        return host.startswith("127.") or host == "::1"

    @contextlib.contextmanager
    def answering(self, handler):
        """Count a request while it is answered."""
        with self._counting:
            self.busy += 1
            handler.is_answering = True
        try:
            yield
        finally:
            with self._counting:
                self.busy -= 1
                handler.is_answering = False

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
        if self._path:
            return f"unix:{self._path}"
        host, port = self.server_address[:2]
        scheme = "https" if self._tls else "http"
        return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"

    def know(self, handler):
        """A connection has begun."""
        with self._counting:
            self._handlers.add(handler)

    def forget(self, handler):
        """A connection has ended."""
        with self._counting:
            self._handlers.discard(handler)

    def _make_room(self):
        """End the connection that has been silent longest, if it was for a while; say whether there is room now.

        So that nobody can take all connections by opening them.
        """
        with self._counting:
            idle = [(handler.idle_since, handler) for handler in self._handlers]
        idle = [(since, handler) for since, handler in idle if since is not None]
        since, handler = min(idle, key=lambda pair: pair[0], default=(None, None))
        if since is None or time.monotonic() - since < SPARE_SECONDS:
            return False
        handler.hang_up()
        return self._room.acquire(timeout=MAKE_ROOM_SECONDS)

    def process_request(self, request, client_address):
        if not self._room.acquire(blocking=False) and not self._make_room():
            self._turn_away(request)
            return
        try:
            super().process_request(request, client_address)
        except RuntimeError:  # no thread to be had
            self._room.release()
            raise

    def _turn_away(self, request):
        body = dump(error_object(503, f"{MAX_CONNECTIONS} connections are open already; try again later"))
        head = b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nConnection: close\r\n"
        if not self._tls:
            with contextlib.suppress(OSError):
                request.setblocking(False)
                request.send(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        self.shutdown_request(request)

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
