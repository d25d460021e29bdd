"""Which prompts and samples a run is judged by, and how answers look in terminals of any width."""

import contextlib
import math
from types import SimpleNamespace

import numpy as np
import pytest

from llamacy.errors import LlamacyError
from llamacy.train.comparison import (
    FEWEST,
    KEPT,
    LENGTH,
    MOST,
    SHOWN,
    Answers,
    Comparison,
    Perplexity,
    Question,
    answer_lines,
    ask_or_say,
    compare,
    measured,
    perplexity,
    perplexity_lines,
    question_of,
    questions,
    spread,
    width,
    wrapped,
)
from llamacy.train.options import TrainOptions
from llamacy.train.samples import Encoder, Preference, Record, Sample
from llamacy.train.watching import Comparer
from tests.train.fakes import ByteTokenizer


def encoded(*pieces):
    return Encoder(ByteTokenizer(), 4096).encode(Record(pieces, True))[0]


TALK = encoded(("<user>鱼\n", False), ("b<|im_end|>", True), ("\nc", False), ("d</s>", True))


def test_a_question_is_the_first_answer_s():
    found = question_of(TALK, ByteTokenizer())
    assert (found.prompt, found.wanted) == ("<user>鱼\n", "b<|im_end|>") and bytes(found.ids).decode() == found.prompt
    good, bad = encoded(("qq", False), ("good</s>", True)), encoded(("qq", False), ("bad</s>", True))
    assert question_of(Preference((bad, good), (False, True)), ByteTokenizer()).wanted == "good</s>"
    assert question_of(Preference((bad,), (False,)), ByteTokenizer()) is None
    assert question_of(Sample(np.arange(5, dtype=np.int32), np.zeros(5, bool)), ByteTokenizer()) is None


@pytest.mark.parametrize(("n", "begin"), [(10, 5), (400, 32), (2, 1)])
def test_a_plain_text_is_asked_how_it_goes_on(n, begin):
    text = Sample(np.full(n, 97, np.int32), np.arange(n) > 0)
    found = question_of(text, ByteTokenizer())
    assert (found.prompt, found.wanted) == ("a" * begin, "a" * (n - begin))


def test_questions_are_spread_differ_and_fit():
    rows = [encoded((f"{i // 2:03}" * (200 if i < 20 else 1), False), ("x</s>", True)) for i in range(100)]
    found = questions(rows, 3, ByteTokenizer(), 512)
    assert [question.prompt for question in found] == ["016", "033", "012"]  # the first of all is too long
    assert questions(rows[20:22], 5, ByteTokenizer(), 512) == found[:0] + [Question(tuple(b"010"), "010", "x</s>")]
    assert questions(rows, 3, ByteTokenizer(), 10) == []
    assert spread(10, 4) == [0, 2, 5, 7] and spread(3, 9) == [0, 1, 2] and spread(0, 3) == []


@pytest.mark.parametrize(("n_learnt", "n"), [(10, FEWEST), (1000, 50), (10**6, MOST)])
def test_perplexity_is_measured_on_a_share(n_learnt, n):
    rows = [Sample(np.arange(2 * LENGTH, dtype=np.int32), np.arange(2 * LENGTH) > 5)] * 500
    found = measured(rows, n_learnt)
    assert len(found) == n and all(len(sample.ids) == len(sample.trained) == LENGTH for sample in found)
    late = [Sample(np.arange(2 * LENGTH, dtype=np.int32), np.arange(2 * LENGTH) > LENGTH)] * 9
    assert measured(late, 10) == []  # nothing of them is trained within that length


class Asked:
    """Says what it is told to, and remembers what it was asked."""

    def __init__(self):
        self.calls = []

    def answers(self, prompts, n_predict, adapter, stop):
        self.calls.append((adapter, len(prompts)))
        return None if stop else [f"{adapter} {i}" for i in range(len(prompts))]

    def surprise(self, samples, adapter, stop):
        return None if stop else (len(samples) * (2.0 if adapter is None else 1e5), len(samples))


def test_the_base_is_asked_once():
    asking, found = Asked(), Comparison([Question((1,), "p", "w")] * 2, True)
    assert compare(asking, found, 3, "one").adapter == ["one 0", "one 1"]
    assert compare(asking, found, 6, "two").base == ["None 0", "None 1"]
    assert compare(asking, found, 9, "three", stop=True) is None
    assert asking.calls == [(None, 2), ("one", 2), ("two", 2), ("three", 2)]
    assert [each.step for each in found.answers] == [3, 6]
    for step in range(10, 10 + KEPT + 5):
        compare(asking, found, step, "more")
    assert len(found.answers) == KEPT + 1 and found.answers[0].step == 3 and found.answers[-1].step == 14 + KEPT


def test_perplexities_of_both():
    found = perplexity(Asked(), [TALK] * 3, 9, "adapter")
    assert found == Perplexity(pytest.approx(math.exp(2)), math.inf, 3, 9, 3)
    assert perplexity(Asked(), [TALK], 9, "adapter", stop=True) is None
    lines = perplexity_lines({"training": found, "validation": Perplexity(12.3456, 3.4, 5, 5, 77)}, 79)
    assert lines[1].split() == ["training", "7.389", "inf", "(3", "of", "9", "samples,", "3", "tokens)"]
    assert lines[2].split() == ["validation", "12.35", "3.4", "(5", "samples,", "77", "tokens)"]
    assert len({line.index("(") for line in lines[1:]}) == 1
    narrow = perplexity_lines({"training": found}, 39)
    assert "".join(narrow[1:]).split() == lines[1].split() and all(len(line) < 40 for line in narrow)


def test_what_fails_is_said_and_that_is_all():
    said = []
    for error in (LlamacyError("no memory for it"), MemoryError()):
        assert ask_or_say(lambda error=error: (_ for _ in ()).throw(error), said.append) is None
    assert said == [f"warning: base and adapter cannot be compared: no memory{end}" for end in (" for it", "")]


TEXTS = [
    "A long answer of many words, which goes on and on. " * 3,
    "很长的回答，没有空格，" * 9,
    "",
    "\x1b]0;evil\x07\n\nb",
]


@pytest.mark.parametrize("columns", [20, 40, 79, 200])
def test_answers_stay_within_the_terminal(columns):
    found = Comparison([Question((1,), text, "wanted " + text) for text in TEXTS], False)
    lines = answer_lines(found, Answers(7, TEXTS, TEXTS[::-1]), columns)
    assert lines[0] == "answers to prompts of the training data, base and adapter after step 7:"
    assert all(width(line) <= columns and line.isprintable() for line in lines[1:])
    bars = [line for line in lines if " | " in line or line.endswith(" |")]
    assert bool(bars) == (columns > 60)
    places = {width(line[: line.index(" |")]) for line in bars}
    assert len(places) <= 1  # one below the other, Chinese or not
    whole = "".join("".join(lines).split())
    assert all("".join(word.split()) in whole for word in ("很长的回答", "prompt:", "adapter"))


def test_wrapping_keeps_every_character():
    for text in TEXTS[:2]:
        for columns in (8, 13, 30):
            found = wrapped(text, columns)
            assert all(0 < width(line) <= columns for line in found)
            assert "".join("".join(found).split()) == "".join(text.split())
    assert wrapped("a\n\n b", 10) == ["a", "", " b"] and wrapped("", 10) == [""]
    assert len("".join(wrapped("x" * 9999, 50))) == SHOWN + 3
    assert width("鱼a\u0301") == 3


def test_an_adapter_that_is_gone_is_said(tmp_path):
    said = []
    prepared = SimpleNamespace(metadata={}, masked=contextlib.nullcontext, tokenizer=ByteTokenizer())
    comparer = Comparer(prepared, SimpleNamespace(options=TrainOptions()), [TALK] * 3, None, 2, said.append)
    comparer.asking = Asked()
    assert comparer.finish(SimpleNamespace(adapter=str(tmp_path / "gone.bin")), 5, False) is None
    assert len(said) == 1 and "gone.bin" in said[0] and said[0].startswith("warning: base and adapter cannot be")


def test_nothing_is_asked_where_nobody_answers():
    comparer = Comparer(SimpleNamespace(metadata={}), SimpleNamespace(), [TALK], None, 0, pytest.fail)
    assert comparer.sample(1, False) is None and comparer.finish(None, 1, False) is None
    assert comparer.fits(None, 17) == 0
