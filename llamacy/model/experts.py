"""The experts of a model, read from GGUF metadata and checked: how many, how wide, and how a token's are chosen."""

import math
import re
from dataclasses import dataclass, replace

from llamacy.errors import LlamacyError, shown
from llamacy.formats.architectures import BY_NAME, MATRICES, ROUTER, Routing

# Far above any model of the families: what a damaged header can ask for stays harmless.
LIMITS = {"n_embd": 1 << 17, "n_head": 1 << 12, "n_head_kv": 1 << 12, "n_ff": 1 << 19, "n_layer": 1 << 12}
# A layer's experts are numbered behind its other matrices: see EXPERT_NAMES in pyx/steps/weights.pyx.
FIRST_EXPERT = len(MATRICES)
MAX_EXPERTS = 1024
_ROUTER = re.compile(rf"blk\.(0|[1-9]\d{{0,8}})\.{ROUTER}\.weight")


@dataclass(frozen=True)
class Experts:
    """The experts of a model: layers that have some, n of them of width n_ff, n_used for each token.

    n_ff_shared is the width of the expert that all tokens share, 0 where there is none.
    """

    layers: frozenset
    n: int
    n_used: int
    n_ff: int
    n_ff_shared: int
    routing: Routing


NO_EXPERTS = Experts(frozenset(), 0, 0, 0, 0, Routing())
# expert_gating_func, as llama.cpp numbers them -> how the scores are made; None: the family's way.
_GATINGS = {
    0: lambda routing: routing,
    1: lambda routing: replace(routing, scores="softmax"),
    2: lambda routing: replace(routing, scores="sigmoid"),
    3: lambda routing: replace(routing, scores="softmax", renormalised=True),
}


def read_experts(keys, family, n_ff):
    """Return the Experts of a file whose metadata say that it has some, None for a dense model."""
    n = keys.whole("expert_count", 0)
    if not family.experts or n == 0:
        return None
    n_used, width = keys.whole("expert_used_count", 0), keys.whole("expert_feed_forward_length", 0) or n_ff
    if not 1 <= n_used <= n <= MAX_EXPERTS:
        raise LlamacyError(
            f"{keys.file.path}: {n_used} of {n} experts for each token, wanted 1 or more of at most {MAX_EXPERTS}; the "
            "file is damaged"
        )
    if not 1 <= width <= LIMITS["n_ff"]:
        raise LlamacyError(f"{keys.file.path}: experts of width {width}, wanted 1 to {LIMITS['n_ff']}")
    gating, routing = keys.whole("expert_gating_func", 0), family.routing
    if gating not in _GATINGS:
        raise keys.error("expert_gating_func", "one of " + ", ".join(map(str, _GATINGS)), gating)
    normed = keys.get("expert_weights_norm")
    if normed not in (None, False, True):
        raise keys.error("expert_weights_norm", "true or false", normed)
    routing = routing if normed is None else replace(routing, renormalised=bool(normed))
    routing = _GATINGS[gating](replace(routing, scale=_scale(keys), groups=_groups(keys, n, n_used)))
    found = (_ROUTER.fullmatch(name) for name in keys.file.tensors)
    layers = frozenset(int(match[1]) for match in found if match and int(match[1]) < keys.n_layer)
    if not layers:
        raise LlamacyError(
            f"{keys.file.path}: {keys.name}.expert_count is {n}, and no layer has a tensor {ROUTER}; the file is "
            "incomplete or damaged"
        )
    return Experts(layers, n, n_used, width, _shared_width(keys, layers), routing)


def _shared_width(keys, layers):
    """Return how wide the shared expert is, by its tensors: 0 where the file has none."""
    shared = [keys.file.tensors.get(BY_NAME["ffn_up_shexp"].tensor(i)) for i in layers]
    found = {info.shape[-2] for info in shared if info is not None and len(info.shape) > 1}
    if not found:
        return 0
    said = keys.whole("expert_shared_feed_forward_length", 0)
    if len(found) > 1 or None in shared or (said and found != {said}) or max(found) > LIMITS["n_ff"]:
        raise LlamacyError(
            f"{keys.file.path}: shared experts of widths {shown(sorted(found))} in {len(shared)} layers, wanted one "
            "width in all of them; the file is damaged"
        )
    return found.pop()


def _scale(keys):
    scale = keys.number("expert_weights_scale", 0.0)
    if not math.isfinite(scale):
        raise keys.error("expert_weights_scale", "a finite number", scale)
    return scale or 1.0


def _groups(keys, n, n_used):
    """Return (how many groups the experts are, how many of them a token's may come from), (0, 0) without any."""
    groups, used = keys.whole("expert_group_count", 0), keys.whole("expert_group_used_count", 0)
    if groups <= 1:
        return 0, 0
    if not (groups <= n and n % groups == 0 and 1 <= used <= groups and n_used <= used * (n // groups)):
        raise LlamacyError(
            f"{keys.file.path}: {n_used} of {n} experts from {used} of {groups} groups, wanted groups of one size with "
            "as many experts; the file is damaged"
        )
    return groups, used
