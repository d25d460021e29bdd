"""A step whose result is infinite or NaN ends in a line that says so; what else is asked for is right, and later."""

import numpy as np
import pytest

from llamacy import kernels
from llamacy.errors import LlamacyError, NotFinite
from llamacy.kernels.reference import model as twin
from llamacy.model import load_model
from tests.model.tiny import CONFIG, tokens_of, use_isa, write_llama

SLOTS = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
OUTPUT = (-1, 0)


@pytest.fixture(params=kernels.available())
def model(tmp_path, monkeypatch, request):
    """A function: activations, cache types -> a model."""
    use_isa(monkeypatch, request.param)
    write_llama(tmp_path / "m.gguf", CONFIG, twin.random_weights(CONFIG, 1), "Q4_0")
    return lambda activations="int8", kinds=(None, None): load_model(
        tmp_path / "m.gguf", activations=activations, threads=2, cache_types=kinds
    )


def pair_for(place, a_value=None, b_value=None):
    """A LoRA pair (rank 2) for a matrix or the embedding, ordinary but for one value of A or of B."""
    shapes = [(64, 64), (32, 64), (32, 64), (64, 64), (96, 64), (96, 64), (64, 96)]
    n_out, n_in = (97, 64) if place in (OUTPUT, kernels.weights.EMBEDDING) else shapes[place[1]]
    rng = np.random.default_rng(3)
    a, b = rng.normal(size=(2, n_in)).astype(np.float32), 0.1 * rng.normal(size=(n_out, 2)).astype(np.float32)
    if a_value is not None:
        a[1, 5] = a_value
    if b_value is not None:
        b[7, 1] = b_value
    return a, b, 1.0


def ask(session, n=20, wanted=None, **how):
    """One prompt of n tokens, logits of the last or of those wanted."""
    at = np.arange(n)
    return session.step(tokens_of(CONFIG, n), at, np.zeros(n, int), [n - 1] if wanted is None else wanted, **how)


@pytest.mark.parametrize("place", [(layer, slot) for layer in (0, 1) for slot in range(7)] + ["output", "embedding"])
def test_nan_in_an_adapter_ends_the_step(model, place):
    place = {"output": OUTPUT, "embedding": kernels.weights.EMBEDDING}.get(place, place)
    for activations in ("int8", "int16", "f32"):
        for value in (np.nan, np.inf):
            for bad in ({"a_value": value}, {"b_value": value}):
                if place == kernels.weights.EMBEDDING and bad == {"b_value": value}:
                    continue  # one token's: below
                made = model(activations)
                made.weights.add_adapter({place: pair_for(place, **bad)})
                session = made.new_session(1, 64)
                with pytest.raises(NotFinite, match="not numbers") as caught:
                    ask(session)
                assert "\n" not in str(caught.value) and caught.value.values.shape == (1, CONFIG.n_vocab)
                with pytest.raises(NotFinite):
                    session.step([1], [0], [0], [0])
                if place != OUTPUT:
                    with pytest.raises(NotFinite) as caught:
                        ask(made.new_session(1, 64), hidden=True)
                    assert caught.value.values.shape == (1, CONFIG.n_embd)
                # where nothing is wanted nothing is wrong yet; and the session is not busy afterwards
                ask(session, wanted=[])


def test_one_token_s_embedding_ends_only_what_it_is_part_of(model):
    made = model()
    clean = made.new_session(2, 64).step([3, 4], [0, 0], [0, 1], [0, 1])
    made.weights.add_adapter({kernels.weights.EMBEDDING: pair_for(kernels.weights.EMBEDDING, b_value=np.nan)})
    made.weights.set_scale(0, 1e-30)
    session = made.new_session(2, 64)
    with pytest.raises(NotFinite) as caught:
        session.step([7, 4], [0, 0], [0, 1], [0, 1])
    assert np.isnan(caught.value.values[0]).all()
    np.testing.assert_allclose(caught.value.values[1], clean[1], rtol=1e-5)
    session.step([3, 4], [0, 0], [0, 1], [0, 1])


KINDS = [(k, v) for k in ("s16", "f16", "q8_0", "f32") for v in ("s16", "f16", "q8_0", "f32")]


@pytest.mark.parametrize("kinds", KINDS, ids=lambda kinds: "-".join(kinds))
def test_what_a_slot_s_cache_holds_behind_a_sequence_does_not_matter(model, kinds):
    """A request that went astray leaves NaN in the cache; the next one overwrites the first of them only."""
    made = model(kinds=kinds)
    made.weights.add_adapter({(0, 0): pair_for((0, 0)), (0, 1): pair_for((0, 1)), (0, 2): pair_for((0, 2))})
    scales = np.ones((40, 1), np.float32)
    clean = [ask(made.new_session(1, 64), n, lora_scales=0 * scales[:n]) for n in (1, 9, 17, 20)]
    session = made.new_session(1, 64)
    with pytest.raises(NotFinite):
        ask(session, 40, lora_scales=np.full((40, 1), 1e38, np.float32))
    for n, wanted in zip((1, 9, 17, 20), clean, strict=True):
        np.testing.assert_array_equal(ask(session, n, lora_scales=0 * scales[:n]), wanted)
        np.testing.assert_array_equal(
            session.step(tokens_of(CONFIG, n)[-1:], [n - 1], [0], [0], lora_scales=[[0.0]]), wanted
        )


@pytest.mark.parametrize("activations", ["int8", "f32"])
def test_nan_in_a_pair_makes_the_training_loss_nan(model, activations):
    made = model(activations)
    ranks = {(layer, slot): (2, 1.0) for layer in (0, 1) for slot in range(7)}
    ids = tokens_of(CONFIG, 20).astype(np.int32)
    for checkpointing in (False, True):
        kind = "f32" if activations == "f32" else "int16"
        step = kernels.trainstep.TrainStep(made.weights, ranks, 32, 2, kind, checkpointing)
        ordinary = 0.05 * np.random.default_rng(1).normal(size=step.params.size).astype(np.float32)
        for layer, slot, _, _, _, at_a, at_b in step.layout:
            for at in (at_a + 3, at_b + 3):
                for value in (np.nan, np.inf):
                    step.params[:] = ordinary
                    step.params[at] = value
                    loss = step.run(ids, np.array([0, 20], np.int32), np.roll(ids, -1), 1.0)
                    assert not np.isfinite(loss), (layer, SLOTS[slot], at, value)
        step.params[:] = ordinary
        assert np.isfinite(step.run(ids, np.array([0, 20], np.int32), np.roll(ids, -1), 1.0))


def test_an_adapter_s_file_with_nan_is_refused(model):
    from llamacy.formats.adapter import Adapter
    from llamacy.formats.lora import LoraPair

    a, b, _ = pair_for((0, 0), b_value=np.nan)
    with pytest.raises(LlamacyError, match=r"blk\.0\.attn_q\.weight"):
        model().add_adapter(Adapter("llama", {"blk.0.attn_q.weight": LoraPair(a, b, 1.0)}, 4.0))
