"""scan_strings against its twin in plain Python."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamacy.formats.strings import StringArray
from llamacy.kernels.text import scan


def scan_reference(data, position, width, n, trailer):
    """Return ([(start, length)], end), or ([...], -1 - index) where a string would leave `data`."""
    found = []
    for i in range(n):
        length = int.from_bytes(data[position : position + width], "little")
        if position + width > len(data) or position + width + length + trailer > len(data):
            return found, -1 - i
        found.append((position + width, length))
        position += width + length + trailer
    return found, position


@given(
    words=st.lists(st.binary(max_size=12), max_size=20),
    width=st.sampled_from([4, 8]),
    trailer=st.sampled_from([0, 4, 8]),
    lead=st.integers(0, 5),
    cut=st.integers(0, 40),
    lie=st.one_of(st.none(), st.tuples(st.integers(0, 300), st.integers(0, 255))),
)
def test_as_plain_python(words, width, trailer, lead, cut, lie):
    data = bytes(lead) + b"".join(len(w).to_bytes(width, "little") + w + bytes(trailer) for w in words)
    data = bytearray(data[: len(data) - cut] if cut < len(data) else data)
    if lie and lie[0] < len(data):
        data[lie[0]] = lie[1]
    lead = min(lead, len(data))
    starts, lengths = np.full(len(words), -7, np.int64), np.full(len(words), -7, np.int64)
    end = scan.scan_strings(np.frombuffer(bytes(data), np.uint8), lead, width, starts, lengths, trailer)
    found, wanted_end = scan_reference(bytes(data), lead, width, len(words), trailer)
    assert end == wanted_end
    assert list(zip(starts.tolist(), lengths.tolist(), strict=True))[: len(found)] == found


@pytest.mark.parametrize("length", [2**63 - 1, 2**63, 2**64 - 1, 2**64 - 8])
def test_lengths_that_overflow(length):
    data = np.frombuffer(length.to_bytes(8, "little") + b"abc", np.uint8)
    assert scan.scan_strings(data, 0, 8, np.zeros(1, np.int64), np.zeros(1, np.int64)) == -1


@pytest.mark.parametrize("position", [-1, 100, 2**62])
def test_positions_outside(position):
    assert scan.scan_strings(np.zeros(9, np.uint8), position, 8, np.zeros(1, np.int64), np.zeros(1, np.int64)) == -1


def test_wrong_arguments():
    empty = np.zeros(0, np.int64)
    for width, lengths, trailer in ((5, empty, 0), (8, np.zeros(1, np.int64), 0), (8, empty, 9), (8, empty, -1)):
        with pytest.raises(ValueError, match="wanted"):
            scan.scan_strings(np.zeros(1, np.uint8), 0, width, empty, lengths, trailer)


@given(st.lists(st.text(max_size=5)))
def test_string_array_is_a_sequence(words):
    array = StringArray.of(words)
    wanted = [word.encode("utf-8", "replace").decode() for word in words]
    assert list(array) == wanted and len(array) == len(words) and array == wanted
    assert array[:2] == wanted[:2]
    if words:
        assert array[-1] == wanted[-1] and wanted[0] in array
    with pytest.raises(IndexError):
        array[len(words)]
