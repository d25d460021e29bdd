"""Bad files against every command that opens files: one line on stderr, exit 1, and what was there before stays."""

import importlib
import os
import re
import resource
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from llamacy.cli.run import run
from llamacy.formats.adapter import Adapter, LoraPair, save_adapter

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "tests" / "data"
MODEL, GGLA, LEGACY = DATA / "tiny-q8_0.gguf", DATA / "tiny-adapter-ggla.bin", DATA / "tiny.ggmlv3.q4_0.bin"
QUESTIONS = ROOT / "examples" / "finetune-data.txt"
TEXT = DATA / "golden" / "gpl3.txt"

# command -> its line with {model}, and what a run of it would write
COMMANDS = {
    "main": "-m {model} -p a -n 1",
    "finetune": "-m {model} --train-data {text} --max-steps 1 --outdir {new}",
    "perplexity": "-m {model} -f {text} -c 64 --chunks 1",
    "evaluate": "-m {model} -f {text} -c 64 --chunks 1",
    "tokenize": "-m {model} -p a",
    "info": "{model}",
    "convert": "{model} {new}",
    "export-lora": "-m {model} --lora {lora} -o {new}",
    "quantize": "{model} {new} F16",
    "bench": "-m {model} -p 8 -n 0 -r 1",
    "server": "-m {model} --port 0",
}


def changed(content, place, raw):
    return content[:place] + raw + content[place + len(raw) :]


# kind -> the file's content made of a good one
BAD = {
    "empty": lambda good: b"",
    "truncated in its header": lambda good: good[:1000],
    "truncated in its tensors": lambda good: good[: len(good) // 2],
    "without its last byte": lambda good: good[:-1],
    "another magic": lambda good: changed(good, 0, bytes([good[0] ^ 1])),
    "another version": lambda good: changed(good, 4, struct.pack("<I", 3 ^ 1 << 30)),
    "big-endian": lambda good: changed(good, 4, struct.pack(">I", 3)),
    "absurd tensor count": lambda good: changed(good, 8, struct.pack("<Q", 1 << 63)),
    "absurd key count": lambda good: changed(good, 16, struct.pack("<Q", (1 << 64) - 1)),
    "absurd length of a key": lambda good: changed(good, 24, struct.pack("<Q", (1 << 63) - 1)),
    "absurd offset": lambda good: changed(good, good.index(b"output_norm.weight") + 18 + 16, b"\xff" * 8),
    "zeros": lambda good: bytes(4096),
    "a text": lambda good: b"Once upon a time there was no model.\n" * 9,
    "a web page": lambda good: b"<!DOCTYPE html><html>404</html>",
    "a git-lfs pointer": lambda good: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
}


def refused(command, line, capsys, code=1, **names):
    """Run a command and return its one line of error."""
    main = importlib.import_module(f"llamacy.cli.{command.replace('-', '_')}").main
    argv = [word.format(**names) for word in line.split()]
    assert run(main, argv) == code
    out, err = capsys.readouterr()
    # what was done before, the files that were read, may be told on lines of its own
    last = err.splitlines()[-1]
    assert out == "" and "Traceback" not in err and len(last) < 600, err
    assert err.count("\n") == 1 or command in ("finetune", "bench", "server"), err
    return last


@pytest.fixture
def names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return {"text": TEXT, "lora": GGLA, "new": tmp_path / "new.gguf", "model": tmp_path / "bad.gguf"}


@pytest.mark.parametrize("command", COMMANDS)
def test_models_that_are_none(command, names, capsys):
    good = MODEL.read_bytes()
    for kind, make in BAD.items():
        names["model"].write_bytes(make(good))
        line = refused(command, COMMANDS[command], capsys, **names)
        assert str(names["model"]) in line, (kind, line)
        assert not names["new"].exists() or not any(names["new"].iterdir()), kind
    names["model"].unlink()
    assert "No such file" in refused(command, COMMANDS[command], capsys, **names)
    names["model"].mkdir()
    assert re.search("folder|adapter", refused(command, COMMANDS[command], capsys, **names))


@pytest.mark.parametrize("place", ["header", "hyperparameters", "vocabulary", "tensors"])
def test_legacy_models_cut_short(place, names, capsys):
    content = LEGACY.read_bytes()
    cut = {"header": 6, "hyperparameters": 20, "vocabulary": 10000, "tensors": len(content) - 5}[place]
    names["model"].write_bytes(content[:cut])
    for command in ("main", "info", "convert", "tokenize"):
        assert "truncated" in refused(command, COMMANDS[command], capsys, **names)


LORA_LINES = {
    "main": "-m {model} --lora {lora} -p a -n 1",
    "perplexity": "-m {model} --lora {lora} -f {text} -c 64 --chunks 1",
    "evaluate": "-m {model} --lora {lora} -f {text} -c 64 --chunks 1",
    "finetune": "-m {model} --init-lora {lora} --train-data {text} --max-steps 1 --outdir {new}",
    "export-lora": "-m {model} --lora {lora} -o {new}",
    "server": "-m {model} --lora-adapter {lora} --port 0",
}


@pytest.mark.parametrize("command", LORA_LINES)
def test_adapters_that_do_not_fit(command, names, capsys, tmp_path):
    a, b = np.ones((2, 32), np.float32), np.ones((64, 2), np.float32)
    others = {
        "another shape": Adapter("llama", {"blk.0.attn_q.weight": LoraPair(a, b)}),
        "another layer": Adapter("llama", {"blk.7.attn_q.weight": LoraPair(b.T.copy(), b)}),
        "another family": Adapter("gemma", {"blk.0.attn_q.weight": LoraPair(b.T.copy(), b)}),
    }
    names |= {"model": MODEL, "lora": tmp_path / "a.gguf"}
    for kind, adapter in others.items():
        save_adapter(names["lora"], adapter)
        line = refused(command, LORA_LINES[command], capsys, **names)
        assert "a.gguf" in line and re.search("the model it was trained on|this run does not train", line), (kind, line)
    for kind, content in {"empty": b"", "a text": b"no adapter", "a model": MODEL.read_bytes()}.items():
        names["lora"].write_bytes(content)
        assert "a.gguf" in refused(command, LORA_LINES[command], capsys, **names), kind
    names["lora"].write_bytes(GGLA.read_bytes()[:5000])
    assert "truncated" in refused(command, LORA_LINES[command], capsys, **names)


# command -> its line, the file in the way, and a size that it cannot be written within
FULL = {
    "finetune": (f"-m {MODEL} --train-data {QUESTIONS} --max-steps 1 --outdir .", "adapter.bin", 4096),
    "convert": (f"{LEGACY} old.gguf", "old.gguf", 100000),
    "export-lora": (f"-m {MODEL} --lora {GGLA} -o old.gguf", "old.gguf", 100000),
    "quantize": (f"{MODEL} old.gguf F16 --allow-requantize", "old.gguf", 100000),
}


def limited(command, line, limit, folder):
    """Run a command that can write no file beyond `limit` bytes, as if the disk were full; return its last line."""
    code = f"from llamacy.cli.entry import {command.replace('-', '_')} as f; raise SystemExit(f())"
    done = subprocess.run(
        [sys.executable, "-c", code, *line.split()], cwd=folder, capture_output=True, text=True, timeout=120,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )  # fmt: skip
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    return done.stderr.splitlines()[-1]


@pytest.mark.parametrize("command", FULL)
def test_a_full_disk_leaves_the_old_file(command, tmp_path):
    line, name, limit = FULL[command]
    (tmp_path / name).write_bytes(b"precious")
    last = limited(command, line, limit, tmp_path)
    assert "cannot write: File too large" in last and "free some space" in last, last
    assert (tmp_path / name).read_bytes() == b"precious"
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".tmp")] == []


def test_no_room_for_the_tokens_of_a_long_text(tmp_path):
    last = limited("finetune", f"-m {MODEL} --train-data {TEXT} -c 32 --outdir .", 4096, tmp_path)
    assert "no room for its tokens in" in last and "TMPDIR" in last


@pytest.mark.parametrize("command", ["convert", "export-lora", "quantize"])
def test_places_that_cannot_be_written(command, names, capsys, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    names |= {"model": MODEL if command == "export-lora" else LEGACY}
    line = COMMANDS[command] + (" --allow-requantize" if command == "quantize" else "")
    for new, words in ((tmp_path / "none" / "x.gguf", "does not exist"), (tmp_path / "file" / "x.gguf", "cannot write"),
                       ("/proc/x.gguf", "cannot write")):  # fmt: skip
        assert words in refused(command, line, capsys, **(names | {"new": new}))
