"""Which function answers a path: the tables of all endpoints' modules.

A module has ROUTES {(method, path): handler(app, call)}, where it likes PREFIXES {(method, beginning of paths):
handler}, and shape(error, body) for the error objects of an API of its own.
"""

from llamacy.server import (
    anthropic,
    api,
    embeddings,
    infill,
    lora,
    ollama,
    openai,
    openai_chat,
    openapi,
    page,
    rerank,
    responses,
    slots,
)
from llamacy.server.errors import HttpError

MODULES = (
    *(page, api, slots, lora, infill, embeddings, rerank, openapi),
    *(openai, openai_chat, responses, anthropic, ollama),
)
METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS")
ROUTES = {key: handler for module in MODULES for key, handler in module.ROUTES.items()}
PREFIXES = {key: handler for module in MODULES for key, handler in getattr(module, "PREFIXES", {}).items()}
SHAPES = {path: module.shape for module in MODULES if hasattr(module, "shape") for _, path in module.ROUTES}


def find(head, with_page=True):
    """Return the function that answers; HttpError 404 or 405 where there is none."""
    method = "GET" if head.method == "HEAD" else head.method
    routes = ROUTES if with_page else {key: f for key, f in ROUTES.items() if f is not page.page}
    if (method, head.path) in routes:
        return routes[method, head.path]
    for (wanted, beginning), handler in PREFIXES.items():
        if handler is page.part and not with_page:
            continue
        if method == wanted and head.path.startswith(beginning):
            return handler
    allowed = [name for name in METHODS if (name, head.path) in routes]
    if allowed:
        message = f"{head.path}: wanted {' or '.join(allowed)}, got {head.method}"
        raise HttpError(405, message, {"Allow": ", ".join(allowed)})
    raise HttpError(404, f"no such path: {head.path!r:.100}")


def shaped(error, path):
    """Return an error in the shape of the API that a path belongs to."""
    if isinstance(error, HttpError):
        error.shape = SHAPES.get(path)
    return error
