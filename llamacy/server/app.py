"""The server's application: who may ask, which function answers, and what all of those share."""

import threading
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

from llamacy.errors import LlamacyError
from llamacy.generate.constraint import TokenTable
from llamacy.server import routes
from llamacy.server.adapters import Adapters
from llamacy.server.answers import Text
from llamacy.server.errors import HttpError, too_long
from llamacy.server.fields import with_defaults
from llamacy.server.gates import check_gate
from llamacy.server.grammars import Grammars
from llamacy.server.guard import Guard
from llamacy.server.jobs import http_error
from llamacy.server.options import OPTIONS

WHILE_LOADING = {"/", "/index.html"}


@dataclass
class Application:
    """`model` and `engine` are None until the model is loaded; every path but the page answers 503 till then.

    defaults: what a request has of OPTIONS, and of logit_bias, where it does not say. format: likewise what its text
    must follow, with a name (grammar or json_schema), a value and automaton(tokenizer).
    guard: who may ask. template_values: more names for the chat template. prefix: what all paths begin with. special:
    special tokens are text too. reasoning_format: "none" leaves thoughts in the text. prefill_assistant: answers go on
    with a last message of the assistant's.
    """

    alias: str
    guard: Guard = field(default_factory=Guard)
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
    reasoning_format: str = "auto"
    lora_dir: str | None = None
    slot_save_path: str | None = None
    report: object = print
    prefill_assistant: bool = True
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
        self.grammars = Grammars(model.tokenizer)
        self.adapters = Adapters(model, engine, self.alias, self.lora_dir, self.report)
        self._longest = max(1, model.tokenizer.longest_token)
        self.model, self.engine = model, engine

    def check_length(self, name, text):
        """Raise HttpError 400 for a text that cannot fit the context however it is cut into tokens.

        Said before it is: that takes time.
        """
        least = len(text) // self._longest
        if least >= self.engine.n_ctx:
            raise too_long(
                f"{name}: wanted fewer than {self.engine.n_ctx} tokens (the context size), got at least "
                f"{least} with {len(text)} characters",
                least,
                self.engine.n_ctx,
            )

    def token_table(self):
        """Return the vocabulary in the order of its bytes, for constraints; made on first use."""
        with self._table_lock:
            if self._table is None:
                self._table = TokenTable(self.model.tokenizer, self.engine.n_vocab)
            return self._table

    def headers(self, request_headers):
        """Return the headers that every answer has."""
        return self.guard.headers(request_headers)

    def admit(self, head):
        """Raise HttpError where a request is not answered whatever its body says."""
        self._handler(head)

    def answer(self, call):
        """Return the answer to one request; HttpError where there is none."""
        handler, call = self._handler(call)
        if handler is None:
            return Text("", headers=self.guard.preflight(call.headers))
        try:
            return handler(self, call)
        except LlamacyError as error:
            raise routes.shaped(http_error(error), call.path) from None

    def _handler(self, head):
        """Return (what answers a request, None for a browser's question whether it may ask; it without the prefix)."""
        try:
            self.guard.check_host(head)
            if head.method == "OPTIONS":
                return None, head
            head = self._without_prefix(head)
            self.guard.check_key(head)
            handler = routes.find(head, self.with_page)
            self.guard.check_origin(head)
            check_gate(self, head.method, head.path)
            if self.engine is None and head.path not in WHILE_LOADING and not head.path.startswith("/web/"):
                raise HttpError(503, "Loading model", {"Retry-After": "1"})
        except HttpError as error:
            raise routes.shaped(error, head.path) from None
        return handler, head

    def _without_prefix(self, head):
        """Return the request as if there were no prefix; HttpError 404 for a path outside of it."""
        if not self.prefix:
            return head
        if not head.path.startswith(self.prefix + "/"):
            raise HttpError(404, f"no such path: {head.path!r:.100}; all begin with {self.prefix}/")
        return replace(head, path=head.path.removeprefix(self.prefix))


def alias_of(path):
    """Return the name that clients see for a model file."""
    return Path(path).name
