"""A conversation's answer: read as the server reads it, taken apart into text, thoughts and calls of tools."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from llamacy.errors import RequestError
from llamacy.generate.chat_prompt import text_ids
from llamacy.server.chat import Said, constrain, read_prompt, visible_of
from llamacy.server.errors import HttpError
from llamacy.server.grammars import Grammars


@dataclass
class ChatRules:
    """What the server's reading of conversations asks of a server, for a model of one's own."""

    model: Any
    chat_template: str | None
    template_values: dict = field(default_factory=dict)
    reasoning_format: str = "auto"
    prefill_assistant: bool = False

    def __post_init__(self):
        self.grammars = Grammars(self.model.tokenizer)

    def read(self, messages, values, **tools):
        """Return the Question of a conversation; RequestError names what is wrong with it."""
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        given = {"messages": list(messages), "chat_template_kwargs": dict(values or {})}
        given.update((name, value) for name, value in tools.items() if value is not None)
        try:
            return Question(self, read_prompt(self, given))
        except HttpError as error:
            raise RequestError(str(error)) from None


class Question:
    """A conversation that waits for its answer. `text`: its prompt; `visible`: control tokens that are read."""

    def __init__(self, rules, chat):
        self._rules, self._chat = rules, chat
        self.text, self.visible = chat.text, visible_of(rules, chat)

    def ids(self, tokenizer):
        return text_ids(self.text, tokenizer)

    def constrained(self, automaton):
        """Return the automaton of the whole answer, whose text follows `automaton` (None: anything); None for none."""
        return constrain(self._rules, self._chat, automaton)

    def answer(self):
        """Return a new Answer to be fed."""
        return Answer(self._chat.reader(), self._chat.call_id)


class Answer:
    """An answer as it comes: `feed` and `flush` return the text of it that is for people, the rest is gathered."""

    def __init__(self, reader, new_id):
        self._reader, self._new_id, self._said = reader, new_id, Said()

    def feed(self, text):
        return self._add(self._reader.feed(text))

    def flush(self):
        return self._add(self._reader.flush())

    def _add(self, parts):
        for part in parts:
            self._said.add(part, self._new_id)
        return "".join(part.text for part in parts if part.kind == "text")

    @property
    def thought(self):
        return self._said.thought

    @property
    def calls(self):
        """The calls so far in OpenAI's form."""
        return [
            {
                "id": call["id"],
                "type": "function",
                "function": {"name": call["name"], "arguments": call["arguments"]},
            }
            for call in self._said.calls
        ]
