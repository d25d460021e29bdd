"""Who may import whom: each package only from those before it, and nothing at run time but NumPy and the extras."""

import ast
import sys
from functools import partial
from pathlib import Path

import pytest

from llamacy.cli import entry

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "llamacy"

# The packages in layers: a module imports from its own package and from lower layers only.
LAYERS = [{"kernels"}, {"formats"}, {"text"}, {"model"}, {"generate", "train"}]
LAYERS += [{"evaluation"}, {"server"}, {"library"}, {"cli"}]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
EVERYWHERE = {"errors", "system"}
NAMED = {"library"}  # the package itself has its names: when they are asked for, see tests/library

# Modules from outside the standard library, and where they may be imported: always, or only inside a function.
ALWAYS, LAZY = {"numpy"}, {"jinja2", "matplotlib", "pyarrow", "safetensors", "tensorboard", "tqdm", "yaml"}

MODULES = sorted(PACKAGE.rglob("*.py"))


def imports_of(path):
    """Yield (dotted name, whether it runs when the module is imported) of every import in a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    lazy = {id(inner) for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) for inner in ast.walk(node)}
    for node in ast.walk(tree):
        at_once = id(node) not in lazy
        if isinstance(node, ast.Import):
            yield from ((alias.name, at_once) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module == "llamacy":
            yield from ((f"llamacy.{alias.name}", at_once) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = ("llamacy", *path.relative_to(PACKAGE).parts[:-1])[: -(node.level - 1) or None]
            yield ".".join([*package, node.module or ""] if node.level else [node.module]), at_once


def test_every_package_has_a_layer():
    assert {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()} == set(LEVEL)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_from_below(path):
    own = path.relative_to(PACKAGE).parts[0]
    for name, _ in imports_of(path):
        parts = name.split(".")
        other = parts[1] if parts[0] == "llamacy" and len(parts) > 1 else None
        if own in LEVEL and other in LEVEL and other != own:
            assert LEVEL[other] < LEVEL[own], f"{own} imports {name}"
        elif own not in LEVEL:
            allowed = EVERYWHERE | (NAMED if path == PACKAGE / "__init__.py" else set())
            assert other is None or other in allowed, f"{path.name} imports {name}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_needs_only_numpy_when_imported(path):
    outside = {
        (name.split(".")[0], at_once)
        for name, at_once in imports_of(path)
        if name.split(".")[0] not in sys.stdlib_module_names | {"llamacy"}
    }
    assert {name for name, at_once in outside if at_once} <= ALWAYS
    assert {name for name, _ in outside} <= ALWAYS | LAZY


def commands():
    """The names of the modules that each are a command."""
    return {name for name, value in vars(entry).items() if isinstance(value, partial)}


def imported_modules(path):
    """Return the dotted names of what a file imports, with `from package import module` as package.module too."""
    names = {name for name, _ in imports_of(path)}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            names.update(f"{node.module or 'llamacy.cli'}.{alias.name}" for alias in node.names)
    return names


@pytest.mark.parametrize("path", sorted((PACKAGE / "cli").glob("*.py")), ids=lambda path: path.name)
def test_no_command_is_imported_by_another(path):
    assert len(commands()) > 5
    assert not imported_modules(path) & {f"llamacy.cli.{name}" for name in commands()}


def test_an_import_of_a_command_would_be_seen(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path)
    path = tmp_path / "cli" / "x.py"
    path.parent.mkdir()
    for line in (
        "from llamacy.cli.main import show", "from llamacy.cli import main as m", "import llamacy.cli.main",
        "from . import main", "def f():\n    from .main import show",
    ):  # fmt: skip
        path.write_text(line + "\n")
        assert "llamacy.cli.main" in imported_modules(path), line


def test_a_wrong_import_would_be_seen(tmp_path, monkeypatch):
    """The reader of imports itself: plain, from, relative and lazy imports."""
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path)
    path = tmp_path / "model" / "x.py"
    path.parent.mkdir()
    path.write_text(
        "import llamacy.cli.run\nfrom llamacy import server\nfrom . import y\n\ndef f():\n    import torch\n"
    )
    assert list(imports_of(path)) == [
        ("llamacy.cli.run", True),
        ("llamacy.server", True),
        ("llamacy.model.", True),
        ("torch", False),
    ]
