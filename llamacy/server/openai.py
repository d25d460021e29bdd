"""OpenAI's endpoints over the same engine: ROUTES maps (method, path) to handler(app, call).

Shapes: https://platform.openai.com/docs/api-reference (chat, completions, models). llama.cpp's own options (top_k,
min_p, lora, ...) are taken too.
"""

import secrets
import time
from dataclasses import dataclass

from llamacy.generate.chat_prompt import chat_ids, chat_text
from llamacy.server import api, fields
from llamacy.server.answers import Events, Json
from llamacy.server.errors import HttpError
from llamacy.server.jobs import Answer, Job, Piece, Progress
from llamacy.server.options import MAX_CHOICES, read_options, read_prompts
from llamacy.text.chat import OWN_NAMES, template_for


def shape(error, body):
    """Return an error's body with OpenAI's name for it as `code`, where it has one, for clients that look for that."""
    return {"error": body["error"] | ({"code": error.name} if error.name else {})}


REASONS = {"eos": "stop", "word": "stop", "limit": "length"}
COMMON = {
    "n": (fields.number(int, 1, MAX_CHOICES), 1),
    "stream_options": (fields.mapping, {}),
}
CHAT = {**COMMON, "logprobs": (fields.flag, False), "top_logprobs": (fields.number(int, 0, 20), 0)}
TEMPLATE = {"chat_template_kwargs": (fields.mapping, {}), "reasoning_effort": (fields.text, "")}
TEXT = {**COMMON, "logprobs": (fields.number(int, 0, 20), None), "echo": (fields.flag, False)}
# OpenAI's default for /v1/completions; a chat goes on to the end of the answer.
TEXT_MAX_TOKENS = 16


@dataclass
class Shape:
    """What differs between the two endpoints: names, and how a piece of text or a whole one becomes a choice."""

    id_prefix: str
    object: str
    chunk_object: str
    begin: object  # (n choices) -> choices of the first chunk, None for no such chunk
    delta: object  # (text) -> what a chunk's choice holds of it
    whole: object  # (text) -> what a choice holds of it
    logprobs: object  # (app, tokens, top, text offset) -> the logprobs object


# Both leave out the end token, which is no text: the tokens joined are the text.
def chat_logprobs(app, tokens, top, offset):
    tokens = [token for token in tokens if not token.is_end]
    entries = api.probabilities(app, tokens)
    return {"content": [{**entry, "top_logprobs": entry["top_logprobs"][:top]} for entry in entries], "refusal": None}


def text_logprobs(app, tokens, top, offset):
    tokens = [token for token in tokens if not token.is_end]
    pieces = [app.model.tokenizer.token_bytes(token.id) for token in tokens]
    texts = [_token_text(piece) for piece in pieces]
    offsets = []
    for piece in pieces:
        offsets.append(offset)
        offset += len(api.whole_text(piece)[0])
    return {
        "tokens": texts,
        "token_logprobs": [max(token.logprob, api.LOWEST) for token in tokens],
        "top_logprobs": [
            {_token_text(app.model.tokenizer.token_bytes(id)): max(p, api.LOWEST) for id, p in token.top[:top]}
            for token in tokens
        ],
        "text_offset": offsets,
    }


def _token_text(piece):
    """Return a token's text, OpenAI's way where its bytes are not whole characters."""
    text, whole = api.whole_text(piece)
    return text if whole else "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)


CHAT_SHAPE = Shape(
    "chatcmpl-",
    "chat.completion",
    "chat.completion.chunk",
    lambda count: [choice(i, {"delta": {"role": "assistant", "content": ""}}) for i in range(count)],
    lambda text: {"delta": {"content": text} if text else {}},
    lambda text: {"message": {"role": "assistant", "content": text, "refusal": None}},
    chat_logprobs,
)
TEXT_SHAPE = Shape(
    "cmpl-",
    "text_completion",
    "text_completion",
    lambda count: [],
    lambda text: {"text": text},
    lambda text: {"text": text},
    text_logprobs,
)


def choice(index, content, logprobs=None, finish_reason=None):
    return {"index": index, **content, "logprobs": logprobs, "finish_reason": finish_reason}


def chat_completions(app, call):
    data = call.json()
    values = fields.read_all(data, CHAT)
    prompt = conversation(app, data, chat_ids)
    # The chosen token's own log-probability is there as soon as any alternative is asked for.
    n_probs = max(1, values["top_logprobs"]) if values["logprobs"] else 0
    return _answer(app, call, data | {"n_probs": n_probs}, values, [prompt], CHAT_SHAPE, values["top_logprobs"])


def completions(app, call):
    data = call.json()
    values = fields.read_all(data, TEXT)
    if "prompt" not in data:
        raise HttpError(400, "prompt: wanted a string, token ids or a list of those, got nothing")
    if values["echo"] and values["logprobs"] is not None:
        raise HttpError(400, "echo: log-probabilities of the prompt are not supported; leave out echo or logprobs")
    names = ("n_predict", "max_tokens", "max_completion_tokens")
    if "n_predict" not in app.defaults and all(data.get(name) is None for name in names):
        data["max_tokens"] = TEXT_MAX_TOKENS
    top = values["logprobs"]
    prompts, _ = read_prompts(app, data["prompt"])
    return _answer(
        app, call, data | {"n_probs": 0 if top is None else max(1, top)}, values, prompts, TEXT_SHAPE, top or 0
    )


def conversation(app, data, write):
    """Return what `write` (chat_text or chat_ids) makes of a request's messages."""
    messages = read_messages(data)
    template = template_for(app.model.metadata, app.chat_template)
    return write(messages, template, app.model.tokenizer, **template_values(app, data))


def template_values(app, data):
    """Return what the template is given besides the messages: the server's values, and the request's in their place."""
    given = fields.read_all(data, TEMPLATE)
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


def read_messages(data):
    """Return the conversation as [{role, content, ...}] with texts as content; HttpError 400 names what is wrong."""
    fields.mapping("the body", data)
    messages = fields.items(fields.mapping)("messages", data.get("messages"))
    if not messages:
        raise HttpError(400, "messages: wanted at least one message, got none")
    return [_read_message(f"messages[{i}]", message) for i, message in enumerate(messages)]


def _read_message(name, message):
    role = fields.text(f"{name}.role", message.get("role"))
    content = message.get("content")
    if isinstance(content, list):
        parts = fields.items(fields.mapping)(f"{name}.content", content)
        for i, part in enumerate(parts):
            fields.choice("text")(f"{name}.content[{i}].type", part.get("type"))
            fields.text(f"{name}.content[{i}].text", part.get("text"))
        content = "\n".join(part["text"] for part in parts)
    elif content is None and role == "assistant":
        content = ""
    return {**message, "role": role, "content": fields.text(f"{name}.content", content)}


def _answer(app, call, data, values, prompts, shape, top):
    """Run every prompt n times and answer in the endpoint's shape."""
    options = read_options(app, data)
    n = values["n"]
    if options.params.post_sampling_probs:
        raise HttpError(400, "post_sampling_probs: wanted only in /completion; here logprobs are logarithms")
    pairs = [(prompt, options.nth(i)) for prompt in prompts for i in range(n)]
    job = Job(app, call, *map(list, zip(*pairs, strict=True)))
    head = {
        "id": shape.id_prefix + secrets.token_hex(12),
        "created": int(time.time()),
        "model": app.alias,
        "system_fingerprint": None,
    }
    echo = [app.model.tokenizer.decode(prompt) if values.get("echo") else "" for prompt, _ in pairs]
    if options.stream:
        usage = fields.flag("stream_options.include_usage", values["stream_options"].get("include_usage", False))
        return Events(_stream(app, job, shape, head, echo, top, prompts, usage), job.cancel)
    answers = job.answers()
    choices = [
        choice(
            a.index,
            shape.whole(echo[a.index] + a.text),
            shape.logprobs(app, a.tokens, top, 0) if options.n_probs else None,
            REASONS[a.result.stop_type],
        )
        for a in answers
    ]
    timings = api.timings_of(answers[0].result.timings)
    return Json(
        {**head, "object": shape.object, "choices": choices, "usage": usage_of(prompts, answers), "timings": timings}
    )


def usage_of(prompts, answers):
    """Return OpenAI's token counts; a prompt counts once, however many choices were made of it."""
    prompt_tokens = sum(map(len, prompts))
    completion_tokens = sum(answer.result.timings.predicted_n for answer in answers)
    cached = sum(answer.result.timings.cache_n for answer in answers)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": min(cached, prompt_tokens)},
    }


def _stream(app, job, shape, head, echo, top, prompts, include_usage):
    """Yield OpenAI's chunks: the role, text as it comes, each choice's finish_reason, usage if asked for, [DONE]."""
    head = {**head, "object": shape.chunk_object, **({"usage": None} if include_usage else {})}
    offsets, answers = [len(text) for text in echo], []
    for first in shape.begin(len(echo)):
        yield {**head, "choices": [first]}
    for index, text in enumerate(echo):
        if text:
            yield {**head, "choices": [choice(index, shape.delta(text))]}
    for event in job.events():
        if isinstance(event, Piece):
            logprobs = None
            if event.tokens and event.tokens[0].top is not None:
                logprobs = shape.logprobs(app, event.tokens, top, offsets[event.index])
            offsets[event.index] += len(event.text)
            timings = {"timings": api.timings_of(event.timings)} if event.timings else {}
            yield {**head, "choices": [choice(event.index, shape.delta(event.text), logprobs)], **timings}
        elif isinstance(event, Progress):
            piece = choice(event.index, shape.delta(""))
            yield {**head, "choices": [piece], "prompt_progress": event.report()}
        elif isinstance(event, Answer):
            answers.append(event)
            end = choice(event.index, shape.delta(""), None, REASONS[event.result.stop_type])
            yield {**head, "choices": [end]}
    if include_usage:
        yield {**head, "choices": [], "usage": usage_of(prompts, answers)}
    yield "[DONE]"


def apply_template(app, call):
    return Json({"prompt": conversation(app, call.json(), chat_text)})


def models(app, call):
    return Json({"object": "list", "data": [api.model_info(app)]})


def model(app, call):
    name = call.path.removeprefix("/v1/models/")
    if name != app.alias:
        raise HttpError(404, f"no such model: {name!r:.100}; this server has {app.alias!r}")
    return Json(api.model_info(app))


ROUTES = {
    ("POST", "/v1/chat/completions"): chat_completions,
    ("POST", "/chat/completions"): chat_completions,
    ("POST", "/v1/completions"): completions,
    ("POST", "/apply-template"): apply_template,
    ("GET", "/v1/models"): models,
    ("GET", "/models"): models,
}
# (method, beginning of the path) -> handler
PREFIXES = {("GET", "/v1/models/"): model}
