"""The second half of a layer with experts, in a step of inference: another schedule of the MLP.

Tokens are sorted by expert; a row is a token at one of its k experts. Each expert's matrices are read once a step, and those of
experts that no token chose not at all. An expert's rows are rounded as if they were a call of their own: one token alone
and the same token among others give equal bits.
"""

from libc.stdint cimport uint8_t
from libc.string cimport memcpy

from ..layers.block cimport FFN_DOWN, FFN_UP, Block, Config, scale_row
from ..layers.experts cimport (
    DOWN_EXPERT, GATE_EXPERT, OF_EXPERT, UP_EXPERT, Experts, route, shared_weight, sort_by_expert,
)
from ..layers.linear cimport Linear, linear_tiles, low_rank_input, low_rank_width
from ..layers.norm cimport norm_row
from ..products.inputs cimport EXACT, INT16, INT8, PART_TOKENS, Acts, acts_bytes, acts_place, acts_quantize, padded
from ..simd.verbs cimport vf_fma1, vf_load, vf_store
from .decoderlayers cimport DecoderLayers
from .decodermixers cimport DecoderMixers
from .parts cimport parts_of, some_rows
from .stepbuffers cimport PIECE, Step, take
from .team cimport barrier, share

import numpy as np

cdef enum:
    ROUTED_ALONE = 4        # tokens up to which one thread routes them all sooner than threads meet
    BETWEEN = 320           # more bytes than the paddings of an expert's rounded rows take


cdef class DecoderExperts(DecoderMixers):
    """DecoderMixers and what layers with experts share among threads."""

    # ---- memory ----

    cdef place_experts(self, int max_tokens):
        """Room for steps of up to max_tokens tokens, where the model has experts"""
        cdef Config* c = &self.weights.config
        cdef ExpertRows* r = &self.rows
        cdef size_t T = max_tokens, R = T * c.n_used, at, end
        cdef uint8_t* base = NULL
        cdef int _pass
        if not c.n_expert:
            return
        for _pass in range(2):
            at = 0
            r.ldl = padded(c.n_expert, 16)
            r.logits, r.shared = take(base, &at, T * r.ldl), take(base, &at, T)
            r.weights, r.weight_of = take(base, &at, R), take(base, &at, R)
            r.active, r.first = <int*>take(base, &at, c.n_expert), <int*>take(base, &at, c.n_expert + 1)
            r.chosen, r.place, r.token_of = <int*>take(base, &at, R), <int*>take(base, &at, R), <int*>take(base, &at, R)
            r.x, r.gate = take(base, &at, R * c.embd_p), take(base, &at, R * c.expert_p)
            r.rounded = base + at
            end = at + acts_bytes(<int>R, max(c.embd_p, c.expert_p), INT8 | INT16) + BETWEEN * <size_t>c.n_expert
            if base == NULL:
                self.expert_memory = np.empty(end + 64, np.uint8)
                base = &self.expert_memory[0]
                base += -<size_t>base & 63
        self.max_rows = <int>R

    cdef room_for_adapters(self):
        """The same for the low-rank inputs of the adapters there are now"""
        cdef int n_lora = self.weights.n_lora, width = max(16, self.weights.max_expert_width)
        if not (self.max_rows and n_lora):
            return
        if self.expert_u is None or self.expert_u.shape[1] < width:
            self.expert_u = np.zeros((self.max_rows, width), np.float32)
        if self.expert_scales is None or self.expert_scales.shape[1] < n_lora:
            self.expert_scales = np.zeros((self.max_rows, n_lora), np.float32)
        self.rows.u, self.rows.ldu, self.rows.scales = &self.expert_u[0, 0], self.expert_u.shape[1], &self.expert_scales[0, 0]

    # ---- the schedule; behind each line: what is whole, for all threads, at each of its barriers ----

    cdef void mlp(self, const Block* b, int i, int n) noexcept nogil:
        cdef Config* c = &self.weights.config
        cdef Step* s = &self.step_
        cdef bint shared = b.experts != NULL and b.linear[FFN_UP].w.tiles != NULL
        cdef int t
        if b.experts == NULL:
            DecoderLayers.mlp(self, b, i, n)
            return
        self.route_tokens(b, i, n)                                              # normed; logits; (choices;) rows; x, rounded
        self.gate_experts(b, i, n)                                              # u; gate
        if shared:
            DecoderLayers.gate_rows(self, b, i, n)                              # normed, rounded; u; the shared expert's gate
            if b.experts.shared_gate != NULL:
                for t in range(share(s.T, i, n), share(s.T, i + 1, n)):
                    scale_row(s.gate + t * <size_t>c.ff_p, self.rows.shared[t], 16 * b.linear[FFN_UP].w.n_tiles, s.gate + t * <size_t>c.ff_p)
                barrier(&self.team)                                             # the same, weighted
        self.add_experts(b, i, n)                                               # rounded; u; x
        if shared:
            self.add_linear(&b.linear[FFN_DOWN], &b.post_ffw_norm, s.gate, c.ff_p, i, n)    # rounded; u; x

    cdef void route_tokens(self, const Block* b, int i, int n) noexcept nogil:
        """Each token's experts, their rows, and what these see; a single token is normed by each thread, for itself"""
        cdef Step* s = &self.step_
        cdef Config* c = &self.weights.config
        cdef Experts* x = b.experts
        cdef ExpertRows* r = &self.rows
        cdef Acts a
        cdef bint alone = s.T == 1, one = s.T <= ROUTED_ALONE
        cdef float* row = self.own_normed(i) if alone else s.normed
        cdef int t, k = x.routing.k
        for t in range(0 if alone else share(s.T, i, n), 1 if alone else share(s.T, i + 1, n)):
            norm_row(&b.ffn_norm, s.x + t * <size_t>c.embd_p, row + t * <size_t>c.embd_p)
        if not alone:
            barrier(&self.team)
        a.f32, a.ld = row, c.embd_p
        acts_place(&a, s.T, c.n_embd, 0, NULL)
        a.unpacking = &self.unpacking[0] + i * self.unpacking_bytes
        linear_tiles(&x.router, 0, &a, EXACT, NULL, 0, r.logits, r.ldl, share(x.router.w.n_tiles, i, n), share(x.router.w.n_tiles, i + 1, n))
        barrier(&self.team)
        if one and i == 0 or not one:
            for t in range(0 if one else share(s.T, i, n), s.T if one else share(s.T, i + 1, n)):
                route(&x.routing, r.logits + t * r.ldl, x.selection, r.chosen + t * k, r.weights + t * k)
                if x.shared_gate != NULL:
                    r.shared[t] = shared_weight(x.shared_gate, row + t * <size_t>c.embd_p, c.embd_p)
        if not one:
            barrier(&self.team)
        if i == 0:
            self.sort_rows(x)
        barrier(&self.team)
        self.gather_rows(x, share(s.T * k, i, n), share(s.T * k, i + 1, n))
        self.round_expert_rows(x, GATE_EXPERT, 2, r.x, c.embd_p, i, n)
        barrier(&self.team)

    cdef void sort_rows(self, const Experts* x) noexcept nogil:
        cdef ExpertRows* r = &self.rows
        cdef int e
        r.n_active = sort_by_expert(&x.routing, r.chosen, self.step_.T, r.active, r.first, r.place, r.token_of)
        for e in range(self.step_.T * x.routing.k):
            r.weight_of[r.place[e]] = self.weights.config.residual_scale * r.weights[e]

    cdef void gather_rows(self, const Experts* x, int lo, int hi) noexcept nogil:
        """Rows lo..hi of x, and of the adapters' scales"""
        cdef Step* s = &self.step_
        cdef ExpertRows* r = &self.rows
        cdef size_t E = self.weights.config.embd_p, n_lora = self.weights.n_lora
        cdef int at
        for at in range(lo, hi):
            memcpy(r.x + at * E, (self.own_normed(0) if s.T == 1 else s.normed + r.token_of[at] * E), 4 * E)
            if s.lora_scales != NULL:
                memcpy(r.scales + at * n_lora, s.lora_scales + r.token_of[at] * n_lora, 4 * n_lora)

    cdef void expert_input(self, Acts* a, const Linear* first, int n_linear, int e, const float* input_, size_t ld, int i) noexcept nogil:
        """a = expert e's rows of input_ (R, ld), as its n_linear matrices want them; rounded elsewhere"""
        cdef ExpertRows* r = &self.rows
        cdef size_t at = r.first[e], before = acts_bytes(r.first[e], first.w.n_cols, INT8 | INT16)
        self.inputs(a, first, n_linear, input_ + at * ld, ld, r.first[e + 1] - r.first[e], r.rounded + before + BETWEEN * <size_t>e, i)

    cdef void round_expert_rows(self, const Experts* x, int slot, int n_linear, const float* input_, size_t ld, int i, int n) noexcept nogil:
        """Thread i's share of the rows of all experts"""
        cdef ExpertRows* r = &self.rows
        cdef int R = self.step_.T * x.routing.k, lo = share(R, i, n), hi = share(R, i + 1, n), j, e
        cdef Acts a
        for j in range(r.n_active):
            e = r.active[j]
            if r.first[e] < hi and r.first[e + 1] > lo:
                self.expert_input(&a, x.linear + OF_EXPERT * e + slot, n_linear, e, input_, ld, i)
                acts_quantize(&a, max(lo - r.first[e], 0), min(hi, r.first[e + 1]) - r.first[e], 0, a.n_blocks)

    cdef void low_ranks(self, const Experts* x, int slot, int n_linear, const float* input_, size_t ld, int i, int n) noexcept nogil:
        """What the adapters of n_linear matrices of each expert need of its rows"""
        cdef ExpertRows* r = &self.rows
        cdef const Linear* first
        cdef size_t n_lora = self.weights.n_lora
        cdef int j, e
        cdef Acts a
        if not (n_lora and self.weights.max_expert_width):
            return
        for j in range(r.n_active):
            e = r.active[j]
            first = x.linear + OF_EXPERT * e + slot
            self.expert_input(&a, first, n_linear, e, input_, ld, i)
            low_rank_input(first, n_linear, <int>n_lora, &a, r.scales + r.first[e] * n_lora if self.step_.lora_scales != NULL else NULL,
                           r.u + r.first[e] * r.ldu, r.ldu, i, n)
        barrier(&self.team)

    # ---- products: of few tokens long streams, of many pieces that stay in L2, each for all rows of its expert ----

    cdef void gate_experts(self, const Block* b, int i, int n) noexcept nogil:
        """gate (R, expert_p) = what each expert's last matrix sees"""
        cdef Experts* x = b.experts
        cdef ExpertRows* r = &self.rows
        cdef int tiles = x.linear[GATE_EXPERT].w.n_tiles, lo, hi, end, n_taken = 0
        self.low_ranks(x, GATE_EXPERT, 2, r.x, self.weights.config.embd_p, i, n)
        while self.next_tiles(r.n_active * tiles, i, n, &n_taken, &lo, &hi):
            while lo < hi:
                end = min(hi, lo - lo % tiles + tiles, lo + PIECE)
                self.gate_expert(x, r.active[lo // tiles], lo % tiles, lo % tiles + end - lo, i)
                lo = end
        barrier(&self.team)

    cdef void gate_expert(self, const Experts* x, int e, int lo, int hi, int i) noexcept nogil:
        """Tiles lo..hi, at most PIECE, of one expert's gate"""
        cdef ExpertRows* r = &self.rows
        cdef const Linear* l = x.linear + OF_EXPERT * e
        cdef int n_lora = self.weights.n_lora, k, t, first, parts = parts_of(r.first[e + 1] - r.first[e])
        cdef size_t F = self.weights.config.expert_p
        cdef float* up = <float*>(&self.work[0] + i * self.work_bytes) - 16 * lo
        cdef float* gate
        cdef const float* u
        cdef Acts a, part
        self.expert_input(&a, l, 2, e, r.x, self.weights.config.embd_p, i)
        for k in range(parts):
            first = share(a.n_rows, k, parts)
            part = some_rows(&a, first, share(a.n_rows, k + 1, parts))
            gate = r.gate + (r.first[e] + first) * F
            u = r.u + (r.first[e] + first) * r.ldu
            linear_tiles(l + GATE_EXPERT, n_lora, &part, self.precision, u, r.ldu, gate, F, lo, hi)
            u += low_rank_width(l + GATE_EXPERT, n_lora)
            linear_tiles(l + UP_EXPERT, n_lora, &part, self.precision, u, r.ldu, up, 16 * PIECE, lo, hi)
            for t in range(part.n_rows):
                x.activation.apply(gate + t * F + 16 * lo, up + t * 16 * PIECE + 16 * lo, 16 * (hi - lo), gate + t * F + 16 * lo)

    cdef void add_experts(self, const Block* b, int i, int n) noexcept nogil:
        """x += each expert's output for its tokens, weighted; experts in order, so that a token's sum has always the same"""
        cdef Experts* x = b.experts
        cdef ExpertRows* r = &self.rows
        cdef int lo, hi, end, j, n_taken = 0, piece = PIECE * max(1, PART_TOKENS // self.step_.T)
        self.round_expert_rows(x, DOWN_EXPERT, 1, r.gate, self.weights.config.expert_p, i, n)
        barrier(&self.team)
        self.low_ranks(x, DOWN_EXPERT, 1, r.gate, self.weights.config.expert_p, i, n)
        while self.next_tiles(x.linear[DOWN_EXPERT].w.n_tiles, i, n, &n_taken, &lo, &hi):
            while lo < hi:
                end = min(hi, lo + piece)
                for j in range(r.n_active):
                    self.add_expert(x, r.active[j], lo, end, i)
                lo = end
        barrier(&self.team)

    cdef void add_expert(self, const Experts* x, int e, int lo, int hi, int i) noexcept nogil:
        """Tiles lo..hi of one expert's output"""
        cdef ExpertRows* r = &self.rows
        cdef const Linear* l = x.linear + OF_EXPERT * e + DOWN_EXPERT
        cdef int k, t, first, at, c, parts = parts_of(r.first[e + 1] - r.first[e])
        cdef size_t ld = 16 * (hi - lo), E = self.weights.config.embd_p
        cdef float* y = <float*>(&self.work[0] + i * self.work_bytes) - 16 * lo
        cdef float* out
        cdef Acts a, part
        self.expert_input(&a, l, 1, e, r.gate, self.weights.config.expert_p, i)
        for k in range(parts):
            first = share(a.n_rows, k, parts)
            part = some_rows(&a, first, share(a.n_rows, k + 1, parts))
            at = r.first[e] + first
            linear_tiles(l, self.weights.n_lora, &part, self.precision, r.u + at * r.ldu, r.ldu, y, ld, lo, hi)
            for t in range(part.n_rows):
                out = self.step_.x + r.token_of[at + t] * E
                for c in range(16 * lo, 16 * hi, 16):
                    vf_store(out + c, vf_fma1(vf_load(y + t * ld + c), r.weight_of[at + t], vf_load(out + c)))
