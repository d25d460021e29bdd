"""Adapters on embeddings as PEFT saves them, base tensors included: what they do, and which of those are copies."""

import json
import re
import warnings

import numpy as np
import pytest

from llamacy.cli import convert, export_lora, quantize
from llamacy.cli.run import run
from llamacy.errors import LlamacyError
from llamacy.formats.adapter import fitted, load_adapter, save_adapter
from llamacy.formats.arrays import float_tensor
from llamacy.formats.gguf_writer import write_gguf
from llamacy.formats.mapped import MappedFile
from llamacy.formats.model_file import open_model
from llamacy.formats.safetensors import read_safetensors, write_safetensors
from llamacy.formats.types import by_name
from llamacy.kernels.reference import model as twin
from llamacy.model import load_model
from tests.model import hf
from tests.model.golden import DATA, log_softmax
from tests.model.tiny import CONFIG, logits_of, write_llama

FOLDER = DATA / "peft-embeddings"
FACTS = json.loads((DATA / "peft_embeddings.json").read_text())
NAMES = {"q_proj": "attn_q", "embed_tokens": "token_embd", "lm_head": "output"}
FORMATS = ["gguf", "ggla", "peft"]


def weights_of(tied):
    weights = twin.random_weights(CONFIG, FACTS["weights_seed"], tied)
    return weights | {"token_embd.weight": FACTS["embedding_scale"] * weights["token_embd.weight"]}


def base_of(path, tied, type_name="F32"):
    write_llama(path, CONFIG, weights_of(tied), type_name)
    return path


def adapter_on(targets, **change):
    """The recorded adapter's pairs on `targets`."""
    adapter = load_adapter(FOLDER)
    keep = [NAMES[target] for target in targets]
    adapter.pairs = {name: pair for name, pair in adapter.pairs.items() if any(word in name for word in keep)}
    adapter.copies = []
    return adapter


def mean_nll(model):
    tokens = np.array(FACTS["tokens"])
    found = log_softmax(logits_of(model, tokens[:-1]))
    return -found[np.arange(len(tokens) - 1), tokens[1:]].mean()


def id_of(case):
    return f"{'tied' if case['tied'] else 'untied'}-{'-'.join(case['targets']) or 'base'}"


@pytest.mark.parametrize("case", FACTS["cases"], ids=id_of)
def test_mean_nll_is_peft_s(tmp_path, case):
    model = load_model(base_of(tmp_path / "m.gguf", case["tied"]), activations="f32", threads=2)
    if case["targets"]:
        model.add_adapter(adapter_on(case["targets"]))
    assert mean_nll(model) == pytest.approx(case["nll"], abs=1e-4)


CASES = [case for case in FACTS["cases"] if "lm_head" in case["targets"]]


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("case", CASES, ids=id_of)
def test_every_format_and_the_merged_model_say_the_same(tmp_path, case, format):
    path = base_of(tmp_path / "m.gguf", case["tied"])
    with open_model(path) as file:
        save_adapter(tmp_path / "a", adapter_on(case["targets"]), format, file.metadata)
    model = load_model(path, activations="f32", threads=2)
    model.add_adapter(load_adapter(tmp_path / "a"))
    assert mean_nll(model) == pytest.approx(case["nll"], abs=1e-4)
    flags = ["-m", str(path), "--lora", str(tmp_path / "a"), "-o", str(tmp_path / "merged.gguf")]
    assert run(export_lora.main, flags) == 0
    merged = load_model(tmp_path / "merged.gguf", activations="f32", threads=2)
    assert mean_nll(merged) == pytest.approx(case["nll"], abs=1e-4)
    with open_model(tmp_path / "merged.gguf") as file:
        assert "output.weight" in file.tensors


def test_scales_per_token_reach_both_sides(tmp_path):
    model = load_model(base_of(tmp_path / "m.gguf", True), activations="f32", threads=2)
    tokens = np.array(FACTS["tokens"])
    plain = logits_of(model, tokens)
    model.add_adapter(adapter_on(NAMES))
    whole = logits_of(model, tokens)
    assert np.abs(whole - plain).max() > 0.1
    for scale, wanted in ((0, plain), (1, whole)):
        rows = np.full((len(tokens), 1), scale, np.float32)
        np.testing.assert_allclose(logits_of(model, tokens, lora_scales=rows), wanted, rtol=0, atol=1e-6)
    half = logits_of(model, tokens, lora_scales=np.full((len(tokens), 1), 0.5, np.float32))
    model.set_adapter_scale(0, 0.5)
    np.testing.assert_allclose(half, logits_of(model, tokens), rtol=0, atol=1e-5)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("add_output", [False, True])
def test_mlx_s_pair_on_the_embedding_is_the_output_s_too_where_both_are_one(tmp_path, tied, add_output):
    path = base_of(tmp_path / "m.gguf", tied)
    adapter = adapter_on(NAMES if add_output else ["q_proj", "embed_tokens"])
    with open_model(path) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        save_adapter(tmp_path / "a", adapter, "mlx", file.metadata)
        found = fitted(load_adapter(tmp_path / "a"), file).pairs
    assert ("output.weight" in found) == (tied or add_output)
    if tied and not add_output:
        assert found["output.weight"] is found["token_embd.weight"]
    elif add_output:
        assert found["output.weight"] is not found["token_embd.weight"]


def test_conversion_tells_of_mlx_s_other_meaning(tmp_path, capsys):
    with pytest.warns(UserWarning, match="mlx-lm alone applies a pair on the embedding to the output too"):
        save_adapter(tmp_path / "a", adapter_on(["embed_tokens"]), "mlx")
    with pytest.warns(UserWarning, match="a/adapters.safetensors: in a model without an output matrix mlx-lm alone"):
        save_adapter(tmp_path / "b", load_adapter(tmp_path / "a"), "peft")


# Copies.

HEAD = "base_model.model.lm_head.base_layer.weight"
EMBEDDING = "base_model.model.model.embed_tokens.base_layer.weight"


def changed_folder(path, change):
    """Write the recorded folder again: `change` names tensors and what makes new ones of them, None to leave one out.

    What was not there before begins as the embedding.
    """
    embedding = weights_of(True)["token_embd.weight"]
    with read_safetensors(MappedFile(FOLDER / "adapter_model.safetensors")) as file:
        tensors = {name: float_tensor(file, name) for name in file.tensors}
    for key, make in change.items():
        found = tensors.pop(key, embedding.copy())
        if make:
            tensors[key] = make(found)
    path.mkdir()
    write_safetensors(path / "adapter_model.safetensors", tensors, {"format": "pt"})
    (path / "adapter_config.json").write_bytes((FOLDER / "adapter_config.json").read_bytes())
    return path


def warnings_of(model_path, folder):
    model = load_model(model_path, threads=1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.add_adapter(load_adapter(folder))
    return [str(warning.message) for warning in caught]


@pytest.mark.parametrize("type_name", ["F32", "F16", "BF16", "Q8_0", "Q6_K", "Q5_0", "Q4_0", "Q4_1", "Q4_K_M", "Q2_K"])
@pytest.mark.parametrize("dtype", ["F32", "BF16"])
def test_a_copy_of_the_values_before_they_were_quantised_is_quiet(tmp_path, type_name, dtype):
    config = twin.Config(n_vocab=97, n_embd=256, n_head=4, n_head_kv=2, n_ff=256, n_layer=1)
    weights = twin.random_weights(config, 1, tied=True)
    write_llama(tmp_path / "m.gguf", config, weights)
    assert run(quantize.main, [str(tmp_path / "m.gguf"), str(tmp_path / "q.gguf"), type_name]) == 0
    rng = np.random.default_rng(0)
    pair = {"lora_embedding_A": rng.normal(size=(2, 97)), "lora_embedding_B": rng.normal(size=(256, 2))}
    tensors = {f"base_model.model.model.embed_tokens.{side}": x for side, x in pair.items()}
    for change, n in ((lambda x: x, 0), (new_row, 1), (lambda x: x * 1.5 + 0.5, 1)):
        tensors[EMBEDDING] = change(weights["token_embd.weight"].copy())
        (tmp_path / "adapter_model.safetensors").write_bytes(hf.safetensors(tensors, dtype))
        (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 2}))
        assert len(warnings_of(tmp_path / "q.gguf", tmp_path)) == n


def new_row(x):
    x[5] = np.random.default_rng(1).normal(size=x.shape[1]) * x[5].std()
    return x


def nudged(x):
    x[96, 63] += 0.01
    return x


DIFFERENT = {
    "one number of the last row": (
        {HEAD: nudged},
        "lm_head.base_layer.weight' differs .* in 1 of 97 rows: the model's",
    ),
    "every row": (
        {EMBEDDING: lambda x: 1.01 * x},
        "embed_tokens.base_layer.weight' differs .* everywhere: the model's",
    ),
    "no numbers": ({EMBEDDING: lambda x: x * np.nan}, "differs .* everywhere"),
    "another size": ({HEAD: lambda x: x[:90]}, r"has shape \(90, 64\), token_embd.weight of .* has \(97, 64\)"),
    "one side": ({EMBEDDING: None, HEAD: nudged}, "lm_head.* in 1 of 97 rows"),
    "without wrapper": ({EMBEDDING: None, EMBEDDING.replace("base_layer.", ""): nudged}, "'base_model.*differs"),
}


@pytest.mark.parametrize("case", DIFFERENT)
def test_a_base_tensor_of_other_values_is_named_in_a_warning(tmp_path, case):
    change, words = DIFFERENT[case]
    found = warnings_of(base_of(tmp_path / "m.gguf", True), changed_folder(tmp_path / "a", change))
    assert len(found) == 1 and re.search(words, found[0]) and found[0].isprintable()


def test_both_copies_of_the_recorded_folder_are_copies(tmp_path):
    assert warnings_of(base_of(tmp_path / "m.gguf", True), FOLDER) == []
    found = warnings_of(base_of(tmp_path / "u.gguf", False), FOLDER)
    assert len(found) == 1 and "lm_head.base_layer.weight' differs from output.weight" in found[0]


NO_HEAD = dict.fromkeys([HEAD, HEAD.replace("base_layer", "lora_A"), HEAD.replace("base_layer", "lora_B")])
ALONE = {
    "a head that was trained": (NO_HEAD | {"base_model.model.lm_head.weight": nudged}, "lm_head.weight"),
    "a norm that was trained": ({"base_model.model.model.norm.weight": lambda x: np.full(64, 9.0)}, "norm.weight"),
    "a bias": ({"base_model.model.model.layers.0.self_attn.q_proj.bias": lambda x: np.zeros(64)}, "does not have"),
}


@pytest.mark.parametrize("case", ALONE)
def test_a_module_that_was_trained_whole_is_refused_by_name(tmp_path, case):
    change, word = ALONE[case]
    folder = changed_folder(tmp_path / "a", change)
    path = base_of(tmp_path / "m.gguf", True)
    with pytest.raises(LlamacyError, match=f"{word}.*train without modules_to_save") as caught:
        load_model(path).add_adapter(load_adapter(folder))
    assert str(caught.value).isprintable()
    with pytest.raises(LlamacyError, match="holds .* whole.*name the base model with -m"):
        save_adapter(tmp_path / "b.gguf", load_adapter(folder), "gguf", {"general.architecture": "llama"})


def test_a_whole_copy_without_a_pair_is_quiet_and_conversion_checks_it_by_the_base(tmp_path, capsys):
    """PEFT with save_embedding_layers=True saves both matrices whatever was adapted."""
    whole = {f"base_model.model.{module}.weight": lambda x: x for module in ("lm_head", "model.embed_tokens")}
    folder = changed_folder(tmp_path / "a", NO_HEAD | {EMBEDDING: None} | whole)
    path = base_of(tmp_path / "m.gguf", True)
    assert warnings_of(path, folder) == []
    assert run(convert.main, [str(folder), str(tmp_path / "out.gguf"), "-m", str(path)]) == 0
    assert len(load_adapter(tmp_path / "out.gguf").pairs) == 3
    assert run(convert.main, [str(folder), str(tmp_path / "no.bin")]) == 1
    assert "name the base model with -m" in capsys.readouterr().err


def test_rows_of_queries_are_compared_in_the_model_s_order(tmp_path):
    queries = weights_of(True)["blk.0.attn_q.weight"]
    key = "base_model.model.model.layers.0.self_attn.q_proj.base_layer.weight"
    path = base_of(tmp_path / "m.gguf", True)
    for n, rows in enumerate((hf.in_halves("blk.0.attn_q.weight", queries, CONFIG.head_dim), queries)):
        assert len(warnings_of(path, changed_folder(tmp_path / str(n), {key: lambda x, rows=rows: rows}))) == n


def test_what_a_gguf_adapter_holds_besides_is_told_when_it_is_used(tmp_path):
    f32 = by_name("F32")
    pair = [("output.weight.lora_a", f32, (2, 64), bytes(512)), ("output.weight.lora_b", f32, (97, 2), bytes(776))]
    about = {"general.architecture": "llama", "general.type": "adapter", "adapter.type": "lora"}
    write_gguf(tmp_path / "a.gguf", about, [*pair, ("strange.weight", f32, (1,), bytes(4))])
    found = warnings_of(base_of(tmp_path / "m.gguf", True), tmp_path / "a.gguf")
    assert found == [f"{tmp_path / 'a.gguf'}: left out 'strange.weight': no LoRA pairs"]
