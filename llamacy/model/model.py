"""The model: an open file's configuration, tokenizer and weights, its adapters, and sessions over them."""

import math
import os
import re
import warnings
from dataclasses import replace

import numpy as np

from llamacy import kernels
from llamacy.errors import LlamacyError, brief, shown, some
from llamacy.formats.architectures import ARCHITECTURES, SLOTS
from llamacy.formats.model_file import open_model
from llamacy.model.config import read_config
from llamacy.model.weights import load_weights, read_array, rope_factors
from llamacy.text.tokenizer import open_tokenizer

_IN_LAYER = re.compile(r"blk\.(\d{1,9})\.")
_MATRIX = re.compile(r"blk\.(\d+)\.(\w+)\.weight")


def load_model(
    path,
    *,
    activations="int8",
    threads=None,
    mmap=True,
    n_ctx=None,
    rms_eps=None,
    rope_theta=None,
    overrides=None,
    cache_types=(None, None),
):
    """Open the model at `path` and pack its weights for this CPU.

    activations: "int8", "int16" or "f32", how inputs enter the matrix products. threads: None for all CPUs.
    rms_eps, rope_theta, n_ctx (the context it was trained for), overrides (metadata by key, `{arch}` in a key the
    file's architecture): instead of what the file says. cache_types: how sessions keep keys and values, each one of
    KV_TYPES; None: s16, f32 with activations f32.
    LlamacyError, one line, for whatever cannot be used.
    """
    if activations not in kernels.matmul.PRECISIONS:
        raise LlamacyError(f"activations {activations!r}: wanted one of {', '.join(kernels.matmul.PRECISIONS)}")
    for kind in cache_types:
        if kind not in (None, *kernels.attention.KV_TYPES):
            raise LlamacyError(f"cache type {kind!r}: wanted one of {', '.join(kernels.attention.KV_TYPES)}")
    file = open_model(path, mmap)
    _override(file, overrides or {})
    config = read_config(file, rms_eps, rope_theta)
    return Model(file, config, activations, threads or os.cpu_count() or 1, n_ctx or config.n_ctx_train, cache_types)


def _override(file, overrides):
    """Set metadata of an open file; a warning for keys that nothing could read."""
    arch = str(file.metadata.get("general.architecture"))
    overrides = {key.replace("{arch}", arch): value for key, value in overrides.items()}
    rooms = ("general.", "tokenizer.", f"{arch}.")
    idle = [key for key in overrides if key not in file.metadata and not key.startswith(rooms)]
    if idle:
        warnings.warn(f"{file.path}: has no {some(idle)}, and nothing reads such keys: not overridden", stacklevel=1)
    file.metadata.update(overrides)


class Model:
    """Weights are shared by all sessions; adapters apply to every session from the next step on."""

    def __init__(self, file, config, activations, threads, n_ctx_train, cache_types):
        self.file = file
        self.config = config
        self.metadata = file.metadata
        self.path = file.path
        self.name = brief(file.metadata.get("general.name") or os.path.basename(file.path))
        self.activations = activations
        self.threads = threads
        self.n_ctx_train = n_ctx_train
        self.cache_types = cache_types
        self.tokenizer = open_tokenizer(file)
        self._rope_factors = rope_factors(file, config)
        self.weights = load_weights(file, config, self._rope_factors, threads)
        self.family = ARCHITECTURES[config.architecture]
        self.adapters = []  # (Adapter, user scale)
        self._norms = []  # per adapter {(layer, norm): what it adds to the norm's weights}
        self._base_norms = {}  # the file's own of those: steps must not go back to the file for them
        apart = self.family.output in file.tensors and file.is_mapped
        self._looked_up = self.family.embedding if apart else None

    def check_file(self):
        """Raise FileChanged where a step would read the model's file and that is no longer what was opened.

        Packed weights need no file: only an embedding that is not the output matrix too is read from it. Costs a
        microsecond. A file cut off between this and the end of the step still ends the process (SIGBUS).
        """
        if self._looked_up:
            self.file.check(self._looked_up)

    def rope_tables(self, n_ctx):
        """Return [(frequencies f64 (n_rot / 2,), factor on cosines and sines)] of the configuration's ropes, for a
        context of n_ctx positions; a warning where its length changes them."""
        for note in filter(None, (rope.note(n_ctx) for rope in self.config.ropes)):
            warnings.warn(f"{self.path}: {note}", stacklevel=3)
        return [rope.table(n_ctx, self._rope_factors) for rope in self.config.ropes]

    def new_session(self, n_slots=1, n_ctx=2048, max_batch=512):
        """Return a Session: a KV cache of n_slots sequences of n_ctx positions, up to max_batch tokens a step."""
        return Session(self, n_slots, n_ctx, max_batch)

    def add_adapter(self, adapter, scale=1.0, at=None):
        """Apply an Adapter on top of the others, or in the place of one that was removed (`at`); returns its index.

        LlamacyError when it is another model's: unknown tensors or shapes that do not fit. What of its file cannot be
        applied, and a pair that was trained beside other base values, are warnings.
        """
        if adapter.architecture not in ("", self.config.architecture) and not adapter.assumed:
            raise LlamacyError(
                f"{adapter.path}: an adapter for {shown(adapter.architecture)}, the model is "
                f"{self.config.architecture!r}; use the model it was trained on"
            )
        # Late: a model without adapters does without their formats, 4 MB.
        from llamacy.formats.adapter import fitted

        adapter = fitted(adapter, self.file)
        if adapter.left_out:
            warnings.warn(f"{adapter.path}: left out {some(adapter.left_out)}: no LoRA pairs", stacklevel=2)
        pairs = {}
        for name, pair in adapter.pairs.items():
            pairs |= self._parts(*self._place(adapter, name, pair), pair)
        norms = {self._norm_place(adapter, name, delta): delta for name, delta in adapter.norms.items()}
        self._base_norms |= {place: self._base_norm(place) for place in norms if place not in self._base_norms}
        more = (pairs, self.threads)
        index = self.weights.add_adapter(*more) if at is None else self.weights.replace_adapter(at, *more)
        self.adapters[index : index + 1] = [(adapter, scale)]
        self._norms[index : index + 1] = [norms]
        self.set_adapter_scale(index, scale)
        return index

    def remove_adapter(self, index):
        """Forget an adapter: it changes nothing any more, and its place is free for add_adapter(at=index)."""
        self.set_adapter_scale(index, 0.0)
        self.weights.replace_adapter(index, {})
        self.adapters[index], self._norms[index] = (replace(self.adapters[index][0], pairs={}, norms={}), 0.0), {}

    def set_adapter_scale(self, index, scale):
        """Give adapter `index` another user scale (0 switches it off)."""
        self.weights.set_scale(index, scale)
        self.adapters[index] = (self.adapters[index][0], scale)
        for place in self._norms[index]:
            deltas = [
                norms[place] * user
                for norms, (_, user) in zip(self._norms, self.adapters, strict=True)
                if place in norms
            ]
            self.weights.set_norm(*place, self._base_norms[place] + np.sum(deltas, axis=0))

    def _norm_place(self, adapter, name, delta):
        """Return (layer, norm) of the norm vector that an adapter shifts, its length checked."""
        match = _MATRIX.fullmatch(name)
        norms = {self.family.gguf_name(norm): norm for norm in self.family.norms}
        if name == self.family.output_norm:
            place = (-1, "output_norm")
        elif match and int(match[1]) < self.config.n_layer and match[2] in norms:
            place = (int(match[1]), norms[match[2]])
        else:
            raise LlamacyError(
                f"{adapter.path}: adapts {brief(name)}, which {self.path} does not have; use the model it was trained "
                "on"
            )
        wanted = self._norm_shape(place)
        if delta.shape != wanted:
            raise LlamacyError(
                f"{adapter.path}: {brief(name)} has {delta.size} elements here, {math.prod(wanted)} in {self.path}; "
                "use the model it was trained on"
            )
        return place

    def _norm_shape(self, place):
        layer, key = place
        return (self.config.n_embd,) if layer < 0 else self.config.norm_shape(key)

    def _base_norm(self, place):
        layer, key = place
        name = self.family.output_norm if layer < 0 else f"blk.{layer}.{self.family.gguf_name(key)}.weight"
        return read_array(self.file, name, self._norm_shape(place))

    def _parts(self, layer, slot, matrix, pair):
        """Return what the weights take of a pair, {(layer, slot): (A, B, scale, magnitude where there is one)}: each
        part of a fused matrix has its rows of B."""
        rows = self.config.part_rows(matrix) if matrix in self.family.fused else {}
        cuts = np.cumsum(list(rows.values()))[:-1]
        slots = [SLOTS[part] for part in rows] or [slot]
        sides = [np.split(side, cuts) if rows else [side] for side in (pair.b, pair.magnitude) if side is not None]
        return {(layer, at): (pair.a, b, pair.scale, *m) for at, b, *m in zip(slots, *sides, strict=True)}

    def _place(self, adapter, name, pair):
        """Return (layer, slot, matrix) of the tensor that a pair adapts, matrix "" outside layers; shapes checked."""
        layer = _IN_LAYER.match(name)
        own = self.config.places(int(layer[1])) if layer and int(layer[1]) < self.config.n_layer else {}
        if name == self.family.output:
            # without an output matrix of its own too: the embedding serves as one, and is looked up without this pair
            place, shape = (-1, 0, ""), (self.config.n_rows, self.config.n_embd)
        elif name == self.family.embedding:
            place, shape = (*kernels.weights.EMBEDDING, ""), (self.config.n_rows, self.config.n_embd)
        elif name in own:
            place, shape = (own[name].layer, own[name].slot, own[name].key), own[name].shape
        else:
            raise LlamacyError(
                f"{adapter.path}: adapts {brief(name)}, which {self.path} does not have; use the model it was trained "
                "on"
            )
        got = (pair.b.shape[0], pair.a.shape[1])
        if got != shape:
            raise LlamacyError(
                f"{adapter.path}: {brief(name)} is {got[0]} x {got[1]} here, {shape[0]} x {shape[1]} in {self.path}; "
                "use the model it was trained on"
            )
        if pair.magnitude is not None and name == self.family.embedding:
            raise LlamacyError(f"{adapter.path}: DoRA of the embedding cannot be applied; merge it with PEFT")
        if pair.magnitude is not None and pair.magnitude.shape != shape[:1]:
            what = f"{brief(name)} has {pair.magnitude.size} magnitudes, wanted {shape[0]}"
            raise LlamacyError(f"{adapter.path}: {what}; the file is damaged, or of another model")
        return place


class Session:
    """A KV cache of n_slots sequences; see step."""

    def __init__(self, model, n_slots, n_ctx, max_batch):
        self.model = model
        # More tokens than the cache has positions are never in one step: buffers for them are not made.
        self.n_slots, self.n_ctx, self.max_batch = n_slots, n_ctx, min(max_batch, n_slots * n_ctx)
        try:
            self._session = kernels.decoder.Session(
                model.weights, n_slots, n_ctx, self.max_batch, model.threads, model.activations, *model.cache_types,
                model.rope_tables(n_ctx),
            )  # fmt: skip
        except (MemoryError, ValueError, OverflowError) as error:
            raise LlamacyError(
                f"no memory for a cache of {n_slots} x {n_ctx} positions and steps of {self.max_batch} tokens "
                f"({error}); try a smaller --ctx-size or --batch-size"
            ) from None

    def step(self, tokens, positions, slots, logits_at, lora_scales=None, hidden=False):
        """Run T <= max_batch tokens; return logits f32 (len(logits_at), n_vocab) for the tokens at those indices.

        Rows that only pad the output matrix have no logits, as if they were not there: their ids have no token.

        hidden: what logits are made of instead, the final norm's output, f32 (len(logits_at), n_embd).

        Token i sits at positions[i] of slot slots[i]: it is written to that slot's cache and attends to all positions
        up to its own there, as far as a layer's window lets it see. Positions already used are overwritten, which is
        how a sequence is cut back: see reusable.
        lora_scales: f32 (T, n_adapters), on top of the adapters' own scales; None for 1. ValueError out of range,
        FileChanged where the model's file is needed and was written to; LlamacyError where layers with a window no
        longer hold what a token sees.
        """
        self.model.check_file()
        if lora_scales is not None:
            lora_scales = np.ascontiguousarray(lora_scales, np.float32)
        arrays = (np.ascontiguousarray(values, np.int32) for values in (tokens, positions, slots, logits_at))
        rows = self._session.step(*arrays, lora_scales, hidden)
        return rows if hidden else rows[:, : self.model.config.n_vocab]

    def reusable(self, slot, n):
        """Return how many of the n positions that a slot holds a sequence can go on from: n, or 0.

        Layers with a window hold no more than it and a step's tokens: so much may have been stored behind these n.
        """
        return self._session.reusable(slot, n)

    def held_from(self, slot):
        """Return from which position on layers with a window hold what was stored in a slot."""
        return self._session.held_from(slot)

    def read_cache(self, slot, n):
        """Return what a slot holds of its first n positions, uint8 (layers x KV heads, 16 positions each, bytes)."""
        return self._session.read_cache(slot, n)

    def write_cache(self, slot, tiles, held_from=0):
        """Put back what read_cache returned, with that session's held_from; ValueError where it does not fit."""
        self._session.write_cache(slot, np.ascontiguousarray(tiles, np.uint8), held_from)

    def read_states(self, slot, n, most):
        """Return what short convolutions saw of the last of n positions, f32 (layers, at most so many, n_embd)."""
        return self._session.read_states(slot, n, most)

    def write_states(self, slot, n, states):
        """Put back what read_states returned, behind write_cache; ValueError where it does not fit."""
        self._session.write_states(slot, n, np.ascontiguousarray(states, np.float32))

    @property
    def stretched_to(self):
        """The context's length where keys depend on it, since positions turn otherwise in long ones; else None."""
        return self.n_ctx if any(rope.is_stretched(self.n_ctx) for rope in self.model.config.ropes) else None

    @property
    def cache_types(self):
        """How keys and values are kept, by name."""
        usual = "f32" if self.model.activations == "f32" else "s16"
        return tuple(kind or usual for kind in self.model.cache_types)

    @property
    def cache_bytes(self):
        """Bytes reserved for keys and values."""
        return self._session.cache_bytes
