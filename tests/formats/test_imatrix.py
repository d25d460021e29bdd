"""Importance matrices in both forms: what is read of them, and damaged ones."""

import struct
import warnings

import numpy as np
import pytest

from llamacy.errors import LlamacyError
from llamacy.formats.imatrix import read_imatrix
from llamacy.formats.layout import TensorInfo
from llamacy.formats.types import by_name
from tests.model.tiny import write_dat, write_imatrix

MEANS = np.random.default_rng(1).lognormal(0, 1, (2, 6)).astype(np.float32)


def info(name, *shape):
    return TensorInfo(name, by_name("F32"), shape, 0, 0)


@pytest.mark.parametrize("dataset", [None, "", "wiki.train.raw"])
def test_the_old_form_says_the_same_as_the_new(tmp_path, dataset):
    new = read_imatrix(write_imatrix(tmp_path / "i.gguf", {"a": (MEANS[:1] * 7, [7]), "b": (MEANS * 3, [3, 3])}))
    entries = {"a": (7, MEANS[0] * 7), "b": (3, MEANS.reshape(-1) * 3)}
    old = read_imatrix(write_dat(tmp_path / "i.dat", entries, dataset, chunks=12))
    for asked in (info("a", 10, 6), info("b", 2, 5, 6)):
        np.testing.assert_allclose(old.for_tensor(asked), new.for_tensor(asked), rtol=1e-6)
    assert old.for_tensor(info("c", 10, 6)) is None
    assert (old.dataset, old.chunks) == (dataset or "", 0 if dataset is None else 12)
    with pytest.raises(LlamacyError, match="'a' has 1 x 6 columns, the model's has 1 x 8"):
        old.for_tensor(info("a", 10, 8))


def test_entries_without_calls_are_taken_as_they_are(tmp_path):
    old = read_imatrix(write_dat(tmp_path / "i.dat", {"a": (0, [1.0, 2.0])}))
    np.testing.assert_array_equal(old.columns["a"], [[1, 2]])


def test_some_entries_only(tmp_path):
    names = {name: (1, [1.0]) for name in ("blk.0.attn_q.weight", "blk.0.attn_k.weight", "blk.1.ffn_up.weight")}
    found = read_imatrix(write_dat(tmp_path / "i.dat", names))
    assert list(found.only().columns) == list(names)
    assert list(found.only(include=["attn"]).columns) == list(names)[:2]
    assert list(found.only(include=["attn_q", "ffn"]).columns) == [list(names)[0], list(names)[2]]
    assert list(found.only(exclude=["blk.0"]).columns) == list(names)[2:]
    with pytest.raises(LlamacyError, match="no entry has 'nothing' in its name"):
        found.only(exclude=["nothing"])


def packed(*parts):
    return b"".join(part if isinstance(part, bytes) else struct.pack("<i", part) for part in parts)


A = packed(1, b"a", 1, 1, struct.pack("<f", 2))
DAMAGED = {
    "cut in a name": (packed(1, 50, b"abcdef"), "truncated or damaged"),
    "cut in the values": (packed(1, 1, b"a", 1, 4, bytes(12)), "the values of 'a' wants 16 bytes"),
    "no values": (packed(1, 1, b"a", 1, 0), "'a' has 0 values"),
    "fewer values than none": (packed(1, 1, b"a", 1, -5), "'a' has -5 values"),
    "a huge number of values": (packed(1, 1, b"a", 1, 2**31 - 1), "truncated or damaged"),
    "negative": (packed(1, 1, b"a", 1, 1, struct.pack("<f", -1)), "'a' holds values that are negative or not finite"),
    "not a number": (packed(1, 1, b"a", 1, 1, struct.pack("<f", float("nan"))), "negative or not finite"),
    "twice": (packed(2, A, A), "'a' has two entries"),
    "an entry is missing": (packed(2, A), "truncated or damaged: the length of a name"),
    "a name of no length": (packed(2, A, 0), "a name of 0 bytes"),
    "a long name": (packed(2, A, 1 << 20), "a tensor's name of 1048576 bytes"),
    "more behind": (packed(1, A, 3, 1, b"x", b"rest"), "4 bytes follow the last entry"),
    "half of what follows": (packed(1, A, 3), "truncated or damaged: what follows the entries"),
    "a negative length": (packed(1, A, 3, -1), "a name of -1 bytes"),
    "no name": (packed(1, A, 3, 9, b"x"), "truncated or damaged: the data's name"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_file_of_the_old_form_is_refused(tmp_path, case):
    data, message = DAMAGED[case]
    (tmp_path / "i.dat").write_bytes(data)
    with pytest.raises(LlamacyError) as caught:
        read_imatrix(tmp_path / "i.dat")
    assert message in str(caught.value) and str(tmp_path / "i.dat") in str(caught.value)


def test_a_signalling_nan_is_damage_like_any_other(tmp_path):
    """A conversion of one is a warning of NumPy's, which must not get out."""
    path = write_imatrix(tmp_path / "i.gguf", {"a": ([[1.0, 1.5]], [1])})
    content = path.read_bytes()
    wanted, broken = struct.pack("<2f", 1.0, 1.5), struct.pack("<2I", 0x3F800000, 0x7FA00000)
    assert content.count(wanted) == 1
    path.write_bytes(content.replace(wanted, broken))
    with warnings.catch_warnings(), pytest.raises(LlamacyError, match="finite sums"):
        warnings.simplefilter("error")
        read_imatrix(path)
