"""Threads and fork(): OpenMP's threads stay behind in the parent, and a child's region would wait for them for ever."""

import os

from llamacy.errors import LlamacyError

_process = None  # the one in which several threads computed first


def check_threads(n_threads):
    """What every parallel region calls before it begins: LlamacyError in a process forked after threads had run."""
    global _process
    if n_threads < 2:
        return
    if _process is None:
        _process = os.getpid()
    elif _process != os.getpid():
        raise LlamacyError(
            "this process was forked from one that had computed with several threads, which do not survive fork(); "
            "start it anew (multiprocessing: the 'spawn' start method), fork before any model loads, or use one thread"
        )
