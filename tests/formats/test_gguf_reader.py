"""The GGUF reader against files built by hand, files of the gguf package, and lies of every kind."""

import os

import gguf
import numpy as np
import pytest

from llamacy.errors import LlamacyError
from llamacy.formats.gguf_writer import write_gguf
from llamacy.formats.model_file import open_model
from llamacy.formats.strings import StringArray
from llamacy.formats.types import REMOVED, TYPES, by_name
from tests.formats.build import ARRAY, BOOL, F32, STRING, U8, U32, U64, Gguf, every_value


@pytest.fixture
def opened(tmp_path):
    """Return a function from bytes to the open ModelFile of a file that holds them."""

    def open_bytes(content):
        path = tmp_path / "model.gguf"
        path.write_bytes(content)
        return open_model(path)

    return open_bytes


def plain(value):
    """Return metadata as Python lists and scalars."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    return [plain(item) for item in value] if isinstance(value, (list, StringArray)) else value


def test_types_are_the_packages():
    theirs = {t.name: (t.value, *gguf.GGML_QUANT_SIZES[t]) for t in gguf.GGMLQuantizationType}
    ours = {t.name: (t.number, t.block_size, t.type_size) for t in TYPES.values()}
    # Q8_1 is never stored; the package still has the two f32 of its first year, ggml.h has two f16 since.
    common = ours.keys() & theirs.keys() - {"Q8_1"}
    assert len(common) >= 30
    assert {name: ours[name] for name in common} == {name: theirs[name] for name in common}
    assert by_name("q4_0") is TYPES[2]


@pytest.mark.parametrize("version", [1, 2, 3])
def test_every_value_of_every_version(opened, version):
    file = Gguf(version)
    wanted = every_value(file)
    content = np.arange(6, dtype=np.float32)
    file.tensor("x", (3, 2), 0, content.tobytes())
    with opened(file.bytes()) as model:
        assert (model.format, model.version) == ("gguf", version)
        assert {key: plain(value) for key, value in model.metadata.items()} == wanted
        assert model.metadata["texts"].bytes(3) == b"\0b"
        assert model.tensors["x"].shape == (2, 3)
        np.testing.assert_array_equal(model.data("x").view(np.float32), content.reshape(2, 3))


def test_arrays_are_typed_and_bools_are_bools(opened):
    model = opened(Gguf().key("odd", BOOL, 7).key("b", ARRAY, (BOOL, [0, 2])).key("u", ARRAY, (U64, [2**63])).bytes())
    assert model.metadata["odd"] is True
    assert model.metadata["b"].dtype == np.bool_
    assert model.metadata["u"].dtype == np.uint64
    assert model.value_types == {"odd": "bool"}


def test_the_packages_writer(tmp_path):
    writer = gguf.GGUFWriter(str(tmp_path / "theirs.gguf"), "llama")
    writer.add_custom_alignment(256)
    writer.add_uint32("a.u32", 7)
    writer.add_float64("a.f64", 0.1)
    writer.add_bool("a.bool", True)
    writer.add_string("a.text", "é\n讲")
    writer.add_array("a.texts", ["x", "", "讲"])
    writer.add_array("a.ints", [1, -2, 3])
    writer.add_array("a.floats", [0.5, 1.5])
    rng = np.random.default_rng(1)
    values = rng.standard_normal((6, 64)).astype(np.float32)
    writer.add_tensor("plain", values)
    writer.add_tensor("half", values.astype(np.float16))
    packed = {}
    for name in ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "BF16"):
        kind = gguf.GGMLQuantizationType[name]
        packed[name] = gguf.quants.quantize(values, kind)
        writer.add_tensor(name, packed[name], raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with open_model(tmp_path / "theirs.gguf") as model:
        expected = {"a.u32": 7, "a.f64": 0.1, "a.bool": True, "a.text": "é\n讲", "a.texts": ["x", "", "讲"]}
        expected |= {"a.ints": [1, -2, 3], "a.floats": [0.5, 1.5]}
        assert {key: plain(model.metadata[key]) for key in expected} == expected
        np.testing.assert_array_equal(model.data("plain").view(np.float32), values)
        np.testing.assert_array_equal(model.data("half").view(np.float16), values.astype(np.float16))
        for name, blocks in packed.items():
            assert model.tensors[name].type is by_name(name)
            assert model.tensors[name].shape == (6, 64)
            assert model.tensors[name].offset % 256 == 0
            np.testing.assert_array_equal(model.data(name), blocks.view(np.uint8))


def test_data_is_a_view_that_outlives_close(opened):
    model = opened(Gguf().tensor("x", (4, 2), 0, np.arange(8, dtype=np.float32).tobytes()).bytes())
    view = model.data("x")
    assert not view.flags.owndata and not view.flags.writeable
    model.release("x")
    model.close()
    np.testing.assert_array_equal(view.view(np.float32).ravel(), np.arange(8))


def test_release_keeps_the_content(tmp_path):
    content = np.arange(65536, dtype=np.float32)
    write_gguf(tmp_path / "m.gguf", {}, [("x", by_name("F32"), (256, 256), content)])
    with open_model(tmp_path / "m.gguf") as model:
        before = model.data("x").copy()
        model.release("x")
        np.testing.assert_array_equal(model.data("x"), before)


def test_without_mmap(tmp_path):
    content = [np.arange(i, i + 65536, dtype=np.float32) for i in range(3)]
    write_gguf(tmp_path / "m.gguf", {"k": 1}, [(f"x{i}", by_name("F32"), (256, 256), content[i]) for i in range(3)])
    with open_model(tmp_path / "m.gguf", use_mmap=False) as model:
        for i, done in enumerate([False, True, False]):
            view = model.data(f"x{i}")
            assert not view.flags.writeable
            model.release(f"x{i}", done)
            # the pages of a copy hold zeros once they were given back
            assert view.view(np.float32)[7, 3] == (0 if done else i + 7 * 256 + 3)
        for i in range(3):
            np.testing.assert_array_equal(model.data(f"x{i}").view(np.float32).ravel(), content[i])
        model.release("x1", done=True)
        os.truncate(tmp_path / "m.gguf", 70000)
        with pytest.raises(LlamacyError, match=r"m\.gguf: became shorter while it was read; wait until it is complete"):
            model.data("x1")


HUGE = [2**31, 2**32 - 1, 2**62, 2**63 - 1, 2**63, 2**64 - 1]


def with_counts(n_tensors, n_keys):
    file = Gguf().key("a", U32, 1).tensor("x", (4,), 0, bytes(16))
    file.n_tensors, file.n_keys = n_tensors, n_keys
    return file.bytes()


def string_array(count, content=b""):
    return Gguf().key("a", ARRAY, None, Gguf().array(STRING, count, content)).bytes()


def deep(levels):
    """Return an array inside an array inside an array ..."""
    content = Gguf().array(U8, 0, b"")
    for _ in range(levels):
        content = Gguf().array(ARRAY, 1, content)
    return Gguf().key("a", ARRAY, None, content).bytes()


def tensors(*rows):
    file = Gguf()
    for name, shape, number, offset, size in rows:
        file.tensor(name, shape, number, bytes(size), offset=offset)
    return file.bytes()


LIES = {
    "big-endian": (Gguf(3, ">").key("a", U32, 1).bytes(), "big-endian"),
    "version 0": (Gguf(0).bytes(), "version 0"),
    "version 4": (Gguf(4).bytes(), "version 4"),
    "only a magic": (b"GGUF", "truncated"),
    "more keys than bytes": (with_counts(1, 1000), "key count"),
    "key twice": (Gguf().key("a", U32, 1).key("a", U32, 2).bytes(), "stands twice"),
    "empty key": (Gguf().key("", U32, 1).bytes(), "empty"),
    "NUL in a key": (Gguf().key("a\0b", U32, 1).bytes(), "NUL"),
    "key not UTF-8": (Gguf().key(b"\xff\xfe", U32, 1).bytes(), "UTF-8"),
    "unknown value type": (Gguf().key("a", 99, None, b"1234").bytes(), "unknown type 99"),
    "unknown element type": (Gguf().key("a", ARRAY, None, Gguf().array(99, 1, b"")).bytes(), "unknown type 99"),
    "alignment 0": (Gguf().key("general.alignment", U32, 0).bytes(), "power of two"),
    "alignment 24": (Gguf().key("general.alignment", U32, 24).bytes(), "power of two"),
    "alignment a word": (Gguf().key("general.alignment", STRING, "x").bytes(), "power of two"),
    "alignment beyond the file": (
        Gguf().key("general.alignment", U32, 1 << 31).tensor("x", (4,), 0, bytes(16)).bytes(),
        "truncated",
    ),
    "string leaves the array": (string_array(2, Gguf().string("ok") + Gguf().string("bad", 100)), "string 1"),
    "nested too deep": (deep(5), "nested"),
    "nested very deep": (deep(5000), "nested"),
    "nested too wide": (
        Gguf().key("a", ARRAY, (ARRAY, [(U8, [])] * 5000)).bytes(),
        "truncated or damaged",
    ),
    "tensor name twice": (tensors(("x", (4,), 0, None, 16), ("x", (4,), 0, None, 16)), "two tensors"),
    "NUL in a tensor's name": (tensors(("x\0", (4,), 0, None, 16)), "NUL"),
    "five dimensions": (tensors(("x", (1, 1, 1, 1, 4), 0, None, 16)), "5 dimensions"),
    "2^32 - 1 dimensions": (Gguf().tensor("x", (4,), 0, bytes(16), n_dims=2**32 - 1).bytes(), "4294967295 dim"),
    "unknown tensor type": (tensors(("x", (4,), 77, None, 16)), "unknown type 77"),
    "removed tensor type": (tensors(("x", (32,), 4, None, 32)), "Q4_2"),
    "half a block": (tensors(("x", (33,), 2, None, 64)), "whole blocks of 32"),
    "unaligned": (tensors(("x", (4,), 0, 4, 64)), "multiple of 32"),
    "overlap": (tensors(("x", (16,), 0, 0, 64), ("y", (16,), 0, 32, 64)), "overlap"),
    "the same place": (tensors(("x", (16,), 0, 0, 64), ("y", (16,), 0, 0, 64)), "overlap"),
    "beyond the end": (tensors(("x", (16,), 0, 64, 64)), "ends at"),
    "shape overflows 2^64": (tensors(("x", (2**32, 2**32, 2**32, 4), 0, None, 16)), "ends at"),
}
for n in HUGE:
    LIES |= {
        f"{n} keys": (with_counts(1, n), "key count"),
        f"{n} tensors": (with_counts(n, 1), "tensor count"),
        f"{n} strings": (string_array(n), "length of 'a'"),
        f"a string of {n}": (Gguf().key("a", STRING, None, Gguf().string("abc", n)).bytes(), "truncated"),
        f"a key of {n}": (Gguf().key("a", U32, 1).bytes().replace(Gguf().string("a"), Gguf().string("a", n)), "key"),
        f"{n} numbers": (Gguf().key("a", ARRAY, None, Gguf().array(F32, n, b"")).bytes(), "truncated"),
        f"{n} arrays": (Gguf().key("a", ARRAY, None, Gguf().array(ARRAY, n, b"")).bytes(), "length of 'a'"),
        f"{n} rows": (tensors(("x", (4, n), 0, None, 16)), "ends at"),
        f"rows of {n}": (tensors(("x", (n,), 0, None, 16)), "ends at"),
        f"at {n}": (tensors(("x", (4,), 0, n // 32 * 32, 16)), "ends at"),
    }
LIES |= {f"{n} rows of nothing": (tensors(("x", (0, n), 0, None, 16)), "has the shape") for n in HUGE[2:]}


@pytest.mark.parametrize("case", LIES)
def test_lies_are_named_in_one_line(opened, case):
    content, word = LIES[case]
    with pytest.raises(LlamacyError) as caught:
        opened(content)
    message = str(caught.value)
    assert word in message
    assert "model.gguf: " in message and "\n" not in message and message.isprintable()


def test_every_truncation_is_an_error(opened):
    file = Gguf()
    every_value(file)
    whole = file.tensor("x", (8,), 0, np.arange(8, dtype=np.float32).tobytes()).bytes()
    for size in range(1, len(whole)):
        with pytest.raises(LlamacyError):
            opened(whole[:size])


STRANGERS = {
    "text": (b"hello, world", "begins with 'hello, w'"),
    "git-lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git lfs pull"),
    "web page": (b"<!DOCTYPE html><html></html>", "web page"),
    "zip": (b"PK\x03\x04 archive/data.pkl", "PyTorch"),
    "gzip": (b"\x1f\x8b\x08\x00", "gzip"),
    "zeros": (bytes(5000), "zeros"),
    "control characters": (b"\x1b[2Jabc", "'\\x1b[2Jabc'"),
    "empty": (b"", "is empty"),
    "one byte": (b"G", "begins with 'G'"),
}


@pytest.mark.parametrize("case", STRANGERS)
def test_other_files_are_named(opened, case):
    content, word = STRANGERS[case]
    with pytest.raises(LlamacyError) as caught:
        opened(content)
    assert word in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(("path", "word"), [(".", "is a folder"), ("nothing/here", "No such file"), ("a\0b", "null")])
def test_paths_that_are_no_files(path, word):
    with pytest.raises(LlamacyError, match=word):
        open_model(path)


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    import os

    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(LlamacyError, match="not a regular file"):
        open_model(tmp_path / "pipe")


@pytest.mark.parametrize("number", REMOVED)
def test_removed_types_are_no_types(number):
    assert number not in TYPES
