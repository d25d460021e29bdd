"""`server`: the model over HTTP, with llama.cpp's and OpenAI's endpoints; SIGTERM or Ctrl-C finishes."""

import os
import signal
import sys
import threading
import time
from functools import partial

from llamacy.cli.common import context_of, engine_options, open_model_from
from llamacy.cli.log_file import log_to
from llamacy.cli.run import say
from llamacy.cli.sampling_flags import check_bias, format_from
from llamacy.cli.server_flags import build_parser, check_folders, defaults_of, origins_of, read_keys, slots_of
from llamacy.cli.template_flags import template_override, template_values, warn_of_unused
from llamacy.default_model import MODEL_NAME
from llamacy.errors import UsageError

# After a signal: how long running requests may go on, and how long their answers may take to be sent.
GRACE_SECONDS = 2.0
# How long a thread that wants Python's lock waits for it, at most: the engine's steps do not wait for a grammar.
SWITCH_SECONDS = 0.001
SEND_SECONDS = 1.0


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
        from llamacy.server.embeddings import pooling_of
        from llamacy.server.garbage import Garbage

        args, began = self._args, time.perf_counter()
        model = open_model_from(args)
        if self._app.chat_template:
            from llamacy.text.chat import template_for

            # Found once: a wrong name is said now, and not to each client, and a file may go away later.
            self._app.chat_template = template_for(model.metadata, self._app.chat_template)
            warn_of_unused(self._app.chat_template, self._app.template_values)
        n_ctx, n_slots = context_of(args, model), slots_of(args)
        engine = Engine(model, n_slots=n_slots, n_ctx=n_ctx, max_queue=args.max_queue, **engine_options(args))
        check_bias(args, engine.n_vocab)
        if args.lora_init_without_apply:
            engine.lora = (0.0,) * len(engine.lora)
        self._app.pooling = args.pooling or pooling_of(model)
        engine.between = Garbage()
        self._app.ready(model, engine)
        if args.lora_watch:
            self._app.adapters.watch()
        print(
            f"server is listening on {self._server.url}{self._app.prefix} ({self._app.alias}, {n_slots} slots of "
            f"{n_ctx} tokens, loaded in {time.perf_counter() - began:.2f} s)",
            file=sys.stderr,
            flush=True,
        )
        return engine


def main(argv):
    args = build_parser().parse_args(argv)
    log_to(args.log_file)
    check_folders(args)
    from llamacy.server.app import Application
    from llamacy.server.guard import Guard
    from llamacy.server.listening import Server, tls_context

    if bool(args.ssl_key_file) != bool(args.ssl_cert_file):
        raise UsageError("--ssl-key-file and --ssl-cert-file: wanted both of them")
    tls = tls_context(args.ssl_key_file, args.ssl_cert_file) if args.ssl_key_file else None
    keys = read_keys(args)
    app = Application(
        alias=args.alias or os.path.basename(args.model or MODEL_NAME),
        guard=Guard(keys, origins=origins_of(args), credentials=args.cors_credentials),
        with_metrics=args.metrics,
        with_page=not args.no_webui,
        with_slots=args.slots,
        with_props=args.props,
        chat_template=template_override(args),
        template_values=template_values(args),
        embd_normalize=args.embd_normalize,
        embeddings_only=args.embeddings_only,
        special=args.special,
        lora_dir=args.lora_dir,
        slot_save_path=args.slot_save_path,
        report=say,
        reasoning_format=args.reasoning_format or "auto",
        prefill_assistant=args.prefill_assistant is not False,
        prefix=args.api_prefix,
        defaults=defaults_of(args),
        format=format_from(args),
    )
    server = Server(args.host, args.port, app, timeout_seconds=args.timeout, verbose=args.verbose, tls=tls)
    if server.is_local or args.allowed_hosts:
        app.guard.hosts = tuple(args.allowed_hosts.lower().split(",")) if args.allowed_hosts else ()
    if not server.is_local and not keys:
        say(f"warning: {args.host} is open to the network and there is no --api-key: anybody there may use this server")
    sys.setswitchinterval(SWITCH_SECONDS)
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
