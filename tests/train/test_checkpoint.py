"""Checkpoints come back bit for bit, and other files are told by what they are."""

import numpy as np
import pytest

from llamacy.errors import LlamacyError
from llamacy.formats.gguf_writer import write_gguf
from llamacy.train.checkpoint import load_checkpoint, save_checkpoint

ARRAYS = {
    "blk.0.attn_q.weight.lora_a": np.random.default_rng(1).standard_normal((8, 576), dtype=np.float32),
    "m": np.array([[np.nan, -0.0, np.inf, 1e-45]], np.float32),
    "transposed": np.arange(12, dtype=np.float64).reshape(3, 4).T,
    "rng": np.array([2**64 - 1, 0, 2**63], np.uint64),
    "one": np.array([7], np.int32),
}
VALUES = {"step": 12, "best_loss": 0.1 + 0.2, "best_step": None, "history": [[1, 2.5]], "name": "鱼"}


def test_everything_comes_back_bit_for_bit(tmp_path):
    path = tmp_path / "checkpoint.gguf"
    save_checkpoint(path, VALUES, ARRAYS)
    values, arrays = load_checkpoint(path)
    assert values == VALUES and arrays.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert arrays[name].dtype == array.dtype and arrays[name].tobytes() == np.ascontiguousarray(array).tobytes()
        assert arrays[name].shape == array.shape and arrays[name].flags.writeable


def test_the_gguf_package_reads_it(tmp_path):
    gguf = pytest.importorskip("gguf")
    save_checkpoint(tmp_path / "checkpoint.gguf", VALUES, ARRAYS)
    tensors = {tensor.name: tensor.data for tensor in gguf.GGUFReader(tmp_path / "checkpoint.gguf").tensors}
    assert np.array_equal(tensors["blk.0.attn_q.weight.lora_a"], ARRAYS["blk.0.attn_q.weight.lora_a"])


@pytest.mark.parametrize(
    ("metadata", "wanted"),
    [
        ({"general.architecture": "llama"}, "its type is 'model', wanted a checkpoint"),
        ({"general.type": "adapter"}, "its type is 'adapter', wanted a checkpoint"),
        ({"general.type": "checkpoint", "llamacy.checkpoint.version": 4}, "checkpoint version 4, wanted at most 3"),
        ({"general.type": "checkpoint", "llamacy.checkpoint.version": 2}, "the checkpoint is damaged"),
        (
            {"general.type": "checkpoint", "llamacy.checkpoint.version": 2, "llamacy.checkpoint.values": "{",
             "llamacy.checkpoint.dtypes": "{}"},
            "damaged JSON",
        ),
        (
            {"general.type": "checkpoint", "llamacy.checkpoint.version": 2, "llamacy.checkpoint.values": "{}",
             "llamacy.checkpoint.dtypes": '{"gone": "float32"}'},
            "the checkpoint is damaged",
        ),
    ],
)  # fmt: skip
def test_other_files_are_refused_in_one_line(tmp_path, metadata, wanted):
    write_gguf(tmp_path / "file.gguf", metadata, [])
    with pytest.raises(LlamacyError, match=wanted) as caught:
        load_checkpoint(tmp_path / "file.gguf")
    assert "\n" not in str(caught.value)
