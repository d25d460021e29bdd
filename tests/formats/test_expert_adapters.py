"""Adapters with pairs on experts: llama.cpp's stacked tensors, PEFT's and mlx-lm's modules, merged models."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from llamacy.errors import LlamacyError
from llamacy.formats.adapter import Adapter, LoraPair, load_adapter, save_adapter
from llamacy.formats.gguf_writer import write_gguf
from llamacy.formats.merge import merged
from llamacy.formats.model_file import open_model
from llamacy.formats.types import by_name
from llamacy.kernels.reference import model as twin
from llamacy.kernels.reference import quants
from llamacy.model import load_model
from tests.model.tiny import logits_of, tokens_of, write_llama

FIVE = twin.Config(
    n_vocab=97, n_embd=64, n_head=4, n_head_kv=2, n_ff=96, n_layer=2, n_expert=5, n_used=2, n_ff_expert=32
)
F32 = by_name("F32")


def adapter_of(rank_of=lambda name: 4, scale=0.5, keep=lambda name: True):
    pairs = {}
    for rank in (2, 3, 4):
        for name, (a, b) in twin.random_lora(FIVE, rank, 7).items():
            if rank_of(name) == rank and keep(name):
                pairs[name] = LoraPair(a.astype(np.float32), b.astype(np.float32), scale)
    return Adapter("llama", pairs, 4 * scale, {"llama.attention.head_count": 4, "llama.attention.head_count_kv": 2})


def deltas(adapter):
    """{base tensor: scale B A} where that is not zero"""
    found = {name: pair.scale * pair.b.astype(float) @ pair.a for name, pair in adapter.pairs.items()}
    return {name: delta for name, delta in found.items() if delta.any()}


def assert_same(found, wanted):
    found, wanted = deltas(found), deltas(wanted)
    assert found.keys() == wanted.keys()
    for name in wanted:
        np.testing.assert_allclose(found[name], wanted[name], atol=1e-6)


def test_gguf_stacks_the_experts_as_llama_cpp_does(tmp_path):
    adapter = adapter_of()
    assert save_adapter(tmp_path / "a.gguf", adapter) == []
    with open_model(tmp_path / "a.gguf") as file:
        shapes = {name: info.shape for name, info in file.tensors.items() if "blk.0.ffn" in name}
        a = np.array(file.data("blk.0.ffn_up_exps.weight.lora_a")).view(np.float32).reshape(5, 4, 64)
        b = np.array(file.data("blk.0.ffn_up_exps.weight.lora_b")).view(np.float32).reshape(5, 32, 4)
    assert shapes == {
        "blk.0.ffn_gate_exps.weight.lora_a": (5, 4, 64), "blk.0.ffn_gate_exps.weight.lora_b": (5, 32, 4),
        "blk.0.ffn_up_exps.weight.lora_a": (5, 4, 64), "blk.0.ffn_up_exps.weight.lora_b": (5, 32, 4),
        "blk.0.ffn_down_exps.weight.lora_a": (5, 4, 32), "blk.0.ffn_down_exps.weight.lora_b": (5, 64, 4),
    }  # fmt: skip
    for e in range(5):
        np.testing.assert_array_equal(a[e], adapter.pairs[f"blk.0.ffn_up.{e}.weight"].a)
        np.testing.assert_array_equal(b[e], adapter.pairs[f"blk.0.ffn_up.{e}.weight"].b)
    assert_same(load_adapter(tmp_path / "a.gguf"), adapter)


def test_experts_of_other_ranks_and_experts_without_a_pair(tmp_path):
    adapter = adapter_of(lambda name: 2 if ".1.weight" in name else 3, keep=lambda name: ".4.weight" not in name)
    save_adapter(tmp_path / "a.gguf", adapter, base={"general.architecture": "llama", "llama.expert_count": 5})
    with open_model(tmp_path / "a.gguf") as file:
        assert file.tensors["blk.1.ffn_down_exps.weight.lora_a"].shape == (5, 3, 32)
    assert_same(load_adapter(tmp_path / "a.gguf"), adapter)


def test_peft_names_each_expert(tmp_path):
    adapter = adapter_of(keep=lambda name: "ffn" in name)
    assert save_adapter(tmp_path / "p", adapter, "peft") == []
    tensors = load_file(tmp_path / "p" / "adapter_model.safetensors")
    name = "base_model.model.model.layers.1.block_sparse_moe.experts.3.w2.lora_B.weight"
    np.testing.assert_array_equal(tensors[name], adapter.pairs["blk.1.ffn_down.3.weight"].b)
    assert len(tensors) == 2 * 2 * 5 * 3
    assert_same(load_adapter(tmp_path / "p"), adapter)


@pytest.mark.parametrize("family", ["qwen3moe", "olmoe"])
def test_peft_names_of_other_families(family, tmp_path):
    adapter = adapter_of(keep=lambda name: "ffn" in name)
    adapter.architecture = family
    save_adapter(tmp_path / "p", adapter, "peft")
    tensors = load_file(tmp_path / "p" / "adapter_model.safetensors")
    assert "base_model.model.model.layers.0.mlp.experts.4.gate_proj.lora_A.weight" in tensors
    assert_same(load_adapter(tmp_path / "p"), adapter)


@pytest.mark.parametrize("kind", ["F32", "Q8_0"])
def test_merged_into_stacked_tensors(kind, tmp_path):
    exact = write_llama(tmp_path / "base.gguf", FIVE, twin.random_weights(FIVE, 20), kind)
    adapter = adapter_of()
    with open_model(tmp_path / "base.gguf") as model:
        metadata, tensors = merged(model, [(adapter, 2.0)])
        write_gguf(tmp_path / "out.gguf", metadata, tensors, model.value_types)
    wanted = {name: np.array(values) for name, values in exact.items()}
    for name, delta in deltas(adapter).items():
        layer, part = name.split(".")[1], name.split(".")[2]
        stacked = f"blk.{layer}.{part}_exps.weight"
        if stacked in wanted:
            wanted[stacked][int(name.split(".")[3])] += 2 * delta
        else:
            wanted[name] += 2 * delta
    with open_model(tmp_path / "out.gguf") as out:
        for name, values in wanted.items():
            info = out.tensors[name]
            found = quants.dequantize(info.type.name, np.array(out.data(name)), np.float64).reshape(info.shape)
            np.testing.assert_allclose(found, values, atol=1e-6 if kind == "F32" else np.abs(values).max() / 120)
    if kind == "F32":
        tokens = tokens_of(FIVE, 20)
        model = load_model(tmp_path / "base.gguf", activations="f32", threads=1)
        model.add_adapter(adapter, 2.0)
        merged_logits = logits_of(load_model(tmp_path / "out.gguf", activations="f32", threads=1), tokens)
        np.testing.assert_allclose(logits_of(model, tokens), merged_logits, atol=1e-4)


@pytest.mark.parametrize(
    ("shapes", "word"),
    [
        (((5, 4, 64), (4, 32, 4)), "for experts"),
        (((5, 4, 64), (5, 32, 3)), "for experts"),
        (((5, 0, 64), (5, 32, 0)), "for experts"),
    ],
)
def test_stacks_that_do_not_fit_together(shapes, word, tmp_path):
    tensors = [
        (f"blk.0.ffn_up_exps.weight.lora_{side}", F32, shape, np.zeros(shape, np.float32))
        for side, shape in zip("ab", shapes, strict=True)
    ]
    metadata = {"general.architecture": "llama", "general.type": "adapter", "adapter.type": "lora"}
    write_gguf(tmp_path / "a.gguf", metadata, tensors)
    with pytest.raises(LlamacyError, match=word):
        load_adapter(tmp_path / "a.gguf")


def test_an_expert_that_the_model_does_not_have(tmp_path):
    write_llama(tmp_path / "m.gguf", FIVE, twin.random_weights(FIVE, 20))
    model = load_model(tmp_path / "m.gguf", threads=1)
    pair = LoraPair(np.ones((2, 64), np.float32), np.ones((32, 2), np.float32))
    with pytest.raises(LlamacyError, match=r"adapts blk\.0\.ffn_up\.5\.weight, which .* does not have"):
        model.add_adapter(Adapter("llama", {"blk.0.ffn_up.5.weight": pair}))
    with open_model(tmp_path / "m.gguf") as file, pytest.raises(LlamacyError, match="does not fit"):
        merged(file, [(Adapter("llama", {"blk.0.ffn_up.5.weight": pair}), 1.0)])


def peft_fused(path, adapter, in_turns):
    """Write an adapter's pairs on experts as PEFT's target_parameters do; return what is meant: gate and up share A."""
    tensors, meant = {}, {}
    for layer in range(FIVE.n_layer):
        of = [
            [adapter.pairs[f"blk.{layer}.ffn_{part}.{e}.weight"] for e in range(5)] for part in ("gate", "up", "down")
        ]
        a = np.concatenate([pair.a for pair in of[0]])
        wide = [np.concatenate([gate.b, up.b]) for gate, up in zip(of[0], of[1], strict=True)]
        if in_turns:
            wide = [np.stack([gate.b, up.b], 1).reshape(-1, 4) for gate, up in zip(of[0], of[1], strict=True)]
        name = f"base_model.model.model.layers.{layer}.mlp.experts"
        # (n_out, r, n): the experts innermost; down is the inner wrapper
        tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"] = a, np.stack(wide, 2).reshape(64, -1)
        tensors[f"{name}.base_layer.lora_A.weight"] = np.concatenate([pair.a for pair in of[2]])
        tensors[f"{name}.base_layer.lora_B.weight"] = np.stack([pair.b for pair in of[2]], 2).reshape(64, -1)
        for e in range(5):
            meant |= {f"blk.{layer}.ffn_gate.{e}.weight": of[0][e], f"blk.{layer}.ffn_down.{e}.weight": of[2][e]}
            meant[f"blk.{layer}.ffn_up.{e}.weight"] = LoraPair(of[0][e].a, of[1][e].b, of[1][e].scale)
    path.mkdir()
    save_file({key: np.ascontiguousarray(value) for key, value in tensors.items()}, path / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 2, "target_modules": None}
    config["target_parameters"] = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    (path / "adapter_config.json").write_text(json.dumps(config))
    return Adapter("", meant)


@pytest.mark.parametrize("architecture", ["qwen3moe", "gpt-oss"])
def test_peft_s_stacked_parameters(architecture, tmp_path):
    meant = peft_fused(tmp_path / "p", adapter_of(keep=lambda name: "ffn" in name), architecture == "gpt-oss")
    assert_same(load_adapter(tmp_path / "p").bound({"general.architecture": architecture}), meant)


def test_one_stacked_parameter_is_the_one_that_is_named(tmp_path):
    meant = peft_fused(tmp_path / "p", adapter_of(keep=lambda name: "ffn" in name), False)
    weights = tmp_path / "p" / "adapter_model.safetensors"
    save_file({name: value for name, value in load_file(weights).items() if "base_layer" in name}, weights)
    with pytest.raises(LlamacyError, match="no gate_up_proj and down_proj"):
        load_adapter(tmp_path / "p")
    config = json.loads((tmp_path / "p" / "adapter_config.json").read_text())
    config["target_parameters"] = ["mlp.experts.down_proj"]
    (tmp_path / "p" / "adapter_config.json").write_text(json.dumps(config))
    down = {name: pair for name, pair in meant.pairs.items() if "down" in name}
    assert_same(load_adapter(tmp_path / "p").bound({"general.architecture": "qwen3moe"}), Adapter("", down))
