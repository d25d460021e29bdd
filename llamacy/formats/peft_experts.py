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
_WORDS = {part: word for word, part in _PARAMETERS.items()}


def expert_pairs(file, config, rank_of):
    """Return ({base tensor's name: (a, b, parameter)}, names of the tensors used) of an open ModelFile.

    rank_of: function of a parameter's name in the model that gives its pairs' rank.
    """
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
        sides = [_sides(file, layer, names) for names in found.values()]
        for part, (a, b) in zip(_parts(file, layer, sides, named), sides, strict=True):
            parameter = f"model.layers.{layer}.mlp.experts.{_WORDS[part]}"
            a, b = _stack(file, layer, a, b, int(rank_of(parameter)))
            pairs |= {f"blk.{layer}.{part}.{e}.weight": (a[e], b[e], parameter) for e in range(len(a))}
    return pairs, used


def _sides(file, layer, sides):
    """Return (A, B) of one wrapper."""
    if sides.keys() != {"A", "B"}:
        raise file.error(f"the experts of layer {layer} have only {shown(*sides.values())}", "the file is damaged")
    a, b = float_tensor(file, sides["A"]), float_tensor(file, sides["B"])
    if a.ndim != 2 or b.ndim != 2:
        what = f"the experts of layer {layer}: A is {a.shape}, B {b.shape}, wanted (n r, n_in), (n_out, r n)"
        raise file.error(what, "the file is damaged")
    return a, b


def _stack(file, layer, a, b, rank):
    """Return (a (n, r, n_in), b (n, n_out, r)) of one wrapper."""
    if a.shape[0] != b.shape[1] or a.shape[0] == 0 or a.shape[0] % rank:
        what = f"the experts of layer {layer}: A is {a.shape}, B {b.shape}, wanted (n r, n_in), (n_out, r n), r {rank}"
        raise file.error(what, "the file is damaged, or has ranks of its own for them")
    n = a.shape[0] // rank
    b = np.ascontiguousarray(b.reshape(b.shape[0], rank, n).transpose(2, 0, 1))
    return a.reshape(n, rank, -1), b


def _parts(file, layer, sides, named):
    """Return which parameter each wrapper is of, "ffn_gate_up" or "ffn_down": the one named, of two by their shapes."""
    widths = [(a.shape[1], b.shape[0]) for a, b in sides]
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
