"""DoRA adapters in files: what has a place for magnitudes gives them back, the rest is refused by name; merging."""

import json
from dataclasses import replace

import numpy as np
import pytest

from llamacy.cli import convert, info
from llamacy.cli.run import run
from llamacy.errors import LlamacyError
from llamacy.formats.adapter import FORMATS, LoraPair, load_adapter, save_adapter
from llamacy.formats.mapped import MappedFile
from llamacy.formats.merge import merged
from llamacy.formats.model_file import open_model
from llamacy.formats.safetensors import read_safetensors, write_safetensors
from llamacy.generate.prompt_cache import _of_adapter
from llamacy.kernels.reference import model as twin
from tests.formats.test_adapters import BASE, N_EMBD, N_VOCAB, assert_equal, pair_of, sample
from tests.model.test_dora import dora_adapter
from tests.model.test_dora import merged as merged_by_hand
from tests.model.tiny import CONFIG, write_llama


def dora(rank=4, scale=2.0):
    """An adapter whose magnitudes are all different numbers."""
    adapter, rng = sample(rank, scale), np.random.default_rng(3)
    pairs = {
        name: replace(pair, magnitude=rng.standard_normal(len(pair.b)).astype(np.float32))
        for name, pair in adapter.pairs.items()
    }
    return replace(adapter, pairs=pairs)


def assert_magnitudes(found, wanted):
    for name, pair in wanted.pairs.items():
        np.testing.assert_array_equal(found.pairs[name].magnitude, pair.magnitude, name)


@pytest.mark.parametrize("first", ["peft", "mlx"])
@pytest.mark.parametrize("second", ["peft", "mlx"])
def test_peft_and_mlx_have_a_place_for_magnitudes(tmp_path, first, second):
    adapter = dora()
    assert save_adapter(tmp_path / "1", adapter, first, BASE) == []
    assert save_adapter(tmp_path / "2", load_adapter(tmp_path / "1"), second, BASE) == []
    found = load_adapter(tmp_path / "2", BASE)
    assert_equal(found, adapter)
    assert_magnitudes(found, adapter)


def test_their_names_and_order_are_those_of_peft(tmp_path):
    """In Hugging Face's files each head's halves lie apart, GGUF has them in turns."""
    save_adapter(tmp_path / "p", dora(), "peft", BASE)
    assert json.loads((tmp_path / "p/adapter_config.json").read_text())["use_dora"] is True
    file = read_safetensors(MappedFile(str(tmp_path / "p/adapter_model.safetensors")))
    for key, name in (("q_proj", "attn_q"), ("v_proj", "attn_v")):
        module = f"base_model.model.model.layers.1.self_attn.{key}"
        stored = np.array(file.data(f"{module}.lora_magnitude_vector")).view("<f4")
        ours = dora().pairs[f"blk.1.{name}.weight"].magnitude
        halves = ours.reshape(4, 4, 2).swapaxes(1, 2).ravel() if key == "q_proj" else ours
        np.testing.assert_array_equal(stored.ravel(), halves)


@pytest.mark.parametrize("format", [name for name in FORMATS if name not in ("peft", "mlx")])
def test_formats_without_a_place_are_refused(tmp_path, format):
    words = f"DoRA adapter, whose magnitudes {format} has no place for; write it as peft or mlx, or merge"
    with pytest.raises(LlamacyError, match=words):
        save_adapter(tmp_path / "a", dora(), format, BASE)
    assert not (tmp_path / "a").exists()


def test_magnitudes_on_some_matrices_only_are_refused(tmp_path):
    adapter = dora()
    adapter.pairs["blk.0.attn_q.weight"].magnitude = None
    for format in ("peft", "mlx"):
        with pytest.raises(LlamacyError, match="'blk.0.attn_q.weight' has no magnitudes and others have some"):
            save_adapter(tmp_path / "a", adapter, format, BASE)


def tensors_of(path):
    with read_safetensors(MappedFile(path)) as file:
        return {name: np.array(file.data(name)).view("<f4").reshape(row.shape) for name, row in file.tensors.items()}


def changed(folder, change=None, drop=(), **config):
    """Write a DoRA adapter of PEFT with other settings, without some tensors, others changed."""
    save_adapter(folder, dora(), "peft", BASE)
    path, settings = str(folder / "adapter_model.safetensors"), folder / "adapter_config.json"
    tensors = tensors_of(path)
    tensors = {name: array for name, array in tensors.items() if not name.endswith(tuple(drop) or ("\0",))}
    write_safetensors(path, tensors | (change or {}), {"format": "pt"})
    settings.write_text(json.dumps(json.loads(settings.read_text()) | config))
    return folder


Q = "base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector"
REFUSED = {
    "a pair without": ({"drop": [Q]}, "'blk.0.attn_q.weight' has no lora_magnitude_vector, which use_dora asks for"),
    "none without use_dora": ({"use_dora": False}, "is there and adapter_config.json says use_dora False"),
    "use_dora a word": ({"use_dora": "yes"}, "use_dora is 'yes', wanted true or false"),
    "too few": ({"change": {Q: np.ones(31, np.float32)}}, r"is \(31,\), wanted \(32,\)"),
    "a matrix": ({"change": {Q: np.ones((32, 1), np.float32)}}, r"is \(32, 1\), wanted \(32,\)"),
    "without a pair": ({"change": {Q.replace("0", "7"): np.ones(32, np.float32)}}, "layers.7.* has no pair beside it"),
    "infinite": ({"change": {Q: np.full(32, np.inf, np.float32)}}, "magnitude.* holds numbers that are infinite"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_magnitudes_that_do_not_fit_are_refused(tmp_path, case):
    how, words = REFUSED[case]
    with pytest.raises(LlamacyError, match=words) as caught:
        load_adapter(changed(tmp_path / "p", **how), BASE)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("end", [".weight", ".default", ".default.weight"])
def test_names_of_other_versions_of_peft(tmp_path, end):
    save_adapter(tmp_path / "p", dora(), "peft", BASE)
    path = str(tmp_path / "p/adapter_model.safetensors")
    tensors = tensors_of(path)
    tensors = {name + end * name.endswith("vector"): array for name, array in tensors.items()}
    write_safetensors(path, tensors, {"format": "pt"})
    assert_magnitudes(load_adapter(tmp_path / "p", BASE), dora())


def test_merged_it_is_the_product_of_length_and_direction(tmp_path):
    exact = write_llama(tmp_path / "m.gguf", CONFIG, twin.random_weights(CONFIG, 20), "F32")
    adapters, scales = [dora_adapter(CONFIG, exact, 4, 5), dora_adapter(CONFIG, exact, 3, 6, "attn_v")], [1.0, 0.3]
    wanted = merged_by_hand(exact, adapters, scales)
    with open_model(str(tmp_path / "m.gguf")) as file:
        for name, target, shape, reader in merged(file, list(zip(adapters, scales, strict=True)))[1]:
            found = np.concatenate([np.asarray(part).reshape(-1) for part in parts_of(reader())]).view(np.float32)
            assert target.name == "F32"
            np.testing.assert_allclose(found.reshape(shape), wanted[name], atol=1e-5 * np.abs(wanted[name]).max())


def parts_of(content):
    return [content] if isinstance(content, np.ndarray) else list(content)


def test_an_embedding_s_are_read_and_cannot_be_merged(tmp_path):
    adapter = dora()
    pair = pair_of(np.random.default_rng(1), (N_VOCAB, N_EMBD))
    adapter.pairs["token_embd.weight"] = LoraPair(pair.a, pair.b, 2.0, np.ones(N_EMBD, np.float32))
    save_adapter(tmp_path / "p", adapter, "peft", BASE)
    assert load_adapter(tmp_path / "p", BASE).pairs["token_embd.weight"].magnitude.shape == (N_EMBD,)


def test_a_change_of_magnitudes_is_another_adapter_to_kept_prompts():
    found = {_of_adapter(adapter) for adapter in (sample(), dora())}
    other = dora()
    other.pairs["blk.0.attn_q.weight"].magnitude[3] += 1
    assert len(found | {_of_adapter(other)}) == 3


def test_info_and_convert_say_what_it_is(tmp_path, capsys):
    save_adapter(tmp_path / "p", dora(), "peft", BASE)
    assert run(info.main, [str(tmp_path / "p")]) == 0
    assert "one of each row, DoRA's" in capsys.readouterr().out
    assert run(info.main, ["--json", str(tmp_path / "p")]) == 0
    found, wanted = json.loads(capsys.readouterr().out), sample()
    assert found["dora"] is True
    assert found["parameters"] == sum(pair.a.size + pair.b.size + len(pair.b) for pair in wanted.pairs.values())
    assert run(convert.main, [str(tmp_path / "p"), str(tmp_path / "a.gguf")]) == 1
    assert "a DoRA adapter, whose magnitudes gguf has no place for" in capsys.readouterr().err
