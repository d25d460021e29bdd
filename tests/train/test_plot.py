"""The loss curve: a well-formed SVG whose line goes through the losses, and refusals before training."""

import sys
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamacy.errors import LlamacyError, UsageError
from llamacy.train.plot import (
    BOTTOM,
    HEIGHT,
    LEFT,
    MAX_POINTS,
    RIGHT,
    TOP,
    WIDTH,
    check_plot,
    smoothed,
    thinned,
    ticks,
    write_plot,
)

SVG = "{http://www.w3.org/2000/svg}"


def lines_of(path):
    root = ElementTree.parse(path).getroot()
    return [
        [tuple(map(float, p.split(","))) for p in line.get("points").split()] for line in root.iter(f"{SVG}polyline")
    ]


def test_the_curve_goes_through_the_losses(tmp_path):
    path = str(tmp_path / "loss.svg")
    write_plot(path, "a <b> & c", [4.0, 2.0, 0.0], validation=[(1, 4.0), (3, 2.0)])
    step, mean, validation = lines_of(path)
    height = HEIGHT - TOP - BOTTOM
    assert [x for x, _ in step] == [LEFT, (LEFT + WIDTH - RIGHT) / 2, WIDTH - RIGHT]
    assert [y for _, y in step] == pytest.approx([TOP + height * (1 - loss / 4.2) for loss in (4, 2, 0)], abs=0.06)
    assert mean == step
    assert validation == [step[0], (step[2][0], step[1][1])]
    assert "a <b> & c" in [text.text for text in ElementTree.parse(path).getroot().iter(f"{SVG}text")]


@given(st.lists(st.floats(0, 30), min_size=1, max_size=50))
def test_any_losses_stay_inside_the_frame(tmp_path_factory, losses):
    path = str(tmp_path_factory.getbasetemp() / "any.svg")
    write_plot(path, "any", losses)
    for line in lines_of(path):
        assert all(LEFT <= x <= WIDTH and TOP - 0.1 <= y <= HEIGHT - BOTTOM + 0.1 for x, y in line)


def test_long_runs_are_thinned_and_smoothed():
    points = list(enumerate(range(10 * MAX_POINTS + 7)))
    kept = thinned(points)
    assert len(kept) <= MAX_POINTS + 1 and kept[0] == points[0] and kept[-1] == points[-1]
    means = smoothed([3.0, 1.0] * 200)
    assert means[0] == 3.0 and means[-1] == pytest.approx(2.0, abs=0.06)


@given(st.floats(-10, 10), st.floats(1e-3, 1e4))
def test_ticks_are_round_and_inside(low, width):
    values = ticks(low, low + width)
    assert 1 <= len(values) <= 7
    assert all(low - 1e-6 * width <= value <= low + width * (1 + 1e-6) for value in values)


def test_a_png_through_matplotlib(tmp_path):
    pytest.importorskip("matplotlib")
    write_plot(str(tmp_path / "loss.png"), "png", [3, 2, 1], [(2, 2.5)])
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_what_cannot_be_drawn_is_refused_first(monkeypatch):
    with pytest.raises(UsageError, match="ending in .svg or .png, got 'loss.pdf'"):
        check_plot("loss.pdf")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    check_plot("loss.svg")
    with pytest.raises(LlamacyError, match=r"pip install 'llamacy\[plot\]'"):
        check_plot("loss.png")
