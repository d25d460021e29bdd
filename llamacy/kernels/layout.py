"""The rooms of pyx/ and what is in them; do compiled modules fit together?

Modules call each other through headers (.pxd), without a check: an old one beside a new one would read structs that
have changed, and crash. Each carries a digest of every header it was compiled with: setup.py writes the digests,
`llamacy.kernels.load` compares them.
"""

import re
import sys
import zlib
from pathlib import Path

from llamacy.errors import LlamacyError
from llamacy.kernels import weight_types

SOURCES = Path(__file__).resolve().parents[2] / "pyx"
# In this order: a room's modules use those of rooms before it. Compiled once per instruction set.
ROOMS = ("simd", "types", "products", "layers", "steps")
# Compiled once; uses no other room.
COMMON = "text"
_CIMPORT = re.compile(r"^\s*from\s+(\.+)([\w.{}]+)\s+cimport\b", re.M)
# Headers of the modules that weight types name are made of one template.
FUNCTIONS = "functions.pxd.tp"


def cimports(path):
    """Return what a source of pyx/ cimports from the rooms, as "room.module"; of a template, all that it may."""
    found = []
    for dots, name in _CIMPORT.findall(path.read_text("utf-8")):
        homes = weight_types.HOMES if "{{" in name else [name]
        names = [name.partition("{{")[0] + home if "{{" in name else name for home in homes]
        found += [f"{path.parent.name}.{name}" if dots == "." else name for name in names]
    return found


def source_path(module, sources=SOURCES):
    """Return where a module lies, "room.module": a .pyx, or the template of one."""
    path = sources.joinpath(*module.split(".")).with_suffix(".pyx")
    return path if path.exists() else path.with_suffix(".pyx.tp")


def digests(module, isa, sources=SOURCES):
    """Return {header: digest} of all that `module` includes when it is built for `isa`, and of what those include.

    Modules and headers are named "room.module".
    """
    found, waiting = {}, [module, *cimports(source_path(module, sources))]
    while waiting:
        header = waiting.pop()
        path = header_path(header, isa, sources)
        if header not in found and path.exists():
            found[header] = _digest(path)
            waiting += cimports(path)
    return found


def header_path(header, isa, sources=SOURCES):
    """Return where a header lies: each instruction set has its own simd.verbs."""
    room, name = header.split(".")
    path = sources / room / f"{isa if header == 'simd.verbs' else name}.pxd"
    if path.exists():
        return path
    template = path.with_suffix(".pxd.tp")
    is_home = room == "types" and name in weight_types.HOMES
    return sources / room / FUNCTIONS if is_home and not template.exists() else template


def _digest(path):
    data = path.read_bytes()
    if path.suffix == ".tp":
        data += Path(weight_types.__file__).read_bytes()
    return f"{zlib.crc32(data):08x}"


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
                return f"{other} and {module} were compiled with different versions of {header}"
    if sources.is_dir():
        for header, (digest, module) in seen.items():
            path = header_path(header, isa, sources)
            now = _digest(path) if path.exists() else None
            if now != digest:
                return f"{header} has changed since {module} was compiled"
    return None


def check(isa):
    """Raise LlamacyError, one line, when the loaded modules of a set do not fit together."""
    package = f"llamacy.kernels.{isa}."
    modules = {name: module for name, module in sys.modules.items() if name.startswith(package)}
    built = {
        name.removeprefix(package): getattr(module, "built_with", None)
        for name, module in modules.items()
        if not hasattr(module, "__path__")  # a room
    }
    wrong = misfit(built, isa)
    if wrong:
        raise outdated(isa, wrong)


def outdated(isa, why):
    """Return the error for compiled modules that cannot be used together."""
    return LlamacyError(f"the compiled kernels ({isa}) do not fit together: {why}; run `make` in the project's folder")
