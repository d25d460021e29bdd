"""A conversation as its chat template writes it, cut into what is learnt and what is not.

An answer is what an assistant's turn adds to its prompt, in the text of the whole conversation. What the template
writes for the turns up to some point must be how it writes the whole: an answer that it writes differently once the
conversation goes on (some drop old thoughts) is not learnt there, as it does not look so when the model answers.
"""

import json

from llamacy.errors import LlamacyError
from llamacy.train.conversations import INSTEAD, functions, with_objects
from llamacy.train.samples import ANSWER, CONTEXT, PROMPT

# From so many messages on an answer's place is found from the turns around it instead of from all before it.
LONG = 24
# So many messages, or the last question and what followed it, are enough for that.
AROUND = 6
# Where that does not do for more turns than these, all are found by whole beginnings.
LOST = 24

REWRITTEN = "answers not learnt, because the chat template writes them differently later on"
NO_PROMPT = "answers not learnt, because no prompt stands before them"
EMPTY = "empty answers not learnt (--keep-empty teaches them, their end alone)"
NOT_WRITTEN = "answers not learnt, because the chat template writes nothing of them"
NULL = 'conversations with a "content" that is null or not there, which the chat template cannot take: taken as ""'
OBJECTS = "conversations whose tool calls hold their arguments as JSON text: given to the chat template as objects"
NOT_THE_ASSISTANTS = "turns marked to be learnt that are not the assistant's: not learnt"
UNSEEN = 'messages whose "{}" the chat template does not write as it stands'
UNSEEN_TOOLS = 'records whose "tools" the chat template does not write'

# What a message's other keys are called by; those that say nothing to a model are left out.
SILENT = frozenset({"role", "id", "type", "index", "tool_call_id"})


def _with_content(messages):
    return [{**turn, "content": turn.get("content", "")} for turn in messages]


# What is tried, one after the other, where a template fails on a conversation as it stands.
REPAIRS = ((_with_content, NULL), (with_objects, OBJECTS))


class Renderer:
    """Writes one conversation's beginnings by `render(messages, add_generation_prompt, **variables)`."""

    def __init__(self, render, conversation, note):
        self._render, self.variables = render, conversation.variables
        self.messages = conversation.messages
        self.whole = self._first(note)

    def _first(self, note):
        """Return the whole conversation, after the repairs that its template turns out to need."""
        for repair, remark in REPAIRS:
            try:
                whole = self.text(self.messages)
            except LlamacyError:
                repaired = repair(self.messages)
                if repaired != self.messages:
                    note(remark)
                self.messages = repaired
            else:
                break
        else:
            whole = self.text(self.messages)
        # A template that writes arguments as JSON puts text in quotes once more.
        if any(json.dumps(arguments, ensure_ascii=False) in whole for arguments in _text_arguments(self.messages)):
            self.messages = with_objects(self.messages)
            note(OBJECTS)
            whole = self.text(self.messages)
        return whole

    def text(self, messages, prompt=False):
        """Return the messages as text, with the prompt for an answer where that is wanted."""
        return self._render(messages, prompt, **self.variables)

    def opening(self):
        """Return what asks for an answer, "" where that cannot be told."""
        question = [{"role": "user", "content": "x"}]
        try:
            closed, asked = self.text(question), self.text(question, True)
        except LlamacyError:
            return ""
        return asked.removeprefix(closed) if asked.startswith(closed) else ""


def _text_arguments(messages):
    """Yield the arguments of calls that are JSON text of an object."""
    for message in messages:
        for call in message.get("tool_calls") or ():
            arguments = functions(call).get("arguments")
            if isinstance(arguments, str) and arguments.lstrip().startswith("{"):
                yield arguments


def pieces(conversation, render, keep_empty, note):
    """Return the rendered conversation as (text, ANSWER or PROMPT or CONTEXT), ...; `note(text)` counts what is not
    learnt or not written.
    """
    renderer = Renderer(render, conversation, note)
    unseen = _unseen(renderer, note)
    places, done, result = _places(renderer), 0, []
    whole = renderer.whole
    for number, turn in enumerate(renderer.messages):
        learn = conversation.learn[number]
        if turn["role"] != "assistant":
            if learn:
                note(NOT_THE_ASSISTANTS)
            continue
        part = CONTEXT if learn is False else ANSWER
        place = places[number]
        if part is ANSWER and not _says(turn, unseen[number]):
            if _says(turn):
                note(NOT_WRITTEN)
                continue
            if not keep_empty:
                note(EMPTY)
                continue
        if place is None or place[0] < done:
            if part is ANSWER:
                note(NO_PROMPT if number == 0 else REWRITTEN)
            continue
        begin, end = place
        result += [(whole[done:begin], PROMPT), (whole[begin:end], part)]
        done = end
    if done < len(whole):
        result.append((whole[done:], PROMPT))
    return tuple(piece for piece in result if piece[0])


def _says(turn, unseen=()):
    """Does an answer say anything, in words or by calling tools, but for its keys in `unseen`?"""
    return any(
        (turn.get(key) or "").strip() if key == "content" else turn.get(key) and key not in unseen
        for key in ("content", *INSTEAD)
    )


# ---- where answers stand ----


def _places(renderer):
    """Return for each message (begin, end) of the answer in the whole text, None for what is no answer of it."""
    messages = renderer.messages
    asked = [number for number, turn in enumerate(messages) if turn["role"] == "assistant"]
    if len(messages) <= LONG:
        found = {number: _exact(renderer, number) for number in asked}
    else:
        found = _walked(renderer, asked)
    return [found.get(number) for number in range(len(messages))]


def _exact(renderer, number):
    """Return (begin, end) of answer `number`, by writing out all that is before it; None where the whole differs."""
    whole, messages = renderer.whole, renderer.messages
    end = renderer.text(messages[: number + 1])
    if not whole.startswith(end):
        return None
    if number == 0:
        opening = renderer.opening()
        at = end.find(opening) if opening else -1
        return None if at < 0 else (at + len(opening), len(end))
    begin = renderer.text(messages[:number], True)
    return (len(begin), len(end)) if end.startswith(begin) else None


def _walked(renderer, asked):
    """Return the places of a long conversation's answers, in time that grows with its length alone.

    What a turn adds is told from the few turns around it and must stand in the whole where the turn before it ended.
    The first and last turns and one in the middle are compared with whole beginnings; if those differ, all are.
    """
    n, places = len(renderer.messages), {}
    head = LONG // 2
    places.update((number, _exact(renderer, number)) for number in asked if number < head)
    try:
        at = _end_of(renderer, head)
        walk = _Walk(renderer, head, at)
        places.update(walk.places())
        if walk.lost > LOST:
            return _all_exact(renderer, asked)
    except LlamacyError:  # a template that refuses a conversation's middle
        return _all_exact(renderer, asked)
    tail = [number for number in asked if number >= n - 2]
    checked = [number for number in asked if head <= number < n - 2][-1:] + [
        number for number in asked if number >= n // 2
    ][:1]
    if any(places.get(number) != _exact(renderer, number) for number in checked if places.get(number)):
        return _all_exact(renderer, asked)
    return places | {number: _exact(renderer, number) for number in tail}


def _all_exact(renderer, asked):
    return {number: _exact(renderer, number) for number in asked}


def _end_of(renderer, number):
    """Return where the first `number` messages end in the whole, None where it does not begin with them."""
    text = renderer.text(renderer.messages[:number])
    return len(text) if renderer.whole.startswith(text) else None


class _Walk:
    """Goes from message to message through the whole text, from message `number`, which begins at `at`."""

    def __init__(self, renderer, number, at):
        self.renderer, self.number, self.at = renderer, number, at
        self.lost = 0

    def places(self):
        """Return {message: (begin, end)} of the answers whose places are certain."""
        messages, found = self.renderer.messages, {}
        while self.number < len(messages) and self.lost <= LOST:
            number = self.number
            place = self._step(1) if self.at is not None else None
            if place is not None:
                if messages[number]["role"] == "assistant":
                    found[number] = place
                self.number += 1
            elif self.at is not None and self._step(2) is not None:
                self.number += 2  # written otherwise as the last message, but together with the next as in the whole
            else:
                self._find_again()
        return {number: place for number, place in found.items() if place[0] <= place[1]}

    def _step(self, n):
        """Go past the next n messages; return (begin, end) of the first as an answer, None where they are not there."""
        renderer, number = self.renderer, self.number
        if number + n > len(renderer.messages):
            return None
        before = self._around(number)
        closed = renderer.text(before)
        after = renderer.text(before + renderer.messages[number : number + n])
        added = after.removeprefix(closed) if after.startswith(closed) else None
        if added is None or not renderer.whole.startswith(added, self.at):
            return None
        begin = self.at
        if n == 1 and renderer.messages[number]["role"] == "assistant":
            asked = renderer.text(before, True)
            opening = asked.removeprefix(closed) if asked.startswith(closed) else None
            if opening is None or not added.startswith(opening):
                return None
            begin += len(opening)
        self.at += len(added)
        return begin, self.at

    def _around(self, number):
        """Return the messages that stand for all before `number`: the system's, the last question, what followed it."""
        messages = self.renderer.messages
        lead = messages[:1] if messages[0]["role"] in ("system", "developer") else []
        asked = next((at for at in range(number - 1, -1, -1) if messages[at]["role"] == "user"), None)
        if asked is None:
            return messages[:number]
        if number - asked <= AROUND:
            return lead + messages[asked:number]
        since = (at for at in range(number - 3, asked, -1) if messages[at]["role"] == "assistant")
        start = next(since, asked + 1)
        return [*lead, messages[asked], *messages[start:number]]

    def _find_again(self):
        """Go on behind the next message at which whole and beginning agree."""
        self.number += 1
        self.lost += 1
        self.at = _end_of(self.renderer, self.number) if self.number < len(self.renderer.messages) else None


# ---- what the template leaves out ----


def _unseen(renderer, note):
    """Count what stands in the messages and not in the text that the template makes of them; return the keys of it,
    a set for each message.
    """
    whole, at, unseen = renderer.whole, 0, []
    for message in renderer.messages:
        unseen.append(set())
        for key, value in message.items():
            if key in SILENT:
                continue
            for text in _texts(value):
                found = _find(whole, text, at)
                if found < 0:
                    note(UNSEEN.format(key))
                    unseen[-1].add(key)
                    break
                at = found if key == "content" else at
    tools = renderer.variables.get("tools")
    names = [functions(tool).get("name") for tool in tools or ()]
    if tools and not all(isinstance(name, str) and name in whole for name in names):
        note(UNSEEN_TOOLS)
    return unseen


def _texts(value, depth=0):
    """Yield the texts in a value of a message, but for ids and types."""
    if isinstance(value, str):
        if value.strip():
            yield value.strip()
    elif isinstance(value, list) and depth < 8:
        for item in value:
            yield from _texts(item, depth + 1)
    elif isinstance(value, dict) and depth < 8:
        for key, item in value.items():
            if key not in SILENT:
                yield from _texts(item, depth + 1)


def _find(whole, text, at):
    """Return where the text stands in the whole, as it is or as JSON writes it; -1 where it does not."""
    forms = (text, json.dumps(text, ensure_ascii=False)[1:-1], json.dumps(text)[1:-1])
    for form in forms:
        found = whole.find(form, at)
        found = whole.find(form) if found < 0 else found
        if found >= 0:
            return found
    return -1
