"""A model's weights as the compiled steps see them: a Block for each layer, embedding and output matrix, adapters."""

from cython.parallel cimport parallel
from libc.stdint cimport uint8_t
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memset

from ..layers.block cimport Block, Config, FFN_GATE, FFN_UP, N_SLOTS, scale_row
from ..layers.experts cimport MAX_EXPERTS, OF_EXPERT, SIGMOID, SOFTMAX, Experts, Routing
from ..layers.linear cimport Linear, Lora
from ..layers.magnitude cimport row_lengths
from ..layers.mlp cimport activation
from ..layers.norm cimport NORMED_HEAD, HeadNorm, Norm, norm_kind
from ..layers.scores cimport NO_WINDOW, Scoring
from ..products.gemm cimport Packed
from ..products.inputs cimport padded
from ..products.matmul cimport PackedMatrix
from ..types.quants cimport row_type
from .team cimport omp_get_num_threads, omp_get_thread_num, share

import numpy as np

from llamacy.errors import LlamacyError
from llamacy.kernels.threads import check_threads

EMBEDDING = (-2, 0)     # add_adapter's key for the token embedding

# By slot, see layers/block.pxd.
NAMES = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down", "attn_q_a", "attn_kv_a_mqa", "attn_kv_b")
# Behind them those of a layer's experts: matrix j of expert e is slot N_SLOTS + len(EXPERT_NAMES) e + j.
EXPERT_NAMES = ("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps")
SCORES = {"softmax": SOFTMAX, "sigmoid": SIGMOID}
# Over n_embd, in the order of Block's fields.
NORMS = ("attn_norm", "ffn_norm", "post_attention_norm", "post_ffw_norm")


cdef int set_sizes(Config* c, sizes) except -1:
    """Fill a Config's sizes from their names, n_layer among them; n_expert, n_used, n_ff_expert where there are experts."""
    c.n_embd, c.n_head, c.n_head_kv, c.head_dim = sizes["n_embd"], sizes["n_head"], sizes["n_head_kv"], sizes["head_dim"]
    c.n_ff, c.n_layer, c.n_vocab, c.n_rot = sizes["n_ff"], sizes["n_layer"], sizes["n_vocab"], sizes["n_rot"]
    c.n_ropes = sizes.get("n_ropes", 1)
    c.embd_p, c.ff_p, c.vocab_p = padded(c.n_embd, 16), padded(c.n_ff, 16), padded(c.n_vocab, 16)
    c.n_expert, c.n_used = sizes.get("n_expert", 0), sizes.get("n_used", 0)
    c.expert_p = padded(sizes.get("n_ff_expert", 0), 16)
    c.q_p, c.kv_p = padded(c.n_head * c.head_dim, 16), padded(c.n_head_kv * c.head_dim, 16)
    c.kv_rank, c.n_value = sizes.get("kv_rank", 0), sizes.get("n_value", c.head_dim)
    c.q_a_p = c.kv_a_p = c.kv_b_p = 0
    if c.kv_rank:
        c.q_a_p, c.kv_a_p = padded(sizes["q_rank"], 16), padded(c.kv_rank + c.n_rot, 16)
        c.kv_b_p = padded(c.n_head * (c.head_dim - c.n_rot + c.n_value), 16)
    c.n_taps = sizes.get("n_taps", 0)
    if c.n_taps:        # b, c and x of a convolution stand where queries, keys and values do
        c.q_p, c.kv_p = max(c.q_p, c.embd_p), max(c.kv_p, c.embd_p)
    c.gated, c.post_norms = sizes.get("gated", True), sizes.get("post_norms", False)
    c.logit_cap = sizes.get("logit_cap", 0)
    c.embedding_scale, c.residual_scale, c.logit_scale = (sizes.get(f"{name}_scale", 1) for name in ("embedding", "residual", "logit"))
    return 0


cdef void unpacked_row(const Packed* w, int row, float* x) noexcept nogil:
    """x[n_cols] = a row of W: from tiles, so that no page of the file is needed, though 16 rows are unpacked for one"""
    cdef float values[16 * 32]
    cdef const uint8_t* tile = w.tiles + <size_t>(row // 16) * w.n_blocks * w.type.tile_bytes
    cdef int b, i
    for b in range(w.n_blocks):
        w.type.unpack_f32(tile, 1, values)
        for i in range(min(32, w.n_cols - 32 * b)):
            x[32 * b + i] = values[16 * i + row % 16]
        tile += w.type.tile_bytes


cdef void stretch_rows(const Packed* w, Lora* l, const float* magnitude, int thread, int of) noexcept nogil:
    """A thread's row tiles of B become g B, of the stretch g - 1"""
    cdef int tile, i, k
    cdef float* b
    cdef float gain
    cdef float lengths[16]
    for tile in range(share(w.n_tiles, thread, of), share(w.n_tiles, thread + 1, of)):
        b = l.b + <size_t>tile * l.rank * 16
        row_lengths(w, l.rank, l.scale, l.a, l.width, b, 16, tile, lengths)
        for i in range(16):
            gain = magnitude[16 * tile + i] / lengths[i] if lengths[i] != 0 else 0
            l.stretch[16 * tile + i] = gain - 1
            for k in range(l.rank):
                b[16 * k + i] *= gain


cdef class Weights:
    """Everything a step reads: sizes, tensors and adapters. Arrays handed in are kept alive here."""

    def __cinit__(self, config, list layers, output, output_norm, const uint8_t[:, ::1] embedding=None, int embedding_type=0):
        """config: sizes and scales by Config's names, rms_eps, rope_layout, ropes, see RopeTables, temperature (factor, length)
        and, where they are not llama's, rope_first (a head's first element that turns), norm (one of
        KIND_OF), activation (one of ACTIVATIONS), parallel, score_scale, score_cap, logit_cap; layers: dicts of NAMES'
        PackedMatrix, without those that the family does not have, optional "<name>.bias" f32, norms by NORMS' names, f32, each
        with its optional "<name>.bias", "rope": which of ropes, None where positions turn nothing, and where there are such
        "window": positions that a query sees, "sinks" f32 (n_head,), "experts": see fill_experts, "n_parts" {slot: how many matrices from this on are one to adapters},
        "taps" f32 (n_taps, n_embd) of a convolution for attention; output: PackedMatrix
        (n_vocab, n_embd); embedding: rows of blocks of type embedding_type, None where the output matrix is the embedding too.
        The biases of the last two are config's: "output.bias", "output_norm.bias"."""
        cdef int i
        self.keep, self.adapters, self.embedding_loras, self.norms, self.lora_arrays = [], [], [], {}, []
        set_sizes(&self.config, dict(config, n_layer=len(layers), n_ropes=len(config["ropes"])))
        self.config.temperature, self.config.temperature_length = config.get("temperature", (0, 0))
        self.ropes = RopeTables(config["ropes"], self.config.n_rot)
        for i in range(self.ropes.n):
            self.rope[i] = Rope(self.config.n_rot, config.get("rope_first", 0), config["rope_layout"], i)
        if embedding is not None:
            self.embedding, self.embedding_row = &embedding[0, 0], embedding.shape[1]
            self.embedding_type = row_type(embedding_type)
            if self.embedding_type == NULL:
                raise ValueError(f"type {embedding_type} has no row function")
            self.keep.append(embedding)
        self.blocks = <Block*>calloc(len(layers), sizeof(Block))
        if self.blocks == NULL:
            raise MemoryError()
        for i in range(self.config.n_layer):
            self.fill_block(i, layers[i], config)
        self.set_norm_of(&self.output_norm, -1, "output_norm", config, output_norm, config.get("output_norm.bias"))
        self.set_linear(&self.output, output, config.get("output.bias"))

    def __dealloc__(self):
        cdef int i, j
        if self.blocks != NULL:
            for i in range(self.config.n_layer):
                for j in range(self.n_slots(i)):
                    free(self.linear_at(i, j).loras)
                if self.blocks[i].experts != NULL:
                    free(self.blocks[i].experts.linear)
                    free(self.blocks[i].experts)
        free(self.output.loras)
        free(self.embedding_pairs)
        free(self.blocks)

    cdef int fill_block(self, int i, dict parts, config) except -1:
        cdef Block* b = &self.blocks[i]
        cdef Norm* norms[4]
        cdef int slot, j
        norms[0], norms[1], norms[2], norms[3] = &b.attn_norm, &b.ffn_norm, &b.post_attention_norm, &b.post_ffw_norm
        for j in range(4):
            self.set_norm_of(norms[j], i, NORMS[j], config, parts.get(NORMS[j]), parts.get(NORMS[j] + ".bias"))
        self.set_low_norm(&b.q_a_norm, i, "attn_q_a_norm", config, parts.get("attn_q_a_norm"))
        self.set_low_norm(&b.kv_a_norm, i, "attn_kv_a_norm", config, parts.get("attn_kv_a_norm"))
        if "taps" in parts:
            taps = np.zeros((self.config.n_taps, self.config.embd_p), np.float32)
            taps[:, :self.config.n_embd] = parts["taps"]
            b.taps = self.vector(taps.reshape(-1))
        for slot in range(N_SLOTS):
            b.n_parts[slot] = 1
        for first, n in parts.get("n_parts", {}).items():
            for slot in range(first, first + n):
                b.n_parts[slot] = n if slot == first else 0
        self.set_head_norm(&b.q_norm, i, "attn_q_norm", config, parts.get("attn_q_norm"), self.config.n_head)
        self.set_head_norm(&b.k_norm, i, "attn_k_norm", config, parts.get("attn_k_norm"), self.config.n_head_kv)
        rope = parts.get("rope", 0)
        if rope is not None and not 0 <= rope < self.ropes.n:
            raise ValueError(f"layer {i}: rope {rope}, wanted below {self.ropes.n}")
        b.rope = &self.rope[<int>rope] if rope is not None else NULL
        scale = config.get("score_scale", 1 / (<double>self.config.head_dim) ** 0.5)
        b.scores = Scoring(scale, config.get("score_cap", 0), parts.get("window") or NO_WINDOW, NULL)
        if "sinks" in parts:
            b.scores.sinks = self.vector(parts["sinks"])
        b.activation, b.parallel = activation(config.get("activation", "swiglu")), config.get("parallel", False)
        if b.parallel and "ffn_norm" not in parts:
            b.ffn_norm = b.attn_norm
        b.first_of_mlp, b.n_of_mlp = (FFN_GATE, 2) if b.activation.gated else (FFN_UP, 1)
        for slot in range(N_SLOTS):
            if NAMES[slot] in parts:
                self.set_linear(&b.linear[slot], parts[NAMES[slot]], parts.get(NAMES[slot] + ".bias"))
        if "experts" in parts:
            self.fill_experts(b, parts["experts"])
            b.experts.activation = activation(config.get("expert_activation", config.get("activation", "swiglu")))
        return 0

    cdef int fill_experts(self, Block* b, dict parts) except -1:
        """parts: router, a PackedMatrix (n, n_embd), of each of EXPERT_NAMES a list of n PackedMatrix, "<name>.bias" f32 (n, n_out)
        or for the router (n,); scores, one of SCORES, renormalised and scale; optional groups (how many, how many of them used), selection f32 (n,), shared_gate f32 (n_embd,).

        The layer's own ffn_gate, ffn_up, ffn_down are the expert that all tokens share; it may have none.
        """
        cdef int e, j, n = len(parts["ffn_gate_exps"])
        cdef Experts* x = <Experts*>calloc(1, sizeof(Experts))
        if x == NULL:
            raise MemoryError()
        b.experts = x
        if not 1 <= self.config.n_used <= n <= MAX_EXPERTS or n != self.config.n_expert:
            raise ValueError(f"{self.config.n_used} of {n} experts, wanted 1 to {MAX_EXPERTS}, {self.config.n_expert} by the config")
        groups = parts.get("groups", (0, 0))
        x.routing = Routing(n, self.config.n_used, SCORES[parts["scores"]], parts["renormalised"], parts["scale"], groups[0], groups[1])
        x.linear = <Linear*>calloc(n * OF_EXPERT, sizeof(Linear))
        if x.linear == NULL:
            x.routing.n = 0
            raise MemoryError()
        self.set_linear(&x.router, parts["router"], parts.get("router.bias"))
        x.selection = self.vector(parts["selection"]) if parts.get("selection") is not None else NULL
        x.shared_gate = self.vector(parts["shared_gate"]) if parts.get("shared_gate") is not None else NULL
        for j, name in enumerate(EXPERT_NAMES):
            biases = parts.get(name + ".bias")
            for e in range(n):
                self.set_linear(&x.linear[OF_EXPERT * e + j], parts[name][e], biases[e] if biases is not None else None)
        x.n_ff = x.linear[0].w.n_rows
        x.ff_p = <int>padded(x.n_ff, 16)
        if x.ff_p > self.config.expert_p:
            raise ValueError(f"experts of width {x.n_ff}, wanted at most {self.config.expert_p} by the config")
        return 0

    cdef int set_norm_of(self, Norm* norm, int layer, name, config, array, bias) except -1:
        """A norm over n_embd; array None: there is none"""
        norm.kind, norm.n, norm.eps = norm_kind(config.get("norm", "rms")), self.config.n_embd, config["rms_eps"]
        if array is not None:
            norm.weight = self.vector(array)
            self.norms[layer, name] = self.keep[len(self.keep) - 1]
        if bias is not None:
            norm.bias = self.vector(bias)
            self.norms[layer, name + ".bias"] = self.keep[len(self.keep) - 1]
        return 0

    cdef int set_low_norm(self, Norm* norm, int layer, name, config, array) except -1:
        """A norm of latent attention, over as many elements as its array has; None: there is none"""
        if array is not None:
            norm.kind, norm.n, norm.eps, norm.weight = norm_kind("rms"), <int>len(array), config["rms_eps"], self.vector(array)
            self.norms[layer, name] = self.keep[len(self.keep) - 1]
        return 0

    cdef int set_head_norm(self, HeadNorm* h, int layer, name, config, array, int n_head) except -1:
        """array: None; (head_dim,) for every head; (n_head, head_dim) for one each; with row_norms (n_head * head_dim,)"""
        cdef int head_dim = self.config.head_dim
        if array is None:
            return 0
        array = np.asarray(array)
        rows = array.reshape(1, -1) if array.ndim == 1 else array
        width, h.whole = rows.shape[1], config.get("row_norms", False)
        wanted = [(1, n_head * head_dim)] if h.whole else [(1, head_dim), (n_head, head_dim)]
        if rows.shape not in wanted:
            raise ValueError(f"{name} is {array.shape}, for {n_head} heads of {head_dim} elements")
        if not h.whole and head_dim > NORMED_HEAD:
            raise ValueError(f"{name}: heads of {head_dim} elements, wanted at most {NORMED_HEAD}")
        h.each = padded(width, 16) if len(rows) > 1 else 0
        flat = np.zeros((len(rows), padded(width, 16)), np.float32)
        flat[:, :width] = rows
        h.norm.kind, h.norm.n, h.norm.eps = norm_kind(config.get("norm", "rms")), width, config["rms_eps"]
        h.norm.weight = self.vector(flat.reshape(-1))
        if len(rows) == 1:
            self.norms[layer, name] = self.keep[len(self.keep) - 1]
        return 0

    def set_norm(self, int layer, name, array):
        """Replace a norm's weights, f32 as it has: one of NORMS or of attn_q_norm, attn_k_norm of a layer, output_norm of
        layer -1; with ".bias" behind it, its bias."""
        self.begin_change()
        try:
            np.asarray(self.norms[layer, name])[:len(array)] = array
        finally:
            self.end_change()

    cdef float* vector(self, array) except NULL:
        """A copy of array (n,), padded with zeros to 16."""
        cdef float[::1] v = np.zeros(padded(len(array), 16), np.float32)
        np.asarray(v)[:len(array)] = array
        self.keep.append(v)
        return &v[0]

    cdef int set_linear(self, Linear* l, matrix, bias) except -1:
        l.w = (<PackedMatrix?>matrix).w
        l.bias = self.vector(bias) if bias is not None else NULL
        self.keep.append(matrix)
        return 0

    cdef void embed(self, int token, const float* scales, float* x) noexcept nogil:
        """x[n_embd] = the token's embedding as it enters the first layer, its adapters with scales (n_lora), NULL for 1; the
        padding is zero"""
        cdef int i
        if self.embedding == NULL:
            unpacked_row(&self.output.w, token, x)
        else:
            self.embedding_type.dequantize(self.embedding + token * self.embedding_row, self.config.n_embd // self.embedding_type.block, x)
        for i in range(self.config.n_embd, self.config.embd_p):
            x[i] = 0
        for i in range(self.n_lora):
            self.add_embedding_pair(&self.embedding_pairs[i], token, scales[i] if scales != NULL else 1, x)
        if self.config.embedding_scale != 1:
            scale_row(x, self.config.embedding_scale, self.config.embd_p, x)

    cdef void add_embedding_pair(self, const Lora* l, int token, float factor, float* x) noexcept nogil:
        """x += factor * scale * b[token] a, for an adapter of the embedding; rank 0 where it has none"""
        cdef int i, j
        for j in range(l.rank):
            for i in range(self.config.n_embd):
                x[i] += factor * l.scale * l.b[<size_t>token * l.rank + j] * l.a[<size_t>j * self.config.n_embd + i]

    def embeddings(self, tokens):
        """Rows of the token embedding, f32 (T, n_embd)."""
        cdef float[:, ::1] out = np.empty((len(tokens), self.config.embd_p), np.float32)
        cdef int t
        for t in range(len(tokens)):
            if not 0 <= tokens[t] < self.config.n_vocab:
                raise ValueError(f"token {tokens[t]} is not in 0..{self.config.n_vocab - 1}")
            self.embed(tokens[t], NULL, &out[t, 0])
        return np.asarray(out)[:, :self.config.n_embd]

    cdef RopeTables tables(self, given):
        """The tables that a step is given, as many as the model has; the model's own for None"""
        if given is None:
            return self.ropes
        if len(given) != self.ropes.n:
            raise ValueError(f"{len(given)} tables of rotary positions, wanted {self.ropes.n}")
        return RopeTables(given, self.config.n_rot)

    # ---- steps and changes: any number of the ones, or one of the others; the GIL is held where they begin and end ----

    cdef int begin_step(self, int n_threads, bint* busy) except -1:
        """busy: that of the one whose buffers the step uses"""
        check_threads(n_threads)
        if busy[0]:
            raise LlamacyError("this session computes in another thread already; give each thread a session of its own")
        if self.steps < 0:
            raise LlamacyError("the model's adapters are being changed in another thread; wait for it to end")
        self.steps += 1
        busy[0] = True
        return 0

    cdef void end_step(self, bint* busy) noexcept:
        self.steps -= 1
        busy[0] = False

    cdef int begin_change(self) except -1:
        if self.steps:
            raise LlamacyError("adapters and their scales cannot change while the model computes in another thread; wait for it to end")
        self.steps = -1
        return 0

    cdef void end_change(self) noexcept:
        self.steps = 0

    # ---- adapters ----

    cdef int n_slots(self, int layer) noexcept:
        """How many matrices a layer has, those of its experts too; layer -1: the output matrix alone"""
        if layer < 0:
            return 1
        return N_SLOTS + (OF_EXPERT * self.blocks[layer].experts.routing.n if self.blocks[layer].experts != NULL else 0)

    cdef Linear* linear_at(self, int layer, int slot) noexcept:
        if layer < 0:
            return &self.output
        return &self.blocks[layer].linear[slot] if slot < N_SLOTS else &self.blocks[layer].experts.linear[slot - N_SLOTS]

    def add_adapter(self, dict pairs, int n_threads=1):
        """Append an adapter: {(layer, slot): (a f32 (r, n_in), b f32 (n_out, r), scale)}; returns its index.

        With a fourth, magnitude f32 (n_out,), the matrix is (magnitude / |V|) V, row by row, V = W + scale b a.

        Layer -1 is the output matrix; EMBEDDING the token embedding, with a (r, n_embd) and b (n_vocab, r). LlamacyError
        while a step runs.
        """
        return self.replace_adapter(self.n_lora, pairs, n_threads)

    def replace_adapter(self, int at, dict pairs, int n_threads=1):
        """Put an adapter in the place of another, whose memory is given back; without pairs it changes nothing."""
        if not 0 <= at <= self.n_lora:
            raise ValueError(f"adapter {at} is not in 0..{self.n_lora}")
        self.begin_change()
        try:
            return self.put_adapter(at, dict(pairs), n_threads)
        finally:
            self.end_change()

    cdef put_adapter(self, int at, dict pairs, int n_threads):
        """replace_adapter's work; pairs is used up"""
        cdef int layer, slot, n = max(self.n_lora, at + 1)
        cdef Linear* l
        cdef Lora* grown
        cdef float[:, ::1] a
        cdef float[:, :, ::1] b
        arrays = []
        transposed = {}     # by identity: the parts of a fused matrix share A
        embedding = pairs.pop(EMBEDDING, None)
        for (layer, slot), (first, second, *more) in pairs.items():
            l = self.linear_at(layer, slot)
            if first.shape[1] != l.w.n_cols or second.shape[0] != l.w.n_rows or first.shape[0] != second.shape[1]:
                raise ValueError(f"adapter pair {first.shape}, {second.shape} does not fit a ({l.w.n_rows}, {l.w.n_cols}) matrix")
            if len(more) > 1 and more[1].shape != (l.w.n_rows,):
                raise ValueError(f"{more[1].shape} magnitudes, wanted ({l.w.n_rows},)")
        for layer in range(-1, self.config.n_layer):
            for slot in range(self.n_slots(layer)):
                l = self.linear_at(layer, slot)
                grown = <Lora*>realloc(l.loras, n * sizeof(Lora))
                if grown == NULL:
                    raise MemoryError()
                l.loras = grown
                memset(grown + at, 0, sizeof(Lora))
                if (layer, slot) not in pairs:
                    continue
                first, second, scale, *magnitude = pairs[layer, slot]
                r, n_tiles, width = first.shape[0], l.w.n_tiles, padded(first.shape[0] + len(magnitude), 16)
                if id(first) not in transposed:
                    transposed[id(first)] = np.zeros((l.w.n_cols, width), np.float32)
                    transposed[id(first)][:, :r] = first.T
                a = transposed[id(first)]
                wide = np.zeros((16 * n_tiles, r), np.float32)
                wide[:l.w.n_rows] = second
                b = np.ascontiguousarray(wide.reshape(n_tiles, 16, r).transpose(0, 2, 1))
                arrays += [a, b]
                grown[at] = Lora(r, width, scale, 1, &a[0, 0], &b[0, 0, 0], NULL)
                if magnitude:
                    arrays.append(self.stretched(l, grown + at, magnitude[0], n_threads))
        self.put_embedding(at, n, embedding, arrays)
        self.adapters[at:at + 1] = [{key: pair[2] for key, pair in pairs.items()}]
        self.lora_arrays[at:at + 1] = [arrays]      # the last thing: nothing points to the old ones any more
        self.n_lora = n
        self.max_width, self.max_expert_width = self.widest(), self.widest_expert()
        return at

    cdef object stretched(self, const Linear* l, Lora* lora, magnitude, int n_threads):
        """Make a pair's B g B and its stretch g - 1, g = magnitude / |W + scale B A|; returns what it points to."""
        cdef float[::1] stretch = np.zeros(16 * l.w.n_tiles, np.float32)
        cdef float[::1] wanted = np.zeros(16 * l.w.n_tiles, np.float32)
        check_threads(n_threads)
        np.asarray(wanted)[:l.w.n_rows] = magnitude
        lora.stretch = &stretch[0]
        with nogil, parallel(num_threads=n_threads):
            stretch_rows(&l.w, lora, &wanted[0], omp_get_thread_num(), omp_get_num_threads())
        return stretch

    cdef put_embedding(self, int at, int n, pair, list arrays):
        """Put an adapter's pair on the token embedding, or None, in its place of n; its arrays are added to `arrays`."""
        cdef float[:, ::1] a, b
        cdef Lora* grown = <Lora*>realloc(self.embedding_pairs, n * sizeof(Lora))
        if grown == NULL:
            raise MemoryError()
        self.embedding_pairs = grown
        memset(grown + at, 0, sizeof(Lora))
        if pair is not None:
            a, b = np.ascontiguousarray(pair[0], np.float32), np.ascontiguousarray(pair[1], np.float32)
            if a.shape[1] != self.config.n_embd or b.shape[0] != self.config.n_vocab or a.shape[0] != b.shape[1]:
                raise ValueError("the adapter's embedding pair does not fit")
            arrays += [a, b]
            grown[at] = Lora(<int>a.shape[0], 0, pair[2], 1, &a[0, 0], &b[0, 0], NULL)
        self.embedding_loras[at:at + 1] = [pair[2] if pair is not None else 0]

    def set_scale(self, int adapter, float user):
        """Set one adapter's user scale: each pair's own scale times `user`. LlamacyError while a step runs."""
        self.begin_change()
        try:
            self.embedding_pairs[adapter].scale = self.embedding_loras[adapter] * user
            for (layer, slot), scale in self.adapters[adapter].items():
                self.linear_at(layer, slot).loras[adapter].scale = scale * user
                self.linear_at(layer, slot).loras[adapter].user = user
        finally:
            self.end_change()

    def widest(self):
        cdef int layer, slot, j, width, best = 16
        for layer in range(-1, self.config.n_layer):
            width = 0
            for slot in range(min(self.n_slots(layer), N_SLOTS)):
                for j in range(self.n_lora):
                    width += self.linear_at(layer, slot).loras[j].width
            best = max(best, width)
        return best

    cdef int widest_expert(self) noexcept:
        """The same of what an expert's matrices ask for"""
        cdef int layer, slot, j, width = 0, best = 0
        for layer in range(self.config.n_layer):
            for slot in range(N_SLOTS, self.n_slots(layer)):
                width = 0 if (slot - N_SLOTS) % OF_EXPERT == 0 else width
                for j in range(self.n_lora):
                    width += self.linear_at(layer, slot).loras[j].width
                best = max(best, width)
        return best
