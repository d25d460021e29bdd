"""The ggjt v3 file of llama.cpp's own making, written again as every older version and type: the same answers.

The files are taken apart and put together here, by the formats' facts and without the package's readers.
"""

import struct

import numpy as np
import pytest

from llamacy.formats.gguf_writer import write_gguf
from llamacy.formats.model_file import open_model
from llamacy.formats.types import by_name
from llamacy.kernels.reference import quants
from llamacy.model import load_model
from tests.model.test_legacy import FILE, GREEDY

VERSIONS = [(b"lmgg", 0), (b"fmgg", 1), (b"tjgg", 1), (b"tjgg", 2), (b"tjgg", 3)]
# name -> (f16 scales in front, bytes of nibbles at the end)
TYPES = {"Q4_0": (1, 16), "Q4_1": (2, 16), "Q5_0": (1, 16), "Q5_1": (2, 16), "Q8_0": (1, 0)}
WIDE = ("Q4_0", "Q4_1", "Q8_0")
N_CUT = 320  # tokens that the small ones keep


def taken_apart():
    """Return (seven numbers, [(text, score)], [(name, type number, extents, bytes)])."""
    content, place = FILE.read_bytes(), 36
    assert content[:8] == b"tjgg" + struct.pack("<I", 3)
    numbers, words, tensors = list(struct.unpack_from("<7i", content, 8)), [], []
    for _ in range(numbers[0]):
        (length,) = struct.unpack_from("<I", content, place)
        text = content[place + 4 : place + 4 + length]
        words.append((text, struct.unpack_from("<f", content, place + 4 + length)[0]))
        place += 8 + length
    while place < len(content):
        n_dims, length, number = struct.unpack_from("<3I", content, place)
        extents = struct.unpack_from(f"<{n_dims}I", content, place + 12)
        place += 12 + 4 * n_dims
        name = content[place : place + length]
        place += length
        place += -place % 32
        n_elements = int(np.prod(extents))
        size = n_elements * 4 if number == 0 else n_elements // 32 * 18
        tensors.append((name, number, extents, content[place : place + size]))
        place += size
    return numbers, words, tensors


def old_blocks(name, blocks, version):
    """Return GGUF's blocks as `version` stores them: scales in f32 up to v2, neighbours in a byte up to v1."""
    if name not in TYPES:
        return blocks.tobytes()
    n_scales, n_nibbles = TYPES[name]
    rows = np.frombuffer(blocks.tobytes(), np.uint8).reshape(-1, by_name(name).type_size)
    scales, rest = rows[:, : 2 * n_scales], rows[:, 2 * n_scales :]
    if version < 3 and name in WIDE:
        scales = np.ascontiguousarray(scales).view(np.float16).astype("<f4").view(np.uint8)
    if version < 2 and n_nibbles:
        high, nibbles = rest[:, :-16], rest[:, -16:]
        elements = np.concatenate([nibbles & 15, nibbles >> 4], axis=1)
        rest = np.concatenate([high, elements[:, ::2] | elements[:, 1::2] << 4], axis=1)
    return np.concatenate([scales, rest], axis=1).tobytes()


def put_together(path, magic, version, numbers, words, tensors):
    """Write a legacy file; tensors are (name, type name, extents, GGUF's blocks)."""
    out = magic + (b"" if magic == b"lmgg" else struct.pack("<I", version)) + struct.pack("<7i", *numbers)
    for text, score in words:
        out += struct.pack("<I", len(text)) + text + (b"" if magic == b"lmgg" else struct.pack("<f", score))
    for name, kind, extents, blocks in tensors:
        out += struct.pack(f"<3I{len(extents)}I", len(extents), len(name), by_name(kind).number, *extents) + name
        out += bytes(-len(out) % 32) if magic == b"tjgg" else b""
        out += old_blocks(kind, blocks, version)
    path.write_bytes(out)
    return path


def small(type_name):
    """The parts with N_CUT tokens and every matrix as `type_name`."""
    numbers, words, tensors = taken_apart()
    numbers[0], made = N_CUT, []
    for name, number, extents, content in tensors:
        if number == 0:
            made.append((name, "F32", extents, np.frombuffer(content, np.uint8)))
            continue
        rows = np.frombuffer(content, np.uint8).reshape(extents[1], -1)
        n_rows = min(extents[1], N_CUT) if extents[1] == 32000 else extents[1]
        values = quants.dequantize("Q4_0", rows[:n_rows], np.float32)
        made.append((name, type_name, (extents[0], n_rows), quants.quantize(type_name, values)))
    return numbers, words[:N_CUT], made


def logits_of(path, **how):
    model = load_model(path, activations="f32", threads=2, **how)
    tokens, n = np.arange(1, 300, 13), np.arange(23)
    return model.new_session(1, 64).step(tokens, n, np.zeros(23, int), n)


@pytest.mark.parametrize("type_name", ["F32", "F16", *TYPES])
def test_every_type_and_version_answers_alike(tmp_path, type_name):
    """Bit for bit what a GGUF file of the same blocks answers: f16 scales survive their way through f32."""
    parts = small(type_name)
    with open_model(put_together(tmp_path / "v3.bin", b"tjgg", 3, *parts)) as file:
        tensors = [(t.name, t.type, t.shape, file.data(t.name)) for t in file.tensors.values()]
        assert {t.type.name for t in file.tensors.values() if len(t.shape) == 2} == {type_name}
        stored = [np.asarray(blocks).tobytes() for *_, blocks in parts[2]]
        assert [data.tobytes() for *_, data in tensors] == stored
        write_gguf(tmp_path / "m.gguf", file.metadata, tensors, file.value_types)
    wanted = logits_of(tmp_path / "m.gguf")
    assert np.isfinite(wanted).all() and wanted.std() > 0.5
    for magic, version in VERSIONS:
        found = logits_of(put_together(tmp_path / "old.bin", magic, version, *parts))
        np.testing.assert_array_equal(found, wanted, f"{magic} {version}")


def test_what_a_legacy_file_does_not_say_may_be_told(tmp_path):
    path = put_together(tmp_path / "old.bin", b"tjgg", 1, *small("Q4_1"))
    plain = logits_of(path)
    with open_model(path) as file:
        tensors = [(t.name, t.type, t.shape, file.data(t.name)) for t in file.tensors.values()]
        metadata, types = file.metadata, file.value_types
    for key, value, how in (
        ("attention.layer_norm_rms_epsilon", 0.01, {"rms_eps": 0.01}),
        ("rope.freq_base", 700.0, {"rope_theta": 700.0}),
    ):
        write_gguf(tmp_path / "m.gguf", metadata | {f"llama.{key}": value}, tensors, types)
        told = logits_of(path, **how)
        np.testing.assert_array_equal(told, logits_of(tmp_path / "m.gguf"))
        assert np.abs(told - plain).max() > 1e-3


@pytest.mark.parametrize(("magic", "version"), VERSIONS[:-1])
def test_the_text_is_its_own_tools_text(tmp_path, magic, version):
    numbers, words, tensors = taken_apart()
    named = [(name, "F32" if number == 0 else "Q4_0", extents, np.frombuffer(content, np.uint8))
             for name, number, extents, content in tensors]  # fmt: skip
    model = load_model(put_together(tmp_path / "old.bin", magic, version, numbers, words, named), activations="f32")
    ids = model.tokenizer.encode("This License grants you")
    session, n_prompt, text = model.new_session(1, 128), len(ids), ""
    logits = session.step(ids, np.arange(n_prompt), np.zeros(n_prompt, int), [n_prompt - 1])
    while len(text) < len(GREEDY):
        ids.append(int(logits[0].argmax()))
        text = model.tokenizer.decode(ids[n_prompt:])
        logits = session.step(ids[-1:], [len(ids) - 1], [0], [0])
    assert text.lstrip() == GREEDY.lstrip()
