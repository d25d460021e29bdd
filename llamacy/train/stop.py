"""Ctrl-C, or the terminal closing, asks a run to end after the step it is in, so that what is saved is whole."""

import contextlib
import signal
import threading

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


class Stop:
    """While this context lasts, Ctrl-C, SIGTERM and SIGHUP set `signum`; a second Ctrl-C or SIGTERM raises
    KeyboardInterrupt at once. Signals that the caller wants ignored (nohup) stay so.
    """

    def __init__(self, say):
        self.say = say
        self.signum = None
        self._before = {}

    def __enter__(self):
        # Only the main thread may set handlers; elsewhere (a test, a notebook's worker) the caller's ones stay.
        if threading.current_thread() is threading.main_thread():
            for signum in SIGNALS:
                if signal.getsignal(signum) != signal.SIG_IGN:
                    self._before[signum] = signal.signal(signum, self._handle)
        return self

    def __exit__(self, *_):
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def __bool__(self):
        return self.signum is not None

    def _handle(self, signum, _frame):
        if self and signum == signal.SIGHUP:
            return  # shell and terminal may send one each
        if self:
            raise KeyboardInterrupt
        self.signum = signum
        # A handler may run inside a write to the same stream, which then refuses a second one.
        with contextlib.suppress(RuntimeError):
            self.say("stopping after this step, then saving (once more to stop at once, without saving)")
