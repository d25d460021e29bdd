"""Build the compiled kernels: the rooms of pyx/ once per instruction set, each set in its own package of rooms.

`LLAMACY_BUILD_ISA` chooses the sets (`native`: what this machine can run, the default; `all` of its architecture; or
names with commas), `LLAMACY_ONLY` builds a few modules by name while developing.
"""

import os
import sys
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, find_packages, setup

sys.path.insert(0, str(Path(__file__).resolve().parent))

from llamacy.kernels.isas import ISAS, lacking, of_this_machine
from llamacy.kernels.layout import COMMON, ROOMS, digests

ROOT = Path(__file__).resolve().parent
PYX = ROOT / "pyx"
STAGE = ROOT / "build" / "pyx"

# -O3 without -ffast-math: masks need infinities, and importing a module must not switch the thread to flush-to-zero.
# The inner loops stay as written: with adds reordered or sunk, or values carried over, they no longer fit
# the registers.
FLAGS = [
    "-O3",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-ffp-contract=fast",
    "-fno-tree-reassoc",
    "-fno-tree-pre",
    "-fno-tree-ter",
    "-fno-strict-aliasing",
    "-fopenmp",
    "-g0",
    # what Cython's output always has: helpers it did not need, const lost in memory views
    "-Wno-unused-function",
    "-Wno-discarded-qualifiers",
    "-Wno-sign-compare",
]


def chosen_isas():
    """Return the instruction sets to build, by LLAMACY_BUILD_ISA."""
    wish = os.environ.get("LLAMACY_BUILD_ISA", "native")
    if wish == "all":
        return of_this_machine()
    if wish == "native":
        return [name for name in of_this_machine() if not lacking(name)]
    unknown = [name for name in wish.split(",") if name not in ISAS]
    if unknown:
        sys.exit(f"LLAMACY_BUILD_ISA: unknown instruction set {unknown[0]!r}, wanted native, all or of {list(ISAS)}")
    return wish.split(",")


def stage(source, target, more=""):
    """Copy `source` to `target`, `more` behind it, when it changed: unchanged modules are not compiled again."""
    target.parent.mkdir(parents=True, exist_ok=True)
    data = source.read_bytes() + more.encode()
    if not target.exists() or target.read_bytes() != data:
        target.write_bytes(data)


def staged(room, folder, isa):
    """Stage one room's sources in `folder`, for one set; what is no longer in the room goes. Return its modules."""
    sources = {path: path.name for path in sorted((PYX / room).iterdir()) if path.suffix in (".pxd", ".pyx")}
    if isa:
        sources = {path: name for path, name in sources.items() if path.stem not in ISAS}
    if room == "simd":
        sources[PYX / room / f"{isa}.pxd"] = "verbs.pxd"
    modules = [path.stem for path in sources if path.suffix == ".pyx"]
    for path, name in sources.items():
        more = f"\n\nbuilt_with = {digests(f'{room}.{path.stem}', isa, PYX)!r}\n" if path.suffix == ".pyx" else ""
        stage(path, folder / name, more)
    kept = {"__init__.py", *sources.values(), *(f"{module}.c" for module in modules)}
    for path in folder.iterdir():
        if path.name not in kept:
            path.unlink()
    return modules


def extensions():
    """Stage the sources of each package and return one Extension per module and instruction set."""
    only = set(filter(None, os.environ.get("LLAMACY_ONLY", "").split(",")))
    wanted = [(f"{isa}.{room}", room, isa) for isa in chosen_isas() for room in ROOMS] + [(COMMON, COMMON, None)]
    found = []
    for package, room, isa in wanted:
        folder = STAGE.joinpath("llamacy", "kernels", *package.split("."))
        folder.mkdir(parents=True, exist_ok=True)
        for parent in (folder, *folder.parents):
            if STAGE in parent.parents:
                (parent / "__init__.py").touch()
        for module in staged(room, folder, isa):
            if only and module not in only:
                continue
            found.append(
                Extension(
                    f"llamacy.kernels.{package}.{module}",
                    [str((folder / f"{module}.pyx").relative_to(ROOT))],
                    extra_compile_args=FLAGS + (ISAS[isa].flags if isa else []),
                    extra_link_args=["-fopenmp"],
                )
            )
    return found


def package_folders():
    """Make the folders that receive the compiled modules and return the list of packages."""
    kernels = ROOT / "llamacy" / "kernels"
    for folder in [kernels / COMMON, *(kernels / isa / room for isa in ISAS for room in ("", *ROOMS[1:]))]:
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "__init__.py").exists():
            (folder / "__init__.py").write_text("")
    return find_packages(include=["llamacy", "llamacy.*"])


if __name__ == "__main__":
    os.chdir(ROOT)
    packages = package_folders()
    setup(
        packages=packages,
        # A plain .pth: the import hook that is setuptools' default costs every start of a command 20 ms.
        options={"editable_wheel": {"mode": "compat"}},
        ext_modules=cythonize(
            extensions(),
            include_path=[str(STAGE)],
            language_level=3,
            nthreads=0,
            quiet=True,
            compiler_directives={
                "boundscheck": False,
                "wraparound": False,
                "cdivision": True,
                "initializedcheck": False,
                "embedsignature": True,
                "show_performance_hints": False,
            },
        ),
    )
