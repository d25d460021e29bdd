"""What is said before a run: counts of what is learnt, and one sample as text."""

import numpy as np

from llamacy.train.samples import Encoder, Preference, Record, Sample
from llamacy.train.summary import LONG, LOOKED_AT, marked, shown_lines, summary, whole_lines
from tests.train.fakes import ByteTokenizer


def encoded(*pieces, closed=True):
    return Encoder(ByteTokenizer(), 4096).encode(Record(pieces, closed))[0]


TALK = encoded(("<user>鱼\n", False), ("b<|im_end|>\n", True), ("c", False), ("d</s>", True))


def test_a_sample_is_shown_as_text_with_what_is_learnt_marked():
    assert marked(TALK, ByteTokenizer()) == "<user>鱼\n⟦b<|im_end|>⟧\nc⟦d</s>⟧"
    assert shown_lines(TALK, ByteTokenizer()) == ["  | <user>鱼", "  | ⟦b<|im_end|>⟧", "  | c⟦d</s>⟧"]


def test_hostile_and_long_samples_stay_lines():
    long = encoded(("x" * 3000, False), ("\x1b]0;y\x07" + "z" * 3000, True))
    (line,) = shown_lines(long, ByteTokenizer())
    assert line.isprintable() and len(line) < 700 and " ... " in line and line.endswith("z⟧")
    (line,) = shown_lines(encoded(("a", False), ("\x1b]0;y\x07</s>", True)), ByteTokenizer())
    assert line == "  | a⟦\\x1b]0;y\\x07</s>⟧"


def test_a_whole_sample_is_shown_in_pieces():
    lines = whole_lines(encoded(("x" * 3000, False), ("\nz</s>", True)), ByteTokenizer())
    assert lines[0] == "  | " + "x" * LONG and lines[1] == "  + " + "x" * LONG and len(lines) == 8
    assert lines[-2:] == ["  + ⟦", "  | z</s>⟧"]


def test_both_answers_of_a_pair_are_shown():
    pair = Preference((encoded(("q", False), ("a</s>", True)), encoded(("q", False), ("b</s>", True))), (True, False))
    assert shown_lines(pair, ByteTokenizer()) == ["  | q⟦a</s>⟧", "  | q⟦b</s>⟧"]


def test_counts_are_of_all_samples_where_there_are_few():
    samples = [Sample(np.arange(n, dtype=np.int32), np.arange(n) >= n // 2) for n in (4, 10, 4, 6)]
    found = summary(samples)
    assert (found.n, found.n_seen, found.tokens, found.longest, found.trained, found.duplicates) == (
        4,
        4,
        24,
        10,
        12,
        1,
    )
    assert found.lines() == [
        "an epoch: 4 samples, 24 tokens (mean 6, longest 10), 50 % of them learnt; duplicates: 1"]  # fmt: skip


def test_of_many_samples_some_are_looked_at():
    class Many:
        def __len__(self):
            return 10 * LOOKED_AT

        def __getitem__(self, i):
            return Sample(np.full(5, i, np.int32), np.arange(5) > 0)

    found = summary(Many())
    assert found.n == 10 * LOOKED_AT and found.n_seen == LOOKED_AT and found.duplicates == 0
    assert found.lines() == ["an epoch: 10000 samples, about 50,000 tokens (mean 5, longest 5), 80 % of them learnt"]
