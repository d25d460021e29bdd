"""Run kernel tests on an instruction set that this CPU lacks.

    python tools/emulate.py neon                                       aarch64 machine code, under qemu-user
    python tools/emulate.py avx512 tests/kernels/test_quants.py -x     the instructions in plain C; what pytest takes

The package is compiled into build/emulated/, beside a copy of the tests; nothing is installed on this machine. For neon
Debian's Python, NumPy and pytest for arm64 are unpacked there. Run it with the Python of .venv. docs/portability.md
tells more.
"""

import argparse
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / "build" / "emulated"
MODEL = ROOT / "tests" / "kernels" / "model"
# What the sets compute; the rest of tests/kernels is the same on every machine.
TESTS = [
    f"tests/kernels/test_{name}.py" for name in ("adamw", "attention", "kquants_products", "kquants_rows", "layers")
]
TESTS += [f"tests/kernels/test_{name}.py" for name in ("matmul", "not_numbers", "quants", "spans", "verbs")]

RELEASE = "bookworm"
GUEST = "libgomp1 python3 python3-numpy python3-pytest python3-hypothesis python3-yaml python3-requests libpython3-dev"
TOOLS = {  # what neon needs -> Debian packages
    "mmdebstrap": "mmdebstrap",
    "qemu-aarch64-static": "qemu-user-static",
    "aarch64-linux-gnu-gcc": "gcc-aarch64-linux-gnu libc6-dev-arm64-cross",
}


def main():
    """Compile the set for its emulated machine, run the tests there and exit as they do."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("isa", choices=["neon", "avx512"], help="the instruction set")
    arguments, pytest_arguments = parser.parse_known_args()
    run = {"neon": run_neon, "avx512": run_avx512}[arguments.isa]
    sys.exit(run(["-p", "no:cacheprovider", *(pytest_arguments or TESTS)]))


def build(home, program, **environment):
    """Build the package into `home` with setup.py as `program` starts it; put the tests beside it."""
    command = [
        sys.executable,
        *program,
        "-q",
        "build",
        "--build-base",
        WORK / f"build-{home.name}",
        "--build-lib",
        home,
    ]
    subprocess.run(command, cwd=ROOT, env={**os.environ, **environment}, check=True)
    shutil.copy(ROOT / "pyproject.toml", home)
    for folder in ("pyx", "tests"):
        shutil.rmtree(home / folder, ignore_errors=True)
        shutil.copytree(ROOT / folder, home / folder, ignore=shutil.ignore_patterns("__pycache__"))


# ---- NEON: another processor's machine code, in qemu's emulation of a user's program


def run_neon(pytest_arguments):
    """Cross-compile neon, run pytest under qemu; return its exit code."""
    missing = [packages for tool, packages in TOOLS.items() if not shutil.which(tool)]
    if missing:
        sys.exit(f"emulate: needs Debian packages: apt-get install --no-install-recommends {' '.join(missing)}")
    root = unpacked_system()
    home = root / "opt" / "llamacy"
    headers = next((root / "usr" / "include").glob("python3.*"))
    build(
        home,
        ["setup.py"],
        LLAMACY_BUILD_ISA="neon",
        CC="aarch64-linux-gnu-gcc",
        LDSHARED="aarch64-linux-gnu-gcc -shared",
        CFLAGS=f"-I{headers} -I{headers.parent}",
        SETUPTOOLS_EXT_SUFFIX=f".cpython-{headers.name.removeprefix('python').replace('.', '')}-aarch64-linux-gnu.so",
        _PYTHON_HOST_PLATFORM="linux-aarch64",
    )
    shutil.rmtree(home / "gguf", ignore_errors=True)
    shutil.copytree(Path(importlib.util.find_spec("gguf").origin).parent, home / "gguf")
    emulator = ["qemu-aarch64-static", "-L", root, "-E", "PYTHONDONTWRITEBYTECODE=1", root / "usr" / "bin" / "python3"]
    return subprocess.run([*emulator, "-m", "pytest", *pytest_arguments], cwd=home, check=False).returncode


def unpacked_system():
    """Return the folder of Debian's arm64 packages, unpacked when it is not there yet."""
    root = WORK / "arm64"
    if not root.exists():
        new = WORK / "arm64.new"
        shutil.rmtree(new, ignore_errors=True)
        WORK.mkdir(parents=True, exist_ok=True)
        command = ["mmdebstrap", "--quiet", "--variant=extract", "--architectures=arm64"]
        include = f"--include={','.join(GUEST.split())}"
        subprocess.run([*command, include, RELEASE, new], check=True)
        # links that the packages' scripts would make
        for name in ("blas/libblas.so.3", "lapack/liblapack.so.3"):
            (new / "usr" / "lib" / "aarch64-linux-gnu" / Path(name).name).symlink_to(name)
        new.rename(root)
    return root


# ---- AVX-512: qemu does not emulate it; a header in plain C stands for its instructions instead of the compiler's

PLAIN = f"""
import sys
from llamacy.kernels import isas
isas.ISAS["avx512"] = isas.Isa(isas.X86 + isas.ARM, ["-I{MODEL}"], set())
"""
SETUP = "import runpy; sys.argv[0] = 'setup.py'; runpy.run_path('setup.py', run_name='__main__')"
PYTEST = "import pytest; sys.exit(pytest.main(sys.argv[1:]))"


def run_avx512(pytest_arguments):
    """Compile avx512 with its instructions in plain C, run pytest on it; return its exit code."""
    home = WORK / "avx512"
    build(home, ["-c", PLAIN + SETUP], LLAMACY_BUILD_ISA="avx512")
    command = [sys.executable, "-c", PLAIN + PYTEST, *pytest_arguments]
    return subprocess.run(command, cwd=home, env={**os.environ, "PYTHONPATH": str(home)}, check=False).returncode


if __name__ == "__main__":
    main()
