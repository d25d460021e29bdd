"""Conversations as people keep them, brought into one form: messages with role and content, and which are learnt.

Whatever else a message holds (tool calls, names, thoughts) stays as it is, for the chat template.
"""

import json
from dataclasses import dataclass, field

from llamacy.errors import LlamacyError, shown
from llamacy.train.samples import check_text

# Names of roles, in any case -> what templates call them; a role that is not here goes to the template as it is.
ROLES = {
    "user": ("user", "human", "prompter", "instruction", "question"),
    "assistant": ("assistant", "gpt", "bot", "model", "chatgpt", "ai", "chatbot", "answer", "response"),
    "system": ("system", "sys"),
    "tool": ("tool", "function", "observation", "function_response", "tool_response", "ipython"),
    "function_call": ("function_call", "tool_call"),  # LLaMA-Factory: an answer that is a call
    "developer": ("developer",),
}
BY_NAME = {name: role for role, names in ROLES.items() for name in names}
ROLE_KEYS, CONTENT_KEYS = ("role", "from", "speaker", "author"), ("content", "value", "text")
# Keys by which a turn says whether it is learnt.
LEARN_KEYS = ("weight", "train", "training", "loss")
# Thoughts, by the names that people give them: the first is what templates read, but for gpt-oss's.
THOUGHTS = ("reasoning_content", "thinking", "reasoning")
# What a message without content says instead.
INSTEAD = ("tool_calls", *THOUGHTS)


@dataclass
class Conversation:
    """messages: [{"role", "content", ...}]; learn: for each whether it is learnt, None where it does not say.

    variables: what the template is given besides, such as `tools`.
    """

    messages: list
    learn: list
    variables: dict = field(default_factory=dict)


def is_message(value):
    """Does a JSON value look like a message?"""
    return (
        isinstance(value, dict)
        and any(key in value for key in ROLE_KEYS)
        and not isinstance(_first(value, ROLE_KEYS), dict)
    )


def conversation(value, name, where):
    """Return the Conversation in `value`, a list of messages, of texts in turn, or one of them as JSON text.

    LlamacyError names the message that is wrong; `name` is the key that it stands under.
    """
    value = from_text(value, name, where)
    if not isinstance(value, list) or not value:
        raise LlamacyError(f'{where}: "{name}" is empty or no list; wanted [{{"role": ..., "content": ...}}, ...]')
    if all(isinstance(item, str) for item in value):
        roles = ("user", "assistant")
        value = [{"role": roles[number % 2], "content": text} for number, text in enumerate(value)]
    pairs = [_message(item, f'"{name}"[{number}]', where) for number, item in enumerate(value)]
    return Conversation([message for message, _ in pairs], [learn for _, learn in pairs])


def from_text(value, name, where):
    """Return `value`, read as JSON where it is a text that holds JSON, as tables and data sets keep lists."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        python = value.lstrip().startswith(("[{'", '[{"'))
        what = "text that is a list as Python writes it" if python else "text"
        raise LlamacyError(f'{where}: "{name}" is {what}, wanted a list, or JSON of one as text') from None


def _first(message, keys):
    return next((message[key] for key in keys if key in message), None)


def _message(message, name, where):
    """Return (the message with role and content, is it learnt) of one as it stands in the data."""
    role = _first(message, ROLE_KEYS) if isinstance(message, dict) else None
    content_key = next((key for key in CONTENT_KEYS if isinstance(message, dict) and key in message), None)
    says = content_key or (
        isinstance(message, dict) and (any(message.get(key) for key in INSTEAD) or "function_call" in message)
    )
    if role is None or not says:
        raise LlamacyError(f'{where}: {name} has no "role" and "content"; wanted an object with both')
    role_key = next(key for key in ROLE_KEYS if key in message)
    role = check_text(role, f"{name}.{role_key}", where).strip()
    role = BY_NAME.get(role.lower(), role)
    # null stands for what is not there, as in transformers: templates would write "None"
    rest = {key: value for key, value in message.items() if key not in (role_key, content_key) and value is not None}
    learn = _learn(rest, name, where)
    result = {"role": role}
    if content_key and message[content_key] is not None:
        result["content"] = _content(message[content_key], f"{name}.{content_key}", where)
    if role == "function_call":
        result = {"role": "assistant", "content": "", "tool_calls": [_call(result.get("content"), name, where)]}
    if "function_call" in rest:  # OpenAI's older form
        result["tool_calls"] = [_call(rest.pop("function_call"), name, where)]
    if "tool_calls" in rest:
        rest["tool_calls"] = _calls(from_text(rest["tool_calls"], "tool_calls", where), name, where)
        if not rest["tool_calls"]:
            del rest["tool_calls"]
    thoughts = next((rest[key] for key in THOUGHTS if key in rest), None)
    if isinstance(thoughts, str):
        rest = {"thinking": thoughts, **rest, THOUGHTS[0]: thoughts}
    return result | rest, learn


def _content(value, name, where):
    """Return a message's content as text."""
    if isinstance(value, list):
        return "".join(_part(part, name, where) for part in value)
    return check_text(value, name, where)


def _part(part, name, where):
    if isinstance(part, str):
        return part
    if not isinstance(part, dict) or part.get("type") != "text":
        raise LlamacyError(f"{where}: {name} holds something other than text; only text can be trained")
    return check_text(part.get("text"), name, where)


def _learn(rest, name, where):
    """Take out of a message what says whether it is learnt; return that, None where nothing does."""
    found = None
    for key in LEARN_KEYS:
        if key not in rest:
            continue
        value = rest.pop(key)
        if value not in (0, 1):
            raise LlamacyError(f'{where}: {name}."{key}" is {shown(value)}, wanted 0 or 1, or true or false')
        found = bool(value) and found is not False
    return found


def _call(call, name, where):
    """Return a call of a function, given as an object or as JSON text, in the form of today's tool_calls."""
    call = from_text(call, f"{name}.function_call", where) if isinstance(call, str) else call
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        raise LlamacyError(f'{where}: {name} is no call of a function; wanted {{"name": ..., "arguments": ...}}')
    return {"type": "function", "function": call}


def _calls(calls, name, where):
    good = isinstance(calls, list) and all(isinstance(call, dict) for call in calls)
    if not good:
        raise LlamacyError(f'{where}: {name}."tool_calls" is {shown(calls)}, wanted a list of objects')
    return calls


def functions(call):
    """Return the object with a call's (or a tool's) name and arguments, which may stand in "function" or not."""
    inner = call.get("function")
    return inner if isinstance(inner, dict) else call


def with_objects(messages):
    """Return the messages with tool calls' arguments that are JSON text as objects; the same where there are none."""
    result, changed = [], False
    for message in messages:
        calls = message.get("tool_calls")
        if isinstance(calls, list):
            new = [_with_object(call) for call in calls]
            changed = changed or new != calls
            message = {**message, "tool_calls": new}
        result.append(message)
    return result if changed else messages


def _with_object(call):
    inner = functions(call)
    arguments = inner.get("arguments")
    if not isinstance(arguments, str):
        return call
    try:
        value = json.loads(arguments)
    except (ValueError, RecursionError):
        return call
    if not isinstance(value, dict):
        return call
    inner = {**inner, "arguments": value}
    return {**call, "function": inner} if isinstance(call.get("function"), dict) else inner


def tools_of(value, where):
    """Return a record's tools, a list of objects or JSON text of one, for the template; None for none."""
    value = from_text(value, "tools", where) if value != "" else None
    if not value:
        return None
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise LlamacyError(f'{where}: "tools" is {shown(value)}, wanted a list of objects')
    return value
