"""One sequence's place in the KV cache: what it holds, and the request that uses it now."""

import time

from llamacy.generate.lookup import Lookup, Trust
from llamacy.generate.request import Result, Timings, Token
from llamacy.generate.sampler import Sampler, token_probs


class Slot:
    """`cached` are the ids in the KV cache, made with the adapter scales `lora`; `request` is None while it is free.

    draft_most: ids to guess ahead while generating, at most. context_shift: a full context drops its oldest half and
    goes on, instead of ending the request. session: the one whose slot this is.
    """

    def __init__(self, id, session, n_vocab, eog_ids, breakers, draft_most=0, context_shift=False):
        self.id, self._session, self.n_ctx = id, session, session.n_ctx
        self.n_vocab, self.eog_ids, self._breakers = n_vocab, eog_ids, breakers
        self.draft_most, self.context_shift = draft_most, context_shift
        self.cached = []
        self.lora = ()
        self.last_used = 0.0  # seconds
        self.last_step = 0  # the number of the engine's step that it was part of
        self.request = None
        self.history = []
        self.draft = []  # guesses of what follows the history, in the step that is being made
        self.sampler = None
        self.timings = Timings()
        self._rows = []  # [(logits, the id that was guessed to follow)] to choose from, in order
        self._unsettled = None  # (stop, is_end, drafted) of the last token, until its constraint is ready
        self.is_held = False  # waits for its constraint, without which no step of it can be made

    def common_prefix(self, request, lora):
        """Return how many leading tokens of the prompt need no computing; the last one always does, for its logits."""
        if not request.cache_prompt or request.reads_whole_prompt or lora != self.lora:
            return 0
        same, most = 0, min(len(self.cached), len(request.prompt) - 1)
        while same < most and self.cached[same] == request.prompt[same]:
            same += 1
        return self._session.reusable(self.id, same)

    def begin(self, request, lora):
        """Take the request; LlamacyError when its parameters do not fit this model."""
        self.sampler = Sampler(request.params, self.n_vocab, self.eog_ids, self._breakers.of(request.params))
        keep = self.common_prefix(request, lora)
        del self.cached[keep:]
        self.lora, self.request, self.history, self.draft = lora, request, list(request.prompt), []
        self.timings = request.timings = Timings(cache_n=keep, prompt_n=len(request.prompt) - keep)
        self._began = self.last_used = time.perf_counter()
        self._first = None
        self._lookup, self._shifted = Lookup() if self.draft_most else None, False
        self._trust, self._imagined = Trust(), None

    @property
    def pending(self):
        """How many tokens are known but not in the cache yet: one while generating, more while reading the prompt."""
        return len(self.history) - len(self.cached)

    @property
    def is_generating(self):
        return self.timings.predicted_n > 0 and self.pending == 1

    @property
    def is_late(self):
        """Has the prompt taken longer than the request allows?"""
        seconds = self.request.prompt_seconds
        return bool(seconds) and self._first is None and time.perf_counter() - self._began > seconds

    @property
    def is_embedding(self):
        return self.request.on_hidden is not None

    @property
    def wants_all_logits(self):
        """Are logits after each token wanted, as long as the prompt is being read?"""
        return self.request.on_prompt_logits is not None and self._first is None

    def read_prompt(self, rows):
        """Report logits (n, V) after tokens of the prompt; go on as usual after its last one."""
        self.request.on_prompt_logits(rows)
        return None if self.pending else self.advance_all(rows[-1:])

    def tell_progress(self):
        """Report how much of the prompt is in the cache, where the request wants to know and it is still being read."""
        if self.request.on_prompt and self._first is None:
            self.request.on_prompt(len(self.cached), 1000 * (time.perf_counter() - self._began))

    def embed(self, rows):
        """Report hidden states (n, n_embd); return the Result after the prompt's last token, else None."""
        self.request.on_hidden(rows)
        if self.pending:
            return None
        self.timings.prompt_ms = 1000 * (time.perf_counter() - self._began)
        return self.result("limit")

    def guess(self, most, n_sequences):
        """Set `draft`: at most `most` ids, no more than the context and the request have room for.

        Where guesses were wrong too often to be worth computing for one of n_sequences in a step, the first is only
        compared with what comes, so that a text that begins to repeat itself is noticed.
        """
        room = self.n_ctx - len(self.history)
        if self.request.n_predict >= 0:
            room = min(room, self.request.n_predict - self.timings.predicted_n - 1)
        most = min(most, self.draft_most, room)
        guesses = self._lookup.draft(self.history, most) if self._lookup and most > 0 else []
        self.draft = guesses[: self._trust.worth(len(guesses), n_sequences)]
        self._imagined = guesses[0] if guesses and not self.draft else None
        self.timings.draft_n += len(self.draft)

    def advance_all(self, rows):
        """Choose a token from each row of logits, as long as the drafted ones are chosen; return the Result or None.

        Row 0 follows the history, row i the draft's first i tokens. Where the constraint is not ready the rest waits:
        `is_held`, and go_on() when it is.
        """
        guesses, self.draft = [*self.draft, None], []
        self._rows = list(zip(rows, guesses, strict=True))
        result = self.go_on()
        if self._rows:  # they lie in memory of the session's
            self._rows = [(row.copy(), guess) for row, guess in self._rows]
        return result

    def go_on(self):
        """Do what of advance_all is still to do; return the Result or None."""
        constraint, result = self.request.constraint, None
        while True:
            if constraint and not constraint.is_ready:
                self.is_held = bool(self._rows) or self._is_last()
                return None
            if self._unsettled:
                result = self._settle()
            if result or not self._rows:
                break
            result = self._choose(*self._rows.pop(0))
            if result:
                break
        self.is_held, self._rows, self._imagined = False, [], None
        return result

    def _settle(self):
        """Return the Result where the last token ends the request; else go behind it where it was drafted right."""
        (stop, is_end, drafted), self._unsettled = self._unsettled, None
        result = self._ending(stop, is_end)
        if result or (drafted and self.pending != 1):
            self._rows = []
        elif drafted:
            self.cached.append(self.history[-1])
            self.timings.draft_n_accepted += 1
        return result

    def _is_last(self):
        """Is the last token one that ends the request, for whatever reason?"""
        return self.timings.predicted_n == self.request.n_predict or len(self.cached) >= self.n_ctx

    def _choose(self, logits, guess):
        """Choose the next token from logits (V) and report it; return a Result where none was asked for."""
        request, now = self.request, time.perf_counter()
        if self._first is None:
            self._first = now
            self.timings.prompt_ms = 1000 * (now - self._began)
            if request.n_predict == 0:
                return self.result("limit")
        self.timings.predicted_ms = 1000 * (now - self._first)
        chosen = self.sampler.sample(logits, self.history, request.constraint)
        self.history.append(chosen)
        self.timings.predicted_n += 1
        is_end = chosen in self.eog_ids
        stop = request.on_token(Token(chosen, is_end, *self._probs(logits, chosen)))
        if request.constraint and not (stop or is_end):
            request.constraint.accept(chosen)
            request.constraint.prepare_little()
        expected = self._imagined if guess is None else guess
        if expected is not None:
            self._trust.tell(chosen == expected)
        drafted = guess is not None and chosen == guess
        self._rows = self._rows if drafted else []
        self._unsettled = (stop, is_end, drafted)
        return None

    def _ending(self, stop, is_end):
        """Return the Result where the last token ends the request, else None; see Request.on_token for `stop`."""
        request = self.request
        for applies, stop_type in (
            (stop, stop if isinstance(stop, str) else "word"),
            (is_end or (request.constraint and request.constraint.is_over), "eos"),
            (self.timings.predicted_n == request.n_predict, "limit"),
        ):
            if applies:
                return self.result(stop_type)
        # The new token would be computed at position len(cached): full means that there is none.
        if len(self.cached) < self.n_ctx:
            return None
        return None if self.context_shift and self._shift() else self.result("limit", truncated=True)

    def _probs(self, logits, chosen):
        """Return what Token has of probabilities: the model's, or those that the chain left to draw from."""
        params = self.request.params
        if not params.n_probs:
            return None, None
        if params.post_sampling_probs:
            return self.sampler.probability_of(chosen), self.sampler.likely(chosen, params.n_probs)
        return token_probs(logits, chosen, params.n_probs)

    def _shift(self):
        """Drop the older half of what may be dropped; the rest is computed anew, as if it were the prompt.

        False when the request keeps so much of its prompt that nothing can go.
        """
        n_keep = self.request.n_keep
        keep = len(self.request.prompt) if n_keep < 0 else min(n_keep, len(self.request.prompt))
        most = len(self.history) - keep
        drop = min(self.request.n_discard or most // 2, most)
        # Room for one token at least must be gained.
        if drop < 1 or len(self.history) - drop >= self.n_ctx:
            return False
        del self.history[keep : keep + drop]
        del self.cached[self._session.reusable(self.id, keep) :]
        self._lookup, self._shifted = Lookup() if self.draft_most else None, True
        return True

    def result(self, stop_type, **more):
        """Return the Result of ending here."""
        if self._first is not None:
            self.timings.predicted_ms = 1000 * (time.perf_counter() - self._first)
        more = {"truncated": self._shifted} | more
        return Result(stop_type, id_slot=self.id, seed=self.sampler.seed, timings=self.timings, **more)

    def release(self, result):
        """End the request and be free; what the cache holds stays for the next one."""
        request, self.request = self.request, None
        self._rows, self._unsettled, self.is_held = [], None, False
        self.last_used = time.perf_counter()
        request.end(result)
