"""Locks that die with their process, whatever ends it: what a killed process left behind is told from what is in use.

They are the system's own (flock), on files that nobody else reads. Where there are none (some network file systems),
nothing is refused and nothing of others is removed.
"""

import contextlib
import os
import re
import time
import warnings
import zlib

from llamacy.errors import LlamacyError

try:
    import fcntl
except ImportError:  # not on this system
    fcntl = None

_FLAGS = os.O_RDWR | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
_OURS = re.compile(rb"\d*\n?")
PAUSE = 0.01  # seconds between two tries


def try_lock(descriptor):
    """Lock an open file until it is closed, its copies too: True, False where another has it, None where it cannot be.

    Two openings of a file are two owners, also within one process.
    """
    if fcntl is None:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def is_at(descriptor, path):
    """Tell whether an open file is what stands at `path` now."""
    try:
        here, there = os.fstat(descriptor), os.stat(path, follow_symlinks=False)
    except OSError:
        return False
    return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)


def remove_if_dead(path):
    """Remove a file that its owner keeps locked as long as it lives, if it does not; errors are nobody's concern."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, _FLAGS)
        try:
            if try_lock(descriptor) and is_at(descriptor, path):
                os.unlink(path)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def claimed(path, advice, patience=0.0, lock=None):
    """Have `path`, a file or folder to be written, for this process alone while the context lasts.

    Gives True; LlamacyError with `advice` where another has it for `patience` seconds. Meanwhile `lock` is there,
    by default `.NAME.lock` beside `path`. Where the system has no such lock a warning says so, and False is given.
    """
    target = os.path.realpath(path)
    lock = lock or os.path.join(os.path.dirname(target), f".{short(os.path.basename(target))}.lock")
    deadline = time.monotonic() + patience
    descriptor, owner = _take(lock)
    while owner is not None:
        if time.monotonic() > deadline:
            raise LlamacyError(f"{path}: is in use: another process{owner} writes there; {advice}")
        time.sleep(PAUSE)
        descriptor, owner = _take(lock)
    if descriptor is None:
        what = "no lock can be had beside it, so that another process that writes there would go unnoticed"
        warnings.warn(f"{path}: {what}", stacklevel=3)
        yield False
        return
    try:
        yield True
    finally:
        if is_at(descriptor, lock):
            with contextlib.suppress(OSError):
                os.unlink(lock)
        os.close(descriptor)


def _take(lock):
    """Return (descriptor of the locked file, None), (None, who has it), or (None, None) where it cannot be locked."""
    while True:
        try:
            descriptor = os.open(lock, _FLAGS | os.O_CREAT, 0o666)
        except OSError:
            return None, None
        got, content = try_lock(descriptor), os.pread(descriptor, 32, 0)
        ours = _OURS.fullmatch(content) is not None
        if got and ours and is_at(descriptor, lock):
            with contextlib.suppress(OSError):  # only told, never relied on
                os.truncate(descriptor, 0)
                os.pwrite(descriptor, b"%d\n" % os.getpid(), 0)
            return descriptor, None
        if got is None and not content:
            with contextlib.suppress(OSError):
                os.unlink(lock)
        os.close(descriptor)
        if got is False:
            return None, f" ({content.strip().decode()})" if ours and content.strip() else ""
        if got is None or not ours:
            return None, None


def short(name, most=100):
    """Return a file's name cut to `most` bytes, so that one with more around it stays within a file system's limit."""
    raw = os.fsencode(name)
    return name if len(raw) <= most else f"{raw[: most - 8].decode('utf-8', 'ignore')}{zlib.crc32(raw):08x}"
