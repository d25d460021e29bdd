"""Write docs/commands.md from what the commands themselves say (`make docs`); a test keeps the two equal."""

import importlib
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "commands.md"
WIDTH = "100"

INTRODUCTION = """\
# The commands

What each command in `bin/` says to `--help`; `make docs` writes this page. Installed with pip, `bin/X` is `llamacy-X`.

`_` is accepted for `-` in long flags. A command exits with 0 on success, 2 on wrong usage, 130 on Ctrl-C and 1 on any
other failure, with one line on stderr (`LLAMACY_DEBUG=1` adds the traceback). Results go to stdout, everything else to
stderr.
"""


def commands():
    """Return the names in bin/."""
    return sorted(path.name for path in (ROOT / "bin").iterdir())


def parser_of(command):
    """Return a command's parser."""
    return importlib.import_module(f"llamacy.cli.{command.replace('-', '_')}").build_parser()


def render():
    """Return the page."""
    before, os.environ["COLUMNS"] = os.environ.get("COLUMNS"), WIDTH
    try:
        parts = [f"## bin/{name}\n\n```text\n{parser_of(name).format_help()}```\n" for name in commands()]
    finally:
        os.environ.pop("COLUMNS")
        os.environ.update({"COLUMNS": before} if before is not None else {})
    return "\n".join([INTRODUCTION, *parts])


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    PAGE.write_text(render(), encoding="utf-8")
