"""Jinja chat templates, rendered in a process of their own within limits that hold.

A template is a program that comes with a model file. Jinja's sandbox keeps it from reading or changing anything, but
not from running for ever, taking gigabytes or crashing Python (the hash of a deeply nested tuple does), and one call
such as `'x' * 10**9` holds up every thread of its process. So templates run in a child process (jinja_worker.py) that
the system ends, or denies memory, beyond the limits below. It starts with the first template and is kept for the next.
"""

import atexit
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

from llamacy.errors import LlamacyError, RequestError

SECONDS = 1.0  # of processor time for one conversation, compiling included
MEMORY = 256 << 20  # bytes of the process
OUTPUT = 8 << 20  # characters
WAIT_SECONDS = 60  # by the clock: for a process that gets no processor time at all
PROCESSES = 2  # at once; one is kept

WORKER = Path(__file__).with_name("jinja_worker.py")

# How a rendering ends that is not "text" -> what is said of the template.
OUTCOMES = {
    "invalid": "is not valid: {}",
    "refuses": "refuses this conversation: {}",
    "fails": "fails on this conversation: {}",
    "output": f"writes more than {OUTPUT} characters for this conversation",
    "memory": f"takes more than {MEMORY >> 20} MB of memory on this conversation",
    "time": f"takes more than {SECONDS:g} s of processor time on this conversation",
    "died": "ends its process on this conversation: {}",
}


def render(source, values, name):
    """Return what a Jinja template writes; `values` are its variables, anything JSON can hold.

    RequestError, one line that begins with `name`, when the template is not valid, refuses these values, fails or goes
    beyond the limits above. LlamacyError without jinja2, or where no process can be started.
    """
    try:
        values = json.dumps(values)
    except (TypeError, ValueError, RecursionError) as error:
        raise RequestError(f"{name} cannot be given this conversation: {type(error).__name__}: {error}") from None
    with _pool.process() as process:
        kind, text = process.ask(source, values)
    if kind == "text":
        return text
    if kind == "missing":
        raise LlamacyError(
            f"{name} needs jinja2 ({text}): pip install 'llamacy[chat]', or name a built-in format "
            "(--chat-template chatml)"
        )
    raise RequestError(f"{name} {OUTCOMES[kind].format(text)}")


class _Process:
    """One jinja_worker; `is_sound` is False once it cannot be used again."""

    def __init__(self):
        self._socket, theirs = socket.socketpair()
        self._socket.settimeout(WAIT_SECONDS)
        self._reader = self._socket.makefile("rb")
        self._last = None
        self.is_sound = True
        limits = {"path": sys.path, "seconds": SECONDS, "memory": MEMORY, "output": OUTPUT}
        # A session of its own: Ctrl-C at the terminal is for this program alone.
        try:
            self._process = subprocess.Popen(
                [sys.executable or "python3", "-I", "-S", WORKER, json.dumps(limits)],
                stdin=theirs,
                stdout=theirs,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        except OSError as error:
            self._socket.close()
            raise LlamacyError(
                f"the process that renders chat templates cannot be started: {error}; a built-in format needs none "
                "(--chat-template chatml)"
            ) from error
        finally:
            theirs.close()

    def ask(self, source, values):
        """Return (kind, text) for a template and its variables as JSON."""
        template = "null" if source == self._last else json.dumps(source)
        self._last = source
        self.is_sound = False
        try:
            self._socket.sendall(f'{{"template": {template}, "values": {values}}}\n'.encode("ascii"))
            kind, _, size = self._reader.readline(32).decode("ascii").partition(" ")
            text = self._reader.read(int(size)).decode("utf-8", "surrogatepass")
        except TimeoutError:
            return "died", f"no answer within {WAIT_SECONDS} s"
        except (OSError, ValueError):
            return self._end()
        self.is_sound = kind in ("text", "invalid", "refuses", "fails")
        return kind, text

    def _end(self):
        """Return (kind, text) for a process that ended in the middle of an answer."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = self._process.wait(WAIT_SECONDS)
            if code == -signal.SIGPROF:
                return "time", ""
            return "died", f"signal {-code}" if code < 0 else f"exit code {code}"
        return "died", "no whole answer"

    def close(self):
        self._process.kill()
        self._process.wait()
        self._reader.close()
        self._socket.close()


class _Pool:
    """Lends out processes to threads: at most PROCESSES at once, one kept between two uses."""

    def __init__(self):
        self._room = threading.BoundedSemaphore(PROCESSES)
        self._lock = threading.Lock()
        self._idle = None

    @contextlib.contextmanager
    def process(self):
        with self._room:
            with self._lock:
                process, self._idle = self._idle, None
            process = process or _Process()
            try:
                yield process
            finally:
                with self._lock:
                    if process.is_sound and self._idle is None:
                        self._idle, process = process, None
                if process:
                    process.close()

    def close(self):
        """End the process that is kept."""
        with self._lock:
            process, self._idle = self._idle, None
        if process:
            process.close()


_pool = _Pool()
atexit.register(lambda: _pool.close())


def _forget():
    """In a forked child: the processes are its parent's."""
    global _pool
    _pool = _Pool()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
