"""What each thread does in one step of inference, from embedding to logits, without the GIL.

Axes: T tokens of this call (any mix of slots), E = n_embd. Threads share every phase and meet at a spinning barrier; who
computes what never changes a result.
"""

from libc.stdint cimport uint8_t
from libc.string cimport memcpy

from ..layers.attention cimport UNIT_ROWS, attend, attend_part, join_parts, part_floats
from ..layers.block cimport (
    ATTN_OUTPUT, ATTN_Q, FFN_DOWN, Block, Config, add_branch, angles_at, finish_logits, prepare_heads, temper_queries,
)
from ..layers.kvcache cimport CHUNK, KvHead, store_kv
from ..layers.linear cimport Linear, linear_precisions, linear_tiles, low_rank_input, low_rank_width
from ..layers.norm cimport Norm, norm_row
from ..layers.scores cimport Scoring, first_seen
from ..layers.vmath cimport all_finite
from ..products.inputs cimport EXACT, Acts, acts_for_width, acts_place, acts_quantize, padded
from .cachelayout cimport in_ring, kv_head_at
from .parts cimport parts_of, some_rows
from .stepbuffers cimport PIECE, SPLIT_TOKENS, Run, Step
from .team cimport Walk, barrier, ceil_div, next_dynamic, next_guided, next_static, share

cdef enum:
    ALONE = 64              # blocks of one row that each thread rounds for itself sooner than all do it and meet


cdef inline int first_chunk(const Scoring* how, const Run* r) noexcept nogil:
    """The first of a run's units for each KV head: the first chunk that it sees, where units are chunks"""
    return first_seen(how, r.position) // CHUNK if r.split else 0


cdef class DecoderLayers:
    """The memory of a step over given weights, and its threads' share of it; asked for by Session, see decoder.pyx."""

    cdef int unit_tokens(self) noexcept nogil:
        """Tokens of one attention unit: about UNIT_ROWS query rows, in fours as the products take them."""
        cdef int n = UNIT_ROWS // (self.weights.config.n_head // self.weights.config.n_head_kv)
        return <int>padded(n, 4) if n > 1 else 1

    cdef KvHead kv_head_of(self, int layer, int slot, int kv_head) noexcept nogil:
        cdef bint ringed = in_ring(&self.layout, self.weights.blocks[layer].scores.window)
        return kv_head_at(&self.layout, &self.cache[0], slot, kv_head, ringed, self.place[layer])

    cdef void run(self, int i, int n) noexcept nogil:
        cdef Step* s = &self.step_
        cdef Config* c = &self.weights.config
        cdef int t, layer
        for t in range(share(s.T, i, n), share(s.T, i + 1, n)):
            self.weights.embed(s.tokens[t], s.lora_scales + t * self.weights.n_lora if s.lora_scales != NULL else NULL, s.x + t * c.embd_p)
            self.ropes.angles(s.positions[t], s.cosine + angles_at(c, NULL, t), s.sine + angles_at(c, NULL, t))
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
        if b.parallel:
            self.gate_rows(b, i, n)                                             # normed, rounded; u; gate
        self.add_linear(&b.linear[ATTN_OUTPUT], &b.post_attention_norm, s.q if fewer else s.att, c.q_p, i, n)  # rounded; u; (normed;) x
        if b.parallel:
            self.add_linear(&b.linear[FFN_DOWN], &b.post_ffw_norm, s.gate, c.ff_p, i, n)    # rounded; u; (normed;) x
        else:
            self.mlp(b, i, n)

    cdef void mlp(self, const Block* b, int i, int n) noexcept nogil:
        """x through the second half of a layer whose halves follow each other"""
        self.gate_rows(b, i, n)                                                 # normed, rounded; u; gate
        self.add_linear(&b.linear[FFN_DOWN], &b.post_ffw_norm, self.step_.gate, self.weights.config.ff_p, i, n)  # rounded; u; (normed;) x

    cdef float* own_normed(self, int i) noexcept nogil:
        return <float*>(&self.own[0] + i * self.own_bytes)

    cdef uint8_t* own_rounded(self, int i) noexcept nogil:
        return &self.own[0] + i * self.own_bytes + 4 * self.weights.config.embd_p

    cdef void inputs(self, Acts* a, const Linear* first, int n_linear, const float* x, size_t ld, int rows, uint8_t* memory, int i) noexcept nogil:
        a.f32, a.ld = x, ld
        acts_place(a, rows, first.w.n_cols, linear_precisions(first, n_linear, self.precision) & ~EXACT, memory)
        acts_for_width(a, self.weights.config.n_embd)
        a.unpacking = &self.unpacking[0] + i * self.unpacking_bytes

    cdef void input_rows(self, Acts* a, const Linear* first, int n_linear, const Norm* norm, int i, int n) noexcept nogil:
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
            norm_row(norm, s.x + t * c.embd_p, row)
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

    cdef void add_linear(self, const Linear* l, const Norm* after, const float* input_, size_t ldi, int i, int n) noexcept nogil:
        """x += the product with rows of input_, normed where there is a norm after it"""
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
                if after.weight != NULL:
                    y, ldp = s.normed + first * ld, ld
                self.linears(l, 1, &part, first, &y, &ldp, &lo, &hi)
                x = s.x + first * ld + 16 * lo
                for t in range(part.n_rows if after.weight == NULL else 0):
                    add_branch(&self.weights.config, x + t * ld, y + t * ldp + 16 * lo, 16 * (hi - lo), x + t * ld)
        barrier(&self.team)
        if after.weight != NULL:
            self.add_normed(after, i, n)

    cdef void add_normed(self, const Norm* after, int i, int n) noexcept nogil:
        """x += the norm of what is in normed"""
        cdef Step* s = &self.step_
        cdef size_t ld = self.weights.config.embd_p
        cdef int t
        for t in range(share(s.T, i, n), share(s.T, i + 1, n)):
            norm_row(after, s.normed + t * ld, s.normed + t * ld)
            add_branch(&self.weights.config, s.x + t * ld, s.normed + t * ld, <int>ld, s.x + t * ld)
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
        fewer = fewer and b.taps == NULL
        self.input_rows(&a, l, 3, &b.attn_norm, i, n)
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
        if b.q_norm.whole:
            self.norm_whole_rows(b, s.first_query if fewer else 0, i, n)

    cdef void norm_whole_rows(self, const Block* b, int first_query, int i, int n) noexcept nogil:
        """Each row of k, and of q from the first that is there, becomes its norm"""
        cdef Step* s = &self.step_
        cdef int t
        for t in range(share(s.T, i, n), share(s.T, i + 1, n)):
            norm_row(&b.k_norm.norm, s.k + t * self.weights.config.kv_p, s.k + t * self.weights.config.kv_p)
            if t >= first_query and s.M:
                norm_row(&b.q_norm.norm, s.q + t * s.ldq, s.q + t * s.ldq)
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
        cdef size_t angles = angles_at(c, b, t), at = t * c.kv_p + h * c.head_dim
        cdef KvHead head = self.kv_head_of(layer, s.slots[t], h)
        prepare_heads(c, b, &b.k_norm, s.k + at, h, 1, s.cosine + angles, s.sine + angles)
        store_kv(&head, s.positions[t], c.head_dim, s.k + at, s.v + at)

    cdef void queries_of(self, const Block* b, const Run* r, int h, float* q) noexcept nogil:
        """q (r.n, group, head_dim) = the run's queries of one KV head, prepared"""
        cdef Step* s = &self.step_
        cdef Config* c = &self.weights.config
        cdef int t, group = c.n_head // c.n_head_kv
        cdef size_t angles, each = group * c.head_dim
        for t in range(r.first, r.first + r.n):
            angles = angles_at(c, b, t)
            memcpy(q, s.q + t * s.ldq + h * each, 4 * each)
            prepare_heads(c, b, &b.q_norm, q, h * group, group, s.cosine + angles, s.sine + angles)
            temper_queries(c, q, group, s.positions[t])
            q += each

    cdef void attend_units(self, const Block* b, int layer, bint fewer, int i, int n) noexcept nogil:
        """k and v to the cache, att from q and the cache, one unit after another as threads are free; fewer: of the wanted runs"""
        cdef Step* s = &self.step_
        cdef Config* c = &self.weights.config
        cdef int k, unit, end, j, t, h
        cdef size_t each = self.layout.n_chunks * part_floats(c.head_dim)
        cdef Walk walk = Walk(0, 0)
        if not s.apart:
            for j in range(share(s.T * c.n_head_kv, i, n), share(s.T * c.n_head_kv, i + 1, n)):
                self.store_token(b, layer, j // c.n_head_kv, j % c.n_head_kv)
            barrier(&self.team)
        for k in range(s.n_runs):
            while next_dynamic(&self.team, &walk, (s.runs[k].chunks - first_chunk(&b.scores, s.runs + k)) * c.n_head_kv, 1, &unit, &end):
                self.attend_unit(b, layer, s.runs + k, not fewer or s.runs[k].wanted, unit, <float*>(&self.work[0] + i * self.work_bytes))
        barrier(&self.team)
        if not s.split:
            return
        for j in range(share(s.T * c.n_head, i, n), share(s.T * c.n_head, i + 1, n)):
            t, h = j // c.n_head, j % c.n_head
            join_parts(s.parts + j * each, c.head_dim, &b.scores, h, s.positions[t], s.att + t * c.q_p + h * c.head_dim)
        barrier(&self.team)

    cdef void attend_unit(self, const Block* b, int layer, const Run* r, bint wanted, int unit, float* q) noexcept nogil:
        """Keys and, where wanted, queries of one KV head of a run, or of a chunk of its past; q: this thread's scratch"""
        cdef Step* s = &self.step_
        cdef Config* c = &self.weights.config
        cdef int group = c.n_head // c.n_head_kv, first = first_chunk(&b.scores, r), h = unit // (r.chunks - first), chunk = first + unit % (r.chunks - first), t
        cdef float* work = q + self.unit_tokens() * group * c.head_dim
        cdef size_t each = self.layout.n_chunks * part_floats(c.head_dim)
        cdef KvHead head = self.kv_head_of(layer, r.slot, h)
        for t in range(r.first, r.first + r.n if s.apart else 0):
            if not s.split or s.positions[t] // CHUNK == chunk:
                self.store_token(b, layer, t, h)
        if not wanted:
            return
        self.queries_of(b, r, h, q)
        if s.split:
            attend_part(q, group * c.head_dim, r.n, group, c.head_dim, &b.scores, r.position, chunk, &head,
                        s.parts + (r.first * <size_t>c.n_head + h * group) * each, c.n_head * each, each, work)
        else:
            attend(q, group * c.head_dim, r.n, group, c.head_dim, &b.scores, h * group, r.position, &head,
                   s.att + r.first * <size_t>c.q_p + h * group * c.head_dim, c.q_p, work)

    cdef void gate_rows(self, const Block* b, int i, int n) noexcept nogil:
        """gate = what the last matrix of the MLP sees of x"""
        cdef Step* s = &self.step_
        cdef Config* c = &self.weights.config
        cdef const Linear* l = b.linear + b.first_of_mlp
        cdef Acts a, part
        cdef float* y[2]
        cdef size_t ldy[2]
        cdef int lo[2]
        cdef int hi[2]
        cdef int t, first, n_taken = 0, k, parts = parts_of(s.T)
        cdef float* gate
        self.input_rows(&a, l, b.n_of_mlp, &b.ffn_norm, i, n)
        self.low_rank(l, b.n_of_mlp, &a, i, n)
        ldy[0] = c.ff_p
        # The same tiles of gate and up go to the same thread, which then multiplies them.
        while self.next_tiles(l.w.n_tiles, i, n, &n_taken, lo, hi):
            lo[1], hi[1] = lo[0], hi[0]
            y[1] = self.epilogue(i, lo[1], &ldy[1])
            for k in range(parts):
                first = share(s.T, k, parts)
                part = some_rows(&a, first, share(s.T, k + 1, parts))
                y[0] = s.gate + first * c.ff_p
                self.linears(l, b.n_of_mlp, &part, first, y, ldy, lo, hi)
                gate = y[0] + 16 * lo[0]
                for t in range(part.n_rows):
                    b.activation.apply(gate + t * ldy[0], y[1] + t * ldy[1] + 16 * lo[0], 16 * (hi[0] - lo[0]), gate + t * ldy[0])
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
            norm_row(&self.weights.output_norm, s.x + (m if s.fewer else s.logits_at[m]) * c.embd_p, normed + m * c.embd_p)
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
                finish_logits(c, s.logits + m * ld + 16 * lo, 16 * (hi - lo))
                self.look(s.logits + m * ld + 16 * lo, 16 * (hi - lo))

    cdef void look(self, const float* results, int n) noexcept nogil:
        """Remember it where one of results[n] is not finite"""
        if not all_finite(results, n):
            self.step_.astray = True
