"""What docs/accuracy.md claims, for the tests that hold the engine to it: no test has a copy of its numbers.

A cell of its table is found by its row's first words and its column's name, a number in its text by the words around
it. A claim holds where what was measured is no more than the claim, rounded to as many digits.
"""

import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NUMBER = r"[+-]?\d+(?:\.\d+)?"
COLUMNS = {
    "reference": "reference",
    "f32": "--activations f32",
    "int16": "--activations int16",
    "int8": "default",
}


@cache
def text():
    """The document, its line ends as spaces."""
    return " ".join((ROOT / "docs" / "accuracy.md").read_text(encoding="utf-8").split("\n"))


@cache
def table():
    """{a row's first cell: {column: its text}}."""
    lines = (ROOT / "docs" / "accuracy.md").read_text(encoding="utf-8").splitlines()
    rows = [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    head, _, *body = rows
    return {row[0]: dict(zip(head, row, strict=True)) for row in body}


def cell(row, column):
    """The text of the one row that begins with `row`."""
    (found,) = (cells for name, cells in table().items() if name.startswith(row))
    return found[COLUMNS[column]]


def numbers(row, column):
    """The numbers of a cell, as they are written."""
    return re.findall(NUMBER, cell(row, column))


def sentence(pattern):
    """The numbers at the places of N in `pattern`, words of the document, as they are written; there exactly once."""
    expression = re.escape(pattern).replace(r"\ ", " ").replace("N", f"({NUMBER})")
    (found,) = re.findall(expression, text())
    return [found] if isinstance(found, str) else list(found)


def holds(found, claim):
    """Is `found` at most the claim, rounded to its digits?"""
    return bool(round(float(found), len(claim.partition(".")[2])) <= float(claim))
