"""Recorded runs that take too long for every day: PiSSA's start takes each of the default model's matrices apart."""

import pytest

from tests.model import golden
from tests.train.test_methods import run_of


@golden.needs_model
def test_a_run_of_pissa_is_that_of_peft():
    for result, wanted in run_of("pissa", {"init_weights": "pissa"}, None, 1e-3, 6):
        assert result.loss == pytest.approx(wanted["loss"], rel=0.005)
        assert result.grad_norm == pytest.approx(wanted["grad_norm"], rel=0.01)
