"""Ctrl-C asks a run to end after the step it is in, so that what is saved is whole."""

import contextlib
import signal
import threading


class Stop:
    """While this context lasts, Ctrl-C and SIGTERM set `signum`; a second one raises KeyboardInterrupt at once."""

    def __init__(self, say):
        self.say = say
        self.signum = None
        self._before = {}

    def __enter__(self):
        # Only the main thread may set handlers; elsewhere (a test, a notebook's worker) the caller's ones stay.
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGINT, signal.SIGTERM):
                self._before[signum] = signal.signal(signum, self._handle)
        return self

    def __exit__(self, *_):
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def __bool__(self):
        return self.signum is not None

    def _handle(self, signum, _frame):
        if self:
            raise KeyboardInterrupt
        self.signum = signum
        # A handler may run inside a write to the same stream, which then refuses a second one.
        with contextlib.suppress(RuntimeError):
            self.say("stopping after this step, then saving (once more to stop at once, without saving)")
