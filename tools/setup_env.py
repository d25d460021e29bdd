"""Make the project's virtual environment: `python3 setup_env.py .venv PACKAGE...`.

First says in one line what this machine lacks. Without a network the build packages are borrowed from the Python that
runs this, if it has them; what is then missing is said too. Runs on any Python 3, to be able to refuse an old one.
"""

import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

# What the build imports, and the oldest versions that work (pyproject.toml's build-system says the same).
BUILD_MODULES = {"setuptools": (64,), "Cython": (3, 0), "numpy": (1, 24)}
MINIMUM = (3, 10)


def missing_tool():
    """Return one line about the first thing that the build needs and this machine lacks, or None."""
    here = "{} is Python {}.{}".format(sys.executable, *sys.version_info[:2])
    if sys.version_info < MINIMUM:
        return f"{here}, wanted 3.10 or newer: install one and say `make PYTHON=python3.12` (or what it is called)"
    if not all(map(importlib.util.find_spec, ("venv", "ensurepip"))):
        return f"{here} without venv: install it (Debian, Ubuntu: apt install python3-venv)"
    header = Path(sysconfig.get_path("include")) / "Python.h"
    if not header.exists():
        return f"{header} is missing: install Python's headers (Debian: apt install python3-dev; Fedora: python3-devel)"
    compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "gcc")[0]
    if not shutil.which(compiler):
        return f"no C compiler ({compiler}): install gcc (Debian: apt install gcc; Fedora: dnf install gcc) or set CC"
    return None


def usable(module, minimum):
    """Return whether this Python imports `module`, at least as new as `minimum`."""
    try:
        version = importlib.import_module(module).__version__
    except ImportError:
        return False
    return tuple(int(part) for part in version.split(".")[: len(minimum)]) >= minimum


def borrow(python):
    """Let the environment see this Python's packages; return the build modules that are then still missing."""
    found = [name for name, minimum in BUILD_MODULES.items() if usable(name, minimum)]
    folders = {str(Path(importlib.util.find_spec(name).origin).parents[1]) for name in found}
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    purelib = subprocess.check_output([python, "-c", where], text=True).strip()
    Path(purelib, "borrowed.pth").write_text("\n".join(sorted(folders)) + "\n")
    probe = "import importlib.util, sys; print(*[n for n in sys.argv[1:] if not importlib.util.find_spec(n)])"
    return subprocess.check_output([python, "-c", probe, *BUILD_MODULES], text=True).split()


def main(venv, *packages):
    lack = missing_tool()
    if lack:
        return f"make: {lack}"
    if subprocess.call([sys.executable, "-m", "venv", "--clear", venv]):
        return f"make: could not create {venv} (see above)"
    python = Path(venv, "bin", "python")
    if subprocess.call([python, "-m", "pip", "install", "-qq", "--disable-pip-version-check", *packages]) == 0:
        return 0
    absent = borrow(python)
    if absent:
        return (
            f"make: no network, and {sys.executable} has no {', '.join(absent)} for the build: connect, or install them"
        )
    print(f"make: no network: building with {sys.executable}'s packages; later, `make clean` and `make` complete this")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
