"""One step of inference: what it is asked, the memory it takes, and the cache of keys and values.

Axes: T tokens of this call (any mix of slots), E = n_embd, positions of a slot's KV cache. What the threads do in it:
decoderlayers.pyx.
"""

from cython.parallel cimport parallel
from libc.stdint cimport uint8_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from ..layers.attention cimport CHUNK, attend_bytes, part_floats, tile_part_bytes
from ..layers.block cimport Config
from ..products.gemm cimport unpacking_bytes
from ..products.inputs cimport EXACT, INT16, INT8, PART_TOKENS, STREAM_TOKENS, acts_bytes, padded
from .decoderexperts cimport DecoderExperts
from .pace cimport Pace, note_step
from .stepbuffers cimport PIECE, SPLIT_TOKENS, Run, Step, place_step
from .team cimport join_team, omp_get_num_threads, omp_get_wtime
from .weights cimport Weights

from ..layers.attention import KV_TYPES

import numpy as np

from llamacy.errors import NotFinite

cdef enum:
    PACED = 16              # tokens of a step up to which a thread is left out where that is quicker

PRECISIONS = {"f32": EXACT, "int8": INT8, "int16": INT16}


cdef int check_range(name, const int[::1] values, int end) except -1:
    cdef Py_ssize_t i
    for i in range(values.shape[0]):
        if not 0 <= values[i] < end:
            raise ValueError(f"a {name} is outside 0..{end - 1}")
    return 0


cdef class Session(DecoderExperts):
    """A KV cache of n_slots sequences and the buffers of a step over the given weights."""

    cdef int n_slots, max_batch, n_threads
    cdef float[::1] parts
    cdef uint8_t[::1] scratch
    cdef int[::1] seen                  # per slot: the last call of find_runs that met it
    cdef int n_calls
    cdef Pace pace
    cdef float[:, ::1] u
    cdef Run* runs
    cdef bint busy

    def __cinit__(self, Weights weights, int n_slots, int n_ctx, int max_batch=512, int n_threads=1, activations="int8",
                  k_type=None, v_type=None, ropes=None):
        """k_type, v_type: how keys and values are kept, one of KV_TYPES; None: s16, f32 where activations are f32. ropes: as
        RopeTables takes them, None for those of the weights."""
        cdef Config* c = &weights.config
        self.weights, self.n_slots, self.n_threads, self.ropes = weights, n_slots, n_threads, weights.tables(ropes)
        self.n_ctx, self.max_batch, self.precision = n_ctx, max_batch, PRECISIONS[activations]
        usual = "f32" if self.precision == EXACT else "s16"
        self.k_type, self.v_type = KV_TYPES[k_type or usual], KV_TYPES[v_type or usual]
        # One chunk of all layers and heads is contiguous, so that the pages of a short sequence (2 MB each) are few.
        # Zeros: untouched pages cost no memory.
        self.n_chunks = (max(n_ctx, 1) - 1) // CHUNK + 1
        self.chunk_bytes = tile_part_bytes(c.head_dim, self.k_type) + tile_part_bytes(c.head_dim, self.v_type)
        self.chunk_bytes *= padded(min(n_ctx, CHUNK), 16) // 16
        self.cache = np.zeros(self.chunk_bytes * c.n_head_kv * c.n_layer * self.n_chunks * n_slots, np.uint8)
        self.parts = np.empty(min(max_batch, SPLIT_TOKENS) * c.n_head * self.n_chunks * part_floats(c.head_dim), np.float32)
        rounded_bytes = acts_bytes(max_batch, max(c.q_p, c.embd_p, c.ff_p), INT8 | INT16)
        rows = self.unit_tokens() * (c.n_head // c.n_head_kv)
        self.work_bytes = padded(max(attend_bytes(rows, c.head_dim) + 4 * rows * c.head_dim, 64 * PIECE * PART_TOKENS), 4096)
        self.work = np.empty(self.work_bytes * n_threads, np.uint8)
        self.own_bytes = padded(4 * c.embd_p + acts_bytes(1, max(c.q_p, c.embd_p, c.ff_p), INT8 | INT16), 4096)
        self.own = np.empty(self.own_bytes * n_threads, np.uint8)
        self.unpacking_bytes = padded(unpacking_bytes(), 4096)
        self.unpacking = np.empty(self.unpacking_bytes * n_threads, np.uint8)
        self.seen = np.zeros(n_slots, np.int32)
        self.scratch = np.empty(place_step(&self.step_, c, max_batch, NULL) + rounded_bytes + 64, np.uint8)
        place_step(&self.step_, c, max_batch, &self.scratch[0])
        self.place_experts(max_batch)
        self.runs = <Run*>calloc(max_batch, sizeof(Run))
        if self.runs == NULL:
            raise MemoryError()

    def __dealloc__(self):
        free(self.runs)

    @property
    def shape(self):
        """(n_slots, n_ctx, max_batch)"""
        return self.n_slots, self.n_ctx, self.max_batch

    @property
    def cache_bytes(self):
        return self.cache.shape[0]

    def _tiles(self, int slot, int chunk):
        """A view of the cache: uint8 (layers x KV heads, tiles of 16 positions, bytes of a tile) of a slot's chunk."""
        cdef int tiles = <int>padded(min(self.n_ctx, CHUNK), 16) // 16
        heads = self.weights.config.n_layer * self.weights.config.n_head_kv
        shape = (self.n_slots, self.n_chunks, heads, tiles, self.chunk_bytes // tiles)
        return np.asarray(self.cache).reshape(shape)[slot, chunk]

    def read_cache(self, int slot, int n):
        """Return what a slot holds of its first n positions, as it lies: uint8 (layers x KV heads, tiles, bytes of a tile).

        Tiles have 16 positions; the last may hold more than was asked for. ValueError out of range, LlamacyError while a step
        of this session runs.
        """
        if not (0 <= slot < self.n_slots and 0 <= n <= self.n_ctx):
            raise ValueError(f"slot {slot} and {n} positions, wanted below {self.n_slots} and at most {self.n_ctx}")
        self.weights.begin_step(1, &self.busy)
        try:
            tiles = [self._tiles(slot, chunk) for chunk in range(max(1, (n + CHUNK - 1) // CHUNK))]
            return np.concatenate(tiles, axis=1)[:, :(n + 15) // 16]
        finally:
            self.weights.end_step(&self.busy)

    def write_cache(self, int slot, tiles):
        """Put back what read_cache returned, of a session over the same weights with the same types; else
        ValueError. LlamacyError while a step of this session runs."""
        heads, n_tiles, n_bytes = np.shape(tiles)
        part = self._tiles(0, 0)
        wanted = part.shape[0], part.shape[2]
        if not 0 <= slot < self.n_slots or (heads, n_bytes) != wanted or n_tiles > (self.n_ctx + 15) // 16:
            raise ValueError(f"slot {slot} and tiles {np.shape(tiles)} do not fit {self.n_slots} slots of {part.shape}")
        self.weights.begin_step(1, &self.busy)
        try:
            for chunk in range((16 * n_tiles + CHUNK - 1) // CHUNK):
                some = tiles[:, chunk * CHUNK // 16:][:, :CHUNK // 16]
                self._tiles(slot, chunk)[:, :some.shape[1]] = some
        finally:
            self.weights.end_step(&self.busy)

    def step(self, const int[::1] tokens, const int[::1] positions, const int[::1] slots, const int[::1] logits_at,
             const float[:, ::1] lora_scales=None, bint hidden=False):
        """Run T tokens: token i enters slot slots[i] at positions[i] and attends to what that slot holds up to there.

        Returns logits f32 (len(logits_at), n_vocab) for the tokens at those indices. lora_scales: f32 (T, n_adapters), or
        None for 1. hidden: the final norm's output instead of logits, f32 (len(logits_at), n_embd). ValueError where an
        index is out of range; NotFinite where a result is infinite or NaN; LlamacyError while another thread's step of this session
        runs, or after fork().
        """
        self.weights.begin_step(self.n_threads, &self.busy)
        try:
            return self.compute(tokens, positions, slots, logits_at, lora_scales, hidden)
        finally:
            self.weights.end_step(&self.busy)

    cdef compute(self, const int[::1] tokens, const int[::1] positions, const int[::1] slots, const int[::1] logits_at,
                 const float[:, ::1] lora_scales, bint hidden):
        """What step does, in one thread at a time"""
        cdef Step* s = &self.step_
        cdef Config* c = &self.weights.config
        cdef const float[:, ::1] wanted_scales
        cdef float[:, ::1] logits = np.empty((len(logits_at), c.embd_p if hidden else c.vocab_p), np.float32)
        cdef int width = c.n_embd if hidden else c.n_vocab, n_threads
        cdef bint few
        cdef double began
        self.check(tokens, positions, slots, logits_at, lora_scales)
        if len(tokens) == 0:
            return np.asarray(logits)[:, :width]
        s.T, s.M = <int>tokens.shape[0], <int>logits_at.shape[0]
        s.tokens, s.positions, s.slots = &tokens[0], &positions[0], &slots[0]
        s.logits_at, s.logits, s.hidden = NULL, NULL, hidden
        if s.M:
            s.logits_at, s.logits = &logits_at[0], &logits[0, 0]
        s.fewer, s.astray = s.M < s.T, False
        s.lora_scales, s.wanted_scales = NULL, NULL
        if lora_scales is not None and self.weights.n_lora:
            s.lora_scales = &lora_scales[0, 0]
            if s.M:
                wanted_scales = np.asarray(lora_scales)[np.asarray(logits_at)]
                s.wanted_scales = &wanted_scales[0, 0]
        if self.weights.n_lora and (self.u is None or self.u.shape[1] < self.weights.max_width):
            self.u = np.zeros((self.max_batch, self.weights.max_width), np.float32)
        self.room_for_adapters()
        if self.weights.n_lora:
            s.u, s.ldu = &self.u[0, 0], self.u.shape[1]
        self.find_runs()
        few = s.T <= PACED and self.n_threads > 1
        n_threads = self.n_threads - (few and self.pace.fewer)
        began = omp_get_wtime()
        with nogil, parallel(num_threads=n_threads):
            self.run(join_team(&self.team), omp_get_num_threads())
        if few:
            note_step(&self.pace, <int>tokens.shape[0], omp_get_wtime() - began, self.team.sleeps)
        if s.astray:
            raise NotFinite(np.asarray(logits)[:, :width])
        return np.asarray(logits)[:, :width]

    cdef int check(self, const int[::1] tokens, const int[::1] positions, const int[::1] slots, const int[::1] logits_at,
                   lora_scales) except -1:
        cdef int T = <int>tokens.shape[0]
        if not (T <= self.max_batch and positions.shape[0] == T and slots.shape[0] == T):
            raise ValueError(
                f"{T} tokens, {len(positions)} positions, {len(slots)} slots: wanted equal, at most {self.max_batch}")
        check_range("token", tokens, self.weights.config.n_vocab)
        check_range("position", positions, self.n_ctx)
        check_range("slot", slots, self.n_slots)
        check_range("logits_at", logits_at, T)
        if lora_scales is not None and np.shape(lora_scales) != (T, self.weights.n_lora):
            raise ValueError(f"lora_scales {np.shape(lora_scales)}, wanted {(T, self.weights.n_lora)}")
        return 0

    cdef void find_runs(self) noexcept nogil:
        cdef Step* s = &self.step_
        cdef Run* r = self.runs - 1
        cdef int t, longest = 1
        s.runs, s.parts, s.n_runs, s.apart = self.runs, &self.parts[0], 0, True
        self.n_calls += 1
        for t in range(s.T):
            longest = max(longest, s.positions[t] // CHUNK + 1)
            if t and s.slots[t] == r.slot and s.positions[t] == r.position + r.n and r.n < self.unit_tokens():
                r.n += 1
                continue
            s.apart = s.apart and self.seen[s.slots[t]] != self.n_calls
            self.seen[s.slots[t]] = self.n_calls
            r += 1
            r.slot, r.first, r.n, r.position = s.slots[t], t, 1, s.positions[t]
            s.n_runs += 1
        s.split = s.T <= SPLIT_TOKENS and longest > 1
        for r in s.runs[:s.n_runs]:
            r.chunks = (r.position + r.n - 1) // CHUNK + 1 if s.split else 1
        self.find_wanted()

    cdef void find_wanted(self) noexcept nogil:
        """Which runs' queries the last layer needs"""
        cdef Step* s = &self.step_
        cdef Run* r
        cdef int m
        s.first_query = s.T
        for r in s.runs[:s.n_runs]:
            r.wanted = s.split or not s.fewer
            for m in range(s.M if s.fewer else 0):
                r.wanted = r.wanted or r.first <= s.logits_at[m] < r.first + r.n
            if r.wanted:
                s.first_query = min(s.first_query, r.first)
        # so many that no short cut for few rows is taken, see some_rows
        s.first_query = max(0, min(s.first_query, s.T - STREAM_TOKENS - 1))


def paces(seconds_all, seconds_fewer, sleeps, n_steps):
    """Which of n_steps one-token steps leave a thread out, where a step takes so long and so many waits end asleep in it with
    all threads; a list of bool. For the tests: see pace.pxd."""
    cdef Pace p
    memset(&p, 0, sizeof(p))
    left_out = []
    for _step in range(n_steps):
        left_out.append(bool(p.fewer))
        note_step(&p, 1, seconds_fewer if p.fewer else seconds_all, 0 if p.fewer else sleeps)
    return left_out
