"""DoRA: gradients through every form of a layer against the twin, what its start is, and PEFT's recorded run."""

from dataclasses import replace

import numpy as np
import pytest

from llamacy import kernels
from llamacy.errors import UsageError
from llamacy.formats.architectures import of_expert
from llamacy.formats.lora import Adapter, LoraPair
from llamacy.kernels.reference import layers
from llamacy.kernels.reference import model as twin
from llamacy.model import load_model
from llamacy.train.lora import check_targets
from llamacy.train.options import TARGETS, TrainOptions
from llamacy.train.trainer import Trainer, pack
from tests.model import golden, parts, tiny
from tests.model.test_fused import ODD, write_phi3
from tests.train.test_experts import CONFIGS
from tests.train.test_methods import run_of
from tests.train.test_parts import ALPHA, F32, INT16, RANK, exact, samples

# latent attention's matrices have none
CASES = {name: config for name, config in parts.CASES.items() if not config.kv_rank} | {
    "fused": ODD,
    "beside experts": CONFIGS["shared"],
}


def pairs_of(config, weights, num_layers=None):
    """The twin's pairs with magnitudes around the rows' lengths, one of them zero, one below; no routed expert's."""
    found, rng = {}, np.random.default_rng(4)
    first = 0 if num_layers is None else config.n_layer - num_layers
    for name, (a, b) in twin.random_lora(config, RANK, 9).items():
        if int(name.split(".")[1]) < first or of_expert(name):
            continue
        m = layers.row_lengths(weights[name], a, b, ALPHA / RANK) * rng.uniform(0.5, 1.5, len(b))
        m[:2] *= [0, -1]
        found[name] = a, b, m.astype(np.float32).astype(np.float64)
    return found


@pytest.fixture
def make(tmp_path, monkeypatch):
    """A function that sets a Trainer up on a case's model: (trainer, weights, pairs)."""

    def trainer(name, activations="f32", num_layers=None, threads=2, **change):
        config = CASES[name]
        if name in parts.CASES:
            parts.use(monkeypatch, config)
            weights = parts.write(tmp_path / "m.gguf", config)
        else:
            weights = twin.random_weights(config, 5)
            write = write_phi3 if config.fused else tiny.write_llama
            weights = write(tmp_path / "m.gguf", config, weights, "F32")
        model = load_model(tmp_path / "m.gguf", activations=activations, threads=threads)
        made = Trainer(model, TrainOptions(n_ctx=64, max_grad_norm=0.0, dora=True, **change))
        lora = pairs_of(config, weights, num_layers)
        pairs = {
            key: LoraPair(*(x.astype(np.float32) for x in (a, b)), ALPHA / RANK, m) for key, (a, b, m) in lora.items()
        }
        targets = tuple(key for key in TARGETS if not key.endswith("_exps"))
        made.init_lora(RANK, ALPHA, targets, 7, Adapter(model.config.architecture, pairs, ALPHA), num_layers)
        return made, weights, lora

    return trainer


def assert_gradients(found, wanted, share):
    assert found.keys() == wanted.keys()
    for name, sides in wanted.items():
        assert len(sides) == len(found[name]) == 3
        for side, gradient in zip(found[name], sides, strict=True):
            assert np.abs(gradient).max() > 0
            np.testing.assert_allclose(side, gradient, atol=share * np.abs(gradient).max(), err_msg=name)


@pytest.mark.parametrize("isa", kernels.available())
@pytest.mark.parametrize("case", CASES)
def test_gradients(make, case, isa, monkeypatch):
    tiny.use_isa(monkeypatch, isa)
    config = CASES[case]
    for how in ({}, {"checkpointing": True}, {"num_layers": 1}):
        made, weights, lora = make(case, **how)
        loss, gradients = exact(config, weights, lora)
        found = made.probe(samples(config))
        assert found.loss == pytest.approx(loss, rel=1e-5)
        assert_gradients(made.gradients(), gradients, F32)
        norm = np.sqrt(sum(np.sum(side**2) for sides in gradients.values() for side in sides))
        assert found.grad_norm == pytest.approx(norm, rel=1e-4)


@pytest.mark.parametrize("case", ["biases", "head norms", "all at once, parallel", "fused"])
def test_rounded_activations_threads_and_the_place_where_a_pass_begins(make, case):
    config, found = CASES[case], []
    made, weights, lora = make(case, "int8", num_layers=2)
    made.probe(samples(config))
    assert_gradients(made.gradients(), exact(config, weights, lora)[1], INT16)
    (packed,) = pack(samples(config), 512)
    entry = np.full((len(packed[0]), -(-config.n_embd // 16) * 16), np.nan, np.float32)
    for how in ({"threads": 1}, {"threads": 3}, {"threads": 2, "checkpointing": True}):
        made = make(case, "int8", num_layers=2, lora_dropout=0.25, **how)[0]
        for entered in (False, True):
            made._pass.grads.fill(0)
            loss = made._pass.run(*packed, 1.0, entry=entry, entered=entered, dropout_key=77)
            found.append((loss, made._pass.grads.copy()))
    for loss, gradients in found[1:]:
        assert loss == found[0][0]
        np.testing.assert_array_equal(gradients, found[0][1])


def test_the_twin_s_gradients_by_finite_differences(monkeypatch):
    """With the lengths held: they are constants to the backward pass."""
    config = twin.Config(n_vocab=11, n_embd=8, n_head=2, n_head_kv=1, n_ff=12, n_layer=1, biases=("attn_q", "ffn_down"))
    weights, tokens = twin.random_weights(config, 1), np.array([1, 4, 7, 10, 2, 5])
    lora, targets = pairs_of(config, weights), twin.next_token_targets(tokens, 0 * tokens)
    gradients = twin.loss_and_gradients(config, weights, tokens, targets, None, lora, ALPHA / RANK)[1]
    held = {
        id(weights[name]): layers.row_lengths(weights[name], a, b, ALPHA / RANK) for name, (a, b, _) in lora.items()
    }
    monkeypatch.setattr(layers, "row_lengths", lambda w, a, b, scale: held[id(w)])
    for name, sides in gradients.items():
        for which, gradient in enumerate(sides):
            for i in list(np.ndindex(gradient.shape))[::3]:
                losses = []
                for step in (1e-5, -1e-5):
                    moved = [side.copy() for side in lora[name]]
                    moved[which][i] += step
                    logits = twin.forward(config, weights, tokens, None, lora | {name: tuple(moved)}, ALPHA / RANK)
                    losses.append(layers.cross_entropy(logits, targets, None))
                assert gradient[i] == pytest.approx((losses[0] - losses[1]) / 2e-5, abs=1e-8), (name, which, i)


def small(tmp_path, init=None, **options):
    config = CONFIGS["five"] if options.pop("experts", False) else replace(CONFIGS["five"], n_expert=0)
    path = tmp_path / "m.gguf"
    if not path.exists():
        tiny.write_llama(path, config, twin.random_weights(config, 5), "Q4_0")
    made = Trainer(load_model(path, activations="f32", threads=2), TrainOptions(n_ctx=64, dora=True, **options))
    made.init_lora(4, 8.0, ("attn_q", "attn_v", "ffn_up", "ffn_down"), 7, init)
    return made


def test_a_start_is_the_model_to_the_last_bit_and_so_is_the_reference(tmp_path):
    made, config = small(tmp_path), CONFIGS["five"]
    plain = Trainer(made.model, TrainOptions(n_ctx=64))
    plain.init_lora(4, 8.0, ("attn_q", "attn_v", "ffn_up", "ffn_down"), 7)
    known = [found.sum() for found in plain.log_probabilities(samples(config))]
    assert [found.sum() for found in made.log_probabilities(samples(config))] == known
    for _ in range(2):
        made.step([samples(config)], 0.01)
    assert [found.sum() for found in made.log_probabilities(samples(config))] != known
    trained = made._pass.params.copy()
    with made.without_adapter():
        assert [found.sum() for found in made.log_probabilities(samples(config))] == known
    np.testing.assert_array_equal(made._pass.params, trained)


def test_from_a_plain_adapter_it_goes_on_where_that_ended(tmp_path):
    made, config = small(tmp_path), CONFIGS["five"]
    rng = np.random.default_rng(2)
    shapes = {name: (place.shape, name) for name, place in made.where.items()}
    pairs = {
        name: LoraPair(*(rng.normal(0, 0.1, size).astype(np.float32) for size in ((4, n_in), (n_out, 4))), 2.0)
        for name, ((n_out, n_in), _) in shapes.items()
    }
    plain = Trainer(made.model, TrainOptions(n_ctx=64))
    plain.init_lora(4, 8.0, ("attn_q", "attn_v", "ffn_up", "ffn_down"), 7, Adapter("llama", pairs, 8.0))
    found = small(tmp_path, Adapter("llama", pairs, 8.0)).evaluate([samples(config)])[0]
    assert found == pytest.approx(plain.evaluate([samples(config)])[0], rel=1e-6)


def test_magnitudes_learn_at_b_s_rate_and_are_kept_in_the_state(tmp_path):
    config, found = CONFIGS["five"], []
    for ratio in (1.0, 4.0):
        made = small(tmp_path, loraplus_ratio=ratio)
        before = made._pass.params[made._pass.magnitudes[0] :].copy()
        made.step([samples(config)], 1e-4)
        found.append(made._pass.params[made._pass.magnitudes[0] :] - before)
        again = small(tmp_path, loraplus_ratio=ratio)
        again.load_state({name: np.copy(value) for name, value in made.state().items()})
        for each in (made, again):
            each.step([samples(config)], 1e-4)
        np.testing.assert_array_equal(again._pass.params, made._pass.params)
    assert (found[0] != 0).mean() > 0.9
    np.testing.assert_allclose(found[1], 4 * found[0], rtol=1e-2, atol=1e-6)


def test_what_it_keeps_is_counted():
    """What attention and the MLP add, before magnitudes, in 16 bits."""
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
    kept = [
        kernels.trainstep.memory_needed(sizes, ranks, 512, 1, 2, "int16", False, dora)["activations"]
        for dora in (False, True)
    ]
    assert kept[1] == kept[0] + 4 * 512 * 2 * 2 * 64


def test_routed_experts_are_refused(tmp_path):
    made = small(tmp_path, experts=True)
    with pytest.raises(UsageError, match="--dora: routed experts have no magnitudes here; leave them out"):
        check_targets(made.model.config, TrainOptions(dora=True, targets=("attn_q", "ffn_up_exps")))
    check_targets(made.model.config, TrainOptions(dora=True))


def test_latent_attention_s_matrices_are_refused(tmp_path, monkeypatch):
    config = parts.CASES["latent"]
    parts.use(monkeypatch, config)
    parts.write(tmp_path / "m.gguf", config)
    model = load_model(tmp_path / "m.gguf", threads=1)
    with pytest.raises(UsageError, match="leave attn_q_a, attn_q_b, attn_kv_a_mqa, attn_kv_b out"):
        check_targets(model.config, TrainOptions(dora=True))
    check_targets(model.config, TrainOptions(dora=True, targets=("attn_output", "ffn_up")))


@golden.needs_model
@pytest.mark.parametrize(("activations", "steps"), [("f32", 3), ("int16", 2)])
def test_peft_s_run(activations, steps):
    found = run_of("dora", {"dora": True}, "init", 1e-3, steps, activations)
    loss, norm = (0.005, 0.01) if activations == "f32" else (0.025, 0.06)
    for result, wanted in found:
        assert result.loss == pytest.approx(wanted["loss"], rel=loss)
        assert result.grad_norm == pytest.approx(wanted["grad_norm"], rel=norm)
