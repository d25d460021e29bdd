"""What holds for any text: nothing is lost, streaming gives the same text, long inputs stay fast."""

import codecs
import threading
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llamacy.text.tokenizer import Tokenizer

ANY = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
FEWER = settings(parent=ANY, max_examples=60)

# Text as people write it: words, numbers, spaces, several scripts, and now and then any character at all.
FRAGMENTS = [
    "the",
    " The",
    "don't",
    "I'LL",
    " 1234567",
    "  ",
    "\n\n",
    "\t",
    "!?",
    "...",
    "漢字",
    "ひらがな",
    "한글",
    "é",
    "e\u0301",
]
FRAGMENTS += ["مرحبا", "हिन्दी", "🦙", "👩\u200d👧", "\u3000", "\u00a0", "_x", "</", "▁", "\r\n", "ſ", "½"]
TEXT = st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=4), max_size=30).map("".join)


@pytest.mark.parametrize("name", ["gpt-2", "llama-bpe"])
@ANY
@given(text=TEXT)
def test_byte_level_vocabularies_lose_nothing(recorded, name, text):
    tokenizer = recorded(name)
    ids = tokenizer.encode(text, add_special=False, parse_special=False)
    assert tokenizer.decode(ids, special=True) == text
    assert all(0 <= token < tokenizer.n_vocab for token in ids)


@ANY
@given(text=TEXT)
def test_sentencepiece_adds_a_space_and_loses_nothing(recorded, text):
    tokenizer = recorded("llama-spm")
    ids = tokenizer.encode(text, add_special=False, parse_special=False)
    assert tokenizer.decode(ids) == (" " + text if text else "").replace("\u2581", " ")


@pytest.mark.parametrize("name", ["gpt-2", "llama-spm"])
@ANY
@given(ids=st.lists(st.integers(0, 31999), max_size=40), special=st.booleans())
def test_streaming_is_decoding(recorded, name, ids, special):
    tokenizer = recorded(name)
    stream = tokenizer.stream(special)
    shown = [stream.feed(token) for token in ids]
    assert "".join(shown) + stream.flush() == tokenizer.decode(ids, special)


@ANY
@given(raw=st.binary(max_size=40) | TEXT.map(str.encode))
def test_streaming_shows_each_character_once_it_is_whole(recorded, raw):
    """Byte by byte: as much as is decided, U+FFFD only for bytes that nothing to come can complete."""
    tokenizer = recorded("llama-spm")
    stream, shown = tokenizer.stream(), ""
    for end, byte in enumerate(raw, 1):
        shown += stream.feed(3 + byte)
        assert shown == codecs.getincrementaldecoder("utf-8")("replace").decode(raw[:end])
    assert shown + stream.flush() == raw.decode("utf-8", "replace")


def test_an_unfinished_character_waits_for_its_end(recorded):
    tokenizer = recorded("llama-spm")
    stream = tokenizer.stream()
    assert [stream.feed(3 + byte) for byte in "é🦙".encode()] == ["", "é", "", "", "", "🦙"]
    assert stream.feed(3 + 0xE2) == "" and stream.feed(3 + 0x41) == "\ufffdA"
    assert stream.feed(3 + 0xE2) == "" and stream.flush() == "\ufffd"
    assert stream.feed(3 + 0x41) == "A" and stream.flush() == ""  # usable again after flush


@FEWER
@given(text=TEXT)
def test_splitting_the_text_at_special_tokens_splits_the_ids(recorded, text):
    tokenizer = recorded("llama-bpe")
    eot = tokenizer.encode("<|eot_id|>", add_special=False)
    plain = text.replace("<|", "<")
    ids = tokenizer.encode(plain, add_special=False)
    assert tokenizer.encode(f"{plain}<|eot_id|>{plain}", add_special=False) == ids + eot + ids


def test_many_threads_share_a_tokenizer(vocabulary_file, data):
    """The first uses lay tables and character classes out: all threads at once, on a new tokenizer."""
    from llamacy.formats.model_file import open_model

    tokenizer = Tokenizer.from_metadata(open_model(vocabulary_file("llama-bpe")).metadata)
    texts = [(data / "tokenizers" / "strings.inp").read_text() + chr(0x400 + 97 * i) * 50 for i in range(8)]
    found = {}
    threads = [threading.Thread(target=lambda i=i: found.update({i: tokenizer.encode(texts[i])})) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {i: tokenizer.encode(text) for i, text in enumerate(texts)}


LONG = {
    "english": "It was the best of times, it was the worst of times; in 1859 he wasn't sure.\n",
    "chinese": "从前有一座山，山里有一座庙。",
    "one letter": "a",
    "one space": " ",
    "unsplit": "aA1é漢",
}


@pytest.mark.parametrize("name", ["gpt-2", "llama-bpe", "llama-spm"])
@pytest.mark.parametrize("kind", LONG)
def test_a_megabyte_takes_less_than_two_seconds(recorded, name, kind):
    tokenizer = recorded(name)
    tokenizer.encode("warm")
    text = (LONG[kind] * (10**6 // len(LONG[kind].encode()) + 1))[: 10**6]
    start = time.process_time()
    ids = tokenizer.encode(text, add_special=False)
    seconds = time.process_time() - start
    assert (
        tokenizer.decode(ids).removeprefix(" " if name == "llama-spm" and kind != "one space" else "").strip()
        == text.strip()
    )
    assert seconds < 2


def test_spaces_that_end_nowhere_are_split_in_linear_time():
    """`\\s+$` of deepseek-llm fails at every one of these spaces: tried anew at each, that would be 10^12 steps."""
    from llamacy.text.pretokenizers import BY_NAME, splitter

    text = b" " * 10**6 + b"x"
    start = time.process_time()
    assert b"".join(splitter(BY_NAME["deepseek-llm"].expressions).split(text)) == text
    assert time.process_time() - start < 2


def test_starting_costs_little(smollm2_metadata):
    """The path of every command: a tokenizer from metadata to the ids of a short prompt, 49,152 tokens."""
    best = 1.0
    for _ in range(3):
        start = time.process_time()
        Tokenizer.from_metadata(smollm2_metadata).encode("Tell me a joke.")
        best = min(best, time.process_time() - start)
    assert best < 0.060
