"""Where files go, and refusals before anything is trained."""

import os

import pytest

from llamacy.errors import LlamacyError, UsageError
from llamacy.train.outputs import Outputs

PLACES = [
    ({}, "adapter/adapter.bin", "adapter/checkpoint.gguf"),
    ({"outdir": "out"}, "out/adapter.bin", "out/checkpoint.gguf"),
    ({"outdir": "out", "lora_out": "a.gguf"}, "out/a.gguf", "out/checkpoint.gguf"),
    ({"save_path": "./lora-adapter.bin"}, "./lora-adapter.bin", "./checkpoint.gguf"),
    ({"save_path": "x.bin"}, "x.bin", "./checkpoint.gguf"),
    ({"save_path": "deep/er/x.bin", "outdir": "out"}, "deep/er/x.bin", "out/checkpoint.gguf"),
    ({"checkpoint_out": "here/c.gguf"}, "adapter/adapter.bin", "here/c.gguf"),
    ({"checkpoint_out": ""}, "adapter/adapter.bin", ""),
    ({"lora_out": "l-ITERATION.bin"}, "adapter/l-LATEST.bin", "adapter/checkpoint.gguf"),
]


@pytest.mark.parametrize(("flags", "adapter", "checkpoint"), PLACES)
def test_paths_follow_from_the_flags(tmp_path, monkeypatch, flags, adapter, checkpoint):
    monkeypatch.chdir(tmp_path)
    outputs = Outputs(**flags)
    assert (outputs.adapter, outputs.checkpoint) == (adapter, checkpoint)
    outputs.check()
    assert all(os.path.isdir(os.path.dirname(os.path.abspath(path))) for path in filter(None, [adapter, checkpoint]))
    assert not [name for _, _, names in os.walk(tmp_path) for name in names]


def test_numbers_go_into_names_and_not_into_folders():
    outputs = Outputs(outdir="ITERATION", lora_out="l-ITERATION.bin", checkpoint_out="c-ITERATION.gguf")
    assert outputs.numbered(12) == ("ITERATION/l-12.bin", "c-12.gguf")
    assert outputs.adapter == "ITERATION/l-LATEST.bin"
    assert Outputs().numbered(12) == ("", "")
    assert Outputs(lora_out="l-LATEST.bin").numbered(12) == ("", "")


def test_what_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    for outdir, wanted in [(tmp_path / "file", "cannot write there"), ("/proc/llamacy", "cannot write there")]:
        with pytest.raises(LlamacyError, match=f"{outdir}.*{wanted}.*choose another --outdir"):
            Outputs(outdir=str(outdir)).check()
    with pytest.raises(LlamacyError, match="is a folder, wanted a file's name"):
        Outputs(save_path=str(tmp_path / "folder")).check()
    with pytest.raises(LlamacyError, match="--checkpoint-out"):
        Outputs(outdir=str(tmp_path), checkpoint_out=str(tmp_path / "file" / "c.gguf")).check()
    with pytest.raises(LlamacyError, match="is a file, wanted a folder"):
        Outputs(save_path=str(tmp_path / "file"), adapter_format="peft").check()
    with pytest.raises(UsageError, match="--lora-format: wanted one of gguf, .*, got 'onnx'"):
        Outputs(outdir=str(tmp_path), adapter_format="onnx").check()


def test_only_the_newest_numbered_files_are_kept(tmp_path):
    outputs = Outputs(
        outdir=str(tmp_path), lora_out="a-ITERATION.bin", checkpoint_out=str(tmp_path / "c-ITERATION.gguf")
    )
    for step in (2, 10, 9, 30):
        for name in (f"a-{step}.bin", f"c-{step}.gguf"):
            (tmp_path / name).write_text("x")
    (tmp_path / "a-10.bin").unlink()
    (tmp_path / "a-10.bin").mkdir()  # a PEFT folder
    others = ("a-LATEST.bin", "b-1.bin", "a-x.bin", "a-1.bin.txt")
    for name in others:
        (tmp_path / name).write_text("x")
    outputs.prune(2)
    assert sorted(os.listdir(tmp_path)) == sorted([*others, "a-10.bin", "a-30.bin", "c-10.gguf", "c-30.gguf"])
    outputs.prune(1)
    assert sorted(os.listdir(tmp_path)) == sorted([*others, "a-30.bin", "c-30.gguf"])
    Outputs(outdir=str(tmp_path)).prune(1)
    assert (tmp_path / "a-LATEST.bin").exists()
