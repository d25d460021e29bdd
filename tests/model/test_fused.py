"""Matrices fused of several, attn_qkv and a ffn_up that begins with gate's rows: one to files, adapters and mixes.

The float64 twin computes them as one matrix; here they are several views of it.
"""

from dataclasses import replace

import numpy as np
import pytest

from llamacy import kernels
from llamacy.cli import export_lora, quantize
from llamacy.errors import LlamacyError
from llamacy.formats.adapter import FORMATS, load_adapter, save_adapter
from llamacy.formats.lora import Adapter, LoraPair
from llamacy.formats.model_file import open_model
from llamacy.kernels.reference import model as twin
from llamacy.model import load_model
from llamacy.model.config import read_config
from llamacy.model.weights import apart, kept_rows, places_of
from llamacy.train.lora import check_targets
from llamacy.train.options import TARGETS, TrainOptions, target_modules
from llamacy.train.samples import Sample
from llamacy.train.trainer import Trainer
from tests.model import tiny
from tests.model.tiny import logits_of, tokens_of, use_isa

# whole blocks for any type; and heads of 12, 24 keys, 44 gates: no part ends with a tile
EVEN = replace(tiny.CONFIG, fused=True, rope_layout="halves")
ODD = replace(EVEN, n_embd=48, n_ff=44)
FORWARD = {"rtol": 0, "atol": 2e-5}


def write_phi3(path, config, weights, type_name="F32"):
    """Write a small phi3; return its exact weights."""
    keys = {key: value for key, value in tiny.metadata(config).items() if key.startswith("llama.")}
    change = dict.fromkeys(keys) | {key.replace("llama.", "phi3."): value for key, value in keys.items()}
    return tiny.write_llama(path, config, weights, type_name, change=change | {"general.architecture": "phi3"})


@pytest.fixture(params=[EVEN, ODD], ids=["even", "odd"])
def phi3(request, tmp_path):
    """(path, the twin's config, exact weights)"""
    weights = twin.random_weights(request.param, 20)
    return tmp_path / "m.gguf", request.param, write_phi3(tmp_path / "m.gguf", request.param, weights)


def adapter_of(config, rank=4, scale=0.5):
    pairs = twin.random_lora(config, rank, 5)
    pairs = {name: LoraPair(a.astype(np.float32), b.astype(np.float32), scale) for name, (a, b) in pairs.items()}
    return Adapter("phi3", pairs, scale * rank)


def test_the_parts_of_a_file_s_matrices(phi3):
    path, config, _ = phi3
    with open_model(path) as file:
        found = read_config(file)
    q, kv = config.n_embd, config.n_head_kv * config.head_dim
    assert found.part_rows("attn_qkv") == {"attn_q": q, "attn_k": kv, "attn_v": kv}
    assert found.part_rows("ffn_up") == {"ffn_gate": config.n_ff, "ffn_up": config.n_ff}
    assert found.part_rows("ffn_down") == {"ffn_down": q}
    assert found.shapes["attn_qkv"] == (q + 2 * kv, q) and list(found.shapes) == list(twin.linear_shapes(config))


def test_parts_begin_at_tiles():
    rows = {"a": 20, "b": 16, "c": 3}
    assert places_of(rows) == {"a": 0, "b": 32, "c": 48}
    values = np.arange(1, 40)
    wide = apart(values, rows)
    assert wide.shape == (51,) and wide.sum() == values.sum()
    np.testing.assert_array_equal(wide[kept_rows(rows)], values)
    np.testing.assert_array_equal(wide[48:], values[36:])
    even = {"a": 16, "b": 5}
    assert apart(values[:21], even) is not values and apart(v := values[:21], even) is v


@pytest.mark.parametrize("isa", kernels.available())
@pytest.mark.parametrize("kind", ["F32", "Q4_K", "Q8_0"])
def test_a_part_of_a_matrix_gives_its_rows_products(isa, kind):
    matmul = kernels.load("matmul", isa)
    rng = np.random.default_rng(1)
    values, x = rng.normal(size=(50, 256)).astype(np.float32), rng.normal(size=(3, 256)).astype(np.float32)
    rows = kernels.quants.quantize(values, matmul.types()[kind])
    whole = matmul.PackedMatrix(rows, matmul.types()[kind], 256)
    for precision in ("f32", "int8"):
        wanted = np.array(matmul.matmul(whole, x, precision, 1))
        for first, n in ((0, 16), (16, 34), (32, 5)):
            found = matmul.matmul(whole.part(first, n), x, precision, 1)
            np.testing.assert_array_equal(found, wanted[:, first : first + n])
    for wrong in ((8, 16), (48, 3), (-16, 16), (0, 0)):
        with pytest.raises(ValueError, match="wanted from a multiple of 16 on"):
            whole.part(*wrong)


@pytest.mark.parametrize("isa", kernels.available())
def test_logits_are_the_twin_s(phi3, isa, monkeypatch):
    use_isa(monkeypatch, isa)
    path, config, exact = phi3
    model, tokens = load_model(path, activations="f32", threads=2), tokens_of(config, 60)
    wanted = twin.forward(config, exact, tokens)
    np.testing.assert_allclose(logits_of(model, tokens), wanted, rtol=0, atol=2e-5 * np.abs(wanted).max())
    adapter = adapter_of(config)
    model.add_adapter(adapter)
    pairs = {name: (pair.a, pair.b) for name, pair in adapter.pairs.items()}
    wanted = twin.forward(config, exact, tokens, lora=pairs, scale=0.5)
    found = logits_of(model, tokens)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-5 * np.abs(wanted).max())
    session, n = model.new_session(1, 64), np.arange(60)
    one_by_one = [session.step(tokens[i : i + 1], n[i : i + 1], [0], [0])[0] for i in n]
    np.testing.assert_array_equal(one_by_one, found)


@pytest.mark.parametrize("how", [{}, {"checkpointing": True}, {"lora_dropout": 0.3}], ids=str)
def test_training_has_one_pair_for_all_parts(phi3, how):
    path, config, exact = phi3
    model, tokens = load_model(path, activations="f32", threads=2), tokens_of(config, 70)
    trainer = Trainer(model, TrainOptions(n_ctx=64, **how))
    start = adapter_of(config, scale=2.0)
    trainer.init_lora(4, 8.0, tuple(TARGETS), 1, start)
    assert trainer.adapter().pairs.keys() == start.pairs.keys() == twin.random_lora(config, 4, 5).keys()
    for name, pair in trainer.adapter().pairs.items():
        np.testing.assert_array_equal(pair.a, start.pairs[name].a)
        np.testing.assert_array_equal(pair.b, start.pairs[name].b)
    parts = np.array_split(tokens.astype(np.int32), 2)
    batch = [Sample(part, np.arange(len(part)) > 0) for part in parts]
    result, gradients = trainer.probe(batch), trainer.gradients()
    if "lora_dropout" in how:
        assert_slopes(trainer, batch, gradients)
        return
    segments = np.repeat([0, 1], [len(part) for part in parts])
    pairs = {name: (pair.a, pair.b) for name, pair in start.pairs.items()}
    targets = twin.next_token_targets(tokens, segments)
    loss, wanted, _ = twin.loss_and_gradients(config, exact, tokens, targets, segments, pairs, 2.0)
    assert result.loss == pytest.approx(loss, rel=1e-5)
    assert gradients.keys() == wanted.keys()
    for name, pair in wanted.items():
        for found, exactly in zip(gradients[name], pair, strict=True):
            np.testing.assert_allclose(found, exactly, rtol=0, atol=1e-4 * np.abs(exactly).max(), err_msg=name)
    # the gaps between parts stay what they are
    norm = np.sqrt(sum(np.sum(np.square(x, dtype=np.float64)) for pair in gradients.values() for x in pair))
    assert result.grad_norm == pytest.approx(norm, rel=1e-6)


def assert_slopes(trainer, batch, gradients, h=1e-2):
    """With the same dropped inputs, the loss rises along each pair's gradient as much as that says."""
    for name, a, b, kept in trainer._views(trainer._pass.params):
        if "blk.0.attn_qkv" not in name and "blk.1.ffn_up" not in name:
            continue
        for values, columns, gradient in ((a, slice(None), gradients[name][0]), (b, kept, gradients[name][1].T)):
            old, step = values.copy(), h * gradient / np.linalg.norm(gradient)
            losses = []
            for sign in (1, -1):
                values[:, columns] = old[:, columns] + sign * step
                losses.append(trainer.probe(batch).loss)
            values[:] = old
            assert (losses[0] - losses[1]) / (2 * h) == pytest.approx(np.linalg.norm(gradient), rel=2e-2), name


def test_a_trained_step_is_the_same_for_any_number_of_threads(phi3):
    path, config, _ = phi3
    found = []
    for threads in (1, 3):
        trainer = Trainer(load_model(path, threads=threads), TrainOptions(n_ctx=64))
        trainer.init_lora(4, 8.0, tuple(TARGETS), 1, adapter_of(config, scale=2.0))
        ids = tokens_of(config, 50).astype(np.int32)
        trainer.step([[Sample(ids, np.arange(50) > 0)]], 1e-3)
        found.append(trainer._pass.params.copy())
    np.testing.assert_array_equal(*found)


# ---- names ----


def test_names_of_fused_matrices():
    # a shared expert, where a model has one, is called as the MLP is
    assert [name for name in target_modules("qkv_proj,gate_up_proj") if "shexp" not in name] == ["ffn_up", "attn_qkv"]
    assert target_modules("attn_qkv") == target_modules("wqkv") == ("attn_qkv",)
    assert {"ffn_up", "attn_qkv"} < set(target_modules("all-linear"))


def test_parts_that_a_model_does_not_have_alone(phi3):
    path, _, _ = phi3
    with open_model(path) as file:
        config = read_config(file)
    check_targets(config, TrainOptions())
    check_targets(config, TrainOptions(targets=("attn_qkv", "ffn_down"), ranks=(("attn_qkv", 2), ("ffn_up", 3))))
    words = "phi3 models have no attn_k of its own, its rows are in attn_qkv; wanted some of attn_qkv, attn_output, "
    with pytest.raises(LlamacyError, match=f"--target-modules: {words}"):
        check_targets(config, TrainOptions(targets=("attn_output", "attn_k")))
    with pytest.raises(LlamacyError, match=f"--rank-...: {words}"):
        check_targets(config, TrainOptions(ranks=(("attn_k", 2),)))


@pytest.mark.parametrize("form", FORMATS)
def test_adapters_in_all_formats(phi3, form, tmp_path):
    path, config, _ = phi3
    with open_model(path) as file:
        base = dict(file.metadata)
    adapter = adapter_of(config)
    assert save_adapter(tmp_path / "a", adapter, form, base) == []
    found = load_adapter(tmp_path / "a", base)
    assert found.pairs.keys() == adapter.pairs.keys()
    for name, pair in adapter.pairs.items():
        np.testing.assert_array_equal(found.pairs[name].a, pair.a)
        np.testing.assert_array_equal(found.pairs[name].b, pair.b)
        assert found.pairs[name].scale == pytest.approx(pair.scale)


def test_an_adapter_of_parts_is_refused_by_name(phi3):
    path, config, _ = phi3
    model = load_model(path, threads=1)
    pair = LoraPair(np.ones((2, config.n_embd), np.float32), np.ones((config.n_embd, 2), np.float32), 1.0)
    with pytest.raises(LlamacyError, match="'?blk.0.attn_q.weight'?, which .* does not have"):
        model.add_adapter(Adapter("phi3", {"blk.0.attn_q.weight": pair}, 2.0))


def test_merged_and_quantised_as_one_matrix(tmp_path):
    exact = write_phi3(tmp_path / "m.gguf", EVEN, twin.random_weights(EVEN, 20))
    adapter, tokens = adapter_of(EVEN), tokens_of(EVEN, 40)
    save_adapter(tmp_path / "a.gguf", adapter)
    words = ["-m", tmp_path / "m.gguf", "--lora", tmp_path / "a.gguf", "-o", tmp_path / "merged.gguf"]
    assert export_lora.main([str(word) for word in words]) == 0
    pairs = {name: (pair.a, pair.b) for name, pair in adapter.pairs.items()}
    wanted = twin.forward(EVEN, exact, tokens, lora=pairs, scale=0.5)
    found = logits_of(load_model(tmp_path / "merged.gguf", activations="f32", threads=1), tokens)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-5 * np.abs(wanted).max())
    assert quantize.main([str(tmp_path / "m.gguf"), str(tmp_path / "q.gguf"), "Q8_0"]) == 0
    with open_model(tmp_path / "q.gguf") as file, open_model(tmp_path / "m.gguf") as source:
        assert list(file.tensors) == list(source.tensors)
        assert file.tensors["blk.1.attn_qkv.weight"].type.name == "Q8_0"
        assert file.tensors["blk.1.attn_qkv.weight"].shape == (EVEN.n_embd * 2, EVEN.n_embd)
    found = logits_of(load_model(tmp_path / "q.gguf", activations="f32", threads=1), tokens)
    assert np.sqrt(np.mean((found - twin.forward(EVEN, exact, tokens)) ** 2)) < 0.03 * np.std(found)


def test_no_gradient_outside_the_pairs(tmp_path):
    """Rows of keys that end within a tile: what pads them moves neither the norm nor the parameters."""
    config = replace(ODD, fused=False, rope_layout="pairs")
    tiny.write_llama(tmp_path / "m.gguf", config, twin.random_weights(config, 20))
    trainer = Trainer(load_model(tmp_path / "m.gguf", activations="f32", threads=1), TrainOptions(n_ctx=64))
    pairs = twin.random_lora(config, 4, 5).items()
    start = {name: LoraPair(*(x.astype(np.float32) for x in pair), 2.0) for name, pair in pairs}
    trainer.init_lora(4, 8.0, tuple(TARGETS), 1, Adapter("llama", start, 8.0))
    ids = tokens_of(config, 50).astype(np.int32)
    result, gradients = trainer.probe([Sample(ids, np.arange(50) > 0)]), trainer.gradients()
    norm = np.sqrt(sum(np.sum(np.square(x, dtype=np.float64)) for pair in gradients.values() for x in pair))
    assert result.grad_norm == pytest.approx(norm, rel=1e-6)
