"""Gradients through the forms of a layer: the compiled training step against the twin in f64."""

import numpy as np
import pytest

from llamacy import kernels
from llamacy.formats.architectures import of_expert
from llamacy.formats.lora import Adapter, LoraPair
from llamacy.kernels.reference import model as twin
from llamacy.model import load_model
from llamacy.train.options import TARGETS, TrainOptions
from llamacy.train.samples import Sample
from llamacy.train.trainer import Trainer, pack
from tests.model import parts, tiny

RANK, ALPHA = 3, 4.5
# of gradients, relative to the largest of a pair: f32 sums; inputs and gradients of 16 bits, kept activations of bf16
F32, INT16 = 1e-4, 0.03
LENGTHS = (21, 9, 30)


def samples(config):
    """Samples of which every third token is not trained on, the last one of each not either."""
    return [Sample(tiny.tokens_of(config, n, seed=n).astype(np.int32), np.arange(n) % 3 != n % 3) for n in LENGTHS]


@pytest.fixture
def make(tmp_path, monkeypatch):
    """A function that sets a Trainer up on a case's model: (trainer, weights, pairs)."""

    def trainer(name, activations="f32", num_layers=None, threads=2, **change):
        config = parts.CASES[name]
        parts.use(monkeypatch, config)
        weights = parts.write(tmp_path / "m.gguf", config)
        model = load_model(tmp_path / "m.gguf", activations=activations, threads=threads)
        made = Trainer(model, TrainOptions(n_ctx=64, max_grad_norm=0.0, **change))
        first = 0 if num_layers is None else config.n_layer - num_layers
        lora = twin.random_lora(config, RANK, 9)
        lora = {name: pair for name, pair in lora.items() if int(name.split(".")[1]) >= first}
        pairs = {
            name: LoraPair(a.astype(np.float32), b.astype(np.float32), ALPHA / RANK) for name, (a, b) in lora.items()
        }
        made.init_lora(RANK, ALPHA, tuple(TARGETS), 7, Adapter(parts.NAME, pairs, ALPHA), num_layers)
        return made, weights, lora

    return trainer


def exact(config, weights, lora):
    """The twin's loss and gradients of the samples."""
    found = samples(config)
    tokens = np.concatenate([sample.ids for sample in found])
    segments = np.repeat(np.arange(len(found)), LENGTHS)
    trained = np.concatenate([sample.trained for sample in found])
    targets = twin.next_token_targets(tokens, segments, trained)
    return twin.loss_and_gradients(config, weights, tokens, targets, segments, lora, ALPHA / RANK)[:2]


def assert_gradients(found, wanted, share):
    # experts that no token chose
    idle = found.keys() - wanted.keys()
    assert all(of_expert(name) and not any(part.any() for part in found[name]) for name in idle), idle
    assert wanted and not wanted.keys() - found.keys()
    for name, pair in wanted.items():
        for side, gradient in zip(found[name], pair, strict=True):
            np.testing.assert_allclose(side, gradient, atol=share * np.abs(gradient).max(), err_msg=name)


@pytest.mark.parametrize("isa", kernels.available())
@pytest.mark.parametrize("case", parts.CASES)
def test_gradients(make, case, isa, monkeypatch):
    tiny.use_isa(monkeypatch, isa)
    config = parts.CASES[case]
    for checkpointing in (False, True):
        made, weights, lora = make(case, checkpointing=checkpointing)
        loss, gradients = exact(config, weights, lora)
        assert made.probe(samples(config)).loss == pytest.approx(loss, rel=1e-5)
        assert_gradients(made.gradients(), gradients, F32)
        norm = np.sqrt(sum(np.sum(side**2) for pair in gradients.values() for side in pair))
        assert made.probe(samples(config)).grad_norm == pytest.approx(norm, rel=1e-4)


@pytest.mark.parametrize("case", parts.CASES)
def test_gradients_of_the_last_layers(make, case):
    """Layers without pairs keep nothing."""
    config = parts.CASES[case]
    made, weights, lora = make(case, num_layers=1)
    _, gradients = exact(config, weights, lora)
    made.probe(samples(config))
    assert_gradients(made.gradients(), gradients, F32)


@pytest.mark.parametrize("case", parts.CASES)
def test_rounded_activations(make, case):
    config, found = parts.CASES[case], []
    for checkpointing in (False, True):
        made, weights, lora = make(case, "int8", checkpointing=checkpointing)
        made.probe(samples(config))
        found.append(made.gradients())
    assert_gradients(found[0], exact(config, weights, lora)[1], INT16)
    for name, pair in found[0].items():
        for side, again in zip(pair, found[1][name], strict=True):
            np.testing.assert_array_equal(side, again)


@pytest.mark.parametrize("case", ["row norms", "norms before and behind", "all at once", "all at once, parallel"])
def test_threads_and_the_place_where_a_pass_begins_change_no_bit(make, case):
    config, found = parts.CASES[case], []
    width = -(-config.n_embd // 16) * 16
    for threads in (1, 2, 3):
        made, _, _ = make(case, "int8", num_layers=2, threads=threads, lora_dropout=0.25)
        (packed,) = pack(samples(config), 512)
        entry = np.full((len(packed[0]), width), np.nan, np.float32)
        for entered in (False, True):
            made._pass.grads.fill(0)
            loss = made._pass.run(*packed, 1.0, entry=entry, entered=entered, dropout_key=77)
            found.append((loss, made._pass.grads.copy()))
    for loss, gradients in found[1:]:
        assert loss == found[0][0]
        np.testing.assert_array_equal(gradients, found[0][1])


def test_what_is_kept_is_counted():
    """Norms behind attention and MLP want their inputs kept, an MLP without gate keeps no up."""
    sizes = {
        "n_embd": 64,
        "n_head": 4,
        "n_head_kv": 2,
        "head_dim": 16,
        "n_rot": 16,
        "n_ff": 96,
        "n_layer": 4,
        "n_vocab": 97,
    }
    ranks = {(layer, slot): (4, 1.0) for layer in range(4) for slot in range(7)}

    def kept(**more):
        return kernels.trainstep.memory_needed(sizes | more, ranks, 512, 1, 2, "int16")["activations"]

    assert kept(post_norms=True) == kept() + 4 * 512 * 2 * 2 * 64
    assert kept(gated=False) == kept() - 4 * 512 * 2 * 96
