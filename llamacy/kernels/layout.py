"""Do compiled modules fit together? Each carries a digest of every header (.pxd) it was compiled with.

Modules call each other through those headers, without a check: an old one beside a new one would read structs that have
changed, and crash. setup.py writes the digests, `llamacy.kernels.load` compares them.
"""

import re
import sys
import zlib
from pathlib import Path

from llamacy.errors import LlamacyError

SOURCES = Path(__file__).resolve().parents[2] / "pyx"
_CIMPORT = re.compile(r"^\s*from\s+\.(\w+)\s+cimport\b", re.M)


def digests(module, isa, sources=SOURCES):
    """Return {header: digest} of all that `module` includes when it is built for `isa`, and of what those include."""
    found, waiting = {}, [module, *_CIMPORT.findall((sources / f"{module}.pyx").read_text("utf-8"))]
    while waiting:
        name = waiting.pop()
        path = header_path(name, isa, sources)
        if name not in found and path.exists():
            data = path.read_bytes()
            found[name] = f"{zlib.crc32(data):08x}"
            waiting += _CIMPORT.findall(data.decode())
    return found


def header_path(name, isa, sources=SOURCES):
    """Return where a header lies: each instruction set has its own simd.pxd."""
    return sources / "simd" / f"{isa}.pxd" if name == "simd" else sources / f"{name}.pxd"


def misfit(modules, isa, sources=SOURCES):
    """Return what is wrong with `modules`, {name: its digests or None}, in words; None when they fit.

    Beside the sources (a checkout) they must be what the headers say now, too.
    """
    seen = {}
    for module, headers in modules.items():
        if headers is None:
            return f"{module} is older than the others"
        for header, digest in headers.items():
            first, other = seen.setdefault(header, (digest, module))
            if first != digest:
                return f"{other} and {module} were compiled with different versions of {header}.pxd"
    if sources.is_dir():
        for header, (digest, module) in seen.items():
            path = header_path(header, isa, sources)
            now = f"{zlib.crc32(path.read_bytes()):08x}" if path.exists() else None
            if now != digest:
                return f"{path.name} has changed since {module} was compiled"
    return None


def check(isa):
    """Raise LlamacyError, one line, when the loaded modules of a set do not fit together."""
    package = f"llamacy.kernels.{isa}."
    modules = {name: module for name, module in sys.modules.items() if name.startswith(package)}
    built = {name.removeprefix(package): getattr(module, "built_with", None) for name, module in modules.items()}
    wrong = misfit(built, isa)
    if wrong:
        raise outdated(isa, wrong)


def outdated(isa, why):
    """Return the error for compiled modules that cannot be used together."""
    return LlamacyError(f"the compiled kernels ({isa}) do not fit together: {why}; run `make` in the project's folder")
