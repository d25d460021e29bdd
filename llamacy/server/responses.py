"""OpenAI's responses: /v1/responses, without memory of its own: what was said before comes with each request.

Shapes: https://platform.openai.com/docs/api-reference/responses.
"""

import secrets
import time

from llamacy.server import fields
from llamacy.server.answers import Events, Json, named
from llamacy.server.chat import ChatRun, read_chat
from llamacy.server.errors import HttpError
from llamacy.server.jobs import Answer
from llamacy.server.messages import text_of
from llamacy.server.openai import shape, usage_of

__all__ = ["ROUTES", "shape"]
FIELDS = {
    "max_output_tokens": (fields.number(int, 1), None),
    "instructions": (fields.text, None),
    "stream": (fields.flag, False),
    "parallel_tool_calls": (fields.flag, True),
    "text": (fields.mapping, {}),
    "reasoning": (fields.mapping, {}),
    "metadata": (fields.mapping, {}),
}
REFUSED = ("previous_response_id", "conversation", "prompt", "background", "max_tool_calls")


def responses(app, call):
    data = fields.mapping("the body", call.json())
    values = fields.read_all(data, FIELDS)
    chat = read_chat(app, _in_chat_words(data, values))
    run = ChatRun(app, call, chat)
    answer = Response(app, data, values, run)
    if chat.options.stream:
        return Events(answer.stream(), run.cancel, named, _failure)
    run.wait()
    return Json(answer.whole(answer.status))


def _failure(body):
    error = body["error"]
    return {"type": "error", "code": str(error.get("code")), "message": error.get("message"), "param": None}


def _in_chat_words(data, values):
    """Return a request as a chat completion would have put it."""
    for name in REFUSED:
        if data.get(name):
            raise HttpError(400, f"{name}: not supported: send what was said before as input")
    left_out = (*FIELDS, "input", "tools", "tool_choice", "include", "store", "truncation")
    found = {key: value for key, value in data.items() if key not in left_out}
    found["stream"] = values["stream"]
    if data.get("truncation") not in (None, "disabled"):
        raise HttpError(400, "truncation: not supported, but 'disabled'")
    if values["max_output_tokens"] is not None:
        found["max_tokens"] = values["max_output_tokens"]
    found["messages"] = _messages(data, values["instructions"])
    if data.get("tools"):
        tools = fields.items(fields.mapping)("tools", data["tools"])
        found["tools"] = [_tool(f"tools[{i}]", tool) for i, tool in enumerate(tools)]
        choice = data.get("tool_choice")
        if isinstance(choice, dict) and "function" not in choice:
            choice = {"type": "function", "function": {"name": choice.get("name")}}
        found["tool_choice"] = choice
    effort = values["reasoning"].get("effort")
    if effort is not None:
        found["reasoning_effort"] = effort
    found |= _format(values["text"].get("format"))
    return found


def _format(format):
    """Return response_format for `text.format`."""
    if format is None:
        return {}
    kind = fields.mapping("text.format", format).get("type")
    if kind == "json_schema":
        return {"response_format": {"type": kind, "json_schema": {"schema": format.get("schema", {})}}}
    return {"response_format": {"type": kind}}


def _tool(name, tool):
    if tool.get("type") != "function":
        raise HttpError(400, f"{name}.type: wanted 'function', got {fields.shown(tool.get('type'))}")
    return {"type": "function", "function": {key: value for key, value in tool.items() if key != "type"}}


def _messages(data, instructions):
    """Return the conversation that `input` is."""
    found = [] if instructions is None else [{"role": "system", "content": instructions}]
    given = data.get("input")
    if isinstance(given, str):
        return [*found, {"role": "user", "content": given}]
    for i, item in enumerate(fields.items(fields.mapping)("input", given)):
        name, kind = f"input[{i}]", item.get("type", "message")
        if kind == "message":
            found.append({"role": item.get("role"), "content": text_of(f"{name}.content", item.get("content"))})
        elif kind == "function_call":
            function = {"name": item.get("name"), "arguments": item.get("arguments") or "{}"}
            call = {"id": item.get("call_id"), "type": "function", "function": function}
            if found and found[-1].get("tool_calls"):
                found[-1]["tool_calls"].append(call)
            else:
                found.append({"role": "assistant", "content": None, "tool_calls": [call]})
        elif kind == "function_call_output":
            text = text_of(f"{name}.output", item.get("output"))
            found.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": text})
        elif kind != "reasoning":
            raise fields.wrong(f"{name}.type", "message, function_call or function_call_output", kind)
    return found


class Response:
    """One response: its object so far, and its stream."""

    def __init__(self, app, data, values, run):
        self._run, self._n = run, 0
        self._head = {
            "id": f"resp_{secrets.token_hex(16)}",
            "object": "response",
            "created_at": int(time.time()),
            "model": run.chat.options.model or app.alias,
            "error": None,
            "instructions": values["instructions"],
            "metadata": values["metadata"],
            "parallel_tool_calls": values["parallel_tool_calls"],
            "temperature": run.chat.options.params.temperature,
            "top_p": run.chat.options.params.top_p,
            "max_output_tokens": values["max_output_tokens"],
            "tool_choice": data.get("tool_choice") or "auto",
            "tools": data.get("tools") or [],
            "text": values["text"] or {"format": {"type": "text"}},
            "previous_response_id": None,
            "store": False,
            "truncation": "disabled",
        }
        self.items = []  # (kind, output item), in the order they came

    @property
    def status(self):
        return "incomplete" if self._run.said[0].reason == "length" else "completed"

    def whole(self, status):
        """Return the response's object."""
        said = self._run.said[0]
        found = {**self._head, "status": status, "output": self._output(said, status), "incomplete_details": None}
        if status == "incomplete":
            found["incomplete_details"] = {"reason": "max_output_tokens"}
        found["usage"] = self._usage(said.answer) if said.answer else None
        return found

    def _usage(self, answer):
        usage = usage_of([self._run.prompt], [answer])
        return {
            "input_tokens": usage["prompt_tokens"],
            "input_tokens_details": usage["prompt_tokens_details"],
            "output_tokens": usage["completion_tokens"],
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": usage["total_tokens"],
        }

    def _output(self, said, status):
        """Return the items of what was said."""
        if self.items:
            return [item for _, item in self.items]
        found = []
        if said.thought:
            found.append(self._finished("thought", self._item("thought"), said.thought))
        if said.text.strip() or (not said.calls and status != "in_progress"):
            found.append(self._finished("text", self._item("text"), said.text))
        for one in said.calls:
            found.append(self._finished("call", self._item("call", one), one["arguments"]))
        return found

    def _item(self, kind, one=None):
        """Return an output item that has just begun."""
        if kind == "text":
            item = {"type": "message", "role": "assistant", "content": []}
        elif kind == "thought":
            item = {"type": "reasoning", "summary": [], "content": []}
        else:
            item = {"type": "function_call", "call_id": one["id"], "name": one["name"], "arguments": ""}
        prefix = {"text": "msg", "thought": "rs", "call": "fc"}[kind]
        return {"id": f"{prefix}_{secrets.token_hex(16)}", "status": "in_progress", **item}

    @staticmethod
    def _finished(kind, item, text):
        item = {**item, "status": "completed"}
        if kind == "call":
            return {**item, "arguments": text}
        part = {"type": "output_text", "text": text, "annotations": []} if kind == "text" else None
        return {**item, "content": [part or {"type": "reasoning_text", "text": text}]}

    def _event(self, kind, **more):
        self._n += 1
        return {"type": kind, "sequence_number": self._n - 1, **more}

    def stream(self):
        """Yield the events of a response: created, items with their deltas, completed."""
        yield self._event("response.created", response=self.whole("in_progress"))
        yield self._event("response.in_progress", response=self.whole("in_progress"))
        kind, texts = None, []
        for _, parts, event in self._run.events():
            at = len(self._run.said[0].calls) - sum(part.kind == "call" for part in parts)
            for part in parts:
                now = "call" if part.kind == "arguments" else part.kind
                if now == "text" and kind != "text" and not part.text.strip():
                    continue
                if now != kind or part.kind == "call":
                    yield from self._close(kind, texts)
                    kind, texts = now, []
                    one = self._run.said[0].calls[at] if now == "call" else None
                    at += now == "call"
                    yield from self._open(kind, one)
                if part.kind != "call":
                    texts.append(part.text)
                    yield self._delta(kind, part.text)
            if isinstance(event, Answer):
                if kind is None:
                    kind = "text"
                    yield from self._open("text", None)
                yield from self._close(kind, texts)
        yield self._event(f"response.{self.status}", response=self.whole(self.status))

    def _place(self):
        return {"output_index": len(self.items) - 1, "item_id": self.items[-1][1]["id"]}

    def _open(self, kind, one):
        self.items.append((kind, self._item(kind, one)))
        yield self._event("response.output_item.added", output_index=len(self.items) - 1, item=self.items[-1][1])
        if kind == "text":
            part = {"type": "output_text", "text": "", "annotations": []}
            yield self._event("response.content_part.added", **self._place(), content_index=0, part=part)

    def _delta(self, kind, text):
        if kind == "call":
            return self._event("response.function_call_arguments.delta", **self._place(), delta=text)
        name = "output_text" if kind == "text" else "reasoning_text"
        more = {"logprobs": []} if kind == "text" else {}
        return self._event(f"response.{name}.delta", **self._place(), content_index=0, delta=text, **more)

    def _close(self, kind, texts):
        if kind is None:
            return
        text, item = "".join(texts), self._finished(kind, self.items[-1][1], "".join(texts))
        if kind == "call":
            yield self._event(
                "response.function_call_arguments.done", **self._place(), arguments=text, name=item["name"]
            )
        else:
            name = "output_text" if kind == "text" else "reasoning_text"
            more = {"logprobs": []} if kind == "text" else {}
            yield self._event(f"response.{name}.done", **self._place(), content_index=0, text=text, **more)
        if kind == "text":
            part = item["content"][0]
            yield self._event("response.content_part.done", **self._place(), content_index=0, part=part)
        self.items[-1] = (kind, item)
        yield self._event("response.output_item.done", output_index=len(self.items) - 1, item=item)


ROUTES = {("POST", "/v1/responses"): responses}
