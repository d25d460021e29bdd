"""One step of LoRA training: forward with activations kept, loss, then the same layers in reverse, from quantised weights.

Axes: T tokens of all sequences of the call, packed without padding; E = n_embd, F = n_ff; attention stays inside each
sequence. No matrix is ever expanded: y = W x and dx = W^T dy come from the packed tiles (matmul.pyx), and only the
LoRA pairs have weight gradients (lowrank.pxd). One parallel region; rows (tokens) or tiles (columns) of each phase are
dealt to threads so that no sum is ever split: results do not depend on their number.
"""

from cython.parallel cimport parallel
from libc.stdint cimport int16_t, uint8_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from .attention cimport CHUNK, KV_F32, Head, attend, attend_backward, attend_backward_bytes, attend_bytes, store_kv, tile_part_bytes
from .loss cimport cross_entropy
from .lowrank cimport *
from .acts cimport *
from .gemm cimport matmul_backward_tiles, matmul_tiles
from .mlp cimport swiglu, swiglu_backward
from .norm cimport rms_norm, rms_norm_backward
from .rope cimport rope, rope_angles, rope_backward
from .simd cimport *
from .team cimport *
from .trainbuffers cimport Buffers, Gradient, Kept
from .weights cimport *

import numpy as np

cdef enum:
    HEAD_ROWS = 128         # tokens whose logits exist at a time
    UNIT_ROWS = 64          # query rows of one attention unit, about


cdef class TrainStep:
    """LoRA pairs on a model's matrices, their gradients, and the pass that computes them."""

    cdef Weights weights
    cdef Pair* pairs
    cdef readonly object params, grads      # f32 (n,): every A (r, K) and B^T (r, N), padded to 16 columns
    cdef readonly list layout               # (layer, slot, rank, n_in, n_out, offset of A, offset of B^T)
    cdef float[::1] turned
    cdef int n_threads, precision, first_layer, max_tokens, ldu
    cdef Kept* kept
    cdef Buffers b
    cdef uint8_t[::1] memory, activations_memory, work
    cdef size_t work_bytes
    cdef Team team
    # the call
    cdef int T, n_segments, n_targets
    cdef const int* tokens
    cdef const int* starts
    cdef const int* targets
    cdef int* scored                        # indices of tokens with a target
    cdef int* position
    cdef double* losses
    cdef float weight

    def __cinit__(self, Weights weights, dict ranks, int max_tokens, int n_threads=1, activations="int16"):
        """ranks: {(layer, slot): (rank, scale)}; max_tokens: the longest call; activations: "int16" or "f32"."""
        cdef Config* c = &weights.config
        self.weights, self.n_threads, self.max_tokens = weights, n_threads, max_tokens
        self.precision = {"int16": INT16, "f32": EXACT}[activations]
        self.first_layer = min((layer for layer, _ in ranks), default=c.n_layer)
        self.pairs = <Pair*>calloc(c.n_layer * N_SLOTS, sizeof(Pair))
        self.kept = <Kept*>calloc(c.n_layer + 1, sizeof(Kept))
        self.scored = <int*>calloc(max_tokens, sizeof(int))
        self.position = <int*>calloc(max_tokens, sizeof(int))
        self.losses = <double*>calloc(max_tokens, sizeof(double))
        if self.pairs == NULL or self.kept == NULL or self.scored == NULL or self.position == NULL or self.losses == NULL:
            raise MemoryError()
        self.make_pairs(ranks)
        self.memory = np.empty(self.place(NULL, max_tokens) + 64, np.uint8)
        self.activations_memory = np.empty(self.place_kept(NULL, max_tokens) + 64, np.uint8)
        self.work_bytes = padded(max(attend_bytes(UNIT_ROWS + c.n_head // c.n_head_kv, c.head_dim),
                                     attend_backward_bytes(max_tokens, c.head_dim)), 4096)
        self.work = np.empty(self.work_bytes * n_threads, np.uint8)

    def __dealloc__(self):
        for p in (<size_t>self.pairs, <size_t>self.kept, <size_t>self.scored, <size_t>self.position, <size_t>self.losses):
            free(<void*><size_t>p)

    # ---- memory ----

    cdef make_pairs(self, dict ranks):
        cdef Config* c = &self.weights.config
        cdef Linear* l
        cdef Pair* p
        cdef float[::1] params, grads
        cdef int layer, slot
        cdef size_t size = 0, turned = 0
        self.layout = []
        self.ldu = 0
        for (layer, slot), (rank, scale) in sorted(ranks.items()):
            if not (0 <= layer < c.n_layer and 0 <= slot < N_SLOTS and rank >= 1):
                raise ValueError(f"layer {layer}, matrix {slot}, rank {rank}: not of this model")
            l, p = &self.weights.layers[layer].linear[slot], self.pair(layer, slot)
            p.rank, p.width, p.scale, p.n_in, p.n_out = rank, padded(rank, 16), scale, l.w.n_cols, l.w.n_rows
            p.in_p, p.out_p = padded(p.n_in, 16), padded(p.n_out, 16)
            self.layout.append((layer, slot, rank, p.n_in, p.n_out, size, size + p.rank * p.in_p))
            size += p.rank * (p.in_p + p.out_p)
            turned += p.width * (p.in_p + p.out_p)
        self.params, self.grads = np.zeros(size, np.float32), np.zeros(size, np.float32)
        self.turned = np.zeros(turned, np.float32)
        params, grads, turned = self.params, self.grads, 0
        for layer, slot, _, _, _, a, b in self.layout:
            p = self.pair(layer, slot)
            p.a, p.bt, p.ga, p.gbt = &params[a], &params[b], &grads[a], &grads[b]
            p.at = &self.turned[turned]
            p.bn = p.at + p.width * p.in_p
            turned += p.width * (p.in_p + p.out_p)
        for layer in range(c.n_layer):
            self.ldu = max(self.ldu, self.u_at(layer, N_SLOTS))

    cdef Pair* pair(self, int layer, int slot) noexcept nogil:
        return self.pairs + layer * N_SLOTS + slot

    cdef int u_at(self, int layer, int slot) noexcept nogil:
        """The column of Kept.u where a matrix's part begins."""
        cdef int i, at = 0
        for i in range(slot):
            at += self.pair(layer, i).width
        return at

    cdef size_t place(self, uint8_t* base, size_t T):
        """Lay out the shared buffers for T tokens from base on; returns the bytes they take."""
        cdef Config* c = &self.weights.config
        cdef Buffers* b = &self.b
        cdef size_t at = 0, widest = max(c.q_p, c.embd_p, c.ff_p)
        cdef float** where[18]
        cdef size_t sizes[18]
        cdef int i
        where[0], sizes[0] = &b.normed, T * c.embd_p
        where[1], sizes[1] = &b.h, T * c.ff_p
        where[2], sizes[2] = &b.part, T * c.embd_p
        where[3], sizes[3] = &b.dx, T * c.embd_p
        where[4], sizes[4] = &b.dn, T * c.embd_p
        where[5], sizes[5] = &b.dh, T * padded(c.ff_p, 32)
        where[6], sizes[6] = &b.datt, T * padded(c.q_p, 32)
        where[7], sizes[7] = &b.dq, T * c.q_p
        where[8], sizes[8] = &b.dk, T * c.q_p
        where[9], sizes[9] = &b.dv, T * c.q_p
        where[10], sizes[10] = &b.du, T * self.ldu
        where[11], sizes[11] = &b.ut, padded(T, 16) * self.ldu
        where[12], sizes[12] = &b.dut, padded(T, 16) * self.ldu
        where[13], sizes[13] = &b.cosine, T * c.n_rot // 2
        where[14], sizes[14] = &b.sine, T * c.n_rot // 2
        where[15], sizes[15] = &b.logits, HEAD_ROWS * <size_t>c.vocab_p
        where[16], sizes[16] = &b.rows, HEAD_ROWS * <size_t>c.embd_p
        where[17], sizes[17] = &b.drows, HEAD_ROWS * <size_t>c.embd_p
        for i in range(18):
            where[i][0] = <float*>(base + at)
            at += padded(4 * sizes[i], 64)
        b.rounded = base + at
        at += acts_bytes(T, widest, INT16)
        # the largest gradients alive at once: gate and up, or q, k and v, or a tile of logits
        b.rounded_dy = <int16_t*>(base + at)
        sizes[0] = max(T * (2 * padded(c.ff_p, 128)), T * (padded(c.q_p, 128) + 2 * padded(c.kv_p, 128)),
                       T * padded(c.embd_p, 128), HEAD_ROWS * padded(c.vocab_p, 128))
        at += padded(2 * sizes[0], 64)
        b.dy_scale = <float*>(base + at)
        at += padded(4 * (sizes[0] // 128), 64)
        b.cache = base + at
        # every sequence is padded to 16 positions; at worst each token is a sequence
        return at + 8 * 17 * T * c.n_head_kv * padded(c.head_dim, 16)

    cdef size_t place_kept(self, uint8_t* base, size_t T):
        """Lay out what layers keep; those below the first adapted one keep nothing and share one layer's room."""
        cdef Config* c = &self.weights.config
        cdef size_t residual = padded(4 * T * c.embd_p, 64), at = 0, top = 0
        cdef int layer
        for layer in range(c.n_layer + 1):
            if layer <= self.first_layer:
                # x of one frozen layer is read while the next one's is written: two places in turn
                at = 2 * residual
                self.kept[layer].x = <float*>(base + layer % 2 * residual)
            else:
                self.kept[layer].x = <float*>(base + at)
                at += residual
            if layer < c.n_layer:
                at = self.place_layer(self.kept + layer, base, at, T)
            top = max(top, at)
        return top

    cdef size_t place_layer(self, Kept* k, uint8_t* base, size_t at, size_t T):
        cdef Config* c = &self.weights.config
        cdef float** where[8]
        cdef size_t sizes[8]
        cdef int i
        where[0], sizes[0] = &k.q, T * c.q_p
        where[1], sizes[1] = &k.k, T * c.kv_p
        where[2], sizes[2] = &k.v, T * c.kv_p
        where[3], sizes[3] = &k.att, T * c.q_p
        where[4], sizes[4] = &k.mid, T * c.embd_p
        where[5], sizes[5] = &k.gate, T * c.ff_p
        where[6], sizes[6] = &k.up, T * c.ff_p
        where[7], sizes[7] = &k.u, T * self.ldu
        for i in range(8):
            where[i][0] = <float*>(base + at)
            at += padded(4 * sizes[i], 64)
        return at

    @property
    def n_bytes(self):
        """Bytes of the buffers and kept activations, used only as far as calls are long."""
        return self.memory.shape[0] + self.activations_memory.shape[0] + self.work.shape[0]

    # ---- the call ----

    def run(self, const int[::1] tokens, const int[::1] starts, const int[::1] targets, double weight, bint backward=True):
        """Loss of packed sequences, and with `backward` the gradients of weight * loss added to self.grads.

        tokens (T,); starts (n + 1,): sequence i is tokens[starts[i]:starts[i + 1]], positions count from 0 in each;
        targets (T,): the id to predict at each token, or -1. Returns the sum of the targets' negative log-likelihoods.
        """
        cdef int t, i
        cdef double total = 0
        self.check(tokens, starts, targets)
        self.T, self.n_segments, self.weight = <int>tokens.shape[0], <int>starts.shape[0] - 1, <float>weight
        self.tokens, self.starts, self.targets = &tokens[0], &starts[0], &targets[0]
        # laid out anew for each length: what a call does not need is never touched, and takes no memory
        self.place(&self.memory[0], self.T)
        self.place_kept(&self.activations_memory[0], self.T)
        self.n_targets = 0
        for i in range(self.n_segments):
            for t in range(starts[i], starts[i + 1]):
                self.position[t] = t - starts[i]
                if targets[t] >= 0:
                    self.scored[self.n_targets] = t
                    self.n_targets += 1
        with nogil, parallel(num_threads=self.n_threads):
            self.work_through(backward, enter(&self.team), omp_get_num_threads())
        for t in range(self.n_targets):
            total += self.losses[t]
        return total

    cdef check(self, tokens, starts, targets):
        T, n_vocab = len(tokens), self.weights.config.n_vocab
        if not 1 <= T <= self.max_tokens or len(targets) != T:
            raise ValueError(f"{T} tokens and {len(targets)} targets, wanted as many of both, 1 to {self.max_tokens}")
        if starts[0] != 0 or starts[len(starts) - 1] != T or np.any(np.diff(starts) < 1):
            raise ValueError("starts do not cut the tokens into sequences")
        if not (0 <= np.min(tokens) and np.max(tokens) < n_vocab and -1 <= np.min(targets) and np.max(targets) < n_vocab):
            raise ValueError(f"a token or target is outside 0..{n_vocab - 1}")

    cdef void work_through(self, bint backward, int i, int n) noexcept nogil:
        cdef Config* c = &self.weights.config
        cdef int t, layer, slot
        cdef Pair* p
        for layer in range(self.first_layer, c.n_layer):
            for slot in range(N_SLOTS):
                p = self.pair(layer, slot)
                if p.rank:
                    pair_transpose(p, share(max(p.n_in, p.n_out), i, n), share(max(p.n_in, p.n_out), i + 1, n))
        for t in range(share(self.T, i, n), share(self.T, i + 1, n)):
            self.weights.embed(self.tokens[t], self.kept[0].x + t * c.embd_p)
            rope_angles(self.position[t], &self.weights.frequencies[0], c.n_rot, self.b.cosine + t * c.n_rot // 2,
                        self.b.sine + t * c.n_rot // 2)
        meet(&self.team)
        for layer in range(c.n_layer):
            self.attention(layer, i, n)
            self.mlp(layer, i, n)
        self.head(backward, i, n)
        if not backward:
            return
        for layer in range(c.n_layer - 1, self.first_layer - 1, -1):
            self.mlp_backward(layer, i, n)
            self.attention_backward(layer, i, n)

    # ---- forward ----

    cdef void place_input(self, Acts* a, const float* x, size_t ld, int n_cols, int rows) noexcept nogil:
        a.f32, a.ld = x, ld
        acts_place(a, rows, n_cols, self.precision & ~EXACT, self.b.rounded)

    cdef void enter(self, int layer, int slot, int n_linear, Acts* a, int lo, int hi) noexcept nogil:
        """Tokens lo..hi of an input: its rounded form and the low-rank inputs of the matrices it feeds."""
        cdef Pair* p
        cdef int j
        if a.q16 != NULL:
            acts_quantize(a, lo, hi, 0, a.n_blocks)
        for j in range(slot, slot + n_linear):
            p = self.pair(layer, j)
            if p.rank:
                pair_input(p, a.f32 + lo * a.ld, a.ld, hi - lo, self.kept[layer].u + <size_t>lo * self.ldu + self.u_at(layer, j), self.ldu)

    cdef void linear(self, int layer, int slot, const Acts* a, float* y, size_t ldy, int lo, int hi) noexcept nogil:
        """Row tiles lo..hi of y = W x + bias + B u"""
        cdef Pair* p = self.pair(layer, slot)
        linear_tiles(&self.weights.layers[layer].linear[slot], 0, a, self.precision, NULL, 0, y, ldy, lo, hi)
        if p.rank:
            pair_output(p, self.kept[layer].u + self.u_at(layer, slot), self.ldu, self.T, y, ldy, lo, hi)

    cdef void add_linear(self, int layer, int slot, const Acts* a, const float* x, float* y, int i, int n) noexcept nogil:
        """y = x + the product, columns dealt to threads"""
        cdef int n_tiles = self.weights.layers[layer].linear[slot].w.n_tiles, lo = share(n_tiles, i, n), hi = share(n_tiles, i + 1, n)
        cdef size_t ld = self.weights.config.embd_p, at
        cdef int t, tile
        self.linear(layer, slot, a, self.b.part, ld, lo, hi)
        for t in range(self.T):
            for tile in range(lo, hi):
                at = t * ld + 16 * tile
                vf_store(y + at, vf_add(vf_load(x + at), vf_load(self.b.part + at)))
        meet(&self.team)

    cdef Head cached(self, int segment, int kv_head) noexcept nogil:
        """Where a sequence's keys and values of the current layer lie; sequences begin at multiples of 16 positions."""
        cdef Config* c = &self.weights.config
        cdef Head h
        cdef size_t width = padded(c.head_dim, 16), length = padded(self.starts[segment + 1] - self.starts[segment], 16)
        # each sequence before this one took at most 15 positions more than its length
        cdef size_t before = self.starts[segment] + 16 * <size_t>segment
        h.tiles = self.b.cache + 8 * width * (c.n_head_kv * before + kv_head * length)
        h.stride = CHUNK // 16 * 2 * tile_part_bytes(c.head_dim, KV_F32)
        h.k_type, h.v_type = KV_F32, KV_F32
        return h

    cdef void attention(self, int layer, int i, int n) noexcept nogil:
        cdef Config* c = &self.weights.config
        cdef Layer* l = &self.weights.layers[layer]
        cdef Kept* k = self.kept + layer
        cdef Buffers* b = &self.b
        cdef Acts a
        cdef int t, j, h, s, unit, first, count, lo = share(self.T, i, n), hi = share(self.T, i + 1, n), group = c.n_head // c.n_head_kv
        cdef int per = max(1, UNIT_ROWS // group)
        cdef Head head
        self.place_input(&a, b.normed, c.embd_p, c.n_embd, self.T)
        for t in range(lo, hi):
            rms_norm(k.x + t * c.embd_p, l.attn_norm, c.n_embd, c.rms_eps, b.normed + t * c.embd_p)
        self.enter(layer, Q, 3, &a, lo, hi)
        meet(&self.team)
        self.linear(layer, Q, &a, k.q, c.q_p, share(l.linear[Q].w.n_tiles, i, n), share(l.linear[Q].w.n_tiles, i + 1, n))
        self.linear(layer, K, &a, k.k, c.kv_p, share(l.linear[K].w.n_tiles, i, n), share(l.linear[K].w.n_tiles, i + 1, n))
        self.linear(layer, V, &a, k.v, c.kv_p, share(l.linear[V].w.n_tiles, i, n), share(l.linear[V].w.n_tiles, i + 1, n))
        meet(&self.team)
        for t in range(lo, hi):
            rope(k.q + t * c.q_p, c.n_head, c.head_dim, c.n_rot, b.cosine + t * c.n_rot // 2, b.sine + t * c.n_rot // 2, c.rope_layout)
            rope(k.k + t * c.kv_p, c.n_head_kv, c.head_dim, c.n_rot, b.cosine + t * c.n_rot // 2, b.sine + t * c.n_rot // 2, c.rope_layout)
        for s in range(self.n_segments):
            for h in range(c.n_head_kv):
                head = self.cached(s, h)
                for t in range(max(lo, self.starts[s]), min(hi, self.starts[s + 1])):
                    store_kv(&head, self.position[t], c.head_dim, k.k + t * c.kv_p + h * c.head_dim, k.v + t * c.kv_p + h * c.head_dim)
        meet(&self.team)
        unit, j = claim(&self.team), 0
        for s in range(self.n_segments):
            first = self.starts[s]
            while first < self.starts[s + 1]:
                for h in range(c.n_head_kv):
                    if j == unit:
                        head = self.cached(s, h)
                        count = min(per, self.starts[s + 1] - first)
                        attend(k.q + first * c.q_p + h * group * c.head_dim, c.q_p, count, group, c.head_dim, self.attention_scale(),
                               self.position[first], &head, k.att + first * c.q_p + h * group * c.head_dim, c.q_p,
                               <float*>(&self.work[0] + i * self.work_bytes))
                        unit = claim(&self.team)
                    j += 1
                first += per
        meet(&self.team)
        self.place_input(&a, k.att, c.q_p, c.n_head * c.head_dim, self.T)
        self.enter(layer, O, 1, &a, lo, hi)
        meet(&self.team)
        self.add_linear(layer, O, &a, k.x, k.mid, i, n)

    cdef float attention_scale(self) noexcept nogil:
        return <float>(1 / (<double>self.weights.config.head_dim) ** 0.5)

    cdef void mlp(self, int layer, int i, int n) noexcept nogil:
        cdef Config* c = &self.weights.config
        cdef Layer* l = &self.weights.layers[layer]
        cdef Kept* k = self.kept + layer
        cdef Buffers* b = &self.b
        cdef Acts a
        cdef int t, lo = share(self.T, i, n), hi = share(self.T, i + 1, n), tile_lo = share(l.linear[UP].w.n_tiles, i, n)
        cdef int tile_hi = share(l.linear[UP].w.n_tiles, i + 1, n)
        self.place_input(&a, b.normed, c.embd_p, c.n_embd, self.T)
        for t in range(lo, hi):
            rms_norm(k.mid + t * c.embd_p, l.ffn_norm, c.n_embd, c.rms_eps, b.normed + t * c.embd_p)
        self.enter(layer, GATE, 2, &a, lo, hi)
        meet(&self.team)
        self.linear(layer, GATE, &a, k.gate, c.ff_p, tile_lo, tile_hi)
        self.linear(layer, UP, &a, k.up, c.ff_p, tile_lo, tile_hi)
        meet(&self.team)
        self.place_input(&a, b.h, c.ff_p, c.n_ff, self.T)
        for t in range(lo, hi):
            swiglu(k.gate + t * c.ff_p, k.up + t * c.ff_p, c.ff_p, b.h + t * c.ff_p)
        self.enter(layer, DOWN, 1, &a, lo, hi)
        meet(&self.team)
        self.add_linear(layer, DOWN, &a, k.mid, self.kept[layer + 1].x, i, n)

    # ---- head and loss, HEAD_ROWS tokens at a time; logits become their gradient and are thrown away ----

    cdef void head(self, bint backward, int i, int n) noexcept nogil:
        cdef Config* c = &self.weights.config
        cdef const Linear* l = &self.weights.output
        cdef Buffers* b = &self.b
        cdef const float* x = self.kept[c.n_layer].x
        cdef Acts a
        cdef Gradient g
        cdef int first, m, t, rows
        for t in range(share(self.T, i, n), share(self.T, i + 1, n)):
            memset(b.dx + t * c.embd_p, 0, 4 * <size_t>c.embd_p)
        for first in range(0, self.n_targets, 128):
            rows = min(HEAD_ROWS, self.n_targets - first)
            meet(&self.team)
            self.place_input(&a, b.rows, c.embd_p, c.n_embd, rows)
            for m in range(share(rows, i, n), share(rows, i + 1, n)):
                rms_norm(x + self.scored[first + m] * <size_t>c.embd_p, self.weights.output_norm, c.n_embd, c.rms_eps, b.rows + m * c.embd_p)
                memset(b.drows + m * c.embd_p, 0, 4 * <size_t>c.embd_p)
                if a.q16 != NULL:
                    acts_quantize(&a, m, m + 1, 0, a.n_blocks)
            meet(&self.team)
            matmul_tiles(&l.w, &a, self.precision, b.logits, c.vocab_p, share(l.w.n_tiles, i, n), share(l.w.n_tiles, i + 1, n))
            meet(&self.team)
            g = self.gradient(0, c.n_vocab, rows)
            for m in range(share(rows, i, n), share(rows, i + 1, n)):
                self.losses[first + m] = cross_entropy(b.logits + m * <size_t>c.vocab_p, c.n_vocab, self.targets[self.scored[first + m]], self.weight)
                if backward and g.q != NULL:
                    quantize_gradient(b.logits, c.vocab_p, c.n_vocab, m, m + 1, g.q, g.scale)
            if not backward:
                continue
            meet(&self.team)
            matmul_backward_tiles(&l.w, b.logits, c.vocab_p, g.q, g.scale, rows, b.drows, c.embd_p,
                                  share(l.w.n_blocks, i, n), share(l.w.n_blocks, i + 1, n))
            meet(&self.team)
            for m in range(share(rows, i, n), share(rows, i + 1, n)):
                t = self.scored[first + m]
                rms_norm_backward(x + t * <size_t>c.embd_p, self.weights.output_norm, b.drows + m * c.embd_p, c.n_embd, c.rms_eps,
                                  b.dx + t * <size_t>c.embd_p)
        meet(&self.team)

    # ---- backward ----

    cdef Gradient gradient(self, size_t at, int n_rows, int tokens) noexcept nogil:
        """Where a rounded dy (tokens, n_rows) goes; `at`: values (multiple of 128) taken by others before."""
        cdef Gradient g
        g.q = self.b.rounded_dy + at if self.precision != EXACT else NULL
        g.scale = self.b.dy_scale + at // 128
        return g

    cdef void leave(self, int layer, int slot, const float* dy, size_t ldy, Gradient g, int lo, int hi) noexcept nogil:
        """Tokens lo..hi of a matrix's dy: rounded, and the gradient of its low-rank input, with both transposes."""
        cdef Pair* p = self.pair(layer, slot)
        cdef Buffers* b = &self.b
        cdef size_t ldt = padded(self.T, 16), at = self.u_at(layer, slot)
        if g.q != NULL:
            quantize_gradient(dy, ldy, self.weights.layers[layer].linear[slot].w.n_rows, lo, hi, g.q, g.scale)
        if p.rank:
            pair_input_backward(p, dy + lo * ldy, ldy, hi - lo, b.du + lo * <size_t>self.ldu + at, self.ldu)
            turn_rows(b.du + at, self.ldu, lo, hi, p.rank, b.dut + at * ldt, ldt)
            turn_rows(self.kept[layer].u + at, self.ldu, lo, hi, p.rank, b.ut + at * ldt, ldt)

    cdef void linear_backward(self, int layer, int slot, const float* x, size_t ldx, const float* dy, size_t ldy, Gradient g, float* dx, size_t lddx, int i, int n) noexcept nogil:
        """dB, dA and (dx not NULL) dx += W^T dy + A^T du; columns of each dealt to threads."""
        cdef Pair* p = self.pair(layer, slot)
        cdef Packed* w = &self.weights.layers[layer].linear[slot].w
        cdef Buffers* b = &self.b
        cdef size_t ldt = padded(self.T, 16), at = self.u_at(layer, slot)
        cdef int lo = share(w.n_blocks, i, n), hi = share(w.n_blocks, i + 1, n), in_tiles = p.in_p // 16, out_tiles = p.out_p // 16
        if p.rank:
            pair_gradient(b.ut + at * ldt, ldt, p.rank, dy, ldy, self.T, p.gbt, p.out_p, share(out_tiles, i, n), share(out_tiles, i + 1, n))
            pair_gradient(b.dut + at * ldt, ldt, p.rank, x, ldx, self.T, p.ga, p.in_p, share(in_tiles, i, n), share(in_tiles, i + 1, n))
        if dx != NULL:
            matmul_backward_tiles(w, dy, ldy, g.q, g.scale, self.T, dx, lddx, lo, hi)
            if p.rank:
                pair_backward(p, b.du + at, self.ldu, self.T, dx, lddx, min(2 * lo, in_tiles), min(2 * hi, in_tiles))

    cdef void clear(self, float* x, size_t ld, int lo, int hi) noexcept nogil:
        memset(x + lo * ld, 0, 4 * ld * (hi - lo))

    cdef void mlp_backward(self, int layer, int i, int n) noexcept nogil:
        cdef Config* c = &self.weights.config
        cdef Layer* l = &self.weights.layers[layer]
        cdef Kept* k = self.kept + layer
        cdef Buffers* b = &self.b
        cdef int t, lo = share(self.T, i, n), hi = share(self.T, i + 1, n)
        cdef Gradient g = self.gradient(0, c.n_embd, self.T), gate, up
        self.clear(b.dh, c.ff_p, lo, hi)
        for t in range(lo, hi):
            swiglu(k.gate + t * c.ff_p, k.up + t * c.ff_p, c.ff_p, b.h + t * c.ff_p)
        self.leave(layer, DOWN, b.dx, c.embd_p, g, lo, hi)
        meet(&self.team)
        self.linear_backward(layer, DOWN, b.h, c.ff_p, b.dx, c.embd_p, g, b.dh, c.ff_p, i, n)
        meet(&self.team)
        gate, up = self.gradient(0, c.n_ff, self.T), self.gradient(self.T * padded(c.n_ff, 128), c.n_ff, self.T)
        self.clear(b.dn, c.embd_p, lo, hi)
        for t in range(lo, hi):
            swiglu_backward(b.dh + t * c.ff_p, c.ff_p, k.gate + t * c.ff_p, k.up + t * c.ff_p)
            rms_norm(k.mid + t * c.embd_p, l.ffn_norm, c.n_embd, c.rms_eps, b.normed + t * c.embd_p)
        self.leave(layer, GATE, k.gate, c.ff_p, gate, lo, hi)
        self.leave(layer, UP, k.up, c.ff_p, up, lo, hi)
        meet(&self.team)
        self.linear_backward(layer, GATE, b.normed, c.embd_p, k.gate, c.ff_p, gate, b.dn, c.embd_p, i, n)
        self.linear_backward(layer, UP, b.normed, c.embd_p, k.up, c.ff_p, up, b.dn, c.embd_p, i, n)
        meet(&self.team)
        for t in range(lo, hi):
            rms_norm_backward(k.mid + t * c.embd_p, l.ffn_norm, b.dn + t * c.embd_p, c.n_embd, c.rms_eps, b.dx + t * c.embd_p)

    cdef void attention_backward(self, int layer, int i, int n) noexcept nogil:
        cdef Config* c = &self.weights.config
        cdef Layer* l = &self.weights.layers[layer]
        cdef Kept* k = self.kept + layer
        cdef Buffers* b = &self.b
        cdef int t, s, h, unit, j, lo = share(self.T, i, n), hi = share(self.T, i + 1, n), group = c.n_head // c.n_head_kv
        cdef size_t at
        cdef Gradient g = self.gradient(0, c.n_embd, self.T), gk, gv
        cdef float* dn = b.dn if layer > self.first_layer else NULL
        self.clear(b.datt, c.q_p, lo, hi)
        self.leave(layer, O, b.dx, c.embd_p, g, lo, hi)
        meet(&self.team)
        self.linear_backward(layer, O, k.att, c.q_p, b.dx, c.embd_p, g, b.datt, c.q_p, i, n)
        meet(&self.team)
        unit, j = claim(&self.team), 0
        for s in range(self.n_segments):
            for h in range(c.n_head):
                if j == unit:
                    at = self.starts[s] * <size_t>c.q_p + h * c.head_dim
                    attend_backward(k.q + at, c.q_p, k.k + self.starts[s] * <size_t>c.kv_p + h // group * c.head_dim,
                                    k.v + self.starts[s] * <size_t>c.kv_p + h // group * c.head_dim, c.kv_p, b.datt + at, c.q_p,
                                    self.starts[s + 1] - self.starts[s], c.head_dim, self.attention_scale(), b.dq + at, c.q_p,
                                    b.dk + at, b.dv + at, c.q_p, <float*>(&self.work[0] + i * self.work_bytes))
                    unit = claim(&self.team)
                j += 1
        meet(&self.team)
        g = self.gradient(0, c.n_head * c.head_dim, self.T)
        gk = self.gradient(self.T * padded(c.n_head * c.head_dim, 128), c.n_head_kv * c.head_dim, self.T)
        gv = self.gradient(self.T * (padded(c.n_head * c.head_dim, 128) + padded(c.n_head_kv * c.head_dim, 128)), c.n_head_kv * c.head_dim, self.T)
        self.clear(b.dn, c.embd_p, lo, hi)
        for t in range(lo, hi):
            self.sum_groups(b.dk + t * c.q_p, group)
            self.sum_groups(b.dv + t * c.q_p, group)
            rope_backward(b.dq + t * c.q_p, c.n_head, c.head_dim, c.n_rot, b.cosine + t * c.n_rot // 2, b.sine + t * c.n_rot // 2, c.rope_layout)
            rope_backward(b.dk + t * c.q_p, c.n_head_kv, c.head_dim, c.n_rot, b.cosine + t * c.n_rot // 2, b.sine + t * c.n_rot // 2, c.rope_layout)
            rms_norm(k.x + t * c.embd_p, l.attn_norm, c.n_embd, c.rms_eps, b.normed + t * c.embd_p)
        self.leave(layer, Q, b.dq, c.q_p, g, lo, hi)
        self.leave(layer, K, b.dk, c.q_p, gk, lo, hi)
        self.leave(layer, V, b.dv, c.q_p, gv, lo, hi)
        meet(&self.team)
        self.linear_backward(layer, Q, b.normed, c.embd_p, b.dq, c.q_p, g, dn, c.embd_p, i, n)
        self.linear_backward(layer, K, b.normed, c.embd_p, b.dk, c.q_p, gk, dn, c.embd_p, i, n)
        self.linear_backward(layer, V, b.normed, c.embd_p, b.dv, c.q_p, gv, dn, c.embd_p, i, n)
        meet(&self.team)
        for t in range(lo, hi):
            rms_norm_backward(k.x + t * c.embd_p, l.attn_norm, b.dn + t * c.embd_p, c.n_embd, c.rms_eps, b.dx + t * c.embd_p)

    cdef void sum_groups(self, float* row, int group) noexcept nogil:
        """A row's query-head gradients (n_head, head_dim) added up per KV head, to the row's first columns"""
        cdef Config* c = &self.weights.config
        cdef int h, g, j
        cdef float total
        for h in range(c.n_head_kv):
            for j in range(c.head_dim):
                total = 0
                for g in range(group):
                    total += row[(h * group + g) * c.head_dim + j]
                row[h * c.head_dim + j] = total
