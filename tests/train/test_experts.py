"""Training through layers with experts, and pairs on each expert, against the float64 twin."""

from dataclasses import replace

import numpy as np
import pytest

from llamacy import kernels
from llamacy.errors import UsageError
from llamacy.formats.lora import Adapter, LoraPair
from llamacy.kernels.reference import model as twin
from llamacy.model import load_model
from llamacy.train.options import TARGETS, USUAL, TrainOptions, target_modules
from llamacy.train.samples import Sample
from llamacy.train.trainer import Trainer, pack
from tests.model.test_experts import as_gpt_oss
from tests.model.tiny import tokens_of, use_isa, write_llama

FIVE = twin.Config(
    n_vocab=97, n_embd=64, n_head=4, n_head_kv=2, n_ff=96, n_layer=3, n_expert=5, n_used=2, n_ff_expert=32
)
CONFIGS = {
    "five": FIVE,
    "one": replace(FIVE, n_expert=1, n_used=1, n_layer=2),
    # far more experts than tokens: most have no rows
    "many": replace(FIVE, n_expert=129, n_used=3, renormalised=False, n_layer=2),
    "sigmoid": replace(FIVE, scores="sigmoid", expert_scale=2.5, n_layer=2),
    "shared": replace(FIVE, n_ff_shared=96, renormalised=False),
    "after a dense layer": replace(FIVE, n_dense=1),
}
LENGTHS, SCALE = (9, 21, 1, 30), 1.5


def samples():
    """Samples of which some tokens are trained on, one of them a single token."""
    return [Sample(tokens_of(FIVE, n, seed=n).astype(np.int32), np.arange(n) > n // 3) for n in LENGTHS]


def trainer(path, config, targets=tuple(TARGETS), activations="f32", threads=2, pack_tokens=None, kind="F32", **change):
    """A Trainer whose pairs' B is not zero, and these pairs."""
    if not (path / "m.gguf").exists():
        write_llama(path / "m.gguf", config, twin.random_weights(config, 5), kind)
    options = TrainOptions(**({"n_ctx": 64, "max_grad_norm": 0.0} | change))
    made = Trainer(load_model(path / "m.gguf", activations=activations, threads=threads), options, pack_tokens)
    lora = twin.random_lora(config, 4, 2)
    made.init_lora(4, 4 * SCALE, targets, 7)
    for name, a, b, _ in made._views(made._pass.params):
        a[:], b[:] = lora[name][0], lora[name][1].T
    return made, {name: lora[name] for name in made.scales}


def exact_of(config, lora):
    """The twin's loss and gradients of all samples in one batch."""
    tokens = np.concatenate([sample.ids for sample in samples()])
    segments = np.repeat(np.arange(len(LENGTHS)), LENGTHS)
    trained = np.concatenate([sample.trained for sample in samples()])
    targets = twin.next_token_targets(tokens, segments, trained)
    weights = twin.random_weights(config, 5)
    return twin.loss_and_gradients(config, weights, tokens, targets, segments, lora, SCALE)


@pytest.mark.parametrize("isa", kernels.available())
@pytest.mark.parametrize("name", CONFIGS)
def test_every_gradient_is_the_twin_s(name, isa, tmp_path, monkeypatch):
    use_isa(monkeypatch, isa)
    made, lora = trainer(tmp_path, CONFIGS[name])
    result = made.step([samples()], 0.0)
    loss, gradients, _ = exact_of(CONFIGS[name], lora)
    assert result.loss == pytest.approx(loss, rel=1e-6)
    found = made.gradients()
    assert found.keys() == lora.keys()
    largest = max(np.abs(x).max() for pair in gradients.values() for x in pair)
    idle = 0
    for key in lora:
        if key not in gradients:
            assert ".ffn_" in key and not any(x.any() for x in found[key])
            idle += 1
            continue
        for ours, exact in zip(found[key], gradients[key], strict=True):
            np.testing.assert_allclose(ours, exact, atol=3e-5 * largest, err_msg=key)
    assert (idle > 0) == (name == "many")


def test_gradients_of_clamped_experts_with_biases(tmp_path, monkeypatch):
    config = as_gpt_oss(monkeypatch)
    made, lora = trainer(tmp_path, config)
    result = made.step([samples()], 0.0)
    loss, gradients, _ = exact_of(config, lora)
    assert result.loss == pytest.approx(loss, rel=1e-6)
    largest = max(np.abs(x).max() for pair in gradients.values() for x in pair)
    for key, pair in gradients.items():
        for ours, exact in zip(made.gradients()[key], pair, strict=True):
            np.testing.assert_allclose(ours, exact, atol=3e-5 * largest, err_msg=key)


@pytest.mark.parametrize("name", ["five", "shared"])
def test_usually_the_routed_experts_are_not_adapted(name, tmp_path):
    made, lora = trainer(tmp_path, CONFIGS[name], USUAL)
    assert not any(".0.weight" in key for key in lora)
    assert any("shexp" in key for key in lora) == (name == "shared")
    made.step([samples()], 0.0)
    _, gradients, _ = exact_of(CONFIGS[name], lora)
    largest = max(np.abs(x).max() for pair in gradients.values() for x in pair)
    for key, pair in made.gradients().items():
        for ours, exact in zip(pair, gradients[key], strict=True):
            np.testing.assert_allclose(ours, exact, atol=3e-5 * largest, err_msg=key)


@pytest.mark.parametrize("kind", ["Q4_0", "MXFP4"])
def test_gradients_with_16_bits_of_quantised_weights(kind, tmp_path):
    found = {}
    for activations in ("f32", "int16"):
        (tmp_path / activations).mkdir()
        made, _ = trainer(tmp_path / activations, FIVE, activations=activations, kind=kind)
        made.step([samples()], 0.0)
        found[activations] = np.concatenate([x.ravel() for pair in made.gradients().values() for x in pair])
    error = found["int16"] - found["f32"]
    assert np.linalg.norm(error) < 5e-3 * np.linalg.norm(found["f32"])


@pytest.mark.parametrize("activations", ["f32", "int16"])
@pytest.mark.parametrize("name", ["five", "shared", "many"])
def test_threads_recomputing_and_packing_change_nothing(name, activations, tmp_path):
    found = []
    how = {"kind": "Q4_0", "lora_dropout": 0.2}
    for threads, checkpointing in ((1, False), (2, False), (3, True)):
        made, _ = trainer(
            tmp_path, CONFIGS[name], activations=activations, threads=threads, checkpointing=checkpointing, **how
        )
        results = [made.step([samples()], 0.01) for _ in range(2)]
        found.append(([result.loss for result in results], made.state()["lora.params"].copy()))
    for losses, params in found[1:]:
        assert losses == found[0][0]
        np.testing.assert_array_equal(params, found[0][1])


def test_dropout_leaves_the_mean_gradient(tmp_path):
    """The pairs' part of the loss with dropout is near that without, and not the same."""
    config = replace(FIVE, n_layer=1)
    plain, _ = trainer(tmp_path, config, tuple(target_modules("experts")))
    wanted = plain.step([samples()], 0.0).loss
    dropped, _ = trainer(tmp_path, config, tuple(target_modules("experts")), lora_dropout=0.1)
    (packed,) = pack(samples(), 512)
    losses = [dropped._pass.run(*packed, 1.0, dropout_key=key) for key in range(1, 30)]
    n = sum(sample.n_trained for sample in samples())
    assert np.std(losses) > 1e-3 and np.mean(losses) / n == pytest.approx(wanted, rel=0.02)


def test_what_is_kept_and_estimated_is_what_is_taken(tmp_path):
    made, _ = trainer(tmp_path, FIVE)
    sizes = made.model.config.kernel_sizes
    ranks = {(layer, slot): (4, 1.0) for layer, slot, *_ in made._pass.layout}
    small, large = (kernels.trainstep.memory_needed(sizes, ranks, T, 1, 1) for T in (64, 128))
    without = kernels.trainstep.memory_needed(
        sizes | {"n_expert": 0, "n_used": 0, "n_ff_expert": 0}, {(0, 0): (4, 1.0)}, 64, 1, 1
    )
    # of each layer: 16 logits, 2 choices and weights; of 2 rows 48 columns of u, and gate and up in bf16
    a_token = 4 * (16 + 2 + 2) + 2 * (4 * 48 + 2 * 2 * 32)
    assert small["activations"] - without["activations"] >= 3 * 64 * a_token
    assert large["activations"] - small["activations"] >= 3 * 64 * a_token
    assert large["buffers"] > small["buffers"] > without["buffers"]


def test_words_for_targets():
    assert target_modules("all-linear") == USUAL
    assert target_modules("gate_proj") == ("ffn_gate", "ffn_gate_shexp")
    assert target_modules("experts,q_proj") == ("attn_q", "ffn_gate_exps", "ffn_up_exps", "ffn_down_exps")
    assert target_modules("mlp.experts.gate_up_proj") == ("ffn_gate_exps", "ffn_up_exps")
    assert target_modules("ffn_down_exps") == ("ffn_down_exps",)
    with pytest.raises(UsageError, match="'expertsq' is unknown"):
        target_modules("expertsq")


def test_a_trained_adapter_on_experts_is_applied_as_it_was_trained(tmp_path):
    made, _ = trainer(tmp_path, FIVE, kind="Q8_0")
    made.step([samples()], 0.01)
    wanted = made.evaluate([samples()])[0]
    model = load_model(tmp_path / "m.gguf", activations="f32", threads=2)
    pairs = {name: LoraPair(a.copy(), b.T.copy(), SCALE) for name, a, b, _ in made._views(made._pass.params)}
    model.add_adapter(Adapter("llama", pairs, 4 * SCALE))
    total = 0.0
    for sample in samples():
        n = np.arange(len(sample.ids))
        logits = model.new_session(1, 64).step(sample.ids, n, np.zeros(len(n), int), n).astype(np.float64)
        shifted = logits - logits.max(axis=-1, keepdims=True)
        log_p = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
        at = np.flatnonzero(sample.trained[1:])
        total -= log_p[at, sample.ids[1:][at]].sum()
    assert total / sum(sample.n_trained for sample in samples()) == pytest.approx(wanted, rel=1e-5)
