"""Other first halves of a layer in a step of training: latent attention, and short convolutions in attention's place."""

from libc.string cimport memset

from ..layers.block cimport ATTN_KV_B, ATTN_Q, ATTN_Q_A, Block, Config
from ..layers.latent cimport close_heads, norm_start, open_heads, spread_heads, spread_heads_backward
from ..layers.norm cimport Norm
from ..layers.shortconv cimport convolve, convolve_backward
from ..products.inputs cimport BACK_ROWS, Acts, padded
from .team cimport Walk, barrier, next_dynamic, share
from .trainbuffers cimport Buffers, Gradient, Kept
from .trainlayers cimport TrainLayers
from .trainrows cimport restore_rows, save_rows


cdef class TrainMixers(TrainLayers):
    """TrainLayers whose layers may make queries, keys and values of short rows, or convolve."""

    # ---- latent attention ----

    cdef void project_heads(self, int layer, bint keeping, int i, int n) noexcept nogil:
        cdef Config* c = &self.weights.config
        cdef Block* l = &self.weights.blocks[layer]
        cdef Kept* k = self.kept + layer
        cdef Buffers* b = &self.b
        cdef bint direct = l.linear[ATTN_Q].w.tiles == NULL
        cdef Acts a
        cdef float* y[2]
        cdef size_t ldy[2]
        cdef size_t t
        cdef int lo = share(self.T, i, n), hi = share(self.T, i + 1, n)
        if c.kv_rank == 0:
            TrainLayers.project_heads(self, layer, keeping, i, n)
            return
        y[0], y[1] = b.q if direct else b.q_low, b.kv_low
        ldy[0], ldy[1] = c.q_p if direct else c.q_a_p, c.kv_a_p
        self.normed_inputs(layer, ATTN_Q_A, 2, &a, i, n)
        self.linears(layer, ATTN_Q_A, 2, &a, y, ldy)
        if keeping:
            save_rows(b.kv_low, k.kv_low, c.kv_a_p, lo, hi, self.extent.item)
            if not direct:
                save_rows(b.q_low, k.q_low, c.q_a_p, lo, hi, self.extent.item)
        if not direct:
            self.second_product(layer, ATTN_Q, &l.q_a_norm, b.q_low, c.q_a_p, b.q_in, b.q, c.q_p, i, n)
        self.second_product(layer, ATTN_KV_B, &l.kv_a_norm, b.kv_low, c.kv_a_p, b.kv_in, b.kv, c.kv_b_p, i, n)
        for t in range(lo, hi):
            spread_heads(c, b.kv + t * c.kv_b_p, b.kv_low + t * c.kv_a_p + c.kv_rank, b.k + t * c.kv_p, b.v + t * c.kv_p)

    cdef void second_product(self, int layer, int slot, const Norm* norm, const float* x, size_t ldx, float* seen, float* y, size_t ldy, int i, int n) noexcept nogil:
        """y = the product with `seen`, the norm of what x's rows begin with"""
        cdef Acts a
        cdef int lo = share(self.T, i, n), hi = share(self.T, i + 1, n)
        cdef size_t t
        for t in range(lo, hi):
            norm_start(norm, x + t * ldx, seen + t * ldx)
        self.place_input(&a, seen, ldx, norm.n, self.T)
        self.linear_inputs(layer, slot, 1, &a, lo, hi, self.scratch(i))
        barrier(&self.team)      # a (seen, rounded) and u
        self.linears(layer, slot, 1, &a, &y, &ldy)

    cdef void project_backward(self, int layer, float* dn, int i, int n) noexcept nogil:
        cdef Config* c = &self.weights.config
        cdef Block* l = &self.weights.blocks[layer]
        cdef Buffers* b = &self.b
        cdef bint direct = l.linear[ATTN_Q].w.tiles == NULL
        cdef Gradient g[2]
        cdef size_t t
        if c.kv_rank == 0:
            TrainLayers.project_backward(self, layer, dn, i, n)
            return
        g[1] = self.gradient(b.kv, c.kv_b_p, 0)
        for t in range(share(self.T, i, n), share(self.T, i + 1, n)):
            memset(b.dkv_low + t * c.kv_a_p, 0, 4 * <size_t>c.kv_a_p)
            spread_heads_backward(c, b.dk + t * c.q_p, b.dv + t * c.q_p, b.kv + t * c.kv_b_p, b.dkv_low + t * c.kv_a_p + c.kv_rank)
        self.second_backward(layer, ATTN_KV_B, &l.kv_a_norm, b.kv_low, self.kept[layer].kv_low, c.kv_a_p, b.kv_in, g + 1, b.dkv_low, i, n)
        g[0] = self.gradient(b.q, c.q_p, 0)
        if not direct:
            for t in range(share(self.T, i, n), share(self.T, i + 1, n)):
                memset(b.dq_low + t * c.q_a_p, 0, 4 * <size_t>c.q_a_p)
            self.second_backward(layer, ATTN_Q, &l.q_a_norm, b.q_low, self.kept[layer].q_low, c.q_a_p, b.q_in, g, b.dq_low, i, n)
            g[0] = self.gradient(b.dq_low, c.q_a_p, 0)
        g[1] = self.gradient(b.dkv_low, c.kv_a_p, self.T * padded(l.linear[ATTN_Q_A].w.n_rows, BACK_ROWS))
        self.normed_backward(layer, ATTN_Q_A, 2, g, dn, i, n)

    cdef void second_backward(self, int layer, int slot, const Norm* norm, float* x, const void* kept, size_t ldx, float* seen, Gradient* dy, float* dx, int i, int n) noexcept nogil:
        """dx += the gradient of what second_product saw, its norm's n elements of a row; own tokens' are whole afterwards"""
        cdef int lo = share(self.T, i, n), hi = share(self.T, i + 1, n), e
        cdef size_t t
        cdef float* row
        restore_rows(kept, x, ldx, lo, hi, self.extent.item)
        for t in range(lo, hi):
            norm_start(norm, x + t * ldx, seen + t * ldx)
        self.linear_gradients(layer, slot, dy, self.T, lo, hi)
        barrier(&self.team)      # seen; dy of all tokens: rounded, du, transposes
        self.linears_backward(layer, slot, 1, seen, ldx, dy, self.T, self.b.part_low, ldx, i)
        for t in range(lo, hi):
            # the norm sees the row's beginning only: what follows it is another's
            row = seen + t * ldx
            memset(row, 0, 4 * ldx)
            for e in range(norm.n):
                row[e] = x[t * ldx + e]
            memset(self.b.part_low + t * ldx + norm.n, 0, 4 * (ldx - norm.n))
            norm.kind.backward(row, norm.weight, self.b.part_low + t * ldx, norm.n, norm.eps, dx + t * ldx)

    cdef void heads_backward(self, int layer, int i, int n) noexcept nogil:
        cdef Config* c = &self.weights.config
        cdef size_t t
        if self.weights.blocks[layer].taps != NULL:
            self.convolve_units(layer, True)
            return
        if c.n_value < c.head_dim:
            for t in range(share(self.T, i, n), share(self.T, i + 1, n)):
                open_heads(c, self.b.datt + t * c.q_p)
            barrier(&self.team)      # datt, with zeros behind values
        TrainLayers.heads_backward(self, layer, i, n)

    cdef void attend_units(self, int layer, int i, int n) noexcept nogil:
        cdef Config* c = &self.weights.config
        cdef size_t t
        if self.weights.blocks[layer].taps != NULL:
            self.convolve_units(layer, False)
            return
        TrainLayers.attend_units(self, layer, i, n)
        if c.n_value < c.head_dim:
            for t in range(share(self.T, i, n), share(self.T, i + 1, n)):
                close_heads(c, self.b.att + t * c.q_p)
            barrier(&self.team)      # att, without zeros

    # ---- short convolutions ----

    cdef void convolve_units(self, int layer, bint backward) noexcept nogil:
        """att of q, k and v; or their gradients of datt; 16 channels of a sequence at a time to the thread that is free first"""
        cdef Config* c = &self.weights.config
        cdef const float* taps = self.weights.blocks[layer].taps
        cdef Buffers* b = &self.b
        cdef int s, unit, end, length
        cdef size_t q, kv
        cdef Walk walk = Walk(0, 0)
        for s in range(self.n_segments):
            q, kv, length = self.starts[s] * <size_t>c.q_p, self.starts[s] * <size_t>c.kv_p, self.starts[s + 1] - self.starts[s]
            while next_dynamic(&self.team, &walk, c.embd_p // 16, 1, &unit, &end):
                if backward:
                    convolve_backward(taps, c.n_taps, c.embd_p, b.q + q, c.q_p, b.k + kv, b.v + kv, c.kv_p, b.datt + q, c.q_p, length,
                                      16 * unit, 16 * end, b.dk + q, b.dv + q, c.q_p)
                else:
                    convolve(taps, c.n_taps, c.embd_p, b.q + q, c.q_p, b.k + kv, b.v + kv, c.kv_p, length, 16 * unit, 16 * end, b.att + q, c.q_p)
        barrier(&self.team)      # att; dq, dk, dv
