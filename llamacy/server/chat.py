"""A chat request, whatever API it came through: its prompt, what its answer must follow, and how the answer is read.

`read_chat` makes a Chat of an object in OpenAI's words; ChatRun answers it as Parts (llamacy.text.answer_reader).
"""

import json
import secrets
import string
from dataclasses import dataclass, field, replace

from llamacy.errors import RequestError
from llamacy.generate.chat_prompt import chat_text, text_ids
from llamacy.server import fields
from llamacy.server.errors import HttpError
from llamacy.server.jobs import Answer, Job, Piece
from llamacy.server.messages import read_messages, read_tools, with_ids_of, with_packed_arguments
from llamacy.server.options import read_options
from llamacy.text.answer_reader import AnswerReader
from llamacy.text.chat import OWN_NAMES, template_for
from llamacy.text.tool_formats import VISIBLE, format_of, knows_tools, thoughts_of, written_out

TEMPLATE = {
    "chat_template_kwargs": (fields.mapping, {}),
    "reasoning_effort": (fields.text, ""),
    "add_generation_prompt": (fields.flag, None),
    "continue_final_message": (fields.flag, None),
    "reasoning_format": (fields.choice("none", "auto", "deepseek"), None),
}
REASONS = {"eos": "stop", "word": "stop", "limit": "length"}
ID_LETTERS = string.ascii_letters + string.digits


@dataclass
class Chat:
    """`text`: the prompt; `format`: how calls are written; `thoughts`: (opening, closing), None where none are read."""

    text: str
    format: object
    thoughts: tuple | None
    begins_inside: bool
    tools: object
    options: object = None

    def reader(self):
        """Return what takes one answer apart."""
        shown = self.format if self.tools or self.format.reader == "channels" else None
        most = None if self.tools is None or self.tools.many else 1
        return AnswerReader(self.thoughts, self.begins_inside, shown, most)

    def call_id(self):
        """Return a new id for a call."""
        size = self.format.id_size
        return "".join(secrets.choice(ID_LETTERS) for _ in range(size)) if size else f"call_{secrets.token_hex(12)}"


def read_chat(app, data, defaults=()):
    """Return the Chat of a request; `defaults`: of fields that it may leave out. HttpError 400 names what is wrong."""
    data = {**dict(defaults), **fields.mapping("the body", data)}
    chat = read_prompt(app, data)
    options = read_options(app, data)
    chat.options = replace(options, automaton=constrain(app, chat, options.automaton), visible=visible_of(app, chat))
    return chat


def read_prompt(app, data):
    """Return the Chat of a request without its options."""
    given = fields.read_all(data, TEMPLATE)
    messages, tools = read_messages(data), read_tools(data)
    template = template_for(app.model.metadata, app.chat_template)
    values = template_values(app, given)
    goes_on = _goes_on(app, messages, given)
    prefill = messages.pop()["content"] if goes_on else ""
    if not goes_on and given["add_generation_prompt"] is False:
        values["add_generation_prompt"] = False
    format = format_of(template)
    text = _rendered(app, messages, template, tools, format, values) + prefill
    thoughts = thoughts_of(template)
    if (given["reasoning_format"] or app.reasoning_format) == "none":
        thoughts = None
    begins_inside = thoughts is not None and text.rstrip().endswith(thoughts[0])
    return Chat(text, format, thoughts, begins_inside, tools)


def _goes_on(app, messages, given):
    """Say whether the last message is the beginning of the answer; HttpError where it cannot be."""
    wanted, is_last = given["continue_final_message"], messages[-1]["role"] == "assistant"
    if wanted and not is_last:
        raise HttpError(400, "continue_final_message: the last message is not the assistant's")
    if wanted and given["add_generation_prompt"]:
        raise HttpError(400, "continue_final_message and add_generation_prompt: wanted one of them")
    if wanted is None:
        wanted = app.prefill_assistant and given["add_generation_prompt"] is None
    goes_on = bool(wanted) and is_last and not messages[-1].get("tool_calls")
    if goes_on and (len(messages) < 2 or messages[-2]["role"] == "assistant"):
        raise HttpError(
            400, "messages: wanted one message of the assistant's at the end to go on with, behind another's"
        )
    return goes_on


def _rendered(app, messages, template, tools, format, values):
    """Return the conversation's text; tools are written out where the template knows none."""
    values = dict(values)
    with_calls = any(message.get("tool_calls") or message["role"] == "tool" for message in messages)
    if not (tools or with_calls):
        return chat_text(messages, template, app.model.tokenizer, **values)
    if not knows_tools(template):
        messages = written_out(messages, tools.all if tools else ())
        return chat_text(messages, template, app.model.tokenizer, **values)
    if tools:
        values["tools"] = tools.all
    if format.id_size:
        messages = with_ids_of(messages, format.id_size)
    try:
        return chat_text(messages, template, app.model.tokenizer, **values)
    except RequestError:
        packed = with_packed_arguments(messages)
        if packed == messages:
            raise
        return chat_text(packed, template, app.model.tokenizer, **values)


def template_values(app, given):
    """Return what the template is given besides the messages: the server's values, and the request's in their place."""
    for name in sorted(OWN_NAMES & given["chat_template_kwargs"].keys()):
        raise HttpError(400, f"chat_template_kwargs.{name}: is said by the conversation itself")
    values = {**app.template_values, **given["chat_template_kwargs"]}
    effort = given["reasoning_effort"]
    if effort == "none":
        values["enable_thinking"] = False
        values.pop("reasoning_effort", None)
    elif effort:
        values["reasoning_effort"] = effort
    return values


def constrain(app, chat, automaton):
    """Return what the answer must follow, None for nothing: a grammar's or schema's automaton, and calls of tools."""
    tools = chat.tools
    thoughts = chat.thoughts[1] if chat.begins_inside and chat.thoughts else None
    is_framed = tools or thoughts or chat.format.reader == "channels"
    if not is_framed or (automaton is None and not tools):
        return automaton
    from llamacy.generate.tool_grammar import answer_automaton

    callable = tools.callable if tools else []
    key = json.dumps([chat.format.name, callable, tools and [tools.must_call, tools.many], thoughts, id(automaton)])
    return app.grammars.made(
        (key, automaton),
        lambda: answer_automaton(
            app.model.tokenizer,
            format=chat.format,
            tools=callable,
            must_call=bool(tools and tools.must_call),
            many=bool(tools and tools.many),
            inner=automaton,
            thoughts=thoughts,
        ),
    )


def visible_of(app, chat):
    """Return the ids of the control tokens that the answer's reader looks for."""
    tokenizer, found = app.model.tokenizer, []
    if not (chat.tools or chat.thoughts or chat.format.reader == "channels"):
        return ()
    for text in VISIBLE:
        ids = tokenizer.encode(text, add_special=False)
        if len(ids) == 1 and tokenizer.is_special(ids[0]) and ids[0] not in tokenizer.eog_ids:
            found.append(ids[0])
    return tuple(found)


@dataclass
class Said:
    """One choice of the answer so far: its text, thoughts and calls [{id, name, arguments}]."""

    text: str = ""
    thought: str = ""
    calls: list = field(default_factory=list)
    answer: object = None  # the Answer, when it is whole

    def add(self, part, new_id):
        """Take a Part."""
        if part.kind == "call":
            self.calls.append({"id": new_id(), "name": part.text, "arguments": ""})
        elif part.kind == "arguments":
            self.calls[-1]["arguments"] += part.text
        else:
            setattr(self, part.kind, getattr(self, part.kind) + part.text)

    @property
    def reason(self):
        """Why it ended, in OpenAI's words."""
        reason = REASONS[self.answer.result.stop_type]
        return "tool_calls" if self.calls and reason == "stop" else reason


class ChatRun:
    """A chat's n answers on their way. `said`: what there is of each."""

    def __init__(self, app, call, chat, n=1):
        self.prompt = prompt_of(app, chat)
        self.chat, self.said = chat, [Said() for _ in range(n)]
        self._readers = [chat.reader() for _ in range(n)]
        options = [chat.options.nth(i) for i in range(n)]
        self._job = Job(app, call, [self.prompt] * n, options)
        self.cancel = self._job.cancel

    def events(self):
        """Yield (index, Parts, event): a Piece and what it is made of, Progress, or last of each choice its Answer."""
        for event in self._job.events():
            parts, said = [], self.said[event.index]
            if isinstance(event, Piece):
                parts = self._readers[event.index].feed(event.text)
            elif isinstance(event, Answer):
                parts, said.answer = self._readers[event.index].flush(), event
            for part in parts:
                said.add(part, self.chat.call_id)
            yield event.index, parts, event

    def wait(self):
        """Return the answers, whole."""
        for answer in self._job.answers():
            said, said.answer = self.said[answer.index], answer
            reader = self._readers[answer.index]
            for part in reader.feed(answer.text) + reader.flush():
                said.add(part, self.chat.call_id)
        return self.said


def prompt_of(app, chat):
    """Return the ids of a chat's prompt; HttpError where it cannot fit."""
    app.check_length("messages", chat.text)
    return text_ids(chat.text, app.model.tokenizer)
