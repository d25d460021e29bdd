"""Events for TensorBoard, read back with its own reader; refused by the extra's name where it is not installed."""

import sys

import pytest

from llamacy.errors import LlamacyError
from llamacy.train.tensorboard import Logs, TensorBoardLog, check_tensorboard

ROW = {"step": 1, "epoch": 1, "loss": 2.5, "lr": 1e-4, "grad_norm": 3.0, "val_loss": 2.0, "val_loss_before": 4.0,
       "reward_margin": 0.5, "samples": [{"prompt": "x"}]}  # fmt: skip


def events(folder):
    """Return {tag: [(step, value), ...]} as TensorBoard reads a folder."""
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = reader.EventAccumulator(str(folder))
    found.Reload()
    return {tag: [(event.step, event.value) for event in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def test_what_is_written_is_what_tensorboard_reads(tmp_path):
    pytest.importorskip("tensorboard")
    check_tensorboard()
    log = Logs([TensorBoardLog(str(tmp_path), pytest.fail)])
    log.write(ROW)
    log.write({"step": 2, "loss": None, "lr": 2e-4, "grad_norm": float("nan"), "skipped": "why"})
    log.amend({"step": 2, "perplexity": {"training": {"base": 9.0, "adapter": 4.0}}})
    log.close()
    found = events(tmp_path)
    assert found["train/loss"] == [(1, 2.5)] and found["train/grad_norm"] == [(1, 3.0)]
    assert found["train/learning_rate"] == [(1, pytest.approx(1e-4)), (2, pytest.approx(2e-4))]
    assert found["validation/loss"] == [(1, 2.0), (0, 4.0)] and found["other/reward_margin"] == [(1, 0.5)]
    assert found["perplexity/training_base"] == [(2, 9.0)] and found["perplexity/training_adapter"] == [(2, 4.0)]


def test_a_run_that_goes_on_leaves_no_step_twice(tmp_path):
    pytest.importorskip("tensorboard")
    first = TensorBoardLog(str(tmp_path), pytest.fail)
    for step in (1, 2, 3):
        first.write({"step": step, "loss": float(step)})
    first.close()
    again = TensorBoardLog(str(tmp_path), pytest.fail, done=1)  # the checkpoint was of step 1
    for step in (2, 3):
        again.write({"step": step, "loss": 10.0 * step})
    again.close()
    assert events(tmp_path)["train/loss"] == [(1, 1.0), (2, 20.0), (3, 30.0)]


def test_without_its_package_the_extra_is_named(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "tensorboard"] + ["tensorboard"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(LlamacyError, match=r"pip install 'llamacy\[tensorboard\]'"):
        check_tensorboard()
