"""Runs with --dora and patterns: what they write and say, going on, serving, merging, and what is refused before."""

import json
import re

import numpy as np
import pytest

import llamacy
from llamacy.cli import export_lora, finetune
from llamacy.cli.run import run
from llamacy.formats.adapter import adapter_format, load_adapter
from llamacy.model import load_model
from tests.train.test_init_lora import MODEL

IDS = np.arange(1, 20) * 7
RECORDS = [{"instruction": f"Say {word}.", "output": word * 3} for word in ("yes", "no", "maybe", "perhaps")]


@pytest.fixture
def train(tmp_path, capsys):
    """A function that runs `finetune` there, with --dora: (exit code, what it said)."""
    (tmp_path / "d.jsonl").write_text("\n".join(map(json.dumps, RECORDS)))

    def command(*flags, dora=True):
        given = ["-m", str(MODEL), "--train-data", str(tmp_path / "d.jsonl"), "-t", "2", "--learning-rate", "0.02"]
        code = run(finetune.main, [*given, "--outdir", str(tmp_path / "out"), *["--dora"] * dora, *map(str, flags)])
        said = capsys.readouterr()
        return code, said.err + said.out

    return command


def logits(path, scale=1.0, adapter=None):
    model = load_model(str(path), activations="f32", threads=2)
    if adapter:
        model.add_adapter(load_adapter(adapter, model.metadata), scale)
    n = len(IDS)
    return model.new_session(1, 64).step(IDS, np.arange(n), np.zeros(n, int), np.arange(n))


def test_a_run_is_a_peft_folder_that_is_served_merged_and_gone_on_from(train, tmp_path):
    code, said = train("--epochs", 2, "--rank", 4)
    out = tmp_path / "out/adapter-peft"
    assert code == 0 and adapter_format(out) == "peft" and load_adapter(out).is_dora
    shapes = {name: (len(pair.b), pair.a.shape[1]) for name, pair in load_adapter(out).pairs.items()}
    n_trained = sum(4 * (n_out + n_in) + n_out for n_out, n_in in shapes.values())
    assert f"adapter: {n_trained:,} trained parameters" in said
    plain, adapted = logits(MODEL), logits(MODEL, 1.0, out)
    assert np.abs(adapted - plain).max() > 1
    for scale, merged in ((1.0, tmp_path / "1.gguf"), (0.5, tmp_path / "2.gguf")):
        flags = ["-m", str(MODEL), "--lora-scaled", str(out), str(scale), "-o", str(merged), "--outtype", "f32"]
        assert run(export_lora.main, flags) == 0
        np.testing.assert_allclose(logits(merged), logits(MODEL, scale, out), atol=1e-3)
    # it brings DoRA with it
    code, said = train("--init-lora", out, "--epochs", 1, "--outdir", tmp_path / "more", dora=False)
    assert code == 0 and load_adapter(tmp_path / "more/adapter-peft").is_dora
    code, said = train("--init-lora", out, "--epochs", 1, "--lora-format", "gguf", dora=False)
    assert code == 2 and "--lora-format gguf: has no place for the magnitudes of DoRA; name peft or mlx" in said


def test_a_run_that_goes_on_is_the_one_that_did_not_stop(train, tmp_path):
    flags = ["--rank-pattern", "q_proj=2", "--alpha-pattern", "v_proj=3", "--lora-format", "mlx", "--epochs", 2]
    kept = ["--outdir", tmp_path / "a", "--lora-out", "x-ITERATION", "--checkpoint-out", tmp_path / "c-ITERATION.gguf"]
    assert train(*flags, *kept, "--save-every-steps", 3)[0] == 0
    go_on = ["--outdir", tmp_path / "b", "--checkpoint-in", tmp_path / "c-3.gguf"]
    assert train(*flags, *go_on)[0] == 0
    names = ("adapters.safetensors", "adapter_config.json")
    for name in names:
        assert (tmp_path / "a/x-LATEST" / name).read_bytes() == (tmp_path / "b/adapter.bin" / name).read_bytes()
    for change in (["--rank-pattern", "q_proj=3"], ["--alpha-pattern", "v_proj=4"]):
        code, said = train(*flags, *go_on, *change)
        assert code == 1 and "the checkpoint was made with another method; give the same" in said
    code, said = train(*flags, *go_on, dora=False)
    assert code == 1 and "the checkpoint was made with another method; give the same" in said


REFUSED = {
    "--lora-format gguf": "--lora-format gguf: has no place for the magnitudes of DoRA; name peft or mlx, and merge",
    "--lora-format ggla": "--lora-format ggla: has no place for the magnitudes of DoRA; name peft or mlx, and merge",
    "--target-modules layers.9.*": "'layers.9.*' matches no matrix of this model",
    "--layers 9": "--layers: the model has layers 0 to 1, got 9",
    "--rank-pattern x=3": "--rank-pattern: 'x' matches no matrix that is trained",
    "--layers 0 --num-layers 1": "--layers and --num-layers are both given: name one",
}


@pytest.mark.parametrize("flags", REFUSED)
def test_refused_before_anything_is_trained(train, tmp_path, flags):
    code, said = train(*flags.split())
    assert code == 2 and REFUSED[flags] in said and "training" not in said
    assert not (tmp_path / "out").exists()


def test_estimates_count_magnitudes(train):
    found = {}
    for dora in (False, True):
        code, said = train("--estimate", "--rank", 1, dora=dora)
        found[dora] = [int(re.search(rf"(\d+)K {what}", said)[1]) for what in ("adapter", "checkpoint")]
        assert code == 0
    # 2 layers of 320 x 2 + 4 x 32... rows: the model's own
    rows = sum(len(pair.b) for pair in llamacy.finetune(MODEL, RECORDS, rank=1, max_steps=1).adapter.pairs.values())
    assert found[True][0] - found[False][0] == pytest.approx(4 * rows / 1024, abs=1)
    assert found[True][1] - found[False][1] == pytest.approx(3 * 4 * rows / 1024, abs=3)


def test_from_python():
    how = {"rank": 4, "max_steps": 2, "threads": 2}
    made = llamacy.finetune(MODEL, RECORDS, dora=True, rank_pattern={"q_proj": 2}, layers=[1], **how).adapter
    assert made.is_dora and {name.split(".")[1] for name in made.pairs} == {"1"}
    assert {name.split(".")[2]: pair.rank for name, pair in made.pairs.items()}["attn_q"] == 2
    made = llamacy.finetune(
        MODEL, RECORDS, targets=r"layers\.0\..*(q|v)_proj", alpha_pattern={"v_proj": 3}, format="peft", **how
    ).adapter
    assert {name: pair.scale for name, pair in made.pairs.items()} == {
        "blk.0.attn_q.weight": 4.0,
        "blk.0.attn_v.weight": 0.75,
    }
    with pytest.raises(llamacy.LlamacyError, match="no place for the magnitudes of DoRA"):
        llamacy.finetune(MODEL, RECORDS, dora=True, format="gguf", **how)
