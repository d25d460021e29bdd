"""K types in ggjt v3, as llama.cpp wrote them from June to August 2023: blocks bit for bit, and the same logits."""

import gguf
import numpy as np
import pytest

from llamacy import kernels
from llamacy.cli import convert
from llamacy.cli.run import run
from llamacy.errors import LlamacyError
from llamacy.formats.model_file import open_model
from llamacy.formats.types import by_name
from llamacy.model import load_model
from tests.formats import build
from tests.model.tiny import logits_of

# name -> the file's own ftype number of then
FTYPES = {"Q2_K": 10, "Q3_K": 12, "Q4_K": 15, "Q5_K": 17, "Q6_K": 18}
NAMES = {"tok_embeddings.weight": "token_embd.weight", "layers.0.attention.wk.weight": "blk.0.attn_k.weight"}
NAMES |= {"output.weight": "output.weight", "layers.0.feed_forward.w2.weight": "blk.0.ffn_down.weight"}


def write(path, monkeypatch, kind, version=3):
    """Write a model whose rows divide into 256, matrices of `kind`; return {name: blocks uint8 (n_rows, row bytes)}."""
    for name, size in {"N_EMBD": 256, "N_KV": 128, "N_FF": 512}.items():
        monkeypatch.setattr(build, name, size)
    number = by_name(kind).number

    def encode(values):
        return kernels.quants.quantize(0.05 * values, number).tobytes()

    content, values = build.legacy("ggjt", version, number, encode, FTYPES[kind])
    path.write_bytes(content)
    return {name: kernels.quants.quantize(0.05 * x, number) for name, x in values.items() if x.ndim == 2}


@pytest.mark.parametrize("kind", FTYPES)
def test_blocks_come_through_and_the_answers_stay(tmp_path, monkeypatch, kind):
    old, new = tmp_path / "old.bin", tmp_path / "new.gguf"
    blocks = write(old, monkeypatch, kind)
    assert run(convert.main, [str(old), str(new)]) == 0
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(new).tensors}
    with open_model(old) as model:
        for theirs, ours in NAMES.items():
            assert model.tensors[ours].type is by_name(kind)
            np.testing.assert_array_equal(model.data(ours), blocks[theirs])
            assert tensors[ours].tensor_type.name == kind
            np.testing.assert_array_equal(tensors[ours].data, blocks[theirs])
        assert model.metadata["llama.attention.head_count_kv"] == 2
        assert model.metadata["general.file_type"] == FTYPES[kind]
    tokens = np.random.default_rng(1).integers(3, build.N_VOCAB, 12)
    found = [logits_of(load_model(path), tokens) for path in (old, new)]
    assert np.isfinite(found[0]).all() and found[0].std() > 0
    np.testing.assert_array_equal(*found)


def test_older_versions_never_had_them(tmp_path, monkeypatch):
    write(tmp_path / "old.bin", monkeypatch, "Q4_K", version=2)
    with pytest.raises(LlamacyError, match="Q4_K, which ggjt version 2 never had"):
        open_model(tmp_path / "old.bin")
