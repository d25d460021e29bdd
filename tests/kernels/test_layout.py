"""Compiled modules of different ages beside each other: a clear error, not a crash."""

import sys
import zlib
from types import SimpleNamespace

import pytest

from llamacy import kernels
from llamacy.errors import LlamacyError
from llamacy.kernels import layout


@pytest.fixture
def sources(tmp_path):
    """Three modules: top includes middle and simd, middle includes bottom."""
    texts = {
        "steps/top.pyx": "from ..types.middle cimport (\n    x)\nfrom ..simd.verbs cimport v\n"
        "from ..types.bottom import y\n",
        "types/middle.pyx": "",
        "types/middle.pxd": "cimport cython\n    from .bottom cimport y\n",
        "types/bottom.pxd": "cdef int y\n",
        "types/other.pxd": "",
        "simd/avx2.pxd": "cdef int v\n",
    }
    for name, text in texts.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_a_module_carries_the_digests_of_all_it_includes(sources):
    found = layout.digests("steps.top", "avx2", sources)
    assert set(found) == {"types.middle", "types.bottom", "simd.verbs"}
    assert found["types.bottom"] == f"{zlib.crc32(b'cdef int y' + bytes([10])):08x}"
    assert set(layout.digests("types.middle", "avx2", sources)) == {"types.middle", "types.bottom"}
    (sources / "types" / "bottom.pxd").write_text("cdef int z\n")
    changed = layout.digests("steps.top", "avx2", sources)
    assert {name for name in found if found[name] != changed[name]} == {"types.bottom"}


def test_what_does_not_fit_is_named(sources):
    old = {name: layout.digests(name, "avx2", sources) for name in ("steps.top", "types.middle")}
    assert layout.misfit(old, "avx2", sources) is None
    (sources / "types" / "bottom.pxd").write_text("cdef int z\n")
    new = layout.digests("steps.top", "avx2", sources)
    wrong = layout.misfit(old | {"steps.top": new}, "avx2", sources)
    assert wrong == "steps.top and types.middle were compiled with different versions of types.bottom"
    assert layout.misfit(old, "avx2", sources) == "types.bottom has changed since steps.top was compiled"
    # an installed package has no sources beside it
    assert layout.misfit(old, "avx2", sources / "none") is None
    assert layout.misfit(old | {"types.middle": None}, "avx2", sources) == "types.middle is older than the others"
    (sources / "types" / "bottom.pxd").unlink()
    assert "types.bottom has changed" in layout.misfit(old, "avx2", sources)


def test_the_modules_here_fit(isa):
    for name in ("decoder", "trainstep", "matmul", "quants", "loss"):
        module = kernels.load(name, isa)
        assert module.built_with == layout.digests(f"{kernels.ROOM_OF[name]}.{name}", isa)


@pytest.mark.parametrize("built_with", [None, {"products.gemm": "00000000"}])
def test_a_foreign_module_is_an_error_in_one_line(isa, built_with, monkeypatch):
    kernels.load("matmul", isa)
    monkeypatch.setitem(sys.modules, f"llamacy.kernels.{isa}.alien", SimpleNamespace(built_with=built_with))
    with pytest.raises(LlamacyError, match=r"do not fit together: .*alien.*run `make`") as caught:
        kernels.load("matmul", isa)
    assert "\n" not in str(caught.value)


def test_modules_that_cannot_even_be_imported_together(isa, monkeypatch):
    def refuse(name):
        raise TypeError("C function a.b has wrong signature")

    monkeypatch.setattr(kernels.importlib, "import_module", refuse)
    with pytest.raises(LlamacyError, match=r"wrong signature; run `make`"):
        kernels.load("matmul", isa)


def test_a_missing_package_is_somebody_elses_error(isa, monkeypatch):
    def refuse(name):
        raise ModuleNotFoundError("No module named 'numpy'", name="numpy")

    monkeypatch.setattr(kernels.importlib, "import_module", refuse)
    with pytest.raises(ModuleNotFoundError):
        kernels.load("matmul", isa)
