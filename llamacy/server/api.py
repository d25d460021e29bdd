"""llamacy's own endpoints, in the shapes of llama.cpp's server: ROUTES maps (method, path) to handler(app, call)."""

import math
import os

from llamacy import __version__
from llamacy.generate.chat_prompt import special_text
from llamacy.server import fields
from llamacy.server.answers import Events, Json, Text
from llamacy.server.errors import HttpError
from llamacy.server.jobs import Answer, Job, Progress
from llamacy.server.metrics import metrics_text
from llamacy.server.options import MAX_CHOICES, read_options, read_prompts

# JSON has no infinity: a forbidden token's log-probability is f32's lowest number, as in llama.cpp.
LOWEST = -3.4028234663852886e38
MISSING = object()
MAX_FIELDS = 64
# /completion's own fields: name: (reader, default, other names)
COMPLETION = {
    "n_cmpl": (fields.number(int, 1, MAX_CHOICES), 1, "n"),
    "response_fields": (fields.items(fields.text, MAX_FIELDS), ()),
}


def health(app, call):
    return Json({"status": "ok"})


def completion(app, call):
    data = fields.mapping("the body", call.json())
    if "prompt" not in data:
        read_options(app, data)
        raise HttpError(400, "prompt: wanted a string, token ids or a list of those, got nothing")
    return complete(app, call, data, *read_prompts(app, data["prompt"]))


def complete(app, call, data, prompts, several):
    """Go on with prompts (token ids), with the options of `data`; several: the answer is a list."""
    options = read_options(app, data)
    more = fields.read_all(data, COMPLETION)
    pairs = [(prompt, options.nth(i)) for prompt in prompts for i in range(more["n_cmpl"])]
    job = Job(app, call, *map(list, zip(*pairs, strict=True)))
    if options.stream:
        return Events(_stream(app, job, more["response_fields"]), job.cancel)
    answers = [picked(final(app, answer), more["response_fields"]) for answer in job.answers()]
    return Json(answers if several or more["n_cmpl"] > 1 else answers[0])


def picked(answer, paths):
    """Return what the paths of `response_fields` name ("generation_settings/n_predict"); without any, everything."""
    found = {}
    for path in paths:
        value = answer
        for name in path.split("/"):
            value = value.get(name, MISSING) if isinstance(value, dict) else MISSING
        if value is not MISSING:
            found[path] = value
    return found if paths else answer


def _stream(app, job, paths):
    """Yield llama.cpp's events: the new text as it comes, then for each prompt everything else with `stop` true."""
    for event in job.events():
        if isinstance(event, Answer):
            yield picked({**final(app, event), "content": "", "tokens": []}, paths)
            continue
        if isinstance(event, Progress):
            empty = {"index": event.index, "content": "", "tokens": [], "stop": False}
            yield {**empty, "prompt_progress": event.report()}
            continue
        partial = {
            "index": event.index,
            "content": event.text,
            "tokens": [token.id for token in event.tokens],
            "stop": False,
        }
        if event.tokens and event.tokens[0].top is not None:
            is_post = event.options.params.post_sampling_probs
            partial["completion_probabilities"] = probabilities(app, event.tokens, is_post)
        if event.timings:
            partial["timings"] = timings_of(event.timings)
        yield partial


def final(app, answer):
    """Return the answer object for one prompt."""
    options, result, timings = answer.options, answer.result, answer.result.timings
    data = {
        "index": answer.index,
        "content": answer.text,
        "tokens": [token.id for token in answer.all_tokens] if options.return_tokens else [],
        "id_slot": result.id_slot,
        "stop": True,
        "model": options.model or app.alias,
        "tokens_predicted": timings.predicted_n,
        "tokens_evaluated": len(answer.prompt),
        "generation_settings": settings(app, options, result.seed),
        "prompt": app.model.tokenizer.decode(answer.prompt, special=True),
        "truncated": result.truncated,
        "stop_type": result.stop_type,
        "stopping_word": answer.stopping_word or "",
        "stopped_eos": result.stop_type == "eos",
        "stopped_limit": result.stop_type == "limit",
        "stopped_word": result.stop_type == "word",
        "tokens_cached": timings.cache_n,
        "timings": timings_of(timings),
    }
    if options.n_probs and not options.stream:
        data["completion_probabilities"] = probabilities(app, answer.tokens, options.params.post_sampling_probs)
    return data


def settings(app, options, seed):
    """Return `generation_settings`: what was really used."""
    values = {name: list(value) if isinstance(value, tuple) else value for name, value in options.values.items()}
    scales = app.engine.lora if options.lora is None else options.lora
    bias = [[token, False if bias == float("-inf") else bias] for token, bias in options.params.logit_bias]
    return {
        **values,
        "max_tokens": options.n_predict,
        "grammar": options.format.get("grammar", ""),
        **({"json_schema": options.format["json_schema"]} if "json_schema" in options.format else {}),
        "seed": seed,
        "logit_bias": bias,
        "lora": [{"id": one["id"], "scale": one["scale"]} for one in app.adapters.shown(scales)],
        "n_ctx": app.engine.n_ctx,
        "model": app.alias,
    }


def timings_of(timings):
    """Return the times as llama.cpp has them: milliseconds, tokens per second, drafts where there were any."""
    return {
        "cache_n": timings.cache_n,
        "prompt_n": timings.prompt_n,
        "prompt_ms": timings.prompt_ms,
        "prompt_per_second": timings.prompt_per_second,
        "predicted_n": timings.predicted_n,
        "predicted_ms": timings.predicted_ms,
        "predicted_per_second": timings.predicted_per_second,
        **({"draft_n": timings.draft_n, "draft_n_accepted": timings.draft_n_accepted} if timings.draft_n else {}),
    }


def probabilities(app, tokens, is_post=False):
    """Return `completion_probabilities`: one entry per token, with its alternatives.

    is_post: with `prob` and `top_probs`, the probabilities that the samplers left, instead of the model's logarithms.
    """
    one, several = ("prob", "top_probs") if is_post else ("logprob", "top_logprobs")
    return [
        {
            **probability(app, token.id, token.logprob, one),
            several: [probability(app, id, value, one) for id, value in token.top],
        }
        for token in tokens
    ]


def probability(app, token, value, name="logprob"):
    """Return one token's entry; its text is what of its bytes is whole characters."""
    piece = app.model.tokenizer.token_bytes(token)
    return {"id": token, "token": whole_text(piece)[0], "bytes": list(piece), name: max(value, LOWEST)}


def whole_text(piece):
    """Return (the valid beginning of UTF-8 bytes as text, whether that is all)."""
    try:
        return piece.decode(), True
    except UnicodeDecodeError as error:
        return piece[: error.start].decode(), False


def tokenize(app, call):
    values = fields.read_all(
        call.json(),
        {
            "content": (fields.text, ""),
            "add_special": (fields.flag, False),
            "parse_special": (fields.flag, True),
            "with_pieces": (fields.flag, False),
        },
    )
    tokenizer = app.model.tokenizer
    ids = tokenizer.encode(values["content"], values["add_special"], values["parse_special"])
    return Json({"tokens": [_with_piece(tokenizer, id) for id in ids] if values["with_pieces"] else ids})


def _with_piece(tokenizer, token):
    piece = tokenizer.token_bytes(token)
    text, whole = whole_text(piece)
    return {"id": token, "piece": text if whole else list(piece)}


def detokenize(app, call):
    reader = fields.items(fields.token_id(app.model.tokenizer.n_vocab))
    ids = fields.read_all(call.json(), {"tokens": (reader, ())})["tokens"]
    return Json({"content": app.model.tokenizer.decode(ids, special=True)})


def props(app, call):
    tokenizer, metadata = app.model.tokenizer, app.model.metadata
    template = app.chat_template or metadata.get("tokenizer.chat_template")
    defaults = {name: default for name, (_, default, *_) in app.options.items()}
    defaults["stop"] = list(defaults["stop"])
    return Json(
        {
            "default_generation_settings": {"params": defaults, "n_ctx": app.engine.n_ctx},
            "total_slots": len(app.engine.slots),
            "model_alias": app.alias,
            "model_path": str(app.model.path),
            "modalities": {"vision": False, "audio": False},
            "chat_template": template if isinstance(template, str) else "",
            "bos_token": special_text(tokenizer, tokenizer.bos_id),
            "eos_token": special_text(tokenizer, tokenizer.eos_id),
            "build_info": f"llamacy {__version__}",
            "is_sleeping": False,
        }
    )


def set_props(app, call):
    """llama.cpp's: it can be asked, and there is nothing that can be changed."""
    for name in fields.mapping("the body", call.json()):
        raise HttpError(400, f"{name!r:.60}: no property that can be changed")
    return Json({"success": True})


def metrics(app, call):
    if not app.with_metrics:
        raise HttpError(404, "/metrics is off: start the server with --metrics")
    return Text(metrics_text(app.engine), "text/plain; version=0.0.4; charset=utf-8")


def model_list(app):
    """Return the model, and each of its adapters as another one, as OpenAI lists them."""
    base = model_info(app)
    return [base, *({**base, "id": one.name, "parent": app.alias, "root": one.path} for one in app.adapters.all)]


def model_info(app):
    """Return the model as OpenAI lists it, with llama.cpp's `meta`."""
    config = app.model.config
    size = sum(os.stat(path).st_size for path in app.model.file.paths if os.path.exists(path))
    meta = {
        "n_vocab": config.n_vocab,
        "n_ctx": app.engine.n_ctx,
        "n_ctx_train": config.n_ctx_train,
        "n_embd": config.n_embd,
        "n_params": n_params(app.model),
        "size": size,
    }
    return {"id": app.alias, "object": "model", "created": app.created, "owned_by": "llamacy", "meta": meta}


def n_params(model):
    """Return how many numbers a model's tensors have."""
    return sum(math.prod(info.shape) for info in getattr(model.file, "tensors", {}).values())


ROUTES = {
    ("GET", "/health"): health,
    ("GET", "/v1/health"): health,
    ("POST", "/completion"): completion,
    ("POST", "/completions"): completion,
    ("POST", "/tokenize"): tokenize,
    ("POST", "/detokenize"): detokenize,
    ("GET", "/props"): props,
    ("POST", "/props"): set_props,
    ("GET", "/metrics"): metrics,
}
