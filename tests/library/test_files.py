"""convert, quantize and serve from Python: the files are the commands' own, byte for byte."""

import json
import urllib.request

import pytest

import llamacy
from llamacy.formats.adapter import load_adapter
from tests.server.test_server_command import ADAPTER, MODEL, ROOT
from tests.test_overflow import command

OLD = ROOT / "tests" / "data" / "tiny.ggmlv3.q4_0.bin"


def test_quantize(tmp_path):
    shares = []
    with pytest.warns(UserWarning, match="Q6_K does not divide"):
        made = llamacy.quantize(MODEL, tmp_path / "a.gguf", "q4_0", allow_requantize=True, progress=shares.append)
    command("quantize", "--allow-requantize", MODEL, tmp_path / "b.gguf", "Q4_0")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes() and made == str(tmp_path / "a.gguf")
    assert shares == sorted(shares) and shares[-1] == 1
    for how, said in (
        ({"mix": "q9"}, "mix: wanted one of"),
        ({"mix": "q4_0"}, "Q8_0 already"),
        ({"mix": "q4_0", "output": MODEL, "allow_requantize": True}, "the input itself"),
    ):
        with pytest.raises(llamacy.LlamacyError, match=said):
            llamacy.quantize(**{"source": MODEL, "output": tmp_path / "c.gguf", **how})
    assert not (tmp_path / "c.gguf").exists()


def test_convert(tmp_path):
    assert "ggjt" in llamacy.convert(OLD, tmp_path / "a.gguf")
    command("convert", OLD, tmp_path / "b.gguf")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    with pytest.warns(UserWarning, match="norm"):
        llamacy.convert(ADAPTER, tmp_path / "a", to="peft", base=MODEL)
    command("convert", "-m", MODEL, "--to", "peft", ADAPTER, tmp_path / "b")
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    for how, said in (
        ({"output": None}, "output: wanted a path"),
        ({"type": "q8_0"}, "keeps its types"),
        ({"source": tmp_path / "none"}, "cannot be opened"),
    ):
        with pytest.raises(llamacy.LlamacyError, match=said):
            llamacy.convert(**{"source": OLD, "output": tmp_path / "c.gguf", **how})


def test_serve():
    with llamacy.load(MODEL) as model:
        wanted = model.generate("This License", temperature=0, max_tokens=5).text
        with llamacy.serve(model, port=0, parallel=2, wait=False, api_keys=["k"]) as serving:
            body = json.dumps({"prompt": "This License", "n_predict": 5, "temperature": 0}).encode()
            headers = {"Content-Type": "application/json", "Authorization": "Bearer k"}
            with urllib.request.urlopen(urllib.request.Request(serving.url + "/completion", body, headers)) as answer:
                assert json.load(answer)["content"] == wanted
            with pytest.raises(llamacy.LlamacyError, match="is being served"):
                model.generate("x")
            port = int(serving.url.rpartition(":")[2])
            with pytest.raises(llamacy.LlamacyError, match=str(port)):
                llamacy.serve(MODEL, port=port, wait=False)
        assert model.generate("This License", temperature=0, max_tokens=5).text == wanted
        with pytest.raises(OSError):
            urllib.request.urlopen(serving.url + "/health", timeout=2)


def test_an_adapter_can_be_read_by_itself():
    assert load_adapter(ADAPTER).pairs
