"""Going on: what of before still holds, what is forgotten, and what the log says then."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from llamacy.errors import LlamacyError
from llamacy.formats.locks import claimed
from llamacy.train.runlog import RunLog, cut_back
from llamacy.train.samples import Sample
from tests.train.test_finetune_cli import MODEL, ROOT, Recorded, finetune, step_of  # noqa: F401 (a fixture)
from tests.train.test_loop import Bench, StopAfter, files, samples

# --- the best adapter ------------------------------------------------------------------------------------------------


FAR = [Sample(np.full(8, 255, np.int32), np.arange(8) > 0)]  # worse than the others at any time


def stopped(folder, validation=3, **options):
    """A run of 40 steps that was stopped after 25, with three measurements."""
    how = {"epochs": 4, "eval_every": 8, "learning_rate": 0.01} | options
    held = samples(4, seed=5) if validation else None
    bench = Bench(folder, validation=held, ids={"validation": validation}, **how)
    bench.run.go(StopAfter(bench.trainer, 25))
    return bench


def went_on(folder, held=None, validation=3, **options):
    """The same command once more, to the end."""
    how = {"epochs": 4, "eval_every": 8, "learning_rate": 0.01} | options
    held = held or (samples(4, seed=5) if validation else None)
    bench = Bench(folder, validation=held, ids={"validation": validation}, **how)
    bench.run.resume(bench.outputs.checkpoint)
    bench.begun_with = (bench.run.done.best_step, list(bench.run.done.validation))
    bench.run.go()
    return bench


def test_the_same_validation_data_keeps_the_best(tmp_path):
    first = stopped(tmp_path)
    assert first.run.done.best_step == 24
    second = went_on(tmp_path)
    assert second.begun_with[0] == 24 and len(second.begun_with[1]) == 3
    assert "forgotten" not in second.shown.getvalue()


def test_other_validation_data_forgets_the_best_says_so_and_goes_on(tmp_path):
    """Samples that the adapter is worse on: without forgetting nothing that is trained now would be saved."""
    best = stopped(tmp_path).run.done.best_loss
    second = went_on(tmp_path, FAR * 4, validation=4)
    assert second.begun_with == (0, [])
    told = f"the validation data is not that of before: the best loss so far, {best:.4f} of step 24, is forgotten"
    assert told in second.shown.getvalue()
    losses = dict(second.run.done.validation)
    assert set(losses) == {32, 40} and min(losses.values()) > best
    assert second.saved_step() == second.run.done.best_step == min(losses, key=losses.get)


def test_the_newest_adapter_is_saved_where_nothing_is_measured_any_more(tmp_path):
    stopped(tmp_path)
    second = went_on(tmp_path, validation=None, eval_every=0)
    assert "this run measures no validation loss: the best loss so far, " in second.shown.getvalue()
    assert second.saved_step() == 40 and second.run.done.best_step == 0


def test_measuring_may_begin_later(tmp_path):
    stopped(tmp_path, validation=None, eval_every=0)
    second = went_on(tmp_path)
    assert "forgotten" not in second.shown.getvalue()
    assert second.saved_step() == second.run.done.best_step > 25


def test_a_best_adapter_that_is_gone_is_no_best(tmp_path):
    """The checkpoint was moved, or another --outdir given: the adapter of its best step is not there."""
    stopped(tmp_path / "old")
    os.makedirs(tmp_path / "new")
    os.rename(tmp_path / "old" / "checkpoint.gguf", tmp_path / "new" / "checkpoint.gguf")
    second = went_on(tmp_path / "new", eval_every=100)
    told = f"its adapter {second.outputs.adapter} is not there: the best loss so far, "
    assert told in second.shown.getvalue() and second.saved_step() == 40


def test_a_finished_run_with_fewer_epochs_stays_a_checkpoint(tmp_path):
    Bench(tmp_path, epochs=3).run.go()
    for _ in range(2):
        shorter = Bench(tmp_path, epochs=1)
        shorter.run.resume(shorter.outputs.checkpoint)
        assert shorter.run.go() == "end" and shorter.run.done.step == 30


# --- what differs is named -------------------------------------------------------------------------------------------

DIFFERENT = [
    ({"n_ctx": 100}, "was made with n_ctx 512, this run has 100; give the same --ctx-size"),
    ({"num_layers": 2}, "num_layers None, this run has 2; give the same --num-layers"),
    ({"targets": ("attn_q",)}, "targets ['attn_q', .*, this run has ['attn_q']; give the same --target-modules"),
    ({"ranks": (("attn_q", 2),)}, "ranks None, this run has {'attn_q': 2}; give the same --rank-wq"),
    ({"alpha": 16.5}, "alpha 16.0, this run has 16.5; give the same --lora-alpha"),
    ({"ids": {"model": 5}}, "was made with another model; give the same --model"),
    ({"ids": {"data": 8}}, "was made with other data; give the same --train-data"),
    ({"ids": {"pairs": 9}}, "was made with other ranks or scales of its pairs; give the same --init-lora"),
    ({"val_split": 0.5}, "val_split 0.0, this run has 0.5; give the same --val-split"),
    ({"shuffle": False}, "shuffle True, this run has False; give the same --shuffle"),
]


@pytest.mark.parametrize(("change", "words"), DIFFERENT)
def test_each_difference_is_named(tmp_path, change, words):
    Bench(tmp_path, epochs=1).run.go()
    other = Bench(tmp_path, epochs=1, **change)
    with pytest.raises(LlamacyError, match=re.escape(words).replace(r"\.\*", ".*")):
        other.run.resume(other.outputs.checkpoint)


def test_another_model_is_told_from_this_one(finetune, tmp_path):  # noqa: F811
    line = ["--train-data", "finetune-data.txt", "--max-steps", 1]
    assert finetune(*line)[0] == 0
    for flags in (["--override-kv", "llama.rope.freq_base=float:500"], ["--rope-theta", 500], ["--rms-eps", "1e-4"],
                  ["--rope-scaling", "linear", "--rope-scale", 2]):  # fmt: skip
        code, _, err = finetune(*line, "--resume", *flags)
        assert code == 1 and "was made with another model; give the same --model" in err, flags
    raw = bytearray(MODEL.read_bytes())
    (tmp_path / "copy.gguf").write_bytes(raw)
    code, _, err = finetune("-m", "copy.gguf", *line, "--resume")
    assert code == 0 and "going on from step 1" in err
    from llamacy.formats.model_file import open_model

    with open_model(MODEL) as file:
        raw[file.tensors["blk.0.ffn_up.weight"].offset + 3] ^= 1
    (tmp_path / "copy.gguf").write_bytes(raw)
    assert "another model" in finetune("-m", "copy.gguf", *line, "--resume")[2]


def test_other_validation_files_of_the_command(finetune, tmp_path):  # noqa: F811
    for name in ("one", "two"):
        (tmp_path / f"{name}.txt").write_text(f"Instructions, number {name}. " * 20)
    line = ["--train-data", "finetune-data.txt", "--epochs", 6]
    assert finetune(*line, "--val-data", "one.txt", interrupt_at=5)[0] == 130
    code, _, err = finetune(*line, "--val-data", "one.txt", "--resume", "--max-steps", 6)
    assert code == 0 and "forgotten" not in err
    code, _, err = finetune(*line, "--val-data", "two.txt", "--resume")
    assert code == 0 and "the validation data is not that of before" in err


# --- the log ---------------------------------------------------------------------------------------------------------


def steps_of(path):
    return [json.loads(line)["step"] for line in Path(path).read_text().splitlines()]


def test_a_log_continued_after_a_kill_has_each_step_once(finetune):  # noqa: F811
    """Killed between two saves: the log is ahead of the checkpoint, its last line is half."""
    line = ["--train-data", "finetune-data.txt", "--epochs", 10, "--log-json", "log.json", "--save-every", 2]
    assert finetune(*line, "--outdir", "whole", "--log-json", "whole.json")[0] == 0
    assert finetune(*line, interrupt_at=8)[0] == 130
    saved = Path("adapter/checkpoint.gguf").read_bytes()
    assert finetune(*line, "--resume", interrupt_at=15)[0] == 130
    Path("adapter/checkpoint.gguf").write_bytes(saved)
    with open("log.json", "a") as file:
        file.write('{"step": 16, "lo')
    code, _, err = finetune(*line, "--resume", "--plot", "loss.svg")
    assert code == 0 and "log.json: 8 lines of steps after 8 are cut off, which are done again" in err
    assert steps_of("log.json") == steps_of("whole.json") == list(range(1, 21))
    losses = [
        [json.loads(row)["loss"] for row in Path(name).read_text().splitlines()] for name in ("log.json", "whole.json")
    ]
    assert losses[0] == losses[1]
    svg = Path("loss.svg").read_text()
    assert finetune(*line, "--outdir", "other", "--log-json", "o.json", "--plot", "whole.svg")[0] == 0
    assert svg == Path("whole.svg").read_text()


def test_a_log_of_a_run_that_cannot_go_on_stays_as_it_is(finetune, tmp_path):  # noqa: F811
    line = ["--train-data", "finetune-data.txt", "--log-json", "log.json"]
    assert finetune(*line)[0] == 0
    before = Path("log.json").read_bytes()
    assert finetune(*line, "--resume", "--seed", 7)[0] == 1
    assert Path("log.json").read_bytes() == before


ROWS = [
    ([1, 2, 3], 3, [1, 2, 3]),
    ([1, 2, 3], 2, [1, 2]),
    ([1, 2, 3], 0, []),
    ([1, 2, 3, 2, 3, 4], 4, [1, 2, 3, 4]),
    ([1, 2, "x", 3], 9, [1, 2, 3]),
    (["{}", '{"step": "1"}', '{"step": true}', '{"step": -1}', "[1]", "null", "[" * 9999, 1], 5, [1]),
    ([], 3, []),
]


@pytest.mark.parametrize(("rows", "done", "wanted"), ROWS)
def test_cutting_a_log_back(tmp_path, rows, done, wanted):
    path = tmp_path / "log"
    lines = [row if isinstance(row, str) else json.dumps({"step": row, "n": n}) for n, row in enumerate(rows)]
    path.write_text("".join(f"{line}\n" for line in lines))
    assert cut_back(path, done) == len(rows) - len(wanted)
    found = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["step"] for row in found] == wanted
    # of a step that was done twice the later one
    assert all(row["n"] == max(n for n, step in enumerate(rows) if step == row["step"]) for row in found)


def test_a_log_without_its_last_line_s_end_and_logs_that_are_no_files(tmp_path):
    (tmp_path / "log").write_text('{"step": 1}\n{"step": 2}')
    log = RunLog(tmp_path / "log", warn=pytest.fail, done=2)
    log.write({"step": 3})
    log.close()
    assert steps_of(tmp_path / "log") == [1, 2, 3]
    assert cut_back("/dev/null", 1) == cut_back(tmp_path / "none", 1) == cut_back(tmp_path, 1) == 0


# --- two runs --------------------------------------------------------------------------------------------------------

OWN = [
    (["--outdir", "adapter"], "adapter/adapter.bin", "--outdir or --save-path"),
    (["--save-path", "x.bin"], "x.bin", "--outdir or --save-path"),
    (["--lora-out", "other.bin"], "adapter/checkpoint.gguf", "--outdir or --checkpoint-out"),
    (["--checkpoint-out", "c.gguf"], "c.gguf", "--outdir or --checkpoint-out"),
    (["--log-json", "log.json"], "log.json", "--log-json"),
    (["--plot", "p.svg"], "p.svg", "--plot"),
]


@pytest.mark.parametrize(("flags", "path", "flag"), OWN)
def test_the_second_run_is_told_what_is_in_use(finetune, flags, path, flag):  # noqa: F811
    os.makedirs("adapter", exist_ok=True)
    with claimed(path, ""):
        code, _, err = finetune("--train-data", "finetune-data.txt", *flags)
        told = rf"finetune: {path}: is in use: another process \({os.getpid()}\) writes there; wait until it ends, or "
        assert code == 1 and re.search(told + f"choose another {flag}$", err.strip())
        assert Recorded.last is None
    assert finetune("--train-data", "finetune-data.txt", *flags)[0] == 0
    assert not files(Path("."), "**/.*lock")


def test_what_is_read_is_never_written(finetune, tmp_path):  # noqa: F811
    (tmp_path / "m.gguf").write_bytes(MODEL.read_bytes())
    os.symlink("m.gguf", "link.gguf")
    line = ["-m", "m.gguf", "--train-data", "finetune-data.txt"]
    for flags, words in [
        (["--save-path", "./m.gguf"], "m.gguf: is read by this run; choose another --outdir or --save-path"),
        (
            ["--checkpoint-out", "link.gguf"],
            "link.gguf: is read by this run; choose another --outdir or --checkpoint-out",
        ),
        (["--log-json", "finetune-data.txt"], "finetune-data.txt: is read by this run; choose another --log-json"),
        (["--log-json", "x.svg", "--plot", "x.svg"], "x.svg: is written as --log-json says; choose another --plot"),
        (
            ["--outdir", ".", "--lora-out", "checkpoint.gguf"],
            "checkpoint.gguf: is written as --outdir or --save-path says",
        ),
    ]:
        code, _, err = finetune(*line, *flags)
        assert code == 2 and words in err
    assert (tmp_path / "m.gguf").read_bytes() == MODEL.read_bytes()
    assert finetune(*line, "--log-json", "/dev/null", "--plot", "x.svg")[0] == 0


def test_a_killed_run_holds_nothing(tmp_path):
    """Two processes with one --outdir: the second is told, and goes once the first was killed."""
    (tmp_path / "text").write_text("You may convey covered works to others. " * 400)
    line = [sys.executable, "-I", ROOT / "bin" / "finetune", "-m", MODEL, "--train-data", "text", "-c", 64, "-t", 1]
    line += ["--epochs", 500, "--save-every-steps", 1, "--log-json", "log"]
    line = [str(word) for word in line]
    with subprocess.Popen(line, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as first:
        try:
            while "step 1/" not in (said := first.stderr.readline()):
                assert said
            second = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, timeout=100)
            assert second.returncode == 1 and f"is in use: another process ({first.pid})" in second.stderr
        finally:
            first.send_signal(signal.SIGKILL)
            first.stderr.close()
    done = json.loads((tmp_path / "log").read_text().splitlines()[0])["step"]
    assert done == 1
    third = subprocess.run(
        [*line, "--resume", "--epochs", "1"], cwd=tmp_path, capture_output=True, text=True, timeout=100
    )
    assert third.returncode == 0, third.stderr
    found = steps_of(tmp_path / "log")
    assert found == list(range(1, len(found) + 1))
    assert sorted(os.listdir(tmp_path / "adapter")) == ["adapter.bin", "adapter.bin.toml", "checkpoint.gguf"]
    assert sorted(os.listdir(tmp_path)) == ["adapter", "log", "text"]
