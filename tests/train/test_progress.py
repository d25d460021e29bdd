"""The bar and the lines, with a clock that the test turns."""

import io
import re

import pytest

from llamacy.train.progress import Progress, clock_time


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def run(n_steps, seconds, terminal, n_done=0):
    """Run all steps at `seconds` each and return what was written."""
    clock, stream = Clock(), io.StringIO()
    progress = Progress(2, stream=stream, clock=clock, terminal=terminal)
    progress.begin(n_steps, n_done)
    for step in range(n_done + 1, n_steps + 1):
        clock.now += seconds
        progress.step(step, 1 + (step > n_steps // 2), 5 / step, 123.4)
    progress.close()
    return stream.getvalue()


def test_lines_come_with_time_between_them():
    lines = run(100, 0.5, terminal=False).splitlines()
    steps = [int(re.search(r"step (\d+)/100", line)[1]) for line in lines]
    assert steps == [1, *range(5, 100, 4), 100]
    assert lines[0] == "epoch 1/2  step 1/100  loss 5.0000  123 tokens/s  0:50 left"
    # smoothed, and where it goes
    assert lines[-1] == "epoch 2/2  step 100/100  loss 0.0500 (mean 0.0560, falling)  123 tokens/s  0:50 in all"


def test_a_long_run_writes_fewer_lines():
    n_lines = len(run(36_000, 1.0, terminal=False).splitlines())
    assert 500 < n_lines < 1500


def test_time_left_counts_from_where_a_run_went_on():
    assert (
        run(10, 60, terminal=False, n_done=4)
        .splitlines()[0]
        .endswith("step 5/10  loss 1.0000  123 tokens/s  5:00 left")
    )


def test_a_slow_first_step_is_forgotten():
    clock, stream = Clock(), io.StringIO()
    progress = Progress(1, stream=stream, clock=clock, terminal=False)
    progress.begin(101)
    for step, seconds in enumerate((60, 3, 3), 1):
        clock.now += seconds
        progress.step(step, 1, 1.0, 1.0)
    assert stream.getvalue().splitlines()[-1].endswith("4:54 left")


@pytest.mark.parametrize("columns", [200, 80, 40, 12])
def test_the_bar_stays_on_one_line_of_the_terminal(monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    frames = run(50, 1, terminal=True).rstrip("\n").split("\r")[1:]
    assert len(frames) == 50 and all(len(frame) < columns for frame in frames)
    assert all(len(frame) >= len(before.rstrip()) for before, frame in zip(frames, frames[1:], strict=False))
    assert "in all" in frames[-1]
    if columns == 200:
        assert frames[0].startswith("[------------------------------]  epoch 1/2")
        assert frames[24].startswith("[===============---------------]") and frames[-1].startswith("[" + "=" * 30 + "]")


def test_a_note_stands_above_the_bar(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    stream = io.StringIO()
    progress = Progress(1, stream=stream, clock=Clock(), terminal=True)
    progress.begin(2)
    progress.step(1, 1, 1.0, 1.0)
    progress.note("saved")
    progress.step(2, 1, 1.0, 1.0)
    progress.close()
    bar, note, last = re.fullmatch(r"\r(\[.*left) *\r +\r(saved)\n\r(.*in all) *\n", stream.getvalue()).groups()
    assert note == "saved" and bar != last


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (754, "12:34"), (12060, "3:21:00")])
def test_clock_time(seconds, text):
    assert clock_time(seconds) == text


class Gone(io.StringIO):
    """A closed terminal, or a pipe that nobody reads."""

    def flush(self):
        raise BrokenPipeError(32, "Broken pipe")


@pytest.mark.parametrize("terminal", [False, True])
def test_a_reader_that_went_away_does_not_end_the_run(terminal):
    progress = Progress(1, stream=Gone(), terminal=terminal)
    progress.begin(2)
    progress.step(1, 1, 2.5, 100)
    progress.note("still here")
    progress.close()
