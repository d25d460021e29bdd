"""Adapters that are served: which there are, what they are called, loading and unloading them while the server runs.

Requests choose by id, by name, or by a model's name that is the adapter's. Those of `folder` are loaded by name only.
A file that was written anew is loaded beside the old one, which goes when no request uses it any more: no text is made
with two versions of an adapter.
"""

import os
import re
import threading
import time
from dataclasses import dataclass

from llamacy.errors import LlamacyError
from llamacy.formats.adapter import load_adapter
from llamacy.server.errors import HttpError

SUFFIXES = (".gguf", ".bin", ".safetensors")
WATCH_SECONDS = 1.0
MAX_ADAPTERS = 256
CONFIG = "adapter_config.json"


@dataclass(eq=False)
class Served:
    """An adapter that is loaded: its public id, and its place in the engine."""

    id: int
    name: str
    path: str
    index: int


class Adapters:
    """What is served besides the model alone. `folder` None: nothing can be loaded."""

    def __init__(self, model, engine, alias, folder=None, report=print):
        self._model, self._engine, self._alias = model, engine, alias
        self.folder, self._report = folder, report
        self._lock = threading.Lock()  # one change at a time
        self._free, self._next_id = [], 0  # places in the engine without an adapter
        self.all = []
        self._stamps = {}
        for index, (adapter, _) in enumerate(model.adapters):
            self._add(str(adapter.path), index)

    def _add(self, path, index, name=None):
        taken = {self._alias, *(one.name for one in self.all)}
        stem = name or name_of(path)
        name, n = stem, 2
        while name in taken:
            name, n = f"{stem}-{n}", n + 1
        one = Served(self._next_id, name, path, index)
        self._next_id += 1
        self._stamps[one.id] = stamp(path)
        self.all = [*self.all, one]
        return one

    def named(self, name):
        """Return the adapter of a name, None where there is none."""
        return next((one for one in self.all if one.name == name), None)

    def of_id(self, id):
        """Return the adapter of a public id, None where there is none."""
        return next((one for one in self.all if one.id == id), None)

    def scales(self, wanted):
        """Return the engine's tuple for {Served: scale}; 0 for all others."""
        found = [0.0] * len(self._engine.lora)
        for one, scale in wanted.items():
            found[one.index] = scale
        return tuple(found)

    def shown(self, scales):
        """Return the engine's tuple as llama.cpp shows it: [{id, name, path, scale}]."""
        scales = [*scales, *[0.0] * (len(self._engine.lora) - len(scales))]
        return [{"id": one.id, "name": one.name, "path": one.path, "scale": scales[one.index]} for one in self.all]

    def available(self):
        """Return the names in the folder that are adapters, loaded or not, in order."""
        return sorted(self._found())

    def _found(self):
        """Return {name: path} of the folder."""
        found = {}
        if self.folder is not None:
            for entry in sorted(os.scandir(self.folder), key=lambda entry: entry.name):
                is_folder = entry.is_dir() and os.path.exists(os.path.join(entry.path, CONFIG))
                if is_folder or (entry.is_file() and entry.name.endswith(SUFFIXES)):
                    found.setdefault(name_of(entry.path), entry.path)
        return found

    def load(self, name):
        """Load the adapter of that name from the folder; HttpError where that cannot be."""
        if self.folder is None:
            raise HttpError(400, "the server was started without a folder of adapters (--lora-dir)")
        with self._lock:
            known = self.named(name)
            if known:
                return known
            path = self._found().get(name)
            if path is None:
                raise HttpError(404, f"no adapter {name[:80]!r} in the server's folder of adapters")
            if len(self.all) >= MAX_ADAPTERS:
                raise HttpError(400, f"{len(self.all)} adapters are loaded, the most that may be; unload some")
            try:
                return self._add(path, self._put(path), name)
            except LlamacyError as error:
                raise HttpError(400, f"the adapter {name[:80]!r} cannot be loaded: {error}") from None

    def _put(self, path):
        """Load a file into a free place of the engine's; return the place."""
        adapter = load_adapter(path)
        if adapter.norms:
            raise LlamacyError(f"{path}: changes norms, which all requests share: start the server with --lora for it")

        def put():
            at = self._free.pop() if self._free else None
            try:
                return self._engine.put_adapter(adapter, at)
            except BaseException:
                if at is not None:
                    self._free.append(at)
                raise

        return self._engine.between_steps(put)

    def unload(self, one):
        """Take an adapter away; it goes on for requests that use it already."""
        with self._lock:
            if one not in self.all:
                return
            self.all = [other for other in self.all if other is not one]
            self._stamps.pop(one.id, None)
            self._retire(one.index)

    def _retire(self, index):
        self._engine.retire_adapter(index, self._free.append)

    def check_files(self):
        """Load those anew whose files were written to since, and report it."""
        for one in self.all:
            now = stamp(one.path)
            with self._lock:
                if now is None or now == self._stamps.get(one.id) or one not in self.all:
                    continue
                self._stamps[one.id] = now
                try:
                    old, one.index = one.index, self._put(one.path)
                except LlamacyError as error:
                    self._report(f"adapter {one.name}: written anew, but not loaded: {error}")
                    continue
                self._engine.move_scale(old, one.index)
                self._retire(old)
            self._report(f"adapter {one.name}: loaded anew from {one.path}")

    def watch(self):
        """Look after the files in a thread of its own from now on."""
        threading.Thread(target=self._watch, name="adapters", daemon=True).start()

    def _watch(self):
        while True:
            time.sleep(WATCH_SECONDS)
            try:
                self.check_files()
            except LlamacyError:  # the engine is closed
                return


def name_of(path):
    """Return what an adapter's file or folder is called: its name without the suffix."""
    name = os.path.basename(os.path.normpath(path))
    return re.sub(r"\.(gguf|bin|safetensors)$", "", name) or name


def stamp(path):
    """Return what changes when an adapter's file is written, None where it is not there."""
    try:
        if os.path.isdir(path):
            entries = sorted(os.scandir(path), key=lambda entry: entry.name)
            return tuple((entry.name, *_times(entry.stat())) for entry in entries)
        return _times(os.stat(path))
    except OSError:
        return None


def _times(about):
    return about.st_size, about.st_mtime_ns, about.st_ino
