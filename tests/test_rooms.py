"""Which room of pyx/ may use which: each only those before it, by names it says."""

import re
from pathlib import Path

import pytest

from llamacy import kernels
from llamacy.kernels.layout import COMMON, ROOMS, SOURCES, cimports, source_path

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted(path for path in SOURCES.rglob("*") if path.suffix in (".pxd", ".pyx", ".tp"))
# What declares a compiler's instructions is taken whole, by the files that are written in them.
WHOLE = {"avx2": "immintrin", "avx512": "immintrin", "neon": "arm_neon"}


def upward(path):
    """Return the modules that a source of pyx/ cimports from a room it may not use."""
    room = path.parent.name
    allowed = {COMMON} if room == COMMON else set(ROOMS[: ROOMS.index(room) + 1])
    return [name for name in cimports(path) if name.split(".")[0] not in allowed]


def test_the_folders_are_the_rooms():
    assert {path.parent for path in FILES} == {SOURCES / room for room in (*ROOMS, COMMON)}


@pytest.mark.parametrize("room", [*ROOMS, COMMON])
def test_a_room_opens_with_what_belongs_there(room):
    opening = (SOURCES / room / "__init__.pxd").read_text()
    assert re.match(rf"# (Room \d of 5|The room beside the five), {room}: ", opening)
    assert "# Uses: " in opening and "Belongs here: " in opening


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_source_uses_only_rooms_before_its_own(path):
    assert upward(path) == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_imports_name_what_they_take(path):
    stars = re.findall(r"^\s*from\s+\.*([\w.]+)\s+c?import\s+\*", path.read_text(), re.M)
    assert stars == ([WHOLE[path.stem]] if path.stem in WHOLE else [])


def test_an_import_from_above_would_be_seen(tmp_path):
    path = tmp_path / "types" / "x.pyx"
    path.parent.mkdir()
    path.write_text("from .blocks cimport a\nfrom ..simd.verbs cimport (\n    b)\nfrom ..steps.team cimport c\n")
    assert cimports(path) == ["types.blocks", "simd.verbs", "steps.team"]
    assert upward(path) == ["steps.team"]


def test_what_python_uses_is_where_it_says():
    for module, room in kernels.ROOM_OF.items():
        assert source_path(f"{room}.{module}").exists()


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_every_source_is_in_the_picture(path):
    text = (ROOT / "docs" / "architecture.md").read_text()
    picture = text[text.index("```") : text.index("```", text.index("```") + 3)]
    line = next(line for line in picture.splitlines() if re.match(rf"  {path.parent.name}/", line))
    after = picture[picture.index(line) :].splitlines()
    entry = [line, *(more for more in after[1 : next(i for i, more in enumerate(after[1:], 1) if more[:3].strip())])]
    name = path.name.partition(".")[0]
    assert name == "__init__" or re.search(rf"\b{name}\b", "\n".join(entry)), f"{path.name} is not there"
