"""Other first halves of a layer in a step of inference: latent attention, and short convolutions in attention's place."""

from ..layers.block cimport ATTN_KV_B, ATTN_Q, ATTN_Q_A, Block, Config
from ..layers.latent cimport close_heads, norm_start, spread_heads
from ..layers.linear cimport Linear
from ..layers.norm cimport Norm
from ..products.inputs cimport Acts
from ..simd.verbs cimport vf, vf_fma, vf_load, vf_mul, vf_set1, vf_store
from .decoderlayers cimport DecoderLayers
from .stepbuffers cimport Step
from .team cimport barrier, share


cdef class DecoderMixers(DecoderLayers):
    """DecoderLayers whose layers may make queries, keys and values of short rows, or convolve."""

    cdef void project_heads(self, const Block* b, bint fewer, int i, int n) noexcept nogil:
        cdef Step* s = &self.step_
        cdef Config* c = &self.weights.config
        cdef const Linear* l = b.linear + ATTN_Q_A
        cdef bint direct = b.linear[ATTN_Q].w.tiles == NULL
        cdef Acts a
        cdef float* y[2]
        cdef size_t ldy[2]
        cdef size_t t
        if c.kv_rank == 0:
            DecoderLayers.project_heads(self, b, fewer, i, n)
            return
        y[0], y[1] = s.q if direct else s.q_low, s.kv_low
        ldy[0], ldy[1] = s.ldq if direct else c.q_a_p, c.kv_a_p
        self.input_rows(&a, l, 2, &b.attn_norm, i, n)
        self.low_rank(l, 2, &a, i, n)
        self.products(l, 2, &a, y, ldy, i, n)                                   # q, or what it is made of; kv_low
        if not direct:
            self.second_product(&b.linear[ATTN_Q], &b.q_a_norm, s.q_low, c.q_a_p, s.att, s.q, s.ldq, i, n)   # att; rounded; u; q
        self.second_product(&b.linear[ATTN_KV_B], &b.kv_a_norm, s.kv_low, c.kv_a_p, s.att, s.kv, c.kv_b_p, i, n)
        for t in range(share(s.T, i, n), share(s.T, i + 1, n)):
            spread_heads(c, s.kv + t * c.kv_b_p, s.kv_low + t * c.kv_a_p + c.kv_rank, s.k + t * c.kv_p, s.v + t * c.kv_p)
        barrier(&self.team)                                                     # k, v

    cdef void products(self, const Linear* first, int n_linear, const Acts* a, float** y, const size_t* ldy, int i, int n) noexcept nogil:
        """y = all of n_linear matrices of one input"""
        cdef int lo[2]
        cdef int hi[2]
        cdef int j, begin, end, before, n_taken = 0, all_tiles = 0
        for j in range(n_linear):
            all_tiles += first[j].w.n_tiles
        while self.next_tiles(all_tiles, i, n, &n_taken, &begin, &end):
            before = 0
            for j in range(n_linear):
                lo[j], hi[j] = max(begin - before, 0), min(end - before, first[j].w.n_tiles)
                before += first[j].w.n_tiles
            self.linears(first, n_linear, a, 0, y, ldy, lo, hi)
        barrier(&self.team)

    cdef void second_product(self, const Linear* l, const Norm* norm, const float* x, size_t ldx, float* seen, float* y, size_t ldy, int i, int n) noexcept nogil:
        """y = the product with the norm of what x's rows begin with; seen: room for that"""
        cdef Acts a
        cdef size_t t
        for t in range(share(self.step_.T, i, n), share(self.step_.T, i + 1, n)):
            norm_start(norm, x + t * ldx, seen + t * ldx)
        barrier(&self.team)
        self.round_rows(&a, l, seen, ldx, i, n)
        self.low_rank(l, 1, &a, i, n)
        self.products(l, 1, &a, &y, &ldy, i, n)

    cdef void attend_units(self, const Block* b, int layer, bint fewer, int i, int n) noexcept nogil:
        cdef Config* c = &self.weights.config
        cdef size_t t
        if b.taps != NULL:
            self.convolve_units(b, layer, i, n)
            return
        DecoderLayers.attend_units(self, b, layer, fewer, i, n)
        if c.n_value < c.head_dim:
            for t in range(share(self.step_.T, i, n), share(self.step_.T, i + 1, n)):
                close_heads(c, self.step_.att + t * c.q_p)
            barrier(&self.team)                                                 # att, without zeros

    cdef void convolve_units(self, const Block* b, int layer, int i, int n) noexcept nogil:
        """att of what stands in the places of q, k and v, whose product b * x enters the states"""
        cdef Step* s = &self.step_
        cdef Config* c = &self.weights.config
        cdef int j, e, position, ring = <int>self.states.shape[2], lo = share(s.T, i, n), hi = share(s.T, i + 1, n)
        cdef size_t t
        cdef float* state
        cdef vf total
        for t in range(lo, hi):
            state = &self.states[s.slots[t], self.place[layer], s.positions[t] % ring, 0]
            for e in range(0, c.embd_p, 16):
                vf_store(state + e, vf_mul(vf_load(s.q + t * s.ldq + e), vf_load(s.v + t * c.kv_p + e)))
        barrier(&self.team)                                                     # states
        for t in range(lo, hi):
            position = s.positions[t]
            for e in range(0, c.embd_p, 16):
                total = vf_set1(0)
                for j in range(min(c.n_taps, position + 1)):
                    state = &self.states[s.slots[t], self.place[layer], (position - j) % ring, 0]
                    total = vf_fma(vf_load(b.taps + j * c.embd_p + e), vf_load(state + e), total)
                vf_store(s.att + t * c.q_p + e, vf_mul(vf_load(s.k + t * c.kv_p + e), total))
        barrier(&self.team)                                                     # att
