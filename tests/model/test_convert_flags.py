"""bin/convert as llama.cpp's converters are called: names by type, flags without effect or meaning."""

from pathlib import Path

import pytest

from llamacy.cli import convert
from llamacy.cli.run import run
from llamacy.formats.model_file import open_model
from llamacy.kernels.reference import model as twin
from tests.model import hf
from tests.model.test_from_hf import CONFIG

DATA = Path(__file__).resolve().parents[1] / "data"
GGUF, ADAPTER = DATA / "tiny-q8_0.gguf", DATA / "tiny-adapter-ggla.bin"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    hf.write_folder(tmp_path / "My model", CONFIG, twin.random_weights(CONFIG, 20), "BF16")
    return tmp_path / "My model"


def call(capsys, *words):
    code = run(convert.main, [str(word) for word in words])
    out, err = capsys.readouterr()
    assert out == ""
    return code, err


@pytest.mark.parametrize(
    ("words", "name", "kind"),
    [
        ([], "My model/My model-BF16.gguf", "BF16"),
        (["--outtype", "f16"], "My model/My model-F16.gguf", "F16"),
        (["--outtype", "q8_0", "--outfile", "a.{ftype}.gguf"], "a.q8_0.gguf", "Q8_0"),
        (["--outtype", "q8_0", "--outfile", "a-{OUTTYPE}-{outtype}.gguf"], "a-Q8_0-q8_0.gguf", "Q8_0"),
        (["b.{FTYPE}.gguf"], "b.BF16.gguf", "BF16"),
    ],
)
def test_the_type_stands_in_the_name(folder, tmp_path, capsys, words, name, kind):
    code, err = call(capsys, folder, *words)
    assert code == 0 and f"{name}: gguf model" in err
    with open_model(tmp_path / name) as model:
        assert model.tensors["blk.0.ffn_up.weight"].type.name == kind


def test_another_name_and_the_vocabulary_alone(folder, tmp_path, capsys):
    words = ["--outfile", "v.gguf", "--model-name", "Another", "--vocab-only"]
    words += ["--verbose", "--no-lazy", "--use-temp-file"]
    code, err = call(capsys, folder, *words)
    assert code == 0 and err.startswith("--verbose, --no-lazy, --use-temp-file: no effect here\n")
    with open_model(tmp_path / "v.gguf") as model:
        assert model.metadata["general.name"] == "Another" and not model.tensors
        assert len(model.metadata["tokenizer.ggml.tokens"]) == CONFIG.n_vocab
    assert call(capsys, GGUF, "m.gguf", "--model-name", "Third")[0] == 0
    with open_model(tmp_path / "m.gguf") as model:
        assert model.metadata["general.name"] == "Third" and len(model.tensors) > 10


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([GGUF], "what to write is missing: wanted IN OUT"),
        ([ADAPTER], "what to write is missing: wanted IN OUT"),
        ([GGUF, "x.gguf", "--outtype", "f16"], "--outtype means nothing here: "),
        ([GGUF, "x.gguf", "--vocab-only"], "--vocab-only means nothing here: "),
        ([ADAPTER, "x.gguf", "--outtype", "f16"], "--outtype means nothing here: "),
        ([ADAPTER, "x.gguf", "--rms-eps", "1e-5"], "--rms-eps means nothing here: "),
        ([ADAPTER, "x.gguf", "--model-name", "x"], "--model-name means nothing here: "),
        ([GGUF, "x.gguf", "--bigendian"], "files are little-endian"),
        ([GGUF, "x.gguf", "--split-max-size", "1G"], "a model is written as one file"),
        (["a/b", "--remote"], "nothing is downloaded"),
    ],
)
def test_what_means_nothing_is_refused(tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    try:
        code, err = call(capsys, *words)
    except SystemExit as exit:
        code, err = exit.code, capsys.readouterr().err
    assert code == 2 and message in err and err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_an_adapter_in_f32_is_what_it_is(tmp_path, capsys):
    assert call(capsys, ADAPTER, "--outfile", tmp_path / "x.gguf", "--outtype", "f32")[0] == 0
