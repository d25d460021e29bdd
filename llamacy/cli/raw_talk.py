"""Talking without a template, as llama.cpp's interactive mode: a text that the model and the user write by turns.

The model writes up to a reverse prompt (`-r "User:"`), then the user's line goes in between --in-prefix and
--in-suffix, as it stands; and so on, to the end of stdin.
"""

import sys

from llamacy.cli.conversation import joined, lines
from llamacy.cli.prompt import unescape


class RawTalk:
    """The text so far, as ids. `writer` writes after ids and shows what it writes."""

    def __init__(self, args, tokenizer, engine, writer, show):
        self._tokenizer, self._engine, self._writer, self._show = tokenizer, engine, writer, show
        self._escape = unescape if args.escape else str
        self._prefix, self._suffix = self._escape(args.in_prefix), self._escape(args.in_suffix)
        self._bos = [tokenizer.bos_id] if args.in_prefix_bos and tokenizer.bos_id is not None else []
        self._n_keep = args.n_keep
        self._single, self._multiline = args.single_turn, args.multiline_input

    def go(self, ids, first):
        """Go on after the prompt `ids` and then by turns. `first`: the user begins, the prompt is only read."""
        if not first:
            ids = self._turn_of_model(ids)
            if self._single:
                return
        self._show(self._prefix)
        for line in joined(lines(invitation=""), self._multiline):
            ids = self._turn_of_model(ids + self._turn_of_user(line))
            if self._single:
                return
            self._show(self._prefix)

    def _turn_of_user(self, line):
        """Return the ids of what was typed; an empty line lets the model go on."""
        if not line:
            return []
        self._show(self._suffix)
        parts = [(self._prefix, True), (self._escape(line), False), (self._suffix, True)]
        encode = self._tokenizer.encode
        texts = [encode(text, add_special=False, parse_special=special) for text, special in parts if text]
        return self._bos + [token for ids in texts for token in ids]

    def _turn_of_model(self, ids):
        """Let the model write after `ids`; return them with what it wrote, a reverse prompt at the end."""
        ids = self._fitting(ids)
        self._writer.write(ids, newline=False)
        written = [token.id for token in self._writer.tokens if not token.is_end]
        stop = self._writer.stopping_word
        if stop is None and self._writer.result.stop_type == "eos" and self._writer.stops:
            # The model is done without having asked: the first reverse prompt asks in its name.
            stop = self._writer.stops[0]
            self._show("\n")
            written += self._tokenizer.encode(stop, add_special=False)
        self._show(stop or "\n")
        return ids + written

    def _fitting(self, ids):
        """Return ids that fit the context: without the older half of what may go, said on stderr."""
        dropped = 0
        while len(ids) >= self._engine.n_ctx:
            keep = len(ids) if self._n_keep < 0 else self._n_keep
            drop = (len(ids) - keep) // 2
            if drop < 1:
                break  # the engine says that it is too long
            ids, dropped = ids[:keep] + ids[keep + drop :], dropped + drop
        if dropped:
            print(
                f"(forgot {dropped} tokens of the oldest text: the context is {self._engine.n_ctx} tokens)",
                file=sys.stderr,
            )
        return ids
