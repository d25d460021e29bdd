"""What an adapter is, apart from any file."""

from dataclasses import dataclass, field

import numpy as np


@dataclass
class LoraPair:
    """One adapted matrix W (n_out, n_in): W += scale * user_scale * b @ a.

    a      float32 (r, n_in)
    b      float32 (n_out, r)
    scale  alpha / r, or what the format's variant says; 1.0 for alpha 0
    `token_embd.weight` is no exception: n_out is n_vocab there and n_in is n_embd.
    """

    a: np.ndarray
    b: np.ndarray
    scale: float = 1.0

    @property
    def rank(self):
        return self.a.shape[0]


@dataclass
class Adapter:
    """A LoRA adapter: pairs by the base tensor's GGUF name.

    architecture  the model family's name in GGUF ("llama")
    alpha         the file's alpha, for display and for writing; every pair's scale is resolved already
    metadata      what else the file says of itself
    left_out      names of what the file holds and this program cannot apply
    norms         base tensor name -> float32 (n,): added to the norm's weight, times the user's scale
    """

    architecture: str
    pairs: dict
    alpha: float = 0.0
    metadata: dict = field(default_factory=dict)
    path: str = ""
    left_out: list = field(default_factory=list)
    norms: dict = field(default_factory=dict)
