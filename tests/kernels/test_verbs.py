"""Every instruction set defines the same verbs; what they do is tested by the kernels, on every set."""

import re
from pathlib import Path

import pytest

from llamacy.kernels.isas import ISAS

SIMD = Path(__file__).resolve().parents[2] / "pyx" / "simd"
TYPES = ["vf", "vi", "vb", "vw", "vh"]


def verbs(name):
    """Return {verb: (what it returns, its parameters)}; names that begin with _ are a set's own."""
    found = re.findall(
        r"^cdef inline (\w+) ([a-z]\w*)\((.*)\) noexcept nogil:$", (SIMD / f"{name}.pxd").read_text(), re.M
    )
    return {verb: (result, parameters) for result, verb, parameters in found}


def test_a_file_for_every_set_and_no_other():
    compilers = {"immintrin", "x86", "arm_neon"}
    assert {path.stem for path in SIMD.glob("*.pxd")} == {*ISAS, *compilers, "__init__"}


@pytest.mark.parametrize("name", [name for name in ISAS if name != "generic"])
def test_same_verbs_with_the_same_parameters_as_the_portable_set(name):
    defined = verbs("generic")
    assert len(defined) > 40
    assert verbs(name) == defined


@pytest.mark.parametrize("name", ISAS)
def test_the_five_types_of_16_rows(name):
    text = (SIMD / f"{name}.pxd").read_text()
    assert [kind for kind in TYPES if re.search(rf"^(cdef struct|ctypedef \w+) {kind}\b", text, re.M)] == TYPES
