"""The compiled kernels for this CPU: `from llamacy.kernels import matmul` gives the best set's module.

`LLAMACY_ISA=generic|avx2` forces a set; one that this machine or build cannot run is a clear error.
"""

import importlib
import os
import sys
from pathlib import Path

from llamacy.errors import LlamacyError

# Between two steps OpenMP's threads wait spinning, some 0.1 ms instead of some ms: other programs want the cores too.
os.environ.setdefault("GOMP_SPINCOUNT", "20000")

# Best first: name -> the CPU features it needs, as Linux names them.
SETS = {"avx2": {"avx2", "fma", "f16c"}, "generic": set()}


def cpu_features():
    """Return this CPU's feature names as Linux lists them; empty where /proc/cpuinfo does not exist."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return set()
    for line in text.splitlines():
        if line.startswith(("flags", "Features")):
            return set(line.split(":", 1)[1].split())
    return set()


def _built(name):
    return any((Path(__file__).parent / name).glob("matmul*.so"))


def available():
    """Return the sets that are built and that this CPU can run, best first."""
    features = cpu_features()
    return [name for name, needs in SETS.items() if needs <= features and _built(name)]


def _choose():
    usable, forced = available(), os.environ.get("LLAMACY_ISA")
    if forced and forced not in usable:
        raise LlamacyError(f"LLAMACY_ISA={forced}: not usable here, wanted one of {usable}; unset it or build that set")
    if not usable:
        raise LlamacyError("the compiled kernels are missing: run `make` in the project's folder first")
    return forced or usable[0]


def load(module, isa_name=None):
    """Import and return one compiled kernel module, of a given set or of the chosen one."""
    return importlib.import_module(f"llamacy.kernels.{isa_name or _choose()}.{module}")


def __getattr__(name):
    if name == "isa":
        value = _choose()
    elif name in (
        "matmul",
        "quants",
        "norm",
        "rope",
        "mlp",
        "attention",
        "loss",
        "adamw",
        "weights",
        "decoder",
        "trainstep",
    ):
        value = load(name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    setattr(sys.modules[__name__], name, value)
    return value
