"""PEFT's pairs on the stacked parameters of experts (`target_parameters`), as pairs of each expert.

Source: PEFT's ParamWrapper. For n experts `lora_A.weight` is (n r, n_in), expert by expert, `lora_B.weight`
(n_out, r n), the experts innermost. A module with two adapted parameters is wrapped twice, `experts.lora_A` and
`experts.base_layer.lora_A`: their shapes tell which is which. gate and up are one parameter, whose rows a family has
one after the other or in turns: so its pairs keep the name of both ("blk.0.ffn_gate_up.5.weight") until the model is
known, see Adapter.bound.
"""

import re

import numpy as np

from llamacy.errors import shown
from llamacy.formats.arrays import float_tensor

_WRAPPED = re.compile(
    r"(?:base_model\.model\.)?(?:model\.|language_model\.)*layers\.(0|[1-9]\d{0,4})\.[a-z_]+\.experts((?:\.base_layer)*)"
    r"\.lora_([AB])(?:\.(?!bias)\w+)?\.weight"
)
_PARAMETERS = {"gate_up_proj": "ffn_gate_up", "down_proj": "ffn_down"}


def expert_pairs(file, config, rank):
    """Return ({base tensor's name: (a, b)}, names of the tensors used) of an open ModelFile, pairs of rank `rank`."""
    wrappers, used, targets = {}, [], config.get("target_parameters") or []
    texts = [name for name in targets if isinstance(name, str)] if isinstance(targets, list) else []
    named = [part for word, part in _PARAMETERS.items() if any(name.endswith(word) for name in texts)]
    for name in file.tensors:
        match = _WRAPPED.fullmatch(name)
        if match:
            used.append(name)
            wrappers.setdefault(int(match[1]), {}).setdefault(match[2], {})[match[3]] = name
    pairs = {}
    for layer, found in wrappers.items():
        stacks = [_stack(file, layer, sides, rank) for sides in found.values()]
        for part, (a, b) in zip(_parts(file, layer, stacks, named), stacks, strict=True):
            pairs |= {f"blk.{layer}.{part}.{e}.weight": (a[e], b[e]) for e in range(len(a))}
    return pairs, used


def _stack(file, layer, sides, rank):
    """Return (a (n, r, n_in), b (n, n_out, r)) of one wrapper."""
    if sides.keys() != {"A", "B"}:
        raise file.error(f"the experts of layer {layer} have only {shown(*sides.values())}", "the file is damaged")
    a, b = float_tensor(file, sides["A"]), float_tensor(file, sides["B"])
    if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1] or a.shape[0] == 0 or a.shape[0] % rank:
        what = f"the experts of layer {layer}: A is {a.shape}, B {b.shape}, wanted (n r, n_in), (n_out, r n), r {rank}"
        raise file.error(what, "the file is damaged, or has ranks of its own for them")
    n = a.shape[0] // rank
    b = np.ascontiguousarray(b.reshape(b.shape[0], rank, n).transpose(2, 0, 1))
    return a.reshape(n, rank, -1), b


def _parts(file, layer, stacks, named):
    """Return which parameter each wrapper is of, "ffn_gate_up" or "ffn_down": the one named, of two by their shapes."""
    widths = [(a.shape[2], b.shape[1]) for a, b in stacks]
    if len(widths) == len(named) == 1:
        return list(named)
    for order in (("ffn_gate_up", "ffn_down"), ("ffn_down", "ffn_gate_up")):
        by_part = dict(zip(order, widths, strict=False))
        if len(by_part) == len(widths) == 2:
            (n_embd, both), (n_ff, out) = by_part["ffn_gate_up"], by_part["ffn_down"]
            if both == 2 * n_ff and out == n_embd:
                return list(order)
    what = f"the experts of layer {layer} have pairs of shapes {shown(widths)}, which are no gate_up_proj and down_proj"
    raise file.error(what, "adapt both, or merge it with PEFT")
