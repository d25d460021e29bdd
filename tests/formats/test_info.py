"""bin/info and bin/convert from their flags to what they print and write."""

import json

import numpy as np
import pytest

from llamacy.cli import convert, info
from llamacy.errors import LlamacyError, UsageError
from llamacy.formats.adapter import adapter_format, load_adapter, save_adapter
from llamacy.formats.gguf_writer import write_gguf
from llamacy.formats.model_file import open_model
from llamacy.formats.types import by_name
from tests.formats.build import legacy
from tests.formats.test_adapters import BASE, assert_equal, sample, strip_our_metadata, with_embeddings


def shown(capsys, *argv):
    assert info.main([str(arg) for arg in argv]) == 0
    return capsys.readouterr().out


def test_a_model_for_a_person(capsys, data):
    text = shown(capsys, data / "tiny.ggmlv3.q4_0.bin")
    assert "ggjt version 3 model, 2.8 MB" in text
    rows = {line.split()[0]: line.split()[1:] for line in text.splitlines() if line.startswith("  ")}
    assert rows["parameters"] == ["4,202,816"] and rows["layers"] == ["2"] and rows["vocabulary"] == ["32,000"]
    assert rows["Q4_0"][:2] == ["16", "tensors"]
    assert rows["token_embd.weight"] == ["Q4_0", "32000", "x", "64", "1.2", "MB"]
    assert "[<unk>, <s>, </s>, <0x00>, <0x01>, <0x02>, ...] (32000 items)" in text
    assert max(map(len, text.splitlines())) < 200


def test_a_model_as_json(capsys, data):
    found = json.loads(shown(capsys, data / "tiny-q8_0.gguf", "--json"))
    assert (found["kind"], found["format"], found["version"]) == ("model", "gguf", 3)
    assert found["metadata"]["llama.block_count"] == 2
    assert found["metadata"]["tokenizer.ggml.tokens"]["length"] == 32000
    assert len(found["metadata"]["tokenizer.ggml.tokens"]["first"]) == 16
    assert found["tensors"][0] == (
        {"name": "token_embd.weight", "type": "Q8_0", "shape": [32000, 64], "nbytes": 32000 * 68}
    )
    assert found["types"]["Q8_0"]["bytes"] == sum(t["nbytes"] for t in found["tensors"] if t["type"] == "Q8_0")
    whole = json.loads(shown(capsys, data / "tiny-q8_0.gguf", "--json", "--full"))
    assert len(whole["metadata"]["tokenizer.ggml.tokens"]) == 32000


def test_an_adapter(capsys, data):
    text = shown(capsys, data / "tiny-adapter-ggla.bin")
    assert "ggla adapter" in text and "Norms (5)" in text and "  output_norm.weight" in text
    found = json.loads(shown(capsys, data / "peft-2layers", "--json"))
    assert (found["kind"], found["format"], found["alpha"]) == ("adapter", "peft", 16.0)
    assert {"name": "blk.0.attn_k.weight", "rank": 8, "n_in": 576, "n_out": 192, "scale": 2.0} in found["pairs"]


def test_text_from_files_cannot_act_on_the_terminal(capsys, tmp_path):
    metadata = {"general.name": "\x1b[2J讲\n\u202e", "f": np.float32("nan"), "b": True, "nested": [np.arange(3)]}
    write_gguf(tmp_path / "m.gguf", metadata, [])
    text = shown(capsys, tmp_path / "m.gguf")
    assert r"\x1b[2J讲\n\u202e" in text and "\x1b" not in text and "b             true" in text
    found = json.loads(shown(capsys, tmp_path / "m.gguf", "--json"))
    assert found["metadata"]["general.name"] == metadata["general.name"] and found["metadata"]["f"] == "nan"
    assert found["metadata"]["nested"] == [[0, 1, 2]]


@pytest.mark.parametrize("argv", [[], ["a", "b"], ["--nonsense", "a"]])
def test_wrong_usage(argv, capsys):
    for command, words in ((info, argv), (convert, argv[:1])):
        with pytest.raises((SystemExit, UsageError)) as caught:
            command.main(words)
        assert getattr(caught.value, "code", None) == 2 or caught.value.exit_code == 2


def converted(*argv):
    assert convert.main([str(arg) for arg in argv]) == 0


@pytest.mark.parametrize("kind", [("ggml", 0), ("ggmf", 1), ("ggjt", 1), ("ggjt", 3)])
def test_a_legacy_model_becomes_gguf_bit_for_bit(tmp_path, kind, capsys):
    (tmp_path / "old.bin").write_bytes(legacy(*kind)[0])
    converted(tmp_path / "old.bin", tmp_path / "new.gguf", "--rms-eps", "1e-5", "-c", "4096")
    assert f"gguf model, 12 tensors, from {kind[0]} version {kind[1]}" in capsys.readouterr().err
    with open_model(tmp_path / "old.bin") as old, open_model(tmp_path / "new.gguf") as new:
        assert new.format == "gguf"
        for name, tensor in old.tensors.items():
            assert (new.tensors[name].type, new.tensors[name].shape) == (tensor.type, tensor.shape)
            np.testing.assert_array_equal(new.data(name), old.data(name))
        assert new.metadata.keys() == old.metadata.keys()
        assert new.metadata["llama.context_length"] == 4096
        assert new.metadata["llama.attention.layer_norm_rms_epsilon"] == pytest.approx(1e-5)
        assert new.metadata["llama.rope.freq_base"] == 10000.0
        assert new.metadata["tokenizer.ggml.tokens"] == old.metadata["tokenizer.ggml.tokens"]


def test_the_real_legacy_model(tmp_path, data):
    converted(data / "tiny.ggmlv3.q4_0.bin", tmp_path / "new.gguf")
    content = (data / "tiny.ggmlv3.q4_0.bin").read_bytes()
    with open_model(tmp_path / "new.gguf") as new:
        for name in new.tensors:
            assert new.data(name).tobytes() in content


def test_a_model_of_ours_is_written_as_it_was(tmp_path, data):
    """The sample came from the gguf package's writer's ancestor; only padding after the last tensor may differ."""
    converted(data / "tiny-q8_0.gguf", tmp_path / "same.gguf")
    assert (tmp_path / "same.gguf").read_bytes() == (data / "tiny-q8_0.gguf").read_bytes()


@pytest.mark.parametrize(("output", "format"), [("a.gguf", "gguf"), ("a.bin", "ggla"), ("folder", "peft")])
def test_the_name_says_the_format(tmp_path, output, format):
    save_adapter(tmp_path / "in", sample(), "peft", BASE)
    converted(tmp_path / "in", tmp_path / output)
    assert adapter_format(tmp_path / output) == format
    assert_equal(load_adapter(tmp_path / output, BASE), sample())


def test_what_is_lost_is_named(tmp_path, data, capsys):
    converted(data / "tiny-adapter-ggla.bin", tmp_path / "a.bin")
    told = capsys.readouterr().err
    assert "gguf adapter, 16 pairs, from ggla; left out, for gguf cannot carry it: output_norm.weight, blk.0" in told


def test_a_model_beside_the_adapter_tells_the_heads(tmp_path, data, capsys):
    """ggla knows no heads; the model in the same folder has the adapter's shapes, and there is no other."""
    converted(data / "tiny-adapter-ggla.bin", tmp_path / "p")
    assert "tiny" in capsys.readouterr().err
    converted(tmp_path / "p", tmp_path / "back.bin")
    assert_equal(load_adapter(tmp_path / "back.bin"), load_adapter(data / "tiny-adapter-ggla.bin"))


def test_models_that_disagree(tmp_path):
    adapter = with_embeddings(sample())
    save_adapter(tmp_path / "a.bin", adapter, "ggla")
    shapes = {name: (pair.b.shape[0], pair.a.shape[1]) for name, pair in adapter.pairs.items()}
    tensors = [(name, by_name("F32"), shape, bytes(4 * shape[0] * shape[1])) for name, shape in shapes.items()]
    write_gguf(tmp_path / "m1.gguf", BASE, tensors)
    converted(tmp_path / "a.bin", tmp_path / "p1")
    other = BASE | {"llama.attention.head_count": 2, "llama.attention.head_count_kv": 1}
    write_gguf(tmp_path / "m2.gguf", other, tensors)
    with pytest.raises(LlamacyError, match="whose heads differ; name its base model with -m"):
        converted(tmp_path / "a.bin", tmp_path / "p2")
    converted(tmp_path / "a.bin", tmp_path / "p2", "-m", tmp_path / "m2.gguf")
    strip_our_metadata(tmp_path / "p2" / "adapter_model.safetensors")
    assert_equal(load_adapter(tmp_path / "p2", other), adapter)


def test_another_models_adapter(tmp_path, data):
    save_adapter(tmp_path / "a.gguf", sample())
    with pytest.raises(LlamacyError, match="does not fit .*; name its own base model with -m"):
        converted(tmp_path / "a.gguf", tmp_path / "p", "-m", data / "tiny-q8_0.gguf")


def test_formats_that_make_no_sense(tmp_path, data):
    with pytest.raises(UsageError, match="is a model, which becomes gguf"):
        converted(data / "tiny-q8_0.gguf", tmp_path / "p", "--to", "peft")
    with pytest.raises(UsageError, match="or say --to"):
        converted(data / "tiny-adapter-ggla.bin", tmp_path / "a.txt")
    converted(data / "tiny-adapter-ggla.bin", tmp_path / "a.txt", "--to", "gguf")
    assert adapter_format(tmp_path / "a.txt") == "gguf"


def test_a_vocabulary_that_is_a_number(tmp_path, capsys):
    """Found by make fuzz."""
    write_gguf(tmp_path / "m.gguf", {"general.architecture": "llama", "tokenizer.ggml.tokens": 3}, [])
    assert info.main([str(tmp_path / "m.gguf")]) == 0
    assert "\n  vocabulary" not in capsys.readouterr().out
