"""--estimate, --max-ram and checkpointing in whole processes: what was predicted is measured."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from llamacy import system
from llamacy.cli.finetune import size
from llamacy.model.config import ModelConfig
from llamacy.model.rope import Rope
from llamacy.train import estimate
from llamacy.train.batches import Plan
from llamacy.train.estimate import Case, cases, longest_pass, shown
from llamacy.train.flops import Flops
from llamacy.train.options import TrainOptions
from llamacy.train.samples import Sample
from tests.model import golden
from tests.train.fakes import FakeTrainer

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "tests" / "data" / "tiny-q8_0.gguf"
QUESTIONS = ROOT / "examples" / "finetune-data.txt"


def finetune(folder, *argv):
    """Run bin/finetune in a process of its own in `folder`; return (exit code, stdout, stderr)."""
    line = [sys.executable, "-I", ROOT / "bin" / "finetune", *argv]
    done = subprocess.run([str(word) for word in line], capture_output=True, text=True, cwd=folder)
    return done.returncode, done.stdout, done.stderr


def estimated(folder, *argv):
    """Return the bytes that --estimate prints as peak memory."""
    code, out, err = finetune(folder, *argv, "--estimate")
    assert code == 0, err
    lines = dict(line.split(": ", 1) for line in out.splitlines())
    assert list(lines) == ["peak memory", "time", "disk"]
    return size(lines["peak memory"].split(",")[0])


def rows(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


@pytest.mark.parametrize("flags", [(), ("--use-checkpointing", "-b", 2), ("--num-layers", 1, "--rank", 64)])
def test_the_tiny_model_s_peak_is_within_15_percent(tmp_path, flags):
    line = ("-m", TINY, "--train-data", QUESTIONS, "-t", 2, *flags)
    wanted = estimated(tmp_path, *line)
    assert not list(tmp_path.iterdir())
    assert finetune(tmp_path, *line, "--log-json", "log")[0] == 0
    assert abs(rows(tmp_path / "log")[-1]["peak_rss_bytes"] / wanted - 1) < 0.15


@golden.needs_model
@pytest.mark.parametrize("flags", [(), ("--use-checkpointing",)])
def test_the_default_model_s_peak_is_within_15_percent(tmp_path, flags):
    (tmp_path / "text").write_text("You may convey covered works to others for the sole purpose of having them. " * 30)
    line = ("--train-data", "text", "-c", 256, "--max-steps", 1, "-t", 2, *flags)
    wanted = estimated(tmp_path, *line)
    assert finetune(tmp_path, *line, "--log-json", "log")[0] == 0
    assert abs(rows(tmp_path / "log")[-1]["peak_rss_bytes"] / wanted - 1) < 0.15


def test_too_little_memory_is_told_before_starting(tmp_path):
    line = ("-m", TINY, "--train-data", QUESTIONS)
    code, out, err = finetune(tmp_path, *line, "--max-ram", "10M")
    assert (code, out) == (1, "") and err.splitlines()[-1].startswith("finetune: --max-ram 10M: the run needs ")
    assert "wanted --max-ram " in err and not (tmp_path / "adapter" / "adapter.bin").exists()


@golden.needs_model
def test_max_ram_turns_checkpointing_on_and_changes_no_bit(tmp_path):
    (tmp_path / "text").write_text("You may convey covered works to others. " * 100)
    line = ("--train-data", "text", "-c", 256, "-b", 1, "--max-steps", 1, "-t", 2)
    kept, again = estimated(tmp_path, *line), estimated(tmp_path, *line, "--use-checkpointing")
    assert again < kept
    code, _, err = finetune(tmp_path, *line, "--max-ram", (kept + again) // 2, "--log-json", "again", "--outdir", "a")
    assert code == 0 and "activations are computed again" in err
    assert finetune(tmp_path, *line, "--log-json", "kept", "--outdir", "b")[0] == 0
    for row, other in zip(rows(tmp_path / "again"), rows(tmp_path / "kept"), strict=True):
        assert (row["loss"], row["grad_norm"]) == (other["loss"], other["grad_norm"])


def test_the_log_says_how_well_the_machine_is_used(tmp_path):
    assert finetune(tmp_path, "-m", TINY, "--train-data", QUESTIONS, "--log-json", "log", "--max-steps", 1)[0] == 0
    (row,) = rows(tmp_path / "log")
    assert row["flops_per_second"] > 0 and 0 < row["flop_utilisation"] < 1.5


def test_what_is_kept_of_frozen_layers_is_no_file_that_stays(tmp_path):
    line = ("-m", TINY, "--train-data", QUESTIONS, "--num-layers", 1, "--epochs", 3)
    assert finetune(tmp_path, *line)[0] == 0
    assert sorted(path.name for path in (tmp_path / "adapter").iterdir()) == [
        "adapter.bin", "adapter.bin.toml", "checkpoint.gguf"]  # fmt: skip


# --- the parts -------------------------------------------------------------------------------------------------------


def test_a_process_knows_its_memory():
    before, peak = system.rss_bytes(), system.peak_rss_bytes()
    assert 1 << 20 < before <= peak
    block = np.ones(8 << 20, np.uint64)
    grown = system.rss_bytes() - before
    assert block.all() and 0.9 * block.nbytes < grown < 1.5 * block.nbytes
    assert system.peak_rss_bytes() >= before + grown and system.available_bytes() > 0


def test_flops_are_those_of_the_products():
    sizes = {"n_embd": 8, "n_head": 2, "n_head_kv": 1, "head_dim": 4, "n_ff": 16, "n_layer": 3}
    config = ModelConfig("llama", **sizes, n_vocab=90, n_rows=100, n_ctx_train=64, rms_eps=1e-5, ropes=(Rope(4),))
    layer = 2 * (8 * 8 + 2 * 4 * 8 + 8 * 8 + 3 * 8 * 16)
    # three layers forward, two of them backward; the head both ways
    assert Flops(config, 1)(10, 4) == 10 * 5 * layer + 4 * 2 * 2 * 100 * 8


def sample(n):
    return Sample(np.arange(n, dtype=np.int32), np.arange(n) > 0)


def test_the_longest_pass_is_what_the_plan_packs():
    data = [sample(n) for n in (101, 201, 301, 11)]
    # one alone: the longest one; all four: 100 + 200 fit in 512 with nothing but the last
    assert longest_pass(TrainOptions(n_ctx=512, batch_size=1), data) == 300
    assert longest_pass(TrainOptions(n_ctx=512, batch_size=4, shuffle=False), data) == 310
    assert longest_pass(TrainOptions(n_ctx=1024, grad_acc=4, shuffle=False), data) == 610


def test_ways_to_run_come_from_the_fastest_to_the_smallest():
    assert list(cases(TrainOptions(), 99, 100)) == [Case(99, 1, False), Case(99, 1, True)]
    assert list(cases(TrainOptions(batch_size=4), 300, 100)) == [
        Case(300, 4, False),
        Case(300, 4, True),
        Case(99, 4, True, 99),
    ]
    assert list(cases(TrainOptions(checkpointing=False), 99, 100)) == [Case(99, 1, False)]


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [(1, "1K"), (1 << 20, "1M"), ((1 << 20) + 1, "2M"), (3 << 29, "1.50G"), ((3 << 29) + 1, "1.51G")],
)
def test_sizes_are_shown_as_they_are_given_and_never_too_small(n_bytes, text):
    assert shown(n_bytes) == text and size(text) >= n_bytes


@pytest.mark.parametrize(("text", "wanted"), [("1024", 1024), ("2k", 2048), ("1.5G", 3 << 29), ("512MiB", 512 << 20)])
def test_sizes_may_have_units(text, wanted):
    assert size(text) == wanted


@pytest.mark.parametrize(("first", "known"), [(0, False), (5, False), (0, True), (12, True)])
def test_the_time_that_is_left_is_that_of_a_pass_for_each_token(monkeypatch, first, known):
    """10 samples of 8 tokens in steps of 2, 3 epochs; 4 samples to validate on, after each epoch and before."""
    data = [Sample(np.arange(8, dtype=np.int32), np.arange(8) > 0)] * 10
    options = TrainOptions(batch_size=2, epochs=3)
    took = iter([0.4, 0.2])  # the second pass knows the frozen layers
    monkeypatch.setattr(estimate, "_seconds", lambda function, samples: function(samples) or next(took))
    trainer, plan = FakeTrainer(), Plan(10, options)
    seconds, speed = estimate.rehearsed(trainer, plan, data, data[:4], options, first, known)
    new, later = (0.4 / 16, 0.2 / 16) if known else (0.2 / 16, 0.2 / 16)
    n_new = max(0, 5 - first)
    wanted = 16 * (n_new * new + (15 - first - n_new) * later)
    measured = 32 * 0.4 * new * ((15 - first) // 5 + 1)
    assert seconds == pytest.approx(wanted + measured) and speed == pytest.approx(1 / new)
    assert trainer.n_steps == 0
