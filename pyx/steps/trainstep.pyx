"""One step of LoRA training: forward with activations kept, loss, then the same layers in reverse, from quantised weights.

Axes: T tokens of all sequences of the call, packed without padding; attention stays inside each sequence. Here: what a
call is asked, the pairs and the memory it takes. What the threads do in it, one parallel region: trainlayers.pyx.
"""

from cython.parallel cimport parallel
from libc.stdint cimport uint8_t
from libc.stdlib cimport calloc, free

from ..layers.block cimport ATTN_KV_A, ATTN_KV_B, ATTN_Q, ATTN_Q_A, N_SLOTS, Config
from ..layers.experts cimport OF_EXPERT
from ..layers.linear cimport Linear
from ..layers.lowrank cimport LoraPair, pair_size
from ..products.inputs cimport EXACT, INT16
from .team cimport join_team, omp_get_num_threads
from .trainbuffers cimport Buffers, Extent, Kept, cache_bytes, extent_of, place_buffers, place_kept, work_bytes
from .trainexperts cimport ExpertBuffers, TrainExperts, place_expert_buffers
from .weights cimport Weights, set_sizes

import numpy as np


def memory_needed(sizes, dict ranks, int T, int n_segments, int n_threads=1, activations="int16", bint checkpointing=False, bint magnitudes=False):
    """Bytes that calls of up to T tokens in n_segments sequences touch, {what for: bytes}, besides the pairs' own arrays.

    sizes: as Weights' config, with n_layer; the rest as TrainStep's.
    """
    cdef Config c
    cdef Buffers b
    cdef ExpertBuffers x
    cdef Extent e
    cdef Kept* kept
    set_sizes(&c, sizes)
    e = extent_of(&c, ranks, T, n_segments, activations, checkpointing, magnitudes)
    kept = <Kept*>calloc(c.n_layer + 1, sizeof(Kept))
    if kept == NULL:
        raise MemoryError()
    found = {"activations": place_kept(kept, &c, &e, NULL), "buffers": place_buffers(&b, &c, &e, NULL) + place_expert_buffers(&x, &c, &e, NULL) + cache_bytes(&c, &e),
             "work": n_threads * work_bytes(&c, T)}
    free(kept)
    return found


cdef class TrainStep(TrainExperts):
    """LoRA pairs on a model's matrices, their gradients, and the pass that computes them."""

    cdef readonly object params, grads      # f32 (n,): every A (r, K) and B^T (r, N), padded to 16 columns
    # (layer, slot, rank, n_in, n_out, offset of A, offset of B^T); n_out: each part of a fused matrix but the last padded to 16
    cdef readonly list layout
    cdef readonly list magnitudes           # of each of these the offset of its magnitudes, a number for each column of B^T; empty without
    cdef float[::1] transposed, measured
    cdef int n_threads, max_tokens
    cdef uint8_t[::1] memory, activations_memory, cache
    cdef bint busy

    def __cinit__(self, Weights weights, dict ranks, int max_tokens, int n_threads=1, activations="int16", bint checkpointing=False,
                  double dropout=0, ropes=None, bint magnitudes=False):
        """ranks: {(layer, slot): (rank, scale)}; max_tokens: the longest call; activations: "int16" or "f32"; dropout: the
        share of each pair's inputs that `run` with a key leaves out; ropes: as RopeTables takes them, None for those of the weights;
        magnitudes: each pair has a trained length for each row, see layers/magnitude.pxd; not those of experts."""
        cdef Config* c = &weights.config
        self.weights, self.n_threads, self.max_tokens, self.ropes = weights, n_threads, max_tokens, weights.tables(ropes)
        self.precision = {"int16": INT16, "f32": EXACT}[activations]
        self.dropout.threshold = <int>round(65536 * dropout)
        self.dropout.gain = <float>(65536.0 / (65536 - self.dropout.threshold))
        self.n_slots = N_SLOTS + OF_EXPERT * c.n_expert
        self.pairs = <LoraPair*>calloc(c.n_layer * self.n_slots, sizeof(LoraPair))
        self.kept = <Kept*>calloc(c.n_layer + 1, sizeof(Kept))
        self.scored = <int*>calloc(max_tokens, sizeof(int))
        self.rank_of = <int*>calloc(max_tokens, sizeof(int))
        self.position = <int*>calloc(max_tokens, sizeof(int))
        self.losses = <double*>calloc(max_tokens, sizeof(double))
        if not (self.pairs and self.kept and self.scored and self.rank_of and self.position and self.losses):
            raise MemoryError()
        self.magnified = magnitudes
        self.make_pairs(ranks)
        self.extent = extent_of(c, ranks, max_tokens, 1, activations, checkpointing, magnitudes)
        self.memory = np.empty(place_buffers(&self.b, c, &self.extent, NULL) + 64, np.uint8)
        self.expert_memory = np.empty(place_expert_buffers(&self.xb, c, &self.extent, NULL) + 64, np.uint8)
        self.activations_memory = np.empty(place_kept(self.kept, c, &self.extent, NULL) + 64, np.uint8)
        self.work_bytes = work_bytes(c, max_tokens)
        self.work = np.empty(self.work_bytes * n_threads, np.uint8)
        self.cache = np.empty(cache_bytes(c, &self.extent), np.uint8)

    def __dealloc__(self):
        free(self.pairs)
        free(self.kept)
        free(self.scored)
        free(self.rank_of)
        free(self.position)
        free(self.losses)

    # ---- memory ----

    cdef make_pairs(self, dict ranks):
        cdef Config* c = &self.weights.config
        cdef Linear* l
        cdef LoraPair* p = NULL
        cdef float[::1] params, grads
        cdef int layer, slot
        cdef size_t n_params = 0, transposed = 0
        cdef int part, columns, n_out
        self.layout, self.magnitudes = [], []
        for (layer, slot), (rank, scale) in sorted(ranks.items()):
            if not (0 <= layer < c.n_layer and 0 <= slot < self.weights.n_slots(layer) and rank >= 1 and self.parts_of(layer, slot)):
                raise ValueError(f"layer {layer}, matrix {slot}, rank {rank}: not of this model")
            if self.magnified and (slot >= N_SLOTS or c.kv_rank and slot in (ATTN_Q, ATTN_Q_A, ATTN_KV_A, ATTN_KV_B)):
                raise ValueError(f"layer {layer}, matrix {slot}: experts and latent attention have no magnitudes")
            columns = n_out = 0
            for part in range(self.parts_of(layer, slot)):
                l, p = self.weights.linear_at(layer, slot + part), self.pair(layer, slot + part)
                if l.w.tiles == NULL:
                    raise ValueError(f"layer {layer} has no matrix {slot + part}")
                pair_size(p, rank, scale, l.w.n_cols, l.w.n_rows)
                p.part, p.last = part, part == self.parts_of(layer, slot) - 1
                n_out = columns + p.n_out
                columns += p.out_p
            for part in range(self.parts_of(layer, slot)):
                self.pair(layer, slot + part).ldb = columns
            self.layout.append((layer, slot, rank, p.n_in, n_out, n_params, n_params + p.rank * p.in_p))
            n_params += p.rank * (p.in_p + columns)
            transposed += p.width * (p.in_p + columns)
        n_lengths = self.place_magnitudes(n_params) if self.magnified else 0
        n_params += n_lengths
        self.params, self.grads = np.zeros(n_params, np.float32), np.zeros(n_params, np.float32)
        self.transposed = np.zeros(transposed, np.float32)
        params, grads, transposed = self.params, self.grads, 0
        for layer, slot, _, _, _, a, b in self.layout:
            columns = 0
            for part in range(self.parts_of(layer, slot)):
                p = self.pair(layer, slot + part)
                p.a, p.bt, p.ga, p.gbt = &params[a], &params[b + columns], &grads[a], &grads[b + columns]
                p.at, p.bn = &self.transposed[transposed], &self.transposed[transposed + p.width * (p.in_p + columns)]
                columns += p.out_p
            transposed += p.width * (p.in_p + columns)
        if self.magnitudes:
            self.set_magnitudes(params, grads)

    cdef size_t place_magnitudes(self, size_t at):
        """Give each pair its magnitudes behind the others' parameters, which end at `at`; returns how many there are"""
        cdef size_t first = at
        for layer, slot, *_ in self.layout:
            self.magnitudes.append(at)
            at += self.pair(layer, slot).ldb
        return at - first

    cdef set_magnitudes(self, float[::1] params, float[::1] grads):
        """Where each pair's magnitudes, their gradients, lengths and gains are"""
        cdef LoraPair* p
        cdef int part
        cdef size_t at, n = params.shape[0], before = self.magnitudes[0]
        self.measured = np.zeros(2 * (n - before), np.float32)
        for (layer, slot, *_), start in zip(self.layout, self.magnitudes):
            at = start
            for part in range(self.parts_of(layer, slot)):
                p = self.pair(layer, slot + part)
                p.m, p.gm = &params[at], &grads[at]
                p.length, p.gain = &self.measured[2 * (at - before)], &self.measured[2 * (at - before) + p.out_p]
                at += p.out_p

    def row_lengths(self):
        """f32 (n,): |rows of W + scale B A| of all pairs, as their magnitudes lie in params from the first one on."""
        cdef LoraPair* p
        cdef int part
        found = []
        self.weights.begin_step(self.n_threads, &self.busy)
        try:
            with nogil, parallel(num_threads=self.n_threads):
                self.measure(join_team(&self.team), omp_get_num_threads())
            for layer, slot, *_ in self.layout:
                for part in range(self.parts_of(layer, slot)):
                    p = self.pair(layer, slot + part)
                    found.append(np.array(<float[:p.out_p]>p.length))
        finally:
            self.weights.end_step(&self.busy)
        return np.concatenate(found)

    cdef int parts_of(self, int layer, int slot) noexcept nogil:
        """How many matrices from a slot on share a pair's A"""
        return self.weights.blocks[layer].n_parts[slot] if slot < N_SLOTS else 1

    # ---- the call ----

    def run(self, const int[::1] tokens, const int[::1] starts, const int[::1] targets, double weight, bint backward=True,
            float[:, ::1] entry=None, bint entered=False, dropout_key=None, const float[::1] token_weights=None,
            const float[:, ::1] noise=None):
        """Loss of packed sequences, and with `backward` the gradients of weight * loss added to self.grads.

        tokens (T,); starts (n + 1,): sequence i is tokens[starts[i]:starts[i + 1]], positions count from 0 in each;
        targets (T,): the id to predict at each token, or -1. entry (T, n_embd padded to 16): what enters the first layer
        with a pair, written here, or with `entered` read, and the layers below left out. dropout_key: 64 random bits. token_weights (T,): factors, of any sign, of each target's gradient.
        noise (T, n_embd padded to 16): added to what enters the first layer of all.
        Returns the sum of the targets' negative log-likelihoods. LlamacyError while another thread's call runs, or after fork().
        """
        self.weights.begin_step(self.n_threads, &self.busy)
        try:
            return self.compute(tokens, starts, targets, weight, backward, entry, entered, dropout_key, token_weights, noise)
        finally:
            self.weights.end_step(&self.busy)

    cdef double compute(self, const int[::1] tokens, const int[::1] starts, const int[::1] targets, double weight, bint backward,
                        float[:, ::1] entry, bint entered, dropout_key, const float[::1] token_weights, const float[:, ::1] noise) except? -1:
        """What run does, in one thread at a time"""
        cdef int t, i
        cdef double total = 0
        cdef Config* c = &self.weights.config
        self.check(tokens, starts, targets)
        self.T, self.n_segments, self.weight = <int>tokens.shape[0], <int>starts.shape[0] - 1, <float>weight
        self.tokens, self.starts, self.targets = &tokens[0], &starts[0], &targets[0]
        if entry is not None and (entry.shape[0] != self.T or entry.shape[1] != c.embd_p) or entered and entry is None:
            raise ValueError(f"entry: wanted ({self.T}, {c.embd_p})")
        self.entry, self.entered, self.keeping = &entry[0, 0] if entry is not None else NULL, entered, backward
        if token_weights is not None and token_weights.shape[0] != self.T:
            raise ValueError(f"token_weights: wanted ({self.T},)")
        if noise is not None and (noise.shape[0] != self.T or noise.shape[1] != c.embd_p or entered):
            raise ValueError(f"noise: wanted ({self.T}, {c.embd_p}), and all layers computed")
        self.token_weights = &token_weights[0] if token_weights is not None else NULL
        self.noise = &noise[0, 0] if noise is not None else NULL
        self.dropping, self.dropout.key = dropout_key is not None and self.dropout.threshold > 0, dropout_key or 0
        self.extent.T, self.extent.n_segments = self.T, self.n_segments
        place_buffers(&self.b, c, &self.extent, &self.memory[0])
        place_kept(self.kept, c, &self.extent, &self.activations_memory[0])
        place_expert_buffers(&self.xb, c, &self.extent, &self.expert_memory[0])
        if <size_t>self.cache.shape[0] < cache_bytes(c, &self.extent):
            self.cache = None
            self.cache = np.empty(cache_bytes(c, &self.extent), np.uint8)
        self.b.cache = &self.cache[0]
        self.n_targets = 0
        for i in range(self.n_segments):
            for t in range(starts[i], starts[i + 1]):
                self.position[t], self.rank_of[t] = t - starts[i], -1
                if targets[t] >= 0:
                    self.scored[self.n_targets], self.rank_of[t] = t, self.n_targets
                    self.n_targets += 1
        with nogil, parallel(num_threads=self.n_threads):
            self.work_through(backward, join_team(&self.team), omp_get_num_threads())
        for t in range(self.n_targets):
            total += self.losses[t]
        return total

    def target_losses(self):
        """f64 (n,): the negative log-likelihoods of the last call's targets, in the order of their tokens."""
        cdef int t
        return np.array([self.losses[t] for t in range(self.n_targets)], np.float64)

    cdef check(self, tokens, starts, targets):
        T, n_vocab = len(tokens), self.weights.config.n_vocab
        if not 1 <= T <= self.max_tokens or len(targets) != T:
            raise ValueError(f"{T} tokens and {len(targets)} targets, wanted as many of both, 1 to {self.max_tokens}")
        if starts[0] != 0 or starts[len(starts) - 1] != T or np.any(np.diff(starts) < 1):
            raise ValueError("starts do not cut the tokens into sequences")
        if not (0 <= np.min(tokens) and np.max(tokens) < n_vocab and -1 <= np.min(targets) and np.max(targets) < n_vocab):
            raise ValueError(f"a token or target is outside 0..{n_vocab - 1}")
