"""What was computed of a prompt, in a file: the next run with the same beginning computes only what is new.

A GGUF file with the token ids, the slot's part of the KV cache as it lies, and what both depend on. The same bits come
back, so that the text is the same with and without it.
"""

import json
import os
import zlib
from hashlib import blake2b

import numpy as np

from llamacy import __version__, kernels
from llamacy.errors import LlamacyError
from llamacy.formats.gguf import MAGIC
from llamacy.formats.mapped import MappedFile
from llamacy.formats.model_file import open_model
from llamacy.formats.types import by_name

KIND, VERSION = "prompt cache", 1
KEY = "llamacy.prompt_cache"
TENSOR, STATES = "cache", "states"
# Of what short convolutions saw so many positions: a prompt that is computed again ends before the file does.
KEPT = 64
# Of a model's file so much is looked at in so many places: its size and time say the rest.
SAMPLES, SAMPLE_BYTES = 64, 1 << 12


class PromptCache:
    """The cache file of one engine's first slot; `path` None: none, and all methods do nothing.

    writes: the file is written, by `keep` with a prompt and, where `generated`, by `keep_all` with what followed it.
    note(text): is told what came of the file.
    """

    def __init__(self, path, engine, writes=True, generated=False, note=print):
        self._path, self._engine, self._note = path, engine, note
        self._writes, self._generated = writes and path is not None, generated
        self._read = self._kept = path is None
        self._known = []  # the ids in the file that fit this model

    def restore(self, ids):
        """Put what the file has of a prompt's beginning into the engine, the first time that it is called.

        LlamacyError, one line, for a file that is something else or damaged; one of another model is only noted.
        """
        if self._read:
            return
        self._read = True
        if not os.path.exists(self._path) or os.path.getsize(self._path) == 0:
            return
        found, cached, tiles, states, held_from, _ = _load(self._path)
        wanted = _identity(self._engine, self._engine.lora)
        differs = [name for name, value in wanted.items() if found.get(name) != value]
        if differs:
            self._note(f"{self._path}: made with another {' and '.join(differs)}: the prompt is computed anew")
            return
        self._known = cached.tolist()
        n = _common(self._known, ids[:-1])  # the last token is computed for its logits
        n = 0 if states.size and len(cached) > self._engine.n_ctx else n
        slot = self._engine.slots[0]
        try:
            self._engine.session.write_cache(slot.id, tiles[:, : -(-n // 16)], held_from)
            if n:
                self._engine.session.write_states(slot.id, len(cached), _fitting(states, self._engine))
        except ValueError as error:
            raise _damaged(self._path, error) from None
        n = self._engine.session.reusable(slot.id, n)
        slot.cached, slot.lora = ids[:n], self._engine.lora
        self._note(f"{self._path}: {n} of the prompt's {len(ids)} tokens were computed before")

    def keep(self, ids):
        """Write the file when the prompt `ids` was computed, once, unless it has it already."""
        if self._kept or not self._writes:
            return
        self._kept = True
        if self._known[: len(ids)] != ids:
            self._save(len(ids))

    def keep_all(self):
        """Write the file with all that the slot holds, where that was asked for."""
        cached = self._engine.slots[0].cached
        if self._writes and self._generated and cached and self._known[: len(cached)] != cached:
            self._save(len(cached))

    def _save(self, n):
        slot = self._engine.slots[0]
        n = min(n, len(slot.cached))
        if self._engine.session.reusable(slot.id, n) < n:
            what = "layers with a window or a convolution hold only what came behind the prompt"
            self._note(f"{self._path}: not written: {what}")
            return
        write_slot(self._path, self._engine, slot, n)
        self._known = slot.cached[:n]


def write_slot(path, engine, slot, n):
    """Write what a slot holds of its first n tokens."""
    from llamacy.formats.gguf_writer import write_gguf

    tiles, states = engine.session.read_cache(slot.id, n), engine.session.read_states(slot.id, n, KEPT)
    metadata = {
        "general.type": KIND,
        f"{KEY}.version": VERSION,
        f"{KEY}.identity": json.dumps(_identity(engine, slot.lora)),
        f"{KEY}.tokens": np.array(slot.cached[:n], np.int32),
        f"{KEY}.held_from": engine.session.held_from(slot.id),
        f"{KEY}.checksum": _checksum(slot.cached[:n], tiles, states),
        **({f"{KEY}.scales": np.array(slot.lora, np.float32)} if slot.lora else {}),
    }
    tensors = [(TENSOR, by_name("I8"), tiles.shape, np.ascontiguousarray(tiles))]
    tensors += [(STATES, by_name("F32"), states.shape, states.reshape(-1, states.shape[-1]))] if states.size else []
    write_gguf(path, metadata, tensors)


def read_slot(path, engine, slot):
    """Put into a slot what write_slot wrote; return how many tokens. LlamacyError where it is another model's."""
    found, cached, tiles, states, held_from, scales = _load(path)
    lora = tuple(scales) + (0.0,) * (len(engine.lora) - len(scales))
    differs = [name for name, value in _identity(engine, lora).items() if found.get(name) != value]
    if differs or len(cached) > engine.n_ctx:
        what = " and ".join(differs) or "longer context"
        raise LlamacyError(f"{path}: made with another {what}")
    try:
        engine.session.write_cache(slot.id, tiles, held_from)
        engine.session.write_states(slot.id, len(cached), _fitting(states, engine))
    except ValueError as error:
        raise _damaged(path, error) from None
    n = engine.session.reusable(slot.id, len(cached))
    slot.cached, slot.lora = cached.tolist()[:n], lora
    return len(slot.cached)


def _identity(engine, lora):
    """Return what the cached values depend on besides the ids, {name: text}."""
    session = engine.session
    model = session.model
    return {
        "llamacy": f"{__version__} {kernels.isa}",
        "model": f"{model.config} {_of_files(model)} {session.stretched_to}",
        "adapters": " ".join(_of_adapter(adapter) for adapter, _ in model.adapters) + f" {lora}",
        "precision": f"{model.activations} {session.cache_types}",
    }


def _common(known, ids):
    """Return how many leading ids are the same."""
    return next((i for i, (a, b) in enumerate(zip(known, ids, strict=False)) if a != b), min(len(known), len(ids)))


def _load(path):
    """Return (identity, ids int32 (n), tiles uint8, states f32, the former's held_from, scales); LlamacyError for all
    other files."""
    source = MappedFile(path)
    if source.bytes[:4].tobytes() != MAGIC:
        raise source.stranger("a prompt cache that bin/main wrote")
    source.close()
    with open_model(path) as file:
        if file.metadata.get("general.type") != KIND:
            raise LlamacyError(f"{path}: is no prompt cache that bin/main wrote; choose another --prompt-cache")
        if file.metadata.get(f"{KEY}.version") != VERSION:
            raise LlamacyError(f"{path}: a prompt cache of another version of llamacy; remove it")
        try:
            identity = json.loads(file.metadata[f"{KEY}.identity"])
            tokens, held_from = np.asarray(file.metadata[f"{KEY}.tokens"]), file.metadata.get(f"{KEY}.held_from", 0)
            info = file.tensors[TENSOR]
            scales = [float(scale) for scale in np.asarray(file.metadata.get(f"{KEY}.scales", ()))]
            tiles = np.array(file.data(TENSOR)).view(np.uint8).reshape(info.shape)
            states = np.zeros((0, 0, 0), np.float32)
            if STATES in file.tensors:
                states = np.array(file.data(STATES)).view(np.float32).reshape(file.tensors[STATES].shape)
            fits = tokens.dtype == np.int32 and len(info.shape) == 3 and info.shape[1] == -(-len(tokens) // 16)
            if not fits or not isinstance(identity, dict) or type(held_from) is not int or not 0 <= held_from < 1 << 31:
                raise ValueError("its parts do not fit together")
            if _checksum(tokens.tolist(), tiles, states) != file.metadata[f"{KEY}.checksum"]:
                raise ValueError("its checksum is wrong")
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise _damaged(path, error) from None
    return identity, tokens, tiles, states, held_from, scales


def _fitting(states, engine):
    """Return states as the session of an engine takes them: none of a file without, for a model without."""
    return states if states.size else np.zeros((0, 0, engine.session.model.config.n_embd), np.float32)


def _damaged(path, error):
    return LlamacyError(f"{path}: the prompt cache is damaged ({error}); remove it")


def _checksum(ids, tiles, states):
    found = zlib.crc32(np.ascontiguousarray(tiles), zlib.crc32(np.array(ids, np.int32)))
    return zlib.crc32(np.ascontiguousarray(states), found) if states.size else found


def _of_files(model):
    """Return a text that changes with a model's files: sizes, times and samples of what is in them."""
    found = blake2b(digest_size=16)
    for path in model.file.paths:
        about = os.stat(path)
        found.update(f"{about.st_size} {about.st_mtime_ns} ".encode())
        with open(path, "rb") as file:
            for i in range(SAMPLES):
                file.seek(i * about.st_size // SAMPLES)
                found.update(file.read(SAMPLE_BYTES))
    return found.hexdigest()


def _of_adapter(adapter):
    """Return a text that changes with an adapter's values."""
    found = blake2b(digest_size=16)
    for name, pair in sorted(adapter.pairs.items()):
        found.update(f"{name} {pair.scale} {pair.a.shape}".encode())
        for values in (pair.a, pair.b, *([] if pair.magnitude is None else [pair.magnitude])):
            found.update(np.ascontiguousarray(values))
    for name, delta in sorted(adapter.norms.items()):
        found.update(name.encode())
        found.update(np.ascontiguousarray(delta))
    return found.hexdigest()
