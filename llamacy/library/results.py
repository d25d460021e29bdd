"""What a model answers with: texts, pieces of a text as they come, and how likely a text was."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from llamacy.generate.request import Timings


class Token(NamedTuple):
    """One generated token: its id, log-probability (natural) and [(id, log-probability)] of the likeliest ones.

    Both are None unless `logprobs` asked for them.
    """

    id: int
    logprob: float | None = None
    top: list | None = None


@dataclass
class Completion:
    """A generated text; `str()` and `print` give the text alone.

    text           what was generated, without the prompt and without what stopped it
    tokens         list of Token, the end token included
    finish_reason  "stop": the model ended it, or a stop string; "length": max_tokens, or the context is full;
                   "tool_calls": it ended with calls of tools
    stop           the stop string that ended it, or None
    prompt_tokens  tokens of the prompt
    seed           the one that gives this text again
    timings        where the time went, in milliseconds
    reasoning      of a chat: the thoughts before the answer, where the model's template has such
    tool_calls     of a chat: calls of tools in OpenAI's form, their arguments JSON text
    """

    text: str
    tokens: list[Token] = field(default_factory=list, repr=False)
    finish_reason: str = "stop"
    stop: str | None = None
    prompt_tokens: int = 0
    seed: int | None = None
    timings: Timings = field(default_factory=Timings, repr=False)
    reasoning: str = ""
    tool_calls: list[dict] = field(default_factory=list)

    def __str__(self):
        return self.text

    @property
    def message(self) -> dict:
        """The answer as the next message of the conversation."""
        calls = {"tool_calls": self.tool_calls} if self.tool_calls else {}
        return {"role": "assistant", "content": self.text, **calls}


@dataclass
class Score:
    """How likely a text is to a model.

    tokens    list of ids, n of them
    logprobs  float64 (n - 1,): the natural logarithm of the probability of each token but the first, given those before
    """

    tokens: list[int] = field(repr=False)
    logprobs: np.ndarray = field(repr=False)

    @property
    def total(self) -> float:
        """The sum: the text's own log-probability, given its first token."""
        return float(self.logprobs.sum())

    @property
    def mean(self) -> float:
        """The mean per token."""
        return float(self.logprobs.mean())

    @property
    def perplexity(self) -> float:
        """exp(-mean)"""
        return math.exp(-self.mean)

    def __repr__(self):
        return f"Score({len(self.tokens)} tokens, perplexity {self.perplexity:.4f})"


class Perplexity(NamedTuple):
    """A text's perplexity by llama.cpp's protocol, its standard error, and over how many tokens."""

    value: float
    error: float
    n_tokens: int

    def __float__(self):
        return self.value
