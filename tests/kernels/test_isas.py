"""Which set is chosen: the best that is built and that the CPU runs, or the one LLAMACY_ISA names, or a clear error."""

import os
import subprocess
import sys

import pytest

from llamacy import kernels
from llamacy.errors import LlamacyError
from llamacy.kernels import isas


@pytest.fixture
def machine(monkeypatch):
    """Return a function that makes this process believe in another CPU and other built sets."""

    def pretend(name, features, built):
        monkeypatch.setattr(isas, "machine", lambda: name)
        monkeypatch.setattr(isas, "cpu_features", lambda: set(features))
        monkeypatch.setattr(kernels, "_built", lambda isa: isa in built)
        monkeypatch.delenv("LLAMACY_ISA", raising=False)

    return pretend


ZEN3, ICE_LAKE = {"avx2", "fma", "f16c", "sse2"}, isas.ISAS["avx512"].needs | {"sse2"}
ALL = ["avx512", "avx2", "neon", "generic"]


@pytest.mark.parametrize(
    ("name", "features", "built", "usable"),
    [
        ("x86_64", ICE_LAKE, ALL, ["avx512", "avx2", "generic"]),
        ("x86_64", ICE_LAKE - {"avx512_vnni"}, ALL, ["avx2", "generic"]),
        ("x86_64", ZEN3, ["neon", "generic"], ["generic"]),
        ("x86_64", {"sse2"}, ALL, ["generic"]),
        ("aarch64", {"asimd", "asimddp"}, ALL, ["neon", "generic"]),
        ("aarch64", {"asimd"}, ALL, ["generic"]),
        ("riscv64", ZEN3, ALL, ["generic"]),
        ("x86_64", ZEN3, [], []),
    ],
)
def test_sets_that_are_built_and_run_here_best_first(machine, name, features, built, usable):
    machine(name, features, built)
    assert kernels.available() == usable


@pytest.mark.parametrize(
    ("forced", "message"),
    [
        ("sse", "no such instruction set, wanted one of avx512, avx2, neon, generic"),
        (
            "avx512",
            "this machine lacks avx512_vnni, avx512bw, avx512dq, avx512f, avx512vl; unset it or use",
        ),
        ("neon", "this machine lacks the architecture, aarch64; unset it or use one of avx2"),
        (
            "generic",
            "not built; unset it or run `LLAMACY_BUILD_ISA=generic .venv/bin/python setup.py build_ext",
        ),
    ],
)
def test_a_forced_set_that_cannot_be_used_is_an_error(machine, monkeypatch, forced, message):
    machine("x86_64", ZEN3, ["avx512", "avx2", "neon"])
    monkeypatch.setenv("LLAMACY_ISA", forced)
    with pytest.raises(LlamacyError) as error:
        kernels.load("matmul")
    assert str(error.value).startswith(f"LLAMACY_ISA={forced}: ")
    assert message in str(error.value)


def test_without_compiled_kernels_it_says_to_make_them(machine):
    machine("x86_64", ZEN3, [])
    with pytest.raises(LlamacyError, match="run `make`"):
        kernels.load("matmul")


def run(code, **environment):
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=False)


def test_the_environment_chooses(isa):
    result = run("from llamacy import kernels; print(kernels.isa, kernels.norm.__name__)", LLAMACY_ISA=isa)
    assert result.stdout.split() == [isa, f"llamacy.kernels.{isa}.layers.norm"]


def test_this_cpu_s_features_are_read():
    # every CPU that a set beside the portable one knows has these
    assert isas.cpu_features() & {"sse2", "asimd"}
