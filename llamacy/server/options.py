"""What a request for text may say, read strictly: the prompt in all its shapes, and the options."""

from dataclasses import dataclass

from llamacy.generate.samplers.params import LIMITS, SamplingParams
from llamacy.generate.text_stream import prompt_ids
from llamacy.server import fields
from llamacy.server.errors import HttpError

MAX_PREDICT = 2**31 - 1

# name: (reader, default, other names)
OPTIONS = {
    **fields.SAMPLING,
    "ignore_eos": (fields.flag, False),
    "n_predict": (fields.number(int, -1, MAX_PREDICT), -1, "max_tokens", "max_completion_tokens"),
    "n_keep": (fields.number(int, -1, MAX_PREDICT), 0),
    "stop": (fields.stops, ()),
    "stream": (fields.flag, False),
    "cache_prompt": (fields.flag, True),
    "return_tokens": (fields.flag, False),
}
# Fields that change what an answer may be: ignoring them would give text that the client does not expect.
REFUSED = ("grammar", "image_data", "tools", "functions", "suffix")


@dataclass
class Options:
    """A request's options: `values` as in OPTIONS, `params` for the sampler, `lora` a scale per adapter or None.

    `automaton` is the grammar that the text must follow, None without.
    """

    values: dict
    params: SamplingParams
    lora: tuple | None
    automaton: object = None

    def __getattr__(self, name):
        try:
            return self.__dict__["values"][name]
        except KeyError:
            raise AttributeError(name) from None


def read_options(app, data):
    """Return the Options of a request's object; HttpError 400 names the field that is wrong."""
    values = fields.read_all(data, OPTIONS)
    for name in REFUSED:
        if data.get(name):
            raise HttpError(400, f"{name}: not supported")
    sampling = {name: values[name] for name in LIMITS}
    params = SamplingParams(
        **sampling, ignore_eos=values["ignore_eos"], logit_bias=read_bias(app, data.get("logit_bias"))
    )
    return Options(values, params, read_scales(app, "lora", data.get("lora")), read_grammar(data))


def read_grammar(data):
    """Return the Automaton that `json_schema` (llama.cpp's) or `response_format` (OpenAI's) asks for, None without."""
    wanted = data.get("response_format")
    wanted = {"type": "text"} if wanted is None else fields.mapping("response_format", wanted)
    kind = fields.choice("text", "json_object", "json_schema")("response_format.type", wanted.get("type"))
    schema = data.get("json_schema")
    if kind == "json_object":
        schema = wanted.get("schema", schema)
    elif kind == "json_schema":
        schema = fields.mapping("response_format.json_schema", wanted.get("json_schema")).get("schema", {})
    if schema is None and kind == "text":
        return None
    # Late: most requests do without.
    from llamacy.generate import json_grammar

    return json_grammar.json_object() if schema is None else json_grammar.json_schema(schema)


def read_bias(app, value):
    """Read `logit_bias`: [[id or text, bias or false], ...] or {"id": bias}; a text means each of its tokens."""
    if value is None:
        return ()
    if isinstance(value, dict):
        value = [[int(key) if key.isascii() and key.isdigit() else key, bias] for key, bias in value.items()]
    pairs = []
    for i, pair in enumerate(fields.items(lambda name, item: item)("logit_bias", value)):
        name = f"logit_bias[{i}]"
        if not isinstance(pair, list) or len(pair) != 2:
            raise fields.wrong(name, "[token, bias]", pair)
        bias = fields.bias_value(name, pair[1])
        if isinstance(pair[0], str):
            pairs += [(token, bias) for token in app.model.tokenizer.encode(pair[0], add_special=False)]
        else:
            pairs.append((fields.token_id(app.engine.n_vocab)(name, pair[0]), bias))
    return tuple(pairs)


def read_scales(app, name, value):
    """Read [{"id", "scale"}]: a scale for each adapter, 0 for those not listed; None when there is no list."""
    if value is None:
        return None
    scales = [0.0] * len(app.engine.lora)
    for i, item in enumerate(fields.items(fields.mapping)(name, value)):
        for key in ("id", "scale"):
            if key not in item:
                raise HttpError(400, f"{name}[{i}]: wanted {{id, scale}}, got no {key}")
        if not scales:
            raise HttpError(400, f"{name}: the server was started without adapters (--lora)")
        which = fields.number(int, 0, len(scales) - 1)(f"{name}[{i}].id", item["id"])
        scales[which] = fields.number(float)(f"{name}[{i}].scale", item["scale"])
    return tuple(scales)


def read_prompts(app, value):
    """Return (a list of prompts as token ids, whether the request gave a list of prompts).

    One prompt is a string, a list of ids, or ids and strings mixed; several are a list of strings or of such lists.
    """
    if isinstance(value, list) and value:
        several = any(isinstance(item, list) for item in value) or all(isinstance(item, str) for item in value)
        if several:
            return [_read_prompt(app, f"prompt[{i}]", item) for i, item in enumerate(value)], True
    return [_read_prompt(app, "prompt", value)], False


def _read_prompt(app, name, value):
    wanted = "a string, token ids or both mixed in a list, or a list of those"
    tokenizer = app.model.tokenizer
    if isinstance(value, str):
        ids = prompt_ids(tokenizer, value)
    elif isinstance(value, list) and value:
        ids, token = [], fields.token_id(app.engine.n_vocab)
        for i, item in enumerate(value):
            if isinstance(item, str):
                ids += prompt_ids(tokenizer, item, add_special=i == 0)
            elif isinstance(item, bool) or not isinstance(item, int | float):
                raise fields.wrong(f"{name}[{i}]", "a token id or a string", item)
            else:
                ids.append(token(f"{name}[{i}]", item))
    else:
        raise fields.wrong(name, wanted, value)
    return ids
