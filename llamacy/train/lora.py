"""Which LoRA pairs a run trains: their ranks, scales and first values, and the adapter they make."""

import math
import re

import numpy as np

from llamacy.errors import LlamacyError, UsageError, shown
from llamacy.formats.architectures import ARCHITECTURES, STACKED
from llamacy.formats.hf_names import hf_name
from llamacy.formats.lora import Adapter, LoraPair
from llamacy.train.options import TARGETS, USUAL


def places(config, targets, num_layers=None):
    """Return {base tensor name: Place} of the targeted matrices in the last `num_layers` layers (None: all).

    targets: matrices of a layer, for all layers, and single base tensors by their names.
    """
    first = 0 if num_layers is None else max(0, config.n_layer - num_layers)
    return {
        name: place
        for layer in range(first, config.n_layer)
        for name, place in config.places(layer).items()
        if place.key in targets or name in targets
    }


def targets_of(config, names):
    """Return the targets that stand for exactly these base tensors: matrices that all layers have, then single ones."""
    names, of_key = dict.fromkeys(names), {}
    for name, place in places(config, TARGETS).items():
        of_key.setdefault(place.key, []).append(name)
    whole = [key for key in TARGETS if key in of_key and all(name in names for name in of_key[key])]
    covered = {name for key in whole for name in of_key[key]}
    return (*whole, *(name for name in names if name not in covered))


def check_targets(config, options):
    """Raise LlamacyError where the options name a matrix that the model's layers do not have."""
    named = () if set(options.targets) == set(USUAL) else options.targets
    there = dict.fromkeys(place.key for layer in range(config.n_layer) for place in config.places(layer).values())
    found = {place.key for place in places(config, options.targets, options.num_layers).values()}
    if options.dora and found & set(STACKED):
        raise UsageError("--dora: routed experts have no magnitudes here; leave them out of --target-modules")
    of_latent = [key for key in there if key.startswith("attn_") and key != "attn_output"] if config.latent else ()
    if options.dora and found & set(of_latent):
        raise UsageError(
            f"--dora: latent attention's matrices have no magnitudes here; leave {', '.join(of_latent)} out of "
            "--target-modules"
        )
    # a word for the MLP stands for that of layers without experts too, and for the expert that all tokens share
    same = {f"{name}_shexp": name for name in named}
    same |= {other: name for name, other in same.items() if name in named}
    for flag, names in (("--target-modules", named), ("--rank-...", [name for name, _ in options.ranks])):
        missing = [name for name in names if name in TARGETS and not {name, same.get(name)} & there.keys()]
        if missing:
            held = [key for key, parts in ARCHITECTURES[config.architecture].fused.items() if missing[0] in parts]
            raise LlamacyError(
                f"{flag}: {config.architecture} models have no {missing[0]} of its own"
                + (f", its rows are in {held[0]}" if held else "")
                + f"; wanted some of {', '.join(there)}"
            )


def pair_ranks(config, options, init=None):
    """Return {base tensor name: rank} of the pairs that a run trains: `init`'s where it has them."""
    where = places(config, options.targets, options.num_layers)
    of = rank_and_scale(config.architecture, options, options.rank, options.file_alpha)
    ranks = {name: of(name, place.key)[0] for name, place in where.items()}
    return ranks | {name: pair.rank for name, pair in (init.pairs if init else {}).items() if name in ranks}


def rank_and_scale(architecture, options, rank, alpha):
    """Return a function: (base tensor name, matrix) -> (rank, scale) of a fresh pair.

    --rank-wq and the like go before `rank`, patterns before all. With rsLoRA `alpha` is the one that fits `rank`, so
    that alpha / rank is the scale.
    """
    own, rslora = dict(options.ranks), options.rslora

    def of(name, target):
        names = names_of(name, architecture) if options.rank_pattern or options.alpha_pattern else ()
        r = pattern_value(options.rank_pattern, names) or own.get(target, rank)
        other = pattern_value(options.alpha_pattern, names)
        if other is not None:
            return r, other / (math.sqrt(r) if rslora else r)
        return r, alpha / (math.sqrt(rank * r) if rslora else r)

    return of


def matches(expression, names):
    """Tell whether PEFT's rule finds one of a matrix's names: the expression is all of it, or all behind a dot."""
    return any(re.fullmatch(rf"(.*\.)?({expression})", name) for name in names)


def names_of(tensor, architecture):
    """Return what a tensor is called: the module of Hugging Face's model, GGUF's name with and without its end."""
    module = hf_name(tensor, architecture)
    return [name for name in (module, tensor, tensor.removesuffix(".weight")) if name]


def pattern_value(patterns, names):
    """Return what the first of ((expression, value), ...) that finds a matrix gives it, None where none does."""
    return next((value for expression, value in patterns if matches(expression, names)), None)


def new_pair(shape, rank, scale, rng):
    """A fresh pair for a (n_out, n_in) matrix: A uniform in +-1 / sqrt(n_in) (PEFT's Kaiming-uniform), B zero."""
    n_out, n_in = shape
    a = rng.uniform(-1, 1, (rank, n_in)) / np.sqrt(n_in)
    return LoraPair(a.astype(np.float32), np.zeros((n_out, rank), np.float32), scale)


def starting_pairs(model, targets, size_of, seed, num_layers=None, init=None):
    """Return {base tensor name: LoraPair} to train from: `init`'s pairs where it has them, fresh ones elsewhere.

    size_of: (base tensor name, matrix) -> (rank, scale) of a fresh pair.

    LlamacyError when `init` is another model's, or adapts what cannot be trained here.
    """
    where, rng = places(model.config, targets, num_layers), np.random.Generator(np.random.PCG64(seed))
    pairs = {name: new_pair(place.shape, *size_of(name, place.key), rng) for name, place in where.items()}
    if init is None:
        return pairs
    init = init.bound(model.metadata)
    strange = [name for name in (*init.pairs, *init.norms) if name not in pairs]
    if strange:
        known = places(model.config, TARGETS)
        chosen = next((name for name in strange if name in known), None)
        why = "this run does not train; leave --target-modules and --num-layers away, or name it there too"
        raise LlamacyError(
            f"{init.path}: adapts {shown(chosen or strange[0])}, which "
            + (why if chosen else f"cannot be trained; wanted pairs only on {', '.join(TARGETS)} of its layers")
        )
    for name, pair in init.pairs.items():
        wanted = where[name].shape
        if (pair.b.shape[0], pair.a.shape[1]) != wanted:
            raise LlamacyError(
                f"{init.path}: {name} is {pair.b.shape[0]} x {pair.a.shape[1]} here, {wanted[0]} x {wanted[1]} in "
                f"{model.path}; use the model it was trained on"
            )
        if pair.magnitude is not None and pair.magnitude.shape != wanted[:1]:
            raise LlamacyError(f"{init.path}: {name} has {pair.magnitude.size} magnitudes, wanted {wanted[0]}")
    return pairs | init.pairs


def as_adapter(model, pairs, alpha):
    """The pairs as an Adapter of this model, ready to save."""
    return Adapter(model.config.architecture, pairs, alpha).bound(model.metadata)


def principal_pair(weight, rank, scale):
    """Return PiSSA's start for a matrix W (n_out, n_in), f32: a pair of twice the rank whose update is zero.

    (Meng et al., 2024): A0 = sqrt(S / scale) V^T and B0 = U sqrt(S / scale) of the `rank` largest singular values. The
    first half of the pair, A0 and B0, is trained; the second, A0 and -B0, takes the start away from W and stays.
    """
    u, s, vt = _largest(weight.astype(np.float64), rank)
    root = np.sqrt(s / scale)
    a, b = (root[:, None] * vt).astype(np.float32), (u * root).astype(np.float32)
    return LoraPair(np.concatenate([a, a]), np.concatenate([b, -b], axis=1), scale)


# Matrices up to this size are taken apart whole; of larger ones the largest values are found by iteration.
WHOLE, ITERATIONS = 1024, 12


def _largest(w, rank):
    """Return (u (n_out, r), s (r,), vt (r, n_in)) of the largest singular values, at most as many as there are."""
    if w.shape[0] < w.shape[1]:
        u, s, vt = _largest(w.T, rank)
        return vt.T, s, u.T
    rank = min(rank, w.shape[1])
    if w.shape[1] <= WHOLE:
        squares, v = np.linalg.eigh(w.T @ w)
        s, v = np.sqrt(np.maximum(squares[::-1][:rank], 0)), v[:, ::-1][:, :rank]
        return w @ v / np.maximum(s, 1e-30), s, v.T
    start = np.random.Generator(np.random.PCG64(0)).normal(size=(w.shape[1], 2 * rank + 16))
    q = np.linalg.qr(w @ start)[0]
    for _ in range(ITERATIONS):
        q = np.linalg.qr(w @ np.linalg.qr(w.T @ q)[0])[0]
    u, s, vt = np.linalg.svd(q.T @ w, full_matrices=False)
    return (q @ u)[:, :rank], s[:rank], vt[:rank]
