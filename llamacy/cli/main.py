"""`main`: continue a prompt, or talk to the model; the text streams to stdout, everything else goes to stderr."""

import os
import re
import sys
import time

from llamacy.cli.common import (
    DEFAULT_CTX,
    add_lora_flags,
    add_model_flags,
    add_sampling_flags,
    context_of,
    open_model_from,
    optional,
    sampling_from,
    whole,
)
from llamacy.cli.run import make_parser
from llamacy.errors import LlamacyError, UsageError

ESCAPES = {b"n": b"\n", b"r": b"\r", b"t": b"\t", b"'": b"'", b'"': b'"', b"\\": b"\\"}


def build_parser():
    parser = make_parser("main", "Continue a prompt with a language model, with or without adapters.")
    group = parser.add_argument_group("text")
    optional(group, "-p", "--prompt", dest="prompt", metavar="TEXT", help="the text to continue")
    optional(group, "-f", "--file", dest="file", metavar="FILE", help="read the prompt from this file")
    group.add_argument("-n", "--n-predict", "--predict", type=whole(-1), default=128, metavar="N",
                       help="tokens to make, -1 = until the text ends or the context is full")  # fmt: skip
    optional(group, "-r", "--reverse-prompt", "--stop", dest="stop", action="append", default=[], metavar="TEXT",
             help="stop before this text (repeatable)")  # fmt: skip
    group.add_argument("-e", "--escape", action="store_true",
                       help=r"read \n, \t, \r, \", \', \\ and \xHH in the prompt and in --stop")  # fmt: skip
    group.add_argument("--no-display-prompt", action="store_true", help="print only what is new")
    group.add_argument("--verbose-prompt", action="store_true", help="print the prompt's tokens on stderr")
    add_model_flags(parser, ctx_size="what the prompt and -n need, at most the model's")
    optional(parser, "-b", "--batch-size", dest="batch_size", type=whole(1), metavar="N",
             help="prompt tokens computed at once, at most (default: 512)")  # fmt: skip
    parser.add_argument("--mlock", action="store_true", help="keep the model in memory, where the system lets us")
    add_lora_flags(parser)
    add_sampling_flags(parser)
    return parser


def unescape(text):
    """Replace the escapes of `-e` (llama.cpp's); unknown ones stay as they are."""

    def replace(found):
        name = found.group(1)
        return bytes.fromhex(name[1:].decode()) if len(name) == 3 else ESCAPES[name]

    escaped = re.sub(rb"""\\(x[0-9a-fA-F]{2}|[nrt'"\\])""", replace, text.encode("utf-8", "surrogateescape"))
    return escaped.decode("utf-8", "surrogateescape")


def read_prompt(args):
    """Return the prompt of the flags, "" without any; LlamacyError when the file is not text."""
    if args.prompt is not None and args.file is not None:
        raise UsageError("--prompt and --file are both given: name one")
    if args.file is None:
        # Undecodable bytes of the command line stay what they were (surrogateescape), also under an ASCII locale.
        text = os.fsencode(args.prompt or "").decode("utf-8", "surrogateescape")
    else:
        with open(args.file, "rb") as file:
            data = file.read()
        try:
            # Editors end a file with a newline that its writer did not mean as part of the prompt.
            text = data.decode("utf-8").removesuffix("\n")
        except UnicodeDecodeError as error:
            raise LlamacyError(f"{args.file}: wanted UTF-8 text, got other bytes at offset {error.start}") from None
    return unescape(text) if args.escape else text


def session_context(args, model, n_prompt):
    """Return the context to set up: what prompt and `-n` need, at most `-c` (unset: the model's own)."""
    trained = model.config.n_ctx_train
    most = trained if args.ctx_size is None else context_of(args, model)
    if args.n_predict >= 0:
        return min(most, n_prompt + max(args.n_predict, 1))
    # Open end: the whole of -c, or room for the usual amount of text after a long prompt.
    return min(trained, n_prompt + DEFAULT_CTX) if args.ctx_size is None else most


def lock_memory():
    """Keep this process's pages in memory (mlockall); a warning on stderr when the system refuses."""
    import ctypes

    try:
        libc = ctypes.CDLL(None, use_errno=True)
        failed = libc.mlockall(1)  # MCL_CURRENT
        reason = os.strerror(ctypes.get_errno())
    except (AttributeError, OSError):
        failed, reason = True, "not on this system"
    if failed:
        print(f"warning: --mlock: {reason}; going on without it (see `ulimit -l`)", file=sys.stderr)


def show(text):
    """Write to stdout at once, as UTF-8 whatever the locale."""
    if text:
        sys.stdout.buffer.write(text.encode("utf-8", "surrogateescape"))
        sys.stdout.buffer.flush()


def print_tokens(tokenizer, ids):
    """Print the prompt's ids and pieces, on stderr (`--verbose-prompt`)."""
    print(f"prompt: {len(ids)} tokens", file=sys.stderr)
    for token in ids:
        piece = tokenizer.token_bytes(token).decode("utf-8", "replace")
        print(f"{token:>8} -> {piece!r}", file=sys.stderr)


def print_timings(load_seconds, result):
    """Print where the time went, on stderr."""
    t = result.timings
    print(
        f"\nload: {load_seconds:.2f} s, seed: {result.seed}\n"
        f"prompt: {t.prompt_n} tokens, {t.prompt_ms:.1f} ms, {t.prompt_per_second:.1f} tokens/s\n"
        f"generation: {t.predicted_n} tokens, {t.predicted_ms:.1f} ms, {t.predicted_per_second:.1f} tokens/s",
        file=sys.stderr,
    )


def generate_text(engine, tokenizer, ids, args):
    """Generate after the prompt `ids` and show the text as it comes; return (Result, text).

    The text ends whole, also when Ctrl-C goes through.
    """
    from llamacy.generate.request import Request
    from llamacy.generate.text_stream import TextStream

    stops = [unescape(stop) if args.escape else stop for stop in args.stop]
    stream, shown = TextStream(tokenizer.stream(), stops), []

    def put(text):
        shown.append(text)
        show(text)

    def on_token(token):
        text, stop = stream.feed(token)
        put(text)
        return stop

    request = Request(ids, sampling_from(args), n_predict=args.n_predict, on_token=on_token)
    try:
        result = engine.run(request)
    finally:
        put(stream.flush())
    return result, "".join(shown)


def main(argv):
    args = build_parser().parse_args(argv)
    prompt = read_prompt(args)
    began = time.perf_counter()
    model = open_model_from(args)
    # Late: --help and wrong usage answer without them.
    from llamacy.generate.engine import Engine
    from llamacy.generate.text_stream import prompt_ids

    if args.mlock:
        lock_memory()
    ids = prompt_ids(model.tokenizer, prompt)
    engine = Engine(model, n_ctx=session_context(args, model, len(ids)), batch_size=args.batch_size)
    engine.check_prompt(ids)
    load_seconds = time.perf_counter() - began
    if args.verbose_prompt:
        print_tokens(model.tokenizer, ids)
    if not args.no_display_prompt:
        show(prompt)
    try:
        result, text = generate_text(engine, model.tokenizer, ids, args)
    except KeyboardInterrupt:
        show("\n")
        raise
    show("" if text.endswith("\n") else "\n")
    if result.truncated:
        print(f"stopped: the context of {engine.n_ctx} tokens is full (--ctx-size)", file=sys.stderr)
    print_timings(load_seconds, result)
    return 0
