"""Stop strings and whole characters, however the text is cut into tokens."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamacy.generate.request import Token
from llamacy.generate.text_stream import StopFinder, TextStream
from tests.generate.fakes import FakeTokenizer

letters = st.text("ab\n", max_size=12)


def expected(text, stops):
    """The text before the stop that is complete first, and that stop; by looking at every prefix."""
    for end in range(len(text) + 1):
        done = [stop for stop in stops if stop and text[:end].endswith(stop)]
        if done:
            stop = max(done, key=len)
            return text[: end - len(stop)], stop
    return text, None


def run(pieces, stops):
    """Return (shown pieces, stop found), checking that what is shown is never taken back."""
    finder, shown = StopFinder(stops), []
    for piece in pieces:
        shown.append(finder.feed(piece))
    found = finder.found
    shown.append(finder.flush())
    return shown, found


@given(st.lists(letters, max_size=8), st.lists(letters, max_size=4))
def test_stops_do_not_depend_on_the_pieces(pieces, stops):
    text = "".join(pieces)
    shown, found = run(pieces, stops)
    assert ("".join(shown), found) == expected(text, stops)


@given(st.lists(letters, max_size=8), st.lists(letters.filter(bool), min_size=1, max_size=4))
def test_no_part_of_a_stop_is_shown_and_nothing_else_is_held(pieces, stops):
    finder, so_far, shown = StopFinder(stops), "", ""
    for piece in pieces:
        so_far += piece
        shown += finder.feed(piece)
        if finder.found:
            return
        held = so_far[len(shown) :]
        assert so_far.startswith(shown)
        assert not held or any(stop.startswith(held) for stop in stops)
        # Nothing that could still become a stop has been shown: every longer tail is no beginning of one.
        for at in range(len(shown)):
            assert not any(stop.startswith(so_far[at:]) for stop in stops)


@pytest.mark.parametrize(
    ("pieces", "stops", "text", "found"),
    [
        (["on", "e st", "op two"], ["stop"], "one ", "stop"),
        (["one sto", "ut"], ["stop"], "one stout", None),
        (["aab"], ["ab", "aab"], "", "aab"),
        (["xabcd"], ["abcd", "bc"], "xa", "bc"),
        (["a\n", "\nb"], ["\n\n"], "a", "\n\n"),
        (["text"], [], "text", None),
        (["text"], [""], "text", None),
        (["日", "本語"], ["本"], "日", "本"),
    ],
)
def test_examples(pieces, stops, text, found):
    shown, stop = run(pieces, stops)
    assert ("".join(shown), stop) == (text, found)


@given(st.text(max_size=20), st.lists(st.text(min_size=1, max_size=3), max_size=3))
def test_bytes_as_tokens_show_whole_characters(text, stops):
    stream, shown = TextStream(FakeTokenizer().stream(), stops), ""
    for id in text.encode("utf-8", "surrogatepass"):
        piece, stop = stream.feed(Token(id, False))
        assert "\ufffd" not in piece or "\ufffd" in text
        shown += piece
        if stop:
            break
    assert (shown + stream.flush(), stream.stopping_word) == expected(text, stops)


def test_an_incomplete_character_at_the_end_and_an_end_token():
    stream = TextStream(FakeTokenizer().stream(), ["st"])
    assert stream.feed(Token(ord("s"), False)) == ("", False)
    assert stream.feed(Token(0xE6, False)) == ("", False)
    assert stream.feed(Token(257, True)) == ("", False)
    assert stream.flush() == "s\ufffd"
