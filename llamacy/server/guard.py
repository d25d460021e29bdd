"""Who may ask: API keys, the server's own names (against DNS rebinding), and pages of other origins."""

import hmac
import ipaddress
from dataclasses import dataclass
from urllib.parse import urlsplit

from llamacy.server.errors import HttpError

PUBLIC = {"/health", "/v1/health", "/", "/index.html"}
METHODS = "GET, POST, DELETE, OPTIONS"
# What changes the server for everybody: pages of other origins need a key for it.
CHANGING = ("/lora-adapters", "/props", "/slots/")


@dataclass
class Guard:
    """`hosts`: names that a Host header may have besides addresses, names without a dot and *.localhost; None: any.

    origins: of pages that may ask, None: all. credentials: browsers may send cookies and the like along.
    """

    api_keys: tuple = ()
    hosts: tuple | None = None
    origins: tuple | None = None
    credentials: bool = True

    def check_key(self, head):
        """Raise HttpError 401 unless a request has one of the keys, or needs none."""
        if not self.api_keys or head.path in PUBLIC or head.path.startswith("/web/"):
            return
        given = head.headers.get("Authorization") or head.headers.get("X-Api-Key") or ""
        scheme, _, rest = given.strip().partition(" ")
        given = rest if scheme.lower() == "bearer" else given
        given = given.strip().encode("latin-1", "replace")  # as the header was decoded
        # Every key is compared, each in constant time: the time says nothing about them.
        if not sum(hmac.compare_digest(given, key.encode()) for key in self.api_keys):
            raise HttpError(401, "Invalid API Key", {"WWW-Authenticate": "Bearer"})

    def check_host(self, head):
        """Raise HttpError 403 for a Host that is another's name.

        A page of that name got this machine's address from its own name server: the browser thinks that both are one.
        """
        host = head.headers.get("Host")
        if self.hosts is None or self.api_keys or host is None:
            return
        name = _host_name(host)
        if not (is_own_name(name) or name in self.hosts):
            raise HttpError(403, f"Host: {name[:80]!r} is no name of this server; --allowed-hosts adds names")

    def check_origin(self, head):
        """Raise HttpError 403 where a page of another origin asks for what it may not."""
        origin = head.headers.get("Origin")
        if origin is None or self.api_keys or head.method in ("GET", "HEAD") or self._is_same(origin, head.headers):
            return
        if not self._may(origin):
            raise HttpError(403, f"Origin: pages of {origin[:80]!r} may not ask; --cors-origins adds them")
        if head.path.startswith(CHANGING):
            raise HttpError(403, f"{head.path}: changes the server: a page of another origin needs an API key for it")

    def _may(self, origin):
        return self.origins is None or origin.lower() in self.origins

    @staticmethod
    def _is_same(origin, headers):
        try:
            return urlsplit(origin).netloc.lower() == (headers.get("Host") or "").lower() != ""
        except ValueError:
            return False

    def headers(self, request_headers):
        """Return the headers that tell a browser whether a page may read the answer."""
        origin = request_headers.get("Origin") if request_headers else None
        if not origin:
            return {}
        if not (self._may(origin) or self._is_same(origin, request_headers)):
            return {"Vary": "Origin"}
        return {"Access-Control-Allow-Origin": origin, "Vary": "Origin"}

    def preflight(self, request_headers):
        """Return the headers of the answer to a browser that asks first."""
        asked = request_headers.get("Access-Control-Request-Headers")
        found = {"Access-Control-Allow-Methods": METHODS, "Access-Control-Allow-Headers": asked or "*"}
        return found | ({"Access-Control-Allow-Credentials": "true"} if self.credentials else {})


def _host_name(host):
    """Return a Host header's name without its port, in lower case."""
    host = host.strip().lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].rstrip(".")


def is_own_name(name):
    """Say whether no page can have a name: an address, one of this machine or network, or none at all."""
    if "." not in name and ":" not in name or name.endswith(".localhost"):
        return True
    try:
        ipaddress.ip_address(name)
        return True
    except ValueError:
        return False
