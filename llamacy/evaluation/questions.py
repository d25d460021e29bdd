"""Records with answers, as fine-tuning reads them, made into what a model can be asked.

A record with `choices` has an answer for each; its own answer says which one is right. A pair `chosen` and `rejected`
is a question with two choices. Of any other record the text behind its last prompt is what is wanted.
"""

import string
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from llamacy.errors import LlamacyError, brief, shown
from llamacy.train.data import open_data
from llamacy.train.notes import Notes
from llamacy.train.samples import Encoder, Record
from llamacy.train.shapes import CHAT, CHOSEN, REJECTED, Shapes

CHOICES = ("choices", "options", "endings")
RIGHT = ("answer", "answerkey", "answer_key", "label", "gold", "correct", "target", "output", "completion", "response")
# What the answer of a record is called, by what it asks with.
ANSWERED = {"prompt": "completion", "instruction": "output", "question": "answer", "query": "answer", "input": "output"}
LETTERS = string.ascii_lowercase


@dataclass(frozen=True)
class Asked(Record):
    """A Record, that of the right answer, with what it is judged by.

    choices: the Records of all answers to choose from, () for a text to be written; texts: what they say; right: the
    index of the right one. others: Records of further texts that are right too.
    """

    choices: tuple = ()
    texts: tuple = ()
    right: int = 0
    others: tuple = ()


class Choice(NamedTuple):
    """A question with answers to choose from: for each (ids, where its answer begins, where it ends), and its text."""

    answers: tuple
    texts: tuple
    right: int


class Task(NamedTuple):
    """A text to be written behind `prompt` (ids): any of `wanted` is right. sample: all of it, as training has it."""

    prompt: list
    wanted: tuple
    sample: object


class Questions:
    """The questions of files: `choices` and `tasks`, lists; `notes`, lines on what was left out or not used.

    kind: "choice" or "task", LlamacyError where the files hold both: a table has one measure for each.
    """

    def __init__(self, paths, tokenizer, n_ctx, render=None, max_samples=None):
        self._tokenizer = tokenizer
        self._encoder = Encoder(tokenizer, n_ctx)
        data = open_data(paths, self._encoder, render=render, max_samples=max_samples, shapes=AskedShapes)
        self.choices, self.tasks, too_long = [], [], 0
        try:
            for part in data.parts:
                if not hasattr(part, "record"):
                    raise LlamacyError(f"{part.path}: {part.kind}: no answers to check; a text is measured with -f")
                for i in range(len(part)):
                    too_long += not self._take(part.record(i))
        finally:
            data.close()
        if self.choices and self.tasks:
            raise LlamacyError(
                f"{', '.join(map(str, paths))}: {len(self.choices)} questions with choices and {len(self.tasks)} "
                "without; evaluate them apart"
            )
        self.notes = [line for line in data.report()[len(data.parts) :] if "cut at its end" not in line]
        if too_long:
            self.notes.append(f"left out, longer than {n_ctx} tokens: {too_long} records (see --ctx-size)")
        if not len(self):
            raise LlamacyError(f"{', '.join(map(str, paths))}: no question fits into {n_ctx} tokens; raise --ctx-size")

    def __len__(self):
        return len(self.choices) + len(self.tasks)

    @property
    def kind(self):
        return "choice" if self.choices else "task"

    def longest(self):
        """Return the most tokens that one question has with its answer."""
        choices = (len(ids) for choice in self.choices for ids, _, _ in choice.answers)
        return max([*choices, *(len(task.sample.ids) for task in self.tasks)])

    def longest_answer(self):
        """Return the most tokens that a wanted text has."""
        return max((len(task.sample.ids) - len(task.prompt) for task in self.tasks), default=0)

    def _take(self, record):
        """Keep a Record's question; return whether it fits."""
        if record.rejected is not None:  # a pair, its ends included: they are learnt, and one may begin the other
            found = [self._answer(each, True) for each in (record, record.rejected)]
            if None not in found:
                self.choices.append(self._choice(found, [self._text(*answer) for _, *answer in found], 0))
            return None not in found
        if getattr(record, "choices", ()):
            found = [self._answer(choice) for choice in record.choices]
            if None not in found:
                self.choices.append(self._choice(found, record.texts, record.right))
            return None not in found
        found = [self._answer(each) for each in (record, *getattr(record, "others", ()))]
        if None in found:
            return False
        wanted = tuple(self._text(*answer) for _, *answer in found)
        sample, ids, begin, _ = found[0]
        self.tasks.append(Task(ids[:begin], wanted, sample))
        return True

    @staticmethod
    def _choice(found, texts, right):
        return Choice(tuple(answer for _, *answer in found), tuple(texts), right)

    def _text(self, ids, begin, end):
        return self._tokenizer.decode(ids[begin:end], True)

    def _answer(self, record, ended=False):
        """Return (Sample, ids, begin, end) of a record's last answer, None where it is cut; ended: with its end."""
        sample, cut = self._encoder.encode(Record(record.pieces, record.closed))
        if cut or not sample.n_trained:
            return None
        learnt = np.flatnonzero(sample.trained)
        end = int(learnt[-1]) + 1
        gaps = np.flatnonzero(~sample.trained[:end])
        begin = int(gaps[-1]) + 1
        ids = [int(token) for token in sample.ids]
        while not ended and end > begin and ids[end - 1] in self._tokenizer.eog_ids:
            end -= 1
        return (sample, ids, begin, end) if end > begin else None


class AskedShapes(Shapes):
    """Shapes that know choices, and lists of right answers."""

    def record(self, value, where):
        if isinstance(value, dict):
            keys = {str(key).strip().lower().replace(" ", "_").replace("-", "_"): key for key in value}
            name = next((name for name in CHOICES if name in keys), None)
            if name is not None:
                return self._choice(value, keys, name, where)
            if any(n in keys for n in CHOSEN) and any(n in keys for n in REJECTED):
                self.needs = "pairs"
                try:
                    return super().record(value, where)
                finally:
                    self.needs = ""
            several = next((k for n, k in keys.items() if n in RIGHT and isinstance(value[k], list)), None)
            if several is not None and value[several] and not any(isinstance(each, dict) for each in value[several]):
                return self._several(value, several, where)
        return super().record(value, where)

    def _several(self, value, key, where):
        """Return (Asked, template) of a record with a list of right answers."""
        records, template = self._records([{**value, key: text} for text in value[key]], where)
        return Asked(records[0].pieces, records[0].closed, others=records[1:]), template

    def _records(self, values, where):
        """Return (the Records of one record's variants, its template); what is to be noted of it is noted once."""
        first, template = super().record(values[0], where)
        notes, self.notes = self.notes, Notes()
        try:
            return (first, *(super(AskedShapes, self).record(value, where)[0] for value in values[1:])), template
        finally:
            self.notes = notes

    def _choice(self, value, keys, name, where):
        """Return (Asked, template) of a record with choices."""
        texts, labels = _texts(value[keys[name]], keys[name], where)
        rest = {key: item for key, item in value.items() if key != keys[name]}
        right_key = next((keys[each] for each in RIGHT if each in keys), None)
        if right_key is None or value[right_key] is None:
            raise LlamacyError(f'{where}: "{brief(keys[name], 24)}" without "answer", which says which one is right')
        right = _right(rest.pop(right_key), texts, labels, f'{where}: "{brief(right_key, 24)}"')
        records, template = self._records([_answered(rest, keys, text, where) for text in texts], where)
        chosen = records[right]
        return Asked(chosen.pieces, chosen.closed, choices=records, texts=texts, right=right), template


def _texts(value, name, where):
    """Return (texts of the choices, their labels or None)."""
    labels = None
    if isinstance(value, dict) and isinstance(value.get("text"), list):  # ARC's form
        value, labels = value["text"], value.get("label")
    elif isinstance(value, dict) and all(isinstance(text, str) for text in value.values()):  # {"A": text, ...}
        value, labels = list(value.values()), list(value)
    good = isinstance(value, list) and len(value) > 1 and all(isinstance(text, str) and text for text in value)
    if not good or (labels is not None and (not isinstance(labels, list) or len(labels) != len(value))):
        raise LlamacyError(f'{where}: "{brief(name, 24)}" is {shown(value)}, wanted a list of two texts or more')
    return tuple(value), None if labels is None else [str(label) for label in labels]


def _right(value, texts, labels, where):
    """Return the index that an answer means: a label, a choice's text, an index from 0, or a letter."""
    if labels is not None and str(value) in labels:
        return labels.index(str(value))
    if isinstance(value, str) and value in texts:
        return texts.index(value)
    number = int(value) if isinstance(value, str) and value.strip().isdecimal() and len(value) < 9 else value
    if type(number) is int and 0 <= number < len(texts):
        return number
    letter = value.strip().strip("().").lower() if isinstance(value, str) else ""
    if len(letter) == 1 and letter in LETTERS[: len(texts)]:
        return LETTERS.index(letter)
    raise LlamacyError(
        f"{where} is {shown(value)}, wanted one of the {len(texts)} choices: its text, index from 0 or letter"
    )


def _answered(value, keys, text, where):
    """Return a record's object with `text` as its answer."""
    talk = next((keys[name] for name in CHAT if name in keys), None)
    if talk is not None and isinstance(value.get(talk), list):
        learn_not = [{**turn, "train": False} if _is_answer(turn) else turn for turn in value[talk]]
        return {**value, talk: [*learn_not, {"role": "assistant", "content": text}]}
    for ask, answer in ANSWERED.items():
        if ask in keys:
            return {**value, answer: text}
    raise LlamacyError(f'{where}: choices without a question; wanted "question", "prompt", "instruction" or "messages"')


def _is_answer(turn):
    return isinstance(turn, dict) and str(turn.get("role", turn.get("from", ""))).lower() in (
        "assistant",
        "gpt",
        "model",
        "bot",
    )
