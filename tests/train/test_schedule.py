"""Schedules against numbers recorded from transformers (record_schedules.py), warm-up included."""

import json
from pathlib import Path

import pytest

from llamacy.train.schedule import SCHEDULES, learning_rate, warmup_steps

ROWS = json.loads((Path(__file__).parents[1] / "data" / "schedules.json").read_text())["rows"]


@pytest.mark.parametrize("row", ROWS, ids=lambda r: f"{r['schedule']}-{r['n_warmup']}-{r['n_steps']}")
def test_rates_are_those_of_transformers(row):
    settings = {key: row[key] for key in ("schedule", "peak", "n_warmup", "n_steps")}
    rates = [learning_rate(step, **settings) for step in range(len(row["rates"]))]
    assert rates == pytest.approx(row["rates"], rel=1e-12, abs=1e-18)


def test_floor_and_decay_are_what_was_asked_for():
    rates = [learning_rate(step, schedule="wsd", peak=2.0, n_warmup=0, n_steps=10, floor=0.5, decay=0.4)
             for step in range(12)]  # fmt: skip
    assert rates[:7] == [2.0] * 7 and rates[8] == pytest.approx(1.5) and rates[10:] == [1.0, 1.0]
    for schedule in ("cosine_with_min_lr", "polynomial"):
        assert learning_rate(10, schedule=schedule, peak=2.0, n_warmup=0, n_steps=10, floor=0.25) == pytest.approx(0.5)


def test_every_schedule_was_recorded():
    assert {row["schedule"] for row in ROWS} == set(SCHEDULES)


def test_warmup_is_five_percent_unless_given():
    assert [warmup_steps(None, n) for n in (1, 19, 20, 100, 1000)] == [0, 0, 1, 5, 50]
    assert [warmup_steps(None, n, 0.03) for n in (1, 100, 101, 1000)] == [1, 3, 4, 30]
    assert warmup_steps(7, 3) == 7 and warmup_steps(0, 1000) == 0
