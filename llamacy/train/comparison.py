"""What a run is judged by besides its loss: answers of base and adapter to prompts, their perplexity on samples.

Which prompts and samples, and how they are laid out for a terminal. Who computes them is given from outside, since
nothing here generates: `asking` has answers(prompts, n_predict, adapter, stop) and surprise(samples, adapter, stop),
see library/comparing.py.
"""

import math
import unicodedata
from dataclasses import dataclass, field

import numpy as np

from llamacy.errors import LlamacyError, printable
from llamacy.train.samples import Sample

# Tokens of a prompt and of an answer at most; of a text without prompts so many are what it begins with.
PROMPT, ANSWER, BEGINNING = 256, 64, 32
# Of a run that asks often, the first answers and so many of the newest are kept.
KEPT = 999
# Samples that perplexities are measured on: a share of those that the run learns, within bounds; tokens of each.
SHARE, FEWEST, MOST, LENGTH = 1 / 20, 8, 200, 512
# Characters of a text in a terminal; a column is not narrower than this, else texts stand below each other.
SHOWN, NARROW = 400, 24


@dataclass(frozen=True)
class Question:
    """A prompt of the data: ids and text of it, and the answer that the data has to it."""

    ids: tuple
    prompt: str
    wanted: str


@dataclass
class Answers:
    """What base and adapter said to the questions after `step`: lists of str, in the questions' order."""

    step: int
    base: list
    adapter: list


@dataclass(frozen=True)
class Perplexity:
    """exp(mean negative log-likelihood) of the trained tokens of n of n_all samples."""

    base: float
    adapter: float
    n: int
    n_all: int
    n_tokens: int


@dataclass
class Comparison:
    """All that was found: `held` says whether the questions are of samples that are not learnt.

    perplexity: {"training" or "validation": Perplexity}
    """

    questions: list
    held: bool
    answers: list = field(default_factory=list)
    perplexity: dict = field(default_factory=dict)


def spread(n, most):
    """Return at most `most` indices, evenly spread over range(n)."""
    count = min(n, most)
    return [i * n // count for i in range(count)]


def questions(data, n, tokenizer, n_ctx):
    """Return up to n Questions of samples spread over `data`, whose prompts leave room in the context."""
    found, seen = [], set()
    for i in dict.fromkeys((*spread(len(data), n), *spread(len(data), 4 * n))):
        question = question_of(data[i], tokenizer)
        fits = question and 0 < len(question.ids) <= min(PROMPT, n_ctx - 8)
        if fits and question.ids not in seen and len(found) < n:
            seen.add(question.ids)
            found.append(question)
    return found


def question_of(sample, tokenizer):
    """Return the Question that a Sample's, or Preference's, first answer is to; None without one."""
    sample = wanted_of(sample)
    if sample is None or not sample.n_trained:
        return None
    begin = int(np.argmax(sample.trained))
    if begin <= 1:  # a plain text: its beginning is the prompt
        begin = min(BEGINNING, len(sample.ids) // 2)
    after = np.flatnonzero(~sample.trained[begin:])
    end = begin + int(after[0]) if len(after) else len(sample.ids)
    ids = tuple(sample.ids[:begin].tolist())
    return Question(ids, tokenizer.decode(ids, special=True), tokenizer.decode(sample.ids[begin:end].tolist()))


def wanted_of(sample):
    """Return a Sample as it is, of a Preference the answer that is wanted, None where it has none."""
    pairs = zip(getattr(sample, "samples", (sample,)), getattr(sample, "wanted", (True,)), strict=True)
    return next((each for each, wanted in pairs if wanted), None)


def measured(data, n_learnt):
    """Return the samples of `data` to measure perplexity on, for a run that learns n_learnt samples in all."""
    most = min(MOST, max(FEWEST, round(SHARE * n_learnt)))
    chosen = filter(None, (wanted_of(data[i]) for i in spread(len(data), most)))
    cut = (Sample(sample.ids[:LENGTH], sample.trained[:LENGTH]) for sample in chosen)
    return [sample for sample in cut if sample.n_trained]


def compare(asking, comparison, step, adapter, stop=False):
    """Ask base (once) and adapter, add the Answers and return them; None where `stop` became true meanwhile."""
    prompts = [list(question.ids) for question in comparison.questions]
    base = comparison.answers[0].base if comparison.answers else asking.answers(prompts, ANSWER, None, stop)
    found = None if base is None else asking.answers(prompts, ANSWER, adapter, stop)
    if found is None:
        return None
    comparison.answers.append(Answers(step, base, found))
    del comparison.answers[1 : max(1, len(comparison.answers) - KEPT)]
    return comparison.answers[-1]


def perplexity(asking, samples, n_all, adapter, stop=False):
    """Return the Perplexity on some of n_all samples, None where `stop` became true meanwhile."""
    found = []
    for each in (None, adapter):
        surprise = asking.surprise(samples, each, stop)
        if surprise is None:
            return None
        found.append(surprise)
    (base, n_tokens), (own, _) = found
    return Perplexity(_exp(base / n_tokens), _exp(own / n_tokens), len(samples), n_all, n_tokens)


def _exp(nll):
    """e to the power of a mean that may be far too large for it."""
    return math.exp(nll) if nll < 700 else math.inf


def ask_or_say(function, say, *arguments):
    """Return function(*arguments), None where it fails, which is said: the run is worth more than its looks."""
    try:
        return function(*arguments)
    except (LlamacyError, MemoryError) as error:
        say(f"warning: base and adapter cannot be compared: {str(error) or 'no memory'}")
        return None


# ---- for a terminal ----


def answer_lines(comparison, answers, columns):
    """Return Answers as lines of at most `columns` characters: base and adapter side by side where there is room."""
    where = "held-out prompts" if comparison.held else "prompts of the training data"
    lines = [f"answers to {where}, base and adapter after step {answers.step}:"]
    for question, base, adapter in zip(comparison.questions, answers.base, answers.adapter, strict=True):
        lines += [""] if len(lines) > 1 else []
        lines += _block("prompt", question.prompt, columns)
        half = (columns - 5) // 2
        if half >= NARROW:
            left, right = (["base", *wrapped(base, half)], ["adapter", *wrapped(adapter, half)])
            for i in range(max(len(left), len(right))):
                one, other = (part[i] if i < len(part) else "" for part in (left, right))
                lines.append(f"  {one}{' ' * (half - width(one))} | {other}".rstrip())
        else:
            lines += [*_block("base", base, columns), *_block("adapter", adapter, columns)]
        lines += _block("wanted", question.wanted, columns)
    return lines


def _block(name, text, columns):
    """Return a text behind its name, further lines indented."""
    first, *rest = wrapped(text, max(8, columns - 11))
    return [f"  {name + ':':8} {first}".rstrip(), *(f"{'':11}{line}".rstrip() for line in rest)]


def perplexity_lines(found, columns):
    """Return a table of {what: Perplexity}; on what it was measured below each row where a terminal is narrow."""
    lines = ["perplexity       base    adapter"]
    for name, each in found.items():
        of = f"{each.n} of {each.n_all}" if each.n < each.n_all else f"{each.n}"
        row = f"{name:12} {each.base:8.4g}   {each.adapter:8.4g}"
        about = f"({of} sample{'s' if each.n_all > 1 else ''}, {each.n_tokens} tokens)"
        lines += [f"{row}   {about}"] if len(row) + len(about) + 3 <= columns else [row, f"  {about}"]
    return lines


def width(text):
    """Return how many columns of a terminal a text takes: East Asian characters two, combining ones none."""
    return sum(
        0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text
    )


def wrapped(text, columns):
    """Return a text, its beginning where it is long, as lines that each take at most `columns`, broken at spaces.

    At least one line; control characters are escapes.
    """
    text = text.strip()
    text = text if len(text) <= SHOWN else text[:SHOWN] + " ..."
    lines = []
    for paragraph in text.split("\n"):
        first, *words = printable(paragraph.replace("\t", "    ")).split(" ")
        *full, line = _pieces(first, columns)
        for word in words:
            if width(line) + 1 + width(word) <= columns:
                line += " " + word
                continue
            *more, after = _pieces(word, columns)
            full += [line, *more]
            line = after
        lines += [*full, line]
    return lines


def _pieces(word, columns):
    """Return a word in pieces of at most `columns`."""
    pieces = [""]
    for char in word:
        if width(pieces[-1]) + width(char) > columns:
            pieces.append("")
        pieces[-1] += char
    return pieces
