"""The parts of a layer and the model families: what they are called, in every format and flag, and how large they are.

This is the only list of them. Readers and writers of models and adapters, flags, quantisation mixes, estimates and the
packing of weights derive theirs from it. A family is a row of ARCHITECTURES and its test; a part that no family had so
far is a row here, a field of Block (pyx/layers/block.pxd) and a line in the twin (kernels/reference/model.py).
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from llamacy.formats.metadata_keys import KEYS

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
class Matrix(Tensor):
    """A matrix of each layer, which an adapter may sit on.

    n_out, n_in  keys of `sizes`: how many rows and columns
    short        what else people call it
    role         what quantisation mixes give more bits: see model/mixes.py
    heads        the key of how many heads its rows are, where converters may reorder these: see Architecture.permuted
    """

    n_out: str = ""
    n_in: str = ""
    short: tuple = ()
    role: str = ""
    heads: str = ""

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
)
# Known by name only: adapters and mixes of models that cannot run here.
FUSED = (Matrix("attn_qkv", "self_attn.qkv_proj", role="value"), Matrix("attn_kv_b", "", role="value"))
NORMS = (
    Tensor("attn_norm", "input_layernorm", "attention_norm"),
    Tensor("ffn_norm", "post_attention_layernorm", "ffn_norm"),
)
TOKEN_EMBD = Tensor("token_embd", "model.embed_tokens", "tok_embeddings")
OUTPUT_NORM = Tensor("output_norm", "model.norm", "norm")
LM_HEAD = Tensor("output", "lm_head", "output")  # the embedding serves where a file has none
WHOLE_MODEL = (TOKEN_EMBD, OUTPUT_NORM, LM_HEAD)

# By name: the matrix's number among those of a layer.
SLOTS = {matrix.name: slot for slot, matrix in enumerate(MATRICES)}
BY_NAME = {matrix.name: matrix for matrix in MATRICES}


@dataclass(frozen=True)
class Architecture:
    """A family: which parts its layers have, and how they differ from llama's.

    hf           what config.json calls it, under "architectures"
    rope_layout  PAIRS where a head's neighbours turn together, HALVES where element i turns with i + n_rot / 2
    permuted     a converter has put the rows of q and k from Hugging Face's halves into pairs
    matrices     names of MATRICES      norms  names of NORMS
    biases       matrices with a bias, without which a file is incomplete; others may have one
    has_rope     layer -> whether positions turn its heads
    ignored      tensors of layers that say nothing new: any other that is not named here is refused
    keys         what the metadata below the family's name may hold: see metadata_keys
    """

    hf: tuple = ()
    rope_layout: int = PAIRS
    permuted: bool = False
    matrices: tuple = tuple(SLOTS)
    norms: tuple = tuple(norm.name for norm in NORMS)
    biases: tuple = ()
    has_rope: Callable = lambda layer: True
    embedding: str = "token_embd.weight"
    output_norm: str = "output_norm.weight"
    output: str = "output.weight"
    rope_factors: str = "rope_freqs.weight"  # optional: frequencies are divided by it
    # what rope.freq_base says already, from converters of 2023
    ignored: tuple = ("attn_rot_embd", "attn_rot_embd.weight", "attn_rot_embd.inv_freq")
    keys: dict = field(default_factory=lambda: KEYS)

    def shapes(self, sizes):
        """Return {matrix of a layer: (n_out, n_in)}, in the order of use; sizes: as `sizes` returns them."""
        found = (BY_NAME[name] for name in self.matrices)
        return {matrix.name: (sizes[matrix.n_out], sizes[matrix.n_in]) for matrix in found}


ARCHITECTURES = {
    "llama": Architecture(("LlamaForCausalLM", "LLaMAForCausalLM", "MistralForCausalLM"), permuted=True),
    "qwen2": Architecture(("Qwen2ForCausalLM",), HALVES, biases=("attn_q", "attn_k", "attn_v")),
    "smollm3": Architecture(("SmolLM3ForCausalLM",), permuted=True, has_rope=lambda layer: layer % 4 != 3),
}
# Families whose adapters keep q's and k's rows in pairs, those included that cannot run here.
PERMUTED = {name for name, row in ARCHITECTURES.items() if row.permuted} | {"deepseek", "granite", "minicpm"}


def sizes(n_embd, n_head, n_head_kv, head_dim, n_ff):
    """Return the sizes that matrices are described by: {"embd": ..., "q": ..., "kv": ..., "ff": ...}."""
    return {"embd": n_embd, "q": n_head * head_dim, "kv": n_head_kv * head_dim, "ff": n_ff}
