"""`main`: continue a prompt, or talk to the model; the text streams to stdout, everything else goes to stderr."""

import sys
import time

from llamacy.cli.common import context_of, engine_options, open_model_from
from llamacy.cli.log_file import log_to
from llamacy.cli.main_flags import build_parser
from llamacy.cli.prompt import read_prompt, read_text, unescape
from llamacy.cli.run import say
from llamacy.cli.sampling_flags import check_bias, format_from, sampling_from
from llamacy.errors import UsageError, one_line, shown
from llamacy.generate.context import open_end

UNTIL_FULL = -2  # of -n: to the end of the text, or of the context, whatever its size
FLAG_NAMES = {"system": "--system-prompt", "template_kwargs": "--chat-template-kwargs"}


def session_context(args, model, n_prompt):
    """Return the context to set up: what prompt and `-n` need, at most `-c` (unset: the model's own)."""
    config, asked = model.config, args.ctx_size is not None
    most = context_of(args, model) if asked else config.n_ctx_train
    if asked and most > config.n_ctx_plain:
        return most  # it says how positions turn, however short the text
    if args.n_predict >= 0:
        return min(most, n_prompt + max(args.n_predict, 1))
    if args.n_predict == UNTIL_FULL:
        return most
    # Open end: the whole of -c, or room for the usual amount of text after a long prompt.
    return most if asked else open_end(n_prompt, config)


def show(text):
    """Write to stdout at once, as UTF-8 whatever the locale."""
    if text:
        sys.stdout.buffer.write(text.encode("utf-8", "surrogateescape"))
        sys.stdout.buffer.flush()


def print_tokens(tokenizer, ids):
    """Print the prompt's ids and pieces, on stderr (`--verbose-prompt`)."""
    print(f"prompt: {len(ids)} tokens", file=sys.stderr)
    for token in ids:
        print(f"{token:>8} -> {shown(tokenizer.token_bytes(token))}", file=sys.stderr)


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


def tell(args, model, engine, ids=()):
    """Print on stderr what --verbose asks for, and the prompt's tokens where --verbose-prompt does."""
    if args.verbose:
        kinds = [kind or "as usual" for kind in (args.cache_type_k, args.cache_type_v)]
        say(one_line(f"model: {model.name} ({model.path}), trained on {model.config.n_ctx_train} tokens"))
        say(f"context: {engine.n_ctx} tokens in steps of {engine.batch_size}, keys {kinds[0]}, values {kinds[1]}")
        say(f"activations: {args.activations}, threads: {model.threads}, adapters: {len(model.adapters)}")
        say(f"sampling: {sampling_from(args)}")
    if args.verbose_prompt and ids:
        print_tokens(model.tokenizer, ids)


def open_prompt_cache(args, engine):
    """Return the PromptCache that the flags ask for; without a file it does nothing."""
    from llamacy.generate.prompt_cache import PromptCache

    return PromptCache(
        args.prompt_cache, engine, writes=not args.prompt_cache_ro, generated=args.prompt_cache_all, note=say
    )


class Writer:
    """Generates after prompts with one engine and shows the text as it comes.

    `result`, `tokens` and `stopping_word` are the last text's, `stops` what ends any.
    """

    def __init__(self, engine, tokenizer, args, stops=()):
        self._cache = open_prompt_cache(args, engine)
        self.engine, self._tokenizer, self._args = engine, tokenizer, args
        self.stops = [unescape(stop) if args.escape else stop for stop in args.stop] + list(stops)
        self.result, self.tokens, self.stopping_word = None, [], None
        self._automaton = self._table = None
        if args.format:
            from llamacy.generate.constraint import TokenTable

            self._automaton = args.format.automaton(tokenizer)
            self._table = TokenTable(tokenizer, engine.n_vocab)

    def write(self, ids, newline=True):
        """Show the text that follows the prompt `ids`, ended by a newline; return it without one.

        On Ctrl-C the text ends whole and KeyboardInterrupt goes on; `partial` then has what there was.
        """
        from llamacy.generate.text_stream import TextStream

        self.engine.check_prompt(ids)
        special = self._args.special
        stream, shown = TextStream(self._tokenizer.stream(special=special), self.stops, special), []
        self.tokens = []

        def put(text):
            shown.append(text)
            show(text)

        def on_token(token):
            self._cache.keep(ids)
            self.tokens.append(token)
            text, stop = stream.feed(token)
            put(text)
            return stop

        request = self._request(ids, on_token)
        self._cache.restore(ids)
        try:
            self.result = self.engine.run(request)
            self._cache.keep(ids)
        except KeyboardInterrupt:
            # Back in the engine's hands: the slot is free again for whoever goes on.
            self.engine.cancel(request)
            self.engine.step()
            raise
        finally:
            self._cache.keep_all()
            put(stream.flush())
            self.stopping_word = stream.stopping_word
            text = self.partial = "".join(shown)
            show("" if text.endswith("\n") or not newline else "\n")
        if self.result.truncated and not self._args.context_shift:
            print(f"stopped: the context of {self.engine.n_ctx} tokens is full (--ctx-size)", file=sys.stderr)
        return text

    def _request(self, ids, on_token):
        from llamacy.generate.constraint import Constraint
        from llamacy.generate.request import Request
        from llamacy.generate.text_stream import with_bos

        args, params = self._args, sampling_from(self._args)
        return Request(
            ids,
            params,
            n_predict=max(args.n_predict, -1),
            n_keep=with_bos(args.n_keep, self._tokenizer),
            constraint=self._automaton and Constraint(self._automaton, self._table),
            on_token=on_token,
        )


def converse(args, model, prompt):
    """Talk until the end of stdin; return the last Result, None when nothing was said."""
    from llamacy.cli.conversation import Conversation, talk, template_of
    from llamacy.generate.engine import Engine

    engine = Engine(model, n_ctx=context_of(args, model), **engine_options(args))
    writer = Writer(engine, model.tokenizer, args, template_of(args, model)[1])
    tell(args, model, engine)

    def answer(ids):
        if args.verbose_prompt:
            print_tokens(model.tokenizer, ids)
        try:
            return writer.write(ids)
        except KeyboardInterrupt:
            return writer.partial  # Ctrl-C ends the answer, not the conversation

    talk(Conversation(args, model, engine, answer), prompt, args.single_turn, args.multiline_input)
    return writer.result


def talk_raw(args, model, prompt):
    """Write a text with the user by turns, without a template; return the last Result."""
    from llamacy.cli.raw_talk import RawTalk
    from llamacy.generate.engine import Engine
    from llamacy.generate.text_stream import prompt_ids

    engine = Engine(model, n_ctx=context_of(args, model), **engine_options(args))
    writer = Writer(engine, model.tokenizer, args)
    ids = prompt_ids(model.tokenizer, prompt)
    tell(args, model, engine, ids)
    if not args.no_display_prompt:
        show(prompt)
    RawTalk(args, model.tokenizer, engine, writer, show).go(ids, first=args.interactive_first or not prompt)
    return writer.result


def complete(args, model, prompt):
    """Show the prompt and the text that follows it; return the Result."""
    from llamacy.generate.engine import Engine
    from llamacy.generate.text_stream import prompt_ids

    stops = []
    if args.instruct:
        from llamacy.cli.conversation import first_messages, template_of
        from llamacy.cli.template_flags import template_values, warn_of_unused
        from llamacy.generate.chat_prompt import chat_ids, chat_text

        template, stops = template_of(args, model)
        messages, values = [*first_messages(args), {"role": "user", "content": prompt}], template_values(args)
        warn_of_unused(template, values)
        prompt = chat_text(messages, template, model.tokenizer, **values)
        ids = chat_ids(messages, template, model.tokenizer, **values)
    else:
        ids = prompt_ids(model.tokenizer, prompt)
    engine = Engine(model, n_ctx=session_context(args, model, len(ids)), **engine_options(args))
    engine.check_prompt(ids)
    tell(args, model, engine, ids)
    if not args.no_display_prompt:
        show(prompt)
    writer = Writer(engine, model.tokenizer, args, stops)
    writer.write(ids)
    return writer.result


def mode_of(args):
    """Return the function that does what the flags ask for: complete, converse or talk_raw."""
    interactive = args.interactive or args.interactive_first
    raw = args.in_prefix or args.in_suffix or args.in_prefix_bos
    if (interactive and args.conversation is False) or (raw and args.conversation is not False):
        return talk_raw
    if args.conversation is False:
        return complete
    if interactive or args.conversation or args.single_turn:
        return converse
    # -ins with a prompt answers that one; every other flag about chats begins one.
    if args.instruct:
        return complete if args.prompt or args.file is not None or args.binary_file is not None else converse
    return converse if args.system or chat_flags(args) else complete


def chat_flags(args):
    """Return the flags about templates that were given, by name."""
    names = ("chat_template", "chat_template_file", "template_kwargs", "reasoning", "reasoning_effort")
    return [name for name in names if vars(args)[name] not in (None, {})]


def warn_of_chat_flags(args):
    """Say on stderr which flags about chats have no effect on a plain text."""
    others = ("system", "single_turn", "multiline_input", "in_prefix", "in_suffix", "in_prefix_bos")
    names = chat_flags(args) + [name for name in others if vars(args)[name]]
    if names:
        flags = ", ".join(FLAG_NAMES.get(name) or "--" + name.replace("_", "-") for name in names)
        say(f"warning: {flags}: without effect, for this is no chat (-no-cnv)")


def system_message(args):
    """Return the system message of the flags, None without any."""
    if args.system is not None and args.system_file is not None:
        raise UsageError("--system-prompt and --system-prompt-file are both given: name one")
    return read_text(args.system_file) if args.system_file is not None else args.system


def main(argv):
    args = build_parser().parse_args(argv)
    log_to(args.log_file)
    if args.prompt_cache is None and (args.prompt_cache_all or args.prompt_cache_ro):
        raise UsageError("--prompt-cache-all and --prompt-cache-ro need a file: --prompt-cache FILE")
    args.system, args.format = system_message(args), format_from(args)
    mode = mode_of(args)
    if mode is complete and not args.instruct:
        warn_of_chat_flags(args)
    prompt = read_prompt(args, pipe=mode is complete and not args.instruct)
    if args.n_predict is None:
        args.n_predict = 128 if mode is complete else -1
    args.context_shift = args.context_shift and args.n_predict != UNTIL_FULL
    args.verbose_prompt = args.verbose_prompt or args.verbose
    began = time.perf_counter()
    model = open_model_from(args)
    check_bias(args, model.config.n_vocab)
    load_seconds = time.perf_counter() - began
    result = mode(args, model, prompt)
    if result:
        print_timings(load_seconds, result)
    return 0
