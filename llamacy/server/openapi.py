"""What the server can be asked, as OpenAPI 3.1: /openapi.json, and a page at /docs; both are made of the tables."""

import html

from llamacy import __version__
from llamacy.server import infill
from llamacy.server.answers import Json, Text
from llamacy.server.gates import GATES

ANY = {"type": "object"}
TEXT, FLAG, WHOLE, NUMBER = {"type": "string"}, {"type": "boolean"}, {"type": "integer"}, {"type": "number"}
LIST, COUNT = {"type": "array"}, {"type": "integer", "minimum": 1}
SOME_TEXT = {"type": "string", "minLength": 1}
TEXTS = {"type": "array", "items": SOME_TEXT, "minItems": 1}
IDS = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
PROMPT = {"anyOf": [SOME_TEXT, IDS, TEXTS]}
MESSAGE = {
    "type": "object",
    "properties": {"role": {"type": "string", "enum": ["system", "user", "assistant"]}, "content": SOME_TEXT},
    "required": ["role", "content"],
}
MESSAGES = {"type": "array", "minItems": 1, "items": MESSAGE}
SAMPLING = {
    "temperature": {"type": "number", "minimum": 0, "maximum": 2},
    "top_p": {"type": "number", "minimum": 0, "maximum": 1},
    "seed": WHOLE,
    "stream": FLAG,
}
MODEL = {"model": TEXT}
NAME = {"name": SOME_TEXT}
SCALES = {"type": "array", "items": {"type": "object", "properties": {"id": WHOLE, "scale": NUMBER}}}
# (method, path) -> (what it does, the request's members, which of them it must have)
REQUESTS = {
    ("POST", "/completion"): (
        "Go on with a prompt",
        {"prompt": PROMPT, "n_predict": {"type": "integer", "minimum": -1}, "top_k": WHOLE, **SAMPLING},
        ["prompt"],
    ),
    ("POST", "/v1/completions"): (
        "Go on with a prompt (OpenAI)",
        {"prompt": PROMPT, "max_tokens": COUNT, **SAMPLING},
        ["prompt"],
    ),
    ("POST", "/v1/chat/completions"): (
        "Answer a conversation (OpenAI)",
        {"messages": MESSAGES, "max_tokens": COUNT, "tools": LIST, **SAMPLING},
        ["messages"],
    ),
    ("POST", "/v1/responses"): (
        "Answer (OpenAI responses)",
        {"input": {"anyOf": [SOME_TEXT, MESSAGES]}, "max_output_tokens": COUNT, "tools": LIST, **SAMPLING},
        ["input"],
    ),
    ("POST", "/v1/messages"): (
        "Answer a conversation (Anthropic)",
        {"messages": MESSAGES, "max_tokens": COUNT, "system": TEXT, **SAMPLING},
        ["messages", "max_tokens"],
    ),
    ("POST", "/v1/messages/count_tokens"): (
        "Count a conversation's tokens (Anthropic)",
        {"messages": MESSAGES},
        ["messages"],
    ),
    ("POST", "/api/chat"): (
        "Answer a conversation (Ollama)",
        {"messages": MESSAGES, "stream": FLAG, "options": ANY},
        ["messages"],
    ),
    ("POST", "/api/generate"): ("Answer a prompt (Ollama)", {"prompt": TEXT, "stream": FLAG, "options": ANY}, []),
    ("POST", "/api/embed"): ("Vectors of texts (Ollama)", {"input": {"anyOf": [SOME_TEXT, TEXTS]}}, ["input"]),
    ("POST", "/api/embeddings"): ("The vector of a text (Ollama)", {"prompt": TEXT}, ["prompt"]),
    ("POST", "/api/show"): ("About a model (Ollama)", {"model": TEXT}, ["model"]),
    ("POST", "/v1/embeddings"): (
        "Vectors of texts (OpenAI)",
        {"input": PROMPT, "encoding_format": {"enum": ["float", "base64"]}},
        ["input"],
    ),
    ("POST", "/embedding"): ("Vectors of texts", {"content": PROMPT}, ["content"]),
    ("POST", "/tokenize"): (
        "A text's tokens",
        {"content": TEXT, "add_special": FLAG, "with_pieces": FLAG},
        ["content"],
    ),
    ("POST", "/detokenize"): ("Tokens' text", {"tokens": IDS}, ["tokens"]),
    ("POST", "/apply-template"): ("A conversation as the model sees it", {"messages": MESSAGES}, ["messages"]),
    ("POST", "/infill"): (
        "Fill in between two texts",
        {"input_prefix": TEXT, "input_suffix": TEXT},
        ["input_prefix", "input_suffix"],
    ),
    ("POST", "/rerank"): ("Rank documents", {"query": TEXT, "documents": TEXTS}, ["query", "documents"]),
    ("POST", "/lora-adapters/load"): ("Load an adapter by name", {**NAME, "scale": NUMBER}, ["name"]),
    ("POST", "/lora-adapters/unload"): ("Unload an adapter", {**NAME, "id": {"type": "integer", "minimum": 0}}, []),
    ("POST", "/lora-adapters"): ("Set the adapters' scales for all requests that say nothing", SCALES, []),
    ("GET", "/lora-adapters"): ("The adapters and their scales", None, []),
    ("GET", "/lora-adapters/available"): ("The adapters that can be loaded", None, []),
    ("GET", "/v1/models"): ("The model and its adapters (OpenAI)", None, []),
    ("GET", "/v1/models/"): ("One of them (OpenAI)", None, []),
    ("GET", "/health"): ("Is the model loaded?", None, []),
    ("GET", "/metrics"): ("Counters for Prometheus", None, []),
    ("GET", "/slots"): ("What each slot is doing", None, []),
    ("POST", "/slots/"): ("Save, restore or erase a slot's cache (?action=)", {"filename": SOME_TEXT}, []),
    ("GET", "/props"): ("What is served, and with which defaults", None, []),
    ("GET", "/api/tags"): ("The models (Ollama)", None, []),
    ("GET", "/api/ps"): ("The models that are loaded (Ollama)", None, []),
    ("GET", "/api/version"): ("The server's version (Ollama)", None, []),
}
# Other names of paths.
SAME = {
    "/completions": "/completion",
    "/chat/completions": "/v1/chat/completions",
    "/embeddings": "/embedding",
    "/reranking": "/rerank",
    "/v1/rerank": "/rerank",
    "/v1/reranking": "/rerank",
    "/models": "/v1/models",
    "/v1/health": "/health",
}
ERROR = {
    "description": "What is wrong",
    "content": {"application/json": {"schema": {"type": "object"}}},
}
MODES = {
    "text/event-stream": {"schema": TEXT},
    "application/x-ndjson": {"schema": TEXT},
    "text/plain": {"schema": TEXT},
}
ANSWER = {
    "description": "The answer, or with `stream` its events",
    "content": {"application/json": {"schema": {}}, **MODES, "text/html": {"schema": TEXT}},
}


def is_offered(app, method, path):
    """Say whether a path does something on this server, with this model: what is 501 is left out."""
    if path == "/infill":
        return all(infill.mark(app, name) is not None for name in ("prefix", "suffix", "middle"))
    if "rerank" in path or (path == "/slots/" and app.slot_save_path is None):
        return False
    name, _ = GATES.get((method, path), (None, ""))
    return name is None or getattr(app, name)


def description(app):
    """Return the whole description, from the tables of routes."""
    from llamacy.server.routes import PREFIXES, ROUTES

    paths = {}
    for method, path in sorted(ROUTES, key=lambda key: key[::-1]):
        if not is_offered(app, method, path):
            continue
        paths.setdefault(path, {})[method.lower()] = _operation(method, path)
    for method, path in sorted(key for key in PREFIXES if is_offered(app, *key)):
        operation = _operation(method, path)
        operation["parameters"] = [{"name": "name", "in": "path", "required": True, "schema": TEXT}]
        paths.setdefault(path + "{name}", {})[method.lower()] = operation
    found = {
        "openapi": "3.1.0",
        "info": {"title": "llamacy", "version": __version__, "description": "A language model over HTTP"},
        "paths": paths,
    }
    if app.prefix:
        found["servers"] = [{"url": app.prefix}]
    if app.guard.api_keys:
        found["components"] = {"securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}}
        found["security"] = [{"key": []}]
    return found


def _operation(method, path):
    what, members, required = REQUESTS.get((method, SAME.get(path, path)), ("", None, []))
    codes = (400, 401, 403, 404, 405, 408, 413, 415, 429, 500, 501, 503)
    operation = {"responses": {"200": ANSWER, **{str(code): ERROR for code in codes}}}
    if what:
        operation["summary"] = what
    if method == "POST":
        is_whole = members is not None and "type" in members
        whole = {"type": "object", "properties": members, "required": required}
        schema = members if is_whole else whole if members else {}
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    return operation


def openapi(app, call):
    return Json(description(app))


def page(app, call):
    """A table of the paths."""
    rows = []
    for path, operations in description(app)["paths"].items():
        for method, operation in operations.items():
            what = html.escape(operation.get("summary", ""))
            rows.append(f"<tr><td><code>{method.upper()}</code><td><code>{html.escape(path)}</code><td>{what}")
    text = (
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        "<title>llamacy: paths</title><style>body{font:16px/1.5 system-ui;margin:2rem;color-scheme:light dark}"
        "td{padding:.15rem .7rem .15rem 0}</style><h1>What this server can be asked</h1>"
        f"<p><a href='openapi.json'>openapi.json</a><table>{''.join(rows)}</table></html>"
    )
    return Text(text, "text/html; charset=utf-8")


ROUTES = {("GET", "/openapi.json"): openapi, ("GET", "/docs"): page}
