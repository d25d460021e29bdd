"""Slots: what they do, and what they hold saved to a file, restored and erased (--slot-save-path)."""

import os
import re
import time

from llamacy.errors import LlamacyError
from llamacy.generate.prompt_cache import read_slot, write_slot
from llamacy.server import fields
from llamacy.server.answers import Json
from llamacy.server.errors import HttpError

ACTIONS = ("save", "restore", "erase")


def slots(app, call):
    states = [_state(slot) for slot in app.engine.slots]
    if "fail_on_no_slot" in call.query and all(state["is_processing"] for state in states):
        raise HttpError(503, "no slot available")
    return Json(states)


def _state(slot):
    request = slot.request  # taken once: the engine may end it meanwhile
    state = {"id": slot.id, "n_ctx": slot.n_ctx, "is_processing": request is not None, "n_cached": len(slot.cached)}
    if request is not None:
        done = slot.timings.predicted_n
        left = request.n_predict - done if request.n_predict >= 0 else -1
        state["params"] = {name: getattr(request.params, name) for name in fields.SAMPLING}
        state["params"]["n_predict"] = request.n_predict
        state["next_token"] = {"has_next_token": True, "n_remain": left, "n_decoded": done}
    return state


def act(app, call):
    """POST /slots/ID?action=save|restore|erase, for the first two with {filename}."""
    found = re.fullmatch(r"/slots/(\d{1,9})", call.path)
    if not found or int(found[1]) >= len(app.engine.slots):
        raise HttpError(404, f"no such slot: {call.path[:80]!r}; there are {len(app.engine.slots)}, from 0")
    slot, action = app.engine.slots[int(found[1])], (call.query.get("action") or [""])[0]
    if action not in ACTIONS:
        raise HttpError(400, f"action: wanted {' or '.join(ACTIONS)}, got {action[:40]!r}")
    if action == "erase":
        return Json({"id_slot": slot.id, "n_erased": app.engine.between_steps(lambda: _erase(slot))})
    if app.slot_save_path is None:
        raise HttpError(501, "This server does not support slots action. Start it with `--slot-save-path`")
    name = fields.text("filename", fields.mapping("the body", call.json()).get("filename"))
    if not re.fullmatch(r"[\w][\w.-]{0,199}", name):
        raise fields.wrong("filename", "a file's name of letters, digits, _, . and -", name)
    path, began = os.path.join(app.slot_save_path, name), time.perf_counter()
    function = {"save": _save, "restore": _restore}[action]
    n, size = app.engine.between_steps(lambda: function(app, slot, path))
    ms = {f"{action}_ms": 1000 * (time.perf_counter() - began)}
    member = {"save": ("n_saved", "n_written"), "restore": ("n_restored", "n_read")}[action]
    return Json({"id_slot": slot.id, "filename": name, member[0]: n, member[1]: size, "timings": ms})


def _idle(slot):
    if slot.request is not None:
        raise HttpError(503, f"slot {slot.id} is computing; try again later", {"Retry-After": "1"})


def _erase(slot):
    _idle(slot)
    n, slot.cached = len(slot.cached), []
    return n


def _save(app, slot, path):
    _idle(slot)
    if not slot.cached:
        raise HttpError(400, f"slot {slot.id} holds nothing")
    if app.engine.session.reusable(slot.id, len(slot.cached)) < len(slot.cached):
        raise HttpError(400, f"slot {slot.id} holds only what fits the window of some layers, not all of its text")
    write_slot(path, app.engine, slot, len(slot.cached))
    return len(slot.cached), os.path.getsize(path)


def _restore(app, slot, path):
    _idle(slot)
    if not os.path.exists(path):
        raise HttpError(404, f"no file {os.path.basename(path)!r} in the folder of slots")
    try:
        n = read_slot(path, app.engine, slot)
    except LlamacyError as error:
        raise HttpError(400, str(error)) from None
    return n, os.path.getsize(path)


ROUTES = {("GET", "/slots"): slots}
PREFIXES = {("POST", "/slots/"): act}
