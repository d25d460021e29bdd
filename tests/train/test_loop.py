"""The loop around a trainer: order, rates, saving, measuring, stopping, and going on bit for bit."""

import dataclasses
import io
import json
import math
import os
import signal
from types import SimpleNamespace

import numpy as np
import pytest

from llamacy.errors import LlamacyError
from llamacy.formats.adapter import load_adapter
from llamacy.formats.mapped import FileChanged
from llamacy.train.checkpoint import load_checkpoint
from llamacy.train.loop import DIGESTS, Run
from llamacy.train.options import TrainOptions
from llamacy.train.outputs import Outputs
from llamacy.train.progress import Progress
from llamacy.train.runlog import RunLog
from llamacy.train.samples import Sample
from llamacy.train.stop import Stop
from tests.train.fakes import FakeTrainer

FIELDS = ["step", "epoch", "loss", "lr", "grad_norm", "tokens", "trained_tokens", "tokens_per_second",
          "flops_per_second", "peak_rss_bytes"]  # fmt: skip


def samples(n, seed=0):
    rng = np.random.default_rng(seed)
    rows = [rng.integers(0, 256, rng.integers(2, 9)).astype(np.int32) for _ in range(n)]
    return [Sample(ids, np.arange(len(ids)) > 0) for ids in rows]


class Bench:
    """A run over random samples in a folder of its own, with what it showed."""

    def __init__(self, folder, trainer=None, name="adapter.bin", n=10, validation=None, log=None, ids=None, **options):
        options = {"learning_rate": 0.5, "lr_schedule": "constant", **options}
        self.options = TrainOptions(**options)
        self.trainer = trainer or FakeTrainer()
        self.shown = io.StringIO()
        self.outputs = Outputs(outdir=str(folder), lora_out=name)
        self.outputs.check()
        data = samples(n)
        self.run = Run(self.trainer, data, self.options, self.outputs,
                       Progress(1, stream=self.shown, terminal=False), ids={"data": 7} | (ids or {}), log=log,
                       validation=validation, describe=lambda done: {"llamacy.step": done.step})  # fmt: skip

    @property
    def adapter(self):
        return load_adapter(self.outputs.adapter)

    def saved_step(self, path=None):
        return load_adapter(path or self.outputs.adapter).metadata["llamacy.step"]


def test_micro_batches_rates_and_log_are_as_told(tmp_path):
    log = RunLog(tmp_path / "log.json", warn=pytest.fail)
    bench = Bench(tmp_path, batch_size=2, grad_acc=2, shuffle=False, warmup_steps=2, lr_schedule="linear", log=log)
    assert bench.run.go() == "end"
    ids = [sample.ids.tolist() for sample in samples(10)]
    epoch = [[ids[0:2], ids[2:4]], [ids[4:6], ids[6:8]], [ids[8:10]]]
    assert bench.trainer.seen == epoch * 2
    assert bench.trainer.rates == pytest.approx([0, 0.25, 0.5, 0.375, 0.25, 0.125])
    rows = [json.loads(line) for line in (tmp_path / "log.json").read_text().splitlines()]
    assert all(list(row) == FIELDS for row in rows)
    assert [(row["step"], row["epoch"]) for row in rows] == [(1, 1), (2, 1), (3, 1), (4, 2), (5, 2), (6, 2)]
    assert [row["lr"] for row in rows] == bench.trainer.rates
    assert rows[2]["tokens"] == len(ids[8]) + len(ids[9]) and rows[2]["trained_tokens"] == rows[2]["tokens"] - 2
    assert [row["loss"] for row in rows] == pytest.approx(bench.run.done.losses.tolist(), rel=1e-6)
    assert all(row["peak_rss_bytes"] > 1e6 and row["tokens_per_second"] > 0 for row in rows)
    assert np.array_equal(bench.adapter.pairs["blk.0.attn_q.weight"].a[0], bench.trainer.w)


@pytest.mark.parametrize("cut", [1, 4, 7, 9, 12, 19])
def test_a_run_goes_on_bit_for_bit(tmp_path, cut):
    whole = Bench(tmp_path / "whole", lr_schedule="cosine")
    whole.run.go()
    first = Bench(tmp_path / "cut", lr_schedule="cosine")
    stop = StopAfter(first.trainer, cut)
    assert first.run.go(stop) == "stopped"
    second = Bench(tmp_path / "cut", lr_schedule="cosine")
    second.run.resume(second.outputs.checkpoint)
    assert second.run.done.step == cut
    assert second.run.go() == "end"
    assert first.trainer.seen + second.trainer.seen == whole.trainer.seen
    assert second.trainer.w.tobytes() == whole.trainer.w.tobytes()
    assert second.run.done.losses == whole.run.done.losses
    names = [(tmp_path / part / "adapter.bin").read_bytes() for part in ("whole", "cut")]
    assert names[0] == names[1]


class StopAfter:
    """True once the trainer has done so many steps."""

    def __init__(self, trainer, n):
        self.trainer, self.n = trainer, n

    def __bool__(self):
        return len(self.trainer.seen) >= self.n


def test_a_finished_run_can_be_given_more_epochs(tmp_path):
    Bench(tmp_path, epochs=1).run.go()
    again = Bench(tmp_path, epochs=1)
    again.run.resume(again.outputs.checkpoint)
    assert again.run.go() == "end" and again.trainer.seen == []
    more = Bench(tmp_path, epochs=3)
    more.run.resume(more.outputs.checkpoint)
    more.run.go()
    assert len(more.trainer.seen) == 20 and more.saved_step() == 30


CHANGES = [
    ({"batch_size": 2}, "--batch-size"),
    ({"seed": 1}, "--seed"),
    ({"rank": 4}, "--rank"),
    ({"rslora": True}, "--lora-alpha"),
    ({"n": 9}, "--train-data"),
]


@pytest.mark.parametrize(("change", "flag"), CHANGES)
def test_what_is_no_continuation_is_refused(tmp_path, change, flag):
    Bench(tmp_path).run.go()
    other = Bench(tmp_path, **change)
    with pytest.raises(LlamacyError, match=f"give the same {flag}"):
        other.run.resume(other.outputs.checkpoint)


def files(folder, pattern):
    return sorted(path.name for path in folder.glob(pattern))


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({}, [10, 20, 30, 40]),
        ({"save_every": 2}, [20, 40]),
        ({"save_every": 3}, [30, 40]),
        ({"save_every": 0}, [40]),
        ({"save_every": 0, "save_every_steps": 15}, [15, 30, 40]),
        ({"max_steps": 13}, [10, 13]),
    ],
)
def test_saving_by_epochs_and_steps(tmp_path, options, steps):
    bench = Bench(tmp_path, name="lora-ITERATION.gguf", epochs=4, **options)
    bench.run.go()
    assert files(tmp_path, "lora*") == sorted([*(f"lora-{step}.gguf" for step in steps), "lora-LATEST.gguf"])
    assert all(bench.saved_step(tmp_path / f"lora-{step}.gguf") == step for step in steps)
    assert bench.saved_step() == steps[-1]


def test_the_best_adapter_is_kept_and_a_run_stops_early(tmp_path):
    held = samples(3, seed=5)
    log = RunLog(tmp_path / "log.json", warn=pytest.fail)
    bench = Bench(tmp_path, name="lora-ITERATION.gguf", validation=held, epochs=50, eval_every=4, early_stop=2,
                  learning_rate=2.0, log=log)  # fmt: skip
    assert bench.run.go() == "early"
    done = bench.run.done
    losses = [loss for _, loss in done.validation]
    best = int(np.argmin(losses))
    assert [step for step, _ in done.validation] == [4 * (i + 1) for i in range(len(losses))]
    assert len(losses) == best + 3 and done.step == 4 * len(losses) < 500
    assert (done.best_step, done.best_loss) == (4 * (best + 1), losses[best])
    assert bench.saved_step() == done.best_step
    assert bench.saved_step(tmp_path / f"lora-{done.step}.gguf") == done.step
    rows = [json.loads(line) for line in (tmp_path / "log.json").read_text().splitlines()]
    assert [row["val_loss"] for row in rows if "val_loss" in row] == losses
    assert bench.shown.getvalue().count("the best so far, saved") >= 1


class Measured(FakeTrainer):
    """Whose validation losses are given."""

    def __init__(self, losses):
        super().__init__()
        self.losses = iter(losses)

    def evaluate(self, batches):
        # before the first step the model alone is measured
        return (next(self.losses) if self.n_steps else 9.0), len(list(batches))


@pytest.mark.parametrize(
    ("losses", "best", "ended"),
    [
        ([3.0, 2.0, 2.0, 2.0], 2, "early"),
        ([3.0, 2.0, 2.0, 1.5, 1.5, 1.6], 4, "early"),
        ([3.0, 3.1, 2.9, 3.0, 2.8] + [2.7, 2.6, 2.5, 2.4, 2.3], 10, "end"),
    ],
)
def test_only_a_smaller_loss_is_better(tmp_path, losses, best, ended):
    bench = Bench(tmp_path, Measured(losses), validation=samples(3, seed=5), eval_every=1, early_stop=2, epochs=1)
    assert bench.run.go() == ended
    done = bench.run.done
    assert done.validation == [(i + 1, loss) for i, loss in enumerate(losses)]
    assert (done.best_step, done.best_loss) == (best, losses[best - 1])
    assert bench.saved_step() == best


def test_validation_survives_going_on(tmp_path):
    held = samples(3, seed=5)
    whole = Bench(tmp_path / "whole", validation=held, epochs=4)
    whole.run.go()
    first = Bench(tmp_path / "cut", validation=held, epochs=4)
    first.run.go(StopAfter(first.trainer, 25))
    second = Bench(tmp_path / "cut", validation=held, epochs=4)
    second.run.resume(second.outputs.checkpoint)
    second.run.go()
    assert [list(row) for row in second.run.done.validation] == [list(row) for row in whole.run.done.validation]
    assert second.run.done.best_step == whole.run.done.best_step
    assert second.saved_step() == whole.saved_step()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [({"loss": math.nan}, "the loss is nan"), ({"grad_norm": math.inf}, "the gradient's norm inf")],
    ids=lambda wrong: "".join(wrong),
)
class Astray(FakeTrainer):
    """What it finds at step `at` (its last: when it is looked at once more) is `found`."""

    def __init__(self, at, **found):
        super().__init__()
        self.at, self.found = at, found

    def probe(self, samples):
        result = super().probe(samples)
        return result._replace(**self.found) if self.n_steps + 1 == self.at else result


FOUND = {
    "the loss is nan": {"loss": math.nan},
    "the gradient's norm inf": {"grad_norm": math.inf},
    "the gradient is exactly zero at a loss of 2.0000": {"grad_norm": 0.0, "loss": 2.0},
}


@pytest.mark.parametrize("what", FOUND)
def test_a_run_that_goes_astray_ends_with_the_last_good_adapter(tmp_path, what):
    bench = Bench(tmp_path, Astray(14, **FOUND[what]))
    with pytest.raises(
        LlamacyError, match=f"step 16: .*{what}.* is the adapter of step .*lower --learning-rate"
    ) as caught:
        bench.run.go()
    assert "\n" not in str(caught.value)
    healthy = Bench(tmp_path / "healthy", name="lora-ITERATION.gguf", save_every_steps=1)
    healthy.run.go()
    losses = healthy.run.done.losses[:13]
    # losses vary: the last one that is at most a quarter above the first
    good = max(i for i, loss in enumerate(losses) if loss <= 1.25 * losses[0])
    assert bench.saved_step() == good > 10
    wanted = load_adapter(tmp_path / "healthy" / f"lora-{good}.gguf").pairs["blk.0.attn_q.weight"].a
    assert np.array_equal(bench.adapter.pairs["blk.0.attn_q.weight"].a, wanted)
    # nothing to go on from was made since the last save
    assert load_checkpoint(bench.outputs.checkpoint)[0]["progressed"]["step"] == 10


def test_what_the_last_update_left_is_looked_at(tmp_path):
    bench = Bench(tmp_path, Astray(21, grad_norm=0.0, loss=2.0))
    with pytest.raises(LlamacyError, match="after step 20: the gradient is exactly zero"):
        bench.run.go()
    assert bench.saved_step() < 20


def test_a_run_that_goes_astray_keeps_the_best_by_validation(tmp_path):
    bench = Bench(tmp_path, Astray(14, loss=math.nan), validation=samples(3, seed=5), eval_every=4)
    with pytest.raises(LlamacyError, match="is the best by validation loss, of step (4|8|12);"):
        bench.run.go()
    assert bench.saved_step() == bench.run.done.best_step


def test_a_validation_loss_that_is_no_number_ends_the_run(tmp_path):
    bench = Bench(tmp_path, validation=samples(3, seed=5), eval_every=4)
    bench.trainer.evaluate = lambda batches: (math.nan, 3)
    with pytest.raises(LlamacyError, match="step 4: the validation loss is nan"):
        bench.run.go()
    assert "warning: the validation loss is nan before any training" in bench.shown.getvalue()


def test_a_run_that_is_astray_from_the_first_step_saves_nothing(tmp_path):
    bench = Bench(tmp_path, Astray(1, loss=math.nan))
    with pytest.raises(
        LlamacyError, match="step 3: the loss is nan.*in 3 steps in a row: .*nothing was trained or saved"
    ):
        bench.run.go()
    assert files(tmp_path, "*") == []


def test_nothing_left_to_learn_is_not_astray(tmp_path):
    assert Bench(tmp_path, Astray(14, grad_norm=0.0, loss=1e-9)).run.go() == "end"


@pytest.fixture
def full_disk(monkeypatch):
    """A function (bench, steps): while the run is at one of `steps`, nothing can be written."""
    fsync = os.fsync

    def fill(bench, steps):
        def full(descriptor):
            if bench.run.done.step in steps:
                raise OSError(28, "No space left on device")
            fsync(descriptor)

        monkeypatch.setattr(os, "fsync", full)

    return fill


@pytest.mark.parametrize("first", [0, 3])
def test_a_model_file_that_changes_ends_the_run_with_what_was_trained(tmp_path, first):
    class Changing(FakeTrainer):
        def step(self, *arguments):
            if self.n_steps == first:
                raise FileChanged("model.gguf: was written to")
            return super().step(*arguments)

    bench = Bench(tmp_path, Changing())
    with pytest.raises(FileChanged, match="was written to"):
        bench.run.go()
    if first:
        assert (
            bench.saved_step() == first and load_checkpoint(bench.outputs.checkpoint)[0]["progressed"]["step"] == first
        )
    else:
        assert not os.path.exists(bench.outputs.adapter)


def test_a_full_disk_at_the_end_leaves_the_old_adapter(tmp_path, full_disk):
    bench = Bench(tmp_path)
    full_disk(bench, [20])
    with pytest.raises(LlamacyError, match="No space left on device; the file is unchanged") as caught:
        bench.run.go()
    assert "\n" not in str(caught.value)
    assert bench.saved_step() == 10
    assert files(tmp_path, "*") == ["adapter.bin", "checkpoint.gguf"]


def test_a_disk_that_is_full_for_a_while_does_not_end_the_run(tmp_path, full_disk):
    bench = Bench(tmp_path, epochs=3)
    full_disk(bench, [10, 20])
    assert bench.run.go() == "end"
    assert bench.saved_step() == 30
    warnings = [line for line in bench.shown.getvalue().splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 2 and all("No space left on device" in line for line in warnings)


def test_the_best_adapter_that_could_not_be_saved_is_not_taken_for_saved(tmp_path, full_disk):
    bench = Bench(tmp_path, validation=samples(4, seed=1), eval_every=5, learning_rate=0.01)
    full_disk(bench, [20])
    with pytest.raises(LlamacyError, match="No space left on device"):
        bench.run.go()
    losses = [loss for _, loss in bench.run.done.validation]
    assert losses == sorted(losses, reverse=True)  # the last one is the best
    assert bench.saved_step() == bench.run.done.best_step == 15
    assert "the best so far, not saved" in bench.shown.getvalue()


def test_ctrl_c_ends_after_the_step_and_saves(tmp_path):
    class Interrupted(FakeTrainer):
        def step(self, micro_batches, lr):
            if self.n_steps == 6:
                signal.raise_signal(signal.SIGINT)
            return super().step(micro_batches, lr)

    bench, said = Bench(tmp_path, Interrupted()), []
    before = signal.getsignal(signal.SIGINT)
    with Stop(said.append) as stop:
        assert bench.run.go(stop) == "stopped"
        assert stop.signum == signal.SIGINT and len(said) == 1
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
    assert bench.saved_step() == 7
    assert load_checkpoint(bench.outputs.checkpoint)[0]["progressed"]["step"] == 7


def test_a_terminal_that_closes_saves_and_nohup_goes_on():
    before = [signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGHUP)]
    with Stop([].append) as stop:
        assert not stop
        for _once_by_the_shell_once_by_the_system in range(2):
            signal.raise_signal(signal.SIGHUP)
        assert stop.signum == signal.SIGHUP
    assert [signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGHUP)] == before
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Stop([].append) as stop:
            signal.raise_signal(signal.SIGHUP)
            assert not stop
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before[1])


def test_a_log_on_a_full_disk_does_not_end_the_run(tmp_path):
    warnings = []
    bench = Bench(tmp_path, log=RunLog("/dev/full", warn=warnings.append))
    assert bench.run.go() == "end"
    assert len(warnings) >= 1 and "/dev/full" in warnings[0] and "No space left" in warnings[0]


def test_a_log_is_appended_to_when_a_run_goes_on(tmp_path):
    for step, done in ((1, None), (1, None), (2, 1)):
        log = RunLog(tmp_path / "log", warn=pytest.fail, done=done)
        log.write({"step": step})
        log.close()
    assert (tmp_path / "log").read_text().count("\n") == 2
    with pytest.raises(LlamacyError, match="choose another --log-json"):
        RunLog(tmp_path / "none" / "log", warn=pytest.fail)


def test_every_fixed_option_exists():
    names = {row.name for row in dataclasses.fields(TrainOptions)}
    assert set(Run(FakeTrainer(), samples(1), TrainOptions(), None, None).fixed) - {*DIGESTS, "n_samples"} <= names


def test_the_validation_loss_before_training_is_said_and_logged(tmp_path):
    bench = Bench(tmp_path, Measured([3.0] * 99), validation=samples(3, seed=5), eval_every=1, epochs=1)
    rows = []
    bench.run.log = SimpleNamespace(write=rows.append)
    bench.run.go()
    assert "step 0: validation loss 9.0000, before training" in bench.shown.getvalue()
    assert rows[0]["val_loss_before"] == 9.0 and not any("val_loss_before" in row for row in rows[1:])
    # it is no measurement of an adapter
    assert bench.run.done.validation[0] == (1, 3.0)


@pytest.mark.parametrize(("guess", "told"), [(1e-6, True), (99.0, False), (None, False)])
def test_a_first_loss_above_guessing_is_told(tmp_path, guess, told):
    bench = Bench(tmp_path, FakeTrainer(), epochs=1)
    bench.run.guess = guess
    bench.run.go()
    assert ("is above that of guessing" in bench.shown.getvalue()) == told
