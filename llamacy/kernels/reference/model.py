"""A whole llama in float64: packed samples -> logits and loss, and back to the gradients of every LoRA pair.

`weights` is a dict of arrays under GGUF's names (`blk.0.attn_q.weight` (n_out, n_in), norms (n_embd,), biases where a
matrix has one); without `output.weight` the embedding is the head. `lora` is a dict of (a (R, n_in), b (n_out, R))
under the names of the matrices that they adapt. Tokens of several samples lie one after the other; `segments` (T,)
tells them apart. With a third, m (n_out,), a pair is DoRA's.
Axes as in layers.py, and F n_ff.
"""

from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np

from llamacy.kernels.reference import experts, layers, mixers
from llamacy.kernels.reference.quants import round_activations


@dataclass(frozen=True)
class Config:
    """The numbers of a llama, and what its kin change.

    no_rope: layers whose heads positions do not turn; rope_tables, instead of theta, scale and factors: (frequencies,
    factor on cosines and sines), the second table for the layers in other_rope; temperature (factor, length): queries
    are times 1 + factor ln(1 + floor(position / length)); fused: attn_qkv holds the rows of q, k and v, ffn_up those of
    gate and up; key_length: of a head, where it is not n_embd / n_head; norm: "rms" or "layer", norms: those of each
    layer over n_embd, norm_biases: with biases; head_norms: "" for none, "heads" of each head, "each" with weights of
    its own, "rows" of all heads together; activation: see layers.activate; parallel: attention and MLP see the first
    norm of x; biases: matrices that have one, "output" among them; scales multiply embeddings, what attention and MLP
    add, scores (None: 1 / sqrt(head_dim)) and logits; activation_bits 8 or 16 rounds what enters the matrices (their
    adapters see it exact). window: positions that a token sees in the layers `windowed` (None: all). score_cap,
    logit_cap: see layers.soft_cap. A layer has sinks where the weights have blk.N.attn_sinks.weight.
    kv_rank: latent attention, see mixers.py, with q_rank (0: queries are made at once), values of n_value elements and
    n_rot, the end of a key that positions turn. convolving: layers with a short convolution of n_taps instead.
    n_expert: experts of all layers but the first n_dense, 0 for a dense model; each of width n_ff_expert, n_used of
    them for a token, chosen as experts.route has it. n_ff_shared: the width of the expert beside them, 0 for none.
    """

    n_vocab: int
    n_embd: int
    n_head: int
    n_head_kv: int
    n_ff: int
    n_layer: int
    rope_theta: float = 10000.0
    rope_scale: float = 1.0
    rope_factors: tuple | None = None
    rope_layout: str = "pairs"
    no_rope: tuple = ()
    n_rot: int | None = None
    rope_tables: tuple = ()
    other_rope: tuple = ()
    temperature: tuple = (0.0, 1)
    rms_eps: float = 1e-5
    fused: bool = False
    key_length: int | None = None
    norm: str = "rms"
    norms: tuple = ("attn_norm", "ffn_norm")
    norm_biases: bool = False
    head_norms: str = ""
    activation: str = "swiglu"
    parallel: bool = False
    biases: tuple = ()
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    score_scale: float | None = None
    logit_scale: float = 1.0
    activation_bits: int | None = None
    n_expert: int = 0
    n_used: int = 0
    n_dense: int = 0
    n_ff_expert: int = 0
    n_ff_shared: int = 0
    scores: str = "softmax"
    renormalised: bool = True
    expert_scale: float = 1.0
    groups: tuple = (0, 0)
    selection: bool = False
    kv_rank: int = 0
    q_rank: int = 0
    n_value: int = 0
    convolving: tuple = ()
    n_taps: int = 0
    window: int | None = None
    windowed: tuple | None = None
    score_cap: float | None = None
    logit_cap: float | None = None

    @property
    def head_dim(self):
        """Elements of a head."""
        return self.key_length or self.n_embd // self.n_head

    def has_experts(self, layer):
        """Whether a layer has experts."""
        return self.n_expert > 0 and layer >= self.n_dense

    @property
    def routing(self):
        """How they are chosen: arguments of experts.route."""
        how = {"k": self.n_used, "scores": self.scores, "renormalised": self.renormalised, "scale": self.expert_scale}
        return how | {"groups": self.groups}

    def has_rope(self, layer):
        """Whether positions turn a layer's heads."""
        return layer not in self.no_rope

    def mask(self, layer, segments, positions):
        """What a layer's tokens see: see layers.causal_mask."""
        window = self.window if self.windowed is None or layer in self.windowed else None
        return layers.causal_mask(segments, positions, window=window)


def linear_shapes(config):
    """Return {name within a layer: (n_out, n_in)} of the matrices that LoRA adapts: seven, where none are fused."""
    c, f, q, kv = config.n_embd, config.n_ff, config.n_head * config.head_dim, config.n_head_kv * config.head_dim
    if config.fused:
        return {"attn_qkv": (q + 2 * kv, c), "attn_output": (c, q), "ffn_up": (2 * f, c), "ffn_down": (c, f)}
    attention = {"attn_q": (q, c), "attn_k": (kv, c), "attn_v": (kv, c), "attn_output": (c, q)}
    gate = {"ffn_gate": (f, c)} if layers.is_gated(config.activation) else {}
    return attention | gate | {"ffn_up": (f, c), "ffn_down": (c, f)}


def norm_shapes(config):
    """Return {name within a layer: shape} of its norms."""
    d, heads = config.head_dim, {"attn_q_norm": config.n_head, "attn_k_norm": config.n_head_kv}
    shape_of = {"": None, "heads": lambda n: (d,), "each": lambda n: (n, d), "rows": lambda n: (n * d,)}
    of_heads = {name: shape_of[config.head_norms](n) for name, n in heads.items() if config.head_norms}
    return dict.fromkeys(config.norms, (config.n_embd,)) | of_heads


def layer_shapes(config, n):
    """Return {name within layer n: shape} of its matrices: experts' stacked, (n_expert, n_out, n_in)."""
    shapes = linear_shapes(config)
    if other := mixers.linear_shapes(config, n):
        shapes = other | {name: shape for name, shape in shapes.items() if name.startswith("ffn_")}
    if not config.has_experts(n):
        return shapes
    c, f, s, e = config.n_embd, config.n_ff_expert, config.n_ff_shared, config.n_expert
    shapes = {name: shape for name, shape in shapes.items() if not name.startswith("ffn_")}
    shapes |= {"ffn_gate_inp": (e, c), "ffn_gate_exps": (e, f, c), "ffn_up_exps": (e, f, c), "ffn_down_exps": (e, c, f)}
    shared = {"ffn_gate_shexp": (s, c), "ffn_up_shexp": (s, c), "ffn_down_shexp": (c, s)}
    return shapes | (shared if s else {})


def tensor_shapes(config, tied=False):
    """Return {GGUF name: shape} of all tensors, in file order."""
    shapes = {"token_embd.weight": (config.n_vocab, config.n_embd)}
    for n in range(config.n_layer):
        for name, shape in layer_shapes(config, n).items():
            shapes[f"blk.{n}.{name}.weight"] = shape
        norms = norm_shapes(config) | mixers.vector_shapes(config, n)
        lacks = ("attn_q_norm", "attn_k_norm") if n in config.convolving else ()
        shapes |= {f"blk.{n}.{name}.weight": shape for name, shape in norms.items() if name not in lacks}
        if config.selection and config.has_experts(n):
            shapes[f"blk.{n}.exp_probs_b.bias"] = (config.n_expert,)
    shapes["output_norm.weight"] = (config.n_embd,)
    shapes |= {} if tied else {"output.weight": (config.n_vocab, config.n_embd)}
    return shapes | _bias_shapes(config, shapes)


def _bias_shapes(config, shapes):
    """Return {GGUF name: shape} of the biases that belong to tensors of these shapes."""
    with_bias = {*config.biases, *((*config.norms, "output_norm") if config.norm_biases else ())}
    names = {name: name.removesuffix(".weight") for name in shapes}
    found = {f"{short}.bias": shapes[name] for name, short in names.items() if short.split(".")[-1] in with_bias}
    return {name: shape[: max(1, len(shape) - 1)] for name, shape in found.items()}


def uniform(seed, shape):
    """Random float64 in [-1, 1), the same from every version of NumPy: PCG64's raw stream is promised not to change."""
    raw = np.random.PCG64(seed).random_raw(int(np.prod(shape)))
    return (np.asarray(raw, np.uint64) >> np.uint64(11)).reshape(shape) * 2.0**-52 - 1


def random_weights(config, seed, tied=False):
    """Return weights whose layers keep variances near 1: matrices uniform with variance 1 / n_in, norms in [0.5, 1.5),
    biases in [-0.5, 0.5).

    The numbers are exact in float32, so that programs that compute in it start from the same model.
    """
    weights = {}
    for i, (name, shape) in enumerate(tensor_shapes(config, tied).items()):
        u = uniform((seed, i), shape)
        spread = 3.0 if name == "token_embd.weight" else 3.0 / shape[-1]
        vector = len(shape) == 1 or "_norm." in name or name.endswith(".bias")
        values = 1 + u / 2 if vector else u * np.sqrt(spread)
        values -= name.endswith(".bias")
        weights[name] = values.astype(np.float32).astype(np.float64)
    return weights


def random_lora(config, rank, seed):
    """Return LoRA pairs for all linear matrices but routers, exact in float32; B (A x) is a quarter of x in size.

    B is not zero. Each expert has its own: of "blk.0.ffn_up.5.weight".
    """
    lora = {}
    for n in range(config.n_layer):
        for i, (name, (n_out, n_in)) in enumerate(_adapted(config, n)):
            a = uniform((seed, n, i, 0), (rank, n_in)) * np.sqrt(3 / n_in)
            b = uniform((seed, n, i, 1), (n_out, rank)) * np.sqrt(3 / rank) / 4
            lora[name] = tuple(x.astype(np.float32).astype(np.float64) for x in (a, b))
    return lora


def _adapted(config, n):
    """Yield (name, (n_out, n_in)) of a layer's matrices that adapters sit on."""
    for name, shape in layer_shapes(config, n).items():
        if len(shape) == 3:
            yield from ((f"blk.{n}.{name.removesuffix('_exps')}.{e}.weight", shape[1:]) for e in range(shape[0]))
        elif name != "ffn_gate_inp":
            yield f"blk.{n}.{name}.weight", shape


def next_token_targets(tokens, segments, trained=None):
    """Return targets (T,): the token after, or -1 at a sample's end and where that token is not `trained` on."""
    tokens, segments = np.asarray(tokens), np.asarray(segments)
    kept = np.r_[segments[1:] == segments[:-1], False]
    if trained is not None:
        kept &= np.r_[np.asarray(trained, bool)[1:], False]
    return np.where(kept, np.r_[tokens[1:], -1], -1)


# --- one matrix and its adapter, by name -----------------------------------------------------------------------------


class _Linears:
    """The matrices of a model by name, adapters applied; collects the adapters' gradients on the way back."""

    def __init__(self, config, weights, lora, scale):
        self.bits, self.lora, self.scale = config.activation_bits, lora or {}, scale
        self.weights = weights | experts.unstacked(weights)
        self.gradients = {}

    def _scale_of(self, tokens):
        """The adapters' scale of those tokens; None for all."""
        return self.scale if tokens is None or np.ndim(self.scale) == 0 else np.asarray(self.scale)[tokens]

    def forward(self, name, x, tokens=None):
        """y (T, n_out) of x (T, n_in); tokens (T,): which of the call's they are."""
        y = layers.linear(round_activations(x, self.bits), self.weights[name])
        a, b, *m = self.lora.get(name, (None, None))
        if a is not None:
            y = y + layers.low_rank(x, a, b, self._scale_of(tokens))
        if m:
            y = y * m[0] / layers.row_lengths(self.weights[name], a, b, self.scale)
        return y + self.weights.get(name.removesuffix("weight") + "bias", 0)

    def backward(self, name, dy, x, tokens=None):
        """Return dx; rounding is taken as the identity, and no frozen matrix has its gradient formed."""
        if name not in self.lora:
            return dy @ self.weights[name]
        a, b, *m = self.lora[name]
        if m:
            dx, *found = layers.dora_linear_backward(dy, x, self.weights[name], a, b, self.scale, *m)
        else:
            dx, *found = layers.lora_linear_backward(dy, x, self.weights[name], a, b, self._scale_of(tokens))
        self.gradients[name] = tuple(found)
        return dx

    def forward_parts(self, x, names, widths):
        """Products of one input, from as many matrices or from one that holds the rows of all."""
        y = np.concatenate([self.forward(name, x) for name in names], axis=-1)
        return np.split(y, np.cumsum(widths)[:-1], axis=-1)

    def backward_parts(self, dys, x, names):
        """Return dx of the same."""
        dys = dys if len(names) > 1 else [np.concatenate(dys, axis=-1)]
        return sum(self.backward(name, dy, x) for name, dy in zip(names, dys, strict=True))


# --- one layer: the parts, names and order of pyx/layers/block.pxd ---------------------------------------------------


def norm_row(config, weights, norm, x):
    """The norm of each row of x, over its last axis; x where there is no such norm."""
    if norm + ".weight" not in weights:
        return x
    if config.norm == "layer":
        return layers.layer_norm(x, weights[norm + ".weight"], weights.get(norm + ".bias", 0), config.rms_eps)
    return layers.rms_norm(x, weights[norm + ".weight"], config.rms_eps)


def norm_row_backward(config, weights, norm, x, dn):
    """The gradient of x."""
    if norm + ".weight" not in weights:
        return dn
    backward = layers.layer_norm_backward if config.norm == "layer" else layers.rms_norm_backward
    return backward(dn, x, weights[norm + ".weight"], config.rms_eps)[0]


def prepare_heads(config, weights, n, part, x, positions):
    """Queries or keys of layer n as attention compares them: (T, heads * head_dim) -> (T, heads, head_dim).

    part: "q" or "k".
    """
    heads = (len(x), -1, config.head_dim)
    x = x if config.head_norms == "rows" else x.reshape(heads)
    x = norm_row(config, weights, f"blk.{n}.attn_{part}_norm", x).reshape(heads)
    return layers.turn(x, *_angles(config, n, positions), config.rope_layout) if config.has_rope(n) else x


def prepare_heads_backward(config, weights, n, part, x, dx, positions):
    """The gradient of x, what they were made of."""
    heads = (len(x), -1, config.head_dim)
    if config.has_rope(n):
        angles, factor = _angles(config, n, positions)
        dx = layers.turn(dx, -angles, factor, config.rope_layout)
    seen = x.shape if config.head_norms == "rows" else heads
    dx = norm_row_backward(config, weights, f"blk.{n}.attn_{part}_norm", x.reshape(seen), dx.reshape(seen))
    return dx.reshape(x.shape)


def _angles(config, n, positions):
    """Angles of layer n (T, n_rot / 2), and the factor on their cosines and sines."""
    if config.rope_tables:
        frequencies, factor = config.rope_tables[int(n in config.other_rope)]
        return np.asarray(positions)[:, None] * np.asarray(frequencies), factor
    n_rot = config.n_rot or config.head_dim
    return layers.rope_angles(positions, n_rot, config.rope_theta, config.rope_scale, config.rope_factors), 1.0


def temper_queries(config, q, positions):
    """Queries (T, H, D) times what their positions ask for; so is their gradient."""
    factor, length = config.temperature
    return q * (1 + factor * np.log(1 + np.asarray(positions) // length))[:, None, None]


def _scoring(config, weights, n):
    sinks = weights.get(f"blk.{n}.attn_sinks.weight")
    return {"scale": config.score_scale, "cap": config.score_cap, "sinks": sinks}


def _attention_parts(config, p):
    """(the tensors that q, k and v come from, how many columns each of the three has)"""
    q, kv = config.n_head * config.head_dim, config.n_head_kv * config.head_dim
    names = ["attn_qkv"] if config.fused else ["attn_q", "attn_k", "attn_v"]
    return [f"{p}{name}.weight" for name in names], [q, kv, kv]


def _mlp_parts(config, p, shared):
    """The same for gate and up, of the expert that all tokens share or of the only MLP."""
    gated, end = layers.is_gated(config.activation), "_shexp.weight" if shared else ".weight"
    names = ["ffn_gate", "ffn_up"] if gated and not config.fused else ["ffn_up"]
    return [p + name + end for name in names], [config.n_ff_shared if shared else config.n_ff] * (1 + gated)


def _layer_forward(config, linears, n, x, positions, mask):
    """x (T, C) -> y (T, C) and the activations that the backward pass needs, by name."""
    weights, p = linears.weights, f"blk.{n}."

    normed = norm_row(config, weights, p + "attn_norm", x)
    attended, heads = _heads_forward(config, linears, n, normed, positions, mask)
    attention = linears.forward(p + _output_of(config, n), attended)
    middle = x + config.residual_scale * norm_row(config, weights, p + "post_attention_norm", attention)

    seen = x if config.parallel else middle
    ffn_normed = norm_row(config, weights, _second_norm(weights, p), seen)
    mlp, inside = _mlp_forward(config, linears, n, ffn_normed)
    y = middle + config.residual_scale * norm_row(config, weights, p + "post_ffw_norm", mlp)
    return y, SimpleNamespace(
        x=x, heads=heads, attended=attended, attention=attention, seen=seen, ffn_normed=ffn_normed, inside=inside,
        mlp=mlp,
    )  # fmt: skip


def _output_of(config, n):
    return "shortconv.out_proj.weight" if n in config.convolving else "attn_output.weight"


def _heads_forward(config, linears, n, normed, positions, mask):
    """What the first half's last matrix sees of its norm's output (T, C), and what the backward pass needs."""
    weights = linears.weights
    if n in config.convolving:
        return mixers.convolution(linears, n, normed, positions)
    if config.kv_rank:
        angles, factor = _angles(config, n, positions)
        made = mixers.latent(
            linears, config, n, normed, lambda norm, x: norm_row(config, weights, norm, x),
            lambda x: layers.turn(x, angles, factor, config.rope_layout),
        )  # fmt: skip
    else:
        made = SimpleNamespace(x=normed)
        made.plain_q, made.plain_k, v = linears.forward_parts(normed, *_attention_parts(config, f"blk.{n}."))
        q = prepare_heads(config, weights, n, "q", made.plain_q, positions)
        made.q = temper_queries(config, q, positions)
        made.k = prepare_heads(config, weights, n, "k", made.plain_k, positions)
        made.v = v.reshape(made.k.shape)
    attended = layers.attention(made.q, made.k, made.v, mask, **_scoring(config, weights, n))[0]
    return attended.reshape(len(normed), -1), made


def _heads_backward(config, linears, n, made, dattended, positions, mask):
    """dattended (T, ...) -> the gradient of the norm's output (T, C)"""
    weights = linears.weights
    if n in config.convolving:
        return mixers.convolution_backward(linears, n, made, dattended, positions)
    dattended = dattended.reshape(*made.q.shape[:2], -1)
    dq, dk, dv = layers.attention_backward(dattended, made.q, made.k, made.v, mask, **_scoring(config, weights, n))
    if config.kv_rank:
        angles, factor = _angles(config, n, positions)
        return mixers.latent_backward(
            linears, config, n, made, dq, dk, dv,
            lambda norm, x, dn: norm_row_backward(config, weights, norm, x, dn),
            lambda dx: layers.turn(dx, -angles, factor, config.rope_layout),
        )  # fmt: skip
    dq = temper_queries(config, dq, positions)
    dq = prepare_heads_backward(config, weights, n, "q", made.plain_q, dq, positions)
    dk = prepare_heads_backward(config, weights, n, "k", made.plain_k, dk, positions)
    dv = dv.reshape(len(dq), -1)
    return linears.backward_parts((dq, dk, dv), made.x, _attention_parts(config, f"blk.{n}.")[0])


def _second_norm(weights, p):
    """The norm before the MLP; a parallel layer may have one for both."""
    return p + ("ffn_norm" if p + "ffn_norm.weight" in weights else "attn_norm")


def _mlp_forward(config, linears, n, x):
    """What layer n's MLP, or its experts, make of x (T, C), and what the backward pass needs."""
    saved, out, suffix = SimpleNamespace(), 0, ""
    if config.has_experts(n):
        out, saved.experts = experts.experts(linears, n, x, config.routing, config.activation)
        if not config.n_ff_shared:
            return out, saved
        suffix, saved.weight = "_shexp", experts.shared_weight(linears, n, x)
    saved.gate, *up = linears.forward_parts(x, *_mlp_parts(config, f"blk.{n}.", bool(suffix)))
    saved.up = up[0] if up else None
    saved.hidden = layers.activate(config.activation, saved.gate, saved.up)
    saved.y = linears.forward(f"blk.{n}.ffn_down{suffix}.weight", saved.hidden)
    return out + (saved.weight * saved.y if suffix else saved.y), saved


def _mlp_backward(config, linears, n, dout, x, saved):
    """dout (T, C) -> dx (T, C)"""
    dx, suffix = 0, ""
    if config.has_experts(n):
        dx = experts.experts_backward(linears, n, dout, x, saved.experts, config.routing, config.activation)
        if not config.n_ff_shared:
            return dx
        suffix, dweight = "_shexp", (dout * saved.y).sum(axis=1, keepdims=True)
        dx = dx + experts.shared_weight_backward(linears, n, dweight, saved.weight)
        dout = saved.weight * dout
    dhidden = linears.backward(f"blk.{n}.ffn_down{suffix}.weight", dout, saved.hidden)
    dparts = layers.activate_backward(config.activation, dhidden, saved.gate, saved.up)
    dparts = [d for d in dparts if d is not None]
    return dx + linears.backward_parts(dparts, x, _mlp_parts(config, f"blk.{n}.", bool(suffix))[0])


def _layer_backward(config, linears, n, dy, saved, positions, mask):
    """dy (T, C) -> dx (T, C); the adapters' gradients go to linears.gradients."""
    weights, p = linears.weights, f"blk.{n}."

    dmlp = norm_row_backward(config, weights, p + "post_ffw_norm", saved.mlp, config.residual_scale * dy)
    dffn_normed = _mlp_backward(config, linears, n, dmlp, saved.ffn_normed, saved.inside)
    dseen = norm_row_backward(config, weights, _second_norm(weights, p), saved.seen, dffn_normed)
    dmiddle = dy if config.parallel else dy + dseen

    dattention = config.residual_scale * dmiddle
    dattention = norm_row_backward(config, weights, p + "post_attention_norm", saved.attention, dattention)
    dattended = linears.backward(p + _output_of(config, n), dattention, saved.attended)
    dnormed = _heads_backward(config, linears, n, saved.heads, dattended, positions, mask)
    dx = dmiddle + norm_row_backward(config, weights, p + "attn_norm", saved.x, dnormed)
    return dx + dseen if config.parallel else dx


# --- the model -------------------------------------------------------------------------------------------------------


def _head(weights):
    return "output.weight" if "output.weight" in weights else "token_embd.weight"


def _forward(config, linears, tokens, segments, positions):
    """Return logits (T, V) without their cap, the last layer's output and its norm, and each layer's activations."""
    x, saved = np.asarray(linears.weights["token_embd.weight"], np.float64)[np.asarray(tokens)], []
    x = x * config.embedding_scale
    for n in range(config.n_layer):
        x, kept = _layer_forward(config, linears, n, x, positions, config.mask(n, segments, positions))
        saved.append(kept)
    normed = norm_row(config, linears.weights, "output_norm", x)
    return config.logit_scale * linears.forward(_head(linears.weights), normed), x, normed, saved


def forward(config, weights, tokens, segments=None, lora=None, scale=1.0, positions=None):
    """Return logits (T, V) of tokens (T,) ids; `segments` defaults to one sample.

    `positions` defaults to each token's index within its segment; given, the tokens may come in any order, as those of
    a cache's slots do. `scale` multiplies every adapter, once for all tokens or one a token (T,).
    """
    segments = np.zeros(len(tokens), int) if segments is None else segments
    positions = layers.segment_positions(segments) if positions is None else positions
    logits = _forward(config, _Linears(config, weights, lora, scale), tokens, segments, positions)[0]
    return layers.soft_cap(logits, config.logit_cap)


def loss_and_gradients(config, weights, tokens, targets, segments=None, lora=None, scale=1.0, n_trained=None):
    """Return the mean cross-entropy of the trained targets, {name: (da, db)} for every pair in `lora`, and dx (T, C).

    targets (T,) ids, negative where not trained on; n_trained as in layers.cross_entropy; dx is the gradient of the
    embedded tokens.
    """
    segments = np.zeros(len(tokens), int) if segments is None else segments
    positions = layers.segment_positions(segments)
    linears = _Linears(config, weights, lora, scale)
    raw, x, normed, saved = _forward(config, linears, tokens, segments, positions)
    logits = layers.soft_cap(raw, config.logit_cap)
    loss = layers.cross_entropy(logits, targets, n_trained)

    dlogits = layers.cross_entropy_backward(logits, targets, n_trained)
    dlogits = config.logit_scale * layers.soft_cap_backward(dlogits, raw, config.logit_cap)
    dnormed = linears.backward(_head(weights), dlogits, normed)
    dx = norm_row_backward(config, weights, "output_norm", x, dnormed)
    for n in reversed(range(config.n_layer)):
        dx = _layer_backward(config, linears, n, dx, saved[n], positions, config.mask(n, segments, positions))
    return loss, linears.gradients, dx
