"""A run from a Job alone, without flags or a command: what a caller gets, and that the command does the same."""

import contextlib
import io
from pathlib import Path

import pytest

from llamacy.cli import finetune as command
from llamacy.errors import LlamacyError, UsageError
from llamacy.formats.adapter import load_adapter
from llamacy.model.loading import Loading
from llamacy.train.finetune import estimate, set_up, train
from llamacy.train.job import Job
from llamacy.train.options import TrainOptions
from llamacy.train.progress import Progress

ROOT = Path(__file__).resolve().parents[2]
MODEL = str(ROOT / "tests" / "data" / "tiny-q8_0.gguf")
DATA = str(ROOT / "examples" / "finetune-data.txt")


def job(folder, *, options=None, **more):
    options = TrainOptions(max_steps=3, rank=4, n_ctx=64, **(options or {}))
    loading = Loading(activations="int16", threads=1)
    return Job(MODEL, options, loading, train_data=(DATA,), outdir=str(folder), **more)


def run(asked):
    """Return (Result, what was said, what was shown of the steps)."""
    said, shown = [], io.StringIO()
    with contextlib.ExitStack() as claims:
        setup = set_up(asked, claims, said.append)
        progress = Progress(asked.options.epochs, stream=shown, terminal=False)
        return train(setup, said.append, progress), said, shown.getvalue()


def test_a_run_tells_and_returns_and_prints_nothing(tmp_path, capfd):
    result, said, shown = run(job(tmp_path / "out"))
    assert result.ended == "end" and result.signum is None and result.shaped
    assert result.done.step == len(result.done.losses) == 3
    assert load_adapter(result.outputs.adapter).metadata["llamacy.step"] == 3
    assert said[0].endswith("2 samples (instruction text)") and said[-1].startswith("training 3 steps")
    assert "step 3/3" in shown
    assert capfd.readouterr() == ("", "")


def test_the_command_trains_the_same_adapter(tmp_path, capfd):
    result, *_ = run(job(tmp_path / "job"))
    line = f"-m {MODEL} --train-data {DATA} --max-steps 3 --rank 4 --ctx-size 64 -t 1 --outdir {tmp_path / 'command'}"
    assert command.main(line.split()) == 0
    assert (tmp_path / "command" / "adapter.bin").read_bytes() == Path(result.outputs.adapter).read_bytes()


def test_only_what_was_chosen_is_held_against_an_adapter_to_start_from(tmp_path):
    first, *_ = run(job(tmp_path / "first"))
    options = {"alpha": 8.0}
    went_on, *_ = run(job(tmp_path / "second", options=options, init_lora=first.outputs.adapter))
    scales = {pair.scale for pair in load_adapter(went_on.outputs.adapter).pairs.values()}
    assert scales == {pair.scale for pair in load_adapter(first.outputs.adapter).pairs.values()} == {4.0}
    with pytest.raises(UsageError, match="--lora-alpha"):
        run(job(tmp_path / "third", options=options, init_lora=first.outputs.adapter, chosen=frozenset({"alpha"})))


def test_an_estimate_writes_nothing(tmp_path):
    with contextlib.ExitStack() as claims:
        found = estimate(set_up(job(tmp_path / "out"), claims, [].append, estimate=True))
    assert found.peak > 1 << 20 and found.n_steps == 3 and found.seconds > 0
    assert found.checkpoint > found.adapter > 0
    assert not (tmp_path / "out").exists()


def test_a_limit_that_is_too_low_is_refused_before_the_model_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(Loading, "load", None)
    with contextlib.ExitStack() as claims, pytest.raises(LlamacyError, match="--max-ram 1M: the run needs"):
        set_up(job(tmp_path / "out", max_ram=1 << 20), claims, [].append)
