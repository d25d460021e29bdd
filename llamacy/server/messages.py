"""The messages and tools of a chat request, read strictly, as templates want them."""

import hashlib
import json
import re
from dataclasses import dataclass

from llamacy.server import fields
from llamacy.server.errors import HttpError

ROLES = ("system", "developer", "user", "assistant", "tool", "ipython")
# Kinds of content parts that are text, and the member that has it.
PARTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal", "thinking": "thinking"}
NAME = re.compile(r"[\w.-]{1,128}")
MAX_TOOLS = 512


def read_messages(data):
    """Return the conversation as [{role, content, ...}] with texts as content; HttpError 400 names what is wrong."""
    fields.mapping("the body", data)
    messages = fields.items(fields.mapping)("messages", data.get("messages"))
    if not messages:
        raise HttpError(400, "messages: wanted at least one message, got none")
    return [_read_message(f"messages[{i}]", message) for i, message in enumerate(messages)]


def _read_message(name, message):
    role = fields.text(f"{name}.role", message.get("role"))
    found = {key: value for key, value in message.items() if value is not None} | {"role": role}
    if message.get("function_call"):
        raise HttpError(400, f"{name}.function_call: not supported; use tool_calls")
    if message.get("tool_calls"):
        calls = fields.items(fields.mapping)(f"{name}.tool_calls", message["tool_calls"])
        found["tool_calls"] = [_read_call(f"{name}.tool_calls[{i}]", call) for i, call in enumerate(calls)]
    else:
        found.pop("tool_calls", None)
    content = message.get("content")
    if content is None and (role == "assistant" or found.get("tool_calls")):
        content = ""
    if found.get("reasoning_content") is not None:
        fields.text(f"{name}.reasoning_content", found["reasoning_content"])
    return found | {"content": text_of(f"{name}.content", content)}


def text_of(name, content):
    """Return content as text: a string, or the texts of its parts joined by line ends; HttpError for other kinds."""
    if not isinstance(content, list):
        return fields.text(name, content)
    texts = []
    for i, part in enumerate(content):
        if isinstance(part, str):
            texts.append(part)
            continue
        part = fields.mapping(f"{name}[{i}]", part)
        kind = fields.choice(*PARTS)(f"{name}[{i}].type", part.get("type"))
        texts.append(fields.text(f"{name}[{i}].{PARTS[kind]}", part.get(PARTS[kind])))
    return "\n".join(texts)


def _read_call(name, call):
    function = fields.mapping(f"{name}.function", call.get("function"))
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments) if arguments.strip() else {}
        except (ValueError, RecursionError):
            raise fields.wrong(f"{name}.function.arguments", "JSON", arguments) from None
    function = {**function, "name": fields.text(f"{name}.function.name", function.get("name")), "arguments": arguments}
    return {**call, "type": "function", "function": function}


def with_packed_arguments(messages):
    """Return messages whose calls have their arguments as JSON text, for templates that want them so."""
    found = []
    for message in messages:
        calls = [
            {**call, "function": {**call["function"], "arguments": json.dumps(call["function"]["arguments"])}}
            for call in message.get("tool_calls", ())
        ]
        found.append({**message, "tool_calls": calls} if calls else message)
    return found


def with_ids_of(messages, size):
    """Return messages whose calls have ids of `size` letters and digits: others' ids become such, always the same."""

    def short(id):
        id = str(id or "")
        fits = len(id) == size and id.isascii() and id.isalnum()
        return id if fits else hashlib.blake2b(id.encode("utf-8", "replace")).hexdigest()[:size]

    found = []
    for message in messages:
        calls = [{**call, "id": short(call.get("id"))} for call in message.get("tool_calls", ())]
        message = {**message, "tool_calls": calls} if calls else message
        found.append(
            {**message, "tool_call_id": short(message.get("tool_call_id"))} if message["role"] == "tool" else message
        )
    return found


@dataclass
class Tools:
    """`all`: as the request has them; `callable`: the functions that may be called now."""

    all: list
    callable: list
    must_call: bool = False
    many: bool = False


def read_tools(data):
    """Return the Tools of a request, None without; HttpError 400 names what is wrong."""
    tools = data.get("tools") or []
    tools = fields.items(fields.mapping, MAX_TOOLS)("tools", tools)
    choice = "auto" if data.get("tool_choice") is None else data["tool_choice"]
    parallel = data.get("parallel_tool_calls")
    many = False if parallel is None else fields.flag("parallel_tool_calls", parallel)
    functions = [_read_tool(f"tools[{i}]", tool) for i, tool in enumerate(tools)]
    names = [function["name"] for function in functions]
    if isinstance(choice, str):
        choice = fields.choice("none", "auto", "required", "any")("tool_choice", choice)
        if choice in ("required", "any") and not tools:
            raise HttpError(400, f"tool_choice: {choice} wants tools, got none")
        callable = functions
    else:
        function = fields.mapping("tool_choice.function", fields.mapping("tool_choice", choice).get("function"))
        name = fields.text("tool_choice.function.name", function.get("name"))
        if name not in names:
            raise HttpError(400, f"tool_choice: there is no tool {name[:60]!r}")
        callable, choice = [functions[names.index(name)]], "named"
        many = False
    if not tools or choice == "none":
        return None
    return Tools(tools, callable, choice in ("required", "any", "named"), many)


def _read_tool(name, tool):
    kind = tool.get("type", "function")
    if kind != "function":
        raise HttpError(400, f"{name}.type: wanted 'function', got {fields.shown(kind)}")
    function = fields.mapping(f"{name}.function", tool.get("function"))
    if not NAME.fullmatch(fields.text(f"{name}.function.name", function.get("name"))):
        raise fields.wrong(f"{name}.function.name", "letters, digits, _, . and -, at most 128", function["name"])
    if function.get("parameters") is not None:
        fields.mapping(f"{name}.function.parameters", function["parameters"])
    return function
