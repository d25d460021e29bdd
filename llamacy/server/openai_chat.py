"""OpenAI's chat completions: /v1/chat/completions, and /apply-template beside it.

Shapes: https://platform.openai.com/docs/api-reference/chat. llama.cpp's own options (top_k, min_p, lora, ...) are taken
too.
"""

from llamacy.server import api, fields
from llamacy.server.answers import Events, Json
from llamacy.server.chat import ChatRun, read_chat, read_prompt
from llamacy.server.jobs import Answer, Piece, Progress
from llamacy.server.openai import COMMON, check_logarithms, choice, head_of, shape, usage_of, usage_wanted

__all__ = ["ROUTES", "shape"]
CHAT = {**COMMON, "logprobs": (fields.flag, False), "top_logprobs": (fields.number(int, 0, 20), 0)}


def chat_completions(app, call):
    data = call.json()
    values = fields.read_all(data, CHAT)
    # The chosen token's own log-probability is there as soon as any alternative is asked for.
    data["n_probs"] = max(1, values["top_logprobs"]) if values["logprobs"] else 0
    chat = read_chat(app, data)
    check_logarithms(chat.options)
    run = ChatRun(app, call, chat, values["n"])
    head = head_of(app, chat.options, "chatcmpl-")
    top = values["top_logprobs"] if values["logprobs"] else None
    if chat.options.stream:
        return Events(_stream(app, run, head, top, usage_wanted(values)), run.cancel)
    said = run.wait()
    choices = [
        choice(
            i,
            {"message": message_of(one)},
            None if top is None else logprobs_of(app, one.answer.tokens, top),
            one.reason,
        )
        for i, one in enumerate(said)
    ]
    answers = [one.answer for one in said]
    timings = api.timings_of(answers[0].result.timings)
    usage = usage_of([run.prompt], answers)
    return Json({**head, "object": "chat.completion", "choices": choices, "usage": usage, "timings": timings})


def message_of(said):
    """Return a message with a choice's text, thoughts and calls."""
    text = said.text if said.text.strip() or not said.calls else None
    message = {"role": "assistant", "content": text, "refusal": None}
    if said.thought:
        message["reasoning_content"] = said.thought
    if said.calls:
        message["tool_calls"] = [call_of(one) for one in said.calls]
    return message


def call_of(one):
    """Return a call as OpenAI has it."""
    return {"id": one["id"], "type": "function", "function": {"name": one["name"], "arguments": one["arguments"]}}


# It leaves out the end token, which is no text: the tokens joined are the text.
def logprobs_of(app, tokens, top):
    tokens = [token for token in tokens if not token.is_end]
    entries = api.probabilities(app, tokens)
    return {"content": [{**entry, "top_logprobs": entry["top_logprobs"][:top]} for entry in entries], "refusal": None}


def _stream(app, run, head, top, include_usage):
    """Yield OpenAI's chunks: the role, deltas as they come, each choice's finish_reason, usage if asked for, [DONE]."""
    head = {**head, "object": "chat.completion.chunk", **({"usage": None} if include_usage else {})}
    for i in range(len(run.said)):
        yield {**head, "choices": [choice(i, {"delta": {"role": "assistant", "content": ""}})]}
    for index, parts, event in run.events():
        logprobs = None
        if isinstance(event, Piece) and top is not None and event.tokens:
            logprobs = logprobs_of(app, event.tokens, top)
        deltas = _deltas(run.said[index], parts)
        timings = {"timings": api.timings_of(event.timings)} if isinstance(event, Piece) and event.timings else {}
        if isinstance(event, Piece) and not deltas and (logprobs or timings):
            deltas = [{}]
        for delta in deltas:
            yield {**head, "choices": [choice(index, {"delta": delta}, logprobs)], **timings}
            logprobs = None
        if isinstance(event, Progress):
            yield {**head, "choices": [choice(index, {"delta": {}})], "prompt_progress": event.report()}
        elif isinstance(event, Answer):
            end = choice(index, {"delta": {}}, None, run.said[index].reason)
            yield {**head, "choices": [end], "timings": api.timings_of(event.result.timings)}
    if include_usage:
        yield {**head, "choices": [], "usage": usage_of([run.prompt], [said.answer for said in run.said])}
    yield "[DONE]"


def _deltas(said, parts):
    """Return what chunks say of Parts that `said` has taken already."""
    begun = sum(part.kind == "call" for part in parts)
    at, found = len(said.calls) - begun - 1, []
    for part in parts:
        if part.kind == "call":
            at += 1
            one = {"index": at, **call_of(said.calls[at])}
            one["function"] = {**one["function"], "arguments": ""}
            found.append({"tool_calls": [one]})
        elif part.kind == "arguments":
            found.append({"tool_calls": [{"index": at, "function": {"arguments": part.text}}]})
        else:
            found.append({"reasoning_content" if part.kind == "thought" else "content": part.text})
    return found


def apply_template(app, call):
    return Json({"prompt": read_prompt(app, fields.mapping("the body", call.json())).text})


ROUTES = {
    ("POST", "/v1/chat/completions"): chat_completions,
    ("POST", "/chat/completions"): chat_completions,
    ("POST", "/apply-template"): apply_template,
}
