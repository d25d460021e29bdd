"""What a run will need, before it starts: memory from the layout of the compiled step, time from a few measured steps.

Memory is the process as it stands, plus the packed weights (where they are not loaded yet), plus what the step lays out
for its longest pass, plus the pairs with their gradients, moments, last good values and the copy that saving makes.
"""

import itertools
import time
from dataclasses import dataclass

from llamacy import kernels
from llamacy.formats.architectures import ARCHITECTURES
from llamacy.model.weights import matrix_shapes, output_of, packed_bytes
from llamacy.train.batches import Plan
from llamacy.train.trainer import PACK_TOKENS, n_inputs, packs

# Measured steps end after this many seconds or steps; sample lengths are averaged over so many.
SECONDS, STEPS, LENGTHS = 4.0, 4, 200
# A pass before the run that takes less than this is measured twice.
QUICK = 1.0
# Tokens that a model is given at once while it is asked: it shall not take much memory beside training's.
ASKED = 16
# Up to this many samples each one's length is looked at.
COUNTED = 1000
# A pass forward costs this share of a step.
FORWARD = 0.4


def weights_bytes(file, config):
    """Return (bytes of the packed weights, bytes of the token embedding that stays mapped: 0 where it is packed).

    What is missing or of an unknown type counts nothing here: loading it will say so.
    """
    family, wanted = ARCHITECTURES[config.architecture], matrix_shapes(file, config)
    known = set(kernels.matmul.types().values())
    kinds = {name: file.tensors[name].type.number for name in wanted if name in file.tensors}
    packed = sum(packed_bytes(kind, wanted[name]) for name, kind in kinds.items() if kind in known)
    mapped = family.embedding in file.tensors and output_of(file, family) != family.embedding
    return packed, file.data(family.embedding).nbytes if mapped else 0


@dataclass(frozen=True)
class Case:
    """One way to run: tokens of the longest pass, sequences in it, recomputing or not."""

    tokens: int
    sequences: int
    checkpointing: bool
    pack_tokens: int | None = None


def longest_pass(options, data):
    """Return the most tokens that a pass over `data` has: exactly where it is small, else by its longest sample."""
    per_step, room = options.batch_size * options.grad_acc, max(options.n_ctx, PACK_TOKENS)
    if len(data) > COUNTED:
        # the last token of a sample is only predicted
        return min(per_step * (data.longest() - 1), room)
    lengths = [n_inputs(data[i]) for i in range(len(data))]
    plan = Plan(len(data), options)
    batches = [[lengths[i] for batch in plan.step(step) for i in batch] for step in range(plan.n_steps)]
    # validation takes them in order
    batches += [lengths[i : i + options.batch_size] for i in range(0, len(lengths), options.batch_size)]
    return max(sum(size for size in part) for batch in batches for part in packs(batch, int, room))


def cases(options, usual, longest):
    """Yield ways to run, from the fastest to the one that needs the least memory.

    usual: tokens of the longest pass; longest: of the longest sample, beyond which the last way packs none together.
    """
    flags = (False, True) if options.checkpointing is None else (options.checkpointing,)
    per_step, longest = options.batch_size * options.grad_acc, max(1, longest - 1)
    yield from (Case(usual, min(per_step, usual), flag) for flag in flags)
    if usual > longest:
        yield Case(longest, min(per_step, longest), flags[-1], longest)


def training_bytes(config, ranks, case, threads, activations, magnitudes=False):
    """Return {what for: bytes} of a trainer; ranks: {Place: rank}, magnitudes: each has some, DoRA's."""
    pairs = {(place.layer, place.slot): (rank, 1.0) for place, rank in ranks.items()}
    kind = "f32" if activations == "f32" else "int16"
    step = kernels.trainstep.memory_needed(
        config.kernel_sizes, pairs, case.tokens, case.sequences, threads, kind, case.checkpointing,
        magnitudes,
    )  # fmt: skip
    padded = [(rank, *(-(-n // 16) * 16 for n in shape)) for shape, rank in _adapted(ranks)]
    params = 4 * sum(rank * (n_out + n_in) for rank, n_out, n_in in padded)
    turned = 4 * sum(-(-rank // 16) * 16 * (n_out + n_in) for rank, n_out, n_in in padded)
    lengths = 4 * sum(n_out for _, n_out, _ in padded) if magnitudes else 0
    # values, gradients, two moments, the last good values; a copy while saving (or while the first values are made)
    return {
        "activations": step["activations"],
        "buffers": step["buffers"] + step["work"],
        # magnitudes have lengths and gains too, and the model's own lengths
        "adapter": 6 * params + turned + 9 * lengths,
    }


def asking_bytes(model, n_tokens):
    """Return the bytes that a model takes for texts of up to n_tokens beside training (library/comparing.py)."""
    config, rows = model.config, min(n_tokens, ASKED)
    step = 4 * rows * (8 * config.n_embd + 2 * config.n_ff)
    return model.new_session(1, n_tokens, 1).cache_bytes + step + 2 * 4 * min(rows * config.n_vocab, 1 << 23)


def _adapted(ranks):
    """Yield ((n_out, n_in), rank) of every pair."""
    return ((place.shape, rank) for place, rank in ranks.items())


def disk_bytes(ranks, magnitudes=False):
    """Return (bytes of the adapter's file, bytes of a checkpoint), but for some kilobytes of names."""
    adapter = 4 * sum(rank * sum(shape) for shape, rank in _adapted(ranks))
    padded = 4 * sum(rank * sum(-(-n // 16) * 16 for n in shape) for shape, rank in _adapted(ranks))
    if magnitudes:
        adapter += 4 * sum(shape[0] for shape, _ in _adapted(ranks))
        padded += 4 * sum(-(-shape[0] // 16) * 16 for shape, _ in _adapted(ranks))
    return adapter, 3 * padded


def choose(needs, limit):
    """Return the first (case, bytes) of `needs` that stays within `limit` bytes, None when none does."""
    return next(((case, need) for case, need in needs if limit is None or need <= limit), None)


def seconds_of(trainer, plan, data, validation, options, known_prefix):
    """Return (seconds that the whole plan takes, measured tokens/s), from steps done now; the trainer is used up.

    The first step also pages things in and is left out where more follow. known_prefix: later epochs skip the layers
    whose outputs are kept, which is measured by repeating the same steps.
    """
    stride = max(1, plan.steps_per_epoch // (STEPS + 1))
    steps = [plan.step(i * stride) for i in range(min(STEPS + 1, plan.steps_per_epoch))]
    first = _speed(trainer, data, steps[:1], options)
    speed = _speed(trainer, data, steps[1:], options) if len(steps) > 1 and first[1] < SECONDS else first
    later = _speed(trainer, data, steps[1 : 1 + speed[2]] or steps, options) if known_prefix else speed
    mean = _mean_length(data)
    epochs = plan.n_steps / plan.steps_per_epoch
    tokens = mean * plan.n_samples
    seconds = tokens * min(epochs, 1) * speed[1] / speed[0] + tokens * max(epochs - 1, 0) * later[1] / later[0]
    if validation is not None:
        every = options.eval_every or plan.steps_per_epoch
        n_measured = -(-plan.n_steps // every)
        seconds += n_measured * len(validation) * _mean_length(validation) * FORWARD * speed[1] / speed[0]
    return seconds, speed[0] / speed[1]


def rehearsed(trainer, plan, data, validation, options, first, known_prefix):
    """Return (seconds that the steps from `first` on will take, tokens/s), from one pass now that changes nothing.

    What is measured is a pass like those of the first step, once more where that is quick: by then its memory is there.
    known_prefix: as for seconds_of.
    """
    chosen = _pass_of(data, plan.step(min(first, plan.n_steps - 1)))
    tokens = sum(len(sample.ids) for sample in chosen)
    once = _seconds(trainer.rehearse, chosen)
    again = _seconds(trainer.rehearse, chosen) if known_prefix or once < QUICK else once
    per_token, later = (once if known_prefix else min(once, again)) / tokens, min(once, again) / tokens
    mean, n_new = _mean_length(data), max(0, plan.steps_per_epoch - first)
    n_steps, per_step = plan.n_steps - first, mean * plan.n_samples / plan.steps_per_epoch
    seconds = per_step * (min(n_new, n_steps) * per_token + max(0, n_steps - n_new) * later)
    if validation is not None:
        n_measured = n_steps // (options.eval_every or plan.steps_per_epoch) + 1
        seconds += n_measured * len(validation) * _mean_length(validation) * FORWARD * per_token
    return seconds, 1 / per_token


def _pass_of(data, batches):
    """Return the first samples of a step that fit into one pass, at least one that is trained on."""
    samples = [sample for sample in (data[i] for batch in batches for i in batch) if sample.n_trained]
    sizes = itertools.accumulate(len(sample.ids) for sample in samples)
    return samples[: max(1, sum(size <= PACK_TOKENS for size in sizes))]


def _seconds(function, *arguments):
    began = time.perf_counter()
    function(*arguments)
    return max(time.perf_counter() - began, 1e-9)


def _speed(trainer, data, steps, options):
    """Return (tokens, seconds, steps) of the first of `steps` that fill SECONDS."""
    tokens, n, began = 0, 0, time.perf_counter()
    for step in steps:
        tokens += trainer.step([[data[i] for i in batch] for batch in step], options.learning_rate).tokens
        n += 1
        if time.perf_counter() - began > SECONDS:
            break
    return tokens, max(time.perf_counter() - began, 1e-9), n


def _mean_length(data):
    """Return the mean number of tokens of samples spread over the data."""
    stride = -(-len(data) // LENGTHS)
    lengths = [len(data[i].ids) for i in range(0, len(data), stride)]
    return sum(lengths) / len(lengths)


def shown(n_bytes):
    """Return bytes as --max-ram takes them: 1.46G, 512M, 3K, rounded up."""
    for unit, letter in ((1 << 30, "G"), (1 << 20, "M")):
        if n_bytes >= unit:
            return f"{-(-n_bytes * 100 // unit) / 100:.2f}{letter}" if letter == "G" else f"{-(-n_bytes // unit)}M"
    return f"{-(-n_bytes // 1024)}K"
