"""A mutant: one line of the program changed, and the tests that must notice it; `make mutants` tries them.

A row stands for a mistake that is easy to make and hard to see: nothing crashes, the text or the loss is a little off.
Whoever changes a line that is listed here changes it here too: `old` has to be in its file exactly once.
"""

from dataclasses import dataclass
from pathlib import Path

from llamacy.kernels.layout import ROOMS, SOURCES, digests

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Mutant:
    """In `file` the text `old` becomes `new`, within one line; `modules` are compiled anew where it is in pyx/."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple

    @property
    def modules(self):
        """The compiled modules' names: of a header all that include it; none for Python."""
        path = Path(self.file)
        if path.suffix == ".pxd":
            header = f"{path.parent.name}.{path.stem}"
            sources = [source for room in ROOMS for source in (SOURCES / room).glob("*.pyx*")]
            found = [(source.parent.name, source.name.partition(".")[0]) for source in sources]
            return tuple(name for room, name in found if header in digests(f"{room}.{name}", "generic"))
        return (path.name.partition(".")[0],) if ".pyx" in path.suffixes else ()


def misplaced(mutant):
    """Return what keeps a mutant from being tried, a list of lines."""
    path, wrong = ROOT / mutant.file, []
    n = path.read_text(encoding="utf-8").count(mutant.old) if path.exists() else 0
    if n != 1:
        wrong.append(f"{mutant.name}: {mutant.old!r} is in {mutant.file} {n} times, wanted once; mend tests/mutants")
    if mutant.old == mutant.new or "\n" in mutant.old + mutant.new:
        wrong.append(f"{mutant.name}: changes nothing, or more than one line")
    for test in mutant.tests:
        file, _, name = test.partition("::")
        if not (ROOT / file).exists() or f"def {name}(" not in (ROOT / file).read_text(encoding="utf-8"):
            wrong.append(f"{mutant.name}: there is no test {test}; mend tests/mutants")
    if not mutant.tests:
        wrong.append(f"{mutant.name}: names no test")
    return wrong


def changed(mutant, source):
    """Return `source`, the file's text, with the mutation in it."""
    assert source.count(mutant.old) == 1
    return source.replace(mutant.old, mutant.new)


def table(folder, *rows):
    """Return the mutants of one folder; a row: name, file, old, new, tests below tests/."""
    return [
        Mutant(name, f"{folder}/{file}", old, new, tuple(f"tests/{test}" for test in tests))
        for name, file, old, new, *tests in rows
    ]
