"""Files appear whole or not at all."""

import contextlib
import errno
import os
import re
import secrets
import stat

from llamacy.errors import LlamacyError
from llamacy.formats.locks import is_at, remove_if_dead, short, try_lock

# How temporary files are called: see temporary_name().
TEMPORARY = re.compile(r"\..+\.[0-9a-f]{12}\.tmp", re.DOTALL)
FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EIO)


@contextlib.contextmanager
def atomic_write(path):
    """Give a binary file that replaces `path` when the block ends well; until then the old file stays as it is.

    A temporary file in the same folder is written, synced and renamed; any failure removes it, and what a killed
    process left in the folder goes too. A symbolic link is followed, permissions of the old file are kept, and a device
    or pipe (/dev/null) is written directly.
    Raises LlamacyError when the folder is missing or not writable, `path` is a folder, or the disk is full.
    """
    target = os.path.realpath(os.fspath(path))
    mode = mode_of(target, path)
    if mode is not None and not stat.S_ISREG(mode):
        with open(target, "wb") as file:
            yield file
        return
    sweep(os.path.dirname(target))
    temporary, descriptor = _create(target, path, 0o666 if mode is None else stat.S_IMODE(mode))
    # shares the lock, which must last until the file has its own name
    lock = os.dup(descriptor)
    try:
        file = os.fdopen(descriptor, "wb")
        try:
            if mode is not None:
                os.fchmod(descriptor, stat.S_IMODE(mode))
            yield file
            file.flush()
            os.fsync(descriptor)
        finally:
            # After a failed write closing flushes again and fails again: the first error is the one to tell.
            with contextlib.suppress(OSError):
                file.close()
        os.replace(temporary, target)
        sync_folder(os.path.dirname(target))
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        if isinstance(error, OSError) and error.errno in FULL:
            raise cannot_write(path, error, "is unchanged" if mode is not None else "was not written") from error
        raise
    finally:
        os.close(lock)


def cannot_write(path, error, kept):
    """Return the LlamacyError for a disk that is full or fails; `kept`: what became of the file at `path`."""
    return LlamacyError(
        f"{path}: cannot write: {error.strerror}; the file {kept}; free some space or choose another folder"
    )


def sweep(folder):
    """Remove the temporary files in `folder` whose process is dead."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        left = [entry.path for entry in entries if TEMPORARY.fullmatch(entry.name) and _is_own_file(entry)]
        for path in left:
            remove_if_dead(path)


def _is_own_file(entry):
    return entry.is_file(follow_symlinks=False) and entry.stat(follow_symlinks=False).st_uid == os.geteuid()


def mode_of(target, path):
    """Return the mode bits of what stands at `target`, None for nothing."""
    try:
        mode = os.stat(target).st_mode
    except FileNotFoundError:
        return None
    except OSError as error:
        raise LlamacyError(f"{path}: cannot write: {error.strerror}; choose another path") from error
    if stat.S_ISDIR(mode):
        raise LlamacyError(f"{path}: is a folder; wanted the path of a file to write")
    return mode


def _create(target, path, mode):
    """Create a new file beside `target`; return its path and descriptor, locked where that can be."""
    folder = os.path.dirname(target)
    while True:
        temporary = temporary_name(target)
        try:
            descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0), mode)
        except FileNotFoundError as error:
            raise LlamacyError(f"{path}: cannot write: the folder {folder} does not exist; create it first") from error
        except OSError as error:
            raise LlamacyError(f"{path}: cannot write: {error.strerror} in {folder}; choose another folder") from error
        # another process's sweep may have come between
        if try_lock(descriptor) is not False and is_at(descriptor, temporary):
            return temporary, descriptor
        os.close(descriptor)


def temporary_name(target):
    """Return a new name beside `target` that sweep() knows."""
    folder, name = os.path.split(target)
    return os.path.join(folder, f".{short(name)}.{secrets.token_hex(6)}.tmp")


def sync_folder(folder):
    """Make the rename itself durable, where the system lets a folder be synced."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
