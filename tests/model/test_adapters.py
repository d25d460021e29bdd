"""Adapters at run time against the float64 twin: several at once, with scales, per token; another model's refused."""

import numpy as np
import pytest

from llamacy.errors import LlamacyError
from llamacy.formats.adapter import FORMATS, load_adapter, save_adapter
from llamacy.formats.lora import Adapter, LoraPair
from llamacy.kernels.reference import layers
from llamacy.kernels.reference import model as twin
from llamacy.model import load_model
from tests.model.test_forward import assert_close
from tests.model.tiny import CONFIG, logits_of, tokens_of, write_llama

TOKENS = tokens_of(CONFIG, 19)


def adapter(rank, seed, scale=0.5, only=""):
    pairs = {}
    for name, (a, b) in twin.random_lora(CONFIG, rank, seed).items():
        if only in name:
            pairs[name] = LoraPair(a.astype(np.float32), b.astype(np.float32), scale)
    return Adapter("llama", pairs, scale * rank, path="an.gguf")


def twin_logits(exact, adapters, scales, monkeypatch):
    """Logits (T, V) with several adapters; scales (T, n_adapters) on top of the pairs' own."""

    class Adapted(twin._Linears):
        def forward(self, name, x):
            y = super().forward(name, x)
            for each, scale in zip(adapters, np.transpose(scales), strict=True):
                if name in each.pairs:
                    pair = each.pairs[name]
                    y = y + layers.low_rank(x, pair.a, pair.b, scale * pair.scale)
            return y

    with monkeypatch.context() as patch:
        patch.setattr(twin, "_Linears", Adapted)
        return twin.forward(CONFIG, exact, TOKENS)


@pytest.fixture
def base(tmp_path):
    """(Model, exact weights) with f32 activations and no adapter yet."""
    exact = write_llama(tmp_path / "tiny.gguf", CONFIG, twin.random_weights(CONFIG, 20), "Q4_1")
    return load_model(tmp_path / "tiny.gguf", activations="f32", threads=2), exact


@pytest.mark.parametrize("rank", [1, 4, 16, 33])
def test_one_adapter_of_any_rank(base, monkeypatch, rank):
    (model, exact), one = base, adapter(rank, 5)
    model.add_adapter(one, 0.7)
    wanted = twin_logits(exact, [one], np.full((len(TOKENS), 1), 0.7), monkeypatch)
    assert_close(logits_of(model, TOKENS), wanted, 2e-5)


def test_several_adapters_add_up_each_with_its_scale(base, monkeypatch):
    (model, exact), adapters = base, [adapter(4, 5), adapter(8, 6, only="attn_v"), adapter(3, 7, only="blk.1.ffn")]
    plain = logits_of(model, TOKENS)
    scales = [1.0, -0.5, 2.0]
    for i, (each, scale) in enumerate(zip(adapters, scales, strict=True)):
        assert model.add_adapter(each, scale) == i
    wanted = twin_logits(exact, adapters, np.tile(scales, (len(TOKENS), 1)), monkeypatch)
    assert_close(logits_of(model, TOKENS), wanted, 2e-5)
    assert np.abs(wanted - plain).max() > 0.1
    for i in range(3):
        model.set_adapter_scale(i, 0.0)
    np.testing.assert_array_equal(logits_of(model, TOKENS), plain)


def test_each_token_may_have_scales_of_its_own(base, monkeypatch):
    (model, exact), adapters = base, [adapter(4, 5), adapter(8, 6)]
    for each in adapters:
        model.add_adapter(each)
    scales = np.random.default_rng(1).uniform(-1, 1, (len(TOKENS), 2)).astype(np.float32)
    wanted, n = twin_logits(exact, adapters, scales, monkeypatch), len(TOKENS)
    assert_close(logits_of(model, TOKENS, lora_scales=scales), wanted, 2e-5)
    some = [n - 1, 3, 0]
    found = model.new_session(1, 64).step(TOKENS, np.arange(n), np.zeros(n, int), some, scales)
    assert_close(found, wanted[some], 2e-5)


def test_a_slot_without_adapter_is_not_touched_by_its_neighbour_s(base):
    model, _ = base
    plain = logits_of(model, TOKENS)
    model.add_adapter(adapter(4, 5))
    n, scales = len(TOKENS), np.repeat(np.array([[0.0], [1.0]], np.float32), len(TOKENS), axis=0)
    both = model.new_session(2, 64).step(
        np.r_[TOKENS, TOKENS], np.r_[:n, :n], np.repeat([0, 1], n), np.arange(2 * n), scales
    )
    np.testing.assert_array_equal(both[:n], plain)
    np.testing.assert_array_equal(both[n:], logits_of(model, TOKENS))


@pytest.mark.parametrize("activations", ["f32", "int8"])
def test_threads_and_batches_change_nothing(tmp_path, activations):
    write_llama(tmp_path / "tiny.gguf", CONFIG, twin.random_weights(CONFIG, 20), "Q4_1")
    found = []
    for threads in (1, 2, 3):
        model = load_model(tmp_path / "tiny.gguf", activations=activations, threads=threads)
        model.add_adapter(adapter(4, 5))
        model.add_adapter(adapter(20, 6))
        found.append(logits_of(model, TOKENS))
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])
    session = model.new_session(1, 64)
    alone = [session.step([token], [i], [0], [0])[0] for i, token in enumerate(TOKENS)]
    np.testing.assert_array_equal(alone, found[0])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"blk.2.attn_q.weight": (64, 64)}, "blk.2.attn_q.weight, which .*tiny.gguf does not have"),
        ({"blk.0.attn_k.weight": (64, 64)}, "64 x 64 here, 32 x 64 in .*tiny.gguf"),
        ({"blk.0.ffn_up.weight": (96, 32)}, "96 x 32 here, 96 x 64 in"),
        ({"blk.0.what.weight": (64, 64)}, "blk.0.what.weight"),
    ],
)
def test_another_model_s_adapter_is_refused_and_leaves_nothing_behind(base, change, words):
    model, _ = base
    plain = logits_of(model, TOKENS)
    (name, (n_out, n_in)), good = *change.items(), adapter(4, 5)
    good.pairs[name] = LoraPair(np.ones((4, n_in), np.float32), np.ones((n_out, 4), np.float32))
    with pytest.raises(LlamacyError, match=f"an.gguf: .*{words}"):
        model.add_adapter(good)
    assert model.adapters == []
    np.testing.assert_array_equal(logits_of(model, TOKENS), plain)


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_does_the_same(base, tmp_path, format):
    model, one = base[0], adapter(4, 5)
    save_adapter(tmp_path / "a", one, format, model.metadata)
    model.add_adapter(one, 0.7)
    wanted = logits_of(model, TOKENS)
    model.set_adapter_scale(0, 0.0)
    model.add_adapter(load_adapter(tmp_path / "a"), 0.7)
    np.testing.assert_array_equal(logits_of(model, TOKENS), wanted)


def test_another_family_s_adapter_is_refused(base):
    other = adapter(4, 5)
    other.architecture = "gemma"
    with pytest.raises(LlamacyError, match="'gemma', the model is 'llama'"):
        base[0].add_adapter(other)


def test_norms_of_several_adapters_add_up_each_with_its_scale(base):
    """In any order of changes; with the scale 0 of all, the file's own norms are back bit for bit."""
    model, exact = base
    plain, deltas = logits_of(model, TOKENS), {}
    for i, name in enumerate(["blk.1.ffn_norm.weight", "output_norm.weight"]):
        deltas[name] = [twin.uniform((seed, i), exact[name].shape).astype(np.float32) / 4 for seed in (1, 2, 3)]
    for i in range(3):
        # the third shifts one of the two only
        norms = {name: each[i] for name, each in deltas.items() if i < 2 or name == "output_norm.weight"}
        model.add_adapter(Adapter("llama", {}, 1.0, norms=norms), 9.0)
    for scales in ([0.5, -1.0, 2.0], [2.0, 0.25, 0.0]):
        for index in (1, 0, 2):
            model.set_adapter_scale(index, scales[index])
        weights = dict(exact)
        for name, each in deltas.items():
            n = 3 if name == "output_norm.weight" else 2
            weights[name] = exact[name] + sum(scale * delta for scale, delta in zip(scales[:n], each, strict=False))
        wanted = twin.forward(CONFIG, weights, TOKENS)
        assert_close(logits_of(model, TOKENS), wanted, 2e-5)
        assert np.abs(wanted - plain).max() > 0.1
    for index in range(3):
        model.set_adapter_scale(index, 0.0)
    np.testing.assert_array_equal(logits_of(model, TOKENS), plain)
