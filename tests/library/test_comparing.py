"""Base and adapter compared while one trains: what is said is what they say elsewhere, and the run is the same."""

import json
import math

import numpy as np
import pytest

import llamacy
from llamacy.library.comparing import Comparing
from llamacy.model import load_model
from llamacy.train.comparison import ANSWER
from llamacy.train.options import TARGETS, TrainOptions
from llamacy.train.samples import Sample
from llamacy.train.trainer import Trainer
from tests.library.test_training import HOW, RECORDS, same
from tests.server.test_server_command import MODEL
from tests.test_overflow import command

CALM = [{"instruction": f"{a} {b}", "output": f"{b} {a} {b}"} for a in ("red", "blue") for b in ("one", "two", "six")]


@pytest.fixture(scope="module")
def plain():
    return llamacy.finetune(MODEL, CALM, **HOW)


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    folder = tmp_path_factory.mktemp("watched")
    result = llamacy.finetune(MODEL, CALM, **HOW, output=folder, report=folder / "r.html", plot=folder / "p.svg",
                              log_json=folder / "l.jsonl", sample_every=2, sample_prompts=2)  # fmt: skip
    return result, folder


def test_asking_changes_nothing_of_the_run(plain, watched):
    same(plain.adapter, watched[0].adapter)
    assert plain.answers == [] and plain.perplexity == {} and plain.losses == watched[0].losses


def test_the_answers_are_those_of_the_models(plain, watched):
    result, folder = watched
    assert [row["step"] for row in result.answers] == [2, 2, 4, 4, 6, 6]
    with llamacy.load(MODEL, activations="int16") as model:
        prompts = [row["prompt"].removeprefix("<s> ") for row in result.answers[:2]]
        base = [str(model.generate(prompt, temperature=0, max_tokens=ANSWER)) for prompt in prompts]
        model.adapters.add(plain)
        tuned = [str(model.generate(prompt, temperature=0, max_tokens=ANSWER)) for prompt in prompts]
    assert [row["base"].removesuffix(" ...") for row in result.answers] == base * 3
    assert [row["adapter"].removesuffix(" ...") for row in result.answers[-2:]] == tuned
    assert base != tuned and all(row["wanted"] for row in result.answers)


def test_the_log_and_the_page_have_them(watched):
    result, folder = watched
    rows = [json.loads(line) for line in (folder / "l.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert [("samples" in row, "perplexity" in row) for row in rows] == [
        (step % 2 == 0, step == 6) for step in range(1, 7)
    ]
    kept = ("prompt", "wanted", "base", "adapter")
    assert rows[-1]["samples"] == [{key: row[key] for key in kept} for row in result.answers[-2:]]
    assert rows[-1]["perplexity"] == result.perplexity and rows[-1]["loss"] == pytest.approx(result.losses[-1])
    page = (folder / "r.html").read_text()
    assert "adapter, step 6" in page and "6 of 6" in page and (folder / "p.svg").read_text().count("<polyline") == 4


def trained(**options):
    model = load_model(MODEL, activations="f32", threads=2)
    trainer = Trainer(model, TrainOptions(n_ctx=64, **options))
    trainer.init_lora(4, 8.0, tuple(TARGETS)[:7], 7)
    trainer._pass.params[:] = np.random.default_rng(3).normal(0, 0.1, len(trainer._pass.params))
    return trainer


def test_surprise_is_the_trainer_s_loss_and_nothing_stays():
    """With the adapter and without, over samples longer than a step."""
    trainer = trained()
    rng = np.random.default_rng(5)
    samples = [Sample(rng.integers(3, 300, n).astype(np.int32), rng.random(n) < 0.4) for n in (9, 64, 33)]
    for sample in samples:
        sample.trained[0], sample.trained[-2] = False, True
    asking = Comparing(trainer.model, 64)
    before = {name: np.asarray(value).tobytes() for name, value in trainer.state().items()}
    base = asking.surprise(samples)
    for _ in range(2):
        total, count = asking.surprise(samples, trainer.adapter())
        assert total / count == pytest.approx(trainer.evaluate([samples])[0], rel=1e-4)
        assert count == sum(sample.n_trained for sample in samples)
    with trainer.without_adapter():
        assert base[0] / base[1] == pytest.approx(trainer.evaluate([samples])[0], rel=1e-4)
    assert asking.surprise(samples) == base and total != pytest.approx(base[0], rel=1e-2)
    assert len(trainer.model.adapters) == 1 and not trainer.model.adapters[0][0].pairs
    assert {name: np.asarray(value).tobytes() for name, value in trainer.state().items()} == before


class Later:
    """True when it is asked the n-th time."""

    def __init__(self, n):
        self.n = n

    def __bool__(self):
        self.n -= 1
        return self.n < 0


@pytest.mark.parametrize("n", [0, 1, 5])
def test_a_stop_ends_it_and_the_adapter_is_off(n):
    trainer = trained()
    asking = Comparing(trainer.model, 64)
    assert asking.answers([[5, 6], [7]], 20, trainer.adapter(), Later(n)) is None
    assert (
        asking.surprise([Sample(np.arange(9, dtype=np.int32), np.arange(9) > 0)] * 6, trainer.adapter(), Later(n))
        is None
    )
    assert not any(adapter.pairs for adapter, _ in trainer.model.adapters)


def test_the_command_compares_and_repeats_its_run(tmp_path):
    """With narrow terminals, without one; the file of its flags gives the same bytes again."""
    (tmp_path / "d.jsonl").write_text("\n".join(map(json.dumps, CALM)))
    done = command("finetune", "-m", MODEL, "--train-data", tmp_path / "d.jsonl", "--val-split", "0.4", "-t", 2,
                   "--max-steps", 5, "--lr", "5e-3", "--outdir", tmp_path / "a", "--sample-every", 2,
                   "--sample-prompts", 1, "--report", tmp_path / "new" / "r.html")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("answers to held-out prompts, base and adapter after step") == 3
    assert "\x1b" not in done.stderr and "\nperplexity       base    adapter\ntraining " in done.stderr
    first = (tmp_path / "a" / "adapter.bin").read_bytes()
    assert (tmp_path / "new" / "r.html").read_text().startswith("<!DOCTYPE html>")
    again = command("finetune", "--config", tmp_path / "a" / "adapter.bin.toml", "--outdir", tmp_path / "b",
                    "--sample-every", 0, "--sample-prompts", 0)  # fmt: skip
    assert again.returncode == 0 and "answers to" not in again.stderr and "perplexity" not in again.stderr
    assert (tmp_path / "b" / "adapter.bin").read_bytes() == first


def test_preferences_are_compared_by_their_wanted_answers():
    pairs = [{"prompt": f"{row['instruction']}\n", "chosen": row["output"], "rejected": "no"} for row in CALM]
    result = llamacy.finetune(MODEL, pairs, method="dpo", sample_every=1, sample_prompts=1, max_steps=2, threads=2)
    assert [row["step"] for row in result.answers] == [1, 2] and result.answers[0]["wanted"].strip() == CALM[0][
        "output"
    ]
    assert all(math.isfinite(value) for value in result.perplexity["training"].values())


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"sample_every": -1}, "sample_every: wanted 0 or more, got -1"),
        ({"report": "x.pdf"}, "^report: wanted a name ending in .html"),
        ({"plot": "x.pdf"}, "^plot: wanted a name ending in .svg"),
    ],
)
def test_what_is_wrong_is_told_first(how, said):
    with pytest.raises(llamacy.LlamacyError, match=said):
        llamacy.finetune(MODEL, RECORDS, **how)
