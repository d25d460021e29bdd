"""What a run starts from: an adapter, a checkpoint, nothing; and what tells one run from another."""

import dataclasses
import os
import zlib
from collections import Counter

from llamacy.errors import LlamacyError, UsageError, shown
from llamacy.formats.adapter import fitted, load_adapter
from llamacy.formats.architectures import key_of
from llamacy.train.checkpoint import how_far
from llamacy.train.lora import places, targets_of
from llamacy.train.options import MAX_RANK, TARGETS


def starting_adapter(prepared):
    """Return the adapter of job.init_lora, None without; its ranks, scales and matrices become the options'."""
    path, chosen = prepared.job.init_lora, prepared.job.chosen
    if path is None:
        return None
    if prepared.options.init_weights != "default":
        raise UsageError("--init-weights and --init-lora are both given: name one")
    adapter = fitted(load_adapter(path), prepared.file)
    family = prepared.metadata.get("general.architecture")
    if adapter.architecture not in ("", family):
        raise LlamacyError(
            f"{path}: an adapter for {shown(adapter.architecture)}, the model is {shown(family)}; "
            "use the model it was trained on"
        )
    if not adapter.pairs:
        raise LlamacyError(f"{path}: adapts no matrix, so that there is nothing to go on from")
    ranks, scales = Counter(pair.rank for pair in adapter.pairs.values()), Counter()
    if max(ranks) > MAX_RANK:
        raise LlamacyError(f"{path}: a pair has rank {max(ranks)}, wanted at most {MAX_RANK}")
    if ("rank" in chosen and set(ranks) != {prepared.options.rank}) or (
        prepared.options.ranks or prepared.options.rank_pattern or prepared.options.alpha_pattern
    ):
        has = f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, sorted(ranks)))}"
        raise UsageError(f"--rank: {path} has {has}; leave ranks away to go on from it")
    scales.update(round(pair.scale, 6) for pair in adapter.pairs.values())
    rank, scale = ranks.most_common(1)[0][0], scales.most_common(1)[0][0]
    wanted = dataclasses.replace(prepared.options, rank=rank).file_alpha / rank
    if (own_scale := chosen & {"alpha", "rslora"}) and any(abs(each - wanted) > 1e-5 * wanted for each in scales):
        raise UsageError(f"--lora-alpha and --rslora: {path} has scales of its own; leave them away to go on from it")
    changes = {"rank": rank, "ranks": common_ranks(adapter, rank)}
    if not own_scale:
        changes["alpha"] = float(scale * rank)
    if adapter.is_dora:
        changes["dora"] = True
    if "targets" not in chosen and not prepared.job.options.layers:
        changes["targets"] = targets_to_go_on(prepared, adapter)
    prepared.options = dataclasses.replace(prepared.options, **changes)
    return adapter


def common_ranks(adapter, rank):
    """Return ((matrix, its rank), ...) where all layers' pairs have one other than `rank`: fresh ones get it too."""
    by_kind = {}
    for name, pair in adapter.pairs.items():
        by_kind.setdefault(key_of(name), set()).add(pair.rank)
    alike = {kind: ranks.pop() for kind, ranks in by_kind.items() if kind in TARGETS and len(ranks) == 1}
    return tuple((kind, own) for kind, own in alike.items() if own != rank)


def targets_to_go_on(prepared, adapter):
    """Return the matrices that a run from `adapter` trains: its own; with --num-layers these in each of the layers."""
    config = prepared.config()
    known = [name for name in places(config, TARGETS) if name in adapter.pairs]
    if not known:
        what = f"wanted pairs on some of {', '.join(TARGETS)}; use the model it was trained on"
        raise LlamacyError(f"{prepared.job.init_lora}: adapts no matrix that can be trained; {what}")
    if prepared.job.options.num_layers is None:
        return targets_of(config, known)
    keys = {key_of(name) for name in known}
    return tuple(key for key in TARGETS if key in keys)


def checkpoint_to_resume(job, outputs, say, estimate=False):
    """Return the checkpoint to go on from, None to start anew; an estimate replaces none, and so tells of none."""
    path = job.checkpoint_in or (outputs.checkpoint if job.resume else None)
    if path is None and not estimate:
        tell_unfinished(outputs.checkpoint, say)
    if path is None or os.path.exists(path):
        return path
    if job.resume:
        raise LlamacyError(f"{path}: no checkpoint there; leave --resume away to start anew")
    # Scripts for llama.cpp name the checkpoint from the first run on.
    say(f"{path}: no checkpoint there yet, starting anew")
    return None


def tell_unfinished(path, say):
    """Say so when a run that starts anew will replace the checkpoint of one that was stopped, or something else."""
    if not path or not os.path.exists(path):
        return
    try:
        step, n_steps = how_far(path)
    except LlamacyError:
        say(f"{path}: is no checkpoint that can be gone on from; this run replaces it")
        return
    if step < n_steps:
        say(
            f"{path}: of a run that was stopped at step {step} of {n_steps}; --resume goes on with it, this run "
            "replaces it"
        )


def ids_of(prepared, data, held):
    """Return what tells this run's model, data, pairs and validation samples from others."""
    family = prepared.metadata.get("general.architecture")
    settings = {
        key: shown(value, 200)
        for key, value in prepared.metadata.items()
        if key.startswith(f"{family}.") and not key.endswith(".context_length")
    }
    loading = prepared.job.loading
    changes = [loading.rms_eps, loading.rope_theta, sorted(loading.rope.items())]
    about = [prepared.file.digest(), sorted(settings.items()), changes]
    pairs = sorted(prepared.start.pairs.items()) if prepared.start else []
    shapes = [(name, pair.rank, round(pair.scale, 6)) for name, pair in pairs]
    split = prepared.options.val_split
    validation = None
    if held is not None:
        validation = zlib.crc32(f"{data.fingerprint()} {split}".encode()) if split else held.fingerprint()
    return {
        "model": zlib.crc32(repr(about).encode()),
        "data": zlib.crc32(f"{data.fingerprint()} {split}".encode()),
        "pairs": zlib.crc32(repr(shapes).encode()),
        "validation": validation,
    }
