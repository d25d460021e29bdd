"""A model without weights: the next token is a hash of everything that its slot's cache really holds.

A wrong position, a stale cache entry, another slot's token or another adapter scale, now or when an entry was made,
changes the text, so the engine's tests need no real model. The tokenizer has a token per byte and a few special and
longer ones.
"""

import codecs
import threading
import zlib
from types import SimpleNamespace

import numpy as np

from llamacy.errors import NotFinite

BOS, EOS, END = 256, 257, 258
PIECES = {259: b"the ", 260: b"stop", 261: "日本".encode(), 262: b"st", 263: b"op"}
N_VOCAB = 264


class FakeDecoder:
    def __init__(self, tokenizer):
        self._bytes = tokenizer.token_bytes
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode

    def feed(self, id):
        return self._decode(self._bytes(id))

    def bytes_of(self, id):
        return self._bytes(id)

    def flush(self):
        return self._decode(b"", True)


class FakeTokenizer:
    n_vocab, bos_id, eos_id, add_bos, add_eos = N_VOCAB, BOS, EOS, True, False
    eog_ids = frozenset({EOS, END})
    model, pre = "fake", "default"
    longest_token = 6

    def encode(self, text, add_special=True, parse_special=True):
        return [BOS] * add_special + list(text.encode("utf-8", "surrogateescape"))

    def token_bytes(self, id):
        return bytes([id]) if id < 256 else PIECES.get(id, b"")

    def is_special(self, id):
        return id in (BOS, EOS, END)

    def decode(self, ids, special=False):
        return b"".join(map(self.token_bytes, ids)).decode("utf-8", "replace")

    def stream(self, special=False, visible=()):
        return FakeDecoder(self)


class FakeSession:
    def __init__(self, model, n_slots, n_ctx, max_batch):
        self.model, self.n_slots, self.n_ctx, self.max_batch = model, n_slots, n_ctx, max_batch
        self.ids = np.full((n_slots, n_ctx), -1)
        self.scales = np.full((n_slots, n_ctx, len(model.adapters)), np.nan, np.float32)  # what entries were made with
        self.steps = []  # the number of tokens of each step
        self.gate = threading.Event()  # cleared: steps wait
        self.gate.set()

    cache_types = ("fake", "fake")
    stretched_to = None

    def reusable(self, slot, n):
        return n

    def held_from(self, slot):
        return 0

    def read_cache(self, slot, n):
        tiles = np.full((1, -(-n // 16), 16), -1)
        tiles.reshape(-1)[:n] = self.ids[slot, :n]
        return tiles.view(np.uint8)

    def write_cache(self, slot, tiles, held_from=0):
        ids = np.ascontiguousarray(tiles).view(np.int64).reshape(-1)[: self.n_ctx]
        self.ids[slot, : len(ids)] = ids

    def read_states(self, slot, n, most):
        return np.zeros((0, 0, 16), np.float32)

    def write_states(self, slot, n, states):
        assert states.size == 0

    def step(self, tokens, positions, slots, logits_at, lora_scales=None, hidden=False):
        self.gate.wait(10)
        assert 0 < len(tokens) == len(positions) == len(slots) <= self.max_batch
        if self.model.fail:
            raise self.model.fail
        # Norms have one scale for the whole step: the adapters' own.
        assert lora_scales is None or not self.model.with_norms
        if lora_scales is None:
            lora_scales = np.ones((len(tokens), len(self.model.adapters)), np.float32)
        lora_scales = lora_scales * np.array([scale for _, scale in self.model.adapters], np.float32)
        self.steps.append(len(tokens))
        rows, astray = [], False
        for i, (token, position, slot) in enumerate(zip(tokens, positions, slots, strict=True)):
            self.ids[slot, position], self.scales[slot, position] = token, lora_scales[i]
            seen, scales = self.ids[slot, : position + 1], self.scales[slot, : position + 1]
            assert (seen >= 0).all(), f"slot {slot} has holes before position {position}"
            if i in logits_at:
                rows.append(hidden_state(seen) if hidden else self.model.logits(seen, scales.tobytes()))
                if self.model.wild in seen:
                    rows[-1][3] = np.nan
                    astray = True
        if astray:
            raise NotFinite(np.stack(rows))
        return np.stack(rows) if rows else np.zeros((0, N_VOCAB), np.float32)


def hidden_state(seen):
    """Eight numbers that depend on all tokens so far and on the last."""
    return np.array([len(seen), seen[-1], seen.sum(), seen[-1] - 100, 1, 2, 3, seen[0]], np.float32)


class FakeModel:
    """`answer`: bytes to say after any prompt, position by position; without it text is drawn from the hash."""

    name = "fake"
    path = "fake.gguf"
    threads = 1

    def __init__(self, adapters=0, n_ctx_train=4096, answer=None, prompt_length=None, with_norms=False):
        sizes = {"n_ctx_train": n_ctx_train, "n_ctx_plain": n_ctx_train, "n_embd": 8}
        self.config = SimpleNamespace(n_vocab=N_VOCAB, architecture="llama", **sizes)
        self.tokenizer = FakeTokenizer()
        norms = {"output_norm.weight": np.ones(8)} if with_norms else {}
        self.adapters = [(SimpleNamespace(path=f"a{i}.gguf", norms=norms), 1.0) for i in range(adapters)]
        self.with_norms = with_norms
        self.metadata, self.file = {"general.name": "fake"}, SimpleNamespace(paths=[])
        self.activations = "int8"
        self.fail = None
        self.wild = -1  # an id: what follows it are no numbers
        self.answer, self.prompt_length = answer, prompt_length

    def new_session(self, n_slots=1, n_ctx=2048, max_batch=512):
        self.session = FakeSession(self, n_slots, n_ctx, max_batch)
        return self.session

    def set_adapter_scale(self, index, scale):
        self.adapters[index] = (self.adapters[index][0], scale)

    def remove_adapter(self, index):
        self.adapters[index] = (self.adapters[index][0], 0.0)

    def logits(self, seen, scales):
        random = np.random.default_rng(zlib.crc32(seen.astype(np.int32).tobytes() + scales))
        row = random.standard_normal(N_VOCAB).astype(np.float32)
        row[97:123] += 3
        row[list(self.tokenizer.eog_ids)] -= 20
        if self.answer is not None:
            at = len(seen) - self.prompt_length
            row[self.answer[at] if 0 <= at < len(self.answer) else EOS] += 40
        return row
