"""Anthropic's messages: /v1/messages and /v1/messages/count_tokens, as their clients send them.

Shapes: https://docs.anthropic.com/en/api/messages. What is asked is put into OpenAI's words and answered by chat.py.
"""

import json
import secrets

from llamacy.server import fields
from llamacy.server.answers import Events, Json, named
from llamacy.server.chat import ChatRun, prompt_of, read_chat, read_prompt
from llamacy.server.errors import HttpError
from llamacy.server.jobs import Answer
from llamacy.server.messages import text_of

# status -> what Anthropic calls it
ERRORS = {400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 404: "not_found_error",
          413: "request_too_large", 429: "rate_limit_error", 503: "overloaded_error"}  # fmt: skip
REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}
FIELDS = {
    "max_tokens": (fields.number(int, 1), None),
    "stream": (fields.flag, False),
    "temperature": (fields.number(float), None),
    "top_p": (fields.number(float), None),
    "top_k": (fields.number(int), None),
    "stop_sequences": (fields.stops, ()),
}
# What is known there and not built here: refused where it asks for something.
UNBUILT = ("mcp_servers", "container", "context_management", "output_config", "output_format")


def shape(error, body):
    """Return an error as Anthropic has it."""
    kind = ERRORS.get(error.status, "api_error")
    return {"type": "error", "error": {"type": kind, "message": str(error), **error.more}}


def messages(app, call):
    data = fields.mapping("the body", call.json())
    if data.get("max_tokens") is None:
        raise HttpError(400, "max_tokens: wanted a whole number, got nothing")
    chat = read_chat(app, _in_openais_words(data))
    run = ChatRun(app, call, chat)
    model = data.get("model") if isinstance(data.get("model"), str) else app.alias
    head = {"id": f"msg_{secrets.token_hex(12)}", "type": "message", "role": "assistant", "model": model}
    if chat.options.stream:
        return Events(_stream(run, head), run.cancel, named, _failure)
    (said,) = run.wait()
    return Json({**head, "content": _blocks(said), **_end_of(said), "usage": _usage(run, said.answer)})


def _failure(body):
    """Return the event of an error's object."""
    error = body["error"]
    return body if body.get("type") == "error" else {"type": "error", "error": {"type": "api_error", **error}}


def count_tokens(app, call):
    data = fields.mapping("the body", call.json())
    chat = read_prompt(app, _in_openais_words(data))
    return Json({"input_tokens": len(prompt_of(app, chat))})


def _in_openais_words(data):
    """Return a request as OpenAI's clients would have put it."""
    values = fields.read_all(data, FIELDS)
    for name in UNBUILT:
        if data.get(name):
            raise HttpError(400, f"{name}: not supported")
    found = {key: value for key, value in data.items() if key not in ("system", "thinking", *FIELDS)}
    found |= {key: value for key, value in values.items() if value not in (None, ()) and key != "stop_sequences"}
    if values["stop_sequences"]:
        found["stop"] = list(values["stop_sequences"])
    found["messages"] = _messages(data)
    if data.get("tools"):
        tools = fields.items(fields.mapping)("tools", data["tools"])
        found["tools"] = [_tool(f"tools[{i}]", tool) for i, tool in enumerate(tools)]
    found |= _choice(data.get("tool_choice"))
    thinking = data.get("thinking")
    if thinking is not None:
        kind = fields.mapping("thinking", thinking).get("type")
        found["chat_template_kwargs"] = {
            "enable_thinking": fields.choice("enabled", "disabled", "adaptive")("thinking.type", kind) != "disabled",
            **(data.get("chat_template_kwargs") or {}),
        }
    return found


def _tool(name, tool):
    kind = tool.get("type", "custom")
    if kind != "custom":
        raise HttpError(400, f"{name}.type: wanted 'custom', got {fields.shown(kind)}")
    function = {"name": tool.get("name"), "parameters": tool.get("input_schema")}
    if tool.get("description") is not None:
        function["description"] = tool["description"]
    return {"type": "function", "function": function}


def _choice(choice):
    """Return tool_choice and parallel_tool_calls in OpenAI's words."""
    if choice is None:
        return {}
    choice = fields.mapping("tool_choice", choice)
    kind = fields.choice("auto", "any", "tool", "none")("tool_choice.type", choice.get("type"))
    found = {"tool_choice": {"any": "required"}.get(kind, kind)}
    if kind == "tool":
        found["tool_choice"] = {"type": "function", "function": {"name": choice.get("name")}}
    if choice.get("disable_parallel_tool_use") is False:
        found["parallel_tool_calls"] = True
    return found


def _messages(data):
    """Return the conversation in OpenAI's words: results of tools are messages of their own there."""
    found = []
    if data.get("system") is not None:
        found.append({"role": "system", "content": text_of("system", data["system"])})
    for i, message in enumerate(fields.items(fields.mapping)("messages", data.get("messages"))):
        name, content = f"messages[{i}]", message.get("content")
        role = fields.choice("user", "assistant", "system")(f"{name}.role", message.get("role"))
        if not isinstance(content, list):
            found.append({"role": role, "content": content})
            continue
        found += _of_blocks(role, content, f"{name}.content")
    return found


def _of_blocks(role, blocks, name):
    """Return the messages that a message of blocks means."""
    texts, thoughts, calls, results = [], [], [], []
    for i, block in enumerate(fields.items(fields.mapping)(name, blocks)):
        where, kind = f"{name}[{i}]", block.get("type")
        if kind == "tool_use":
            function = {"name": block.get("name"), "arguments": block.get("input") or {}}
            calls.append({"id": block.get("id"), "type": "function", "function": function})
        elif kind == "tool_result":
            content = block.get("content")
            text = "" if content is None else text_of(f"{where}.content", content)
            results.append({"role": "tool", "tool_call_id": block.get("tool_use_id"), "content": text})
        elif kind in ("thinking", "redacted_thinking"):
            thoughts.append(str(block.get("thinking") or ""))
        else:
            texts.append(text_of(where, [block]))
    message = {"role": role, "content": "\n".join(texts)}
    if calls:
        message["tool_calls"] = calls
    if any(thoughts):
        message["reasoning_content"] = "\n".join(thoughts)
    return results + ([message] if texts or calls or not results else [])


def _blocks(said):
    """Return an answer's content blocks."""
    found = [{"type": "thinking", "thinking": said.thought, "signature": ""}] if said.thought else []
    if said.text.strip() or not said.calls:
        found.append({"type": "text", "text": said.text})
    for one in said.calls:
        found.append({"type": "tool_use", "id": one["id"], "name": one["name"], "input": _arguments(one["arguments"])})
    return found


def _arguments(text):
    try:
        value = json.loads(text or "{}")
    except ValueError:  # cut off by max_tokens
        return {}
    return value if isinstance(value, dict) else {"value": value}


def _end_of(said):
    """Return stop_reason and stop_sequence."""
    if said.answer.stopping_word:
        return {"stop_reason": "stop_sequence", "stop_sequence": said.answer.stopping_word}
    return {"stop_reason": REASONS[said.reason], "stop_sequence": None}


def _usage(run, answer=None):
    timings = answer.result.timings if answer else None
    cached = timings.cache_n if timings else 0
    return {
        "input_tokens": len(run.prompt) - cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached,
        "output_tokens": timings.predicted_n if timings else 0,
    }


KINDS = {"text": ("text", "text_delta", "text"), "thought": ("thinking", "thinking_delta", "thinking"),
         "arguments": ("tool_use", "input_json_delta", "partial_json")}  # fmt: skip


def _stream(run, head):
    """Yield Anthropic's events: message_start, blocks as they come, message_delta, message_stop."""
    empty = {"content": [], "stop_reason": None, "stop_sequence": None, "usage": _usage(run)}
    yield {"type": "message_start", "message": {**head, **empty}}
    index, now = -1, None  # the block that is open, and its kind
    for _, parts, event in run.events():
        n_calls = len(run.said[0].calls) - sum(part.kind == "call" for part in parts)
        for part in parts:
            kind = "arguments" if part.kind == "call" else part.kind
            if kind == "text" and now != "text" and not part.text.strip():
                continue
            if kind != now or part.kind == "call":
                if now:
                    yield {"type": "content_block_stop", "index": index}
                index, now = index + 1, kind
                block = {"type": KINDS[kind][0], KINDS[kind][2]: ""}
                if kind == "arguments":
                    one = run.said[0].calls[n_calls]
                    block = {"type": "tool_use", "id": one["id"], "name": one["name"], "input": {}}
                    n_calls += 1
                elif kind == "thought":
                    block["signature"] = ""
                yield {"type": "content_block_start", "index": index, "content_block": block}
            if part.kind != "call":
                _, delta, member = KINDS[kind]
                yield {"type": "content_block_delta", "index": index, "delta": {"type": delta, member: part.text}}
        if isinstance(event, Answer):
            if not now:
                index, now = 0, "text"
                yield {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
            yield {"type": "content_block_stop", "index": index}
            usage = _usage(run, event)
            yield {"type": "message_delta", "delta": _end_of(run.said[0]), "usage": usage}
            yield {"type": "message_stop"}


ROUTES = {("POST", "/v1/messages"): messages, ("POST", "/v1/messages/count_tokens"): count_tokens}
