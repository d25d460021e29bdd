"""`server`: the model over HTTP, with llama.cpp's and OpenAI's endpoints; SIGTERM or Ctrl-C finishes."""

import os
import signal
import sys
import threading
import time
from functools import partial

from llamacy.cli.common import (
    add_cache_flags,
    add_engine_flags,
    add_lora_flags,
    add_model_flags,
    context_of,
    engine_options,
    open_model_from,
    optional,
    real,
    whole,
)
from llamacy.cli.run import make_parser
from llamacy.cli.sampling_flags import add_sampling_flags, format_from, sampling_from, sampling_values
from llamacy.default_model import MODEL_NAME
from llamacy.errors import LlamacyError, UsageError

# After a signal: how long running requests may go on, and how long their answers may take to be sent.
GRACE_SECONDS = 2.0
SEND_SECONDS = 1.0


def build_parser():
    parser = make_parser("server", "Serve a model over HTTP: llama.cpp's and OpenAI's endpoints, and a chat page at /.")
    add_model_flags(parser, ctx_size="4096, at most the model's; each slot has that much")
    add_engine_flags(parser)
    add_cache_flags(parser)
    add_lora_flags(parser)
    add_sampling_flags(parser, "sampling, for requests that do not say")
    group = parser.add_argument_group("server")
    group.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 = every network")
    group.add_argument("--port", type=whole(0, 65535), default=8080, metavar="N", help="0 = any free one")
    group.add_argument("-np", "--parallel", type=whole(1, 256), default=4, metavar="N",
                       help="slots: requests that are answered at once, others wait")  # fmt: skip
    optional(group, "-b", "--batch-size", dest="batch_size", type=whole(1), metavar="N",
             help="tokens computed in one step, at most (default: 512)")  # fmt: skip
    optional(group, "-n", "--n-predict", "--predict", dest="n_predict", type=whole(-1), metavar="N",
             help="tokens for a request that does not say, -1 = to the end of the text (default: -1)")  # fmt: skip
    group.add_argument("--max-queue", type=whole(1), default=256, metavar="N", help="requests that may wait for a slot")
    optional(group, "--api-key", dest="api_key", action="append", default=[], metavar="KEY",
             help="clients must send this key as a bearer token (repeatable)")  # fmt: skip
    optional(group, "--api-key-file", dest="api_key_file", metavar="FILE", help="the same, a key a line")
    group.add_argument("-to", "--timeout", type=real(1), default=600, metavar="SECONDS",
                       help="how long receiving a body or sending an answer may stand still")  # fmt: skip
    group.add_argument("--metrics", action="store_true", help="offer /metrics for Prometheus")
    optional(group, "-a", "--alias", dest="alias", metavar="NAME",
             help="the model's name in answers (default: its file's)")  # fmt: skip
    optional(group, "--chat-template", dest="chat_template", metavar="NAME|FILE",
             help="chat with this template (default: the model's own)")  # fmt: skip
    group.add_argument("--pooling", choices=["mean", "last", "cls", "none"], default="mean",
                       help="what /embedding makes of a text's tokens; none: a vector for each")  # fmt: skip
    group.add_argument("--no-webui", action="store_true", help="no chat page at /")
    group.add_argument("-v", "--verbose", action="store_true", help="log every request on stderr")
    return parser


def defaults_of(args):
    """Return what requests have that do not say: {field: value}."""
    return sampling_values(args) | ({} if args.n_predict is None else {"n_predict": args.n_predict})


def read_keys(args):
    """Return the API keys of the flags; an empty one or an empty file is an error, not an open door."""
    keys = list(args.api_key)
    if args.api_key_file is not None:
        with open(args.api_key_file, encoding="utf-8", errors="surrogateescape") as file:
            found = [line.strip() for line in file if line.strip()]
        if not found:
            raise LlamacyError(f"--api-key-file {args.api_key_file}: wanted a key a line, got none")
        keys += found
    if not all(key.strip() for key in keys):
        raise UsageError("--api-key: wanted a key, got an empty one")
    return tuple(keys)


class Worker(threading.Thread):
    """Loads the model and then computes, all in this one thread; `failure` is what ended it early."""

    def __init__(self, args, app, server, ended):
        super().__init__(name="engine", daemon=True)
        self._args, self._app, self._server, self._ended = args, app, server, ended
        self.failure = None

    def run(self):
        try:
            engine = self._load()
            engine.loop()
        except BaseException as error:
            self.failure = error
        self._ended.set()

    def _load(self):
        from llamacy.generate.engine import Engine
        from llamacy.generate.sampler import Sampler

        args, began = self._args, time.perf_counter()
        model = open_model_from(args)
        if args.chat_template:
            from llamacy.text.chat import template_for

            # Found once: a wrong name is said now, and not to each client, and a file may go away later.
            self._app.chat_template = template_for(model.metadata, args.chat_template)
        n_ctx = context_of(args, model)
        engine = Engine(model, n_slots=args.parallel, n_ctx=n_ctx, max_queue=args.max_queue, **engine_options(args))
        Sampler(sampling_from(args), engine.n_vocab)  # a bias for a token that does not exist is said now
        self._app.ready(model, engine)
        print(
            f"server is listening on {self._server.url} ({self._app.alias}, {args.parallel} slots of {n_ctx} tokens, "
            f"loaded in {time.perf_counter() - began:.2f} s)",
            file=sys.stderr,
            flush=True,
        )
        return engine


def main(argv):
    args = build_parser().parse_args(argv)
    from llamacy.server.app import Application
    from llamacy.server.http import Server

    app = Application(
        alias=args.alias or os.path.basename(args.model or MODEL_NAME),
        api_keys=read_keys(args),
        with_metrics=args.metrics,
        with_page=not args.no_webui,
        chat_template=args.chat_template,
        pooling=args.pooling,
        defaults=defaults_of(args),
        format=format_from(args),
    )
    server = Server(args.host, args.port, app, timeout_seconds=args.timeout, verbose=args.verbose)
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, partial(_on_signal, ended))
    # From here on /health answers 503 until the model is there.
    threading.Thread(target=server.serve_forever, args=(0.05,), name="http", daemon=True).start()
    worker = Worker(args, app, server, ended)
    worker.start()
    ended.wait()
    if worker.failure is not None:
        raise worker.failure
    if app.engine is not None:
        app.engine.close(GRACE_SECONDS)
    server.finish(SEND_SECONDS)
    return 0


def _on_signal(ended, number, frame):
    """Ask main to finish; a second signal ends the process at once."""
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_DFL)
    ended.set()
