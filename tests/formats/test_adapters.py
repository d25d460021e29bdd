"""Adapters of every format: the real files, every round trip, and what must be refused by name."""

import json
import math
import os
from dataclasses import replace

import numpy as np
import pytest

from llamacy.errors import LlamacyError, UsageError
from llamacy.formats.adapter import FORMATS, Adapter, LoraPair, adapter_format, load_adapter, save_adapter
from llamacy.formats.gguf_writer import write_gguf
from llamacy.formats.lora import halves_from_paired, paired_from_halves
from llamacy.formats.model_file import open_model
from llamacy.formats.safetensors import write_safetensors
from llamacy.formats.types import by_name

BASE = {
    "general.architecture": "llama",
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
    "llama.block_count": 3,
}
N_EMBD, HEAD_DIM, N_FF, N_VOCAB = 32, 8, 48, 50
SHAPES = {"attn_q": (32, 32), "attn_k": (16, 32), "attn_v": (16, 32), "attn_output": (32, 32)}
SHAPES |= {"ffn_gate": (48, 32), "ffn_up": (48, 32), "ffn_down": (32, 48)}


def pair_of(rng, shape, rank=4, scale=2.0):
    n_out, n_in = shape
    a, b = rng.standard_normal((rank, n_in)), rng.standard_normal((n_out, rank))
    return LoraPair(a.astype(np.float32), b.astype(np.float32), scale)


def sample(rank=4, scale=2.0, layers=range(3), seed=0):
    rng = np.random.default_rng(seed)
    pairs = {
        f"blk.{i}.{name}.weight": pair_of(rng, shape, rank, scale) for i in layers for name, shape in SHAPES.items()
    }
    return Adapter("llama", pairs, scale * rank)


def with_embeddings(adapter):
    rng = np.random.default_rng(7)
    more = {name: pair_of(rng, (N_VOCAB, N_EMBD)) for name in ("token_embd.weight", "output.weight")}
    return replace(adapter, pairs=adapter.pairs | more)


def deltas(adapter):
    """Return name -> scale * B @ A: what an adapter does, however it is written."""
    return {name: pair.scale * (pair.b.astype(float) @ pair.a) for name, pair in adapter.pairs.items()}


def assert_equal(found, wanted, exact=True):
    """Compare the numbers themselves; where a format may write them otherwise, what they do."""
    assert found.pairs.keys() == wanted.pairs.keys()
    if exact:
        for name, pair in wanted.pairs.items():
            np.testing.assert_array_equal(found.pairs[name].a, pair.a, name)
            np.testing.assert_array_equal(found.pairs[name].b, pair.b, name)
            assert found.pairs[name].scale == pytest.approx(pair.scale, rel=1e-6)
        return
    done = deltas(found)
    for name, delta in deltas(wanted).items():
        np.testing.assert_allclose(done[name], delta, rtol=0, atol=1e-5 * np.abs(delta).max())


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("make", [sample, lambda: with_embeddings(sample()), lambda: sample(rank=1, scale=16.0)])
def test_every_format_gives_back_equal_numbers(tmp_path, format, make):
    adapter = make()
    assert save_adapter(tmp_path / "a", adapter, format, BASE) == []
    assert adapter_format(tmp_path / "a") == format
    found = load_adapter(tmp_path / "a", BASE)
    assert_equal(found, adapter)
    assert found.architecture == "llama" and not found.hf_rows and found.alpha == adapter.alpha
    assert all(pair.a.flags.writeable and pair.a.dtype == np.float32 for pair in found.pairs.values())


@pytest.mark.parametrize("first", FORMATS)
@pytest.mark.parametrize("second", FORMATS)
def test_every_pair_of_formats(tmp_path, first, second):
    adapter = with_embeddings(sample())
    save_adapter(tmp_path / "1", adapter, first, BASE)
    save_adapter(tmp_path / "2", load_adapter(tmp_path / "1"), second, BASE)
    save_adapter(tmp_path / "3", load_adapter(tmp_path / "2"), first, BASE)
    assert_equal(load_adapter(tmp_path / "3", BASE), adapter)


@pytest.mark.parametrize("format", FORMATS)
def test_different_ranks_and_scales(tmp_path, format):
    adapter = sample()
    mixed = sample(rank=6, scale=0.7, seed=1)
    adapter.pairs["blk.1.attn_q.weight"] = mixed.pairs["blk.1.attn_q.weight"]
    adapter.pairs["blk.11.attn_v.weight"] = mixed.pairs["blk.2.attn_v.weight"]
    save_adapter(tmp_path / "a", adapter, format, BASE)
    found = load_adapter(tmp_path / "a", BASE)
    # PEFT names exceptions and keeps the numbers; the others fold the scale into B, mlx-lm fills up the rank too.
    assert_equal(found, adapter, exact=format == "peft")


@pytest.mark.parametrize("format", FORMATS)
def test_rank_stabilised_scales(tmp_path, format):
    adapter = sample(rank=8, scale=16 / math.sqrt(8))
    save_adapter(tmp_path / "a", adapter, format, BASE)
    # ggla's header has whole numbers only.
    assert_equal(load_adapter(tmp_path / "a", BASE), adapter, exact=format != "ggla")


def test_alpha_zero_means_one(tmp_path):
    adapter = replace(sample(scale=1.0), alpha=0.0)
    save_adapter(tmp_path / "a.gguf", adapter)
    with open_model(tmp_path / "a.gguf") as file:
        assert file.metadata["adapter.lora.alpha"] == 0.0
    assert {pair.scale for pair in load_adapter(tmp_path / "a.gguf").pairs.values()} == {1.0}


def test_gguf_keeps_metadata(tmp_path):
    adapter = replace(sample(), metadata={"llamacy.template": "chatml", "general.name": "é"})
    save_adapter(tmp_path / "a.gguf", adapter)
    assert load_adapter(tmp_path / "a.gguf").metadata == adapter.metadata


def test_norms_survive_in_ggla_and_are_named_elsewhere(tmp_path):
    adapter = sample()
    adapter.norms["blk.0.attn_norm.weight"] = np.linspace(-1, 1, N_EMBD, dtype=np.float32)
    assert save_adapter(tmp_path / "a", adapter, "ggla") == []
    found = load_adapter(tmp_path / "a")
    np.testing.assert_allclose(
        found.norms["blk.0.attn_norm.weight"], adapter.norms["blk.0.attn_norm.weight"], rtol=1e-6
    )
    for format in ("gguf", "peft", "mlx"):
        assert save_adapter(tmp_path / format, adapter, format, BASE) == ["blk.0.attn_norm.weight"]


# The real files.


def test_the_real_ggla(data, tmp_path):
    adapter = load_adapter(data / "tiny-adapter-ggla.bin")
    with open_model(data / "tiny-q8_0.gguf") as model:
        assert adapter.misfit(model.tensors) is None
    assert len(adapter.pairs) == 16 and len(adapter.norms) == 5 and adapter.alpha == 8.0
    assert {pair.rank for pair in adapter.pairs.values()} == {4}
    embedding = adapter.pairs["token_embd.weight"]
    assert embedding.a.shape == (4, 64) and embedding.b.shape == (32000, 4) and embedding.scale == 2.0
    save_adapter(tmp_path / "again", adapter, "ggla")
    again = load_adapter(tmp_path / "again")
    assert_equal(again, adapter)
    for name, delta in adapter.norms.items():
        np.testing.assert_array_equal(again.norms[name], delta)


def test_the_real_ggla_as_gguf_has_the_embedding_the_other_way_round(data, tmp_path):
    adapter = load_adapter(data / "tiny-adapter-ggla.bin")
    assert sorted(save_adapter(tmp_path / "a.gguf", adapter)) == sorted(adapter.norms)
    with open_model(tmp_path / "a.gguf") as file:
        assert file.tensors["token_embd.weight.lora_a"].shape == (32000, 4)
        assert file.tensors["token_embd.weight.lora_b"].shape == (64, 4)
        assert file.tensors["output.weight.lora_a"].shape == (4, 64)
        assert file.tensors["output.weight.lora_b"].shape == (32000, 4)
        assert file.metadata["general.type"] == "adapter" and file.metadata["adapter.type"] == "lora"
    assert_equal(load_adapter(tmp_path / "a.gguf"), adapter)


def test_the_real_peft_folder_is_its_gguf_twin(data):
    """The first two layers of an adapter that PEFT trained, and the same as converted for llama.cpp."""
    with_heads = {"general.architecture": "llama", "llama.attention.head_count": 9, "llama.attention.head_count_kv": 3}
    ours, theirs = load_adapter(data / "peft-2layers", with_heads), load_adapter(data / "peft-2layers.gguf")
    assert len(ours.pairs) == 14 and ours.alpha == 16.0
    assert_equal(ours, theirs)


def test_row_order():
    """Head of dimension 4: halves (0 1 | 2 3) become pairs (0 2), (1 3)."""
    rows = np.arange(8, dtype=np.float32).reshape(8, 1)
    assert paired_from_halves(rows, 2).ravel().tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    np.testing.assert_array_equal(halves_from_paired(paired_from_halves(rows, 2), 2), rows)


def test_only_paired_families_are_reordered(tmp_path):
    save_adapter(tmp_path / "p", sample(), "peft", BASE)
    about = json.loads((tmp_path / "p" / "adapter_config.json").read_text())
    assert about["target_modules"] == sorted(about["target_modules"]) and about["r"] == 4 and about["lora_alpha"] == 8
    strip_our_metadata(tmp_path / "p" / "adapter_model.safetensors")
    raw = load_adapter(tmp_path / "p")
    assert raw.hf_rows and raw.architecture == ""
    qwen = raw.bound({"general.architecture": "qwen2", "qwen2.attention.head_count": 4})
    name = "blk.0.attn_q.weight"
    np.testing.assert_array_equal(qwen.pairs[name].b, raw.pairs[name].b)
    llama = raw.bound(BASE)
    np.testing.assert_array_equal(llama.pairs[name].b, paired_from_halves(raw.pairs[name].b, 4))
    np.testing.assert_array_equal(llama.pairs["blk.0.attn_v.weight"].b, raw.pairs["blk.0.attn_v.weight"].b)
    with pytest.raises(LlamacyError, match="5 heads; it was trained on another model"):
        raw.bound(BASE | {"llama.attention.head_count": 5})
    with pytest.raises(LlamacyError, match="name the base model with -m"):
        raw.bound({"general.architecture": "llama"})
    with pytest.raises(LlamacyError, match="name the base model with -m"):
        save_adapter(tmp_path / "a.gguf", raw)


def strip_our_metadata(path):
    """Write a safetensors file again as PEFT would have: without what we note in it."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header["__metadata__"] = {"format": "pt"}
    raw = json.dumps(header).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + content[8 + length :])


def test_a_peft_folder_of_ours_knows_its_heads(tmp_path):
    adapter = sample()
    save_adapter(tmp_path / "p", adapter, "peft", BASE)
    found = load_adapter(tmp_path / "p")
    assert not found.hf_rows
    assert_equal(found, adapter)
    save_adapter(tmp_path / "a.gguf", found)
    save_adapter(tmp_path / "p2", load_adapter(tmp_path / "a.gguf"), "peft")
    assert_equal(load_adapter(tmp_path / "p2"), adapter)


def test_targets_are_short_only_when_they_mean_the_same(tmp_path):
    save_adapter(tmp_path / "p", sample(layers=[1, 2]), "peft", BASE)
    config = json.loads((tmp_path / "p" / "adapter_config.json").read_text())
    assert "model.layers.1.self_attn.q_proj" in config["target_modules"] and len(config["target_modules"]) == 14


def test_mlx_counts_layers_from_the_last(tmp_path):
    save_adapter(tmp_path / "m", sample(layers=[1, 2]), "mlx", BASE)
    config = json.loads((tmp_path / "m" / "adapter_config.json").read_text())
    assert config["num_layers"] == 2 and config["lora_parameters"]["rank"] == 4


# PEFT's and mlx-lm's settings.


def peft_folder(path, config=None, tensors=None):
    rng = np.random.default_rng(5)
    prefix = "base_model.model.model.layers.0.self_attn."
    default = {
        f"{prefix}v_proj.lora_A.weight": rng.standard_normal((4, 32)).astype(np.float32),
        f"{prefix}v_proj.lora_B.weight": rng.standard_normal((16, 4)).astype(np.float32),
        f"{prefix}o_proj.lora_A.weight": rng.standard_normal((2, 32)).astype(np.float32),
        f"{prefix}o_proj.lora_B.weight": rng.standard_normal((32, 2)).astype(np.float32),
    }
    path.mkdir()
    write_safetensors(path / "adapter_model.safetensors", default | (tensors or {}), {"format": "pt"})
    content = {"peft_type": "LORA", "r": 4, "lora_alpha": 8} | (config or {})
    (path / "adapter_config.json").write_text(json.dumps(content))
    return path


@pytest.mark.parametrize(
    ("config", "v_scale", "o_scale"),
    [
        ({}, 8 / 4, 8 / 2),
        ({"use_rslora": True}, 8 / math.sqrt(4), 8 / math.sqrt(2)),
        ({"alpha_pattern": {"o_proj": 3}}, 8 / 4, 3 / 2),
        ({"alpha_pattern": {r"layers\.\d+\.self_attn\.v_proj": 3}}, 3 / 4, 8 / 2),
        ({"alpha_pattern": {"layers.1.self_attn.v_proj": 3, "proj": 5}}, 8 / 4, 8 / 2),
        ({"alpha_pattern": {"model.layers.0.self_attn.(v|k)_proj": 3}}, 3 / 4, 8 / 2),
        ({"alpha_pattern": {r".*\.(?:[0-9]|1[0-1])\..*\.(?:q|v)_proj": 3}}, 3 / 4, 8 / 2),
        ({"alpha_pattern": {r"^model\.layers\.[*+?]?0+\.\w+\.v_proj$": 3}}, 3 / 4, 8 / 2),
    ],
)
def test_peft_scales(tmp_path, config, v_scale, o_scale):
    adapter = load_adapter(peft_folder(tmp_path / "p", config), BASE)
    assert adapter.pairs["blk.0.attn_v.weight"].scale == pytest.approx(v_scale)
    assert adapter.pairs["blk.0.attn_output.weight"].scale == pytest.approx(o_scale)


REFUSED_CONFIGS = {
    "another method": ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
    "no method": ({"peft_type": None}, "peft_type is None"),
    "DoRA": ({"use_dora": True}, "no lora_magnitude_vector"),
    "PiSSA": ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights is 'pissa_niter_4'"),
    "alpha a word": ({"lora_alpha": "x"}, "lora_alpha is 'x'"),
    "alpha infinite": ({"lora_alpha": math.inf}, "lora_alpha is inf"),
    "patterns a list": ({"alpha_pattern": [1]}, "alpha_pattern is [1]"),
    "a wrong pattern": ({"alpha_pattern": {"(": 1}}, "alpha_pattern '('"),
    "an endless pattern": ({"alpha_pattern": {"(a+)+": 1}}, "too intricate"),
    "another": ({"alpha_pattern": {"(?:[ab]+)*": 1}}, "too intricate"),
    "a long one": ({"alpha_pattern": {"a?" * 30: 1}}, "too intricate"),
    "one that looks ahead": ({"alpha_pattern": {"(?=a)b": 1}}, "too intricate"),
    "an overflowing pattern": ({"alpha_pattern": {"a{99999999999}": 1}}, "alpha_pattern"),
}


@pytest.mark.parametrize("case", REFUSED_CONFIGS)
def test_peft_settings_that_mean_something_else(tmp_path, case):
    config, word = REFUSED_CONFIGS[case]
    with pytest.raises(LlamacyError) as caught:
        load_adapter(peft_folder(tmp_path / "p", config))
    assert word in str(caught.value) and "\n" not in str(caught.value)


LAYER = "base_model.model.model.layers.0."
REFUSED_TENSORS = {
    "a saved module": ("base_model.model.score.weight", (4, 4), "score.weight"),
    "a bias": (f"{LAYER}self_attn.v_proj.lora_B.bias", (16,), "lora_B.bias' cannot be represented"),
    "a magnitude": (f"{LAYER}self_attn.v_proj.lora_magnitude_vector.weight", (16,), "magnitude_vector"),
    "an expert of no number": (f"{LAYER}mlp.experts.x.up_proj.lora_A.weight", (4, 4), "experts"),
    "half a pair of an expert": (f"{LAYER}mlp.experts.0.up_proj.lora_A.weight", (4, 4), "has only"),
    "half a pair": (f"{LAYER}mlp.up_proj.lora_A.weight", (4, 32), "has only"),
    "two adapters": (f"{LAYER}self_attn.v_proj.lora_A.other.weight", (4, 32), "stands twice"),
    "another rank": (f"{LAYER}self_attn.v_proj.lora_A.weight", (3, 32), r"wanted \(r, n_in\)"),
    "rank 0": (f"{LAYER}self_attn.v_proj.lora_A.weight", (0, 32), r"wanted \(r, n_in\)"),
}


@pytest.mark.parametrize("case", REFUSED_TENSORS)
def test_peft_tensors_that_cannot_be_represented(tmp_path, case):
    name, shape, word = REFUSED_TENSORS[case]
    with pytest.raises(LlamacyError, match=word):
        load_adapter(peft_folder(tmp_path / "p", tensors={name: np.zeros(shape, np.float32)}))


@pytest.mark.parametrize(("more", "scale"), [({"scale": 20.0}, 20.0), ({"scale": 10.0, "alpha": 16.0}, 10 * 16 / 4)])
def test_mlx_scales(tmp_path, more, scale):
    rng = np.random.default_rng(2)
    a, b = rng.standard_normal((32, 4)).astype(np.float32), rng.standard_normal((4, 16)).astype(np.float32)
    names = [f"model.layers.0.self_attn.v_proj.lora_{side}" for side in "ab"]
    write_safetensors(tmp_path / "adapters.safetensors", dict(zip(names, (a, b), strict=True)), {})
    config = {"fine_tune_type": "lora", "num_layers": 1, "lora_parameters": {"rank": 4} | more}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    pair = load_adapter(tmp_path, BASE).pairs["blk.0.attn_v.weight"]
    np.testing.assert_array_equal(pair.a, a.T)
    np.testing.assert_array_equal(pair.b, b.T)
    assert pair.scale == scale
    config["fine_tune_type"] = "full"
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(LlamacyError, match="fine_tune_type is 'full'"):
        load_adapter(tmp_path)


# What is stored in other types, and what is no adapter.


@pytest.mark.parametrize("name", ["F16", "BF16", "Q8_0", "F64"])
def test_gguf_adapters_in_other_types(tmp_path, name):
    import gguf

    values = np.random.default_rng(3).standard_normal((4, 32)).astype(np.float32)
    if name == "F64":
        raw = wanted = values.astype(np.float64)
    else:
        raw = gguf.quants.quantize(values, gguf.GGMLQuantizationType[name])
        wanted = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[name])
    f32 = by_name("F32")
    metadata = {"general.architecture": "llama", "general.type": "adapter", "adapter.type": "lora"}
    tensors = [("x.weight.lora_a", by_name(name), (4, 32), raw), ("x.weight.lora_b", f32, (8, 4), bytes(128))]
    write_gguf(tmp_path / "a.gguf", metadata, tensors)
    pair = load_adapter(tmp_path / "a.gguf").pairs["x.weight"]
    np.testing.assert_array_equal(pair.a, wanted.astype(np.float32))
    assert pair.scale == 1.0


LORA = {"general.architecture": "llama", "general.type": "adapter", "adapter.type": "lora"}
A = ("x.weight.lora_a", by_name("F32"), (2, 4), bytes(32))
BAD_GGUF = {
    "a model": ({"general.architecture": "llama"}, [], "is a model, wanted an adapter"),
    "a type that is no text": ({"general.type": [1, 2]}, [], "is a model, wanted an adapter"),
    "a kind that is no text": (LORA | {"adapter.type": [1, 2]}, [], r"holds '\[1, 2\]', wanted a LoRA adapter"),
    "a checkpoint": ({"general.type": "checkpoint"}, [], "is a checkpoint, wanted an adapter; give the adapter"),
    "a control vector": (LORA | {"adapter.type": "control_vector"}, [], "control_vector"),
    "half a pair": (LORA, [A], "lora_a without its counterpart"),
    "three dimensions": (LORA, [A, ("x.weight.lora_b", by_name("F32"), (1, 3, 2), bytes(24))], "for experts"),
    "another rank": (LORA, [A, ("x.weight.lora_b", by_name("F32"), (3, 3), bytes(36))], r"\(3, 3\)"),
    "K type": (LORA, [("x.lora_a", by_name("Q6_K"), (1, 256), bytes(210)), ("x.lora_b", *A[1:])], "Q6_K"),
    "alpha a word": (LORA | {"adapter.lora.alpha": "x"}, [], "adapter.lora.alpha is 'x'"),
    "alpha no number": (LORA | {"adapter.lora.alpha": math.nan}, [], "adapter.lora.alpha is nan"),
}


@pytest.mark.parametrize("case", BAD_GGUF)
def test_gguf_that_is_no_lora(tmp_path, case):
    metadata, tensors, word = BAD_GGUF[case]
    write_gguf(tmp_path / "a.gguf", metadata, tensors)
    with pytest.raises(LlamacyError, match=word):
        load_adapter(tmp_path / "a.gguf")


def test_other_tensors_in_a_gguf_adapter_are_named(tmp_path):
    tensors = [
        A,
        ("x.weight.lora_b", by_name("F32"), (3, 2), bytes(24)),
        ("y_norm.weight", by_name("F32"), (1,), bytes(4)),
    ]
    write_gguf(tmp_path / "a.gguf", LORA, tensors)
    assert load_adapter(tmp_path / "a.gguf").left_out == ["y_norm.weight"]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_numbers_that_are_none(tmp_path, value):
    adapter = sample()
    adapter.pairs["blk.1.ffn_up.weight"].b[3, 1] = value
    save_adapter(tmp_path / "a.gguf", adapter)
    with pytest.raises(LlamacyError, match=r"'blk\.1\.ffn_up\.weight b' holds numbers .* training diverged"):
        load_adapter(tmp_path / "a.gguf")


def test_places_without_an_adapter(tmp_path, data):
    with pytest.raises(LlamacyError, match="a folder without adapter_model.safetensors.* wanted an adapter$"):
        load_adapter(tmp_path)
    for name in ("adapter.bin", "checkpoint.gguf", "a-checkpoint.gguf", "log.json"):
        (tmp_path / name).touch()
    with pytest.raises(LlamacyError, match="wanted an adapter; give the file inside, .*/adapter.bin$"):
        load_adapter(tmp_path)
    with pytest.raises(LlamacyError, match="No such file"):
        load_adapter(tmp_path / "nothing")
    with pytest.raises(LlamacyError, match="begins with"):
        load_adapter(data / "tiny.ggmlv3.q4_0.bin")
    (tmp_path / "adapter_model.bin").write_bytes(b"x")
    with pytest.raises(LlamacyError, match="pickled"):
        load_adapter(tmp_path)
    (tmp_path / "adapter_model.bin").unlink()
    folder = peft_folder(tmp_path / "p")
    os.unlink(folder / "adapter_config.json")
    with pytest.raises(LlamacyError, match="no adapter_config.json"):
        load_adapter(folder)
    with pytest.raises(UsageError, match="'onnx' is unknown"):
        save_adapter(tmp_path / "a", sample(), "onnx")


def test_misfit_names_the_tensor(data):
    adapter = load_adapter(data / "tiny-adapter-ggla.bin")
    with open_model(data / "tiny-q8_0.gguf") as model:
        tensors = dict(model.tensors)
    del tensors["blk.1.ffn_up.weight"]
    assert "blk.1.ffn_up.weight: the adapter is for (192, 64), the model has no such tensor" in adapter.misfit(tensors)
    tensors["token_embd.weight"] = replace(tensors["token_embd.weight"], shape=(32001, 64))
    assert "token_embd.weight: the adapter is for (32000, 64), the model has (32001, 64)" in adapter.misfit(tensors)


def test_ggla_written_into_a_folder_that_is_missing(tmp_path):
    with pytest.raises(LlamacyError, match="does not exist"):
        save_adapter(tmp_path / "no" / "a.bin", sample(), "ggla")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(LlamacyError, match="wanted a folder"):
        save_adapter(tmp_path / "file", sample(), "peft", BASE)
