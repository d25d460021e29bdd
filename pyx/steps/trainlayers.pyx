"""What each thread does in one step of training: the layers forward, the loss, the layers in reverse, without the GIL.

No matrix is ever expanded: y = W x and dx = W^T dy come from the packed tiles (matmul.pyx), and only the LoRA pairs have
weight gradients (lowrank.pxd). Rows (tokens) or tiles (columns) of each phase are dealt to threads so that no sum is ever
split: results do not depend on their number.

What happens in a layer: layers/block.pxd; `attention` and `mlp` are its schedule here, `mlp_backward` and
`attention_backward` the same in reverse, and behind each barrier stands what is whole from there on. What is kept of a
layer for its backward pass: trainbuffers.pxd. Norms, softmax and silu * up are always computed again;
with `checkpointing` everything but the layer's input is. In the last layer, what follows attention is done for scored
tokens only: nothing reads the others' results.
"""

from libc.stdint cimport uint8_t
from libc.string cimport memcpy, memset

from ..layers.attention cimport UNIT_ROWS, attend
from ..layers.attention_backward cimport attend_backward
from ..layers.block cimport (
    ATTN_K, ATTN_OUTPUT, ATTN_Q, ATTN_V, FFN_DOWN, N_SLOTS, Block, Config, add_branch, angles_at, scale_logits,
)
from ..layers.dropout cimport dropped_backward, dropped_gradient, dropped_input
from ..layers.kvcache cimport KvHead
from ..layers.linear cimport Linear, linear_tiles
from ..layers.loss cimport cross_entropy
from ..layers.lowrank cimport (
    LoraPair, columns_before, pair_backward, pair_gradient, pair_input, pair_input_backward, pair_output, pair_transpose,
    transpose_rows,
)
from ..layers.magnitude cimport magnify_rows, magnify_rows_backward, magnitude_gradient, pair_gains
from ..layers.norm cimport Norm, norm_row
from ..products.gemm cimport matmul_backward_tiles
from ..products.inputs cimport BACK_ROWS, EXACT, Acts, acts_place, acts_quantize, padded, quantize_gradient
from .parts cimport parts_of, some_rows
from .team cimport Walk, barrier, ceil_div, next_dynamic, omp_get_thread_num, share
from .trainbuffers cimport (
    HEAD_ROWS, HEAD_TILES, UNIT_BLOCKS, UNIT_COLUMNS, UNIT_TILES, Buffers, Gradient, Kept, cached_kv_head,
)
from .trainrows cimport (
    activate_rows, activate_rows_backward, add_row, branch_rows_backward, clear_rows, head_rows, head_rows_backward,
    input_rows, input_rows_backward, restore_rows, save_rows, store_rows, sum_groups, temper_rows,
)


cdef class TrainLayers:
    """The memory of a training call over given weights, and its threads' share of it; asked for by TrainStep, see
    trainstep.pyx."""

    cdef LoraPair* pair(self, int layer, int slot) noexcept nogil:
        return self.pairs + layer * self.n_slots + slot

    cdef void work_through(self, bint backward, int i, int n) noexcept nogil:
        cdef Config* c = &self.weights.config
        cdef int t, layer, lo = share(self.T, i, n), hi = share(self.T, i + 1, n), first = self.extent.first_layer
        self.measure(i, n)
        for t in range(lo, hi):
            self.ropes.angles(self.position[t], self.b.cosine + angles_at(c, NULL, t), self.b.sine + angles_at(c, NULL, t))
            if not self.entered:
                self.weights.embed(self.tokens[t], NULL, self.kept[0].x + t * c.embd_p)
                if self.noise != NULL:
                    add_row(self.noise + t * <size_t>c.embd_p, c.embd_p, self.kept[0].x + t * <size_t>c.embd_p)
        if self.entered:
            memcpy(self.kept[first].x + lo * c.embd_p, self.entry + lo * c.embd_p, 4 * <size_t>c.embd_p * (hi - lo))
        barrier(&self.team)      # x of the first layer, angles, the pairs' transposes
        for layer in range(first if self.entered else 0, c.n_layer):
            if layer == first and self.entry != NULL and not self.entered:
                memcpy(self.entry + lo * c.embd_p, self.kept[first].x + lo * c.embd_p, 4 * <size_t>c.embd_p * (hi - lo))
            self.attention(layer, i, n)
            self.mlp(layer, True, i, n)
        self.loss_head(backward, i, n)
        if not backward:
            return
        for layer in range(c.n_layer - 1, first - 1, -1):
            if self.extent.checkpointing and layer < c.n_layer - 1:
                self.attention(layer, i, n)
                self.mlp(layer, False, i, n)
            if self.weights.blocks[layer].parallel:
                self.output_backward(layer, i, n)
                self.mlp_backward(layer, i, n)
            else:
                self.mlp_backward(layer, i, n)
                self.output_backward(layer, i, n)
            self.attention_backward(layer, i, n)

    cdef void measure(self, int i, int n) noexcept nogil:
        """What a step wants of the pairs besides themselves: their transposes, lengths and gains"""
        cdef int layer, slot, tiles, last = self.weights.config.n_layer
        cdef LoraPair* p
        for layer in range(self.extent.first_layer, last):
            for slot in range(self.n_slots):
                p = self.pair(layer, slot)
                if p.rank:
                    pair_transpose(p, share(max(p.n_in, p.n_out), i, n), share(max(p.n_in, p.n_out), i + 1, n))
        if not self.magnified:
            return
        barrier(&self.team)      # the pairs' transposes
        for layer in range(self.extent.first_layer, last):
            for slot in range(N_SLOTS):
                p, tiles = self.pair(layer, slot), self.weights.blocks[layer].linear[slot].w.n_tiles
                if p.m != NULL:
                    pair_gains(p, &self.weights.blocks[layer].linear[slot].w, share(tiles, i, n), share(tiles, i + 1, n))

    cdef int rows(self, int layer) noexcept nogil:
        """How many tokens a layer has behind attention: the last one only those with a target, numbered as in `scored`."""
        return self.n_targets if layer == self.weights.config.n_layer - 1 else self.T

    cdef float* gradient_of(self, int layer) noexcept nogil:
        """The gradient of the residual behind a layer, one row for each of its `rows`"""
        return self.b.tail if layer == self.weights.config.n_layer - 1 else self.b.dx

    cdef float* scratch(self, int i) noexcept nogil:
        return <float*>(&self.work[0] + i * self.work_bytes)

    # ---- forward ----

    cdef void place_input(self, Acts* a, const float* x, size_t ld, int n_cols, int rows) noexcept nogil:
        a.f32, a.ld = x, ld
        acts_place(a, rows, n_cols, self.precision & ~EXACT, self.b.rounded)
        a.unpacking = <uint8_t*>self.scratch(omp_get_thread_num())      # nobody else wants it while products run

    cdef void linear_inputs(self, int layer, int slot, int n_linear, Acts* a, int lo, int hi, float* work) noexcept nogil:
        """Tokens lo..hi of an input: its rounded form and the low-rank inputs of the matrices it feeds."""
        cdef LoraPair* p
        cdef float* u
        cdef int j
        if a.q16 != NULL:
            acts_quantize(a, lo, hi, 0, a.n_blocks)
        for j in range(slot, slot + n_linear):
            p = self.pair(layer, j)
            u = self.kept[layer].u + <size_t>lo * self.extent.ldu + columns_before(self.pair(layer, 0), j)
            if p.part:
                continue
            if p.rank and self.dropping:
                dropped_input(p, &self.dropout, layer * N_SLOTS + j, lo, a.f32 + lo * a.ld, a.ld, hi - lo, u, self.extent.ldu, work)
            elif p.rank:
                pair_input(p, a.f32 + lo * a.ld, a.ld, hi - lo, u, self.extent.ldu)

    cdef void linear(self, int layer, int slot, const Acts* a, int first, float* y, size_t ldy, int lo, int hi) noexcept nogil:
        """Row tiles lo..hi of y = W x + bias + B u, without the bias where `magnify` adds it; first: where the rows of a begin in u"""
        cdef LoraPair* p = self.pair(layer, slot)
        cdef Linear l = self.weights.blocks[layer].linear[slot]
        cdef size_t ldu = self.extent.ldu
        if p.m != NULL:
            l.bias = NULL
        linear_tiles(&l, 0, a, self.precision, NULL, 0, y, ldy, lo, hi)
        if p.rank:
            pair_output(p, self.kept[layer].u + first * ldu + columns_before(self.pair(layer, 0), slot), ldu, a.n_rows, y, ldy, lo, hi)

    cdef void magnify(self, int layer, int slot, float* y, size_t ldy, int lo, int hi) noexcept nogil:
        """Rows lo..hi of a matrix's products become its outputs, where its pair has magnitudes"""
        if self.pair(layer, slot).m != NULL:
            magnify_rows(self.pair(layer, slot), self.weights.blocks[layer].linear[slot].bias, y, ldy, lo, hi)

    cdef bint plain_heads(self, int layer) noexcept nogil:
        """Whether queries and keys are kept as the matrices give them, not as attention compares them"""
        return self.weights.blocks[layer].q_norm.norm.weight != NULL or self.pair(layer, ATTN_Q).m != NULL or self.pair(layer, ATTN_K).m != NULL

    cdef void linears(self, int layer, int slot, int n_linear, const Acts* a, float** y, const size_t* ldy) noexcept nogil:
        """The outputs of matrices with the same input, UNIT_TILES row tiles at a time to the thread that is free first.

        Tokens in parts that L2 holds: all tiles pass before the next part's turn.
        """
        cdef int j, n_tiles, first, k, lo, hi, parts = parts_of(a.n_rows)
        cdef Acts part
        cdef Walk walk = Walk(0, 0)
        for k in range(parts):
            first = share(a.n_rows, k, parts)
            part = some_rows(a, first, share(a.n_rows, k + 1, parts))
            for j in range(n_linear):
                n_tiles = self.weights.blocks[layer].linear[slot + j].w.n_tiles
                while next_dynamic(&self.team, &walk, n_tiles, UNIT_TILES, &lo, &hi):
                    self.linear(layer, slot + j, &part, first, y[j] + first * ldy[j], ldy[j], lo, hi)
        barrier(&self.team)      # y: all tiles of all tokens

    cdef void add_linear(self, int layer, int slot, const Norm* after, void* kept, const Acts* a, const float* x, const int* row, float* y,
                         int i, int n) noexcept nogil:
        """y = x + the product, normed where there is a norm after it; before, it is kept. row: where the rows of x stand, NULL
        for one after the other. Each thread its share of rows."""
        cdef Config* c = &self.weights.config
        cdef size_t ld = c.embd_p
        cdef float* product
        cdef int t, lo = share(a.n_rows, i, n), hi = share(a.n_rows, i + 1, n)
        self.linears(layer, slot, 1, a, &self.b.part, &ld)
        if (after.weight != NULL or self.pair(layer, slot).m != NULL) and self.keeping and layer >= self.extent.first_layer:
            save_rows(self.b.part, kept, ld, lo, hi, self.extent.item)
        self.magnify(layer, slot, self.b.part, ld, lo, hi)
        for t in range(lo, hi):
            product = self.b.part + t * ld
            if after.weight != NULL:
                norm_row(after, product, product)
            add_branch(c, x + ld * (row[t] if row != NULL else t), product, <int>ld, y + t * ld)

    cdef void attention(self, int layer, int i, int n) noexcept nogil:
        cdef Config* c = &self.weights.config
        cdef Block* l = &self.weights.blocks[layer]
        cdef Kept* k = self.kept + layer
        cdef Buffers* b = &self.b
        cdef Acts a
        cdef int t, lo = share(self.T, i, n), hi = share(self.T, i + 1, n), rows = self.rows(layer), width = l.linear[ATTN_OUTPUT].w.n_cols
        cdef bint last = layer == c.n_layer - 1, keeping = self.keeping and layer >= self.extent.first_layer, plain = self.plain_heads(layer)
        cdef float* att = b.datt if last else b.att
        self.project_heads(layer, keeping, i, n)
        if keeping and plain:
            save_rows(b.q, k.q, c.q_p, lo, hi, self.extent.item)
            save_rows(b.k, k.k, c.kv_p, lo, hi, self.extent.item)
        if keeping:
            save_rows(b.v, k.v, c.kv_p, lo, hi, self.extent.item)
        self.magnify(layer, ATTN_Q, b.q, c.q_p, lo, hi)
        self.magnify(layer, ATTN_K, b.k, c.kv_p, lo, hi)
        self.magnify(layer, ATTN_V, b.v, c.kv_p, lo, hi)
        head_rows(c, l, &l.q_norm, b, b.q, c.q_p, c.n_head, lo, hi)
        temper_rows(c, self.position, b.q, c.q_p, lo, hi)
        head_rows(c, l, &l.k_norm, b, b.k, c.kv_p, c.n_head_kv, lo, hi)
        if keeping and not plain:
            save_rows(b.q, k.q, c.q_p, lo, hi, self.extent.item)
            save_rows(b.k, k.k, c.kv_p, lo, hi, self.extent.item)
        if l.taps == NULL:
            store_rows(c, b, self.starts, self.n_segments, lo, hi)
        barrier(&self.team)      # the cache; q, k and v
        self.attend_units(layer, i, n)
        lo, hi = share(rows, i, n), share(rows, i + 1, n)
        if last:
            for t in range(lo, hi):
                memcpy(att + t * c.q_p, b.att + self.scored[t] * <size_t>c.q_p, 4 * <size_t>c.q_p)
        for t in range(lo, hi if c.q_p > width else lo):
            memset(att + t * c.q_p + width, 0, 4 * <size_t>(c.q_p - width))
        if keeping:
            save_rows(att, k.att, c.q_p, lo, hi, self.extent.item)
        self.place_input(&a, att, c.q_p, width, rows)
        self.linear_inputs(layer, ATTN_OUTPUT, 1, &a, lo, hi, self.scratch(i))
        barrier(&self.team)      # a (att, rounded) and u
        # the MLP of a parallel layer sees x too, and adds to the sum
        self.add_linear(layer, ATTN_OUTPUT, &l.post_attention_norm, k.attention, &a, k.x, self.scored if last else NULL,
                        self.kept[layer + 1].x if l.parallel else k.mid, i, n)
        for t in range(lo, hi if l.parallel else lo):
            memcpy(k.mid + t * c.embd_p, k.x + c.embd_p * <size_t>(self.scored[t] if last else t), 4 * <size_t>c.embd_p)

    cdef void project_heads(self, int layer, bint keeping, int i, int n) noexcept nogil:
        """b.q, b.k and b.v of the layer's x, as its matrices give them"""
        cdef Config* c = &self.weights.config
        cdef Buffers* b = &self.b
        cdef Acts a
        cdef float* y[3]
        cdef size_t ldy[3]
        y[0], y[1], y[2] = b.q, b.k, b.v
        ldy[0], ldy[1], ldy[2] = c.q_p, c.kv_p, c.kv_p
        self.normed_inputs(layer, ATTN_Q, 3, &a, i, n)
        self.linears(layer, ATTN_Q, 3, &a, y, ldy)

    cdef void normed_inputs(self, int layer, int slot, int n_linear, Acts* a, int i, int n) noexcept nogil:
        """a = what n_linear matrices of attention see of the layer's x"""
        cdef Config* c = &self.weights.config
        cdef int lo = share(self.T, i, n), hi = share(self.T, i + 1, n)
        self.place_input(a, self.b.normed, c.embd_p, c.n_embd, self.T)
        input_rows(c, &self.weights.blocks[layer].attn_norm, self.kept[layer].x, self.b.normed, lo, hi)
        self.linear_inputs(layer, slot, n_linear, a, lo, hi, self.scratch(i))
        barrier(&self.team)      # a (normed, rounded) and u of all tokens

    cdef void attend_units(self, int layer, int i, int n) noexcept nogil:
        """b.att from b.q and the cache, UNIT_ROWS query rows of a KV head at a time to the thread that is free first"""
        cdef Config* c = &self.weights.config
        cdef Buffers* b = &self.b
        cdef int s, h, unit, end, first, length, group = c.n_head // c.n_head_kv, per = max(1, UNIT_ROWS // group)
        cdef size_t at
        cdef KvHead kv_head
        cdef Walk walk = Walk(0, 0)
        for s in range(self.n_segments):
            length = self.starts[s + 1] - self.starts[s]
            while next_dynamic(&self.team, &walk, c.n_head_kv * ceil_div(length, per), 1, &unit, &end):
                h, first = unit % c.n_head_kv, unit // c.n_head_kv * per
                kv_head = cached_kv_head(b, c, self.starts, s, h)
                at = (self.starts[s] + first) * <size_t>c.q_p + h * group * c.head_dim
                attend(b.q + at, c.q_p, min(per, length - first), group, c.head_dim, &self.weights.blocks[layer].scores, h * group, first, &kv_head,
                       b.att + at, c.q_p, self.scratch(i))
        barrier(&self.team)      # att

    cdef void mlp(self, int layer, bint onward, int i, int n) noexcept nogil:
        """The layer's second half; without `onward` only what its backward pass reads."""
        cdef Config* c = &self.weights.config
        cdef Block* l = &self.weights.blocks[layer]
        cdef Kept* k = self.kept + layer
        cdef Buffers* b = &self.b
        cdef Acts a
        cdef int j, rows = self.rows(layer), lo = share(rows, i, n), hi = share(rows, i + 1, n)
        cdef float* y[2]
        cdef size_t ldy[2]
        self.place_input(&a, b.normed, c.embd_p, c.n_embd, rows)
        input_rows(c, &l.ffn_norm, k.mid, b.normed, lo, hi)
        self.linear_inputs(layer, l.first_of_mlp, l.n_of_mlp, &a, lo, hi, self.scratch(i))
        barrier(&self.team)      # a (normed, rounded) and u
        y[0], y[1] = b.gate, b.up
        ldy[0], ldy[1] = c.ff_p, c.ff_p
        self.linears(layer, l.first_of_mlp, l.n_of_mlp, &a, y, ldy)
        if self.keeping and layer >= self.extent.first_layer:
            save_rows(b.gate, k.gate, c.ff_p, lo, hi, self.extent.item)
            if c.gated:
                save_rows(b.up, k.up, c.ff_p, lo, hi, self.extent.item)
        for j in range(l.n_of_mlp):
            self.magnify(layer, l.first_of_mlp + j, y[j], ldy[j], lo, hi)
        self.place_input(&a, b.h, c.ff_p, l.linear[FFN_DOWN].w.n_cols, rows)
        activate_rows(c, l, b, lo, hi)
        self.shared_rows(layer, lo, hi)
        self.linear_inputs(layer, FFN_DOWN, 1, &a, lo, hi, self.scratch(i))
        barrier(&self.team)      # a (h, rounded) and u
        # the norm after it, or the pair's magnitudes, want the product
        if onward or l.post_ffw_norm.weight != NULL or self.pair(layer, FFN_DOWN).m != NULL:
            self.add_linear(layer, FFN_DOWN, &l.post_ffw_norm, k.mlp, &a, self.kept[layer + 1].x if l.parallel else k.mid, NULL,
                            self.kept[layer + 1].x, i, n)

    cdef void shared_rows(self, int layer, int lo, int hi) noexcept nogil:
        """What is done to rows lo..hi of h where the layer has experts beside this MLP: see TrainExperts"""

    cdef void shared_rows_backward(self, int layer, int lo, int hi) noexcept nogil:
        """The same to those of dh"""

    # ---- head and loss, HEAD_ROWS tokens at a time; logits become their gradient and are thrown away ----

    cdef float weight_of(self, int target) noexcept nogil:
        """What a target's gradient is multiplied by"""
        return self.weight * (self.token_weights[self.scored[target]] if self.token_weights != NULL else 1)

    cdef void loss_head(self, bint backward, int i, int n) noexcept nogil:
        cdef Config* c = &self.weights.config
        cdef const Linear* l = &self.weights.output
        cdef Buffers* b = &self.b
        cdef const float* x = self.kept[c.n_layer].x
        cdef Acts a
        cdef Gradient g
        cdef int part, first, rows, m, mine, end, lo, hi
        cdef size_t at
        cdef Walk walk
        clear_rows(b.tail, c.embd_p, share(self.n_targets, i, n), share(self.n_targets, i + 1, n))
        for part in range(ceil_div(self.n_targets, HEAD_ROWS)):
            first = part * HEAD_ROWS
            rows = min(HEAD_ROWS, self.n_targets - first)
            at, mine, end = first * <size_t>c.embd_p, share(rows, i, n), share(rows, i + 1, n)
            barrier(&self.team)      # the part before is done with rows, drows, logits
            self.place_input(&a, b.rows, c.embd_p, c.n_embd, rows)
            input_rows(c, &self.weights.output_norm, x + at, b.rows, mine, end)
            clear_rows(b.drows, c.embd_p, mine, end)
            if a.q16 != NULL:
                acts_quantize(&a, mine, end, 0, a.n_blocks)
            barrier(&self.team)      # a (rows, rounded), drows = 0
            walk = Walk(0, 0)
            while next_dynamic(&self.team, &walk, l.w.n_tiles, HEAD_TILES, &lo, &hi):
                linear_tiles(l, 0, &a, self.precision, NULL, 0, b.logits, c.vocab_p, lo, hi)
            barrier(&self.team)      # logits
            g = self.gradient(b.logits, c.vocab_p, 0)
            for m in range(mine, end):
                scale_logits(c, b.logits + m * <size_t>c.vocab_p, c.vocab_p)
                self.losses[first + m] = cross_entropy(b.logits + m * <size_t>c.vocab_p, c.n_vocab, self.targets[self.scored[first + m]], self.weight_of(first + m), c.logit_cap)
                scale_logits(c, b.logits + m * <size_t>c.vocab_p, c.vocab_p)
                if backward and g.q != NULL:
                    quantize_gradient(b.logits, c.vocab_p, c.n_vocab, rows, m, m + 1, g.q, g.scale)
            if not backward:
                continue
            barrier(&self.team)      # logits are their gradient
            walk = Walk(0, 0)
            while next_dynamic(&self.team, &walk, l.w.n_blocks, UNIT_BLOCKS, &lo, &hi):
                matmul_backward_tiles(&l.w, b.logits, c.vocab_p, g.q, g.scale, rows, b.drows, c.embd_p, lo, hi)
            barrier(&self.team)      # drows
            input_rows_backward(c, &self.weights.output_norm, x + at, b.drows, b.tail + at, mine, end)
        barrier(&self.team)      # tail

    # ---- backward ----

    cdef Gradient gradient(self, const float* dy, size_t ld, size_t at) noexcept nogil:
        """One matrix's dy; `at`: values (multiple of BACK_ROWS) of b.rounded_dy taken by others before."""
        cdef Gradient g
        g.dy, g.ld = dy, ld
        g.q = self.b.rounded_dy + at if self.precision != EXACT else NULL
        g.scale = self.b.dy_scale + at // BACK_ROWS
        g.product, g.ldp = NULL, 0
        return g

    cdef void linear_gradients(self, int layer, int slot, const Gradient* g, int rows, int lo, int hi) noexcept nogil:
        """Tokens lo..hi of `rows` of a matrix's dy: rounded, and the gradient of its low-rank input, with both transposes."""
        cdef LoraPair* p = self.pair(layer, slot)
        cdef Buffers* b = &self.b
        cdef size_t ldt = padded(self.T, 16), at = columns_before(self.pair(layer, 0), slot)
        if g.product != NULL:
            magnify_rows_backward(p, <float*>g.dy, g.ld, g.product, g.ldp, lo, hi)
        if g.q != NULL:
            quantize_gradient(g.dy, g.ld, self.weights.blocks[layer].linear[slot].w.n_rows, rows, lo, hi, g.q, g.scale)
        if p.rank:
            pair_input_backward(p, g.dy + lo * g.ld, g.ld, hi - lo, b.du + lo * <size_t>self.extent.ldu + at, self.extent.ldu)
        if p.rank and p.last:
            transpose_rows(b.du + at, self.extent.ldu, lo, hi, p.rank, b.dut + at * ldt, ldt)
            transpose_rows(self.kept[layer].u + at, self.extent.ldu, lo, hi, p.rank, b.ut + at * ldt, ldt)

    cdef void linears_backward(self, int layer, int slot, int n_linear, const float* x, size_t ldx, const Gradient* dy, int rows,
                               float* dx, size_t lddx, int i) noexcept nogil:
        """dB, dA and (dx not NULL) dx = W^T dy + A^T du, summed over matrices with the same input, of `rows` tokens.

        Columns are dealt in units, those of dx first; x and dy of a unit's columns stay near while all is done with them.
        """
        cdef int j, lo, hi, n_blocks = self.weights.blocks[layer].linear[slot].w.n_blocks
        cdef LoraPair* p
        cdef Walk walk = Walk(0, 0)
        while next_dynamic(&self.team, &walk, n_blocks if dx != NULL else 0, UNIT_BLOCKS, &lo, &hi):
            self.input_backward(layer, slot, n_linear, dy, rows, dx, lddx, lo, hi, i)
        for j in range(n_linear):
            p = self.pair(layer, slot + j)
            while next_dynamic(&self.team, &walk, max(p.in_p, p.out_p) // 16, UNIT_COLUMNS, &lo, &hi):
                self.pair_gradients(layer, slot + j, x, ldx, dy + j, rows, lo, hi, i)
        barrier(&self.team)      # dx of the input, dA, dB; normed and dy are free

    cdef void input_backward(self, int layer, int slot, int n_linear, const Gradient* dy, int rows, float* dx, size_t lddx,
                             int lo, int hi, int i) noexcept nogil:
        """Column blocks lo..hi of dx"""
        cdef int j, t, first = 2 * lo, end = min(2 * hi, padded(self.weights.blocks[layer].linear[slot].w.n_cols, 16) // 16)
        cdef LoraPair* p
        cdef float* du
        for t in range(rows):
            memset(dx + t * lddx + 16 * first, 0, 64 * <size_t>(end - first))
        for j in range(slot, slot + n_linear):
            p, du = self.pair(layer, j), self.b.du + columns_before(self.pair(layer, 0), j)
            matmul_backward_tiles(&self.weights.blocks[layer].linear[j].w, dy.dy, dy.ld, dy.q, dy.scale, rows, dx, lddx, lo, hi)
            if p.rank and p.part == 0 and self.dropping:
                dropped_backward(p, &self.dropout, layer * N_SLOTS + j, du, self.extent.ldu, rows, dx, lddx, first, end, self.scratch(i))
            elif p.rank and p.part == 0:
                pair_backward(p, du, self.extent.ldu, rows, dx, lddx, first, end)
            dy += 1

    cdef void pair_gradients(self, int layer, int slot, const float* x, size_t ldx, const Gradient* dy, int rows, int lo, int hi, int i) noexcept nogil:
        """Column tiles lo..hi, as far as there are such, of a pair's dB and dA"""
        cdef LoraPair* p = self.pair(layer, slot)
        cdef size_t ldt = padded(self.T, 16), at = columns_before(self.pair(layer, 0), slot) * ldt
        cdef int end = min(hi, p.in_p // 16)
        if p.rank:
            pair_gradient(self.b.ut + at, ldt, p.rank, dy.dy, dy.ld, rows, p.gbt, p.ldb, lo, min(hi, p.out_p // 16))
        if dy.product != NULL:
            magnitude_gradient(p, dy.product, dy.ldp, rows, lo, min(hi, p.out_p // 16))
        if p.part:
            return
        if p.rank and self.dropping:
            dropped_gradient(p, &self.dropout, layer * N_SLOTS + slot, self.b.dut + at, ldt, x, ldx, rows, lo, end, self.scratch(i))
        elif p.rank:
            pair_gradient(self.b.dut + at, ldt, p.rank, x, ldx, rows, p.ga, p.in_p, lo, end)

    cdef void mlp_backward(self, int layer, int i, int n) noexcept nogil:
        cdef Config* c = &self.weights.config
        cdef Block* l = &self.weights.blocks[layer]
        cdef Kept* k = self.kept + layer
        cdef Buffers* b = &self.b
        cdef int rows = self.rows(layer), lo = share(rows, i, n), hi = share(rows, i + 1, n)
        cdef float* dx = self.gradient_of(layer)
        cdef Gradient down = self.branch_gradient(layer, FFN_DOWN, &l.post_ffw_norm, k.mlp, lo, hi)
        cdef Gradient g[2]
        cdef int j
        g[0], g[1] = self.gradient(b.gate, c.ff_p, 0), self.gradient(b.up, c.ff_p, rows * padded(c.n_ff, BACK_ROWS))
        restore_rows(k.gate, b.gate, c.ff_p, lo, hi, self.extent.item)
        if c.gated:
            restore_rows(k.up, b.up, c.ff_p, lo, hi, self.extent.item)
        for j in range(l.n_of_mlp):
            self.magnify(layer, l.first_of_mlp + j, b.up if j else b.gate, c.ff_p, lo, hi)
        activate_rows(c, l, b, lo, hi)
        self.shared_rows(layer, lo, hi)
        self.linear_gradients(layer, FFN_DOWN, &down, rows, lo, hi)
        barrier(&self.team)      # h; dy of all tokens: rounded, du, transposes
        self.linears_backward(layer, FFN_DOWN, 1, b.h, c.ff_p, &down, rows, b.dh, c.ff_p, i)
        self.shared_rows_backward(layer, lo, hi)
        activate_rows_backward(c, l, b, lo, hi)
        input_rows(c, &l.ffn_norm, k.mid, b.normed, lo, hi)
        for j in range(l.n_of_mlp):     # h and dh are used up
            self.restore_product(layer, l.first_of_mlp + j, k.up if j else k.gate, b.dh if j else b.h, c.ff_p, g + j, lo, hi)
            self.linear_gradients(layer, l.first_of_mlp + j, g + j, rows, lo, hi)
        barrier(&self.team)      # the same of gate and up; normed
        self.linears_backward(layer, l.first_of_mlp, l.n_of_mlp, b.normed, c.embd_p, g, rows, b.part, c.embd_p, i)
        input_rows_backward(c, &l.ffn_norm, k.mid, b.part, dx, lo, hi)

    cdef Gradient branch_gradient(self, int layer, int slot, const Norm* after, const void* kept, int lo, int hi) noexcept nogil:
        """dy of the last matrix of attention or of the MLP, rows lo..hi made here: in part, or the residual's where that is the
        same. normed is used up, or holds the product."""
        cdef Config* c = &self.weights.config
        cdef float* dx = self.gradient_of(layer)
        cdef Gradient g
        if after.weight == NULL and c.residual_scale == 1 and self.pair(layer, slot).m == NULL:
            return self.gradient(dx, c.embd_p, 0)
        if after.weight != NULL:
            restore_rows(kept, self.b.normed, c.embd_p, lo, hi, self.extent.item)
            self.magnify(layer, slot, self.b.normed, c.embd_p, lo, hi)
        branch_rows_backward(c, after, self.b.normed, dx, self.b.part, lo, hi)
        g = self.gradient(self.b.part, c.embd_p, 0)
        self.restore_product(layer, slot, kept, self.b.normed, c.embd_p, &g, lo, hi)
        return g

    cdef void restore_product(self, int layer, int slot, const void* kept, float* y, size_t ld, Gradient* g, int lo, int hi) noexcept nogil:
        """Rows lo..hi of what a matrix gave, in y, for the gradient of its magnitudes, where its pair has any"""
        if self.pair(layer, slot).m != NULL:
            g.product, g.ldp = y, ld
            restore_rows(kept, y, ld, lo, hi, self.extent.item)

    cdef void output_backward(self, int layer, int i, int n) noexcept nogil:
        """From the gradient behind attention to b.datt of all T tokens, of those that the last layer left out zero; q, k and v
        as attention saw them"""
        cdef Config* c = &self.weights.config
        cdef Block* l = &self.weights.blocks[layer]
        cdef Kept* k = self.kept + layer
        cdef Buffers* b = &self.b
        cdef bint last = layer == c.n_layer - 1
        cdef int rows = self.rows(layer), lo = share(self.T, i, n), hi = share(self.T, i + 1, n)
        cdef float* datt = b.dh if last else b.datt
        cdef Gradient g
        restore_rows(k.q, b.q, c.q_p, lo, hi, self.extent.item)
        restore_rows(k.k, b.k, c.kv_p, lo, hi, self.extent.item)
        restore_rows(k.v, b.v, c.kv_p, lo, hi, self.extent.item)
        self.magnify(layer, ATTN_V, b.v, c.kv_p, lo, hi)
        if self.plain_heads(layer):
            self.magnify(layer, ATTN_Q, b.q, c.q_p, lo, hi)
            self.magnify(layer, ATTN_K, b.k, c.kv_p, lo, hi)
            head_rows(c, l, &l.q_norm, b, b.q, c.q_p, c.n_head, lo, hi)
            temper_rows(c, self.position, b.q, c.q_p, lo, hi)
            head_rows(c, l, &l.k_norm, b, b.k, c.kv_p, c.n_head_kv, lo, hi)
        lo, hi = share(rows, i, n), share(rows, i + 1, n)
        g = self.branch_gradient(layer, ATTN_OUTPUT, &l.post_attention_norm, k.attention, lo, hi)
        restore_rows(k.att, b.att, c.q_p, lo, hi, self.extent.item)
        self.linear_gradients(layer, ATTN_OUTPUT, &g, rows, lo, hi)
        barrier(&self.team)      # q, k, v; dy behind attention of all tokens: rounded, du, transposes; att
        self.linears_backward(layer, ATTN_OUTPUT, 1, b.att, c.q_p, &g, rows, datt, c.q_p, i)
        if last:
            self.spread_rows(datt, b.datt, c.q_p, i, n)

    cdef void spread_rows(self, const float* scored, float* all_, size_t ld, int i, int n) noexcept nogil:
        """all_ (T, ld) = the rows of the last layer's scored tokens where those stand, zero elsewhere; each thread its share"""
        cdef int t
        for t in range(share(self.T, i, n), share(self.T, i + 1, n)):
            if self.rank_of[t] < 0:
                clear_rows(all_, ld, t, t + 1)
            else:
                memcpy(all_ + t * ld, scored + self.rank_of[t] * ld, 4 * ld)

    cdef void attention_backward(self, int layer, int i, int n) noexcept nogil:
        cdef Config* c = &self.weights.config
        cdef int lo = share(self.T, i, n), hi = share(self.T, i + 1, n)
        cdef float* dn = self.b.part if layer > self.extent.first_layer else NULL
        if layer == c.n_layer - 1:
            barrier(&self.team)      # the gradient of the residual
            self.spread_rows(self.b.tail, self.b.dx, c.embd_p, i, n)
            barrier(&self.team)      # datt, dx of all T
        self.heads_backward(layer, i, n)
        self.project_backward(layer, dn, i, n)
        if dn != NULL:
            input_rows_backward(c, &self.weights.blocks[layer].attn_norm, self.kept[layer].x, dn, self.b.dx, lo, hi)

    cdef void heads_backward(self, int layer, int i, int n) noexcept nogil:
        """From datt to the gradients of what the matrices gave: b.q, b.dk, b.dv, of each thread's own tokens"""
        cdef Config* c = &self.weights.config
        cdef Block* l = &self.weights.blocks[layer]
        cdef Kept* k = self.kept + layer
        cdef Buffers* b = &self.b
        cdef int t, s, h, end, lo = share(self.T, i, n), hi = share(self.T, i + 1, n), group = c.n_head // c.n_head_kv
        cdef size_t at, kv_at
        cdef Walk walk = Walk(0, 0)
        for s in range(self.n_segments):
            while next_dynamic(&self.team, &walk, c.n_head, 1, &h, &end):
                at = self.starts[s] * <size_t>c.q_p + h * c.head_dim
                kv_at = self.starts[s] * <size_t>c.kv_p + h // group * c.head_dim
                attend_backward(b.q + at, c.q_p, b.k + kv_at, b.v + kv_at, c.kv_p, b.datt + at, c.q_p,
                                self.starts[s + 1] - self.starts[s], c.head_dim, &l.scores, h,
                                b.q + at, c.q_p, b.dk + at, b.dv + at, c.q_p, self.scratch(i))
        barrier(&self.team)      # dq, dk, dv
        for t in range(lo, hi):
            sum_groups(b.dk + t * c.q_p, c.n_head_kv, group, c.head_dim)
            sum_groups(b.dv + t * c.q_p, c.n_head_kv, group, c.head_dim)
        temper_rows(c, self.position, b.q, c.q_p, lo, hi)
        if l.q_norm.norm.weight != NULL:
            restore_rows(k.q, b.att, c.q_p, lo, hi, self.extent.item)
            restore_rows(k.k, b.k, c.kv_p, lo, hi, self.extent.item)
            self.magnify(layer, ATTN_Q, b.att, c.q_p, lo, hi)
            self.magnify(layer, ATTN_K, b.k, c.kv_p, lo, hi)
        head_rows_backward(c, l, &l.q_norm, b, b.att, c.q_p, b.q, c.q_p, c.n_head, lo, hi)
        head_rows_backward(c, l, &l.k_norm, b, b.k, c.kv_p, b.dk, c.q_p, c.n_head_kv, lo, hi)

    cdef void project_backward(self, int layer, float* dn, int i, int n) noexcept nogil:
        """The gradients of the matrices that made those, and of their input: dn, NULL where nobody wants it"""
        cdef Config* c = &self.weights.config
        cdef Block* l = &self.weights.blocks[layer]
        cdef Kept* k = self.kept + layer
        cdef Buffers* b = &self.b
        cdef int lo = share(self.T, i, n), hi = share(self.T, i + 1, n)
        cdef size_t q_width = padded(l.linear[ATTN_Q].w.n_rows, BACK_ROWS), kv_width = padded(l.linear[ATTN_K].w.n_rows, BACK_ROWS)
        cdef Gradient g[3]
        g[0], g[1] = self.gradient(b.q, c.q_p, 0), self.gradient(b.dk, c.q_p, self.T * q_width)
        g[2] = self.gradient(b.dv, c.q_p, self.T * (q_width + kv_width))
        self.restore_product(layer, ATTN_Q, k.q, b.att, c.q_p, g, lo, hi)
        self.restore_product(layer, ATTN_K, k.k, b.k, c.kv_p, g + 1, lo, hi)
        self.restore_product(layer, ATTN_V, k.v, b.v, c.kv_p, g + 2, lo, hi)
        self.normed_backward(layer, ATTN_Q, 3, g, dn, i, n)

    cdef void normed_backward(self, int layer, int slot, int n_linear, Gradient* g, float* dn, int i, int n) noexcept nogil:
        """The same of n_linear matrices of attention that see the layer's x, normed"""
        cdef Config* c = &self.weights.config
        cdef int j, lo = share(self.T, i, n), hi = share(self.T, i + 1, n)
        input_rows(c, &self.weights.blocks[layer].attn_norm, self.kept[layer].x, self.b.normed, lo, hi)
        for j in range(n_linear):
            self.linear_gradients(layer, slot + j, g + j, self.T, lo, hi)
        barrier(&self.team)      # the same of q, k, v; normed
        self.linears_backward(layer, slot, n_linear, self.b.normed, c.embd_p, g, self.T, dn, c.embd_p, i)
