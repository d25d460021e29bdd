"""The recorded facts of chat templates are what the transformers that is installed says."""

import json

import pytest

from llamacy.default_model import default_model
from tests.peers import record_chat


def test_recorded_tokens_and_answers_are_transformers_own():
    pytest.importorskip("transformers")
    recorded = json.loads((record_chat.DATA / "expected.json").read_text())
    assert record_chat.record(default_model()) == recorded
