"""Python's collection of garbage in a server: done when nobody waits for it.

A whole collection looks at every object while no other thread runs: with large grammars that takes a tenth of a second
and more, and comes whenever Python likes.
"""

import gc
import time

IDLE_SECONDS = 5.0  # between two collections while there is nothing to do
BUSY_SECONDS = 300.0  # ... and while there is: memory must not grow for ever
NEVER = 1_000_000


class Garbage:
    """Calling it, between two steps, collects where it is time to."""

    def __init__(self):
        """What there is now stays: no collection looks at it again. From now on only young objects go by themselves."""
        gc.collect()
        gc.freeze()
        self._before = gc.get_threshold()
        gc.set_threshold(self._before[0], self._before[1], NEVER)
        self._last = time.monotonic()

    def __call__(self, is_idle):
        now = time.monotonic()
        if now - self._last > (IDLE_SECONDS if is_idle else BUSY_SECONDS):
            gc.collect()
            self._last = time.monotonic()

    def close(self):
        """Let Python collect as it did before."""
        gc.set_threshold(*self._before)
        gc.unfreeze()
