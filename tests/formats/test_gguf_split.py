"""Split models: every part opens the whole, and parts that do not belong together are named."""

import numpy as np
import pytest

from llamacy.errors import LlamacyError
from llamacy.formats.gguf_writer import write_gguf
from llamacy.formats.model_file import open_model
from llamacy.formats.types import by_name

F32 = by_name("F32")


def write_part(folder, index, count=3, name="m", **changes):
    metadata = {
        "split.no": np.uint16(index),
        "split.count": np.uint16(count),
        "split.tensors.count": np.int32(2 * count),
    }
    if index == 0:
        metadata |= {"general.architecture": "llama", "k": 7}
    metadata |= changes
    tensors = [(f"t{index}.{i}", F32, (2, 4), np.full((2, 4), 10 * index + i, np.float32)) for i in range(2)]
    path = folder / f"{name}-{index + 1:05}-of-{count:05}.gguf"
    write_gguf(path, metadata, tensors)
    return path


@pytest.fixture
def parts(tmp_path):
    return [write_part(tmp_path, index) for index in range(3)]


@pytest.mark.parametrize("index", [0, 1, 2])
@pytest.mark.parametrize("use_mmap", [True, False])
def test_any_part_opens_the_whole(parts, index, use_mmap):
    with open_model(parts[index], use_mmap) as model:
        assert model.metadata == {"general.architecture": "llama", "k": 7}
        assert model.value_types["k"] == "u32"
        assert model.size == sum(part.stat().st_size for part in parts)
        assert {n: model.data(n).view(np.float32)[0, 0] for n in model.tensors} == (
            {f"t{part}.{i}": 10 * part + i for part in range(3) for i in range(2)}
        )
        model.release("t2.1")


def test_a_missing_part(parts):
    parts[1].unlink()
    with pytest.raises(LlamacyError, match=r"m-00002-of-00003\.gguf is missing"):
        open_model(parts[0])


def test_a_renamed_part(parts, tmp_path):
    parts[0].rename(tmp_path / "model.gguf")
    with pytest.raises(LlamacyError, match="is one of 3 parts, wanted a name"):
        open_model(tmp_path / "model.gguf")


def test_exchanged_parts(parts, tmp_path):
    parts[1].rename(tmp_path / "x")
    parts[2].rename(parts[1])
    (tmp_path / "x").rename(parts[2])
    with pytest.raises(LlamacyError, match="says it is part 2 of 3, wanted 1 of 3"):
        open_model(parts[0])


def test_a_part_of_another_model(parts, tmp_path):
    write_part(tmp_path, 1, **{"split.count": np.uint16(4)})
    with pytest.raises(LlamacyError, match="part 1 of 4"):
        open_model(parts[0])


def test_something_else_in_a_part(parts):
    parts[2].write_bytes(b"<html>")
    with pytest.raises(LlamacyError, match="web page"):
        open_model(parts[0])


def test_a_tensor_in_two_parts(parts, tmp_path):
    write_gguf(parts[2], {"split.no": 2, "split.count": 3}, [("t0.0", F32, (1,), bytes(4))])
    with pytest.raises(LlamacyError, match="'t0.0' stands in two parts"):
        open_model(parts[0])


def test_too_few_tensors(parts, tmp_path):
    write_gguf(parts[2], {"split.no": 2, "split.count": 3}, [])
    with pytest.raises(LlamacyError, match="hold 4 tensors, the first says 6"):
        open_model(parts[0])
