"""The parts of a layer and the model families: what they are called, in every format and flag, and how large they are.

This is the only list of them. Readers and writers of models and adapters, flags, quantisation mixes, estimates and the
packing of weights derive theirs from it. A family is a row of ARCHITECTURES and its test; a part that no family had so
far is a row here, a field of Block (pyx/layers/block.pxd) and a line in the twin (kernels/reference/model.py). A family
may stand here before all its parts are computed: its row names them in `needs`, and those that are still to come are in
MISSING. Such a family is converted, and refused by name when it is opened.
"""

import math
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass, field

from llamacy.formats.metadata_keys import KEYS, only

PAIRS, HALVES = 0, 1  # rope layouts, as pyx/layers/rope.pxd numbers them


@dataclass(frozen=True)
class Tensor:
    """One tensor, or one of each layer; the file's name has "blk.N." before it and ".weight" or ".bias" behind.

    name  GGUF's
    hf    the module in a Hugging Face model, or in one of its layers
    meta  LLaMA's own name, which ggml files use, and flags such as --rank-wq
    """

    name: str
    hf: str
    meta: str = ""


@dataclass(frozen=True)
class Norm(Tensor):
    """A norm of each layer: a vector of weights, and of biases where a family's norms have them.

    n  the key of `sizes` of how long it is
    """

    n: str = "embd"


@dataclass(frozen=True)
class Matrix(Tensor):
    """A matrix of each layer, which an adapter may sit on.

    n_out, n_in  keys of `sizes`: how many rows and columns
    short        what else people call it
    role         what quantisation mixes give more bits: see model/mixes.py
    heads        the key of how many heads its rows are, where converters may reorder these: see Architecture.permuted
    stacked      the key of `sizes` of how many such matrices the tensor holds; "" for one, without a third dimension
    """

    n_out: str = ""
    n_in: str = ""
    short: tuple = ()
    role: str = ""
    heads: str = ""
    stacked: str = ""

    @property
    def aliases(self):
        """What people call it: Hugging Face's module, LLaMA's name, shorter ones."""
        return tuple(name.rpartition(".")[2] for name in (self.hf, self.meta) if name) + self.short

    def tensor(self, layer, side="weight"):
        """Return the GGUF name of a layer's tensor."""
        return f"blk.{layer}.{self.name}.{side}"


_Q, _KV = "attention.head_count", "attention.head_count_kv"
# In the order in which a layer uses them, which is how pyx/layers/block.pxd numbers them.
MATRICES = (
    Matrix("attn_q", "self_attn.q_proj", "attention.wq", "q", "embd", ("q",), heads=_Q),
    Matrix("attn_k", "self_attn.k_proj", "attention.wk", "kv", "embd", ("k",), "key", _KV),
    Matrix("attn_v", "self_attn.v_proj", "attention.wv", "kv", "embd", ("v",), "value"),
    Matrix("attn_output", "self_attn.o_proj", "attention.wo", "embd", "q", ("o", "attn_o"), "attention"),
    Matrix("ffn_gate", "mlp.gate_proj", "feed_forward.w1", "ff", "embd", ("gate",)),
    Matrix("ffn_up", "mlp.up_proj", "feed_forward.w3", "ff", "embd", ("up",)),
    Matrix("ffn_down", "mlp.down_proj", "feed_forward.w2", "embd", "ff", ("down",), "down"),
    Matrix("attn_q_a", "self_attn.q_a_proj", n_out="q_rank", n_in="embd"),
    Matrix("attn_kv_a_mqa", "self_attn.kv_a_proj_with_mqa", n_out="kv_a", n_in="embd"),
    Matrix("attn_kv_b", "self_attn.kv_b_proj", n_out="kv_b", n_in="kv_rank", role="value"),
)
# Known by name and size, without a slot of the compiled layer so far. A "*" in Hugging Face's name: one module for each
# expert, whose rows lie below each other in the stacked tensor.
OTHER_MATRICES = (
    Matrix("attn_qkv", "self_attn.qkv_proj", "attention.wqkv", "qkv", "embd", ("qkv",), "value"),
    Matrix("ffn_gate_inp", "mlp.gate", n_out="expert", n_in="embd"),
    Matrix("ffn_gate_exps", "mlp.experts.*.gate_proj", n_out="ff_exp", n_in="embd", stacked="expert"),
    Matrix("ffn_up_exps", "mlp.experts.*.up_proj", n_out="ff_exp", n_in="embd", stacked="expert"),
    Matrix("ffn_down_exps", "mlp.experts.*.down_proj", n_out="embd", n_in="ff_exp", stacked="expert"),
    Matrix("ffn_gate_inp_shexp", "mlp.shared_expert_gate", n_out="one", n_in="embd"),
    Matrix("ffn_gate_shexp", "mlp.shared_expert.gate_proj", n_out="ff_shexp", n_in="embd"),
    Matrix("ffn_up_shexp", "mlp.shared_expert.up_proj", n_out="ff_shexp", n_in="embd"),
    Matrix("ffn_down_shexp", "mlp.shared_expert.down_proj", n_out="embd", n_in="ff_shexp"),
    Matrix("attn_q_b", "self_attn.q_b_proj", n_out="q", n_in="q_rank"),
    Matrix("attn_k_b", "", n_out="kv_rank", n_in="key_plain", stacked="head"),
    Matrix("attn_v_b", "", n_out="value", n_in="kv_rank", stacked="head"),
    Matrix("shortconv.in_proj", "conv.in_proj", n_out="conv_in", n_in="embd"),
    Matrix("shortconv.out_proj", "conv.out_proj", n_out="embd", n_in="embd"),
)
# A matrix of all heads' keys and values, and the stacks of matrices that hold it: of each head the keys' rows, turned,
# and the values'.
LATENT, LATENT_HALVES = "attn_kv_b", ("attn_k_b", "attn_v_b")
EXPERTS = ("ffn_gate_inp", "ffn_gate_exps", "ffn_up_exps", "ffn_down_exps")
ROUTER, STACKED = EXPERTS[0], EXPERTS[1:]
SHARED_EXPERT = ("ffn_gate_shexp", "ffn_up_shexp", "ffn_down_shexp")
NORMS = (
    Norm("attn_norm", "input_layernorm", "attention_norm"),
    Norm("attn_q_norm", "self_attn.q_norm", n="head_dim"),
    Norm("attn_k_norm", "self_attn.k_norm", n="head_dim"),
    Norm("attn_q_a_norm", "self_attn.q_a_layernorm", n="q_rank"),
    Norm("attn_kv_a_norm", "self_attn.kv_a_layernorm", n="kv_rank"),
    Norm("post_attention_norm", "post_attention_layernorm"),
    Norm("ffn_norm", "post_attention_layernorm", "ffn_norm"),
    Norm("post_ffw_norm", "post_feedforward_layernorm"),
)
CONV, SELECTION = "shortconv.conv", "exp_probs_b"
OTHER_VECTORS = (
    Norm("attn_sinks", "self_attn.sinks", n="head"),
    Norm(CONV, "conv.conv"),
    Norm(SELECTION, "mlp.gate.e_score_correction", n="expert"),
)
TOKEN_EMBD = Tensor("token_embd", "model.embed_tokens", "tok_embeddings")
OUTPUT_NORM = Tensor("output_norm", "model.norm", "norm")
LM_HEAD = Tensor("output", "lm_head", "output")  # the embedding serves where a file has none
WHOLE_MODEL = (TOKEN_EMBD, OUTPUT_NORM, LM_HEAD)

# By name: the matrix's number among those of a layer.
SLOTS = {matrix.name: slot for slot, matrix in enumerate(MATRICES)}
# A shared expert is the dense MLP of a layer with experts.
SLOTS |= {name: SLOTS[name.removesuffix("_shexp")] for name in SHARED_EXPERT}
BY_NAME = {part.name: part for part in (*MATRICES, *OTHER_MATRICES, *NORMS, *OTHER_VECTORS)}

# Parts that no compiled step has so far: what `needs` calls them -> what is said of them. A part that is built leaves
# this table, and the families that need nothing else here run.
MISSING = {}


@dataclass(frozen=True)
class Routing:
    """How a token's experts are chosen: those with the largest scores, and what their outputs are weighted with.

    scores        "softmax" of all experts' logits, or "sigmoid" of each
    renormalised  the chosen scores are divided by their sum; of a softmax that is the softmax of the chosen logits
    scale         what the weights are multiplied with
    groups        (how many groups the experts are, of how many of them some may be chosen); (0, 0): of all
    """

    scores: str = "softmax"
    renormalised: bool = True
    scale: float = 1.0
    groups: tuple = (0, 0)


@dataclass(frozen=True)
class Architecture:
    """A family: which parts its layers have, and how they differ from llama's.

    hf           what config.json calls it, under "architectures"
    needs        parts beyond llama's that it cannot do without: keys of MISSING until they are built
    rope_layout  PAIRS where a head's neighbours turn together, HALVES where element i turns with i + n_rot / 2
    permuted     a converter has put the rows of q and k from Hugging Face's halves into pairs
    matrices     names of MATRICES and OTHER_MATRICES      norms  names of NORMS, in the order of use
    experts      what layers with experts have instead of the dense MLP's matrices, names of OTHER_MATRICES
    fused        {matrix: those of a layer whose rows it holds, one after the other}: one matrix in the file, to
                 adapters and quantisation, several, or one in another's place, to the compiled steps
    even         fused ones whose parts are of one size
    stored       {matrix: the tensors that hold it in files, where these have none of its name}
    latent       keys and values are made of one short row for all heads, see pyx/layers/latent.pxd
    convolves    layers without heads of keys have a short convolution in attention's place
    routing      how a token's experts are chosen, where the file does not say
    optional     parts that not all files of the family have
    vectors      names of OTHER_VECTORS that its layers have
    biases       matrices with a bias, without which a file is incomplete; others may have one
    has_rope     layer -> whether positions turn its heads
    local_rope   layers with a window are turned by a rope of their own, which nothing scales: its base where the file
                 does not tell, 0 for that of the others; None: by the others' rope
    rope_in_windows  positions turn no heads but those of layers with a window, where any has one
    tempered     queries grow with the position as attention.temperature_scale says
    truncates    factor and original length of yarn -> whether its range is rounded outwards, where a file does not tell
    windowed     layer -> whether it has a window, where the file tells one and no pattern
    window, score_cap, logit_cap    where the file does not tell; 0: none
    sizes_of     {part: keys of `sizes`} where a part has another size than its row says: (n_out, n_in) or (n,)
    hf_names     {part: Hugging Face's module} where the family calls it otherwise than the part's row
    gguf_names   {part: GGUF's name} where the family's files call it otherwise
    norm         "rms" or "layer", the kind of all norms      norm_biases  those over n_embd have biases
    norm_shift   what a converter adds to the weights of norms
    row_norms    norms of queries and keys see all heads together
    activation   what is between the MLP's matrices, a name of ACTIVATIONS in pyx/layers/mlp.pyx.tp
    expert_activation  the same of experts
    parallel     attention and MLP see one norm of x, and both add to it; None: where the file says so
    output_bias  the output matrix has a bias
    embedding_scale, score_scale   ModelConfig -> what embeddings and scores are multiplied by where no key says it
    logit_divisor  the key logit_scale divides logits, instead of multiplying them
    ignored      tensors of layers that say nothing new: any other that is not named here is refused
    keys         what the metadata below the family's name may hold: see metadata_keys
    """

    hf: tuple = ()
    rope_layout: int = PAIRS
    needs: tuple = ()
    permuted: bool = False
    matrices: tuple = tuple(matrix.name for matrix in MATRICES[:7])
    experts: tuple = ()
    fused: dict = field(default_factory=dict)
    even: tuple = ()
    stored: dict = field(default_factory=dict)
    latent: bool = False
    convolves: bool = False
    routing: Routing = Routing()
    optional: tuple = ()
    norms: tuple = ("attn_norm", "ffn_norm")
    vectors: tuple = ()
    biases: tuple = ()
    has_rope: Callable = lambda layer: True
    rope_in_windows: bool = False
    local_rope: float | None = None
    tempered: bool = False
    truncates: Callable = lambda factor, original: True
    windowed: Callable = lambda layer: True
    window: int = 0
    score_cap: float = 0.0
    logit_cap: float = 0.0
    sizes_of: dict = field(default_factory=dict)
    hf_names: dict = field(default_factory=dict)
    gguf_names: dict = field(default_factory=dict)
    norm: str = "rms"
    norm_biases: bool = False
    norm_shift: float = 0.0
    row_norms: bool = False
    activation: str = "swiglu"
    expert_activation: str = "swiglu"
    parallel: bool | None = False
    output_bias: bool = False
    embedding_scale: Callable = lambda config: 1.0
    score_scale: Callable = lambda config: config.head_dim**-0.5
    logit_divisor: bool = False
    embedding: str = "token_embd.weight"
    output_norm: str = "output_norm.weight"
    output: str = "output.weight"
    rope_factors: str = "rope_freqs.weight"  # optional: frequencies are divided by it
    # what rope.freq_base says already, from converters of 2023
    ignored: tuple = ("attn_rot_embd", "attn_rot_embd.weight", "attn_rot_embd.inv_freq")
    keys: dict = field(default_factory=lambda: KEYS)

    @property
    def gated(self):
        """Whether the MLP has gate and up."""
        return self.activation in ("swiglu", "geglu_tanh", "geglu_erf")

    @property
    def missing(self):
        """What is said of the parts that it needs and that are not built."""
        return tuple(MISSING[part] for part in self.needs if part in MISSING)

    def shape(self, part, sizes):
        """Return the shape of a layer's part, (n_out, n_in), (n,) or (n_stacked, n_out, n_in)."""
        row = BY_NAME[part]
        usual = (row.n,) if isinstance(row, Norm) else (row.n_out, row.n_in)
        found = tuple(sizes[key] for key in self.sizes_of.get(part, usual))
        return (sizes[row.stacked], *found) if getattr(row, "stacked", "") else found

    def shapes(self, sizes):
        """Return {matrix of a layer: (n_out, n_in)}, in the order of use; sizes: as `sizes` returns them."""
        return {name: self.shape(name, sizes) for name in self.matrices}

    def parts(self, matrix):
        """Return the matrices of a layer, with slots of their own, whose rows one holds."""
        return self.fused.get(matrix, (matrix,))

    def slot(self, matrix):
        """Return the number among those of a layer that a matrix has, a fused one that of its first part."""
        return SLOTS[self.parts(matrix)[0]]

    @property
    def by_slot(self):
        """{slot: matrix}, those of a fused one's later parts left out."""
        return {self.slot(matrix): matrix for matrix in self.matrices}

    def gguf_name(self, part):
        """Return the name that a part of a layer has in the family's files, without layer and side."""
        return self.gguf_names.get(part, part)

    def hf_name(self, part):
        """Return Hugging Face's name of a part of a layer, or of the whole model."""
        return self.hf_names.get(part, (BY_NAME[part] if part in BY_NAME else _TOP[part]).hf)


def one_without(period):
    """Return layer -> whether it has a window, where the last of every `period` layers has none; 0: all have one."""
    return lambda layer: period == 0 or layer % period < period - 1


_CAPS = dict.fromkeys(("attn_logit_softcapping", "final_logit_softcapping"))
_TOP = {part.name: part for part in WHOLE_MODEL}
_IN_LAYER = re.compile(r"blk\.\d+\.")
_EXPERT_TENSOR = re.compile(
    rf"(blk\.\d+\.(?:{'|'.join(name.removesuffix('_exps') for name in STACKED)}))\.(0|[1-9]\d{{0,4}})\.weight"
)
_DENSE = tuple(matrix.name for matrix in MATRICES[:7])
_ATTENTION, _MLP = _DENSE[:4], _DENSE[4:]
_UNGATED = (*_ATTENTION, "ffn_up", "ffn_down")
_QKV = _QKV_BIASES = ("attn_q", "attn_k", "attn_v")
_CONVOLUTION = ("shortconv.in_proj", "shortconv.out_proj")
_HEAD_NORMS = ("attn_q_norm", "attn_k_norm")
_ROW_NORMS = {"attn_q_norm": ("q",), "attn_k_norm": ("kv",)}
_SANDWICH = ("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm")
_BEHIND = ("post_attention_norm", "post_ffw_norm")
# gate's rows lie before up's in one tensor, which GGUF calls ffn_up
_FUSED_MLP, _GATE_UP = {"ffn_up": ("gate_up", "embd")}, {"ffn_up": ("ffn_gate", "ffn_up")}
_BLOCK_SPARSE = {
    "ffn_gate_inp": "block_sparse_moe.gate",
    "ffn_gate_exps": "block_sparse_moe.experts.*.w1",
    "ffn_up_exps": "block_sparse_moe.experts.*.w3",
    "ffn_down_exps": "block_sparse_moe.experts.*.w2",
}
_LATENT = KEYS | dict.fromkeys(
    (
        *("attention.q_lora_rank", "attention.kv_lora_rank", "attention.key_length_mla", "attention.value_length_mla"),
        *("attention.value_length", "expert_group_count", "expert_group_used_count"),
    )
)
# what embeddings, branches, scores and logits are multiplied by
_GRANITE = KEYS | dict.fromkeys(("embedding_scale", "residual_scale", "attention.scale", "logit_scale"))
# where it says no, positions turn nothing
_GRANITE |= {"rope.scaling.finetuned": only(True)}
_GEMMA_2 = {"ffn_norm": "pre_feedforward_layernorm"}
# the root is rounded to f32, as transformers does in f32
_GEMMA = {
    "norm_shift": 1.0,
    "activation": "geglu_tanh",
    "embedding_scale": lambda config: struct.unpack("f", struct.pack("f", config.n_embd**0.5))[0],
    "keys": KEYS | {"attention.scale": None} | _CAPS,
}


def _of_the_largest(n_layer):
    """Return Gemma's score_scale: models of so many layers divide by another root, which no key of a file says."""
    return lambda config: (config.n_embd / config.n_head if config.n_layer == n_layer else config.head_dim) ** -0.5


def _of_latent(config):
    """Return score_scale of latent attention: yarn's factor is on all of a key, not on what turns alone."""
    rope = config.rope
    grown = 1 + rope.log_multiplier * math.log(rope.factor) if rope.scaling == "yarn" and rope.factor > 1 else 1
    return grown**2 * config.head_dim**-0.5


ARCHITECTURES = {
    "llama": Architecture(
        ("LlamaForCausalLM", "LLaMAForCausalLM", "MistralForCausalLM", "MixtralForCausalLM"),
        permuted=True, experts=(*EXPERTS, *SHARED_EXPERT), optional=SHARED_EXPERT, hf_names=_BLOCK_SPARSE,
    ),
    "qwen2": Architecture(("Qwen2ForCausalLM",), HALVES, biases=_QKV_BIASES),
    "smollm3": Architecture(("SmolLM3ForCausalLM",), permuted=True, has_rope=lambda layer: layer % 4 != 3),
    "qwen3": Architecture(
        ("Qwen3ForCausalLM",), HALVES, ("head norms",), norms=("attn_norm", *_HEAD_NORMS, "ffn_norm"),
    ),
    "gemma": Architecture(("GemmaForCausalLM",), HALVES, ("geglu", "multipliers"), **_GEMMA),
    "gemma2": Architecture(
        ("Gemma2ForCausalLM",), HALVES,
        ("geglu", "multipliers", "post norms"),
        norms=_SANDWICH, hf_names=_GEMMA_2, score_scale=_of_the_largest(46),
        windowed=one_without(2), window=4096, score_cap=50.0, logit_cap=30.0, **_GEMMA,
    ),
    "gemma3": Architecture(
        ("Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"), HALVES,
        ("geglu", "multipliers", "post norms", "head norms"),
        norms=(_SANDWICH[0], *_HEAD_NORMS, *_SANDWICH[1:]), hf_names=_GEMMA_2, score_scale=_of_the_largest(62),
        local_rope=10000.0, windowed=one_without(6), **_GEMMA,
    ),
    "phi2": Architecture(
        ("PhiForCausalLM",), HALVES, ("layer norm", "gelu", "parallel", "output bias"),
        matrices=_UNGATED, norms=("attn_norm",), biases=_UNGATED,
        norm="layer", norm_biases=True, activation="gelu_tanh", parallel=True, output_bias=True,
        hf_names={
            "attn_output": "self_attn.dense", "ffn_up": "mlp.fc1", "ffn_down": "mlp.fc2",
            "output_norm": "model.final_layernorm",
        },
    ),
    "phi3": Architecture(
        ("Phi3ForCausalLM",), HALVES, fused={"attn_qkv": _QKV} | _GATE_UP,
        matrices=("attn_qkv", "attn_output", "ffn_up", "ffn_down"), sizes_of=_FUSED_MLP,
        hf_names={"ffn_up": "mlp.gate_up_proj"},
    ),
    "mistral3": Architecture(
        ("Mistral3ForConditionalGeneration", "Ministral3ForCausalLM"), permuted=True, tempered=True,
        keys=KEYS | dict.fromkeys(("attention.temperature_scale", "attention.temperature_length")),
    ),
    "olmo2": Architecture(
        ("Olmo2ForCausalLM", "Olmo3ForCausalLM"), HALVES, ("row norms", "post norms"),
        norms=(*_HEAD_NORMS, *_BEHIND), sizes_of=_ROW_NORMS, row_norms=True, local_rope=0.0, windowed=one_without(4),
    ),
    "granite": Architecture(
        ("GraniteForCausalLM",), needs=("multipliers",), permuted=True, logit_divisor=True, keys=_GRANITE,
    ),
    "stablelm": Architecture(
        ("StableLmForCausalLM", "StableLMEpochForCausalLM"), HALVES, ("layer norm", "parallel"),
        norms=("attn_norm", *_HEAD_NORMS, "ffn_norm"), optional=(*_HEAD_NORMS, "ffn_norm"),
        norm="layer", norm_biases=True, parallel=None, keys=KEYS | {"use_parallel_residual": None},
        # one norm for each head, stacked
        sizes_of={"attn_q_norm": ("head", "head_dim"), "attn_k_norm": ("head_kv", "head_dim")},
        hf_names={
            "attn_q_norm": "self_attn.q_layernorm.norms.*", "attn_k_norm": "self_attn.k_layernorm.norms.*",
        },
    ),
    "starcoder2": Architecture(
        ("Starcoder2ForCausalLM",), HALVES, ("layer norm", "gelu"),
        matrices=_UNGATED, norm="layer", norm_biases=True, activation="gelu_tanh",
        hf_names={"ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj"},
    ),
    "cohere2": Architecture(
        ("Cohere2ForCausalLM",), needs=("layer norm", "parallel", "multipliers"),
        norms=("attn_norm",), windowed=one_without(4), rope_in_windows=True,
        norm="layer", parallel=True, keys=KEYS | {"logit_scale": None},
    ),
    "glm4": Architecture(
        ("Glm4ForCausalLM",), needs=("post norms",),
        matrices=_UNGATED, fused=_GATE_UP, norms=_SANDWICH, sizes_of=_FUSED_MLP,
        hf_names={
            "ffn_up": "mlp.gate_up_proj", "post_attention_norm": "post_self_attn_layernorm",
            "post_ffw_norm": "post_mlp_layernorm",
        },
    ),
    "ernie4_5": Architecture(("Ernie4_5ForCausalLM", "Ernie4_5_ForCausalLM")),
    "exaone4": Architecture(
        ("Exaone4ForCausalLM",), HALVES, ("head norms", "post norms"), norms=(*_HEAD_NORMS, *_BEHIND),
        windowed=one_without(4), rope_in_windows=True,
    ),
    "seed_oss": Architecture(
        ("SeedOssForCausalLM",), HALVES, biases=_QKV_BIASES, gguf_names={"ffn_norm": "post_attention_norm"},
    ),
    "helium": Architecture(("HeliumForCausalLM",)),
    "qwen2moe": Architecture(
        ("Qwen2MoeForCausalLM",), HALVES, biases=_QKV_BIASES,
        experts=(*EXPERTS, "ffn_gate_inp_shexp", *SHARED_EXPERT), routing=Routing(renormalised=False),
    ),
    "qwen3moe": Architecture(
        ("Qwen3MoeForCausalLM",), HALVES, ("head norms",),
        norms=("attn_norm", *_HEAD_NORMS, "ffn_norm"), experts=EXPERTS,
    ),
    "olmoe": Architecture(
        ("OlmoeForCausalLM",), HALVES, ("row norms",),
        norms=("attn_norm", *_HEAD_NORMS, "ffn_norm"), sizes_of=_ROW_NORMS, row_norms=True, experts=EXPERTS,
        routing=Routing(renormalised=False),
    ),
    "granitemoe": Architecture(
        ("GraniteMoeForCausalLM", "GraniteMoeSharedForCausalLM"), needs=("multipliers",), permuted=True,
        experts=(*EXPERTS, *SHARED_EXPERT), optional=SHARED_EXPERT,
        hf_names={"ffn_gate_inp": "block_sparse_moe.router.layer"}, logit_divisor=True, keys=_GRANITE,
    ),
    "gpt-oss": Architecture(
        ("GptOssForCausalLM",), HALVES, expert_activation="swiglu_clamped", windowed=one_without(2),
        biases=(*_ATTENTION, *EXPERTS), experts=EXPERTS, vectors=("attn_sinks",),
        gguf_names={"ffn_norm": "post_attention_norm"}, hf_names={"ffn_gate_inp": "mlp.router"},
        # not in the published models, whose files cannot say it
        truncates=lambda factor, original: (factor, original) != (32, 4096),
    ),
    "deepseek2": Architecture(
        ("DeepseekV2ForCausalLM", "DeepseekV3ForCausalLM"), latent=True, score_scale=_of_latent,
        matrices=("attn_q", "attn_q_a", "attn_q_b", "attn_kv_a_mqa", "attn_kv_b", "attn_output", *_MLP),
        # queries are of two matrices, or of one that stands beside that of keys and values
        fused={"attn_q": ("attn_q_a",), "attn_q_b": ("attn_q",)}, stored={LATENT: LATENT_HALVES},
        norms=("attn_norm", "attn_q_a_norm", "attn_kv_a_norm", "ffn_norm"), experts=(*EXPERTS, *SHARED_EXPERT),
        vectors=(SELECTION,), sizes_of={"attn_output": ("embd", "values")},
        routing=Routing(renormalised=False), keys=_LATENT,
        hf_names={part: f"mlp.shared_experts.{BY_NAME[part].hf.rpartition('.')[2]}" for part in SHARED_EXPERT},
    ),
    "lfm2": Architecture(
        ("Lfm2ForCausalLM",), HALVES, convolves=True, keys=KEYS | {"shortconv.l_cache": None},
        matrices=(*_ATTENTION, *_CONVOLUTION, *_MLP), norms=("attn_norm", *_HEAD_NORMS, "ffn_norm"),
        fused=dict(zip(_CONVOLUTION, (_QKV, ("attn_output",)), strict=True)), even=_CONVOLUTION[:1],
        vectors=(CONV,), sizes_of={CONV: ("embd", "conv")},
        output_norm="token_embd_norm.weight",
        hf_names={
            "attn_norm": "operator_norm", "ffn_norm": "ffn_norm", "attn_output": "self_attn.out_proj",
            "attn_q_norm": "self_attn.q_layernorm", "attn_k_norm": "self_attn.k_layernorm",
            "ffn_gate": "feed_forward.w1", "ffn_up": "feed_forward.w3", "ffn_down": "feed_forward.w2",
            "output_norm": "model.embedding_norm",
        },
    ),
}  # fmt: skip
# Families in whose Hugging Face models an expert's gate and up have rows in turns.
IN_TURNS = {"gpt-oss"}
# Families whose adapters keep q's and k's rows in pairs, those included that cannot run here.
PERMUTED = {name for name, row in ARCHITECTURES.items() if row.permuted} | {"deepseek", "minicpm"}


def expert_tensor(key, layer, expert):
    """Return the name of one expert's matrix, as files of 2023 call it: key is one of STACKED."""
    return f"blk.{layer}.{key.removesuffix('_exps')}.{expert}.weight"


def of_expert(name):
    """Return (the stacked tensor, the expert's number) of what expert_tensor called `name`, None for other names."""
    match = _EXPERT_TENSOR.fullmatch(name)
    return match and (f"{match[1]}_exps.weight", int(match[2]))


def key_of(name):
    """Return the part of a layer that a base tensor belongs to ("blk.0.ffn_up.5.weight" -> "ffn_up_exps")."""
    stacked = of_expert(name)
    return _IN_LAYER.sub("", stacked[0] if stacked else name).removesuffix(".weight")


def running():
    """Return the names of the families that run."""
    return [name for name, row in ARCHITECTURES.items() if not row.missing]


def adapted():
    """Return the matrices of layers that adapters are trained on: those of the families that run."""
    families = [ARCHITECTURES[family] for family in running()]
    names = {name for family in families for name in family.matrices}
    names |= {name for family in families for name in family.experts if name in (*SHARED_EXPERT, *STACKED)}
    return [matrix for matrix in (*MATRICES, *OTHER_MATRICES) if matrix.name in names]


def aliases(matrix):
    """Return what people call a matrix: Hugging Face's modules in all families that run, LLaMA's name, shorter ones."""
    modules = (ARCHITECTURES[family].hf_name(matrix.name) for family in running())
    return tuple(dict.fromkeys((*matrix.aliases, *(module.rpartition(".")[2] for module in modules if module))))


def sizes(n_embd, n_head, n_head_kv, head_dim, n_ff, **more):
    """Return the sizes that parts are described by: {"embd": ..., "q": ..., "kv": ..., "ff": ...}; more: others."""
    q, kv = n_head * head_dim, n_head_kv * head_dim
    found = {"embd": n_embd, "q": q, "kv": kv, "ff": n_ff, "head": n_head, "head_kv": n_head_kv, "head_dim": head_dim}
    return found | {"qkv": q + 2 * kv, "gate_up": 2 * n_ff, "one": 1} | more
