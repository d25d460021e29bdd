"""The compiled kernels for this CPU: `from llamacy.kernels import matmul` gives the best set's module.

`LLAMACY_ISA=avx512|avx2|neon|generic` forces a set; one that this machine or build cannot run is a clear error.
"""

import importlib
import os
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

from llamacy.errors import LlamacyError
from llamacy.kernels import layout
from llamacy.kernels.isas import ISAS, lacking

# What Python uses of the rooms of pyx/, each compiled per instruction set; `text` is a package of its own.
ROOM_OF = {
    "probe": "simd",
    "finite": "types",
    "quants": "types",
    "matmul": "products",
    "norm": "layers",
    "rope": "layers",
    "mlp": "layers",
    "attention": "layers",
    "attention_backward": "layers",
    "experts": "layers",
    "loss": "layers",
    "adamw": "layers",
    "weights": "steps",
    "decoder": "steps",
    "trainstep": "steps",
}

# Between two steps OpenMP's threads wait spinning, some 0.1 ms instead of some ms: other programs want the cores too.
os.environ.setdefault("GOMP_SPINCOUNT", "20000")


def _built(name):
    folder = Path(__file__).parent / name / ROOM_OF["matmul"]
    return any((folder / f"matmul{suffix}").exists() for suffix in EXTENSION_SUFFIXES)


def available():
    """Return the sets that are built and that this CPU can run, best first."""
    return [name for name in ISAS if _built(name) and not lacking(name)]


def _choose():
    forced = os.environ.get("LLAMACY_ISA")
    if forced:
        return _usable(forced)
    usable = available()
    if not usable:
        root = Path(__file__).resolve().parents[2]
        raise LlamacyError(f"the compiled kernels are missing or cannot be loaded: run `make` in {root}")
    return usable[0]


def _usable(name):
    """Return `name` if that set can run here, or say why not."""
    if name not in ISAS:
        raise LlamacyError(f"LLAMACY_ISA={name}: no such instruction set, wanted one of {', '.join(ISAS)}")
    if lacking(name):
        why = f"this machine lacks {', '.join(lacking(name))}"
        raise LlamacyError(f"LLAMACY_ISA={name}: {why}; unset it or use one of {', '.join(available())}")
    if not _built(name):
        how = f"LLAMACY_BUILD_ISA={name} .venv/bin/python setup.py build_ext --inplace"
        raise LlamacyError(f"LLAMACY_ISA={name}: that set is not built; unset it or run `{how}`")
    return name


def load(module, isa_name=None):
    """Import and return one compiled kernel module, of a given set or of the chosen one.

    LlamacyError where modules of different ages lie side by side.
    """
    isa_name = isa_name or _choose()
    try:
        found = importlib.import_module(f"llamacy.kernels.{isa_name}.{ROOM_OF[module]}.{module}")
    except (ImportError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, ModuleNotFoundError) and not error.name.startswith("llamacy"):
            raise
        # Cython compares the signatures and sizes that modules want of each other while they are imported.
        raise layout.outdated(isa_name, error) from error
    layout.check(isa_name)
    return found


def __getattr__(name):
    if name == "isa":
        value = _choose()
    elif name in ROOM_OF:
        value = load(name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    setattr(sys.modules[__name__], name, value)
    return value
