"""Adapters with every family's own module names: PEFT's, through the other formats and back."""

import json

import numpy as np
import pytest

from llamacy.formats.adapter import fitted, load_adapter, save_adapter
from llamacy.formats.architectures import of_expert
from llamacy.formats.gguf_writer import write_gguf
from llamacy.formats.hf_folder import HfFolder
from llamacy.formats.mapped import MappedFile
from llamacy.formats.merge import merged
from llamacy.formats.model_file import open_model
from llamacy.formats.safetensors import read_safetensors
from llamacy.model import load_model
from llamacy.model.from_hf import model_from_hf
from tests.model import family_cases as cases
from tests.model.families import logits_of
from tests.model.test_family_facts import expected


def tensors_of(path):
    """{name: float32 array} of a folder's safetensors."""
    with read_safetensors(MappedFile(path / "adapter_model.safetensors")) as file:
        flat = {name: np.array(file.data(name)).view(np.float32) for name in file.tensors}
        return {name: values.reshape(file.tensors[name].shape) for name, values in flat.items()}


@pytest.fixture(scope="module", params=[case for case in cases.CASES if "lora" in expected(case)])
def case(request, tmp_path_factory):
    """(a folder with model.gguf and PEFT's adapter, the recorded facts of the adapter)."""
    path, facts = tmp_path_factory.mktemp("adapter"), expected(request.param)
    cases.write_folder(path / request.param, request.param, facts["tensors"])
    lora = facts["lora"]
    cases.write_adapter(path / "peft", lora["tensors"], lora["rank"], lora["alpha"], lora["target_modules"])
    with HfFolder(path / request.param) as folder:
        metadata, entries, _ = model_from_hf(folder)
        write_gguf(path / "m.gguf", metadata, entries)
    return path, lora


@pytest.mark.parametrize("format", ["gguf", "ggla", "mlx"])
def test_peft_s_adapter_and_back(case, format, tmp_path):
    path, lora = case
    with open_model(path / "m.gguf") as model:
        first = fitted(load_adapter(path / "peft"), model)
        assert first.misfit(model.tensors) is None
        assert (
            len([name for name in first.pairs if not of_expert(name)])
            == len([name for name in lora["tensors"] if ".experts." not in name]) / 2
        )
        there = tmp_path / "a" if format == "mlx" else tmp_path / f"a.{format}"
        metadata_lost = save_adapter(there, first, format, model.metadata)
        assert not [name for name in metadata_lost if not name.startswith("metadata ")]
        second = fitted(load_adapter(there), model)
        assert second.architecture == model.metadata["general.architecture"]
        assert save_adapter(tmp_path / "back", second, "peft", model.metadata) == []
    wanted, found = tensors_of(path / "peft"), tensors_of(tmp_path / "back")
    if any(map(of_expert, first.pairs)):
        # of two ranks: experts' parameters come back as a pair for each expert, mlx-lm has one rank for all
        plain = [{name for name in of if ".experts." not in name} for of in (found, wanted)]
        assert plain[0] == plain[1]
        for name, pair in first.pairs.items():
            ours = second.pairs[name]
            np.testing.assert_allclose(ours.scale * ours.b @ ours.a, pair.scale * pair.b @ pair.a, atol=1e-6)
        return
    assert found.keys() == wanted.keys()
    for name, values in wanted.items():
        np.testing.assert_array_equal(found[name], values, name)
    config = json.loads((tmp_path / "back" / "adapter_config.json").read_text())
    modules = {name.split(".lora_")[0].rpartition(".")[2] for name in wanted}
    assert {module.rpartition(".")[2] for module in config["target_modules"]} == modules
    assert (config["r"], config["lora_alpha"]) == (lora["rank"], lora["alpha"])


@pytest.mark.parametrize("name", ["deepseek2", "lfm2"])
def test_merged_it_computes_the_same(name, tmp_path):
    """Keys and values of latent attention lie in two tensors; a convolution's matrices are fused of three."""
    facts = expected(name)
    cases.write_folder(tmp_path / name, name, facts["tensors"])
    lora = facts["lora"]
    cases.write_adapter(tmp_path / "peft", lora["tensors"], lora["rank"], lora["alpha"], lora["target_modules"])
    with HfFolder(tmp_path / name) as folder:
        metadata, entries, _ = model_from_hf(folder)
        write_gguf(tmp_path / "m.gguf", metadata, entries)
    model = load_model(tmp_path / "m.gguf", activations="f32", threads=2)
    plain = logits_of(model, facts["token_ids"])
    model.add_adapter(load_adapter(tmp_path / "peft"), 0.7)
    wanted = logits_of(model, facts["token_ids"])
    with open_model(tmp_path / "m.gguf") as file:
        write_gguf(tmp_path / "merged.gguf", *merged(file, [(fitted(load_adapter(tmp_path / "peft"), file), 0.7)]))
    found = logits_of(load_model(tmp_path / "merged.gguf", activations="f32", threads=2), facts["token_ids"])
    np.testing.assert_allclose(found, wanted, atol=1e-4)
    assert np.abs(plain - wanted).max() > 0.1
