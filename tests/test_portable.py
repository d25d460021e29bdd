"""Where the system is not Linux: the fallbacks of llamacy.system, switched on, and a command that does with them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from llamacy import kernels, system

ROOT = Path(__file__).resolve().parents[1]
TINY = ROOT / "tests" / "data" / "tiny-q8_0.gguf"
GENERIC = os.environ | {"LLAMACY_ISA": "generic"}
PORTABLE = GENERIC | {"LLAMACY_PORTABLE": "1"}

FALLBACKS = """
import mmap, os
from llamacy import system
assert not system.LINUX
assert system.processors() == os.cpu_count() and 1 <= system.physical_cores() <= os.cpu_count()
assert system.fit_threads(10**6) == os.cpu_count()
assert system.x86_features() == system.arm_features() == set() and system.machine()
assert system.available_bytes() is None
assert system.cpu_name()
block = bytearray(64 << 20)
assert 64 << 20 < system.peak_rss_bytes() < 1 << 40 and system.rss_bytes() == system.peak_rss_bytes()
with mmap.mmap(-1, 1 << 16) as mapped:
    mapped[0] = 7
    assert system.give_back(mapped, 0, 1 << 16) is False and mapped[0] == 7
print("well")
"""


def test_what_the_system_does_not_say():
    done = subprocess.run([sys.executable, "-c", FALLBACKS], capture_output=True, text=True, env=PORTABLE, cwd=ROOT)
    assert (done.stdout, done.stderr) == ("well\n", "")


@pytest.mark.skipif("generic" not in kernels.available(), reason="the portable kernels are not built")
@pytest.mark.parametrize(
    "line",
    [
        ["main", "-m", TINY, "-p", "This License", "-n", "12", "--temp", "0"],
        ["info", TINY],
        [
            "finetune",
            "-m",
            TINY,
            "--train-data",
            ROOT / "examples" / "finetune-data.txt",
            "--max-steps",
            "2",
            "--seed",
            "1",
        ],
    ],
    ids=lambda line: line[0],
)
def test_commands_do_without(line, tmp_path):
    """What they print and write is what they print and write on Linux."""
    found = []
    for number, environment in enumerate([GENERIC, PORTABLE]):
        folder = tmp_path / str(number)
        folder.mkdir()
        command = [sys.executable, ROOT / "bin" / line[0], *line[1:]]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder)
        assert done.returncode == 0, done.stderr
        adapter = folder / "adapter" / "adapter.bin"
        found.append((done.stdout, adapter.read_bytes() if line[0] == "finetune" else None))
    assert found[0] == found[1]


def test_macos_names_its_processor_s_features(monkeypatch):
    """As its sysctl prints them; the sets ask for Linux's names."""
    said = "FPU AVX1.0 FMA F16C SSE4.2\nAVX2 AVX512F BMI2\n"
    monkeypatch.setattr(system, "LINUX", False)
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 0, said))
    assert system.x86_features() >= {"avx2", "fma", "f16c"}
    monkeypatch.setattr(subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 0, "1\n"))
    assert system.arm_features() == {"asimd", "asimddp"}
    monkeypatch.setattr(subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 1, ""))
    assert system.arm_features() == system.x86_features() == set()
