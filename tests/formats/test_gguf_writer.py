"""The GGUF writer: anything survives, and the gguf package reads it back."""

import weakref

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llamacy.errors import LlamacyError
from llamacy.formats.gguf_writer import write_gguf
from llamacy.formats.model_file import open_model
from llamacy.formats.strings import StringArray
from llamacy.formats.types import TYPES, by_name
from tests.formats.test_gguf_reader import plain

LIMITED = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
F32 = by_name("F32")

names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=15)
numbers = st.one_of(
    st.booleans(), st.integers(-(2**63), 2**64 - 1), st.floats(width=32, allow_nan=False), st.text(max_size=9)
).filter(lambda value: not isinstance(value, str) or value.encode("utf-8", "ignore").decode() == value)
arrays = st.sampled_from(["u1", "i1", "u2", "i2", "u4", "i4", "f4", "?", "u8", "i8", "f8"]).flatmap(
    lambda dtype: st.lists(st.integers(0, 1), max_size=6).map(lambda items: np.array(items, dtype))
)
texts = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=6), min_size=1, max_size=6)
metadata_values = st.one_of(numbers, arrays, texts, texts.map(StringArray.of), st.lists(arrays, min_size=1, max_size=3))


@st.composite
def tensor_lists(draw):
    """Draw (name, QuantType, shape, bytes) with any type and 0 to 4 dimensions, empty ones too."""
    found = []
    for name in draw(st.lists(names, unique=True, max_size=4)):
        quant_type = TYPES[draw(st.sampled_from(sorted(TYPES)))]
        shape = draw(st.lists(st.integers(0, 3), max_size=4))
        if quant_type.block_size > 1 and not shape:
            shape = [1]
        if shape:
            shape[-1] *= quant_type.block_size
        count = int(np.prod(shape, dtype=object)) if shape else 1
        size = count // quant_type.block_size * quant_type.type_size
        seed = draw(st.integers(0, 99))
        found.append((name, quant_type, tuple(shape), np.random.default_rng(seed).bytes(size)))
    return found


@LIMITED
@given(
    metadata=st.dictionaries(names, metadata_values, max_size=6),
    tensors=tensor_lists(),
    alignment=st.sampled_from([None, 1, 8, 32, 64, 4096]),
)
def test_anything_survives(tmp_path, metadata, tensors, alignment):
    if alignment:
        metadata["general.alignment"] = alignment
    path = tmp_path / "m.gguf"
    write_gguf(path, metadata, tensors)
    with open_model(path) as model:
        assert list(model.metadata) == list(metadata)
        for key, value in metadata.items():
            assert plain(model.metadata[key]) == plain(value), key
            if isinstance(value, np.ndarray):
                assert model.metadata[key].dtype == value.dtype
        assert list(model.tensors) == [name for name, *_ in tensors]
        for name, quant_type, shape, content in tensors:
            info = model.tensors[name]
            assert (info.type, info.shape, info.nbytes) == (quant_type, shape, len(content))
            assert info.offset % (alignment or 32) == 0
            assert model.data(name).shape == (info.n_rows, info.row_bytes)
            assert model.data(name).tobytes() == content
    first = path.read_bytes()
    # Written again from what was read, with the file's own types, it is the same file.
    with open_model(path) as model:
        again = [(t.name, t.type, t.shape, lambda n=t.name: model.data(n)) for t in model.tensors.values()]
        write_gguf(tmp_path / "again.gguf", model.metadata, again, model.value_types)
    assert (tmp_path / "again.gguf").read_bytes() == first


@LIMITED
@given(metadata=st.dictionaries(names, st.one_of(numbers, arrays, texts), max_size=5), tensors=tensor_lists())
def test_the_packages_reader_agrees(tmp_path, metadata, tensors):
    known = {t.value for t in gguf.GGMLQuantizationType} - {9}
    # Without dimensions or elements the package's reader has no answer of its own.
    tensors = [row for row in tensors if row[1].number in known and row[2] and row[3]]
    metadata = {key: value for key, value in metadata.items() if not isinstance(value, np.ndarray) or len(value)}
    path = tmp_path / "m.gguf"
    write_gguf(path, metadata, tensors)
    theirs = gguf.GGUFReader(path)
    for key, value in metadata.items():
        assert theirs.fields[key].contents() == plain(value)
    assert len(theirs.tensors) == len(tensors)
    for tensor, (name, quant_type, shape, content) in zip(theirs.tensors, tensors, strict=True):
        assert (tensor.name, tensor.tensor_type.value) == (name, quant_type.number)
        assert tuple(tensor.shape.tolist())[::-1] == shape
        assert tensor.data.tobytes() == content


def test_default_and_wished_types(tmp_path):
    metadata = {
        "u": 5,
        "n": -5,
        "big": 2**32,
        "huge": 2**63,
        "f": 0.1,
        "np": np.int8(-3),
        "list": [1, 2],
        "wide": [2**40],
    }
    metadata |= {"as_u64": 5, "as_f64": 0.1, "none": [], "floats": [0.5]}
    write_gguf(tmp_path / "m.gguf", metadata, [], {"as_u64": "u64", "as_f64": "f64"})
    with open_model(tmp_path / "m.gguf") as model:
        wanted = {"u": "u32", "n": "i32", "big": "i64", "huge": "u64", "f": "f32", "np": "i8"}
        assert model.value_types == wanted | {"as_u64": "u64", "as_f64": "f64"}
        assert model.metadata["as_f64"] == 0.1 and model.metadata["f"] == float(np.float32(0.1))
        dtypes = {key: str(model.metadata[key].dtype) for key in ("list", "wide", "none", "floats")}
        assert dtypes == {"list": "int32", "wide": "int64", "none": "int32", "floats": "float32"}


def test_tensors_are_made_one_at_a_time(tmp_path):
    alive = []

    def make(value):
        assert not alive, "the tensor before is still held"
        array = np.full((4, 8), value, np.float32)
        alive.append(1)
        weakref.finalize(array, alive.clear)
        return array

    write_gguf(tmp_path / "m.gguf", {}, [(f"t{i}", F32, (4, 8), lambda i=i: make(i)) for i in range(5)])
    with open_model(tmp_path / "m.gguf") as model:
        assert [model.data(f"t{i}").view(np.float32)[0, 0] for i in range(5)] == [0, 1, 2, 3, 4]


WRONG = {
    "too little data": ({}, [("x", F32, (4,), bytes(12))], "12 bytes of data"),
    "too much data": ({}, [("x", F32, (4,), bytes(20))], "20 bytes of data"),
    "half a block": ({}, [("x", by_name("Q4_0"), (16,), bytes(9))], "whole blocks"),
    "a name twice": ({}, [("x", F32, (1,), bytes(4))] * 2, "new name"),
    "a long name": ({}, [("x" * 64, F32, (1,), bytes(4))], "63 bytes"),
    "no name": ({}, [("", F32, (1,), bytes(4))], "new name"),
    "NUL": ({}, [("a\0", F32, (1,), bytes(4))], "NUL"),
    "five dimensions": ({}, [("x", F32, (1,) * 5, bytes(4))], "4 dimensions"),
    "mixed list": ({"a": [1, "x"]}, [], "mixes"),
    "none": ({"a": None}, [], "NoneType"),
    "complex": ({"a": np.zeros(2, np.complex64)}, [], "complex64"),
    "beyond 64 bits": ({"a": 2**64}, [], "64 bits"),
    "alignment 3": ({"general.alignment": 3}, [], "power of two"),
    "alignment 0": ({"general.alignment": 0}, [], "power of two"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_gguf_cannot_hold_is_refused_and_nothing_is_written(tmp_path, case):
    metadata, tensors, word = WRONG[case]
    (tmp_path / "old.gguf").write_bytes(b"old")
    with pytest.raises(LlamacyError, match=word):
        write_gguf(tmp_path / "old.gguf", metadata, tensors)
    assert [path.name for path in tmp_path.iterdir()] == ["old.gguf"]
    assert (tmp_path / "old.gguf").read_bytes() == b"old"


def test_a_value_that_does_not_fit_its_wish(tmp_path):
    with pytest.raises(LlamacyError, match="does not fit u8"):
        write_gguf(tmp_path / "m.gguf", {"a": 300}, [], {"a": "u8"})
