"""The code of docs/python.md runs as it stands, top to bottom."""

import re
import shutil

from tests.server.test_server_command import MODEL, ROOT


def test_every_example_runs(tmp_path, monkeypatch, recwarn):
    shutil.copy(MODEL, tmp_path / "model.gguf")
    shutil.copy(ROOT / "examples" / "instructions.jsonl", tmp_path / "data.jsonl")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "python.md").read_text(encoding="utf-8"), re.S)
    assert len(blocks) > 5
    names = {}
    for block in blocks:
        exec(compile(block, "docs/python.md", "exec"), names)
    assert (tmp_path / "peft-adapter" / "adapter_model.safetensors").exists() and (tmp_path / "small.gguf").exists()
    assert names["answer"].text in ("yes", "no") and int(names["number"].text) in (1, 2, 3)
    assert len(names["result"].losses) == 6
