"""What goes into the engine and what comes out: token ids and numbers, no text."""

import threading
from dataclasses import dataclass, field
from typing import NamedTuple

from llamacy.generate.samplers.params import SamplingParams


class Token(NamedTuple):
    """One generated token; `logprob` and `top` ([(id, log-probability)]) are None unless n_probs asked for them.

    With post_sampling_probs they are probabilities, not their logarithms.
    """

    id: int
    is_end: bool  # an end-of-generation token: counted, but no text
    logprob: float | None = None
    top: list | None = None


@dataclass
class Timings:
    """Where a request's time went; in milliseconds. `cache_n` prompt tokens were in the slot already.

    Of `draft_n` drafted tokens `draft_n_accepted` were right.
    """

    cache_n: int = 0
    prompt_n: int = 0
    prompt_ms: float = 0.0
    predicted_n: int = 0
    predicted_ms: float = 0.0
    draft_n: int = 0
    draft_n_accepted: int = 0

    @property
    def prompt_per_second(self):
        return 1000 * self.prompt_n / self.prompt_ms if self.prompt_ms else 0.0

    @property
    def predicted_per_second(self):
        return 1000 * self.predicted_n / self.predicted_ms if self.predicted_ms else 0.0


@dataclass
class Result:
    """How a request ended: stop_type is `eos`, `limit`, `word`, `cancel` or `error` (then `error` is the exception)."""

    stop_type: str
    truncated: bool = False  # the context was full: the text stopped there, or its oldest part was dropped
    id_slot: int = -1
    seed: int | None = None  # the one that was drawn, where -1 asked for any
    error: Exception | None = None
    timings: Timings = field(default_factory=Timings)


@dataclass(eq=False)
class Request:
    """One sequence to generate, or to embed. The callbacks run in the engine's thread and must return quickly.

    With `on_hidden` nothing is generated: it is called with the final hidden states of the prompt's tokens, f32
    (n, n_embd), a part of the prompt at a time.

    `on_token(Token)` returns True to stop after this token (a stop word), "limit" to stop there because of a limit;
    `on_end(Result)` is called once, last.
    """

    prompt: list  # token ids, BOS included where the model wants one
    params: SamplingParams = field(default_factory=SamplingParams)
    n_predict: int = -1  # -1: until end of text or the context is full; 0: only the prompt, into the cache
    n_keep: int = 0  # of the prompt's tokens, those that a context shift never drops; -1: all
    n_discard: int = 0  # tokens that a context shift drops, at most; 0: half of those that it may
    prompt_seconds: float = 0.0  # a prompt that takes longer ends the request; 0: no limit
    id_slot: int = -1  # the slot to wait for; -1: any
    cache_prompt: bool = True  # reuse what a slot's cache already holds of the prompt
    lora: tuple | None = None  # a scale for each of the model's adapters; None: the engine's own
    constraint: object = None  # constraint.Constraint: which tokens may come; the request ends where nothing may follow
    on_token: object = lambda token: False
    on_end: object = lambda result: None
    on_prompt: object = None  # (tokens of the prompt in the cache, milliseconds): called after each part of it
    on_hidden: object = None
    on_prompt_logits: object = None  # (logits f32 (n, V) after each of the prompt's tokens), a part at a time

    def __post_init__(self):
        self.cancelled = False
        self.result = None
        self.timings = Timings()
        self._ended = threading.Event()

    @property
    def reads_whole_prompt(self):
        """Is something wanted of every token of the prompt, also of those that a cache may hold?"""
        return self.on_hidden is not None or self.on_prompt_logits is not None

    def cancel(self):
        """Give the slot back before the next step; `on_end` then reports `cancel`. Any thread, any time."""
        self.cancelled = True

    def end(self, result):
        """Report the result, once."""
        if self.result is None:
            self.result = result
            self._ended.set()
            self.on_end(result)

    def wait(self, timeout=None):
        """Wait until the request has ended; return its Result, None after `timeout` seconds."""
        self._ended.wait(timeout)
        return self.result
