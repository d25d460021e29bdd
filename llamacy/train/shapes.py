"""The objects that training data is made of: one row for each shape, with the keys that it has and what they become.

Keys are known in any case. What is not used of an object is counted (notes.py), so that nothing is left out unseen.
"""

import os
from dataclasses import replace
from typing import NamedTuple

from llamacy.errors import LlamacyError, brief, shown
from llamacy.train import turns
from llamacy.train.conversations import conversation, from_text, tools_of
from llamacy.train.notes import Notes
from llamacy.train.readers import instruct_prompt
from llamacy.train.samples import ANSWER, PROMPT, Record, check_text

# What people call the same thing.
CHAT = ("messages", "conversations", "conversation", "dialogue", "dialog", "chat", "turns")
ANSWERS = ("completion", "response", "output", "answer", "target")
SYSTEM = ("system", "system_prompt", "system_message")
ASKS = ("prompt", "instruction", "question", "query", "input", "inputs")
CHOSEN, REJECTED = ("chosen",), ("rejected",)

PREFERRED = 'pairs of answers: "chosen" is learnt, "rejected" is not'
UNWANTED = 'records with "label": false, whose answer is not wanted: left out'
TWO_SYSTEMS = 'records with "system" beside a system message of their own, which is used'


# What the methods' data must be.
PREFERENCES = {
    "pairs": '"chosen" and "rejected", for --method dpo and orpo',
    "labels": '"chosen" and "rejected", or "prompt", "completion" and "label", for --method kto',
}


class Row(NamedTuple):
    """A shape: for each of `needs` one of its keys must be there; `make(shapes, keys, *names)` -> (Record, template),
    names: those that are there.
    """

    needs: tuple
    make: object


def _is_messages(value):
    return isinstance(value, list) and all(isinstance(item, dict) for item in value) and bool(value)


class Keys:
    """An object's keys, in any case: `found(names)`, `take(name)`; what nobody took is counted at the end."""

    def __init__(self, value, where):
        self.where = where
        self._names, self._values, self._twice = {}, {}, []
        for key, item in value.items():
            name = key.strip().lower().replace(" ", "_").replace("-", "_")
            if name in self._values and item is not None:
                self._twice.append(key)
            elif name not in self._values or self._values[name] is None:
                self._names[name], self._values[name] = key, item
        self._taken = set()

    def __contains__(self, name):
        return name in self._values

    def get(self, name):
        """Return a key's value, None where it is not there, without counting it as used."""
        return self._values.get(name)

    def written(self, name):
        """Return the key as the object has it, in quotes."""
        return f'"{brief(self._names.get(name, name), 24)}"'

    def found(self, names):
        """Return the first of these keys that is there with a value, else the first that is there, else None."""
        there = [name for name in names if name in self._values]
        return next((name for name in there if self._values[name] is not None), there[0] if there else None)

    def take(self, name):
        """Return a key's value, None where it is not there, and count it as used."""
        self._taken.add(name)
        return self._values.get(name)

    def text(self, name):
        """Return a key's value as text, "" where it is not there or null."""
        return check_text(self.take(name), self.written(name), self.where)

    def first(self, names):
        """Return the value of the first of these keys that is there, None without."""
        name = self.found(names)
        return None if name is None else self.take(name)

    def tell_unused(self, notes):
        """Count the keys that nothing was made of."""
        for name, key in self._names.items():
            if name not in self._taken and self._values[name] not in (None, "", [], {}):
                notes.unused(key, self.where)
        for key in self._twice:
            notes.unused(key, self.where)


class Shapes:
    """Makes Records of objects.

    render      (messages, add_generation_prompt, **variables) -> str, the model's chat template; None: there is none
    end         the text of the token that ends an answer, for answers that others follow
    keep_empty  an empty answer is one too
    needs       "pairs": records must be preferences; "labels": these, or answers with a label; "": anything
    """

    def __init__(self, render=None, end="", keep_empty=False, notes=None, needs=""):
        self.render, self.end, self.keep_empty, self.needs = render, end, keep_empty, needs
        self.notes = notes or Notes()

    def record(self, value, where):
        """Return (Record, the name of its prompt's shape); LlamacyError names the keys that are missing."""
        keys = Keys({CHAT[0]: value} if isinstance(value, list) else value, where)
        for row in ROWS:
            names = tuple(keys.found(alternatives) for alternatives in row.needs)
            if all(names):
                result = row.make(self, keys, *names)
                keys.tell_unused(self.notes)
                if self.needs and result[0].rejected is None and result[0].wanted is None:
                    raise LlamacyError(f"{where}: no preference: wanted {PREFERENCES[self.needs]}")
                return result
        got = ", ".join(f'"{brief(key, 24)}"' for key in list(value)[:8]) or "no keys"
        raise LlamacyError(f"{where}: missing keys: wanted {WANTED}; got {got}")

    @staticmethod
    def knows(names):
        """Are these, names of a table's columns, the keys of a shape?"""
        keys = Keys(dict.fromkeys(names, ""), "")
        return any(all(keys.found(alternatives) for alternatives in row.needs) for row in ROWS)

    def _note(self, where):
        return lambda text: self.notes.remark(text, where)

    # ---- the rows ----

    def _chat(self, keys, name):
        talk = conversation(keys.take(name), name, keys.where)
        return self._rendered(keys, talk), "chat"

    def _preference(self, keys, chosen, rejected):
        if not self.needs:
            self.notes.remark(PREFERRED, keys.where)
        answer, other = keys.take(chosen), keys.take(rejected)
        if not keys.found(ASKS) and isinstance(answer, str) and isinstance(other, str):
            # a prompt that both begin with, up to the last space, as TRL takes it
            n = len(os.path.commonprefix([answer, other]))
            n -= answer[n - 1 : n] == " "
            for text, name in ((answer, chosen), (other, rejected)):
                check_text(text, keys.written(name), keys.where)
            records = [Record(((text[:n], PROMPT), (text[n:], ANSWER))) for text in (answer, other)]
            return self._pair(*records), ""
        record, template = self._asked(keys, answer, chosen)
        return (self._pair(record, self._asked(keys, other, rejected)[0]) if self.needs else record), template

    def _pair(self, chosen, rejected):
        """Return the Record of both answers where the method wants them, else of the chosen one."""
        return replace(chosen, rejected=rejected) if self.needs else chosen

    def _prompt(self, keys, prompt, answer):
        label = keys.get("label")
        if self.needs == "labels" and label is not None:
            if label not in (0, 1):
                raise LlamacyError(f'{keys.where}: "label" is {shown(label)}, wanted true or false')
            keys.take("label")
            record, template = self._asked(keys, keys.take(answer), answer)
            return replace(record, wanted=bool(label)), template
        if isinstance(label, bool) and not keys.take("label"):
            self.notes.remark(UNWANTED, keys.where)
            for name in (prompt, answer):
                keys.take(name)
            return Record(()), ""
        return self._asked(keys, keys.take(answer), answer)

    def _answered(self, keys, *names):
        return self._asked(keys, keys.take(names[-1]), names[-1])

    def _text(self, keys, name):
        return Record(((keys.text(name), ANSWER),)), ""

    # ---- what they are made of ----

    def _asked(self, keys, answer, name):
        """Return (Record, template) of an answer to whatever the record asks."""
        asked = keys.found(("prompt",)) or keys.found(("inputs", "input"))
        ask = keys.get(asked)
        if _is_messages(ask) or _is_messages(answer) or isinstance(answer, dict):
            return self._rendered(keys, self._conversation(keys, asked, answer, name)), "chat"
        answer = check_text(answer, keys.written(name), keys.where)
        if "prompt" in keys:
            return self._raw(keys, answer), ""
        return self._instruct(keys, answer), "instruct"

    def _conversation(self, keys, asked, answer, name):
        """Return the Conversation of a prompt and an answer of which at least one is a list of messages.

        Only the answer's turns are learnt, as TRL does.
        """
        where = keys.where
        ask = keys.take(asked) if asked else None
        if isinstance(ask, list):
            talk = conversation(ask, asked, where)
        else:
            text = check_text(ask, f'"{asked}"', where) if ask is not None else ""
            talk = conversation([{"role": "user", "content": text}], asked, where) if text else None
        if isinstance(answer, (list, dict)):
            said = conversation([answer] if isinstance(answer, dict) else answer, name, where)
        else:
            said = conversation([{"role": "assistant", "content": check_text(answer, f'"{name}"', where)}], name, where)
        if talk is None:
            # pairs without a prompt of their own: whole conversations, of which the last turn is the answer
            said.learn[:-1] = [False] * (len(said.learn) - 1)
            return said
        if said.messages[: len(talk.messages)] == talk.messages:
            del said.messages[: len(talk.messages)], said.learn[: len(talk.messages)]
        talk.learn = [False] * len(talk.messages)
        talk.messages += said.messages
        talk.learn += said.learn
        return talk

    def _rendered(self, keys, talk):
        """Return the Record of a Conversation, as the chat template writes it."""
        where = keys.where
        system = keys.first(SYSTEM)
        if system:
            own = talk.messages[0]["role"] in ("system", "developer")
            if own and talk.messages[0].get("content") != system:
                self.notes.remark(TWO_SYSTEMS, where)
            elif not own:
                talk.messages.insert(0, {"role": "system", "content": check_text(system, '"system"', where)})
                talk.learn.insert(0, None)
        tools = tools_of(keys.take("tools"), where)
        if tools is None and (functions := tools_of(keys.take("functions"), where)):
            tools = [{"type": "function", "function": function} for function in functions]
        if tools:
            talk.variables["tools"] = tools
        if documents := from_text(keys.take("documents"), "documents", where):
            talk.variables["documents"] = documents
        talk.variables |= self._arguments(keys)
        if self.render is None:
            raise LlamacyError(f"{where}: messages need a chat template, and this model has none")
        try:
            return Record(turns.pieces(talk, self.render, self.keep_empty, self._note(where)), closed=True)
        except LlamacyError as error:
            raise LlamacyError(f"{where}: {error}") from error

    def _arguments(self, keys):
        """Return what the record itself gives the template, as TRL's `chat_template_kwargs`."""
        value = from_text(keys.take("chat_template_kwargs"), "chat_template_kwargs", keys.where) or {}
        if not isinstance(value, dict):
            raise LlamacyError(f'{keys.where}: "chat_template_kwargs" is {shown(value)}, wanted an object')
        own = {"messages", "add_generation_prompt", "tools", "documents"}
        return {str(key): item for key, item in value.items() if key not in own}

    def _raw(self, keys, answer):
        """Return the Record of a prompt that is taken as it stands."""
        if keys.get("history"):
            raise LlamacyError(f'{keys.where}: "history" beside "prompt"; wanted "messages", or "instruction" with it')
        system = keys.first(SYSTEM)
        lead = check_text(system, '"system"', keys.where) + "\n\n" if system else ""
        return Record(((lead + keys.text("prompt"), PROMPT), (answer, ANSWER)))

    def _instruct(self, keys, answer):
        """Return the Record of a question in the shape of instruction text, with what was said before it."""
        question = keys.found(("instruction", "question", "query"))
        extra = keys.found(("input", "context", "inputs") if question else ())
        question = question or keys.found(("input", "inputs"))
        if question is None:
            raise LlamacyError(f'{keys.where}: missing keys: wanted "prompt" beside {keys.written("chosen")}')
        prompt = instruct_prompt(keys.text(question).strip(), keys.text(extra).strip() if extra else "")
        system = keys.first(SYSTEM)
        lead = check_text(system, '"system"', keys.where).strip() + "\n\n" if system else ""
        result = []
        for asked, said in self._history(keys):
            result += [(lead + instruct_prompt(asked.strip()), PROMPT), (said + self.end, ANSWER)]
            lead = "\n"
        return Record((*result, (lead + prompt, PROMPT), (answer, ANSWER)))

    def _history(self, keys):
        """Return [(question, answer), ...] of what was said before, given as pairs or as messages."""
        value, where = from_text(keys.take("history"), "history", keys.where), keys.where
        if not value:
            return []
        if isinstance(value, list) and all(isinstance(item, dict) for item in value):
            talk = conversation(value, "history", where).messages
            roles = [message["role"] for message in talk]
            if roles == ["user", "assistant"] * (len(roles) // 2):
                value = [(talk[i]["content"] or "", talk[i + 1].get("content") or "") for i in range(0, len(talk), 2)]
        pairs = isinstance(value, list) and all(isinstance(item, (list, tuple)) and len(item) == 2 for item in value)
        if not pairs:
            raise LlamacyError(f'{where}: "history" is {shown(value)}, wanted pairs of question and answer')
        return [tuple(check_text(text, '"history"', where) for text in pair) for pair in value]


ROWS = (
    Row((CHOSEN, REJECTED), Shapes._preference),
    Row((CHAT,), Shapes._chat),
    Row((("prompt",), ANSWERS), Shapes._prompt),
    Row((("instruction",), ("output", *ANSWERS)), Shapes._answered),
    Row((("question", "query"), ("answer", *ANSWERS)), Shapes._answered),
    Row((("input", "inputs"), ("output", "targets", *ANSWERS)), Shapes._answered),
    Row((("text",),), Shapes._text),
)
WANTED = (
    '"messages", "conversations", "prompt" and "completion", "instruction" and "output", "question" and "answer", '
    '"input" and "output", "chosen" and "rejected", or "text"'
)
