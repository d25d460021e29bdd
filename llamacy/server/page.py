"""The chat page: small files of the package, which ask this server only; the browser holds them to that."""

from pathlib import Path

from llamacy.server.answers import Text
from llamacy.server.errors import HttpError

FOLDER = Path(__file__).parent / "web"
KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}


def page(app, call):
    return _file("index.html")


def part(app, call):
    """/web/NAME: one of the page's files."""
    return _file(call.path.removeprefix("/web/"))


def _file(name):
    path = next((path for path in FOLDER.iterdir() if path.name == name and path.suffix in KINDS), None)
    if path is None:
        raise HttpError(404, f"no such path: {'/web/' + name!r:.100}")
    return Text(path.read_text("utf-8"), f"{KINDS[path.suffix]}; charset=utf-8", headers=HEADERS)


ROUTES = {("GET", "/"): page, ("GET", "/index.html"): page}
PREFIXES = {("GET", "/web/"): part}
