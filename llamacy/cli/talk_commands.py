"""What begins with / in `main`'s chat: a table of commands; whatever else begins so is a message."""

import json
import os

from llamacy.errors import LlamacyError, shown
from llamacy.formats.atomic import atomic_write

ROLES = ("system", "user", "assistant")


class Leave(Exception):
    """The conversation is over."""


def exit_(talk, rest):
    raise Leave


def clear(talk, rest):
    talk.clear()


def regen(talk, rest):
    if not talk.messages or talk.messages[-1]["role"] != "assistant":
        raise LlamacyError("/regen: there is no answer yet")
    last = talk.messages.pop()
    question = talk.messages.pop()
    try:
        talk.say(question["content"])
    except BaseException:
        talk.messages += [question, last]
        raise


def system(talk, rest):
    talk.set_system(rest)


def save(talk, rest):
    """Write the conversation as a line of training data."""
    path = _path("/save", rest)
    with atomic_write(path) as file:
        file.write(json.dumps({"messages": talk.messages}, ensure_ascii=False).encode("utf-8", "replace") + b"\n")
    return f"{len(talk.messages)} messages are in {path}"


def load(talk, rest):
    """Go on with a conversation of a file."""
    path = _path("/load", rest)
    try:
        with open(path, encoding="utf-8") as file:
            messages = json.loads(file.readline())["messages"]
        kinds = [(message["role"] in ROLES, isinstance(message["content"], str)) for message in messages]
        if not all(map(all, kinds)):
            raise TypeError
    except OSError as error:
        raise LlamacyError(f"/load {path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        raise LlamacyError(f'/load {path}: wanted a line {{"messages": [...]}}, as /save writes it') from None
    talk.messages = [{"role": message["role"], "content": message["content"]} for message in messages]
    return f"{len(messages)} messages"


def lora(talk, rest):
    """Show the adapters, change a scale (`/lora 0 0.5`), or load one more (`/lora FILE 0.5`)."""
    engine = talk.engine
    if rest:
        head, _, tail = rest.rpartition(" ")
        which, scale = (head, _number(tail)) if head and _number(tail) is not None else (rest, 1.0)
        scales = list(engine.lora)
        if which.isdigit() and int(which) < len(scales):
            index = int(which)
        else:
            index = _load_adapter(engine, which)
            scales = list(engine.lora)
        scales[index] = scale
        engine.lora = tuple(scales)
    names = [f"{i}: {adapter.path} x {engine.lora[i]:g}" for i, (adapter, _) in enumerate(engine.model.adapters)]
    return "; ".join(names) or "no adapters; /lora FILE [SCALE] loads one"


def _load_adapter(engine, path):
    from llamacy.formats.adapter import load_adapter

    if not os.path.exists(path):
        raise LlamacyError(f"/lora {shown(path)}: no such file, nor one of the {len(engine.lora)} adapters' numbers")
    adapter = load_adapter(path)
    if adapter.norms:
        raise LlamacyError(f"/lora {path}: changes norms: start main with --lora for it")
    return engine.put_adapter(adapter)


def _number(text):
    try:
        return float(text)
    except ValueError:
        return None


def _path(command, rest):
    if not rest:
        raise LlamacyError(f"{command}: wanted a file")
    return os.path.expanduser(rest)


def help_(talk, rest):
    return HELP


# word: (function(talk, the rest of the line) -> a note or None, what it does)
COMMANDS = {
    "/exit": (exit_, "leaves, as Ctrl-D does"),
    "/clear": (clear, "forgets the conversation"),
    "/regen": (regen, "answers the last question again"),
    "/system": (system, "TEXT sets the system message"),
    "/save": (save, "FILE keeps the conversation"),
    "/load": (load, "FILE goes on with it"),
    "/lora": (lora, "[NUMBER or FILE] [SCALE] shows, changes or loads adapters"),
    "/help": (help_, "says this"),
}
HELP = ", ".join(f"{word} {what}" for word, (_, what) in COMMANDS.items())
HELP += ", Ctrl-C stops an answer, \\ at a line's end goes on"


def run_command(talk, message):
    """Do what a message asks for, if it is a command; return (whether it was one, what to tell about it)."""
    word, _, rest = message.partition(" ")
    if word not in COMMANDS or "\n" in message:
        return False, None
    return True, COMMANDS[word][0](talk, rest.strip())
