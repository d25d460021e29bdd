"""Learning rate by step, as transformers' get_{constant,linear,cosine}_schedule_with_warmup compute it."""

import math

DEFAULT_WARMUP = 0.05


def learning_rate(step, *, schedule, peak, n_warmup, n_steps):
    """Return the rate of optimiser step `step`, counted from 0, of `n_steps`.

    It rises from 0 in `n_warmup` equal stairs, so that step n_warmup has `peak`, then follows SCHEDULES[schedule].
    """
    if step < n_warmup:
        return peak * (step / max(1, n_warmup))
    return peak * SCHEDULES[schedule](step - n_warmup, n_steps - n_warmup)


def _constant(step, n_steps):
    return 1.0


def _linear(step, n_steps):
    return max(0.0, (n_steps - step) / max(1, n_steps))


def _cosine(step, n_steps):
    """Half a wave, and past the end on along the wave."""
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * step / max(1, n_steps))))


# name -> factor of the peak, by steps after the warm-up
SCHEDULES = {"constant": _constant, "linear": _linear, "cosine": _cosine}


def warmup_steps(wanted, n_steps):
    """Return the steps of warm-up: `wanted`, or for None 5 % of the run, rounded down so that short runs have none."""
    return int(DEFAULT_WARMUP * n_steps) if wanted is None else wanted
