"""JSON that is read and written in pieces, so that no request holds up the others; collections that wait."""

import gc
import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llamacy.server import answers
from llamacy.server.answers import Call, Json
from llamacy.server.errors import HttpError
from llamacy.server.garbage import Garbage

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=7) | st.dictionaries(st.text(max_size=3), inner, max_size=4),
    max_leaves=30,
)


def called(body):
    return Call("POST", "/", {}, {}, body, lambda: True)


@settings(max_examples=200, deadline=None)
@given(VALUES)
@example([*range(7)])
@example([[1], 2])
@example({"a": {}, "b": [], "c": [{}]})
@example("\ud800")
def test_pieces_are_the_whole(value):
    step, at_once, answers.STEP, answers.AT_ONCE = answers.STEP, answers.AT_ONCE, 3, 0
    try:
        written = Json(value).encoded()
        assert json.loads(written) == value == called(written).json()
        if "\ud800" not in str(value):
            assert written.decode("utf-8", "surrogatepass") == json.dumps(value, ensure_ascii=False)
    finally:
        answers.STEP, answers.AT_ONCE = step, at_once


def test_no_call_writes_or_reads_much(monkeypatch):
    """What takes long is made of calls that each take at most some thousand numbers."""
    sizes, inner = [], json.dumps

    def size(value):
        parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        return 1 + sum(map(size, parts))

    def dumps(value, **more):
        sizes.append(size(value))
        return inner(value, **more)

    monkeypatch.setattr(answers.json, "dumps", dumps)
    data = {"data": [{"embedding": [0.5] * 576, "index": i} for i in range(300)], "tokens": [*range(5000)]}
    written = Json(data).encoded()
    assert max(sizes) <= answers.STEP + 1 and json.loads(written) == data
    monkeypatch.setattr(answers.json, "loads", None)  # never asked for a large body
    body = inner([1] * (answers.AT_ONCE // 2)).encode()
    assert called(body).json() == [1] * (answers.AT_ONCE // 2)


@pytest.mark.parametrize("body", [b"[1,", b'{"a": NaN}', b"[" * 100_000, b"\xff", b"[1] 2", b'{"a" 1}'])
@pytest.mark.parametrize("at_once", [0, 1 << 20])
def test_what_is_no_json(monkeypatch, body, at_once):
    monkeypatch.setattr(answers, "AT_ONCE", at_once)
    with pytest.raises(HttpError, match="JSON") as caught:
        called(body).json()
    assert caught.value.status == 400


def test_garbage_is_collected_when_nothing_is_to_do(monkeypatch):
    collected = []
    garbage = Garbage()
    try:
        monkeypatch.setattr("llamacy.server.garbage.gc.collect", lambda: collected.append(1))
        garbage(True)
        garbage._last -= 6
        garbage(False)
        assert not collected
        garbage(True)
        assert len(collected) == 1 and gc.get_threshold()[2] > 10_000
        garbage._last -= 301
        garbage(False)
        assert len(collected) == 2
    finally:
        garbage.close()
    assert gc.get_freeze_count() == 0
