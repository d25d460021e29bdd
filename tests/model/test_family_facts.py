"""Every family's small model: converted as llama.cpp's converter does, run and trained as transformers and PEFT did."""

import json
import warnings
import zlib
from functools import cache

import numpy as np
import pytest

from llamacy.errors import LlamacyError
from llamacy.formats.architectures import ARCHITECTURES, MISSING, running
from llamacy.formats.gguf_writer import write_gguf
from llamacy.formats.hf_folder import HfFolder
from llamacy.formats.model_file import open_model
from llamacy.model import load_model
from llamacy.model.from_hf import model_from_hf
from tests.model import family_cases as cases
from tests.model.golden_family import checks

# Keys that llama.cpp's converter does not write, or writes without a use: what ours says instead.
OURS = {
    "llama.attention.sliding_window", "starcoder2.attention.sliding_window",  # it runs them without a window
    "gemma2.attention.scale", "gemma3.attention.scale",  # it goes by the number of layers
    "gpt-oss.rope.scaling.yarn_truncate",  # it always truncates
    "deepseek2.rope.scaling.yarn_attn_factor",  # written where the two mscales differ
}  # fmt: skip
THEIRS = set()


@cache
def expected(case):
    """The recorded facts."""
    return json.loads((cases.DATA / f"{case}.json").read_text())


@pytest.fixture(scope="module", params=cases.CASES)
def folder(request, tmp_path_factory):
    """A folder as tests.model.golden_family checks it; its name is the case's."""
    case = request.param
    path = tmp_path_factory.mktemp("family") / case
    facts = expected(case)
    cases.write_folder(path / "hf", case, facts["tensors"])
    if lora := facts.get("lora"):
        cases.write_adapter(path / "adapter_init", lora["tensors"], lora["rank"], lora["alpha"], lora["target_modules"])
    with HfFolder(path / "hf") as opened, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of single layers' windows, as long as they wait
        metadata, entries, _ = model_from_hf(opened)
        write_gguf(path / "model.gguf", metadata, entries)
    (path / "expected.json").write_text(json.dumps(facts))
    return path


def test_the_converter_s_tensors_and_keys(folder):
    theirs = expected(folder.name)["converter"]
    if theirs is None:
        # it does not have the first, and stumbles over the norms of the second's heads
        assert folder.name in ("helium", "stablelm-parallel")
        return
    with open_model(folder / "model.gguf") as file:
        found = {
            name: [list(info.shape), f"{zlib.crc32(np.ascontiguousarray(file.data(name)).tobytes()):08x}"]
            for name, info in file.tensors.items()
        }
        metadata = {key: getattr(value, "tolist", lambda value=value: value)() for key, value in file.metadata.items()}
    for name in found.keys() & {"rope_freqs.weight"}:  # in f64 here, in f32 there
        theirs["tensors"][name][1] = found[name][1]
    assert found == theirs["tensors"]
    prefix = f"{metadata['general.architecture']}."
    ours = {key: value for key, value in metadata.items() if key.startswith(prefix) or key in theirs["keys"]}
    for key, value in theirs["keys"].items():
        if key not in THEIRS:
            assert ours.get(key) == (pytest.approx(value) if isinstance(value, float) else value), key
    assert ours.keys() - theirs["keys"].keys() <= OURS


@pytest.mark.filterwarnings("ignore:.*positions turn as longrope scaling has it for long texts")
def test_logits_greedy_tokens_and_training(folder):
    metadata = open_model(folder / "model.gguf").metadata
    row = ARCHITECTURES[metadata["general.architecture"]]
    if row.missing or ("experts" in MISSING and any(key.endswith(".expert_count") for key in metadata)):
        with pytest.raises(LlamacyError) as caught:
            load_model(folder / "model.gguf")
        if not row.missing:
            assert "a mixture of experts" in str(caught.value)
            return
        assert all(part in str(caught.value) for part in (*row.missing, ", ".join(running())))
        return
    window = load_model(folder / "model.gguf").config.window
    if window and "windows" in MISSING:
        with pytest.raises(LlamacyError, match=f"attention.sliding_window is {window}, which is not supported"):
            load_model(folder / "model.gguf").new_session(n_ctx=window + 1)
        return
    failed = [line for line in checks(folder) if not line[1] <= line[2]]
    assert not failed, failed
