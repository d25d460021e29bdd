"""What an adapter is, apart from any file."""

import re
from collections import Counter
from dataclasses import dataclass, field, replace

import numpy as np

from llamacy.errors import LlamacyError, brief
from llamacy.formats.architectures import IN_TURNS, LATENT, LATENT_HALVES, MATRICES, PERMUTED, key_of, of_expert
from llamacy.formats.hf_names import EMBEDDING, OUTPUT

# An expert's gate and up as one, see peft_experts.py.
_GATE_UP = re.compile(r"(blk\.\d+\.)ffn_gate_up(\.\d+\.weight)")
_HEAD_COUNTS = {matrix.name: matrix.heads for matrix in MATRICES if matrix.heads}
_OF_HEADS = re.compile(rf"blk\.(\d+)\.({'|'.join(_HEAD_COUNTS)})\.(?:weight|bias)")


@dataclass
class LoraPair:
    """One adapted matrix W (n_out, n_in): W += scale * user_scale * b @ a.

    a          float32 (r, n_in)
    b          float32 (n_out, r)
    scale      alpha / r, or what the format's variant says; 1.0 for alpha 0
    magnitude  float32 (n_out,), None but for DoRA: W += user_scale * (magnitude / |V| * V - W), row by row, with
               V = W + scale * b @ a
    `token_embd.weight` is no exception: n_out is n_vocab there and n_in is n_embd.
    """

    a: np.ndarray
    b: np.ndarray
    scale: float = 1.0
    magnitude: np.ndarray | None = None

    @property
    def rank(self):
        return self.a.shape[0]

    @property
    def size(self):
        """How many numbers it has."""
        return self.a.size + self.b.size + (0 if self.magnitude is None else self.magnitude.size)

    def folded_b(self, scale):
        """Return B for a file whose rule gives `scale`: B itself, or B times what is missing."""
        factor = self.scale / scale
        # Scales went through f32 on their way; a last bit is no difference.
        return self.b if abs(factor - 1) < 1e-6 else (self.b * np.float32(factor)).astype(np.float32)


@dataclass
class Adapter:
    """A LoRA adapter: pairs by the base tensor's GGUF name.

    architecture  the model family's name in GGUF ("llama"), "" while no model has said it
    alpha         the file's alpha, for display and for writing; every pair's scale is resolved already
    metadata      what else the file says of itself, under GGUF's keys
    left_out      names of what the file holds and this program cannot apply
    norms         base tensor name -> float32 (n,): added to the norm's weight, times the user's scale
    hf_rows       the rows of q's and k's b are in Hugging Face's order: see bound()
    copies        BaseCopy of each tensor of the base model that the file holds too; see base_copies.py
    one_embedding a pair on the embedding is meant for the output matrix too, where the model has none of its own
    assumed       the file names no family: `architecture` is what its format was made for, until a model says its own
    """

    architecture: str
    pairs: dict
    alpha: float = 0.0
    metadata: dict = field(default_factory=dict)
    path: str = ""
    left_out: list = field(default_factory=list)
    norms: dict = field(default_factory=dict)
    hf_rows: bool = False
    copies: list = field(default_factory=list)
    one_embedding: bool = False
    assumed: bool = False

    def bound(self, metadata):
        """Return the adapter as it fits the model whose GGUF `metadata` is given: its rows in the model's order.

        PEFT and mlx-lm files say nothing of heads, so that only the model can tell. Others come back as they are.
        """
        architecture = str(metadata.get("general.architecture", ""))
        if not self.hf_rows:
            return replace(self, architecture=architecture, assumed=False) if self.assumed and architecture else self
        whole = replace(self, pairs=_apart(self.pairs, architecture in IN_TURNS))
        pairs = _reordered(whole, architecture, metadata, paired_from_halves)
        kept = self.metadata | head_counts(architecture, metadata)
        return replace(self, architecture=architecture, pairs=pairs, metadata=kept, hf_rows=False)

    def unbound(self, metadata=None):
        """Return the adapter with Hugging Face's rows, by the heads in the model's `metadata` or in its own."""
        if self.hf_rows:
            return self
        if self.assumed and metadata:
            return self.bound(metadata).unbound(metadata)
        known = {**self.metadata, **(metadata or {})}
        return replace(self, pairs=_reordered(self, self.architecture, known, halves_from_paired), hf_rows=True)

    def common_alpha(self):
        """Return the alpha that gives most pairs their scale as alpha / r, the adapter's own where that does."""
        votes = Counter(round(pair.scale * pair.rank, 6) for pair in self.pairs.values())
        if not votes or votes.get(round(self.alpha, 6)) == max(votes.values()):
            return self.alpha
        if self.alpha == 0 and all(pair.scale == 1.0 for pair in self.pairs.values()):
            return 0.0
        return votes.most_common(1)[0][0]

    @property
    def is_dora(self):
        """Whether a pair has magnitudes."""
        return any(pair.magnitude is not None for pair in self.pairs.values())

    def misfit(self, tensors):
        """Return why this adapter is not for a model with `tensors` (name -> TensorInfo), None when it fits."""
        wanted = {name: (pair.b.shape[0], pair.a.shape[1]) for name, pair in self.pairs.items()}
        wanted |= {name: delta.shape for name, delta in self.norms.items()}
        for name, shape in wanted.items():
            base, found = base_tensor(name, tensors), "no such tensor"
            if base in tensors:
                found = tensors[base].dims
            elif held := held_shape(name, tensors):
                found = held
            elif (one := of_expert(name)) and one[0] in tensors:
                found = tensors[one[0]].dims
                found = found[-2:] if one[1] < (found[0] if len(found) == 3 else 1) else f"experts {found}"
            if found != shape:
                return f"{brief(name)}: the adapter is for {shape}, the model has {found}"
        return None


def held_shape(name, tensors):
    """Return the shape of a matrix that two tensors of a model hold, of each head some rows, the first's turned:
    latent attention's keys and values. None where it is no such matrix.
    """
    halves = [tensors.get(name.replace(f".{LATENT}.", f".{half}.")) for half in LATENT_HALVES]
    if key_of(name) != LATENT or None in halves or any(len(info.shape) != 3 for info in halves):
        return None
    (heads, rank, n_key), (_, n_value, _) = (info.shape for info in halves)
    return heads * (n_key + n_value), rank


def base_tensor(name, tensors):
    """Return the tensor that serves as `name` in a model with `tensors`: the embedding where there is no output matrix.

    A pair on either acts on its own side alone: that on the embedding on what goes in, that on the output on what
    comes out, as in PEFT.
    """
    return EMBEDDING if name == OUTPUT and name not in tensors else name


def head_counts(architecture, metadata):
    """Return those entries of `metadata` that say how many heads q and k have."""
    found = {f"{architecture}.{key}": metadata.get(f"{architecture}.{key}") for key in _HEAD_COUNTS.values()}
    # an array has a number for each layer
    found = {key: int(n[0]) if _is_one_number(n) else n for key, n in found.items()}
    return {key: n for key, n in found.items() if isinstance(n, int)}


def _is_one_number(values):
    return isinstance(values, np.ndarray) and len(values) > 0 and (values == values[0]).all()


def permuted_rows(architecture, tensor):
    """Return (layer, matrix) of a tensor whose rows are in pairs where Hugging Face has halves, None for others."""
    match = _OF_HEADS.fullmatch(tensor) if architecture in PERMUTED else None
    return match and (int(match[1]), match[2])


def _apart(pairs, in_turns):
    """Return pairs with those of an expert's gate and up taken apart: rows of B in turns, or gate's before up's."""
    found = {}
    for name, pair in pairs.items():
        match = _GATE_UP.fullmatch(name)
        if match is None:
            found[name] = pair
            continue
        half = len(pair.b) // 2
        rows = (pair.b[0::2], pair.b[1::2]) if in_turns else (pair.b[:half], pair.b[half:])
        for part, b in zip(("ffn_gate", "ffn_up"), rows, strict=True):
            found[f"{match[1]}{part}{match[2]}"] = replace(pair, b=np.ascontiguousarray(b))
    return found


def _reordered(adapter, architecture, metadata, reorder):
    """Return the pairs with the rows of q's and k's b reordered where the family asks for it."""
    pairs = {}
    for name, pair in adapter.pairs.items():
        heads = heads_of(name, len(pair.b), architecture, metadata, adapter.path)
        pairs[name] = pair
        if heads:
            magnitude = pair.magnitude
            if magnitude is not None:
                magnitude = reorder(magnitude.reshape(-1, 1), heads).ravel()
            pairs[name] = replace(pair, b=reorder(pair.b, heads), magnitude=magnitude)
    return pairs


def row_order(name, n_rows, metadata, path):
    """Return int (n_rows,): row i of tensor `name` is Hugging Face's row order[i]; None where both are the same."""
    heads = heads_of(name, n_rows, str(metadata.get("general.architecture", "")), metadata, path)
    return paired_from_halves(np.arange(n_rows).reshape(-1, 1), heads).ravel() if heads else None


def heads_of(name, n_rows, architecture, metadata, path):
    """Return how many heads' rows tensor `name` has in another order than Hugging Face's, 0 for none."""
    place = permuted_rows(architecture, name)
    if place is None:
        return 0
    heads = _heads(path, architecture, metadata, *place)
    if heads <= 0 or n_rows % (2 * heads):
        what = f"{brief(name)} has {n_rows} rows, which are no {heads} heads"
        raise LlamacyError(f"{path}: {what}; it was trained on another model")
    return heads


def _heads(path, architecture, metadata, layer, matrix):
    count = metadata.get(f"{architecture}.{_HEAD_COUNTS[matrix]}", metadata.get(f"{architecture}.attention.head_count"))
    if isinstance(count, np.ndarray) and layer < len(count):
        count = int(count[layer])
    if isinstance(count, int):
        return count
    raise LlamacyError(
        f"{path}: the order of q's and k's rows depends on the model's heads, which the adapter does not say; "
        "name the base model with -m"
    )


def paired_from_halves(rows, n_heads):
    """Return (n_heads * head_dim, r) with each head's halves interleaved: rows 0, d/2, 1, d/2 + 1, ..."""
    return np.ascontiguousarray(rows.reshape(n_heads, 2, -1, rows.shape[1]).swapaxes(1, 2)).reshape(rows.shape)


def halves_from_paired(rows, n_heads):
    """Return (n_heads * head_dim, r) with each head's even rows first, then its odd ones; undoes paired_from_halves."""
    return np.ascontiguousarray(rows.reshape(n_heads, -1, 2, rows.shape[1]).swapaxes(1, 2)).reshape(rows.shape)
