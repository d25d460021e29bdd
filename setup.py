"""Build the compiled kernels: the rooms of pyx/ once per instruction set, each set in its own package of rooms.

`LLAMACY_BUILD_ISA` chooses the sets (`native`: what this machine can run, the default; `best` of those; `all` of its
architecture; or names with commas), `LLAMACY_ONLY` builds a few modules by name while developing, `LLAMACY_CFLAGS` has
the last word on the compiler's flags.
"""

import os
import sys
from pathlib import Path

from Cython import Tempita
from Cython.Build import cythonize
from setuptools import Extension, find_packages, setup

sys.path.insert(0, str(Path(__file__).resolve().parent))

from llamacy.kernels import weight_types
from llamacy.kernels.isas import ISAS, lacking, of_this_machine
from llamacy.kernels.layout import COMMON, FUNCTIONS, ROOMS, digests
from llamacy.system import processors

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
    "-Wno-unused-label",
    "-Wno-discarded-qualifiers",
    "-Wno-sign-compare",
]
LAST_FLAGS = os.environ.get("LLAMACY_CFLAGS", "").split()


def chosen_isas():
    """Return the instruction sets to build, by LLAMACY_BUILD_ISA."""
    wish = os.environ.get("LLAMACY_BUILD_ISA", "native")
    if wish == "all":
        return of_this_machine()
    native = [name for name in of_this_machine() if not lacking(name)]
    if wish in ("native", "best"):
        return native[:1] if wish == "best" else native
    unknown = [name for name in wish.split(",") if name not in ISAS]
    if unknown:
        wanted = f"native, best, all or of {list(ISAS)}"
        sys.exit(f"LLAMACY_BUILD_ISA: unknown instruction set {unknown[0]!r}, wanted {wanted}")
    return wish.split(",")


def filled(path, module):
    """Return the text of a source; a template (.tp) is filled from the table of weight types."""
    text = path.read_text("utf-8")
    if path.suffix != ".tp":
        return text
    names = {"table": weight_types, "types": weight_types.WEIGHT_TYPES, "module": module}
    return Tempita.Template(text, name=path.name).substitute(names)


def sources_of(room, isa):
    """Return {name to stage under: source} of one room: templates without their .tp, one simd/*.pxd as verbs."""
    found = {}
    for path in sorted((PYX / room).iterdir()):
        name = path.name.removesuffix(".tp")
        if name.endswith((".pxd", ".pyx")) and path.name != FUNCTIONS and not (isa and path.stem in ISAS):
            found[name] = path
    if room == "simd":
        found["verbs.pxd"] = PYX / room / f"{isa}.pxd"
    if room == "types":
        for home in weight_types.HOMES:
            found.setdefault(f"{home}.pxd", PYX / room / FUNCTIONS)
    return found


def staged(room, folder, isa):
    """Stage one room's sources in `folder`, for one set; what is no longer in the room goes. Return its modules."""
    sources = sources_of(room, isa)
    modules = [name.removesuffix(".pyx") for name in sources if name.endswith(".pyx")]
    for name, path in sources.items():
        module = name.rpartition(".")[0]
        text = filled(path, module)
        if name.endswith(".pyx"):
            text += f"\n\nbuilt_with = {digests(f'{room}.{module}', isa, PYX)!r}\n"
        # unchanged modules are not compiled again
        target = folder / name
        if not target.exists() or target.read_text("utf-8") != text:
            target.write_text(text, "utf-8")
    kept = {"__init__.py", *sources, *(f"{module}.c" for module in modules)}
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
                    extra_compile_args=FLAGS + (ISAS[isa].flags if isa else []) + LAST_FLAGS,
                    extra_link_args=["-fopenmp"],
                )
            )
    return found


def package_folders():
    """Make the folders that receive the compiled modules and return the list of packages."""
    kernels = ROOT / "llamacy" / "kernels"
    for folder in [kernels / COMMON, *(kernels / isa / room for isa in ISAS for room in ("", *ROOMS))]:
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "__init__.py").exists():
            (folder / "__init__.py").write_text("")
    return find_packages(include=["llamacy", "llamacy.*"])


if __name__ == "__main__":
    os.chdir(ROOT)
    packages = package_folders()
    # A source distribution holds pyx/ itself, not what is staged from it on this machine.
    compiled = [] if "sdist" in sys.argv else extensions()
    setup(
        packages=packages,
        # A plain .pth: the import hook that is setuptools' default costs every start of a command 20 ms.
        options={"editable_wheel": {"mode": "compat"}, "build_ext": {"parallel": str(processors())}},
        ext_modules=cythonize(
            compiled,
            include_path=[str(STAGE)],
            language_level=3,
            nthreads=processors(),
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
