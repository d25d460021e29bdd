"""Endpoints that a server is started without, or must be started with; said as llama.cpp says it."""

from llamacy.server.errors import HttpError

# (method, path) -> (the Application's field that opens it, what to say)
GATES = {
    ("GET", "/slots"): ("with_slots", "This server does not support slots endpoint. Start it with `--slots`"),
    ("POST", "/props"): (
        "with_props",
        "This server does not support changing global properties. Start it with `--props`",
    ),
}
NO_TEXT = "This server does not support completions. Start it without `--embeddings`"


def check_gate(app, method, path):
    """Raise HttpError 501 where the server was started without an endpoint."""
    name, message = GATES.get((method, path), (None, ""))
    if name is not None and not getattr(app, name):
        raise HttpError(501, message)


def check_makes_text(app):
    """Raise HttpError 501 where the server is for embeddings only."""
    if app.embeddings_only:
        raise HttpError(501, NO_TEXT)
