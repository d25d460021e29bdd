"""What a file says is honoured or refused by name: each tensor, each key of the family, each way to write a shape."""

import re
import struct
import warnings

import numpy as np
import pytest

from llamacy.cli import convert, export_lora, finetune, info, quantize, tokenize
from llamacy.cli.common import overrides
from llamacy.cli.run import run
from llamacy.errors import LlamacyError
from llamacy.formats.adapter import Adapter, LoraPair, save_adapter
from llamacy.formats.architectures import ARCHITECTURES
from llamacy.formats.gguf_writer import write_gguf
from llamacy.formats.lora import head_counts
from llamacy.formats.metadata_keys import KEYS
from llamacy.formats.model_file import open_model
from llamacy.formats.types import by_name
from llamacy.kernels.reference import model as twin
from llamacy.model import load_model
from tests.formats.build import legacy
from tests.model.tiny import CONFIG, logits_of, metadata, tokens_of, write_llama

WEIGHTS = twin.random_weights(CONFIG, 20)
TOKENS = tokens_of(CONFIG, 12)
HEAD = CONFIG.head_dim


def opened(path, weights=WEIGHTS, change=None, **how):
    """Write a model and load it; no warning may come of it."""
    write_llama(path, CONFIG, weights, change=change)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return load_model(path, threads=1, **how)


def refused(path, weights=WEIGHTS, change=None, **how):
    """Return the one line that loading ends with, without the path."""
    write_llama(path, CONFIG, weights, change=change)
    with pytest.raises(LlamacyError) as caught:
        load_model(path, threads=1, **how)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and len(message) < len(str(path)) + 400
    return message.removeprefix(f"{path}: ")


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The logits of the model as it is."""
    return logits_of(opened(tmp_path_factory.mktemp("plain") / "m.gguf"), TOKENS)


# ---- tensors ----

STRANGE = {
    "blk.0.attn_q_norm.weight": (HEAD,),
    "blk.1.attn_k_norm.weight": (HEAD,),
    "blk.0.post_attention_norm.weight": (64,),
    "blk.0.post_ffw_norm.weight": (64,),
    "blk.0.attn_norm.bias": (64,),
    "blk.1.ffn_norm.bias": (64,),
    "output_norm.bias": (64,),
    "output.bias": (97,),
    "token_embd_norm.weight": (64,),
    "blk.0.attn_sinks.weight": (4,),
    "blk.0.attn_qkv.weight": (128, 64),
    "blk.0.attn_q.scale": (1,),
    "blk.0.ffn_sub_norm.weight": (96,),
    "position_embd.weight": (256, 64),
    "rope_freqs": (8,),
    "v.patch_embd.weight": (64, 64),
    "anything": (1,),
    "blk.00.attn_q.weight": (64, 64),
    "blk.0.attn_q.weight\x1b[2J": (64, 64),
}


@pytest.mark.parametrize("name", STRANGE)
def test_a_tensor_that_no_step_reads_is_refused_by_name(tmp_path, name):
    words = refused(tmp_path / "m.gguf", WEIGHTS | {name: np.zeros(STRANGE[name])})
    assert words.startswith(f"tensor {name!r} is not part of a llama model as it is computed here")


def test_of_many_one_is_named_and_the_rest_counted(tmp_path):
    names = [f"blk.{i}.attn_{matrix}_norm.weight" for i in range(2) for matrix in "qk"]
    words = refused(tmp_path / "m.gguf", WEIGHTS | dict.fromkeys(names, np.ones(HEAD)))
    assert words.startswith("tensor 'blk.0.attn_q_norm.weight' and 3 more is")


@pytest.mark.parametrize("name", ["blk.2.attn_norm.weight", "blk.2.ffn_up.bias", "blk.99999999999999999999.x.weight"])
def test_a_layer_beyond_the_last(tmp_path, name):
    words = refused(tmp_path / "m.gguf", WEIGHTS | {name: np.ones(64)})
    assert words.startswith(f"tensor {name!r} belongs to no layer: llama.block_count is 2")


@pytest.mark.parametrize(
    "name",
    ["blk.0.ffn_gate_inp.weight", "blk.0.ffn_gate_exps.weight", "blk.1.ffn_down.3.weight", "blk.0.exp_probs_b.bias",
     "blk.0.ffn_gate_inp_shexp.weight", "blk.0.ffn_up_shexp.weight"],
)  # fmt: skip
def test_a_mixture_of_experts_is_called_so_by_its_tensors(tmp_path, name):
    """Also where the dense matrices are missing, and behind tensors that are strange for other reasons."""
    dense = {key: value for key, value in WEIGHTS.items() if ".ffn_gate." not in key}
    words = refused(tmp_path / "m.gguf", {"blk.0.attn_q_norm.weight": np.ones(HEAD)} | dense | {name: np.ones((8, 64))})
    assert words.startswith(f"a mixture of experts (tensor {name!r}) whose llama.expert_count is missing or 0")


def test_tensors_that_say_nothing_new(tmp_path, plain):
    more = {f"blk.1.{name}": np.ones(HEAD // 2) for name in ARCHITECTURES["llama"].ignored}
    assert len(more) == 3
    np.testing.assert_array_equal(logits_of(opened(tmp_path / "m.gguf", WEIGHTS | more), TOKENS), plain)


# ---- keys ----

# key -> (a value that changes the arithmetic, one that does not)
PARTS = {
    "attn_logit_softcapping": (50.0, 0.0),
    "final_logit_softcapping": (30.0, 0.0),
    "logit_scale": (2.0, 1.0),
    "embedding_scale": (12.0, 1.0),
    "residual_scale": (0.22, 1.0),
    "attention.scale": (0.5, HEAD**-0.5),
    "attention.causal": (False, True),
    "attention.value_length": (8, HEAD),
    "attention.max_alibi_bias": (8.0, 0.0),
    "attention.clamp_kqv": (8.0, 0.0),
    "attention.temperature_scale": (0.1, 0.0),
    "attention.q_lora_rank": (16, 0),
    "attention.shared_kv_layers": (1, 0),
    "use_parallel_residual": (True, False),
    "rope.scaling.yarn_attn_factor": (1.2, 1.0),
    "rope.scaling.yarn_log_multiplier": (0.1, 0.0),
    "rope.scaling.yarn_ext_factor": (1.0, 0.0),
    "rope.dimension_sections": (np.array([4, 4, 0, 0], np.int32), np.zeros(4, np.int32)),
    "rope.freq_base_swa": (1e6, 10000.0),
    "nextn_predict_layers": (1, 0),
    "tensor_data_layout": ("another", "Meta AI original pth"),
    "hidden_act": ("gelu", "silu"),
    "swiglu_clamp_exp": (np.array([0, 7], np.float32), np.zeros(2, np.float32)),
    "some.new.scale": (3.0, 0.0),
    "attention.new_part": ("yes", ""),
    "rope.new_array": (np.arange(4), np.zeros(4, int)),
}


@pytest.mark.parametrize("key", PARTS)
def test_a_key_that_changes_the_arithmetic(tmp_path, plain, key):
    value, neutral = PARTS[key]
    words = refused(tmp_path / "m.gguf", change={f"llama.{key}": value})
    assert words.startswith(f"'llama.{key}' is ") and "change" in words and "what the model computes" in words
    model = opened(tmp_path / "same.gguf", change={f"llama.{key}": neutral})
    np.testing.assert_array_equal(logits_of(model, TOKENS), plain)
    # what is refused in a file is refused as an override too
    assert f"llama.{key}" in refused(tmp_path / "m.gguf", overrides={f"llama.{key}": value})


@pytest.mark.parametrize("value", [float("nan"), np.array([1.0, np.nan]), "0", [np.zeros(2)], ["a"]])
def test_a_value_of_a_strange_kind_is_not_neutral(tmp_path, value):
    assert "'llama.logit_scale' is" in refused(tmp_path / "m.gguf", change={"llama.logit_scale": value})


def test_the_override_that_an_error_names_works(tmp_path):
    """Parsed as the command line's flag is."""
    told = 0
    for key in KEYS.keys() & PARTS.keys():
        words = refused(tmp_path / "m.gguf", change={f"llama.{key}": PARTS[key][0]})
        flag = re.search(r"or --override-kv (.*) to do without", words)
        opened(tmp_path / "m.gguf", change={f"llama.{key}": PARTS[key][0]}, overrides=dict(overrides(flag[1])))
        told += 1
    assert told == len(PARTS) - 3


@pytest.mark.parametrize(
    ("key", "value"),
    [("expert_group_count", 8), ("expert_used_count", 2), ("moe_every_n_layers", 2), ("experts_per_group", 4)],
)
def test_a_mixture_of_experts_is_called_so_by_its_keys(tmp_path, key, value):
    words = refused(tmp_path / "m.gguf", change={f"llama.{key}": value})
    assert words.startswith(f"a mixture of experts ('llama.{key}' is {value}) of a kind that is not supported")
    opened(tmp_path / "m.gguf", change={f"llama.{key}": 0})


def test_experts_without_a_router(tmp_path):
    words = refused(tmp_path / "m.gguf", change={"llama.expert_count": 8, "llama.expert_used_count": 2})
    assert words.startswith("llama.expert_count is 8, and no layer has a tensor ffn_gate_inp")


def test_a_key_of_no_consequence_is_named_and_ignored(tmp_path, plain):
    write_llama(tmp_path / "m.gguf", CONFIG, WEIGHTS, change={"llama.made\x1bby": "x", "llama.version": 3})
    with pytest.warns(UserWarning, match=r"m.gguf: 'llama.made\\x1bby', 'llama.version': not known here, and ignored"):
        model = load_model(tmp_path / "m.gguf", threads=1)
    np.testing.assert_array_equal(logits_of(model, TOKENS), plain)


def test_every_key_that_the_gguf_package_knows_has_a_row():
    """No name of its list falls through to the rule for unknown ones."""
    constants = pytest.importorskip("gguf").constants.Keys
    names, rooms = [], [constants.LLM, constants.Attention, constants.Rope, constants.SSM, constants.WKV]
    rooms += [constants.PosNet, constants.ConvNext, constants.Classifier, constants.ShortConv]
    while rooms:
        for name, value in vars(rooms.pop()).items():
            if isinstance(value, type):
                rooms.append(value)
            elif isinstance(value, str) and not name.startswith("__"):
                names.append(value.removeprefix("{arch}."))
    assert len(names) > 80
    assert [name for name in names if name not in KEYS and "{" not in name] == []


# A published Llama 3.2's file, and what TinyLlama's, Yi's, Mistral's and early files have besides.
PUBLISHED = {
    "general.type": "model",
    "general.basename": "Llama-3.2",
    "general.size_label": "1B",
    "general.license": "llama3.2",
    "general.tags": ["facebook", "pytorch"],
    "general.languages": ["en", "de"],
    "general.file_type": 15,
    "general.quantization_version": 2,
    "general.alignment": 32,
    "general.source.huggingface.repository": "a/b",
    "llama.vocab_size": 97,
    "llama.rope.dimension_count": HEAD,
    "llama.attention.key_length": HEAD,
    "llama.attention.value_length": HEAD,
    "llama.rope.scaling.type": "linear",
    "llama.rope.scaling.factor": 1.0,
    "llama.rope.scaling.original_context_length": 64,
    "llama.rope.scaling.finetuned": True,
    "llama.tensor_data_layout": "Meta AI original pth",
    "llama.expert_count": 0,
    "llama.expert_used_count": 0,
    "llama.attention.sliding_window": 256,
    "tokenizer.ggml.pre": "default",
    "tokenizer.ggml.padding_token_id": 2,
    "tokenizer.ggml.add_bos_token": True,
    "tokenizer.chat_template": "{{ messages }}",
    "quantize.imatrix.file": "/models/imatrix.dat",
    "quantize.imatrix.entries_count": 112,
}


def test_a_published_file_opens_without_a_word(tmp_path, plain):
    more = {"rope_freqs.weight": np.ones(HEAD // 2)}
    np.testing.assert_array_equal(logits_of(opened(tmp_path / "m.gguf", WEIGHTS | more, PUBLISHED), TOKENS), plain)


def test_training_is_refused_by_tensors_too(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_llama(tmp_path / "m.gguf", CONFIG, WEIGHTS | {"blk.0.attn_q_norm.weight": np.ones(HEAD)})
    assert run(finetune.main, ["-m", "m.gguf", "--train-data", "no such file"]) == 1
    assert "tensor 'blk.0.attn_q_norm.weight' is not part of" in capsys.readouterr().err


# ---- shapes and sizes ----


def in_four_dimensions(path, n_dims=4):
    """Write the model with ones before every shape, norms 1 x n included."""
    tensors = []
    for name, values in WEIGHTS.items():
        shape = (1,) * (n_dims - values.ndim) + values.shape
        tensors.append((name, by_name("F32"), shape, values.astype(np.float32)))
    write_gguf(path, metadata(CONFIG), tensors)


@pytest.mark.parametrize("n_dims", [2, 3, 4])
def test_ones_before_a_shape_say_nothing(tmp_path, plain, n_dims):
    in_four_dimensions(tmp_path / "m.gguf", n_dims)
    with open_model(tmp_path / "m.gguf") as file:
        assert file.tensors["output_norm.weight"].shape == (1,) * (n_dims - 1) + (64,)
    np.testing.assert_array_equal(logits_of(load_model(tmp_path / "m.gguf", threads=1), TOKENS), plain)


@pytest.mark.parametrize("shape", [(64, 1), (2, 32), (1, 64, 1)])
def test_other_shapes_of_the_same_size_are_wrong(tmp_path, shape):
    words = refused(tmp_path / "m.gguf", WEIGHTS | {"blk.0.attn_norm.weight": np.ones(shape)})
    assert words == f"blk.0.attn_norm.weight has shape {shape}, wanted (64,)"


PER_LAYER = {"attention.head_count": 4, "attention.head_count_kv": 2, "feed_forward_length": 96}


@pytest.mark.parametrize("dtype", [np.int32, np.uint32, np.uint64, np.int8])
def test_sizes_as_arrays_of_equal_numbers(tmp_path, plain, dtype):
    arrays = {f"llama.{key}": np.full(2, value, dtype) for key, value in PER_LAYER.items()}
    np.testing.assert_array_equal(logits_of(opened(tmp_path / "m.gguf", change=arrays), TOKENS), plain)


@pytest.mark.parametrize("key", PER_LAYER)
def test_sizes_that_differ_between_layers(tmp_path, key):
    size = PER_LAYER[key]
    for value, words in {
        (size, 2 * size): f"wanted one size for all layers, got [{size}, {2 * size}]",
        (size,) * 3: "wanted a whole number, or 2 of them",
        (): "wanted a whole number, or 2 of them, got []",
    }.items():
        change = {f"llama.{key}": np.array(value, np.uint32)}
        assert f"metadata key llama.{key}: {words}" in refused(tmp_path / "m.gguf", change=change)


@pytest.mark.parametrize(
    "key",
    ["block_count", "embedding_length", "feed_forward_length", "attention.head_count", "attention.head_count_kv",
     "attention.key_length", "rope.dimension_count", "context_length", "attention.sliding_window"],
)  # fmt: skip
def test_a_fraction_is_no_size(tmp_path, key):
    for value in (2.5, np.float32("inf"), True, "2", np.arange(3)):
        words = refused(tmp_path / "m.gguf", change={f"llama.{key}": value})
        assert words.startswith(f"metadata key llama.{key}: wanted a whole number")


def test_a_size_may_be_written_as_a_float(tmp_path, plain):
    model = opened(tmp_path / "m.gguf", change={"llama.block_count": 2.0, "llama.embedding_length": 64.0})
    np.testing.assert_array_equal(logits_of(model, TOKENS), plain)


@pytest.mark.parametrize("key", ["rope.freq_base", "attention.layer_norm_rms_epsilon", "rope.scaling.factor"])
def test_a_constant_that_is_no_number(tmp_path, key):
    for value in ("1e-5", True, np.ones(2)):
        words = refused(tmp_path / "m.gguf", change={f"llama.{key}": value})
        assert words.startswith(f"metadata key llama.{key}: wanted a number")


@pytest.mark.parametrize(("value", "words"), [(0.0, "holds 0,"), (-8.0, "holds -8,"), (np.inf, "not finite")])
def test_rope_factors_that_cannot_be(tmp_path, value, words):
    factors = np.ones(HEAD // 2)
    factors[3] = value
    assert words in refused(tmp_path / "m.gguf", WEIGHTS | {"rope_freqs.weight": factors})


# ---- what is assumed ----


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("attention.layer_norm_rms_epsilon", "1e-05 is assumed; --rms-eps sets it"),
        ("context_length", "2048 is assumed"),
    ],
)
def test_what_is_missing_is_assumed_with_a_warning(tmp_path, key, words):
    write_llama(tmp_path / "m.gguf", CONFIG, WEIGHTS, change={f"llama.{key}": None})
    with pytest.warns(UserWarning, match=f"m.gguf: llama.{key} is missing, {words}"):
        load_model(tmp_path / "m.gguf", threads=1)


def test_what_nothing_reads_is_said(tmp_path):
    write_llama(tmp_path / "m.gguf", CONFIG, WEIGHTS, change={"tokenizer.ggml.bos_token_id": 97})
    with pytest.warns(UserWarning, match="tokenizer.ggml.bos_token_id is 97, outside the vocabulary of 97"):
        load_model(tmp_path / "m.gguf", threads=1)
    write_llama(tmp_path / "m.gguf", CONFIG, WEIGHTS, change={"tokenizer.ggml.eos_token_id": 0xFFFFFFFF, "own.key": 1})
    with pytest.warns(UserWarning, match="m.gguf: has no 'lama.block_count', and nothing reads such keys") as caught:
        load_model(tmp_path / "m.gguf", threads=1, overrides={"lama.block_count": 1, "own.key": 2, "general.x": 3})
    assert len(caught) == 1


def test_no_warning_where_the_flag_says_it(tmp_path):
    model = opened(tmp_path / "m.gguf", change={"llama.attention.layer_norm_rms_epsilon": None}, rms_eps=1e-3)
    assert model.config.rms_eps == 1e-3


def test_another_kind_of_norm(tmp_path):
    change = {"llama.attention.layer_norm_rms_epsilon": None, "llama.attention.layer_norm_epsilon": 1e-5}
    assert "its norms are of another kind" in refused(tmp_path / "m.gguf", change=change)


# ---- the tools that only copy ----


def call(command, *words):
    assert command.main([str(word) for word in words]) == 0


def test_files_that_do_not_run_are_still_shown_copied_and_quantised(tmp_path, capsys):
    strange = {"blk.0.attn_q_norm.weight": np.ones(HEAD), "output.bias": np.arange(97.0)}
    keys = {"llama.logit_scale": 2.0, "llama.expert_count": 8, "llama.new.scale": 1.5}
    write_llama(tmp_path / "m.gguf", CONFIG, WEIGHTS | strange, change=keys)
    call(info, tmp_path / "m.gguf")
    assert "blk.0.attn_q_norm.weight" in capsys.readouterr().out
    call(convert, tmp_path / "m.gguf", tmp_path / "copy.gguf")
    call(quantize, tmp_path / "m.gguf", tmp_path / "q8.gguf", "Q8_0")
    call(tokenize, "-m", tmp_path / "q8.gguf", "-p", "<5>")
    for name in ("copy", "q8"):
        with open_model(tmp_path / f"{name}.gguf") as file, open_model(tmp_path / "m.gguf") as source:
            assert list(file.tensors) == list(source.tensors)
            assert {key: file.metadata[key] for key in keys} == keys
            assert file.data("output.bias").tobytes() == source.data("output.bias").tobytes()


def test_four_dimensions_in_every_tool(tmp_path, plain):
    """Norms of 1 x n stay what they are, adapters find their matrices, and the result runs as the usual shapes do."""
    in_four_dimensions(tmp_path / "m.gguf")
    write_llama(tmp_path / "usual.gguf", CONFIG, WEIGHTS)
    for name in ("m", "usual"):
        call(quantize, tmp_path / f"{name}.gguf", tmp_path / f"{name}.q4.gguf", "Q4_0")
    with open_model(tmp_path / "m.q4.gguf") as file, open_model(tmp_path / "usual.q4.gguf") as usual:
        assert file.tensors["blk.0.attn_norm.weight"].type.name == "F32"
        for name, info in usual.tensors.items():
            assert file.tensors[name].type is info.type and file.data(name).tobytes() == usual.data(name).tobytes()
    pairs = twin.random_lora(CONFIG, 4, 5)
    pairs = {name: LoraPair(a.astype(np.float32), b.astype(np.float32), 0.5) for name, (a, b) in pairs.items()}
    save_adapter(tmp_path / "a.gguf", Adapter("llama", pairs, 2.0))
    found = []
    for name in ("m", "usual"):
        words = (export_lora, "-m", tmp_path / f"{name}.gguf", "--lora", tmp_path / "a.gguf", "--outtype", "f16")
        call(*words, "-o", tmp_path / f"{name}.merged.gguf")
        found.append(logits_of(load_model(tmp_path / f"{name}.merged.gguf", threads=1), TOKENS))
    np.testing.assert_array_equal(*found)


def test_heads_as_arrays_are_heads_to_adapters(tmp_path):
    """PEFT's rows are ordered by heads: whether they are a number or an array must not matter."""
    rng = np.random.default_rng(2)
    pairs = {"blk.1.attn_q.weight": LoraPair(*(rng.normal(size=s).astype(np.float32) for s in ((2, 64), (64, 2))), 1.0)}
    arrays = {f"llama.{key}": np.full(2, value, np.uint32) for key, value in PER_LAYER.items()}
    found = []
    for change in ({}, arrays):
        model = opened(tmp_path / "m.gguf", change=change)
        model.add_adapter(Adapter("", pairs, 2.0, hf_rows=True))
        found.append((logits_of(model, TOKENS), head_counts("llama", model.metadata)))
    np.testing.assert_array_equal(found[0][0], found[1][0])
    assert found[0][1] == found[1][1] == {"llama.attention.head_count": 4, "llama.attention.head_count_kv": 2}


# ---- legacy files ----


def legacy_with(name, layer="layers.0.", extent=8):
    """A legacy file with one tensor of floats more, behind the others."""
    content, _ = legacy()
    raw = (layer + name).encode()
    content += struct.pack("<4I", 1, len(raw), 0, extent) + raw
    return content + bytes(-len(content) % 32) + np.linspace(1, 0.1, extent, dtype=np.float32).tobytes()


@pytest.mark.parametrize("layer", ["", "layers.0.attention.inner_attention."])
def test_a_legacy_table_of_frequencies_is_passed_over(tmp_path, layer):
    (tmp_path / "old.bin").write_bytes(legacy_with("rope.freqs", layer))
    (tmp_path / "plain.bin").write_bytes(legacy()[0])
    with open_model(tmp_path / "old.bin") as old, open_model(tmp_path / "plain.bin") as new:
        assert list(old.tensors) == list(new.tensors)
    load_model(tmp_path / "old.bin", threads=1)


def test_legacy_tensors_that_are_not_known_or_too_many(tmp_path):
    for name, layer, words in (
        ("attention.wq.bias", "layers.0.", "unknown tensor 'layers.0.attention.wq.bias'"),
        ("attention_norm.weight", "layers.1.", "tensor 'blk.1.attn_norm.weight' belongs to no layer"),
    ):
        (tmp_path / "old.bin").write_bytes(legacy_with(name, layer, 64))
        with pytest.raises(LlamacyError, match=words):
            load_model(tmp_path / "old.bin", threads=1)
