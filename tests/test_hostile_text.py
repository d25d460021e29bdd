"""Whatever a file says: it reaches the user escaped and short, from every command that can be given the file."""

import json
import unicodedata

import numpy as np
import pytest

from llamacy.cli import convert, export_lora, finetune, info, main, quantize, run, tokenize
from llamacy.formats.adapter import Adapter, LoraPair, save_adapter
from llamacy.formats.gguf_writer import write_gguf
from llamacy.formats.types import by_name
from llamacy.kernels.reference import model as twin
from tests.formats.build import ARRAY, F32, STRING, U32, Gguf
from tests.formats.test_adapters import BASE, sample
from tests.model import hf
from tests.model.tiny import CONFIG, metadata, write_llama

ACTS = "\x1b]0;x\x07\u202e\r\n"
NAME = ACTS + "y" * 40_000  # GGUF's names have at most 65,536 bytes here
VALUE = ACTS + "z" * 500_000
WEIGHTS = twin.random_weights(CONFIG, 20)


def harmless(text):
    """Tell whether no character of `text` acts on a terminal."""
    return all(c == "\n" or unicodedata.category(c) not in ("Cc", "Cf", "Zl", "Zp") for c in text)


def model(path, change=None, tensors=None, raw=()):
    """Write a model whose file may have names that the writer would refuse: raw tensors are (name, shape, bytes)."""
    file = Gguf()
    for key, value in (metadata(CONFIG) | (change or {})).items():
        if isinstance(value, str):
            file.key(key, STRING, value)
        elif isinstance(value, list):
            file.key(key, ARRAY, (STRING if isinstance(value[0], str) else F32, value))
        elif value is not None:
            file.key(key, F32 if isinstance(value, float) else U32, value)
    for name, values in (WEIGHTS if tensors is None else tensors).items():
        file.tensor(name, values.shape[::-1], 0, values.astype(np.float32).tobytes())
    for name, shape, number, content in raw:
        file.tensor(name, shape, number, content)
    path.write_bytes(file.bytes())
    return path


MODELS = {
    "an architecture": {"change": {"general.architecture": VALUE}},
    "a number": {"change": {"llama.block_count": VALUE}},
    "a value": {"change": {"llama.logit_scale": VALUE}},
    "a scaling": {"change": {"llama.rope.scaling.type": VALUE}},
    "a key": {"change": {f"llama.{NAME}.scale": 3.0}},
    "an expert key": {"change": {f"llama.expert_{NAME}": 3.0}},
    "a tokenizer": {"change": {"tokenizer.ggml.model": VALUE}},
    "a vocabulary without merges": {"change": {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": VALUE}},
    "a tensor": {"raw": [(NAME, (8,), 0, bytes(32))]},
    "a router": {"raw": [("blk.0.ffn_gate_inp." + NAME, (8,), 0, bytes(32))]},
    "a layer": {"raw": [("blk.9." + NAME, (8,), 0, bytes(32))]},
    "a type": {"raw": [(NAME, (8,), 99, bytes(32))]},
    "a shape": {"raw": [(NAME, (2**40, 2**20), 0, bytes(32))]},
    "an adapter's type": {"change": {"general.type": "adapter", "adapter.type": VALUE}},
}


def call(capsys, command, *words):
    """Run a command; return (exit code, stdout, stderr), whose lines are harmless and short."""
    code = run.run(command.main, [str(word) for word in words])
    out, err = capsys.readouterr()
    for line in [*out.split("\n"), *err.split("\n")]:
        assert harmless(line) and len(line) < 700, line[:1000]
    return code, out, err


def refused(capsys, command, *words):
    code, out, err = call(capsys, command, *words)
    assert (code, out, err.count("\n")) == (1, "", 1)
    return err


@pytest.mark.filterwarnings("ignore:.*pre-tokenizer")
@pytest.mark.parametrize("case", MODELS)
def test_a_model(tmp_path, capsys, case):
    path = model(tmp_path / "m.gguf", **MODELS[case])
    err = refused(capsys, main, "-m", path, "-p", "x")
    assert "\\x1b]0;x\\x07" in err or case in ("a vocabulary without merges", "an adapter's type")
    call(capsys, info, path)
    call(capsys, quantize, path, tmp_path / "q.gguf", "Q8_0")
    call(capsys, quantize, path, tmp_path / "q.gguf", "Q8_0", "--dry-run")
    call(capsys, convert, path, tmp_path / "c.gguf")
    call(capsys, tokenize, "-m", path, "-p", "<5>")


KEYS = {"name": "general.name", "template": "tokenizer.chat_template", "other": f"other.{NAME}"}


@pytest.mark.parametrize("kind", KEYS)
def test_what_info_shows_of_a_model(tmp_path, capsys, kind):
    key = KEYS[kind]
    path = model(tmp_path / "m.gguf", {key: VALUE, "general.tags": [VALUE, "b"]})
    code, out, _ = call(capsys, info, path)
    assert code == 0 and "\\x1b]0;x\\x07" in out
    assert json.loads(run_raw(capsys, info, path, "--json"))["metadata"][key] == VALUE


def run_raw(capsys, command, *words):
    assert run.run(command.main, [str(word) for word in words]) == 0
    return capsys.readouterr().out


def adapter(path, name="blk.0.attn_q.weight", architecture="llama", kind="F32", sides="ab", **change):
    file = Gguf()
    keys = {"general.type": "adapter", "general.architecture": architecture, "adapter.type": "lora"} | change
    for key, value in keys.items():
        file.key(key, STRING, value)
    for side in sides:
        shape = (64, 2) if side == "a" else (2, 64)
        file.tensor(f"{name}.lora_{side}", shape, by_name(kind).number, bytes(512))
    path.write_bytes(file.bytes())
    return path


ADAPTERS = {
    "an architecture": {"architecture": VALUE},
    "a name": {"name": NAME},
    "half a pair": {"name": NAME, "sides": "a"},
    "a type": {"name": NAME, "kind": "I32"},
    "an alpha": {"adapter.lora.alpha": VALUE},
}


@pytest.mark.parametrize("case", ADAPTERS)
def test_an_adapter(tmp_path, capsys, case):
    write_llama(tmp_path / "m.gguf", CONFIG, WEIGHTS)
    path = adapter(tmp_path / "a.gguf", **ADAPTERS[case])
    assert "\\x1b]0;x\\x07" in refused(capsys, main, "-m", tmp_path / "m.gguf", "-p", "x", "--lora", path)
    refused(capsys, export_lora, "-m", tmp_path / "m.gguf", "--lora", path, "-o", tmp_path / "o.gguf")
    call(capsys, info, path)
    call(capsys, convert, path, tmp_path / "a.bin")
    call(capsys, convert, path, tmp_path / "peft", "-m", tmp_path / "m.gguf")


def test_what_an_adapter_holds_besides(tmp_path, capsys):
    write_llama(tmp_path / "m.gguf", CONFIG, WEIGHTS)
    file = Gguf().key("general.type", STRING, "adapter").key("adapter.type", STRING, "lora")
    file.key("general.architecture", STRING, "llama").key(f"x.{NAME}", STRING, VALUE)
    for i in range(9):
        file.tensor(f"{i}{NAME}", (8,), 0, bytes(32))
    (tmp_path / "a.gguf").write_bytes(file.bytes())
    code, _, err = call(capsys, convert, tmp_path / "a.gguf", tmp_path / "a.bin")
    assert code == 0 and "left out" in err and "and 5 more" in err
    code, _, err = call(
        capsys, export_lora, "-m", tmp_path / "m.gguf", "--lora", tmp_path / "a.gguf", "-o", tmp_path / "o"
    )
    assert code == 0 and "left out" in err and "and 6 more" in err


@pytest.mark.parametrize(
    "change",
    [{"peft_type": VALUE}, {"lora_alpha": VALUE}, {"alpha_pattern": {VALUE: 1}}, {"alpha_pattern": {f"({ACTS}": 1}},
     {"use_dora": [VALUE]}],
)  # fmt: skip
def test_a_peft_folder(tmp_path, capsys, change):
    save_adapter(tmp_path / "p", sample(), "peft", BASE)
    path = tmp_path / "p" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    refused(capsys, info, tmp_path / "p")


def test_names_in_safetensors(tmp_path, capsys):
    save_adapter(tmp_path / "p", sample(), "peft", BASE)
    pair = {f"base_model.model.model.layers.0.self_attn.q_proj.lora_{side}.weight": np.ones((2, 2)) for side in "AB"}
    for name in (NAME, f"base_model.model.model.layers.0.{NAME}.lora_A.weight"):
        content = hf.safetensors(pair | {name: np.ones((2, 4))})
        (tmp_path / "p" / "adapter_model.safetensors").write_bytes(content)
        assert "\\x1b]0;x\\x07" in refused(capsys, info, tmp_path / "p")


CONFIGS = {
    "architectures": [VALUE],
    "hidden_act": VALUE,
    "num_hidden_layers": VALUE,
    "rope_scaling": {"type": VALUE},
    "quantization_config": {"quant_method": VALUE},
    "rms_norm_eps": VALUE,
    "sliding_window": VALUE,
}


@pytest.mark.parametrize("key", CONFIGS)
def test_a_hugging_face_folder(tmp_path, capsys, key):
    hf.write_folder(tmp_path / "m", CONFIG, WEIGHTS, **{key: CONFIGS[key]})
    assert "\\x1b]0;x\\x07" in refused(capsys, convert, tmp_path / "m", tmp_path / "o.gguf")


def test_a_hugging_face_folder_with_strange_tensors_and_tokens(tmp_path, capsys):
    hf.write_folder(tmp_path / "m", CONFIG, WEIGHTS)
    tokens = hf.tokenizer_json(CONFIG.n_vocab)
    tokens["model"]["type"] = VALUE
    (tmp_path / "m" / "tokenizer.json").write_text(json.dumps(tokens))
    assert "\\x1b]0;x\\x07" in refused(capsys, convert, tmp_path / "m", tmp_path / "o.gguf")
    tensors = {hf.hf_name(name): values for name, values in WEIGHTS.items()} | {NAME: np.ones(3)}
    (tmp_path / "m" / "model.safetensors").write_bytes(hf.safetensors(tensors))
    assert "\\x1b]0;x\\x07" in refused(capsys, convert, tmp_path / "m", tmp_path / "o.gguf")


RECORDS = {
    "a role": {"messages": [{"role": VALUE, "content": "x"}]},
    "keys": {VALUE: 1, "b" + VALUE: 2},
    "a value": {"prompt": [VALUE], "completion": "x"},
    "broken": VALUE,
}


@pytest.mark.parametrize("case", RECORDS)
def test_training_data(tmp_path, capsys, monkeypatch, case):
    monkeypatch.chdir(tmp_path)
    write_llama(tmp_path / "m.gguf", CONFIG, WEIGHTS)
    text = json.dumps(RECORDS[case], ensure_ascii=False)
    (tmp_path / "d.jsonl").write_text(text[:-2] + ACTS if case == "broken" else text)
    words = ["-m", tmp_path / "m.gguf", "--train-data", tmp_path / "d.jsonl", "--chat-template", "chatml"]
    code, out, err = call(capsys, finetune, *words, "--show-sample", 1)
    assert code in (0, 1) and (code == 0 or err.count("\n") == 1)
    assert ACTS not in out


def test_a_file_of_another_kind(tmp_path, capsys):
    (tmp_path / "m.gguf").write_bytes(ACTS.encode() * 1000)
    assert "\\x1b]0;x\\x07" in refused(capsys, main, "-m", tmp_path / "m.gguf", "-p", "x")


def test_names_that_are_written(tmp_path, capsys):
    """What the writer refuses it names as the readers do."""
    pairs = {f"{NAME}.weight": LoraPair(np.ones((2, 4), np.float32), np.ones((4, 2), np.float32))}
    save_adapter(tmp_path / "a.bin", Adapter("llama", {"x": next(iter(pairs.values()))}), "ggla")
    with pytest.raises(Exception, match="wanted a new name") as caught:
        write_gguf(tmp_path / "o.gguf", {}, [(NAME, by_name("F32"), (1,), bytes(4))])
    assert harmless(str(caught.value)) and len(str(caught.value)) < 500
