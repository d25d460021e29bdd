"""One step of inference: what it is asked, the memory it takes, and the cache of keys and values.

Axes: T tokens of this call (any mix of slots), E = n_embd, positions of a slot's KV cache. What the threads do in it:
decoderlayers.pyx.
"""

from cython.parallel cimport parallel
from libc.stdint cimport uint8_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from ..layers.attention cimport attend_bytes, part_floats
from ..layers.block cimport Config, widest_input
from ..layers.kvcache cimport CHUNK
from ..products.gemm cimport unpacking_bytes
from ..products.inputs cimport EXACT, INT16, INT8, PART_TOKENS, STREAM_TOKENS, acts_bytes, padded
from .cachelayout cimport CacheLayout, cache_layout, in_ring, slot_bytes
from .decoderexperts cimport DecoderExperts
from .pace cimport Pace, note_step
from .stepbuffers cimport PIECE, SPLIT_TOKENS, Run, Step, place_step
from .team cimport join_team, omp_get_num_threads, omp_get_wtime
from .weights cimport Weights

from ..layers.attention import KV_TYPES

import numpy as np

from llamacy.errors import LlamacyError, NotFinite

cdef enum:
    NEVER_FULL = 1 << 30
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
    cdef int[::1] held                  # per slot: from which position on the rings have all that was stored
    cdef int reach, room                # the most positions that layers with a ring see, 0: there are none; and how many it holds
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
        self.lay_cache_out(KV_TYPES[k_type or usual], KV_TYPES[v_type or usual])
        self.parts = np.empty(min(max_batch, SPLIT_TOKENS) * c.n_head * self.layout.n_chunks * part_floats(c.head_dim), np.float32)
        rounded_bytes = acts_bytes(max_batch, widest_input(c), INT8 | INT16)
        rows = self.unit_tokens() * (c.n_head // c.n_head_kv)
        self.work_bytes = padded(max(attend_bytes(rows, c.head_dim) + 4 * rows * c.head_dim, 64 * PIECE * PART_TOKENS), 4096)
        self.work = np.empty(self.work_bytes * n_threads, np.uint8)
        self.own_bytes = padded(4 * c.embd_p + acts_bytes(1, widest_input(c), INT8 | INT16), 4096)
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

    cdef int lay_cache_out(self, int k_type, int v_type) except -1:
        """The cache's memory, and which place in it each layer has"""
        cdef Config* c = &self.weights.config
        cdef int i, n_whole = 0, n_ringed = 0, n_convolving = 0, ring = min(self.n_ctx, self.max_batch + c.n_taps)
        windows = [self.weights.blocks[i].scores.window for i in range(c.n_layer) if self.weights.blocks[i].taps == NULL]
        self.layout = cache_layout(c.n_head_kv, c.head_dim, k_type, v_type, windows, self.n_ctx, self.max_batch)
        self.held = np.zeros(self.n_slots, np.int32)
        self.place = <int*>calloc(c.n_layer, sizeof(int))
        if self.place == NULL:
            raise MemoryError()
        for i in range(c.n_layer):
            if self.weights.blocks[i].taps != NULL:
                self.place[i] = n_convolving
                n_convolving += 1
            elif in_ring(&self.layout, self.weights.blocks[i].scores.window):
                self.place[i] = n_ringed
                n_ringed += 1
            else:
                self.place[i] = n_whole
                n_whole += 1
        # zeros: untouched pages cost no memory
        self.cache = np.zeros(slot_bytes(&self.layout) * self.n_slots, np.uint8)
        self.states = np.zeros((self.n_slots, n_convolving, ring, c.embd_p), np.float32)
        self.reach = max(self.layout.window, c.n_taps)
        self.room = min(self.layout.n_ring * CHUNK or NEVER_FULL, ring if n_convolving and ring < self.n_ctx else NEVER_FULL)
        return 0

    def __dealloc__(self):
        free(self.runs)
        free(self.place)

    @property
    def shape(self):
        """(n_slots, n_ctx, max_batch)"""
        return self.n_slots, self.n_ctx, self.max_batch

    @property
    def cache_bytes(self):
        return self.cache.shape[0] + self.states.nbytes

    def reusable(self, int slot, int n):
        """Return how many of the n positions that a slot holds a sequence can go on from: n, or 0 where layers with a window,
        or a convolution, no longer hold all that the next token sees."""
        return n if max(0, n - self.reach + 1) >= self.held[slot] else 0

    def held_from(self, int slot):
        """Return the position from which on layers with a window hold what was stored in a slot; 0 where all do."""
        return self.held[slot]

    def _places(self, int slot, int first, int n_tiles):
        """Return, of layers that hold all and of those in the ring: (their rows of read_cache's array, which of its tiles they
        hold, of the ring's from `first` on, and a view of the cache with a tile's heads at [chunk, :, tile of it])."""
        cdef CacheLayout* l = &self.layout
        cdef int layer
        each = np.asarray(self.cache).reshape(self.n_slots, -1)[slot]
        rows, at, found = {False: [], True: []}, 0, []
        layers = (layer for layer in range(self.weights.config.n_layer) if self.weights.blocks[layer].taps == NULL)
        for i, layer in enumerate(layers):
            rows[in_ring(l, self.weights.blocks[layer].scores.window)] += range(i * l.n_kv, (i + 1) * l.n_kv)
        for ringed, chunks in ((False, l.n_chunks), (True, l.n_ring)):
            size = chunks * len(rows[ringed]) * l.chunk_bytes
            if size:
                tiles = range(max(first, n_tiles - chunks * l.tiles) if ringed else 0, n_tiles)
                found.append((rows[ringed], tiles, each[at:at + size].reshape(chunks, len(rows[ringed]), l.tiles, -1)))
            at += size
        return found

    def read_cache(self, int slot, int n):
        """Return what a slot holds of its first n positions, as it lies: uint8 (layers x KV heads, tiles, bytes of a tile).

        Tiles have 16 positions; the last may hold more than was asked for, and of layers with a window those are zero that
        are no longer held. ValueError out of range, or where the slot is not `reusable` from n on; LlamacyError while a step
        of this session runs.
        """
        cdef CacheLayout* l = &self.layout
        if not (0 <= slot < self.n_slots and 0 <= n <= self.n_ctx):
            raise ValueError(f"slot {slot} and {n} positions, wanted below {self.n_slots} and at most {self.n_ctx}")
        if self.reusable(slot, n) != n:
            raise ValueError(f"slot {slot} and {n} positions, of which layers with a window hold those from {self.held[slot]} on")
        n_tiles, heads = (n + 15) // 16, l.n_kv * (l.n_whole + l.n_ringed)
        self.weights.begin_step(1, &self.busy)
        try:
            found = np.zeros((heads, n_tiles, l.chunk_bytes // l.tiles), np.uint8)
            for rows, tiles, places in self._places(slot, self.held[slot] // 16, n_tiles):
                for j in tiles:
                    found[rows, j] = places[j // l.tiles % len(places), :, j % l.tiles]
            return found
        finally:
            self.weights.end_step(&self.busy)

    def read_states(self, int slot, int n, int most):
        """Return what layers with a convolution saw of the last of a slot's first n positions, up to `most` of them and as many as
        are held, f32 (layers, positions, n_embd). Errors as of read_cache."""
        if not (0 <= slot < self.n_slots and 0 <= n <= self.n_ctx) or self.reusable(slot, n) != n:
            raise ValueError(f"slot {slot} and {n} positions: not there, or not all that the next sees is held")
        self.weights.begin_step(1, &self.busy)
        try:
            places = np.arange(max(n - most, min(self.held[slot], n)), n) % max(1, self.states.shape[2])
            return np.asarray(self.states)[slot][:, places, :self.weights.config.n_embd]
        finally:
            self.weights.end_step(&self.busy)

    def write_states(self, int slot, int n, states):
        """Put back what read_states returned of n positions, as far as there is room, after write_cache. ValueError where it does
        not fit."""
        cdef int n_layers = <int>self.states.shape[1], ring = <int>self.states.shape[2]
        states = np.asarray(states)[:, -ring:]
        layers, back, width = states.shape
        if not (0 <= slot < self.n_slots and 0 <= n <= self.n_ctx) or (layers, width) != (n_layers, self.weights.config.n_embd) or back > n:
            raise ValueError(f"slot {slot}, {n} positions and states {np.shape(states)} do not fit")
        self.weights.begin_step(1, &self.busy)
        try:
            np.asarray(self.states)[slot][:, np.arange(n - back, n) % max(1, ring), :width] = states
            if n_layers:
                self.held[slot] = max(self.held[slot], n - back)
        finally:
            self.weights.end_step(&self.busy)

    def write_cache(self, int slot, tiles, int held_from=0):
        """Put back what read_cache returned, of a session over the same weights with the same types, whose `held_from` was
        this; else ValueError. LlamacyError while a step of this session runs."""
        cdef CacheLayout* l = &self.layout
        heads, n_tiles, n_bytes = np.shape(tiles)
        wanted = l.n_kv * (l.n_whole + l.n_ringed), l.chunk_bytes // l.tiles
        if not 0 <= slot < self.n_slots or (heads, n_bytes) != wanted or n_tiles > (self.n_ctx + 15) // 16:
            raise ValueError(f"slot {slot} and tiles {np.shape(tiles)} do not fit {self.n_slots} slots of {wanted[0]} heads and {wanted[1]} bytes")
        self.weights.begin_step(1, &self.busy)
        try:
            for rows, some, places in self._places(slot, 0, n_tiles):
                for j in some:
                    places[j // l.tiles % len(places), :, j % l.tiles] = tiles[rows, j]
            if self.reach:
                self.held[slot] = max(held_from, 16 * n_tiles - l.n_ring * CHUNK if l.n_ring else 0)
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
        self.turn_ring(positions, slots)
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

    cdef int turn_ring(self, const int[::1] positions, const int[::1] slots) except -1:
        """Note what a step takes the place of; LlamacyError, with nothing changed, where one of its tokens sees some of that"""
        cdef int slot, low, high, held
        if self.reach == 0:
            return 0
        found = {}
        for t, slot in enumerate(slots):
            low, high = found.get(slot, (positions[t], positions[t]))
            found[slot] = min(low, positions[t]), max(high, positions[t])
        for slot, (low, high) in found.items():
            held = max(self.held[slot] if low else 0, high + 1 - self.room)
            if max(0, low - self.reach + 1) < held:
                raise LlamacyError(
                    f"slot {slot}, positions {low} to {high}: layers with a window of {self.reach} hold the positions "
                    f"from {held} on only; begin at position 0, with at most {self.max_batch} tokens at once")
        for slot, (low, high) in found.items():
            self.held[slot] = max(self.held[slot] if low else 0, high + 1 - self.room)
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
            r.split, r.chunks = s.split, (r.position + r.n - 1) // CHUNK + 1 if s.split else 1
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
