"""The server from Python: the endpoints of `bin/server`, in threads of this process."""

from __future__ import annotations

import contextlib
import os
import threading
import time
import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING

from llamacy.generate.context import fit_context
from llamacy.generate.engine import Engine

if TYPE_CHECKING:
    from llamacy.library.models import Model

GRACE_SECONDS = 2.0  # how long running requests may go on at the end


class Serving:
    """A running server: its `url`; `close()`, or leaving a `with`, ends it. The model stays open."""

    def __init__(self, server, engine, stack):
        self._server, self._engine, self._stack = server, engine, stack
        self.url = server.url

    def wait(self):
        """Serve until Ctrl-C, or until another thread closes it."""
        try:
            while self._server is not None:
                time.sleep(0.2)
        except KeyboardInterrupt:
            self.close()

    def close(self):
        """Refuse new requests, let running ones end for two seconds, free the port."""
        server, self._server = self._server, None
        if server is not None:
            self._engine.close(GRACE_SECONDS)
            server.finish(1.0)
            self._stack.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def serve(
    model: str | os.PathLike | Model | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = 8080,
    parallel: int = 4,
    context: int | None = None,
    api_keys: Iterable[str] = (),
    alias: str | None = None,
    wait: bool = True,
) -> Serving | None:
    """Serve a model, a path or one that `load` opened, over HTTP; return when Ctrl-C ends it.

    host      to listen at; "0.0.0.0": for other machines too, which api_keys should guard
    alias     the model's name for clients, None for its file's
    port      0: any free one, see Serving.url      parallel  requests that generate side by side
    context   tokens of each of them                api_keys  clients must bring one of these; (): anybody may ask
    wait      False: return the Serving at once, which serves until it is closed
    LlamacyError where the port is taken or the model cannot be opened.
    """
    from llamacy.library.models import Model, load
    from llamacy.server.app import Application
    from llamacy.server.embeddings import pooling_of
    from llamacy.server.guard import Guard
    from llamacy.server.listening import Server

    with contextlib.ExitStack() as stack:
        served = model if isinstance(model, Model) else stack.enter_context(load(model))
        app = Application(alias=alias or os.path.basename(served.path), guard=Guard(tuple(api_keys)))
        server = Server(host, port, app)
        if server.is_local:
            app.guard.hosts = ()  # names of this machine alone: a page from elsewhere cannot pass for one of ours
        elif not api_keys:
            warnings.warn(f"{host} is open to the network and there are no api_keys", stacklevel=2)
        inner = stack.enter_context(served.lent())
        engine = Engine(inner, n_slots=parallel, n_ctx=fit_context(context, inner.config))
        app.pooling = pooling_of(inner)
        app.ready(inner, engine)
        engine.start()
        threading.Thread(target=server.serve_forever, args=(0.05,), name="http", daemon=True).start()
        kept = stack.pop_all()
    serving = Serving(server, engine, kept)
    if not wait:
        return serving
    serving.wait()
    return None
