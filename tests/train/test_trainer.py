"""Gradients and steps of small random models against torch's record, and what must not change them."""

import json

import numpy as np
import pytest

from llamacy import kernels
from llamacy.errors import LlamacyError
from llamacy.formats.lora import Adapter, LoraPair
from llamacy.kernels.reference import model as twin
from llamacy.model import load_model
from llamacy.train.options import TARGETS, TrainOptions
from llamacy.train.samples import Sample
from llamacy.train.trainer import Trainer, pack
from tests.model.golden import DATA
from tests.model.tiny import CONFIG, tokens_of, use_isa, write_llama

RECORDED = np.load(DATA / "torch_tiny.npz")
CASE = json.loads(str(RECORDED["case"]))
ALL = tuple(TARGETS)


def options(**change):
    return TrainOptions(**({"n_ctx": 64, "max_grad_norm": 0.0} | change))


def samples():
    """The recorded case as Samples; one of them has a single token and nothing to train."""
    tokens, segments, targets = (RECORDED[name] for name in ("tokens", "segments", "targets"))
    found = []
    for segment in np.unique(segments):
        of = segments == segment
        found.append(Sample(tokens[of].astype(np.int32), np.r_[False, targets[of][:-1] >= 0]))
    return found


def some_samples(lengths=(9, 21, 5, 30)):
    """Samples of these lengths, the first third of each not trained on."""
    return [Sample(tokens_of(CONFIG, n, seed=n).astype(np.int32), np.arange(n) > n // 3) for n in lengths]


def starting_adapter(rank=CASE["rank"], seed=CASE["lora_seed"], scale=CASE["scale"]):
    """Pairs whose B is not zero."""
    pairs = twin.random_lora(CONFIG, rank, seed)
    pairs = {name: LoraPair(a.astype(np.float32), b.astype(np.float32), scale) for name, (a, b) in pairs.items()}
    return Adapter("llama", pairs, scale * rank)


@pytest.fixture
def trainer(tmp_path):
    """A function that sets a Trainer up on the recorded case's weights."""

    def make(type_name="F32", activations="f32", threads=2, init=None, rank=4, num_layers=None, targets=ALL, **change):
        path = tmp_path / f"{type_name}.gguf"
        if not path.exists():
            write_llama(path, CONFIG, twin.random_weights(CONFIG, CASE["weights_seed"]), type_name)
        made = Trainer(load_model(path, activations=activations, threads=threads), options(**change))
        made.init_lora(rank, rank * CASE["scale"], targets, 7, init, num_layers)
        return made

    return make


def flat(gradients):
    return np.concatenate([x.ravel() for name in sorted(gradients) for x in gradients[name]])


# --- against torch ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("isa", kernels.available())
def test_loss_and_every_gradient_are_torch_s(trainer, isa, monkeypatch):
    use_isa(monkeypatch, isa)
    made = trainer(init=starting_adapter())
    result = made.step([samples()], 0.0)
    assert result.loss == pytest.approx(float(RECORDED["loss"]), rel=1e-5)
    assert (result.tokens, result.trained_tokens) == (
        len(RECORDED["tokens"]),
        np.count_nonzero(RECORDED["targets"] >= 0),
    )
    gradients = made.gradients()
    assert len(gradients) == 7 * CONFIG.n_layer
    for name, pair in gradients.items():
        for which, gradient in zip("ab", pair, strict=True):
            wanted = RECORDED[f"{name}.{which}"]
            assert np.all(np.any(gradient != 0, axis=1)), (name, which)
            # f32 sums of at most 97 terms, layer after layer: 1e-4 of the matrix's largest gradient
            np.testing.assert_allclose(gradient, wanted, rtol=0, atol=1e-4 * np.abs(wanted).max(), err_msg=name)


@pytest.mark.parametrize(("activations", "tolerance"), [("f32", 1e-4), ("int8", 5e-3)])
def test_steps_with_clipping_and_decay_are_torch_s(trainer, activations, tolerance):
    # in F32 the weights themselves are never rounded; by default the gradients that pass them are, to 16 bits
    adamw = CASE["adamw"]
    made = trainer(
        init=starting_adapter(), activations=activations, max_grad_norm=CASE["max_norm"], adam_eps=adamw["eps"],
        beta1=adamw["betas"][0], beta2=adamw["betas"][1], weight_decay=adamw["weight_decay"],
    )  # fmt: skip
    results = [made.step([samples()], adamw["lr"]) for _ in range(CASE["steps"])]
    np.testing.assert_allclose([result.loss for result in results], RECORDED["losses"], rtol=tolerance)
    np.testing.assert_allclose([result.grad_norm for result in results], RECORDED["grad_norms"], rtol=tolerance)


@pytest.mark.parametrize("activations", ["f32", "int8"])
@pytest.mark.parametrize("name", ["F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_gradients_over_every_type_are_the_twin_s(trainer, tmp_path, name, activations):
    made, tokens, segments = (
        trainer(name, activations, init=starting_adapter()),
        RECORDED["tokens"],
        RECORDED["segments"],
    )
    result = made.step([samples()], 0.0)
    exact = write_llama(tmp_path / "again.gguf", CONFIG, twin.random_weights(CONFIG, CASE["weights_seed"]), name)
    lora = twin.random_lora(CONFIG, CASE["rank"], CASE["lora_seed"])
    args = (tokens, RECORDED["targets"], segments, lora, CASE["scale"])
    loss, gradients, _ = twin.loss_and_gradients(CONFIG, exact, *args)
    wanted, found = flat(gradients), flat(made.gradients())
    # by default 16-bit inputs, and gradients rounded to 1 / 8191 of their largest of 128: 5e-4 a product, some twenty
    share = 1e-4 if activations == "f32" else 1e-2
    assert result.loss == pytest.approx(loss, rel=share / 10)
    assert np.linalg.norm(found - wanted) < share * np.linalg.norm(wanted)


# --- what must not matter --------------------------------------------------------------------------------------------


def after_two_steps(made, batches):
    for _ in range(2):
        result = made.step(batches, 0.01)
    return np.r_[result.loss, result.grad_norm, flat(made.gradients()), made.state()["lora.params"]]


def test_accumulation_and_packing_change_nothing_but_rounding(trainer):
    data = some_samples()
    whole = after_two_steps(trainer(init=starting_adapter()), [data])
    for change, batches in ({}, [[sample] for sample in data]), ({}, [data[:1], data[1:]]):
        np.testing.assert_allclose(
            after_two_steps(trainer(init=starting_adapter(), **change), batches), whole, rtol=1e-4, atol=1e-4
        )


def test_samples_packed_together_equal_one_by_one(trainer):
    data = some_samples()
    made = trainer(init=starting_adapter())
    together = made.step([data], 0.0)
    gradient, n_trained = flat(made.gradients()), sum(sample.n_trained for sample in data)
    total_loss, total = 0.0, 0.0
    for sample in data:
        result = made.step([[sample]], 0.0)
        total_loss += result.loss * sample.n_trained / n_trained
        total = total + flat(made.gradients()) * (sample.n_trained / n_trained)
    assert together.loss == pytest.approx(total_loss, rel=1e-5)
    assert np.linalg.norm(gradient - total) < 1e-4 * np.linalg.norm(total)


@pytest.mark.parametrize("activations", ["f32", "int8"])
def test_threads_and_a_second_run_are_bitwise_equal(trainer, activations):
    runs = [
        after_two_steps(trainer("Q4_1", activations, threads), [some_samples()[:2], some_samples()[2:]])
        for threads in (1, 2, 3, 2)
    ]
    for other in runs[1:]:
        np.testing.assert_array_equal(runs[0], other)


def test_state_goes_on_bitwise(trainer):
    data, through, first = some_samples(), trainer("Q4_0"), trainer("Q4_0")
    for batch in data[:2]:
        through.step([[batch]], 0.01)
        first.step([[batch]], 0.01)
    state = {name: value.copy() if isinstance(value, np.ndarray) else value for name, value in first.state().items()}
    second = trainer("Q4_0", init=starting_adapter(seed=99))
    second.load_state(state)
    for batch in data[2:]:
        through.step([[batch]], 0.01)
        second.step([[batch]], 0.01)
    for name, value in through.state().items():
        np.testing.assert_array_equal(second.state()[name], value, err_msg=name)


def test_another_shape_s_state_is_refused_and_leaves_the_trainer_as_it_was(trainer):
    made, other = trainer(rank=4), trainer(rank=5)
    before = made.state()["lora.params"].copy()
    with pytest.raises(LlamacyError, match="does not fit"):
        made.load_state(other.state())
    np.testing.assert_array_equal(made.state()["lora.params"], before)


# --- what is trained -------------------------------------------------------------------------------------------------


def test_a_fresh_adapter_changes_nothing_and_then_learns(trainer):
    made, data = trainer("Q8_0"), some_samples()
    assert all(not pair.b.any() and pair.a.any() for pair in made.adapter().pairs.values())
    losses = [made.step([data], 0.01).loss for _ in range(20)]
    assert losses[-1] < 0.7 * losses[0]
    # B was zero in the first step, so that no A had a gradient; now each has, K's and V's too
    for name, (da, db) in made.gradients().items():
        assert np.all(np.any(da != 0, axis=1)) and np.all(np.any(db != 0, axis=1)), name


def test_high_ranks_train_and_stay_finite(trainer):
    made = trainer("Q4_1", "int8", rank=64)
    losses = [made.step([some_samples()], 0.01).loss for _ in range(6)]
    assert np.isfinite(made.state()["lora.params"]).all() and losses[-1] < losses[0]
    assert all(pair.a.shape[0] == 64 and pair.scale == CASE["scale"] for pair in made.adapter().pairs.values())


def test_only_the_last_layers_and_the_targets_are_trained(trainer):
    wanted = {"blk.1.attn_q.weight", "blk.1.attn_v.weight"}
    made = trainer(num_layers=1, targets=("attn_q", "attn_v"), rank=4)
    made.step([some_samples()], 0.01)
    assert made.gradients().keys() == made.adapter().pairs.keys() == wanted
    # and their gradients are those that they have among all of them
    everything, some = starting_adapter(), starting_adapter()
    some.pairs = {name: pair for name, pair in everything.pairs.items() if name in wanted}
    only = trainer(num_layers=1, targets=("attn_q", "attn_v"), init=some)
    only.step([some_samples()], 0.0)
    model = only.model
    lora = {name: (pair.a, pair.b) for name, pair in some.pairs.items()}
    tokens, starts, targets = next(pack(some_samples(), 512))
    segments = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
    weights = twin.random_weights(CONFIG, CASE["weights_seed"])
    _, gradients, _ = twin.loss_and_gradients(CONFIG, weights, tokens, targets, segments, lora, CASE["scale"])
    assert model.config.n_layer == 2
    for name in wanted:
        for found, exact in zip(only.gradients()[name], gradients[name], strict=True):
            np.testing.assert_allclose(found, exact, rtol=0, atol=1e-4 * np.abs(exact).max())


def test_evaluate_measures_and_trains_nothing(trainer):
    made, data = trainer(init=starting_adapter()), some_samples()
    before = made.state()["lora.params"].copy()
    loss, n_trained = made.evaluate([data[:1], data[1:]])
    np.testing.assert_array_equal(made.state()["lora.params"], before)
    result = made.step([data], 0.0)
    assert n_trained == result.trained_tokens and loss == pytest.approx(result.loss, rel=1e-5)


def test_what_trains_is_what_serves(trainer):
    made, data = trainer("Q4_1", init=starting_adapter()), some_samples()
    made.step([data], 0.01)
    loss, _ = made.evaluate([[data[3]]])
    model, sample, n = made.model, data[3], len(data[3].ids)
    model.add_adapter(made.adapter())
    logits = model.new_session(1, 64).step(sample.ids, np.arange(n), np.zeros(n, int), np.arange(n - 1)).astype(float)
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    nll = -log_p[np.arange(n - 1), sample.ids[1:]][sample.trained[1:]]
    assert nll.mean() == pytest.approx(loss, rel=1e-5)


def test_a_batch_without_a_trained_token_is_refused(trainer):
    nothing = Sample(np.arange(5, dtype=np.int32), np.zeros(5, bool))
    with pytest.raises(LlamacyError, match="no trained token"):
        trainer().step([[nothing]], 0.01)


def test_an_adapter_to_start_from_must_fit(trainer):
    wrong = starting_adapter()
    wrong.pairs["blk.0.attn_k.weight"] = LoraPair(np.ones((4, 64), np.float32), np.ones((64, 4), np.float32))
    with pytest.raises(LlamacyError, match="64 x 64 here, 32 x 64"):
        trainer(init=wrong)
    with pytest.raises(LlamacyError, match="does not train"):
        trainer(init=starting_adapter(), targets=("attn_q",))


def test_pack_keeps_every_trained_token_once_and_whole_samples():
    data = [*some_samples((9, 21, 5, 30)), Sample(np.arange(4, dtype=np.int32), np.zeros(4, bool))]
    packs = list(pack(data, 32))
    # a sample's last token is only a target, so that the first two make 8 + 20 inputs, and the next fills the rest
    assert [len(tokens) for tokens, _, _ in packs] == [32, 29]
    assert sum(np.count_nonzero(targets >= 0) for _, _, targets in packs) == sum(sample.n_trained for sample in data)
    for tokens, starts, targets in packs:
        assert len(tokens) == len(targets) == starts[-1] and starts[0] == 0 and np.all(np.diff(starts) > 0)
        for lo, hi in zip(starts, starts[1:], strict=False):
            np.testing.assert_array_equal(
                targets[lo : hi - 1][targets[lo : hi - 1] >= 0], tokens[lo + 1 : hi][targets[lo : hi - 1] >= 0]
            )


# --- clipping --------------------------------------------------------------------------------------------------------


def moments(made):
    """The first moments after one step: a tenth of the gradients as AdamW got them."""
    result = made.step([samples()], 1e-3)
    return made.state()["adamw.m"], result.grad_norm


def test_gradients_are_scaled_down_to_the_largest_norm_and_never_up(trainer):
    whole, norm = moments(trainer(init=starting_adapter(), max_grad_norm=0.0))
    assert 0 < norm < 1e5 and np.any(whole)
    for limit in (norm * 1.01, 1e6):
        found, same = moments(trainer(init=starting_adapter(), max_grad_norm=limit))
        np.testing.assert_array_equal(found, whole)
        assert same == norm
    found, same = moments(trainer(init=starting_adapter(), max_grad_norm=norm / 4))
    np.testing.assert_allclose(found, whole / 4, rtol=1e-5, atol=0)
    assert same == norm
