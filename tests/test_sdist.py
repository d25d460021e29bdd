"""A source distribution has all that building and testing need, and nothing that a machine made."""

import os
import subprocess
import sys
import tarfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WANTED = ["pyx", "llamacy", "bin", "tests", "tools", "examples", "docs", "bench"]
MADE = {"__pycache__", ".venv", "work"}


def test_it_is_complete(tmp_path):
    setup = [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", tmp_path, "sdist", "-d", tmp_path]
    done = subprocess.run(setup, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"LLAMACY_ONLY": "none"})
    assert done.returncode == 0, done.stderr
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        held = {name.partition("/")[2] for name in file.getnames()}
    wanted = {"setup.py", "pyproject.toml", "Makefile", "LICENSE", "README.md", "CHANGELOG.md"}
    for folder in WANTED:
        for path in (ROOT / folder).rglob("*"):
            parts = path.relative_to(ROOT).parts
            # modules' folders are made by the build, with an empty __init__.py
            if path.is_file() and path.suffix not in (".so", ".pyc") and not MADE & set(parts):
                wanted.add("/".join(parts))
    assert len([name for name in wanted if name.startswith("pyx/")]) > 50
    assert not wanted - held
    assert not [name for name in held if name.endswith((".so", ".c", ".pyc")) or name.startswith("build/")]
