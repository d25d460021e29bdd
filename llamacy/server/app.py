"""The server's application: who may ask, which function answers, and what all of those share."""

import hmac
import threading
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

from llamacy.errors import LlamacyError
from llamacy.generate.grammar import TokenTable
from llamacy.server import api, embeddings, openai
from llamacy.server.errors import HttpError
from llamacy.server.fields import with_defaults
from llamacy.server.gates import check_gate
from llamacy.server.http import Text
from llamacy.server.jobs import http_error
from llamacy.server.options import OPTIONS

ROUTES = {**api.ROUTES, **openai.ROUTES, **embeddings.ROUTES}
METHODS = ("GET", "HEAD", "POST", "OPTIONS")
PUBLIC = {"/health", "/v1/health", "/", "/index.html"}
WHILE_LOADING = {"/", "/index.html"}
CORS = {
    "Access-Control-Allow-Credentials": "true",
    "Access-Control-Allow-Methods": "GET, POST, OPTIONS",
}


@dataclass
class Application:
    """`model` and `engine` are None until the model is loaded; every path but the page answers 503 till then.

    defaults: what a request has of OPTIONS, and of logit_bias, where it does not say. format: likewise what its text
    must follow, with a name (grammar or json_schema), a value and automaton(tokenizer).
    template_values: more names for the chat template. prefix: what all paths begin with. special: special tokens are
    text too.
    """

    alias: str
    api_keys: tuple = ()
    with_metrics: bool = False
    with_page: bool = True
    chat_template: str | None = None
    pooling: str = "mean"
    defaults: dict = field(default_factory=dict)
    format: object = None
    embd_normalize: int = 2
    embeddings_only: bool = False
    with_slots: bool = True
    with_props: bool = False
    special: bool = False
    prefix: str = ""
    template_values: dict = field(default_factory=dict)
    model: object = None
    engine: object = None
    created: int = field(default_factory=lambda: int(time.time()))
    automaton: object = None  # of `format`
    _table: object = None
    _table_lock: object = field(default_factory=threading.Lock)

    def __post_init__(self):
        self.options = with_defaults(OPTIONS, self.defaults)

    def ready(self, model, engine):
        """Answer with this model from now on."""
        # The automaton of all requests that say nothing else: what one has found out of it, the next one need not.
        self.automaton = self.format and self.format.automaton(model.tokenizer)
        self.model, self.engine = model, engine

    def token_table(self):
        """Return the vocabulary in the order of its bytes, for constraints; made on first use."""
        with self._table_lock:
            if self._table is None:
                self._table = TokenTable(self.model.tokenizer, self.engine.n_vocab)
            return self._table

    def headers(self, request_headers):
        """Return the headers that every answer has: any page may ask, and browsers insist on being told so."""
        origin = request_headers.get("Origin") if request_headers else None
        return {"Access-Control-Allow-Origin": origin, "Vary": "Origin"} if origin else {}

    def answer(self, call):
        """Return the answer to one request; HttpError where there is none."""
        if call.method == "OPTIONS":
            asked = call.headers.get("Access-Control-Request-Headers")
            return Text("", headers=CORS | {"Access-Control-Allow-Headers": asked or "*"})
        call = self._without_prefix(call)
        self._check_key(call)
        handler = self._handler(call)
        check_gate(self, call.method, call.path)
        if self.engine is None and call.path not in WHILE_LOADING:
            raise HttpError(503, "Loading model", {"Retry-After": "1"})
        try:
            return handler(self, call)
        except LlamacyError as error:
            raise http_error(error) from None

    def _without_prefix(self, call):
        """Return the call as if there were no prefix; HttpError 404 for a path outside of it."""
        if not self.prefix:
            return call
        if not call.path.startswith(self.prefix + "/"):
            raise HttpError(404, f"no such path: {call.path!r:.100}; all begin with {self.prefix}/")
        return replace(call, path=call.path.removeprefix(self.prefix))

    def _check_key(self, call):
        if not self.api_keys or call.path in PUBLIC:
            return
        given = call.headers.get("Authorization") or call.headers.get("X-Api-Key") or ""
        given = given.removeprefix("Bearer ").strip().encode("latin-1", "replace")  # as the header was decoded
        # Every key is compared, each in constant time: the time says nothing about them.
        if not sum(hmac.compare_digest(given, key.encode()) for key in self.api_keys):
            raise HttpError(401, "Invalid API Key", {"WWW-Authenticate": "Bearer"})

    def _handler(self, call):
        method = "GET" if call.method == "HEAD" else call.method
        routes = ROUTES if self.with_page else {key: f for key, f in ROUTES.items() if f is not api.page}
        if (method, call.path) in routes:
            return routes[method, call.path]
        for (wanted, beginning), handler in openai.PREFIXES.items():
            if method == wanted and call.path.startswith(beginning):
                return handler
        allowed = [name for name in METHODS if (name, call.path) in routes]
        if allowed:
            raise HttpError(
                405, f"{call.path}: wanted {' or '.join(allowed)}, got {call.method}", {"Allow": ", ".join(allowed)}
            )
        raise HttpError(404, f"no such path: {call.path!r:.100}")


def alias_of(path):
    """Return the name that clients see for a model file."""
    return Path(path).name
