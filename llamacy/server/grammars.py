"""Automata of grammars and schemas that requests bring, kept: the same one again knows what it found out before."""

import json
import threading
from collections import OrderedDict

from llamacy.errors import RequestError

MOST = 16  # kept
MAKING = 2  # at once: Python's threads take turns, and the engine's is one of them


class Grammars:
    """The newest automata by what asked for them."""

    def __init__(self, tokenizer):
        self._tokenizer, self._known = tokenizer, OrderedDict()
        self._lock, self._making = threading.Lock(), threading.BoundedSemaphore(MAKING)

    def gbnf(self, text):
        """Return the automaton of a GBNF grammar."""
        from llamacy.generate.gbnf import gbnf

        return self._of(("gbnf", text), lambda: gbnf(text, self._tokenizer))

    def json_object(self):
        """Return the automaton of any JSON object."""
        from llamacy.generate.json_grammar import json_object

        return self._of(("object", ""), json_object)

    def json_schema(self, schema):
        """Return the automaton of what a JSON schema describes."""
        from llamacy.generate.json_grammar import json_schema

        try:
            key = json.dumps(schema)
        except RecursionError:
            raise RequestError("json_schema: nested too deeply") from None
        return self._of(("schema", key), lambda: json_schema(schema))

    def made(self, key, make):
        """Return make(), an automaton, or what it gave for the same key before."""
        return self._of(("made", key), make)

    def _of(self, key, make):
        with self._lock:
            if key in self._known:
                self._known.move_to_end(key)
                return self._known[key]
        with self._making:
            found = make()
        with self._lock:
            self._known[key] = found
            while len(self._known) > MOST:
                self._known.popitem(last=False)
        return found
