"""Models that cannot be loaded: one line that says which tensor or key, what was wanted and what was found."""

import numpy as np
import pytest

from llamacy.errors import LlamacyError
from llamacy.formats import types
from llamacy.formats.gguf_writer import write_gguf
from llamacy.formats.model_file import open_model
from llamacy.formats.types import by_name
from llamacy.kernels.reference import model as twin
from llamacy.model import load_model
from tests.model.tiny import CONFIG, metadata, write_llama

WEIGHTS = twin.random_weights(CONFIG, 20)


def refused(path, **how):
    """Return the words of the one line that loading `path` ends with."""
    with pytest.raises(LlamacyError) as caught:
        load_model(path, threads=1, **how)
    message = str(caught.value)
    assert message.startswith(str(path)) and "\n" not in message
    return message.removeprefix(str(path))


@pytest.mark.parametrize("name", ["blk.1.ffn_down", "blk.0.attn_norm", "output_norm", "token_embd"])
def test_a_missing_tensor(tmp_path, name):
    write_llama(tmp_path / "m.gguf", CONFIG, WEIGHTS, leave_out=[f"{name}.weight"])
    assert f"{name}.weight" in refused(tmp_path / "m.gguf")


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("blk.0.attn_k.weight", (64, 64)),
        ("blk.1.ffn_norm.weight", (32,)),
        ("output.weight", (96, 64)),
        ("blk.0.ffn_up.weight", (96,)),
    ],
)
def test_a_wrong_shape(tmp_path, name, shape):
    write_llama(tmp_path / "m.gguf", CONFIG, WEIGHTS | {name: np.ones(shape)})
    words = refused(tmp_path / "m.gguf")
    assert f"{name} has shape {shape}" in words and "wanted" in words


def test_a_type_without_kernels(tmp_path):
    kind = types.by_name("Q8_1")
    tensors = [(name, types.by_name("F32"), x.shape, x.astype(np.float32)) for name, x in WEIGHTS.items()]
    tensors[1] = ("blk.0.attn_q.weight", kind, (64, 64), bytes(64 * kind.row_bytes(64)))
    write_gguf(tmp_path / "m.gguf", metadata(CONFIG), tensors)
    words = refused(tmp_path / "m.gguf")
    assert "blk.0.attn_q.weight is Q8_1" in words and "Q4_0" in words


def test_norms_that_are_not_numbers(tmp_path):
    broken = np.ones(64)
    broken[3] = np.nan
    write_llama(tmp_path / "m.gguf", CONFIG, WEIGHTS | {"blk.0.ffn_norm.weight": broken})
    assert "blk.0.ffn_norm.weight holds values that are not finite" in refused(tmp_path / "m.gguf")


def damage(path, tensor, offset, value=0x7E00):
    """Overwrite two bytes of a tensor in a file."""
    with open_model(path) as file:
        start = file.tensors[tensor].offset + offset
    with open(path, "r+b") as file:
        file.seek(start)
        file.write(value.to_bytes(2, "little"))


@pytest.mark.parametrize("value", [0x7E00, 0xFC00], ids=["none", "minus infinity"])
@pytest.mark.parametrize("type_name", ["Q8_0", "Q4_1", "F16"])
@pytest.mark.parametrize("name", ["blk.0.attn_k.weight", "blk.1.ffn_down.weight", "output.weight", "token_embd.weight"])
def test_a_scale_that_is_no_number(tmp_path, name, type_name, value):
    path = tmp_path / "m.gguf"
    write_llama(path, CONFIG, WEIGHTS, type_name)
    damage(path, name, 3 * by_name(type_name).type_size, value)
    assert refused(path).startswith(f": {name} holds values that are not finite; the file is damaged")


def test_a_scale_that_is_no_number_in_a_table_that_is_the_output_too(tmp_path):
    path = tmp_path / "m.gguf"
    write_llama(path, CONFIG, WEIGHTS, "Q8_0", leave_out=["output.weight"])
    load_model(path, threads=1)
    damage(path, "token_embd.weight", 96 * 2 * 34)
    assert ": token_embd.weight holds values that are not finite" in refused(path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"general.architecture": "mamba"}, "'mamba' is not supported, wanted one of llama"),
        ({"general.architecture": None}, "architecture"),
        ({"general.type": "adapter"}, "an adapter, wanted a model"),
        ({"general.type": "checkpoint"}, "a checkpoint of finetune, wanted a model"),
        ({"llama.embedding_length": None}, "llama.embedding_length: wanted a whole number, got None"),
        ({"llama.block_count": "two"}, "llama.block_count: wanted a whole number, got 'two'"),
        ({"llama.block_count": 0}, "n_layer is 0"),
        ({"llama.block_count": 1 << 31}, "n_layer is 2147483648"),
        ({"llama.block_count": 3}, "blk.2."),
        ({"llama.attention.head_count": 0}, "0 heads"),
        ({"llama.attention.head_count_kv": 3}, "do not divide"),
        ({"llama.rope.dimension_count": 15}, "15 rotating elements"),
        ({"llama.rope.dimension_count": 18}, "18 rotating elements"),
        ({"llama.rope.freq_base": -1.0}, "rope_theta -1.0"),
        ({"llama.attention.layer_norm_rms_epsilon": float("nan")}, "rms_eps nan"),
        ({"llama.rope.scaling.type": "su"}, "rope scaling 'su' is not supported, wanted one of none, linear, yarn, "),
        ({"llama.embedding_length": 128}, "shape"),
    ],
)
def test_metadata_that_cannot_be(tmp_path, change, words):
    write_llama(tmp_path / "m.gguf", CONFIG, WEIGHTS, change=change)
    assert words in refused(tmp_path / "m.gguf")


def test_activations_that_do_not_exist(tmp_path):
    write_llama(tmp_path / "m.gguf", CONFIG, WEIGHTS)
    with pytest.raises(LlamacyError, match="'int4': wanted one of f32, int8, int16"):
        load_model(tmp_path / "m.gguf", activations="int4")


def test_a_cache_beyond_memory(tmp_path):
    write_llama(tmp_path / "m.gguf", CONFIG, WEIGHTS)
    with pytest.raises(LlamacyError, match="--ctx-size"):
        load_model(tmp_path / "m.gguf", threads=1).new_session(1 << 15, 1 << 30)


def test_overrides_of_the_file(tmp_path):
    write_llama(tmp_path / "m.gguf", CONFIG, WEIGHTS)
    model = load_model(tmp_path / "m.gguf", rms_eps=1e-3, rope_theta=5e5, n_ctx=77, threads=1)
    assert (model.config.rms_eps, model.config.rope.theta, model.n_ctx_train) == (1e-3, 5e5, 77)
    assert model.name == "tiny"
