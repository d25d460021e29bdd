"""One step of inference through all layers: ids in, logits out, inside one parallel region, without the GIL.

Axes: T tokens of this call (any mix of slots), E = n_embd, positions of a slot's KV cache. Threads share every phase and
meet at a spinning barrier; who computes what never changes a result.
"""

from cython.parallel cimport parallel
from libc.stdint cimport uint8_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from ..layers.attention cimport (
    CHUNK, UNIT_ROWS, KvHead, attend, attend_bytes, attend_part, join_parts, part_floats, store_kv, tile_part_bytes,
)
from ..layers.block cimport (
    ATTN_OUTPUT, ATTN_Q, FFN_DOWN, FFN_GATE, Block, Config, activate, add_residual, prepare_heads, prepare_input,
)
from ..layers.linear cimport Linear, linear_precisions, linear_tiles, low_rank_input, low_rank_width
from ..layers.rope cimport rope_angles
from ..layers.vmath cimport all_finite
from ..products.gemm8 cimport unpacking_bytes
from ..products.inputs cimport (
    EXACT, INT16, INT8, STREAM_TOKENS, Acts, acts_bytes, acts_for_width, acts_place, acts_quantize, padded,
)
from ..products.panels cimport PART_TOKENS
from .pace cimport Pace, note_step
from .parts cimport parts_of, some_rows
from .stepbuffers cimport SPLIT_TOKENS, Run, Step, place_step
from .team cimport (
    Team, Walk, barrier, ceil_div, join_team, next_dynamic, next_guided, next_static, omp_get_num_threads, omp_get_wtime, share,
)
from .weights cimport Weights

from ..layers.attention import KV_TYPES

import numpy as np

from llamacy.errors import NotFinite

cdef enum:
    PACED = 16              # tokens of a step up to which a thread is left out where that is quicker
    PIECE = 16              # row tiles of a product that a thread takes at a time when there are more tokens than SPLIT_TOKENS
    ALONE = 64              # blocks of one row that each thread rounds for itself sooner than all do it and meet

PRECISIONS = {"f32": EXACT, "int8": INT8, "int16": INT16}


cdef int check_range(name, const int[::1] values, int end) except -1:
    cdef Py_ssize_t i
    for i in range(values.shape[0]):
        if not 0 <= values[i] < end:
            raise ValueError(f"a {name} is outside 0..{end - 1}")
    return 0


cdef class Session:
    """A KV cache of n_slots sequences and the buffers of a step over the given weights."""

    cdef Weights weights
    cdef int n_slots, n_ctx, max_batch, n_threads, precision, k_type, v_type, n_chunks
    cdef uint8_t[::1] cache
    cdef float[::1] parts
    cdef size_t chunk_bytes, work_bytes, own_bytes, unpacking_bytes
    cdef uint8_t[::1] scratch, work, own, unpacking
    cdef int[::1] seen                  # per slot: the last call of find_runs that met it
    cdef int n_calls
    cdef Pace pace
    cdef float[:, ::1] u
    cdef Run* runs
    cdef Step step_
    cdef bint busy
    cdef Team team

    def __cinit__(self, Weights weights, int n_slots, int n_ctx, int max_batch=512, int n_threads=1, activations="int8",
                  k_type=None, v_type=None):
        """k_type, v_type: how keys and values are kept, one of KV_TYPES; None: s16, f32 where activations are f32."""
        cdef Config* c = &weights.config
        self.weights, self.n_slots, self.n_threads = weights, n_slots, n_threads
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
        self.runs = <Run*>calloc(max_batch, sizeof(Run))
        if self.runs == NULL:
            raise MemoryError()

    def __dealloc__(self):
        free(self.runs)

    cdef int unit_tokens(self) noexcept nogil:
        """Tokens of one attention unit: about UNIT_ROWS query rows, in fours as the products take them."""
        cdef int n = UNIT_ROWS // (self.weights.config.n_head // self.weights.config.n_head_kv)
        return <int>padded(n, 4) if n > 1 else 1

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

    cdef KvHead kv_head_of(self, int layer, int slot, int kv_head) noexcept nogil:
        cdef KvHead h
        cdef size_t n_kv = self.weights.config.n_head_kv, chunk = n_kv * self.weights.config.n_layer * self.chunk_bytes
        h.tiles = &self.cache[0] + slot * self.n_chunks * chunk + (layer * n_kv + kv_head) * self.chunk_bytes
        h.stride = chunk
        h.k_type, h.v_type = self.k_type, self.v_type
        return h

    # ---- what each thread does ----

    cdef void run(self, int i, int n) noexcept nogil:
        cdef Step* s = &self.step_
        cdef Config* c = &self.weights.config
        cdef int t, layer
        for t in range(share(s.T, i, n), share(s.T, i + 1, n)):
            self.weights.embed(s.tokens[t], s.lora_scales + t * self.weights.n_lora if s.lora_scales != NULL else NULL, s.x + t * c.embd_p)
            rope_angles(s.positions[t], self.weights.rope.frequencies, c.n_rot, s.cosine + t * c.n_rot // 2, s.sine + t * c.n_rot // 2)
        barrier(&self.team)
        for layer in range(c.n_layer):
            self.layer(layer, i, n)
        if s.M:
            self.logits(i, n)

    cdef void layer(self, int layer, int i, int n) noexcept nogil:
        """x through one layer, in order. Behind each line: what is whole, for all threads, at each of its barriers.

        With one token normed and rounded are each thread's own, and need no barrier.
        """
        cdef Step* s = &self.step_
        cdef Config* c = &self.weights.config
        cdef Block* b = &self.weights.blocks[layer]
        cdef bint fewer = s.fewer and layer == c.n_layer - 1
        self.project_heads(b, fewer, i, n)                                      # normed, rounded; u; q, k, v
        self.attend_units(b, layer, fewer, i, n)                                # (cache, parts;) att
        if fewer and s.M == 0:
            return
        if fewer:
            self.leave_wanted(i, n)                                             # q, normed: the wanted rows; x, T
        self.add_linear(&b.linear[ATTN_OUTPUT], s.q if fewer else s.att, c.q_p, i, n)   # rounded; u; x
        self.gate_rows(b, i, n)                                                 # normed, rounded; u; gate
        self.add_linear(&b.linear[FFN_DOWN], s.gate, c.ff_p, i, n)              # rounded; u; x

    cdef float* own_normed(self, int i) noexcept nogil:
        return <float*>(&self.own[0] + i * self.own_bytes)

    cdef uint8_t* own_rounded(self, int i) noexcept nogil:
        return &self.own[0] + i * self.own_bytes + 4 * self.weights.config.embd_p

    cdef void inputs(self, Acts* a, const Linear* first, int n_linear, const float* x, size_t ld, int rows, uint8_t* memory, int i) noexcept nogil:
        a.f32, a.ld = x, ld
        acts_place(a, rows, first.w.n_cols, linear_precisions(first, n_linear, self.precision) & ~EXACT, memory)
        acts_for_width(a, self.weights.config.n_embd)
        a.unpacking = &self.unpacking[0] + i * self.unpacking_bytes

    cdef void input_rows(self, Acts* a, const Linear* first, int n_linear, const float* w, int i, int n) noexcept nogil:
        """a = the norm of x and its rounded forms; a single row is quicker made by each thread than waited for"""
        cdef Step* s = &self.step_
        cdef Config* c = &self.weights.config
        cdef bint alone = s.T == 1, apart = alone or not (self.weights.n_lora or linear_precisions(first, n_linear, self.precision) & EXACT)
        cdef float* row = self.own_normed(i)
        cdef Acts own
        cdef int t
        self.inputs(a, first, n_linear, row if alone else s.normed, c.embd_p, s.T, self.own_rounded(i) if alone else s.rounded, i)
        # nobody reads f32 rows again where all products round theirs: then one is enough, and stays in the cache
        own = a[0]
        if apart:
            own.f32, own.ld = row, 0
        for t in range(0 if alone else share(s.T, i, n), 1 if alone else share(s.T, i + 1, n)):
            if not apart:
                row = s.normed + t * c.embd_p
            prepare_input(c, w, s.x + t * c.embd_p, row)
            acts_quantize(&own, t, t + 1, 0, own.n_blocks)
        if not alone:
            barrier(&self.team)

    cdef void round_rows(self, Acts* a, const Linear* l, const float* x, size_t ld, int i, int n) noexcept nogil:
        """a = x and its rounded forms, dealt by blocks: one long token occupies all threads"""
        cdef int rows = self.step_.T, superblocks
        cdef bint alone = rows == 1 and l.w.n_blocks <= ALONE
        self.inputs(a, l, 1, x, ld, rows, self.own_rounded(i) if alone else self.step_.rounded, i)
        if a.q8 == NULL and a.q16 == NULL:
            return
        if alone:
            acts_quantize(a, 0, 1, 0, a.n_blocks)
            return
        if rows > SPLIT_TOKENS:
            acts_quantize(a, share(rows, i, n), share(rows, i + 1, n), 0, a.n_blocks)
        else:
            superblocks = ceil_div(a.n_blocks, a.superblock)
            acts_quantize(a, 0, rows, a.superblock * share(superblocks, i, n), min(a.superblock * share(superblocks, i + 1, n), a.n_blocks))
        barrier(&self.team)

    cdef void low_rank(self, const Linear* first, int n_linear, const Acts* a, int i, int n) noexcept nogil:
        """What the adapters of n_linear matrices need of their common input"""
        cdef Step* s = &self.step_
        if self.weights.n_lora:
            low_rank_input(first, n_linear, self.weights.n_lora, a, s.lora_scales, s.u, s.ldu, i, n)
            barrier(&self.team)

    cdef bint next_tiles(self, int n_tiles, int i, int n, int* n_taken, int* lo, int* hi) noexcept nogil:
        """Thread i's next row tiles of a product: long streams for few tokens, pieces that stay in L2 for many"""
        if self.step_.T > SPLIT_TOKENS:
            return next_guided(&self.team, n_tiles, PIECE, n, lo, hi)
        return next_static(&self.team, n_tiles, i, n, n_taken, lo, hi)

    cdef float* epilogue(self, int i, int lo, size_t* ld) noexcept nogil:
        """Thread i's rows for a product of row tiles lo and on that another step of the same piece takes up: what is small
        enough stays in L2"""
        cdef Step* s = &self.step_
        if s.T <= SPLIT_TOKENS:
            ld[0] = max(self.weights.config.embd_p, self.weights.config.ff_p)
            return s.epilogue
        ld[0] = 16 * PIECE
        return <float*>(&self.work[0] + i * self.work_bytes) - 16 * lo

    cdef void linears(self, const Linear* first, int n_linear, const Acts* a, int t, float** y, const size_t* ldy, const int* lo, const int* hi) noexcept nogil:
        """n_linear products of one input, the rows from token t on, each for its tiles lo..hi, adapters included"""
        cdef const float* u = self.step_.u + t * self.step_.ldu
        cdef int j, n_lora = self.weights.n_lora
        for j in range(n_linear):
            if lo[j] < hi[j]:
                linear_tiles(first + j, n_lora, a, self.precision, u, self.step_.ldu, y[j], ldy[j], lo[j], hi[j])
            u += low_rank_width(first + j, n_lora)

    cdef void add_linear(self, const Linear* l, const float* input_, size_t ldi, int i, int n) noexcept nogil:
        """x += the product with rows of input_"""
        cdef Step* s = &self.step_
        cdef size_t ld = self.weights.config.embd_p, ldp
        cdef int lo, hi, t, first, n_taken = 0, k, parts = parts_of(s.T)
        cdef float* y
        cdef float* x
        cdef Acts a, part
        self.round_rows(&a, l, input_, ldi, i, n)
        self.low_rank(l, 1, &a, i, n)
        while self.next_tiles(l.w.n_tiles, i, n, &n_taken, &lo, &hi):
            y = self.epilogue(i, lo, &ldp)
            for k in range(parts):
                first = share(s.T, k, parts)
                part = some_rows(&a, first, share(s.T, k + 1, parts))
                self.linears(l, 1, &part, first, &y, &ldp, &lo, &hi)
                x = s.x + first * ld + 16 * lo
                for t in range(part.n_rows):
                    add_residual(x + t * ld, y + t * ldp + 16 * lo, 16 * (hi - lo), x + t * ld)
        barrier(&self.team)

    cdef void project_heads(self, const Block* b, bint fewer, int i, int n) noexcept nogil:
        """q, k and v of x; fewer: only the queries that are needed"""
        cdef Step* s = &self.step_
        cdef Config* c = &self.weights.config
        cdef const Linear* l = b.linear + ATTN_Q
        cdef Acts a
        cdef float* y[3]
        cdef size_t ldy[3]
        cdef int lo[3]
        cdef int hi[3]
        cdef int j, first, last, before, n_taken = 0, all_tiles = 0
        self.input_rows(&a, l, 3, b.attn_norm, i, n)
        y[0], y[1], y[2] = s.q, s.k, s.v
        ldy[0], ldy[1], ldy[2] = s.ldq, c.kv_p, c.kv_p
        for j in range(3):
            all_tiles += l[j].w.n_tiles
        self.low_rank(l, 3, &a, i, n)
        while self.next_tiles(all_tiles, i, n, &n_taken, &first, &last):
            before = 0
            for j in range(3):
                lo[j], hi[j] = max(first - before, 0), min(last - before, l[j].w.n_tiles)
                before += l[j].w.n_tiles
            if fewer:
                self.late_queries(l, &a, lo[0], hi[0])
                hi[0] = lo[0]
            self.linears(l, 3, &a, 0, y, ldy, lo, hi)
        barrier(&self.team)

    cdef void late_queries(self, const Linear* q, const Acts* a, int lo, int hi) noexcept nogil:
        """The last layer's queries, from the first wanted one on"""
        cdef Step* s = &self.step_
        cdef Acts part = some_rows(a, s.first_query, s.T)
        cdef float* y = s.q + s.first_query * s.ldq
        if s.M:
            self.linears(q, 1, &part, s.first_query, &y, &s.ldq, &lo, &hi)

    cdef void leave_wanted(self, int i, int n) noexcept nogil:
        """Go on with the tokens alone whose logits are wanted: their rows of x, and of att in q"""
        cdef Step* s = &self.step_
        cdef Config* c = &self.weights.config
        cdef int m
        for m in range(share(s.M, i, n), share(s.M, i + 1, n)):
            memcpy(s.normed + m * c.embd_p, s.x + s.logits_at[m] * c.embd_p, 4 * <size_t>c.embd_p)
            memcpy(s.q + m * c.q_p, s.att + s.logits_at[m] * c.q_p, 4 * <size_t>c.q_p)
        barrier(&self.team)
        if i == 0:
            s.x, s.normed = s.normed, s.x
            s.T, s.lora_scales = s.M, s.wanted_scales
        barrier(&self.team)

    cdef void store_token(self, const Block* b, int layer, int t, int h) noexcept nogil:
        """Token t's key, prepared, and value of one KV head enter the cache."""
        cdef Step* s = &self.step_
        cdef Config* c = &self.weights.config
        cdef size_t angles = t * c.n_rot // 2, at = t * c.kv_p + h * c.head_dim
        cdef KvHead head = self.kv_head_of(layer, s.slots[t], h)
        prepare_heads(c, b, s.k + at, 1, s.cosine + angles, s.sine + angles)
        store_kv(&head, s.positions[t], c.head_dim, s.k + at, s.v + at)

    cdef void queries_of(self, const Block* b, const Run* r, int h, float* q) noexcept nogil:
        """q (r.n, group, head_dim) = the run's queries of one KV head, prepared"""
        cdef Step* s = &self.step_
        cdef Config* c = &self.weights.config
        cdef int t, group = c.n_head // c.n_head_kv
        cdef size_t angles, each = group * c.head_dim
        for t in range(r.first, r.first + r.n):
            angles = t * c.n_rot // 2
            memcpy(q, s.q + t * s.ldq + h * each, 4 * each)
            prepare_heads(c, b, q, group, s.cosine + angles, s.sine + angles)
            q += each

    cdef void attend_units(self, const Block* b, int layer, bint fewer, int i, int n) noexcept nogil:
        """k and v to the cache, att from q and the cache, one unit after another as threads are free; fewer: of the wanted runs"""
        cdef Step* s = &self.step_
        cdef Config* c = &self.weights.config
        cdef int k, unit, end, j, t, h
        cdef size_t each = self.n_chunks * part_floats(c.head_dim)
        cdef Walk walk = Walk(0, 0)
        if not s.apart:
            for j in range(share(s.T * c.n_head_kv, i, n), share(s.T * c.n_head_kv, i + 1, n)):
                self.store_token(b, layer, j // c.n_head_kv, j % c.n_head_kv)
            barrier(&self.team)
        for k in range(s.n_runs):
            while next_dynamic(&self.team, &walk, s.runs[k].chunks * c.n_head_kv, 1, &unit, &end):
                self.attend_unit(b, layer, s.runs + k, not fewer or s.runs[k].wanted, unit, <float*>(&self.work[0] + i * self.work_bytes))
        barrier(&self.team)
        if not s.split:
            return
        for j in range(share(s.T * c.n_head, i, n), share(s.T * c.n_head, i + 1, n)):
            t, h = j // c.n_head, j % c.n_head
            join_parts(s.parts + j * each, s.positions[t] // CHUNK + 1, c.head_dim, s.att + t * c.q_p + h * c.head_dim)
        barrier(&self.team)

    cdef void attend_unit(self, const Block* b, int layer, const Run* r, bint wanted, int unit, float* q) noexcept nogil:
        """Keys and, where wanted, queries of one KV head of a run, or of a chunk of its past; q: this thread's scratch"""
        cdef Step* s = &self.step_
        cdef Config* c = &self.weights.config
        cdef int group = c.n_head // c.n_head_kv, h = unit // r.chunks, chunk = unit % r.chunks, t
        cdef float* work = q + self.unit_tokens() * group * c.head_dim
        cdef size_t each = self.n_chunks * part_floats(c.head_dim)
        cdef KvHead head = self.kv_head_of(layer, r.slot, h)
        for t in range(r.first, r.first + r.n if s.apart else 0):
            if not s.split or s.positions[t] // CHUNK == chunk:
                self.store_token(b, layer, t, h)
        if not wanted:
            return
        self.queries_of(b, r, h, q)
        if s.split:
            attend_part(q, group * c.head_dim, r.n, group, c.head_dim, b.score_scale, r.position, chunk, &head,
                        s.parts + (r.first * <size_t>c.n_head + h * group) * each, c.n_head * each, each, work)
        else:
            attend(q, group * c.head_dim, r.n, group, c.head_dim, b.score_scale, r.position, &head,
                   s.att + r.first * <size_t>c.q_p + h * group * c.head_dim, c.q_p, work)

    cdef void gate_rows(self, const Block* b, int i, int n) noexcept nogil:
        """gate = what the last matrix of the MLP sees of x"""
        cdef Step* s = &self.step_
        cdef Config* c = &self.weights.config
        cdef const Linear* l = b.linear + FFN_GATE
        cdef Acts a, part
        cdef float* y[2]
        cdef size_t ldy[2]
        cdef int lo[2]
        cdef int hi[2]
        cdef int t, first, n_taken = 0, k, parts = parts_of(s.T)
        cdef float* gate
        self.input_rows(&a, l, 2, b.ffn_norm, i, n)
        self.low_rank(l, 2, &a, i, n)
        ldy[0] = c.ff_p
        # The same tiles of gate and up go to the same thread, which then multiplies them.
        while self.next_tiles(l.w.n_tiles, i, n, &n_taken, lo, hi):
            lo[1], hi[1] = lo[0], hi[0]
            y[1] = self.epilogue(i, lo[1], &ldy[1])
            for k in range(parts):
                first = share(s.T, k, parts)
                part = some_rows(&a, first, share(s.T, k + 1, parts))
                y[0] = s.gate + first * c.ff_p
                self.linears(l, 2, &part, first, y, ldy, lo, hi)
                gate = y[0] + 16 * lo[0]
                for t in range(part.n_rows):
                    activate(gate + t * ldy[0], y[1] + t * ldy[1] + 16 * lo[0], 16 * (hi[0] - lo[0]), gate + t * ldy[0])
        barrier(&self.team)

    cdef void logits(self, int i, int n) noexcept nogil:
        """Logits of the asked-for tokens only; normed is free to hold their rows."""
        cdef Step* s = &self.step_
        cdef Config* c = &self.weights.config
        cdef const Linear* l = &self.weights.output
        cdef Acts a
        cdef size_t ld = c.vocab_p
        cdef bint alone = s.M == 1 and not s.hidden
        cdef int m, lo, hi, n_taken = 0
        cdef float* normed = s.logits if s.hidden else self.own_normed(i) if alone else s.normed
        self.inputs(&a, l, 1, normed, c.embd_p, s.M, self.own_rounded(i) if alone else s.rounded, i)
        for m in range(0 if alone else share(s.M, i, n), 1 if alone else share(s.M, i + 1, n)):
            prepare_input(c, self.weights.output_norm, s.x + (m if s.fewer else s.logits_at[m]) * c.embd_p, normed + m * c.embd_p)
            if s.hidden:
                self.look(normed + m * c.embd_p, c.embd_p)
            else:
                acts_quantize(&a, m, m + 1, 0, a.n_blocks)
        if s.hidden:
            return
        if not alone:
            barrier(&self.team)
        self.low_rank(l, 1, &a, i, n)
        while self.next_tiles(l.w.n_tiles, i, n, &n_taken, &lo, &hi):
            self.linears(l, 1, &a, 0, &s.logits, &ld, &lo, &hi)
            for m in range(s.M):
                self.look(s.logits + m * ld + 16 * lo, 16 * (hi - lo))

    cdef void look(self, const float* results, int n) noexcept nogil:
        """Remember it where one of results[n] is not finite"""
        if not all_finite(results, n):
            self.step_.astray = True


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
