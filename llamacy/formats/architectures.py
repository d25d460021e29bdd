"""The model families: one table row each. Adding a family is adding a row and its test."""

from dataclasses import dataclass, field

PAIRS, HALVES = 0, 1  # rope layouts, as pyx/rope.pxd numbers them

LAYER_NORMS = {"attn_norm": "blk.{}.attn_norm.weight", "ffn_norm": "blk.{}.ffn_norm.weight"}
LAYER_LINEARS = {
    "attn_q": "blk.{}.attn_q.weight",
    "attn_k": "blk.{}.attn_k.weight",
    "attn_v": "blk.{}.attn_v.weight",
    "attn_output": "blk.{}.attn_output.weight",
    "ffn_gate": "blk.{}.ffn_gate.weight",
    "ffn_up": "blk.{}.ffn_up.weight",
    "ffn_down": "blk.{}.ffn_down.weight",
}


@dataclass(frozen=True)
class Architecture:
    """What a family's GGUF files call its tensors, and how its layers differ from llama's.

    rope_layout  PAIRS where a head's neighbours turn together, HALVES where element i turns with i + n_rot / 2
    norms        the layer's norm vectors, name -> tensor
    linears      the layer's matrices, in the order of pyx/weights.pyx's NAMES
    """

    rope_layout: int = PAIRS
    norms: dict = field(default_factory=lambda: LAYER_NORMS)
    linears: dict = field(default_factory=lambda: LAYER_LINEARS)
    embedding: str = "token_embd.weight"
    output_norm: str = "output_norm.weight"
    output: str = "output.weight"  # the embedding serves where a file has none
    rope_factors: str = "rope_freqs.weight"  # optional: frequencies are divided by it


ARCHITECTURES = {
    "llama": Architecture(),
}
