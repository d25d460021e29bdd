"""The list of mutants fits the program: every line is where it is said to be, once, and every test exists."""

from collections import Counter

import pytest

from tests.mutants import MUTANTS, misplaced


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_its_line_and_its_tests_are_there(mutant):
    assert misplaced(mutant) == []


def test_names_are_one_mutant_s_and_there_are_enough():
    assert max(Counter(mutant.name for mutant in MUTANTS).values()) == 1
    assert len([mutant for mutant in MUTANTS if not mutant.modules]) >= 40
