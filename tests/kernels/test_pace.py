"""How many threads small steps get: pace.pxd's rule against times made up by hand."""

import pytest

from llamacy import kernels

TRIAL, HOLD = 8, 64


@pytest.fixture
def paces(isa):
    return kernels.load("decoder", isa).paces


def trials(left_out):
    """Return (first step, length) of each run of steps that leave a thread out."""
    runs = []
    for i, out in enumerate(left_out):
        if out and (i == 0 or not left_out[i - 1]):
            runs.append([i, 0])
        if out:
            runs[-1][1] += 1
    return [tuple(run) for run in runs]


def test_no_thread_is_left_out_where_no_wait_sleeps(paces):
    assert not any(paces(5.0, 1.0, 0, 1000))


def test_a_rare_sleep_is_no_reason(paces):
    # One sleep in each of the first steps, less than half a sleep a step in the mean after that.
    assert not any(paces(5.0, 1.0, 0.4, 1000))


def test_beside_a_busy_program_the_quicker_number_wins_and_all_threads_are_tried_again(paces):
    runs = trials(paces(10.0, 6.0, 2, TRIAL + 10 * (HOLD + TRIAL)))
    # a trial and what it led to; then all threads for a trial, and again without one
    assert runs[0] == (TRIAL, TRIAL + HOLD)
    assert runs[1:-1] == [(TRIAL + i * (TRIAL + HOLD) + TRIAL, HOLD) for i in range(1, len(runs) - 1)]
    assert len(runs) == 10


def test_trials_in_vain_become_rare(paces):
    runs = trials(paces(10.0, 12.0, 2, 6000))
    assert [length for _, length in runs] == [TRIAL] * len(runs)
    gaps = [b[0] - a[0] - TRIAL for a, b in zip(runs, runs[1:], strict=False)]
    assert gaps == [4 * HOLD, 16 * HOLD, 64 * HOLD]


def test_a_trial_that_is_much_slower_ends_at_once(paces):
    runs = trials(paces(10.0, 14.0, 2, 6000))
    assert [length for _, length in runs] == [2] * len(runs)
    gaps = [b[0] - a[0] - 2 for a, b in zip(runs, runs[1:], strict=False)]
    assert gaps == [4 * HOLD, 16 * HOLD, 64 * HOLD]
