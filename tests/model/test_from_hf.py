"""bin/convert of Hugging Face folders, built by hand: the converted file's logits are the float64 twin's."""

import json
import math
import re
from dataclasses import replace

import gguf
import numpy as np
import pytest

from llamacy.cli import convert, quantize
from llamacy.cli.run import run
from llamacy.errors import LlamacyError
from llamacy.formats.hf_folder import HfFolder
from llamacy.formats.model_file import open_model
from llamacy.kernels.reference import model as twin
from llamacy.kernels.reference import quants
from llamacy.model import load_model
from llamacy.model.from_hf import model_from_hf
from tests.model import hf
from tests.model.test_forward import assert_close
from tests.model.tiny import CONFIG, logits_of, tokens_of

TOKENS = tokens_of(CONFIG, 21)


def converted(folder, *flags):
    out = folder.parent / "out.gguf"
    assert run(convert.main, [str(folder), str(out), *flags]) == 0
    return out


def exact_logits(config, weights, dtype):
    kinds = {name: dtype if values.ndim == 2 or dtype != "Q8_0" else "F32" for name, values in weights.items()}
    exact = {
        name: quants.dequantize(kind, quants.quantize(kind, np.atleast_2d(weights[name])), np.float64).reshape(
            weights[name].shape
        )
        for name, kind in kinds.items()
    }
    return twin.forward(config, exact, TOKENS)


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("tied", [False, True])
def test_logits_and_types(tmp_path, dtype, shards, tied):
    weights = twin.random_weights(CONFIG, 20, tied)
    hf.write_folder(tmp_path / "m", CONFIG, weights, dtype, shards, tie_word_embeddings=tied)
    out = converted(tmp_path / "m")
    assert_close(logits_of(load_model(out, activations="f32"), TOKENS), exact_logits(CONFIG, weights, dtype), 2e-5)
    with open_model(out) as file:
        assert set(file.tensors) == set(weights)
        for info in file.tensors.values():
            assert info.type.name == (dtype if len(info.shape) == 2 else "F32")
        assert file.metadata["general.file_type"] == {"F32": 0, "F16": 1, "BF16": 32}[dtype]


@pytest.mark.parametrize("outtype", ["f32", "f16", "bf16", "q8_0", "q4_0"])
def test_outtypes(tmp_path, outtype):
    weights = twin.random_weights(CONFIG, 20)
    hf.write_folder(tmp_path / "m", CONFIG, weights)
    out = converted(tmp_path / "m", "--outtype", outtype)
    for tensor in gguf.GGUFReader(out).tensors:
        wanted = weights[tensor.name]
        if wanted.ndim == 1:
            np.testing.assert_array_equal(tensor.data, wanted.astype(np.float32))
            continue
        kind = gguf.GGMLQuantizationType[outtype.upper()]
        assert tensor.tensor_type == kind
        expected = gguf.quants.quantize(wanted.astype(np.float32), kind)
        np.testing.assert_array_equal(tensor.data.view(np.uint8).ravel(), expected.view(np.uint8).ravel())


@pytest.mark.parametrize("mix", ["q4_k_m", "Q3_K_S", "q2_k"])
def test_a_mix_as_outtype_is_what_quantize_makes_of_the_converted_file(tmp_path, mix):
    config = replace(CONFIG, n_embd=256, n_ff=512, n_layer=3)
    hf.write_folder(tmp_path / "m", config, twin.random_weights(config, 21), "BF16")
    whole = converted(tmp_path / "m")
    if mix != "q2_k":  # a type of that name, too, which all matrices get
        assert run(quantize.main, [str(whole), str(tmp_path / "wanted.gguf"), mix]) == 0
    else:
        assert run(quantize.main, [str(whole), str(tmp_path / "wanted.gguf"), mix, "--pure"]) == 0
    assert run(convert.main, [str(tmp_path / "m"), "--outfile", str(tmp_path / "mix.gguf"), "--outtype", mix]) == 0
    with open_model(tmp_path / "mix.gguf") as found, open_model(tmp_path / "wanted.gguf") as wanted:
        assert found.metadata["general.file_type"] == wanted.metadata["general.file_type"]
        assert set(found.tensors) == set(wanted.tensors)
        for name, info in wanted.tensors.items():
            assert found.tensors[name].type is info.type, name
            np.testing.assert_array_equal(found.data(name), wanted.data(name))
    kinds = {info.type.name for info in open_model(tmp_path / "mix.gguf").tensors.values()}
    assert kinds == {"q4_k_m": {"F32", "Q4_K", "Q6_K"}, "Q3_K_S": {"F32", "Q3_K", "Q6_K"}, "q2_k": {"F32", "Q2_K"}}[mix]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["m", "a.gguf", "--outfile", "b.gguf"], "OUT and --outfile are both given: name one"),
        (["m", "a.gguf", "--outtype", "q4_k_x"], "cannot be written, wanted one of F32, .*Q4_K_M"),
    ],
    ids=["both", "no such type"],
)
def test_wrong_words(tmp_path, monkeypatch, capsys, words, said):
    monkeypatch.chdir(tmp_path)
    hf.write_folder(tmp_path / "m", CONFIG, twin.random_weights(CONFIG, 20))
    assert run(convert.main, words) == 2
    line = capsys.readouterr().err
    assert re.search(said, line) and line.count("\n") == 1
    assert not list(tmp_path.glob("*.gguf"))


VARIANTS = {
    "linear": (replace(CONFIG, rope_scale=4.0), {"rope_scaling": {"type": "linear", "factor": 4.0}}),
    "a new transformers' linear": (
        replace(CONFIG, rope_scale=2.0, rope_theta=500.0),
        {"rope_theta": None, "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0}},
    ),
    "one key/value head": (replace(CONFIG, n_head_kv=1), {}),
    "as many key/value heads, not said": (replace(CONFIG, n_head_kv=4), {"num_key_value_heads": None}),
    "Mistral": (CONFIG, {"architectures": ["MistralForCausalLM"], "sliding_window": None, "head_dim": 16}),
}


@pytest.mark.parametrize("case", VARIANTS)
def test_settings(tmp_path, case):
    config, change = VARIANTS[case]
    weights = twin.random_weights(config, 20)
    hf.write_folder(tmp_path / "m", config, weights, **change)
    found = logits_of(load_model(converted(tmp_path / "m"), activations="f32"), TOKENS)
    assert_close(found, exact_logits(config, weights, "F32"), 2e-5)


def test_llama_3_s_frequencies(tmp_path):
    """Waves up to 8192 / 4 stay, from 8192 / 1 on they are 8 times as long, between them both in shares."""
    weights = twin.random_weights(CONFIG, 20)
    rope = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope["original_max_position_embeddings"] = 8192
    hf.write_folder(tmp_path / "m", CONFIG, weights, rope_theta=500000.0, rope_scaling=rope)
    factors = []
    for i in range(CONFIG.head_dim // 2):
        wave = 2 * math.pi * 500000.0 ** (2 * i / CONFIG.head_dim)
        if wave < 8192 / 4:
            factors.append(1.0)
        elif wave > 8192:
            factors.append(8.0)
        else:
            share = (8192 / wave - 1) / (4 - 1)
            factors.append(1 / ((1 - share) / 8 + share))
    assert {1.0, 8.0} < set(factors)
    out = converted(tmp_path / "m")
    with open_model(out) as file:
        np.testing.assert_allclose(file.data("rope_freqs.weight").view(np.float32)[0], factors, rtol=1e-6)
    config = replace(CONFIG, rope_theta=500000.0, rope_factors=tuple(factors))
    assert_close(logits_of(load_model(out, activations="f32"), TOKENS), exact_logits(config, weights, "F32"), 2e-5)


def test_metadata(tmp_path, capsys):
    rope = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "beta_fast": 16}
    hf.write_folder(tmp_path / "m", CONFIG, twin.random_weights(CONFIG, 20), sliding_window=128, head_dim=16,
                    rope_scaling=rope, bos_token_id=3, eos_token_id=[5, 6], _name_or_path="someone/Tiny-1")  # fmt: skip
    out = converted(tmp_path / "m", "-c", "99", "--rms-eps", "0.5")
    said = capsys.readouterr().err
    assert "97 tokens (gpt2, gpt-2)" in said
    n = sum(values.size for values in twin.random_weights(CONFIG, 20).values())
    wanted = {
        "general.architecture": "llama", "general.type": "model", "general.name": "Tiny-1", "general.file_type": 0,
        "general.size_label": gguf.size_label(n, n, 0, 0),
        "general.quantization_version": 2, "llama.block_count": 2, "llama.context_length": 99,
        "llama.embedding_length": 64, "llama.feed_forward_length": 96, "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2, "llama.attention.key_length": 16, "llama.attention.value_length": 16,
        "llama.rope.dimension_count": 16, "llama.rope.freq_base": 10000.0, "llama.vocab_size": 97,
        "llama.attention.sliding_window": 128,
        "llama.attention.layer_norm_rms_epsilon": 0.5, "llama.rope.scaling.type": "yarn",
        "llama.rope.scaling.factor": 4.0, "llama.rope.scaling.original_context_length": 64,
        "llama.rope.scaling.yarn_beta_fast": 16.0, "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.bos_token_id": 3, "tokenizer.ggml.eos_token_id": 5,
    }  # fmt: skip
    with open_model(out) as file:
        found = {key: value for key, value in file.metadata.items() if isinstance(value, (str, int, float))}
    assert found == pytest.approx(wanted)


def test_biases_are_reordered_too(tmp_path):
    weights = twin.random_weights(CONFIG, 20)
    rng = np.random.default_rng(4)
    biases = {"blk.0.attn_q.bias": rng.normal(size=64), "blk.1.attn_k.bias": rng.normal(size=32)}
    biases["blk.1.ffn_up.bias"] = rng.normal(size=96)
    hf.write_folder(tmp_path / "m", CONFIG, weights | biases, "BF16")
    with open_model(converted(tmp_path / "m")) as file:
        for name, values in biases.items():
            rounded = quants.dequantize("BF16", quants.quantize("BF16", values[None]))[0]
            np.testing.assert_array_equal(file.data(name).view(np.float32)[0], rounded)


BAD = {
    "another family": (
        {"architectures": ["GPT2LMHeadModel"]},
        "architecture 'GPT2LMHeadModel', wanted one of the families llama, ",
    ),
    "no family": ({"architectures": None}, "architecture None"),
    "quantised": ({"quantization_config": {"quant_method": "gptq"}}, "quantised by 'gptq'"),
    "another activation": ({"hidden_act": "gelu"}, "hidden_act is 'gelu', wanted silu"),
    "a rope that is not known": ({"rope_scaling": {"type": "longrope"}}, "rope scaling 'longrope' is not supported"),
    "a rope without factor": ({"rope_scaling": {"type": "linear"}}, "factor is None"),
    "rope a word": ({"rope_scaling": "x"}, "the rope scaling is 'x'"),
    "llama3 upside down": (
        {"rope_scaling": {"rope_type": "llama3", "low_freq_factor": 4, "high_freq_factor": 1}},
        "is not above",
    ),
    "no layers": ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
    "absurd layers": ({"num_hidden_layers": 2**30}, "1073741824 layers, and the weights hold"),
    "a layer too few": ({"num_hidden_layers": 1}, "belongs to no layer"),
    "a layer too many": ({"num_hidden_layers": 3}, "3 layers, and the weights hold|is missing"),
    "another width": ({"hidden_size": 32}, r"wanted \("),
    "heads that do not divide": ({"num_attention_heads": 5}, r"attn_q.weight is \(64, 64\), wanted \(60, 64\)"),
    "epsilon a word": ({"rms_norm_eps": "x"}, "rms_norm_eps is 'x'"),
    "a size too large": ({"intermediate_size": 2**70}, "intermediate_size is"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_would_not_run_is_refused_by_name(tmp_path, case, capsys):
    change, words = BAD[case]
    hf.write_folder(tmp_path / "m", CONFIG, twin.random_weights(CONFIG, 20), **change)
    with HfFolder(tmp_path / "m") as folder, pytest.raises(LlamacyError, match=words) as caught:
        model_from_hf(folder)
    assert "\n" not in str(caught.value)
    assert run(convert.main, [str(tmp_path / "m"), str(tmp_path / "out.gguf")]) == 1
    assert capsys.readouterr().err.count("\n") == 1 and not (tmp_path / "out.gguf").exists()


def rewrite(folder, change):
    """Write model.safetensors again with `change` of its {name: array}."""
    weights = twin.random_weights(CONFIG, 20)
    tensors = {hf.hf_name(name): hf.in_halves(name, values, 16) for name, values in weights.items()}
    change(tensors)
    (folder / "model.safetensors").write_bytes(hf.safetensors(tensors))


def test_tensors_that_are_strange_or_missing(tmp_path):
    hf.write_folder(tmp_path / "m", CONFIG, twin.random_weights(CONFIG, 20))
    changes = {
        "block_sparse_moe.*no tensors that a llama": lambda t: t.update(
            {"model.layers.0.block_sparse_moe.experts.0.w1.weight": np.zeros((4, 4))}
        ),
        "hold no lm_head.weight": lambda t: t.pop("lm_head.weight"),
        "no matrix model.embed_tokens": lambda t: t.pop("model.embed_tokens.weight"),
        "blk.1.ffn_norm.weight is missing": lambda t: t.pop("model.layers.1.post_attention_layernorm.weight"),
        r"output_norm.weight is \(3,\)": lambda t: t.update({"model.norm.weight": np.zeros(3)}),
    }
    for words, change in changes.items():
        rewrite(tmp_path / "m", change)
        with HfFolder(tmp_path / "m") as folder, pytest.raises(LlamacyError, match=words):
            model_from_hf(folder)
    rewrite(tmp_path / "m", lambda t: t.update({"model.layers.0.self_attn.rotary_emb.inv_freq": np.zeros(8)}))
    with HfFolder(tmp_path / "m") as folder:
        assert len(model_from_hf(folder)[1]) == len(twin.random_weights(CONFIG, 20))


def test_a_folder_given_as_a_model_is_sent_to_convert(tmp_path, capsys):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text("{}")
    with pytest.raises(LlamacyError, match="is a folder; make GGUF of it with bin/convert"):
        load_model(tmp_path / "m")
    assert run(convert.main, [str(tmp_path / "m"), str(tmp_path / "out.gguf")]) == 1
    assert "m: has no model.safetensors" in capsys.readouterr().err
    (tmp_path / "m" / "adapter_config.json").write_text("{}")
    assert run(convert.main, [str(tmp_path / "m"), str(tmp_path / "out.gguf")]) == 1
    assert "wanted an adapter" in capsys.readouterr().err


def test_folders_that_are_damaged(tmp_path):
    folder, weights = tmp_path / "m", twin.random_weights(CONFIG, 20)
    hf.write_folder(folder, CONFIG, weights, shards=2)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    bad = {
        "names the file '../x.safetensors'": {"weight_map": {"a": "../x.safetensors"}},
        "names the file None": {"weight_map": 3},
        r"names the file \[\]": {"weight_map": {"a": []}},
        "names the file 'x'": {"weight_map": index["weight_map"] | {"ghost": "x"}},
    }
    for words, content in bad.items():
        (folder / "model.safetensors.index.json").write_text(json.dumps(content))
        with pytest.raises(LlamacyError, match=words):
            HfFolder(folder)
    missing = index["weight_map"] | {"ghost": "model-00001-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": missing}))
    with pytest.raises(LlamacyError, match="tensor 'ghost' is in .*, and it is not"):
        HfFolder(folder)
    (folder / "model.safetensors.index.json").unlink()
    with pytest.raises(LlamacyError, match="has no model.safetensors; a pickled"):
        HfFolder(folder)
    (folder / "model.safetensors").write_bytes(hf.safetensors({"a": np.zeros(4)}, "F8_E4M3"))
    with pytest.raises(LlamacyError, match="'F8_E4M3', wanted one of"):
        HfFolder(folder)
    hf.write_folder(folder, CONFIG, weights)
    (folder / "config.json").write_text("{")
    with HfFolder(folder) as opened, pytest.raises(LlamacyError, match="config.json: damaged JSON"):
        model_from_hf(opened)
    hf.write_folder(folder, CONFIG, weights)
    (folder / "tokenizer.json").unlink()
    with HfFolder(folder) as opened, pytest.raises(LlamacyError, match="download the tokenizer's files too"):
        model_from_hf(opened)
