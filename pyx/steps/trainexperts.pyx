"""The second half of a layer with experts, in a step of training: another schedule of the MLP, forward and in reverse.

As in decoderexperts.pyx tokens are sorted by expert, and a row is a token at one of its k experts: all that TrainLayers does
with tokens of a matrix is done with rows of an expert's. Each expert may have LoRA pairs of its own. With y = sum of w_j y_j
over a token's experts, a row's gradient is w dy; the router needs w dw = w dy y_j = dh h + (w dy) bias, which the backward
product gives anyway: what experts put out is not kept.
"""

from libc.stdint cimport int16_t, uint8_t
from libc.string cimport memcpy, memset

from ..layers.block cimport FFN_UP, N_SLOTS, Block, Config, scale_row
from ..layers.dropout cimport dropped_backward, dropped_gradient, dropped_input
from ..layers.experts cimport (
    DOWN_EXPERT, GATE_EXPERT, MAX_EXPERTS, OF_EXPERT, Experts, route, route_backward, shared_weight, sort_by_expert,
)
from ..layers.linear cimport Linear, linear_tiles
from ..layers.lowrank cimport (
    LoraPair, columns_before, pair_backward, pair_gradient, pair_input, pair_input_backward, pair_output, transpose_rows,
)
from ..products.gemm cimport matmul_backward_tiles
from ..products.inputs cimport BACK_ROWS, EXACT, INT16, Acts, acts_bytes, acts_place, acts_quantize, padded, quantize_gradient
from ..simd.verbs cimport vf, vf_fma, vf_fma1, vf_hsum, vf_load, vf_set1, vf_store
from .parts cimport parts_of, some_rows
from .stepbuffers cimport take
from .team cimport Walk, barrier, next_dynamic, omp_get_thread_num, share
from .trainbuffers cimport UNIT_BLOCKS, UNIT_COLUMNS, UNIT_TILES, Extent, Gradient, Kept
from .trainlayers cimport TrainLayers
from .trainmixers cimport TrainMixers
from .trainrows cimport clear_rows, input_rows, input_rows_backward, restore_rows, save_rows

cdef enum:
    BETWEEN = 320           # more bytes than the paddings of an expert's rounded rows take


cdef size_t place_expert_buffers(ExpertBuffers* x, const Config* c, const Extent* e, uint8_t* base) noexcept nogil:
    """Lay out the shared buffers of calls of e.T tokens from base on; returns the bytes they take, 0 without experts."""
    cdef size_t T = e.T, R = T * c.n_used, at = 0, wide = max(c.embd_p, c.expert_p), n
    if not c.n_expert:
        return 0
    x.active, x.first = <int*>take(base, &at, c.n_expert), <int*>take(base, &at, c.n_expert + 1)
    x.place, x.token_of = <int*>take(base, &at, R), <int*>take(base, &at, R)
    x.weight_of, x.e = take(base, &at, R), take(base, &at, R)
    x.x, x.y = take(base, &at, R * c.embd_p), take(base, &at, R * padded(c.embd_p, 32))
    x.gate, x.up, x.h = take(base, &at, R * c.expert_p), take(base, &at, R * c.expert_p), take(base, &at, R * c.expert_p)
    x.dh = take(base, &at, R * padded(c.expert_p, 32))
    x.dlogits, x.dn = take(base, &at, T * padded(c.n_expert, 16)), take(base, &at, T * padded(c.embd_p, 32))
    x.shared, x.dshared = take(base, &at, T), take(base, &at, T)
    x.du = take(base, &at, R * e.expert_ldu)
    x.ut, x.dut = take(base, &at, padded(R, 16) * e.expert_ldu), take(base, &at, padded(R, 16) * e.expert_ldu)
    x.rounded = base + at
    at += acts_bytes(<int>R, <int>wide, INT16) + BETWEEN * <size_t>c.n_expert
    n = R * max(padded(c.embd_p, BACK_ROWS), 2 * padded(c.expert_p, BACK_ROWS))
    x.rounded_dy = <int16_t*>(base + at)
    at += padded(2 * n, 64)
    x.dy_scale = take(base, &at, n // BACK_ROWS)
    return at


cdef inline float dot(const float* x, const float* y, int n) noexcept nogil:
    """x y; n is a multiple of 16"""
    cdef vf s = vf_set1(0)
    cdef int i
    for i in range(0, n, 16):
        s = vf_fma(vf_load(x + i), vf_load(y + i), s)
    return vf_hsum(s)


cdef inline void add_scaled(const float* x, float factor, int n, float* y) noexcept nogil:
    """y[n] += factor * x"""
    cdef int i
    for i in range(0, n, 16):
        vf_store(y + i, vf_fma1(vf_load(x + i), factor, vf_load(y + i)))


cdef class TrainExperts(TrainMixers):
    """TrainMixers and what layers with experts share among threads."""

    cdef LoraPair* expert_pair(self, int layer, int e, int j) noexcept nogil:
        return self.pair(layer, N_SLOTS + OF_EXPERT * e + j)

    cdef int pair_number(self, int layer, int e, int j) noexcept nogil:
        """What dropout tells matrices apart by: behind those that every layer has"""
        return N_SLOTS * self.weights.config.n_layer + OF_EXPERT * (layer * self.weights.config.n_expert + e) + j

    # ---- forward ----

    cdef void mlp(self, int layer, bint onward, int i, int n) noexcept nogil:
        cdef Block* l = &self.weights.blocks[layer]
        if l.experts == NULL:
            TrainLayers.mlp(self, layer, onward, i, n)
            return
        self.normed_rows(layer, i, n)
        self.route_tokens(layer, i, n)
        if l.linear[FFN_UP].w.tiles != NULL:
            TrainLayers.mlp(self, layer, onward, i, n)
            barrier(&self.team)      # x of the next layer
            self.normed_rows(layer, i, n)
        self.gather_inputs(layer, i, n)
        self.gate_rows(layer, self.keeping and layer >= self.extent.first_layer, i, n)
        if onward:
            self.add_expert_rows(layer, self.kept[layer].mid if l.linear[FFN_UP].w.tiles == NULL else self.kept[layer + 1].x, i, n)

    cdef void normed_rows(self, int layer, int i, int n) noexcept nogil:
        """b.normed = what router and experts see"""
        cdef int rows = self.rows(layer)
        input_rows(&self.weights.config, &self.weights.blocks[layer].ffn_norm, self.kept[layer].mid, self.b.normed, share(rows, i, n), share(rows, i + 1, n))
        barrier(&self.team)      # normed

    cdef void route_tokens(self, int layer, int i, int n) noexcept nogil:
        """Each token's experts and their rows; the shared expert's weight"""
        cdef Config* c = &self.weights.config
        cdef Experts* x = self.weights.blocks[layer].experts
        cdef Kept* k = self.kept + layer
        cdef int t, rows = self.rows(layer), tiles = x.router.w.n_tiles
        cdef size_t ld = padded(c.n_expert, 16)
        cdef Acts a
        a.f32, a.ld = self.b.normed, c.embd_p
        acts_place(&a, rows, c.n_embd, 0, NULL)
        a.unpacking = <uint8_t*>self.scratch(i)
        if rows:
            linear_tiles(&x.router, 0, &a, EXACT, NULL, 0, k.logits, ld, share(tiles, i, n), share(tiles, i + 1, n))
        barrier(&self.team)      # logits
        for t in range(share(rows, i, n), share(rows, i + 1, n)):
            route(&x.routing, k.logits + t * ld, x.selection, k.chosen + t * x.routing.k, k.weights + t * x.routing.k)
            if x.shared_gate != NULL:
                self.xb.shared[t] = shared_weight(x.shared_gate, self.b.normed + t * <size_t>c.embd_p, c.embd_p)
        barrier(&self.team)      # choices
        self.sort_rows(layer, i)

    cdef void sort_rows(self, int layer, int i) noexcept nogil:
        cdef Experts* x = self.weights.blocks[layer].experts
        cdef ExpertBuffers* b = &self.xb
        cdef Kept* k = self.kept + layer
        cdef int e, rows = self.rows(layer)
        if i == 0:
            b.n_active = sort_by_expert(&x.routing, k.chosen, rows, b.active, b.first, b.place, b.token_of)
            for e in range(rows * x.routing.k):
                b.weight_of[b.place[e]] = self.weights.config.residual_scale * k.weights[e]
        barrier(&self.team)      # rows

    cdef void shared_rows(self, int layer, int lo, int hi) noexcept nogil:
        """Tokens lo..hi of the shared expert's h, weighted"""
        cdef size_t ld = self.weights.config.ff_p
        cdef int t
        if self.weights.blocks[layer].experts != NULL and self.weights.blocks[layer].experts.shared_gate != NULL:
            for t in range(lo, hi):
                scale_row(self.b.h + t * ld, self.xb.shared[t], <int>ld, self.b.h + t * ld)

    cdef void gather_inputs(self, int layer, int i, int n) noexcept nogil:
        """x (R, E), rounded, and the low-rank inputs of gate and up"""
        cdef size_t E = self.weights.config.embd_p
        cdef int r, R = self.rows(layer) * self.weights.config.n_used
        for r in range(share(R, i, n), share(R, i + 1, n)):
            memcpy(self.xb.x + r * E, self.b.normed + self.xb.token_of[r] * E, 4 * E)
        self.expert_inputs(layer, GATE_EXPERT, 2, self.xb.x, E, i, n)
        barrier(&self.team)      # x (rounded) and u

    cdef void expert_acts(self, Acts* a, int e, const float* x, size_t ld, int n_cols) noexcept nogil:
        """a = expert e's rows of x (R, ld)"""
        cdef ExpertBuffers* b = &self.xb
        a.f32, a.ld = x + b.first[e] * ld, ld
        acts_place(a, b.first[e + 1] - b.first[e], n_cols, self.precision & ~EXACT,
                   b.rounded + acts_bytes(b.first[e], n_cols, INT16) + BETWEEN * <size_t>e)
        a.unpacking = <uint8_t*>self.scratch(omp_get_thread_num())

    cdef void expert_inputs(self, int layer, int first, int n_linear, const float* x, size_t ld, int i, int n) noexcept nogil:
        """Thread i's rows of an input of n_linear matrices: rounded, and the low-rank inputs"""
        cdef ExpertBuffers* b = &self.xb
        cdef int R = self.rows(layer) * self.weights.config.n_used, all_lo = share(R, i, n), all_hi = share(R, i + 1, n)
        cdef int m, e, j, lo, hi
        cdef size_t ldu = self.extent.expert_ldu
        cdef LoraPair* p
        cdef float* u
        cdef const float* rows
        cdef Acts a
        for m in range(b.n_active):
            e = b.active[m]
            lo, hi = max(all_lo, b.first[e]), min(all_hi, b.first[e + 1])
            if lo >= hi:
                continue
            self.expert_acts(&a, e, x, ld, self.weights.blocks[layer].experts.linear[OF_EXPERT * e + first].w.n_cols)
            if a.q16 != NULL:
                acts_quantize(&a, lo - b.first[e], hi - b.first[e], 0, a.n_blocks)
            for j in range(first, first + n_linear):
                p = self.expert_pair(layer, e, j)
                u = self.kept[layer].expert_u + lo * ldu + columns_before(self.expert_pair(layer, e, 0), j)
                rows = x + lo * ld
                if p.rank and self.dropping:
                    dropped_input(p, &self.dropout, self.pair_number(layer, e, j), lo - b.first[e], rows, ld, hi - lo, u, ldu, self.scratch(i))
                elif p.rank:
                    pair_input(p, rows, ld, hi - lo, u, ldu)

    cdef void expert_outputs(self, int layer, int first, int n_linear, const float* x, size_t ldx, float** y, size_t ldy) noexcept nogil:
        """y (R, ldy) = what n_linear matrices of each expert make of its rows, UNIT_TILES row tiles to the thread that is free first"""
        cdef ExpertBuffers* b = &self.xb
        cdef const Linear* l
        cdef LoraPair* p
        cdef Acts a, part
        cdef int m, e, j, k, at, lo, hi, parts
        cdef size_t ldu = self.extent.expert_ldu
        cdef Walk walk = Walk(0, 0)
        for m in range(b.n_active):
            e = b.active[m]
            l = self.weights.blocks[layer].experts.linear + OF_EXPERT * e
            self.expert_acts(&a, e, x, ldx, l[first].w.n_cols)
            parts = parts_of(a.n_rows)
            for k in range(parts):
                part = some_rows(&a, share(a.n_rows, k, parts), share(a.n_rows, k + 1, parts))
                at = b.first[e] + share(a.n_rows, k, parts)
                for j in range(n_linear):
                    p = self.expert_pair(layer, e, first + j)
                    while next_dynamic(&self.team, &walk, l[first + j].w.n_tiles, UNIT_TILES, &lo, &hi):
                        linear_tiles(l + first + j, 0, &part, self.precision, NULL, 0, y[j] + at * ldy, ldy, lo, hi)
                        if p.rank:
                            pair_output(p, self.kept[layer].expert_u + at * ldu + columns_before(self.expert_pair(layer, e, 0), first + j), ldu,
                                        part.n_rows, y[j] + at * ldy, ldy, lo, hi)
        barrier(&self.team)      # y

    cdef void gate_rows(self, int layer, bint keep, int i, int n) noexcept nogil:
        """h (R, F), rounded, and the low-rank inputs of down"""
        cdef ExpertBuffers* b = &self.xb
        cdef const Experts* x = self.weights.blocks[layer].experts
        cdef size_t F = self.weights.config.expert_p
        cdef int r, R = self.rows(layer) * self.weights.config.n_used, lo = share(R, i, n), hi = share(R, i + 1, n)
        cdef float* y[2]
        y[0], y[1] = b.gate, b.up
        self.expert_outputs(layer, GATE_EXPERT, 2, b.x, self.weights.config.embd_p, y, F)
        if keep:
            save_rows(b.gate, self.kept[layer].expert_gate, F, lo, hi, self.extent.item)
            save_rows(b.up, self.kept[layer].expert_up, F, lo, hi, self.extent.item)
        for r in range(lo, hi):
            x.activation.apply(b.gate + r * F, b.up + r * F, <int>F, b.h + r * F)
        self.expert_inputs(layer, DOWN_EXPERT, 1, b.h, F, i, n)
        barrier(&self.team)      # h (rounded) and u

    cdef void add_expert_rows(self, int layer, const float* x, int i, int n) noexcept nogil:
        """The next layer's x = x + each expert's output, weighted"""
        cdef ExpertBuffers* b = &self.xb
        cdef size_t E = self.weights.config.embd_p
        cdef int t, j, k = self.weights.config.n_used, rows = self.rows(layer)
        cdef float* out
        self.expert_outputs(layer, DOWN_EXPERT, 1, b.h, self.weights.config.expert_p, &b.y, E)
        for t in range(share(rows, i, n), share(rows, i + 1, n)):
            out = self.kept[layer + 1].x + t * E
            if x + t * E != out:
                memcpy(out, x + t * E, 4 * E)
            for j in range(k):
                add_scaled(b.y + b.place[t * k + j] * E, b.weight_of[b.place[t * k + j]], <int>E, out)

    # ---- backward ----

    cdef void mlp_backward(self, int layer, int i, int n) noexcept nogil:
        cdef Config* c = &self.weights.config
        cdef Block* l = &self.weights.blocks[layer]
        cdef ExpertBuffers* b = &self.xb
        cdef Kept* k = self.kept + layer
        cdef size_t E = c.embd_p, F = c.expert_p
        cdef int r, t, rows = self.rows(layer), R = rows * c.n_used, lo = share(R, i, n), hi = share(R, i + 1, n)
        cdef const float* bias
        cdef const float* dx = self.gradient_of(layer)
        cdef float* dy[2]
        if l.experts == NULL:
            TrainLayers.mlp_backward(self, layer, i, n)
            return
        barrier(&self.team)      # dx
        self.sort_rows(layer, i)
        input_rows(c, &l.ffn_norm, k.mid, self.b.normed, share(rows, i, n), share(rows, i + 1, n))
        restore_rows(k.expert_gate, b.gate, F, lo, hi, self.extent.item)
        restore_rows(k.expert_up, b.up, F, lo, hi, self.extent.item)
        for r in range(lo, hi):
            l.experts.activation.apply(b.gate + r * F, b.up + r * F, <int>F, b.h + r * F)
            scale_row(dx + b.token_of[r] * E, b.weight_of[r], <int>E, b.y + r * E)
        for t in range(share(rows, i, n), share(rows, i + 1, n)):
            if l.experts.shared_gate != NULL:
                b.shared[t] = shared_weight(l.experts.shared_gate, self.b.normed + t * E, <int>E)
        dy[0] = b.y
        self.expert_gradients(layer, DOWN_EXPERT, 1, dy, E, i, n)
        barrier(&self.team)      # normed; h; dy: rounded, du, transposes
        self.expert_rows_backward(layer, DOWN_EXPERT, 1, b.h, F, dy, E, b.dh, F, i)
        for r in range(lo, hi):
            bias = l.experts.linear[OF_EXPERT * self.expert_of(r) + DOWN_EXPERT].bias
            b.e[r] = dot(b.h + r * F, b.dh + r * F, <int>F) + (dot(bias, b.y + r * E, <int>E) if bias != NULL else 0)
            l.experts.activation.backward(b.dh + r * F, <int>F, b.gate + r * F, b.up + r * F)
            memcpy(b.x + r * E, self.b.normed + b.token_of[r] * E, 4 * E)
        dy[0], dy[1] = b.gate, b.up
        self.expert_gradients(layer, GATE_EXPERT, 2, dy, F, i, n)
        barrier(&self.team)      # e; x; the same of gate and up
        self.expert_rows_backward(layer, GATE_EXPERT, 2, b.x, E, dy, F, b.y, E, i)
        self.route_backward_tokens(layer, i, n)
        if l.linear[FFN_UP].w.tiles != NULL:
            TrainLayers.mlp_backward(self, layer, i, n)
            if l.experts.shared_gate != NULL:
                for t in range(share(rows, i, n), share(rows, i + 1, n)):
                    add_scaled(l.experts.shared_gate, b.dshared[t], <int>E, b.dn + t * E)
        input_rows_backward(c, &l.ffn_norm, k.mid, b.dn, self.gradient_of(layer), share(rows, i, n), share(rows, i + 1, n))

    cdef int expert_of(self, int r) noexcept nogil:
        """Which expert a row is of"""
        cdef int lo = 0, hi = self.xb.n_active, middle
        while hi - lo > 1:
            middle = (lo + hi) // 2
            if self.xb.first[self.xb.active[middle]] <= r:
                lo = middle
            else:
                hi = middle
        return self.xb.active[lo]

    cdef void shared_rows_backward(self, int layer, int lo, int hi) noexcept nogil:
        """Tokens lo..hi of the gradient of the shared expert's weighted h become that of h, and give the weight's own"""
        cdef size_t ld = self.weights.config.ff_p
        cdef float weight
        cdef int t, n = 16 * self.weights.blocks[layer].linear[FFN_UP].w.n_tiles
        if self.weights.blocks[layer].experts != NULL and self.weights.blocks[layer].experts.shared_gate != NULL:
            for t in range(lo, hi):
                weight = self.xb.shared[t]
                self.xb.dshared[t] = dot(self.b.h + t * ld, self.b.dh + t * ld, n) * (1 - weight)
                scale_row(self.b.dh + t * ld, weight, <int>ld, self.b.dh + t * ld)

    cdef Gradient expert_gradient(self, int e, const float* dy, size_t ld, int n_rows, size_t at) noexcept nogil:
        """One expert's rows of a matrix's dy; `at`: values of rounded_dy taken by matrices before"""
        cdef Gradient g
        cdef size_t before = at + <size_t>self.xb.first[e] * padded(n_rows, BACK_ROWS)
        g.dy, g.ld = dy + self.xb.first[e] * ld, ld
        g.q = self.xb.rounded_dy + before if self.precision != EXACT else NULL
        g.scale = self.xb.dy_scale + before // BACK_ROWS
        g.product, g.ldp = NULL, 0
        return g

    cdef void expert_gradients(self, int layer, int first, int n_linear, float** dy, size_t ld, int i, int n) noexcept nogil:
        """Thread i's rows of n_linear matrices' dy: rounded, and the gradients of their low-rank inputs, with both transposes"""
        cdef ExpertBuffers* b = &self.xb
        cdef int R = self.rows(layer) * self.weights.config.n_used, all_lo = share(R, i, n), all_hi = share(R, i + 1, n), m, e, j, lo, hi
        cdef size_t at, ldu = self.extent.expert_ldu, ldt = padded(R, 16), begin, width
        cdef const Linear* l
        cdef LoraPair* p
        cdef Gradient g
        for m in range(b.n_active):
            e = b.active[m]
            lo, hi, begin = max(all_lo, b.first[e]), min(all_hi, b.first[e + 1]), b.first[e]
            if lo >= hi:
                continue
            for j in range(n_linear):
                l, p = self.weights.blocks[layer].experts.linear + OF_EXPERT * e + first + j, self.expert_pair(layer, e, first + j)
                width = padded(l.w.n_rows, BACK_ROWS)
                g = self.expert_gradient(e, dy[j], ld, l.w.n_rows, j * R * width)
                if g.q != NULL:
                    quantize_gradient(g.dy, ld, l.w.n_rows, b.first[e + 1] - b.first[e], <int>(lo - begin), <int>(hi - begin), g.q, g.scale)
                if p.rank:
                    at = columns_before(self.expert_pair(layer, e, 0), first + j)
                    pair_input_backward(p, dy[j] + lo * ld, ld, hi - lo, b.du + lo * ldu + at, ldu)
                    transpose_rows(b.du + at, ldu, lo, hi, p.rank, b.dut + at * ldt, ldt)
                    transpose_rows(self.kept[layer].expert_u + at, ldu, lo, hi, p.rank, b.ut + at * ldt, ldt)

    cdef void expert_rows_backward(self, int layer, int first, int n_linear, const float* x, size_t ldx, float** dy, size_t ldy,
                                   float* dx, size_t lddx, int i) noexcept nogil:
        """dx (R, lddx) = W^T dy + A^T du of each expert, and its pairs' dB and dA; columns are dealt in units"""
        cdef ExpertBuffers* b = &self.xb
        cdef const Linear* l
        cdef LoraPair* p
        cdef int m, e, j, lo, hi
        cdef Walk walk = Walk(0, 0)
        for m in range(b.n_active):
            e = b.active[m]
            l = self.weights.blocks[layer].experts.linear + OF_EXPERT * e + first
            while next_dynamic(&self.team, &walk, l.w.n_blocks, UNIT_BLOCKS, &lo, &hi):
                self.expert_columns(layer, e, first, n_linear, dy, ldy, dx, lddx, lo, hi, i)
            for j in range(n_linear):
                p = self.expert_pair(layer, e, first + j)
                while next_dynamic(&self.team, &walk, max(p.in_p, p.out_p) // 16, UNIT_COLUMNS, &lo, &hi):
                    self.expert_pair_columns(layer, e, first + j, x, ldx, dy[j], ldy, lo, hi, i)
        barrier(&self.team)      # dx, dA, dB

    cdef void expert_columns(self, int layer, int e, int first, int n_linear, float** dy, size_t ldy, float* dx, size_t lddx,
                             int lo, int hi, int i) noexcept nogil:
        """Column blocks lo..hi of one expert's dx"""
        cdef ExpertBuffers* b = &self.xb
        cdef const Linear* l = self.weights.blocks[layer].experts.linear + OF_EXPERT * e + first
        cdef int j, t, R = self.rows(layer) * self.weights.config.n_used, rows = b.first[e + 1] - b.first[e]
        cdef int begin = 2 * lo, end = min(2 * hi, <int>padded(l.w.n_cols, 16) // 16)
        cdef size_t ldu = self.extent.expert_ldu
        cdef LoraPair* p
        cdef float* du
        cdef Gradient g
        dx += b.first[e] * lddx
        for t in range(rows):
            memset(dx + t * lddx + 16 * begin, 0, 64 * <size_t>(end - begin))
        for j in range(n_linear):
            p = self.expert_pair(layer, e, first + j)
            g = self.expert_gradient(e, dy[j], ldy, l[j].w.n_rows, j * R * padded(l[j].w.n_rows, BACK_ROWS))
            matmul_backward_tiles(&l[j].w, g.dy, g.ld, g.q, g.scale, rows, dx, lddx, lo, hi)
            du = b.du + b.first[e] * ldu + columns_before(self.expert_pair(layer, e, 0), first + j)
            if p.rank and self.dropping:
                dropped_backward(p, &self.dropout, self.pair_number(layer, e, first + j), du, ldu, rows, dx, lddx, begin, end, self.scratch(i))
            elif p.rank:
                pair_backward(p, du, ldu, rows, dx, lddx, begin, end)

    cdef void expert_pair_columns(self, int layer, int e, int j, const float* x, size_t ldx, const float* dy, size_t ldy, int lo, int hi,
                                  int i) noexcept nogil:
        """Column tiles lo..hi, as far as there are such, of a pair's dB and dA"""
        cdef ExpertBuffers* b = &self.xb
        cdef LoraPair* p = self.expert_pair(layer, e, j)
        cdef int rows = b.first[e + 1] - b.first[e], end = min(hi, p.in_p // 16)
        cdef size_t ldt = padded(self.rows(layer) * self.weights.config.n_used, 16)
        cdef size_t at = columns_before(self.expert_pair(layer, e, 0), j) * ldt + b.first[e]
        if not p.rank:
            return
        pair_gradient(b.ut + at, ldt, p.rank, dy + b.first[e] * ldy, ldy, rows, p.gbt, p.ldb, lo, min(hi, p.out_p // 16))
        x += b.first[e] * ldx
        if self.dropping:
            dropped_gradient(p, &self.dropout, self.pair_number(layer, e, j), b.dut + at, ldt, x, ldx, rows, lo, end, self.scratch(i))
        else:
            pair_gradient(b.dut + at, ldt, p.rank, x, ldx, rows, p.ga, p.in_p, lo, end)

    cdef void route_backward_tokens(self, int layer, int i, int n) noexcept nogil:
        """dn (T, E) = what comes from the experts, then from the router too"""
        cdef Experts* x = self.weights.blocks[layer].experts
        cdef ExpertBuffers* b = &self.xb
        cdef Kept* kept = self.kept + layer
        cdef size_t E = self.weights.config.embd_p, ld = padded(self.weights.config.n_expert, 16)
        cdef int t, j, k = x.routing.k, rows = self.rows(layer), blocks = x.router.w.n_blocks
        cdef float e[MAX_EXPERTS]
        for t in range(share(rows, i, n), share(rows, i + 1, n)):
            clear_rows(b.dn, E, t, t + 1)
            for j in range(k):
                add_scaled(b.y + b.place[t * k + j] * E, 1, <int>E, b.dn + t * E)
                e[j] = b.e[b.place[t * k + j]]
            route_backward(&x.routing, kept.logits + t * ld, kept.chosen + t * k, kept.weights + t * k, e, b.dlogits + t * ld)
        barrier(&self.team)      # dn of the experts, dlogits
        matmul_backward_tiles(&x.router.w, b.dlogits, ld, NULL, NULL, rows, b.dn, E, share(blocks, i, n), share(blocks, i + 1, n))
        barrier(&self.team)      # dn
