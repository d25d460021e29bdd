"""Steps whose loss or gradient is no number: skipped, told, counted through checkpoints; three in a row are the end."""

import json
import math

import numpy as np
import pytest

from llamacy.errors import LlamacyError
from llamacy.train.runlog import RunLog
from tests.train.fakes import FakeTrainer
from tests.train.test_loop import Bench, StopAfter
from tests.train.test_preference import CASES, make, sample  # noqa: F401

METHODS = CASES | {
    "sft": ({}, [sample(i, 4, 5) for i in range(4)]),
    "sft with LoRA+": ({"loraplus_ratio": 4.0}, [sample(i, 4, 5) for i in range(4)]),
}


@pytest.mark.parametrize("case", METHODS)
def test_a_step_that_is_no_number_changes_nothing(make, case):  # noqa: F811
    """Neither of the micro-batches is taken, and the next step is as if it had not been."""
    options, items = METHODS[case]
    one, other = make(**options), make(**options)
    batches = [items[:2], items[2:]]
    for made in (one, other):
        made.step(batches, 1e-3)
    kept = one._pass.params[7]
    one._pass.params[7] = math.nan
    before = {name: np.asarray(value).tobytes() for name, value in one.state().items()}
    found = one.step(batches, 1e-3)
    assert not (math.isfinite(found.loss) and math.isfinite(found.grad_norm))
    assert {name: np.asarray(value).tobytes() for name, value in one.state().items()} == before
    one._pass.params[7] = kept
    for made in (one, other):
        assert math.isfinite(made.step(batches, 1e-3).loss)
    for name, value in one.state().items():
        assert np.asarray(value).tobytes() == np.asarray(other.state()[name]).tobytes(), name


@pytest.mark.parametrize("case", METHODS)
def test_a_rehearsal_leaves_no_trace(make, case):  # noqa: F811
    options, items = METHODS[case]
    one, other = (make(lora_dropout=0.2, **options) for _ in range(2))
    one.rehearse(items[:1])
    one.rehearse(items)
    found = [made.step([items], 1e-3) for made in (one, other)]
    assert found[0] == found[1]
    assert one._pass.params.tobytes() == other._pass.params.tobytes()


class Odd(FakeTrainer):
    """Whose steps of these numbers, from 1, are no numbers."""

    def __init__(self, at, loss=math.nan):
        super().__init__()
        self.at, self.loss = at, loss

    def probe(self, samples):
        found = super().probe(samples)
        return found._replace(loss=self.loss) if len(self.seen) in self.at else found


def test_a_skipped_step_is_told_and_the_run_goes_on(tmp_path):
    log = RunLog(tmp_path / "log.json", warn=pytest.fail)
    bench = Bench(tmp_path, Odd({1, 4, 5, 9}), log=log, epochs=1)
    bench.run.guess = 1e-9
    assert bench.run.go() == "end"
    done, shown = bench.run.done, bench.shown.getvalue()
    assert (done.step, done.n_skipped, done.n_astray, bench.trainer.n_steps) == (10, 4, 0, 6)
    assert [math.isnan(loss) for loss in done.losses] == [i in (0, 3, 4, 8) for i in range(10)]
    assert "warning: step 4: the loss is nan" in shown and "the step is skipped, 3 in a row end the run" in shown
    rows = [json.loads(line) for line in (tmp_path / "log.json").read_text().splitlines()]
    assert [row["step"] for row in rows if "skipped" in row] == [1, 4, 5, 9]
    assert all((row["loss"] is None) == (row["grad_norm"] is None) == ("skipped" in row) for row in rows)
    # what the first loss says is said of the first that there is
    assert shown.index("step 1: the loss is nan") < shown.index("the first loss") < shown.index("step 4:")
    assert bench.saved_step() == 10


@pytest.mark.parametrize("cut", [13, 14])
def test_the_count_goes_on_with_the_run(tmp_path, cut):
    """Steps 13, 14 and 15 are astray: a run that was stopped between them ends at the third all the same."""
    first = Bench(tmp_path, Odd({13, 14, 15}))
    assert first.run.go(StopAfter(first.trainer, cut)) == "stopped"
    second = Bench(tmp_path, Odd({14 - cut, 15 - cut}))
    second.run.resume(second.outputs.checkpoint)
    assert (second.run.done.n_astray, second.run.done.n_skipped) == (cut - 12, cut - 12)
    with pytest.raises(LlamacyError, match="step 15: the loss is nan.*in 3 steps in a row.*nothing was trained"):
        second.run.go()
    assert len(second.trainer.seen) == 15 - cut


def test_a_run_goes_on_as_if_a_skipped_step_had_not_been_there(tmp_path):
    """The same samples without the second: the same adapter."""
    bench = Bench(tmp_path / "a", Odd({2}), epochs=1, shuffle=False)
    bench.run.go()
    other = Bench(tmp_path / "b", epochs=1, shuffle=False)
    for step in [0, *range(2, 10)]:
        other.trainer.step([[other.run.data[step]]], 0.5)
    rates = bench.trainer.rates[:1] + bench.trainer.rates[2:]
    twin = FakeTrainer()
    for step, rate in zip([0, *range(2, 10)], rates, strict=True):
        twin.step([[other.run.data[step]]], rate)
    assert np.array_equal(bench.trainer.w, twin.w)


def test_the_last_good_adapter_has_the_number_of_its_step(tmp_path):
    """Step 2 was skipped: what step 5 began with had been changed three times, by steps 1, 3 and 4."""
    bench = Bench(tmp_path, Odd({2, 6, 7, 8}), learning_rate=1e-3)
    bench.run.data = bench.run.data[:1] * 10
    with pytest.raises(LlamacyError, match="step 8: the loss is nan.*is the adapter of step 4;"):
        bench.run.go()
    done = bench.run.done
    assert (bench.saved_step(), bench.trainer.good[1]) == (4, 3)
    assert (done.step, done.n_skipped, len(done.losses), len(done.rates)) == (4, 1, 4, 4)


def test_nothing_is_saved_while_it_is_astray(tmp_path):
    """The first epoch's end, step 10, is skipped: its save waits for step 12."""
    bench = Bench(tmp_path, Odd({10, 11}), name="lora-ITERATION.gguf")
    bench.run.go()
    assert sorted(path.name for path in tmp_path.glob("lora*")) == ["lora-12.gguf", "lora-20.gguf", "lora-LATEST.gguf"]
