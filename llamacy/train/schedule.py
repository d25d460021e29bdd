"""Learning rate by step, as transformers' get_*_schedule_with_warmup and get_wsd_schedule compute it."""

import math

DEFAULT_WARMUP = 0.05
# Where a schedule that ends above 0 ends, as a share of the peak, if nobody says: transformers wants it said, or has
# polynomial end at a rate of 1e-7.
DEFAULT_FLOORS = {"cosine_with_min_lr": lambda peak: 0.1, "polynomial": lambda peak: min(1.0, 1e-7 / peak)}
DEFAULT_DECAY = 0.1


def learning_rate(step, *, schedule, peak, n_warmup, n_steps, floor=None, decay=None):
    """Return the rate of optimiser step `step`, counted from 0, of `n_steps`.

    It rises from 0 in `n_warmup` equal stairs, so that step n_warmup has `peak`, then follows SCHEDULES[schedule].
    floor: the share of the peak that schedules with an end above 0 come to; decay: the share of the steps in which wsd
    falls. None: the defaults above.
    """
    if floor is None:
        floor = DEFAULT_FLOORS.get(schedule, lambda peak: 0.0)(peak)
    if step < n_warmup:
        start = floor if schedule == "wsd" else 0.0
        return peak * (start + (1 - start) * step / max(1, n_warmup))
    n_decay = round((DEFAULT_DECAY if decay is None else decay) * n_steps)
    return peak * SCHEDULES[schedule](step - n_warmup, n_steps - n_warmup, floor, n_decay)


def _constant(step, n_steps, floor, n_decay):
    return 1.0


def _linear(step, n_steps, floor, n_decay):
    return max(0.0, (n_steps - step) / max(1, n_steps))


def _cosine(step, n_steps, floor, n_decay):
    """Half a wave, and past the end on along the wave."""
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * step / max(1, n_steps))))


def _cosine_with_min_lr(step, n_steps, floor, n_decay):
    wave = 0.5 * (1.0 + math.cos(math.pi * step / max(1, n_steps)))
    return max(0.0, wave * (1 - floor) + floor)


def _polynomial(step, n_steps, floor, n_decay):
    """A straight line to the floor, which is of power 1, transformers' default."""
    return floor if step > n_steps else floor + (1 - floor) * (1 - step / max(1, n_steps))


def _wsd(step, n_steps, floor, n_decay):
    """Warm-up, stable, decay: half a wave down to the floor in the last n_decay steps."""
    n_stable = n_steps - n_decay
    if step < n_stable:
        return 1.0
    if step < n_steps:
        return max(0.0, 0.5 * (1.0 + math.cos(math.pi * (step - n_stable) / max(1, n_decay))) * (1 - floor) + floor)
    return floor


# name -> factor of the peak, by steps after the warm-up
SCHEDULES = {
    "constant": _constant,
    "constant_with_warmup": _constant,
    "linear": _linear,
    "cosine": _cosine,
    "cosine_with_min_lr": _cosine_with_min_lr,
    "polynomial": _polynomial,
    "wsd": _wsd,
}


def warmup_steps(wanted, n_steps, ratio=None):
    """Return the steps of warm-up: `wanted`, or the share `ratio` of the run, rounded up; for None of both 5 % of it,
    rounded down so that short runs have none.
    """
    if wanted is not None:
        return wanted
    return int(DEFAULT_WARMUP * n_steps) if ratio is None else math.ceil(ratio * n_steps)
