"""DoRA adapters at run time: several at once, with scales, per token, on fused matrices and on the output, against the
float64 twin of the merged model."""

import numpy as np
import pytest

from llamacy.errors import LlamacyError
from llamacy.formats.lora import Adapter, LoraPair
from llamacy.kernels.reference import layers
from llamacy.kernels.reference import model as twin
from llamacy.kernels.reference.experts import unstacked
from llamacy.model import load_model
from tests.model.test_adapters import adapter as plain_adapter
from tests.model.test_forward import assert_close
from tests.model.test_fused import EVEN, write_phi3
from tests.model.tiny import CONFIG, logits_of, tokens_of, write_llama
from tests.train.test_experts import CONFIGS as EXPERTS

TOKENS = tokens_of(CONFIG, 19)


def dora_adapter(config, weights, rank, seed, only="", family="llama", output=False):
    """An Adapter with magnitudes around the lengths of its rows; of each matrix one is zero, one below."""
    pairs, rng = {}, np.random.default_rng(seed)
    found = twin.random_lora(config, rank, seed)
    if output:
        shape = weights["output.weight"].shape
        found["output.weight"] = rng.normal(0, 0.2, (rank, shape[1])), rng.normal(0, 0.2, (shape[0], rank))
    for name, (a, b) in found.items():
        if only in name:
            m = layers.row_lengths(weights[name], a, b, 0.5) * rng.uniform(0.5, 1.5, len(b))
            m[:2] *= [0, -1]
            pairs[name] = LoraPair(*(x.astype(np.float32) for x in (a, b)), 0.5, m.astype(np.float32))
    return Adapter(family, pairs, 0.5 * rank, path="a.dora")


def merged(weights, adapters, scales):
    """The weights with all adapters' changes of the model's own added, times the users' scales."""
    found = dict(weights)
    for each, scale in zip(adapters, scales, strict=True):
        for name, pair in each.pairs.items():
            w = np.asarray(weights[name], np.float64)
            v = w + pair.scale * pair.b.astype(np.float64) @ pair.a
            if pair.magnitude is not None:
                v *= (pair.magnitude / np.linalg.norm(v, axis=1))[:, None]
            found[name] = found[name] + scale * (v - w)
    return found


@pytest.fixture
def base(tmp_path):
    """(Model, exact weights) with f32 activations and no adapter yet."""
    exact = write_llama(tmp_path / "tiny.gguf", CONFIG, twin.random_weights(CONFIG, 20), "Q4_1")
    return load_model(tmp_path / "tiny.gguf", activations="f32", threads=2), exact


@pytest.mark.parametrize("rank", [1, 15, 16, 33])
def test_one_adapter_of_any_rank(base, rank):
    (model, exact), one = base, dora_adapter(CONFIG, base[1], rank, 5, output="output.weight" in base[1])
    index = model.add_adapter(one, 0.7)
    assert_close(logits_of(model, TOKENS), twin.forward(CONFIG, merged(exact, [one], [0.7]), TOKENS), 2e-5)
    model.set_adapter_scale(index, 1.0)
    assert_close(logits_of(model, TOKENS), twin.forward(CONFIG, merged(exact, [one], [1.0]), TOKENS), 2e-5)


def test_several_add_up_beside_a_plain_one_and_zero_switches_them_off(base):
    model, exact = base
    plain = logits_of(model, TOKENS)
    adapters = [
        dora_adapter(CONFIG, exact, 4, 5),
        plain_adapter(8, 6, only="attn_v"),
        dora_adapter(CONFIG, exact, 3, 7, "blk.1.ffn"),
    ]
    scales = [1.0, -0.5, 0.4]
    for each, scale in zip(adapters, scales, strict=True):
        model.add_adapter(each, scale)
    wanted = twin.forward(CONFIG, merged(exact, adapters, scales), TOKENS)
    assert_close(logits_of(model, TOKENS), wanted, 2e-5)
    assert np.abs(wanted - plain).max() > 0.1
    model.remove_adapter(1)
    assert_close(logits_of(model, TOKENS), twin.forward(CONFIG, merged(exact, adapters, [1.0, 0.0, 0.4]), TOKENS), 2e-5)
    for i in range(3):
        model.set_adapter_scale(i, 0.0)
    np.testing.assert_array_equal(logits_of(model, TOKENS), plain)


def test_each_token_may_have_scales_of_its_own(base):
    """A token's own result depends on its own scales alone where it stands first in a sequence of its own."""
    model, exact = base
    adapters = [dora_adapter(CONFIG, exact, 4, 5), dora_adapter(CONFIG, exact, 16, 6)]
    for each in adapters:
        model.add_adapter(each)
    scales = np.random.default_rng(1).uniform(-1, 1, (5, 2)).astype(np.float32)
    session = model.new_session(5, 16)
    found = session.step(TOKENS[:5], np.zeros(5, int), np.arange(5), np.arange(5), lora_scales=scales)
    for i in range(5):
        wanted = twin.forward(CONFIG, merged(exact, adapters, scales[i]), TOKENS[i : i + 1])
        assert_close(found[i : i + 1], wanted, 2e-5)


def test_on_each_expert_and_on_the_one_that_all_share(tmp_path):
    config = EXPERTS["shared"]
    weights = {name: np.asarray(value) for name, value in twin.random_weights(config, 20).items()}
    write_llama(tmp_path / "m.gguf", config, weights, "F32")
    model, apart = load_model(tmp_path / "m.gguf", activations="f32", threads=2), weights | unstacked(weights)
    one = dora_adapter(config, apart, 4, 5)
    assert {"blk.1.ffn_up.3.weight", "blk.0.ffn_down_shexp.weight"} < one.pairs.keys()
    model.add_adapter(one)
    found, wanted = merged(apart, [one], [1.0]), dict(weights)
    for name in weights:
        if name.endswith("_exps.weight"):
            names = [name.replace("_exps", f".{e}") for e in range(config.n_expert)]
            wanted[name] = np.stack([found[each] for each in names])
        else:
            wanted[name] = found[name]
    tokens = tokens_of(config, 19)
    assert_close(logits_of(model, tokens), twin.forward(config, wanted, tokens), 2e-5)


def test_a_fused_matrix_has_magnitudes_of_all_its_rows(tmp_path):
    exact = write_phi3(tmp_path / "m.gguf", EVEN, twin.random_weights(EVEN, 20))
    model, one = (
        load_model(tmp_path / "m.gguf", activations="f32", threads=2),
        dora_adapter(EVEN, exact, 4, 5, family="phi3"),
    )
    model.add_adapter(one)
    assert_close(logits_of(model, TOKENS), twin.forward(EVEN, merged(exact, [one], [1.0]), TOKENS), 2e-5)


def test_magnitudes_of_another_model_and_of_the_embedding_are_refused(base):
    model, exact = base
    one = dora_adapter(CONFIG, exact, 4, 5)
    name = next(iter(one.pairs))
    one.pairs[name].magnitude = np.ones(3, np.float32)
    with pytest.raises(LlamacyError, match="a.dora: .*3 magnitudes"):
        model.add_adapter(one)
    n_vocab, n_embd = exact["token_embd.weight"].shape
    pair = LoraPair(
        np.ones((2, n_embd), np.float32), np.ones((n_vocab, 2), np.float32), 1.0, np.ones(n_embd, np.float32)
    )
    with pytest.raises(LlamacyError, match="a.dora: DoRA of the embedding"):
        model.add_adapter(Adapter("llama", {"token_embd.weight": pair}, path="a.dora"))
