"""OpenAI's completions and models: ROUTES maps (method, path) to handler(app, call); chats are in openai_chat.

Shapes: https://platform.openai.com/docs/api-reference (completions, models).
"""

import secrets
import time

from llamacy.server import api, fields
from llamacy.server.answers import Events, Json
from llamacy.server.chat import REASONS
from llamacy.server.errors import HttpError
from llamacy.server.jobs import Answer, Job, Piece, Progress
from llamacy.server.options import MAX_CHOICES, read_options, read_prompts


def shape(error, body):
    """Return an error's body with OpenAI's name for it as `code`, where it has one, for clients that look for that."""
    return {"error": body["error"] | ({"code": error.name} if error.name else {})}


COMMON = {
    "n": (fields.number(int, 1, MAX_CHOICES), 1),
    "stream_options": (fields.mapping, {}),
}
TEXT = {**COMMON, "logprobs": (fields.number(int, 0, 20), None), "echo": (fields.flag, False)}
# OpenAI's default for /v1/completions; a chat goes on to the end of the answer.
TEXT_MAX_TOKENS = 16


def usage_wanted(values):
    """Say whether a stream ends with its usage."""
    wanted = values["stream_options"].get("include_usage")
    return False if wanted is None else fields.flag("stream_options.include_usage", wanted)


def head_of(app, options, prefix):
    """Return what every answer and chunk begins with."""
    return {
        "id": prefix + secrets.token_hex(12),
        "created": int(time.time()),
        "model": options.model or app.alias,
        "system_fingerprint": None,
    }


def check_logarithms(options):
    """Raise HttpError 400 where probabilities are asked for that this API has no place for."""
    if options.params.post_sampling_probs:
        raise HttpError(400, "post_sampling_probs: wanted only in /completion; here logprobs are logarithms")


def choice(index, content, logprobs=None, finish_reason=None):
    return {"index": index, **content, "logprobs": logprobs, "finish_reason": finish_reason}


def completions(app, call):
    data = call.json()
    values = fields.read_all(data, TEXT)
    if "prompt" not in data:
        raise HttpError(400, "prompt: wanted a string, token ids or a list of those, got nothing")
    names = ("n_predict", "max_tokens", "max_completion_tokens")
    if "n_predict" not in app.defaults and all(data.get(name) is None for name in names):
        data["max_tokens"] = TEXT_MAX_TOKENS
    top = values["logprobs"]
    prompts, _ = read_prompts(app, data["prompt"])
    options = read_options(app, data | {"n_probs": 0 if top is None else max(1, top)})
    check_logarithms(options)
    pairs = [(prompt, options.nth(i)) for prompt in prompts for i in range(values["n"])]
    job = Job(app, call, *map(list, zip(*pairs, strict=True)), echo_probs=values["echo"] and top is not None)
    head = head_of(app, options, "cmpl-")
    echo = [Echo(app, prompt, values["echo"]) for prompt, _ in pairs]
    if options.stream:
        return Events(_stream(app, job, head, echo, top, prompts, usage_wanted(values)), job.cancel)
    answers = job.answers()
    choices = [
        choice(
            a.index,
            {"text": echo[a.index].text + a.text},
            None if top is None else echo[a.index].logprobs(a.prompt_probs, a.tokens, top),
            REASONS[a.result.stop_type],
        )
        for a in answers
    ]
    timings = api.timings_of(answers[0].result.timings)
    usage = usage_of(prompts, answers)
    return Json({**head, "object": "text_completion", "choices": choices, "usage": usage, "timings": timings})


class Echo:
    """The prompt as part of the answer, where that is asked for: its text and its tokens' log-probabilities."""

    def __init__(self, app, prompt, is_on):
        self._app, self._prompt, self._is_on = app, prompt, is_on
        self.text = app.model.tokenizer.decode(prompt) if is_on else ""
        self.offset = 0  # of the next token, in characters

    def logprobs(self, prompt_probs, tokens, top):
        """Return the logprobs object of the prompt's tokens (their probabilities, None without) and of `tokens`."""
        found = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        if prompt_probs is not None:
            special = self._app.model.tokenizer.is_special
            for id, probs in zip(self._prompt, prompt_probs, strict=True):
                if not special(id):
                    self._add(found, id, probs, top)
        # Without the end token, which is no text: the tokens joined are the text.
        for token in tokens:
            if not token.is_end:
                self._add(found, token.id, (token.logprob, token.top), top)
        return found

    def _add(self, found, id, probs, top):
        piece = self._app.model.tokenizer.token_bytes(id)
        found["tokens"].append(_token_text(piece))
        found["token_logprobs"].append(None if probs is None else max(probs[0], api.LOWEST))
        likely = probs and {
            _token_text(self._app.model.tokenizer.token_bytes(other)): max(p, api.LOWEST) for other, p in probs[1][:top]
        }
        found["top_logprobs"].append(likely)
        found["text_offset"].append(self.offset)
        self.offset += len(api.whole_text(piece)[0])


def _token_text(piece):
    """Return a token's text, OpenAI's way where its bytes are not whole characters."""
    text, whole = api.whole_text(piece)
    return text if whole else "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)


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


def _stream(app, job, head, echo, top, prompts, include_usage):
    """Yield OpenAI's chunks: text as it comes, each choice's finish_reason, usage if asked for, [DONE]."""
    head = {**head, "object": "text_completion", **({"usage": None} if include_usage else {})}
    answers, waiting = [], [bool(one.text) for one in echo]
    for event in job.events():
        index, logprobs = event.index, None
        if isinstance(event, Progress):
            yield {**head, "choices": [choice(index, {"text": ""})], "prompt_progress": event.report()}
            continue
        tokens = event.tokens if isinstance(event, Piece) else []
        probs = event.prompt_probs if waiting[index] else None
        if top is not None and (tokens or probs is not None):
            logprobs = echo[index].logprobs(probs, tokens, top)
        text = event.text if isinstance(event, Piece) else ""
        text, waiting[index] = (echo[index].text + text if waiting[index] else text), False
        timings = {"timings": api.timings_of(event.timings)} if isinstance(event, Piece) and event.timings else {}
        if text or logprobs or timings:
            yield {**head, "choices": [choice(index, {"text": text}, logprobs)], **timings}
        if isinstance(event, Answer):
            answers.append(event)
            end = choice(index, {"text": ""}, None, REASONS[event.result.stop_type])
            yield {**head, "choices": [end], "timings": api.timings_of(event.result.timings)}
    if include_usage:
        yield {**head, "choices": [], "usage": usage_of(prompts, answers)}
    yield "[DONE]"


def models(app, call):
    return Json({"object": "list", "data": api.model_list(app)})


def model(app, call):
    name = call.path.removeprefix("/v1/models/")
    found = next((one for one in api.model_list(app) if one["id"] == name), None)
    if found is None:
        raise HttpError(404, f"no such model: {name!r:.100}; this server has {app.alias!r}")
    return Json(found)


ROUTES = {
    ("POST", "/v1/completions"): completions,
    ("GET", "/v1/models"): models,
    ("GET", "/models"): models,
}
# (method, beginning of the path) -> handler
PREFIXES = {("GET", "/v1/models/"): model}
