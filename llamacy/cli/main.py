"""`main`: continue a prompt, or talk to the model; the text streams to stdout, everything else goes to stderr."""

import os
import re
import sys
import time

from llamacy.cli.common import (
    DEFAULT_CTX,
    add_cache_flags,
    add_engine_flags,
    add_lora_flags,
    add_model_flags,
    add_sampling_flags,
    context_of,
    engine_options,
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
    optional(group, "-n", "--n-predict", "--predict", dest="n_predict", type=whole(-1), metavar="N",
             help="tokens to make, -1 = to the end of the text or context (default: 128, in a chat -1)")  # fmt: skip
    optional(group, "-r", "--reverse-prompt", "--stop", dest="stop", action="append", default=[], metavar="TEXT",
             help="stop before this text (repeatable)")  # fmt: skip
    group.add_argument("--keep", dest="n_keep", type=whole(-1), default=0, metavar="N",
                       help="prompt tokens that --context-shift never drops, -1 = all")  # fmt: skip
    group.add_argument("-e", "--escape", action="store_true",
                       help=r"read \n, \t, \r, \", \', \\ and \xHH in the prompt and in --stop")  # fmt: skip
    group.add_argument("--no-display-prompt", action="store_true", help="print only what is new")
    group.add_argument("--verbose-prompt", action="store_true", help="print the prompt's tokens on stderr")
    group = parser.add_argument_group("chat")
    group.add_argument("-i", "--interactive", "-cnv", "--conversation", dest="conversation", action="store_true",
                       help="talk: messages from stdin (--prompt first), in the model's chat template")  # fmt: skip
    group.add_argument("-ins", "--instruct", action="store_true",
                       help="wrap the prompt in the template that the adapter was trained with")  # fmt: skip
    optional(group, "-sys", "--system-prompt", dest="system", metavar="TEXT",
             help="talk, with this system message")  # fmt: skip
    optional(group, "--chat-template", dest="chat_template", metavar="NAME|FILE",
             help="talk in this template instead of the model's own")  # fmt: skip
    add_model_flags(parser, ctx_size="what the prompt and -n need, at most the model's")
    optional(parser, "-b", "--batch-size", dest="batch_size", type=whole(1), metavar="N",
             help="prompt tokens computed at once, at most (default: 512)")  # fmt: skip
    parser.add_argument("--mlock", action="store_true", help="keep the model in memory, where the system lets us")
    add_engine_flags(parser)
    add_cache_flags(parser)
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


# mlockall's flags: what is mapped now, of that only what is or comes into memory (Linux)
MCL_CURRENT, MCL_ONFAULT = 1, 4


def lock_memory():
    """Keep this process's pages in memory (mlockall); a warning on stderr when the system refuses.

    The pages of the model's file that were given back after packing stay out of it.
    """
    import ctypes

    try:
        libc = ctypes.CDLL(None, use_errno=True)
        failed = libc.mlockall(MCL_CURRENT | MCL_ONFAULT if sys.platform == "linux" else MCL_CURRENT)
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
        f"generation: {t.predicted_n} tokens, {t.predicted_ms:.1f} ms, {t.predicted_per_second:.1f} tokens/s"
        + (f", {t.draft_n_accepted} of {t.draft_n} drafted right" if t.draft_n else ""),
        file=sys.stderr,
    )


class Writer:
    """Generates after prompts with one engine and shows the text as it comes; `result` is the last one's."""

    def __init__(self, engine, tokenizer, args, stops=()):
        self.engine, self._tokenizer, self._args = engine, tokenizer, args
        self._stops = [unescape(stop) if args.escape else stop for stop in args.stop] + list(stops)
        self.result = None

    def write(self, ids):
        """Show the text that follows the prompt `ids`, ended by a newline; return it without one.

        On Ctrl-C the text ends whole and KeyboardInterrupt goes on; `partial` then has what there was.
        """
        from llamacy.generate.request import Request
        from llamacy.generate.text_stream import TextStream, with_bos

        self.engine.check_prompt(ids)
        stream, shown = TextStream(self._tokenizer.stream(), self._stops), []

        def put(text):
            shown.append(text)
            show(text)

        def on_token(token):
            text, stop = stream.feed(token)
            put(text)
            return stop

        args, params = self._args, sampling_from(self._args)
        n_keep = with_bos(args.n_keep, self._tokenizer)
        request = Request(ids, params, n_predict=args.n_predict, n_keep=n_keep, on_token=on_token)
        try:
            self.result = self.engine.run(request)
        except KeyboardInterrupt:
            # Back in the engine's hands: the slot is free again for whoever goes on.
            self.engine.cancel(request)
            self.engine.step()
            raise
        finally:
            put(stream.flush())
            text = self.partial = "".join(shown)
            show("" if text.endswith("\n") else "\n")
        if self.result.truncated and not args.context_shift:
            print(f"stopped: the context of {self.engine.n_ctx} tokens is full (--ctx-size)", file=sys.stderr)
        return text


def converse(args, model, prompt):
    """Talk until the end of stdin; return the last Result, None when nothing was said."""
    from llamacy.cli.conversation import Conversation, talk, template_of
    from llamacy.generate.engine import Engine

    engine = Engine(model, n_ctx=context_of(args, model), **engine_options(args))
    writer = Writer(engine, model.tokenizer, args, template_of(args, model)[1])

    def answer(ids):
        try:
            return writer.write(ids)
        except KeyboardInterrupt:
            return writer.partial  # Ctrl-C ends the answer, not the conversation

    talk(Conversation(args, model, engine, answer), prompt)
    return writer.result


def complete(args, model, prompt):
    """Show the prompt and the text that follows it; return the Result."""
    from llamacy.generate.engine import Engine
    from llamacy.generate.text_stream import prompt_ids

    stops = []
    if args.instruct:
        from llamacy.cli.conversation import first_messages, template_of
        from llamacy.generate.chat_prompt import chat_ids, chat_text

        template, stops = template_of(args, model)
        messages = [*first_messages(args), {"role": "user", "content": prompt}]
        prompt = chat_text(messages, template, model.tokenizer)
        ids = chat_ids(messages, template, model.tokenizer)
    else:
        ids = prompt_ids(model.tokenizer, prompt)
    engine = Engine(model, n_ctx=session_context(args, model, len(ids)), **engine_options(args))
    engine.check_prompt(ids)
    if args.verbose_prompt:
        print_tokens(model.tokenizer, ids)
    if not args.no_display_prompt:
        show(prompt)
    writer = Writer(engine, model.tokenizer, args, stops)
    writer.write(ids)
    return writer.result


def main(argv):
    args = build_parser().parse_args(argv)
    prompt = read_prompt(args)
    # -ins with a prompt answers that one; every other flag about chats begins one.
    talks = args.conversation or (not prompt if args.instruct else args.system or args.chat_template)
    if args.n_predict is None:
        args.n_predict = -1 if talks else 128
    began = time.perf_counter()
    model = open_model_from(args)
    if args.mlock:
        lock_memory()
    load_seconds = time.perf_counter() - began
    result = (converse if talks else complete)(args, model, prompt)
    if result:
        print_timings(load_seconds, result)
    return 0
