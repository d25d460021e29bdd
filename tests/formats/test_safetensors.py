"""safetensors, both ways with the safetensors package, and headers that lie."""

import json
import struct

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from llamacy.errors import LlamacyError
from llamacy.formats.arrays import float_tensor
from llamacy.formats.mapped import MappedFile
from llamacy.formats.safetensors import MAX_HEADER, is_safetensors, read_safetensors, write_safetensors

LIMITED = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
arrays = hnp.arrays(np.float32, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=9).filter(lambda n: n != "__metadata__")


def opened(path):
    source = MappedFile(path)
    assert is_safetensors(source)
    return read_safetensors(source)


@LIMITED
@given(tensors=st.dictionaries(names, arrays, max_size=4))
def test_anything_survives(tmp_path, tensors):
    write_safetensors(tmp_path / "a", tensors, {"format": "pt"})
    with opened(tmp_path / "a") as file:
        assert file.metadata == {"format": "pt"} and list(file.tensors) == list(tensors)
        for name, array in tensors.items():
            np.testing.assert_array_equal(float_tensor(file, name), array)


def test_the_package_reads_ours(tmp_path):
    theirs = pytest.importorskip("safetensors.numpy")
    tensors = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.float32(3).reshape(()), "c": np.zeros((0, 4))}
    write_safetensors(tmp_path / "a", tensors, {"format": "pt"})
    found = theirs.load_file(tmp_path / "a")
    assert {name: array.tolist() for name, array in found.items()} == {n: a.tolist() for n, a in tensors.items()}


def test_we_read_the_packages(tmp_path):
    theirs = pytest.importorskip("safetensors.numpy")
    values = np.arange(12).reshape(3, 4) - 5
    dtypes = {"F32": np.float32, "F64": np.float64, "F16": np.float16}
    theirs.save_file({name: values.astype(dtype) for name, dtype in dtypes.items()}, tmp_path / "a", {"k": "v"})
    with opened(tmp_path / "a") as file:
        assert file.metadata == {"k": "v"}
        for name in dtypes:
            assert file.tensors[name].type.name == name
            np.testing.assert_array_equal(float_tensor(file, name), values)


def content(header, data=bytes(16)):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + data


def entry(dtype="F32", shape=(4,), offsets=(0, 16)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


LIES = {
    "no JSON": (content(b"{nothing}"), "damaged JSON"),
    "not UTF-8": (content(b'{"\xff": 1}'), "damaged JSON"),
    "nested": (content(b'{"a":' * 100000), "nested too deep"),
    "a long number": (content(b'{"a":' + b"9" * 10000 + b"}"), "damaged JSON"),
    "a name twice": (content(b'{"a": 1, "a": 2}'), "stands twice"),
    "no entry": (content({"a": 3}), "has shape None"),
    "metadata of numbers": (content({"__metadata__": {"a": 1}}), "no table of strings"),
    "an unknown dtype": (content({"a": entry("F8_E4M3")}), "'F8_E4M3'"),
    "a dtype that is a list": (content({"a": entry(["F32"])}), "wanted one of"),
    "shape too large": (content({"a": entry(shape=(5,))}), "ends at"),
    "shape too small": (content({"a": entry(shape=(3,))}), "16 bytes, its shape wants 12"),
    "negative": (content({"a": entry(shape=(-4,))}), "has shape [-4]"),
    "a fraction": (content({"a": entry(shape=(4.0,))}), "has shape [4.0]"),
    "true": (content({"a": entry(shape=(True,))}), "has shape [True]"),
    "2^70": (content({"a": entry(shape=(2**70,))}), "has shape"),
    "offsets the wrong way": (content({"a": entry(offsets=(16, 0))}), "ends at"),
    "offsets 2^63 - 1": (content({"a": entry(offsets=(2**63 - 17, 2**63 - 1))}), "ends at"),
    "three offsets": (content({"a": entry(offsets=(0, 1, 2))}), "has shape"),
    "overlap": (content({"a": entry(), "b": entry(shape=(2,), offsets=(4, 12))}), "overlap"),
    "overlap of a byte": (content({"a": entry(), "b": entry("I8", (1,), (15, 16))}), "overlap at byte"),
    "nine dimensions": (content({"a": entry(shape=(1,) * 8 + (4,))}), "has shape"),
    "truncated": (content({"a": entry()}, bytes(15)), "truncated"),
    "a list": (struct.pack("<Q", 2) + b"[]", "holds a list"),
    "header too long": (struct.pack("<Q", 2**63) + b"{}", "a header of 9223372036854775808 bytes"),
    "header beyond the file": (struct.pack("<Q", MAX_HEADER) + b"{}", "truncated"),
}


@pytest.mark.parametrize("case", LIES)
def test_lies_are_named_in_one_line(tmp_path, case):
    raw, word = LIES[case]
    (tmp_path / "a").write_bytes(raw)
    with pytest.raises(LlamacyError) as caught:
        read_safetensors(MappedFile(tmp_path / "a"))
    assert word in str(caught.value) and str(caught.value).isprintable()


@pytest.mark.parametrize("raw", [b"", b"\0", struct.pack("<Q", 3) + b"[", struct.pack("<Q", 30) + b"{}"])
def test_what_is_not_safetensors(tmp_path, raw):
    (tmp_path / "a").write_bytes(raw + b"x" * 5 if raw else b"x")
    assert not is_safetensors(MappedFile(tmp_path / "a"))
