"""Texts as vectors: the model's final hidden states, pooled and normalised, in llama.cpp's and OpenAI's shapes.

Shapes: llama.cpp's server README (/embedding) and https://platform.openai.com/docs/api-reference/embeddings.
"""

import base64
import warnings

import numpy as np

from llamacy.errors import LlamacyError, shown
from llamacy.generate.request import Request
from llamacy.server import fields
from llamacy.server.answers import Json
from llamacy.server.errors import HttpError
from llamacy.server.jobs import Submission, http_error
from llamacy.server.options import read_model, read_prompts

# name -> what becomes of the hidden states (n, E) of a text's tokens; "none" keeps them all
POOLINGS = {
    "mean": lambda rows: rows.mean(axis=0, dtype=np.float64),
    "last": lambda rows: rows[-1],
    "cls": lambda rows: rows[0],
    "none": None,
}
# <family>.pooling_type in a model's file -> name; 4 ranks texts, which needs a head of its own
TYPES = {0: "none", 1: "mean", 2: "cls", 3: "last"}
INPUTS = ("input", "content", "prompt")
# embd_normalize 0: the largest element becomes this, llama.cpp's for 16-bit integers
INT16_SIZE = 32760.0
MAX_NORM = 64


def normalised(vector, kind):
    """Return a vector divided by a norm of it, by llama.cpp's number: -1 none, 0 largest element, else the p-norm."""
    vector = np.asarray(vector, np.float64)
    if kind < 0:
        return vector
    size = np.abs(vector).max() / INT16_SIZE if kind == 0 else np.linalg.norm(vector, kind)
    return vector / size if size else vector


def pooling_of(model):
    """Return the pooling that a model's file asks for; "mean" where it says nothing, or with a warning another one."""
    key = f"{model.config.architecture}.pooling_type"
    value = model.metadata.get(key, 1)
    if isinstance(value, int) and value in TYPES:
        return TYPES[value]
    warnings.warn(f"{model.path}: {key} is {shown(value)}, which is not known: mean; see --pooling", stacklevel=1)
    return "mean"


def vectors_of(app, call, prompts, make, lora=None):
    """Run prompts (token ids) through the model; return make(final hidden states, f32 (n, n_embd)) for each."""
    job, found = Submission(app, call), [None] * len(prompts)
    job.submit([_request(i, prompt, job.queue, lora) for i, prompt in enumerate(prompts)])
    try:
        for _ in prompts:
            index, parts, result = job.next()
            if result.error:
                raise http_error(result.error)
            rows = np.concatenate(parts)
            if not np.isfinite(rows).all():
                raise LlamacyError("the model's hidden states are not finite numbers; is the model file damaged?")
            found[index] = make(rows)
    finally:
        job.cancel()
    return found


def normalised_vectors(app, call, prompts, lora=None):
    """Return a vector of length 1 for each prompt; HttpError where the server makes a vector for each token."""
    pool = POOLINGS[app.pooling]
    if pool is None:
        raise HttpError(400, "--pooling none gives a vector per token, which this endpoint cannot show; use /embedding")
    return vectors_of(app, call, prompts, lambda rows: normalised(pool(rows), 2), lora)


def _request(index, prompt, queue, lora):
    """Return the Request that puts (index, its rows in parts, its Result) into the queue."""
    parts = []
    return Request(
        prompt,
        on_hidden=lambda rows: parts.append(rows.copy()),
        on_end=lambda result: queue.put((index, parts, result)),
        lora=lora,
    )


def _prompts(app, data):
    fields.mapping("the body", data)
    given = next((name for name in INPUTS if data.get(name) is not None), None)
    if given is None:
        raise HttpError(400, "input: wanted a string, token ids or a list of those, got nothing")
    return read_prompts(app, data[given], given)[0]


def embedding(app, call):
    """llama.cpp's: [{index, embedding: [vectors]}], a vector for each text or, with pooling none, each token."""
    data = call.json()
    prompts = _prompts(app, data)
    reader = fields.number(int, -1, MAX_NORM)
    kind = fields.read_all(data, {"embd_normalize": (reader, app.embd_normalize)})["embd_normalize"]
    pool = POOLINGS[app.pooling]
    lora = read_model(app, data)[1]
    found = vectors_of(app, call, prompts, lambda rows: [normalised(pool(rows), kind)] if pool else list(rows), lora)
    return Json([{"index": i, "embedding": [v.tolist() for v in vectors]} for i, vectors in enumerate(found)])


def openai_embeddings(app, call):
    """OpenAI's: {data: [{embedding, index}], usage}, normalised, as numbers or as base64 of little-endian f32."""
    data = call.json()
    prompts = _prompts(app, data)
    encodings = fields.choice("float", "base64")
    n_embd = app.model.config.n_embd
    values = fields.read_all(
        data, {"encoding_format": (encodings, "float"), "dimensions": (fields.number(int, n_embd, n_embd), n_embd)}
    )
    name, lora = read_model(app, data)
    vectors = normalised_vectors(app, call, prompts, lora)
    if values["encoding_format"] == "base64":
        shown = [base64.b64encode(vector.astype("<f4").tobytes()).decode() for vector in vectors]
    else:
        shown = [vector.tolist() for vector in vectors]
    n_tokens = sum(map(len, prompts))
    items = [{"object": "embedding", "index": i, "embedding": vector} for i, vector in enumerate(shown)]
    usage = {"prompt_tokens": n_tokens, "total_tokens": n_tokens}
    return Json({"object": "list", "model": name or app.alias, "data": items, "usage": usage})


ROUTES = {
    ("POST", "/embedding"): embedding,
    ("POST", "/embeddings"): embedding,
    ("POST", "/v1/embeddings"): openai_embeddings,
}
