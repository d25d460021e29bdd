"""A copy of the project to break or to build in another way; the project itself stays as it is."""

import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("llamacy", "pyx", "tests", "bench", "bin", "docs", "examples", "tools")
LEFT_OUT = {"__pycache__", ".venv", "work"}


def update_copy(target, with_kernels):
    """Make the folder `target` a copy of the project as it is now.

    Files that are the same already are not touched, so that only what changed is built again. The environment and the
    models are linked to. with_kernels: the compiled modules too; without, those in `target` stay.
    """
    wanted = {path.relative_to(ROOT): path for path in _sources() if with_kernels or path.suffix != ".so"}
    for name, path in wanted.items():
        copy = target / name
        if not copy.exists() or copy.read_bytes() != path.read_bytes():
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copy)
    for path in _files(target):
        if path.relative_to(target) not in wanted and (with_kernels or path.suffix != ".so"):
            path.unlink()
    for name in (".venv", "models"):
        if not (target / name).is_symlink():
            (target / name).symlink_to(ROOT / name)


def _sources():
    yield from (path for path in [*ROOT.glob("*.*"), ROOT / "Makefile", ROOT / "LICENSE"] if path.is_file())
    yield from _files(ROOT)


def _files(root):
    for folder in COPIED:
        for path in sorted((root / folder).rglob("*")):
            if path.is_file() and not LEFT_OUT & set(path.relative_to(root).parts):
                yield path
