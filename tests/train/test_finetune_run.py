"""`finetune` from end to end on a real file of 2 layers: it learns, and goes on bit for bit with any threads."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from llamacy.cli import finetune as command
from llamacy.cli.run import run
from llamacy.formats.adapter import adapter_format, load_adapter
from llamacy.formats.model_file import open_model

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "tests" / "data" / "tiny-q8_0.gguf"
QUESTIONS = ROOT / "examples" / "finetune-data.txt"


@pytest.fixture
def finetune(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["finetune"])
    monkeypatch.chdir(tmp_path)

    def call(*argv):
        data = [] if "--train-data" in argv else ["--train-data", QUESTIONS]
        return run(command.main, [str(word) for word in ("-m", MODEL, *data, *argv)])

    return call


def losses(path):
    return [json.loads(line)["loss"] for line in Path(path).read_text().splitlines()]


def test_it_learns(finetune):
    # The tiny model knows licences only, and its 64 numbers per token can learn little more.
    Path("text.txt").write_text("You may convey covered works to others for the sole purpose of having them run.")
    line = [
        "--train-data",
        "text.txt",
        "--epochs",
        25,
        "--lr",
        "1e-2",
        "--lr-schedule",
        "constant",
        "--log-json",
        "log",
    ]
    assert finetune(*line) == 0
    assert losses("log")[-1] < 0.5 * losses("log")[0]
    adapter = load_adapter("adapter/adapter.bin")
    assert len(adapter.pairs) == 2 * 7 and all(np.any(pair.b) for pair in adapter.pairs.values())


def test_a_run_cut_in_two_is_the_same_bit_for_bit(finetune):
    line = ["--epochs", 4, "--lr", "1e-2", "-c", 64, "--val-split", "0.5", "--rank", 4]
    assert finetune(*line, "--outdir", "whole", "-t", 1, "--log-json", "whole.log") == 0
    # The first part plans for all epochs too: its course of the learning rate must be the same.
    assert (
        finetune(*line, "--outdir", "parts", "-t", 2, "--save-every-steps", 1, "--checkpoint-out", "c-ITERATION.gguf")
        == 0
    )
    assert finetune(*line, "--outdir", "parts", "-t", 2, "--checkpoint-in", "c-2.gguf", "--log-json", "parts.log") == 0
    whole, parts = (load_adapter(f"{name}/adapter.bin") for name in ("whole", "parts"))
    assert losses("parts.log") == losses("whole.log")[2:]
    for name, pair in whole.pairs.items():
        assert pair.a.tobytes() == parts.pairs[name].a.tobytes() and pair.b.tobytes() == parts.pairs[name].b.tobytes()


def test_an_adapter_is_gone_on_from_and_its_shape_kept(finetune):
    assert (
        finetune("--max-steps", 2, "--rank", 3, "--lora-alpha", 5, "--target-modules", "q_proj,down", "--num-layers", 1)
        == 0
    )
    first = load_adapter("adapter/adapter.bin")
    assert sorted(first.pairs) == ["blk.1.attn_q.weight", "blk.1.ffn_down.weight"]
    line = ["--max-steps", 1, "--lr", "1e-12", "--init-lora", "adapter/adapter.bin", "--num-layers", 1]
    assert finetune(*line, "--outdir", "second", "--lora-format", "ggla") == 0
    second = load_adapter("second/adapter.bin")
    for name, pair in first.pairs.items():
        assert second.pairs[name].scale == pytest.approx(5 / 3)
        assert np.allclose(second.pairs[name].a, pair.a, atol=1e-9) and np.allclose(
            second.pairs[name].b, pair.b, atol=1e-9
        )


@pytest.mark.parametrize("format", ["ggla", "peft", "mlx"])
def test_every_format_holds_the_same_adapter(finetune, format):
    for name in ("gguf", format):
        assert finetune("--max-steps", 2, "--lora-format", name, "--outdir", name, "--rank", 3, "--lora-alpha", 6) == 0
    first, second = load_adapter("gguf/adapter.bin"), load_adapter(f"{format}/adapter.bin")
    assert adapter_format(f"{format}/adapter.bin") == format
    with open_model(MODEL) as model:
        second = second.bound(model.metadata)
    assert first.pairs.keys() == second.pairs.keys()
    for name, pair in first.pairs.items():
        assert pair.a.tobytes() == second.pairs[name].a.tobytes() and pair.b.tobytes() == second.pairs[name].b.tobytes()
        assert second.pairs[name].scale == pytest.approx(2)


def test_a_checkpoint_of_a_run_set_up_otherwise_is_refused(finetune, capsys):
    assert finetune("--max-steps", 1, "--outdir", "one") == 0
    other = ROOT / "tests" / "data" / "tiny.ggmlv3.q4_0.bin"
    assert finetune("-m", other, "--outdir", "two", "--checkpoint-in", "one/checkpoint.gguf") == 1
    assert "the checkpoint was made with another model; give the same --model" in capsys.readouterr().err


@pytest.mark.parametrize("rate", ["100", "1e6"])
def test_a_learning_rate_far_too_high_ends_with_the_last_good_adapter(finetune, capsys, rate):
    assert finetune("--lr", rate, "--max-steps", 30, "--epochs", 30, "-c", 64, "--warmup", 3, "--log-json", "log") == 1
    line = capsys.readouterr().err.splitlines()[-1]
    found = re.search(r"step \d+: the .*: training has gone astray; .*adapter.bin is the adapter of step (\d+);", line)
    assert found and "lower --learning-rate" in line, line
    adapter, step = load_adapter("adapter/adapter.bin"), int(found[1])
    assert adapter.metadata["llamacy.step"] == step
    # what a step begins with has the loss that is logged for the step
    assert losses("log")[step] <= 1.25 * losses("log")[0]
    assert all(np.isfinite(pair.a).all() and np.isfinite(pair.b).all() for pair in adapter.pairs.values())
    assert finetune("--init-lora", "adapter/adapter.bin", "--lr", "1e-3", "--max-steps", 2, "-c", 64) == 0
