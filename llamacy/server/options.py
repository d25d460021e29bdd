"""What a request for text may say, read strictly: the prompt in all its shapes, and the options."""

from dataclasses import dataclass, field, replace

from llamacy.generate.samplers.params import SamplingParams
from llamacy.generate.text_stream import prompt_ids
from llamacy.server import fields
from llamacy.server.errors import HttpError
from llamacy.server.refused import refuse

MAX_PREDICT = 2**31 - 1
MAX_CHOICES = 64
MAX_PROMPTS = 2048  # in one list: what OpenAI allows

# name: (reader, default, other names)
OPTIONS = {
    **fields.SAMPLING,
    "n_predict": (fields.number(int, -1, MAX_PREDICT), -1, "max_tokens", "max_completion_tokens"),
    "n_keep": (fields.number(int, -1, MAX_PREDICT), 0),
    "n_discard": (fields.number(int, 0, MAX_PREDICT), 0),
    "n_indent": (fields.number(int, 0, 1000), 0),
    "t_max_prompt_ms": (fields.number(float), -1),
    "t_max_predict_ms": (fields.number(float), -1),
    "id_slot": (fields.number(int, -1), -1),
    "stop": (fields.stops, ()),
    "stream": (fields.flag, False),
    "cache_prompt": (fields.flag, True),
    "return_tokens": (fields.flag, False),
    "timings_per_token": (fields.flag, False),
    "return_progress": (fields.flag, False),
}
# How a grammar or a schema may be given; more than one of them is no clear wish.
FORMATS = ("grammar", "json_schema", "response_format")


@dataclass
class Options:
    """A request's options: `values` as in OPTIONS, `params` for the sampler, `lora` a scale per adapter or None.

    `automaton` is the grammar that the text must follow, None without, and `format` what asked for it.
    """

    values: dict
    params: SamplingParams
    lora: tuple | None
    automaton: object = None
    format: dict = field(default_factory=dict)
    visible: tuple = ()  # control tokens that are text
    model: str | None = None  # the name that the request chose

    def nth(self, i):
        """Return the options of the i-th choice: another seed, or each choice would be the same."""
        seed = self.params.seed
        if seed == -1 or i == 0:
            return self
        return replace(self, params=replace(self.params, seed=(seed + i) % 2**64))

    def __getattr__(self, name):
        try:
            return self.__dict__["values"][name]
        except KeyError:
            raise AttributeError(name) from None


def read_options(app, data):
    """Return the Options of a request's object; HttpError 400 names the field that is wrong."""
    refuse(fields.mapping("the body", data))
    values = fields.read_all(data, app.options)
    if values["n_predict"] < 0:
        values["n_predict"] = app.defaults.get("n_predict", -1)
    if values["id_slot"] >= len(app.engine.slots):
        raise HttpError(400, f"id_slot: wanted at most {len(app.engine.slots) - 1}, got {values['id_slot']}")
    bias = app.defaults.get("logit_bias", ()) if data.get("logit_bias") is None else read_bias(app, data["logit_bias"])
    params = SamplingParams(**{name: values[name] for name in fields.SAMPLING}, logit_bias=bias)
    automaton, wanted = read_format(app, data)
    model, scales = read_model(app, data)
    lora = read_scales(app, "lora", data.get("lora"))
    return Options(values, params, scales if lora is None else lora, automaton, wanted, model=model)


def read_format(app, data):
    """Return (the Automaton that the text must follow, None without; what asked for it: grammar or json_schema).

    `grammar` and `json_schema` are llama.cpp's, `response_format` is OpenAI's; without any the server's own counts, but
    an empty `grammar` is none.
    """
    given = [name for name in FORMATS if data.get(name) not in (None, "", {"type": "text"})]
    if len(given) > 1:
        raise HttpError(400, f"{given[0]} and {given[1]}: wanted one of them")
    if given == ["grammar"]:
        text = fields.text("grammar", data["grammar"])
        return app.grammars.gbnf(text), {"grammar": text}
    found = read_schema(app, data)
    if found is None and app.format and data.get("grammar") != "":
        return app.automaton, {app.format.name: app.format.value}
    return found, {"json_schema": data["json_schema"]} if given == ["json_schema"] else {}


def read_schema(app, data):
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
    return app.grammars.json_object() if schema is None else app.grammars.json_schema(schema)


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
    """Read [{"id" or "name", "scale"}]: a scale for each adapter, 0 for those not listed; None where none is given."""
    if value is None:
        return None
    found = {}
    for i, item in enumerate(fields.items(fields.mapping)(name, value)):
        key = "name" if "id" not in item and "name" in item else "id"
        for wanted in (key, "scale"):
            if wanted not in item:
                raise HttpError(400, f"{name}[{i}]: wanted {{id, scale}}, got no {wanted}")
        if not app.adapters.all:
            raise HttpError(400, f"{name}: the server has no adapters (--lora, --lora-dir)")
        if key == "id":
            one = app.adapters.of_id(fields.number(int, 0)(f"{name}[{i}].id", item["id"]))
        else:
            one = app.adapters.named(fields.text(f"{name}[{i}].name", item["name"]))
        if one is None:
            known = " or ".join(str(getattr(one, key)) for one in app.adapters.all[:20])
            raise fields.wrong(f"{name}[{i}].{key}", known, item[key])
        found[one] = fields.number(float)(f"{name}[{i}].scale", item["scale"])
    return app.adapters.scales(found)


def read_model(app, data):
    """Return (the adapter's name that `model` is, None for any other name; its scales)."""
    name = data.get("model")
    one = app.adapters.named(name) if isinstance(name, str) else None
    return (None, None) if one is None else (one.name, app.adapters.scales({one: 1.0}))


def read_prompts(app, value, name="prompt"):
    """Return (a list of prompts as token ids, whether the request gave a list of prompts).

    One prompt is a string, a list of ids, or ids and strings mixed; several are a list of strings or of such lists.
    """
    if isinstance(value, list) and value:
        several = any(isinstance(item, list) for item in value) or all(isinstance(item, str) for item in value)
        if several and len(value) > MAX_PROMPTS:
            raise HttpError(400, f"{name}: wanted at most {MAX_PROMPTS} prompts in a list, got {len(value)}")
        if several:
            return [_read_prompt(app, f"{name}[{i}]", item) for i, item in enumerate(value)], True
    return [_read_prompt(app, name, value)], False


def _read_prompt(app, name, value):
    wanted = "a string, token ids or both mixed in a list, or a list of those"
    tokenizer = app.model.tokenizer
    if isinstance(value, str):
        app.check_length(name, value)
        ids = prompt_ids(tokenizer, value)
    elif isinstance(value, list) and value:
        ids, token = [], fields.token_id(app.engine.n_vocab)
        for i, item in enumerate(value):
            if isinstance(item, str):
                app.check_length(f"{name}[{i}]", item)
                ids += prompt_ids(tokenizer, item, add_special=i == 0)
            elif isinstance(item, bool) or not isinstance(item, int | float):
                raise fields.wrong(f"{name}[{i}]", "a token id or a string", item)
            else:
                ids.append(token(f"{name}[{i}]", item))
    else:
        raise fields.wrong(name, wanted, value)
    return ids
