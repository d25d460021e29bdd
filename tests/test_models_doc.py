"""docs/models.md says what is so: make docs writes it."""

from tools.models_doc import PAGE, render


def test_the_page_is_what_the_table_says():
    assert PAGE.read_text(encoding="utf-8") == render(), "run make docs"


def test_every_family_has_a_recorded_model():
    """Only a family that stands beside others for its conversion alone may go without; none does."""
    from llamacy.formats.architectures import ARCHITECTURES
    from tests.model.family_cases import CASES
    from tools.models_doc import family_of

    assert {family_of(case) for case in CASES} == set(ARCHITECTURES)
