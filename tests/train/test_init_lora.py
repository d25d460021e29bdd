"""Training from adapters whose pairs have ranks and scales of their own, on some layers only."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from llamacy.cli import finetune as command
from llamacy.cli.run import run
from llamacy.errors import LlamacyError
from llamacy.formats.adapter import FORMATS, load_adapter, save_adapter
from llamacy.formats.lora import Adapter, LoraPair
from llamacy.formats.model_file import open_model
from llamacy.kernels.reference import model as twin
from llamacy.model import load_model
from llamacy.train.lora import pair_ranks, places, starting_pairs, targets_of
from llamacy.train.options import TARGETS, TrainOptions
from llamacy.train.samples import Sample
from llamacy.train.trainer import Trainer
from tests.model.tiny import CONFIG, tokens_of, write_llama

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "tests" / "data" / "tiny-q8_0.gguf"
QUESTIONS = ROOT / "examples" / "finetune-data.txt"
# name -> (rank, scale): none on layer 1's queries, one matrix on each layer with another rank
SHAPE = {
    "blk.0.attn_q.weight": (1, 2.0),
    "blk.0.ffn_down.weight": (7, 0.5),
    "blk.1.ffn_down.weight": (3, 2.0),
    "blk.1.attn_k.weight": (20, 0.25),
}


def uneven(shapes, seed=0, size=0.1):
    """An Adapter with SHAPE's pairs on matrices of `shapes` (name -> (n_out, n_in))."""
    rng, pairs = np.random.default_rng(seed), {}
    for name, (rank, scale) in SHAPE.items():
        n_out, n_in = shapes[name]
        a, b = rng.normal(0, size, (rank, n_in)), rng.normal(0, size, (n_out, rank))
        pairs[name] = LoraPair(a.astype(np.float32), b.astype(np.float32), scale)
    return Adapter("llama", pairs, 2.0, path="init.gguf")


def test_every_gradient_is_the_twin_s(tmp_path):
    """float64, with each pair's scale in its B: d loss / d B is the scale times that of the scaled B."""
    exact = write_llama(tmp_path / "m.gguf", CONFIG, twin.random_weights(CONFIG, 20))
    model = load_model(tmp_path / "m.gguf", activations="f32", threads=2)
    shapes = {name: values.shape for name, values in exact.items()}
    init, tokens = uneven(shapes, size=0.3), tokens_of(CONFIG, 24)
    options = TrainOptions(n_ctx=64, max_grad_norm=0.0, targets=tuple(SHAPE))
    trainer = Trainer(model, options)
    trainer.init_lora(8, 16.0, tuple(SHAPE), 7, init)
    result = trainer.step([[Sample(tokens.astype(np.int32), np.arange(24) > 0)]], 0.0)
    lora = {name: (pair.a.astype(float), pair.b.astype(float) * pair.scale) for name, pair in init.pairs.items()}
    targets = np.r_[tokens[1:], -1]
    loss, wanted, _ = twin.loss_and_gradients(CONFIG, exact, tokens, targets, lora=lora, scale=1.0)
    assert result.loss == pytest.approx(loss, rel=1e-5)
    found = trainer.gradients()
    assert found.keys() == SHAPE.keys()
    for name, (da, db) in wanted.items():
        for side, mine, theirs in (("a", found[name][0], da), ("b", found[name][1], db * init.pairs[name].scale)):
            np.testing.assert_allclose(mine, theirs, rtol=0, atol=2e-4 * np.abs(theirs).max(), err_msg=f"{name} {side}")


def test_which_pairs_a_run_trains(tmp_path):
    write_llama(tmp_path / "m.gguf", CONFIG, twin.random_weights(CONFIG, 20))
    model = load_model(tmp_path / "m.gguf")
    init = uneven({f"blk.{i}.{key}.weight": shape for i in range(2) for key, shape in model.config.shapes.items()})
    assert targets_of(model.config, list(SHAPE)) == ("ffn_down", "blk.0.attn_q.weight", "blk.1.attn_k.weight")
    assert targets_of(model.config, list(places(model.config, TARGETS))) == tuple(model.config.shapes)
    own = TrainOptions(targets=targets_of(model.config, list(SHAPE)))
    assert pair_ranks(model.config, own, init) == {name: rank for name, (rank, _) in SHAPE.items()}
    # flags that name matrices have the last word: fresh pairs where the adapter has none
    more = pair_ranks(model.config, TrainOptions(targets=("attn_q", "attn_k", "ffn_down"), rank=5), init)
    assert more == {name: rank for name, (rank, _) in SHAPE.items()} | dict.fromkeys(
        ("blk.1.attn_q.weight", "blk.0.attn_k.weight"), 5
    )
    pairs = starting_pairs(model, ("attn_q", "attn_k", "ffn_down"), lambda name, key: (5, 1.0), 1, None, init)
    assert {name: pair.rank for name, pair in pairs.items()} == more
    assert (
        not pairs["blk.1.attn_q.weight"].b.any() and pairs["blk.0.attn_q.weight"] is init.pairs["blk.0.attn_q.weight"]
    )
    with pytest.raises(LlamacyError, match="'blk.0.attn_q.weight', which this run does not train; leave --target-mod"):
        starting_pairs(model, ("attn_k", "ffn_down"), lambda name, key: (5, 1.0), 1, None, init)
    init.pairs["output.weight"] = init.pairs["blk.0.attn_q.weight"]
    with pytest.raises(
        LlamacyError, match="adapts 'output.weight', which cannot be trained; wanted pairs only on attn_q"
    ):
        starting_pairs(model, tuple(SHAPE), lambda name, key: (5, 1.0), 1, None, init)


@pytest.fixture
def finetune(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["finetune"])
    monkeypatch.chdir(tmp_path)
    with open_model(MODEL) as model:
        shapes = {name: info.shape for name, info in model.tensors.items()}
        metadata = model.metadata

    def call(*argv):
        data = [] if "--train-data" in argv else ["--train-data", QUESTIONS]
        return run(command.main, [str(word) for word in ("-m", MODEL, *data, *argv)])

    call.init, call.metadata = uneven(shapes, size=0.02), metadata
    return call


def losses(path):
    return [json.loads(line)["loss"] for line in Path(path).read_text().splitlines()]


def effect(adapter):
    return {name: pair.scale * (pair.b.astype(float) @ pair.a) for name, pair in adapter.pairs.items()}


@pytest.mark.parametrize("format", FORMATS)
def test_it_trains_and_every_format_holds_the_result(finetune, format):
    save_adapter("init", finetune.init, format, finetune.metadata)
    Path("text").write_text("You may convey covered works to others for the sole purpose of having them run.")
    line = ["--train-data", "text", "--init-lora", "init", "--epochs", 12, "--lr", "1e-2", "--log-json", "log"]
    assert finetune(*line, "--lora-format", format, "--outdir", "same") == 0
    found = losses("log")
    assert found[-1] < found[0] - 0.1
    assert finetune(*line, "--outdir", "gguf") == 0
    first, second = (load_adapter(f"{name}/adapter.bin", finetune.metadata) for name in ("gguf", "same"))
    assert first.pairs.keys() == second.pairs.keys() == SHAPE.keys()
    if format != "mlx":  # which fills all up to the largest
        assert {name: pair.rank for name, pair in second.pairs.items()} == {n: rank for n, (rank, _) in SHAPE.items()}
    if format in ("gguf", "peft"):
        scales = {name: pair.scale for name, pair in second.pairs.items()}
        before = load_adapter("init", finetune.metadata).pairs
        assert scales == pytest.approx({name: pair.scale for name, pair in before.items()}, rel=1e-6)
    start, moved = effect(finetune.init), effect(second)
    for name, wanted in effect(first).items():
        np.testing.assert_allclose(moved[name], wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
        assert np.abs(wanted - start[name]).max() > 1e-4


def test_a_run_from_it_that_is_cut_in_two_is_the_same_bit_for_bit(finetune, capsys):
    save_adapter("init.gguf", finetune.init)
    line = ["--init-lora", "init.gguf", "--epochs", 4, "--lr", "1e-2", "-c", 64]
    assert finetune(*line, "--outdir", "whole") == 0
    checkpoints = ["--save-every-steps", 1, "--checkpoint-out", "c-ITERATION.gguf"]
    assert finetune(*line, "--outdir", "parts", *checkpoints) == 0
    assert finetune(*line, "--outdir", "parts", "--checkpoint-in", "c-2.gguf") == 0
    whole, parts = (load_adapter(f"{name}/adapter.bin") for name in ("whole", "parts"))
    for name, pair in whole.pairs.items():
        assert pair.a.tobytes() == parts.pairs[name].a.tobytes() and pair.b.tobytes() == parts.pairs[name].b.tobytes()
    capsys.readouterr()
    pair = finetune.init.pairs["blk.1.ffn_down.weight"]
    pair.a, pair.b = pair.a[:2], pair.b[:, :2]
    save_adapter("other.gguf", finetune.init)
    assert finetune("--init-lora", "other.gguf", *line[2:], "--checkpoint-in", "c-2.gguf", "--outdir", "other") == 1
    assert "was made with other ranks or scales of its pairs; give the same --init-lora" in capsys.readouterr().err
    assert finetune("--init-lora", "init.gguf", "--estimate") == 0
    assert capsys.readouterr().out.startswith("peak memory: ")


def test_the_last_layers_alone(finetune, capsys):
    save_adapter("init.gguf", finetune.init)
    assert finetune("--init-lora", "init.gguf", "--num-layers", 1, "--max-steps", 1) == 1
    assert "adapts 'blk.0.attn_q.weight', which this run does not train; leave" in capsys.readouterr().err
    finetune.init.pairs = {name: pair for name, pair in finetune.init.pairs.items() if ".1." in name}
    save_adapter("last.gguf", finetune.init)
    assert finetune("--init-lora", "last.gguf", "--num-layers", 1, "--max-steps", 1) == 0
    assert {name: pair.rank for name, pair in load_adapter("adapter/adapter.bin").pairs.items()} == {
        "blk.1.attn_k.weight": 20, "blk.1.ffn_down.weight": 3,
    }  # fmt: skip
    assert "ranks 3 to 20" in capsys.readouterr().err
