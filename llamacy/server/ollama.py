"""Ollama's API: /api/chat, /api/generate, /api/embed and what its clients ask of models.

Shapes: https://github.com/ollama/ollama/blob/main/docs/api.md. What is asked is put into OpenAI's words.
"""

import time
from datetime import datetime, timezone

from llamacy import __version__
from llamacy.generate.text_stream import prompt_ids
from llamacy.server import fields
from llamacy.server.answers import Events, Json, a_line
from llamacy.server.api import model_list, n_params
from llamacy.server.chat import REASONS, ChatRun, read_chat
from llamacy.server.embeddings import normalised_vectors
from llamacy.server.errors import HttpError
from llamacy.server.jobs import Answer, Job, Piece
from llamacy.server.options import read_model, read_options, read_prompts

# options: its name there -> here
OPTIONS = {
    **{name: name for name in ("temperature", "top_k", "top_p", "min_p", "typical_p", "seed", "stop", "repeat_penalty",
                               "repeat_last_n", "presence_penalty", "frequency_penalty", "mirostat", "mirostat_tau",
                               "mirostat_eta", "tfs_z")},
    "num_predict": "n_predict",
    "num_keep": "n_keep",
}  # fmt: skip
# Those that say how to compute, and change no text.
IDLE = {
    "num_gpu",
    "num_thread",
    "num_batch",
    "main_gpu",
    "low_vram",
    "use_mmap",
    "use_mlock",
    "numa",
    "f16_kv",
    "vocab_only",
}
COMMON = {"stream": (fields.flag, True), "options": (fields.mapping, {})}
GENERATE = {
    **COMMON,
    "prompt": (fields.text, ""),
    "system": (fields.text, None),
    "raw": (fields.flag, False),
}
UNBUILT = ("images", "suffix", "template", "context", "width", "height", "steps")


def shape(error, body):
    """Return an error as Ollama has it."""
    return {"error": str(error)}


def chat(app, call):
    data = fields.mapping("the body", call.json())
    values = fields.read_all(data, COMMON)
    found = _in_openais_words(app, data, values)
    found["messages"] = _messages(data)
    if data.get("tools"):
        found["tools"] = data["tools"]
    run = ChatRun(app, call, read_chat(app, found))
    return _answer(app, run, data, values["stream"], _message)


def generate(app, call):
    data = fields.mapping("the body", call.json())
    values = fields.read_all(data, GENERATE)
    for name in UNBUILT:
        if data.get(name):
            raise HttpError(400, f"{name}: not supported")
    found = _in_openais_words(app, data, values)
    if values["raw"]:
        return _raw(app, call, data, values, found)
    system = [] if values["system"] is None else [{"role": "system", "content": values["system"]}]
    found["messages"] = [*system, {"role": "user", "content": values["prompt"]}]
    run = ChatRun(app, call, read_chat(app, found))
    return _answer(app, run, data, values["stream"], _response)


def _in_openais_words(app, data, values):
    """Return the options of a request, and what its text must follow."""
    found = {"stream": values["stream"]}
    for name, value in values["options"].items():
        if name == "num_ctx":
            fields.number(int, 1, app.engine.n_ctx)("options.num_ctx", value)
        elif name in OPTIONS:
            found[OPTIONS[name]] = -1 if name == "num_predict" and value in (-1, -2) else value
        elif name not in IDLE and value is not None:
            raise HttpError(400, f"options.{name}: not supported")
    if found.get("seed") == 0:
        found["seed"] = -1  # none was wanted
    format = data.get("format")
    if format == "json":
        found["response_format"] = {"type": "json_object"}
    elif format not in (None, ""):
        found["json_schema"] = fields.mapping("format", format)
    think = data.get("think")
    if isinstance(think, str):
        found["reasoning_effort"] = think
    elif think is not None:
        found["chat_template_kwargs"] = {"enable_thinking": fields.flag("think", think)}
    if "model" in data:
        found["model"] = _base_name(app, data["model"])
    return found


def _base_name(app, name):
    """Return a model's name without the tag that Ollama's clients add."""
    return name.removesuffix(":latest") if isinstance(name, str) else name


def _messages(data):
    found = []
    for i, message in enumerate(fields.items(fields.mapping)("messages", data.get("messages"))):
        if message.get("images"):
            raise HttpError(400, f"messages[{i}].images: not supported")
        left = {key: value for key, value in message.items() if key not in ("images", "thinking")}
        if message.get("thinking"):
            left["reasoning_content"] = message["thinking"]
        found.append(left)
    return found


def _message(said, parts):
    """Return the `message` member of Parts."""
    message = {"role": "assistant", "content": "".join(part.text for part in parts if part.kind == "text")}
    thought = "".join(part.text for part in parts if part.kind == "thought")
    return {"message": message | ({"thinking": thought} if thought else {})}


def _response(said, parts):
    """Return the `response` member of Parts."""
    thought = "".join(part.text for part in parts if part.kind == "thought")
    text = "".join(part.text for part in parts if part.kind == "text")
    return {"response": text} | ({"thinking": thought} if thought else {})


def _calls(said):
    """Return the calls of an answer; they come whole."""
    import json

    found = []
    for one in said.calls:
        try:
            arguments = json.loads(one["arguments"] or "{}")
        except ValueError:
            arguments = {}
        found.append({"function": {"name": one["name"], "arguments": arguments}})
    return found


def _head(app, data):
    name = data.get("model") if isinstance(data.get("model"), str) and data.get("model") else app.alias
    return {"model": name, "created_at": datetime.now(timezone.utc).isoformat().replace("+00:00", "Z")}


def _end(answer, reason, began):
    """Return how a text ended and what it took, in nanoseconds."""
    timings = answer.result.timings
    return {
        "done": True,
        "done_reason": reason,
        "total_duration": int(1e9 * (time.perf_counter() - began)),
        "load_duration": 0,
        "prompt_eval_count": timings.cache_n + timings.prompt_n,
        "prompt_eval_duration": int(1e6 * timings.prompt_ms),
        "eval_count": timings.predicted_n,
        "eval_duration": int(1e6 * timings.predicted_ms),
    }


def _reason(said):
    return "length" if said.reason == "length" else "stop"


def _answer(app, run, data, is_stream, member):
    """Answer with a chat's text as one object or as lines of JSON; member(said, parts): what holds the text."""
    began = time.perf_counter()
    if is_stream:
        return Events(_stream(app, run, data, member, began), run.cancel, a_line)
    from llamacy.text.answer_reader import Part

    (said,) = run.wait()
    parts = [Part("thought", said.thought), Part("text", said.text)]
    found = {**_head(app, data), **member(said, parts)}
    if said.calls and "message" in found:
        found["message"]["tool_calls"] = _calls(said)
    return Json({**found, **_end(said.answer, _reason(said), began)})


def _stream(app, run, data, member, began):
    said = run.said[0]
    for _, parts, event in run.events():
        if any(part.kind in ("text", "thought") for part in parts):
            yield {**_head(app, data), **member(said, parts), "done": False}
        if isinstance(event, Answer):
            last = member(said, [])
            if said.calls and "message" in last:
                call = {**last["message"], "tool_calls": _calls(said)}
                yield {**_head(app, data), "message": call, "done": False}
            yield {**_head(app, data), **last, **_end(event, _reason(said), began)}


def _raw(app, call, data, values, found):
    """Go on with a prompt as it stands."""
    began = time.perf_counter()
    app.check_length("prompt", values["prompt"])
    job = Job(app, call, [prompt_ids(app.model.tokenizer, values["prompt"])], [read_options(app, found)])

    def stream():
        for event in job.events():
            if isinstance(event, Piece):
                yield {**_head(app, data), "response": event.text, "done": False}
            elif isinstance(event, Answer):
                yield {**_head(app, data), "response": "", **_end(event, REASONS[event.result.stop_type], began)}

    if values["stream"]:
        return Events(stream(), job.cancel, a_line)
    (answer,) = job.answers()
    end = _end(answer, REASONS[answer.result.stop_type], began)
    return Json({**_head(app, data), "response": answer.text, **end})


def embed(app, call):
    """{input: text or texts} -> {embeddings}, normalised."""
    data = fields.mapping("the body", call.json())
    began = time.perf_counter()
    if data.get("input") is None:
        raise HttpError(400, "input: wanted a string or a list of those, got nothing")
    prompts = read_prompts(app, data["input"])[0] if data["input"] != [] else []
    found = normalised_vectors(app, call, prompts, read_model(app, {"model": _base_name(app, data.get("model"))})[1])
    return Json(
        {
            "model": _head(app, data)["model"],
            "embeddings": [vector.tolist() for vector in found],
            "total_duration": int(1e9 * (time.perf_counter() - began)),
            "load_duration": 0,
            "prompt_eval_count": sum(map(len, prompts)),
        }
    )


def embeddings(app, call):
    """The older {prompt} -> {embedding}."""
    data = fields.mapping("the body", call.json())
    prompts, _ = read_prompts(app, fields.text("prompt", data.get("prompt")))
    scales = read_model(app, {"model": _base_name(app, data.get("model"))})[1]
    (vector,) = normalised_vectors(app, call, prompts, scales)
    return Json({"embedding": vector.tolist()})


def _details(app):
    config = app.model.config
    millions = n_params(app.model) / 1e6
    size = f"{millions / 1000:.1f}B" if millions >= 1000 else f"{millions:.0f}M"
    quantisation = str(app.model.metadata.get("general.file_type", "unknown"))
    return {
        "parent_model": "",
        "format": "gguf",
        "family": config.architecture,
        "families": [config.architecture],
        "parameter_size": size,
        "quantization_level": quantisation,
    }


def _entry(app, one):
    when = datetime.fromtimestamp(app.created, timezone.utc).isoformat()
    names = {"name": one["id"], "model": one["id"]}
    return {**names, "modified_at": when, "size": one["meta"]["size"], "digest": "", "details": _details(app)}


def tags(app, call):
    return Json({"models": [_entry(app, one) for one in model_list(app)]})


def running(app, call):
    return Json({"models": [{**_entry(app, one), "size_vram": 0} for one in model_list(app)]})


def show(app, call):
    data = fields.mapping("the body", call.json())
    name = fields.text("model", data.get("model") or data.get("name"))
    known = [one["id"] for one in model_list(app)]
    if _base_name(app, name) not in known:
        raise HttpError(404, f"model {name[:80]!r} not found; this server has {', '.join(known[:10])}")
    template = app.chat_template or app.model.metadata.get("tokenizer.chat_template")
    config = app.model.config
    info = {
        "general.architecture": config.architecture,
        "general.parameter_count": n_params(app.model),
        f"{config.architecture}.context_length": config.n_ctx_train,
        f"{config.architecture}.embedding_length": config.n_embd,
    }
    return Json(
        {
            "modelfile": "",
            "parameters": "",
            "template": template if isinstance(template, str) else "",
            "details": _details(app),
            "model_info": info,
            "capabilities": ["completion", "tools"],
        }
    )


def version(app, call):
    return Json({"version": __version__})


ROUTES = {
    ("POST", "/api/chat"): chat,
    ("POST", "/api/generate"): generate,
    ("POST", "/api/embed"): embed,
    ("POST", "/api/embeddings"): embeddings,
    ("GET", "/api/tags"): tags,
    ("GET", "/api/ps"): running,
    ("POST", "/api/show"): show,
    ("GET", "/api/version"): version,
}
