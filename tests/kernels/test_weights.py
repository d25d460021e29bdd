"""A model's weights as steps see them: the embedding that is the output matrix too is looked up in its tiles."""

import numpy as np
import pytest

from llamacy.kernels import load

SIZES = {"n_embd": 256, "n_head": 4, "n_head_kv": 2, "head_dim": 64, "n_ff": 32, "n_vocab": 83, "n_rot": 64}
MORE = {"rms_eps": 1e-5, "rope_layout": 0, "ropes": [(np.ones(32), 1.0)]}


def test_a_row_from_tiles_has_the_bits_of_the_file_s_row(isa):
    quants, matmul, weights = (load(name, isa) for name in ("quants", "matmul", "weights"))
    values = np.random.default_rng(1).normal(size=(SIZES["n_vocab"], SIZES["n_embd"])).astype(np.float32)
    for number in quants.writable():
        rows = quants.quantize(values, number)
        packed = matmul.PackedMatrix(rows, number, SIZES["n_embd"])
        made = (SIZES | MORE, [], packed, np.ones(SIZES["n_embd"]))
        ids = [82, 0, 17, 16, 15]
        tied, apart = weights.Weights(*made), weights.Weights(*made, rows, number)
        np.testing.assert_array_equal(tied.embeddings(ids), quants.dequantize(rows[ids], number))
        np.testing.assert_array_equal(tied.embeddings(ids), apart.embeddings(ids))


def test_tokens_that_do_not_exist_are_refused(isa):
    matmul, weights = load("matmul", isa), load("weights", isa)
    packed = matmul.PackedMatrix(np.zeros((83, 1024), np.uint8), 0, 256)
    made = weights.Weights(SIZES | MORE, [], packed, np.ones(256))
    with pytest.raises(ValueError, match="token 83 is not in"):
        made.embeddings([83])
