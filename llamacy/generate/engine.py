"""Many sequences, one step at a time: requests wait in a queue, slots share each step through the model.

A step takes one token of every generating slot and fills the rest with prompt tokens (continuous batching). All
computing happens in one thread: the engine's own after start(), or the caller's in run(). The engine knows ids only.
"""

import threading
import time
from collections import deque
from queue import SimpleQueue

import numpy as np

from llamacy.errors import LlamacyError, NotFinite, RequestError
from llamacy.generate.constraint import Helpers
from llamacy.generate.request import Result
from llamacy.generate.samplers.dry import BreakerTable
from llamacy.generate.scales import Scales
from llamacy.generate.slot import Slot

DEFAULT_BATCH = 512
# Prompt tokens in a step while others generate: bounds how long their next token waits, still a full matrix tile.
PROMPT_SHARE = 128
# ... fewer where the model or the machine is so slow that these would take longer than so many seconds.
PROMPT_SECONDS = 0.2
LEAST_SHARE = 16
# Of a prompt whose logits are all wanted no more tokens are in a step: each row has the size of the vocabulary.
PROMPT_ROWS = 64
# An adapter that was taken away stays for so long at least: a request that names it may be on its way.
RETIRE_SECONDS = 5.0
# How long a step without anything to compute waits for constraints, unless one becomes ready or a request comes.
HELD_SECONDS = 0.05
# Constraints that callers prepare at once: Python's threads take turns, and the engine's is one of them.
PREPARING = 2
# A slot's cache is worth reusing from this share of the prompt on; below it the least recently used slot is taken.
WORTH_REUSING = 0.5


class QueueFull(LlamacyError):
    """Too many requests wait already: come back later."""


class Closed(LlamacyError):
    """The engine is shutting down."""


class PromptError(RequestError):
    """The prompt cannot be run: empty, or ids that the model does not have."""


class PromptTooLong(PromptError):
    """The prompt has `n_prompt` tokens, too many for a context of `n_ctx`."""

    def __init__(self, n_prompt, n_ctx):
        super().__init__(
            f"prompt: wanted fewer than {n_ctx} tokens (the context size), got {n_prompt}; "
            "shorten it or raise --ctx-size"
        )
        self.n_prompt, self.n_ctx = n_prompt, n_ctx


class Engine:
    """Generates for many requests over one model.

    `submit(request)` from any thread; results come through the request's callbacks. `lora` holds the scales of the
    model's adapters for requests that bring none of their own.
    """

    def __init__(
        self, model, *, n_slots=1, n_ctx=2048, max_queue=256, batch_size=None, draft_lookup=0, context_shift=False
    ):
        """`batch_size`: the most tokens in a step, at least a token of every slot. The rest: see Slot."""
        self.batch_size = max(n_slots, batch_size or DEFAULT_BATCH)
        self.model = model
        self.session = model.new_session(n_slots=n_slots, n_ctx=n_ctx, max_batch=self.batch_size)
        self.n_vocab, self.n_ctx, self.max_queue = model.config.n_vocab, n_ctx, max_queue
        eog_ids = model.tokenizer.eog_ids
        self._breakers = BreakerTable(model.tokenizer, self.n_vocab)
        self.slots = [
            Slot(i, self.session, self.n_vocab, eog_ids, self._breakers, draft_lookup, context_shift)
            for i in range(n_slots)
        ]
        self._scales = Scales(model)
        self.lora = self._scales.defaults
        self.counters = dict.fromkeys(
            (
                "prompt_tokens",
                "prompt_seconds",
                "predicted_tokens",
                "predicted_seconds",
                "steps",
                "busy_slots",
                "most_tokens",
            ),
            0,
        )
        self._queue = deque()  # of the deques of requests that came together; who was served last is behind
        self._wake = threading.Condition()
        self._helpers = Helpers(self._notify)
        self._preparing = threading.BoundedSemaphore(PREPARING)
        self._some_cancelled = False
        self._changes = deque()  # (function, where its result goes): run between two steps
        self._retiring = []  # (adapter's index, when it may go at the earliest, function to call then)
        self._closing = False
        self._thread = None
        self._pace = 0.0  # seconds that a token of a prompt took of late
        self.between = None  # function(is_idle) to call between two steps, in the computing thread

    # -- any thread ------------------------------------------------------------------------------------------------

    def submit(self, request):
        """Queue a request; PromptError, QueueFull or Closed when that cannot be."""
        self.submit_all([request])

    def submit_all(self, requests):
        """Queue the requests of one client, all or none: they count as one, and clients are served by turns."""
        for request in requests:
            self.check_prompt(request.prompt)
            if request.id_slot >= len(self.slots):
                raise RequestError(f"id_slot: wanted at most {len(self.slots) - 1}, got {request.id_slot}")
            self._breakers.of(request.params)  # looked for here, in the caller's time
        self._check_room()
        for request in requests:
            if request.constraint:
                with self._preparing:
                    request.constraint.mask()  # the first one, or what is wrong with the grammar
        with self._wake:
            self._check_room()
            self._queue.append(deque(requests))
            self._wake.notify_all()

    def _check_room(self):
        if self._closing:
            raise Closed("the server is shutting down")
        if len(self._queue) >= self.max_queue:
            raise QueueFull(f"{len(self._queue)} requests are waiting already, the most that may; try again later")

    def check_prompt(self, prompt):
        """Raise PromptError unless the prompt's ids exist and leave room in the context for one token more."""
        if not prompt:
            raise PromptError("prompt: wanted at least one token, got none")
        if len(prompt) >= self.n_ctx:
            raise PromptTooLong(len(prompt), self.n_ctx)
        low, high = min(prompt), max(prompt)
        if low < 0 or high >= self.n_vocab:
            wrong = low if low < 0 else high
            raise PromptError(f"prompt: wanted token ids from 0 to {self.n_vocab - 1}, got {wrong}")

    # -- adapters that come and go, between two steps -----------------------------------------------------------------

    def between_steps(self, function):
        """Run function() while no step is made, in the computing thread if there is one; return its result."""
        with self._wake:
            if self._closing:
                raise Closed("the server is shutting down")
            if self._thread is None or self._thread is threading.current_thread():
                return function()
            result = SimpleQueue()
            self._changes.append((function, result))
            self._wake.notify_all()
        value, error = result.get()
        if error:
            raise error
        return value

    def put_adapter(self, adapter, at=None):
        """Add an adapter between two steps, at a place that is free (None: a new one); return the place.

        Its scale is 0 for requests that say nothing.
        """
        at = self.model.add_adapter(adapter, 1.0, at)
        self.lora = self._padded(self.lora)
        for slot in self.slots:
            slot.lora = self._padded(slot.lora)
        return at

    def move_scale(self, old, new):
        """Give an adapter the scale that another one has for requests that say nothing; that one has none then."""
        scales = list(self._padded(self.lora))
        scales[old], scales[new] = 0.0, scales[old]
        self.lora = tuple(scales)

    def retire_adapter(self, index, done):
        """Remove an adapter when nobody uses it any more, and call done(index)."""
        self.move_scale(index, index)
        scales = list(self.lora)
        scales[index] = 0.0
        self.lora = tuple(scales)
        with self._wake:
            self._retiring.append((index, time.monotonic() + RETIRE_SECONDS, done))
            self._wake.notify_all()

    def _padded(self, scales):
        return tuple(scales) + (0.0,) * (len(self.model.adapters) - len(scales))

    def _make_changes(self):
        """Run what waits for a moment between two steps."""
        while self._changes:
            function, result = self._changes.popleft()
            try:
                result.put((function(), None))
            except BaseException as error:
                result.put((None, error))
        for retiring in list(self._retiring):
            index, when, done = retiring
            if time.monotonic() >= when and not self._is_used(index):
                self._retiring.remove(retiring)
                for slot in self.slots:
                    if self._padded(slot.lora)[index]:
                        slot.cached, slot.lora = [], (0.0,) * len(self.model.adapters)
                self.model.remove_adapter(index)
                done(index)

    def _is_used(self, index):
        with self._wake:
            waiting = [request.lora for group in self._queue for request in group if request.lora is not None]
        running = [slot.lora for slot in self.slots if slot.request]
        return any(index < len(lora) and lora[index] for lora in waiting + running)

    def cancel(self, request):
        """Take a request out of the queue or its slot, whatever it is doing."""
        request.cancel()
        self._some_cancelled = True
        self._notify()

    def _notify(self):
        with self._wake:
            self._wake.notify_all()

    @property
    def queued(self):
        """How many requests wait for a slot."""
        with self._wake:
            return sum(map(len, self._queue))

    @property
    def busy(self):
        """How many slots have a request."""
        return sum(slot.request is not None for slot in self.slots)

    def start(self):
        """Compute in a thread of the engine's own from now on, until close()."""
        with self._wake:
            # Known before it runs: a close() right after this waits for it.
            self._thread = threading.Thread(target=self.loop, name="engine", daemon=True)
            self._thread.start()

    def close(self, grace=0.0):
        """Refuse new requests, let running ones finish for `grace` seconds, end the rest, stop the thread.

        No thread computes after it: a loop() that has begun is waited for, one that begins later returns at once.
        """
        with self._wake:
            self._closing = True
            self._deadline = time.monotonic() + grace
            self._wake.notify_all()
            thread = self._thread
        if thread and thread is not threading.current_thread():
            thread.join()
        self._helpers.close()
        self._end_all(Closed("the server is shutting down"))

    # -- the computing thread --------------------------------------------------------------------------------------

    def run(self, request):
        """Generate for one request in the calling thread, without start(); return its Result."""
        self.submit(request)
        while request.result is None:
            self.step()
        if request.result.error:
            raise request.result.error
        return request.result

    def loop(self):
        """Compute in this thread until close()."""
        self._thread = threading.current_thread()
        while True:
            if self.between:
                self.between(not (self._queue or self.busy))
            with self._wake:
                while not (self._queue or self.busy or self._closing or self._changes or self._due()):
                    self._wake.wait(RETIRE_SECONDS if self._retiring else None)
                if self._closing and (not self.busy or time.monotonic() > self._deadline):
                    return
            self.step()

    def _due(self):
        return any(time.monotonic() >= when for _, when, _ in self._retiring)

    def step(self):
        """Admit what waits, run one batch through the model, choose a token for each slot that is ready."""
        self._make_changes()
        self._drop_cancelled()
        self._go_on_with_held()
        self._admit()
        try:
            batch = self._batch()
            rows = self._compute(batch) if batch else self._wait_for_held()
        except Exception as error:
            # What the cache holds is unknown now. The failure belongs to the requests in it, not to the server.
            for slot in [slot for slot in self.slots if slot.request]:
                slot.cached.clear()
                slot.release(slot.result("error", error=error))
            return
        for slot, slot_rows, astray in rows:
            self._advance(slot, lambda slot=slot, rows=slot_rows, astray=astray: self._use(slot, rows, astray))

    def _drop_cancelled(self):
        for slot in self.slots:
            if slot.request and slot.request.cancelled:
                slot.release(slot.result("cancel"))
            elif slot.request and slot.is_late:
                slot.release(slot.result("limit"))
        if not self._some_cancelled:
            return
        self._some_cancelled = False  # before they are looked for
        with self._wake:
            waiting = [request for group in self._queue for request in group]
            groups = [deque(request for request in group if not request.cancelled) for group in self._queue]
            self._queue = deque(filter(None, groups))
        for request in waiting:
            if request.cancelled:
                request.end(Result("cancel"))

    def _go_on_with_held(self):
        """Go on with the slots whose constraints are ready now."""
        for slot in self.slots:
            if slot.is_held and slot.request and slot.request.constraint.is_ready:
                self._advance(slot, slot.go_on)

    def _wait_for_held(self):
        """Where nothing can be computed because every busy slot waits for its constraint: wait for one, a moment."""
        with self._wake:
            held = [slot.request for slot in self.slots if slot.is_held]
            if held and not any(request.cancelled or request.constraint.is_ready for request in held):
                self._wake.wait(HELD_SECONDS)
        return ()

    def _admit(self):
        """Give waiting requests to free slots, clients by turns; who waits for one slot holds up nobody else."""
        free = [slot for slot in self.slots if slot.request is None]
        while free:
            with self._wake:
                request = None if self._closing else self._take(free)
            if request is None:
                return
            lora = self._padded(self.lora if request.lora is None else request.lora)
            slot = max(free, key=lambda slot: slot.common_prefix(request, lora))
            if slot.common_prefix(request, lora) < WORTH_REUSING * len(request.prompt):
                slot = min(free, key=lambda slot: (slot.last_used, slot.id))
            if request.id_slot >= 0:
                slot = self.slots[request.id_slot]
            try:
                slot.begin(request, lora)
            except Exception as error:
                slot.request = None
                request.end(Result("error", error=error))
                continue
            free.remove(slot)

    def _take(self, free):
        """Take the next request that may begin now out of the queue, None without; its client is then the last one."""
        for i, group in enumerate(self._queue):
            request = next((request for request in group if self._fits(request, free)), None)
            if request is not None:
                group.remove(request)
                del self._queue[i]
                if group:
                    self._queue.append(group)
                return request
        return None

    def _fits(self, request, free):
        """Say whether a request may begin now: in its own slot, if it has one."""
        return request.id_slot < 0 or self.slots[request.id_slot] in free

    def _batch(self):
        """Return [(slot, how many of its pending and drafted tokens)] for the next step, generating slots first."""
        ready = [slot for slot in self.slots if slot.request and not slot.is_held]
        busy = self._scales.together(self._alike(ready))
        generating = [slot for slot in busy if slot.is_generating]
        room = self.batch_size - len(generating)
        if any(slot.is_generating for slot in ready):
            room = min(room, prompt_share(self._pace))
        for slot in generating:
            slot.guess(room // len(generating), len(generating))
        batch = [(slot, 1 + len(slot.draft)) for slot in generating]
        room -= sum(len(slot.draft) for slot in generating)
        for slot in sorted((slot for slot in busy if not slot.is_generating), key=lambda slot: slot.last_used):
            count = min(slot.pending, room, PROMPT_ROWS) if slot.wants_all_logits else min(slot.pending, room)
            if count:
                batch.append((slot, count))
                room -= count
        return batch

    @staticmethod
    def _alike(busy):
        """Return the slots that generate or those that embed, by turns: a step gives logits or hidden states."""
        kinds = [[slot for slot in busy if slot.is_embedding == kind] for kind in (False, True)]
        return min(filter(None, kinds), key=lambda slots: max(slot.last_step for slot in slots), default=[])

    def _compute(self, batch):
        """Run the batch through the model; return [(slot, logits (n, V), error)] of the slots that choose tokens now.

        A generating slot has a row for its last token and for each drafted one, a prompt one for its last token. Slots
        that embed have a row of hidden states (n, E) for each token. The error is None, or what is wrong with the rows.
        """
        hidden = batch[0][0].is_embedding
        tokens, positions, slots, scales, logits_at, counts = [], [], [], [], [], []
        for slot, count in batch:
            start, n = len(slot.cached), 0
            tokens += (slot.history[start:] + slot.draft)[:count] if slot.draft else slot.history[start : start + count]
            positions += range(start, start + count)
            slots += [slot.id] * count
            scales += [slot.lora] * count
            if hidden or slot.wants_all_logits:
                n = count
            elif count >= slot.pending:
                n = 1 + len(slot.draft)
            if n:
                logits_at += range(len(tokens) - n, len(tokens))
            counts.append(n)
        began = time.perf_counter()
        more = {"hidden": True} if hidden else {}
        astray = None
        try:
            logits = self.session.step(
                tokens, positions, slots, logits_at, lora_scales=self._scales.rows(scales), **more
            )
        except NotFinite as error:  # of some requests perhaps, with a scale that is too large
            logits, astray = error.values, error
        self._count(batch, time.perf_counter() - began)
        rows, at = [], 0
        for (slot, count), n in zip(batch, counts, strict=True):
            slot.cached += slot.history[len(slot.cached) : len(slot.cached) + count]
            slot.last_step = self.counters["steps"]
            slot.tell_progress()
            if n:
                found = logits[at : at + n]
                rows.append((slot, found, None if astray is None or np.isfinite(found).all() else astray))
            at += n
        return rows

    def _count(self, batch, seconds):
        """Add a step to the counters; its time is shared by the tokens in it."""
        total = sum(count for _, count in batch)
        prompt = sum(count for slot, count in batch if not slot.is_generating)
        if prompt >= LEAST_SHARE:
            self._pace += (seconds / total - self._pace) * (0.2 if self._pace else 1.0)
        self.counters["steps"] += 1
        self.counters["busy_slots"] += len(batch)
        held = max(len(slot.cached) + count for slot, count in batch)
        self.counters["most_tokens"] = max(self.counters["most_tokens"], held)
        self.counters["predicted_seconds"] += seconds * (total - prompt) / total
        self.counters["prompt_tokens"] += prompt
        self.counters["prompt_seconds"] += seconds * prompt / total

    @staticmethod
    def _use(slot, rows, astray):
        """Give a slot its rows; return the Result where that ends its request."""
        if astray:
            slot.cached.clear()  # nothing may go on from what gave these
            raise astray
        if slot.wants_all_logits:
            return slot.read_prompt(rows)
        return slot.embed(rows) if slot.is_embedding else slot.advance_all(rows)

    def _advance(self, slot, go_on):
        """Choose tokens for a slot; a failure ends its own request only."""
        before = slot.timings.predicted_n
        try:
            result = go_on()
        except Exception as error:
            result = slot.result("error", error=error)
        self.counters["predicted_tokens"] += slot.timings.predicted_n - before
        constraint = slot.request.constraint
        if result:
            slot.release(result)
        elif constraint and not constraint.is_ready:
            self._helpers.prepare(constraint)

    def _end_all(self, error):
        with self._wake:
            waiting = [request for group in self._queue for request in group]
            self._queue.clear()
        for request in waiting:
            request.end(Result("error", error=error))
        while self._changes:
            self._changes.popleft()[1].put((None, error))
        for slot in self.slots:
            if slot.request:
                slot.release(slot.result("error", error=error))


def prompt_share(pace):
    """Return how many tokens of prompts may be in a step while others generate; pace: seconds for each, 0: unknown."""
    most = PROMPT_SHARE if pace * PROMPT_SHARE <= PROMPT_SECONDS else int(PROMPT_SECONDS / pace)
    return max(LEAST_SHARE, most // LEAST_SHARE * LEAST_SHARE)
