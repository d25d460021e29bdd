"""How far default activations are off, as docs/models.md tells it of each family."""

import json
import warnings

import pytest

from tests.model import family_cases
from tests.peers import record_accuracy


@pytest.mark.parametrize("case", ["qwen3", "gemma2", "gpt-oss"])
def test_log_probabilities_are_off_by_what_was_recorded(case, monkeypatch):
    monkeypatch.setattr(family_cases, "CASES", dict(family_cases.CASES))
    record_accuracy.widened()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = record_accuracy.measured(case)
    wanted = json.loads(record_accuracy.FACTS.read_text())[case]
    assert found.pop("f32") < 1e-4 and wanted.pop("f32") < 1e-4
    assert found == pytest.approx(wanted, rel=0.1)


def test_every_family_that_runs_is_recorded():
    facts = json.loads(record_accuracy.FACTS.read_text())
    assert set(facts) == set(family_cases.CASES)
    for case, row in facts.items():
        assert row is None or (row["f32"] < 1e-4 and row["F32"] < 1e-3 and row["Q8_0"] < 2e-3 and row["Q4_0"] < 0.3), (
            case
        )
