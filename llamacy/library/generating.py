"""One text of a model: asked of its engine, and taken from it a piece at a time."""

from __future__ import annotations

import contextlib
from collections import deque

from llamacy.errors import LlamacyError
from llamacy.generate.request import Request
from llamacy.generate.text_stream import TextStream
from llamacy.library.results import Completion, Token

ENDS = {"eos": "stop", "word": "stop", "limit": "length"}


class _Text:
    """What has come of a text so far: tokens, and pieces that nobody has taken yet."""

    def __init__(self, tokenizer, stops, visible=(), answer=None):
        self.stream, self.pieces = TextStream(tokenizer.stream(visible=visible), stops), deque()
        self.texts, self.tokens, self.answer = [], [], answer

    def take(self, token):
        """Request.on_token"""
        self.tokens.append(Token(token.id, token.logprob, token.top))
        text, stop = self.stream.feed(token)
        self.put(text)
        return stop

    def put(self, text):
        self._add(self.answer.feed(text) if self.answer else text)

    def end(self):
        """Take what was held back."""
        self.put(self.stream.flush())
        if self.answer:
            self._add(self.answer.flush())

    def _add(self, text):
        if text:
            self.texts.append(text)
            self.pieces.append(text)


class Generation:
    """A text that is being generated: an iterator of its pieces, str; `result` is its Completion once it has ended.

    Whoever asks for the next piece computes, for all texts that the model has at work: threads that each generate
    share their steps. `close()`, leaving a `with`, or dropping it ends it early; what there is stays.
    """

    def __init__(self, owner, ids, stops, question=None, **request):
        self._request, self.result = None, None
        how = (question.visible, question.answer()) if question else ()
        self._owner, self._text = owner, _Text(owner.tokenizer, stops, *how)
        made = Request(list(ids), on_token=self._text.take, **request)
        owner.submit(made)
        self._request = made

    def __iter__(self) -> Generation:
        return self

    def __next__(self) -> str:
        while not self._text.pieces and self.result is None:
            if self._request.result is None:
                self._compute()
            if self._request.result is not None:
                self._finish()
        if self._text.pieces:
            return self._text.pieces.popleft()
        raise StopIteration

    def _compute(self):
        try:
            self._owner.advance(self._request)
        except BaseException:  # Ctrl-C: the slot is given back, what there is stays
            self.close()
            raise

    def _finish(self):
        """Make the result of a request that has ended; raise what it failed with."""
        text, ended = self._text, self._request.result
        if self.result is not None:
            return
        if ended.error:
            raise ended.error
        text.end()
        reason = ENDS.get(ended.stop_type, ended.stop_type)
        calls = text.answer.calls if text.answer else []
        self.result = Completion(
            text="".join(text.texts),
            tokens=text.tokens,
            finish_reason="tool_calls" if calls and reason == "stop" else reason,
            reasoning=text.answer.thought if text.answer else "",
            tool_calls=calls,
            stop=text.stream.stopping_word,
            prompt_tokens=len(self._request.prompt),
            seed=ended.seed,
            timings=ended.timings,
        )

    def close(self) -> None:
        """End the text here; `result` then has what was generated, its finish_reason "cancel" where more would come."""
        if self._request is None:
            return
        if self._request.result is None:
            self._owner.cancel(self._request)
        self._finish()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def __del__(self):
        # A loop that was left by `break`: the slot is free for the next text.
        with contextlib.suppress(Exception):
            if self._request is not None and self._request.result is None:
                self._owner.cancel(self._request)

    def complete(self) -> Completion:
        """Generate to the end; return the Completion."""
        for _ in self:
            pass
        return self.result


def automaton_of(grammars, grammar, schema):
    """Return what a GBNF grammar or a JSON schema allows, None without either. grammars: Grammars of the model."""
    if grammar is not None and schema is not None:
        raise LlamacyError("grammar and schema are both given: name one")
    if grammar is not None:
        return grammars.gbnf(grammar)
    return None if schema is None else grammars.json_schema(schema)


def constraint_of(tokenizer, n_vocab, automaton, tables):
    """Return the Constraint of an automaton, None for None. tables: a dict that keeps what is made once per model."""
    if automaton is None:
        return None
    from llamacy.generate.constraint import Constraint, TokenTable

    if "tokens" not in tables:
        tables["tokens"] = TokenTable(tokenizer, n_vocab)
    return Constraint(automaton, tables["tokens"])
