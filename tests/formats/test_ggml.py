"""Legacy files of every version: the real one, and ones built from the formats' facts with values known beforehand."""

import struct

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra import numpy as hnp

from llamacy.errors import LlamacyError
from llamacy.formats.ggml import llama_scores
from llamacy.formats.ggml_blocks import converter
from llamacy.formats.gguf_writer import write_gguf
from llamacy.formats.layout import TensorInfo
from llamacy.formats.model_file import open_model
from llamacy.formats.types import by_name
from tests.formats.build import MAGICS, N_FF, N_KV, N_VOCAB, legacy

OLD_TYPES = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")
QUANTS = gguf.GGMLQuantizationType


def blocks_of(values, name):
    return gguf.quants.quantize(values, QUANTS[name])


def old_blocks(new, name, wide, neighbours):
    """Return GGUF's blocks, uint8 (rows, bytes), in the layout of an old version, element by element."""
    quant_type, out = by_name(name), []
    n_scales = {"Q4_0": 1, "Q4_1": 2, "Q8_0": 1}.get(name, 0)
    for block in new.reshape(-1, quant_type.type_size):
        head, rest = block[: 2 * n_scales].tobytes(), block[2 * n_scales :].tobytes()
        if wide:
            head = b"".join(struct.pack("<f", *struct.unpack("<e", head[i : i + 2])) for i in range(0, len(head), 2))
        if neighbours and name != "Q8_0":
            nibbles = [byte & 15 for byte in rest[-16:]] + [byte >> 4 for byte in rest[-16:]]
            rest = rest[:-16] + bytes(nibbles[2 * j] | nibbles[2 * j + 1] << 4 for j in range(16))
        out.append(head + rest)
    return b"".join(out)


@pytest.fixture
def opened(tmp_path):
    def open_bytes(content):
        (tmp_path / "old.bin").write_bytes(content)
        return open_model(tmp_path / "old.bin")

    return open_bytes


def test_the_real_file(data):
    with open_model(data / "tiny.ggmlv3.q4_0.bin") as old, open_model(data / "tiny-q8_0.gguf") as new:
        assert (old.format, old.version) == ("ggjt", 3)
        assert list(old.metadata["tokenizer.ggml.tokens"]) == list(new.metadata["tokenizer.ggml.tokens"])
        for key in ("scores", "token_type"):
            np.testing.assert_array_equal(
                old.metadata[f"tokenizer.ggml.{key}"], new.metadata[f"tokenizer.ggml.{key}"], key
            )
        for key in ("block_count", "embedding_length", "feed_forward_length", "rope.dimension_count"):
            assert old.metadata[f"llama.{key}"] == new.metadata[f"llama.{key}"]
        for key in ("head_count", "head_count_kv"):
            assert old.metadata[f"llama.attention.{key}"] == new.metadata[f"llama.attention.{key}"]
        assert old.metadata["llama.attention.layer_norm_rms_epsilon"] == 5e-6
        assert {n: t.shape for n, t in old.tensors.items()} == {n: t.shape for n, t in new.tensors.items()}
        # The two were trained apart, so that only the layout can be compared: 18-byte blocks of sane scales.
        for info in old.tensors.values():
            if info.type.name == "Q4_0":
                scales = np.ascontiguousarray(old.data(info.name).reshape(-1, 18)[:, :2]).view(np.float16)
                assert np.isfinite(scales).all() and np.abs(scales).max() < 10


@pytest.mark.parametrize("version", MAGICS)
@pytest.mark.parametrize("name", ["F32", "F16", *OLD_TYPES])
def test_every_version_and_type_gives_gguf_blocks(opened, version, name):
    wide, neighbours = version[1] < 3, version[1] < 2
    new = {}

    def encode(values):
        if name == "F32":
            blocks = values.view(np.uint8)
        elif name == "F16":
            blocks = values.astype(np.float16).view(np.uint8)
        else:
            blocks = blocks_of(values, name)
        new[values.tobytes()] = blocks
        return old_blocks(blocks, name, wide, neighbours) if name in OLD_TYPES else blocks.tobytes()

    content, values = legacy(*version, by_name(name).number, encode)
    with opened(content) as model:
        assert (model.format, model.version) == version
        assert len(model.tensors) == len(values)
        legacy_names = {
            "token_embd.weight": "tok_embeddings.weight",
            "blk.0.attn_k.weight": "layers.0.attention.wk.weight",
        }
        legacy_names |= {"output.weight": "output.weight", "blk.0.ffn_down.weight": "layers.0.feed_forward.w2.weight"}
        for ours, theirs in legacy_names.items():
            assert model.tensors[ours].shape == values[theirs].shape
            np.testing.assert_array_equal(model.data(ours), new[values[theirs].tobytes()])
        norm = model.data("blk.0.attn_norm.weight")
        assert norm.ctypes.data % 4 == 0
        np.testing.assert_array_equal(norm.view(np.float32)[0], values["layers.0.attention_norm.weight"])


def test_metadata_from_the_shapes(opened):
    model = opened(legacy()[0])
    wanted = {"vocab_size": N_VOCAB, "feed_forward_length": N_FF, "context_length": 2048, "block_count": 1}
    wanted |= {"attention.head_count": 4, "attention.head_count_kv": N_KV // 16, "rope.dimension_count": 16}
    assert {key: model.metadata[f"llama.{key}"] for key in wanted} == wanted
    assert model.metadata["llama.rope.freq_base"] == 10000.0
    tokens = model.metadata["tokenizer.ggml.tokens"]
    assert [tokens[i] for i in (0, 1, 2, 3, 68, 258, 259, 261)] == (
        ["<unk>", "<s>", "</s>", "<0x00>", "<0x41>", "<0xFF>", "▁t", "▁a▁b"]
    )
    assert model.metadata["tokenizer.ggml.token_type"][[0, 1, 2, 3, 258, 259]].tolist() == [2, 3, 3, 6, 6, 1]
    assert model.metadata["tokenizer.ggml.add_bos_token"] and model.metadata["tokenizer.ggml.add_space_prefix"]
    assert model.metadata["general.architecture"] == "llama"


def test_scores_left_out_by_the_first_format(opened, data):
    with open_model(data / "tiny.ggmlv3.q4_0.bin") as known:
        np.testing.assert_array_equal(
            llama_scores(known.metadata["tokenizer.ggml.tokens"]), known.metadata["tokenizer.ggml.scores"]
        )
    scores = opened(legacy("ggml", 0)[0]).metadata["tokenizer.ggml.scores"]
    assert scores[[0, 258, 259, 260, 261]].tolist() == [0, 0, 0, -1, -2]


def test_the_types_survive_in_gguf(opened, tmp_path):
    model = opened(legacy()[0])
    tensors = [(t.name, t.type, t.shape, model.data(t.name)) for t in model.tensors.values()]
    write_gguf(tmp_path / "new.gguf", model.metadata, tensors, model.value_types)
    fields = gguf.GGUFReader(tmp_path / "new.gguf").fields
    u32, f32 = gguf.GGUFValueType.UINT32, gguf.GGUFValueType.FLOAT32
    # llama.cpp insists on these types.
    assert fields["llama.block_count"].types == [u32] and fields["llama.rope.freq_base"].types == [f32]
    assert fields["tokenizer.ggml.add_bos_token"].types == [gguf.GGUFValueType.BOOL]
    assert fields["tokenizer.ggml.scores"].types[1] == f32


@given(hnp.arrays(np.uint8, (3, 24)))
def test_any_block_of_the_oldest_q4_1(block):
    """Bytes of any kind: the two f32 become f16, element 2j of the old is element 2j of the new."""
    block = block.copy()
    block[:, :8] = np.frombuffer(struct.pack("<2f", 0.5, -1.25), np.uint8)
    info = TensorInfo("x", by_name("Q4_1"), (3, 32), 0, 60)
    new = converter(True, True)(info, block.reshape(-1))
    d, m = np.float32(0.5), np.float32(-1.25)
    nibbles = block[:, 8:]
    wanted = np.empty((3, 32), np.float32)
    wanted[:, 0::2], wanted[:, 1::2] = (nibbles & 15) * d + m, (nibbles >> 4) * d + m
    np.testing.assert_array_equal(gguf.quants.dequantize(new, QUANTS.Q4_1), wanted)


def test_more_blocks_than_a_chunk():
    rng = np.random.default_rng(3)
    new = blocks_of(rng.standard_normal((40, 32 * 1000)).astype(np.float32), "Q4_0")
    old = np.frombuffer(old_blocks(new, "Q4_0", True, True), np.uint8)
    info = TensorInfo("x", by_name("Q4_0"), (40, 32000), 0, new.size)
    np.testing.assert_array_equal(converter(True, True)(info, old), new)


@pytest.mark.parametrize("scale", [1e6, float("inf"), float("nan")])
def test_a_scale_without_f16_is_named(opened, scale):
    content, _ = legacy("ggjt", 1, 2, lambda values: struct.pack("<f", scale) * (values.size // 32 * 20 // 4))
    with pytest.raises(LlamacyError, match=r"token_embd\.weight: a scale of .* has no f16"):
        opened(content).data("token_embd.weight")


def patched(content, offset, number):
    return content[:offset] + struct.pack("<I", number) + content[offset + 4 :]


GOOD = legacy()[0]
FIRST_TENSOR = GOOD.index(b"tok_embeddings.weight") - 20
BAD = {
    "version 9": (patched(GOOD, 4, 9), "version 9 is unknown"),
    "ggmf 2": (struct.pack("<2I", MAGICS["ggmf", 1], 2) + bytes(40), "ggmf version 2"),
    "no tokens": (patched(GOOD, 8, 0), "n_vocab is 0"),
    "2^31 - 1 tokens": (patched(GOOD, 8, 2**31 - 1), "2147483647 tokens do not fit"),
    "n_embd -1": (patched(GOOD, 12, 2**32 - 1), "n_embd is -1"),
    "n_head 0": (patched(GOOD, 20, 0), "n_head is 0"),
    "n_head 5": (patched(GOOD, 20, 5), "no multiple"),
    "another n_embd": (patched(GOOD, 12, 128), "wanted rows of 128"),
    "long token": (patched(GOOD, 36, 2**32 - 1), "token 0 leaves"),
    "3 dimensions": (patched(GOOD, FIRST_TENSOR, 3), "3 dimensions"),
    "2^32 - 1 dimensions": (patched(GOOD, FIRST_TENSOR, 2**32 - 1), "4294967295 dimensions"),
    "long name": (patched(GOOD, FIRST_TENSOR + 4, 2**32 - 1), "4294967295 bytes"),
    "type 99": (patched(GOOD, FIRST_TENSOR + 8, 99), "unknown type 99"),
    "huge": (patched(GOOD, FIRST_TENSOR + 16, 2**32 - 1), "truncated or damaged"),
    "another model": (GOOD.replace(b"tok_embeddings.weight", b"tok_embeddingz.weight"), "unknown tensor"),
    "a tensor twice": (GOOD.replace(b"layers.0.attention.wq.weight", b"layers.0.attention.wk.weight"), "two tensors"),
    "no layers": (GOOD[: GOOD.index(b"layers.0.attention.wq") - 20], "missing"),
    "K type in v2": (patched(patched(GOOD, 4, 2), FIRST_TENSOR + 8, 14), "whole blocks of 256"),
}


@pytest.mark.parametrize("case", BAD)
def test_damage_is_named_in_one_line(opened, case):
    content, word = BAD[case]
    with pytest.raises(LlamacyError) as caught:
        opened(content)
    message = str(caught.value)
    assert word in message and "old.bin: " in message and message.isprintable()


def test_every_truncation_is_an_error_or_leaves_whole_tensors(opened):
    refused = 0
    for size in range(4, len(GOOD), 797):
        try:
            with opened(GOOD[:size]) as model:
                for name in model.tensors:
                    model.data(name).sum()
        except LlamacyError:
            refused += 1
    assert refused > len(GOOD) // 797 - 10
