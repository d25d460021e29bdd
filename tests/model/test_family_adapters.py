"""Adapters with every family's own module names: PEFT's, through the other formats and back."""

import json

import numpy as np
import pytest

from llamacy.errors import LlamacyError
from llamacy.formats.adapter import fitted, load_adapter, save_adapter
from llamacy.formats.gguf_writer import write_gguf
from llamacy.formats.hf_folder import HfFolder
from llamacy.formats.mapped import MappedFile
from llamacy.formats.model_file import open_model
from llamacy.formats.safetensors import read_safetensors
from llamacy.model.from_hf import model_from_hf
from tests.model import family_cases as cases
from tests.model.test_family_facts import expected


def tensors_of(path):
    """{name: float32 array} of a folder's safetensors."""
    with read_safetensors(MappedFile(path / "adapter_model.safetensors")) as file:
        flat = {name: np.array(file.data(name)).view(np.float32) for name in file.tensors}
        return {name: values.reshape(file.tensors[name].shape) for name, values in flat.items()}


@pytest.fixture(scope="module", params=cases.CASES)
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


# No tensor of a file is the matrix that PEFT adapts there: its halves are turned and kept apart.
NOT_ONE_TENSOR = {"deepseek2"}


@pytest.mark.parametrize("format", ["gguf", "ggla", "mlx"])
def test_peft_s_adapter_and_back(case, format, tmp_path):
    path, lora = case
    with open_model(path / "m.gguf") as model:
        if model.metadata["general.architecture"] in NOT_ONE_TENSOR:
            with pytest.raises(LlamacyError, match="kv_b_proj.lora_A.* cannot be represented"):
                load_adapter(path / "peft")
            return
        first = fitted(load_adapter(path / "peft"), model)
        assert first.misfit(model.tensors) is None
        assert len(first.pairs) == len(lora["tensors"]) // 2
        there = tmp_path / "a" if format == "mlx" else tmp_path / f"a.{format}"
        metadata_lost = save_adapter(there, first, format, model.metadata)
        assert not [name for name in metadata_lost if not name.startswith("metadata ")]
        second = fitted(load_adapter(there), model)
        assert second.architecture == model.metadata["general.architecture"]
        assert save_adapter(tmp_path / "back", second, "peft", model.metadata) == []
    wanted, found = tensors_of(path / "peft"), tensors_of(tmp_path / "back")
    assert found.keys() == wanted.keys()
    for name, values in wanted.items():
        np.testing.assert_array_equal(found[name], values, name)
    config = json.loads((tmp_path / "back" / "adapter_config.json").read_text())
    modules = {name.split(".lora_")[0].rpartition(".")[2] for name in wanted}
    assert {module.rpartition(".")[2] for module in config["target_modules"]} == modules
    assert (config["r"], config["lora_alpha"]) == (lora["rank"], lora["alpha"])
