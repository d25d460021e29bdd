"""Adapters over HTTP: llama.cpp's /lora-adapters, and loading and unloading them by name."""

from llamacy.server import fields
from llamacy.server.answers import Json
from llamacy.server.errors import HttpError
from llamacy.server.options import read_scales

NAME = {"name": (fields.text, "", "lora_name"), "id": (fields.number(int, 0), None)}


def get_adapters(app, call):
    return Json(app.adapters.shown(app.engine.lora))


def set_adapters(app, call):
    wanted = call.json()
    if wanted is None:
        raise fields.wrong("the body", "a list of {id, scale}", wanted)
    app.engine.lora = read_scales(app, "the body", wanted)
    return Json({"success": True})


def load(app, call):
    """Load {name} from the server's folder; with a `scale` requests that say nothing use it, others by its name."""
    data = call.json()
    values = fields.read_all(data, {**NAME, "scale": (fields.number(float), None)})
    if not values["name"]:
        raise HttpError(400, "name: wanted an adapter's in the server's folder of them (--lora-dir), got none")
    one = app.adapters.load(values["name"])
    if values["scale"] is not None:
        scales = list(app.engine.lora)
        scales[one.index] = values["scale"]
        app.engine.lora = tuple(scales)
    return Json({"success": True, "id": one.id, "name": one.name})


def unload(app, call):
    """Take away the adapter of a {name} or an {id}."""
    values = fields.read_all(call.json(), NAME)
    one = app.adapters.of_id(values["id"]) if values["id"] is not None else app.adapters.named(values["name"])
    if one is None:
        raise HttpError(404, f"no adapter {fields.shown(values['id'] if values['id'] is not None else values['name'])}")
    app.adapters.unload(one)
    return Json({"success": True})


def available(app, call):
    return Json([{"name": name, "loaded": app.adapters.named(name) is not None} for name in app.adapters.available()])


ROUTES = {
    ("GET", "/lora-adapters"): get_adapters,
    ("POST", "/lora-adapters"): set_adapters,
    ("GET", "/lora-adapters/available"): available,
    ("POST", "/lora-adapters/load"): load,
    ("POST", "/lora-adapters/unload"): unload,
}
