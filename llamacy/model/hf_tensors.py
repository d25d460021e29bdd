"""A Hugging Face model's tensors under GGUF's names and in GGUF's order: copied, reordered, cut, stacked, shifted.

A tensor of the result is a Target: the Sources that it is made of, in their order. Most have one and are copied as they
are. Rows move where the family is permuted; a fused tensor is cut (CUTS); experts, and norms of heads, of which each is
a tensor of its own, are stacked.
"""

import re
from dataclasses import dataclass, field, replace

import numpy as np

from llamacy.errors import some
from llamacy.formats.architectures import (
    BY_NAME,
    LM_HEAD,
    OUTPUT_NORM,
    SELECTION,
    SHARED_EXPERT,
    TOKEN_EMBD,
    Norm,
    sizes,
)
from llamacy.formats.lora import paired_from_halves, permuted_rows
from llamacy.formats.rewrite import can_write, rewritten
from llamacy.formats.types import by_name
from llamacy.kernels import quants
from llamacy.model.hf_keys import lfm2_layers, lfm2_width

# Tensors that follow from the configuration, or that no step of a decoder of text reads.
_DERIVED = re.compile(r".*\.(rotary_emb\.inv_freq|masked_bias|attn\.bias)")
_NOT_TEXT = re.compile(
    r"(?:model\.)?(?:vision_tower|vision_model|multi_modal_projector|vision_encoder|image_\w+)\..*", re.DOTALL
)
_NAME = re.compile(r"(?:model\.|language_model\.|ernie\.)*(?:layers\.(0|[1-9]\d{0,4})\.)?(.+)", re.DOTALL)
_SIDES = re.compile(r"(.+?)(?:\.(weight|bias)|_(bias|blocks|scales))?", re.DOTALL)
# Matrices that stay F32 whatever the others become: too small to matter, and what they decide is not.
_F32_PARTS = re.compile(r".*(ffn_gate_inp|ffn_gate_inp_shexp|shortconv\.conv|_norm)\.weight|.*\.bias")


# How rows of one source go to several targets: family -> module -> [(part, which rows)]; `which` is a function of the
# number of rows and the sizes. "" stands for families without a table of their own.
def _first(n, sizes):
    return np.arange(n // 2)


def _second(n, sizes):
    return np.arange(n // 2, n)


def _even(n, sizes):
    return np.arange(0, n, 2)


def _odd(n, sizes):
    return np.arange(1, n, 2)


def _all(n, sizes):
    return np.arange(n)


def _span(start, stop):
    """Return the rows between two sums of sizes, each a tuple of their keys."""
    return lambda n, sizes: np.arange(sum(sizes[key] for key in start), sum(sizes[key] for key in (*start, *stop)))


_FUSED_EXPERTS = {
    "mlp.experts.gate_up_proj": [("ffn_gate_exps", _first), ("ffn_up_exps", _second)],
    "mlp.experts.down_proj": [("ffn_down_exps", _all)],
}
CUTS = {
    "": _FUSED_EXPERTS,
    "gpt-oss": {
        "mlp.experts.gate_up_proj": [("ffn_gate_exps", _even), ("ffn_up_exps", _odd)],
        "mlp.experts.down_proj": [("ffn_down_exps", _all)],
    },
    "granitemoe": {
        "block_sparse_moe.input_linear": [("ffn_gate_exps", _first), ("ffn_up_exps", _second)],
        "block_sparse_moe.output_linear": [("ffn_down_exps", _all)],
        "shared_mlp.input_linear": [("ffn_gate_shexp", _first), ("ffn_up_shexp", _second)],
        "shared_mlp.output_linear": [("ffn_down_shexp", _all)],
    },
    "ernie4_5": {
        "self_attn.qkv_proj": [
            ("attn_q", _span((), ("q",))), ("attn_k", _span(("q",), ("kv",))), ("attn_v", _span(("q", "kv"), ("kv",))),
        ],
        "mlp.up_gate_proj": [("ffn_gate", _first), ("ffn_up", _second)],
    },
}  # fmt: skip
# Of each head's rows the first are keys without positions, which GGUF keeps transposed, the others values.
_KV_B = "self_attn.kv_b_proj"
_PARALLEL = "use_parallel_residual"
# Families whose folders hold their experts' matrices as (n_in, n_out).
_TURNED = {"gpt-oss"}


@dataclass
class Source:
    """Rows of a tensor of the folder; `rows`: which, of each matrix in it, None for all; `turned`: it is (n_in, n_out).

    scales  where it is MXFP4's codes: the tensor of their scales
    """

    file: object
    info: object
    rows: object = None
    turned: bool = False
    scales: object = None

    @property
    def n_matrices(self):
        """How many matrices it holds."""
        return self.info.shape[0] if len(self.info.shape) > 2 else 1


@dataclass
class Target:
    """A tensor of the result: its name, its shape, and what it is made of, by index."""

    name: str
    shape: tuple
    sources: dict = field(default_factory=dict)
    shift: float = 0.0
    order: object = None


class Plan:
    """Where each tensor of an HfConfig's folder goes. LlamacyError unless every part is there, and nothing else.

    n_vocab: rows of the embedding; notes: what is left out.
    """

    def __init__(self, config):
        self.config, self.row = config, config.row
        self.sizes = sizes_of(config)
        self.n_layer = config.whole("num_hidden_layers")
        self.targets, self.strange, self.left_out = {}, [], 0
        tops = (TOKEN_EMBD, OUTPUT_NORM, LM_HEAD)
        self.tops = {self.row.hf_name(part.name).removeprefix("model."): part.name for part in tops}
        self.cuts = CUTS.get("") | CUTS.get(config.family, {})
        self.parts, self.patterns = {}, []
        for part in self.known_parts():
            module = self.row.hf_name(part)
            if "*" in module:
                self.patterns.append((re.compile(re.escape(module).replace(r"\*", r"(0|[1-9]\d{0,4})")), part))
            elif module:
                self.parts[module] = part
        for name, (file, info) in config.folder.tensors.items():
            self._take(name, file, info)
        self.n_vocab = self._vocabulary()
        self._check()
        left_out = f"{self.left_out} tensors of images left out: text only"
        self.notes = [left_out] if self.left_out else []

    def known_parts(self):
        """Yield every part that a layer of the family may have, by the tensors that hold it."""
        matrices = [part for matrix in self.row.matrices for part in self.row.stored.get(matrix, (matrix,))]
        yield from dict.fromkeys((*matrices, *self.row.norms, *self.row.vectors, *self.row.experts, *self.row.optional))

    # ---- from the folder's names to sources ----

    def _take(self, name, file, info):
        """Put a tensor of the folder where it belongs; those that belong nowhere are `strange`."""
        if _NOT_TEXT.fullmatch(name):
            self.left_out += 1
            return
        match = _NAME.fullmatch(name)
        module, side, other = _SIDES.fullmatch(match[2]).groups()
        side = side or (other if other == "bias" else "weight")
        if _DERIVED.fullmatch(name) or (match[1] is None and self._is_unused(module)):
            return
        found = False
        if match[1] is None and module in self.tops:
            part = self.tops[module]
            base = self.row.output_norm.removesuffix(".weight") if part == OUTPUT_NORM.name else part
            found = self._put(f"{base}.{side}", tuple(info.shape), 0, Source(file, info), part)
        elif match[1] is not None:
            found = self._take_part(int(match[1]), module, side, other, file, info)
        if not found:
            self.strange.append(name)

    def _is_unused(self, module):
        """The output matrix of a tied model is the embedding once more."""
        return module == LM_HEAD.hf and self.config.is_tied

    def _take_part(self, layer, module, side, other, file, info):
        if self.config.family == "cohere2" and side == "bias":
            values = quants.dequantize(np.ascontiguousarray(file.data(info.name)), info.type.number)
            return not values.any()
        if module == _KV_B and self.config.family == "deepseek2":
            source = Source(file, info)
            return all(self._put_part(layer, part, side, 0, source) for part in ("attn_k_b", "attn_v_b"))
        if module in self.parts:
            return self._put_part(layer, self.parts[module], side, 0, Source(file, info))
        for pattern, part in self.patterns:
            match = pattern.fullmatch(module)
            if match:
                return self._put_part(layer, part, side, int(match[1]), Source(file, info))
        return all(
            [self._put_cut(layer, part, side, other, rows, file, info) for part, rows in self.cuts.get(module, [])]
            or [False]
        )

    def _put_cut(self, layer, part, side, other, rows, file, info):
        turned = self.config.family in _TURNED and side == "weight" and other is None
        if other == "scales":  # beside its blocks
            return info.name.removesuffix("scales") + "blocks" in self.config.folder.tensors
        scales = None
        if other == "blocks":
            entry = self.config.folder.tensors.get(info.name.removesuffix("blocks") + "scales")
            if entry is None:
                return False
            scales = entry[1]
        n_rows = info.shape[1] if scales is not None else info.shape[-1] if turned or side == "bias" else info.shape[-2]
        source = Source(file, info, rows(n_rows, self.sizes), turned, scales)
        return self._put_part(layer, part, side, 0, source)

    def _put_part(self, layer, part, side, index, source):
        name = f"blk.{layer}.{self.row.gguf_name(part)}.{side}"
        try:
            shape = self._shape(part, side)
        except KeyError:  # a size that the configuration does not give: it has no such part
            return False
        return self._put(name, shape, index, source, part)

    def _shape(self, part, side):
        shape = self.row.shape(part, self.sizes)
        if side == "bias" and not isinstance(BY_NAME[part], Norm):
            return shape[:-1]
        return shape

    def _put(self, name, shape, index, source, part):
        target = self.targets.setdefault(name, Target(name, shape))
        if index in target.sources or not 1 <= len(source.info.shape) <= 4:
            return False
        target.sources[index] = source
        if self.row.norm_shift and (part == OUTPUT_NORM.name or isinstance(BY_NAME.get(part), Norm)):
            target.shift = self.row.norm_shift
        return True

    # ---- what must be there ----

    def _check(self):
        """Raise LlamacyError unless every part of every layer is there in its shape, and nothing else."""
        if self.strange:
            what = f"{some(self.strange, 3)}: no tensors that a {self.config.family} model has"
            raise self.config.error(what, "other parts, and other kinds of models, need their GGUF file")
        n_vocab, n_embd = self.n_vocab, self.config.whole("hidden_size")
        wanted = {self.row.embedding: (n_vocab, n_embd), self.row.output_norm: (n_embd,)}
        if self.row.output in self.targets:
            wanted[self.row.output] = (n_vocab, n_embd)
        elif not self.config.is_tied:
            raise self.config.error(
                "the weights hold no lm_head.weight, and tie_word_embeddings is not set", "download it again"
            )
        if self.n_layer * len(self.row.norms) > len(self.targets) + self.n_layer:
            what = f"{self.n_layer} layers, and the weights hold {len(self.targets)} tensors"
            raise self.config.error(what, "is the download complete?")
        for layer in range(self.n_layer):
            for part in self.layer_parts(layer):
                name, bias = (f"blk.{layer}.{self.row.gguf_name(part)}.{side}" for side in ("weight", "bias"))
                is_norm = isinstance(BY_NAME[part], Norm)
                if part == SELECTION:  # it has no weights
                    wanted |= {bias: self._shape(part, "bias")} if bias in self.targets else {}
                    continue
                if name in self.targets or not self._may_lack(part):
                    wanted[name] = self._shape(part, "weight")
                has_biases = is_norm and self.row.norm_biases and name in wanted and BY_NAME[part].n == "embd"
                needs_bias = part in self.row.biases or has_biases
                if needs_bias or (bias in self.targets and not is_norm):
                    wanted[bias] = self._shape(part, "bias")
        if f"{LM_HEAD.name}.bias" in self.targets:
            wanted[f"{LM_HEAD.name}.bias"] = (n_vocab,)
        if self.row.norm_biases:
            wanted[self.row.output_norm.removesuffix("weight") + "bias"] = (n_embd,)
        for name, shape in wanted.items():
            found = self.found_shape(name)
            if found != shape:
                what = f"{name} is {found}, wanted {shape}"
                raise self.config.error(what, "the files do not match, or a file is missing")
        extra = [name for name in self.targets if name not in wanted]
        if extra:
            raise self.config.error(f"{extra[0]} belongs to no layer of the {self.n_layer}", "the files do not match")

    def _may_lack(self, part):
        """Whether a folder may do without a part that its layers have a place for."""
        if part not in self.row.optional or part in SHARED_EXPERT:
            return False
        values = self.config.values
        asked = values.get("qk_layernorm") if part.endswith(("q_norm", "k_norm")) else not values.get(_PARALLEL)
        return self.config.family != "stablelm" or not asked

    def _vocabulary(self):
        """Return how many rows the embedding has."""
        target = self.targets.get(self.row.embedding)
        if target is None or len(target.sources[0].info.shape) != 2:
            raise self.config.error("the weights hold no matrix model.embed_tokens.weight", "is the download complete?")
        return target.shape[0]

    def layer_parts(self, layer):
        """Yield the parts of a layer: its attention or convolution, and its dense MLP or experts."""
        convolves = self.config.family == "lfm2" and lfm2_layers(self.config)[layer] == "conv"
        of_queries = ("attn_q",) if self.sizes.get("q_rank") else ("attn_q_a", "attn_q_b", "attn_q_a_norm")
        has_experts = self.config.n_expert > 0 and layer >= self.config.n_dense
        for part in self.known_parts():
            if part.startswith("ffn_") and not isinstance(BY_NAME[part], Norm):
                there = (part in self.row.matrices) is not has_experts
            elif self.row.latent:
                there = part not in of_queries and (part != SELECTION or has_experts)
            else:
                always = self.config.family != "lfm2" or part in ("attn_norm", "ffn_norm")
                there = always or part.startswith("shortconv") is convolves
            if there and (part not in SHARED_EXPERT or self.sizes.get("ff_shexp")):
                yield part

    def found_shape(self, name):
        """Return the shape that a target's sources give, "missing" without any."""
        target = self.targets.get(name)
        if target is None:
            return "missing"
        if name.endswith(("attn_k_b.weight", "attn_v_b.weight")):
            heads, nope, value, rank = (self.sizes[key] for key in ("head", "key_plain", "value", "kv_rank"))
            fits = tuple(target.sources[0].info.shape) == (heads * (nope + value), rank)
            return target.shape if fits else tuple(target.sources[0].info.shape)
        if sorted(target.sources) != list(range(len(target.sources))):
            return f"without part {next(i for i in range(len(target.sources)) if i not in target.sources)}"
        shapes = [_source_shape(target.sources[i]) for i in sorted(target.sources)]
        if len(shapes) == 1 and len(target.shape) == len(shapes[0]):
            return shapes[0]
        if any(shape != shapes[0] for shape in shapes):
            return "of parts of several shapes"
        return (len(shapes), *shapes[0])

    # ---- bytes ----

    def entries(self, targets_of, n_threads):
        """Return (write_gguf's entries, {type: elements of matrices}).

        targets_of: function of [TensorInfo by GGUF's names] that gives {name: QuantType to write}.
        """
        infos = {}
        for name, target in self.targets.items():
            info = target.sources[0].info
            for source in target.sources.values():
                kind = source.info.type
                if source.scales is None and (kind.number not in quants.types() or not can_write(kind)):
                    what = f"tensor {source.info.name!r} is {kind.name}"
                    raise source.file.error(what, "wanted F32, F16 or BF16: convert it")
            kind = by_name("MXFP4") if target.sources[0].scales is not None else info.type
            infos[name] = replace(info, name=name, shape=target.shape, type=kind)
        matrices = [info for name, info in infos.items() if len(info.shape) > 1 and not _F32_PARTS.fullmatch(name)]
        wanted, entries, kinds = targets_of(matrices), [], {}
        for name, target in self.targets.items():
            kind = wanted.get(name, by_name("F32"))
            if target.sources[0].scales is not None:
                kind = by_name("MXFP4")
            if name in wanted:
                kinds[kind.name] = kinds.get(kind.name, 0) + infos[name].n_elements
            target.order = self.order(name, target.shape)
            entries.append((name, kind, target.shape, _reader(self, target, kind, n_threads)))
        return entries, kinds

    def order(self, name, shape):
        """Return where row i of q's or k's GGUF tensor stands in the folder's, None where they keep their order."""
        place = permuted_rows(self.config.family, name)
        if place is None:
            return None
        heads = self.config.heads[BY_NAME[place[1]].heads]
        if shape[0] % (2 * heads):
            raise self.config.error(f"{name} has {shape[0]} rows, which are no {heads} heads", "the files do not match")
        return paired_from_halves(np.arange(shape[0])[:, None], heads)[:, 0]


def _source_shape(source):
    shape = tuple(source.info.shape)
    if source.scales is not None:
        shape = (*shape[:-2], shape[-2] * 32) if len(shape) == 4 and shape[-1] == 16 else shape
    if source.turned:
        shape = (*shape[:-2], shape[-1], shape[-2])
    if len(shape) == 3 and shape[1] == 1 and ".conv." in source.info.name:
        shape = (shape[0], shape[2])
    if source.rows is None:
        return shape
    is_bias = source.info.name.endswith("bias")
    return (*shape[:-1], len(source.rows)) if is_bias else (*shape[:-2], len(source.rows), shape[-1])


def sizes_of(config):
    """Return the sizes that parts are described by, see architectures.sizes."""
    n_head, n_kv = config.heads.values()
    n_ff = lfm2_width(config) if config.family == "lfm2" else config.whole("intermediate_size", "block_ff_dim")
    more = {"conv_in": 3 * config.whole("hidden_size"), "conv": config.get("conv_L_cache") or 0}
    if config.n_expert:
        more |= {"expert": config.n_expert, "ff_exp": config.whole("moe_intermediate_size", "intermediate_size")}
        shared = config.get("shared_expert_intermediate_size", "shared_intermediate_size")
        if config.family == "deepseek2":
            shared = (config.get("n_shared_experts") or 0) * more["ff_exp"]
        more["ff_shexp"] = shared or 0
    head_dim = config.head_dim
    if config.family == "deepseek2":
        nope, rope, value = (config.whole(key) for key in ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"))
        rank = config.whole("kv_lora_rank")
        head_dim = nope + rope
        more |= {"q_rank": config.get("q_lora_rank") or 0, "kv_rank": rank, "kv_a": rank + rope, "key_plain": nope}
        more |= {"value": value, "values": n_head * value}
    return sizes(config.whole("hidden_size"), n_head, n_kv, head_dim, n_ff, **more)


# ---- readers: functions that write_gguf calls for one tensor's bytes ----


def _reader(plan, target, kind, n_threads):
    sources = [target.sources[i] for i in sorted(target.sources)]
    if target.name.endswith(("attn_k_b.weight", "attn_v_b.weight")):
        return lambda: _encoded(_low_rank(plan, target, sources[0]), kind, n_threads)
    if sources[0].scales is not None:
        return lambda: np.concatenate([_mxfp4(plan, source) for source in sources])
    plain = all(source.rows is None and not source.turned for source in sources)
    if len(target.shape) == 1 or target.shift or not plain:
        return lambda: _encoded(_values(target, sources), kind, n_threads)
    if len(sources) == 1 and target.order is None and kind is sources[0].info.type:
        return lambda: sources[0].file.data(sources[0].info.name).reshape(-1, kind.row_bytes(target.shape[-1]))
    if len(sources) == 1 and len(sources[0].info.shape) == len(target.shape):
        return lambda: rewritten(sources[0].file, sources[0].info, kind, n_threads, order=target.order)
    return lambda: _encoded(_values(target, sources), kind, n_threads)


def _encoded(values, kind, n_threads):
    rows = np.ascontiguousarray(values, np.float32).reshape(-1, values.shape[-1])
    if kind.name == "F32":
        return rows if values.ndim > 1 else rows[0]
    return quants.quantize(rows, kind.number, n_threads)


def _values(target, sources):
    """Return a target's values, f32, in its shape."""
    parts = []
    for source in sources:
        info = source.info
        flat = quants.dequantize(np.ascontiguousarray(source.file.data(info.name)), info.type.number)
        values = flat.reshape(info.shape)
        values = values.swapaxes(-1, -2) if source.turned else values
        if source.rows is not None:
            values = values[..., source.rows] if info.name.endswith("bias") else values[..., source.rows, :]
        parts.append(values)
        source.file.release(info.name)
    values = (np.stack(parts) if len(parts) > 1 else parts[0]).reshape(target.shape)
    values = values if target.order is None else values[target.order]
    return values + np.float32(target.shift) if target.shift else values


def _low_rank(plan, target, source):
    heads, nope, value, rank = (plan.sizes[key] for key in ("head", "key_plain", "value", "kv_rank"))
    flat = quants.dequantize(np.ascontiguousarray(source.file.data(source.info.name)), source.info.type.number)
    both = flat.reshape(heads, nope + value, rank)
    return both[:, :nope].swapaxes(1, 2) if ".attn_k_b." in target.name else both[:, nope:]


def _mxfp4(plan, source):
    """Return MXFP4 rows: a scale, then the codes of elements j and j + 16 in byte j, which come as 2j and 2j + 1."""
    n, _, n_blocks, _ = source.info.shape
    shape = (n, -1, n_blocks)
    codes = source.file.data(source.info.name).reshape(*shape, 16)[:, source.rows]
    file, info = plan.config.folder.tensors[source.scales.name]
    scales = file.data(info.name).reshape(shape)[:, source.rows]
    found = np.stack([codes & 15, codes >> 4], axis=-1).reshape(*codes.shape[:-1], 32)
    packed = found[..., :16] | found[..., 16:] << 4
    return np.concatenate([scales[..., None], packed], axis=-1).reshape(n * len(source.rows), n_blocks * 17)
